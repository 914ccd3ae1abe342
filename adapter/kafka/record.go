package kafka

import (
	"strings"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/internal/cloudevents"
)

// encoder makes records of events; it keeps what it needs again.
type encoder struct {
	attrs []cloudevents.Attr
}

// record makes the record of an event, in the binary mode. Its time is left to the
// client: a topic forgets by the time of its records, so that an old event with a
// time of its own could be gone before it is read.
func (enc *encoder) record(topic string, e *onewrite.Event) *kgo.Record {
	enc.attrs = cloudevents.KafkaHeaders(enc.attrs[:0], e)
	size := 0
	for _, a := range enc.attrs {
		size += len(a.Value)
	}
	slab := make([]byte, 0, size+len(e.Key))
	r := &kgo.Record{Topic: topic, Value: e.Data, Headers: make([]kgo.RecordHeader, len(enc.attrs))}
	for i, a := range enc.attrs {
		from := len(slab)
		slab = append(slab, a.Value...)
		r.Headers[i] = kgo.RecordHeader{Key: a.Name, Value: slab[from:len(slab):len(slab)]}
	}
	if e.Key != "" {
		from := len(slab)
		slab = append(slab, e.Key...)
		r.Key = slab[from:len(slab):len(slab)]
	}
	return r
}

// records makes the records of events: one each, and a tombstone behind the delete
// of a row if they are wanted. of[i] is the event of record i. There is room for two
// more.
func (s *core) records(events []onewrite.Event) (recs []*kgo.Record, of []int) {
	recs, of = make([]*kgo.Record, 0, len(events)+2), make([]int, 0, len(events))
	var enc encoder
	for i := range events {
		r := enc.record(s.topicOf(&events[i]), &events[i])
		recs, of = append(recs, r), append(of, i)
		if s.buries(&events[i]) {
			recs, of = append(recs, &kgo.Record{Topic: r.Topic, Key: r.Key}), append(of, i)
		}
	}
	return recs, of
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
