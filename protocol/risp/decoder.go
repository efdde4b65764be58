package risp

import (
	"errors"
	"fmt"
	"io"
)

// Errors of a [Decoder], beside those of its reader. Use errors.Is.
var (
	// ErrLimit says that a command is longer than what is left of the
	// decoder's limit. It is reported as soon as the header is read.
	ErrLimit = errors.New("risp: command exceeds the limit")

	// ErrNotInteger says that the command does not carry an integer of at
	// most 8 bytes.
	ErrNotInteger = errors.New("risp: not an integer of 1 to 8 bytes")
)

// A Decoder reads commands from a stream. It reads no byte beyond the command
// at hand, holds none back, and allocates nothing.
//
//	for {
//		h, err := d.Next()
//		switch {
//		case err != nil:  // io.EOF: the stream ended between two commands
//		case h.ID == cmdName:
//			name, err := d.AppendParameter(nil)
//		}                 // anything else is skipped by the next Next
//	}
type Decoder struct {
	r       io.Reader
	limit   uint64 // bytes that may still be read; all commands together
	left    uint64 // bytes of the current parameter that are not read yet
	header  Header
	scratch [64]byte
}

// NewDecoder returns a Decoder that reads at most limit bytes from r.
func NewDecoder(r io.Reader, limit uint64) *Decoder {
	return &Decoder{r: r, limit: limit}
}

// Next skips what is left of the current command and reads the header of the
// next one. The error is io.EOF if the stream ends before the command begins,
// io.ErrUnexpectedEOF if it ends inside a command, and wraps [ErrLimit] if the
// command does not fit the limit.
func (d *Decoder) Next() (Header, error) {
	for d.left > 0 {
		n := min(d.left, uint64(len(d.scratch)))
		if err := d.read(d.scratch[:n]); err != nil {
			return Header{}, unexpected(err)
		}
		d.left -= n
	}
	if err := d.readHeader(2); err != nil {
		return Header{}, err
	}
	h, err := ParseHeader(d.scratch[:2])
	if err != nil { // a string: its length follows
		if err := d.readHeader(h.Len - 2); err != nil {
			return Header{}, unexpected(err)
		}
		h.Size = Uint(d.scratch[:h.Len-2])
	}
	if h.Size > d.limit {
		return Header{}, fmt.Errorf("%w: command %v announces %d bytes, %d are left", ErrLimit, h.ID, h.Size, d.limit)
	}
	d.header, d.left = h, h.Size
	return h, nil
}

func (d *Decoder) readHeader(n int) error {
	if uint64(n) > d.limit {
		return fmt.Errorf("%w: %d bytes are left", ErrLimit, d.limit)
	}
	return d.read(d.scratch[:n])
}

func (d *Decoder) read(b []byte) error {
	n, err := io.ReadFull(d.r, b)
	d.limit -= uint64(n)
	return err
}

// Uint reads the integer of the current command.
func (d *Decoder) Uint() (uint64, error) {
	n := d.header.ID.IntegerSize()
	if n == 0 || n > 8 || d.left != uint64(n) {
		return 0, fmt.Errorf("%w: command %v", ErrNotInteger, d.header.ID)
	}
	if err := d.read(d.scratch[:n]); err != nil {
		return 0, unexpected(err)
	}
	d.left = 0
	return Uint(d.scratch[:n]), nil
}

// Read reads from the parameter of the current command, whatever its kind. It
// returns io.EOF at the end of the parameter.
func (d *Decoder) Read(b []byte) (int, error) {
	if d.left == 0 {
		return 0, io.EOF
	}
	n, err := d.r.Read(b[:min(uint64(len(b)), d.left)])
	d.left -= uint64(n)
	d.limit -= uint64(n)
	return n, unexpected(err)
}

// AppendParameter reads what is left of the parameter of the current command
// and appends it to dst. Memory grows with the bytes that arrive, not with
// the length that the command announces.
func (d *Decoder) AppendParameter(dst []byte) ([]byte, error) {
	for d.left > 0 {
		n := int(min(d.left, uint64(len(d.scratch))))
		if err := d.read(d.scratch[:n]); err != nil {
			return dst, unexpected(err)
		}
		d.left -= uint64(n)
		dst = append(dst, d.scratch[:n]...)
	}
	return dst, nil
}

// unexpected turns an end of the stream inside a command into
// io.ErrUnexpectedEOF.
func unexpected(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}
