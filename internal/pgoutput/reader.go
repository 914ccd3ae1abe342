package pgoutput

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"
)

// FormatError says that data is not what the protocol allows. Nothing of the
// connection can be trusted after it.
type FormatError struct {
	// Kind is the message's, or its first byte if that is unknown.
	Kind Kind
	// Offset is the byte of the message where it was noticed.
	Offset int
	// What is wrong there.
	What string
}

// Error names all three.
func (e *FormatError) Error() string {
	return fmt.Sprintf("pgoutput: %s at byte %d: %s", e.Kind, e.Offset, e.What)
}

// reader walks over a message. After the first failure it stands at the end and
// everything reads as zero, so that callers look once, when they are done.
type reader struct {
	data []byte
	off  int
	what string // the first failure; "" for none
	at   int    // where it was
}

func (r *reader) fail(at int, what string) {
	if r.what == "" {
		r.what, r.at = what, at
	}
	r.off = len(r.data)
}

func (r *reader) short(field string) { r.fail(r.off, "the message ends in "+field) }

// done is the error of a message that was read to its end.
func (r *reader) done(k Kind) error {
	if r.what == "" && r.off < len(r.data) {
		r.fail(r.off, fmt.Sprintf("%d bytes too many", len(r.data)-r.off))
	}
	if r.what != "" {
		return &FormatError{Kind: k, Offset: r.at, What: r.what}
	}
	return nil
}

func (r *reader) uint8(field string) uint8 {
	if r.off >= len(r.data) {
		r.short(field)
		return 0
	}
	v := r.data[r.off]
	r.off++
	return v
}

func (r *reader) uint16(field string) uint16 {
	if len(r.data)-r.off < 2 {
		r.short(field)
		return 0
	}
	v := binary.BigEndian.Uint16(r.data[r.off:])
	r.off += 2
	return v
}

func (r *reader) uint32(field string) uint32 {
	if len(r.data)-r.off < 4 {
		r.short(field)
		return 0
	}
	v := binary.BigEndian.Uint32(r.data[r.off:])
	r.off += 4
	return v
}

func (r *reader) uint64(field string) uint64 {
	if len(r.data)-r.off < 8 {
		r.short(field)
		return 0
	}
	v := binary.BigEndian.Uint64(r.data[r.off:])
	r.off += 8
	return v
}

// flags reads a byte of which only some bits have a meaning.
func (r *reader) flags(field string, known uint8) uint8 {
	at := r.off
	v := r.uint8(field)
	if v&^known != 0 {
		r.fail(at, fmt.Sprintf("%s are %#x, of which %#x is not known", field, v, v&^known))
	}
	return v & known
}

// lsn reads a place that every such message has: 0 would be none.
func (r *reader) lsn(field string) LSN {
	at := r.off
	v := r.uint64(field)
	if v == 0 {
		r.fail(at, field+" is 0")
	}
	return LSN(v)
}

func (r *reader) time(field string) Timestamp { return Timestamp(r.uint64(field)) }

// xid reads a transaction's number: 0 would be none.
func (r *reader) xid(field string) uint32 {
	at := r.off
	v := r.uint32(field)
	if v == 0 {
		r.fail(at, field+" is 0")
	}
	return v
}

// text reads a string up to its zero byte.
func (r *reader) text(field string) []byte {
	n := bytes.IndexByte(r.data[r.off:], 0)
	if n < 0 {
		r.short(field)
		return nil
	}
	v := r.data[r.off : r.off+n : r.off+n]
	r.off += n + 1
	return v
}

// namespace reads a schema's name, which is empty for the catalog's own.
func (r *reader) namespace(field string) string {
	if v := r.text(field); len(v) > 0 {
		return string(v)
	}
	return "pg_catalog"
}

// bytes reads a length and as many bytes. A length that is larger than what is
// there, as a negative one is, is refused.
func (r *reader) bytes(field string) []byte {
	at := r.off
	n := int64(r.uint32(field))
	if n > int64(len(r.data)-r.off) {
		r.fail(at, fmt.Sprintf("%s has %d bytes, %d are left", field, int32(n), len(r.data)-r.off))
		return nil
	}
	v := r.data[r.off : r.off+int(n) : r.off+int(n)]
	r.off += int(n)
	return v
}

// count checks that n things of at least size bytes can follow: the room for
// them is made before they are read.
func (r *reader) count(at, n, size int, field string) int {
	if left := len(r.data) - r.off; n < 0 || n > left/size {
		r.fail(at, fmt.Sprintf("%d %s in %d bytes", n, field, left))
		return 0
	}
	return n
}

// tuple reads a row into the room of t.
func (r *reader) tuple(t Tuple) Tuple {
	at := r.off
	n := r.count(at, int(r.uint16("the number of columns")), 1, "columns")
	t = slices.Grow(t[:0], n)[:n]
	for i := range t {
		kind := r.uint8("a column's kind")
		switch kind {
		case ColumnText, ColumnBinary:
			t[i] = Column{kind, r.bytes("a column")}
		case ColumnNull, ColumnUnchanged:
			t[i] = Column{Kind: kind}
		default:
			r.fail(r.off-1, fmt.Sprintf("a column of kind %q", kind))
			return t[:i]
		}
	}
	return t
}
