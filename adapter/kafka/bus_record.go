package kafka

import (
	"strconv"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/internal/cloudevents"
)

// A topic of the bus is a log that is written by compare and swap, without the help of
// the brokers: every record says which offset it is to have, and counts only if it has
// that one. A writer reads to the end of the log and writes behind it; if somebody else
// was faster, what it wrote lies elsewhere and is void, for every reader and for ever.
// Records that belong together name the last of them, and count only when that one
// is there. So a batch is whole or nothing, though it may take several requests; what a
// client sends twice is there once; and a stale writer changes nothing.

// markHeader is the first header of every record of the bus.
const markHeader = "onewrite"

// posHeader is the second one of the last record of an append: the position of its source.
const posHeader = "onewrite-pos"

// mark says where a record is to lie.
type mark struct {
	at, last int64  // offsets in the topic: its own, and that of the last of its batch
	seq      uint64 // of an event, its offset on the bus, which has no holes; 0: none
}

func header(at, last int64, seq uint64) kgo.RecordHeader {
	v := strconv.AppendInt(make([]byte, 0, 48), at, 10)
	v = strconv.AppendInt(append(v, ' '), last, 10)
	return kgo.RecordHeader{Key: markHeader, Value: strconv.AppendUint(append(v, ' '), seq, 10)}
}

// markOf reads it; false: the record was not written by a bus.
func markOf(r *kgo.Record) (m mark, ok bool) {
	if len(r.Headers) == 0 || r.Headers[0].Key != markHeader {
		return m, false
	}
	var n [3]uint64
	field, digits := 0, 0
	for _, c := range r.Headers[0].Value {
		switch {
		case c >= '0' && c <= '9' && digits < 19:
			n[field], digits = n[field]*10+uint64(c-'0'), digits+1
		case c == ' ' && digits > 0 && field < 2:
			field, digits = field+1, 0
		default:
			return m, false
		}
	}
	return mark{int64(n[0]), int64(n[1]), n[2]}, field == 2 && digits > 0
}

// unfold tells which records of a log count. Those of a batch are held back until its
// last one is there.
type unfold struct {
	held []*kgo.Record
	last int64 // of the batch that is held
}

// take looks at the next record of the log and returns those that count by now.
func (u *unfold) take(r *kgo.Record) (whole []*kgo.Record, m mark, ok bool) {
	m, ok = markOf(r)
	if !ok || m.at != r.Offset || m.last < m.at {
		return nil, m, ok
	}
	if len(u.held) > 0 && u.last != m.last { // its writer died in the middle
		u.held = u.held[:0:0]
	}
	u.held, u.last = append(u.held, r), m.last
	if r.Offset < m.last {
		return nil, m, true
	}
	whole, u.held = u.held, nil
	return whole, m, true
}

// eventRecord makes the record of an event in the log of its source: what any client of
// Kafka reads as a CloudEvent, behind the mark and the position, if there is one.
func eventRecord(enc *encoder, topic string, e *onewrite.Event, m kgo.RecordHeader, pos *onewrite.Pos) *kgo.Record {
	r := enc.record(topic, e)
	own := make([]kgo.RecordHeader, 0, len(r.Headers)+2)
	own = append(own, m)
	if pos != nil {
		own = append(own, kgo.RecordHeader{Key: posHeader, Value: []byte(*pos)})
	}
	r.Headers = append(own, r.Headers...)
	return r
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
