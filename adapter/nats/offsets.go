package nats

import (
	"context"
	"fmt"

	natsgo "github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/onewrite/onewrite"
)

// Offsets count events, sequences count messages. They are the same until the first
// pack; from then on the offset is ahead of the sequence, and never less so. Each message
// says at which offset it begins, so the way from an offset to its message is a search.

// mark is where a message is: its sequence and the offset of its first event.
type mark struct{ seq, first uint64 }

// isPacked reports whether a log has packs.
func (b *Bus) isPacked(l *logState) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return l.packed
}

// at returns the first message of a log from a sequence on, and the offset of its last
// event; ok is false if there is none.
func (b *Bus) at(ctx context.Context, in *inbox, l *logState, seq uint64) (m mark, last uint64, ok bool, err error) {
	q := query{Seq: seq, NextFor: b.subjects(l.source) + ">", Batch: 1}
	_, err = b.fetch(ctx, in, b.stream(l.source), q, func(seq uint64, msg *natsgo.Msg) error {
		first, n, err := place(msg.Header, seq)
		if err != nil {
			return fmt.Errorf("message %d of stream %s: %w", seq, b.stream(l.source), err)
		}
		m, last, ok = mark{seq, first}, first+uint64(n)-1, true
		return nil
	})
	return m, last, ok, err
}

// firstOffset returns the offset of the first event of a log; of one without events, that
// of the next.
func (b *Bus) firstOffset(ctx context.Context, l *logState, state jetstream.StreamState) (uint64, error) {
	b.mu.Lock()
	packed, known := l.packed, l.origin
	b.mu.Unlock()
	if !packed || state.Msgs == 0 {
		return state.FirstSeq, nil
	}
	if known.seq == state.FirstSeq {
		return known.first, nil
	}
	var in inbox
	defer in.close()
	m, _, ok, err := b.at(ctx, &in, l, state.FirstSeq)
	if err != nil || !ok {
		return state.FirstSeq, err
	}
	b.mu.Lock()
	l.origin = m
	b.mu.Unlock()
	return m.first, nil
}

// lastOffset returns the offset of the last event of a log.
func (b *Bus) lastOffset(ctx context.Context, l *logState, state jetstream.StreamState) (uint64, error) {
	if !b.isPacked(l) {
		return state.LastSeq, nil
	}
	n, err := b.newest(ctx, l.source)
	if err != nil || n == nil {
		return state.LastSeq, err
	}
	return n.last + max(state.LastSeq, n.seq) - n.seq, nil
}

// seqOf returns the sequence of the message that has an offset, or of the next one that
// has a later one; behind the last, the sequence of what comes next.
func (b *Bus) seqOf(ctx context.Context, in *inbox, l *logState, offset uint64) (uint64, error) {
	if !b.isPacked(l) {
		return offset, nil
	}
	state, err := b.stateOf(ctx, l)
	if err != nil {
		return 0, err
	}
	// What is looked for is in [low, high]; a message has MaxBatch events at most and one
	// at least, so that from a message near it the rest is soon found.
	low, high := state.FirstSeq, state.LastSeq+1
	at, err := b.guess(ctx, l, state, offset)
	if err != nil {
		return 0, err
	}
	for low < high {
		m, last, ok, err := b.at(ctx, in, l, at)
		switch {
		case err != nil:
			return 0, err
		case !ok || m.first > offset && m.seq >= high: // nothing between at and high
			high = at
		case m.first > offset:
			high = m.seq
			if ahead := m.first - offset; m.seq > low+ahead {
				low = m.seq - ahead
			}
			high = min(high, m.seq-(m.first-offset-1)/onewrite.MaxBatch)
		case last >= offset:
			return m.seq, nil
		default:
			low = m.seq + 1 + (offset-last-1)/onewrite.MaxBatch
			high = min(high, m.seq+offset-last)
		}
		at = low + (high-low)/2
	}
	return low, nil
}

// guess returns about where an offset is, if messages were alike.
func (b *Bus) guess(ctx context.Context, l *logState, state jetstream.StreamState, offset uint64) (uint64, error) {
	first, err := b.firstOffset(ctx, l, state)
	if err != nil {
		return 0, err
	}
	b.mu.Lock()
	tail := l.tail
	b.mu.Unlock()
	if state.Msgs == 0 || offset <= first || tail <= first {
		return state.FirstSeq, nil
	}
	share := float64(min(offset, tail)-first) / float64(tail-first)
	return state.FirstSeq + uint64(share*float64(state.LastSeq-state.FirstSeq)), nil
}

// stateOf asks for the state of a log's stream.
func (b *Bus) stateOf(ctx context.Context, l *logState) (jetstream.StreamState, error) {
	js, err := b.link.jetStream()
	if err != nil {
		return jetstream.StreamState{}, err
	}
	s, err := js.Stream(ctx, b.stream(l.source))
	if err != nil {
		return jetstream.StreamState{}, fmt.Errorf("nats: stream of source %s: %w", l.source, err)
	}
	return s.CachedInfo().State, nil
}
