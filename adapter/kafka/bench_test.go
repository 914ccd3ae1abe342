package kafka_test

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/adapter/kafka"
	"github.com/onewrite/onewrite/internal/servers"
)

// load makes events of 500 bytes that do not compress to nothing.
func load(topic string, n int) []onewrite.Event {
	rng := rand.New(rand.NewPCG(1, 2))
	evs := events(topic, n, keysOf(100)...)
	for i := range evs {
		data := fmt.Appendf(nil, `{"number":%d,"text":"`, i)
		for len(data) < 498 {
			data = append(data, "0123456789abcdef"[rng.IntN(16)])
		}
		evs[i].Data = append(data, `"}`...)
	}
	return evs
}

func keysOf(n int) (keys []string) {
	for i := range n {
		keys = append(keys, fmt.Sprintf("customer-%d", i))
	}
	return keys
}

// BenchmarkSink writes batches of 1,000 events of 500 bytes, and then the same records
// with the client alone, all in sync. The ratio is that of the events a second.
func BenchmarkSink(b *testing.B) {
	k := servers.Kafka(b)
	const batch = 1000
	sinks := map[string]func(b *testing.B, c kafka.Config) func(evs []onewrite.Event) error{
		"transactions": func(b *testing.B, c kafka.Config) func(evs []onewrite.Event) error {
			s := newSink(b, c)
			if _, err := s.Place(b.Context()); err != nil {
				b.Fatal(err)
			}
			return func(evs []onewrite.Event) error {
				_, err := s.WriteAt(b.Context(), messages(evs), []byte("somewhere"))
				return err
			}
		},
		"idempotent": func(b *testing.B, c kafka.Config) func(evs []onewrite.Event) error {
			s := newIdempotent(b, c)
			return func(evs []onewrite.Event) error { _, err := s.Write(b.Context(), evs); return err }
		},
	}
	for _, name := range []string{"transactions", "idempotent"} {
		b.Run(name, func(b *testing.B) {
			to := unique("bench-" + name)
			topic(b, k, to, 3)
			evs := load(to, batch)
			write := sinks[name](b, kafka.Config{Brokers: []string{k.Addr()}, Destination: unique("bench")})
			if err := write(evs); err != nil {
				b.Fatal(err)
			}
			b.ResetTimer()
			for range b.N {
				if err := write(evs); err != nil {
					b.Fatal(err)
				}
			}
			b.StopTimer()
			rate := float64(batch*b.N) / b.Elapsed().Seconds()
			floor := alone(b, k, records(b, k, to)[:batch], b.N)
			b.ReportMetric(rate, "events/s")
			b.ReportMetric(floor, "floor-events/s")
			b.ReportMetric(rate/floor, "of-floor")
		})
	}
}

// alone produces records with the client alone, n times, and returns how many a second.
func alone(b *testing.B, k *servers.KafkaServer, recs []*kgo.Record, n int) float64 {
	to := unique("bench-alone")
	topic(b, k, to, 3)
	cl, err := kgo.NewClient(kgo.SeedBrokers(k.Addr()), kgo.RequiredAcks(kgo.AllISRAcks()), kgo.ProducerBatchCompression(kgo.Lz4Compression()))
	if err != nil {
		b.Fatal(err)
	}
	defer cl.Close()
	round := func(n int) {
		var wg sync.WaitGroup
		for range n {
			for _, r := range recs {
				wg.Add(1)
				cl.Produce(b.Context(), &kgo.Record{Topic: to, Key: r.Key, Value: r.Value, Headers: r.Headers}, func(_ *kgo.Record, err error) {
					if err != nil {
						b.Error(err)
					}
					wg.Done()
				})
			}
		}
		wg.Wait()
	}
	round(1)
	start := b.Elapsed()
	b.StartTimer()
	round(n)
	b.StopTimer()
	return float64(len(recs)*n) / (b.Elapsed() - start).Seconds()
}
