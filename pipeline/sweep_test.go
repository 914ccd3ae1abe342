package pipeline_test

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/pipeline"
)

// lotBus counts the parked events that are read from a bus.
type lotBus struct {
	onewrite.Bus
	read  atomic.Int64
	after func() // a reading
}

type lotSubscription struct {
	onewrite.Subscription
	bus *lotBus
}

func (b *lotBus) Subscribe(ctx context.Context, in onewrite.Interest) (onewrite.Subscription, error) {
	sub, err := b.Bus.Subscribe(ctx, in)
	return &lotSubscription{sub, b}, err
}

func (s *lotSubscription) Parked(ctx context.Context, after uint64, limit int, lane *onewrite.Lane) ([]onewrite.Parked, error) {
	list, err := s.Subscription.Parked(ctx, after, limit, lane)
	s.bus.read.Add(int64(len(list)))
	if s.bus.after != nil {
		s.bus.after()
	}
	return list, err
}

// TestSweepReadsOnce: when all that is parked is delivered again, each entry is read once,
// and no more of them than there is room for and a page.
func TestSweepReadsOnce(t *testing.T) {
	for _, reject := range []pipeline.OnReject{pipeline.ParkKey, pipeline.Skip} {
		synctest.Test(t, func(t *testing.T) { sweeps(t, reject) })
	}
}

func sweeps(t *testing.T, reject pipeline.OnReject) {
	const all, keys, window, page = 600, 20, 50, 100
	w := newWorld()
	b := &lotBus{Bus: w.bus}
	w.over, w.d.OnReject, w.d.Window = b, reject, window
	var mended atomic.Bool
	w.d.Shape = func(e *onewrite.Event) (onewrite.Event, bool, error) {
		if !mended.Load() {
			return *e, true, errors.New("transform: no")
		}
		return *e, true, nil
	}
	w.sink.Before = func(context.Context, onewrite.Event) error {
		time.Sleep(time.Millisecond)
		return nil
	}
	for i := range all {
		w.source.commit(event(i, fmt.Sprint("k", i%keys)))
	}
	w.start()
	time.Sleep(time.Minute)
	if s := w.d.Status(); s.Parked != all {
		t.Fatalf("before: %+v", s)
	}
	b.read.Store(0)
	most := 0
	b.after = func() { most = max(most, int(b.read.Load())-len(w.sink.Received())) }
	mended.Store(true)
	if err := w.d.Redrive(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	time.Sleep(time.Minute)
	s := w.d.Status()
	w.stop()
	if s.Parked != 0 || s.Delivered != all {
		t.Errorf("after: %+v", s)
	}
	if got := w.sink.Received(); len(got) != all || reject == pipeline.ParkKey && checkOrder(t, got) != all {
		t.Errorf("%d arrived, want %d once", len(got), all)
	}
	if n := b.read.Load(); n != all {
		t.Errorf("%s: %d entries were read for %d that are parked", reject, n, all)
	}
	if most > window+page {
		t.Errorf("%s: %d entries were held, the window is %d", reject, most, window)
	}
}

// TestSweepTriesOnce: a key that is refused again stays parked, with all that waits behind
// its first event, and is not tried again as the sweep comes to those.
func TestSweepTriesOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const all, keys = 600, 2
		w := newWorld()
		w.d.Window = 50
		var mended, tries atomic.Int64
		w.d.Shape = func(e *onewrite.Event) (onewrite.Event, bool, error) {
			if mended.Load() == 0 || e.Key == "k1" {
				if e.ID == "e0001" {
					tries.Add(1)
				}
				return *e, true, errors.New("transform: no")
			}
			return *e, true, nil
		}
		for i := range all {
			w.source.commit(event(i, fmt.Sprint("k", i%keys)))
		}
		w.start()
		time.Sleep(time.Minute)
		tries.Store(0)
		mended.Store(1)
		if err := w.d.Redrive(t.Context(), 0); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		s := w.d.Status()
		w.stop()
		if s.Parked != all/keys || s.Delivered != all-all/keys {
			t.Errorf("after: %+v", s)
		}
		if n := tries.Load(); n != 1 {
			t.Errorf("the event that is refused was tried %d times", n)
		}
	})
}
