package kafka_test

import (
	"fmt"
	"math/rand/v2"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"golang.org/x/sync/errgroup"

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

// BenchmarkSink writes batches of 1,000 events of 500 bytes as a delivery does: with
// transactions one after the other, without four at once, each with keys of its own.
// Then the client alone writes the same records with acks=all: as fast as it takes
// them (floor), one batch after the other (in turn), and in transactions of a batch.
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
	writers := map[string]int{"transactions": 1, "idempotent": 4}
	for _, name := range []string{"transactions", "idempotent"} {
		b.Run(name, func(b *testing.B) {
			to := unique("bench-" + name)
			topic(b, k, to, 3)
			evs := make(chan []onewrite.Event, writers[name])
			for i := range writers[name] {
				own := load(to, batch)
				for j := range own {
					own[j].Key = fmt.Sprint(own[j].Key, "-", i)
				}
				evs <- own
			}
			write := sinks[name](b, kafka.Config{Brokers: []string{k.Addr()}, Destination: unique("bench")})
			round := func(n int) {
				var group errgroup.Group
				group.SetLimit(writers[name])
				for range n {
					group.Go(func() error {
						own := <-evs
						defer func() { evs <- own }()
						return write(own)
					})
				}
				if err := group.Wait(); err != nil {
					b.Fatal(err)
				}
			}
			round(writers[name])
			b.ResetTimer()
			round(b.N)
			b.StopTimer()
			rate := float64(batch*b.N) / b.Elapsed().Seconds()
			recs := records(b, k, to)[:batch]
			floor, turns := alone(b, k, recs, b.N, b.N), alone(b, k, recs, b.N, 1)
			if name == "transactions" {
				b.ReportMetric(rate/committing(b, k, recs, b.N), "of-client-transactions")
			}
			b.ReportMetric(rate, "events/s")
			b.ReportMetric(rate/floor, "of-floor")
			b.ReportMetric(rate/turns, "of-in-turn")
			b.ReportMetric(floor, "floor-events/s")
		})
	}
}

// BenchmarkBusAppend appends 1,000 events of 500 bytes after the other 1,000 to a log of
// the bus.
func BenchmarkBusAppend(b *testing.B) {
	bus := openBus(b, kafka.BusConfig{Brokers: []string{servers.Kafka(b).Addr()}, Name: unique("bench"), MaxBytes: 100 << 30})
	prev, _, err := bus.Position(b.Context(), "shop")
	if err != nil {
		b.Fatal(err)
	}
	evs := load("x", 1000)
	i := 0
	one := func() {
		i++
		pos := onewrite.Pos(strconv.Itoa(i))
		if _, err := bus.Append(b.Context(), "shop", prev, onewrite.Batch{Events: evs, Pos: pos}); err != nil {
			b.Fatal(err)
		}
		prev = pos
	}
	one()
	for b.Loop() {
		one()
	}
	b.ReportMetric(float64(len(evs)*b.N)/b.Elapsed().Seconds(), "events/s")
}

// committing produces records with the client alone, n times, a transaction each, and returns
// how many a second.
func committing(b *testing.B, k *servers.KafkaServer, recs []*kgo.Record, n int) float64 {
	to := unique("bench-committing")
	topic(b, k, to, 3)
	cl, err := kgo.NewClient(kgo.SeedBrokers(k.Addr()), kgo.TransactionalID(to), kgo.ProducerLinger(0), kgo.ProducerBatchCompression(kgo.Lz4Compression()))
	if err != nil {
		b.Fatal(err)
	}
	defer cl.Close()
	round := func() {
		if err := cl.BeginTransaction(); err != nil {
			b.Fatal(err)
		}
		for _, r := range recs {
			cl.Produce(b.Context(), &kgo.Record{Topic: to, Key: r.Key, Value: r.Value, Headers: r.Headers}, func(_ *kgo.Record, err error) {
				if err != nil {
					b.Error(err)
				}
			})
		}
		if err := cl.Flush(b.Context()); err != nil {
			b.Fatal(err)
		}
		if err := cl.EndTransaction(b.Context(), kgo.TryCommit); err != nil {
			b.Fatal(err)
		}
	}
	round()
	start := time.Now()
	for range n {
		round()
	}
	return float64(len(recs)*n) / time.Since(start).Seconds()
}

// alone produces records with the client alone, n times, ahead times before it waits
// for the answers, and returns how many a second.
func alone(b *testing.B, k *servers.KafkaServer, recs []*kgo.Record, n, ahead int) float64 {
	to := unique("bench-alone")
	topic(b, k, to, 3)
	cl, err := kgo.NewClient(kgo.SeedBrokers(k.Addr()), kgo.RequiredAcks(kgo.AllISRAcks()), kgo.ProducerLinger(0), kgo.ProducerBatchCompression(kgo.Lz4Compression()))
	if err != nil {
		b.Fatal(err)
	}
	defer cl.Close()
	round := func(n int) {
		for n > 0 {
			var wg sync.WaitGroup
			for range min(n, ahead) {
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
			n -= ahead
		}
	}
	round(1)
	start := time.Now()
	round(n)
	return float64(len(recs)*n) / time.Since(start).Seconds()
}
