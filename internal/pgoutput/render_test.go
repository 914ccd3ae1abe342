package pgoutput

import (
	"fmt"
	"strconv"
	"strings"
	"testing"
)

func decoderOf(t testing.TB, v variant) *Decoder {
	t.Helper()
	d, err := NewDecoder(v.proto, v.stream == "parallel")
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// quote shortens what is long and says how long it is.
func quote(b []byte) string {
	if len(b) > 60 {
		return fmt.Sprintf("%s... (%d bytes)", strconv.QuoteToASCII(string(b[:20])), len(b))
	}
	return strconv.QuoteToASCII(string(b))
}

// field is one column of a row, with the name that its relation has for it.
func field(name string, c Column) string {
	switch c.Kind {
	case ColumnNull:
		return name + "=null"
	case ColumnUnchanged:
		return name + "=unchanged"
	case ColumnBinary:
		return fmt.Sprintf("%s=0x%x", name, c.Data)
	}
	return name + "=" + quote(c.Data)
}

// row renders a tuple; without a relation the columns have numbers.
func row(rel *Relation, t Tuple) string {
	var parts []string
	for i, c := range t {
		name := strconv.Itoa(i)
		if rel != nil {
			name = rel.Columns[i].Name
		}
		parts = append(parts, field(name, c))
	}
	return strings.Join(parts, " ")
}

func when(t Timestamp) string { return t.Time().Format("2006-01-02T15:04:05.000000Z") }

// render is the whole message in one line: every field that is not zero.
func render(m *Message) string {
	var b strings.Builder
	add := func(format string, args ...any) { fmt.Fprintf(&b, " "+format, args...) }
	fmt.Fprintf(&b, "%c %s", byte(m.Kind), m.Kind)
	for _, n := range []struct {
		name string
		n    uint32
	}{{"stream", m.Stream}, {"xid", m.XID}, {"subxid", m.SubXID}, {"relation", m.RelationID}} {
		if n.n != 0 {
			add("%s=%d", n.name, n.n)
		}
	}
	for _, l := range []struct {
		name string
		lsn  LSN
	}{{"final", m.FinalLSN}, {"commit", m.CommitLSN}, {"prepare", m.PrepareLSN}, {"prepare-end", m.PrepareEndLSN}, {"abort", m.AbortLSN}, {"end", m.EndLSN}, {"lsn", m.LSN}, {"origin-lsn", m.OriginLSN}} {
		if l.lsn != 0 {
			add("%s=%s", l.name, l.lsn)
		}
	}
	for _, c := range []struct {
		name string
		time Timestamp
	}{{"committed", m.CommitTime}, {"prepared", m.PrepareTime}, {"rolled-back", m.RollbackTime}, {"aborted", m.AbortTime}} {
		if c.time != 0 {
			add("%s=%s", c.name, when(c.time))
		}
	}
	for _, f := range []struct {
		name string
		on   bool
	}{{"first", m.FirstSegment}, {"cascade", m.Cascade}, {"restart", m.RestartIdentity}, {"transactional", m.Transactional}} {
		if f.on {
			add("%s", f.name)
		}
	}
	if m.GID != "" {
		add("gid=%q", m.GID)
	}
	if m.OldKind != 0 {
		add("%c(%s)", m.OldKind, row(nil, m.Old))
	}
	if len(m.New) > 0 {
		add("N(%s)", row(nil, m.New))
	}
	for _, id := range m.Relations {
		add("%d", id)
	}
	if m.Prefix != nil || m.Content != nil {
		add("%s %s", quote(m.Prefix), quote(m.Content))
	}
	if m.Origin != nil {
		add("origin=%s", quote(m.Origin))
	}
	if m.Type != (Type{}) {
		add("type %d %q.%q", m.Type.ID, m.Type.Namespace, m.Type.Name)
	}
	if rel := m.Relation; rel != nil {
		add("%d %q.%q identity=%c", rel.ID, rel.Namespace, rel.Name, rel.Identity)
		for _, c := range rel.Columns {
			add("[%q type=%d modifier=%d key=%t]", c.Name, c.Type, c.Modifier, c.Key)
		}
	}
	return b.String()
}

// renderFrame is a frame with the message in it.
func renderFrame(t testing.TB, d *Decoder, frame []byte, m *Message) string {
	t.Helper()
	if frame[0] == FrameKeepalive {
		k, err := ParseKeepalive(frame)
		if err != nil {
			t.Fatal(err)
		}
		m.Kind = 0
		return fmt.Sprintf("keepalive end=%s clock=%s reply=%t", k.WALEnd, when(k.Clock), k.ReplyRequested)
	}
	x, err := ParseXLogData(frame)
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Decode(x.Data, m); err != nil {
		t.Fatalf("%v in %x", err, x.Data)
	}
	line := fmt.Sprintf("%s %s %s", x.Start, when(x.Clock), render(m))
	if x.WALEnd != x.Start {
		line += " wal-end=" + x.WALEnd.String()
	}
	return line
}
