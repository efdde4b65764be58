package bundle

import (
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"strings"
)

// Limits on the work that a bundle may ask of whoever opens it.
const (
	maxBags       = 8
	maxIterations = 20_000_000 // of all key derivations together
)

// MinIterations is how many iterations each key derivation of a bundle must
// have for [CheckStrength].
const MinIterations = 600_000

// OpenSSLLine is the command that makes a bundle which [CheckStrength] accepts.
const OpenSSLLine = "openssl pkcs12 -export -inkey KEY.pem -in CERTIFICATE.pem -out BUNDLE.p12 -keypbe AES-256-CBC -certpbe AES-256-CBC -macalg sha256 -iter 1200000"

var (
	// ErrNotPKCS12 is a file that cannot be read as a PKCS#12 bundle.
	ErrNotPKCS12 = errors.New("not a PKCS#12 bundle that can be used")

	// ErrWeak is a bundle whose passphrase would be too cheap to guess.
	ErrWeak = errors.New("weak PKCS#12 bundle")

	// ErrWork is a bundle that asks for more work than any honest one.
	ErrWork = errors.New("PKCS#12 bundle asks for too much work")
)

// Parameters is what can be known of a bundle without its passphrase.
type Parameters struct {
	MAC        Derivation
	Encrypted  []Derivation // of each part that is encrypted
	PlainKey   bool         // a private key stands unencrypted in it
	Bags       int          // parts and bags that can be counted
	LocalKeyID []byte       // of the private key: usually the SHA-1 of its certificate
}

// A Derivation is how a key is made of the passphrase, and for what.
type Derivation struct {
	Part       string // what it protects: "certificates", "private key" or "MAC"
	Scheme     string // such as "AES-256-CBC", "HMAC-SHA-256", or an object identifier
	PRF        string // of PBKDF2, such as "HMAC-SHA-256"; "" for PKCS#12's own derivation
	Iterations int
}

func (d Derivation) String() string {
	s := d.Part + ": " + d.Scheme
	if d.PRF != "" {
		s += ", PBKDF2-" + d.PRF
	}
	return fmt.Sprintf("%s, %d iterations", s, d.Iterations)
}

// The ASN.1 of RFC 7292 and RFC 8018, as far as it is needed.
type (
	pfx struct {
		Version  int
		AuthSafe contentInfo
		MacData  macData `asn1:"optional"`
	}
	contentInfo struct {
		ContentType asn1.ObjectIdentifier
		Content     asn1.RawValue `asn1:"tag:0,explicit,optional"`
	}
	macData struct {
		Mac struct {
			Algorithm pkix.AlgorithmIdentifier
			Digest    []byte
		}
		MacSalt    []byte
		Iterations int `asn1:"optional,default:1"`
	}
	encryptedData struct {
		Version              int
		EncryptedContentInfo struct {
			ContentType asn1.ObjectIdentifier
			Algorithm   pkix.AlgorithmIdentifier
			Content     []byte `asn1:"tag:0,optional"`
		}
	}
	safeBag struct {
		ID         asn1.ObjectIdentifier
		Value      asn1.RawValue `asn1:"tag:0,explicit"`
		Attributes []attribute   `asn1:"set,optional"`
	}
	attribute struct {
		ID    asn1.ObjectIdentifier
		Value asn1.RawValue `asn1:"set"`
	}
	encryptedPrivateKeyInfo struct {
		Algorithm pkix.AlgorithmIdentifier
		Data      []byte
	}
	pbeParams struct {
		Salt       []byte
		Iterations int
	}
	pbes2Params struct {
		KDF    pkix.AlgorithmIdentifier
		Scheme pkix.AlgorithmIdentifier
	}
	pbkdf2Params struct {
		Salt       asn1.RawValue
		Iterations int
		KeyLength  int                      `asn1:"optional"`
		PRF        pkix.AlgorithmIdentifier `asn1:"optional"`
	}
)

var (
	oidData          = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 1}
	oidEncryptedData = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 6}
	oidKeyBag        = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 12, 10, 1, 1}
	oidShroudedKey   = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 12, 10, 1, 2}
	oidCertBag       = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 12, 10, 1, 3}
	oidLocalKeyID    = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 21}
	oidPBES2         = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 5, 13}
	oidPBKDF2        = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 5, 12}
	oidPBMAC1        = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 5, 14}
)

// names of the algorithms that can be told from others in a message.
var names = map[string]string{
	"2.16.840.1.101.3.4.1.2":  "AES-128-CBC",
	"2.16.840.1.101.3.4.1.22": "AES-192-CBC",
	"2.16.840.1.101.3.4.1.42": "AES-256-CBC",
	"1.2.840.113549.2.7":      "HMAC-SHA-1",
	"1.2.840.113549.2.9":      "HMAC-SHA-256",
	"1.2.840.113549.2.11":     "HMAC-SHA-512",
	"1.3.14.3.2.26":           "HMAC-SHA-1", // as a MAC's digest
	"2.16.840.1.101.3.4.2.1":  "HMAC-SHA-256",
	"2.16.840.1.101.3.4.2.3":  "HMAC-SHA-512",
	"1.2.840.113549.1.12.1.3": "3DES (PBE-SHA1-3DES)",
	"1.2.840.113549.1.12.1.4": "3DES (PBE-SHA1-2DES)",
	"1.2.840.113549.1.12.1.5": "RC2 (PBE-SHA1-RC2-128)",
	"1.2.840.113549.1.12.1.6": "RC2 (PBE-SHA1-RC2-40)",
}

func nameOf(oid asn1.ObjectIdentifier) string {
	if name, ok := names[oid.String()]; ok {
		return name
	}
	return oid.String()
}

// ReadParameters reads the parameters of a bundle. The error wraps
// [ErrNotPKCS12].
func ReadParameters(der []byte) (*Parameters, error) {
	p, err := readParameters(der)
	if err != nil {
		return nil, fmt.Errorf("%w: %v", ErrNotPKCS12, err)
	}
	return p, nil
}

func readParameters(der []byte) (*Parameters, error) {
	if len(der) > MaxLen {
		return nil, fmt.Errorf("%d bytes, %d is the most", len(der), MaxLen)
	}
	var file pfx
	if err := unmarshal(der, &file); err != nil {
		return nil, err
	}
	if file.Version != 3 {
		return nil, fmt.Errorf("version %d, not 3", file.Version)
	}
	if !file.AuthSafe.ContentType.Equal(oidData) {
		return nil, errors.New("it is signed, not protected by a passphrase")
	}
	p := new(Parameters)
	if len(file.MacData.Mac.Algorithm.Algorithm) == 0 {
		return nil, errors.New("it has no MAC")
	}
	var err error
	if p.MAC, err = macDerivation(&file.MacData); err != nil {
		return nil, err
	}

	var authSafe []byte
	if err := unmarshal(file.AuthSafe.Content.Bytes, &authSafe); err != nil {
		return nil, err
	}
	var contents []contentInfo
	if err := unmarshal(authSafe, &contents); err != nil {
		return nil, err
	}
	if len(contents) < 1 || len(contents) > 2 {
		return nil, fmt.Errorf("it has %d parts, not one or two", len(contents))
	}
	for _, content := range contents {
		p.Bags++
		switch {
		case content.ContentType.Equal(oidEncryptedData):
			var enc encryptedData
			if err := unmarshal(content.Content.Bytes, &enc); err != nil {
				return nil, err
			}
			d, err := encryptionDerivation("certificates", enc.EncryptedContentInfo.Algorithm)
			if err != nil {
				return nil, err
			}
			p.Encrypted = append(p.Encrypted, d)
		case content.ContentType.Equal(oidData):
			if err := p.readBags(content); err != nil {
				return nil, err
			}
		default:
			return nil, fmt.Errorf("a part of type %v", content.ContentType)
		}
	}
	return p, nil
}

func (p *Parameters) readBags(content contentInfo) error {
	var data []byte
	if err := unmarshal(content.Content.Bytes, &data); err != nil {
		return err
	}
	var bags []safeBag
	if err := unmarshal(data, &bags); err != nil {
		return err
	}
	p.Bags += len(bags)
	for _, bag := range bags {
		switch {
		case bag.ID.Equal(oidShroudedKey):
			var key encryptedPrivateKeyInfo
			if err := unmarshal(bag.Value.Bytes, &key); err != nil {
				return err
			}
			d, err := encryptionDerivation("private key", key.Algorithm)
			if err != nil {
				return err
			}
			p.Encrypted = append(p.Encrypted, d)
			for _, a := range bag.Attributes {
				if a.ID.Equal(oidLocalKeyID) {
					unmarshal(a.Value.Bytes, &p.LocalKeyID) // a hint, no more: absent if malformed
				}
			}
		case bag.ID.Equal(oidKeyBag):
			p.PlainKey = true
		case bag.ID.Equal(oidCertBag):
		default:
			return fmt.Errorf("a bag of type %v", bag.ID)
		}
	}
	return nil
}

func macDerivation(mac *macData) (Derivation, error) {
	if mac.Mac.Algorithm.Algorithm.Equal(oidPBMAC1) {
		// RFC 9579: the parameters are those of PBES2, with a MAC as the scheme
		return pbes2Derivation("MAC", mac.Mac.Algorithm.Parameters)
	}
	d := Derivation{Part: "MAC", Scheme: nameOf(mac.Mac.Algorithm.Algorithm), Iterations: mac.Iterations}
	return d, d.check()
}

func encryptionDerivation(part string, alg pkix.AlgorithmIdentifier) (Derivation, error) {
	if alg.Algorithm.Equal(oidPBES2) {
		return pbes2Derivation(part, alg.Parameters)
	}
	var pbe pbeParams
	if err := unmarshal(alg.Parameters.FullBytes, &pbe); err != nil {
		return Derivation{}, fmt.Errorf("%s encrypted with %s: %v", part, nameOf(alg.Algorithm), err)
	}
	d := Derivation{Part: part, Scheme: nameOf(alg.Algorithm), Iterations: pbe.Iterations}
	return d, d.check()
}

func pbes2Derivation(part string, raw asn1.RawValue) (Derivation, error) {
	var params pbes2Params
	if err := unmarshal(raw.FullBytes, &params); err != nil {
		return Derivation{}, err
	}
	if !params.KDF.Algorithm.Equal(oidPBKDF2) {
		return Derivation{}, fmt.Errorf("%s protected with the key derivation %v, not PBKDF2", part, params.KDF.Algorithm)
	}
	var kdf pbkdf2Params
	if err := unmarshal(params.KDF.Parameters.FullBytes, &kdf); err != nil {
		return Derivation{}, err
	}
	d := Derivation{Part: part, Scheme: nameOf(params.Scheme.Algorithm), PRF: "HMAC-SHA-1", Iterations: kdf.Iterations}
	if kdf.PRF.Algorithm != nil { // HMAC-SHA-1 is the default
		d.PRF = nameOf(kdf.PRF.Algorithm)
	}
	return d, d.check()
}

func (d Derivation) check() error {
	if d.Iterations < 1 {
		return fmt.Errorf("%s with %d iterations", d.Part, d.Iterations)
	}
	return nil
}

func unmarshal(der []byte, v any) error {
	rest, err := asn1.Unmarshal(der, v)
	if err == nil && len(rest) > 0 {
		err = errors.New("bytes after the end")
	}
	return err
}

// CheckStrength refuses a bundle that is cheaper to guess at than AES-256-CBC
// and HMAC-SHA-2 with [MinIterations] iterations everywhere. The MAC counts as
// much as the encryption: it is the cheaper oracle of the two. The error wraps
// [ErrWeak] or [ErrNotPKCS12].
func CheckStrength(der []byte) error {
	p, err := ReadParameters(der)
	if err != nil {
		return err
	}
	var faults []string
	if p.PlainKey {
		faults = append(faults, "private key: not encrypted")
	}
	if len(p.Encrypted) == 0 {
		faults = append(faults, "nothing in it is encrypted")
	}
	sha2 := func(hmac string) bool { return hmac == "HMAC-SHA-256" || hmac == "HMAC-SHA-512" }
	for _, d := range p.Encrypted {
		if d.Scheme != "AES-256-CBC" || !sha2(d.PRF) || d.Iterations < MinIterations {
			faults = append(faults, d.String())
		}
	}
	if d := p.MAC; !sha2(d.Scheme) || d.PRF != "" && !sha2(d.PRF) || d.Iterations < MinIterations {
		faults = append(faults, d.String())
	}
	if len(faults) > 0 {
		return fmt.Errorf("%w: %s (wanted: AES-256-CBC with PBKDF2-HMAC-SHA-256, MAC HMAC-SHA-256, at least %d iterations each)",
			ErrWeak, strings.Join(faults, "; "), MinIterations)
	}
	return nil
}

// CheckWork refuses a bundle that would keep a client busy for longer than any
// honest one: more than 16 KiB, 8 parts and bags, or 20,000,000 iterations in
// all. The error wraps [ErrWork] or [ErrNotPKCS12].
func CheckWork(der []byte) error {
	p, err := ReadParameters(der)
	if err != nil {
		return err
	}
	if p.Bags > maxBags {
		return fmt.Errorf("%w: %d parts and bags, %d is the most", ErrWork, p.Bags, maxBags)
	}
	sum := 0
	for _, d := range append(p.Encrypted, p.MAC) {
		if d.Iterations > maxIterations-sum {
			return fmt.Errorf("%w: over %d iterations", ErrWork, maxIterations)
		}
		sum += d.Iterations
	}
	return nil
}
