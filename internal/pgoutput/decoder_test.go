package pgoutput

import (
	"encoding/hex"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"
)

// unhex reads hex with spaces, and 'text' as it stands.
func unhex(t testing.TB, s string) (out []byte) {
	t.Helper()
	for i, part := range strings.Split(s, "'") {
		if i%2 == 1 {
			out = append(out, part...)
			continue
		}
		b, err := hex.DecodeString(strings.ReplaceAll(part, " ", ""))
		if err != nil {
			t.Fatalf("%q: %v", s, err)
		}
		out = append(out, b...)
	}
	return out
}

// streamed returns a decoder of protocol 4, in the stream block of transaction 7
// if asked.
func streamed(t testing.TB, inside, parallel bool) *Decoder {
	t.Helper()
	d, err := NewDecoder(4, parallel)
	if err != nil {
		t.Fatal(err)
	}
	if inside {
		if err := d.Decode(unhex(t, "'S' 00000007 01"), new(Message)); err != nil {
			t.Fatal(err)
		}
	}
	return d
}

// sample is a message written by hand, by the documentation.
type sample struct {
	hex      string
	inside   bool
	parallel bool
	want     Message
}

func text(s string) Column { return Column{ColumnText, []byte(s)} }

const (
	lsn1, lsn2 = "00000001 00000002", "00000003 00000004"
	time1      = "00000000 000f4240" // one second
	time2      = "ffffffff ffffffff" // a microsecond before the epoch
)

var samples = []sample{
	{hex: "'B'" + lsn1 + time1 + "00000005", want: Message{FinalLSN: 1<<32 | 2, CommitTime: 1e6, XID: 5}},
	{hex: "'C' 00" + lsn1 + lsn2 + time2, want: Message{CommitLSN: 1<<32 | 2, EndLSN: 3<<32 | 4, CommitTime: -1}},
	{hex: "'O'" + lsn1 + "'far' 00", want: Message{OriginLSN: 1<<32 | 2, Origin: []byte("far")}},
	{hex: "'O' 00000000 00000000 'far' 00", inside: true, want: Message{Stream: 7, Origin: []byte("far")}},
	{hex: "'R' 00004001 's' 00 't' 00 'd' 0002 01 'id' 00 00000017 ffffffff 00 'n' 00 000006a4 000c0006",
		want: Message{RelationID: 0x4001, Relation: &Relation{ID: 0x4001, Namespace: "s", Name: "t", Identity: 'd',
			Columns: []RelationColumn{{true, "id", 23, -1}, {false, "n", 1700, 0xc0006}}}}},
	{hex: "'R' 00000008 00004001 00 't' 00 'n' 0000", inside: true, want: Message{Stream: 7, XID: 8, RelationID: 0x4001,
		Relation: &Relation{ID: 0x4001, Namespace: "pg_catalog", Name: "t", Identity: 'n', Columns: []RelationColumn{}}}},
	{hex: "'Y' 00004002 's' 00 'mood' 00", want: Message{Type: Type{0x4002, "s", "mood"}}},
	{hex: "'Y' 00000008 00004002 00 'text' 00", inside: true, want: Message{Stream: 7, XID: 8, Type: Type{0x4002, "pg_catalog", "text"}}},
	{hex: "'I' 00004001 'N' 0005 't' 00000002 'ab' 'n' 'u' 'b' 00000003 00ff01 't' 00000000", want: Message{RelationID: 0x4001,
		New: Tuple{text("ab"), {Kind: ColumnNull}, {Kind: ColumnUnchanged}, {ColumnBinary, []byte{0, 255, 1}}, text("")}}},
	{hex: "'I' 00000008 00004001 'N' 0001 't' 00000001 'a'", inside: true, want: Message{Stream: 7, XID: 8, RelationID: 0x4001, New: Tuple{text("a")}}},
	{hex: "'I' 00004001 'N' 0000", want: Message{RelationID: 0x4001}},
	{hex: "'U' 00004001 'N' 0001 'n'", want: Message{RelationID: 0x4001, New: Tuple{{Kind: ColumnNull}}}},
	{hex: "'U' 00004001 'K' 0001 't' 00000001 'k' 'N' 0001 't' 00000001 'l'", want: Message{RelationID: 0x4001, OldKind: OldKey, Old: Tuple{text("k")}, New: Tuple{text("l")}}},
	{hex: "'U' 00000008 00004001 'O' 0001 'n' 'N' 0001 'u'", inside: true,
		want: Message{Stream: 7, XID: 8, RelationID: 0x4001, OldKind: OldRow, Old: Tuple{{Kind: ColumnNull}}, New: Tuple{{Kind: ColumnUnchanged}}}},
	{hex: "'D' 00004001 'K' 0001 't' 00000001 'k'", want: Message{RelationID: 0x4001, OldKind: OldKey, Old: Tuple{text("k")}}},
	{hex: "'D' 00000008 00004001 'O' 0001 'n'", inside: true, want: Message{Stream: 7, XID: 8, RelationID: 0x4001, OldKind: OldRow, Old: Tuple{{Kind: ColumnNull}}}},
	{hex: "'T' 00000002 01 00004001 00004002", want: Message{Relations: []uint32{0x4001, 0x4002}, Cascade: true}},
	{hex: "'T' 00000008 00000001 02 00004001", inside: true, want: Message{Stream: 7, XID: 8, Relations: []uint32{0x4001}, RestartIdentity: true}},
	{hex: "'M' 00" + lsn1 + "'pre' 00 00000002 'xy'", want: Message{LSN: 1<<32 | 2, Prefix: []byte("pre"), Content: []byte("xy")}},
	{hex: "'M' 00000008 01" + lsn1 + "00 00000000", inside: true, want: Message{Stream: 7, XID: 8, Transactional: true, LSN: 1<<32 | 2, Prefix: []byte{}, Content: []byte{}}},
	{hex: "'S' 00000009 01", want: Message{Stream: 9, XID: 9, FirstSegment: true}},
	{hex: "'S' 00000009 00", want: Message{Stream: 9, XID: 9}},
	{hex: "'E'", inside: true, want: Message{Stream: 7}},
	{hex: "'c' 00000009 00" + lsn1 + lsn2 + time1, want: Message{Stream: 9, XID: 9, CommitLSN: 1<<32 | 2, EndLSN: 3<<32 | 4, CommitTime: 1e6}},
	{hex: "'A' 00000009 0000000a", want: Message{Stream: 9, XID: 9, SubXID: 10}},
	{hex: "'A' 00000009 0000000a" + lsn1 + time1, parallel: true, want: Message{Stream: 9, XID: 9, SubXID: 10, AbortLSN: 1<<32 | 2, AbortTime: 1e6}},
	{hex: "'A' 00000009 00000009 00000000 00000000 00000000 00000000", parallel: true, want: Message{Stream: 9, XID: 9, SubXID: 9}},
	{hex: "'b'" + lsn1 + lsn2 + time1 + "00000009 'gid' 00", want: Message{PrepareLSN: 1<<32 | 2, EndLSN: 3<<32 | 4, PrepareTime: 1e6, XID: 9, GID: "gid"}},
	{hex: "'P' 00" + lsn1 + lsn2 + time1 + "00000009 'gid' 00", want: Message{PrepareLSN: 1<<32 | 2, EndLSN: 3<<32 | 4, PrepareTime: 1e6, XID: 9, GID: "gid"}},
	{hex: "'K' 00" + lsn1 + lsn2 + time1 + "00000009 'gid' 00", want: Message{CommitLSN: 1<<32 | 2, EndLSN: 3<<32 | 4, CommitTime: 1e6, XID: 9, GID: "gid"}},
	{hex: "'r' 00" + lsn1 + lsn2 + time1 + time2 + "00000009 'gid' 00",
		want: Message{PrepareEndLSN: 1<<32 | 2, EndLSN: 3<<32 | 4, PrepareTime: 1e6, RollbackTime: -1, XID: 9, GID: "gid"}},
	{hex: "'p' 00" + lsn1 + lsn2 + time1 + "00000009 'gid' 00", want: Message{Stream: 9, PrepareLSN: 1<<32 | 2, EndLSN: 3<<32 | 4, PrepareTime: 1e6, XID: 9, GID: "gid"}},
}

// normal makes empty and nil lists the same: room that is kept is not nil.
func normal(m Message) Message {
	if len(m.Old) == 0 {
		m.Old = nil
	}
	if len(m.New) == 0 {
		m.New = nil
	}
	if len(m.Relations) == 0 {
		m.Relations = nil
	}
	return m
}

// TestDecode: each kind, into a message that was full of something else.
func TestDecode(t *testing.T) {
	seen := make(map[Kind]bool)
	for _, s := range samples {
		data := unhex(t, s.hex)
		want := s.want
		want.Kind = Kind(data[0])
		seen[want.Kind] = true
		m := Message{Stream: 99, XID: 99, SubXID: 99, FirstSegment: true, FinalLSN: 99, CommitLSN: 99, PrepareLSN: 99, PrepareEndLSN: 99, AbortLSN: 99,
			EndLSN: 99, LSN: 99, OriginLSN: 99, CommitTime: 99, PrepareTime: 99, RollbackTime: 99, AbortTime: 99, GID: "99", RelationID: 99,
			Old: Tuple{text("99"), text("99")}, New: Tuple{text("99"), text("99")}, OldKind: 99, Relations: []uint32{99}, Cascade: true, RestartIdentity: true,
			Transactional: true, Prefix: []byte("99"), Content: []byte("99"), Origin: []byte("99"), Relation: &Relation{ID: 99}, Type: Type{99, "99", "99"}}
		if err := streamed(t, s.inside, s.parallel).Decode(data, &m); err != nil {
			t.Errorf("%s: %v", s.hex, err)
		} else if got := normal(m); !reflect.DeepEqual(got, want) {
			t.Errorf("%s:\ngot  %+v\nwant %+v", s.hex, got, want)
		}
		if again := encode(&m, s.parallel); string(again) != string(data) {
			t.Errorf("%s: encoded again it is %x", s.hex, again)
		}
	}
	if len(seen) != 19 {
		t.Errorf("%d kinds were decoded, the protocol has 19", len(seen))
	}
}

// TestEveryByteCounts: a message that lacks a byte is refused wherever it ends,
// and one that has a byte too many is, too.
func TestEveryByteCounts(t *testing.T) {
	tried := 0
	for _, s := range samples {
		data := unhex(t, s.hex)
		for n := range data {
			wantError(t, streamed(t, s.inside, s.parallel), data[:n:n], -1, "")
			tried++
		}
		wantError(t, streamed(t, s.inside, s.parallel), append(data, 0), len(data), "1 bytes too many")
	}
	if tried < 600 {
		t.Errorf("only %d cuts were tried", tried)
	}
}

// wantError decodes data, expects a FormatError at offset (-1: anywhere) and sees
// that the decoder stands where it stood.
func wantError(t *testing.T, d *Decoder, data []byte, offset int, what string) {
	t.Helper()
	before := *d
	err := d.Decode(data, new(Message))
	var format *FormatError
	if !errors.As(err, &format) {
		t.Errorf("%x: the error is %v", data, err)
		return
	}
	if offset >= 0 && format.Offset != offset || !strings.Contains(format.What, what) || format.Offset > len(data) {
		t.Errorf("%x: the error is %v; want offset %d, %q", data, err, offset, what)
	}
	if len(data) > 0 && format.Kind != Kind(data[0]) {
		t.Errorf("%x: the error is of kind %s", data, format.Kind)
	}
	if *d != before {
		t.Errorf("%x: an error changed the decoder", data)
	}
}

func TestFormatErrors(t *testing.T) {
	for _, c := range []struct {
		hex    string
		inside bool
		offset int
		what   string
	}{
		{"", false, 0, "ends in its kind"},
		{"'X'", false, 0, "not known"},
		{"00", false, 0, "not known"},
		{"'w'", false, 0, "not known"},
		{"'I' 00004001 'K' 0001 'n'", false, 5, "kind 'K'"},
		{"'I' 00004001 'N' 0001 'x'", false, 8, "kind 'x'"},
		{"'I' 00004001 'N' 0003 'nn'", false, 6, "3 columns in 2 bytes"},
		{"'I' 00004001 'N' ffff 'n'", false, 6, "65535 columns in 1 bytes"},
		{"'I' 00004001 'N' 0001 't' 00000002 'a'", false, 9, "has 2 bytes, 1 are left"},
		{"'I' 00004001 'N' 0001 't' ffffffff 'a'", false, 9, "has -1 bytes"},
		{"'I' 00004001 'N' 0001 'b' 7fffffff 'a'", false, 9, "has 2147483647 bytes"},
		{"'I' 00004001 'N' 0001 'nn'", false, 9, "1 bytes too many"},
		{"'I' 00000000 00004001 'N' 0001 'n'", true, 1, "the transaction is 0"},
		{"'U' 00004001 'X' 0001 'n'", false, 5, "kind 'X'"},
		{"'U' 00004001 'K' 0001 'n' 'K' 0001 'n'", false, 9, "kind 'K'"},
		{"'U' 00004001 'K' 0001 'n'", false, 9, "ends in the new tuple"},
		{"'D' 00004001 'N' 0001 'n'", false, 5, "kind 'N'"},
		{"'D' 00004001 'K' 0001 'n' 'N' 0001 'n'", false, 9, "4 bytes too many"},
		{"'C' 01" + lsn1 + lsn2 + time1, false, 1, "flags"},
		{"'C' 00 00000000 00000000" + lsn2 + time1, false, 2, "is 0"},
		{"'C' 00" + lsn1 + "00000000 00000000" + time1, false, 10, "is 0"},
		{"'B' 00000000 00000000" + time1 + "00000005", false, 1, "is 0"},
		{"'B'" + lsn1 + time1 + "00000000", false, 17, "is 0"},
		{"'R' 00004001 's' 00 't' 00 'x' 0000", false, 9, "replica identity"},
		{"'R' 00004001 's' 00 't' 00 'd' 0001 02 'a' 00 00000017 ffffffff", false, 12, "0x2"},
		{"'R' 00004001 's' 00 't' 00 'd' ffff 00 'a' 00 00000017 ffffffff", false, 10, "65535 columns"},
		{"'R' 00004001 's' 00 't'", false, 7, "ends in the name"},
		{"'O'" + lsn1 + "'far'", false, 9, "ends in the origin"},
		{"'T' 00000001 04 00004001", false, 5, "0x4"},
		{"'T' 00000000 00", false, 1, "no relations"},
		{"'T' 00000002 00 00004001", false, 1, "2 relations in 4 bytes"},
		{"'T' ffffffff 00 00004001", false, 1, "-1 relations"},
		{"'T' 7fffffff 00 00004001", false, 1, "2147483647 relations"},
		{"'M' 02" + lsn1 + "00 00000000", false, 1, "0x2"},
		{"'M' 00" + lsn1 + "00 00000001", false, 11, "has 1 bytes, 0 are left"},
		{"'S' 00000009 02", false, 5, "0x2"},
		{"'S' 00000000 01", false, 1, "is 0"},
		{"'S' 00000009 01", true, 0, "inside the stream block of transaction 7"},
		{"'E'", false, 0, "outside"},
		{"'c' 00000009 01" + lsn1 + lsn2 + time1, false, 5, "flags"},
		{"'c' 00000009 00" + lsn1 + lsn2 + time1, true, 0, "inside"},
		{"'A' 00000009 0000000a", true, 0, "inside"},
		{"'A' 00000009 0000000a" + lsn1 + time1, false, 9, "16 bytes too many"},
		{"'A' 00000009 00000000", false, 5, "is 0"},
		{"'B'" + lsn1 + time1 + "00000005", true, 0, "inside"},
		{"'C' 00" + lsn1 + lsn2 + time2, true, 0, "inside"},
		{"'b'" + lsn1 + lsn2 + time1 + "00000009 'gid' 00", true, 0, "inside"},
		{"'P' 00" + lsn1 + lsn2 + time1 + "00000009 'gid' 00", true, 0, "inside"},
		{"'K' 00" + lsn1 + lsn2 + time1 + "00000009 'gid' 00", true, 0, "inside"},
		{"'r' 00" + lsn1 + lsn2 + time1 + time2 + "00000009 'gid' 00", true, 0, "inside"},
		{"'p' 00" + lsn1 + lsn2 + time1 + "00000009 'gid' 00", true, 0, "inside"},
		{"'P' 80" + lsn1 + lsn2 + time1 + "00000009 'gid' 00", false, 1, "0x80"},
		{"'K' 00" + lsn1 + lsn2 + time1 + "00000009 'gid'", false, 30, "ends in the name"},
	} {
		wantError(t, streamed(t, c.inside, false), unhex(t, c.hex), c.offset, c.what)
	}
}

// TestProtocol: what a version does not have is refused, and the options that do
// not go together are.
func TestProtocol(t *testing.T) {
	refused := map[int]string{0: "ScEAbPKrp", 1: "ScEAbPKrp", 2: "bPKrp", 3: "", 4: ""}
	for proto, kinds := range refused {
		for _, k := range "BCORYIUDTMScEAbPKrp" {
			d := new(Decoder)
			if proto > 0 {
				var err error
				if d, err = NewDecoder(proto, false); err != nil {
					t.Fatal(err)
				}
			}
			err := d.Decode([]byte{byte(k)}, new(Message))
			if got := strings.Contains(fmt.Sprint(err), "does not have it"); got != strings.ContainsRune(kinds, k) {
				t.Errorf("protocol %d, %c: %v", proto, k, err)
			}
		}
	}
	for _, bad := range []struct {
		proto    int
		parallel bool
	}{{0, false}, {-1, false}, {5, false}, {1, true}, {3, true}} {
		if d, err := NewDecoder(bad.proto, bad.parallel); err == nil || d != nil {
			t.Errorf("NewDecoder(%d, %t) is accepted", bad.proto, bad.parallel)
		}
	}
}

// TestStreamBlocks: the transaction stands in messages between S and E only, and
// Reset ends an open block.
func TestStreamBlocks(t *testing.T) {
	d := streamed(t, false, false)
	insert, inStream := "'I' 00004001 'N' 0001 'n'", "'I' 00000008 00004001 'N' 0001 'n'"
	var m Message
	for i, step := range []struct {
		hex         string
		stream, xid uint32
	}{
		{insert, 0, 0}, {"'S' 00000007 01", 7, 7}, {inStream, 7, 8}, {inStream, 7, 8}, {"'E'", 7, 0}, {insert, 0, 0},
		{"'S' 00000009 00", 9, 9}, {inStream, 9, 8}, {"reset", 0, 0}, {insert, 0, 0},
	} {
		if step.hex == "reset" {
			d.Reset()
			continue
		}
		if err := d.Decode(unhex(t, step.hex), &m); err != nil || m.Stream != step.stream || m.XID != step.xid {
			t.Errorf("step %d, %s: stream %d, transaction %d, %v", i, step.hex, m.Stream, m.XID, err)
		}
	}
}

func TestKindNames(t *testing.T) {
	for k, want := range map[Kind]string{KindBegin: "Begin", KindStreamPrepare: "StreamPrepare", 'w': "XLogData", 'k': "Keepalive", 'X': "'X'", 0: `'\x00'`, 255: "'ÿ'"} {
		if k.String() != want {
			t.Errorf("%d is %s, not %s", k, k, want)
		}
	}
	err := &FormatError{Kind: KindInsert, Offset: 6, What: "3 columns in 2 bytes"}
	if got, want := err.Error(), "pgoutput: Insert at byte 6: 3 columns in 2 bytes"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestLSN(t *testing.T) {
	for s, want := range map[string]LSN{"0/0": 0, "16/B374D848": 0x16_B374D848, "ffffffff/FFFFFFFF": 1<<64 - 1, "00000016/0000000a": 0x16_0000000A} {
		if got, err := ParseLSN(s); err != nil || got != want {
			t.Errorf("%s is %s: %v", s, got, err)
		}
	}
	for lsn, want := range map[LSN]string{0: "0/0", 0x16_B374D848: "16/B374D848", 1<<64 - 1: "FFFFFFFF/FFFFFFFF", 10: "0/A", 1 << 32: "1/0"} {
		if lsn.String() != want {
			t.Errorf("%d is %s, not %s", lsn, lsn, want)
		}
	}
	for _, bad := range []string{"", "/", "0", "0/", "/0", "+1/0", "0/-1", "0x1/0", "1_0/0", "000000001/0", "0/100000000", " 0/0", "0/0 ", "0/0/0", "g/0", "0/ß"} {
		if got, err := ParseLSN(bad); err == nil {
			t.Errorf("%q is %s", bad, got)
		}
	}
}

func TestTimestamp(t *testing.T) {
	for ts, want := range map[Timestamp]string{0: "2000-01-01T00:00:00Z", 1: "2000-01-01T00:00:00.000001Z", -1: "1999-12-31T23:59:59.999999Z", 829_574_400_123_456: "2026-04-15T13:20:00.123456Z"} {
		if got := ts.Time().Format(time.RFC3339Nano); got != want {
			t.Errorf("%d is %s, not %s", ts, got, want)
		}
		if back := TimestampOf(ts.Time().In(time.FixedZone("", 3600))); back != ts {
			t.Errorf("%d comes back as %d", ts, back)
		}
	}
	if year := Timestamp(1<<63 - 1).Time().Year(); year != 294247+30 {
		t.Errorf("the last time is in %d", year)
	}
}
