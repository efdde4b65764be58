package flatauth

import (
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mholt/caddy-l4/layer4"
	"go.uber.org/zap"

	"github.com/flatauth/caddy-flatauth/protocol"
	"github.com/flatauth/caddy-flatauth/store"
)

// A transport is what the protocol runs on. It reads what the matchers have
// read already, as cx does, then from the connection.
type transport struct{ *layer4.Connection }

// CloseWrite ends the writing half of the connection, if one of those that it
// is made of can.
func (t transport) CloseWrite() error {
	var conn net.Conn = t.Connection
	for {
		switch c := conn.(type) {
		case interface{ CloseWrite() error }:
			return c.CloseWrite()
		case *layer4.Connection:
			conn = c.Conn
		case interface{ Raw() net.Conn }: // of the PROXY protocol
			conn = c.Raw()
		default:
			return nil // END has said it already
		}
	}
}

// A session is a connection after its login. It keeps what the log says at
// its end.
type session struct {
	*protocol.Conn
	cx     *layer4.Connection
	logger *zap.Logger
	start  time.Time

	in, out    atomic.Int64 // bytes of plaintext
	active     atomic.Int64 // when the last of them passed, in Unix nanoseconds
	touched    atomic.Bool  // a handler has begun to read or write
	readEnded  atomic.Bool
	writeEnded atomic.Bool

	mu       sync.Mutex
	failure  error // the first one of the connection
	idle     *time.Timer
	finished bool
}

var errIdle = errors.New("idle for too long")

func newSession(cx *layer4.Connection, conn *protocol.Conn, logger *zap.Logger, idleTimeout time.Duration) *session {
	state := conn.ConnectionState()
	s := &session{Conn: conn, cx: cx, start: time.Now()}
	typ := store.Certificate
	if state.Interactive {
		typ = store.Interactive
	}
	s.logger = logger.With(
		zap.String("remote_ip", remoteIP(cx)),
		zap.Stringer("remote", cx.RemoteAddr()),
		zap.String("account", state.Account),
		zap.String("zone", protocol.Zone(state.Account)),
		zap.String("type", string(typ)),
		zap.String("suite", state.Suite),
	)
	s.active.Store(s.start.UnixNano())
	if idleTimeout > 0 {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.idle = time.AfterFunc(idleTimeout, func() { s.checkIdle(idleTimeout) })
	}
	return s
}

// checkIdle ends the session if nothing has passed for so long, and looks again
// later otherwise.
func (s *session) checkIdle(timeout time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.finished {
		return
	}
	if left := timeout - time.Since(time.Unix(0, s.active.Load())); left > 0 {
		s.idle.Reset(left)
		return
	}
	s.failure = errIdle
	s.cx.Close() // without an END: the client sees a stream that was cut
}

func (s *session) Read(b []byte) (int, error) {
	s.touched.Store(true)
	n, err := s.Conn.Read(b)
	s.passed(&s.in, n)
	if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		s.readEnded.Store(true)
		s.ended(err)
	}
	return n, err
}

func (s *session) Write(b []byte) (int, error) {
	s.touched.Store(true)
	n, err := s.Conn.Write(b)
	s.passed(&s.out, n)
	if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		s.writeEnded.Store(true)
		s.ended(err)
	}
	return n, err
}

func (s *session) CloseWrite() error {
	s.touched.Store(true)
	err := s.Conn.CloseWrite()
	s.writeEnded.Store(true)
	s.ended(err)
	return err
}

func (s *session) Close() error {
	s.touched.Store(true)
	return s.Conn.Close()
}

func (s *session) passed(counter *atomic.Int64, n int) {
	if n > 0 {
		counter.Add(int64(n))
		if s.idle != nil {
			s.active.Store(time.Now().UnixNano())
		}
	}
}

// ended keeps the first failure.
func (s *session) ended(err error) {
	if err == nil || err == io.EOF {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.failure == nil {
		s.failure = err
	}
}

// finish ends the session when its handlers are done with it: with an END, so
// that the client knows its stream is complete, unless they failed.
func (s *session) finish(err error) {
	s.mu.Lock()
	s.finished = true
	if s.idle != nil {
		s.idle.Stop()
	}
	failure := s.failure
	s.mu.Unlock()

	if err != nil {
		s.cx.Close()
	}
	s.Conn.Close()
	s.logger.Info("session ended",
		zap.Int64("bytes_in", s.in.Load()),
		zap.Int64("bytes_out", s.out.Load()),
		zap.Duration("duration", time.Since(s.start)),
		zap.String("reason", s.reason(failure, err)),
	)
}

func (s *session) logLogin(took time.Duration) {
	s.logger.Info("login",
		zap.Stringer("thumbprint", thumbprint(s.ConnectionState().Certificate)),
		zap.Duration("handshake", took))
}

// reason says in the log's words why the session ended.
func (s *session) reason(failure, err error) string {
	switch {
	case failure == errIdle:
		return errIdle.Error()
	case errors.Is(failure, protocol.ErrAuthentication), errors.Is(failure, protocol.ErrProtocol):
		return "altered on the way: " + failure.Error()
	case errors.Is(failure, io.ErrUnexpectedEOF):
		return "cut: the client's stream ended without its END"
	case err != nil:
		return "failed: " + err.Error()
	case failure != nil:
		return "cut: " + failure.Error()
	case s.readEnded.Load() && s.writeEnded.Load():
		return "complete"
	}
	return "closed by the server"
}
