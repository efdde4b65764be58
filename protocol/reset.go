package protocol

import (
	"errors"
	"io"
	"net"
	"syscall"
)

// isReset reports whether the peer, or this side, has torn the transport down.
func isReset(err error) bool {
	return errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) ||
		errors.Is(err, io.ErrClosedPipe) || errors.Is(err, net.ErrClosed)
}
