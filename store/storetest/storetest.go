// Package storetest holds a store of accounts to the contract of package store.
package storetest

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/flatauth/caddy-flatauth/protocol"
	"github.com/flatauth/caddy-flatauth/protocol/bundle"
	"github.com/flatauth/caddy-flatauth/store"
)

// A WritableStore is a store that Run can put accounts into.
type WritableStore interface {
	store.Store
	store.Lister
	store.Writer
}

// Run tests a store. The function open returns it, empty the first time it is
// called in a test. When open is called again in the same test, it returns
// another instance of the same store, as another process would have it.
func Run(t *testing.T, open func(t *testing.T) WritableStore) {
	for _, test := range []struct {
		name string
		run  func(t *testing.T, s, other WritableStore)
	}{
		{"Create", testCreate},
		{"Names", testNames},
		{"KeyInUse", testKeyInUse},
		{"Update", testUpdate},
		{"Remove", testRemove},
		{"Refused", testRefused},
		{"Concurrent", testConcurrent},
		{"Cancelled", testCancelled},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := open(t)
			test.run(t, s, open(t))
		})
	}
}

// Person makes an interactive account with a new key, and Machine a
// certificate account.
func Person(t testing.TB, name string) *store.Account {
	a := Machine(t, name)
	a.Type, a.Bundle = store.Interactive, personBundle()
	return a
}

// personBundle is a strong bundle, made once: it is dear.
var personBundle = sync.OnceValue(func() []byte {
	key, cert, err := bundle.NewKey(bundle.P256, "storetest")
	if err != nil {
		panic(err)
	}
	der, err := bundle.New(key, cert, "storetest")
	if err != nil {
		panic(err)
	}
	return der
})

// Machine is described at Person.
func Machine(t testing.TB, name string) *store.Account {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return &store.Account{
		Name: name, Type: store.Certificate, Certificate: certificate(t, key, name),
		Created: time.Now().UTC().Truncate(time.Second),
	}
}

func certificate(t testing.TB, key *ecdsa.PrivateKey, name string) *x509.Certificate {
	t.Helper()
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: serial, Subject: pkix.Name{CommonName: name}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

func create(t *testing.T, s store.Writer, a *store.Account) {
	t.Helper()
	if err := s.Create(t.Context(), a); err != nil {
		t.Fatalf("creating %q: %v", a.Name, err)
	}
}

// expect checks that the store has the account, by each of its ways.
func expect(t *testing.T, s store.Store, want *store.Account) {
	t.Helper()
	got, err := s.ByName(t.Context(), want.Name)
	if err != nil {
		t.Errorf("%q by name: %v", want.Name, err)
	} else if !got.Equal(want) {
		t.Errorf("%q by name: got %+v, want %+v", want.Name, got, want)
	}
	got, err = s.ByThumbprint(t.Context(), want.Thumbprint())
	if err != nil {
		t.Errorf("%q by thumbprint: %v", want.Name, err)
	} else if !got.Equal(want) {
		t.Errorf("%q by thumbprint: got %+v, want %+v", want.Name, got, want)
	}
}

// expectNone checks that the store does not have the account.
func expectNone(t *testing.T, s store.Store, a *store.Account) {
	t.Helper()
	if got, err := s.ByName(t.Context(), a.Name); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("%q by name: got %+v, %v", a.Name, got, err)
	}
	if got, err := s.ByThumbprint(t.Context(), a.Thumbprint()); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("%q by thumbprint: got %+v, %v", a.Name, got, err)
	}
}

func names(t *testing.T, s store.Lister) []string {
	t.Helper()
	var all []string
	for a, err := range s.List(t.Context()) {
		if err != nil {
			t.Errorf("list: %v", err)
			continue
		}
		all = append(all, a.Name)
	}
	slices.Sort(all)
	return all
}

func testCreate(t *testing.T, s, other WritableStore) {
	if all := names(t, s); len(all) != 0 {
		t.Errorf("a new store lists %q", all)
	}
	alice, sensor := Person(t, "alice"), Machine(t, "sensor@plant")
	expectNone(t, s, alice)
	expectNone(t, other, sensor)
	create(t, s, alice)
	create(t, s, sensor)
	for _, s := range []WritableStore{s, other} {
		expect(t, s, alice)
		expect(t, s, sensor)
		expectNone(t, s, Machine(t, "alice@plant"))
		if all := names(t, s); !slices.Equal(all, []string{"alice", "sensor@plant"}) {
			t.Errorf("list: %q", all)
		}
	}
	if err := other.Create(t.Context(), Machine(t, "alice")); !errors.Is(err, store.ErrExists) {
		t.Errorf("a second alice: %v", err)
	}
	expect(t, s, alice)
}

// testNames creates accounts whose names could be mistaken for paths, for each
// other or for something of the store's own.
func testNames(t *testing.T, s, other WritableStore) {
	all := []string{
		"../x", "..", ".", ".lock", "x/../../y", `c:\x`, "nul", "a:b", "*", "?", "%2e", "a%b", "a b"[:1] + "_b",
		"a", "aa", "a@a", "a@a@a", "a@b.example", "日本語", "müller", "ö@ö",
		strings.Repeat("n", 255), strings.Repeat("n", 254) + "m", strings.Repeat("日", 85), strings.Repeat("/", 127) + "@" + strings.Repeat("z", 127),
		"account.json", "select", "';--", "\"quoted\"", "$(x)", "{env.home}",
	}
	var accounts []*store.Account
	for _, name := range all {
		if normal, err := protocol.NormalizeName(name); err != nil || normal != name {
			t.Fatalf("%q is not a name: %q, %v", name, normal, err)
		}
		a := Machine(t, name)
		create(t, s, a)
		accounts = append(accounts, a)
	}
	for _, a := range accounts {
		expect(t, other, a)
	}
	slices.Sort(all)
	if got := names(t, other); !slices.Equal(got, all) {
		t.Errorf("list: %q\nwant: %q", got, all)
	}
	for _, a := range accounts {
		if err := other.Remove(t.Context(), a.Name); err != nil {
			t.Errorf("removing %q: %v", a.Name, err)
		}
		expectNone(t, s, a)
	}
}

func testKeyInUse(t *testing.T, s, other WritableStore) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	first, second := Machine(t, "first"), Machine(t, "second")
	first.Certificate = certificate(t, key, "first")
	second.Certificate = certificate(t, key, "another certificate of the same key")
	create(t, s, first)
	if err := other.Create(t.Context(), second); !errors.Is(err, store.ErrKeyInUse) {
		t.Errorf("a second account with the key: %v", err)
	}
	expectNone(t, s, second)

	third := Machine(t, "third")
	create(t, s, third)
	err = other.Update(t.Context(), "third", func(a *store.Account) error {
		a.Certificate = second.Certificate
		return nil
	})
	if !errors.Is(err, store.ErrKeyInUse) {
		t.Errorf("an account that takes the key: %v", err)
	}
	expect(t, s, third)

	// A removed account's key is free, and an account may renew the
	// certificate of its own key.
	if err := s.Update(t.Context(), "first", func(a *store.Account) error {
		a.Certificate = second.Certificate
		return nil
	}); err != nil {
		t.Errorf("a new certificate of the same key: %v", err)
	}
	if _, err := other.ByThumbprint(t.Context(), first.Thumbprint()); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("the old certificate: %v", err)
	}
	if err := s.Remove(t.Context(), "first"); err != nil {
		t.Fatal(err)
	}
	create(t, other, second)
	expect(t, s, second)
}

func testUpdate(t *testing.T, s, other WritableStore) {
	alice := Person(t, "alice")
	create(t, s, alice)
	disable := func(a *store.Account) error { a.Disabled = true; return nil }
	if err := s.Update(t.Context(), "alice", disable); err != nil {
		t.Fatal(err)
	}
	alice.Disabled = true
	expect(t, s, alice)
	expect(t, other, alice)

	mistake := errors.New("mistake")
	err := s.Update(t.Context(), "alice", func(a *store.Account) error { a.Disabled = false; return mistake })
	if !errors.Is(err, mistake) {
		t.Errorf("a change that fails: %v", err)
	}
	expect(t, other, alice)
	if err := s.Update(t.Context(), "alice", func(a *store.Account) error { a.Name = "bob"; return nil }); err == nil {
		t.Error("the name was changed")
	}
	expect(t, other, alice)
	if err := s.Update(t.Context(), "nobody", disable); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("nobody: %v", err)
	}

	// What was handed out is the caller's.
	got, err := s.ByName(t.Context(), "alice")
	if err != nil {
		t.Fatal(err)
	}
	got.Disabled = false
	expect(t, s, alice)
}

func testRemove(t *testing.T, s, other WritableStore) {
	alice, bob := Machine(t, "alice"), Machine(t, "bob")
	create(t, s, alice)
	create(t, s, bob)
	expect(t, other, alice)
	if err := s.Remove(t.Context(), "alice"); err != nil {
		t.Fatal(err)
	}
	for _, s := range []WritableStore{s, other} {
		expectNone(t, s, alice)
		expect(t, s, bob)
	}
	if err := other.Remove(t.Context(), "alice"); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("removing it again: %v", err)
	}
}

func testRefused(t *testing.T, s, other WritableStore) {
	for what, change := range map[string]func(*store.Account){
		"not normalised":          func(a *store.Account) { a.Name = "Alice" },
		"no name":                 func(a *store.Account) { a.Name = "" },
		"too long a name":         func(a *store.Account) { a.Name = strings.Repeat("n", 256) },
		"no certificate":          func(a *store.Account) { a.Certificate = nil },
		"no bundle":               func(a *store.Account) { a.Bundle = nil },
		"a bundle that is none":   func(a *store.Account) { a.Bundle = []byte("bundle") },
		"a machine with a bundle": func(a *store.Account) { a.Type = store.Certificate },
		"no type":                 func(a *store.Account) { a.Type = "" },
	} {
		a := Person(t, "alice")
		change(a)
		if err := s.Create(t.Context(), a); err == nil {
			t.Errorf("%s: not refused", what)
		}
	}
	if all := names(t, other); len(all) != 0 {
		t.Errorf("list: %q", all)
	}
}

func testConcurrent(t *testing.T, s, other WritableStore) {
	var wg sync.WaitGroup
	shared := Machine(t, "shared")
	created := make(chan error, 16)
	for i := range 16 {
		s := []WritableStore{s, other}[i%2]
		own := Machine(t, fmt.Sprintf("own-%d", i))
		wg.Go(func() {
			created <- s.Create(t.Context(), shared)
			if err := s.Create(t.Context(), own); err != nil {
				t.Errorf("%s: %v", own.Name, err)
			}
			expect(t, s, own)
			if err := s.Update(t.Context(), own.Name, func(a *store.Account) error { a.Disabled = true; return nil }); err != nil {
				t.Errorf("%s: %v", own.Name, err)
			}
		})
	}
	wg.Wait()
	close(created)
	n := 0
	for err := range created {
		if err == nil {
			n++
		} else if !errors.Is(err, store.ErrExists) {
			t.Error(err)
		}
	}
	if n != 1 {
		t.Errorf("one account was created %d times", n)
	}
	if all := names(t, other); len(all) != 17 {
		t.Errorf("list: %q", all)
	}
}

func testCancelled(t *testing.T, s, other WritableStore) {
	alice := Machine(t, "alice")
	create(t, s, alice)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.ByName(ctx, "alice"); !errors.Is(err, context.Canceled) {
		t.Errorf("by name: %v", err)
	}
	if _, err := s.ByThumbprint(ctx, alice.Thumbprint()); !errors.Is(err, context.Canceled) {
		t.Errorf("by thumbprint: %v", err)
	}
	if err := s.Remove(ctx, "alice"); !errors.Is(err, context.Canceled) {
		t.Errorf("remove: %v", err)
	}
	expect(t, other, alice)
}
