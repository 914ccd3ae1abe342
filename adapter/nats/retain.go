package nats

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/onewrite/onewrite/internal/sabotage"
)

// Keep says how much that is confirmed stays on the bus for replay; whichever
// is met first ends it. Zero is no bound.
type Keep struct {
	// Size is in bytes.
	Size int64
	// Age counts from when the bus stored the event.
	Age time.Duration
}

// Usage is what the log of a source holds.
type Usage struct {
	// First and Last are the offsets of the oldest and the newest event.
	First, Last uint64
	// Bytes is the room taken in the store.
	Bytes int64
	// Oldest is when the oldest event was stored; zero if there is none.
	Oldest time.Time
	// Messages counts the events.
	Messages uint64
}

// Retain purges from a log what is confirmed by everyone, that is up to the
// offset confirmed, and beyond keep. The newest event stays: it carries the
// position of the source. It returns what the log holds after that; a log that
// is not there holds nothing.
func (b *Bus) Retain(ctx context.Context, log string, confirmed uint64, keep Keep) (Usage, error) {
	if err := b.checkSource(log); err != nil {
		return Usage{}, err
	}
	ctx, cancel := bounded(ctx)
	defer cancel()
	js, err := b.link.jetStream()
	if err != nil {
		return Usage{}, err
	}
	s, err := js.Stream(ctx, b.stream(log))
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		return Usage{}, nil
	}
	if err != nil {
		return Usage{}, fmt.Errorf("nats: size of source %s: %w", log, err)
	}
	state := s.CachedInfo().State
	first, err := b.firstKept(ctx, log, state, confirmed, keep)
	if err != nil {
		return Usage{}, err
	}
	if first > state.FirstSeq {
		if err := sabotage.At("bus.purge"); err != nil {
			return Usage{}, err
		}
		if err := s.Purge(ctx, jetstream.WithPurgeSequence(first)); err != nil {
			return Usage{}, fmt.Errorf("nats: purge source %s: %w", log, err)
		}
		info, err := s.Info(ctx)
		if err != nil {
			return Usage{}, fmt.Errorf("nats: size of source %s: %w", log, err)
		}
		state = info.State
	}
	b.measure(b.logOf(log), state.Bytes)
	u := Usage{First: state.FirstSeq, Last: state.LastSeq, Bytes: int64(state.Bytes), Messages: state.Msgs}
	if state.Msgs > 0 {
		u.Oldest = state.FirstTime
	}
	return u, nil
}

// firstKept returns the offset of the first event that stays.
func (b *Bus) firstKept(ctx context.Context, log string, state jetstream.StreamState, confirmed uint64, keep Keep) (uint64, error) {
	limit := min(confirmed+1, state.LastSeq) // the newest stays
	if state.Msgs == 0 || limit <= state.FirstSeq {
		return 0, nil
	}
	first := state.FirstSeq
	if keep.Size > 0 {
		// The server knows no size of a part: take the average. It is called again
		// and again, so the error evens out.
		average := max(1, int64(state.Bytes/state.Msgs))
		if n := int64(limit - state.FirstSeq); n*average > keep.Size {
			first = limit - uint64(keep.Size/average)
		}
	}
	if keep.Age > 0 && time.Since(state.FirstTime) > keep.Age {
		m, err := b.since(ctx, log, time.Now().Add(-keep.Age))
		if err != nil {
			return 0, err
		}
		if m == nil {
			first = limit
		} else {
			first = max(first, m.Seq)
		}
	}
	return min(first, limit), nil
}
