package onewritetest_test

import (
	"context"
	"errors"
	"os"
	"sync"
	"testing"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/onewritetest"
)

// faultyBus is a right bus with one fault.
type faultyBus struct {
	*onewritetest.MemoryBus
	fault string
}

// Close closes nothing: what a MemoryBus holds is there for the next one.
func (b *faultyBus) Close() error { return nil }

func (b *faultyBus) Position(ctx context.Context, source string) (onewrite.Pos, uint64, error) {
	pos, last, err := b.MemoryBus.Position(ctx, source)
	if b.fault == "forgets its positions" {
		pos = ""
	}
	return pos, last, err
}

func (b *faultyBus) Append(ctx context.Context, source string, prev onewrite.Pos, batch onewrite.Batch) (uint64, error) {
	switch {
	case b.fault == "lets a stale one in":
		prev, _, _ = b.MemoryBus.Position(ctx, source)
	case b.fault == "loses the end of a batch" && len(batch.Events) > 500:
		batch.Events = batch.Events[:len(batch.Events)-1]
	case b.fault == "takes any batch" && len(batch.Events) > onewrite.MaxBatch:
		batch.Events = batch.Events[:onewrite.MaxBatch]
	case b.fault == "spoils headers":
		for i := range batch.Events {
			batch.Events[i].Header = nil
		}
	}
	return b.MemoryBus.Append(ctx, source, prev, batch)
}

func (b *faultyBus) Subscribe(ctx context.Context, in onewrite.Interest) (onewrite.Subscription, error) {
	switch b.fault {
	case "knows no topics":
		in.Topics = nil
	case "begins at the beginning":
		in.From = onewrite.From{}
	case "reads one log":
		in.Sources = in.Sources[:1]
	}
	s, err := b.MemoryBus.Subscribe(ctx, in)
	return &faultySubscription{s, b.fault, in}, err
}

type faultySubscription struct {
	onewrite.Subscription
	fault string
	in    onewrite.Interest
}

func (s *faultySubscription) Cursor() (onewrite.Cursor, uint64) {
	c, epoch := s.Subscription.Cursor()
	if s.fault == "one epoch" {
		epoch = 1
	}
	return c, epoch
}

func (s *faultySubscription) Read(ctx context.Context) ([]onewrite.Message, map[string]uint64, error) {
	if s.fault == "reads on" {
		ctx = context.WithoutCancel(ctx)
	}
	msgs, upto, err := s.Subscription.Read(ctx)
	for name := range upto {
		if s.fault == "passes too much" {
			upto[name]++
		}
	}
	if s.fault == "swaps two" && len(msgs) > 1 {
		msgs[0], msgs[1] = msgs[1], msgs[0]
	}
	return msgs, upto, err
}

func (s *faultySubscription) Pending(ctx context.Context, at map[string]onewrite.LogCursor) (uint64, error) {
	if s.fault == "counts what is done" {
		at = nil
	}
	return s.Subscription.Pending(ctx, at)
}

func (s *faultySubscription) Commit(ctx context.Context, c onewrite.Cursor) error {
	if s.fault == "forgets what is done" {
		for name, lc := range c.Logs {
			lc.Done = nil
			c.Logs[name] = lc
		}
	}
	err := s.Subscription.Commit(ctx, c)
	if s.fault == "believes an old owner" && errors.Is(err, onewrite.ErrFenced) || s.fault == "lets onlookers commit" && s.in.Name == "" {
		return nil
	}
	return err
}

func (s *faultySubscription) Park(ctx context.Context, p onewrite.Parked) (uint64, error) {
	if s.fault == "parks twice" && p.Attempts == 99 {
		p.Message.Offset += 1000
	}
	return s.Subscription.Park(ctx, p)
}

func (s *faultySubscription) Parked(ctx context.Context, after uint64, limit int, lane *onewrite.Lane) ([]onewrite.Parked, error) {
	if s.fault == "mixes lanes" {
		lane = nil
	}
	return s.Subscription.Parked(ctx, after, limit, lane)
}

// TestMemoryBus runs the suite on a right bus, or on a wrong one when
// TestBusSuiteSees has started it.
func TestMemoryBus(t *testing.T) {
	var mu sync.Mutex
	buses := map[string]*onewritetest.MemoryBus{}
	onewritetest.TestBus(t, func(_ *testing.T, dir string) onewritetest.Bus {
		mu.Lock()
		defer mu.Unlock()
		if buses[dir] == nil {
			buses[dir] = &onewritetest.MemoryBus{}
		}
		return &faultyBus{buses[dir], os.Getenv(faultVariable)}
	})
}

// TestBusSuiteSees proves that the suite can fail: each fault has to be found by
// the check that is there for it.
func TestBusSuiteSees(t *testing.T) {
	const (
		faithful = "events come back as they were"
		large    = "large batches are whole"
		topics   = "topics select, and what does not match is reported as passed"
		owner    = "a name has one owner, the newest"
		parking  = "parking is idempotent and keeps the order"
	)
	suiteSees(t, "TestMemoryBus", map[string]string{
		"forgets its positions": "positions survive a restart", "lets a stale one in": "a stale position is fenced and leaves no trace",
		"loses the end of a batch": large, "takes any batch": large, "spoils headers": faithful, "knows no topics": topics,
		"passes too much": topics, "begins at the beginning": "a new name begins where it asks to", "reads one log": "a log may appear later",
		"one epoch": owner, "believes an old owner": owner, "reads on": "Read ends with its context", "swaps two": "several logs come each in its order",
		"counts what is done": "pending counts what was not handed out", "forgets what is done": "what is done is not handed out again",
		"lets onlookers commit": "an onlooker owns nothing", "parks twice": parking, "mixes lanes": parking,
	})
}
