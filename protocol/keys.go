package protocol

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/binary"
)

// Labels and lengths of the key schedule (SPEC.md, section 6).
const (
	labelKey     = "flatauth v1 "
	labelRatchet = "flatauth ratchet v1"

	keyLen         = 32
	sessionKeyLen  = 32
	ratchetPackets = 1 << 14 // packets of a direction under one key
)

// The directions of a connection, as they stand in key labels.
const (
	clientToServer = "c2s"
	serverToClient = "s2c"
)

// connectionSecret is the HKDF-Extract of a connection: salt T2, input the
// session key K and what the suite's own exchange gave, if it has one.
func connectionSecret(t2, k, exchanged []byte) []byte {
	ikm := append(append(make([]byte, 0, len(k)+len(exchanged)), k...), exchanged...)
	defer clear(ikm)
	secret, err := hkdf.Extract(sha256.New, ikm, t2)
	if err != nil {
		panic(err) // SHA-256 and a salt of 32 bytes: cannot fail
	}
	return secret
}

// expand is HKDF-Expand to the length of a key.
func expand(secret []byte, info string) []byte {
	key, err := hkdf.Expand(sha256.New, secret, info, keyLen)
	if err != nil {
		panic(err) // 32 bytes of output: cannot fail
	}
	return key
}

// A recordKey is one key of a direction. It is a number used once that makes
// AES-GCM safe, so the same key and number never seal twice: the number is
// the packet's, and the key is this direction's and this use's alone.
type recordKey struct {
	key  [keyLen]byte
	aead cipher.AEAD
}

func (k *recordKey) set(key []byte) {
	copy(k.key[:], key)
	clear(key)
	block, err := aes.NewCipher(k.key[:])
	if err != nil {
		panic(err) // 32 bytes is a length AES has
	}
	if k.aead, err = cipher.NewGCM(block); err != nil {
		panic(err) // AES has a block of 16 bytes
	}
}

// A halfConn is one direction of a connection: its keys and its packet
// number. What a packet looks like is its suite's.
type halfConn struct {
	suite *suite
	keys  [2]recordKey // one for each of the suite's uses
	seq   uint64       // number of the next packet
	late  [sha256.Size]byte

	nonce [12]byte
	aad   [sha256.Size + 16]byte
	sum   [sha256.Size]byte
}

// newHalfConn derives the keys of one direction (SPEC.md, section 6).
func newHalfConn(s *suite, secret []byte, direction string) *halfConn {
	h := &halfConn{suite: s}
	for i, use := range s.uses {
		h.keys[i].set(expand(secret, labelKey+s.name+" "+direction+" "+use))
	}
	return h
}

// ratchet replaces the keys when the next packet is the first of a new
// stretch. A suite calls it before it uses a key.
func (h *halfConn) ratchet() {
	if h.seq == 0 || h.seq%ratchetPackets != 0 {
		return
	}
	for i := range h.suite.uses {
		h.keys[i].set(expand(h.keys[i].key[:], labelRatchet))
	}
}

// packetNonce is the packet's number in 96 bits.
func (h *halfConn) packetNonce() []byte {
	binary.BigEndian.PutUint64(h.nonce[4:], h.seq)
	return h.nonce[:]
}

// additionalData is what the tag of a part of the packet covers beside the
// ciphertext: in the direction's first packet the hash of the late commands,
// and the given header.
func (h *halfConn) additionalData(header []byte) []byte {
	aad := h.aad[:0]
	if h.seq == 0 {
		aad = append(aad, h.late[:]...)
	}
	return append(aad, header...)
}

// wipe forgets the keys. What crypto/aes keeps of them is beyond our reach
// and is left to the garbage collector.
func (h *halfConn) wipe() {
	for i := range h.keys {
		clear(h.keys[i].key[:])
		h.keys[i].aead = nil
	}
}
