package protocol

import (
	"crypto"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/hpke"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
)

// labelSessionKey is the HPKE info of SESSION-KEY, before T1.
const labelSessionKey = "flatauth session-key v1"

// RSA keys outside of these sizes, in bits, are refused.
const (
	minRSABits = 2048
	maxRSABits = 8192
)

// A PublicKey is the key of an account's certificate, in the form that
// session keys are encrypted to. Make one with [CertificateKey].
type PublicKey struct {
	rsa  *rsa.PublicKey
	hpke hpke.PublicKey
	name string
}

// String is the kind of the key: "RSA-3072", "P-256", "P-384" or "X25519".
func (k *PublicKey) String() string { return k.name }

// ErrKeyType says that a key is of a kind that the protocol does not use.
var ErrKeyType = errors.New("the protocol takes RSA keys of 2048 to 8192 bits, P-256, P-384 and X25519")

// oidX25519 is id-X25519 of RFC 8410.
var oidX25519 = asn1.ObjectIdentifier{1, 3, 101, 110}

// CertificateKey returns the public key of a certificate. The error wraps
// [ErrKeyType] if it is of another kind than the protocol uses.
func CertificateKey(cert *x509.Certificate) (*PublicKey, error) {
	if cert.PublicKey == nil {
		// crypto/x509 does not decode X25519 keys of certificates.
		var spki struct {
			Algorithm struct{ Algorithm asn1.ObjectIdentifier }
			PublicKey asn1.BitString
		}
		rest, err := asn1.Unmarshal(cert.RawSubjectPublicKeyInfo, &spki)
		if err != nil || len(rest) > 0 || !spki.Algorithm.Algorithm.Equal(oidX25519) {
			return nil, fmt.Errorf("a certificate with a key of kind %v: %w", cert.PublicKeyAlgorithm, ErrKeyType)
		}
		key, err := ecdh.X25519().NewPublicKey(spki.PublicKey.RightAlign())
		if err != nil {
			return nil, fmt.Errorf("the certificate's X25519 key: %w", err)
		}
		return newPublicKey(key)
	}
	return newPublicKey(cert.PublicKey)
}

func newPublicKey(key crypto.PublicKey) (*PublicKey, error) {
	switch key := key.(type) {
	case *rsa.PublicKey:
		bits := key.N.BitLen()
		if bits < minRSABits || bits > maxRSABits {
			return nil, fmt.Errorf("an RSA key of %d bits: %w", bits, ErrKeyType)
		}
		return &PublicKey{rsa: key, name: fmt.Sprintf("RSA-%d", bits)}, nil
	case *ecdsa.PublicKey:
		k, err := key.ECDH()
		if err != nil {
			return nil, fmt.Errorf("an elliptic curve key: %w", err)
		}
		return newPublicKey(k)
	case *ecdh.PublicKey:
		switch key.Curve() {
		case ecdh.P256(), ecdh.P384(), ecdh.X25519():
		default:
			return nil, fmt.Errorf("a key on the curve %v: %w", key.Curve(), ErrKeyType)
		}
		k, err := hpke.NewDHKEMPublicKey(key)
		if err != nil {
			return nil, err
		}
		return &PublicKey{hpke: k, name: fmt.Sprint(key.Curve())}, nil
	}
	return nil, fmt.Errorf("a key of type %T: %w", key, ErrKeyType)
}

// sealSessionKey encrypts the session key k, bound to the client's flight by
// T1, to the account's key (SPEC.md, section 5).
func (k *PublicKey) sealSessionKey(sessionKey, t1 []byte) ([]byte, error) {
	if k.rsa != nil {
		plaintext := append(append(make([]byte, 0, sessionKeyLen+sha256.Size), sessionKey...), t1...)
		defer clear(plaintext)
		return rsa.EncryptOAEP(sha256.New(), rand.Reader, k.rsa, plaintext, nil)
	}
	return hpke.Seal(k.hpke, hpke.HKDFSHA256(), hpke.AES256GCM(), sessionKeyInfo(t1), sessionKey)
}

func sessionKeyInfo(t1 []byte) []byte {
	return append([]byte(labelSessionKey), t1...)
}

// openSessionKey decrypts SESSION-KEY. The private key is a [crypto.Decrypter]
// that honours [rsa.OAEPOptions], an [ecdh.KeyExchanger] or an
// *[ecdsa.PrivateKey]: the last two with the public key pub.
func openSessionKey(key any, encrypted, t1 []byte) ([]byte, error) {
	if ec, ok := key.(*ecdsa.PrivateKey); ok {
		k, err := ec.ECDH()
		if err != nil {
			return nil, err
		}
		key = k
	}
	switch key := key.(type) {
	case ecdh.KeyExchanger:
		priv, err := hpke.NewDHKEMPrivateKey(key)
		if err != nil {
			return nil, err
		}
		k, err := hpke.Open(priv, hpke.HKDFSHA256(), hpke.AES256GCM(), sessionKeyInfo(t1), encrypted)
		if err != nil || len(k) != sessionKeyLen {
			return nil, fmt.Errorf("SESSION-KEY: %w", ErrLogin)
		}
		return k, nil
	case crypto.Decrypter:
		opened, err := key.Decrypt(rand.Reader, encrypted, &rsa.OAEPOptions{Hash: crypto.SHA256, MGFHash: crypto.SHA256})
		if err != nil || len(opened) != sessionKeyLen+sha256.Size ||
			subtle.ConstantTimeCompare(opened[sessionKeyLen:], t1) != 1 {
			return nil, fmt.Errorf("SESSION-KEY: %w", ErrLogin)
		}
		return opened[:sessionKeyLen], nil
	}
	return nil, fmt.Errorf("a private key of type %T: %w", key, ErrKeyType)
}

// publicOf returns the public half of an account's private key.
func publicOf(key any) (*PublicKey, error) {
	switch key := key.(type) {
	case ecdh.KeyExchanger:
		return newPublicKey(key.PublicKey())
	case interface{ Public() crypto.PublicKey }: // *ecdsa.PrivateKey and every crypto.Decrypter
		return newPublicKey(key.Public())
	}
	return nil, fmt.Errorf("a private key of type %T: %w", key, ErrKeyType)
}

// equal reports whether two public keys are the same.
func (k *PublicKey) equal(other *PublicKey) bool {
	switch {
	case k.rsa != nil:
		return other.rsa != nil && k.rsa.Equal(other.rsa)
	case other.hpke == nil:
		return false
	}
	return k.hpke.KEM().ID() == other.hpke.KEM().ID() && string(k.hpke.Bytes()) == string(other.hpke.Bytes())
}
