package bundle

import (
	"bytes"
	"crypto/sha256"
	"encoding/asn1"
	"encoding/binary"
	"errors"
	"slices"
	"strings"
	"testing"
)

// light makes a bundle that is cheap to open.
func light(t testing.TB, kind, name, passphrase string) []byte {
	t.Helper()
	key, cert, err := NewKey(kind, name)
	if err != nil {
		t.Fatal(err)
	}
	der, err := encode(key, cert, passphrase, 1)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func TestOpen(t *testing.T) {
	for _, kind := range []string{P256, P384, RSA3072} {
		der := light(t, kind, "alice", "open sesame")
		got, err := Open(der, "open sesame")
		if err != nil {
			t.Fatal(kind, err)
		}
		if cn := got.Certificates[0].Subject.CommonName; cn != "alice" {
			t.Errorf("%s: certificate of %q", kind, cn)
		}
		if _, err := Open(der, "open sesamE"); !errors.Is(err, ErrPassphrase) {
			t.Errorf("%s: wrong passphrase: %v", kind, err)
		}
	}
	if _, _, err := NewKey("p521", "alice"); err == nil || !strings.Contains(err.Error(), "p521") {
		t.Errorf("a kind of key that does not exist: %v", err)
	}
}

func TestPassphraseOutsideBMP(t *testing.T) {
	if err := CheckPassphrase("na\u00efve \u6f22\u5b57"); err != nil {
		t.Error(err)
	}
	if err := CheckPassphrase("horse \U0001f40e"); err == nil || !strings.Contains(err.Error(), "emoji") {
		t.Errorf("an emoji: %v", err)
	}
}

func TestNewIsStrong(t *testing.T) {
	key, cert, err := NewKey(P256, "alice")
	if err != nil {
		t.Fatal(err)
	}
	der, err := New(key, cert, "open sesame")
	if err != nil {
		t.Fatal(err)
	}
	if err := CheckStrength(der); err != nil {
		t.Error(err)
	}
	if err := CheckWork(der); err != nil {
		t.Error(err)
	}
	weak, err := encode(key, cert, "open sesame", MinIterations-1)
	if err != nil {
		t.Fatal(err)
	}
	if err := CheckStrength(weak); !errors.Is(err, ErrWeak) {
		t.Errorf("one iteration short: %v", err)
	}
}

// Every part counts, the MAC no less than what is encrypted.
func TestCheckStrengthOfEachPart(t *testing.T) {
	strong := must(setIterations(light(t, P256, "alice", "p"), MinIterations))
	mac := func(n int) func(*pfx) { return func(p *pfx) { p.MacData.Iterations = n } }
	for what, test := range map[string]struct {
		der  []byte
		weak bool
	}{
		"all strong":      {strong, false},
		"weak MAC":        {must(change(strong, mac(MinIterations-1))), true},
		"weak encryption": {must(change(must(setIterations(strong, MinIterations-1)), mac(MinIterations))), true},
		"MAC of SHA-1": {must(change(strong, func(p *pfx) {
			p.MacData.Mac.Algorithm.Algorithm = asn1.ObjectIdentifier{1, 3, 14, 3, 2, 26}
		})), true},
	} {
		if err := CheckStrength(test.der); errors.Is(err, ErrWeak) != test.weak {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// change changes the outermost structure of a bundle.
func change(der []byte, f func(*pfx)) ([]byte, error) {
	var p pfx
	if err := unmarshal(der, &p); err != nil {
		return nil, err
	}
	f(&p)
	return asn1.Marshal(p)
}

func TestCheckWork(t *testing.T) {
	der := light(t, P256, "alice", "p")
	for _, test := range []struct {
		iterations int
		ok         bool
	}{
		{maxIterations / 3, true},
		{maxIterations/3 + 1, false},
		{1<<31 - 1, false},
	} {
		heavy, err := setIterations(der, test.iterations)
		if err != nil {
			t.Fatal(err)
		}
		if err := CheckWork(heavy); errors.Is(err, ErrWork) == test.ok {
			t.Errorf("3 × %d iterations: %v", test.iterations, err)
		}
	}
	for name, bad := range map[string][]byte{
		"empty":        {},
		"cut":          der[:len(der)-1],
		"longer":       append(bytes.Clone(der), 0),
		"too long":     make([]byte, MaxLen+1),
		"not PKCS#12":  []byte("-----BEGIN CERTIFICATE-----"),
		"no iteration": must(setIterations(der, 0)),
		"minus one":    must(setIterations(der, -1)),
	} {
		if err := CheckWork(bad); !errors.Is(err, ErrNotPKCS12) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func must(b []byte, err error) []byte {
	if err != nil {
		panic(err)
	}
	return b
}

// A decoy must look as a real bundle does: the same parameters, the same
// lengths as often.
func TestDecoy(t *testing.T) {
	const name = "alice@example.com"
	real := light(t, P256, name, "p")
	real = must(setIterations(real, Iterations))
	want, err := ReadParameters(real)
	if err != nil {
		t.Fatal(err)
	}

	seed := func(i int) [32]byte { return sha256.Sum256(binary.BigEndian.AppendUint64(nil, uint64(i))) }
	first := must(Decoy(seed(0), name))
	if again := must(Decoy(seed(0), name)); !bytes.Equal(first, again) {
		t.Error("the same name has two decoys")
	}
	if other := must(Decoy(seed(1), name)); bytes.Equal(first, other) {
		t.Error("two seeds have the same decoy")
	}
	if err := CheckStrength(first); err != nil {
		t.Error(err)
	}
	got, err := ReadParameters(first)
	if err != nil {
		t.Fatal(err)
	}
	if len(got.LocalKeyID) != len(want.LocalKeyID) || got.Bags != want.Bags ||
		!slices.Equal(got.Encrypted, want.Encrypted) || got.MAC != want.MAC {
		t.Errorf("decoy %+v, real %+v", got, want)
	}

	// Names of each length around the blocks of the cipher.
	for n := range 33 {
		name := strings.Repeat("n", n+1)
		decoys, reals := map[int]int{}, map[int]int{}
		for i := range 64 {
			decoys[len(must(Decoy(seed(i), name)))]++
			reals[len(must(setIterations(light(t, P256, name, "p"), Iterations)))]++
		}
		for length := range decoys {
			if decoys[length] > 8 && reals[length] == 0 {
				t.Errorf("name of %d bytes: decoys of %v bytes, real ones of %v", len(name), decoys, reals)
			}
		}
		for length := range reals {
			if reals[length] > 8 && decoys[length] == 0 {
				t.Errorf("name of %d bytes: decoys of %v bytes, real ones of %v", len(name), decoys, reals)
			}
		}
	}
}

func FuzzReadParameters(f *testing.F) {
	f.Add(light(f, P256, "alice", "p"))
	f.Add([]byte{0x30, 0x80})
	f.Fuzz(func(t *testing.T, der []byte) {
		p, err := ReadParameters(der)
		if err != nil {
			if !errors.Is(err, ErrNotPKCS12) {
				t.Errorf("%v", err)
			}
			return
		}
		if p.MAC.Iterations < 1 {
			t.Errorf("%+v", p)
		}
		CheckStrength(der)
		// What passes is cheap enough to be opened, whatever it is.
		if p.Bags <= maxBags && p.MAC.Iterations < 1000 && CheckWork(der) == nil {
			for _, d := range p.Encrypted {
				if d.Iterations > 1000 {
					return
				}
			}
			Open(der, "p")
		}
	})
}
