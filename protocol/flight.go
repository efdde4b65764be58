package protocol

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"

	"github.com/flatauth/caddy-flatauth/protocol/risp"
)

// A flightReader reads the commands of one flight and holds them to the
// command table: lengths before anything is read, no known command twice,
// none out of place. Every byte goes into the transcript.
type flightReader struct {
	place place
	dec   *risp.Decoder
	seen  map[risp.ID]bool
	count int // commands so far
}

func newFlightReader(r io.Reader, place place, limit uint64, sum hash.Hash) *flightReader {
	return &flightReader{
		place: place,
		dec:   risp.NewDecoder(io.TeeReader(r, sum), limit),
		seen:  make(map[risp.ID]bool),
	}
}

// next returns the next command that the table knows, other than NOP. Its
// parameter is to be read with dec.
func (f *flightReader) next() (risp.ID, error) {
	for {
		h, err := f.dec.Next()
		if err != nil {
			if errors.Is(err, risp.ErrLimit) {
				err = protocolError(err.Error())
			}
			return 0, err
		}
		known, err := checkCommand(h, f.place)
		if err != nil {
			return 0, err
		}
		// A flight begins with a command of the protocol: a stranger that
		// speaks something else is told from a newer client at once.
		if !known && f.count == 0 && f.place == inClientFlight {
			return 0, fmt.Errorf("%w: it begins with %s", ErrNotFlat, commandName(h.ID))
		}
		if f.count++; f.count > maxFlight {
			return 0, protocolError("too many commands in a flight")
		}
		if !known || h.ID == cmdNOP {
			continue
		}
		if f.seen[h.ID] {
			return 0, protocolError("a second " + commandName(h.ID))
		}
		f.seen[h.ID] = true
		return h.ID, nil
	}
}

// checkCommand holds a command's header to the command table. It reports
// whether the command is known.
func checkCommand(h risp.Header, at place) (known bool, err error) {
	c, known := commands[h.ID]
	if !known {
		return false, nil
	}
	if c.places&at == 0 {
		return true, protocolError(c.name + " out of place")
	}
	if h.ID.LengthSize() > 0 && (h.Size < c.min || h.Size > c.max) {
		return true, protocolError(fmt.Sprintf("%s of %d bytes", c.name, h.Size))
	}
	return true, nil
}

// maxPacket reads the parameter of MAX-PACKET.
func (f *flightReader) maxPacket() (int, error) {
	v, err := f.dec.Uint()
	return clampMaxPacket(v), err
}

// Labels of the transcript (SPEC.md, section 4).
const (
	labelClientFlight = "flatauth client flight v1"
	labelServerFlight = "flatauth server flight v1"
	labelLate         = "flatauth late v1"
)

// newClientTranscript begins T1.
func newClientTranscript() hash.Hash {
	return labelled(labelClientFlight)
}

// newServerTranscript begins T2.
func newServerTranscript(t1 []byte) hash.Hash {
	h := labelled(labelServerFlight)
	h.Write(t1)
	return h
}

func labelled(label string) hash.Hash {
	h := sha256.New()
	io.WriteString(h, label)
	return h
}
