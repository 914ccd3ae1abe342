package pipeline

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/internal/sabotage"
)

// A preparer is a bus that has work to do before an append, which needs nothing of the one
// before, and that takes several appends at once. Prepare does that work. What it returns
// begins the append of that batch, behind those begun before: stored has one answer, which
// comes after theirs, and is an error if one of theirs is; an err says that nothing was begun.
// It may be called again after an error.
type preparer interface {
	Prepare(source string, batch onewrite.Batch) (begin func(ctx context.Context, prev onewrite.Pos) (last uint64, stored <-chan error, err error))
}

// offer is a batch with how its append is begun.
type offer struct {
	onewrite.Batch
	begin func(ctx context.Context, prev onewrite.Pos) (last uint64, stored <-chan error, err error)
}

// offer prepares the append of a batch, while others are under way.
func (in *Ingest) offer(b onewrite.Batch) offer {
	if bus, ok := in.Bus.(preparer); ok && len(b.Events) > 0 {
		return offer{b, bus.Prepare(in.Name, b)}
	}
	return offer{b, func(ctx context.Context, prev onewrite.Pos) (uint64, <-chan error, error) {
		ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
		defer cancel()
		last, err := in.Bus.Append(ctx, in.Name, prev, b)
		return last, noError, err
	}}
}

// noError is the answer about what is stored already.
var noError = func() <-chan error { c := make(chan error); close(c); return c }()

// mostUnderWay is how many appends are under way at once: the bus stores one, another
// one is on its way.
const mostUnderWay = 3

// enoughUnderWay are as many bytes of events as there may be under way before another append
// is begun: large ones take longer to send than to wait for.
const enoughUnderWay = 4 << 20

// underWay is an append that was begun.
type underWay struct {
	offer
	last   uint64
	stored <-chan error
	since  time.Time
	size   int
}

// appending stores each batch behind the one before it.
type appending struct {
	in     *Ingest
	log    *slog.Logger
	has    onewrite.Pos // what the bus is known to have
	prev   onewrite.Pos // behind which the next one goes
	begun  []underWay   // the oldest first
	went   bool         // one was stored since the bus was asked for the position
	stored func(onewrite.Pos)
}

// run stores batches until something fails or ctx ends. What is under way then ends all the
// same: its answer decides whether the events are on the bus.
func (a *appending) run(ctx context.Context, batches <-chan offer) error {
	defer func() { _ = a.wait() }()
	for {
		var oldest <-chan error
		next := batches
		if len(a.begun) > 0 {
			oldest = a.begun[0].stored
			select { // what is stored is told before more is begun
			case err := <-oldest:
				if err := a.answered(ctx, err); err != nil {
					return err
				}
				continue
			default:
			}
		}
		if len(a.begun) == mostUnderWay || a.bytes() >= enoughUnderWay {
			next = nil
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case err := <-oldest:
			if err := a.answered(ctx, err); err != nil {
				return err
			}
		case b := <-next:
			if err := a.take(ctx, b); err != nil {
				return err
			}
		}
	}
}

// bytes are those of the events under way.
func (a *appending) bytes() (n int) {
	for _, u := range a.begun {
		n += u.size
	}
	return n
}

// take begins the append of a batch.
func (a *appending) take(ctx context.Context, b offer) error {
	if b.Gap != nil && sabotage.Bug != "no-gap" {
		a.in.gap(a.log, b.Gap)
	}
	if len(b.Events) == 0 {
		a.in.update(func(s *IngestStatus) { s.State, s.Lag = OK, 0 })
		return nil
	}
	err := a.begin(ctx, b)
	if err != nil && sabotage.Bug == "skip-batch" {
		return nil
	}
	return err
}

// begin begins an append; while the bus is full it waits, which leaves the backlog in
// the database.
func (a *appending) begin(ctx context.Context, b offer) error {
	for fails := 1; ; fails++ {
		u := underWay{offer: b, since: time.Now()}
		if len(a.begun) == 0 {
			a.in.ask(u.since)
		}
		err := sabotage.At("ingest.append")
		if err == nil {
			u.last, u.stored, err = b.begin(context.WithoutCancel(ctx), a.prev)
		}
		if err == nil {
			for i := range b.Events {
				u.size += b.Events[i].Size()
			}
			a.begun, a.prev = append(a.begun, u), b.Pos
			return nil
		}
		if len(a.begun) > 0 { // what went wrong before says more
			for len(a.begun) > 0 {
				if err := a.answered(ctx, <-a.begun[0].stored); err != nil {
					return err
				}
			}
			continue
		}
		a.in.ask(time.Time{})
		if !errors.Is(err, onewrite.ErrFull) {
			return fmt.Errorf("bus: append for source %s: %w", a.in.Name, err)
		}
		a.in.update(func(s *IngestStatus) { s.Lag = max(0, time.Since(b.Events[0].Time)) })
		a.in.note(a.log, Waiting, fmt.Errorf("the bus is full, the backlog waits in the database; raise bus.max_size or look at the slowest destination with onewrite status: %w", err))
		if err := sleep(ctx, min(a.in.Retry.Pause(fails), time.Second)); err != nil {
			return err
		}
	}
}

// wait waits for all that is under way.
func (a *appending) wait() error {
	for len(a.begun) > 0 {
		if err := a.end(<-a.begun[0].stored); err != nil {
			return err
		}
	}
	return nil
}

// answered takes the answer to the oldest append. If that is not known to be stored, the bus
// is asked once what it has, and given the rest again: the source need not be opened anew
// because a broker was.
func (a *appending) answered(ctx context.Context, err error) error {
	if err == nil || !a.went || errors.Is(err, onewrite.ErrFenced) || errors.Is(err, onewrite.ErrRejected) {
		return a.end(err)
	}
	failed := fmt.Errorf("bus: append for source %s: %w", a.in.Name, err)
	left := a.begun
	a.begun, a.went = nil, false
	a.in.ask(time.Now())
	for _, u := range left[1:] {
		<-u.stored // none is good behind that one
	}
	pos, last, err := a.in.Bus.Position(ctx, a.in.Name)
	a.in.ask(time.Time{})
	if err != nil {
		return failed
	}
	there := 0 // of them
	for pos != a.has && there < len(left) {
		if there++; left[there-1].Pos == pos {
			break
		}
	}
	if n := there; n > 0 && (left[n-1].Pos != pos || left[n-1].last != last) { // another copy's
		return failed
	}
	a.log.Warn("an append failed; the bus was asked what it has", "error", failed, "stored", there, "again", len(left)-there)
	for _, u := range left[:there] {
		u.last = last // what it was given is only known of the newest
		a.keep(u)
	}
	a.prev = a.has
	for _, u := range left[there:] {
		if err := a.begin(ctx, u.offer); err != nil {
			return err
		}
	}
	return nil
}

// end takes the answer to the oldest append, whatever it is.
func (a *appending) end(err error) error {
	u := a.begun[0]
	a.begun = a.begun[1:]
	var since time.Time
	if len(a.begun) > 0 {
		since = a.begun[0].since
	}
	a.in.ask(since)
	if err == nil {
		err = sabotage.At("ingest.appended")
	}
	if err != nil {
		return fmt.Errorf("bus: append for source %s: %w", a.in.Name, err)
	}
	a.went = true
	a.keep(u)
	return nil
}

// keep notes that a batch is stored. A source that wants to know at once what the bus holds is
// told by stored; it may forget later, by Ack.
func (a *appending) keep(u underWay) {
	a.has = u.Pos
	a.stored(u.Pos)
	a.in.appended(u.last, u.Batch, time.Since(u.since))
}
