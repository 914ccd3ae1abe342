package pipeline_test

import (
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/onewritetest"
	"github.com/onewrite/onewrite/pipeline"
)

// A replay while the sink keeps no place holds when it keeps one again.
func TestPlacedOffReplayOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := &keeper{}
		w := keeping(k)
		w.start()
		for i := range 20 {
			w.source.commit(event(i, "k"))
		}
		time.Sleep(time.Minute)
		w.stop()
		plain := &onewritetest.MemorySink{}
		w.d = &pipeline.Delivery{Open: plain.Open}
		w.start()
		time.Sleep(time.Minute)
		w.stop()
		sub, _ := w.bus.Subscribe(t.Context(), onewrite.Interest{Name: "wh", Sources: []string{"shop"}})
		c, _ := sub.Cursor()
		t.Logf("placed %q", c.Placed)
		if c.Placed != "" { // as Rewind of the bus does
			c.Placed = onewrite.PlacedVoid
		}
		c.Logs["shop"] = onewrite.LogCursor{}
		if err := sub.Commit(t.Context(), c); err != nil {
			t.Fatal(err)
		}
		_ = sub.Close()
		k.events = nil
		w.d = keptBy(k)
		w.start()
		time.Sleep(time.Minute)
		s := w.d.Status()
		w.stop()
		if len(k.events) != 20 {
			t.Errorf("the replay brought %d of 20 events; %+v", len(k.events), s)
		}
	})
}

// What a barrier has before it is there before it, and what comes after it after, also
// when answers are lost.
func TestPlacedBarrier(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := &keeper{}
		var calls atomic.Int64
		k.fault = func(msgs []onewrite.Message) (bool, int, error) {
			if n := calls.Add(1); n%3 == 0 {
				return n%2 == 0, 0, errInjected
			}
			return true, 0, nil
		}
		w := keeping(k)
		w.bus.Fault = func(at string) error {
			if strings.HasPrefix(at, "commit") && calls.Load()%11 == 5 {
				calls.Add(1)
				return errInjected
			}
			return nil
		}
		w.start()
		for i := range 300 {
			e := event(i, "")
			if i%20 == 19 {
				e.Type, e.Tx.ID = "truncate", "1"
			}
			w.source.commit(e)
			time.Sleep(time.Millisecond)
		}
		time.Sleep(30 * time.Minute)
		s := w.d.Status()
		w.stop()
		got := k.all(t)
		at := map[string]int{}
		for i, e := range got {
			at[e.ID] = i
		}
		for i := 19; i < 300; i += 20 {
			if b := at[event(i, "").ID]; b != i {
				t.Errorf("barrier %d stands at %d", i, b)
			}
		}
		if len(got) != 300 || s.Delivered != 300 {
			t.Errorf("%d %+v", len(got), s)
		}
	})
}
