package pipeline_test

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/pipeline"
)

func TestPlacedCopyOlderThanReplay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := &keeper{}
		w := keeping(k)
		w.start()
		for i := range 20 {
			w.source.commit(event(i, "k"))
		}
		time.Sleep(time.Minute)
		w.stop()
		copyAt := len(k.saved) - 1
		sub, _ := w.bus.Subscribe(t.Context(), onewrite.Interest{Name: "wh", Sources: []string{"shop"}})
		c, _ := sub.Cursor()
		c.Placed = onewrite.PlacedVoid
		c.Logs["shop"] = onewrite.LogCursor{Floor: 10}
		if err := sub.Commit(t.Context(), c); err != nil {
			t.Fatal(err)
		}
		_ = sub.Close()
		w.d = keptBy(k)
		w.start()
		for i := range 20 {
			w.source.commit(event(100+i, "k"))
		}
		time.Sleep(time.Minute)
		w.stop()
		k.back(copyAt)
		w.d = keptBy(k)
		w.start()
		time.Sleep(24 * time.Hour)
		s := w.d.Status()
		w.stop()
		if got := k.all(t); len(got) != 40 || s.Delivered != 40 || s.Pending != 0 {
			t.Errorf("%d events, %+v", len(got), s)
		}
	})
}

type slowKeeper struct {
	*keeperSink
	asleep *atomic.Bool
}

func (s slowKeeper) Place(ctx context.Context) ([]byte, error) {
	for s.asleep.Load() {
		time.Sleep(10 * time.Millisecond)
	}
	return s.keeperSink.Place(ctx)
}

// two copies, one of which is slow to open
func TestPlacedTwoCopies(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k, asleep, hang := &keeper{}, &atomic.Bool{}, &atomic.Bool{}
		w := keeping(k)
		w.bus.Lease = 3 * time.Second
		in := onewrite.Interest{Name: "wh", Sources: []string{"shop"}}
		mk := func(slow bool) *pipeline.Delivery {
			d := keptBy(k)
			d.Interest, d.Bus = in, w.bus
			if slow {
				d.Open = func(context.Context) (onewrite.Sink, error) { return slowKeeper{&keeperSink{k: k}, asleep}, nil }
			}
			return d
		}
		a, b := mk(true), mk(false)
		ing := &pipeline.Ingest{Name: "shop", Open: w.source.open, Bus: w.bus}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 3)
		asleep.Store(true)
		go func() { done <- ing.Run(ctx) }()
		go func() { done <- a.Run(ctx) }()
		time.Sleep(100 * time.Millisecond)
		go func() { done <- b.Run(ctx) }()
		for i := range 200 {
			w.source.commit(event(i, fmt.Sprint("k", i%3)))
			time.Sleep(50 * time.Millisecond)
			if i == 100 {
				asleep.Store(false)
			}
		}
		_ = hang
		time.Sleep(time.Minute)
		cancel()
		for range 3 {
			<-done
		}
		if got := k.all(t); len(got) != 200 {
			t.Errorf("%d", len(got))
		}
	})
}

// the place cannot be read for an hour
func TestPlacedPlaceFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k, down := &keeper{}, &atomic.Bool{}
		w := keeping(k)
		w.d.Open = func(context.Context) (onewrite.Sink, error) { return failing{&keeperSink{k: k}, down}, nil }
		n := 0
		k.fault = func([]onewrite.Message) (bool, int, error) {
			if n++; n == 3 {
				down.Store(true)
				return true, 0, errInjected
			}
			return true, 0, nil
		}
		w.start()
		for i := range 300 {
			w.source.commit(event(i, fmt.Sprint("k", i%3)))
			time.Sleep(10 * time.Millisecond)
		}
		time.Sleep(time.Hour)
		t.Logf("%+v", w.d.Status())
		down.Store(false)
		time.Sleep(5 * time.Minute)
		s := w.d.Status()
		w.stop()
		if got := k.all(t); len(got) != 300 || s.Delivered != 300 {
			t.Errorf("%d %+v", len(got), s)
		}
	})
}

type failing struct {
	*keeperSink
	down *atomic.Bool
}

func (s failing) Place(ctx context.Context) ([]byte, error) {
	if s.down.Load() {
		return nil, errInjected
	}
	return s.keeperSink.Place(ctx)
}

// Concurrency above 1 with a sink that keeps its place
func TestPlacedConcurrency(t *testing.T) {
	for seed := range 10 {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				k := &keeper{}
				w := keeping(k)
				w.d.Concurrency, w.d.BatchCount = 4, 2
				n := 0
				w.bus.Fault = func(at string) error {
					if at == "commit.before" {
						if n++; n%(5+seed) == 0 {
							return errInjected
						}
					}
					return nil
				}
				w.start()
				for i := range 400 {
					w.source.commit(event(i, ""))
					time.Sleep(time.Millisecond / 2)
				}
				time.Sleep(time.Minute)
				w.stop()
				times := map[string]int{}
				for _, e := range k.events {
					times[e.ID]++
				}
				if len(times) != 400 || len(k.events) != 400 {
					t.Errorf("%d distinct of %d", len(times), len(k.events))
				}
			})
		})
	}
}
