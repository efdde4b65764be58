// Package bundle makes, opens and judges the passphrase-protected PKCS#12
// files (RFC 7292) in which an interactive account's certificate and private
// key are kept.
//
// Anyone who names an account is sent its bundle, so what a bundle costs to
// guess at is all that protects a weak passphrase: [CheckStrength] is the floor
// that a store holds bundles to. A client opens what a stranger sent it, so
// [CheckWork] is the ceiling that it holds them to. Both read the parameters,
// for which no passphrase is needed.
package bundle

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"math/big"
	"time"
	"unicode/utf16"

	"software.sslmate.com/src/go-pkcs12"
)

// MaxLen is the length in bytes of the longest bundle.
const MaxLen = 16 << 10

// Iterations is how many iterations the bundles that [New] makes ask of each
// key derivation.
const Iterations = 1_200_000

// ErrPassphrase says that the passphrase does not open the bundle.
var ErrPassphrase = errors.New("wrong passphrase")

// Contents is what is in a bundle.
type Contents struct {
	PrivateKey   any                 // *rsa.PrivateKey, *ecdsa.PrivateKey or *ecdh.PrivateKey
	Certificates []*x509.Certificate // at least one, in the order of the file
}

// Open decrypts a bundle. The error is [ErrPassphrase] if the passphrase is
// wrong. The work is what the bundle asks for: see [CheckWork].
func Open(der []byte, passphrase string) (*Contents, error) {
	if err := CheckPassphrase(passphrase); err != nil {
		return nil, err
	}
	key, cert, others, err := pkcs12.DecodeChain(der, passphrase)
	if errors.Is(err, pkcs12.ErrIncorrectPassword) {
		return nil, ErrPassphrase
	}
	if err != nil {
		return nil, err
	}
	return &Contents{key, append([]*x509.Certificate{cert}, others...)}, nil
}

// CheckPassphrase refuses a passphrase that PKCS#12 cannot take: one that is
// empty or has a character outside of Unicode's Basic Multilingual Plane.
func CheckPassphrase(passphrase string) error {
	if passphrase == "" {
		return errors.New("the passphrase is empty")
	}
	for _, r := range passphrase {
		if utf16.RuneLen(r) != 1 {
			return errors.New("the passphrase has a character that PKCS#12 cannot take, such as an emoji: choose one without")
		}
	}
	return nil
}

// New makes a bundle of a key and its certificate.
func New(key crypto.PrivateKey, cert *x509.Certificate, passphrase string) ([]byte, error) {
	return encode(key, cert, passphrase, Iterations)
}

func encode(key crypto.PrivateKey, cert *x509.Certificate, passphrase string, iterations int) ([]byte, error) {
	if err := CheckPassphrase(passphrase); err != nil {
		return nil, err
	}
	return pkcs12.Modern2023.WithIterations(iterations).Encode(key, cert, nil, passphrase)
}

// Kinds of key that [NewKey] makes, as the command line names them.
const (
	P256    = "p256" // the default
	P384    = "p384"
	RSA3072 = "rsa3072"
)

// NewKey makes a private key of one of the kinds above and a certificate for
// the named account, signed by the key itself.
func NewKey(kind, name string) (crypto.Signer, *x509.Certificate, error) {
	var (
		key crypto.Signer
		err error
	)
	switch kind {
	case P256:
		key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case P384:
		key, err = ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	case RSA3072:
		key, err = rsa.GenerateKey(rand.Reader, 3072)
	default:
		err = fmt.Errorf("no kind of key %q: choose %s, %s or %s", kind, P256, P384, RSA3072)
	}
	if err != nil {
		return nil, nil, err
	}
	cert, err := newCertificate(key, name)
	return key, cert, err
}

func newCertificate(key crypto.Signer, name string) (*x509.Certificate, error) {
	// 16 bytes that are always 16 bytes long, and positive (RFC 5280, 4.1.2.2)
	serial := make([]byte, 16)
	rand.Read(serial)
	serial[0] = serial[0]&0x7f | 0x40
	template := &x509.Certificate{
		SerialNumber: new(big.Int).SetBytes(serial),
		Subject:      pkix.Name{CommonName: name},
		NotBefore:    time.Now().Add(-time.Hour).UTC(), // clocks differ
		// "no well-defined expiration date" (RFC 5280, 4.1.2.5): an account
		// ends by being disabled or removed, not by surprise.
		NotAfter:              time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC),
		KeyUsage:              x509.KeyUsageKeyAgreement,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		BasicConstraintsValid: true,
	}
	if _, ok := key.(*rsa.PrivateKey); ok {
		template.KeyUsage = x509.KeyUsageKeyEncipherment
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}
