package protocol

import "github.com/flatauth/caddy-flatauth/protocol/risp"

// A suite is what the packets of a connection look like and how they are
// protected. Each suite is a file of its own (classic.go), and everything else
// goes through this struct.
type suite struct {
	name string   // as it stands in key labels
	uses []string // one key a direction for each

	// starts reports whether a packet, or the end of the stream, may begin
	// with the command.
	starts func(risp.ID) bool

	// wireLen is the length in bytes of the packet of a plaintext of n bytes.
	wireLen func(n int) int

	// seal appends a packet to dst. The plaintext does not overlap dst.
	seal func(h *halfConn, dst, plaintext []byte) []byte

	// sealEnd appends the authenticated end of the direction's stream.
	sealEnd func(h *halfConn, dst []byte) []byte

	// open takes the packet at the beginning of in, whose plaintext has at
	// most limit bytes. It decrypts in place and gives nothing away until
	// everything has been verified. As long as the packet is incomplete, it
	// changes nothing and says how many bytes it needs at least.
	open func(h *halfConn, in []byte, limit int) (packet, error)
}

// A packet is what a suite's open found.
type packet struct {
	plaintext []byte // in the memory of the input
	end       bool   // the stream ends here, there is no plaintext
	wireLen   int    // bytes taken from the input; 0 if the packet is incomplete
	need      int    // of an incomplete packet: bytes to have before the next try
}

// Suites returns the names of the suites, the preferred one first.
func Suites() []string { return []string{classic.name} }
