package protocol

import (
	"bytes"
	"errors"
	"io"
	"net"
	"testing"
	"time"

	"github.com/flatauth/caddy-flatauth/protocol/risp"
)

// fed is a transport that delivers some bytes and takes any.
type fed struct{ io.Reader }

func (fed) Write(b []byte) (int, error)      { return len(b), nil }
func (fed) Close() error                     { return nil }
func (fed) LocalAddr() net.Addr              { return nil }
func (fed) RemoteAddr() net.Addr             { return nil }
func (fed) SetDeadline(time.Time) error      { return nil }
func (fed) SetReadDeadline(time.Time) error  { return nil }
func (fed) SetWriteDeadline(time.Time) error { return nil }

// FuzzServer: whatever a stranger sends, the server does not let it in, and
// PeekFlight agrees with the server about what is a flight.
func FuzzServer(f *testing.F) {
	f.Add(cat(testNonce, accountCommand(setup().clients["p256/certificate"])))
	f.Add(cat(maxPacketCommand(512), testNonce, accountCommand(setup().clients["x25519/interactive"]), nop))
	f.Add(cat(testNonce, unknowns, accountCommand(setup().clients["x25519/certificate"]), unknowns, []byte{0x20, 0x02}))
	f.Add([]byte("GET / HTTP/1.1\r\n\r\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		err := Server(fed{bytes.NewReader(b)}, setup().server).Handshake()
		if err == nil {
			t.Fatal("let in")
		}
		peek := PeekFlight(b)
		var login *LoginError
		if got := errors.As(err, &login); got != peek.Done {
			t.Fatalf("peek %+v, server %v", peek, err)
		}
		if peek.Done && (login.Interactive != peek.Interactive || !login.Interactive && !bytes.Equal(login.Thumbprint[:], peek.Account)) {
			t.Fatalf("peek %+v, server %v", peek, err)
		}
		// A peek may see before the server does that a command is out of place.
		refused := errors.Is(err, ErrProtocol) && login == nil
		if refused && !peek.Invalid || !refused && peek.Invalid && !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Fatalf("peek %+v, server %v", peek, err)
		}
		// More bytes do not change a decision.
		for n := range b {
			if p := PeekFlight(b[:n]); p.Invalid && !peek.Invalid || p.Begun && !peek.Begun || p.Done && !peek.Done {
				t.Fatalf("after %d bytes %+v, at the end %+v", n, p, peek)
			}
		}
	})
}

// FuzzClient: whatever a server answers, the client sends nothing but its
// flight and does not believe it has logged in.
func FuzzClient(f *testing.F) {
	cert := risp.AppendString(nil, cmdCertificate, setup().accounts.byName["person-p256"].Bundle)
	f.Add(true, cat(cert, risp.AppendString(nil, cmdSessionKey, make([]byte, 113))))
	f.Add(false, cat(maxPacketCommand(512), unknowns, risp.AppendString(nil, cmdSessionKey, make([]byte, 113))))
	f.Add(false, risp.AppendUint(nil, cmdRetryAfter, 60))
	f.Fuzz(func(t *testing.T, interactive bool, b []byte) {
		config := setup().clients["p256/certificate"]
		if interactive {
			config = setup().clients["p256/interactive"]
		}
		if Client(fed{bytes.NewReader(b)}, config).Handshake() == nil {
			t.Fatal("believes it")
		}
	})
}

// FuzzOpenClassic: however a stream of packets is altered, what is released is
// the beginning of what was sealed.
func FuzzOpenClassic(f *testing.F) {
	key := bytes.Repeat([]byte{7}, 32)
	seal := func() []byte {
		h := newHalfConn(classic, bytes.Clone(key), clientToServer)
		var b []byte
		for _, p := range []string{"one", "", "three"} {
			b = classic.seal(h, b, []byte(p))
		}
		return classic.sealEnd(h, b)
	}
	good := seal()
	f.Add(good)
	f.Add(cat(nop, good[:len(good)-1]))
	p := parts(good[:3+classicOverhead])
	f.Add(cat(p[2], p[1], nop, p[0], good[3+classicOverhead:]))
	f.Fuzz(func(t *testing.T, b []byte) {
		h := newHalfConn(classic, bytes.Clone(key), clientToServer)
		var got []byte
		in := bytes.Clone(b)
		for len(in) > 0 {
			p, err := classic.open(h, in, 1000)
			if err != nil {
				break
			}
			if p.wireLen == 0 {
				if p.need <= len(in) || p.need > len(in)+1000+classicOverhead+2*maxPacketNOPs {
					t.Fatalf("needs %d, has %d", p.need, len(in))
				}
				break
			}
			got = append(got, p.plaintext...)
			in = in[p.wireLen:]
			if p.end {
				break
			}
		}
		if !bytes.HasPrefix([]byte("onethree"), got) {
			t.Fatalf("%q", got)
		}
	})
}

// FuzzNormalizeName: a name that has been normalised stays as it is.
func FuzzNormalizeName(f *testing.F) {
	f.Add("Alice@Ops")
	f.Add("ＡＬＩＣＥ")
	f.Fuzz(func(t *testing.T, s string) {
		once, err := NormalizeName(s)
		if err != nil {
			return
		}
		if twice, err := NormalizeName(once); err != nil || twice != once {
			t.Errorf("%q became %q, and that %q, %v", s, once, twice, err)
		}
		if once == "" || len(once) > MaxNameLen {
			t.Errorf("%q", once)
		}
	})
}
