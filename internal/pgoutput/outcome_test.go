package pgoutput

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/onewrite/onewrite/internal/servers"
)

// reading is a reader of the log in its smallest form: what was committed, in
// the order of the commits.
type reading struct {
	t         testing.TB
	relations map[uint32]*Relation
	open      []change            // of the transaction between B and C, or b and P
	streams   map[uint32][]change // by transaction
	prepared  map[string][]change // by name
	done      []string
}

type change struct {
	xid  uint32
	line string
}

func outcomeOf(t testing.TB, v variant, frames [][]byte) string {
	t.Helper()
	r := &reading{t: t, relations: make(map[uint32]*Relation), streams: make(map[uint32][]change), prepared: make(map[string][]change)}
	d := decoderOf(t, v)
	var m Message
	for _, frame := range frames {
		if frame[0] == FrameKeepalive {
			continue
		}
		x, err := ParseXLogData(frame)
		if err != nil {
			t.Fatal(err)
		}
		if err := d.Decode(x.Data, &m); err != nil {
			t.Fatalf("%v in %x", err, x.Data)
		}
		r.take(&m)
	}
	if len(r.open) > 0 || len(r.streams) > 0 || len(r.prepared) > 0 {
		t.Errorf("left over: %d changes, streams %v, prepared %v", len(r.open), r.streams, r.prepared)
	}
	return strings.Join(r.done, "\n") + "\n"
}

func (r *reading) take(m *Message) {
	switch m.Kind {
	case KindRelation:
		r.relations[m.RelationID] = m.Relation
	case KindCommit:
		r.emit(r.open)
		r.open = nil
	case KindStreamCommit:
		r.emit(r.streams[m.XID])
		delete(r.streams, m.XID)
	case KindStreamAbort:
		changes := r.streams[m.XID]
		first := slices.IndexFunc(changes, func(c change) bool { return c.xid == m.SubXID })
		switch {
		case m.SubXID == m.XID:
			delete(r.streams, m.XID)
		case first >= 0: // and what came after it, messages for instance
			r.streams[m.XID] = changes[:first]
		}
	case KindPrepare:
		r.prepared[m.GID], r.open = r.open, nil
	case KindStreamPrepare:
		r.prepared[m.GID] = r.streams[m.XID]
		delete(r.streams, m.XID)
	case KindCommitPrepared:
		r.emit(r.prepared[m.GID])
		delete(r.prepared, m.GID)
	case KindRollbackPrepared:
		delete(r.prepared, m.GID)
	case KindInsert, KindUpdate, KindDelete, KindTruncate, KindMessage, KindOrigin:
		c := change{m.XID, r.line(m)}
		switch {
		case m.Kind == KindMessage && !m.Transactional:
			r.done = append(r.done, c.line)
		case m.Stream != 0:
			r.streams[m.Stream] = append(r.streams[m.Stream], c)
		default:
			r.open = append(r.open, c)
		}
	}
}

func (r *reading) emit(changes []change) {
	r.done = append(r.done, "transaction")
	for _, c := range changes {
		r.done = append(r.done, "  "+c.line)
	}
}

// line is a change without what differs from run to run.
func (r *reading) line(m *Message) string {
	switch m.Kind {
	case KindMessage:
		return fmt.Sprintf("message %q %q", m.Prefix, m.Content)
	case KindOrigin:
		return fmt.Sprintf("from %q", m.Origin)
	case KindTruncate:
		line := fmt.Sprintf("truncate cascade=%t restart=%t", m.Cascade, m.RestartIdentity)
		for _, id := range m.Relations {
			line += " " + r.relation(id).Name
		}
		return line
	}
	rel := r.relation(m.RelationID)
	for _, t := range []Tuple{m.Old, m.New} {
		if len(t) > 0 && len(t) != len(rel.Columns) {
			r.t.Fatalf("a row of %s has %d columns, the table has %d", rel.Name, len(t), len(rel.Columns))
		}
	}
	line := strings.ToLower(m.Kind.String()) + " " + rel.Name
	if m.OldKind != 0 {
		line += fmt.Sprintf(" %c(%s)", m.OldKind, values(rel, m.Old))
	}
	if len(m.New) > 0 {
		line += " " + values(rel, m.New)
	}
	return line
}

// values is a row without its nulls.
func values(rel *Relation, t Tuple) string {
	var parts []string
	for i, c := range t {
		if c.Kind != ColumnNull {
			parts = append(parts, field(rel.Columns[i].Name, c))
		}
	}
	return strings.Join(parts, " ")
}

func (r *reading) relation(id uint32) *Relation {
	rel := r.relations[id]
	if rel == nil {
		r.t.Fatalf("relation %d is not known", id)
	}
	return rel
}

// kindsOf are the letters of the frames, without what depends on when the server
// looked: stream blocks begin and end, and relations are described again.
func kindsOf(t testing.TB, frames [][]byte) string {
	t.Helper()
	var b strings.Builder
	for _, frame := range frames {
		if frame[0] != FrameXLogData {
			continue
		}
		x, err := ParseXLogData(frame)
		if err != nil {
			t.Fatal(err)
		}
		if k := Kind(x.Data[0]); k != KindRelation && k != KindType && k != KindStreamStart && k != KindStreamStop {
			b.WriteByte(byte(k))
		}
	}
	return b.String()
}

// TestOutcome: whatever the protocol, the same was committed.
func TestOutcome(t *testing.T) {
	for _, version := range captured {
		for _, s := range golden(t, version) {
			if !s.binary {
				t.Run(fmt.Sprintf("%d, %s", version, s.name), func(t *testing.T) { checkOutcome(t, version, s.variant, s.frames) })
			}
		}
	}
}

func checkOutcome(t *testing.T, version int, v variant, frames [][]byte) {
	t.Helper()
	want := generated(version, outcome)
	const rolledBack = "  message \"first in a savepoint\" \"streamed\"\n"
	if v.stream == "" {
		want = strings.Replace(want, rolledBack, "", 1)
	}
	if strings.Contains(want, rolledBack) != (v.stream != "") {
		t.Fatal("the outcome does not have the message that is there if streamed")
	}
	if got := outcomeOf(t, v, frames); got != want {
		t.Errorf("got:\n%s\nwant:\n%s", got, want)
	}
}

// TestServers plays the scenario on running servers: they send the kinds that
// were captured and come to the same outcome.
func TestServers(t *testing.T) {
	for _, version := range []int{15, 18} {
		t.Run(fmt.Sprint(version), func(t *testing.T) {
			pg := servers.Postgres(t, version)
			for _, s := range golden(t, version) {
				t.Run(s.name, func(t *testing.T) {
					frames := play(t, pg, s.variant)
					if got, want := kindsOf(t, frames), kindsOf(t, s.frames); got != want || len(want) < 50 {
						t.Errorf("kinds\n%s, captured were\n%s", got, want)
					}
					if !s.binary {
						checkOutcome(t, version, s.variant, frames)
					}
				})
			}
		})
	}
}
