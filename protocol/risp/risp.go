// Package risp reads and writes RISP version 4, the Reduced Instruction Set
// Protocol: a flat stream of commands, in which the id of a command alone says
// how long its parameter is. A receiver can therefore skip every command that
// it does not know, which is how protocols made of RISP commands grow.
//
// A command is a 16-bit id and the parameter that the id's top four bits
// announce. All integers are unsigned and big-endian.
//
//	0x0000–0x6fff   an integer of 1, 2, 4, 8, 16, 32 or 64 bytes, by the top four bits
//	0x7000–0x7fff   no parameter
//	0x8000–0xbfff   a string: a length of 1, 2, 4 or 8 bytes, then that many bytes
//	0xc000–0xffff   no parameter
//
// [Decoder] reads a stream command by command and holds no more than a few
// bytes of it. [ParseHeader] does the same for bytes that are already in memory.
// The Append functions write.
package risp

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// An ID is the number of a command.
type ID uint16

func (id ID) String() string { return fmt.Sprintf("0x%04x", uint16(id)) }

// MaxHeaderLen is the length in bytes of the longest header: an id and a
// length of 8 bytes.
const MaxHeaderLen = 2 + 8

// IntegerSize is the size in bytes of the integer that the command carries, or
// 0 if its parameter is not an integer.
func (id ID) IntegerSize() int {
	if class := id >> 12; class < 7 {
		return 1 << class
	}
	return 0
}

// LengthSize is the size in bytes of the length that precedes the command's
// string, or 0 if its parameter is not a string.
func (id ID) LengthSize() int {
	if class := id >> 12; class >= 8 && class < 12 {
		return 1 << (class - 8)
	}
	return 0
}

// A Header is what precedes the parameter of a command.
type Header struct {
	ID   ID
	Len  int    // bytes of the header itself: the id, and the length of a string
	Size uint64 // bytes of the parameter that follows
}

// ErrShort says that the header is longer than the bytes at hand.
var ErrShort = errors.New("risp: incomplete header")

// ParseHeader reads the header at the beginning of b, which may go on after
// it. The only error is [ErrShort]; the ID and Len of the header are then valid
// if b has at least two bytes.
func ParseHeader(b []byte) (Header, error) {
	if len(b) < 2 {
		return Header{}, ErrShort
	}
	id := ID(binary.BigEndian.Uint16(b))
	n := id.LengthSize()
	h := Header{ID: id, Len: 2 + n, Size: uint64(id.IntegerSize())}
	if n == 0 {
		return h, nil
	}
	if len(b) < h.Len {
		return h, ErrShort
	}
	h.Size = Uint(b[2:h.Len])
	return h, nil
}

// Uint returns the big-endian integer in b, which has at most 8 bytes.
func Uint(b []byte) (v uint64) {
	for _, x := range b {
		v = v<<8 | uint64(x)
	}
	return v
}

// AppendUint appends the command id with the integer v. It panics if id does
// not carry an integer of 1 to 8 bytes or if v does not fit it: both are
// mistakes of the program, never of a peer.
func AppendUint(dst []byte, id ID, v uint64) []byte {
	n := id.IntegerSize()
	if n == 0 || n > 8 {
		panic("risp: command " + id.String() + " does not carry an integer of 1 to 8 bytes")
	}
	return appendUint(appendID(dst, id), n, v, id)
}

// AppendNone appends the command id, which has no parameter. It panics if id
// is of a kind that has one.
func AppendNone(dst []byte, id ID) []byte {
	if id.IntegerSize() != 0 || id.LengthSize() != 0 {
		panic("risp: command " + id.String() + " has a parameter")
	}
	return appendID(dst, id)
}

// AppendStringHeader appends what precedes the string of the command id: the
// caller appends the n bytes of the string. It panics if id does not carry a
// string or if n does not fit its length.
func AppendStringHeader(dst []byte, id ID, n int) []byte {
	size := id.LengthSize()
	if size == 0 {
		panic("risp: command " + id.String() + " does not carry a string")
	}
	return appendUint(appendID(dst, id), size, uint64(n), id)
}

// AppendString appends the command id with the string s. It panics as
// [AppendStringHeader] does.
func AppendString[S ~[]byte | ~string](dst []byte, id ID, s S) []byte {
	return append(AppendStringHeader(dst, id, len(s)), s...)
}

func appendID(dst []byte, id ID) []byte {
	return binary.BigEndian.AppendUint16(dst, uint16(id))
}

func appendUint(dst []byte, n int, v uint64, id ID) []byte {
	if n < 8 && v>>(8*n) != 0 {
		panic(fmt.Sprintf("risp: %d does not fit the %d bytes of command %v", v, n, id))
	}
	var b [8]byte
	binary.BigEndian.PutUint64(b[:], v)
	return append(dst, b[8-n:]...)
}
