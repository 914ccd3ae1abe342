package rabbitmq

import (
	"context"
	"fmt"
	"hash/fnv"
	"slices"
	"sync"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/internal/servers"
)

// BenchmarkSink is the sink beside its client alone, which publishes the same messages
// with as many confirmations in flight (floor), and with message_id as the only
// property (bare). All take turns in each round, so that the ratios are of one run.
func BenchmarkSink(b *testing.B) {
	r := servers.RabbitMQ(b)
	for _, kind := range []string{"quorum", "classic"} {
		for _, c := range []struct{ writers, batch, keys int }{{1, 256, 1000}, {1, 1000, 1000}, {2, 256, 1000}, {1, 256, 10}} {
			b.Run(fmt.Sprintf("%s/writers=%d/batch=%d/keys=%d", kind, c.writers, c.batch, c.keys), func(b *testing.B) {
				name := target(b, r.URL(), "#", amqp.Table{"x-queue-type": kind})
				ch := channel(b, r.URL())
				if err := ch.Confirm(false); err != nil {
					b.Fatal(err)
				}
				s := open(b, Config{URL: r.URL(), Exchange: name})
				events := benchEvents(8000, c.keys)
				var own, floor, bare []float64
				for b.Loop() {
					floor = append(floor, rate(len(events), func() { plainPublish(b, ch, name, events, c.writers*c.batch, true) }))
					bare = append(bare, rate(len(events), func() { plainPublish(b, ch, name, events, c.writers*c.batch, false) }))
					own = append(own, rate(len(events), func() { deliver(b, s, events, c.writers, c.batch) }))
					b.StopTimer()
					if _, err := channel(b, r.URL()).QueuePurge(name, false); err != nil {
						b.Fatal(err)
					}
					b.StartTimer()
				}
				slices.Sort(own)
				slices.Sort(floor)
				slices.Sort(bare)
				b.ReportMetric(own[len(own)/2], "events/s")
				b.ReportMetric(floor[len(floor)/2], "floor/s")
				b.ReportMetric(bare[len(bare)/2], "bare/s")
				b.ReportMetric(own[len(own)/2]/floor[len(floor)/2], "ratio")
			})
		}
	}
}

// deliver writes by several goroutines, each with keys of its own.
func deliver(b *testing.B, s *Sink, events []onewrite.Event, writers, batch int) {
	lanes := make([][]onewrite.Event, writers)
	for i := range events {
		h := fnv.New32a()
		_, _ = h.Write([]byte(events[i].Key))
		w := int(h.Sum32()) % writers
		lanes[w] = append(lanes[w], events[i])
	}
	var wg sync.WaitGroup
	for _, mine := range lanes {
		wg.Go(func() {
			for len(mine) > 0 {
				n := min(batch, len(mine))
				if got, err := s.Write(context.Background(), mine[:n]); got != n || err != nil {
					b.Error(got, err)
					return
				}
				mine = mine[n:]
			}
		})
	}
	wg.Wait()
}

func rate(n int, f func()) float64 {
	start := time.Now()
	f()
	return float64(n) / time.Since(start).Seconds()
}

func benchEvents(n, keys int) []onewrite.Event {
	names := make([]string, keys)
	for i := range names {
		names[i] = fmt.Sprint("customer-", i)
	}
	events := some(0, n, "order.placed", names...)
	for i := range events {
		events[i].Data = fmt.Appendf(nil, `{"number":%d,"text":"%0180d"}`, i, i)
	}
	return events
}

// plainPublish keeps so many messages in flight.
func plainPublish(b *testing.B, ch *amqp.Channel, exchange string, events []onewrite.Event, flying int, whole bool) {
	var open []*amqp.DeferredConfirmation
	var enc encoder
	for i := range events {
		if len(open) == flying {
			if !open[0].Wait() {
				b.Fatal("not confirmed")
			}
			open = open[1:]
		}
		m := amqp.Publishing{DeliveryMode: amqp.Persistent, MessageId: events[i].ID, ContentType: events[i].ContentType, Body: events[i].Data}
		if whole {
			var err error
			if m, err = enc.encode(&events[i], 0); err != nil {
				b.Fatal(err)
			}
		}
		c, err := ch.PublishWithDeferredConfirm(exchange, events[i].Topic, true, false, m)
		if err != nil {
			b.Fatal(err)
		}
		open = append(open, c)
	}
	for _, c := range open {
		if !c.Wait() {
			b.Fatal("not confirmed")
		}
	}
}
