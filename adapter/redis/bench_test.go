package redis_test

import (
	"fmt"
	"strconv"
	"testing"
	"time"

	goredis "github.com/redis/go-redis/v9"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/adapter/redis"
	"github.com/onewrite/onewrite/internal/servers"
)

// BenchmarkWriteAt shows placed writes beside the floor of the same client: XADD of
// the same fields, pipelined, without a place, an owner or one step for all.
// appendfsync is always. The two take turns, so that a busy machine is one for both.
func BenchmarkWriteAt(b *testing.B) {
	for _, sync := range []string{"always", "everysec"} {
		for _, n := range []int{1, 100, 1000} {
			b.Run(fmt.Sprintf("%s/%d", sync, n), func(b *testing.B) { benchmark(b, sync, n) })
		}
	}
}

func benchmark(b *testing.B, sync string, n int) {
	srv := servers.NewRedis(b, "appendfsync "+sync, "auto-aof-rewrite-percentage 0")
	c := plain(b, srv)
	s := openPlaced(b, redis.Config{URL: srv.URL(), Destination: "bench", Stream: "ours", MaxLen: 100000})
	if _, err := s.Place(b.Context()); err != nil {
		b.Fatal(err)
	}
	list := events("order.placed", 0, n, "a", "b", "c")
	for i := range list {
		list[i].Data = make([]byte, 200)
	}
	at := uint64(1)
	ours := func() {
		if bad, err := s.WriteAt(b.Context(), messages(at, list...), []byte("record")); err != nil {
			b.Fatal(bad, err)
		}
		at += uint64(n)
	}
	fields := func(e *onewrite.Event) []any {
		return []any{"ce_specversion", "1.0", "ce_id", e.ID, "ce_source", "/" + e.Source, "ce_type", e.Type, "ce_time", e.Time.Format("2006-01-02T15:04:05Z07:00"), "ce_datacontenttype", e.ContentType,
			"ce_topic", e.Topic, "ce_partitionkey", e.Key, "ce_sequence", e.Seq, "content-type", e.ContentType, "data", e.Data}
	}
	theirs := func() {
		p := c.Pipeline()
		for i := range list {
			p.XAdd(b.Context(), &goredis.XAddArgs{Stream: "theirs", MaxLen: 100000, Approx: true, ID: strconv.FormatUint(at+uint64(i), 10) + "-0", Values: fields(&list[i])})
		}
		if _, err := p.Exec(b.Context()); err != nil {
			b.Fatal(err)
		}
		at += uint64(n)
	}
	ours()
	theirs()
	var us, floor stopwatch
	b.ReportAllocs()
	for b.Loop() {
		us.time(ours)
		floor.time(theirs)
	}
	b.ReportMetric(us.rate(n), "events/s")
	b.ReportMetric(floor.rate(n), "floor/s")
	b.ReportMetric(us.rate(n)/floor.rate(n), "ratio")
}

// stopwatch adds up times.
type stopwatch struct {
	total time.Duration
	n     int
}

func (s *stopwatch) time(f func()) {
	start := time.Now()
	f()
	s.total += time.Since(start)
	s.n++
}

func (s *stopwatch) rate(events int) float64 {
	return float64(s.n*events) / s.total.Seconds()
}
