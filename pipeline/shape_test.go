package pipeline_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/pipeline"
)

// shapeOf drops every third event, cannot shape e0010 until it is mended, and gives the
// others another payload, and another id, which is not taken.
func shapeOf(mended *atomic.Bool) func(e *onewrite.Event) (onewrite.Event, bool, error) {
	return func(e *onewrite.Event) (onewrite.Event, bool, error) {
		var n int
		_, _ = fmt.Sscanf(e.ID, "e%d", &n)
		switch {
		case n%3 == 0:
			return *e, false, nil
		case n == 10 && !mended.Load():
			return *e, true, errors.New("transform: no such field: total")
		}
		out := *e
		out.ID, out.Data = "another", []byte(`{"shaped":true}`)
		return out, true, nil
	}
}

// Every event is delivered in its shape, filtered or parked; what cannot be shaped is
// parked with its key in the order of the log, and delivered when it can be.
func TestShape(t *testing.T) {
	for _, batch := range []int{1, 50} {
		synctest.Test(t, func(t *testing.T) { shapes(t, batch) })
	}
}

func shapes(t *testing.T, batch int) {
	w := newWorld()
	w.d.BatchCount = batch
	var mended atomic.Bool
	w.d.Shape = shapeOf(&mended)
	for i := range 60 {
		w.source.commit(event(i, fmt.Sprint("k", i%4)))
	}
	w.start()
	time.Sleep(time.Minute)
	s := w.d.Status()
	// k2 has 2, 6, 10, 14, … 58: from 10 on they are parked, but for those dropped.
	if s.Filtered != 20 || s.Parked != 9 || s.Delivered != 31 || s.Pending != 0 {
		t.Errorf("before: %+v", s)
	}
	list, err := w.d.Parked(t.Context(), 0, 100)
	if err != nil || len(list) != 9 || list[0].Message.ID != "e0010" || list[0].Attempts != 1 || !strings.Contains(list[0].Reason, "no such field: total") {
		t.Fatalf("parked: %+v, %v", list, err)
	}
	if string(list[0].Message.Data) != "{}" {
		t.Errorf("parked with the payload %s, not its own", list[0].Message.Data)
	}
	if err := w.d.Redrive(t.Context(), 0); err != nil { // not mended: it stays
		t.Fatal(err)
	}
	time.Sleep(time.Minute)
	if s := w.d.Status(); s.Parked != 9 || s.Delivered != 31 {
		t.Errorf("redriven too early: %+v", s)
	}
	mended.Store(true)
	if err := w.d.Redrive(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	time.Sleep(time.Minute)
	s = w.d.Status()
	w.stop()
	if s.Filtered != 20 || s.Parked != 0 || s.Delivered != 40 || s.Pending != 0 {
		t.Errorf("after: %+v", s)
	}
	if n := checkOrder(t, w.sink.Received()); n != 40 || len(w.sink.Received()) != 40 {
		t.Errorf("%d distinct of %d, want 40 once", n, len(w.sink.Received()))
	}
	for _, e := range w.sink.Received() {
		if string(e.Data) != `{"shaped":true}` {
			t.Errorf("%s arrived as %s", e.ID, e.Data)
		}
	}
}

// A parked event that is filtered out when it is delivered again counts as filtered.
func TestShapeDropsParked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		var mended atomic.Bool
		w.d.Shape = func(e *onewrite.Event) (onewrite.Event, bool, error) {
			if e.ID != "e0005" {
				return *e, true, nil
			}
			if mended.Load() {
				return *e, false, nil
			}
			return *e, false, errors.New("filter: no")
		}
		for i := range 12 {
			w.source.commit(event(i, "k"))
		}
		w.start()
		time.Sleep(time.Minute)
		if s := w.d.Status(); s.Delivered != 5 || s.Parked != 7 {
			t.Errorf("before: %+v", s)
		}
		mended.Store(true)
		if err := w.d.Redrive(t.Context(), 0); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		s := w.d.Status()
		w.stop()
		if s.Delivered != 11 || s.Filtered != 1 || s.Parked != 0 || s.Pending != 0 {
			t.Errorf("after: %+v", s)
		}
		checkOrder(t, w.sink.Received())
	})
}

// The policies hold for what cannot be shaped, and an earlier event of the key that is
// being tried is not overtaken in the parking lot.
func TestShapePolicies(t *testing.T) {
	for i, policy := range []pipeline.OnReject{pipeline.ParkKey, pipeline.Skip, pipeline.Stop, pipeline.ParkKey, pipeline.Skip} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld()
			w.d.OnReject, w.d.BatchCount = policy, 1+20*(i/3)
			w.d.Shape = func(e *onewrite.Event) (onewrite.Event, bool, error) {
				if e.ID == "e0007" {
					return *e, false, errors.New("key: no")
				}
				return *e, true, nil
			}
			w.sink.Answer("e0004", onewrite.ErrRejected)
			w.start()
			for i := range 10 {
				w.source.commit(event(i, "k"))
			}
			for i := range 30 {
				w.source.commit(event(100+i, fmt.Sprint("other", i)))
				time.Sleep(time.Second)
			}
			time.Sleep(time.Minute)
			s := w.d.Status()
			list, err := w.d.Parked(t.Context(), 0, 100)
			w.stop()
			if err != nil {
				t.Fatal(err)
			}
			var parked []string
			for _, p := range list {
				parked = append(parked, p.Message.ID)
			}
			want := map[pipeline.OnReject][]string{
				pipeline.ParkKey: {"e0004", "e0005", "e0006", "e0007", "e0008", "e0009"},
				pipeline.Skip:    {"e0004", "e0007"},
			}[policy]
			if !slices.Equal(parked, want) {
				t.Errorf("%s: parked %v, want %v", policy, parked, want)
			}
			if policy == pipeline.Stop && s.State != pipeline.Stopped {
				t.Errorf("%s: %+v", policy, s)
			}
		})
	}
}
