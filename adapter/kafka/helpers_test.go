package kafka_test

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/adapter/kafka"
	"github.com/onewrite/onewrite/internal/cloudevents"
	"github.com/onewrite/onewrite/internal/servers"
)

// patience bounds every wait of these tests.
const patience = 60 * time.Second

// admin returns a client of the brokers that is not the sink's.
func admin(tb testing.TB, k *servers.KafkaServer) *kadm.Client {
	tb.Helper()
	cl, err := kgo.NewClient(kgo.SeedBrokers(k.Addr()), kgo.MetadataMinAge(50*time.Millisecond))
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(cl.Close)
	return kadm.NewClient(cl)
}

// with lends such a client, and leaves no goroutine.
func with(tb testing.TB, k *servers.KafkaServer, f func(ctx context.Context, adm *kadm.Client) error) {
	tb.Helper()
	cl, err := kgo.NewClient(kgo.SeedBrokers(k.Addr()))
	if err != nil {
		tb.Fatal(err)
	}
	defer cl.Close()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := f(ctx, kadm.NewClient(cl)); err != nil {
		tb.Fatal(err)
	}
}

// topic creates one, with settings in pairs.
func topic(tb testing.TB, k *servers.KafkaServer, name string, partitions int32, settings ...string) {
	tb.Helper()
	configs := map[string]*string{}
	for i := 0; i < len(settings); i += 2 {
		configs[settings[i]] = &settings[i+1]
	}
	if _, err := admin(tb, k).CreateTopic(tb.Context(), partitions, 1, configs, name); err != nil {
		tb.Fatal(err)
	}
}

// records reads all committed records of topics: each partition from its beginning to
// its end of now.
func records(tb testing.TB, k *servers.KafkaServer, topics ...string) []*kgo.Record {
	tb.Helper()
	return read(tb, k, kgo.ReadCommitted(), topics...)
}

func read(tb testing.TB, k *servers.KafkaServer, level kgo.IsolationLevel, topics ...string) []*kgo.Record {
	tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	var ends kadm.ListedOffsets
	with(tb, k, func(ctx context.Context, adm *kadm.Client) (err error) {
		ends, err = adm.ListEndOffsets(ctx, topics...)
		return err
	})
	from, upto := map[string]map[int32]kgo.Offset{}, map[string]map[int32]int64{}
	left := 0
	ends.Each(func(o kadm.ListedOffset) {
		if o.Err != nil || o.Offset == 0 {
			return
		}
		if from[o.Topic] == nil {
			from[o.Topic], upto[o.Topic] = map[int32]kgo.Offset{}, map[int32]int64{}
		}
		from[o.Topic][o.Partition], upto[o.Topic][o.Partition] = kgo.NewOffset().AtStart(), o.Offset
		left++
	})
	if left == 0 {
		return nil
	}
	// Control records tell that the end is reached where it is one of them, or aborted.
	cl, err := kgo.NewClient(kgo.SeedBrokers(k.Addr()), kgo.ConsumePartitions(from), kgo.FetchIsolationLevel(level), kgo.KeepControlRecords(), kgo.FetchMaxWait(100*time.Millisecond))
	if err != nil {
		tb.Fatal(err)
	}
	defer cl.Close()
	var out []*kgo.Record
	for left > 0 {
		fetches := cl.PollFetches(ctx)
		if err := fetches.Err(); err != nil {
			tb.Fatalf("read %v: %v", topics, err)
		}
		fetches.EachRecord(func(r *kgo.Record) {
			end := upto[r.Topic][r.Partition]
			if r.Offset < end && !r.Attrs.IsControl() {
				out = append(out, r)
			}
			if r.Offset >= end-1 && end > 0 {
				upto[r.Topic][r.Partition] = -1
				left--
			}
		})
	}
	return out
}

// decode makes events of records; what is no event is skipped.
func decode(tb testing.TB, recs []*kgo.Record) (events []onewrite.Event) {
	tb.Helper()
	for _, r := range recs {
		attrs := make([]cloudevents.Attr, len(r.Headers))
		for i, h := range r.Headers {
			attrs[i] = cloudevents.Attr{Name: h.Key, Value: string(h.Value)}
		}
		e, err := cloudevents.ParseKafka(attrs, r.Value)
		if err != nil {
			tb.Fatalf("record %s/%d@%d: %v", r.Topic, r.Partition, r.Offset, err)
		}
		if e.Key != string(r.Key) || (e.Key == "") != (r.Key == nil) {
			tb.Fatalf("event %s has key %q, its record %q", e.ID, e.Key, r.Key)
		}
		events = append(events, e)
	}
	return events
}

var made struct {
	sync.Mutex
	n int
}

// unique returns a name that no other test has.
func unique(prefix string) string {
	made.Lock()
	defer made.Unlock()
	made.n++
	return fmt.Sprintf("%s-%d", prefix, made.n)
}

// events makes n events of a topic whose keys take turns.
func events(topic string, n int, keys ...string) []onewrite.Event {
	out := make([]onewrite.Event, n)
	for i := range out {
		out[i] = onewrite.Event{
			ID: fmt.Sprintf("%s-%04d", topic, i), Source: "shop", Topic: topic, Type: topic, Key: keys[i%len(keys)],
			Time: time.Date(2024, 2, 29, 12, 30, 59, 0, time.UTC), Seq: fmt.Sprintf("%012d", i),
			ContentType: "application/json", Data: fmt.Appendf(nil, `{"number":%d}`, i),
		}
	}
	return out
}

// messages gives events a place on the bus.
func messages(events []onewrite.Event) []onewrite.Message {
	out := make([]onewrite.Message, len(events))
	for i := range events {
		out[i] = onewrite.Message{Event: events[i], Log: "shop", Offset: uint64(i + 1)}
	}
	return out
}

func newSink(tb testing.TB, c kafka.Config) *kafka.Sink {
	tb.Helper()
	s, err := kafka.New(tb.Context(), c)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = s.Close() })
	return s
}

func newIdempotent(tb testing.TB, c kafka.Config) *kafka.Idempotent {
	tb.Helper()
	s, err := kafka.NewIdempotent(tb.Context(), c)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = s.Close() })
	return s
}

func ids(events []onewrite.Event) []string {
	out := make([]string, len(events))
	for i := range events {
		out[i] = events[i].ID
	}
	return out
}
