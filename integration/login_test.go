package integration

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"hash"
	"io"
	mathrand "math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/flatauth/caddy-flatauth/internal/testnet"
	"github.com/flatauth/caddy-flatauth/protocol"
)

func identityConfig(t testing.TB, path string) *protocol.ClientConfig {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	key, rest := pem.Decode(data)
	cert, _ := pem.Decode(rest)
	config := new(protocol.ClientConfig)
	if config.PrivateKey, err = x509.ParsePKCS8PrivateKey(key.Bytes); err != nil {
		t.Fatal(err)
	}
	if config.Certificate, err = x509.ParseCertificate(cert.Bytes); err != nil {
		t.Fatal(err)
	}
	return config
}

func dial(t testing.TB, addr string, config *protocol.ClientConfig) *protocol.Conn {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	conn, err := protocol.Dial(ctx, "tcp", addr, config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// A person with a passphrase and a machine with a key file log in and talk to
// Redis, and the upstream sees the bytes that were sent, no others.
func TestPersonAndMachine(t *testing.T) {
	need(t, "redis-server")
	a := newAccounts(t)
	redis := testnet.FreeAddr()
	_, port, _ := net.SplitHostPort(redis)
	start(t, "redis-server", "--port", port, "--bind", "127.0.0.1", "--save", "", "--dir", t.TempDir())
	eventually(t, "redis", func() bool {
		conn, err := net.Dial("tcp", redis)
		if err == nil {
			conn.Close()
		}
		return err == nil
	})
	addr := testnet.FreeAddr()
	caddy := startCaddy(t, flatCaddyfile(addr, a.dir, redis, ""))

	for i, who := range [][]string{a.person("alice"), a.person("Alice"), a.machine()} {
		stdout, stderr, code := connect(t, strings.NewReader("PING\r\nINCR visits\r\nQUIT\r\n"), addr, who)
		if want := fmt.Sprintf("+PONG\r\n:%d\r\n+OK\r\n", i+1); stdout != want || code != 0 {
			t.Errorf("%q: exit code %d, %q\n%s", who, code, stdout, stderr)
		}
	}
	eventually(t, "the log", func() bool { return len(caddy.entries("session ended")) == 3 })
	for i, entry := range caddy.entries("session ended") {
		want := map[string]any{
			"account": "alice", "type": "interactive", "suite": "classic", "remote_ip": "127.0.0.1",
			"bytes_in": 25.0, "bytes_out": 16.0, "reason": "complete",
		}
		if i == 2 {
			want["account"], want["type"] = "sensor", "certificate"
		}
		for key, value := range want {
			if entry[key] != value {
				t.Errorf("%s is %v, not %v: %v", key, entry[key], value, entry)
			}
		}
	}
	if n := len(caddy.entries("login")); n != 3 {
		t.Errorf("%d logins in the log", n)
	}
}

// Exit codes and messages of connect, and what the log says of each failure.
func TestFailures(t *testing.T) {
	a := newAccounts(t)
	up := newUpstream(t, echo)
	addr, dead := testnet.FreeAddr(), testnet.FreeAddr()
	caddy := startCaddy(t, fmt.Sprintf(`{
	layer4 {
		%s {
			route {
				flatauth {
					store directory %s
					deny mallory
				}
				proxy %s
			}
		}
		%s {
			route {
				flatauth {
					store directory %[2]s
				}
				proxy %[5]s
			}
		}
	}
}
`, addr, a.dir, up.addr(), dead, testnet.FreeAddr()))
	a.addPerson(t, "disabled")
	flatauth(t, "account", "disable", "disabled", "--store", a.dir)
	a.addPerson(t, "mallory")
	wrong := filepath.Join(t.TempDir(), "wrong")
	if err := os.WriteFile(wrong, []byte("incorrect horse\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	removed := filepath.Join(t.TempDir(), "removed.pem")
	flatauth(t, "account", "add", "removed", "--store", a.dir, "--type", "certificate", "--out", removed)
	flatauth(t, "account", "remove", "removed", "--store", a.dir)

	closing := newUpstream(t, func(net.Conn) {})
	for _, test := range []struct {
		what   string
		addr   string
		who    []string
		code   int
		stderr string
		reason string
	}{
		{"wrong passphrase", addr, []string{"--user", "alice", "--passphrase-file", wrong}, 2, "login failed", "closed by the client"},
		{"no such name", addr, a.person("nobody"), 2, "login failed", "no such account"},
		{"disabled", addr, a.person("disabled"), 2, "login failed", "disabled"},
		{"denied", addr, a.person("mallory"), 2, "login failed", "denied"},
		{"a machine's name", addr, a.person("sensor"), 2, "login failed", "it is of type certificate"},
		{"no such certificate", addr, []string{"--identity", removed}, 2, "login failed", "no such account"},
		{"nobody listens", testnet.FreeAddr(), a.machine(), 4, "refused", ""},
		{"closed at once", closing.addr(), a.machine(), 4, "before it answered", ""},
		{"the upstream is dead", dead, a.machine(), 4, "before it said anything", ""},
		{"no such file", addr, []string{"--identity", "/nonexistent"}, 1, "nonexistent", ""},
		{"both", addr, append(a.machine(), a.person("alice")...), 1, "", ""},
		{"neither", addr, nil, 1, "", ""},
		{"sealed", addr, append(a.machine(), "--suite", "sealed"), 1, "classic", ""},
	} {
		before := len(caddy.entries("login failed"))
		stdout, stderr, code := connect(t, strings.NewReader(""), test.addr, test.who)
		if code != test.code || stdout != "" || !strings.Contains(stderr, test.stderr) {
			t.Errorf("%s: exit code %d, not %d: %q, %q", test.what, code, test.code, stdout, stderr)
		}
		if strings.Contains(stderr, passphrase) || strings.Contains(stderr, "incorrect horse") {
			t.Errorf("%s: the passphrase is in the message: %s", test.what, stderr)
		}
		if test.reason == "" {
			continue
		}
		eventually(t, "the log of: "+test.what, func() bool { return len(caddy.entries("login failed")) > before })
		entry := caddy.entries("login failed")[before]
		if reason, _ := entry["reason"].(string); !strings.Contains(reason, test.reason) || entry["remote_ip"] != "127.0.0.1" {
			t.Errorf("%s: %v", test.what, entry)
		}
	}
	if n := up.count(); n != 0 {
		t.Errorf("the upstream was dialled %d times", n)
	}
	for _, secret := range []string{passphrase, "incorrect horse", "PRIVATE"} {
		if strings.Contains(caddy.logged(), secret) {
			t.Errorf("%q is in the log", secret)
		}
	}
}

// A session that is cut is told from one that has ended.
func TestCut(t *testing.T) {
	a := newAccounts(t)
	up := newUpstream(t, func(conn net.Conn) {
		conn.Write([]byte("some of it"))
		io.Copy(io.Discard, conn)
	})
	addr := testnet.FreeAddr()
	caddy := startCaddy(t, flatCaddyfile(addr, a.dir, up.addr(), "idle_timeout 2s"))
	r, w, err := os.Pipe() // an input that does not end
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	stdout, stderr, code := connect(t, r, addr, a.machine())
	if code != 5 || stdout != "some of it" || !strings.Contains(stderr, "cut after 10 bytes") {
		t.Errorf("exit code %d, %q, %q", code, stdout, stderr)
	}
	eventually(t, "the log", func() bool { return len(caddy.entries("session ended")) == 1 })
	if entry := caddy.entries("session ended")[0]; entry["reason"] != "idle for too long" {
		t.Errorf("%v", entry)
	}

	// An input that cannot be read is not one that has ended.
	folder, err := os.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer folder.Close()
	if _, stderr, code := connect(t, folder, addr, a.machine()); code != 1 || !strings.Contains(stderr, "directory") {
		t.Errorf("exit code %d, %q", code, stderr)
	}
	eventually(t, "the log", func() bool { return len(caddy.entries("session ended")) == 2 })

	// The other way: the client goes without its END.
	conn := dial(t, addr, a.machineConfig(t))
	conn.NetConn().Close()
	eventually(t, "the log", func() bool { return len(caddy.entries("session ended")) == 3 })
	if entry := caddy.entries("session ended")[2]; !strings.HasPrefix(entry["reason"].(string), "cut: ") {
		t.Errorf("%v", entry)
	}
}

// A stream is pseudo-random bytes that cost little.
type stream struct {
	block []byte
	at    int64
}

func newStream() *stream {
	s := &stream{block: make([]byte, 1<<20+7)}
	rand.Read(s.block)
	return s
}

// newStreamOf is the same stream each time for the same seed.
func newStreamOf(seed byte) *stream {
	s := &stream{block: make([]byte, 1<<16+7)}
	mathrand.NewChaCha8([32]byte{seed}).Read(s.block)
	return s
}

func (s *stream) readFull(b []byte) {
	for len(b) > 0 {
		n, _ := s.Read(b)
		b = b[n:]
	}
}

func (s *stream) Read(b []byte) (int, error) {
	n := copy(b, s.block[s.at%int64(len(s.block)):])
	s.at += int64(n)
	return n, nil
}

// A gigabyte each way at once through connect arrives as it was sent, and the
// server's memory does not grow with it.
func TestGigabyte(t *testing.T) {
	const size = 1 << 30
	a := newAccounts(t)
	type result struct {
		sum string
		err error
	}
	received, sent := make(chan result, 1), make(chan string, 1)
	addr := testnet.FreeAddr()
	var caddy *server
	sums := func(from io.Reader, to io.Writer, n int64) result {
		h := sha256.New()
		got, err := io.Copy(io.MultiWriter(h, to), io.LimitReader(from, n))
		if err == nil && got != n {
			err = io.ErrUnexpectedEOF
		}
		return result{fmt.Sprintf("%x", h.Sum(nil)), err}
	}
	rss := make(chan int, 2)
	up := newUpstream(t, func(conn net.Conn) {
		var wg sync.WaitGroup
		wg.Go(func() {
			first := sums(conn, io.Discard, size/8)
			rss <- caddy.status("VmRSS")
			if first.err != nil {
				received <- first
				return
			}
			h := sha256.New()
			_, err := io.Copy(h, conn)
			received <- result{first.sum + fmt.Sprintf("%x", h.Sum(nil)), err}
			rss <- caddy.status("VmRSS")
		})
		wg.Go(func() {
			h := sha256.New()
			io.Copy(io.MultiWriter(conn, h), io.LimitReader(newStream(), size))
			conn.(*net.TCPConn).CloseWrite()
			sent <- fmt.Sprintf("%x", h.Sum(nil))
		})
		wg.Wait()
	})
	caddy = startCaddy(t, flatCaddyfile(addr, a.dir, up.addr(), ""))

	cmd := exec.Command(caddyPath, append([]string{"flatauth", "connect", addr}, a.machine()...)...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	up1, up2 := sha256.New(), sha256.New()
	go func() {
		s := newStream()
		for _, part := range []struct {
			h hash.Hash
			n int64
		}{{up1, size / 8}, {up2, size - size/8}} {
			io.Copy(io.MultiWriter(stdin, part.h), io.LimitReader(s, part.n))
		}
		stdin.Close()
	}()
	down := sha256.New()
	n, err := io.Copy(down, stdout)
	if err := errors.Join(err, cmd.Wait()); err != nil || n != size {
		t.Fatalf("%d bytes, %v\n%s", n, err, stderr.String())
	}
	if got, want := fmt.Sprintf("%x", down.Sum(nil)), <-sent; got != want {
		t.Errorf("down: the sum is %s, not %s", got, want)
	}
	got := <-received
	if want := fmt.Sprintf("%x%x", up1.Sum(nil), up2.Sum(nil)); got.sum != want || got.err != nil {
		t.Errorf("up: the sum is %s, not %s, %v", got.sum, want, got.err)
	}
	before, after := <-rss, <-rss
	t.Logf("resident memory of the server: %d KiB after an eighth, %d KiB at the end, %d KiB at most", before, after, caddy.status("VmHWM"))
	if after > before+32<<10 {
		t.Errorf("the server's memory grew from %d to %d KiB", before, after)
	}
}

// Every length from 0 to 4096, and around each multiple of MAX-PACKET.
func TestEveryLength(t *testing.T) {
	a := newAccounts(t)
	up := newUpstream(t, echo)
	addr := testnet.FreeAddr()
	startCaddy(t, flatCaddyfile(addr, a.dir, up.addr(), "max_packet 64KiB"))
	for _, maxPacket := range []int{0, 64, 1000, 65536} {
		config := a.machineConfig(t)
		config.MaxPacket = maxPacket
		conn := dial(t, addr, config)
		var lengths []int
		for n := range 4097 {
			lengths = append(lengths, n)
		}
		for k := 1; k <= 4; k++ {
			for d := -2; d <= 2; d++ {
				lengths = append(lengths, k*conn.ConnectionState().MaxPacket+d)
			}
		}
		data := make([]byte, 5*65536)
		rand.Read(data)
		got := make([]byte, len(data))
		for _, n := range lengths {
			if _, err := conn.Write(data[:n]); err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadFull(conn, got[:n]); err != nil || !bytes.Equal(got[:n], data[:n]) {
				t.Fatalf("MAX-PACKET %d, %d bytes: %v", maxPacket, n, err)
			}
		}
		if err := conn.CloseWrite(); err != nil {
			t.Error(err)
		}
		if n, err := conn.Read(got); n != 0 || err != io.EOF {
			t.Errorf("at the end: %d bytes, %v", n, err)
		}
	}
}

// The bytes of a login, each way, for each kind of account and key.
func TestBytesOfALogin(t *testing.T) {
	a := newAccounts(t)
	up := newUpstream(t, echo)
	addr := testnet.FreeAddr()
	startCaddy(t, flatCaddyfile(addr, a.dir, up.addr(), ""))
	// A proxy that counts.
	counts := make(chan [2]int64, 1)
	counter := newUpstream(t, func(client net.Conn) {
		server, err := net.Dial("tcp", addr)
		if err != nil {
			return
		}
		var n [2]int64
		var wg sync.WaitGroup
		wg.Go(func() { n[0], _ = io.Copy(server, client); server.(*net.TCPConn).CloseWrite() })
		wg.Go(func() { n[1], _ = io.Copy(client, server); client.(*net.TCPConn).CloseWrite() })
		wg.Wait()
		counts <- n
	})
	for _, kind := range []string{"p256", "p384", "rsa3072"} {
		identity := filepath.Join(t.TempDir(), kind)
		flatauth(t, "account", "add", "m-"+kind, "--store", a.dir, "--type", "certificate", "--key", kind, "--out", identity)
		flatauth(t, "account", "add", "p-"+kind, "--store", a.dir, "--key", kind, "--passphrase-file", a.passphraseFile)
		for _, config := range []*protocol.ClientConfig{
			identityConfig(t, identity),
			{Username: "p-" + kind, Passphrase: passphrase},
		} {
			conn := dial(t, counter.addr(), config)
			conn.Write([]byte("x"))
			if _, err := io.ReadFull(conn, make([]byte, 1)); err != nil {
				t.Fatal(err)
			}
			if err := conn.CloseWrite(); err != nil {
				t.Fatal(err)
			}
			if n, err := conn.Read(make([]byte, 1)); n != 0 || err != io.EOF {
				t.Fatalf("%d bytes, %v", n, err)
			}
			conn.Close()
			n := <-counts
			const session = 80 + 19 // the byte, and END
			t.Logf("%s, interactive %v: login %d bytes up, %d down", kind, config.Username != "", n[0]-session, n[1]-session)
			if kind == "p256" && config.Username == "" && (n[0] != 54+79+session || n[1] != 117+session) {
				t.Errorf("%d bytes up, %d down", n[0], n[1])
			}
		}
	}
}
