package pgoutput

import (
	"bytes"
	"errors"
	"slices"
	"testing"
	"unsafe"
)

// parts are the byte slices of a message.
func parts(m *Message) (out [][]byte) {
	out = append(out, m.Prefix, m.Content, m.Origin)
	for _, t := range []Tuple{m.Old, m.New} {
		for _, c := range t {
			out = append(out, c.Data)
		}
	}
	return slices.DeleteFunc(out, func(b []byte) bool { return b == nil })
}

// within reports whether b lies in data, with all that could be appended to it.
func within(b, data []byte) bool {
	from, start := uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(unsafe.Pointer(unsafe.SliceData(data)))
	return cap(b) == len(b) && from >= start && from+uintptr(len(b)) <= start+uintptr(len(data))
}

// checkMessage holds for all that was decoded: its slices lie in data, strings
// do not, and encoded again it is data.
func checkMessage(t *testing.T, m *Message, data []byte, parallel bool) {
	t.Helper()
	for _, b := range parts(m) {
		if !within(b, data) {
			t.Fatalf("%x: %x points elsewhere", data, b)
		}
	}
	for _, tuple := range []Tuple{m.Old, m.New} {
		for _, c := range tuple {
			if has := c.Kind == ColumnText || c.Kind == ColumnBinary; has != (c.Data != nil) {
				t.Fatalf("%x: a column of kind %q has the data %v", data, c.Kind, c.Data)
			}
		}
	}
	// "pg_catalog" is sent as an empty string, and read in either form.
	if again := encode(m, parallel); !bytes.Equal(again, data) && !bytes.Contains(data, []byte("pg_catalog")) {
		t.Fatalf("%x: encoded again it is %x", data, again)
	}
	// Descriptions are kept while the buffer is used for the next message.
	if m.Kind == KindRelation || m.Kind == KindType || m.GID != "" {
		before := render(m)
		for i := range data {
			data[i] ^= 0xff
		}
		if render(m) != before {
			t.Fatalf("%s changed with the buffer", before)
		}
		for i := range data {
			data[i] ^= 0xff
		}
	}
}

// FuzzDecode: no bytes make the decoder panic, point outside of them, or take
// what a server would not have written.
func FuzzDecode(f *testing.F) {
	for _, s := range samples {
		f.Add(unhex(f, s.hex), uint8(4), s.parallel, s.inside)
	}
	for _, version := range captured {
		for _, s := range golden(f, version) {
			d := decoderOf(f, s.variant)
			var m Message
			for _, frame := range s.frames {
				if frame[0] != FrameXLogData {
					continue
				}
				data := frame[25:]
				if err := d.Decode(data, &m); err != nil {
					f.Fatal(err)
				}
				frames := m.Kind == KindStreamStart || m.Kind == KindStreamCommit || m.Kind == KindStreamAbort || m.Kind == KindStreamPrepare
				if len(data) < 300 {
					f.Add(data, uint8(s.proto), s.stream == "parallel", m.Stream != 0 && !frames)
				}
			}
		}
	}
	f.Fuzz(func(t *testing.T, data []byte, proto uint8, parallel, inside bool) {
		d, err := NewDecoder(int(proto), parallel)
		if err != nil {
			return
		}
		if inside && d.Decode([]byte{'S', 0, 0, 0, 7, 1}, new(Message)) != nil {
			return // protocol 1 has no streams
		}
		before := *d
		m := Message{Old: make(Tuple, 3), New: make(Tuple, 1), Relations: make([]uint32, 2)}
		if err := d.Decode(data, &m); err != nil {
			var format *FormatError
			if !errors.As(err, &format) || format.Offset < 0 || format.Offset > len(data) || *d != before {
				t.Fatalf("%x: %v", data, err)
			}
			return
		}
		checkMessage(t, &m, data, parallel)
	})
}

// FuzzFrames: the same for the frames around messages.
func FuzzFrames(f *testing.F) {
	for _, s := range golden(f, 15) {
		for _, frame := range s.frames[:20] {
			f.Add(frame)
		}
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		var format *FormatError
		x, err := ParseXLogData(data)
		if err == nil && !within(x.Data, data) || err != nil && !errors.As(err, &format) {
			t.Fatalf("%x: %+v, %v", data, x, err)
		}
		_, err = ParseKeepalive(data)
		if err == nil && (len(data) != 18 || data[0] != FrameKeepalive) || err != nil && !errors.As(err, &format) {
			t.Fatalf("%x: %v", data, err)
		}
	})
}
