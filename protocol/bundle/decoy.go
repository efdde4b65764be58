package bundle

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/x509"
	"encoding/asn1"
	"encoding/hex"
	"math/rand/v2"
	"strings"
	"sync"

	"software.sslmate.com/src/go-pkcs12"
)

// Decoy makes what looks like the bundle that [New] makes for a new P-256 key
// of the named account, though nothing is in it. It is the same each time for
// the same seed and name, and it costs no iterations.
//
// The certificate and the key that it encrypts are noise of the right length,
// under a passphrase that is noise. All that an onlooker without the passphrase
// sees of a bundle are its lengths and parameters, and bytes like random ones.
func Decoy(seed [32]byte, name string) ([]byte, error) {
	noise := rand.NewChaCha8(seed)

	// An ECDSA signature is an ASN.1 sequence of two numbers, each longer by
	// one byte when its first bit is set, and shorter by one, two … when its
	// first bytes are zero.
	certLen := modelLengths()[min(len(name), maxModelName)]
	for range 2 {
		certLen += 1 + integerLen(noise)
	}
	raw := make([]byte, certLen)
	noise.Read(raw)
	passphrase := make([]byte, 32)
	noise.Read(passphrase)
	der, err := pkcs12.Modern2023.WithIterations(1).WithRand(noise).
		Encode(decoyKey(), &x509.Certificate{Raw: raw}, nil, hex.EncodeToString(passphrase))
	if err != nil {
		return nil, err
	}
	return setIterations(der, Iterations)
}

// decoyKey is the private key in every decoy, where nobody can see it.
var decoyKey = sync.OnceValue(func() *ecdsa.PrivateKey {
	scalar := make([]byte, 32)
	scalar[31] = 1
	key, err := ecdsa.ParseRawPrivateKey(elliptic.P256(), scalar)
	if err != nil {
		panic(err) // a constant that is a key
	}
	return key
})

const maxModelName = 255

// modelLengths are the lengths of new certificates, by the length of the name,
// without what differs from one to the next: the length and value of the two
// numbers of the signature. They are measured once, so that a decoy takes no
// longer than an account.
var modelLengths = sync.OnceValue(func() (lengths [maxModelName + 1]int) {
	for n := range lengths {
		cert, err := newCertificate(decoyKey(), strings.Repeat("n", n))
		if err != nil {
			panic(err) // of constants that are a key and a name
		}
		var numbers struct{ R, S asn1.RawValue }
		if err := unmarshal(cert.Signature, &numbers); err != nil {
			panic(err)
		}
		lengths[n] = len(cert.Raw) - (1 + len(numbers.R.Bytes)) - (1 + len(numbers.S.Bytes))
	}
	return lengths
})

// PrepareDecoys does what the first call of [Decoy] would have to do.
func PrepareDecoys() { modelLengths() }

// integerLen draws the length of the ASN.1 integer of 32 random bytes.
func integerLen(noise *rand.ChaCha8) int {
	n := 32
	for {
		b := noise.Uint64() & 0xff
		switch {
		case b >= 0x80:
			return n + 1
		case b > 0:
			return n
		}
		if n--; n == 1 {
			return n
		}
	}
}

// setIterations rewrites the iteration counts of a bundle of ours.
func setIterations(der []byte, n int) ([]byte, error) {
	var file pfx
	if err := unmarshal(der, &file); err != nil {
		return nil, err
	}
	file.MacData.Iterations = n
	err := rewrite(&file.AuthSafe.Content.Bytes, func(authSafe *[]byte) error {
		return rewrite(authSafe, func(contents *[]contentInfo) error {
			// first the certificates, encrypted, then the shrouded key
			err := rewrite(&(*contents)[0].Content.Bytes, func(enc *encryptedData) error {
				return rewriteAlgorithm(&enc.EncryptedContentInfo.Algorithm.Parameters.FullBytes, n)
			})
			if err != nil {
				return err
			}
			(*contents)[0].Content.FullBytes = nil
			(*contents)[1].Content.FullBytes = nil
			return rewrite(&(*contents)[1].Content.Bytes, func(data *[]byte) error {
				return rewrite(data, func(bags *[]safeBag) error {
					(*bags)[0].Value.FullBytes = nil
					return rewrite(&(*bags)[0].Value.Bytes, func(key *encryptedPrivateKeyInfo) error {
						return rewriteAlgorithm(&key.Algorithm.Parameters.FullBytes, n)
					})
				})
			})
		})
	})
	if err != nil {
		return nil, err
	}
	file.AuthSafe.Content.FullBytes = nil
	return asn1.Marshal(file)
}

func rewriteAlgorithm(params *[]byte, n int) error {
	return rewrite(params, func(p *pbes2Params) error {
		return rewrite(&p.KDF.Parameters.FullBytes, func(kdf *pbkdf2Params) error {
			kdf.Iterations = n
			return nil
		})
	})
}

// rewrite changes the ASN.1 value that der encodes.
func rewrite[T any](der *[]byte, change func(*T) error) error {
	var v T
	if err := unmarshal(*der, &v); err != nil {
		return err
	}
	if err := change(&v); err != nil {
		return err
	}
	b, err := asn1.Marshal(v)
	if err == nil {
		*der = b
	}
	return err
}
