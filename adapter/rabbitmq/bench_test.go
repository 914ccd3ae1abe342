package rabbitmq

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/internal/servers"
)

// benchBatch is what a delivery writes at once.
const benchBatch = 256

// BenchmarkSink is the sink beside its client alone: the same bodies, as many
// confirmations in flight, and message_id as the only property. Both take turns in
// each round, so that the ratio is of one run.
func BenchmarkSink(b *testing.B) {
	r := servers.RabbitMQ(b)
	for _, kind := range []string{"quorum", "classic"} {
		for _, keys := range []int{benchBatch, 1000, 10} {
			b.Run(fmt.Sprintf("%s/keys=%d", kind, keys), func(b *testing.B) {
				name := target(b, r.URL(), "#", amqp.Table{"x-queue-type": kind})
				ch := channel(b, r.URL())
				if err := ch.Confirm(false); err != nil {
					b.Fatal(err)
				}
				s := open(b, Config{URL: r.URL(), Exchange: name})
				events := benchEvents(20*benchBatch, keys)
				var own, floor []float64
				for b.Loop() {
					floor = append(floor, rate(len(events), func() { plainPublish(b, ch, name, events) }))
					own = append(own, rate(len(events), func() {
						for at := 0; at < len(events); at += benchBatch {
							if n, err := s.Write(context.Background(), events[at:at+benchBatch]); n != benchBatch || err != nil {
								b.Fatal(n, err)
							}
						}
					}))
					b.StopTimer()
					if _, err := channel(b, r.URL()).QueuePurge(name, false); err != nil {
						b.Fatal(err)
					}
					b.StartTimer()
				}
				slices.Sort(own)
				slices.Sort(floor)
				b.ReportMetric(own[len(own)/2], "events/s")
				b.ReportMetric(floor[len(floor)/2], "floor/s")
				b.ReportMetric(own[len(own)/2]/floor[len(floor)/2], "ratio")
			})
		}
	}
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

// plainPublish keeps benchBatch messages in flight.
func plainPublish(b *testing.B, ch *amqp.Channel, exchange string, events []onewrite.Event) {
	var open []*amqp.DeferredConfirmation
	for i := range events {
		if len(open) == benchBatch {
			if !open[0].Wait() {
				b.Fatal("not confirmed")
			}
			open = open[1:]
		}
		c, err := ch.PublishWithDeferredConfirm(exchange, events[i].Topic, true, false,
			amqp.Publishing{DeliveryMode: amqp.Persistent, MessageId: events[i].ID, ContentType: events[i].ContentType, Body: events[i].Data})
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
