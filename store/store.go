// Package store says what an account is and what a store of accounts must do.
// It knows nothing of Caddy; the packages below it are Caddy modules in the
// namespace flatauth.stores.
//
// A store implements [Store], and [Lister] and [Writer] if it can. Package
// storetest holds any store to this contract.
package store

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"iter"
	"strings"
	"time"
	"unicode"

	"github.com/flatauth/caddy-flatauth/protocol"
	"github.com/flatauth/caddy-flatauth/protocol/bundle"
)

// A Type is one of the two kinds of account.
type Type string

const (
	// Interactive is a person: the store keeps the passphrase-protected
	// certificate, which is sent to the client.
	Interactive Type = "interactive"

	// Certificate is a machine: the store keeps its certificate only.
	Certificate Type = "certificate"
)

// An Account is a person or a machine that may log in.
type Account struct {
	// Name is NAME or NAME@ZONE, as protocol.NormalizeName gives it.
	Name string

	Type Type

	// Certificate is the account's certificate, with a key that
	// protocol.CertificateKey takes. Its public key belongs to no other
	// account of the store.
	Certificate *x509.Certificate

	// Bundle is the PKCS#12 of an interactive account, and empty otherwise.
	Bundle []byte

	// Disabled accounts cannot log in.
	Disabled bool

	// Created is when the account was added to the store.
	Created time.Time
}

// Thumbprint is the SHA-256 of the account's certificate.
func (a *Account) Thumbprint() protocol.Thumbprint { return sha256.Sum256(a.Certificate.Raw) }

// KeyHash is the SHA-256 of the account's public key, as the certificate's
// SubjectPublicKeyInfo has it. Whatever certificate is made for a key, this
// stays the same.
func (a *Account) KeyHash() [32]byte { return sha256.Sum256(a.Certificate.RawSubjectPublicKeyInfo) }

// Check reports what is wrong with an account. Stores call it before they keep
// one, and before they hand out one that something else may have written.
func (a *Account) Check() error {
	if name, err := protocol.NormalizeName(a.Name); err != nil {
		return err
	} else if name != a.Name {
		return fmt.Errorf("the name %q is not normalised: it should be %q", a.Name, name)
	}
	if a.Certificate == nil {
		return errors.New("there is no certificate")
	}
	if _, err := protocol.CertificateKey(a.Certificate); err != nil {
		return err
	}
	// The certificate may be somebody else's work, and its names are shown at
	// terminals and given to upstreams.
	if names := a.Certificate.Subject.String() + a.Certificate.Issuer.String(); strings.ContainsFunc(names, unicode.IsControl) {
		return errors.New("the certificate has control characters in its subject or issuer")
	}
	switch a.Type {
	case Interactive:
		if len(a.Bundle) == 0 {
			return errors.New("an interactive account needs a PKCS#12 bundle")
		}
		return bundle.CheckStrength(a.Bundle)
	case Certificate:
		if len(a.Bundle) != 0 {
			return errors.New("a certificate account has no PKCS#12 bundle: the server must not have its private key")
		}
		return nil
	}
	return fmt.Errorf("no type of account %q: it is %q or %q", a.Type, Interactive, Certificate)
}

// Equal reports whether two accounts are the same in every field.
func (a *Account) Equal(b *Account) bool {
	return a.Name == b.Name && a.Type == b.Type && a.Certificate.Equal(b.Certificate) &&
		bytes.Equal(a.Bundle, b.Bundle) && a.Disabled == b.Disabled && a.Created.Equal(b.Created)
}

// Errors of a store. They come wrapped, with the account: use errors.Is.
var (
	ErrNotFound = errors.New("no such account")
	ErrExists   = errors.New("the account exists already")
	ErrKeyInUse = errors.New("the public key belongs to another account")
)

// A Store finds accounts. Its methods are called from many goroutines at once,
// and return when the context is done. What they return is the caller's, but
// for the bytes inside, which must not be changed. A change of the store is
// seen by the next call, without anything being loaded again.
type Store interface {
	// ByName returns the account of a normalised name, disabled or not. The
	// error wraps ErrNotFound if there is none; any other error says that the
	// store cannot tell.
	ByName(ctx context.Context, name string) (*Account, error)

	// ByThumbprint returns the account whose certificate has the thumbprint. Its
	// errors are those of ByName. Its cost does not grow with the number of
	// accounts.
	ByThumbprint(ctx context.Context, thumbprint protocol.Thumbprint) (*Account, error)
}

// A Lister is a store that can list its accounts.
type Lister interface {
	// List goes through all accounts in no particular order. An account that
	// cannot be read is an error, after which the list goes on.
	List(ctx context.Context) iter.Seq2[*Account, error]
}

// A Writer is a store that accounts can be added to, changed and removed. Every
// change is atomic: whenever the process or the machine stops, the store holds
// the account as it was before or after. When a method has returned without an
// error, the change is durable. Changes by several processes at once do not
// get in each other's way.
type Writer interface {
	// Create adds an account. The error wraps ErrExists if the name is taken,
	// and ErrKeyInUse if another account has the public key.
	Create(ctx context.Context, account *Account) error

	// Update changes the account of the name. It calls change once, with the
	// account as it is, and keeps what change makes of it, unless that returns
	// an error, which Update then returns. The name cannot be changed. The error
	// wraps ErrNotFound or ErrKeyInUse.
	Update(ctx context.Context, name string, change func(*Account) error) error

	// Remove removes the account of the name. The error wraps ErrNotFound if
	// there is none.
	Remove(ctx context.Context, name string) error
}
