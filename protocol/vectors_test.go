package protocol

import (
	"bytes"
	"crypto"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/cryptotest"

	"software.sslmate.com/src/go-pkcs12"

	"github.com/flatauth/caddy-flatauth/protocol/bundle"
	"github.com/flatauth/caddy-flatauth/protocol/risp"
)

// The vectors in testdata are for whoever writes another implementation; the
// README beside them says what their fields mean. This test generates them:
//
//	go test ./protocol -run TestVectors -update
//
// and without the flag reads them, knowing nothing of how they were made.
var update = flag.Bool("update", false, "write the test vectors anew")

// hexBytes are bytes that stand in JSON in hexadecimal.
type hexBytes []byte

func (b hexBytes) MarshalText() ([]byte, error) { return []byte(hex.EncodeToString(b)), nil }

func (b *hexBytes) UnmarshalText(text []byte) (err error) {
	*b, err = hex.DecodeString(string(text))
	return err
}

// A loginVector is a whole connection, from the first byte to both ENDs, with
// every value on the way.
type loginVector struct {
	Comment string `json:"comment"`

	// the account
	Username    string   `json:"username,omitempty"`
	Passphrase  string   `json:"passphrase,omitempty"`
	Certificate hexBytes `json:"certificate"` // DER
	PrivateKey  hexBytes `json:"private_key"` // PKCS#8 DER
	Thumbprint  hexBytes `json:"thumbprint"`
	PKCS12      hexBytes `json:"pkcs12,omitempty"`
	KeyType     string   `json:"key_type"`

	// randomness
	Nonce      hexBytes `json:"nonce,omitempty"`
	SessionKey hexBytes `json:"session_key"`                  // K
	HPKESecret hexBytes `json:"hpke_ephemeral_key,omitempty"` // skE, of the server's HPKE
	OAEPSeed   hexBytes `json:"oaep_seed,omitempty"`          // of the server's RSAES-OAEP

	// the exchange
	ClientFlight    hexBytes `json:"client_flight"`
	T1              hexBytes `json:"t1"`
	ServerFlight    hexBytes `json:"server_flight"`
	T2              hexBytes `json:"t2"`
	ClientLate      hexBytes `json:"client_late"`
	ClientLateHash  hexBytes `json:"client_late_hash"` // L of the client's packet 0
	ServerLate      hexBytes `json:"server_late"`
	ServerLateHash  hexBytes `json:"server_late_hash"`
	Secret          hexBytes `json:"secret"`
	ClientDataKey   hexBytes `json:"key_c2s_data"`
	ClientVerifyKey hexBytes `json:"key_c2s_verify"`
	ServerDataKey   hexBytes `json:"key_s2c_data"`
	ServerVerifyKey hexBytes `json:"key_s2c_verify"`
	MaxPacket       int      `json:"max_packet"` // agreed

	ClientPackets []packetVector `json:"client_packets"`
	ServerPackets []packetVector `json:"server_packets"`
}

type packetVector struct {
	Number    uint64   `json:"number"`
	Plaintext hexBytes `json:"plaintext"`
	End       bool     `json:"end,omitempty"`
	DataAAD   hexBytes `json:"data_aad"`             // additional data of DATA, or of END
	SumAAD    hexBytes `json:"verify_aad,omitempty"` // additional data of VERIFICATION-SHA256
	Wire      hexBytes `json:"wire"`
}

// A refusedVector is what an implementation must refuse.
type refusedVector struct {
	Comment string `json:"comment"`

	// Who refuses it: "server" reads Bytes as a client's flight, "client" reads
	// them as the answer to the flight of the login vector named by Login,
	// "server packets" and "client packets" read them as the peer's stream after
	// that vector's handshake, "bundle" reads them as a CERTIFICATE and
	// "enrolment" as a PKCS#12 that somebody wants to keep.
	Reader string   `json:"reader"`
	Login  string   `json:"login,omitempty"`
	Bytes  hexBytes `json:"bytes"`

	// Reason is why: "protocol", "authentication", "login", "truncated", "no
	// flight", "retry after", "not pkcs12", "work" or "weak". In accepted.json
	// there is none.
	Reason string `json:"reason,omitempty"`

	// Released is what the reader has rightly been given, before it refused or
	// in all.
	Released hexBytes `json:"released,omitempty"`
}

var refusalReasons = map[string]error{
	"protocol":       ErrProtocol,
	"authentication": ErrAuthentication,
	"login":          ErrLogin,
	"truncated":      io.ErrUnexpectedEOF,
	"no flight":      ErrNoFlight,
	"retry after":    errRetry,
	"not pkcs12":     bundle.ErrNotPKCS12,
	"work":           bundle.ErrWork,
	"weak":           bundle.ErrWeak,
}

var errRetry = errors.New("RETRY-AFTER")

func TestVectors(t *testing.T) {
	if *update {
		generateVectors(t)
	}
	var logins = map[string]loginVector{}
	for _, path := range must(filepath.Glob("testdata/login-*.json")) {
		name := strings.TrimSuffix(strings.TrimPrefix(filepath.Base(path), "login-"), ".json")
		var v loginVector
		readVector(t, path, &v)
		logins[name] = v
		t.Run("login-"+name, func(t *testing.T) { checkLogin(t, v) })
	}
	if len(logins) < 7 {
		t.Fatalf("%d login vectors", len(logins))
	}
	var refused []refusedVector
	readVector(t, "testdata/refused.json", &refused)
	for i, v := range refused {
		t.Run(fmt.Sprintf("refused-%d", i), func(t *testing.T) { checkRefused(t, v, logins[v.Login]) })
	}
	var accepted []refusedVector
	readVector(t, "testdata/accepted.json", &accepted)
	for i, v := range accepted {
		if v.Reason != "" {
			t.Errorf("accepted-%d has a reason", i)
		}
		t.Run(fmt.Sprintf("accepted-%d", i), func(t *testing.T) { checkRefused(t, v, logins[v.Login]) })
	}
	var frames []frameVector
	readVector(t, "testdata/risp.json", &frames)
	for _, v := range frames {
		checkFrame(t, v)
	}
	var ratchet ratchetVector
	readVector(t, "testdata/ratchet.json", &ratchet)
	h := newHalfConn(classic, ratchet.Secret, clientToServer)
	h.seq = ratchetPackets - 1
	for _, p := range ratchet.Packets {
		if got := classic.seal(h, nil, p.Plaintext); !bytes.Equal(got, p.Wire) || h.seq != p.Number+1 {
			t.Errorf("packet %d", p.Number)
		}
	}
	if !bytes.Equal(h.keys[dataUse].key[:], ratchet.DataKey) || !bytes.Equal(h.keys[verifyUse].key[:], ratchet.VerifyKey) {
		t.Error("keys after the ratchet")
	}
}

func readVector(t *testing.T, path string, v any) {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	if err := dec.Decode(v); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
}

// checkLogin follows SPEC.md through a vector, as a client would and as a
// server that has the session key would.
func checkLogin(t *testing.T, v loginVector) {
	equal := func(what string, got, want []byte) {
		t.Helper()
		if !bytes.Equal(got, want) {
			t.Errorf("%s: %x, want %x", what, got, want)
		}
	}
	t1 := newClientTranscript()
	t1.Write(v.ClientFlight)
	equal("T1", t1.Sum(nil), v.T1)
	t2 := newServerTranscript(v.T1)
	t2.Write(v.ServerFlight)
	equal("T2", t2.Sum(nil), v.T2)
	cert := must(x509.ParseCertificate(v.Certificate))
	sum := sha256.Sum256(cert.Raw)
	equal("thumbprint", sum[:], v.Thumbprint)
	if key := must(CertificateKey(cert)); key.String() != v.KeyType {
		t.Errorf("key type %v, want %s", key, v.KeyType)
	}

	// the flight of the server, as a client reads it
	c := Client(fed{bytes.NewReader(v.ServerFlight)}, &ClientConfig{})
	c.state.Interactive = v.Username != ""
	flight, err := c.readServerFlight(v.T1)
	if err != nil {
		t.Fatal(err)
	}
	equal("T2 as read", flight.t2, v.T2)
	equal("CERTIFICATE", flight.certificate, v.PKCS12)
	key := must(x509.ParsePKCS8PrivateKey(v.PrivateKey))
	if v.Username != "" {
		if key, _, err = unlock(flight.certificate, v.Passphrase); err != nil {
			t.Fatal(err)
		}
	}
	sessionKey, err := openSessionKey(key, flight.sessionKey, v.T1)
	if err != nil {
		t.Fatal(err)
	}
	equal("session key", sessionKey, v.SessionKey)
	checkEncryption(t, v, key, flight.sessionKey)
	equal("secret", connectionSecret(v.T2, sessionKey, nil), v.Secret)

	for _, direction := range []struct {
		name           string
		late, lateHash []byte
		data, verify   []byte
		packets        []packetVector
	}{
		{clientToServer, v.ClientLate, v.ClientLateHash, v.ClientDataKey, v.ClientVerifyKey, v.ClientPackets},
		{serverToClient, v.ServerLate, v.ServerLateHash, v.ServerDataKey, v.ServerVerifyKey, v.ServerPackets},
	} {
		late := labelled(labelLate)
		late.Write(direction.late)
		equal(direction.name+" late", late.Sum(nil), direction.lateHash)
		out := newHalfConn(classic, v.Secret, direction.name)
		in := newHalfConn(classic, v.Secret, direction.name)
		copy(out.late[:], direction.lateHash)
		copy(in.late[:], direction.lateHash)
		equal(direction.name+" data", out.keys[dataUse].key[:], direction.data)
		equal(direction.name+" verify", out.keys[verifyUse].key[:], direction.verify)
		for _, p := range direction.packets {
			if out.seq != p.Number {
				t.Fatalf("packet %d is number %d", p.Number, out.seq)
			}
			var wire []byte
			if p.End {
				wire = classic.sealEnd(out, nil)
			} else {
				wire = classic.seal(out, nil, p.Plaintext)
			}
			equal("wire", wire, p.Wire)
			got, err := classic.open(in, bytes.Clone(p.Wire), v.MaxPacket)
			if err != nil || got.end != p.End {
				t.Fatalf("%s packet %d: %v", direction.name, p.Number, err)
			}
			equal("plaintext", got.plaintext, p.Plaintext)
		}
	}
}

// checkEncryption does the server's encryption again with the vector's
// randomness.
func checkEncryption(t *testing.T, v loginVector, key any, encrypted []byte) {
	t.Helper()
	if v.HPKESecret == nil {
		return // RSAES-OAEP: the client's decryption is the check
	}
	var curve ecdh.Curve
	switch key := key.(type) {
	case *ecdsa.PrivateKey:
		curve = must(key.ECDH()).Curve()
	case *ecdh.PrivateKey:
		curve = key.Curve()
	}
	if enc := must(curve.NewPrivateKey(v.HPKESecret)).PublicKey().Bytes(); !bytes.HasPrefix(encrypted, enc) {
		t.Error("the ephemeral key is another")
	}
}

func checkRefused(t *testing.T, v refusedVector, login loginVector) {
	want, ok := refusalReasons[v.Reason]
	if !ok && v.Reason != "" {
		t.Fatalf("no reason %q", v.Reason)
	}
	var err error
	var released []byte
	switch v.Reader {
	case "server":
		err = Server(fed{bytes.NewReader(v.Bytes)}, setup().server).Handshake()
	case "client":
		c := Client(fed{bytes.NewReader(v.Bytes)}, &ClientConfig{})
		c.state.Interactive = login.Username != ""
		var flight *serverFlight
		if flight, err = c.readServerFlight(login.T1); err == nil {
			key := must(x509.ParsePKCS8PrivateKey(login.PrivateKey))
			if login.Username != "" {
				key, _, err = unlock(flight.certificate, login.Passphrase)
			}
			if err == nil {
				_, err = openSessionKey(key, flight.sessionKey, login.T1)
			}
		}
	case "server packets", "client packets":
		c := newConn(fed{bytes.NewReader(v.Bytes)}, 0)
		c.isClient = v.Reader == "client packets"
		c.begin(classic, login.T2, bytes.Clone(login.SessionKey), nil)
		c.handshakeDone.Store(true)
		released, err = io.ReadAll(c)
	case "bundle":
		err = bundle.CheckWork(v.Bytes)
	case "enrolment":
		err = bundle.CheckStrength(v.Bytes)
	default:
		t.Fatalf("no reader %q", v.Reader)
	}
	var retry *RetryAfterError
	if errors.As(err, &retry) {
		err = errRetry
	}
	if !errors.Is(err, want) {
		t.Errorf("%s: %v, want %v", v.Comment, err, want)
	}
	if !bytes.Equal(released, v.Released) {
		t.Errorf("%s: released %x, want %x", v.Comment, released, v.Released)
	}
}

// A frameVector is a stream of RISP commands.
type frameVector struct {
	Comment  string        `json:"comment"`
	Bytes    hexBytes      `json:"bytes"`
	Commands []frameHeader `json:"commands"`
	Complete bool          `json:"complete"` // nothing is missing at the end
}

type frameHeader struct {
	ID        string   `json:"id"`
	Parameter hexBytes `json:"parameter"`
}

func checkFrame(t *testing.T, v frameVector) {
	t.Helper()
	d := risp.NewDecoder(bytes.NewReader(v.Bytes), uint64(len(v.Bytes)))
	for _, want := range v.Commands {
		h, err := d.Next()
		if err != nil || h.ID.String() != want.ID {
			t.Fatalf("%s: %v, %v", v.Comment, h.ID, err)
		}
		if p, err := d.AppendParameter(nil); err != nil || !bytes.Equal(p, want.Parameter) {
			t.Errorf("%s: %x, %v", v.Comment, p, err)
		}
	}
	_, err := d.Next()
	if complete := err == io.EOF || errors.Is(err, risp.ErrLimit) && len(v.Bytes) == 0; complete != v.Complete && !(v.Complete && errors.Is(err, risp.ErrLimit)) {
		t.Errorf("%s: %v", v.Comment, err)
	}
}

// A ratchetVector is the last packet under a direction's first keys and the
// first under its second.
type ratchetVector struct {
	Comment   string         `json:"comment"`
	Secret    hexBytes       `json:"secret"`
	Packets   []packetVector `json:"packets"` // of c2s
	DataKey   hexBytes       `json:"key_c2s_data_after"`
	VerifyKey hexBytes       `json:"key_c2s_verify_after"`
}

// From here on: how they were made.

func generateVectors(t *testing.T) {
	cryptotest.SetGlobalRandom(t, 1)
	must(0, os.MkdirAll("testdata", 0o755))
	logins := map[string]loginVector{}
	for _, kind := range keyKinds {
		logins[kind] = generateLogin(t, kind, loginOptions{})
	}
	logins["p256-interactive"] = generateLogin(t, "p256", loginOptions{username: "Alice@Example.com", passphrase: "correct horse battery staple"})
	logins["seed-client"] = generateLogin(t, "p256", loginOptions{noNonce: true, lateMaxPacket: 512})
	logins["unknown-commands"] = generateLogin(t, "x25519", loginOptions{unknown: true})
	for name, v := range logins {
		writeVector("login-"+name, v)
	}
	writeVector("refused", generateRefused(logins))
	writeVector("accepted", generateAccepted(logins))
	writeVector("risp", generateFrames())

	secret := make([]byte, 32)
	rand.Read(secret)
	h := newHalfConn(classic, secret, clientToServer)
	h.seq = ratchetPackets - 1
	v := ratchetVector{Comment: "packets 16383 and 16384 of c2s, without any before them", Secret: secret}
	for _, p := range []string{"the last packet of a stretch", "the first of the next"} {
		v.Packets = append(v.Packets, sealVector(h, p))
	}
	v.DataKey, v.VerifyKey = h.keys[dataUse].key[:], h.keys[verifyUse].key[:]
	writeVector("ratchet", v)
}

func writeVector(name string, v any) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetIndent("", "  ")
	must(0, enc.Encode(v))
	must(0, os.WriteFile(filepath.Join("testdata", name+".json"), b.Bytes(), 0o644))
}

type loginOptions struct {
	username, passphrase string
	noNonce              bool
	lateMaxPacket        uint64
	unknown              bool
}

func generateLogin(t *testing.T, kind string, o loginOptions) loginVector {
	key := testKeys()[kind]
	name := "machine"
	if o.username != "" {
		name = must(NormalizeName(o.username))
	}
	cert := testCertificate(key, name)
	thumbprint := sha256.Sum256(cert.Raw)
	v := loginVector{
		Comment:     "classic suite, certificate account with a key of type " + must(CertificateKey(cert)).String(),
		Certificate: cert.Raw, PrivateKey: must(x509.MarshalPKCS8PrivateKey(key)), Thumbprint: thumbprint[:],
		KeyType: must(CertificateKey(cert)).String(), MaxPacket: DefaultMaxPacket,
	}
	if !o.noNonce {
		v.Nonce = make([]byte, nonceLen)
		rand.Read(v.Nonce)
		v.ClientFlight = risp.AppendString(v.ClientFlight, cmdNonce, v.Nonce)
	}
	if o.unknown {
		v.Comment = "classic suite, unknown commands of every kind, NOPs and a MAX-PACKET in the flight"
		v.ClientFlight = cat(nop, v.ClientFlight, unknowns, maxPacketCommand(1024), nop)
		v.ClientLate = cat(unknowns, nop)
		v.MaxPacket = 1024
		v.ServerFlight = maxPacketCommand(1024)
	}
	if o.username != "" {
		v.Comment = "classic suite, interactive account"
		v.Username, v.Passphrase = o.username, o.passphrase
		// few iterations, so that the vector is quickly read
		v.PKCS12 = must(pkcs12.Modern2023.WithIterations(2048).Encode(key, cert, nil, o.passphrase))
		v.ClientFlight = risp.AppendString(v.ClientFlight, cmdUsername, name)
		v.ServerFlight = risp.AppendString(v.ServerFlight, cmdCertificate, v.PKCS12)
	} else {
		v.ClientFlight = risp.AppendString(v.ClientFlight, cmdCertificateID, v.Thumbprint)
	}
	if o.lateMaxPacket > 0 {
		v.Comment = "classic suite, the seed's own client: no NONCE, MAX-PACKET after the account command, mimicked late"
		v.ClientLate = maxPacketCommand(o.lateMaxPacket)
		v.ServerLate = maxPacketCommand(o.lateMaxPacket)
		v.MaxPacket = int(o.lateMaxPacket)
	}
	sum := newClientTranscript()
	sum.Write(v.ClientFlight)
	v.T1 = sum.Sum(nil)

	v.SessionKey = make([]byte, sessionKeyLen)
	rand.Read(v.SessionKey)
	// crypto/hpke and crypto/rsa draw from a source that can be seeded: what
	// they draw first is drawn here before them.
	seed := uint64(v.SessionKey[0])<<8 | uint64(v.SessionKey[1])
	cryptotest.SetGlobalRandom(t, seed)
	switch k := key.(type) {
	case *ecdsa.PrivateKey:
		v.HPKESecret = must(must(k.ECDH()).Curve().GenerateKey(rand.Reader)).Bytes()
	case *ecdh.PrivateKey:
		v.HPKESecret = must(k.Curve().GenerateKey(rand.Reader)).Bytes()
	case crypto.Decrypter:
		v.OAEPSeed = make([]byte, sha256.Size)
		rand.Read(v.OAEPSeed)
	}
	cryptotest.SetGlobalRandom(t, seed)
	encrypted := must(must(CertificateKey(cert)).sealSessionKey(v.SessionKey, v.T1))
	v.ServerFlight = risp.AppendString(v.ServerFlight, cmdSessionKey, encrypted)
	sum = newServerTranscript(v.T1)
	sum.Write(v.ServerFlight)
	v.T2 = sum.Sum(nil)
	v.Secret = connectionSecret(v.T2, v.SessionKey, nil)

	direction := func(name string, late []byte, plain ...string) (hash, data, verify hexBytes, packets []packetVector) {
		l := labelled(labelLate)
		l.Write(late)
		h := newHalfConn(classic, v.Secret, name)
		l.Sum(h.late[:0])
		data, verify = bytes.Clone(h.keys[dataUse].key[:]), bytes.Clone(h.keys[verifyUse].key[:])
		for _, p := range plain {
			packets = append(packets, sealVector(h, p))
		}
		v := packetVector{Number: h.seq, End: true, Plaintext: hexBytes{}}
		v.DataAAD = bytes.Clone(h.additionalData(risp.AppendStringHeader(nil, cmdEnd, tagLen)))
		v.Wire = classic.sealEnd(h, nil)
		return h.late[:], data, verify, append(packets, v)
	}
	long := strings.Repeat("flat ", v.MaxPacket/5+1)[:v.MaxPacket]
	if v.MaxPacket > 1024 {
		long = "PING\r\n"
	}
	v.ClientLateHash, v.ClientDataKey, v.ClientVerifyKey, v.ClientPackets = direction(clientToServer, v.ClientLate, "", "hello", long)
	v.ServerLateHash, v.ServerDataKey, v.ServerVerifyKey, v.ServerPackets = direction(serverToClient, v.ServerLate, "hello yourself", "+PONG\r\n")
	return v
}

// sealVector seals a packet, and notes its additional data.
func sealVector(h *halfConn, plaintext string) packetVector {
	v := packetVector{Number: h.seq, Plaintext: []byte(plaintext)}
	v.DataAAD = bytes.Clone(h.additionalData(risp.AppendStringHeader(
		risp.AppendUint(nil, cmdDataLength, uint64(len(plaintext))), cmdData, len(plaintext)+tagLen)))
	v.SumAAD = bytes.Clone(h.additionalData(risp.AppendStringHeader(nil, cmdVerificationSHA256, sumLen+tagLen)))
	v.Wire = classic.seal(h, nil, []byte(plaintext))
	return v
}

func generateRefused(logins map[string]loginVector) (all []refusedVector) {
	add := func(reader, login, reason, comment string, b []byte, released ...string) {
		all = append(all, refusedVector{comment, reader, login, b, reason, hexBytes(strings.Join(released, ""))})
	}
	v := logins["p256"]
	person := logins["p256-interactive"]

	flight := func(comment string, b ...[]byte) { add("server", "", "protocol", comment, cat(b...)) }
	flight("begins with a command that is none of the protocol", unknowns, v.ClientFlight)
	flight("HTTP", []byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n"))
	flight("NONCE of 15 bytes", append([]byte{0x80, 0x05, 15}, make([]byte, 15)...))
	flight("two NONCEs", testNonce, testNonce, v.ClientFlight)
	flight("two MAX-PACKETs", maxPacketCommand(512), maxPacketCommand(512), v.ClientFlight)
	flight("an empty USERNAME", testNonce, []byte{0x80, 0x01, 0})
	flight("CERTIFICATE-ID of 31 bytes", testNonce, append([]byte{0x80, 0x02, 31}, make([]byte, 31)...))
	flight("a server's command", testNonce, []byte{0x90, 0x02, 0, 1, 0})
	flight("a packet before the account command", testNonce, risp.AppendUint(nil, cmdDataLength, 0))
	flight("a command that announces 2^63 bytes", testNonce, []byte{0xbf, 0xff, 0x80, 0, 0, 0, 0, 0, 0, 0})
	flight("more than 8 KiB before the account command", testNonce, risp.AppendString(nil, 0x9fff, make([]byte, maxClientFlight)))
	flight("more than 64 commands before the account command", bytes.Repeat(nop, maxFlight+1))
	flight("a reserved command of a wrong length", testNonce, append([]byte{0x80, 0x10, 31}, make([]byte, 31)...))
	flight("a reserved command twice", bytes.Repeat(risp.AppendString(nil, cmdShareX25519, make([]byte, 32)), 2))
	add("server", "", "truncated", "half a flight", v.ClientFlight[:20])

	answer := func(login, reason, comment string, b ...[]byte) { add("client", login, reason, comment, cat(b...)) }
	answer("p256", "login", "the flight of another connection, replayed: it is bound to another NONCE", logins["seed-client"].ServerFlight)
	replayed := person
	answer("p256-interactive", "login", "SESSION-KEY of another connection, replayed beside the right CERTIFICATE",
		risp.AppendString(nil, cmdCertificate, replayed.PKCS12), v.ServerFlight)
	altered := bytes.Clone(v.ServerFlight)
	altered[len(altered)-1] ^= 1
	answer("p256", "login", "one bit of SESSION-KEY flipped", altered)
	altered = bytes.Clone(logins["rsa2048"].ServerFlight)
	altered[len(altered)-1] ^= 1
	answer("rsa2048", "login", "one bit of SESSION-KEY flipped", altered)
	answer("p256", "protocol", "CERTIFICATE for a certificate account", risp.AppendString(nil, cmdCertificate, person.PKCS12), v.ServerFlight)
	answer("p256-interactive", "protocol", "no CERTIFICATE for an interactive account", v.ServerFlight)
	answer("p256", "protocol", "SESSION-KEY of 1025 bytes", risp.AppendString(nil, cmdSessionKey, make([]byte, 1025)))
	answer("p256", "protocol", "SERVER-KEY in a classic flight", risp.AppendString(nil, cmdServerKeyEd25519, make([]byte, 32)), v.ServerFlight)
	answer("p256", "protocol", "a share that the client did not ask for", risp.AppendString(nil, cmdShareX25519, make([]byte, 32)), v.ServerFlight)
	answer("p256", "protocol", "more than 32 KiB before SESSION-KEY", bytes.Repeat(risp.AppendString(nil, 0x9fff, make([]byte, 8192)), 4), v.ServerFlight)
	answer("p256", "protocol", "more than 64 commands before SESSION-KEY", bytes.Repeat(nop, maxFlight+1))
	answer("p256", "retry after", "RETRY-AFTER", risp.AppendUint(nil, cmdRetryAfter, 5))
	answer("p256", "retry after", "RETRY-AFTER after a NOP and an unknown command", nop, []byte{0x7f, 0xff}, risp.AppendUint(nil, cmdRetryAfter, 5))
	answer("p256", "no flight", "the server closed", nil)
	answer("p256", "no flight", "the server closed in the middle", v.ServerFlight[:50])

	for _, side := range []struct {
		reader  string
		packets []packetVector
	}{{"server packets", v.ClientPackets}, {"client packets", v.ServerPackets}} {
		var w [][]byte
		var plain []string
		for _, p := range side.packets {
			w = append(w, p.Wire)
			plain = append(plain, string(p.Plaintext))
		}
		last := len(w) - 1
		stream := func(reason, comment string, released []string, b ...[]byte) {
			add(side.reader, "p256", reason, comment, cat(b...), released...)
		}
		flip := func(b []byte, bit int) []byte {
			b = bytes.Clone(b)
			b[len(b)-1-bit/8] ^= 1 << (bit % 8)
			return b
		}
		stream("truncated", "no END", plain, w[:last]...)
		stream("truncated", "cut in a packet", plain[:1], w[0], w[1][:20])
		stream("authentication", "packet 0 dropped", nil, w[1:]...)
		stream("authentication", "packet 0 doubled", plain[:1], w[0], w[0])
		stream("authentication", "packets 0 and 1 swapped", nil, w[1], w[0])
		stream("authentication", "END too early", plain[:1], w[0], w[last])
		stream("authentication", "a late NOP that was not sent", nil, append([][]byte{nop}, w...)...)
		stream("authentication", "one bit of the sum flipped", nil, flip(w[0], 200))
		stream("authentication", "one bit of END's tag flipped", plain, append(append([][]byte{}, w[:last]...), flip(w[last], 0))...)
		p := parts(w[1])
		stream("protocol", "DATA twice in a packet", plain[:1], w[0], p[0], p[1], p[1], p[2])
		stream("protocol", "END inside a packet", plain[:1], w[0], p[0], w[last])
		stream("protocol", "65 NOPs inside a packet, 40 and 25", plain[:1], w[0], p[0], bytes.Repeat(nop, 40), p[1], bytes.Repeat(nop, 25), p[2])
		stream("protocol", "a late NONCE", nil, testNonce, w[0])
		stream("protocol", "a late command that is reserved", nil, risp.AppendString(nil, cmdShareX25519, make([]byte, 32)), w[0])
		stream("protocol", "more than 8 KiB late", nil, risp.AppendString(nil, 0x9fff, make([]byte, maxLate)), w[0])
		stream("protocol", "bytes after END", plain, append(append([][]byte{}, w...), nop)...)
		stream("protocol", "an unknown command among packets", plain[:1], w[0], []byte{0x7f, 0xff}, w[1])
		stream("protocol", "MAX-PACKET among packets", plain[:1], w[0], maxPacketCommand(512), w[1])
		stream("protocol", "two late MAX-PACKETs", nil, maxPacketCommand(512), maxPacketCommand(512), w[0])
		stream("protocol", "DATA above the agreed MAX-PACKET", plain[:1], w[0], risp.AppendStringHeader(nil, cmdData, DefaultMaxPacket+tagLen+1))
		stream("protocol", "DATA-LENGTH above the agreed MAX-PACKET", plain[:1], w[0], risp.AppendUint(nil, cmdDataLength, DefaultMaxPacket+1))
		stream("protocol", "a packet of another suite", plain[:1], w[0], risp.AppendString(nil, cmdSealed, make([]byte, 16)))
	}

	key := testKeys()["p256"]
	cert := testCertificate(key, "x")
	encode := func(e *pkcs12.Encoder, iterations int) []byte {
		return must(e.WithIterations(iterations).Encode(key, cert, nil, testPassphrase))
	}
	add("bundle", "", "not pkcs12", "no ASN.1", []byte("-----BEGIN CERTIFICATE-----"))
	add("bundle", "", "not pkcs12", "longer than 16 KiB", make([]byte, maxCertificateLen+1))
	good := encode(pkcs12.Modern2023, 1)
	add("bundle", "", "not pkcs12", "cut", good[:len(good)-1])
	add("bundle", "", "work", "a MAC of 2^31-1 iterations", absurdMAC(good))
	add("enrolment", "", "weak", "RC2", encode(pkcs12.LegacyRC2, 600_000))
	add("enrolment", "", "weak", "3DES", encode(pkcs12.LegacyDES, 600_000))
	add("enrolment", "", "weak", "599,999 iterations", encode(pkcs12.Modern2023, 599_999))
	return all
}

// generateAccepted makes streams of the login vector p256 that are odd, but right.
func generateAccepted(logins map[string]loginVector) (all []refusedVector) {
	v := logins["p256"]
	for _, side := range []struct {
		reader, direction string
	}{{"server packets", clientToServer}, {"client packets", serverToClient}} {
		stream := func(comment string, late []byte, plain []string, change func(packet [][]byte) [][]byte) {
			h := newHalfConn(classic, v.Secret, side.direction)
			l := labelled(labelLate)
			l.Write(late)
			l.Sum(h.late[:0])
			b := bytes.Clone(late)
			for _, p := range plain {
				b = append(b, cat(change(parts(classic.seal(h, nil, []byte(p))))...)...)
			}
			all = append(all, refusedVector{Comment: comment, Reader: side.reader, Login: "p256",
				Bytes: classic.sealEnd(h, b), Released: hexBytes(strings.Join(plain, ""))})
		}
		same := func(p [][]byte) [][]byte { return p }
		for _, order := range [][3]int{{0, 2, 1}, {1, 0, 2}, {1, 2, 0}, {2, 0, 1}, {2, 1, 0}} {
			stream(fmt.Sprintf("the parts of each packet in the order %v", order), nil, []string{"one", "two"},
				func(p [][]byte) [][]byte { return [][]byte{p[order[0]], p[order[1]], p[order[2]]} })
		}
		stream("64 NOPs inside each packet", nil, []string{"one", "two"}, func(p [][]byte) [][]byte {
			return [][]byte{p[0], bytes.Repeat(nop, 60), p[1], bytes.Repeat(nop, 4), p[2]}
		})
		stream("100 NOPs after each packet", nil, []string{"one", "two"}, func(p [][]byte) [][]byte { return append(p, bytes.Repeat(nop, 100)) })
		stream("END as packet 0", nil, nil, same)
		stream("late: NOPs, unknown commands and MAX-PACKET", cat(nop, unknowns, maxPacketCommand(1000), nop), []string{"one"}, same)
		stream("late MAX-PACKET of 1, which counts as 64", maxPacketCommand(1), []string{strings.Repeat("x", 64)}, same)
	}
	return all
}

func generateFrames() (all []frameVector) {
	add := func(comment string, complete bool, b []byte, commands ...frameHeader) {
		all = append(all, frameVector{comment, b, commands, complete})
	}
	params := map[byte]int{0x0: 1, 0x1: 2, 0x2: 4, 0x3: 8, 0x4: 16, 0x5: 32, 0x6: 64, 0x7: 0, 0xc: 0, 0xd: 0, 0xe: 0, 0xf: 0}
	var stream []byte
	var commands []frameHeader
	for class := range byte(16) {
		id := []byte{class<<4 | 0x0f, 0xff}
		p := bytes.Repeat([]byte{class}, 5)
		var b []byte
		if n, ok := params[class]; ok {
			p = bytes.Repeat([]byte{class}, n)
			b = append(id, p...)
		} else {
			length := make([]byte, 1<<(class-8))
			length[len(length)-1] = byte(len(p))
			b = cat(id, length, p)
		}
		c := frameHeader{"0x" + hex.EncodeToString(id), p}
		add(fmt.Sprintf("a command of class %x", class), true, b, c)
		if len(b) > 2 {
			add(fmt.Sprintf("a command of class %x, cut", class), false, b[:len(b)-1])
		}
		stream, commands = append(stream, b...), append(commands, c)
	}
	add("one of each class", true, stream, commands...)
	return all
}
