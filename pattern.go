package flatauth

import (
	"fmt"
	"regexp"
	"strings"

	"golang.org/x/text/secure/precis"

	"github.com/flatauth/caddy-flatauth/protocol"
)

// A pattern matches normalised names: a * in it stands for any characters,
// everything else for itself.
type pattern struct {
	expression *regexp.Regexp
	prefix     string // what comes before the first *
	exact      bool   // there is no *
}

func newPattern(s string) (p pattern, err error) {
	p.exact = !strings.Contains(s, "*")
	if p.exact {
		if p.prefix, err = protocol.NormalizeName(s); err != nil {
			return p, err
		}
		p.expression, err = regexp.Compile("^" + regexp.QuoteMeta(p.prefix) + "$")
		return p, err
	}
	// What stands between the stars is normalised as names are.
	parts := strings.Split(s, "*")
	for i, part := range parts {
		if part == "" {
			continue
		}
		if parts[i], err = precis.UsernameCaseMapped.String(part); err != nil {
			return p, fmt.Errorf("%w: %q: %v", protocol.ErrName, s, err)
		}
	}
	p.prefix = parts[0]
	for i := range parts {
		parts[i] = regexp.QuoteMeta(parts[i])
	}
	p.expression, err = regexp.Compile("^(?s:" + strings.Join(parts, ".*") + ")$")
	return p, err
}

func (p pattern) match(name string) bool { return p.expression.MatchString(name) }

// canMatch reports whether a name that begins with the given bytes may match
// yet. Of bytes that normalisation may change together with what follows, it
// says so.
func (p pattern) canMatch(begin []byte) bool {
	n := 0
	for n < len(begin) && begin[n] < 0x80 {
		n++
	}
	if n > 0 {
		n-- // a combining mark may follow
	}
	begin = begin[:n]
	lower := strings.ToLower(string(begin))
	if len(lower) <= len(p.prefix) {
		return strings.HasPrefix(p.prefix, lower)
	}
	return !p.exact && strings.HasPrefix(lower, p.prefix)
}

// patterns match a name that any of them matches.
type patterns []pattern

func newPatterns(all []string) (patterns, error) {
	var ps patterns
	for _, s := range all {
		p, err := newPattern(s)
		if err != nil {
			return nil, err
		}
		ps = append(ps, p)
	}
	return ps, nil
}

func (ps patterns) match(name string) bool {
	for _, p := range ps {
		if p.match(name) {
			return true
		}
	}
	return false
}

func (ps patterns) canMatch(begin []byte) bool {
	for _, p := range ps {
		if p.canMatch(begin) {
			return true
		}
	}
	return false
}
