package protocol

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/flatauth/caddy-flatauth/protocol/risp"
)

// A flipper is a transport that flips one bit of what is written to it.
type flipper struct {
	net.Conn
	bit     int // counted from the first byte of the connection; -1: none
	written atomic.Int64
}

func (f *flipper) Write(b []byte) (int, error) {
	at := f.bit - 8*int(f.written.Load())
	f.written.Add(int64(len(b)))
	if at >= 0 && at < 8*len(b) {
		b = bytes.Clone(b)
		b[at/8] ^= 0x80 >> (at % 8)
	}
	return f.Conn.Write(b)
}

// Whatever single bit of an exchange is flipped, in either direction, in the
// handshake or after it, somebody notices and nobody is given anything that
// was not sent.
func TestEveryBit(t *testing.T) {
	for _, account := range []string{"p256/certificate", "p256/interactive"} {
		t.Run(account, func(t *testing.T) {
			up, down, errs := flippedExchange(account, -1, -1, time.Minute)
			if errs != nil {
				t.Fatal("with no bit flipped:", errs)
			}
			t.Logf("%d bytes up, %d down", up, down)

			var work sync.WaitGroup
			jobs := make(chan [2]int)
			for range 32 { // most of the time is spent waiting
				work.Go(func() {
					for job := range jobs {
						// A length that says more than there is is noticed by
						// the end of a patience.
						if _, _, errs := flippedExchange(account, job[0], job[1], 100*time.Millisecond); errs == nil {
							t.Errorf("bit %d up, %d down: not noticed", job[0], job[1])
						} else if errors.Is(errs, errWrongData) {
							t.Errorf("bit %d up, %d down: %v", job[0], job[1], errs)
						}
					}
				})
			}
			for bit := range 8 * up {
				jobs <- [2]int{bit, -1}
			}
			for bit := range 8 * down {
				jobs <- [2]int{-1, bit}
			}
			close(jobs)
			work.Wait()
		})
	}
}

var errWrongData = errors.New("what arrived was never sent")

// flippedExchange has client and server log in, exchange a few bytes and end
// both streams, with a bit flipped each way. It returns the bytes that went
// over the wire and the errors of both sides.
func flippedExchange(account string, upBit, downBit int, patience time.Duration) (up, down int, errs error) {
	ct, st := net.Pipe()
	toServer, toClient := &flipper{Conn: ct, bit: upBit}, &flipper{Conn: st, bit: downBit}
	defer ct.Close()
	defer st.Close()
	cc, sc := *setup().clients[account], *setup().server
	cc.AnswerTimeout, sc.FlightTimeout, sc.ProofTimeout = patience, patience, patience
	client, server := Client(toServer, &cc), Server(toClient, &sc)

	side := func(c *Conn, send, want string) error {
		if err := c.Handshake(); err != nil {
			c.conn.Close()
			return err
		}
		c.SetDeadline(time.Now().Add(patience))
		wrote := make(chan error, 1)
		go func() {
			_, err := c.Write([]byte(send))
			if err == nil {
				err = c.CloseWrite()
			}
			wrote <- err
		}()
		got, err := io.ReadAll(c)
		if len(got) > len(want) || string(got) != want[:len(got)] || err == nil && string(got) != want {
			return fmt.Errorf("%w: %q", errWrongData, got)
		}
		if err != nil {
			c.conn.Close()
		}
		return errors.Join(err, <-wrote)
	}
	answered := make(chan error, 1)
	go func() { answered <- side(server, "pong", "ping!") }()
	err := side(client, "ping!", "pong")
	serverErr := <-answered
	if errors.Is(err, errWrongData) || errors.Is(serverErr, errWrongData) {
		return 0, 0, errors.Join(errWrongData, err, serverErr)
	}
	return int(toServer.written.Load()), int(toClient.written.Load()), errors.Join(err, serverErr)
}

// feed makes a connection read the given bytes as if its transport had
// delivered them.
func feed(c *Conn, b []byte) { c.in.r = bytes.NewReader(b) }

// readFed reads what a connection makes of the bytes.
func readFed(c *Conn, b []byte) ([]byte, error) {
	feed(c, b)
	return io.ReadAll(c)
}

// eachDirection runs the test with a new connection for each direction.
func eachDirection(t *testing.T, test func(t *testing.T, from, to func() *Conn)) {
	for _, up := range []bool{true, false} {
		t.Run(map[bool]string{true: "up", false: "down"}[up], func(t *testing.T) {
			var from, to *Conn
			connected := false
			once := func() {
				if !connected {
					from, to = connect(t, setup().clients["x25519/certificate"], setup().server)
					if !up {
						from, to = to, from
					}
				}
				connected = !connected
			}
			test(t, func() *Conn { once(); return from }, func() *Conn { once(); return to })
		})
	}
}

// Packets that are dropped, doubled, swapped or cut are noticed, and nothing
// after the fault is released.
func TestPackets(t *testing.T) {
	eachDirection(t, func(t *testing.T, newFrom, newTo func() *Conn) {
		plain := []string{"one", "", "three", "four"}
		run := func(what string, mutate func(packets [][]byte) [][]byte, released string) {
			t.Helper()
			from, to := newFrom(), newTo()
			var packets [][]byte
			for _, p := range plain {
				packets = append(packets, from.out.half.suite.seal(from.out.half, nil, []byte(p)))
			}
			packets = append(packets, from.out.half.suite.sealEnd(from.out.half, nil))
			got, err := readFed(to, bytes.Join(mutate(packets), nil))
			if string(got) != released {
				t.Errorf("%s: released %q, want %q", what, got, released)
			}
			if (err == nil) != (what == "nothing") {
				t.Errorf("%s: %v", what, err)
			}
		}
		upTo := func(n int) (s string) {
			for _, p := range plain[:min(n, len(plain))] {
				s += p
			}
			return s
		}
		run("nothing", func(p [][]byte) [][]byte { return p }, upTo(4))
		for i := range len(plain) + 1 {
			name := fmt.Sprintf("packet %d ", i)
			run(name+"dropped", func(p [][]byte) [][]byte { return append(p[:i:i], p[i+1:]...) }, upTo(i))
			run(name+"doubled", func(p [][]byte) [][]byte { return append(p[:i+1:i+1], p[i:]...) }, upTo(i+1))
			if i < len(plain) {
				run(name+"swapped", func(p [][]byte) [][]byte { p[i], p[i+1] = p[i+1], p[i]; return p }, upTo(i))
			}
			for n := range 20 {
				run(fmt.Sprint(name, "cut at ", n), func(p [][]byte) [][]byte { return append(p[:i:i], p[i][:min(n, len(p[i])-1)]) }, upTo(i))
			}
		}
		run("bytes after the end", func(p [][]byte) [][]byte { return append(p, []byte{0x70, 0}) }, upTo(4))
		run("END inside a packet", func(p [][]byte) [][]byte { return [][]byte{p[0][:dataLengthLen], p[4]} }, "")
		run("a command of the flight", func(p [][]byte) [][]byte {
			return [][]byte{p[0], risp.AppendUint(nil, cmdMaxPacket, 512), p[1], p[2], p[3], p[4]}
		}, upTo(1))
		run("an unknown command", func(p [][]byte) [][]byte {
			return [][]byte{p[0], risp.AppendNone(nil, 0x7fff), p[1], p[2], p[3], p[4]}
		}, upTo(1))
	})
}

// A packet of one direction, or of another connection, is not taken.
func TestReflected(t *testing.T) {
	from, to := connect(t, setup().clients["x25519/certificate"], setup().server)
	p := to.out.half.suite.seal(to.out.half, nil, []byte("reflected"))
	if got, err := readFed(to, p); !errors.Is(err, ErrAuthentication) || len(got) > 0 {
		t.Errorf("its own packet: %q, %v", got, err)
	}
	other, _ := connect(t, setup().clients["x25519/certificate"], setup().server)
	p = other.out.half.suite.seal(other.out.half, nil, []byte("another"))
	_, to = connect(t, setup().clients["x25519/certificate"], setup().server)
	if got, err := readFed(to, p); !errors.Is(err, ErrAuthentication) || len(got) > 0 {
		t.Errorf("another connection's packet: %q, %v", got, err)
	}
	_ = from
}

// parts splits a classic packet.
func parts(packet []byte) [][]byte {
	verify := len(packet) - verifyLen
	return [][]byte{packet[:dataLengthLen], packet[dataLengthLen:verify], packet[verify:]}
}

// The parts of a packet are taken in any order, with NOPs between them.
func TestAnyOrder(t *testing.T) {
	eachDirection(t, func(t *testing.T, newFrom, newTo func() *Conn) {
		from, to := newFrom(), newTo()
		var stream []byte
		nop := risp.AppendNone(nil, cmdNOP)
		want := ""
		for i, order := range [][3]int{{0, 1, 2}, {0, 2, 1}, {1, 0, 2}, {1, 2, 0}, {2, 0, 1}, {2, 1, 0}} {
			plain := fmt.Sprintf("in the order %v ", order)
			want += plain
			p := parts(from.out.half.suite.seal(from.out.half, nil, []byte(plain)))
			for _, part := range order {
				stream = append(stream, p[part]...)
				stream = append(stream, bytes.Repeat(nop, i*6)...)
			}
		}
		stream = from.out.half.suite.sealEnd(from.out.half, stream)

		// … however the transport cuts it
		to.in.r = iotestOneByte{bytes.NewReader(stream)}
		got, err := io.ReadAll(to)
		if err != nil || string(got) != want {
			t.Errorf("%q, %v", got, err)
		}
	})
}

type iotestOneByte struct{ r io.Reader }

func (r iotestOneByte) Read(b []byte) (int, error) { return r.r.Read(b[:1]) }

func TestMalformedPackets(t *testing.T) {
	limit := DefaultMaxPacket
	for what, make := range map[string]func(p [][]byte) []byte{
		"DATA-LENGTH twice": func(p [][]byte) []byte { return bytes.Join([][]byte{p[0], p[0], p[1], p[2]}, nil) },
		"DATA twice":        func(p [][]byte) []byte { return bytes.Join([][]byte{p[0], p[1], p[1], p[2]}, nil) },
		"sum twice":         func(p [][]byte) []byte { return bytes.Join([][]byte{p[2], p[2], p[1], p[0]}, nil) },
		"DATA-LENGTH too large": func(p [][]byte) []byte {
			return risp.AppendUint(nil, cmdDataLength, uint64(limit+1))
		},
		"DATA too large":  func(p [][]byte) []byte { return risp.AppendStringHeader(nil, cmdData, limit+tagLen+1) },
		"DATA of 4 GiB":   func(p [][]byte) []byte { return []byte{0xa0, 0x01, 0xff, 0xff, 0xff, 0xff} },
		"DATA too short":  func(p [][]byte) []byte { return risp.AppendStringHeader(nil, cmdData, tagLen-1) },
		"too short a sum": func(p [][]byte) []byte { return risp.AppendStringHeader(nil, cmdVerificationSHA256, 47) },
		"too long an END": func(p [][]byte) []byte { return risp.AppendStringHeader(nil, cmdEnd, 17) },
		"65 NOPs inside":  func(p [][]byte) []byte { return append(p[0], bytes.Repeat([]byte{0x70, 0}, 65)...) },
		"a later suite's": func(p [][]byte) []byte { return risp.AppendStringHeader(nil, cmdSealed, 16) },
		"a length that is not DATA's": func(p [][]byte) []byte {
			return bytes.Join([][]byte{risp.AppendUint(nil, cmdDataLength, 3), p[1], p[2]}, nil)
		},
	} {
		from, to := connect(t, setup().clients["x25519/certificate"], setup().server)
		p := from.out.half.suite.seal(from.out.half, nil, []byte("data"))
		// No more than the faulty bytes arrive, and none is waited for.
		to.in.r = io.MultiReader(bytes.NewReader(make(parts(p))), neverReader{t})
		if got, err := io.ReadAll(to); len(got) > 0 || !errors.Is(err, ErrProtocol) && !errors.Is(err, ErrAuthentication) {
			t.Errorf("%s: %q, %v", what, got, err)
		}
	}
}

// A peer that has the keys and lies about length or sum is not believed.
func TestLies(t *testing.T) {
	seal := func(h *halfConn, length int, plaintext, sum []byte) []byte {
		b := risp.AppendUint(nil, cmdDataLength, uint64(length))
		b = risp.AppendStringHeader(b, cmdData, len(plaintext)+tagLen)
		b = h.keys[dataUse].aead.Seal(b, h.packetNonce(), plaintext, h.additionalData(b))
		header := risp.AppendStringHeader(nil, cmdVerificationSHA256, len(sum)+tagLen)
		return append(b, h.keys[verifyUse].aead.Seal(header, h.packetNonce(), sum, h.additionalData(header))...)
	}
	right := sha256.Sum256([]byte("data"))
	for what, lie := range map[string]func(h *halfConn) []byte{
		"the truth":       func(h *halfConn) []byte { return seal(h, 4, []byte("data"), right[:]) },
		"a longer length": func(h *halfConn) []byte { return seal(h, 5, []byte("data"), right[:]) },
		"a shorter one":   func(h *halfConn) []byte { return seal(h, 3, []byte("data"), right[:]) },
		"another sum":     func(h *halfConn) []byte { return seal(h, 4, []byte("data"), make([]byte, 32)) },
	} {
		from, to := connect(t, setup().clients["x25519/certificate"], setup().server)
		got, err := readFed(to, lie(from.out.half))
		if what == "the truth" {
			if string(got) != "data" || err != io.ErrUnexpectedEOF {
				t.Errorf("%s: %q, %v", what, got, err)
			}
		} else if len(got) > 0 || !errors.Is(err, ErrAuthentication) {
			t.Errorf("%s: %q, %v", what, got, err)
		}
	}
}

// Before a peer is trusted, memory grows with what it has sent, not with what
// it announces.
func TestMemoryGrowsWithArrivals(t *testing.T) {
	for _, trusted := range []bool{false, true} {
		in := input{r: bytes.NewReader(make([]byte, 3000)), trusted: trusted}
		if err := in.fill(10 << 20); err != io.EOF {
			t.Fatal(err)
		}
		if len(in.buffered()) != 3000 || (len(in.buf) > 8192) != trusted {
			t.Errorf("trusted %v: %d bytes in a buffer of %d", trusted, len(in.buffered()), len(in.buf))
		}
	}
}

type neverReader struct{ t *testing.T }

func (r neverReader) Read([]byte) (int, error) {
	r.t.Error("it waits for more")
	return 0, io.EOF
}

// A stream whose transport ends without an END is cut, whatever came before.
func TestTruncation(t *testing.T) {
	eachDirection(t, func(t *testing.T, newFrom, newTo func() *Conn) {
		from, to := newFrom(), newTo()
		if _, err := from.Write([]byte("half of it")); err != nil {
			t.Fatal(err)
		}
		from.conn.Close()
		got, err := io.ReadAll(to)
		if string(got) != "half of it" || err != io.ErrUnexpectedEOF {
			t.Errorf("%q, %v", got, err)
		}
		if _, err := to.Read(make([]byte, 1)); err != io.ErrUnexpectedEOF {
			t.Errorf("again: %v", err)
		}
	})
}

func TestHalfClose(t *testing.T) {
	eachDirection(t, func(t *testing.T, newFrom, newTo func() *Conn) {
		from, to := newFrom(), newTo()
		if err := from.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		if _, err := from.Write([]byte("more")); !errors.Is(err, ErrClosedWrite) {
			t.Errorf("write after CloseWrite: %v", err)
		}
		if got, err := io.ReadAll(to); len(got) > 0 || err != nil {
			t.Errorf("%q, %v", got, err)
		}
		// The other direction goes on.
		want := make([]byte, 200_000)
		rand.Read(want)
		go func() {
			to.Write(want)
			to.Close()
		}()
		if got, err := io.ReadAll(from); !bytes.Equal(got, want) || err != nil {
			t.Errorf("%d bytes, %v", len(got), err)
		}
	})
}

// The keys of a direction change every 2^14 packets, at both ends alike.
func TestRatchet(t *testing.T) {
	from, to := connect(t, setup().clients["x25519/certificate"], setup().server)
	out, in := from.out.half, to.in.half
	first := out.keys
	var buf []byte
	for n := out.seq; n < 2*ratchetPackets+2; n++ {
		buf = out.suite.seal(out, buf[:0], []byte("x"))
		if _, err := in.suite.open(in, buf, 1); err != nil {
			t.Fatalf("packet %d: %v", n, err)
		}
		want := expand(first[dataUse].key[:], labelRatchet)
		switch changed := out.keys[dataUse].key != first[dataUse].key; {
		case changed != (n >= ratchetPackets):
			t.Fatalf("packet %d: changed %v", n, changed)
		case n == ratchetPackets && !bytes.Equal(out.keys[dataUse].key[:], want):
			t.Fatal("not the key that SPEC.md says")
		}
	}
}

func TestNoAllocations(t *testing.T) {
	from, to := connect(t, setup().clients["x25519/certificate"], setup().server)
	plain := make([]byte, 4096)
	buf := make([]byte, 0, 8192)
	n := testing.AllocsPerRun(1000, func() {
		buf = from.out.half.suite.seal(from.out.half, buf[:0], plain)
		if _, err := to.in.half.suite.open(to.in.half, buf, 4096); err != nil {
			t.Fatal(err)
		}
	})
	if n > 0 {
		t.Errorf("%v allocations a packet", n)
	}
}
