package kafka

import (
	"math/rand/v2"
	"strconv"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/internal/cloudevents"
)

// A topic of the bus is a log that is written by compare and swap, without the help of
// the brokers: every record says which offset it is to have, and counts only if it has
// that one. A writer reads to the end of the log and writes behind it; if somebody else
// was faster, what it wrote lies elsewhere and is void, for every reader and for ever.
// Records of one append name the last of them, and count only when all are there. So an
// append is whole or nothing, though it may take several requests; what a client sends
// twice is there once; and a stale writer changes nothing.
//
// Appends that are sent without waiting for the one before are a run. All its records name
// the first one of the run, and count only when all before them, from that one on, are
// there: what was sent behind an append that was refused is void, whatever lies in the
// place of that one.

// markHeader is the first header of every record of the bus.
const markHeader = "onewrite"

// posHeader is the second one of the last record of an append: the position of its source.
const posHeader = "onewrite-pos"

// mark says where a record is to lie.
type mark struct {
	at          int64  // its offset in the topic
	first, last int64  // those of the first record of its run and of the last one of its append
	seq         uint64 // of an event, its offset on the bus, which has no holes; 0: none
	nonce       uint64 // tells the run from every other one
	sum         uint64 // of an event, the bytes of all events of the log up to and with it
}

// newMark makes the mark of the records of a run of one append that begins at an offset.
func newMark(first int64, n int) mark {
	return mark{at: first, first: first, last: first + int64(n) - 1, nonce: rand.Uint64() >> 1}
}

// header is the mark of record i of the append; m.seq is the number of its first event,
// m.sum that of this one.
func (m mark) header(i int) kgo.RecordHeader {
	return kgo.RecordHeader{Key: markHeader, Value: m.append(make([]byte, 0, maxMark), i)}
}

// maxMark is the length of six numbers and what is between them.
const maxMark = 6*20 + 5

// append appends the value of that header.
func (m mark) append(v []byte, i int) []byte {
	return strconv.AppendUint(m.appendHead(v, i), m.sum, 10)
}

// appendHead appends all of it but the sum.
func (m mark) appendHead(v []byte, i int) []byte {
	seq := m.seq
	if seq > 0 {
		seq += uint64(i)
	}
	for _, n := range [...]uint64{uint64(m.at) + uint64(i), uint64(m.first), uint64(m.last), seq, m.nonce} {
		v = append(strconv.AppendUint(v, n, 10), ' ')
	}
	return v
}

// markOf reads it; false: the record was not written by a bus.
func markOf(r *kgo.Record) (m mark, ok bool) {
	if len(r.Headers) == 0 || r.Headers[0].Key != markHeader {
		return m, false
	}
	var n [6]uint64
	field, digits := 0, 0
	for _, c := range r.Headers[0].Value {
		switch {
		case c >= '0' && c <= '9' && digits < 19:
			n[field], digits = n[field]*10+uint64(c-'0'), digits+1
		case c == ' ' && digits > 0 && field < 5:
			field, digits = field+1, 0
		default:
			return m, false
		}
	}
	m = mark{int64(n[0]), int64(n[1]), int64(n[2]), n[3], n[4], n[5]}
	return m, field == 5 && digits > 0 && m.first <= m.at && m.at <= m.last
}

// unfold tells which records of a log count. Those of an append are held back until the
// last one is there. It has to begin where a run does; see [Bus.aligned].
type unfold struct {
	held []*kgo.Record
	next mark // what the next record of the run has to be; its last one is known if some are held
}

// take looks at the next record of the log and returns those that count by now.
func (u *unfold) take(r *kgo.Record) (whole []*kgo.Record, m mark, ok bool) {
	m, ok = markOf(r)
	if !ok || m.at != r.Offset {
		return nil, m, ok
	}
	is := mark{at: m.at, first: m.first, last: m.last, nonce: m.nonce}
	if m.at == m.first {
		u.held = nil // what its writer left torn
	} else {
		if len(u.held) == 0 { // an append begins, where the one before ends
			u.next.last = m.last
		}
		if u.next != is {
			u.held, u.next = nil, mark{}
			return nil, m, true
		}
	}
	u.held, u.next = append(u.held, r), is
	u.next.at++
	if r.Offset < m.last {
		return nil, m, true
	}
	whole, u.held = u.held, nil
	return whole, m, true
}

// eventOf reads an event back.
func eventOf(r *kgo.Record) (onewrite.Event, error) {
	own := 1
	if len(r.Headers) > 1 && (r.Headers[1].Key == posHeader || r.Headers[1].Key == parkedHeader) {
		own = 2
	}
	attrs := make([]cloudevents.Attr, len(r.Headers)-own)
	for i, h := range r.Headers[own:] {
		attrs[i] = cloudevents.Attr{Name: h.Key, Value: string(h.Value)}
	}
	return cloudevents.ParseKafka(attrs, r.Value)
}

// posOf returns the position that a record carries.
func posOf(r *kgo.Record) (onewrite.Pos, bool) {
	if len(r.Headers) < 2 || r.Headers[1].Key != posHeader {
		return "", false
	}
	return onewrite.Pos(r.Headers[1].Value), true
}
