package protocol

import (
	"context"
	"crypto/rand"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"net"
	"time"

	"github.com/flatauth/caddy-flatauth/protocol/risp"
)

// A Thumbprint is the SHA-256 of a certificate's DER encoding.
type Thumbprint [thumbprintLen]byte

// String is the thumbprint in lower-case hexadecimal.
func (t Thumbprint) String() string { return hex.EncodeToString(t[:]) }

// An Account is what a server needs to know of one.
type Account struct {
	// Name identifies the account, normalised by NormalizeName.
	Name string

	// Certificate is the account's certificate. Session keys are encrypted to
	// its public key.
	Certificate *x509.Certificate

	// Bundle is the passphrase-protected PKCS#12 of an interactive account, at
	// most 16 KiB: certificate and private key. It is empty for a certificate
	// account, whose private key the server does not have.
	Bundle []byte
}

// Accounts is where a server looks up who wants to log in. Its methods are
// called from many goroutines, and return an error that wraps
// [ErrUnknownAccount] if there is no such account or it may not log in.
type Accounts interface {
	// InteractiveAccount returns the interactive account of the normalised name.
	InteractiveAccount(ctx context.Context, name string) (*Account, error)

	// CertificateAccount returns the certificate account whose certificate has
	// the thumbprint.
	CertificateAccount(ctx context.Context, thumbprint Thumbprint) (*Account, error)
}

// ErrUnknownAccount is an account that does not exist or may not log in.
var ErrUnknownAccount = errors.New("no such account")

// Defaults of a [ServerConfig].
const (
	DefaultFlightTimeout = 10 * time.Second
	DefaultProofTimeout  = 60 * time.Second
)

// A ServerConfig configures a server. It can be shared by any number of
// connections and must not be changed once used.
type ServerConfig struct {
	// Accounts is required.
	Accounts Accounts

	// Decoys answers for accounts that do not exist, so that a stranger cannot
	// tell. If nil, the connection of an unknown account is closed at once.
	Decoys *Decoys

	// MaxPacket is the largest plaintext of a packet, in bytes, that this side
	// takes: from 64 to 16 MiB. 0 means DefaultMaxPacket.
	MaxPacket int

	// FlightTimeout is how long a client may take for its flight, and the
	// server for its answer. 0 means DefaultFlightTimeout.
	FlightTimeout time.Duration

	// ProofTimeout is how long a client may take from the server's answer to
	// its first packet: a small device derives the key of its passphrase
	// meanwhile. 0 means DefaultProofTimeout.
	ProofTimeout time.Duration
}

// Server returns the server's side of a connection whose transport is conn.
func Server(conn net.Conn, config *ServerConfig) *Conn {
	c := newConn(conn, config.MaxPacket)
	c.server = config
	return c
}

func newConn(conn net.Conn, maxPacket int) *Conn {
	c := &Conn{conn: conn, wantMax: DefaultMaxPacket, ownMax: DefaultMaxPacket, peerMax: DefaultMaxPacket}
	if maxPacket != 0 {
		c.wantMax = clampMaxPacket(uint64(max(maxPacket, 0)))
	}
	c.agreedMax.Store(DefaultMaxPacket)
	c.in.r = conn
	return c
}

// A LoginError is a login that a server did not accept.
type LoginError struct {
	Account     string     // the name that was given, normalised; "" if none was
	Thumbprint  Thumbprint // the thumbprint that was given, if Interactive is false
	Interactive bool
	Err         error

	noName bool // Account is what was given, and cannot be a name
}

func (e *LoginError) Error() string {
	if e.Interactive {
		return fmt.Sprintf("login as %q: %v", e.Account, e.Err)
	}
	return fmt.Sprintf("login with certificate %v: %v", e.Thumbprint, e.Err)
}

func (e *LoginError) Unwrap() error { return e.Err }

// serverHandshake answers the client's flight and waits for the first packet.
// Until that has been verified, nothing is written but the flight.
func (c *Conn) serverHandshake(ctx context.Context) error {
	login := &LoginError{}
	named := false
	err := c.within(ctx, orDefault(c.server.FlightTimeout, DefaultFlightTimeout), "the client's flight", func(ctx context.Context) error {
		t1 := newClientTranscript()
		if err := c.readClientFlight(t1, login); err != nil {
			return err
		}
		named = true
		return c.answer(ctx, t1.Sum(nil), login)
	})
	if err == nil {
		err = c.within(ctx, orDefault(c.server.ProofTimeout, DefaultProofTimeout), "the client's first packet", func(context.Context) error {
			return c.readPacket()
		})
		if err == io.EOF {
			err = nil // an END can be the first packet as well: it proves as much
		}
	}
	if named && login.Err == nil {
		login.Err = err
	}
	if login.Err != nil {
		return login
	}
	return err
}

func orDefault(d, def time.Duration) time.Duration {
	if d == 0 {
		return def
	}
	return d
}

// readClientFlight reads through the account command, which goes into login.
func (c *Conn) readClientFlight(t1 hash.Hash, login *LoginError) error {
	f := newFlightReader(&c.in.input, inClientFlight, maxClientFlight, t1)
	for {
		id, err := f.next()
		if err != nil {
			if err == io.EOF && f.count > 0 {
				err = io.ErrUnexpectedEOF
			}
			return err
		}
		switch id {
		case cmdMaxPacket:
			n, err := f.maxPacket()
			if err != nil {
				return err
			}
			c.setPeerMax(n)
		case cmdUsername:
			name, err := f.dec.AppendParameter(nil)
			if err != nil {
				return err
			}
			login.Interactive = true
			if login.Account, err = NormalizeName(string(name)); err != nil {
				login.Account, login.noName = string(name), true
			}
			return nil
		case cmdCertificateID:
			if _, err := io.ReadFull(f.dec, login.Thumbprint[:]); err != nil {
				return err
			}
			return nil
		}
		// NONCE matters by being in T1. A share or a blind is of a suite that
		// this server does not take.
	}
}

// answer sends the server's flight.
func (c *Conn) answer(ctx context.Context, t1 []byte, login *LoginError) error {
	account, key, err := c.lookUp(ctx, login)
	if err != nil {
		return err
	}

	sessionKey := make([]byte, sessionKeyLen)
	defer clear(sessionKey)
	rand.Read(sessionKey)
	encrypted, err := key.sealSessionKey(sessionKey, t1)
	if err != nil {
		return err
	}

	var flight []byte
	if c.in.sawMax || c.wantMax != DefaultMaxPacket {
		flight = c.appendMaxPacket(flight)
	}
	if login.Interactive {
		flight = risp.AppendString(flight, cmdCertificate, account.Bundle)
	}
	flight = risp.AppendString(flight, cmdSessionKey, encrypted)
	t2 := newServerTranscript(t1)
	t2.Write(flight)
	c.begin(classic, t2.Sum(nil), sessionKey, nil)
	c.state.Account, c.state.Interactive, c.state.Certificate = account.Name, login.Interactive, account.Certificate
	_, err = c.conn.Write(flight)
	return err
}

// lookUp finds the account, or makes the decoy of one. A decoy has no
// certificate.
func (c *Conn) lookUp(ctx context.Context, login *LoginError) (account *Account, key *PublicKey, err error) {
	if login.noName {
		err = ErrUnknownAccount // what is no name is nobody's
	} else if login.Interactive {
		account, err = c.server.Accounts.InteractiveAccount(ctx, login.Account)
	} else {
		account, err = c.server.Accounts.CertificateAccount(ctx, login.Thumbprint)
	}
	if errors.Is(err, ErrUnknownAccount) && c.server.Decoys != nil {
		login.Err = err
		return c.server.Decoys.account(login)
	}
	if err != nil {
		return nil, nil, err
	}
	login.Account = account.Name
	if login.Interactive && (len(account.Bundle) == 0 || len(account.Bundle) > maxCertificateLen) {
		return nil, nil, fmt.Errorf("the account's PKCS#12 has %d bytes", len(account.Bundle))
	}
	key, err = CertificateKey(account.Certificate)
	return account, key, err
}

// appendMaxPacket says this side's MAX-PACKET: its own, or what it mimics.
func (c *Conn) appendMaxPacket(dst []byte) []byte {
	c.ownMax, c.saidMax = c.wantMax, true
	if c.in.sawMax {
		c.ownMax = min(c.wantMax, c.peerMax)
	}
	c.agreedMax.Store(int64(min(c.ownMax, c.peerMax)))
	return risp.AppendUint(dst, cmdMaxPacket, uint64(c.ownMax))
}

// mimicMaxPacket answers a MAX-PACKET that came after the server's flight,
// unless the flight already said one.
func (c *Conn) mimicMaxPacket() error {
	if c.saidMax {
		return nil
	}
	b := c.appendMaxPacket(nil)
	late := labelled(labelLate)
	late.Write(b)
	late.Sum(c.out.half.late[:0])
	_, err := c.conn.Write(b)
	return err
}
