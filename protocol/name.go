package protocol

import (
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"

	"golang.org/x/text/secure/precis"
)

// ErrName is a name that no account can have.
var ErrName = errors.New("not a name")

// NormalizeName brings an account's name into the form in which it is stored
// and compared: NAME or NAME@ZONE, each half by the UsernameCaseMapped profile
// of RFC 8265 (so "Alice" and "alice" are one name), 1 to 255 bytes of UTF-8
// together. The last @ splits. Client and server both do this.
func NormalizeName(name string) (string, error) {
	if !utf8.ValidString(name) {
		return "", fmt.Errorf("%w: %q is not UTF-8", ErrName, name)
	}
	if len(name) > MaxNameLen {
		return "", fmt.Errorf("%w: %d bytes, %d is the most", ErrName, len(name), MaxNameLen)
	}
	local, zone, zoned := cutZone(name)
	normal, err := normalizeHalf(local)
	if err != nil {
		return "", fmt.Errorf("%w: %q: %v", ErrName, name, err)
	}
	if zoned {
		zone, err := normalizeHalf(zone)
		if err != nil {
			return "", fmt.Errorf("%w: the zone of %q: %v", ErrName, name, err)
		}
		normal += "@" + zone
	}
	if len(normal) > MaxNameLen {
		return "", fmt.Errorf("%w: %d bytes when normalised, %d is the most", ErrName, len(normal), MaxNameLen)
	}
	return normal, nil
}

func normalizeHalf(s string) (string, error) {
	if s == "" {
		return "", errors.New("it is empty")
	}
	normal, err := precis.UsernameCaseMapped.String(s)
	if err != nil {
		return "", errors.New("letters, digits and marks can be in it, spaces and control characters cannot")
	}
	return normal, nil
}

func cutZone(name string) (local, zone string, ok bool) {
	i := strings.LastIndexByte(name, '@')
	if i < 0 {
		return name, "", false
	}
	return name[:i], name[i+1:], true
}

// Zone is the part of a name after its last @, or "".
func Zone(name string) string {
	_, zone, _ := cutZone(name)
	return zone
}

// NormalizePassphrase brings a passphrase into the form from which keys are
// derived: the OpaqueString profile of RFC 8265. It is case-sensitive, and
// spaces count.
func NormalizePassphrase(passphrase string) (string, error) {
	p, err := precis.OpaqueString.String(passphrase)
	if err != nil || p == "" || !utf8.ValidString(passphrase) {
		// the profile's own error may quote what it was given
		return "", errors.New("the passphrase is empty, is not UTF-8 or has control characters")
	}
	return p, nil
}
