package nats

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/onewrite/onewrite/internal/retention"
	"github.com/onewrite/onewrite/internal/sabotage"
)

// Retain purges from a log what is confirmed by everyone, that is up to the
// offset confirmed, and beyond keep. The newest event stays: it carries the
// position of the source. It returns what the log holds after that; a log that
// is not there holds nothing.
func (b *Bus) Retain(ctx context.Context, log string, confirmed uint64, keep retention.Keep) (retention.Usage, error) {
	if err := b.checkSource(log); err != nil {
		return retention.Usage{}, err
	}
	ctx, cancel := bounded(ctx)
	defer cancel()
	js, err := b.link.jetStream()
	if err != nil {
		return retention.Usage{}, err
	}
	s, err := js.Stream(ctx, b.stream(log))
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		return retention.Usage{}, nil
	}
	if err != nil {
		return retention.Usage{}, fmt.Errorf("nats: size of source %s: %w", log, err)
	}
	state := s.CachedInfo().State
	first, err := b.firstKept(ctx, log, state, confirmed, keep)
	if err != nil {
		return retention.Usage{}, err
	}
	if first > state.FirstSeq {
		if err := sabotage.At("bus.purge"); err != nil {
			return retention.Usage{}, err
		}
		if err := s.Purge(ctx, jetstream.WithPurgeSequence(first)); err != nil {
			return retention.Usage{}, fmt.Errorf("nats: purge source %s: %w", log, err)
		}
		info, err := s.Info(ctx)
		if err != nil {
			return retention.Usage{}, fmt.Errorf("nats: size of source %s: %w", log, err)
		}
		state = info.State
	}
	b.measure(b.logOf(log), state.Bytes)
	u := retention.Usage{Bytes: int64(state.Bytes), Messages: state.Msgs}
	l := b.logOf(log)
	if u.First, err = b.firstOffset(ctx, l, state); err == nil {
		u.Last, err = b.lastOffset(ctx, l, state)
	}
	if err != nil {
		return retention.Usage{}, fmt.Errorf("nats: size of source %s: %w", log, err)
	}
	if state.Msgs == 0 {
		return u, nil
	}
	u.Oldest, u.Through = state.FirstTime, u.First
	if b.isPacked(l) {
		u.Messages = u.Last - u.First + 1
		var in inbox
		defer in.close()
		if _, last, ok, err := b.at(ctx, &in, l, state.FirstSeq); err != nil {
			return retention.Usage{}, fmt.Errorf("nats: size of source %s: %w", log, err)
		} else if ok {
			u.Through = last
		}
	}
	return u, nil
}

// firstKept returns the sequence of the first message that stays.
func (b *Bus) firstKept(ctx context.Context, log string, state jetstream.StreamState, confirmed uint64, keep retention.Keep) (uint64, error) {
	var in inbox
	defer in.close()
	limit, err := b.seqOf(ctx, &in, b.logOf(log), confirmed+1)
	if err != nil {
		return 0, err
	}
	limit = min(limit, state.LastSeq) // the newest stays
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
