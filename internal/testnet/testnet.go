// Package testnet finds addresses for tests.
package testnet

import (
	"fmt"
	"net"
	"os"
	"sync/atomic"
)

var nextPort atomic.Int64

// FreeAddr is an address of this machine at which nothing listens. It is below
// the ports that the system gives to whoever asks for any, so nobody else gets
// it meanwhile.
func FreeAddr() string {
	for {
		addr := fmt.Sprintf("127.0.0.1:%d", 10_000+(os.Getpid()*100+int(nextPort.Add(1)))%20_000)
		if ln, err := net.Listen("tcp", addr); err == nil {
			ln.Close()
			return addr
		}
	}
}
