// Command caddy is Caddy with its standard modules, caddy-l4 and flatauth.
package main

import (
	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	_ "github.com/caddyserver/caddy/v2/modules/standard"
	_ "github.com/mholt/caddy-l4"

	_ "github.com/flatauth/caddy-flatauth"
)

func main() { caddycmd.Main() }
