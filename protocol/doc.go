// Package protocol is the flat protocol, client and server: a person or a
// machine logs in over a stream such as a TCP connection, and what follows is
// encrypted and authenticated. SPEC.md says what goes on the wire.
//
// It is used as crypto/tls is. A program logs in with [Dial], or with [Client]
// on a connection that it has:
//
//	conn, err := protocol.Dial(ctx, "tcp", "example.com:7000", &protocol.ClientConfig{
//		Username:   "alice",
//		Passphrase: passphrase,
//	})
//
// A server wraps what it accepts with [Server] and finds accounts through the
// [Accounts] that it is given:
//
//	conn := protocol.Server(accepted, &protocol.ServerConfig{Accounts: accounts})
//	if err := conn.HandshakeContext(ctx); err != nil {
//		return err // nobody has logged in
//	}
//	account := conn.ConnectionState().Account
//
// There are two kinds of account. A person's (interactive) has a name and a
// passphrase: the server keeps the person's key in a PKCS#12 file that the
// passphrase protects, and sends it; the passphrase stays with the client. A
// machine's (certificate) has a certificate: the server does not have its
// private key, which may be in hardware.
//
// A server knows who the client is when [Conn.Handshake] returns: the client's
// first packet has been verified. A client that has a [Conn] cannot tell, in the
// classic suite, whether the server is the right one; see SPEC.md, section 11.
//
// Reads return data that has been verified, and io.EOF only at the peer's
// authenticated end of its stream. A connection that was cut ends with
// io.ErrUnexpectedEOF. [Conn.CloseWrite] ends one direction, [Conn.Close] both.
package protocol
