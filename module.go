// Package flatauth lets named people and machines reach a TCP service through
// Caddy, by the flat protocol: an authenticated, encrypted stream without a PKI.
// It plugs into caddy-l4 (github.com/mholt/caddy-l4).
//
// It registers
//
//   - the matcher layer4.matchers.flatauth, which recognises the protocol,
//   - the handler layer4.handlers.flatauth, which logs clients in and hands the
//     decrypted stream to the handlers after it,
//   - the store flatauth.stores.directory, in which accounts are kept, and
//   - the command "caddy flatauth".
//
// The protocol itself is in package protocol, which needs no Caddy.
package flatauth

import (
	_ "github.com/flatauth/caddy-flatauth/command"
	_ "github.com/flatauth/caddy-flatauth/store/directory"
)
