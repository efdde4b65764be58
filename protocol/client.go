package protocol

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/flatauth/caddy-flatauth/protocol/bundle"
	"github.com/flatauth/caddy-flatauth/protocol/risp"
)

// DefaultAnswerTimeout is how long a client waits for the server's flight.
const DefaultAnswerTimeout = 30 * time.Second

// A ClientConfig says who a client logs in as: a person by Username and
// Passphrase, or a machine by Certificate and PrivateKey. It can be shared by
// any number of connections and must not be changed once used.
type ClientConfig struct {
	// Username is the name of an interactive account: NAME or NAME@ZONE.
	Username string

	// Passphrase unlocks what the server sends for Username. It never leaves
	// the client.
	Passphrase string

	// Certificate is the certificate of a certificate account.
	Certificate *x509.Certificate

	// PrivateKey belongs to Certificate. It is a [crypto.Decrypter] that honours
	// [rsa.OAEPOptions], an [ecdh.KeyExchanger] or an *[ecdsa.PrivateKey]; so
	// it may be in hardware.
	PrivateKey any

	// MaxPacket is the largest plaintext of a packet, in bytes, that this side
	// takes: from 64 to 16 MiB. If 0, nothing is said, which means
	// DefaultMaxPacket.
	MaxPacket int

	// AnswerTimeout is how long the server may take for its flight. 0 means
	// DefaultAnswerTimeout.
	AnswerTimeout time.Duration
}

// Client returns the client's side of a connection whose transport is conn.
func Client(conn net.Conn, config *ClientConfig) *Conn {
	c := newConn(conn, config.MaxPacket)
	c.client, c.isClient = config, true
	return c
}

// Dial connects to the address, such as "example.com:7000", over the network,
// such as "tcp", and logs in.
func Dial(ctx context.Context, network, address string, config *ClientConfig) (*Conn, error) {
	if err := config.Check(); err != nil {
		return nil, err
	}
	var d net.Dialer
	conn, err := d.DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	c := Client(conn, config)
	if err := c.HandshakeContext(ctx); err != nil {
		conn.Close()
		return nil, err
	}
	return c, nil
}

// Check reports what is wrong with the configuration. Dial and a handshake call
// it before anything is sent.
func (config *ClientConfig) Check() error {
	if config.Username != "" {
		if config.Certificate != nil || config.PrivateKey != nil {
			return errors.New("protocol: both a username and a certificate to log in with")
		}
		if _, err := NormalizeName(config.Username); err != nil {
			return err
		}
		passphrase, err := NormalizePassphrase(config.Passphrase)
		if err != nil {
			return err
		}
		return bundle.CheckPassphrase(passphrase)
	}
	if config.Certificate == nil || config.PrivateKey == nil {
		return errors.New("protocol: neither a username nor a certificate with its private key to log in with")
	}
	want, err := CertificateKey(config.Certificate)
	if err != nil {
		return err
	}
	got, err := publicOf(config.PrivateKey)
	if err != nil {
		return err
	}
	if !got.equal(want) {
		return errors.New("protocol: the private key does not belong to the certificate")
	}
	return nil
}

// clientHandshake sends the flight, opens the session key in the answer, and
// proves it with an empty packet: a server whose upstream speaks first waits
// for that.
func (c *Conn) clientHandshake(ctx context.Context) error {
	if err := c.client.Check(); err != nil {
		return err
	}
	flight := make([]byte, 0, 512)
	if c.client.MaxPacket != 0 {
		c.ownMax, c.saidMax = c.wantMax, true
		flight = risp.AppendUint(flight, cmdMaxPacket, uint64(c.ownMax))
	}
	nonce := make([]byte, nonceLen)
	rand.Read(nonce)
	flight = risp.AppendString(flight, cmdNonce, nonce)
	if c.client.Username != "" {
		name, err := NormalizeName(c.client.Username)
		if err != nil {
			return err
		}
		c.state.Account, c.state.Interactive = name, true
		flight = risp.AppendString(flight, cmdUsername, name)
	} else {
		thumbprint := sha256.Sum256(c.client.Certificate.Raw)
		flight = risp.AppendString(flight, cmdCertificateID, thumbprint[:])
	}
	transcript := newClientTranscript()
	transcript.Write(flight)
	t1 := transcript.Sum(nil)

	var answer *serverFlight
	err := c.within(ctx, orDefault(c.client.AnswerTimeout, DefaultAnswerTimeout), "waiting for the server's answer (is it a flatauth server?)", func(context.Context) (err error) {
		if _, err := c.conn.Write(flight); err != nil {
			return err
		}
		answer, err = c.readServerFlight(t1)
		return err
	})
	if err != nil {
		return err
	}

	key := c.client.PrivateKey
	c.state.Certificate = c.client.Certificate
	if c.state.Interactive {
		if key, c.state.Certificate, err = unlock(answer.certificate, c.client.Passphrase); err != nil {
			return err
		}
	}
	sessionKey, err := openSessionKey(key, answer.sessionKey, t1)
	if err != nil {
		return err
	}
	defer clear(sessionKey)
	c.begin(classic, answer.t2, sessionKey, nil)
	c.seal(nil)
	return c.within(ctx, orDefault(c.client.AnswerTimeout, DefaultAnswerTimeout), "sending the first packet", func(context.Context) error {
		return c.flush()
	})
}

// A serverFlight is what a client needs of it.
type serverFlight struct {
	certificate []byte // of an interactive account
	sessionKey  []byte
	t2          []byte
}

// readServerFlight reads through SESSION-KEY.
func (c *Conn) readServerFlight(t1 []byte) (*serverFlight, error) {
	t2 := newServerTranscript(t1)
	f := newFlightReader(&c.in.input, inServerFlight, maxServerFlight, t2)
	flight := new(serverFlight)
	for {
		id, err := f.next()
		if err != nil {
			return nil, flightError(err)
		}
		switch id {
		case cmdMaxPacket:
			n, err := f.maxPacket()
			if err != nil {
				return nil, flightError(err)
			}
			c.setPeerMax(n)
		case cmdCertificate:
			if !c.state.Interactive {
				return nil, protocolError("CERTIFICATE for a certificate account")
			}
			if flight.certificate, err = f.dec.AppendParameter(nil); err != nil {
				return nil, flightError(err)
			}
		case cmdSessionKey:
			if flight.sessionKey, err = f.dec.AppendParameter(nil); err != nil {
				return nil, flightError(err)
			}
			if c.state.Interactive && flight.certificate == nil {
				return nil, protocolError("SESSION-KEY without a CERTIFICATE")
			}
			flight.t2 = t2.Sum(nil)
			return flight, nil
		case cmdRetryAfter:
			seconds, err := f.dec.Uint()
			if err != nil {
				return nil, flightError(err)
			}
			return nil, &RetryAfterError{time.Duration(min(seconds, 60)) * time.Second}
		}
	}
}

// flightError names the server's closing of the connection in its flight. A
// server that closes with some of the client's bytes unread resets it.
func flightError(err error) error {
	if err == io.EOF || err == io.ErrUnexpectedEOF || isReset(err) {
		return fmt.Errorf("%w (%w)", ErrNoFlight, err)
	}
	return err
}

// unlock opens an interactive account's CERTIFICATE. The account's certificate
// is the one that the private key belongs to.
func unlock(der []byte, passphrase string) (key any, cert *x509.Certificate, err error) {
	if err := bundle.CheckWork(der); err != nil {
		return nil, nil, fmt.Errorf("%w: %w", ErrAbsurdBundle, err)
	}
	if passphrase, err = NormalizePassphrase(passphrase); err != nil {
		return nil, nil, err
	}
	contents, err := bundle.Open(der, passphrase)
	if errors.Is(err, bundle.ErrPassphrase) {
		return nil, nil, ErrLogin
	}
	if err != nil {
		return nil, nil, fmt.Errorf("opening CERTIFICATE: %w", err)
	}
	cert, err = AccountCertificate(contents)
	return contents.PrivateKey, cert, err
}

// AccountCertificate returns the certificate of a bundle that its private key
// belongs to.
func AccountCertificate(contents *bundle.Contents) (*x509.Certificate, error) {
	pub, err := publicOf(contents.PrivateKey)
	if err != nil {
		return nil, err
	}
	for _, cert := range contents.Certificates {
		if key, err := CertificateKey(cert); err == nil && key.equal(pub) {
			return cert, nil
		}
	}
	return nil, errors.New("no certificate in the PKCS#12 belongs to its private key")
}
