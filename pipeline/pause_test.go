package pipeline_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/onewrite/onewrite"
)

// later is the answer of a destination that wants an event after a while.
type later struct{ error }

func (later) Answered() bool            { return true }
func (later) RetryAfter() time.Duration { return 5 * time.Minute }

// putOff makes a sink take events of some keys only from a time on.
func putOff(w *world, from time.Time, key func(string) bool) (opens *int) {
	w.sink.Before = func(_ context.Context, e onewrite.Event) error {
		if key(e.Key) && time.Now().Before(from) {
			return later{errors.New("not yet; later")}
		}
		return nil
	}
	opens = new(int)
	w.d.Open = func(ctx context.Context) (onewrite.Sink, error) {
		*opens++
		return w.sink.Open(ctx)
	}
	return opens
}

// What one event is told to wait for holds up its key and nothing else: not those that
// came with it, nor those that come later, and the sink stays open. It is patient: ten
// attempts are as many pauses.
func TestPauseOfOneKey(t *testing.T) {
	for name, keys := range map[string]int{"one key": 1, "many keys": 5} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld()
			w.d.Concurrency, w.d.BatchCount = 1, 50
			opens := putOff(w, time.Now().Add(40*time.Minute), func(key string) bool { return key < fmt.Sprint("k", keys) })
			w.start()
			defer func() { w.stop() }()
			arrived := func(when string, want int) {
				t.Helper()
				if n := checkOrder(t, w.sink.Received()); n != want {
					t.Fatalf("%s: %d events %s, want %d", name, n, when, want)
				}
			}
			n := 0
			commit := func(first, last int) {
				for k := first; k <= last; k++ {
					w.source.commit(event(n, fmt.Sprint("k", k)))
					n++
				}
			}
			commit(0, keys-1) // nothing passes that could prove that the destination is up
			time.Sleep(20 * time.Second)
			arrived("at first", 0)
			commit(0, 9)
			time.Sleep(40 * time.Second)
			arrived("after a minute", 10-keys)
			for minute := range 38 {
				commit(9, 9)
				time.Sleep(time.Minute)
				arrived("while others go on", 10-keys+minute+1)
			}
			if *opens != 1 {
				t.Errorf("%s: the sink was opened %d times", name, *opens)
			}
			time.Sleep(10 * time.Minute)
			arrived("at the end", n)
			if s := w.d.Status(); s.Parked != 0 || s.Delivered != uint64(n) {
				t.Errorf("%s: status: %+v", name, s)
			}
		})
	}
}

// What is never taken is parked after ten attempts, which are nine pauses.
func TestPauseEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		putOff(w, time.Now().Add(24*time.Hour), func(key string) bool { return key == "k0" })
		w.start()
		defer func() { w.stop() }()
		for i := range 50 {
			w.source.commit(event(i, fmt.Sprint("k", min(i, 1))))
			if s := w.d.Status(); s.Parked != 0 && i < 45 {
				t.Fatalf("parked after %d minutes", i)
			}
			time.Sleep(time.Minute)
		}
		if s := w.d.Status(); s.Parked != 1 || s.Delivered != 49 {
			t.Errorf("status: %+v", s)
		}
	})
}
