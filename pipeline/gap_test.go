package pipeline_test

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
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

// TestGapIsToldOnce: a gap that waits for a person is one error in the log and one of the
// count, however often the source is tried and wherever its range ends by then. The same
// damage after it was mended is another gap.
func TestGapIsToldOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		source := newMemSource("shop")
		var said lockedBuffer
		var tries, gaps atomic.Int32
		var damaged atomic.Bool
		damaged.Store(true)
		gap := func() error {
			return &onewrite.Gap{Reason: "the slot is gone", From: "0/1", To: fmt.Sprint("0/", tries.Load()), Cure: "decide"}
		}
		breaks := make(chan error)
		in := &pipeline.Ingest{Name: "shop", Bus: &onewritetest.MemoryBus{}, AckDurable: true, Log: slog.New(slog.NewTextHandler(&said, nil)),
			Observe: pipeline.Observer{Gap: func(_, _ string, healed bool) {
				if !healed {
					gaps.Add(1)
				}
			}},
			Open: func(ctx context.Context, pos onewrite.Pos) (onewrite.Source, error) {
				tries.Add(1)
				if damaged.Load() {
					return nil, fmt.Errorf("open: %w", gap())
				}
				s, err := source.open(ctx, pos)
				return breaking{s, breaks}, err
			}}
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); _ = in.Run(ctx) }()
		for want := 1; want <= 2; want++ {
			before, began := tries.Load(), time.Now()
			time.Sleep(10 * time.Minute)
			synctest.Wait()
			if n := strings.Count(said.String(), "level=ERROR"); tries.Load() < before+10 || int(gaps.Load()) != want || n != want || strings.Contains(said.String(), "level=WARN") {
				t.Errorf("%d tries, %d gaps are counted and %d told, want %d\n%s", tries.Load()-before, gaps.Load(), n, want, said.String())
			}
			if s := in.Status(); s.State != pipeline.InGap || !strings.Contains(s.LastError, fmt.Sprint("0/", tries.Load(), "]")) || s.Gap != s.LastError ||
				s.GapAt.Before(began.Add(-time.Second)) || s.GapAt.After(began.Add(time.Second)) {
				t.Errorf("after %d tries the status is %+v", tries.Load(), s)
			}
			damaged.Store(false)
			time.Sleep(time.Minute)
			if s := in.Status(); s.State != pipeline.OK {
				t.Errorf("mended, the status is %+v", s)
			}
			if want == 1 {
				damaged.Store(true)
				breaks <- gap() // met while it reads, and then whenever it is opened
			}
		}
		stop()
		<-done
	})
}

// TestGapMetInReadingIsToldOnce: a source that can be opened meets its gap again each time that
// it is read, with other events before it. That is one gap, until it is read for longer.
func TestGapMetInReadingIsToldOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		source := newMemSource("shop")
		var said lockedBuffer
		var tries, gaps atomic.Int32
		bus := &onewritetest.MemoryBus{}
		breaks := make(chan error)
		in := &pipeline.Ingest{Name: "shop", Bus: bus, AckDurable: true, Log: slog.New(slog.NewTextHandler(&said, nil)),
			Observe: pipeline.Observer{Gap: func(string, string, bool) { gaps.Add(1) }},
			Open: func(ctx context.Context, pos onewrite.Pos) (onewrite.Source, error) {
				tries.Add(1)
				s, err := source.open(ctx, pos)
				return breaking{s, breaks}, err
			}}
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); _ = in.Run(ctx) }()
		for want := 1; want <= 2; want++ {
			began := time.Now()
			for n := range 10 {
				before := in.Status().Events
				source.commit(onewrite.Event{ID: fmt.Sprint(want, "-", n), Type: "made", Topic: "t", Key: "k"})
				for range 60 {
					if time.Sleep(time.Second); in.Status().Events > before {
						break
					}
				}
				breaks <- &onewrite.Gap{Reason: "the key was another one", From: "0/1", To: "now", Cure: "decide"}
				synctest.Wait()
			}
			if n := strings.Count(said.String(), "level=ERROR"); int(tries.Load()) < 10*want || int(gaps.Load()) != want || n != want {
				t.Errorf("%d tries, %d gaps are counted and %d told, want %d\n%s", tries.Load(), gaps.Load(), n, want, said.String())
			}
			if s := in.Status(); s.State != pipeline.InGap || s.GapAt.After(began.Add(5*time.Second)) {
				t.Errorf("the status is %+v", s)
			}
			time.Sleep(10 * time.Minute) // it is read, and nothing is met: somebody mended it
		}
		stop()
		<-done
	})
}

// TestGapsOfOneOpening: what one opening met stays in the status together, with the time of the
// first. A gap that is met later takes its place.
func TestGapsOfOneOpening(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gaps := make(chan *onewrite.Gap, 2)
		in := &pipeline.Ingest{Name: "shop", Bus: &onewritetest.MemoryBus{},
			Open: func(context.Context, onewrite.Pos) (onewrite.Source, error) { return gapped{gaps: gaps}, nil }}
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); _ = in.Run(ctx) }()
		began := time.Now()
		for _, reason := range []string{"row changes: the bus is another", "the bus is new"} {
			gaps <- &onewrite.Gap{Reason: reason, From: "1", To: "2"}
			time.Sleep(5 * time.Second)
		}
		if s := in.Status(); s.Gap != "row changes: the bus is another [1 .. 2]; and the bus is new [1 .. 2]" || !s.GapAt.Equal(began) {
			t.Errorf("after both the status is %+v", s)
		}
		time.Sleep(10 * time.Minute)
		gaps <- &onewrite.Gap{Reason: "row changes: the slot is gone", From: "3", To: "4"}
		synctest.Wait()
		if s := in.Status(); s.Gap != "row changes: the slot is gone [3 .. 4]" || !s.GapAt.Equal(time.Now()) {
			t.Errorf("after a later one the status is %+v", s)
		}
		stop()
		<-done
	})
}

// gapped is a source that has nothing but gaps, which it healed.
type gapped struct {
	onewrite.Source
	gaps chan *onewrite.Gap
}

func (g gapped) Read(ctx context.Context) (onewrite.Batch, error) {
	select {
	case <-ctx.Done():
		return onewrite.Batch{}, ctx.Err()
	case gap := <-g.gaps:
		return onewrite.Batch{Gap: gap}, nil
	}
}

func (gapped) Ack(context.Context, onewrite.Pos) error { return nil }

func (gapped) Close() error { return nil }

// lockedBuffer is a log that is read while it is written.
type lockedBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// breaking is a source whose reading fails when it is told to.
type breaking struct {
	onewrite.Source
	breaks chan error
}

func (b breaking) Read(ctx context.Context) (onewrite.Batch, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var reads sync.WaitGroup
	defer reads.Wait()
	reads.Go(func() {
		select {
		case <-ctx.Done():
		case err := <-b.breaks:
			cancel(err)
		}
	})
	batch, err := b.Source.Read(ctx)
	cancel(nil)
	if err != nil {
		err = context.Cause(ctx)
	}
	return batch, err
}
