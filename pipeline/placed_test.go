package pipeline_test

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/onewritetest"
	"github.com/onewrite/onewrite/pipeline"
)

// keeper is a model of a system that keeps the place of a destination with its
// events, in one atomic step.
type keeper struct {
	mu     sync.Mutex
	events []onewrite.Event
	place  []byte
	owner  int
	// fault is asked for each write: whether it is done, and what it says.
	fault func(msgs []onewrite.Message) (done bool, bad int, err error)
	saved []int    // how many events there were after each write
	old   [][]byte // and the places
}

type keeperSink struct {
	k     *keeper
	owner int
}

func (k *keeper) open(context.Context) (onewrite.Sink, error) { return &keeperSink{k: k}, nil }

func (s *keeperSink) Close() error { return nil }

func (s *keeperSink) Write(context.Context, []onewrite.Event) (int, error) {
	panic("a sink that keeps its place is written to by WriteAt alone")
}

func (s *keeperSink) Place(context.Context) ([]byte, error) {
	s.k.mu.Lock()
	defer s.k.mu.Unlock()
	s.k.owner++
	s.owner = s.k.owner
	return bytes.Clone(s.k.place), nil
}

func (s *keeperSink) WriteAt(_ context.Context, msgs []onewrite.Message, place []byte) (int, error) {
	time.Sleep(2 * time.Millisecond)
	s.k.mu.Lock()
	defer s.k.mu.Unlock()
	if s.owner != s.k.owner {
		return 0, onewrite.ErrFenced
	}
	done, bad, err := true, 0, error(nil)
	if s.k.fault != nil {
		done, bad, err = s.k.fault(msgs)
	}
	if !done {
		return bad, err
	}
	for _, m := range msgs {
		s.k.events = append(s.k.events, m.Event)
	}
	s.k.place = bytes.Clone(place)
	s.k.saved, s.k.old = append(s.k.saved, len(s.k.events)), append(s.k.old, s.k.place)
	return bad, err
}

// all returns the events, and fails if one is there twice or out of order.
func (k *keeper) all(t *testing.T) []onewrite.Event {
	t.Helper()
	k.mu.Lock()
	defer k.mu.Unlock()
	times := map[string]int{}
	for _, e := range k.events {
		if times[e.ID]++; times[e.ID] == 2 {
			t.Errorf("event %s is there twice", e.ID)
		}
	}
	checkOrder(t, k.events)
	return slices.Clone(k.events)
}

// keeping is a world whose sink keeps its place.
func keeping(k *keeper) *world {
	w := newWorld()
	w.d = keptBy(k)
	return w
}

func keptBy(k *keeper) *pipeline.Delivery {
	return &pipeline.Delivery{Concurrency: 1, BatchCount: 20, Open: k.open}
}

// Nothing comes twice, wherever sessions die and whatever becomes of writes whose
// answer is lost.
func TestPlacedOnce(t *testing.T) {
	var lost, died, refused atomic.Int32
	for seed := range uint64(30) {
		synctest.Test(t, func(t *testing.T) {
			rnd := rand.New(rand.NewPCG(seed, 1))
			var mu sync.Mutex
			chance := func(n int) bool {
				mu.Lock()
				defer mu.Unlock()
				return rnd.IntN(n) == 0
			}
			k, calm := &keeper{}, atomic.Bool{}
			k.fault = func(msgs []onewrite.Message) (bool, int, error) {
				for i := range msgs {
					if msgs[i].ID == "e0505" {
						refused.Add(1)
						return false, i, onewrite.ErrRejected
					}
				}
				if !calm.Load() && chance(6) {
					lost.Add(1)
					return chance(2), 0, errInjected
				}
				return true, 0, nil
			}
			w := keeping(k)
			w.bus.Fault = func(at string) error {
				if strings.HasPrefix(at, "commit.") && !calm.Load() && chance(15) {
					died.Add(1)
					return errInjected
				}
				return nil
			}
			w.start()
			for i := range 1000 {
				key := []string{"", fmt.Sprint("k", i%13)}[i%2]
				if i/10 == 50 { // the refused one stands among others of its key
					key = "p"
				}
				w.source.commit(event(i, key))
				time.Sleep(time.Millisecond)
			}
			time.Sleep(5 * time.Second)
			calm.Store(true)
			for i := range 100 { // that others pass shows that one is refused
				w.source.commit(event(1000+i, ""))
				time.Sleep(time.Second)
			}
			time.Sleep(5 * time.Minute)
			s := w.d.Status()
			w.stop()
			if got := k.all(t); len(got) != 1095 {
				t.Errorf("seed %d: %d events are there, want 1095", seed, len(got))
			}
			if s.Delivered != 1095 || s.Parked != 5 || s.Pending != 0 {
				t.Errorf("seed %d: %+v", seed, s)
			}
		})
	}
	if lost.Load() < 300 || died.Load() < 100 || refused.Load() < 100 {
		t.Errorf("%d answers lost, %d sessions dead, %d refusals: the test proves nothing", lost.Load(), died.Load(), refused.Load())
	}
}

// A refusal in a batch is held against the event that it is about, and the others
// go on together.
func TestPlacedRefusalIsAboutOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := &keeper{}
		writes := 0
		k.fault = func(msgs []onewrite.Message) (bool, int, error) {
			writes++
			for i := range msgs {
				if msgs[i].ID == "e0017" {
					return false, i, onewrite.ErrRejected
				}
			}
			return true, 0, nil
		}
		w := keeping(k)
		for i := range 200 {
			w.source.commit(event(i, fmt.Sprint("k", i)))
		}
		w.start()
		time.Sleep(5 * time.Minute)
		s := w.d.Status()
		w.stop()
		if len(k.all(t)) != 199 || s.Parked != 1 {
			t.Errorf("%d events, %+v", len(k.events), s)
		}
		if writes > 25 {
			t.Errorf("%d writes for 200 events in batches: they travelled alone", writes)
		}
	})
}

// What its key has before a refused event is delivered, though it was in one write with
// it; what comes after is parked behind it.
func TestPlacedRefusalInItsKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := &keeper{}
		k.fault = func(msgs []onewrite.Message) (bool, int, error) {
			for i := range msgs {
				if msgs[i].ID == "e0017" {
					return false, i, onewrite.ErrRejected
				}
			}
			return true, 0, nil
		}
		w := keeping(k)
		for i := range 40 {
			w.source.commit(event(i, "k"))
		}
		w.start()
		for i := range 30 { // others pass
			w.source.commit(event(100+i, ""))
			time.Sleep(time.Second)
		}
		time.Sleep(time.Minute)
		s := w.d.Status()
		w.stop()
		if got := k.all(t); len(got) != 47 || s.Parked != 23 || s.Delivered != 47 {
			t.Errorf("%d events, %+v", len(got), s)
		}
	})
}

// A destination that was restored from a copy gets again what it has forgotten, and
// nothing else.
func TestPlacedForgot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := &keeper{}
		w := keeping(k)
		w.start()
		for i := range 300 {
			w.source.commit(event(i, fmt.Sprint("k", i%5)))
			time.Sleep(time.Millisecond)
		}
		time.Sleep(time.Minute)
		w.stop()
		back := len(k.saved) * 2 / 3
		k.events, k.place = k.events[:k.saved[back]], k.old[back]
		var said strings.Builder
		w.d = keptBy(k)
		w.d.Log = slog.New(slog.NewTextHandler(&said, nil))
		w.start()
		time.Sleep(time.Minute)
		s := w.d.Status()
		w.stop()
		if got := k.all(t); len(got) != 300 || s.Delivered != 300 || s.Pending != 0 {
			t.Errorf("%d events, %+v", len(got), s)
		}
		if !strings.Contains(said.String(), "forgotten events that it had confirmed") {
			t.Errorf("it was not said: %s", said.String())
		}
	})
}

// An empty destination that had a place is told of; a bus that was made anew has other
// events at the same offsets, and none is taken for one that was written.
func TestPlacedOfAnother(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := &keeper{}
		w := keeping(k)
		w.start()
		for i := range 20 {
			w.source.commit(event(i, "k"))
		}
		time.Sleep(time.Minute)
		w.stop()
		w.source, w.bus, w.d = newMemSource("shop"), &onewritetest.MemoryBus{}, keptBy(k)
		w.start()
		for i := range 20 {
			w.source.commit(event(100+i, "k"))
		}
		time.Sleep(time.Minute)
		w.stop()
		if got := k.all(t); len(got) != 40 {
			t.Errorf("%d events, want 40", len(got))
		}
		k.place = nil
		var said strings.Builder
		w.d = keptBy(k)
		w.d.Log = slog.New(slog.NewTextHandler(&said, nil))
		w.start()
		w.source.commit(event(200, "k"))
		time.Sleep(time.Minute)
		w.stop()
		if got := k.all(t); len(got) != 41 || !strings.Contains(said.String(), "was it emptied?") {
			t.Errorf("%d events; said %s", len(got), said.String())
		}
		other := keptBy(k) // another onewrite with the same name, on a bus of its own
		other.Bus, other.Interest = &onewritetest.MemoryBus{}, onewrite.Interest{Name: "wh", Sources: []string{"shop"}}
		src := newMemSource("shop")
		src.commit(event(300, "k"))
		ctx, cancel := context.WithCancel(t.Context())
		in := &pipeline.Ingest{Name: "shop", Open: src.open, Bus: other.Bus}
		go func() { _ = in.Run(ctx) }()
		go func() { _ = other.Run(ctx) }()
		time.Sleep(time.Minute)
		cancel()
		w.d = keptBy(k)
		w.start()
		w.source.commit(event(400, "k"))
		time.Sleep(time.Minute)
		s := w.d.Status()
		w.stop()
		if s.State != pipeline.Waiting || !strings.Contains(s.LastError, "another onewrite") || s.Pending != 1 {
			t.Errorf("%+v", s)
		}
	})
}

// A parked event that was delivered is not delivered again when the delivery dies
// before it is forgotten.
func TestPlacedRedriven(t *testing.T) {
	for _, where := range []string{"commit.before", "unpark.before", "unpark.after"} {
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
				w.source.commit(event(i, fmt.Sprint("k", i%3)))
				time.Sleep(time.Second)
			}
			time.Sleep(time.Minute)
			mended.Store(true)
			for range 2 { // the second one finds what the first, which died, has left
				_ = w.d.Redrive(t.Context(), 0)
				time.Sleep(time.Minute)
			}
			s := w.d.Status()
			w.stop()
			if got := k.all(t); len(got) != 30 || s.Delivered != 30 || s.Parked != 0 || dies.n.Load() != 1 {
				t.Errorf("%s: %d events, died %d times, %+v", where, len(got), dies.n.Load(), s)
			}
		})
	}
}

// A sink that keeps no place any more leaves a record behind that is old when it does
// again.
func TestPlacedWithAPause(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := &keeper{}
		w := keeping(k)
		n := 0
		run := func(d *pipeline.Delivery) {
			w.d = d
			w.start()
			for range 20 {
				w.source.commit(event(n, "k"))
				n++
			}
			time.Sleep(time.Minute)
			w.stop()
		}
		run(keptBy(k))
		plain := &onewritetest.MemorySink{}
		run(&pipeline.Delivery{Open: plain.Open})
		run(keptBy(k))
		if got := k.all(t); len(got) != 40 || len(plain.Received()) != 20 {
			t.Errorf("%d and %d events", len(got), len(plain.Received()))
		}
	})
}

// What a record names is bounded: writing waits for a bus that does not store.
func TestPlacedIsBounded(t *testing.T) {
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
		if n := len(k.all(t)); n < 20_000 || n > 21_000 {
			t.Errorf("%d events were written and not stored", n)
		}
		stuck.Store(false)
		time.Sleep(time.Minute)
		w.stop()
		if n := len(k.all(t)); n != 25_000 {
			t.Errorf("%d events, want 25000", n)
		}
	})
}
