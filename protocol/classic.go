package protocol

import (
	"crypto/sha256"
	"crypto/subtle"
	"fmt"

	"github.com/flatauth/caddy-flatauth/protocol/risp"
)

// classic is the suite of the seed's own commands (SPEC.md, section 7.1): a
// packet is DATA-LENGTH, DATA and VERIFICATION-SHA256, sent in this order and
// taken in any.
var classic = &suite{
	name:    "classic",
	uses:    []string{"data", "verify"},
	starts:  startsClassic,
	wireLen: func(n int) int { return n + classicOverhead },
	seal:    sealClassic,
	sealEnd: sealEndClassic,
	open:    openClassic,
}

// The keys of the suite.
const (
	dataUse   = 0
	verifyUse = 1
)

const (
	dataLengthLen   = 2 + 4 // the whole command
	dataHeaderLen   = 2 + 4
	verifyHeaderLen = 2 + 1
	endHeaderLen    = 2 + 1
	verifyLen       = verifyHeaderLen + sumLen + tagLen
	endLen          = endHeaderLen + tagLen
	classicOverhead = dataLengthLen + dataHeaderLen + tagLen + verifyLen
)

func startsClassic(id risp.ID) bool {
	return id == cmdDataLength || id == cmdData || id == cmdVerificationSHA256 || id == cmdEnd
}

func sealClassic(h *halfConn, dst, plaintext []byte) []byte {
	h.ratchet()
	nonce := h.packetNonce()

	dst = risp.AppendUint(dst, cmdDataLength, uint64(len(plaintext)))
	dst = risp.AppendStringHeader(dst, cmdData, len(plaintext)+tagLen)
	aad := h.additionalData(dst[len(dst)-dataLengthLen-dataHeaderLen:])
	dst = h.keys[dataUse].aead.Seal(dst, nonce, plaintext, aad)

	h.sum = sha256.Sum256(plaintext)
	dst = risp.AppendStringHeader(dst, cmdVerificationSHA256, sumLen+tagLen)
	aad = h.additionalData(dst[len(dst)-verifyHeaderLen:])
	dst = h.keys[verifyUse].aead.Seal(dst, nonce, h.sum[:], aad)

	h.seq++
	return dst
}

func sealEndClassic(h *halfConn, dst []byte) []byte {
	h.ratchet()
	dst = risp.AppendStringHeader(dst, cmdEnd, tagLen)
	aad := h.additionalData(dst[len(dst)-endHeaderLen:])
	dst = h.keys[dataUse].aead.Seal(dst, h.packetNonce(), nil, aad)
	h.seq++
	return dst
}

func openClassic(h *halfConn, in []byte, limit int) (packet, error) {
	var (
		length, data, verify []byte // the whole commands, once found
		nops                 int
		at                   int
	)
	for length == nil || data == nil || verify == nil {
		hdr, err := risp.ParseHeader(in[at:])
		if err != nil {
			return packet{need: at + max(hdr.Len, 2)}, nil
		}
		if _, err := checkCommand(hdr, inPackets); err != nil {
			return packet{}, err
		}
		part := &length
		switch hdr.ID {
		case cmdDataLength:
		case cmdData:
			part = &data
			if hdr.Size > uint64(limit+tagLen) {
				return packet{}, protocolError(fmt.Sprintf("DATA of %d bytes, above the agreed MAX-PACKET of %d", hdr.Size, limit))
			}
		case cmdVerificationSHA256:
			part = &verify
		case cmdEnd:
			if length != nil || data != nil || verify != nil {
				return packet{}, protocolError("END inside a packet")
			}
			return openEndClassic(h, in, at, hdr)
		case cmdNOP:
			if nops++; nops > maxPacketNOPs {
				return packet{}, protocolError("too many NOPs inside a packet")
			}
			at += hdr.Len
			continue
		default:
			return packet{}, protocolError(commandName(hdr.ID) + " among packets")
		}
		if *part != nil {
			return packet{}, protocolError("a second " + commandName(hdr.ID) + " in a packet")
		}
		end := at + hdr.Len + int(hdr.Size)
		if len(in) < end {
			return packet{need: end}, nil
		}
		*part = in[at:end:end]
		at = end
		if n := risp.Uint(length[min(len(length), 2):]); n > uint64(limit) {
			return packet{}, protocolError(fmt.Sprintf("DATA-LENGTH of %d bytes, above the agreed MAX-PACKET of %d", n, limit))
		}
	}

	h.ratchet()
	nonce := h.packetNonce()
	n := risp.Uint(length[2:])
	if n != uint64(len(data)-dataHeaderLen-tagLen) {
		return packet{}, fmt.Errorf("%w: DATA-LENGTH says %d, DATA has %d", ErrAuthentication, n, len(data)-dataHeaderLen-tagLen)
	}
	// DATA's tag covers DATA-LENGTH, wherever that stood.
	var header [dataLengthLen + dataHeaderLen]byte
	copy(header[:], length)
	copy(header[dataLengthLen:], data)
	ciphertext := data[dataHeaderLen:]
	plaintext, err := h.keys[dataUse].aead.Open(ciphertext[:0], nonce, ciphertext, h.additionalData(header[:]))
	if err != nil {
		return packet{}, fmt.Errorf("%w: DATA of packet %d", ErrAuthentication, h.seq)
	}
	ciphertext = verify[verifyHeaderLen:]
	sum, err := h.keys[verifyUse].aead.Open(ciphertext[:0], nonce, ciphertext, h.additionalData(verify[:verifyHeaderLen]))
	if err != nil {
		clear(plaintext)
		return packet{}, fmt.Errorf("%w: VERIFICATION-SHA256 of packet %d", ErrAuthentication, h.seq)
	}
	h.sum = sha256.Sum256(plaintext)
	if subtle.ConstantTimeCompare(sum, h.sum[:]) != 1 {
		clear(plaintext)
		return packet{}, fmt.Errorf("%w: the sum of packet %d", ErrAuthentication, h.seq)
	}
	h.seq++
	return packet{plaintext: plaintext, wireLen: at}, nil
}

func openEndClassic(h *halfConn, in []byte, at int, hdr risp.Header) (packet, error) {
	end := at + hdr.Len + int(hdr.Size)
	if len(in) < end {
		return packet{need: end}, nil
	}
	h.ratchet()
	header, tag := in[at:at+hdr.Len], in[at+hdr.Len:end]
	if _, err := h.keys[dataUse].aead.Open(nil, h.packetNonce(), tag, h.additionalData(header)); err != nil {
		return packet{}, fmt.Errorf("%w: END after packet %d", ErrAuthentication, h.seq)
	}
	h.seq++
	return packet{end: true, wireLen: end}, nil
}
