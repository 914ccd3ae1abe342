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
	select {
	case <-ctx.Done():
		return onewrite.Batch{}, ctx.Err()
	case err := <-b.breaks:
		return onewrite.Batch{}, err
	}
}
