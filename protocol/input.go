package protocol

import (
	"io"
	"math/bits"
	"sync"
)

// An input buffers what the transport delivers. It holds memory for the bytes
// that are there and the packet that is on its way; a connection that waits
// for the next packet holds only the small array.
type input struct {
	r       io.Reader
	buf     []byte // small[:] or *pooled
	pooled  *[]byte
	start   int  // the next byte to take
	end     int  // the end of what has been received
	trusted bool // memory may be had on the word of the peer
	small   [512]byte
}

// buffered returns what has been received and not taken yet. It is valid
// until the next call of fill.
func (in *input) buffered() []byte { return in.buf[in.start:in.end] }

// take removes the first n bytes of what is buffered.
func (in *input) take(n int) { in.start += n }

// fill reads from the transport, once or until at least need bytes are
// buffered. If the transport fails, what did arrive stays.
func (in *input) fill(need int) error {
	for in.end-in.start < need {
		in.makeRoom(need)
		n, err := in.r.Read(in.buf[in.end:])
		in.end += n
		if in.end-in.start >= need {
			return nil // an error will come again
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// makeRoom makes sure that the buffer has room for more bytes, and moves to
// a larger one if need bytes do not fit. Memory for a peer that is not
// trusted grows with what it has sent already.
func (in *input) makeRoom(need int) {
	n := in.end - in.start
	if n == 0 {
		in.release()
	}
	if in.buf == nil {
		in.buf = in.small[:]
	}
	if !in.trusted {
		need = min(need, max(2*n, len(in.small)))
	}
	switch {
	case in.start+need <= len(in.buf) && in.end < len(in.buf):
	case in.start > 0 && need <= len(in.buf):
		copy(in.buf, in.buffered())
		in.start, in.end = 0, n
	default:
		pooled := getBuffer(max(need, 2*len(in.buf)))
		copy(*pooled, in.buffered())
		in.release()
		in.pooled, in.buf, in.end = pooled, *pooled, n
	}
}

// release gives the buffer back. Nothing in it is needed any more.
func (in *input) release() {
	if in.pooled != nil {
		putBuffer(in.pooled)
	}
	in.pooled, in.buf, in.start, in.end = nil, nil, 0, 0
}

// Read takes bytes, from the transport if none are buffered.
func (in *input) Read(b []byte) (int, error) {
	if in.start == in.end {
		if err := in.fill(1); err != nil {
			return 0, err
		}
	}
	n := copy(b, in.buffered())
	in.take(n)
	return n, nil
}

// bufferPools holds buffers by the power of two that is their length.
var bufferPools [32]sync.Pool

// getBuffer returns a buffer of at least n bytes, n > 0.
func getBuffer(n int) *[]byte {
	class := bits.Len(uint(n - 1))
	if b, ok := bufferPools[class].Get().(*[]byte); ok {
		return b
	}
	b := make([]byte, 1<<class)
	return &b
}

// putBuffer gives back what getBuffer returned.
func putBuffer(b *[]byte) {
	bufferPools[bits.Len(uint(len(*b)-1))].Put(b)
}
