package protocol

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"io"
	"math/big"
	"net"
	"os"
	"sync"
	"syscall"
	"testing"
	"testing/iotest"
	"time"

	"golang.org/x/net/nettest"
	"software.sslmate.com/src/go-pkcs12"
)

// testAccounts are accounts in memory.
type testAccounts struct {
	mu           sync.Mutex
	byName       map[string]*Account
	byThumbprint map[Thumbprint]*Account
}

func (a *testAccounts) InteractiveAccount(_ context.Context, name string) (*Account, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if normal, err := NormalizeName(name); err != nil || normal != name {
		panic("asked for a name that is not normalised: " + name)
	}
	if account, ok := a.byName[name]; ok {
		return account, nil
	}
	return nil, ErrUnknownAccount
}

func (a *testAccounts) CertificateAccount(_ context.Context, t Thumbprint) (*Account, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if account, ok := a.byThumbprint[t]; ok {
		return account, nil
	}
	return nil, ErrUnknownAccount
}

const testPassphrase = "correct horse battery staple"

// keyKinds are the kinds of key that accounts can have.
var keyKinds = []string{"p256", "p384", "x25519", "rsa2048", "rsa3072"}

var testKeys = sync.OnceValue(func() map[string]any {
	return map[string]any{
		"p256":    must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader)),
		"p384":    must(ecdsa.GenerateKey(elliptic.P384(), rand.Reader)),
		"x25519":  must(ecdh.X25519().GenerateKey(rand.Reader)),
		"rsa2048": must(rsa.GenerateKey(rand.Reader, 2048)),
		"rsa3072": must(rsa.GenerateKey(rand.Reader, 3072)),
	}
})

// testCertificate makes a certificate for a key. One for an X25519 key, which
// crypto/x509 cannot make, gets that key in the place of another.
func testCertificate(key any, name string) *x509.Certificate {
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1),
		Subject:      pkix.Name{CommonName: name},
		NotBefore:    time.Unix(0, 0), NotAfter: time.Unix(1<<33, 0),
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		signer = testKeys()["p256"].(crypto.Signer)
	}
	der := must(x509.CreateCertificate(rand.Reader, template, template, signer.Public(), signer))
	cert := must(x509.ParseCertificate(der))
	if x, ok := key.(*ecdh.PrivateKey); ok {
		var outer struct{ TBS, Algorithm, Signature asn1.RawValue }
		must(asn1.Unmarshal(der, &outer))
		var fields []asn1.RawValue
		must(asn1.Unmarshal(outer.TBS.FullBytes, &fields))
		for i := range fields {
			if bytes.Equal(fields[i].FullBytes, cert.RawSubjectPublicKeyInfo) {
				fields[i].FullBytes = must(x509.MarshalPKIXPublicKey(x.PublicKey()))
			}
		}
		outer.TBS.FullBytes = must(asn1.Marshal(fields))
		cert = must(x509.ParseCertificate(must(asn1.Marshal(outer))))
	}
	return cert
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// testSetup has an interactive and a certificate account for each kind of key.
type testSetup struct {
	accounts *testAccounts
	server   *ServerConfig
	clients  map[string]*ClientConfig // "p256/interactive", "p256/certificate" …
}

var setup = sync.OnceValue(newSetup)

func newSetup() *testSetup {
	s := &testSetup{
		accounts: &testAccounts{byName: map[string]*Account{}, byThumbprint: map[Thumbprint]*Account{}},
		clients:  map[string]*ClientConfig{},
	}
	s.server = &ServerConfig{Accounts: s.accounts}
	for _, kind := range keyKinds {
		key := testKeys()[kind]
		person, machine := "person-"+kind, "machine-"+kind
		cert := testCertificate(key, person)
		der := must(pkcs12.Modern2023.WithIterations(1).Encode(key, cert, nil, testPassphrase))
		s.accounts.byName[person] = &Account{Name: person, Certificate: cert, Bundle: der}
		s.clients[kind+"/interactive"] = &ClientConfig{Username: person, Passphrase: testPassphrase}

		cert = testCertificate(key, machine)
		s.accounts.byThumbprint[sha256.Sum256(cert.Raw)] = &Account{Name: machine, Certificate: cert}
		s.clients[kind+"/certificate"] = &ClientConfig{Certificate: cert, PrivateKey: key}
	}
	return s
}

func eachClient(t *testing.T, f func(t *testing.T, client *ClientConfig)) {
	for _, kind := range keyKinds {
		for _, typ := range []string{"/interactive", "/certificate"} {
			t.Run(kind+typ, func(t *testing.T) { f(t, setup().clients[kind+typ]) })
		}
	}
}

// transports returns the two ends of a TCP connection.
func transports(t testing.TB) (client, server net.Conn) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	client, err = net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	server, err = ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close(); server.Close() })
	return client, server
}

// connect returns the two ends of a connection, handshake done.
func connect(t testing.TB, cc *ClientConfig, sc *ServerConfig) (client, server *Conn) {
	t.Helper()
	c, s := transports(t)
	client, server = Client(c, cc), Server(s, sc)
	errs := make(chan error, 1)
	go func() { errs <- server.Handshake() }()
	if err := client.Handshake(); err != nil {
		t.Fatal("client:", err)
	}
	if err := <-errs; err != nil {
		t.Fatal("server:", err)
	}
	return client, server
}

// exchange sends data each way at the same time and ends both streams.
func exchange(t testing.TB, a, b *Conn, up, down []byte) {
	t.Helper()
	var wg sync.WaitGroup
	one := func(from, to *Conn, data []byte) {
		wg.Go(func() {
			if n, err := from.Write(data); n != len(data) || err != nil {
				t.Errorf("wrote %d of %d: %v", n, len(data), err)
			}
			if err := from.CloseWrite(); err != nil {
				t.Error(err)
			}
		})
		wg.Go(func() {
			got, err := io.ReadAll(to)
			if err != nil {
				t.Error(err)
			}
			if !bytes.Equal(got, data) {
				t.Errorf("%d bytes arrived, not the %d that were sent", len(got), len(data))
			}
		})
	}
	one(a, b, up)
	one(b, a, down)
	wg.Wait()
}

func TestLogin(t *testing.T) {
	eachClient(t, func(t *testing.T, config *ClientConfig) {
		client, server := connect(t, config, setup().server)
		for _, state := range []ConnectionState{client.ConnectionState(), server.ConnectionState()} {
			if !state.HandshakeComplete || state.Suite != "classic" || state.MaxPacket != DefaultMaxPacket ||
				state.Interactive != (config.Username != "") || state.Certificate == nil {
				t.Errorf("%+v", state)
			}
		}
		want := config.Username
		if want == "" {
			want = config.Certificate.Subject.CommonName
		}
		if got := server.ConnectionState().Account; got != want {
			t.Errorf("logged in as %q, not %q", got, want)
		}
		up, down := make([]byte, 300_000), make([]byte, 500_001)
		rand.Read(up)
		rand.Read(down)
		exchange(t, client, server, up, down)
	})
}

func TestNettest(t *testing.T) {
	nettest.TestConn(t, func() (c1, c2 net.Conn, stop func(), err error) {
		client, server := connect(t, setup().clients["p256/certificate"], setup().server)
		return client, server, func() { client.Close(); server.Close() }, nil
	})
}

func TestNettestPipe(t *testing.T) {
	nettest.TestConn(t, func() (c1, c2 net.Conn, stop func(), err error) {
		c, s := net.Pipe()
		client, server := Client(c, setup().clients["p256/certificate"]), Server(s, setup().server)
		errs := make(chan error, 1)
		go func() { errs <- server.Handshake() }()
		err = errors.Join(client.Handshake(), <-errs)
		return client, server, func() { client.Close(); server.Close() }, err
	})
}

// weakCertificate is a certificate with a key that no account can have.
func weakCertificate(t testing.TB, kind string) *x509.Certificate {
	t.Helper()
	var key any
	switch kind {
	case "rsa1024":
		t.Setenv("GODEBUG", "rsa1024min=0")
		key = must(rsa.GenerateKey(rand.Reader, 1024))
	case "p521":
		key = must(ecdsa.GenerateKey(elliptic.P521(), rand.Reader))
	case "ed25519":
		_, key, _ = ed25519.GenerateKey(rand.Reader)
	}
	return testCertificate(key, kind)
}

// A deadline far away is none that has passed.
func TestFarDeadline(t *testing.T) {
	client, server := connect(t, setup().clients["p256/certificate"], setup().server)
	for _, d := range []time.Time{time.Now().Add(1<<63 - 1), time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC)} {
		client.SetWriteDeadline(d)
		if _, err := client.Write([]byte("x")); err != nil {
			t.Errorf("%v: %v", d, err)
		}
		if _, err := io.ReadFull(server, make([]byte, 1)); err != nil {
			t.Error(err)
		}
	}
	client.SetWriteDeadline(time.Unix(0, 0)) // long past
	if _, err := client.Write([]byte("x")); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("%v", err)
	}
}

// A deadline in the middle of a packet loses nothing of it: the next Read goes
// on where this one stopped.
func TestDeadlineInsideAPacket(t *testing.T) {
	from, to := connect(t, setup().clients["p256/certificate"], setup().server)
	packet := from.out.half.suite.seal(from.out.half, nil, []byte("in pieces"))
	for i := range packet {
		if _, err := from.conn.Write(packet[i : i+1]); err != nil {
			t.Fatal(err)
		}
		if i == len(packet)-1 {
			break
		}
		// until this byte has arrived, and the deadline after it has passed
		for arrived := len(to.in.buffered()); arrived <= i; arrived = len(to.in.buffered()) {
			to.SetReadDeadline(time.Now().Add(time.Millisecond))
			if n, err := to.Read(make([]byte, 100)); n != 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Fatalf("%d bytes after %d of the packet, %v", n, i+1, err)
			}
		}
	}
	to.SetReadDeadline(time.Time{})
	got := make([]byte, 9)
	if _, err := io.ReadFull(to, got); err != nil || string(got) != "in pieces" {
		t.Errorf("%q, %v", got, err)
	}
}

// A CloseWrite that met its deadline can be tried again, and Close makes up
// for it.
func TestCloseWriteAgain(t *testing.T) {
	for _, again := range []func(*Conn) error{(*Conn).CloseWrite, (*Conn).Close} {
		ct, st := net.Pipe() // takes nothing that is not read
		client, server := Client(ct, setup().clients["p256/certificate"]), Server(st, setup().server)
		errs := make(chan error, 1)
		go func() { errs <- server.Handshake() }()
		if err := errors.Join(client.Handshake(), <-errs); err != nil {
			t.Fatal(err)
		}
		client.SetWriteDeadline(time.Now().Add(-time.Second))
		if err := client.CloseWrite(); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%v", err)
		}
		client.SetWriteDeadline(time.Time{})
		read := make(chan error, 1)
		go func() {
			_, err := io.ReadAll(server)
			read <- err
		}()
		if err := again(client); err != nil {
			t.Error(err)
		}
		if err := <-read; err != nil {
			t.Errorf("the peer sees %v", err)
		}
		client.Close()
		server.Close()
	}
}

// A network that timed out is gone; that is not a deadline.
func TestNetworkTimeout(t *testing.T) {
	client, _ := connect(t, setup().clients["p256/certificate"], setup().server)
	client.in.r = iotest.ErrReader(&net.OpError{Op: "read", Err: os.NewSyscallError("read", syscall.ETIMEDOUT)})
	for range 2 {
		if _, err := client.Read(make([]byte, 1)); !errors.Is(err, syscall.ETIMEDOUT) {
			t.Errorf("%v", err)
		}
		client.in.r = iotest.ErrReader(io.EOF)
	}
}

// A check that fails ends the connection in both directions, without an END.
func TestFailureEndsBoth(t *testing.T) {
	from, to := connect(t, setup().clients["p256/certificate"], setup().server)
	p := from.out.half.suite.seal(from.out.half, nil, []byte("altered"))
	p[20] ^= 1
	if _, err := from.conn.Write(p); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadAll(to); !errors.Is(err, ErrAuthentication) {
		t.Errorf("%v", err)
	}
	if _, err := to.Write([]byte("x")); err == nil {
		t.Error("a write after it")
	}
	if err := to.CloseWrite(); err == nil {
		t.Error("a CloseWrite after it")
	}
	to.Close()
	if _, err := io.ReadAll(from); err == nil {
		t.Error("the peer sees a good end")
	}
}
