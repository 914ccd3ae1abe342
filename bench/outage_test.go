package bench

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// breakable is a webhook's receiver that can go away and come back where it was.
type breakable struct {
	b    *testing.B
	addr string
	trip *trip
	got  atomic.Int64
	srv  *http.Server
}

func newBreakable(b *testing.B, t *trip) *breakable {
	r := &breakable{b: b, addr: "127.0.0.1:0", trip: t}
	r.up()
	b.Cleanup(r.down)
	return r
}

func (r *breakable) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	if _, err := io.Copy(io.Discard, req.Body); err != nil {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	r.trip.arrive(req.Header.Get("ce-partitionkey"))
	r.got.Add(1)
	w.WriteHeader(http.StatusNoContent)
}

func (r *breakable) up() {
	l, err := net.Listen("tcp", r.addr)
	if err != nil {
		r.b.Fatal(err)
	}
	r.addr, r.srv = l.Addr().String(), &http.Server{Handler: r}
	go func(s *http.Server) { _ = s.Serve(l) }(r.srv)
}

func (r *breakable) down() { _ = r.srv.Close() }

// between returns how long the events from number from to number to were under way.
func (t *trip) between(from, to int) []time.Duration {
	var d []time.Duration
	for i := from; i < to; i++ {
		if at := t.arrived[i].Load(); at != 0 {
			d = append(d, time.Duration(at-t.left[i].Load()))
		}
	}
	return d
}

// BenchmarkOutage writes 2,000 events a second, each in a transaction of its own, for five
// destinations: two webhooks, a stream of NATS and two files. One webhook is away for ten
// minutes. Reported are p50 and p99 of the other webhook and of the stream in the five
// minutes before and while it is away, what the program's memory was at most, and how many
// events a second the webhook gets in the minute after it is back, while the load goes on.
// Nothing counts in the first five minutes: after those the server's checkpoints, one
// after the other for five minutes each, write before the outage as they do in it.
func BenchmarkOutage(b *testing.B) {
	const rate = 2000
	minute, calm, away := time.Minute, 5*time.Minute, 10*time.Minute
	if testing.Short() {
		minute, calm, away = 5*time.Second, 5*time.Second, 10*time.Second
	}
	events := func(d time.Duration) int { return int(d.Seconds() * rate) }
	begin := events(calm)
	gone, back := begin+events(calm), begin+events(calm+away)
	n := back + events(minute)

	url, db := database(b)
	db.SetMaxOpenConns(latencyWriter)
	db.SetMaxIdleConns(latencyWriter)
	hook, stream := &atomic.Pointer[trip]{}, &atomic.Pointer[trip]{}
	hook.Store(newTrip(n))
	stream.Store(newTrip(n))
	broken := newBreakable(b, newTrip(n))
	to, dir := receiver(b, hook), b.TempDir()
	cmd, addr := running(b, fmt.Sprintf("{type: postgres, url: %q}", url), fmt.Sprintf(`destinations:
  broken: {type: webhook, url: "http://%s", allow_private: true}
  hook: {type: webhook, url: %q, allow_private: true}
  stream: {type: nats, url: %q}
  one: {type: file, path: %q}
  two: {type: file, path: %q}
`, broken.addr, to.URL.Reveal(), subscriber(b, stream).URL.Reveal(), filepath.Join(dir, "1.jsonl"), filepath.Join(dir, "2.jsonl")))

	commit := plain(b, db)
	var once [2]sync.Once
	var came, drained atomic.Int64 // at the beginning and the end of the minute after
	paced(b, latencyWriter, n, rate, func(i int) error {
		if i >= gone {
			once[0].Do(broken.down)
		}
		if i >= back {
			once[1].Do(func() { broken.up(); came.Store(broken.got.Load()) })
		}
		err := commit(strconv.Itoa(i))
		for _, t := range []*trip{hook.Load(), stream.Load(), broken.trip} {
			t.leave(i)
		}
		return err
	})
	drained.Store(broken.got.Load() - came.Load())
	got := map[string]float64{
		"drained/s": float64(drained.Load()) / minute.Seconds(), "of-ingest": float64(drained.Load()) / minute.Seconds() / rate,
		"peak-MB": procStatus(b, cmd.Process.Pid, "VmHWM") / 1000,
	}
	for name, t := range map[string]*trip{"hook": hook.Load(), "stream": stream.Load()} {
		await(b, minute, "what was written is at "+name, func() bool { return t.seen.Load() == int64(n) })
		before, during := t.between(begin, gone), t.between(gone, back)
		got[name+"-p50-ms"], got[name+"-p50-away-ms"] = percentile(before, 0.5), percentile(during, 0.5)
		got[name+"-p99-ms"], got[name+"-p99-away-ms"] = percentile(before, 0.99), percentile(during, 0.99)
	}
	await(b, 2*away, "the webhook has everything", func() bool { return broken.trip.seen.Load() == int64(n) })
	await(b, minute, "nothing is pending", seldom(func() bool {
		s, ok := status(addr)
		return ok && s.Destinations["broken"].Pending == 0 && s.Destinations["broken"].Parked == 0
	}))
	report(b, got)
}
