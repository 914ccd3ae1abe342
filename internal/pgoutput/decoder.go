package pgoutput

import "fmt"

// Decoder decodes the messages of one connection, in their order. It is not for
// concurrent use. The zero value decodes protocol 1.
type Decoder struct {
	proto    int // 0 is 1
	parallel bool
	stream   uint32 // the transaction of the open stream block; 0 outside
}

// NewDecoder returns a decoder for what the connection asked for: option
// proto_version, and whether option streaming is 'parallel', which changes
// StreamAbort. The server does not say either.
func NewDecoder(proto int, parallel bool) (*Decoder, error) {
	if proto < 1 || proto > 4 {
		return nil, fmt.Errorf("pgoutput: protocol %d is not known; 1 to 4 are", proto)
	}
	if parallel && proto < 4 {
		return nil, fmt.Errorf("pgoutput: protocol %d has no parallel streams; 4 has", proto)
	}
	return &Decoder{proto: proto, parallel: parallel}, nil
}

// Reset forgets an open stream block, for a new connection with the same
// options.
func (d *Decoder) Reset() { d.stream = 0 }

// Where a kind may stand.
const (
	outside = 1 << iota // of stream blocks
	inside
)

// kinds is what is known of each kind: the protocol that brought it, 0 for none,
// and where it may stand.
var kinds = [256]struct {
	name  string
	since int
	place uint8
}{
	KindBegin:            {"Begin", 1, outside},
	KindCommit:           {"Commit", 1, outside},
	KindOrigin:           {"Origin", 1, outside | inside},
	KindRelation:         {"Relation", 1, outside | inside},
	KindType:             {"Type", 1, outside | inside},
	KindInsert:           {"Insert", 1, outside | inside},
	KindUpdate:           {"Update", 1, outside | inside},
	KindDelete:           {"Delete", 1, outside | inside},
	KindTruncate:         {"Truncate", 1, outside | inside},
	KindMessage:          {"Message", 1, outside | inside},
	KindStreamStart:      {"StreamStart", 2, outside},
	KindStreamStop:       {"StreamStop", 2, inside},
	KindStreamCommit:     {"StreamCommit", 2, outside},
	KindStreamAbort:      {"StreamAbort", 2, outside},
	KindBeginPrepare:     {"BeginPrepare", 3, outside},
	KindPrepare:          {"Prepare", 3, outside},
	KindCommitPrepared:   {"CommitPrepared", 3, outside},
	KindRollbackPrepared: {"RollbackPrepared", 3, outside},
	KindStreamPrepare:    {"StreamPrepare", 3, outside},
}

// Decode reads one message, which is all of data, into m. It reuses m's room:
// a message that is neither R, Y nor of a prepared transaction costs no
// allocation. The error is a [*FormatError]; m holds nothing of use then, and the
// decoder stands where it stood before.
func (d *Decoder) Decode(data []byte, m *Message) error {
	m.reset()
	r := reader{data: data}
	m.Kind = Kind(r.uint8("its kind"))
	m.Stream = d.stream
	if r.what == "" {
		d.admit(&r, m.Kind)
	}
	if r.what == "" {
		d.body(&r, m)
	}
	if err := r.done(m.Kind); err != nil {
		return err
	}
	switch m.Kind {
	case KindStreamStart:
		d.stream = m.XID
	case KindStreamStop:
		d.stream = 0
	}
	return nil
}

// admit refuses kinds that cannot come here.
func (d *Decoder) admit(r *reader, k Kind) {
	is, proto := &kinds[k], max(d.proto, 1)
	switch {
	case is.since == 0:
		r.fail(0, "a message of this kind is not known")
	case is.since > proto:
		r.fail(0, fmt.Sprintf("protocol %d does not have it, %d does", proto, is.since))
	case d.stream == 0 && is.place&outside == 0:
		r.fail(0, "outside of a stream block")
	case d.stream != 0 && is.place&inside == 0:
		r.fail(0, fmt.Sprintf("inside the stream block of transaction %d", d.stream))
	}
}

func (d *Decoder) body(r *reader, m *Message) {
	switch m.Kind {
	case KindInsert, KindUpdate, KindDelete, KindRelation, KindType, KindTruncate, KindMessage:
		if d.stream != 0 {
			m.XID = r.xid("the transaction")
		}
		r.change(m)
	case KindBegin:
		m.FinalLSN = r.lsn("the place of the commit")
		m.CommitTime = r.time("the time of the commit")
		m.XID = r.xid("the transaction")
	case KindCommit:
		r.commit(m)
	case KindOrigin:
		m.OriginLSN = LSN(r.uint64("the place on the origin"))
		m.Origin = r.text("the origin's name")
	case KindStreamStart:
		m.XID = r.xid("the transaction")
		m.FirstSegment = r.flags("the flags", 1) == 1
		m.Stream = m.XID
	case KindStreamStop:
	case KindStreamCommit:
		m.XID = r.xid("the transaction")
		m.Stream = m.XID
		r.commit(m)
	case KindStreamAbort:
		m.XID = r.xid("the transaction")
		m.Stream = m.XID
		m.SubXID = r.xid("the subtransaction")
		if d.parallel {
			m.AbortLSN = LSN(r.uint64("the place of the abort"))
			m.AbortTime = r.time("the time of the abort")
		}
	case KindBeginPrepare, KindPrepare, KindCommitPrepared, KindRollbackPrepared, KindStreamPrepare:
		r.twoPhase(m)
	}
}

// change reads what stands in a transaction and is no part of its frame.
func (r *reader) change(m *Message) {
	switch m.Kind {
	case KindInsert, KindUpdate, KindDelete:
		m.RelationID = r.uint32("the relation")
		r.rows(m)
	case KindRelation:
		m.Relation = r.relation()
		m.RelationID = m.Relation.ID
	case KindType:
		m.Type.ID = r.uint32("the type")
		m.Type.Namespace = r.namespace("the type's schema")
		m.Type.Name = string(r.text("the type's name"))
	case KindTruncate:
		r.truncate(m)
	case KindMessage:
		m.Transactional = r.flags("the flags", 1) == 1
		m.LSN = LSN(r.uint64("the place of the message"))
		m.Prefix = r.text("the prefix")
		m.Content = r.bytes("the content")
	}
}

// rows reads the tuples of I, U and D. Each kind has its own: an insert has no
// old one, a delete no new one, an update may have an old one.
func (r *reader) rows(m *Message) {
	at := r.off
	b := r.uint8("the tuple's kind")
	if (b == OldKey || b == OldRow) && m.Kind != KindInsert {
		m.OldKind = b
		m.Old = r.tuple(m.Old)
		if m.Kind == KindDelete {
			return
		}
		at = r.off
		b = r.uint8("the new tuple's kind")
	}
	if b != 'N' || m.Kind == KindDelete {
		r.fail(at, fmt.Sprintf("a tuple of kind %q", b))
		return
	}
	m.New = r.tuple(m.New)
}

// commit reads what C and c have in common.
func (r *reader) commit(m *Message) {
	r.flags("the flags", 0)
	m.CommitLSN = r.lsn("the place of the commit")
	m.EndLSN = r.lsn("the end of the transaction")
	m.CommitTime = r.time("the time of the commit")
}

// relation reads a table's description. A column has 10 bytes at least: flags,
// an empty name, type and modifier.
func (r *reader) relation() *Relation {
	rel := &Relation{
		ID:        r.uint32("the relation"),
		Namespace: r.namespace("the schema"),
		Name:      string(r.text("the name")),
	}
	at := r.off
	rel.Identity = r.uint8("the replica identity")
	switch rel.Identity {
	case 'd', 'n', 'f', 'i':
	default:
		r.fail(at, fmt.Sprintf("a replica identity of %q", rel.Identity))
	}
	at = r.off
	rel.Columns = make([]RelationColumn, r.count(at, int(r.uint16("the number of columns")), 10, "columns"))
	for i := range rel.Columns {
		rel.Columns[i] = RelationColumn{
			Key:      r.flags("a column's flags", 1) == 1,
			Name:     string(r.text("a column's name")),
			Type:     r.uint32("a column's type"),
			Modifier: int32(r.uint32("a column's modifier")),
		}
	}
	return rel
}

func (r *reader) truncate(m *Message) {
	at := r.off
	n := r.uint32("the number of relations")
	flags := r.flags("the options", 3)
	m.Cascade, m.RestartIdentity = flags&1 != 0, flags&2 != 0
	if n == 0 {
		r.fail(at, "no relations")
	}
	for range r.count(at, int(int32(n)), 4, "relations") {
		m.Relations = append(m.Relations, r.uint32("a relation"))
	}
}

// twoPhase reads the messages of prepared transactions. All end with the
// transaction and its name; what is before that differs.
func (r *reader) twoPhase(m *Message) {
	if m.Kind != KindBeginPrepare {
		r.flags("the flags", 0)
	}
	switch m.Kind {
	case KindCommitPrepared:
		m.CommitLSN = r.lsn("the place of the commit")
		m.EndLSN = r.lsn("the end of the transaction")
		m.CommitTime = r.time("the time of the commit")
	case KindRollbackPrepared:
		m.PrepareEndLSN = r.lsn("the end of the prepared transaction")
		m.EndLSN = r.lsn("the end of the rollback")
		m.PrepareTime = r.time("the time of the prepare")
		m.RollbackTime = r.time("the time of the rollback")
	default:
		m.PrepareLSN = r.lsn("the place of the prepare")
		m.EndLSN = r.lsn("the end of the prepared transaction")
		m.PrepareTime = r.time("the time of the prepare")
	}
	m.XID = r.xid("the transaction")
	if m.Kind == KindStreamPrepare {
		m.Stream = m.XID
	}
	m.GID = string(r.text("the name"))
}
