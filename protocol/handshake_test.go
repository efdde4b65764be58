package protocol

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdh"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"software.sslmate.com/src/go-pkcs12"

	"github.com/flatauth/caddy-flatauth/protocol/bundle"
	"github.com/flatauth/caddy-flatauth/protocol/risp"
)

// A rawClient is a client that says what the test wants it to say.
type rawClient struct {
	flight []byte // through the account command
	late   []byte // between it and the first packet
}

// login sends the flight, opens the session key and sends the late commands
// and an empty packet.
func (r rawClient) login(conn net.Conn, config *ClientConfig) (*Conn, error) {
	c := Client(conn, config)
	c.state.Interactive = config.Username != ""
	if _, err := conn.Write(r.flight); err != nil {
		return nil, err
	}
	transcript := newClientTranscript()
	transcript.Write(r.flight)
	t1 := transcript.Sum(nil)
	answer, err := c.readServerFlight(t1)
	if err != nil {
		return nil, err
	}
	key := config.PrivateKey
	if c.state.Interactive {
		if key, _, err = unlock(answer.certificate, config.Passphrase); err != nil {
			return nil, err
		}
	}
	sessionKey, err := openSessionKey(key, answer.sessionKey, t1)
	if err != nil {
		return nil, err
	}
	c.begin(classic, answer.t2, sessionKey, nil)
	late := labelled(labelLate)
	late.Write(r.late)
	late.Sum(c.out.half.late[:0])
	first := classic.seal(c.out.half, bytes.Clone(r.late), nil)
	if _, err := conn.Write(first); err != nil {
		return nil, err
	}
	c.handshakeDone.Store(true)
	return c, nil
}

// rawLogin connects a rawClient with a server and returns both ends.
func rawLogin(t *testing.T, r rawClient, cc *ClientConfig, sc *ServerConfig) (client, server *Conn, clientErr, serverErr error) {
	t.Helper()
	ct, st := transports(t)
	server = Server(st, sc)
	errs := make(chan error, 1)
	go func() {
		err := server.Handshake()
		if err != nil {
			st.Close()
		}
		errs <- err
	}()
	client, clientErr = r.login(ct, cc)
	if clientErr != nil {
		ct.Close()
	}
	return client, server, clientErr, <-errs
}

func cat(b ...[]byte) []byte { return bytes.Join(b, nil) }

var (
	nop       = risp.AppendNone(nil, cmdNOP)
	testNonce = risp.AppendString(nil, cmdNonce, "sixteen bytes!!!")

	// unknown commands of every kind of parameter
	unknowns = cat(
		append([]byte{0x0f, 0xff}, make([]byte, 1)...),
		append([]byte{0x1f, 0xff}, make([]byte, 2)...),
		append([]byte{0x2f, 0xff}, make([]byte, 4)...),
		append([]byte{0x3f, 0xff}, make([]byte, 8)...),
		append([]byte{0x4f, 0xff}, make([]byte, 16)...),
		append([]byte{0x5f, 0xff}, make([]byte, 32)...),
		append([]byte{0x6f, 0xff}, make([]byte, 64)...),
		[]byte{0x7f, 0xff},
		append([]byte{0x8f, 0xff, 3}, "abc"...),
		append([]byte{0x9f, 0xff, 0, 3}, "abc"...),
		append([]byte{0xaf, 0xff, 0, 0, 0, 3}, "abc"...),
		append([]byte{0xbf, 0xff, 0, 0, 0, 0, 0, 0, 0, 3}, "abc"...),
		[]byte{0xc0, 0x00, 0xff, 0xff},
	)
)

func maxPacketCommand(n uint64) []byte { return risp.AppendUint(nil, cmdMaxPacket, n) }

func accountCommand(config *ClientConfig) []byte {
	if config.Username != "" {
		return risp.AppendString(nil, cmdUsername, config.Username)
	}
	sum := sha256.Sum256(config.Certificate.Raw)
	return risp.AppendString(nil, cmdCertificateID, sum[:])
}

// The order of a flight is loose, and what a server does not know it skips.
func TestLooseFlights(t *testing.T) {
	for _, account := range []string{"p256/certificate", "p256/interactive"} {
		config := setup().clients[account]
		who := accountCommand(config)
		for what, r := range map[string]rawClient{
			"the seed's client":            {flight: who},
			"the seed's with MAX-PACKET":   {flight: who, late: maxPacketCommand(512)},
			"NONCE":                        {flight: cat(testNonce, who)},
			"MAX-PACKET, NONCE":            {flight: cat(maxPacketCommand(512), testNonce, who)},
			"NONCE, MAX-PACKET":            {flight: cat(testNonce, maxPacketCommand(512), who)},
			"NOPs everywhere":              {flight: cat(nop, nop, testNonce, nop, who), late: cat(nop, nop, nop)},
			"unknown commands":             {flight: cat(testNonce, unknowns, who), late: unknowns},
			"unknown, MAX-PACKET, unknown": {flight: cat(testNonce, who), late: cat(unknowns, maxPacketCommand(512), nop, unknowns)},
			"a share that is not taken":    {flight: cat(risp.AppendString(nil, cmdShareX25519, make([]byte, 32)), who)},
			"a large share":                {flight: cat(risp.AppendString(nil, cmdShareX25519MLKEM768, make([]byte, 1216)), who)},
			"a blind that is not answered": {flight: cat(risp.AppendString(nil, cmdBlindP256, make([]byte, 33)), who)},
		} {
			t.Run(account+"/"+what, func(t *testing.T) {
				client, server, err1, err2 := rawLogin(t, r, config, setup().server)
				if err := errors.Join(err1, err2); err != nil {
					t.Fatal(err)
				}
				want := DefaultMaxPacket
				if bytes.Contains(cat(r.flight, r.late), maxPacketCommand(512)) {
					want = 512
				}
				if got := server.ConnectionState().MaxPacket; got != want {
					t.Errorf("the server's MaxPacket is %d, not %d", got, want)
				}
				exchange(t, client, server, []byte("up"), bytes.Repeat([]byte("down"), 1000))
			})
		}
	}
}

// What a server must not accept it refuses without waiting for more, and
// without a byte of an answer.
func TestRefusedFlights(t *testing.T) {
	config := setup().clients["p256/certificate"]
	who := accountCommand(config)
	for what, flight := range map[string][]byte{
		"random":                   {0xde, 0xad, 0xbe, 0xef},
		"HTTP":                     []byte("GET / HTTP/1.1\r\n"),
		"an unknown command first": cat(unknowns, who),
		"NONCE twice":              cat(testNonce, testNonce),
		"MAX-PACKET twice":         cat(maxPacketCommand(512), maxPacketCommand(512)),
		"a share twice":            cat(risp.AppendString(nil, cmdShareX25519, make([]byte, 32)), []byte{0x80, 0x10, 32}),
		"a short NONCE":            {0x80, 0x05, 15},
		"a long NONCE":             {0x80, 0x05, 17},
		"an empty USERNAME":        {0x80, 0x01, 0},
		"a short thumbprint":       {0x80, 0x02, 31},
		"a CERTIFICATE":            cat(testNonce, []byte{0x90, 0x01, 0, 1}),
		"a packet":                 cat(testNonce, []byte{0x20, 0x02, 0, 0, 0, 0}),
		"an END":                   cat(testNonce, []byte{0x80, 0x04, 16}),
		"a SEALED":                 cat(testNonce, []byte{0xa0, 0x10, 0, 0, 0, 16}),
		"a RETRY-AFTER":            cat(testNonce, []byte{0x20, 0x10, 0, 0, 0, 1}),
		"an unknown of 4 GiB":      cat(testNonce, []byte{0xaf, 0xff, 0xff, 0xff, 0xff, 0xff}),
		"an unknown of 2^63":       cat(testNonce, []byte{0xbf, 0xff, 0x80, 0, 0, 0, 0, 0, 0, 0}),
		"an unknown of 2^64-1":     cat(testNonce, []byte{0xbf, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff}),
		"8 KiB of NOPs":            bytes.Repeat(nop, maxClientFlight/2+1),
		"8 KiB of unknowns":        cat(testNonce, bytes.Repeat(unknowns, maxClientFlight/len(unknowns)), []byte{0x9f, 0xff, 0x10, 0x00}),
	} {
		t.Run(what, func(t *testing.T) {
			ct, st := net.Pipe()
			defer ct.Close()
			answered := make(chan int64, 1)
			go func() {
				ct.Write(flight)
				n, _ := io.Copy(io.Discard, ct)
				answered <- n
			}()
			server := Server(st, setup().server)
			err := server.Handshake() // the test would time out if it waited
			st.Close()
			if !errors.Is(err, ErrProtocol) {
				t.Errorf("%v", err)
			}
			if n := <-answered; n > 0 {
				t.Errorf("%d bytes of answer", n)
			}
			if _, err := server.Write([]byte("x")); err == nil {
				t.Error("a write after a failed handshake")
			}
		})
	}
}

// Between the account command and the first packet there is as little room.
func TestRefusedLate(t *testing.T) {
	config := setup().clients["p256/certificate"]
	for what, late := range map[string][]byte{
		"MAX-PACKET twice":     cat(maxPacketCommand(512), maxPacketCommand(512)),
		"another NONCE":        testNonce,
		"another account":      accountCommand(config),
		"an unknown of 4 GiB":  {0xaf, 0xff, 0xff, 0xff, 0xff, 0xff},
		"an unknown of 2^63":   {0xbf, 0xff, 0x80, 0, 0, 0, 0, 0, 0, 0},
		"8 KiB of NOPs":        bytes.Repeat(nop, maxLate/2+1),
		"a command of servers": risp.AppendString(nil, cmdSessionKey, "x"),
		"another suite's":      risp.AppendStringHeader(nil, cmdSealed, 16),
	} {
		t.Run(what, func(t *testing.T) {
			_, _, _, err := rawLogin(t, rawClient{cat(testNonce, accountCommand(config)), late}, config, setup().server)
			if !errors.Is(err, ErrProtocol) {
				t.Errorf("%v", err)
			}
		})
	}
	// A MAX-PACKET in the flight is the only one.
	flight := cat(maxPacketCommand(512), accountCommand(config))
	if _, _, _, err := rawLogin(t, rawClient{flight, maxPacketCommand(512)}, config, setup().server); !errors.Is(err, ErrProtocol) {
		t.Errorf("a second MAX-PACKET, late: %v", err)
	}
	// Late commands are authenticated by the first packet.
	r := rawClient{cat(testNonce, accountCommand(config)), nop}
	ct, st := transports(t)
	errs := make(chan error, 1)
	go func() { errs <- Server(st, setup().server).Handshake() }()
	if _, err := r.login(insertLate{ct, len(r.flight)}, config); err != nil {
		t.Fatal(err)
	}
	if err := <-errs; !errors.Is(err, ErrAuthentication) {
		t.Errorf("a late NOP that the client did not send: %v", err)
	}
}

// insertLate puts a NOP before whatever is written after the flight.
type insertLate struct {
	net.Conn
	flightLen int
}

func (c insertLate) Write(b []byte) (int, error) {
	if len(b) != c.flightLen {
		c.Conn.Write(nop)
	}
	return c.Conn.Write(b)
}

// recorder keeps what is written through it.
type recorder struct {
	net.Conn
	written bytes.Buffer
}

func (r *recorder) Write(b []byte) (int, error) {
	r.written.Write(b)
	return r.Conn.Write(b)
}

func TestMaxPacket(t *testing.T) {
	for _, test := range []struct {
		client, server int // 0: nothing is said
		want           int
		answer         int // the server's MAX-PACKET; 0: none
	}{
		{0, 0, 65536, 0},
		{512, 0, 512, 512},
		{0, 512, 512, 512},
		{512, 1024, 512, 512},
		{1024, 512, 512, 512},
		{65536, 0, 65536, 65536},
		{1 << 20, 0, 65536, 65536},
		{0, 1 << 20, 65536, 1 << 20},
		{1 << 20, 1 << 20, 1 << 20, 1 << 20},
		{1, 0, 64, 64},
		{0, 1, 64, 64},
		{1 << 30, 1 << 30, 16 << 20, 16 << 20},
	} {
		t.Run(fmt.Sprintf("%d,%d", test.client, test.server), func(t *testing.T) {
			cc, sc := *setup().clients["p256/certificate"], *setup().server
			cc.MaxPacket, sc.MaxPacket = test.client, test.server
			ct, st := transports(t)
			up, down := &recorder{Conn: ct}, &recorder{Conn: st}
			client, server := Client(up, &cc), Server(down, &sc)
			errs := make(chan error, 1)
			go func() { errs <- server.Handshake() }()
			if err := errors.Join(client.Handshake(), <-errs); err != nil {
				t.Fatal(err)
			}
			for _, c := range []*Conn{client, server} {
				if got := c.ConnectionState().MaxPacket; got != test.want {
					t.Errorf("client %v: %d, want %d", c.isClient, got, test.want)
				}
			}
			answer := 0
			if b := down.written.Bytes(); bytes.HasPrefix(b, []byte{0x20, 0x01}) {
				answer = int(risp.Uint(b[2:6]))
			}
			if answer != test.answer {
				t.Errorf("the server says %d, want %d", answer, test.answer)
			}
			up.written.Reset()
			down.written.Reset()
			data := make([]byte, 2*test.want+1)
			exchange(t, client, server, data, data)
			for _, r := range []*recorder{up, down} {
				var sizes []int
				for b := r.written.Bytes(); len(b) > 0; {
					h, err := risp.ParseHeader(b)
					if err != nil {
						t.Fatal(err)
					}
					if h.ID == cmdData {
						sizes = append(sizes, int(h.Size)-tagLen)
					}
					b = b[h.Len+int(h.Size):]
				}
				if want := []int{test.want, test.want, 1}; fmt.Sprint(sizes) != fmt.Sprint(want) {
					t.Errorf("packets of %v bytes, want %v", sizes, want)
				}
			}
		})
	}
}

// A client that says MAX-PACKET after its account command gets the mimic late.
func TestLateMimic(t *testing.T) {
	config := setup().clients["p256/certificate"]
	r := rawClient{cat(testNonce, accountCommand(config)), maxPacketCommand(1 << 20)}
	sc := *setup().server
	sc.MaxPacket = 1000
	for _, test := range []struct {
		server *ServerConfig
		want   int
		late   bool
	}{
		{setup().server, DefaultMaxPacket, true},
		{&sc, 1000, false}, // said in the flight
	} {
		client, server, err1, err2 := rawLogin(t, r, config, test.server)
		if err := errors.Join(err1, err2); err != nil {
			t.Fatal(err)
		}
		client.wantMax, client.ownMax = 1<<20, 1<<20
		exchange(t, client, server, []byte("up"), []byte("down"))
		if got := client.ConnectionState().MaxPacket; got != test.want {
			t.Errorf("the client's MaxPacket is %d, want %d", got, test.want)
		}
		if late := client.in.lateBytes > 0; late != test.late {
			t.Errorf("late bytes: %v", late)
		}
	}
}

// Who replays a server's flight to a client gets nothing from it: the client's
// NONCE is another.
func TestReplayedFlight(t *testing.T) {
	eachClient(t, func(t *testing.T, config *ClientConfig) {
		ct, st := transports(t)
		down := &recorder{Conn: st}
		errs := make(chan error, 1)
		go func() { errs <- Server(down, setup().server).Handshake() }()
		if err := errors.Join(Client(ct, config).Handshake(), <-errs); err != nil {
			t.Fatal(err)
		}

		ct, st = net.Pipe()
		sent := make(chan []byte, 1)
		go func() {
			go st.Write(down.written.Bytes())
			b, _ := io.ReadAll(st)
			sent <- b
		}()
		err := Client(ct, config).Handshake()
		ct.Close()
		if !errors.Is(err, ErrLogin) {
			t.Errorf("%v", err)
		}
		if b := <-sent; len(b) > 100 {
			t.Errorf("%d bytes were sent after the replayed flight", len(b))
		}
	})
}

func TestWrongKeys(t *testing.T) {
	eachClient(t, func(t *testing.T, config *ClientConfig) {
		wrong := *config
		if config.Username != "" {
			wrong.Passphrase += "!"
		} else {
			// The store has the thumbprint with another account's key.
			accounts := &testAccounts{byThumbprint: map[Thumbprint]*Account{
				sha256.Sum256(config.Certificate.Raw): {Name: "x", Certificate: testCertificate(otherKey(config.PrivateKey), "x")},
			}}
			ct, st := transports(t)
			go Server(st, &ServerConfig{Accounts: accounts}).Handshake()
			if err := Client(ct, config).Handshake(); !errors.Is(err, ErrLogin) {
				t.Errorf("%v", err)
			}
			wrong.PrivateKey = otherKey(config.PrivateKey)
		}
		ct, st := transports(t)
		errs := make(chan error, 1)
		go func() { errs <- Server(st, setup().server).Handshake() }()
		err := Client(ct, &wrong).Handshake()
		ct.Close()
		if config.Username != "" && !errors.Is(err, ErrLogin) || err == nil {
			t.Errorf("client: %v", err)
		}
		if err := <-errs; err == nil {
			t.Error("the server let it in")
		}
	})
}

// otherKey is another key of the same kind.
func otherKey(key any) any {
	for kind, k := range testKeys() {
		if k == key {
			switch kind {
			case "p256":
				return must2(bundle.NewKey(bundle.P256, "other"))
			case "p384":
				return must2(bundle.NewKey(bundle.P384, "other"))
			case "x25519":
				return must(ecdh.X25519().GenerateKey(rand.Reader))
			case "rsa2048":
				return testKeys()["rsa3072"]
			case "rsa3072":
				return testKeys()["rsa2048"]
			}
		}
	}
	panic("no such key")
}

func must2[T, U any](v T, _ U, err error) T { return must(v, err) }

// An attacker without the key cannot make a first packet; a server that is
// sent one does nothing.
func TestForgedFirstPacket(t *testing.T) {
	config := setup().clients["p256/certificate"]
	ct, st := transports(t)
	errs := make(chan error, 1)
	server := Server(st, setup().server)
	go func() { errs <- server.Handshake() }()
	c := Client(ct, config)
	ct.Write(cat(testNonce, accountCommand(config)))
	if _, err := c.readServerFlight(make([]byte, 32)); err != nil {
		t.Fatal(err)
	}
	c.begin(classic, make([]byte, 32), make([]byte, 32), nil)
	ct.Write(classic.seal(c.out.half, nil, []byte("let me in")))
	err := <-errs
	var login *LoginError
	if !errors.Is(err, ErrAuthentication) || !errors.As(err, &login) || login.Account != "machine-p256" {
		t.Errorf("%v", err)
	}
	if n, err := server.Read(make([]byte, 10)); n > 0 || err == nil {
		t.Errorf("read %d bytes, %v", n, err)
	}
}

// Unknown names and thumbprints get an answer as known ones do.
func TestDecoys(t *testing.T) {
	sc := *setup().server
	sc.Decoys = must(NewDecoys(make([]byte, 32)))
	answer := func(config *ClientConfig) (*serverFlight, error) {
		ct, st := transports(t)
		errs := make(chan error, 1)
		go func() { errs <- Server(st, &sc).Handshake() }()
		c := Client(ct, config)
		c.state.Interactive = config.Username != ""
		ct.Write(cat(testNonce, accountCommand(config)))
		flight, err := c.readServerFlight(make([]byte, 32))
		if err != nil {
			t.Fatal(err)
		}
		c.begin(classic, make([]byte, 32), make([]byte, 32), nil)
		ct.Write(classic.seal(c.out.half, nil, nil))
		return flight, <-errs
	}
	for _, config := range []*ClientConfig{
		{Username: "nobody"},
		{Username: "no body"}, // not even a name
		{Certificate: testCertificate(testKeys()["p256"], "unknown")},
	} {
		one, err := answer(config)
		two, _ := answer(config)
		if !errors.Is(err, ErrUnknownAccount) {
			t.Errorf("%v", err)
		}
		if !bytes.Equal(one.certificate, two.certificate) {
			t.Error("two CERTIFICATEs for one name")
		}
		if bytes.Equal(one.sessionKey, two.sessionKey) || len(one.sessionKey) != len(two.sessionKey) {
			t.Error("SESSION-KEY is not fresh")
		}
		if config.Username != "" {
			if err := bundle.CheckStrength(one.certificate); err != nil {
				t.Error(err)
			}
		}
	}
	// Without decoys the connection is closed.
	ct, st := transports(t)
	errs := make(chan error, 1)
	go func() {
		err := Server(st, setup().server).Handshake()
		st.Close()
		errs <- err
	}()
	err := Client(ct, &ClientConfig{Username: "nobody", Passphrase: "p"}).Handshake()
	if !errors.Is(err, ErrNoFlight) {
		t.Errorf("client: %v", err)
	}
	if err := <-errs; !errors.Is(err, ErrUnknownAccount) {
		t.Errorf("server: %v", err)
	}
}

// A fakeServer answers a client's flight with the given bytes.
func fakeServer(t *testing.T, config *ClientConfig, flight []byte) error {
	t.Helper()
	ct, st := net.Pipe()
	defer ct.Close()
	go func() {
		go io.Copy(io.Discard, st)
		st.Write(flight)
		st.Close()
	}()
	return Client(ct, config).Handshake()
}

func TestRefusedServerFlights(t *testing.T) {
	person, machine := setup().clients["p256/interactive"], setup().clients["p256/certificate"]
	cert := risp.AppendString(nil, cmdCertificate, setup().accounts.byName[person.Username].Bundle)
	key := risp.AppendString(nil, cmdSessionKey, make([]byte, 113))
	for what, test := range map[string]struct {
		config *ClientConfig
		flight []byte
		want   error
	}{
		"nothing":                      {person, nil, ErrNoFlight},
		"half a flight":                {person, cert, ErrNoFlight},
		"half a command":               {person, cert[:100], ErrNoFlight},
		"no CERTIFICATE":               {person, key, ErrProtocol},
		"CERTIFICATE for a machine":    {machine, cert, ErrProtocol},
		"CERTIFICATE twice":            {person, cat(cert, cert), ErrProtocol},
		"too long a CERTIFICATE":       {person, risp.AppendStringHeader(nil, cmdCertificate, maxCertificateLen+1), ErrProtocol},
		"too long a SESSION-KEY":       {machine, risp.AppendStringHeader(nil, cmdSessionKey, maxSessionKeyLen+1), ErrProtocol},
		"a share nobody asked for":     {machine, risp.AppendString(nil, cmdShareX25519, make([]byte, 32)), ErrProtocol},
		"a server key":                 {machine, risp.AppendString(nil, cmdServerKeyEd25519, make([]byte, 32)), ErrProtocol},
		"a packet":                     {machine, risp.AppendUint(nil, cmdDataLength, 0), ErrProtocol},
		"NONCE":                        {machine, testNonce, ErrProtocol},
		"an unknown of 2^63":           {machine, []byte{0xbf, 0xff, 0x80, 0, 0, 0, 0, 0, 0, 0}, ErrProtocol},
		"32 KiB of unknowns":           {machine, bytes.Repeat(risp.AppendString(nil, 0x9fff, make([]byte, 8192)), 4), ErrProtocol},
		"65 commands":                  {machine, bytes.Repeat(nop, maxFlight+1), ErrProtocol},
		"a SESSION-KEY that is noise":  {machine, key, ErrLogin},
		"noise, and a wrong one too":   {person, cat(cert, key), ErrLogin},
		"a CERTIFICATE that is noise":  {person, cat(risp.AppendString(nil, cmdCertificate, "noise"), key), ErrAbsurdBundle},
		"a CERTIFICATE of absurd work": {person, cat(risp.AppendString(nil, cmdCertificate, absurdBundle(t)), key), ErrAbsurdBundle},
	} {
		if err := fakeServer(t, test.config, test.flight); !errors.Is(err, test.want) {
			t.Errorf("%s: %v", what, err)
		}
	}
	err := fakeServer(t, machine, risp.AppendUint(nil, cmdRetryAfter, 3_000_000))
	var retry *RetryAfterError
	if !errors.As(err, &retry) || retry.After != time.Minute {
		t.Errorf("RETRY-AFTER: %v", err)
	}
}

// absurdBundle is a bundle with a MAC of 2^31-1 iterations.
func absurdBundle(t *testing.T) []byte {
	t.Helper()
	key := testKeys()["p256"]
	return absurdMAC(must(pkcs12.Modern2023.WithIterations(1).Encode(key, testCertificate(key, "x"), nil, "p")))
}

func absurdMAC(der []byte) []byte {
	var file struct {
		Version  int
		AuthSafe asn1.RawValue
		Mac      struct {
			Digest     asn1.RawValue
			Salt       []byte
			Iterations int `asn1:"optional,default:1"`
		}
	}
	must(asn1.Unmarshal(der, &file))
	file.Mac.Iterations = 1<<31 - 1
	return must(asn1.Marshal(file))
}

// opaque hides everything of a key but what hardware offers.
type opaqueDecrypter struct{ crypto.Decrypter }
type opaqueExchanger struct{ k ecdh.KeyExchanger }

func (o opaqueExchanger) PublicKey() *ecdh.PublicKey { return o.k.PublicKey() }
func (o opaqueExchanger) Curve() ecdh.Curve          { return o.k.Curve() }
func (o opaqueExchanger) ECDH(pub *ecdh.PublicKey) ([]byte, error) {
	return o.k.ECDH(pub)
}

func TestHardwareKeys(t *testing.T) {
	for _, kind := range keyKinds {
		config := *setup().clients[kind+"/certificate"]
		switch key := config.PrivateKey.(type) {
		case ecdh.KeyExchanger:
			config.PrivateKey = opaqueExchanger{key}
		case crypto.Decrypter:
			config.PrivateKey = opaqueDecrypter{key}
		case interface {
			ECDH() (*ecdh.PrivateKey, error)
		}:
			config.PrivateKey = opaqueExchanger{must(key.ECDH())}
		}
		client, server := connect(t, &config, setup().server)
		exchange(t, client, server, []byte("up"), []byte("down"))
	}
}

func TestClientConfig(t *testing.T) {
	machine := setup().clients["p256/certificate"]
	for what, test := range map[string]struct {
		config ClientConfig
		want   string
	}{
		"nothing":             {ClientConfig{}, "neither"},
		"both":                {ClientConfig{Username: "a", Passphrase: "p", PrivateKey: machine.PrivateKey}, "both"},
		"not a name":          {ClientConfig{Username: "a b", Passphrase: "p"}, "not a name"},
		"no passphrase":       {ClientConfig{Username: "a"}, "passphrase is empty"},
		"an emoji":            {ClientConfig{Username: "a", Passphrase: "\U0001f40e"}, "emoji"},
		"no certificate":      {ClientConfig{PrivateKey: machine.PrivateKey}, "neither"},
		"another certificate": {ClientConfig{PrivateKey: otherKey(machine.PrivateKey), Certificate: machine.Certificate}, "does not belong"},
		"a strange key":       {ClientConfig{PrivateKey: "key", Certificate: machine.Certificate}, "type string"},
	} {
		_, err := Dial(t.Context(), "tcp", "127.0.0.1:1", &test.config)
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func TestCertificateKey(t *testing.T) {
	for _, kind := range keyKinds {
		cert := testCertificate(testKeys()[kind], "x")
		key, err := CertificateKey(cert)
		if err != nil {
			t.Errorf("%s: %v", kind, err)
			continue
		}
		if want := map[string]string{"p256": "P-256", "p384": "P-384", "x25519": "X25519", "rsa2048": "RSA-2048", "rsa3072": "RSA-3072"}[kind]; key.String() != want {
			t.Errorf("%s is called %v", kind, key)
		}
	}
	for _, cert := range []*x509.Certificate{weakCertificate(t, "rsa1024"), weakCertificate(t, "p521"), weakCertificate(t, "ed25519")} {
		if _, err := CertificateKey(cert); !errors.Is(err, ErrKeyType) {
			t.Errorf("%v: %v", cert.PublicKeyAlgorithm, err)
		}
	}
}

// Each step of a handshake has its time, whatever the peer does meanwhile.
func TestTimeouts(t *testing.T) {
	config := setup().clients["p256/certificate"]
	drip := func(c net.Conn, b []byte) { // one byte a second
		for i := range b {
			if _, err := c.Write(b[i : i+1]); err != nil {
				return
			}
			time.Sleep(time.Second)
		}
	}
	for what, test := range map[string]struct {
		client func(c net.Conn)
		want   time.Duration
	}{
		"silence":             {func(c net.Conn) {}, DefaultFlightTimeout},
		"half a flight":       {func(c net.Conn) { c.Write(testNonce[:5]) }, DefaultFlightTimeout},
		"one byte a second":   {func(c net.Conn) { drip(c, cat(testNonce, testNonce)) }, DefaultFlightTimeout},
		"NOPs":                {func(c net.Conn) { drip(c, bytes.Repeat(nop, 100)) }, DefaultFlightTimeout},
		"a flight unanswered": {func(c net.Conn) { c.Write(cat(testNonce, accountCommand(config))) }, DefaultFlightTimeout},
		"a flight, no packet": {func(c net.Conn) {
			c.Write(cat(testNonce, accountCommand(config)))
			io.Copy(io.Discard, c)
		}, DefaultProofTimeout},
		"a flight, then NOPs": {func(c net.Conn) {
			c.Write(cat(testNonce, accountCommand(config)))
			go io.Copy(io.Discard, c)
			drip(c, bytes.Repeat(nop, 100))
		}, DefaultProofTimeout},
	} {
		t.Run(what, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ct, st := net.Pipe()
				done := make(chan struct{})
				go func() { test.client(ct); close(done) }()
				defer func() { ct.Close(); <-done }()
				start := time.Now()
				err := Server(st, setup().server).Handshake()
				if !errors.Is(err, os.ErrDeadlineExceeded) {
					t.Errorf("%v", err)
				}
				if took := time.Since(start); took < test.want || took > test.want+time.Second {
					t.Errorf("it took %v, not %v", took, test.want)
				}
			})
		})
	}
	t.Run("a silent server", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			ct, st := net.Pipe()
			go io.Copy(io.Discard, st)
			start := time.Now()
			err := Client(ct, config).Handshake()
			if took := time.Since(start); !errors.Is(err, os.ErrDeadlineExceeded) || took != DefaultAnswerTimeout {
				t.Errorf("%v after %v", err, took)
			}
			st.Close()
		})
	})
	t.Run("a context", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			ct, st := net.Pipe()
			ctx, cancel := context.WithCancel(t.Context())
			time.AfterFunc(time.Second, cancel)
			if err := Server(st, setup().server).HandshakeContext(ctx); !errors.Is(err, context.Canceled) {
				t.Errorf("%v", err)
			}
			ct.Close()
		})
	})
}

// A store that does not answer in time ends the handshake in time.
func TestSlowStore(t *testing.T) {
	config := setup().clients["p256/certificate"]
	synctest.Test(t, func(t *testing.T) {
		ct, st := net.Pipe()
		go ct.Write(cat(testNonce, accountCommand(config)))
		start := time.Now()
		err := Server(st, &ServerConfig{Accounts: slowAccounts{}}).Handshake()
		if took := time.Since(start); !errors.Is(err, os.ErrDeadlineExceeded) || took != DefaultFlightTimeout {
			t.Errorf("%v after %v", err, took)
		}
		ct.Close()
	})
}

type slowAccounts struct{}

func (slowAccounts) InteractiveAccount(ctx context.Context, _ string) (*Account, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

func (slowAccounts) CertificateAccount(ctx context.Context, _ Thumbprint) (*Account, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

// The lengths of the edges: everything up to 4096 bytes, and around the
// multiples of MAX-PACKET.
func TestEveryLength(t *testing.T) {
	client, server := connect(t, setup().clients["p256/certificate"], setup().server)
	var lengths []int
	for n := range 4097 {
		lengths = append(lengths, n)
	}
	for k := 1; k <= 5; k++ {
		for d := -2; d <= 2; d++ {
			lengths = append(lengths, k*DefaultMaxPacket+d)
		}
	}
	data := make([]byte, 6*DefaultMaxPacket)
	rand.Read(data)
	go func() {
		for _, n := range lengths {
			client.Write(data[:n])
		}
		client.CloseWrite()
	}()
	got := make([]byte, len(data))
	for _, n := range lengths {
		clear(got)
		if _, err := io.ReadFull(server, got[:n]); err != nil || !bytes.Equal(got[:n], data[:n]) {
			t.Fatalf("%d bytes: %v", n, err)
		}
	}
	if n, err := server.Read(got); n != 0 || err != io.EOF {
		t.Errorf("%d bytes more, %v", n, err)
	}
}

func TestNormalizeName(t *testing.T) {
	for in, want := range map[string]string{
		"alice":                "alice",
		"Alice":                "alice",
		"ＡＬＩＣＥ":                "alice",
		"Alice@Ops":            "alice@ops",
		"a@b@C":                "a@b@c",
		"Ångström":             "ångström",
		"A\u030angstro\u0308m": "ångström",
		"../x":                 "../x",
	} {
		if got, err := NormalizeName(in); err != nil || got != want {
			t.Errorf("%q: %q, %v", in, got, err)
		}
	}
	for _, in := range []string{"", "@", "a@", "@zone", "a b", "a\x00", "a\nb", "\xff", strings.Repeat("a", 256), "a\u2028"} {
		if got, err := NormalizeName(in); !errors.Is(err, ErrName) {
			t.Errorf("%q: %q, %v", in, got, err)
		}
	}
	if Zone("a@b@c") != "c" || Zone("a") != "" {
		t.Error("zones")
	}
}

// A passphrase is the same however its characters are composed; its case and
// its spaces count.
func TestNormalizePassphrase(t *testing.T) {
	composed, err := NormalizePassphrase("caf\u00e9 \u00c5ngstr\u00f6m")
	if err != nil {
		t.Fatal(err)
	}
	for in, same := range map[string]bool{
		"cafe\u0301 A\u030angstro\u0308m":   true,
		"caf\u00e9\u3000\u00c5ngstr\u00f6m": true, // an ideographic space
		"Caf\u00e9 \u00c5ngstr\u00f6m":      false,
		"caf\u00e9  \u00c5ngstr\u00f6m":     false,
	} {
		if got, err := NormalizePassphrase(in); err != nil || (got == composed) != same {
			t.Errorf("%q: %q, %v", in, got, err)
		}
	}
	for _, in := range []string{"", "a\nb", "\xff", "a\x00"} {
		if got, err := NormalizePassphrase(in); err == nil || in != "" && strings.Contains(err.Error(), in) {
			t.Errorf("%q: %q, %v", in, got, err)
		}
	}
}
