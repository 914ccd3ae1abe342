package bench

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// deliveries is what a consumer got: each row how often, and the commit time of
// the newest.
type deliveries struct {
	rows, repeats atomic.Int64
	times         []atomic.Int32
	newest        atomic.Int64 // Unix nanoseconds
}

// take notes one event by its key and its time, as they stand in it.
func (d *deliveries) take(key, at string) error {
	i, err := strconv.Atoi(rowNumber(key))
	if err != nil || i < 0 || i >= len(d.times) {
		return fmt.Errorf("an event with the key %s", key)
	}
	committed, err := time.Parse(time.RFC3339Nano, at)
	if err != nil {
		return err
	}
	d.newest.Store(max(d.newest.Load(), committed.UnixNano()))
	if d.times[i].Add(1) == 1 {
		d.rows.Add(1)
	} else {
		d.repeats.Add(1)
	}
	return nil
}

// webhook is a consumer that gets whatever is sent, repeats included.
func (d *deliveries) webhook(b *testing.B) (destination string) {
	var one sync.Mutex
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, err := io.Copy(io.Discard, r.Body)
		if err == nil {
			one.Lock()
			err = d.take(r.Header.Get("ce-partitionkey"), r.Header.Get("ce-time"))
			one.Unlock()
		}
		if err != nil { // also of a sender that was killed in the middle
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		w.WriteHeader(http.StatusNoContent)
	}))
	b.Cleanup(s.Close)
	return fmt.Sprintf("{type: webhook, url: %q, allow_private: true}", s.URL)
}

// file is a consumer that reads a file while it is written, until the benchmark ends.
func (d *deliveries) file(b *testing.B) (destination string) {
	path := filepath.Join(b.TempDir(), "events.jsonl")
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDONLY, 0o600)
	if err != nil {
		b.Fatal(err)
	}
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(5 * time.Millisecond)
		defer tick.Stop()
		r, line := bufio.NewReader(f), []byte(nil)
		for {
			part, err := r.ReadBytes('\n')
			line = append(line, part...)
			switch {
			case err == nil:
				var e struct{ Time, PartitionKey string }
				if err := errors.Join(json.Unmarshal(line, &e), d.take(e.PartitionKey, e.Time)); err != nil {
					b.Error(err)
					return
				}
				line = line[:0]
				continue
			case !errors.Is(err, io.EOF):
				b.Error(err)
				return
			}
			select {
			case <-tick.C:
			case <-stop:
				return
			}
		}
	}()
	b.Cleanup(func() { close(stop); <-done; _ = f.Close() })
	return fmt.Sprintf("{type: file, path: %q}", path)
}

// watch measures from a kill: how long until the newest row is younger than
// 100 ms again, and the oldest that it got by then.
func (d *deliveries) watch(b *testing.B, killed time.Time, limit time.Duration) (back, worst time.Duration) {
	await(b, limit, "the newest row is younger than 100 ms", func() bool {
		newest := time.Unix(0, d.newest.Load())
		back = time.Since(killed)
		worst = max(worst, time.Since(newest))
		return newest.After(killed) && time.Since(newest) < 100*time.Millisecond
	})
	return back, worst
}

// BenchmarkRowKills writes 2,000 transactions of one row a second for 120 s and
// kills the program five times, 20 s apart, with SIGKILL; it is started again at
// once. The consumer of a file sees what the file keeps; a webhook sees whatever is
// sent. stale-s is the largest of the five times from a kill until the newest row
// that the consumer has is younger than 100 ms again.
func BenchmarkRowKills(b *testing.B) {
	for _, c := range []struct {
		name  string
		start func(*deliveries, *testing.B) string
	}{{"file", (*deliveries).file}, {"webhook", (*deliveries).webhook}} {
		b.Run(c.name, func(b *testing.B) { rowKills(b, c.start) })
	}
}

func rowKills(b *testing.B, start func(*deliveries, *testing.B) string) {
	const rate, kills = 2000, 5
	apart := 20 * time.Second
	if testing.Short() {
		apart = 5 * time.Second
	}
	n := rate * int((kills+1)*apart/time.Second)
	d := &deliveries{times: make([]atomic.Int32, n)}
	url, db := captured(b)
	cmd, _ := running(b, fmt.Sprintf("{type: postgres, url: %q, tables: [orders]}", url), "destinations:\n  consumer: "+start(d, b)+"\n")
	await(b, time.Minute, "the log is read", func() bool {
		var active bool
		return db.QueryRow(`SELECT bool_or(active) FROM pg_replication_slots`).Scan(&active) == nil && active
	})
	insert, err := db.Prepare(`INSERT INTO orders VALUES ($1, $2)`)
	if err != nil {
		b.Fatal(err)
	}
	var load sync.WaitGroup
	defer load.Wait()
	begun := time.Now()
	var written float64
	load.Go(func() {
		paced(b, latencyWriter, n, rate, func(i int) error {
			_, err := insert.Exec(i, payload)
			return err
		})
		written = float64(n) / time.Since(begun).Seconds()
	})
	var back, worst []float64
	for i := range kills {
		<-time.After(time.Until(begun.Add(time.Duration(i+1) * apart)))
		killed := time.Now()
		end(cmd, os.Kill)
		cmd = again(b, cmd)
		took, oldest := d.watch(b, killed, 20*time.Second)
		back, worst = append(back, took.Seconds()), append(worst, oldest.Seconds())
	}
	load.Wait()
	enough := time.Now().Add(time.Minute)
	await(b, 2*time.Minute, "the end", func() bool { return d.rows.Load() == int64(n) || time.Now().After(enough) })
	lost := int64(n) - d.rows.Load()
	if lost != 0 {
		b.Errorf("%d of %d rows are lost", lost, n)
	}
	report(b, map[string]float64{
		"tx/s": written, "lost": float64(lost), "%-repeats": 100 * float64(d.repeats.Load()) / float64(n),
		"stale-s": slices.Max(back), "stale-median-s": median(back), "oldest-s": slices.Max(worst),
	})
}
