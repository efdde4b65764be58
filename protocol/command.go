package protocol

import "github.com/flatauth/caddy-flatauth/protocol/risp"

// The commands of the flat protocol (SPEC.md, section 2). The names are the
// seed's.
const (
	cmdNOP = risp.ID(0x7000)

	cmdUsername      = risp.ID(0x8001)
	cmdCertificateID = risp.ID(0x8002)
	cmdNonce         = risp.ID(0x8005)
	cmdMaxPacket     = risp.ID(0x2001)
	cmdCertificate   = risp.ID(0x9001)
	cmdSessionKey    = risp.ID(0x9002)

	cmdDataLength         = risp.ID(0x2002)
	cmdData               = risp.ID(0xa001)
	cmdVerificationSHA256 = risp.ID(0x8003)
	cmdEnd                = risp.ID(0x8004)

	// Commands of suites that this version does not speak. Their ids are
	// taken: in a place where they do not belong they are errors, not
	// unknown commands.
	cmdShareX25519            = risp.ID(0x8010)
	cmdShareX25519MLKEM768    = risp.ID(0x9010)
	cmdServerKeyEd25519       = risp.ID(0x8011)
	cmdServerSignatureEd25519 = risp.ID(0x8012)
	cmdBlindP256              = risp.ID(0x8013)
	cmdEvaluationP256         = risp.ID(0x8014)
	cmdSealed                 = risp.ID(0xa010)
	cmdSealedControl          = risp.ID(0xa011)
	cmdSealedEnd              = risp.ID(0x8015)

	cmdRetryAfter = risp.ID(0x2010)
)

// A place says in which part of the exchange a command may stand.
type place uint8

const (
	inClientFlight place = 1 << iota // before and with the account command
	inServerFlight                   // before and with SESSION-KEY
	inLate                           // between a side's trigger and its first packet
	inPackets                        // from the first packet on
)

// A command is one row of the command table.
type command struct {
	name     string
	places   place
	min, max uint64 // bytes of a string; an integer's size is in its id
}

// commands is the command table. A command that is not in it is skipped
// wherever unknown commands may stand; one that is in it is refused in any
// place that its row does not name.
var commands = map[risp.ID]command{
	cmdNOP:           {"NOP", inClientFlight | inServerFlight | inLate | inPackets, 0, 0},
	cmdMaxPacket:     {"MAX-PACKET", inClientFlight | inServerFlight | inLate, 4, 4},
	cmdUsername:      {"USERNAME", inClientFlight, 1, MaxNameLen},
	cmdCertificateID: {"CERTIFICATE-ID", inClientFlight, thumbprintLen, thumbprintLen},
	cmdNonce:         {"NONCE", inClientFlight, nonceLen, nonceLen},
	cmdCertificate:   {"CERTIFICATE", inServerFlight, 1, maxCertificateLen},
	cmdSessionKey:    {"SESSION-KEY", inServerFlight, 1, maxSessionKeyLen},

	cmdDataLength:         {"DATA-LENGTH", inPackets, 4, 4},
	cmdData:               {"DATA", inPackets, tagLen, MaxMaxPacket + tagLen},
	cmdVerificationSHA256: {"VERIFICATION-SHA256", inPackets, sumLen + tagLen, sumLen + tagLen},
	cmdEnd:                {"END", inPackets, tagLen, tagLen},

	cmdShareX25519:            {"SHARE-X25519", inClientFlight, 32, 32},
	cmdShareX25519MLKEM768:    {"SHARE-X25519-MLKEM768", inClientFlight, 1216, 1216},
	cmdBlindP256:              {"BLIND-P256", inClientFlight, 33, 33},
	cmdEvaluationP256:         {name: "EVALUATION-P256"},
	cmdServerKeyEd25519:       {name: "SERVER-KEY-ED25519"},
	cmdServerSignatureEd25519: {name: "SERVER-SIGNATURE-ED25519"},
	cmdSealed:                 {name: "SEALED"},
	cmdSealedControl:          {name: "SEALED-CONTROL"},
	cmdSealedEnd:              {name: "SEALED-END"},

	cmdRetryAfter: {"RETRY-AFTER", inServerFlight, 4, 4},
}

// commandName is the seed's name of a command, or its number.
func commandName(id risp.ID) string {
	if c, ok := commands[id]; ok {
		return c.name
	}
	return "command " + id.String()
}

// Lengths in bytes and other limits (SPEC.md, section 9).
const (
	// MaxNameLen is the length in bytes of the longest account name, zone
	// included.
	MaxNameLen = 255

	// DefaultMaxPacket is the largest plaintext of a packet, in bytes, of a
	// side that says nothing.
	DefaultMaxPacket = 65536

	// MinMaxPacket and MaxMaxPacket bound MAX-PACKET. What is outside is
	// brought inside.
	MinMaxPacket = 64
	MaxMaxPacket = 16 << 20

	thumbprintLen     = 32
	nonceLen          = 16
	sumLen            = 32
	tagLen            = 16
	maxCertificateLen = 16 << 10
	maxSessionKeyLen  = 1024

	maxClientFlight = 8 << 10  // through the account command
	maxServerFlight = 32 << 10 // through SESSION-KEY
	maxLate         = 8 << 10  // between a side's trigger and its first packet
	maxFlight       = 64       // commands of a flight
	maxPacketNOPs   = 64       // NOPs between the parts of one packet
)

// clampMaxPacket brings a MAX-PACKET into its bounds.
func clampMaxPacket(n uint64) int { return int(min(max(n, MinMaxPacket), MaxMaxPacket)) }
