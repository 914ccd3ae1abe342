package pipeline_test

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/onewritetest"
	"github.com/onewrite/onewrite/pipeline"
)

// aheadBus takes several appends at once. bad says what becomes of batch n when it is given for
// the try-th time: whether it is stored, and whether its answer is lost; then those begun before
// that is known are not stored.
type aheadBus struct {
	*onewritetest.MemoryBus
	bad    func(n, try int) (stored, lost bool)
	times  map[onewrite.Pos]int
	most   *atomic.Int32
	begun  atomic.Int32
	before chan struct{}
	broken error
}

func (b *aheadBus) Position(ctx context.Context, source string) (onewrite.Pos, uint64, error) {
	b.broken = nil
	return b.MemoryBus.Position(ctx, source)
}

func (b *aheadBus) Prepare(source string, batch onewrite.Batch) func(context.Context, onewrite.Pos) (uint64, <-chan error, error) {
	return func(ctx context.Context, prev onewrite.Pos) (uint64, <-chan error, error) {
		b.most.Store(max(b.most.Load(), b.begun.Add(1)))
		n, _ := strconv.Atoi(string(batch.Pos)) // the number of the source's events up to there
		err, answer := b.broken, make(chan error, 1)
		if err == nil {
			b.times[batch.Pos]++
			stored, lost := b.bad(n/7, b.times[batch.Pos])
			if lost {
				b.broken = errInjected
			}
			if stored {
				_, err = b.Append(ctx, source, prev, batch)
			}
			err = errors.Join(err, b.broken)
		}
		before, landed := b.before, make(chan struct{})
		b.before = landed
		go func() {
			time.Sleep(10 * time.Millisecond)
			if before != nil {
				<-before
			}
			b.begun.Add(-1)
			answer <- err
			close(landed)
		}()
		return uint64(n), answer, nil
	}
}

// TestAppendsGoOn: a source is not opened anew when an append fails, if the bus says what it
// has; nothing is lost and nothing comes twice, whatever that was. If it goes on failing,
// or somebody else appends, the source is opened anew.
func TestAppendsGoOn(t *testing.T) {
	for _, c := range []struct {
		name  string
		bad   func(n, try int) (stored, lost bool)
		opens int32
	}{
		{"none", func(int, int) (bool, bool) { return true, false }, 1},
		{"lost", func(n, try int) (bool, bool) { bad := n%11 == 5 && try == 1; return !bad, bad }, 1},
		{"stored, the answer lost", func(n, _ int) (bool, bool) { return true, n%11 == 5 }, 1},
		{"twice", func(n, try int) (bool, bool) { bad := n == 5 && try < 3; return !bad, bad }, 2},
		{"the first", func(n, try int) (bool, bool) { bad := n == 1 && try == 1; return !bad, bad }, 2},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				source, most, opens := newMemSource("shop"), &atomic.Int32{}, atomic.Int32{}
				b := &aheadBus{MemoryBus: &onewritetest.MemoryBus{}, bad: c.bad, times: map[onewrite.Pos]int{}, most: most}
				in := &pipeline.Ingest{Name: "shop", Bus: b, AckDurable: true, Open: func(ctx context.Context, pos onewrite.Pos) (onewrite.Source, error) {
					opens.Add(1)
					return source.open(ctx, pos)
				}}
				const n = 700
				for i := range n {
					source.commit(event(i, ""))
				}
				ctx, stop := context.WithCancel(t.Context())
				done := make(chan struct{})
				go func() { defer close(done); _ = in.Run(ctx) }()
				time.Sleep(time.Minute)
				s := in.Status()
				stop()
				<-done
				all := b.Events("shop")
				for i, e := range all {
					if e.ID != fmt.Sprintf("e%04d", i) {
						t.Fatalf("event %d is %s", i, e.ID)
					}
				}
				if len(all) != n || s.Offset != n || s.Events != n || s.State != pipeline.OK || source.acked != n {
					t.Errorf("%d events, acknowledged %d, %+v", len(all), source.acked, s)
				}
				if opens.Load() != c.opens || most.Load() != 3 {
					t.Errorf("opened %d times, want %d; %d under way at once", opens.Load(), c.opens, most.Load())
				}
			})
		})
	}
}

// TestAppendsEnd: an ingest that stops waits for what is under way, and knows what became of it.
func TestAppendsEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		source := newMemSource("shop")
		b := &aheadBus{MemoryBus: &onewritetest.MemoryBus{}, bad: func(int, int) (bool, bool) { return true, false }, times: map[onewrite.Pos]int{}, most: &atomic.Int32{}}
		in := &pipeline.Ingest{Name: "shop", Bus: b, AckDurable: true, Open: source.open}
		for i := range 2000 {
			source.commit(event(i, ""))
		}
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); _ = in.Run(ctx) }()
		time.Sleep(15 * time.Millisecond)
		if b.begun.Load() == 0 {
			t.Fatal("nothing is under way")
		}
		stop()
		<-done
		if n := b.begun.Load(); n != 0 {
			t.Errorf("%d appends are under way", n)
		}
		if n := len(b.Events("shop")); in.Status().Events != uint64(n) {
			t.Errorf("%d events are on the bus, the status says %d", n, in.Status().Events)
		}
	})
}

// TestLastOfBacklog: a batch is part of a backlog if it is full, or its source says so, as
// few large events are. One that was the last is caught up with, though nothing comes after it.
func TestLastOfBacklog(t *testing.T) {
	for _, c := range []struct {
		events  int
		more    bool
		backlog bool
	}{{onewrite.MaxBatch, false, true}, {3, true, true}, {3, false, false}} {
		synctest.Test(t, func(t *testing.T) {
			source := newMemSource("shop")
			in := &pipeline.Ingest{Name: "shop", Bus: &onewritetest.MemoryBus{}, AckDurable: true, Open: func(ctx context.Context, pos onewrite.Pos) (onewrite.Source, error) {
				s, err := source.open(ctx, pos)
				return &oneBatch{Source: s, events: c.events, more: c.more}, err
			}}
			ctx, stop := context.WithCancel(t.Context())
			done := make(chan struct{})
			go func() { defer close(done); _ = in.Run(ctx) }()
			time.Sleep(time.Second)
			if s := in.Status(); (s.State == pipeline.CatchingUp) != c.backlog || (s.Lag > 0) != c.backlog || s.Events != uint64(c.events) {
				t.Errorf("%+v: while it may go on: %+v", c, s)
			}
			time.Sleep(time.Minute)
			if s := in.Status(); s.State != pipeline.OK || s.Lag != 0 {
				t.Errorf("%+v: long after: %+v", c, s)
			}
			stop()
			<-done
		})
	}
}

// oneBatch has one batch.
type oneBatch struct {
	onewrite.Source
	events     int
	more, told bool
}

func (f *oneBatch) Read(ctx context.Context) (onewrite.Batch, error) {
	if f.told {
		<-ctx.Done()
		return onewrite.Batch{}, ctx.Err()
	}
	f.told = true
	b := onewrite.Batch{Pos: "1", More: f.more}
	for i := range f.events {
		e := event(i, "")
		e.Source, e.Time = "shop", time.Now().Add(-time.Minute)
		b.Events = append(b.Events, e)
	}
	return b, nil
}

// TestSourceBehind: a source that says how far it is behind is not up to date, whatever came
// last.
func TestSourceBehind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		source, lag := newMemSource("shop"), atomic.Int64{}
		in := &pipeline.Ingest{Name: "shop", Bus: &onewritetest.MemoryBus{}, AckDurable: true, Open: func(ctx context.Context, pos onewrite.Pos) (onewrite.Source, error) {
			s, err := source.open(ctx, pos)
			return behind{s, &lag}, err
		}}
		source.commit(event(0, ""))
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); _ = in.Run(ctx) }()
		time.Sleep(time.Second)
		for _, want := range []time.Duration{0, time.Minute, 0} {
			lag.Store(int64(want))
			if s := in.Status(); s.Lag != want || (s.State == pipeline.OK) != (want == 0) || s.Events != 1 {
				t.Errorf("%v behind: %+v", want, s)
			}
		}
		stop()
		<-done
	})
}

// behind says how far it is behind.
type behind struct {
	onewrite.Source
	lag *atomic.Int64
}

func (b behind) Lag() time.Duration { return time.Duration(b.lag.Load()) }
