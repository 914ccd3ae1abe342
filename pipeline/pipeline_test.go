package pipeline_test

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/onewritetest"
	"github.com/onewrite/onewrite/pipeline"
)

// world is one source, one bus and one destination, run in synthetic time.
type world struct {
	source *memSource
	bus    *onewritetest.MemoryBus
	over   onewrite.Bus // what the destination has for it; nil: itself
	sink   *onewritetest.MemorySink
	ingest *pipeline.Ingest
	d      *pipeline.Delivery
	stop   func()
}

// start runs the world's pipelines; stop ends them and waits.
func (w *world) start() {
	ctx, cancel := context.WithCancel(context.Background())
	w.ingest = &pipeline.Ingest{Name: "shop", Open: w.source.open, Bus: w.bus}
	w.d.Interest, w.d.Bus = onewrite.Interest{Name: "wh", Sources: []string{"shop"}, Topics: w.d.Interest.Topics}, w.bus
	if w.over != nil {
		w.d.Bus = w.over
	}
	if w.d.Open == nil {
		w.d.Open = w.sink.Open
	}
	done := make(chan error, 2)
	go func() { done <- w.ingest.Run(ctx) }()
	go func() { done <- w.d.Run(ctx) }()
	w.stop = func() {
		cancel()
		<-done
		<-done
	}
}

func newWorld() *world {
	return &world{source: newMemSource("shop"), bus: &onewritetest.MemoryBus{}, sink: &onewritetest.MemorySink{}, d: &pipeline.Delivery{Concurrency: 4}}
}

func event(i int, key string) onewrite.Event {
	return onewrite.Event{ID: fmt.Sprintf("e%04d", i), Topic: "order.placed", Type: "order.placed", Key: key, Data: []byte("{}"), ContentType: "application/json"}
}

// checkOrder fails if a key's first arrivals are not in the order of their ids.
func checkOrder(t *testing.T, got []onewrite.Event) (distinct int) {
	t.Helper()
	seen := map[string]bool{}
	last := map[string]string{}
	for _, e := range got {
		if seen[e.ID] {
			continue
		}
		seen[e.ID] = true
		if e.Key != "" && e.ID < last[e.Key] {
			t.Errorf("key %s: %s arrived after %s", e.Key, e.ID, last[e.Key])
		}
		last[e.Key] = e.ID
	}
	return len(seen)
}

func TestFlowInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.start()
		for i := range 500 {
			w.source.commit(event(i, fmt.Sprint("k", i%7)))
		}
		time.Sleep(5 * time.Second)
		s := w.d.Status()
		if n := checkOrder(t, w.sink.Received()); n != 500 || len(w.sink.Received()) != 500 {
			t.Errorf("arrived: %d distinct of %d, want 500 once", n, len(w.sink.Received()))
		}
		if s.Delivered != 500 || s.Pending != 0 || s.State != pipeline.OK || s.Position["shop"] != 500 {
			t.Errorf("status: %+v", s)
		}
		floor, ok := w.d.Confirmed("shop")
		if !ok || floor != 500 {
			t.Errorf("floor = %d, %v", floor, ok)
		}
		w.ingest.Confirm(floor)
		synctest.Wait()
		w.stop()
		if w.source.acked != 500 {
			t.Errorf("acknowledged up to %d, want 500", w.source.acked)
		}
	})
}

func TestCleanStopRepeatsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.sink.Before = func(context.Context, onewrite.Event) error {
			time.Sleep(3 * time.Millisecond)
			return nil
		}
		for i := range 300 {
			w.source.commit(event(i, fmt.Sprint("k", i%11)))
		}
		for range 10 {
			w.start()
			time.Sleep(25 * time.Millisecond)
			w.stop()
			w.d = &pipeline.Delivery{Concurrency: 4}
		}
		w.start()
		time.Sleep(10 * time.Second)
		w.stop()
		if n := checkOrder(t, w.sink.Received()); n != 300 || len(w.sink.Received()) != 300 {
			t.Errorf("arrived: %d distinct of %d, want 300 once", n, len(w.sink.Received()))
		}
	})
}

func TestOutageCostsNoAttempt(t *testing.T) {
	for _, lanes := range []int{1, 2, 50} {
		for _, rejected := range []bool{false, true} {
			if rejected && lanes < 3 {
				continue // one event rejected right after successes is a poison event
			}
			synctest.Test(t, func(t *testing.T) {
				w := newWorld()
				var said strings.Builder
				w.d.Log = slog.New(slog.NewTextHandler(&said, nil))
				var down atomic.Bool
				w.sink.Before = func(context.Context, onewrite.Event) error {
					if down.Load() && rejected {
						return fmt.Errorf("400: %w", onewrite.ErrRejected)
					} else if down.Load() {
						return errInjected
					}
					return nil
				}
				w.start()
				for i := range 20 {
					w.source.commit(event(i, fmt.Sprint("k", i%lanes)))
				}
				time.Sleep(time.Second)
				down.Store(true)
				for i := 20; i < 200; i++ {
					w.source.commit(event(i, fmt.Sprint("k", i%lanes)))
				}
				time.Sleep(time.Hour)
				s := w.d.Status()
				if s.Parked != 0 || s.Pending != 180 || s.State != pipeline.Waiting || s.LastError == "" {
					t.Errorf("lanes %d: in the outage: %+v", lanes, s)
				}
				down.Store(false)
				time.Sleep(40 * time.Second)
				s = w.d.Status()
				if s.Delivered != 200 || s.Pending != 0 || s.State != pipeline.OK || s.LastError != "" {
					t.Errorf("lanes %d: after the outage: %+v", lanes, s)
				}
				checkOrder(t, w.sink.Received())
				w.stop()
				if n := strings.Count(said.String(), "destination takes events again"); n != 1 {
					t.Errorf("lanes %d: its end is said %d times", lanes, n)
				}
			})
		}
	}
}

// answeredError is what a destination says when it fails on an event.
type answeredError struct{}

func (answeredError) Error() string  { return "500" }
func (answeredError) Answered() bool { return true }

func TestPoisonIsParkedWithItsKey(t *testing.T) {
	for _, reject := range []error{answeredError{}, onewrite.ErrRejected} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld()
			var mended atomic.Bool
			w.sink.Before = func(_ context.Context, e onewrite.Event) error {
				time.Sleep(rand.N(5 * time.Millisecond))
				if e.ID == "e0030" && !mended.Load() {
					return reject
				}
				return nil
			}
			w.start()
			for i := range 60 {
				w.source.commit(event(i, fmt.Sprint("k", i%10)))
			}
			time.Sleep(time.Minute)
			for i := 60; i < 100; i++ {
				w.source.commit(event(i, fmt.Sprint("k", i%10)))
			}
			time.Sleep(5 * time.Second)
			s := w.d.Status()
			if s.Parked != 7 || s.Delivered != 93 || s.Pending != 0 { // e0030, e0040 ... e0090
				t.Fatalf("%v: status: %+v", reject, s)
			}
			list, err := w.d.Parked(t.Context(), 0, 100)
			if err != nil || len(list) != 7 || list[0].Message.ID != "e0030" || list[0].Attempts != 10 || !list[0].Holds {
				t.Fatalf("parked: %v, %+v", err, list)
			}
			w.stop() // parked keys are held after a restart too
			w.d = &pipeline.Delivery{Concurrency: 4}
			w.start()
			w.source.commit(event(100, "k0"))
			time.Sleep(5 * time.Second)
			if s = w.d.Status(); s.Parked != 8 {
				t.Fatalf("after a restart: %+v", s)
			}
			mended.Store(true)
			if err := w.d.Redrive(t.Context(), list[0].Ref); err != nil {
				t.Fatal(err)
			}
			w.source.commit(event(101, "k0"))
			time.Sleep(5 * time.Second)
			if s = w.d.Status(); s.Parked != 0 || s.Delivered != 102 || s.Pending != 0 {
				t.Errorf("after the redrive: %+v", s)
			}
			if n := checkOrder(t, w.sink.Received()); n != 102 {
				t.Errorf("%d arrived", n)
			}
			w.stop()
		})
	}
}

// What is shown of a parked event is the number that its limit is compared with:
// the failures of an outage are not in it.
func TestParkedAttemptsAreThoseHeld(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.d.Attempts = 3
		var writes atomic.Int64
		w.sink.Before = func(_ context.Context, e onewrite.Event) error {
			if e.ID == "e0000" {
				writes.Add(1)
				return answeredError{}
			}
			return nil
		}
		w.start()
		w.source.commit(event(0, "bad"))
		time.Sleep(10 * time.Second)
		if writes.Load() < 3 || w.d.Status().Parked != 0 {
			t.Fatalf("%d writes of an event that is alone, parked: %d", writes.Load(), w.d.Status().Parked)
		}
		for i := range 20 {
			w.source.commit(event(1+i, fmt.Sprint("k", i)))
			time.Sleep(time.Second)
		}
		list, err := w.d.Parked(t.Context(), 0, 10)
		if err != nil || len(list) != 1 || list[0].Attempts != 3 || writes.Load() <= 3 {
			t.Errorf("after %d writes: %v, %+v", writes.Load(), err, list)
		}
		w.stop()
	})
}

func TestDiscardLetsTheKeyGo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.sink.Before = func(_ context.Context, e onewrite.Event) error {
			if e.ID == "e0003" {
				return onewrite.ErrRejected
			}
			return nil
		}
		w.start()
		for i := range 20 {
			w.source.commit(event(i, fmt.Sprint("k", i%2)))
		}
		time.Sleep(2 * time.Minute)
		list, err := w.d.Parked(t.Context(), 0, 100)
		if err != nil || len(list) != 9 {
			t.Fatalf("parked %d, %v", len(list), err)
		}
		if err := w.d.Discard(t.Context(), 999); err == nil {
			t.Error("discarded an entry that does not exist")
		}
		if err := w.d.Discard(t.Context(), list[0].Ref); err != nil {
			t.Fatal(err)
		}
		time.Sleep(5 * time.Second)
		if s := w.d.Status(); s.Parked != 0 || s.Skipped != 1 || s.Delivered != 19 {
			t.Errorf("status: %+v", s)
		}
		checkOrder(t, w.sink.Received())
		w.stop()
	})
}

func TestGoneStops(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.sink.Before = func(context.Context, onewrite.Event) error { return fmt.Errorf("410: %w", onewrite.ErrGone) }
		w.start()
		w.source.commit(event(1, "a"))
		time.Sleep(time.Minute)
		if s := w.d.Status(); s.State != pipeline.Stopped || s.Pending != 1 {
			t.Errorf("status: %+v", s)
		}
		w.stop()
	})
}

func TestStaleTwinIsFenced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.bus.Lease = 6 * time.Second
		w.start()
		twin := &world{source: w.source, bus: w.bus, sink: w.sink, d: &pipeline.Delivery{Concurrency: 4}}
		twin.start()
		for i := range 200 {
			w.source.commit(event(i, fmt.Sprint("k", i%5)))
			time.Sleep(10 * time.Millisecond)
		}
		time.Sleep(20 * time.Second)
		if n := checkOrder(t, w.sink.Received()); n != 200 || len(w.sink.Received()) != 200 {
			t.Errorf("%d distinct of %d", n, len(w.sink.Received()))
		}
		if a, b := w.d.Status(), twin.d.Status(); (a.State == pipeline.OK) == (b.State == pipeline.OK) {
			t.Errorf("one must deliver and one stand by: %+v, %+v", a, b)
		}
		w.stop()
		twin.stop()
	})
}

// A copy that lost its place shows no numbers any more: they are those of another.
func TestFencedCopyShowsNoNumbers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.bus.Lease = 6 * time.Second
		var slow, stalled atomic.Bool
		w.bus.Fault = func(at string) error {
			if at == "commit.before" && slow.Load() && stalled.CompareAndSwap(false, true) {
				time.Sleep(20 * time.Second) // longer than the lease
			}
			return nil
		}
		w.start()
		twin := &world{source: w.source, bus: w.bus, sink: w.sink, d: &pipeline.Delivery{Concurrency: 4}}
		time.Sleep(time.Second) // w is the owner
		twin.start()
		for i := range 50 {
			w.source.commit(event(i, "k"))
		}
		time.Sleep(5 * time.Second)
		slow.Store(true)
		w.source.commit(event(50, "k"))
		time.Sleep(time.Minute)
		if s := twin.d.Status(); s.State != pipeline.OK || s.Delivered != 51 {
			t.Errorf("the one that took over: %+v", s)
		}
		if s := w.d.Status(); s.State != pipeline.Waiting || s.Delivered+s.Pending+s.Parked+s.Epoch > 0 {
			t.Errorf("the one that stands by shows numbers: %+v", s)
		}
		w.stop()
		twin.stop()
	})
}

func TestFilteredIsCounted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.d.Interest.Topics = []string{"order.paid"}
		w.start()
		for i := range 50 {
			e := event(i, "k")
			if i%5 == 0 {
				e.Topic = "order.paid"
			}
			w.source.commit(e)
		}
		time.Sleep(5 * time.Second)
		if s := w.d.Status(); s.Delivered != 10 || s.Filtered != 40 || s.Position["shop"] != 50 {
			t.Errorf("status: %+v", s)
		}
		w.stop()
	})
}

// death makes the delivery die once at a place of the model, when it is armed.
type death struct {
	where string
	armed atomic.Bool
	n     atomic.Int32 // how often it did
}

func (d *death) fault(at string) error {
	if at == d.where && d.armed.Load() && d.n.CompareAndSwap(0, 1) {
		return errInjected
	}
	return nil
}

// A parked event counts in one number, and is delivered or not, wherever the
// delivery dies while it is parked, delivered after all, or skipped.
func TestParkedCountsOnce(t *testing.T) {
	for _, where := range []string{"park.after", "unpark.before", "unpark.after"} {
		for _, what := range []string{"redrive", "discard"} {
			for _, key := range []string{"", "k"} {
				synctest.Test(t, func(t *testing.T) {
					w := newWorld()
					w.d.Attempts = 3
					mended, dies := atomic.Bool{}, &death{where: where}
					w.bus.Fault = dies.fault
					dies.armed.Store(where == "park.after")
					w.sink.Before = func(_ context.Context, e onewrite.Event) error {
						if e.ID == "e0003" && !mended.Load() {
							if len(w.bus.Parked("wh")) > 0 { // well again at the moment when it is parked
								mended.Store(where == "park.after")
							}
							return onewrite.ErrRejected
						}
						return nil
					}
					w.start()
					for i := range 10 {
						k := key
						if i != 3 {
							k = fmt.Sprint("k", i)
						}
						w.source.commit(event(i, k))
						time.Sleep(time.Second)
					}
					mended.Store(true)
					time.Sleep(time.Minute)
					list, err := w.d.Parked(t.Context(), 0, 100)
					if err != nil || len(list) != 1 {
						t.Fatalf("%s, %s: parked %d, %v", where, what, len(list), err)
					}
					if s := w.d.Status(); s.Delivered != 9 || s.Parked != 1 || s.Pending != 0 {
						t.Errorf("%s, %s: parked: %+v", where, what, s)
					}
					dies.armed.Store(true)
					if what == "redrive" {
						err = w.d.Redrive(t.Context(), list[0].Ref)
					} else {
						err = w.d.Discard(t.Context(), list[0].Ref)
					}
					if err != nil && dies.n.Load() == 0 {
						t.Fatal(err)
					}
					time.Sleep(time.Minute)
					want := pipeline.DeliveryStatus{Delivered: 9, Skipped: 1}
					if what == "redrive" {
						want = pipeline.DeliveryStatus{Delivered: 10}
					}
					if s := w.d.Status(); s.Delivered != want.Delivered || s.Skipped != want.Skipped || s.Parked != 0 || s.Pending != 0 {
						t.Errorf("%s, %s, key %q: %+v", where, what, key, s)
					}
					if dies.n.Load() != 1 {
						t.Errorf("%s, %s: it did not die", where, what)
					}
					w.stop()
				})
			}
		}
	}
}

// A bus that does not answer shows in the status long before a question to it is
// given up.
func TestSilentBusIsSaid(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.bus.Fault = func(at string) error {
			if at == "append.before" || at == "commit.before" {
				time.Sleep(25 * time.Second)
			}
			return nil
		}
		w.start()
		w.source.commit(event(1, "a"))
		time.Sleep(10 * time.Second)
		if s := w.ingest.Status(); s.State != pipeline.Waiting || s.LastError == "" {
			t.Errorf("the source, while an append is under way: %+v", s)
		}
		time.Sleep(25 * time.Second)
		if s := w.ingest.Status(); s.State != pipeline.OK || s.LastError != "" {
			t.Errorf("the source, after it: %+v", s)
		}
		if s := w.d.Status(); s.State != pipeline.Waiting || s.LastError == "" {
			t.Errorf("the destination, while its place is being stored: %+v", s)
		}
		time.Sleep(time.Minute)
		if s := w.d.Status(); s.State != pipeline.OK || s.LastError != "" {
			t.Errorf("the destination, after it: %+v", s)
		}
		w.stop()
	})
}
