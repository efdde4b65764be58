package command

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/flatauth/caddy-flatauth/protocol"
)

func connectCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "connect ADDR (--user NAME [--passphrase-file FILE] | --identity FILE.pem)",
		Short: "Logs in and joins the session to the standard input and output",
		Long: `
Logs in at ADDR, a host and port. What comes in at the standard input goes to the
service, what the service answers goes to the standard output. The end of the
standard input ends one direction only, so it works in pipes, and for SSH:

  ssh -o ProxyCommand='caddy flatauth connect example.com:7000 --user alice' alice@host

A passphrase is asked for at the terminal, before the connection is made, or
read from the first line of --passphrase-file. It is never sent.

Exit codes:
  0  both directions came to their end
  1  a wrong flag, a file that cannot be read and the like
  2  wrong name or passphrase, or the account is disabled
  3  not the server of --server-key (not in this version)
  4  refused, or closed before the server's first packet, or no flatauth server
  5  cut later
  6  the server asks to try again later`,
		Args: cobra.ExactArgs(1),
	}
	flags := cmd.Flags()
	user := flags.String("user", "", "name of a person's account: NAME or NAME@ZONE")
	passphraseFile := flags.String("passphrase-file", "", "file whose first line is the passphrase")
	identity := flags.String("identity", "", "file with a machine's private key and certificate, in PEM")
	suite := flags.String("suite", "classic", "suite of the connection: classic")
	serverKey := flags.String("server-key", "", "fingerprint of the server's key (no suite of this version can check it)")
	maxPacket := flags.String("max-packet", "", "largest packet to take, such as 512 or 64KiB")
	cmd.MarkFlagsMutuallyExclusive("user", "identity")
	cmd.MarkFlagsOneRequired("user", "identity")
	cmd.MarkFlagsMutuallyExclusive("passphrase-file", "identity")
	cmd.RunE = run(func(cmd *cobra.Command, args []string) error {
		if *suite != "classic" {
			return fmt.Errorf("--suite %s: this version speaks classic only", *suite)
		}
		if *serverKey != "" {
			return errors.New("--server-key: in the classic suite a server does not prove who it is")
		}
		config := &protocol.ClientConfig{}
		if *maxPacket != "" {
			n, err := humanize.ParseBytes(*maxPacket)
			if err != nil || n < protocol.MinMaxPacket || n > protocol.MaxMaxPacket {
				return fmt.Errorf("--max-packet %s: it is a size from %d bytes to 16MiB", *maxPacket, protocol.MinMaxPacket)
			}
			config.MaxPacket = int(n)
		}
		var err error
		if *user != "" {
			if config.Username, err = protocol.NormalizeName(*user); err == nil {
				config.Passphrase, err = readPassphrase(*passphraseFile, "Passphrase of "+config.Username, false)
			}
		} else {
			config.PrivateKey, config.Certificate, err = readIdentity(*identity)
		}
		if err = cmp.Or(err, config.Check()); err != nil {
			return err
		}
		if _, _, err := net.SplitHostPort(args[0]); err != nil {
			return fmt.Errorf("ADDR is a host and a port, such as example.com:7000: %w", err)
		}
		return connect(cmd, args[0], config)
	})
	return cmd
}

// dialTimeout is how long a server may take to accept the connection.
const dialTimeout = 30 * time.Second

func connect(cmd *cobra.Command, address string, config *protocol.ClientConfig) error {
	transport, err := (&net.Dialer{Timeout: dialTimeout}).DialContext(cmd.Context(), "tcp", address)
	if err != nil {
		return &exitError{exitRefused, err}
	}
	conn := protocol.Client(transport, config)
	if err := conn.HandshakeContext(cmd.Context()); err != nil {
		var retry *protocol.RetryAfterError
		switch {
		case errors.Is(err, protocol.ErrLogin):
			return &exitError{exitLogin, fmt.Errorf("login failed: %w", protocol.ErrLogin)}
		case errors.As(err, &retry):
			return &exitError{exitThrottled, err}
		}
		return &exitError{exitRefused, err}
	}
	return pump(conn)
}

// pump joins the connection to the standard input and output, until both
// directions have ended or the connection has failed.
func pump(conn *protocol.Conn) error {
	sent := make(chan error, 1)
	go func() {
		_, err := io.Copy(conn, os.Stdin)
		if isLocal(err) {
			sent <- err
			conn.NetConn().Close() // without an END: this is not all
			return
		}
		if err == nil {
			err = conn.CloseWrite()
		}
		sent <- err
	}()

	n, err := io.Copy(os.Stdout, conn)
	select {
	case sendErr := <-sent:
		if isLocal(sendErr) {
			return sendErr
		}
		sent <- sendErr
	default:
	}
	switch {
	case isLocal(err):
		return err
	case err != nil && n == 0:
		return &exitError{exitRefused, fmt.Errorf("the server closed the connection before it said anything (is the service behind it up?): %w", err)}
	case err != nil:
		return &exitError{exitCut, fmt.Errorf("the connection was cut after %d bytes: %w", n, err)}
	}
	// Whoever reads our output sees its end now. SSH waits for that before
	// it closes our input.
	os.Stdout.Close()
	if term.IsTerminal(int(os.Stdin.Fd())) {
		// Nobody should have to type an end of file to a service that is gone.
		return conn.Close()
	}
	switch err := <-sent; {
	case isLocal(err):
		return err
	case err != nil:
		return &exitError{exitCut, fmt.Errorf("the server closed the connection before it had taken everything: %w", err)}
	}
	conn.Close()
	return nil
}

// isLocal reports whether an error is of the standard input or output.
func isLocal(err error) bool {
	var pathError *os.PathError
	return errors.As(err, &pathError)
}
