package pgoutput

import (
	"encoding/binary"
)

// encoder writes messages as a server does. What is decoded and encoded again
// must be what it was.
type encoder struct{ b []byte }

func (e *encoder) u8(v uint8)        { e.b = append(e.b, v) }
func (e *encoder) u16(v int)         { e.b = binary.BigEndian.AppendUint16(e.b, uint16(v)) }
func (e *encoder) u32(v uint32)      { e.b = binary.BigEndian.AppendUint32(e.b, v) }
func (e *encoder) lsn(v LSN)         { e.b = binary.BigEndian.AppendUint64(e.b, uint64(v)) }
func (e *encoder) time(v Timestamp)  { e.b = binary.BigEndian.AppendUint64(e.b, uint64(v)) }
func (e *encoder) text(s string)     { e.b = append(append(e.b, s...), 0) }
func (e *encoder) bytes(data []byte) { e.u32(uint32(len(data))); e.b = append(e.b, data...) }

func (e *encoder) flags(bits ...bool) {
	var v uint8
	for i, on := range bits {
		if on {
			v |= 1 << i
		}
	}
	e.u8(v)
}

func (e *encoder) namespace(s string) {
	if s == "pg_catalog" {
		s = ""
	}
	e.text(s)
}

func (e *encoder) tuple(kind byte, t Tuple) {
	e.u8(kind)
	e.u16(len(t))
	for _, c := range t {
		e.u8(c.Kind)
		if c.Kind == ColumnText || c.Kind == ColumnBinary {
			e.bytes(c.Data)
		}
	}
}

// encode writes m; parallel is the option of the connection.
func encode(m *Message, parallel bool) []byte {
	e := &encoder{b: []byte{byte(m.Kind)}}
	switch m.Kind {
	case KindBegin:
		e.lsn(m.FinalLSN)
		e.time(m.CommitTime)
		e.u32(m.XID)
	case KindCommit:
		e.commit(m)
	case KindOrigin:
		e.lsn(m.OriginLSN)
		e.text(string(m.Origin))
	case KindStreamStart:
		e.u32(m.XID)
		e.flags(m.FirstSegment)
	case KindStreamCommit:
		e.u32(m.XID)
		e.commit(m)
	case KindStreamAbort:
		e.u32(m.XID)
		e.u32(m.SubXID)
		if parallel {
			e.lsn(m.AbortLSN)
			e.time(m.AbortTime)
		}
	case KindStreamStop:
	case KindBeginPrepare, KindPrepare, KindStreamPrepare, KindCommitPrepared, KindRollbackPrepared:
		e.twoPhase(m)
	default:
		e.change(m)
	}
	return e.b
}

func (e *encoder) commit(m *Message) {
	e.u8(0)
	e.lsn(m.CommitLSN)
	e.lsn(m.EndLSN)
	e.time(m.CommitTime)
}

func (e *encoder) twoPhase(m *Message) {
	if m.Kind != KindBeginPrepare {
		e.u8(0)
	}
	switch m.Kind {
	case KindCommitPrepared:
		e.lsn(m.CommitLSN)
		e.lsn(m.EndLSN)
		e.time(m.CommitTime)
	case KindRollbackPrepared:
		e.lsn(m.PrepareEndLSN)
		e.lsn(m.EndLSN)
		e.time(m.PrepareTime)
		e.time(m.RollbackTime)
	default:
		e.lsn(m.PrepareLSN)
		e.lsn(m.EndLSN)
		e.time(m.PrepareTime)
	}
	e.u32(m.XID)
	e.text(m.GID)
}

func (e *encoder) change(m *Message) {
	if m.Stream != 0 {
		e.u32(m.XID)
	}
	switch m.Kind {
	case KindInsert:
		e.u32(m.RelationID)
		e.tuple('N', m.New)
	case KindUpdate:
		e.u32(m.RelationID)
		if m.OldKind != 0 {
			e.tuple(m.OldKind, m.Old)
		}
		e.tuple('N', m.New)
	case KindDelete:
		e.u32(m.RelationID)
		e.tuple(m.OldKind, m.Old)
	case KindRelation:
		e.u32(m.Relation.ID)
		e.namespace(m.Relation.Namespace)
		e.text(m.Relation.Name)
		e.u8(m.Relation.Identity)
		e.u16(len(m.Relation.Columns))
		for _, c := range m.Relation.Columns {
			e.flags(c.Key)
			e.text(c.Name)
			e.u32(c.Type)
			e.u32(uint32(c.Modifier))
		}
	case KindType:
		e.u32(m.Type.ID)
		e.namespace(m.Type.Namespace)
		e.text(m.Type.Name)
	case KindTruncate:
		e.u32(uint32(len(m.Relations)))
		e.flags(m.Cascade, m.RestartIdentity)
		for _, id := range m.Relations {
			e.u32(id)
		}
	case KindMessage:
		e.flags(m.Transactional)
		e.lsn(m.LSN)
		e.text(string(m.Prefix))
		e.bytes(m.Content)
	}
}
