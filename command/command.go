// Package command is "caddy flatauth": accounts, a client for the terminal and
// for scripts, and a server in one line.
package command

import (
	"errors"
	"fmt"
	"os"

	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	"github.com/spf13/cobra"

	"github.com/flatauth/caddy-flatauth/protocol"
	"github.com/flatauth/caddy-flatauth/store/directory"
)

func init() {
	caddycmd.RegisterCommand(caddycmd.Command{
		Name:  "flatauth",
		Usage: "serve|account|connect",
		Short: "Lets named people and machines reach a TCP service by the flat protocol",
		Long: `
Lets named people and machines reach a TCP service by the flat protocol.

  caddy flatauth account add alice --store ./accounts
  caddy flatauth serve --listen :7000 --to 127.0.0.1:6379 --store ./accounts
  caddy flatauth connect example.com:7000 --user alice
`,
		CobraFunc: func(cmd *cobra.Command) {
			cmd.AddCommand(serveCommand(), accountCommand(), connectCommand())
			// Without a subcommand there is nothing to run.
			cmd.RunE = func(cmd *cobra.Command, args []string) error { return cmd.Help() }
			cmd.Args = cobra.NoArgs
		},
	})
}

// Exit codes of the commands. Scripts depend on them.
const (
	exitFailure   = 1 // anything else, such as a wrong flag or a file that is missing
	exitLogin     = 2 // wrong name or passphrase, or the account is disabled
	exitServerKey = 3 // not the pinned server
	exitRefused   = 4 // refused, or closed before the server's first packet
	exitCut       = 5 // cut later
	exitThrottled = 6 // the server asks to try again later
)

// An exitError is an error with its exit code.
type exitError struct {
	code int
	err  error
}

func (e *exitError) Error() string { return e.err.Error() }
func (e *exitError) Unwrap() error { return e.err }

// run makes a command of f: what went wrong is one line on the standard error,
// and the exit code.
func run(f func(cmd *cobra.Command, args []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		err := f(cmd, args)
		if err == nil {
			return nil
		}
		fmt.Fprintln(os.Stderr, "flatauth:", err)
		cmd.SilenceErrors = true
		var exit *exitError
		if !errors.As(err, &exit) {
			return err // exit code 1
		}
		// Caddy's own way to an exit code
		return caddycmd.WrapCommandFuncForCobra(func(caddycmd.Flags) (int, error) { return exit.code, nil })(cmd, args)
	}
}

// storeFlag adds --store.
func storeFlag(cmd *cobra.Command) *string {
	return cmd.Flags().String("store", directory.DefaultPath(), "folder of the accounts")
}

// nameArg normalises the NAME argument.
func nameArg(args []string) (string, error) { return protocol.NormalizeName(args[0]) }
