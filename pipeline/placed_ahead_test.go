package pipeline_test

import (
	"errors"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/pipeline"
)

// ahead is a world whose event e0003 is parked by a session that dies before it has
// stored a cursor which is past it. The readers of later ones hand nothing over while
// they are blind.
type ahead struct {
	*world
	dies   atomic.Bool // no cursor is stored until the next session
	blind  atomic.Bool
	ended  atomic.Int64 // sessions: a blind reader must not outlive its own
	mended atomic.Bool  // e0003 is taken
}

// newAhead stores a cursor when the first n events are delivered, and none that is past
// the rest.
func newAhead(d *pipeline.Delivery, n int) *ahead {
	a := &ahead{world: newWorld()}
	a.bus.Fault = func(at string) error {
		ended := a.ended.Load()
		switch {
		case at == "read":
			for a.blind.Load() {
				time.Sleep(time.Millisecond)
				if a.ended.Load() > ended {
					return errInjected
				}
			}
		case at == "park.after":
			a.dies.Store(true)
		case at == "commit.before" && a.dies.Load():
			a.ended.Add(1)
			return errInjected
		case at == "subscribe" && a.dies.CompareAndSwap(true, false):
			a.blind.Store(true)
		}
		return nil
	}
	a.with(d)
	for i := range 10 {
		if i == n {
			time.Sleep(time.Second)
		}
		a.source.commit(event(i, ""))
	}
	time.Sleep(time.Minute)
	return a
}

// with starts the world with a delivery.
func (a *ahead) with(d *pipeline.Delivery) {
	d.Shape = func(e *onewrite.Event) (onewrite.Event, bool, error) {
		if e.ID == "e0003" && !a.mended.Load() {
			return *e, true, errors.New("no")
		}
		return *e, true, nil
	}
	a.d = d
	a.start()
}

// again stops the world as it is, and starts it with another delivery.
func (a *ahead) again(d *pipeline.Delivery) {
	a.ended.Add(1)
	a.stop()
	a.with(d)
	time.Sleep(time.Minute)
}

// sum fails unless each of n events is in one number.
func (a *ahead) sum(t *testing.T, when string, n uint64) pipeline.DeliveryStatus {
	t.Helper()
	s := a.d.Status()
	if sum := s.Delivered + s.Filtered + s.Parked + s.Pending + s.Skipped; sum != n {
		t.Errorf("%s: sum %d of %d, %+v", when, sum, n, s)
	}
	return s
}

// A parked event that the stored cursor is not past comes once more from the bus. If it
// was delivered or skipped before its turn comes, it is not delivered then, whoever dies.
func TestPlacedAhead(t *testing.T) {
	for _, what := range []string{
		"redriven", "redriven, a death before it counts", "redriven, a stop before its turn", "redriven, then the sink is put back",
		"skipped", "skipped, a stop before its turn",
	} {
		for _, sink := range []string{"placed", "plain"} {
			if sink == "plain" && (strings.Contains(what, "death") || strings.Contains(what, "put back")) {
				continue // it may come twice
			}
			t.Run(what+"/"+sink, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					k := &keeper{}
					renew := func() *pipeline.Delivery {
						if sink == "placed" {
							return keptBy(k)
						}
						return &pipeline.Delivery{BatchCount: 20}
					}
					a := newAhead(renew(), 1)
					if s := a.sum(t, "parked", 10); s.Parked != 1 || !a.blind.Load() {
						t.Fatalf("not blind, or %+v", s)
					}
					a.mended.Store(true)
					a.dies.Store(strings.Contains(what, "death"))
					skipped := strings.HasPrefix(what, "skipped")
					if !skipped {
						_ = a.d.Redrive(t.Context(), 0)
					} else if err := a.d.Discard(t.Context(), a.bus.Parked("wh")[0].Ref); err != nil {
						t.Fatal(err)
					}
					time.Sleep(time.Minute)
					if n := len(a.bus.Parked("wh")); n != 0 || a.dies.Load() {
						t.Errorf("%d events are parked", n)
					}
					copyAt := k.writes() - 1
					if strings.Contains(what, "stop") {
						a.again(renew())
					}
					a.sum(t, "settled", 10)
					a.blind.Store(false)
					for i := range 10 {
						time.Sleep(time.Second)
						a.source.commit(event(10+i, ""))
					}
					time.Sleep(time.Minute)
					if strings.Contains(what, "put back") {
						a.sum(t, "its turn was", 20)
						a.stop()
						k.back(copyAt)
						a.with(renew())
						time.Sleep(time.Hour)
					}
					s, c := a.sum(t, "at the end", 20), a.bus.Cursor("wh")
					a.stop()
					got := a.sink.Received()
					if sink == "placed" {
						got = k.all(t)
					}
					n, there := 0, map[string]bool{}
					for i := range got {
						there[got[i].ID] = true
						if got[i].ID == "e0003" {
							n++
						}
					}
					once := 1
					if skipped {
						once = 0
					}
					if n != once || len(there) != 19+once || s.Delivered != uint64(19+once) || s.Pending+s.Parked != 0 {
						t.Errorf("e0003 is there %d times, want %d; %d events are; %+v", n, once, len(there), s)
					}
					if c.Logs["shop"].Floor != 20 || len(c.Ahead) != 0 {
						t.Errorf("the cursor is %+v", c)
					}
				})
			})
		}
	}
}

// What a record names of a log that this session has read nothing of, and the cursor knows
// nothing of, is in the next record too.
func TestPlacedNamesOfAnUnreadLog(t *testing.T) {
	for range 20 { // a cursor may have been stored before the first session died, by chance
		proven := false
		synctest.Test(t, func(t *testing.T) {
			k := &keeper{}
			a := newAhead(keptBy(k), 0)
			if !a.blind.Load() || len(a.bus.Cursor("wh").Logs) != 0 {
				a.blind.Store(false)
				a.stop()
				return
			}
			proven = true
			a.mended.Store(true)
			_ = a.d.Redrive(t.Context(), 0) // is written before anything is read
			time.Sleep(time.Minute)
			a.again(keptBy(k))
			a.blind.Store(false)
			time.Sleep(time.Minute)
			s := a.sum(t, "at the end", 10)
			a.stop()
			if got := k.all(t); len(got) != 10 || s.Delivered != 10 {
				t.Errorf("%d events, %+v", len(got), s)
			}
		})
		if proven {
			return
		}
	}
	t.Error("the cursor knows the log each time")
}

// A session that writes before it has met all that an earlier one had written counts that
// too: the sink has forgotten nothing.
func TestPlacedCountsWhatItNames(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := &keeper{}
		a := newAhead(keptBy(k), 1)
		a.mended.Store(true)
		_ = a.d.Redrive(t.Context(), 0) // is written before anything is read
		time.Sleep(time.Minute)
		var failed atomic.Int64
		k.fault = func([]onewrite.Message) (bool, int, error) {
			if failed.Add(1) == 1 { // the sink is opened again, and asked
				return false, 0, errInjected
			}
			return true, 0, nil
		}
		var said strings.Builder
		d := keptBy(k)
		d.Log = slog.New(slog.NewTextHandler(&said, nil))
		a.again(d)
		a.blind.Store(false)
		for i := range 10 {
			time.Sleep(time.Second)
			a.source.commit(event(10+i, ""))
		}
		time.Sleep(time.Hour)
		s := a.sum(t, "at the end", 20)
		a.stop()
		if got := k.all(t); len(got) != 20 || s.Delivered != 20 || failed.Load() < 2 {
			t.Errorf("%d events, %+v", len(got), s)
		}
		if strings.Contains(said.String(), "forgotten") {
			t.Errorf("nothing was forgotten: %s", said.String())
		}
	})
}
