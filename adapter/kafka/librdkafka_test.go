package kafka_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/adapter/kafka"
	"github.com/onewrite/onewrite/internal/cloudevents"
	"github.com/onewrite/onewrite/internal/servers"
)

// foreign is a record as a client of another family saw it.
type foreign struct {
	Partition  int
	Key, Value []byte
	Headers    [][2][]byte
}

func (f *foreign) UnmarshalJSON(text []byte) error {
	var raw struct {
		Partition  int
		Key, Value []byte
		Headers    [][2]any
	}
	if err := json.Unmarshal(text, &raw); err != nil {
		return err
	}
	f.Partition, f.Key, f.Value = raw.Partition, raw.Key, raw.Value
	for _, h := range raw.Headers {
		var value []byte
		if err := json.Unmarshal(fmt.Appendf(nil, "%q", h[1]), &value); err != nil {
			return err
		}
		f.Headers = append(f.Headers, [2][]byte{[]byte(h[0].(string)), value})
	}
	return nil
}

// librdkafka reads a topic.
func librdkafka(t *testing.T, k *servers.KafkaServer, topic, level string) (recs []foreign, events []onewrite.Event) {
	t.Helper()
	cmd := servers.ConfluentKafka(t).Command(filepath.Join("testdata", "consume.py"), k.Addr(), topic, level)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("consume.py: %v\n%s", err, stderr.String())
	}
	for line := range strings.Lines(string(out)) {
		var r foreign
		if err := json.Unmarshal([]byte(line), &r); err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		recs = append(recs, r)
		var attrs []cloudevents.Attr
		for _, h := range r.Headers {
			attrs = append(attrs, cloudevents.Attr{Name: string(h[0]), Value: string(h[1])})
		}
		if e, err := cloudevents.ParseKafka(attrs, r.Value); err == nil {
			events = append(events, e)
		}
	}
	return recs, events
}

// TestLibrdkafka: a consumer of another family gets what was committed, whole and as
// it was, and nothing else.
func TestLibrdkafka(t *testing.T) {
	k := servers.Kafka(t)
	name := unique("librdkafka")
	c := kafka.Config{Brokers: []string{k.Addr()}, Destination: name}
	s := newSink(t, c)
	evs := events(name, 1000, keysOf(20)...)
	evs[3].Data, evs[3].ContentType = []byte{0, 255, 13, 10}, "application/octet-stream"
	evs[4].Data, evs[4].ContentType = nil, ""
	evs[5].Data, evs[5].Header = []byte(`{"ü":"😀"}`), map[string]string{"tenant": "ä", "X-Odd": "\x00\xff"}
	evs[6].Key = ""
	writeAt(t, s, evs, "all")
	kafka.Uncommitted(t, c, events(name+"", 10, "a"), []byte("lost"))
	s = newSink(t, c) // which aborts it
	if p := place(t, s); string(p) != "all" {
		t.Fatalf("place %q", p)
	}
	recs, got := librdkafka(t, k, name, "read_committed")
	if len(recs) != len(evs) || len(got) != len(evs) {
		t.Fatalf("%d records, %d events, want %d", len(recs), len(got), len(evs))
	}
	if _, got := librdkafka(t, k, name, "read_uncommitted"); len(got) != len(evs)+10 {
		t.Fatalf("%d records with those that were aborted, want %d", len(got), len(evs)+10)
	}
	want, last := map[string]onewrite.Event{}, map[string]string{}
	for _, e := range evs {
		want[e.ID] = e
	}
	for i, e := range got {
		w := want[e.ID]
		if !bytes.Equal(e.Data, w.Data) || (e.Data == nil) != (w.Data == nil) || string(recs[i].Key) != w.Key || (recs[i].Key == nil) != (w.Key == "") ||
			e.Header["tenant"] != w.Header["tenant"] || e.Header["X-Odd"] != w.Header["X-Odd"] || e.ContentType != w.ContentType {
			t.Errorf("event %s came as %+v with key %q", e.ID, e, recs[i].Key)
		}
		if e.Key != "" && last[e.Key] > e.Seq {
			t.Errorf("key %s: %s after %s", e.Key, e.Seq, last[e.Key])
		}
		last[e.Key] = e.Seq
	}
}

// TestPartitionsAreThoseOfOthers: librdkafka puts the same keys where we do.
func TestPartitionsAreThoseOfOthers(t *testing.T) {
	k := servers.Kafka(t)
	name := unique("murmur2")
	topic(t, k, name, 7)
	keys := append(keysOf(200), "ü", `{"id":1}`, "a", strings.Repeat("x", 300))
	cmd := servers.ConfluentKafka(t).Command(filepath.Join("testdata", "produce.py"), k.Addr(), name)
	cmd.Stdin = strings.NewReader(strings.Join(keys, "\n"))
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("produce.py: %v\n%s", err, out)
	}
	theirs := map[string]int32{}
	for _, r := range records(t, k, name) {
		theirs[string(r.Key)] = r.Partition
	}
	each(t, func(t *testing.T, open func(tb testing.TB, c kafka.Config) onewrite.Sink) {
		own := unique("murmur2-own")
		topic(t, k, own, 7)
		write(t, open(t, kafka.Config{Brokers: []string{k.Addr()}, Destination: own}), events(own, len(keys), keys...)...)
		n := 0
		for _, r := range records(t, k, own) {
			if n++; theirs[string(r.Key)] != r.Partition {
				t.Errorf("key %q is in partition %d, and by librdkafka in %d", r.Key, r.Partition, theirs[string(r.Key)])
			}
		}
		if n != len(keys) {
			t.Errorf("%d records", n)
		}
	})
}
