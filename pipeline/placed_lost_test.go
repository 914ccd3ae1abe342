package pipeline_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/onewritetest"
	"github.com/onewrite/onewrite/pipeline"
)

// A record that is full of names of another bus does not keep anything from being written.
func TestPlacedFullOfAnotherBus(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k, stuck := &keeper{}, atomic.Bool{}
		w := keeping(k)
		w.d.BatchCount = 1000
		w.bus.Fault = func(at string) error {
			for at == "commit.before" && stuck.Load() {
				time.Sleep(time.Second)
			}
			return nil
		}
		w.source.chunk = 1000
		w.start()
		time.Sleep(time.Second)
		w.source.commit(event(999999, "")) // so that all below has offsets beyond
		stuck.Store(true)
		for i := range 25 {
			events := make([]onewrite.Event, 1000)
			for j := range events {
				events[j] = event(1000*i+j, "")
			}
			w.source.commit(events...)
			time.Sleep(200 * time.Millisecond)
		}
		time.Sleep(10 * time.Second)
		place := k.copied()
		stuck.Store(false)
		w.stop()
		k.place = place // the disk of the bus is lost at this moment
		w.source, w.bus, w.d = newMemSource("shop"), &onewritetest.MemoryBus{}, keptBy(k)
		var rec struct{ Pair string } // it is put back from a copy that is older than the events
		if err := json.Unmarshal(place, &rec); err != nil {
			t.Fatal(err)
		}
		sub, err := w.bus.Subscribe(t.Context(), onewrite.Interest{Name: "wh", Sources: []string{"shop"}})
		if err == nil {
			c, _ := sub.Cursor()
			c.Placed = rec.Pair
			err = errors.Join(sub.Commit(t.Context(), c), sub.Close())
		}
		if err != nil {
			t.Fatal(err)
		}
		before := len(k.events)
		w.start()
		for i := range 20 {
			w.source.commit(event(100000+i, "k"))
		}
		time.Sleep(24 * time.Hour)
		s := w.d.Status()
		w.stop()
		if n := len(k.events) - before; n != 20 {
			t.Errorf("after a day %d of 20 events, status %+v", n, s)
		}
	})
}

// An event that nobody ever says anything of, and that is never there, is parked.
func TestPlacedDeadlyIsParked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := &keeper{}
		k.fault = func(msgs []onewrite.Message) (bool, int, error) {
			for i := range msgs {
				if msgs[i].ID == "e0003" {
					return false, 0, errInjected
				}
			}
			return true, 0, nil
		}
		w := keeping(k)
		w.start()
		for i := range 200 {
			w.source.commit(event(i, ""))
			time.Sleep(time.Second)
		}
		time.Sleep(time.Hour)
		s := w.d.Status()
		w.stop()
		if got := k.all(t); len(got) != 199 || s.Parked != 1 || s.Delivered != 199 {
			t.Errorf("%d events, %+v", len(got), s)
		}
	})
}

// A session that dies before it has stored a cursor leaves a record that is believed.
func TestPlacedBeforeTheFirstCursor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := &keeper{}
		w := keeping(k)
		var died atomic.Int64
		w.bus.Fault = func(at string) error {
			if at == "commit.before" && k.writes() > 0 && died.Add(1) <= 3 {
				return errInjected
			}
			return nil
		}
		for i := range 30 {
			w.source.commit(event(i, "k"))
		}
		w.start()
		time.Sleep(time.Minute)
		w.stop()
		if got := k.all(t); len(got) != 30 || died.Load() < 3 {
			t.Errorf("%d events, died %d times", len(got), died.Load())
		}
	})
}

// An event whose last attempt has no clear answer is parked only if it is not there.
func TestPlacedUnknownIsParked(t *testing.T) {
	for _, batch := range []int{1, 20} {
		for tries := 2; tries < 5; tries++ {
			t.Run(fmt.Sprint(batch, tries), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					k := &keeper{}
					n := 0
					k.fault = func(msgs []onewrite.Message) (bool, int, error) {
						for i := range msgs {
							if msgs[i].ID == "e0003" {
								n++
								if n <= tries {
									return n == tries, 0, errInjected // a timeout; the last one was durable
								}
							}
						}
						return true, 0, nil
					}
					w := keeping(k)
					w.d.BatchCount, w.d.Attempts = batch, tries
					var parked atomic.Int64
					w.d.Observe.Parked = func(string, string, string, bool) { parked.Add(1) }
					w.start()
					for i := range 300 {
						w.source.commit(event(i, ""))
						time.Sleep(10 * time.Millisecond)
					}
					time.Sleep(time.Minute)
					_ = w.d.Redrive(t.Context(), 0)
					time.Sleep(time.Minute)
					s := w.d.Status()
					w.stop()
					if got := k.all(t); len(got) != 300 || s.Delivered != 300 || parked.Load() > 0 {
						t.Errorf("%d events, %d were parked, %+v", len(got), parked.Load(), s)
					}
				})
			})
		}
	}
}

// A key flows again when its parked event turns out to be delivered.
func TestPlacedKeyStaysParked(t *testing.T) {
	for _, where := range []string{"commit.before", "none"} {
		synctest.Test(t, func(t *testing.T) {
			k, mended := &keeper{}, atomic.Bool{}
			dies := &death{where: where}
			k.fault = func(msgs []onewrite.Message) (bool, int, error) {
				for i := range msgs {
					if msgs[i].ID == "e0003" {
						if !mended.Load() {
							return false, i, onewrite.ErrRejected
						}
						dies.armed.Store(true)
					}
				}
				return true, 0, nil
			}
			w := keeping(k)
			w.bus.Fault = dies.fault
			w.start()
			for i := range 30 {
				w.source.commit(event(i, fmt.Sprint("k", i)))
				time.Sleep(time.Second)
			}
			time.Sleep(time.Minute)
			mended.Store(true)
			_ = w.d.Redrive(t.Context(), 0)
			time.Sleep(time.Minute)
			s := w.d.Status()
			if s.Parked != 0 || s.Delivered != 30 {
				t.Errorf("%s: after redrive %+v", where, s)
			}
			for i := range 10 {
				w.source.commit(event(100+i, "k3"))
			}
			time.Sleep(24 * time.Hour)
			s = w.d.Status()
			for _, p := range w.bus.Parked("wh") {
				t.Logf("parked %s: %s", p.Message.ID, p.Reason)
			}
			w.stop()
			if s.Parked != 0 || s.Delivered != 40 {
				t.Errorf("%s: %+v", where, s)
			}
		})
	}
}

// After a replay, too, a lost answer makes nothing come twice.
func TestPlacedVoidTwice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := &keeper{}
		w := keeping(k)
		w.start()
		for i := range 20 {
			w.source.commit(event(i, "k"))
		}
		time.Sleep(time.Minute)
		w.stop()
		sub, err := w.bus.Subscribe(t.Context(), onewrite.Interest{Name: "wh", Sources: []string{"shop"}})
		if err != nil {
			t.Fatal(err)
		}
		c, _ := sub.Cursor()
		c.Placed = onewrite.PlacedVoid
		c.Logs["shop"] = onewrite.LogCursor{}
		if err := sub.Commit(t.Context(), c); err != nil {
			t.Fatal(err)
		}
		_ = sub.Close()
		k.events = nil // so that what the replay brings is counted alone
		n := 0
		k.fault = func(msgs []onewrite.Message) (bool, int, error) {
			n++
			if n == 1 {
				return true, 0, errInjected // durable, the answer is lost
			}
			return true, 0, nil
		}
		w.d = keptBy(k)
		w.start()
		time.Sleep(time.Minute)
		w.stop()
		if got := k.all(t); len(got) != 20 {
			t.Errorf("%d, want 20", len(got))
		}
	})
}

// A delivery that stops at an event which it cannot shape stops, and can be stopped.
func TestShapeStops(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.d.OnReject = "stop"
		var asked atomic.Int64
		w.d.Observe.Failed = func(string, error) {
			if asked.Add(1) == 100_000 {
				panic("it is tried again and again")
			}
		}
		w.d.Shape = func(e *onewrite.Event) (onewrite.Event, bool, error) {
			if e.ID == "e0003" {
				return *e, false, errors.New("transform: no such field")
			}
			return *e, true, nil
		}
		for i := range 10 {
			w.source.commit(event(i, fmt.Sprint("k", i)))
		}
		w.start()
		time.Sleep(3 * time.Second)
		if s := w.d.Status(); s.State != pipeline.Stopped || s.Delivered+s.Pending != 10 || s.Pending == 0 {
			t.Errorf("%+v", s)
		}
		w.stop()
	})
}

// copied is the place as a copy has it, and writes how many writes there were.
func (k *keeper) copied() []byte {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.place
}

func (k *keeper) writes() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return len(k.saved)
}

// back puts the state after a write back.
func (k *keeper) back(i int) {
	k.events, k.place = k.events[:k.saved[i]], k.old[i]
	k.saved, k.old = k.saved[:i+1], k.old[:i+1]
}

// A destination that was restored from a copy gets what was parked in between, and the
// numbers add up. What was skipped since the copy comes too: nobody remembers that it was.
func TestPlacedForgotRedriven(t *testing.T) {
	for _, what := range []string{"redrive before copy", "redrive after copy", "skip after copy", "parked and skipped after copy"} {
		t.Run(what, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				k, mended := &keeper{}, atomic.Bool{}
				k.fault = func(msgs []onewrite.Message) (bool, int, error) {
					for i := range msgs {
						if msgs[i].ID == "e0003" && !mended.Load() {
							return false, i, onewrite.ErrRejected
						}
					}
					return true, 0, nil
				}
				w := keeping(k)
				w.start()
				more := func(from, to int) {
					for i := from; i < to; i++ {
						w.source.commit(event(i, fmt.Sprint("k", i)))
						time.Sleep(time.Second)
					}
					time.Sleep(time.Minute)
				}
				if strings.HasPrefix(what, "parked") {
					w.source.commit(event(500, ""), event(501, ""))
					time.Sleep(time.Second)
				}
				var copyAt int
				if strings.HasPrefix(what, "parked") {
					copyAt = k.writes() - 1
				}
				more(0, 60)
				redrive := func() {
					mended.Store(true)
					if strings.Contains(what, "skip") {
						for _, p := range w.bus.Parked("wh") {
							if err := w.d.Discard(t.Context(), p.Ref); err != nil {
								t.Fatal(err)
							}
						}
					} else if err := w.d.Redrive(t.Context(), 0); err != nil {
						t.Fatal(err)
					}
					time.Sleep(time.Second)
				}
				if s := w.d.Status(); s.Parked != 1 {
					t.Fatalf("%+v", s)
				}
				if what == "redrive before copy" {
					redrive()
				}
				if !strings.HasPrefix(what, "parked") {
					copyAt = k.writes() - 1
				}
				if what != "redrive before copy" {
					redrive()
				}
				more(100, 110)
				total := len(w.bus.Events("shop"))
				s := w.d.Status()
				if s.Delivered+s.Skipped+s.Parked+s.Pending+s.Filtered != uint64(total) {
					t.Errorf("%s: before: %+v of %d", what, s, total)
				}
				w.stop()
				k.back(copyAt)
				w.d = keptBy(k)
				w.start()
				time.Sleep(time.Hour)
				s = w.d.Status()
				w.stop()
				got := k.all(t)
				there := false
				for _, e := range got {
					there = there || e.ID == "e0003"
				}
				sum := s.Delivered + s.Skipped + s.Parked + s.Pending + s.Filtered
				if sum != uint64(total) {
					t.Errorf("%s: counted wrongly: sum %d of %d", what, sum, total)
				}
				if strings.HasPrefix(what, "redrive") && !there {
					t.Errorf("%s: e0003 is lost", what)
				}
				if len(got) != total {
					t.Errorf("%s: %d events of %d", what, len(got), total)
				}
			})
		})
	}
}

// A destination that was forgotten, emptied and added again gets everything.
func TestPlacedForgottenAndAddedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := &keeper{}
		w := keeping(k)
		w.start()
		for i := range 60 {
			w.source.commit(event(i, "k"))
		}
		time.Sleep(time.Minute)
		w.stop()
		// onewrite reload --forget wh; DELETE FROM the tables; the destination is added again
		b := &onewritetest.MemoryBus{}
		all := w.bus.Events("shop")
		for i := range all {
			pos, _, _ := b.Position(t.Context(), "shop")
			if _, err := b.Append(t.Context(), "shop", pos, onewrite.Batch{Events: all[i : i+1], Pos: onewrite.Pos(fmt.Sprint(i + 1))}); err != nil {
				t.Fatal(err)
			}
		}
		w.bus, w.d = b, keptBy(k)
		k.events = nil
		w.start()
		time.Sleep(time.Hour)
		s := w.d.Status()
		w.stop()
		if got := k.all(t); len(got) != 60 {
			t.Errorf("%d events are there, want 60; %+v", len(got), s)
		}
	})
}
