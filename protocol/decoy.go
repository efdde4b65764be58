package protocol

import (
	"crypto/ecdh"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"io"

	"github.com/flatauth/caddy-flatauth/protocol/bundle"
)

// Decoys makes the answers for accounts that do not exist (SPEC.md, section
// 8.3): a CERTIFICATE that is the same each time the name is asked for, and a
// SESSION-KEY that nobody can open.
type Decoys struct {
	secret []byte
	key    *PublicKey // nobody has the private one
}

// NewDecoys returns the decoys of a secret of at least 32 random bytes. Servers
// that have the same accounts should have the same secret: a decoy that differs
// from one server to the next is known for one.
func NewDecoys(secret []byte) (*Decoys, error) {
	bundle.PrepareDecoys()
	// The kind of key that accounts have by default.
	key, err := ecdh.P256().GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	pub, err := newPublicKey(key.PublicKey())
	if err != nil {
		return nil, err
	}
	return &Decoys{secret, pub}, nil
}

// account returns the decoy for a login.
func (d *Decoys) account(login *LoginError) (*Account, *PublicKey, error) {
	account := new(Account)
	if login.Interactive {
		h := hmac.New(sha256.New, d.secret)
		io.WriteString(h, "flatauth decoy v1"+login.Account)
		var err error
		if account.Bundle, err = bundle.Decoy([32]byte(h.Sum(nil)), login.Account); err != nil {
			return nil, nil, fmt.Errorf("making a decoy: %w", err)
		}
	}
	return account, d.key, nil
}
