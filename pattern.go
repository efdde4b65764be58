package flatauth

import (
	"fmt"
	"regexp"
	"strings"

	"github.com/flatauth/caddy-flatauth/protocol"
)

// A pattern matches normalised names: a * in it stands for any characters,
// everything else for itself.
type pattern struct {
	expression *regexp.Regexp
	prefix     string // what comes before the first *
	exact      bool   // there is no *
}

func newPattern(s string) (pattern, error) {
	normal := strings.ToLower(s)
	if !strings.Contains(s, "*") {
		var err error
		if normal, err = protocol.NormalizeName(s); err != nil {
			return pattern{}, err
		}
	}
	if normal == "" {
		return pattern{}, fmt.Errorf("%w: empty", protocol.ErrName)
	}
	parts := strings.Split(normal, "*")
	for i := range parts {
		parts[i] = regexp.QuoteMeta(parts[i])
	}
	expression, err := regexp.Compile("^(?s:" + strings.Join(parts, ".*") + ")$")
	if err != nil {
		return pattern{}, err
	}
	prefix, _, wild := strings.Cut(normal, "*")
	return pattern{expression, prefix, !wild}, nil
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
