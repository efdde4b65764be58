package command

import (
	"errors"
	"fmt"
	"net"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	"github.com/spf13/cobra"
)

func serveCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "serve --listen ADDR --to UPSTREAM --store DIR",
		Short: "Serves the flat protocol in front of a TCP service, with no configuration file",
		Long: `
Listens for the flat protocol and hands each session that has logged in to the
upstream, as

  {
	layer4 {
		ADDR {
			route {
				flatauth {
					store directory DIR
				}
				proxy UPSTREAM
			}
		}
	}
  }

in a Caddyfile does. Accounts that are added or disabled while it runs count at
once.`,
		Args: cobra.NoArgs,
	}
	listen := cmd.Flags().StringP("listen", "l", ":7000", "address to listen at")
	to := cmd.Flags().StringP("to", "t", "", "address of the service, such as 127.0.0.1:6379")
	dir := storeFlag(cmd)
	debug := cmd.Flags().Bool("debug", false, "log more")
	cmd.MarkFlagRequired("to")
	cmd.RunE = run(func(*cobra.Command, []string) error { return serve(*listen, *to, *dir, *debug) })
	return cmd
}

func serve(listen, to, dir string, debug bool) error {
	if err := checkAddress("--listen", listen); err != nil {
		return err
	}
	if err := checkAddress("--to", to); err != nil {
		return err
	}
	// Caddy shares a port with whoever else does; here that could only be a
	// server that was forgotten, with other accounts.
	if addr, err := caddy.ParseNetworkAddress(listen); err == nil && addr.Network == "tcp" {
		ln, err := net.Listen("tcp", addr.JoinHostPort(0))
		if err != nil {
			return err
		}
		ln.Close()
	}
	caddy.TrapSignals()
	layer4 := map[string]any{"servers": map[string]any{"flatauth": map[string]any{
		"listen": []string{listen},
		"routes": []any{map[string]any{"handle": []any{
			map[string]any{"handler": "flatauth", "store": map[string]any{"source": "directory", "path": dir}},
			map[string]any{"handler": "proxy", "upstreams": []any{map[string]any{"dial": []string{to}}}},
		}}},
	}}}
	persist := false
	config := &caddy.Config{
		Admin:   &caddy.AdminConfig{Disabled: true, Config: &caddy.ConfigSettings{Persist: &persist}},
		AppsRaw: caddy.ModuleMap{"layer4": caddyconfig.JSON(layer4, nil)},
	}
	if debug {
		config.Logging = &caddy.Logging{Logs: map[string]*caddy.CustomLog{
			"default": {BaseLog: caddy.BaseLog{Level: "DEBUG"}},
		}}
	}
	if err := caddy.Run(config); err != nil {
		return err
	}
	caddy.Log().Info(fmt.Sprintf("flatauth is serving %s at %s; the accounts are in %s", to, listen, dir))
	select {}
}

// checkAddress refuses what is no address of a stream.
func checkAddress(flag, address string) error {
	addr, err := caddy.ParseNetworkAddress(address)
	switch {
	case err != nil:
	case addr.IsUnixNetwork() && addr.Network == "unix":
		return nil
	case addr.Network != "tcp":
		err = fmt.Errorf("the flat protocol needs a stream, and this is %s", addr.Network)
	case addr.StartPort == 0 || addr.PortRangeSize() != 1:
		err = errors.New("there is no port in it")
	default:
		return nil
	}
	return fmt.Errorf("%s %s: a port, or a host and a port, such as :7000 or 127.0.0.1:6379: %w", flag, address, err)
}
