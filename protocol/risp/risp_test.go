package risp

import (
	"bytes"
	"errors"
	"io"
	"math"
	"strings"
	"testing"
	"testing/iotest"
)

func cat(b ...[]byte) []byte { return bytes.Join(b, nil) }

// one command of each kind, as the format has it
var kinds = []struct {
	name   string
	bytes  []byte
	header Header
}{
	{"integer of 1", []byte{0x00, 0x01, 0xff}, Header{0x0001, 2, 1}},
	{"integer of 2", []byte{0x10, 0x01, 1, 2}, Header{0x1001, 2, 2}},
	{"integer of 4", []byte{0x20, 0x01, 1, 2, 3, 4}, Header{0x2001, 2, 4}},
	{"integer of 8", cat([]byte{0x30, 0x01}, make([]byte, 8)), Header{0x3001, 2, 8}},
	{"integer of 16", cat([]byte{0x40, 0x01}, make([]byte, 16)), Header{0x4001, 2, 16}},
	{"integer of 32", cat([]byte{0x50, 0x01}, make([]byte, 32)), Header{0x5001, 2, 32}},
	{"integer of 64", cat([]byte{0x6f, 0xff}, make([]byte, 64)), Header{0x6fff, 2, 64}},
	{"none at 7", []byte{0x70, 0x00}, Header{0x7000, 2, 0}},
	{"string, length of 1", []byte{0x80, 0x01, 3, 'a', 'b', 'c'}, Header{0x8001, 3, 3}},
	{"string, length of 2", []byte{0x90, 0x01, 0, 3, 'a', 'b', 'c'}, Header{0x9001, 4, 3}},
	{"string, length of 4", []byte{0xa0, 0x01, 0, 0, 0, 3, 'a', 'b', 'c'}, Header{0xa001, 6, 3}},
	{"string, length of 8", []byte{0xb0, 0x01, 0, 0, 0, 0, 0, 0, 0, 3, 'a', 'b', 'c'}, Header{0xb001, 10, 3}},
	{"empty string", []byte{0x80, 0x01, 0}, Header{0x8001, 3, 0}},
	{"none at c", []byte{0xc0, 0x00}, Header{0xc000, 2, 0}},
	{"none at f", []byte{0xff, 0xff}, Header{0xffff, 2, 0}},
}

func TestHeaders(t *testing.T) {
	var all []byte
	for _, k := range kinds {
		all = append(all, k.bytes...)
		h, err := ParseHeader(k.bytes)
		if err != nil || h != k.header {
			t.Errorf("%s: %+v, %v", k.name, h, err)
		}
		for n := range h.Len {
			if _, err := ParseHeader(k.bytes[:n]); err != ErrShort {
				t.Errorf("%s, %d bytes of the header: %v", k.name, n, err)
			}
		}
	}
	// A reader that knows none of them skips them all.
	for _, r := range []io.Reader{bytes.NewReader(all), iotest.OneByteReader(bytes.NewReader(all)), iotest.DataErrReader(bytes.NewReader(all))} {
		d := NewDecoder(r, uint64(len(all)))
		for _, k := range kinds {
			if h, err := d.Next(); err != nil || h != k.header {
				t.Errorf("%s: %+v, %v", k.name, h, err)
			}
		}
		if _, err := d.Next(); err != io.EOF && !errors.Is(err, ErrLimit) {
			t.Errorf("after the last: %v", err)
		}
	}
}

func TestDecoder(t *testing.T) {
	var b []byte
	b = AppendUint(b, 0x0001, 0xfe)
	b = AppendUint(b, 0x1001, 0xfedc)
	b = AppendUint(b, 0x2001, 0xfedcba98)
	b = AppendUint(b, 0x3001, math.MaxUint64)
	b = AppendNone(b, 0x7001)
	b = AppendString(b, 0x8001, "short")
	b = AppendString(b, 0x9001, strings.Repeat("long", 1000))
	b = AppendString(b, 0xa001, "")
	b = AppendString(b, 0xb001, []byte("huge"))
	d := NewDecoder(iotest.HalfReader(bytes.NewReader(b)), math.MaxUint64)
	for _, want := range []uint64{0xfe, 0xfedc, 0xfedcba98, math.MaxUint64} {
		if _, err := d.Next(); err != nil {
			t.Fatal(err)
		}
		if v, err := d.Uint(); v != want || err != nil {
			t.Errorf("%x, want %x, %v", v, want, err)
		}
	}
	if _, err := d.Next(); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Uint(); !errors.Is(err, ErrNotInteger) {
		t.Errorf("no integer: %v", err)
	}
	for _, want := range []string{"short", strings.Repeat("long", 1000), "", "huge"} {
		if _, err := d.Next(); err != nil {
			t.Fatal(err)
		}
		if s, err := d.AppendParameter([]byte("> ")); string(s) != "> "+want || err != nil {
			t.Errorf("%q, want %q, %v", s, want, err)
		}
	}
	if _, err := d.Next(); err != io.EOF {
		t.Errorf("at the end: %v", err)
	}
}

func TestRead(t *testing.T) {
	b := AppendString(nil, 0x9001, "stream")
	b = AppendNone(b, 0x7000)
	d := NewDecoder(bytes.NewReader(b), 100)
	if _, err := d.Next(); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(d); string(got) != "stream" || err != nil {
		t.Errorf("%q, %v", got, err)
	}
	if h, err := d.Next(); h.ID != 0x7000 || err != nil {
		t.Errorf("%v, %v", h, err)
	}
}

func TestCut(t *testing.T) {
	for _, k := range kinds {
		for n := range len(k.bytes) {
			d := NewDecoder(bytes.NewReader(k.bytes[:n]), 1000)
			_, err := d.Next()
			if err == nil { // the parameter is cut: skipping it says so
				_, err = d.Next()
			}
			want := io.ErrUnexpectedEOF
			if n == 0 {
				want = io.EOF
			}
			if err != want {
				t.Errorf("%s, cut at %d: %v", k.name, n, err)
			}
		}
	}
}

// What does not fit the limit is refused by its header, before it is read.
func TestLimit(t *testing.T) {
	for name, b := range map[string][]byte{
		"2^63":        {0xb0, 0x01, 0x80, 0, 0, 0, 0, 0, 0, 0},
		"2^64-1":      {0xb0, 0x01, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff},
		"4 GiB":       {0xa0, 0x01, 0xff, 0xff, 0xff, 0xff},
		"a byte more": {0x80, 0x01, 98},
	} {
		d := NewDecoder(io.MultiReader(bytes.NewReader(b), iotest.ErrReader(errors.New("read on"))), 100)
		if _, err := d.Next(); !errors.Is(err, ErrLimit) {
			t.Errorf("%s: %v", name, err)
		}
	}
	d := NewDecoder(bytes.NewReader(append([]byte{0x80, 0x01, 97}, make([]byte, 200)...)), 100)
	if _, err := d.Next(); err != nil {
		t.Error(err)
	}
	if _, err := d.Next(); !errors.Is(err, ErrLimit) {
		t.Errorf("no room for a header: %v", err)
	}
}

func TestMistakes(t *testing.T) {
	for name, f := range map[string]func(){
		"too large":         func() { AppendUint(nil, 0x0001, 256) },
		"not an integer":    func() { AppendUint(nil, 0x7001, 0) },
		"too wide":          func() { AppendUint(nil, 0x4001, 0) },
		"not a string":      func() { AppendString(nil, 0x0001, "") },
		"too long a string": func() { AppendString(nil, 0x8001, make([]byte, 256)) },
		"has a parameter":   func() { AppendNone(nil, 0x8001) },
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s: no panic", name)
				}
			}()
			f()
		}()
	}
}

func TestNoAllocations(t *testing.T) {
	b := AppendUint(nil, 0x2001, 1)
	b = AppendString(b, 0x8001, "skipped")
	r := bytes.NewReader(b)
	d := NewDecoder(r, math.MaxUint64)
	if n := testing.AllocsPerRun(1000, func() {
		r.Reset(b)
		d.Next()
		d.Uint()
		d.Next()
		d.Next() // skips the string, and is at the end
	}); n > 0 {
		t.Errorf("%v allocations", n)
	}
}

// FuzzDecoder: the decoder and ParseHeader see the same commands, and what was
// read can be written again.
func FuzzDecoder(f *testing.F) {
	for _, k := range kinds {
		f.Add(k.bytes)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		const limit = 1 << 16
		d := NewDecoder(bytes.NewReader(b), limit)
		for rest := b; ; {
			h, err := d.Next()
			want, wantErr := ParseHeader(rest)
			if err != nil {
				if wantErr == nil && want.Size <= uint64(len(rest)-want.Len) && len(b) < limit {
					t.Fatalf("%v, though there is %+v", err, want)
				}
				return
			}
			if wantErr != nil || h != want {
				t.Fatalf("%+v, want %+v, %v", h, want, wantErr)
			}
			p, err := d.AppendParameter(nil)
			if err != nil {
				return
			}
			var again []byte
			switch {
			case h.ID.LengthSize() > 0:
				again = AppendString(nil, h.ID, p)
			case h.Size == 0:
				again = AppendNone(nil, h.ID)
			case h.Size <= 8:
				again = AppendUint(nil, h.ID, Uint(p))
			default:
				again = rest[:h.Len+int(h.Size)]
			}
			if !bytes.HasPrefix(rest, again) {
				t.Fatalf("%x was written as %x", rest, again)
			}
			rest = rest[len(again):]
		}
	})
}

func BenchmarkDecoder(b *testing.B) {
	data := AppendUint(nil, 0x2001, 1)
	data = AppendString(data, 0x8001, "a string that is skipped")
	r := bytes.NewReader(data)
	d := NewDecoder(r, math.MaxUint64)
	b.ReportAllocs()
	for b.Loop() {
		r.Reset(data)
		d.Next()
		d.Uint()
		d.Next()
		d.Next()
	}
}
