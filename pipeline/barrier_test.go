package pipeline_test

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/onewrite/onewrite"
)

// All that came before a TRUNCATE is delivered before it, whatever its key, and all
// that came after it after.
func TestBarrier(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.d.Concurrency = 16
		var mu sync.Mutex
		var started []string
		w.sink.Before = func(_ context.Context, e onewrite.Event) error {
			mu.Lock()
			started = append(started, e.ID)
			n := len(started)
			mu.Unlock()
			time.Sleep(time.Duration(50-n%40) * time.Millisecond) // who begins later is sooner done
			return nil
		}
		barriers := []int{40, 41, 90}
		for i := range 120 {
			e := event(i, fmt.Sprint("k", i%30))
			e.Tx.ID = fmt.Sprint(i)
			if slices.Contains(barriers, i) {
				e.Type, e.Key = "truncate", "public.orders"
			}
			w.source.commit(e)
		}
		w.start()
		time.Sleep(time.Minute)
		w.stop()
		var ended []string
		for _, e := range w.sink.Received() {
			ended = append(ended, e.ID)
		}
		if len(ended) != 120 {
			t.Fatalf("%d events were delivered, want 120", len(ended))
		}
		if slices.IsSorted(ended) {
			t.Error("everything came in the order of the log: nothing is proven")
		}
		for _, b := range barriers {
			id := fmt.Sprintf("e%04d", b)
			if n := slices.Index(started, id); n != b {
				t.Errorf("%s is number %d of those begun, want %d", id, n, b)
			}
			if n := slices.Index(ended, id); n != b {
				t.Errorf("%s is number %d of those delivered, want %d", id, n, b)
			}
		}
	})
}
