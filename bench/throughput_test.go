package bench

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/pipeline"
)

// backlogFor is the number of events in the benchmarks of a backlog into the bus.
const backlogFor = 200_000

// BenchmarkOutboxToBus runs the program while two producers write as fast as
// they can: 200 B events in transactions of 500, 300,000 a run. Reported are
// the events that were durable on the bus a second, from the first INSERT to the
// last event, the largest memory of the program, and the bus's floor.
func BenchmarkOutboxToBus(b *testing.B) {
	const producers, perTx, n = 2, 500, 300_000
	bus := newFloor(b).rate(b, 100_000, 1000)
	url, _ := database(b)
	cmd, addr := running(b, fmt.Sprintf("{type: postgres, url: %q}", url), "")
	pool := newPool(b, url, producers)
	got := samples{}
	for round := 1; round <= runs; round++ {
		var left atomic.Int64
		left.Store(n / perTx)
		var wg sync.WaitGroup
		start := time.Now()
		for range producers {
			wg.Go(func() {
				for left.Add(-1) >= 0 {
					if _, err := pool.Exec(b.Context(), `INSERT INTO onewrite.outbox (topic, key, payload) SELECT 'order.placed', 'k' || i, $1 FROM generate_series(1, $2::int) i`, payload, perTx); err != nil {
						b.Error(err)
						return
					}
				}
			})
		}
		wg.Wait()
		written := time.Since(start)
		await(b, time.Minute, "every event is on the bus", func() bool {
			s, ok := status(addr)
			return ok && s.Sources["shop"].Events >= uint64(round*n)
		})
		rate := n / time.Since(start).Seconds()
		got.add("events/s", rate)
		got.add("written/s", n/written.Seconds())
		got.add("of-floor", rate/bus)
	}
	b.ReportMetric(procStatus(b, cmd.Process.Pid, "VmHWM")/1000, "peak-MB")
	b.ReportMetric(bus, "floor/s")
	got.report(b)
}

// BenchmarkDrain reads a backlog of a million events into nothing. Its yardstick
// reads the same rows in the order of seq by one plain query.
func BenchmarkDrain(b *testing.B) {
	const n = 1_000_000
	url, db := database(b)
	fill(b, db, n)
	got := samples{}
	for range runs {
		src, err := pgSource(url, "bench")(b.Context(), "")
		if err != nil {
			b.Fatal(err)
		}
		rate := n / drain(b, src, n, nil).Seconds()
		if err := src.Close(); err != nil {
			b.Fatal(err)
		}
		query := plainRate(b, url, n)
		got.add("events/s", rate)
		got.add("query/s", query)
		got.add("of-query", rate/query)
	}
	got.report(b)
}

// plainRate reads the outbox with one query and returns rows/s.
func plainRate(b *testing.B, url string, n int) float64 {
	b.Helper()
	conn, err := pgx.Connect(b.Context(), url)
	if err != nil {
		b.Fatal(err)
	}
	defer conn.Close(context.Background())
	start := time.Now()
	rows, err := conn.Query(b.Context(), `SELECT seq, xid::text, created, id, topic, key, type, content_type, headers, payload, payload_bytes FROM onewrite.outbox ORDER BY seq`)
	if err != nil {
		b.Fatal(err)
	}
	count := 0
	for rows.Next() {
		count++
	}
	if rows.Err() != nil || count != n {
		b.Fatalf("%d rows, want %d: %v", count, n, rows.Err())
	}
	return float64(n) / time.Since(start).Seconds()
}

// BenchmarkBacklogToBus carries a backlog into the bus as the relay does. Its
// yardstick is the bus's floor, measured before and after each run.
func BenchmarkBacklogToBus(b *testing.B) {
	url, db := database(b)
	f, got := newFloor(b), samples{}
	for range runs {
		if _, err := db.Exec(`TRUNCATE onewrite.outbox`); err != nil {
			b.Fatal(err)
		}
		fill(b, db, backlogFor)
		bus := openBus(b)
		backlogRate(b, f, got, bus, pgSource(url, bus.ID()))
	}
	got.report(b)
}

// backlogRate measures one run of a backlog into the bus between two of the
// bus's floor.
func backlogRate(b *testing.B, f *floor, got samples, bus onewrite.Bus, open func(context.Context, onewrite.Pos) (onewrite.Source, error)) {
	b.Helper()
	before := f.rate(b, 50_000, onewrite.MaxBatch)
	var events atomic.Int64
	done := make(chan struct{})
	observe := pipeline.Observer{Appended: func(_ string, n int, _ time.Duration) {
		if events.Add(int64(n)) == backlogFor {
			close(done)
		}
	}}
	start := time.Now()
	in := &pipeline.Ingest{Name: "shop", Bus: bus, Open: open, AckDurable: true, Observe: observe}
	ctx, cancel := context.WithCancel(b.Context())
	var wg sync.WaitGroup
	wg.Go(func() { _ = in.Run(ctx) })
	select {
	case <-done:
	case <-time.After(time.Minute):
		b.Errorf("%d of %d events are on the bus: %s", events.Load(), backlogFor, in.Status().LastError)
	}
	rate := backlogFor / time.Since(start).Seconds()
	cancel()
	wg.Wait()
	if b.Failed() {
		b.FailNow()
	}
	bar := (before + f.rate(b, 50_000, onewrite.MaxBatch)) / 2
	got.add("events/s", rate)
	got.add("floor/s", bar)
	got.add("of-floor", rate/bar)
}
