package integration

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/flatauth/caddy-flatauth/internal/testnet"
	"github.com/flatauth/caddy-flatauth/protocol/risp"
)

// attacked is a server with a port whose routes ask the matcher, and one whose
// handler gets everything.
type attacked struct {
	*server
	a                accounts
	up               *upstream
	matched, handled string
}

func startAttacked(t *testing.T) attacked {
	s := attacked{a: newAccounts(t), up: newUpstream(t, echo), matched: testnet.FreeAddr(), handled: testnet.FreeAddr()}
	s.server = startCaddy(t, fmt.Sprintf(`{
	layer4 {
		%s {
			matching_timeout 2s
			@flat flatauth
			route @flat {
				flatauth {
					store directory %s
					handshake_timeout 2s
					proof_timeout 2s
				}
				proxy %s
			}
		}
		%s {
			route {
				flatauth {
					store directory %[2]s
					handshake_timeout 2s
					proof_timeout 2s
				}
				proxy %[3]s
			}
		}
	}
}
`, s.matched, s.a.dir, s.up.addr(), s.handled))
	return s
}

// stillFine checks that nothing came of it all: the upstream was not dialled,
// the memory is about what it was, and who has the key gets in.
func (s attacked) stillFine(t *testing.T, before int) {
	t.Helper()
	if n := s.up.count(); n != 0 {
		t.Errorf("the upstream was dialled %d times", n)
	}
	after := s.status("VmRSS")
	t.Logf("resident memory: %d KiB before, %d KiB after", before, after)
	if after > before+128<<10 {
		t.Errorf("memory grew from %d to %d KiB", before, after)
	}
	for _, addr := range []string{s.matched, s.handled} {
		conn := dial(t, addr, s.a.machineConfig(t))
		if _, err := conn.Write([]byte("x")); err != nil {
			t.Error(err)
		}
		if _, err := io.ReadFull(conn, make([]byte, 1)); err != nil {
			t.Error(err)
		}
	}
}

// 100,000 connections that begin with random bytes, half of them made to look
// like commands.
func TestRandomBytes(t *testing.T) {
	const connections, clients = 100_000, 64
	s := startAttacked(t)
	before := s.status("VmRSS")
	ids := []uint16{0x7000, 0x8001, 0x8002, 0x8005, 0x2001, 0x9001, 0x2002, 0xa001, 0x8010, 0x9010, 0xb001, 0x6001}
	var wg sync.WaitGroup
	jobs := make(chan int)
	for range clients {
		wg.Go(func() {
			var b [512]byte
			for i := range jobs {
				rand.Read(b[:])
				n := 1 + int(b[511])<<1&0x1ff%500
				if i%2 == 0 { // a command or two with random parameters
					binary.BigEndian.PutUint16(b[:], ids[int(b[500])%len(ids)])
					binary.BigEndian.PutUint16(b[2+int(b[501])%100:], ids[int(b[502])%len(ids)])
				}
				addr := s.matched
				if i%4 < 2 {
					addr = s.handled
				}
				conn, err := net.Dial("tcp", addr)
				if err != nil {
					t.Error(err)
					continue
				}
				conn.Write(b[:n])
				// Half of them wait for what the server does, as far as it
				// does anything before they end.
				if i%8 == 0 {
					conn.(*net.TCPConn).CloseWrite()
					conn.SetDeadline(time.Now().Add(patience))
					if _, err := io.Copy(io.Discard, conn); isTimeout(err) {
						t.Error("the connection was not ended in time")
					}
				}
				conn.(*net.TCPConn).SetLinger(0) // leaves nothing behind
				conn.Close()
			}
		})
	}
	for i := range connections {
		jobs <- i
	}
	close(jobs)
	wg.Wait()
	s.stillFine(t, before)
}

func isTimeout(err error) bool {
	nerr, ok := err.(net.Error)
	return ok && nerr.Timeout()
}

// What begins as a login and does not go on as one ends in time: the server
// closes, with no upstream dialled and no memory taken on anybody's word.
func TestHalfLogins(t *testing.T) {
	s := startAttacked(t)
	before := s.status("VmRSS")
	flight := slices.Clip(risp.AppendString(nil, 0x8005, make([]byte, 16))) // NONCE
	name := risp.AppendString(nil, 0x8001, "alice")
	header := func(id uint16, length ...byte) []byte {
		return append(binary.BigEndian.AppendUint16(nil, id), length...)
	}
	drip := func(conn net.Conn, b []byte) { // one byte a second
		for i := range b {
			if _, err := conn.Write(b[i : i+1]); err != nil {
				return
			}
			time.Sleep(time.Second) // the attack itself
		}
	}
	wrongKey := func(conn net.Conn) {
		// the whole of a login, but for the key
		sum := sha256.Sum256(s.a.machineConfig(t).Certificate.Raw)
		conn.Write(append(flight, risp.AppendString(nil, 0x8002, sum[:])...))
		conn.Write(risp.AppendUint(nil, 0x2002, 5))
		conn.Write(risp.AppendString(nil, 0xa001, make([]byte, 5+16)))
		conn.Write(risp.AppendString(nil, 0x8003, make([]byte, 32+16)))
	}
	var wg sync.WaitGroup
	for what, attack := range map[string]func(net.Conn){
		"silence":           func(net.Conn) {},
		"half a flight":     func(conn net.Conn) { conn.Write(flight[:7]) },
		"no account":        func(conn net.Conn) { conn.Write(flight) },
		"one byte a second": func(conn net.Conn) { drip(conn, append(flight, name...)) },
		"a name, no packet": func(conn net.Conn) { conn.Write(append(flight, name...)) },
		"4 GiB":             func(conn net.Conn) { conn.Write(append(flight, header(0xafff, 0xff, 0xff, 0xff, 0xff)...)) },
		"2^63":              func(conn net.Conn) { conn.Write(append(flight, header(0xbfff, 0x80, 0, 0, 0, 0, 0, 0, 0)...)) },
		"4 GiB, late": func(conn net.Conn) {
			conn.Write(append(append(flight, name...), header(0xafff, 0xff, 0xff, 0xff, 0xff)...))
		},
		"4 GiB of DATA": func(conn net.Conn) {
			conn.Write(append(append(flight, name...), header(0xa001, 0xff, 0xff, 0xff, 0xff)...))
		},
		"16 MiB of DATA":    func(conn net.Conn) { conn.Write(append(append(flight, name...), header(0xa001, 0x01, 0, 0, 0)...)) },
		"64 KiB of DATA":    func(conn net.Conn) { conn.Write(append(append(flight, name...), header(0xa001, 0, 1, 0, 0)...)) },
		"NOPs for ever":     func(conn net.Conn) { conn.Write(flight); nops(conn) },
		"NOPs after a name": func(conn net.Conn) { conn.Write(append(flight, name...)); nops(conn) },
		"the wrong key":     wrongKey,
		"a key and no packet": func(conn net.Conn) {
			conn.Write(append(flight, risp.AppendString(nil, 0x8002, make([]byte, 32))...))
		},
	} {
		for _, addr := range []string{s.matched, s.handled} {
			for range 8 {
				wg.Go(func() {
					conn, err := net.Dial("tcp", addr)
					if err != nil {
						t.Error(err)
						return
					}
					defer conn.Close()
					go attack(conn)
					conn.SetReadDeadline(time.Now().Add(patience))
					if _, err := io.Copy(io.Discard, conn); isTimeout(err) {
						t.Errorf("%s: the connection was not ended in time", what)
					}
				})
			}
		}
	}
	wg.Wait()
	s.stillFine(t, before)
}

func nops(conn net.Conn) {
	for {
		if _, err := conn.Write([]byte{0x70, 0x00}); err != nil {
			return
		}
	}
}
