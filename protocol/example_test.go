package protocol_test

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"log"
	"net"

	"github.com/flatauth/caddy-flatauth/protocol"
	"github.com/flatauth/caddy-flatauth/protocol/bundle"
)

// oneMachine is the simplest of account stores.
type oneMachine struct{ account *protocol.Account }

func (m oneMachine) InteractiveAccount(context.Context, string) (*protocol.Account, error) {
	return nil, protocol.ErrUnknownAccount
}

func (m oneMachine) CertificateAccount(_ context.Context, t protocol.Thumbprint) (*protocol.Account, error) {
	if t != sha256.Sum256(m.account.Certificate.Raw) {
		return nil, protocol.ErrUnknownAccount
	}
	return m.account, nil
}

func Example() {
	key, certificate, err := bundle.NewKey(bundle.P256, "sensor")
	if err != nil {
		log.Fatal(err)
	}

	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	go func() {
		accepted, err := listener.Accept()
		if err != nil {
			log.Fatal(err)
		}
		conn := protocol.Server(accepted, &protocol.ServerConfig{
			Accounts: oneMachine{&protocol.Account{Name: "sensor", Certificate: certificate}},
		})
		defer conn.Close()
		if err := conn.Handshake(); err != nil {
			log.Fatal(err)
		}
		fmt.Fprintf(conn, "hello, %s", conn.ConnectionState().Account)
	}()

	conn, err := protocol.Dial(context.Background(), "tcp", listener.Addr().String(), &protocol.ClientConfig{
		Certificate: certificate,
		PrivateKey:  key,
	})
	if err != nil {
		log.Fatal(err)
	}
	defer conn.Close()
	greeting, err := io.ReadAll(conn)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(string(greeting))
	// Output: hello, sensor
}
