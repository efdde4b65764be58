package flatauth

import (
	"bytes"
	"encoding/hex"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2"

	"github.com/flatauth/caddy-flatauth/protocol"
	"github.com/flatauth/caddy-flatauth/protocol/risp"
	"github.com/flatauth/caddy-flatauth/store"
)

var (
	nonce      = risp.AppendString(nil, 0x8005, make([]byte, 16))
	thumb      = bytes.Repeat([]byte{0x3f, 0x2a}, 16)
	machineID  = risp.AppendString(nil, 0x8002, thumb)
	unknown    = risp.AppendString(nil, 0x9fff, make([]byte, 300))
	maxPacket  = risp.AppendUint(nil, 0x2001, 512)
	shareLarge = risp.AppendString(nil, 0x9010, make([]byte, 1216))
)

func username(name string) []byte { return risp.AppendString(nil, 0x8001, name) }

func cat(b ...[]byte) []byte { return bytes.Join(b, nil) }

// decision feeds the matcher a byte at a time. It returns the answer and after
// how many bytes it came.
func decision(t *testing.T, m *Matcher, b []byte) (answer, int) {
	t.Helper()
	if err := m.Provision(caddy.Context{}); err != nil {
		t.Fatal(err)
	}
	for n := range len(b) + 1 {
		if a := m.match(protocol.PeekFlight(b[:n])); a != undecided {
			for more := n; more <= len(b); more++ {
				if again := m.match(protocol.PeekFlight(b[:more])); again != a {
					t.Errorf("%v after %d bytes, %v after %d", a, n, again, more)
				}
			}
			return a, n
		}
	}
	return undecided, len(b)
}

// A matcher is right, and it waits for no byte that could not change its
// answer.
func TestMatcher(t *testing.T) {
	alice := username("Alice@Ops")
	for what, test := range map[string]struct {
		matcher Matcher
		flight  []byte
		want    answer
		after   int // bytes
	}{
		"bare, NONCE":                {Matcher{}, nonce, yes, 3},
		"bare, MAX-PACKET":           {Matcher{}, maxPacket, yes, 2},
		"bare, NOP":                  {Matcher{}, []byte{0x70, 0x00}, yes, 2},
		"bare, USERNAME":             {Matcher{}, alice, yes, 3},
		"bare, a large share":        {Matcher{}, shareLarge, yes, 4},
		"bare, empty USERNAME":       {Matcher{}, []byte{0x80, 0x01, 0}, no, 3},
		"bare, short NONCE":          {Matcher{}, []byte{0x80, 0x05, 15}, no, 3},
		"bare, HTTP":                 {Matcher{}, []byte("GET /"), no, 1},
		"bare, TLS":                  {Matcher{}, []byte{0x16, 0x03, 0x01}, no, 1},
		"bare, SSH":                  {Matcher{}, []byte("SSH-2.0-"), no, 1},
		"bare, a p as in NOP":        {Matcher{}, []byte("ping"), no, 2},
		"bare, a blank":              {Matcher{}, []byte("  "), no, 2},
		"bare, a server's command":   {Matcher{}, []byte{0x90, 0x01}, no, 2},
		"bare, unknown first":        {Matcher{}, unknown, no, 1},
		"bare, garbage second":       {Matcher{}, cat(nonce, []byte("garbage")), yes, 3},
		"name":                       {Matcher{Username: []string{"alice@ops"}}, cat(nonce, alice), yes, len(nonce) + len(alice)},
		"name, not normal":           {Matcher{Username: []string{"ALICE@ops"}}, alice, yes, len(alice)},
		"name, pattern":              {Matcher{Username: []string{"*@ops"}}, alice, yes, len(alice)},
		"name, one of two":           {Matcher{Username: []string{"bob", "a*"}}, alice, yes, len(alice)},
		"name, other zone":           {Matcher{Username: []string{"*@dev"}}, alice, no, len(alice)},
		"name, other beginning":      {Matcher{Username: []string{"bob", "carol*"}}, alice, no, 3 + 2},
		"name, exact and longer":     {Matcher{Username: []string{"al"}}, alice, no, 3 + 4},
		"name, a machine":            {Matcher{Username: []string{"*"}}, cat(nonce, machineID), no, len(nonce) + 2},
		"name, not a name":           {Matcher{Username: []string{"*"}}, username("a b"), no, 3 + 3},
		"name, combining":            {Matcher{Username: []string{"å"}}, username("a\u030a"), yes, 3 + 3},
		"zone":                       {Matcher{Zone: []string{"ops"}}, alice, yes, len(alice)},
		"zone, another":              {Matcher{Zone: []string{"dev"}}, alice, no, len(alice)},
		"zone, none":                 {Matcher{Zone: []string{"dev"}}, username("alice"), no, 8},
		"both, one fits":             {Matcher{Zone: []string{"ops"}, Username: []string{"b*"}}, alice, no, 5},
		"thumbprint":                 {Matcher{CertificateID: []string{hex.EncodeToString(thumb)}}, cat(unknownAfter(nonce), machineID), yes, len(unknownAfter(nonce)) + 35},
		"thumbprint, another":        {Matcher{CertificateID: []string{strings.Repeat("3f", 32)}}, machineID, no, 3 + 2},
		"thumbprint, a person":       {Matcher{CertificateID: []string{strings.Repeat("3f", 32)}}, alice, no, 2},
		"type":                       {Matcher{Type: store.Interactive}, cat(nonce, alice), yes, len(nonce) + 2},
		"type, the other":            {Matcher{Type: store.Certificate}, cat(nonce, alice), no, len(nonce) + 2},
		"options, HTTP":              {Matcher{Zone: []string{"ops"}}, []byte("GET /"), no, 1},
		"options, repeated":          {Matcher{Zone: []string{"ops"}}, cat(nonce, nonce), no, len(nonce) + 2},
		"options, a packet":          {Matcher{Zone: []string{"ops"}}, cat(nonce, []byte{0x20, 0x02}), no, len(nonce) + 2},
		"options, 2^63":              {Matcher{Zone: []string{"ops"}}, cat(nonce, []byte{0xbf, 0xff, 0x80, 0, 0, 0, 0, 0, 0, 0}), no, len(nonce) + 10},
		"options, half a flight":     {Matcher{Zone: []string{"ops"}}, cat(nonce, unknown), undecided, len(nonce) + len(unknown)},
		"options, too long a flight": {Matcher{Zone: []string{"ops"}}, cat(nonce, bytes.Repeat([]byte{0x70, 0}, 8<<10)), no, len(nonce) + 2*64},
	} {
		got, after := decision(t, &test.matcher, test.flight)
		if got != test.want || after != test.after {
			t.Errorf("%s: %v after %d bytes, want %v after %d", what, got, after, test.want, test.after)
		}
	}
}

func unknownAfter(b []byte) []byte { return cat(b, unknown) }

func TestMatcherMistakes(t *testing.T) {
	for want, m := range map[string]Matcher{
		"not a SHA-256 thumbprint": {CertificateID: []string{"3f2a"}},
		"neither interactive":      {Type: "machine"},
		"nothing would match":      {Type: store.Certificate, Zone: []string{"ops"}},
		"not a name":               {Username: []string{"a b"}},
		"empty":                    {Zone: []string{""}},
	} {
		if err := m.Provision(caddy.Context{}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: %v", m, err)
		}
	}
}
