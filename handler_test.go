package flatauth

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	_ "github.com/caddyserver/caddy/v2/modules/standard"
	_ "github.com/mholt/caddy-l4"

	"github.com/flatauth/caddy-flatauth/internal/testnet"
	"github.com/flatauth/caddy-flatauth/protocol"
	"github.com/flatauth/caddy-flatauth/protocol/bundle"
	"github.com/flatauth/caddy-flatauth/protocol/risp"
	"github.com/flatauth/caddy-flatauth/store"
	"github.com/flatauth/caddy-flatauth/store/directory"
)

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "flatauth-")
	if err != nil {
		panic(err)
	}
	os.Setenv("XDG_DATA_HOME", dir)
	os.Setenv("XDG_CONFIG_HOME", dir)
	code := m.Run()
	os.RemoveAll(dir)
	os.Exit(code)
}

const patience = 30 * time.Second

// a machine is a certificate account and how it logs in.
type machine struct {
	accounts string // the folder of the store
	config   *protocol.ClientConfig
}

func newMachine(t testing.TB, name string) machine {
	t.Helper()
	key, cert, err := bundle.NewKey(bundle.P256, name)
	if err != nil {
		t.Fatal(err)
	}
	m := machine{t.TempDir(), &protocol.ClientConfig{Certificate: cert, PrivateKey: key}}
	account := &store.Account{Name: name, Type: store.Certificate, Certificate: cert}
	if err := directory.Open(m.accounts).Create(t.Context(), account); err != nil {
		t.Fatal(err)
	}
	return m
}

// flight is a client's flight without a nonce.
func (m machine) flight() []byte {
	sum := sha256.Sum256(m.config.Certificate.Raw)
	return risp.AppendString(nil, 0x8002, sum[:])
}

func (m machine) dial(t testing.TB, addr string) *protocol.Conn {
	t.Helper()
	conn, err := protocol.Dial(t.Context(), "tcp", addr, m.config)
	if err != nil {
		t.Fatal(err)
	}
	conn.SetDeadline(time.Now().Add(patience))
	t.Cleanup(func() { conn.Close() })
	return conn
}

// handler is the JSON of a flatauth handler with the machine's store.
func (m machine) handler(options string) string {
	return fmt.Sprintf(`{"handler": "flatauth", "store": {"source": "directory", "path": %q}%s}`, m.accounts, options)
}

func proxy(addr string) string {
	return fmt.Sprintf(`{"handler": "proxy", "upstreams": [{"dial": [%q]}]}`, addr)
}

const echoHandler = `{"handler": "echo"}`

// A running Caddy logs to a file.
type running struct{ log string }

// entries are the log's entries with the message.
func (r running) entries(t testing.TB, msg string) (found []map[string]any) {
	t.Helper()
	data, err := os.ReadFile(r.log)
	if err != nil {
		t.Fatal(err)
	}
	for line := range bytes.Lines(data) {
		var entry map[string]any
		if json.Unmarshal(line, &entry) == nil && entry["msg"] == msg {
			found = append(found, entry)
		}
	}
	return found
}

func (r running) wait(t testing.TB, msg string, n int) []map[string]any {
	t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		if entries := r.entries(t, msg); len(entries) >= n {
			return entries
		}
		if time.Now().After(deadline) {
			t.Fatalf("in vain waited for %d times %q in the log", n, msg)
		}
	}
}

// load runs Caddy, in this process, with a layer4 server that has the given
// JSON routes.
func load(t testing.TB, listen, server string) running {
	t.Helper()
	return loadApps(t, fmt.Sprintf(`"layer4": {"servers": {"test": {"listen": [%q], %s}}}`, listen, server))
}

func loadApps(t testing.TB, apps string) running {
	t.Helper()
	log := filepath.Join(t.TempDir(), "log")
	config := fmt.Sprintf(`{
		"admin": {"disabled": true, "config": {"persist": false}},
		"logging": {"logs": {"default": {"level": "DEBUG", "encoder": {"format": "json"}, "writer": {"output": "file", "filename": %q}}}},
		"apps": {%s}}`, log, apps)
	if err := caddy.Load([]byte(config), true); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { caddy.Stop() })
	return running{log}
}

// An upstream counts who connects.
func upstream(t testing.TB, handle func(*net.TCPConn)) (addr string, dialled *atomic.Int64) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	dialled = new(atomic.Int64)
	go func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			dialled.Add(1)
			go func() {
				defer conn.Close()
				handle(conn.(*net.TCPConn))
			}()
		}
	}()
	return ln.Addr().String(), dialled
}

func expectEcho(t testing.TB, conn net.Conn, word string) {
	t.Helper()
	if _, err := io.WriteString(conn, word); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(word))
	if _, err := io.ReadFull(conn, got); err != nil || string(got) != word {
		t.Fatalf("%q, %v", got, err)
	}
}

// expectEnd checks that the stream comes to its authenticated end.
func expectEnd(t testing.TB, conn net.Conn, want string) {
	t.Helper()
	if got, err := io.ReadAll(conn); string(got) != want || err != nil {
		t.Errorf("%q, want %q, %v", got, want, err)
	}
}

// Bytes that the matchers have read reach the handshake, and nothing raw ever
// reaches the handlers after it: not what came in the flight's own segment,
// and not what came after.
func TestNothingRaw(t *testing.T) {
	m := newMachine(t, "sensor")
	up, dialled := upstream(t, func(conn *net.TCPConn) { io.Copy(conn, conn) })
	for _, match := range []string{
		"", `"match": [{"flatauth": {}}],`, `"match": [{"flatauth": {"type": "certificate"}}],`,
	} {
		addr := testnet.FreeAddr()
		log := load(t, addr, fmt.Sprintf(`"routes": [{%s "handle": [%s, %s]}]`, match, m.handler(""), proxy(up)))
		before := dialled.Load()
		for _, raw := range [][]byte{
			[]byte("GET / HTTP/1.1\r\n\r\n"),
			bytes.Repeat([]byte{0x70, 0x00}, 4000),             // more than the matchers read at once
			bytes.Repeat([]byte("cipherrecord"), 2000),         // more than they read at all
			append([]byte{0x20, 0x02, 0, 0, 0, 5}, "hello"...), // a packet, nearly
		} {
			conn, err := net.Dial("tcp", addr)
			if err != nil {
				t.Fatal(err)
			}
			conn.SetDeadline(time.Now().Add(patience))
			conn.Write(append(m.flight(), raw...))
			conn.(*net.TCPConn).CloseWrite()
			io.Copy(io.Discard, conn) // until the server closes
			conn.Close()
		}
		log.wait(t, "login failed", 4)
		if n := dialled.Load() - before; n != 0 {
			t.Errorf("match %q: the upstream was dialled %d times", match, n)
		}
		conn := m.dial(t, addr)
		expectEcho(t, conn, "clean")
		conn.Close()
	}
}

// slow writes a byte at a time.
type slow struct{ net.Conn }

func (s slow) Write(b []byte) (int, error) {
	for i := range b {
		if _, err := s.Conn.Write(b[i : i+1]); err != nil {
			return i, err
		}
	}
	return len(b), nil
}

func TestByteByByte(t *testing.T) {
	m := newMachine(t, "sensor@plant")
	addr := testnet.FreeAddr()
	sum := sha256.Sum256(m.config.Certificate.Raw)
	load(t, addr, fmt.Sprintf(`"routes": [
		{"match": [{"flatauth": {"username": ["*"]}}], "handle": [{"handler": "close"}]},
		{"match": [{"flatauth": {"certificate_id": ["%x"]}}], "handle": [%s, %s]}]`, sum, m.handler(""), echoHandler))
	raw, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	raw.(*net.TCPConn).SetNoDelay(true)
	conn := protocol.Client(slow{raw}, m.config)
	defer conn.Close()
	expectEcho(t, conn, "byte by byte")
}

// Whoever ends its direction first, the other side sees that end and goes on
// with its own, also with handlers between that know nothing of half-close.
func TestHalfClose(t *testing.T) {
	m := newMachine(t, "sensor")
	throttle := `{"handler": "throttle", "read_bytes_per_second": 100000000, "read_burst_size": 100000}`
	for _, handlers := range []string{m.handler(""), throttle + "," + m.handler(""), m.handler("") + "," + throttle} {
		// The upstream ends first.
		late := make(chan string, 1)
		up, _ := upstream(t, func(conn *net.TCPConn) {
			io.WriteString(conn, "goodbye")
			conn.CloseWrite()
			got, _ := io.ReadAll(conn)
			late <- string(got)
		})
		addr := testnet.FreeAddr()
		log := load(t, addr, fmt.Sprintf(`"routes": [{"handle": [%s, %s]}]`, handlers, proxy(up)))
		conn := m.dial(t, addr)
		if strings.HasSuffix(handlers, throttle) {
			// proxy cannot half-close what throttle has wrapped; END comes when
			// the client has ended too.
			conn.CloseWrite()
			expectEnd(t, conn, "goodbye")
			<-late
		} else {
			expectEnd(t, conn, "goodbye")
			if handlers == m.handler("") { // throttle cannot half-close
				if n, err := conn.NetConn().Read(make([]byte, 1)); n != 0 || err != io.EOF {
					t.Errorf("the transport is not half closed: %d, %v", n, err)
				}
			}
			io.WriteString(conn, "not yet")
			conn.CloseWrite()
			if got := <-late; got != "not yet" {
				t.Errorf("the upstream got %q", got)
			}
		}
		conn.Close()
		if entry := log.wait(t, "session ended", 1)[0]; entry["reason"] != "complete" && !strings.HasSuffix(handlers, throttle) {
			t.Errorf("%v", entry)
		}

		// The client ends first.
		up, _ = upstream(t, func(conn *net.TCPConn) {
			got, _ := io.ReadAll(conn)
			fmt.Fprintf(conn, "%d bytes", len(got))
		})
		addr = testnet.FreeAddr()
		load(t, addr, fmt.Sprintf(`"routes": [{"handle": [%s, %s]}]`, handlers, proxy(up)))
		conn = m.dial(t, addr)
		conn.Write(make([]byte, 100_000))
		conn.CloseWrite()
		expectEnd(t, conn, "100000 bytes")
	}
}

// Behind the PROXY protocol the log has the address of the client, and a
// half-close reaches the transport.
func TestBehindProxyProtocol(t *testing.T) {
	m := newMachine(t, "sensor")
	up, _ := upstream(t, func(conn *net.TCPConn) {
		io.WriteString(conn, "goodbye")
		conn.CloseWrite()
		io.Copy(io.Discard, conn)
	})
	addr := testnet.FreeAddr()
	log := load(t, addr, fmt.Sprintf(`"routes": [{"handle": [{"handler": "proxy_protocol"}, %s, %s]}]`, m.handler(""), proxy(up)))
	raw, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	io.WriteString(raw, "PROXY TCP4 192.0.2.7 192.0.2.8 1234 7000\r\n")
	conn := protocol.Client(raw, m.config)
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(patience))
	expectEnd(t, conn, "goodbye")
	if n, err := raw.Read(make([]byte, 1)); n != 0 || err != io.EOF {
		t.Errorf("the transport is not half closed: %d, %v", n, err)
	}
	conn.CloseWrite()
	if entry := log.wait(t, "session ended", 1)[0]; entry["remote_ip"] != "192.0.2.7" || entry["reason"] != "complete" {
		t.Errorf("%v", entry)
	}
}

// A login that takes longer than the matching timeout is none the worse for
// it, nor is anything after it: neither in the same route nor in a subroute.
func TestSlowLogin(t *testing.T) {
	m := newMachine(t, "sensor")
	subroute := fmt.Sprintf(`{"handler": "subroute", "routes": [{"match": [{"ssh": {}}], "handle": [%s]}]}`, echoHandler)
	for _, next := range []string{echoHandler, subroute} {
		addr := testnet.FreeAddr()
		load(t, addr, fmt.Sprintf(`"matching_timeout": 100000000, "routes": [{"match": [{"flatauth": {}}], "handle": [%s, %s]}]`, m.handler(""), next))
		raw, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		conn := protocol.Client(&delayed{Conn: raw, delay: 300 * time.Millisecond}, m.config)
		expectEcho(t, conn, "SSH-2.0-slow")
		conn.Close()
	}
}

// delayed waits before its second write: the first packet.
type delayed struct {
	net.Conn
	writes int
	delay  time.Duration
}

func (d *delayed) Write(b []byte) (int, error) {
	if d.writes++; d.writes == 2 {
		time.Sleep(d.delay) // this is what is tested, not a wait for anything
	}
	return d.Conn.Write(b)
}

// A matcher after the login reads under a deadline; a packet that arrives in
// two pieces, with the deadline's ticks between, is whole.
func TestMatcherAfterLogin(t *testing.T) {
	m := newMachine(t, "sensor")
	addr := testnet.FreeAddr()
	load(t, addr, fmt.Sprintf(`"routes": [{"handle": [%s, {"handler": "subroute", "routes": [
		{"match": [{"ssh": {}}], "handle": [%s]}]}]}]`, m.handler(""), echoHandler))
	raw, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	conn := protocol.Client(slow{raw}, m.config)
	defer conn.Close()
	for _, part := range []string{"S", "SH", "-2.0", "-pieces"} {
		if _, err := io.WriteString(conn, part); err != nil {
			t.Fatal(err)
		}
	}
	got := make([]byte, 14)
	if _, err := io.ReadFull(conn, got); err != nil || string(got) != "SSH-2.0-pieces" {
		t.Errorf("%q, %v", got, err)
	}
}

// A session ends with the route of its login: a later route does not get the
// stream. The operator is told what to do, and the client does not take it for
// a service that had nothing to say.
func TestLaterRoute(t *testing.T) {
	m := newMachine(t, "sensor")
	addr := testnet.FreeAddr()
	log := load(t, addr, fmt.Sprintf(`"routes": [{"handle": [%s]}, {"handle": [%s]}]`, m.handler(""), echoHandler))
	if got, err := io.ReadAll(m.dial(t, addr)); len(got) > 0 || err == nil {
		t.Errorf("%q, %v", got, err)
	}
	if entry := log.wait(t, "session ended", 1)[0]; !strings.Contains(entry["reason"].(string), "behind flatauth") {
		t.Errorf("%v", entry)
	}
}

// altering flips a bit of every write after the first n.
type altering struct {
	net.Conn
	n int
}

func (a *altering) Write(b []byte) (int, error) {
	if a.n--; a.n < 0 {
		b = bytes.Clone(b)
		b[len(b)-1] ^= 1
	}
	return a.Conn.Write(b)
}

// A stream that was altered after the login ends the connection in both
// directions at once: the client does not see the other one come to a good end.
func TestAlteredAfterLogin(t *testing.T) {
	m := newMachine(t, "sensor")
	got := make(chan string, 1)
	up, _ := upstream(t, func(conn *net.TCPConn) {
		b, _ := io.ReadAll(conn)
		io.WriteString(conn, "an answer to what was cut")
		got <- string(b)
	})
	addr := testnet.FreeAddr()
	log := load(t, addr, fmt.Sprintf(`"routes": [{"handle": [%s, %s]}]`, m.handler(""), proxy(up)))
	raw, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	conn := protocol.Client(&altering{raw, 3}, m.config) // flight, empty packet, and one more
	conn.SetDeadline(time.Now().Add(patience))
	defer conn.Close()
	io.WriteString(conn, "good")
	io.WriteString(conn, "altered")
	if b, err := io.ReadAll(conn); err == nil || len(b) > 0 {
		t.Errorf("%q, %v", b, err)
	}
	if s := <-got; s != "good" {
		t.Errorf("the upstream got %q", s)
	}
	if entry := log.wait(t, "session ended", 1)[0]; !strings.HasPrefix(entry["reason"].(string), "altered on the way") {
		t.Errorf("%v", entry)
	}
}

// Of logins inside each other, the inner one is who it is.
func TestNested(t *testing.T) {
	outer, inner := newMachine(t, "outer"), newMachine(t, "inner")
	dir, err := os.MkdirTemp("", "s")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	ln, err := net.Listen("unix", filepath.Join(dir, "inner"))
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	go func() {
		if conn, err := ln.Accept(); err == nil {
			io.WriteString(conn, "hello, inner")
			conn.Close()
		}
	}()
	addr := testnet.FreeAddr()
	load(t, addr, fmt.Sprintf(`"routes": [{"handle": [%s, %s, %s]}]`, outer.handler(""), inner.handler(""), proxy("unix/"+dir+"/{l4.flatauth.account}")))
	conn := protocol.Client(outer.dial(t, addr), inner.config)
	defer conn.Close()
	expectEnd(t, conn, "hello, inner")
}

// UDP, and the listener wrapper, are refused in words that say what to do.
func TestMisplaced(t *testing.T) {
	m := newMachine(t, "sensor")
	up, dialled := upstream(t, func(*net.TCPConn) {})
	addr := testnet.FreeAddr()
	routes := fmt.Sprintf(`"routes": [{"handle": [%s, %s]}]`, m.handler(""), proxy(up))
	log := load(t, "udp/"+addr, routes)
	conn, err := net.Dial("udp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.Write(m.flight())
	if entry := log.wait(t, "flatauth cannot work here", 1)[0]; !strings.Contains(entry["error"].(string), "needs a stream") {
		t.Errorf("%v", entry)
	}

	addr = testnet.FreeAddr()
	log = loadApps(t, fmt.Sprintf(`"http": {"servers": {"web": {"listen": [%q], "listener_wrappers": [{"wrapper": "layer4", %s}]}}}`, addr, routes))
	for range 3 {
		tcp, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		tcp.SetDeadline(time.Now().Add(patience))
		tcp.Write(m.flight())
		if got, _ := io.ReadAll(tcp); len(got) > 0 {
			t.Errorf("an answer of %d bytes", len(got))
		}
		tcp.Close()
	}
	entries := log.wait(t, "flatauth cannot work here", 1)
	if !strings.Contains(entries[0]["error"].(string), "listener wrapper") {
		t.Errorf("%v", entries[0])
	}
	if len(entries) != 1 {
		t.Errorf("said %d times", len(entries)) // whoever connects could fill the log
	}
	if dialled.Load() != 0 {
		t.Error("the upstream was dialled")
	}
}

// Placeholders say who has logged in: here, each account has a socket.
func TestPlaceholders(t *testing.T) {
	m := newMachine(t, "sensor@plant")
	dir, err := os.MkdirTemp("", "s") // a socket's path is short
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	thumbprint := sha256.Sum256(m.config.Certificate.Raw)
	name := "sensor@plant,plant,certificate,classic,CN=sensor@plant"
	ln, err := net.Listen("unix", filepath.Join(dir, name))
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	go func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			io.WriteString(conn, "welcome")
			conn.Close()
		}
	}()
	addr := testnet.FreeAddr()
	log := load(t, addr, fmt.Sprintf(`"routes": [{"handle": [%s, %s]}]`, m.handler(""), proxy("unix/"+dir+
		"/{l4.flatauth.account},{l4.flatauth.zone},{l4.flatauth.type},{l4.flatauth.suite},{l4.flatauth.certificate.subject}")))
	expectEnd(t, m.dial(t, addr), "welcome")
	if entry := log.wait(t, "login", 1)[0]; entry["thumbprint"] != fmt.Sprintf("%x", thumbprint) || entry["zone"] != "plant" {
		t.Errorf("%v", entry)
	}
	for field, want := range map[string]string{
		"thumbprint": fmt.Sprintf("%x", thumbprint), "serial": m.config.Certificate.SerialNumber.String(), "issuer": "CN=sensor@plant",
	} {
		if got, ok := certificateField(m.config.Certificate, field); !ok || got != want {
			t.Errorf("%s: %v", field, got)
		}
	}
}

// A store that fails is an error in the log, and nobody is let in.
func TestStoreFails(t *testing.T) {
	m := newMachine(t, "sensor")
	up, dialled := upstream(t, func(*net.TCPConn) {})
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	m.accounts = filepath.Join(file, "accounts") // cannot be
	addr := testnet.FreeAddr()
	log := load(t, addr, fmt.Sprintf(`"routes": [{"handle": [%s, %s]}]`, m.handler(""), proxy(up)))
	if _, err := protocol.Dial(t.Context(), "tcp", addr, m.config); err == nil {
		t.Error("let in")
	}
	entry := log.wait(t, "login failed", 1)[0]
	if entry["level"] != "error" || !strings.Contains(fmt.Sprint(entry["error"]), file) {
		t.Errorf("%v", entry)
	}
	if dialled.Load() != 0 {
		t.Error("the upstream was dialled")
	}
}

func TestMaxHandshakes(t *testing.T) {
	m := newMachine(t, "sensor")
	addr := testnet.FreeAddr()
	log := load(t, addr, fmt.Sprintf(`"routes": [{"handle": [%s, %s]}]`, m.handler(`, "max_handshakes": 1`), echoHandler))
	idle, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	// Once it is answered, it is in the middle of its login.
	idle.Write(m.flight())
	bufio.NewReader(idle).ReadByte()
	if conn, err := protocol.Dial(t.Context(), "tcp", addr, m.config); err == nil {
		conn.Close()
		t.Error("let in")
	}
	log.wait(t, "too many logins at once; connection closed", 1)
	idle.Close()
	log.wait(t, "login failed", 1)
	expectEcho(t, m.dial(t, addr), "room again")
}

// Health checks and scanners do not fill the log.
func TestQuiet(t *testing.T) {
	m := newMachine(t, "sensor")
	addr := testnet.FreeAddr()
	log := load(t, addr, fmt.Sprintf(`"routes": [{"handle": [%s, %s]}]`, m.handler(""), echoHandler))
	for _, say := range []string{"", "GET / HTTP/1.0\r\n\r\n", "\x16\x03\x01"} {
		conn, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		io.WriteString(conn, say)
		conn.Close()
	}
	for _, entry := range log.wait(t, "not a login", 3) {
		if entry["level"] != "debug" {
			t.Errorf("%v", entry)
		}
	}
	if n := len(log.entries(t, "login failed")); n > 0 {
		t.Errorf("%d failures in the log", n)
	}
}

// Every instance on one storage has the same decoys, also after a restart.
func TestDecoysAreShared(t *testing.T) {
	m := newMachine(t, "sensor")
	ask := func() []byte {
		addr := testnet.FreeAddr()
		load(t, addr, fmt.Sprintf(`"routes": [{"handle": [%s, %s]}]`, m.handler(""), echoHandler))
		conn, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		conn.Write(risp.AppendString(nil, 0x8001, "nobody"))
		d := risp.NewDecoder(conn, 1<<20)
		h, err := d.Next()
		if err != nil || h.ID != 0x9001 {
			t.Fatalf("%v, %v", h, err)
		}
		certificate, err := d.AppendParameter(nil)
		if err != nil {
			t.Fatal(err)
		}
		caddy.Stop()
		return certificate
	}
	if one, two := ask(), ask(); !bytes.Equal(one, two) {
		t.Error("two decoys for one name")
	}
}

func TestAdmit(t *testing.T) {
	sel := func(accounts, zones []string) selector {
		s, err := newSelector(Selection{accounts, zones})
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	none := sel(nil, nil)
	for _, test := range []struct {
		name        string
		allow, deny selector
		want        bool
	}{
		{"alice", none, none, true},
		{"alice", sel([]string{"Alice"}, nil), none, true},
		{"bob", sel([]string{"alice"}, nil), none, false},
		{"alice@ops", sel([]string{"*@ops"}, nil), none, true},
		{"alice@ops", sel(nil, []string{"ops"}), none, true},
		{"alice@dev", sel(nil, []string{"ops"}), none, false},
		{"alice", sel(nil, []string{"*"}), none, false}, // no zone
		{"alice", sel([]string{"bob"}, []string{"ops"}), none, false},
		{"alice@ops", sel(nil, []string{"ops"}), sel([]string{"alice@ops"}, nil), false},
		{"alice", none, sel([]string{"a*"}, nil), false},
		{"alice.example@ops", sel([]string{"a?ice.example@ops"}, nil), none, false},
		{"admin", none, sel([]string{"ＡＤＭ*"}, nil), false},
		{"é.b", none, sel([]string{"e\u0301*"}, nil), false},
		{"alicexexample@ops", sel([]string{"alice.example@ops"}, nil), none, false},
	} {
		a := &accounts{allow: test.allow, deny: test.deny}
		account := &store.Account{Name: test.name, Type: store.Interactive}
		if _, err := a.admit(account, nil, store.Interactive); (err == nil) != test.want {
			t.Errorf("%+v: %v", test, err)
		}
		if _, err := a.admit(account, nil, store.Certificate); !errors.Is(err, protocol.ErrUnknownAccount) {
			t.Errorf("%+v, of the other type: %v", test, err)
		}
		account.Disabled = true
		if _, err := a.admit(account, nil, store.Interactive); !errors.Is(err, protocol.ErrUnknownAccount) {
			t.Errorf("%+v, disabled: %v", test, err)
		}
	}
}

// The library and the contract of a store know nothing of Caddy.
func TestNoCaddyInside(t *testing.T) {
	out, err := exec.Command("go", "list", "-deps", "./protocol/...", "./store", "./store/storetest").Output()
	if err != nil {
		t.Fatal(err)
	}
	for dep := range strings.Lines(string(out)) {
		if strings.Contains(dep, "caddyserver") || strings.Contains(dep, "mholt") {
			t.Errorf("depends on %s", dep)
		}
	}
}

// Streams in both directions at once, through a session with an idle timeout,
// while others come and go: for the race detector.
func TestConcurrentSessions(t *testing.T) {
	m := newMachine(t, "sensor")
	addr := testnet.FreeAddr()
	log := load(t, addr, fmt.Sprintf(`"routes": [{"handle": [%s, %s]}]`, m.handler(`, "idle_timeout": 60000000000`), echoHandler))
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			for range 5 {
				conn, err := protocol.Dial(t.Context(), "tcp", addr, m.config)
				if err != nil {
					t.Error(err)
					return
				}
				go func() {
					conn.Write(make([]byte, 200_000))
					conn.CloseWrite()
				}()
				if n, err := io.Copy(io.Discard, conn); n != 200_000 || err != nil {
					t.Errorf("%d bytes, %v", n, err)
				}
				conn.Close()
			}
		})
	}
	wg.Wait()
	log.wait(t, "session ended", 100)
}
