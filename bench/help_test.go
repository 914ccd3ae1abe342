package bench

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/adapter/postgres"
	"github.com/onewrite/onewrite/adapter/sqlite"
	"github.com/onewrite/onewrite/dashboard"
	"github.com/onewrite/onewrite/relay"
)

// runs is how often a figure is measured; the median is reported.
const runs = 3

// report reports metrics by name; the benchmark's own time means nothing here.
func report(b *testing.B, metrics map[string]float64) {
	b.Helper()
	b.ReportMetric(0, "ns/op")
	for name, v := range metrics {
		b.ReportMetric(v, name)
	}
}

// samples collects several measurements of each metric.
type samples map[string][]float64

func (s samples) add(name string, v float64) { s[name] = append(s[name], v) }

// report reports the median of each metric.
func (s samples) report(b *testing.B) {
	b.Helper()
	m := map[string]float64{}
	for name, v := range s {
		m[name] = median(v)
	}
	report(b, m)
}

// ratio returns the median of the ratios of pairs that ran one after the other.
func ratio(with, without []float64) float64 {
	r := make([]float64, len(with))
	for i := range r {
		r[i] = with[i] / without[i]
	}
	slices.Sort(r)
	n := len(r)
	return (r[(n-1)/2] + r[n/2]) / 2
}

// await waits until ok, for at most limit.
func await(b *testing.B, limit time.Duration, what string, ok func() bool) {
	b.Helper()
	end := time.Now().Add(limit)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		if time.Now().After(end) {
			b.Fatalf("not within %v: %s", limit, what)
		}
		<-tick.C
	}
}

// seldom is a condition that is looked at ten times a second, where asking would
// cost what is measured.
func seldom(ok func() bool) func() bool {
	var last time.Time
	return func() bool {
		if time.Since(last) < 100*time.Millisecond {
			return false
		}
		last = time.Now()
		return ok()
	}
}

// status asks the program at addr; ok is false while it does not answer.
func status(addr string) (s dashboard.Status, ok bool) {
	client := http.Client{Timeout: 2 * time.Second}
	r, err := client.Get("http://" + addr + "/api/status")
	if err != nil {
		return s, false
	}
	defer r.Body.Close()
	return s, r.StatusCode == http.StatusOK && json.NewDecoder(r.Body).Decode(&s) == nil
}

// running starts the program on a source and waits until it reads it.
func running(b *testing.B, source, rest string) (cmd *exec.Cmd, addr string) {
	b.Helper()
	return runningOn(b, fmt.Sprintf("{dir: %q, max_size: 20GB}", filepath.Join(b.TempDir(), "bus")), source, rest)
}

// runningOn is running with a bus.
func runningOn(b *testing.B, bus, source, rest string) (cmd *exec.Cmd, addr string) {
	b.Helper()
	cmd, addr = program(b, fmt.Sprintf("sources:\n  shop: %s\nbus: %s\n%s", source, bus, rest))
	await(b, 15*time.Second, "the program reads the source", func() bool {
		s, ok := status(addr)
		return ok && s.Sources["shop"].State == "ok"
	})
	return cmd, addr
}

// embedded runs a relay in this process, as applications in Go may, and waits
// until it reads its source and every destination is there.
func embedded(b *testing.B, cfg *relay.Config) {
	b.Helper()
	cfg.Listen, cfg.Bus.Dir = "off", filepath.Join(b.TempDir(), "bus")
	if err := cfg.Validate(); err != nil {
		b.Fatal(err)
	}
	r := relay.New(cfg, relay.Options{})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	b.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			b.Error(err)
		}
	})
	await(b, 15*time.Second, "the relay reads its source", func() bool { return len(r.NotReady(ctx)) == 0 })
}

// pgSource opens the outbox at url for an ingest or a drain.
func pgSource(url, bus string) func(context.Context, onewrite.Pos) (onewrite.Source, error) {
	return func(ctx context.Context, pos onewrite.Pos) (onewrite.Source, error) {
		s, err := postgres.Open(ctx, postgres.Config{Name: "shop", URL: url, BusID: bus}, pos)
		if err != nil {
			return nil, err
		}
		return s, nil
	}
}

// liteSource opens the outbox in a file for an ingest or a drain.
func liteSource(path, bus string) func(context.Context, onewrite.Pos) (onewrite.Source, error) {
	return func(ctx context.Context, pos onewrite.Pos) (onewrite.Source, error) {
		s, err := sqlite.Open(ctx, sqlite.Config{Name: "shop", Path: path, BusID: bus}, pos)
		if err != nil {
			return nil, err
		}
		return s, nil
	}
}

// newPool opens n sessions of an application.
func newPool(b *testing.B, url string, n int) *pgxpool.Pool {
	b.Helper()
	cfg, err := pgxpool.ParseConfig(url)
	if err != nil {
		b.Fatal(err)
	}
	cfg.MaxConns, cfg.MinConns = int32(n), int32(n)
	pool, err := pgxpool.NewWithConfig(b.Context(), cfg)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(pool.Close)
	return pool
}

// clients calls do in n goroutines for d and returns the calls a second.
func clients(b *testing.B, n int, d time.Duration, do func(client, i int) error) float64 {
	b.Helper()
	var calls atomic.Int64
	var wg sync.WaitGroup
	start := time.Now()
	for c := range n {
		wg.Go(func() {
			for i := 0; time.Since(start) < d; i++ {
				if err := do(c, i); err != nil {
					b.Error(err)
					return
				}
				calls.Add(1)
			}
		})
	}
	wg.Wait()
	took := time.Since(start)
	if b.Failed() {
		b.FailNow()
	}
	return float64(calls.Load()) / took.Seconds()
}

// paced calls do n times at a rate a second, shared by some writers. A writer
// that is late does not wait, so that the rate holds.
func paced(b *testing.B, writers, n, rate int, do func(i int) error) {
	b.Helper()
	var wg sync.WaitGroup
	start := time.Now()
	for w := range writers {
		wg.Go(func() {
			for i := w; i < n; i += writers {
				due := start.Add(time.Duration(i) * time.Second / time.Duration(rate))
				if wait := time.Until(due); wait > 0 {
					<-time.After(wait)
				}
				if err := do(i); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	if b.Failed() {
		b.FailNow()
	}
}

// trip holds when events left and arrived, by number. An event's key is its
// number.
type trip struct {
	zero          time.Time
	left, arrived []atomic.Int64
	seen          atomic.Int64
}

func newTrip(n int) *trip {
	return &trip{zero: time.Now().Add(-time.Second), left: make([]atomic.Int64, n), arrived: make([]atomic.Int64, n)}
}

func (t *trip) leave(i int) { t.left[i].Store(int64(time.Since(t.zero))) }

// arrive notes the first arrival of the event with this key; others are not of
// this trip.
func (t *trip) arrive(key string) {
	if i, err := strconv.Atoi(key); err == nil {
		t.arriveAt(i, time.Now())
	}
}

// arriveAt is arrive for one that was seen elsewhere.
func (t *trip) arriveAt(i int, at time.Time) {
	if i < 0 || i >= len(t.arrived) {
		return
	}
	if t.arrived[i].CompareAndSwap(0, int64(at.Sub(t.zero))) {
		t.seen.Add(1)
	}
}

// times returns how long each event was under way after its COMMIT returned; 0
// for one that was seen before. The first tenth is left out as warm-up.
func (t *trip) times(b *testing.B) []time.Duration {
	b.Helper()
	await(b, 20*time.Second, "every event arrives", func() bool { return t.seen.Load() == int64(len(t.arrived)) })
	d := make([]time.Duration, 0, len(t.left))
	for i := len(t.left) / 10; i < len(t.left); i++ {
		d = append(d, max(0, time.Duration(t.arrived[i].Load()-t.left[i].Load())))
	}
	return d
}

// watched is a bus that notes each event that it made durable.
type watched struct {
	onewrite.Bus
	trip *atomic.Pointer[trip]
}

func (w watched) Append(ctx context.Context, source string, prev onewrite.Pos, batch onewrite.Batch) (uint64, error) {
	last, err := w.Bus.Append(ctx, source, prev, batch)
	if t := w.trip.Load(); err == nil && t != nil {
		for i := range batch.Events {
			t.arrive(batch.Events[i].Key)
		}
	}
	return last, err
}
