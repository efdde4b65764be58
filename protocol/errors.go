package protocol

import (
	"errors"
	"fmt"
	"time"
)

// Errors of a connection. Use errors.Is: they come wrapped, with what was
// wrong. None of them is ever told to the peer.
var (
	// ErrLogin is a login that failed: the name or the passphrase is wrong, the
	// key does not fit the account, or the account is disabled. A client
	// cannot tell which, and a server that could does not say.
	ErrLogin = errors.New("wrong name, passphrase or key, or the account is disabled")

	// ErrAuthentication is a check that failed on something received: a tag, a
	// sum or a length. Somebody altered the stream, or the two sides do not
	// have the same key.
	ErrAuthentication = errors.New("message authentication failed")

	// ErrProtocol is a peer that does not keep to the protocol.
	ErrProtocol = errors.New("flat protocol violated")

	// ErrNoFlight is a server that closed the connection, or answered
	// something else, before its flight was complete.
	ErrNoFlight = errors.New("the server closed the connection before it answered: is it a flatauth server?")

	// ErrAbsurdBundle is a CERTIFICATE whose parameters ask a client for more
	// work than any honest server would.
	ErrAbsurdBundle = errors.New("the server's CERTIFICATE asks for absurd work")

	// ErrClosedWrite is a Write after CloseWrite.
	ErrClosedWrite = errors.New("protocol: write after CloseWrite")

	// ErrNotFlat is a client that speaks something else. It wraps ErrProtocol.
	ErrNotFlat = fmt.Errorf("%w: not a client's flight", ErrProtocol)
)

// A RetryAfterError is a server that is throttling this client. The wait is
// the server's word, not authenticated, and never more than a minute.
type RetryAfterError struct{ After time.Duration }

func (e *RetryAfterError) Error() string {
	return fmt.Sprintf("the server asks to try again after %v", e.After)
}

func protocolError(what string) error { return fmt.Errorf("%w: %s", ErrProtocol, what) }
