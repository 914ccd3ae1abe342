// Package pipeline moves events: an [Ingest] from a source to the bus, a
// [Delivery] from the bus to a sink.
//
// It is the one owner of retry, backoff, the outage and poison verdicts,
// parking and positions. Adapters fail fast; when one fails, the pipeline closes
// it and opens it again at the last stored position.
//
// Both halves are a struct to fill and a Run(ctx) that blocks until ctx ends,
// owns its goroutines and leaves none behind. What they do can be watched
// through an [Observer] and asked for with Status.
package pipeline

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"time"
)

// State is what a person on call needs to know first.
type State string

// The states of a source or destination.
const (
	OK         State = "ok"          // nothing is left to do, or it is done as it comes
	CatchingUp State = "catching-up" // there is a backlog and it shrinks
	Waiting    State = "waiting"     // for the other side, for room, or behind another copy
	InGap      State = "gap"         // history is missing; see the gap
	Stopped    State = "stopped"     // nothing more happens without an operator
)

// Observer is told what happens. Every field may be nil. The functions are
// called on the hot path: they must return at once and may be called from
// several goroutines.
type Observer struct {
	// Appended: a batch of source's events became durable on the bus.
	Appended func(source string, events int, took time.Duration)
	// Gap: source found damage; healed tells whether it reads on by itself.
	Gap func(source string, reason string, healed bool)
	// Delivered: an event became durable at the destination; lag is the time
	// since the event's own time.
	Delivered func(destination string, lag time.Duration)
	// Failed: a write to the destination failed and will be tried again.
	Failed func(destination string, err error)
	// Parked: an event was set aside; behind is true when it only follows one.
	Parked func(destination, id, reason string, behind bool)
}

// Backoff is the pause between tries: First, then half as much again each time
// up to Max, each spread by a fifth so that many do not come back at once.
type Backoff struct {
	First time.Duration // default 200 ms
	Max   time.Duration // default 30 s
}

// Pause returns the pause after the n-th failure in a row, n from 1.
func (b Backoff) Pause(n int) time.Duration {
	first, limit := b.First, b.Max
	if first <= 0 {
		first = 200 * time.Millisecond
	}
	if limit <= 0 {
		limit = 30 * time.Second
	}
	d := float64(first)
	for i := 1; i < n && d < float64(limit); i++ {
		d *= 1.5
	}
	d = min(d, float64(limit))
	return time.Duration(d * (0.8 + 0.4*rand.Float64()))
}

// sleep waits for d or the end of ctx, whose error it returns.
func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}

func logger(l *slog.Logger) *slog.Logger {
	if l == nil {
		return slog.New(slog.DiscardHandler)
	}
	return l
}
