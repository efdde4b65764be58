package flatauth

import (
	"encoding/hex"
	"fmt"
	"slices"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/mholt/caddy-l4/layer4"

	flatcaddyfile "github.com/flatauth/caddy-flatauth/caddyfile"
	"github.com/flatauth/caddy-flatauth/protocol"
	"github.com/flatauth/caddy-flatauth/store"
)

func init() {
	caddy.RegisterModule(&Matcher{})
}

// Matcher matches connections that speak the flat protocol. Without options it
// decides on the first command. With options it reads on to the account that
// the client names, and all of the options have to fit. It decides as soon as
// no further byte could change the answer.
//
// What a client says before its login is not proved. Use the options to choose
// a route, not to let anybody in: the handler does that.
type Matcher struct {
	// Username matches interactive accounts whose name, zone included, is one
	// of these. A * stands for any characters.
	Username []string `json:"username,omitempty"`

	// Zone matches interactive accounts whose zone, the part of the name after
	// the last @, is one of these. A * stands for any characters.
	Zone []string `json:"zone,omitempty"`

	// CertificateID matches certificate accounts whose certificate has one of
	// these SHA-256 thumbprints, in hexadecimal.
	CertificateID []string `json:"certificate_id,omitempty"`

	// Type matches accounts of one type: interactive or certificate.
	Type store.Type `json:"type,omitempty"`

	usernames, zones patterns
	thumbprints      []protocol.Thumbprint
}

// CaddyModule returns the Caddy module information.
func (*Matcher) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "layer4.matchers.flatauth",
		New: func() caddy.Module { return new(Matcher) },
	}
}

// Provision sets up the matcher.
func (m *Matcher) Provision(caddy.Context) (err error) {
	if m.usernames, err = newPatterns(m.Username); err != nil {
		return fmt.Errorf("username: %w", err)
	}
	if m.zones, err = newPatterns(m.Zone); err != nil {
		return fmt.Errorf("zone: %w", err)
	}
	for _, s := range m.CertificateID {
		b, err := hex.DecodeString(s)
		if err != nil || len(b) != len(protocol.Thumbprint{}) {
			return fmt.Errorf("certificate_id: '%s' is not a SHA-256 thumbprint of 64 hexadecimal digits", s)
		}
		m.thumbprints = append(m.thumbprints, protocol.Thumbprint(b))
	}
	interactive := len(m.Username) > 0 || len(m.Zone) > 0 || m.Type == store.Interactive
	certificate := len(m.CertificateID) > 0 || m.Type == store.Certificate
	switch {
	case m.Type != "" && m.Type != store.Interactive && m.Type != store.Certificate:
		return fmt.Errorf("type: '%s' is neither %s nor %s", m.Type, store.Interactive, store.Certificate)
	case interactive && certificate:
		return fmt.Errorf("username and zone match interactive accounts only, certificate_id certificate accounts only: nothing would match both")
	}
	return nil
}

// Match returns true if the connection is one that the matcher is for.
func (m *Matcher) Match(cx *layer4.Connection) (bool, error) {
	answer := m.match(protocol.PeekFlight(cx.MatchingBytes()))
	if answer == undecided {
		return false, layer4.ErrConsumedAllPrefetchedBytes
	}
	return answer == yes, nil
}

type answer int

const (
	no answer = iota
	yes
	undecided
)

func (m *Matcher) match(f protocol.FlightPeek) answer {
	bare := len(m.usernames) == 0 && len(m.zones) == 0 && len(m.thumbprints) == 0 && m.Type == ""
	switch {
	case bare && f.Begun:
		return yes // whatever follows
	case f.Invalid:
		return no
	case bare || !f.AccountKnown:
		return undecided
	case m.Type != "" && (m.Type == store.Interactive) != f.Interactive:
		return no
	case len(m.usernames) > 0 || len(m.zones) > 0:
		if !f.Interactive {
			return no
		}
		return m.matchName(f)
	case len(m.thumbprints) > 0:
		if f.Interactive {
			return no
		}
		return m.matchThumbprint(f)
	}
	return yes // the type was all that was asked for
}

func (m *Matcher) matchName(f protocol.FlightPeek) answer {
	if !f.Done {
		if len(m.usernames) > 0 && !m.usernames.canMatch(f.Account) {
			return no
		}
		return undecided
	}
	name, err := protocol.NormalizeName(string(f.Account))
	if err != nil ||
		len(m.usernames) > 0 && !m.usernames.match(name) ||
		len(m.zones) > 0 && !m.zones.match(protocol.Zone(name)) {
		return no
	}
	return yes
}

func (m *Matcher) matchThumbprint(f protocol.FlightPeek) answer {
	fits := func(t protocol.Thumbprint) bool { return string(t[:len(f.Account)]) == string(f.Account) }
	switch {
	case !slices.ContainsFunc(m.thumbprints, fits):
		return no
	case !f.Done:
		return undecided
	}
	return yes
}

// UnmarshalCaddyfile sets up the matcher from Caddyfile tokens. Syntax:
//
//	flatauth
//	flatauth username <patterns...>
//	flatauth zone <patterns...>
//	flatauth certificate_id <thumbprints...>
//	flatauth type interactive|certificate
//	flatauth {
//		username <patterns...>
//		zone <patterns...>
//		certificate_id <thumbprints...>
//		type interactive|certificate
//	}
func (m *Matcher) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next() // consume the name
	options := flatcaddyfile.Options{
		"username":       flatcaddyfile.List(&m.Username),
		"zone":           flatcaddyfile.List(&m.Zone),
		"certificate_id": flatcaddyfile.List(&m.CertificateID),
		"type": func(d *caddyfile.Dispenser) error {
			arg, err := flatcaddyfile.Arg(d)
			m.Type = store.Type(arg)
			return err
		},
	}
	if d.NextArg() { // one option on the line of the name
		option, ok := options[d.Val()]
		if !ok {
			return d.Errf("unrecognized option '%s'", d.Val())
		}
		delete(options, d.Val())
		if err := option(d); err != nil {
			return err
		}
	}
	return flatcaddyfile.Block(d, options)
}

// Interface guards
var (
	_ caddy.Provisioner     = (*Matcher)(nil)
	_ caddyfile.Unmarshaler = (*Matcher)(nil)
	_ layer4.ConnMatcher    = (*Matcher)(nil)
)
