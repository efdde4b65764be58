package protocol

import (
	"cmp"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"hash"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/flatauth/caddy-flatauth/protocol/risp"
)

// A Conn is a connection secured by the flat protocol. It is a [net.Conn] of
// plaintext; the first Read or Write does the handshake if it has not been
// done. It is safe for concurrent use, as every net.Conn is.
type Conn struct {
	conn     net.Conn
	isClient bool
	client   *ClientConfig
	server   *ServerConfig

	handshakeMutex sync.Mutex
	handshakeDone  atomic.Bool
	handshakeErr   error // permanent; guarded by handshakeMutex

	state  ConnectionState // set by the handshake, constant after it
	closed atomic.Bool

	in struct {
		sync.Mutex
		input
		half  *halfConn
		err   error  // permanent
		plain []byte // verified plaintext that nobody has read yet

		// until the peer's first packet
		late      hash.Hash
		lateBytes int
		sawMax    bool // the peer has sent its MAX-PACKET
		started   bool // its first packet has been reached
	}

	out struct {
		sync.Mutex
		half    *halfConn
		err     error   // permanent
		pending []byte  // sealed, and only in part on its way
		buf     *[]byte // holds pending
		ended   bool    // END is sealed

		halfClosed bool // the transport's writing half is closed, if it can be

		// The write deadline. What is sealed has to be sent, so nothing is
		// sealed after it.
		deadline atomic.Pointer[time.Time]
	}

	// MAX-PACKET. A side that has said nothing counts as having said
	// DefaultMaxPacket.
	wantMax   int // what this side would like
	ownMax    int // what it said
	saidMax   bool
	peerMax   int          // what the peer said
	agreedMax atomic.Int64 // the lower of both
}

// A ConnectionState tells who is at the other end and how the connection is
// protected.
type ConnectionState struct {
	HandshakeComplete bool

	// Suite is the name of the suite, such as "classic".
	Suite string

	// Account is the name of the account that logged in, normalised.
	Account string

	// Interactive says that the account is a person's, who logged in with a
	// name and a passphrase, and not a machine's.
	Interactive bool

	// Certificate is the account's certificate.
	Certificate *x509.Certificate

	// MaxPacket is the largest plaintext of a packet, in bytes, that the two
	// sides have agreed on.
	MaxPacket int
}

// ConnectionState returns what the handshake found out.
func (c *Conn) ConnectionState() ConnectionState {
	c.handshakeMutex.Lock()
	defer c.handshakeMutex.Unlock()
	state := c.state
	state.MaxPacket = int(c.agreedMax.Load())
	return state
}

// Handshake does the handshake, if it has not been done. A client is done
// when it has opened its session key and sent its first packet; a server when
// the client's first packet has been verified, for only then has the client
// proved who it is.
func (c *Conn) Handshake() error { return c.HandshakeContext(context.Background()) }

// HandshakeContext is Handshake with a context, which ends the handshake, and
// the connection with it, when it is done early.
func (c *Conn) HandshakeContext(ctx context.Context) error {
	if c.handshakeDone.Load() {
		return nil
	}
	c.handshakeMutex.Lock()
	defer c.handshakeMutex.Unlock()
	if c.handshakeDone.Load() || c.handshakeErr != nil {
		return c.handshakeErr
	}

	c.in.Lock()
	defer c.in.Unlock()
	c.out.Lock()
	defer c.out.Unlock()

	var err error
	if c.isClient {
		err = c.clientHandshake(ctx)
	} else {
		err = c.serverHandshake(ctx)
	}
	if err != nil {
		c.handshakeErr = err
		c.in.err, c.out.err = err, err
		c.wipe()
		return err
	}
	c.state.HandshakeComplete = true
	c.handshakeDone.Store(true)
	return nil
}

// within runs one step of the handshake. If the step takes longer than d, or
// ctx is done before it is, the transport is closed, which ends the step.
func (c *Conn) within(ctx context.Context, d time.Duration, step string, run func(context.Context) error) error {
	ctx, cancel := context.WithTimeoutCause(ctx, d, fmt.Errorf("%s: %w after %v", step, os.ErrDeadlineExceeded, d))
	defer cancel()
	stop := context.AfterFunc(ctx, func() { c.conn.Close() })
	err := run(ctx)
	if !stop() {
		return context.Cause(ctx)
	}
	return err
}

// begin makes the two directions ready, once T2 and the session key are known.
func (c *Conn) begin(s *suite, t2, sessionKey, exchanged []byte) {
	secret := connectionSecret(t2, sessionKey, exchanged)
	defer clear(secret)
	up, down := newHalfConn(s, secret, clientToServer), newHalfConn(s, secret, serverToClient)
	if c.isClient {
		c.in.half, c.out.half = down, up
	} else {
		c.in.half, c.out.half = up, down
	}
	c.in.late = labelled(labelLate)
	labelled(labelLate).Sum(c.out.half.late[:0]) // this side has sent nothing late so far
	c.state.Suite = s.name
}

// setPeerMax takes the peer's MAX-PACKET.
func (c *Conn) setPeerMax(n int) {
	c.peerMax, c.in.sawMax = n, true
	c.agreedMax.Store(int64(min(c.ownMax, n)))
}

// readPacket reads until c.in.plain has something, the peer's stream ends, or
// one packet, though an empty one, has been opened. It holds c.in.
func (c *Conn) readPacket() error {
	if c.in.err != nil {
		return c.in.err
	}
	err := c.readPacketOnce()
	if err != nil && !isTimeout(err) {
		if err == io.EOF && c.in.err == nil {
			// The transport ended, the stream did not.
			err = io.ErrUnexpectedEOF
		}
		c.in.err = err
		c.in.release()
		if err != io.EOF {
			// The connection ends, in both directions and without an END: a
			// peer whose stream was altered or cut must not see the other one
			// come to a good end.
			c.conn.Close()
		}
	}
	return err
}

func (c *Conn) readPacketOnce() error {
	need := 2
	for {
		if err := c.in.fill(need); err != nil {
			return err
		}
		hdr, _ := risp.ParseHeader(c.in.buffered())
		switch {
		case c.in.half.suite.starts(hdr.ID):
		case hdr.ID == cmdNOP && c.in.started:
			c.in.take(2)
			need = 2
			continue
		case c.in.started:
			return protocolError(commandName(hdr.ID) + " among packets")
		default:
			if err := c.readLate(); err != nil {
				return err
			}
			need = 2
			continue
		}
		if !c.in.started {
			c.in.late.Sum(c.in.half.late[:0])
			c.in.late = nil
			c.in.started = true
		}
		p, err := c.in.half.suite.open(c.in.half, c.in.buffered(), int(c.agreedMax.Load()))
		if err != nil {
			return err
		}
		if p.wireLen == 0 {
			need = p.need
			continue
		}
		c.in.trusted = true
		c.in.take(p.wireLen)
		c.in.plain = p.plaintext
		if p.end {
			if len(c.in.buffered()) > 0 {
				return protocolError("bytes after the end of the stream")
			}
			c.in.err = io.EOF
			return io.EOF
		}
		return nil
	}
}

// readLate takes one command between the peer's trigger and its first packet.
func (c *Conn) readLate() error {
	need := 2
	for {
		if err := c.in.fill(need); err != nil {
			return err
		}
		hdr, err := risp.ParseHeader(c.in.buffered())
		if err != nil {
			need = hdr.Len
			continue
		}
		if hdr.Size > uint64(maxLate-c.in.lateBytes-hdr.Len) || c.in.lateBytes+hdr.Len > maxLate {
			return protocolError("too much before the first packet")
		}
		if _, err := checkCommand(hdr, inLate); err != nil {
			return err
		}
		whole := hdr.Len + int(hdr.Size)
		if len(c.in.buffered()) < whole {
			need = whole
			continue
		}
		b := c.in.buffered()[:whole]
		c.in.late.Write(b)
		c.in.lateBytes += whole
		if hdr.ID == cmdMaxPacket {
			if c.in.sawMax {
				return protocolError("a second MAX-PACKET")
			}
			c.setPeerMax(clampMaxPacket(risp.Uint(b[hdr.Len:])))
			if !c.isClient {
				if err := c.mimicMaxPacket(); err != nil {
					return err
				}
			}
		}
		c.in.take(whole)
		return nil
	}
}

// Read reads plaintext that has been verified. It returns io.EOF after the
// peer's authenticated end, and io.ErrUnexpectedEOF if the transport ended
// without it: somebody cut the stream short.
func (c *Conn) Read(b []byte) (int, error) {
	if err := c.Handshake(); err != nil {
		return 0, err
	}
	if len(b) == 0 {
		return 0, nil
	}
	c.in.Lock()
	defer c.in.Unlock()
	for len(c.in.plain) == 0 {
		if err := c.readPacket(); err != nil {
			return 0, err
		}
	}
	n := copy(b, c.in.plain)
	c.in.plain = c.in.plain[n:]
	return n, nil
}

// batchLen is how many bytes of packets Write gathers for one write to the
// transport, unless a single packet is longer.
const batchLen = 256 << 10

// Write seals b into packets of at most the agreed MAX-PACKET and sends them.
// A Write that a deadline interrupts can be followed by others: n counts the
// bytes that are sealed, all of which will reach the peer before the next.
func (c *Conn) Write(b []byte) (n int, err error) {
	if err := c.Handshake(); err != nil {
		return 0, err
	}
	c.out.Lock()
	defer c.out.Unlock()
	if c.out.ended {
		return 0, ErrClosedWrite
	}
	for {
		if err := c.flush(); err != nil {
			return n, err
		}
		if n == len(b) {
			return n, nil
		}
		if d := c.out.deadline.Load(); d != nil && !d.IsZero() && !time.Now().Before(*d) {
			return n, os.ErrDeadlineExceeded
		}
		n += c.seal(b[n:])
	}
}

// seal seals as much of b as goes into one batch and returns how much that
// was. It seals one empty packet if b is empty. It holds c.out, and nothing is
// pending.
func (c *Conn) seal(b []byte) int {
	limit := int(c.agreedMax.Load())
	packets := max(1, batchLen/c.out.half.suite.wireLen(limit))
	b = b[:min(len(b), packets*limit)]
	whole, rest := len(b)/limit, len(b)%limit
	size := whole * c.out.half.suite.wireLen(limit)
	if rest > 0 || len(b) == 0 {
		size += c.out.half.suite.wireLen(rest)
	}
	c.out.buf = getBuffer(size)
	c.out.pending = (*c.out.buf)[:0]
	for n := len(b); ; {
		chunk := b[len(b)-n:]
		chunk = chunk[:min(len(chunk), limit)]
		c.out.pending = c.out.half.suite.seal(c.out.half, c.out.pending, chunk)
		if n -= len(chunk); n == 0 {
			return len(b)
		}
	}
}

// flush sends what is pending. It holds c.out.
func (c *Conn) flush() error {
	if c.out.err != nil {
		return c.out.err
	}
	if len(c.out.pending) == 0 {
		return nil
	}
	n, err := c.conn.Write(c.out.pending)
	c.out.pending = c.out.pending[n:]
	if isTimeout(err) {
		return err
	}
	c.out.err = err
	c.dropPending()
	return err
}

// dropPending gives the buffer of what is pending back. It holds c.out.
func (c *Conn) dropPending() {
	if c.out.buf != nil {
		putBuffer(c.out.buf)
	}
	c.out.buf, c.out.pending = nil, nil
}

// CloseWrite ends this side's stream with an authenticated END, and then the
// writing half of the transport if that can be done. The other direction goes
// on.
func (c *Conn) CloseWrite() error {
	if err := c.Handshake(); err != nil {
		return err
	}
	c.out.Lock()
	defer c.out.Unlock()
	return c.closeWrite()
}

func (c *Conn) closeWrite() error {
	if err := c.flush(); err != nil {
		return err
	}
	if !c.out.ended {
		c.out.ended = true
		c.out.pending = c.out.half.suite.sealEnd(c.out.half, nil)
		if err := c.flush(); err != nil {
			return err
		}
	}
	if c.out.halfClosed {
		return nil
	}
	c.out.halfClosed = true
	if half, ok := c.conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return nil
}

// closeTimeout bounds how long Close waits for a peer to take the END.
const closeTimeout = 5 * time.Second

// Close ends this side's stream with an authenticated END, unless a Write is
// still going on, closes the transport and forgets the keys.
//
// To make the peer see a stream that was cut short, close the transport before
// the Conn.
func (c *Conn) Close() error {
	if !c.closed.CompareAndSwap(false, true) {
		return net.ErrClosed
	}
	if c.handshakeDone.Load() && c.out.TryLock() {
		if c.out.err == nil {
			c.SetWriteDeadline(time.Now().Add(closeTimeout))
			c.closeWrite()
		}
		c.out.Unlock()
	}
	err := c.conn.Close()
	if !c.handshakeDone.Load() {
		return err // a handshake that is going on has failed now, and wipes
	}
	// Whoever was reading or writing has been woken.
	c.in.Lock()
	defer c.in.Unlock()
	c.out.Lock()
	defer c.out.Unlock()
	c.in.err = cmp.Or(c.in.err, net.ErrClosed)
	c.out.err = cmp.Or(c.out.err, net.ErrClosed)
	c.wipe()
	return err
}

// wipe forgets the keys and gives the buffers back. It holds c.in and c.out.
func (c *Conn) wipe() {
	for _, half := range []*halfConn{c.in.half, c.out.half} {
		if half != nil {
			half.wipe()
		}
	}
	clear(c.in.plain)
	c.in.plain = nil
	c.in.release()
	c.dropPending()
}

// isTimeout reports whether an operation met its deadline and can be tried
// again. A network that timed out is another matter: that connection is gone.
func isTimeout(err error) bool { return errors.Is(err, os.ErrDeadlineExceeded) }

// NetConn returns the transport. Reading from it or writing to it breaks the
// connection.
func (c *Conn) NetConn() net.Conn { return c.conn }

func (c *Conn) LocalAddr() net.Addr  { return c.conn.LocalAddr() }
func (c *Conn) RemoteAddr() net.Addr { return c.conn.RemoteAddr() }

// SetDeadline sets both deadlines of the transport. A Read or Write that met
// its deadline can be tried again once the deadline is moved; a handshake
// cannot.
func (c *Conn) SetDeadline(t time.Time) error {
	return errors.Join(c.SetReadDeadline(t), c.SetWriteDeadline(t))
}

// SetReadDeadline is described at SetDeadline.
func (c *Conn) SetReadDeadline(t time.Time) error { return c.conn.SetReadDeadline(t) }

// SetWriteDeadline is described at SetDeadline.
func (c *Conn) SetWriteDeadline(t time.Time) error {
	c.out.deadline.Store(&t)
	return c.conn.SetWriteDeadline(t)
}

var _ net.Conn = (*Conn)(nil)
