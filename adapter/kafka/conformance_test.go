package kafka_test

import (
	"context"
	"slices"
	"strings"
	"testing"

	"github.com/twmb/franz-go/pkg/kadm"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/adapter/kafka"
	"github.com/onewrite/onewrite/internal/servers"
	"github.com/onewrite/onewrite/onewritetest"
)

// spoiled changes some events on their way to the sink, so that Kafka refuses them.
type spoiled struct {
	onewrite.Sink
	refused map[string]bool
	spoil   func(e *onewrite.Event)
}

func (s spoiled) Write(ctx context.Context, events []onewrite.Event) (int, error) {
	changed := slices.Clone(events)
	for i := range changed {
		if s.refused[changed[i].ID] {
			s.spoil(&changed[i])
		}
	}
	return s.Sink.Write(ctx, changed)
}

// A compacted topic takes no record without a key. Without transactions the order
// within the key is what counts, so there the event keeps it, and is too large.
func withoutKey(e *onewrite.Event) { e.Key = "" }
func tooLarge(e *onewrite.Event)   { e.Data = make([]byte, 2<<20) }

// writtenOut waits until the brokers have written the end of every transaction that they
// acknowledged. One that is killed before that may abort it together with what the same
// client sends next (Kafka 4.4 with one node): then the place is gone with the events,
// and a delivery sends them again. A sink alone cannot.
func writtenOut(t *testing.T, k *servers.KafkaServer, prefix string) {
	t.Helper()
	with(t, k, func(ctx context.Context, adm *kadm.Client) error {
		all, err := adm.ListTopics(ctx)
		if err != nil {
			return err
		}
		names := slices.DeleteFunc(all.Names(), func(n string) bool { return !strings.HasPrefix(n, prefix) })
		for same := false; !same && err == nil; {
			var ends, committed kadm.ListedOffsets
			if ends, err = adm.ListEndOffsets(ctx, names...); err == nil {
				committed, err = adm.ListCommittedOffsets(ctx, names...)
			}
			same = true
			ends.Each(func(o kadm.ListedOffset) {
				c, _ := committed.Lookup(o.Topic, o.Partition)
				same = same && c.Offset == o.Offset
			})
		}
		return err
	})
}

func TestConformance(t *testing.T) {
	k := servers.NewKafka(t)
	for name, idempotent := range map[string]bool{"transactions": false, "idempotent": true} {
		t.Run(name, func(t *testing.T) {
			topic(t, k, name+".conformance.largest", 3, "max.message.bytes", "4194304")
			topic(t, k, name+".conformance.refuse", 3, "cleanup.policy", "compact")
			refused := map[string]bool{}
			onewritetest.TestSink(t, onewritetest.SinkHarness{
				New: func(t *testing.T) onewrite.Sink {
					c := kafka.Config{Brokers: []string{k.Addr()}, Destination: "conformance", Topic: name + ".{topic}", Idempotent: idempotent}
					var s onewrite.Sink
					var err error
					if idempotent {
						s, err = kafka.NewIdempotent(t.Context(), c)
					} else {
						s, err = kafka.New(t.Context(), c)
					}
					if err != nil {
						t.Fatal(err)
					}
					spoil := withoutKey
					if idempotent {
						spoil = tooLarge
					}
					return spoiled{s, refused, spoil}
				},
				Received: func(t *testing.T) []onewrite.Event {
					var names []string
					with(t, k, func(ctx context.Context, adm *kadm.Client) error {
						all, err := adm.ListTopics(ctx)
						names = slices.DeleteFunc(all.Names(), func(n string) bool { return !strings.HasPrefix(n, name+".") })
						return err
					})
					return decode(t, records(t, k, names...))
				},
				Refuse: func(_ *testing.T, id string) { refused[id] = true },
				Break: func(t *testing.T) func() {
					writtenOut(t, k, name+".")
					k.Kill(t)
					return func() { k.Restart(t) }
				},
				Stall: func(t *testing.T) func() { return k.Freeze(t) },
			})
		})
	}
}
