package protocol

import "github.com/flatauth/caddy-flatauth/protocol/risp"

// A FlightPeek is what the first bytes of a connection tell of the client's
// flight. It is for choosing where a connection goes, before any login.
type FlightPeek struct {
	// Begun says that the bytes begin with a command of a client's flight,
	// with a valid length: this is the flat protocol.
	Begun bool

	// Invalid says that, whatever follows, a server would not accept the
	// flight.
	Invalid bool

	// AccountKnown says that the account command has been reached, and
	// Interactive that it is USERNAME, not CERTIFICATE-ID.
	AccountKnown bool
	Interactive  bool

	// Account is as much of the account command's parameter as is there: the
	// name as the client sent it, or the thumbprint.
	Account []byte

	// Done says that Account is complete.
	Done bool
}

// PeekFlight looks at the first bytes of a connection.
func PeekFlight(b []byte) (peek FlightPeek) {
	seen := make(map[risp.ID]bool, 4)
	for at, count := 0, 1; ; count++ {
		rest := b[at:]
		hdr, err := risp.ParseHeader(rest)
		if err != nil && !peek.Begun && !canBegin(rest) {
			peek.Invalid = true
			return peek
		}
		if len(rest) >= 2 {
			// Though the length is not there yet, the command can be out of
			// place, or the account command.
			c, known := commands[hdr.ID]
			switch {
			case known && (c.places&inClientFlight == 0 || seen[hdr.ID]) || !known && !peek.Begun:
				peek.Invalid = true
				return peek
			case known && hdr.ID != cmdNOP:
				seen[hdr.ID] = true
			}
			if hdr.ID == cmdUsername || hdr.ID == cmdCertificateID {
				peek.AccountKnown, peek.Interactive = true, hdr.ID == cmdUsername
			}
		}
		if err != nil {
			return peek
		}
		if _, err := checkCommand(hdr, inClientFlight); err != nil || count > maxFlight || hdr.Size > uint64(max(maxClientFlight-at-hdr.Len, 0)) || at+hdr.Len > maxClientFlight {
			peek.Invalid = true
			return peek
		}
		peek.Begun = true
		parameter := rest[hdr.Len:]
		if peek.AccountKnown {
			peek.Account = parameter[:min(uint64(len(parameter)), hdr.Size)]
			peek.Done = uint64(len(peek.Account)) == hdr.Size
			return peek
		}
		if uint64(len(parameter)) < hdr.Size {
			return peek
		}
		at += hdr.Len + int(hdr.Size)
	}
}

// canBegin reports whether a flight can begin with bytes that do not hold a
// whole header yet.
func canBegin(b []byte) bool {
	if len(b) == 0 {
		return true
	}
	for id, c := range commands {
		if c.places&inClientFlight == 0 || byte(id>>8) != b[0] {
			continue
		}
		if len(b) == 1 || byte(id) == b[1] {
			return true
		}
	}
	return false
}
