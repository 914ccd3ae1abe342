package kafka

import (
	"context"
	"fmt"
	"strings"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/internal/cloudevents"
)

// encoder makes records of events. What they consist of lies in slabs, as a write has
// many; when they are durable, the next ones are made in their place.
type encoder struct {
	attrs   []cloudevents.Attr
	records []kgo.Record
	headers []kgo.RecordHeader
	bytes   []byte
}

// Slabs grow until a usual write fits into one.
const (
	slabRecords = 1 << 10
	slabHeaders = 16 << 10
	slabBytes   = 256 << 10
)

// room returns n more of a slab, which is another one if it does not have them.
func room[T any](slab *[]T, n, most int) []T {
	if at := len(*slab); n <= cap(*slab)-at {
		*slab = (*slab)[:at+n]
		return (*slab)[at : at+n : at+n]
	}
	*slab = make([]T, n, max(n, min(2*cap(*slab), most), most/16))
	return (*slab)[:n:n]
}

// lend gives the encoder away for a write. After an error nobody knows who has what it
// made, so it comes back by [encoder.back] alone.
func (enc *encoder) lend() (lent encoder) {
	lent, *enc = *enc, encoder{}
	return lent
}

// back takes an encoder again whose records are durable: nobody has them any more, and
// they are made over.
func (enc *encoder) back(lent encoder) {
	clear(lent.records) // they hold their events,
	clear(lent.headers) // and these slabs that are not used any more
	lent.records, lent.headers, lent.bytes = lent.records[:0], lent.headers[:0], lent.bytes[:0]
	*enc = lent
}

// copied copies a text into a slab.
func copied[T string | []byte](enc *encoder, s T) []byte {
	b := room(&enc.bytes, len(s), slabBytes)
	copy(b, s)
	return b
}

// record makes the record of an event, in the binary mode, with headers of our own
// before its. Its time is that of the write: a topic forgets by the time of its records,
// so that an old event with a time of its own could be gone before it is read.
func (enc *encoder) record(topic string, e *onewrite.Event, own ...kgo.RecordHeader) *kgo.Record {
	enc.attrs = cloudevents.KafkaHeaders(enc.attrs[:0], e)
	r := &room(&enc.records, 1, slabRecords)[0]
	r.Topic, r.Value, r.Headers = topic, e.Data, room(&enc.headers, len(own)+len(enc.attrs), slabHeaders) // the rest is zero
	n := copy(r.Headers, own)
	for i, a := range enc.attrs {
		r.Headers[n+i] = kgo.RecordHeader{Key: a.Name, Value: copied(enc, a.Value)}
	}
	if e.Key != "" {
		r.Key = copied(enc, e.Key)
	}
	return r
}

// records makes the records of events: one each, and a tombstone behind the delete
// of a row if they are wanted. of[i] is the event of record i. There is room for two
// more. An error is about the event behind those that have records: the registry of
// schemas does not take it, or does not answer.
func (s *core) records(ctx context.Context, enc *encoder, events []onewrite.Event) (recs []*kgo.Record, of []int, err error) {
	recs, of = make([]*kgo.Record, 0, len(events)+2), make([]int, 0, len(events))
	for i := range events {
		topic := s.topicOf(&events[i])
		e, err := s.encoded(ctx, topic, &events[i])
		if err != nil {
			return recs, of, fmt.Errorf("kafka: event %s to %s: %w", events[i].ID, topic, err)
		}
		r := enc.record(topic, e)
		recs, of = append(recs, r), append(of, i)
		if s.buries(&events[i]) {
			recs, of = append(recs, &kgo.Record{Topic: r.Topic, Key: r.Key}), append(of, i)
		}
	}
	return recs, of, nil
}

// whole is how many events have all their records.
func whole(of []int) int {
	if len(of) == 0 {
		return 0
	}
	return of[len(of)-1] + 1
}

// encoded is an event as it is written: with its data in the format that is wanted.
func (s *core) encoded(ctx context.Context, topic string, e *onewrite.Event) (*onewrite.Event, error) {
	if s.schemas == nil || e.Data == nil {
		return e, nil
	}
	data, err := s.schemas.Encode(ctx, topic, e)
	if err != nil {
		return nil, err
	}
	out := *e
	out.Data, out.ContentType = data, s.schemas.ContentType()
	return &out, nil
}

// buries reports whether an event is followed by a tombstone.
func (s *core) buries(e *onewrite.Event) bool {
	return s.c.Tombstones && e.Type == "delete" && e.Tx.ID != "" && e.Key != ""
}

// topicOf is where an event goes.
func (s *core) topicOf(e *onewrite.Event) string {
	if s.c.Topic == "{topic}" {
		return e.Topic
	}
	return strings.NewReplacer("{topic}", e.Topic, "{source}", e.Source, "{type}", e.Type).Replace(s.c.Topic)
}

// Lengths of a batch and of a record in it, without what the user gave; the latter
// with the longest forms of its numbers.
const (
	batchOverhead  = 65
	recordOverhead = 32
	headerOverhead = 6
)

// sizeOf is what a record takes in a batch before compression, a few bytes more
// rather than less.
func sizeOf(r *kgo.Record) int {
	n := recordOverhead + len(r.Key) + len(r.Value)
	for _, h := range r.Headers {
		n += headerOverhead + len(h.Key) + len(h.Value)
	}
	return n
}

// badTopic says why Kafka cannot have a topic of this name, or nothing.
func badTopic(name string) string {
	switch {
	case name == "":
		return "it is empty"
	case name == "." || name == "..":
		return "it is only dots"
	case len(name) > 249:
		return "it is longer than 249 characters"
	}
	for i := 0; i < len(name); i++ {
		c := name[i]
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '.' && c != '_' && c != '-' {
			return "it has other characters than letters, digits, ., _ and -"
		}
	}
	return ""
}

// internal reports whether a topic is the broker's own.
func internal(name string) bool {
	return name == "__consumer_offsets" || name == "__transaction_state" || name == "__share_group_state" || name == "__cluster_metadata"
}
