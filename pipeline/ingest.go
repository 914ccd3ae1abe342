package pipeline

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/internal/sabotage"
)

// Ingest moves one source's committed events to the bus. There is one per
// source. Fill the fields, then Run; the fields are not changed after that.
type Ingest struct {
	// Name is the source's name in the configuration.
	Name string
	// Open opens the source at a position; it is called again after a failure.
	// It returns ErrStandby while another copy reads the source.
	Open func(ctx context.Context, pos onewrite.Pos) (onewrite.Source, error)
	// Bus takes the events.
	Bus onewrite.Bus
	// AckDurable lets the source forget events as soon as the bus holds them;
	// else it may when Confirm says so.
	AckDurable bool
	// Retry paces the tries to open a failed source again.
	Retry Backoff
	// Observe is told what happens.
	Observe Observer
	// Log gets a line for each change of state; nil is silent.
	Log *slog.Logger

	mu        sync.Mutex
	status    IngestStatus
	marks     marks
	confirmed uint64
	wake      chan struct{}        // holds one token when confirmed moved
	asked     time.Time            // since when an append is under way; zero: none is
	behind    func() time.Duration // how far the source is, as far as it knows; nil: it does not
	held      held
	opened    time.Time // when the source was opened; zero: it is not
}

// held is the gap that waits for a person.
type held struct {
	gap   string // without its end; "": there is none
	shuts bool   // the source cannot even be opened
}

// passed is how long a source is read until it is beyond a gap that was met in reading: that
// it can be opened says nothing, and another part of it may go on all the time.
const passed = time.Minute

// IngestStatus is a snapshot of an Ingest.
type IngestStatus struct {
	State     State
	Position  onewrite.Pos
	Offset    uint64        // the bus offset of the last event
	Lag       time.Duration // how far the reader is behind; 0 when it has all
	Events    uint64        // events put on the bus by this process
	Gap       string        // the last gap met, "" if none; more than one where one opening met them
	GapAt     time.Time     // when the first of it was met
	LastError string
	LastEvent time.Time
}

// settled is how long nothing comes after a batch of a backlog until it was the last.
const settled = 3 * time.Second

// Status returns what the ingest is doing now.
func (in *Ingest) Status() IngestStatus {
	in.mu.Lock()
	defer in.mu.Unlock()
	s := in.status
	if s.State == "" {
		s.State = Waiting
	}
	if s.State == CatchingUp && in.asked.IsZero() && time.Since(s.LastEvent) > settled {
		s.State, s.Lag = OK, 0 // nothing came after the last batch of a backlog
	}
	if in.behind != nil && (s.State == OK || s.State == CatchingUp) {
		if d := in.behind(); d > 0 { // the source has not read it so far
			s.State, s.Lag = CatchingUp, max(s.Lag, d)
		}
	}
	if !in.asked.IsZero() && time.Since(in.asked) > silence && s.State != Stopped {
		s.State, s.LastError, s.Lag = Waiting, errSilent.Error(), time.Since(in.asked)
	}
	return s
}

// Confirm tells that everything up to a bus offset is where it needs to be, so
// that the source may forget it. Calls that go back change nothing.
func (in *Ingest) Confirm(offset uint64) {
	in.mu.Lock()
	in.init()
	moved := offset > in.confirmed
	if moved {
		in.confirmed = offset
	}
	in.mu.Unlock()
	if moved {
		select {
		case in.wake <- struct{}{}:
		default:
		}
	}
}

func (in *Ingest) init() {
	if in.wake == nil {
		in.wake = make(chan struct{}, 1)
	}
}

// Run moves events until ctx ends, and then returns nil. Whatever fails is
// opened again at the position that the bus holds.
func (in *Ingest) Run(ctx context.Context) error {
	in.mu.Lock()
	in.init()
	in.mu.Unlock()
	log := logger(in.Log).With("source", in.Name)
	for fails := 0; ; {
		before := in.Status().Events
		err := in.session(ctx, log)
		if ctx.Err() != nil {
			in.update(func(s *IngestStatus) { s.State = Stopped })
			return nil
		}
		if in.Status().Events > before {
			fails = 0
		}
		fails++
		pause := in.Retry.Pause(fails)
		switch {
		case errors.Is(err, onewrite.ErrStandby), errors.Is(err, onewrite.ErrFenced):
			pause = time.Second
			in.note(log, Waiting, err)
		case errors.Is(err, onewrite.ErrGap):
			in.hold(log, err)
		default:
			in.note(log, Waiting, err)
		}
		_ = sleep(ctx, pause) // the end of ctx is met at the top
	}
}

// note records a failure, once for each new text.
func (in *Ingest) note(log *slog.Logger, state State, err error) {
	in.mu.Lock()
	fresh := in.status.LastError != err.Error() || in.status.State != state
	in.status.State, in.status.LastError = state, err.Error()
	in.mu.Unlock()
	if !fresh {
		return
	}
	if errors.Is(err, onewrite.ErrStandby) {
		log.Info("standing by", "reason", err)
		return
	}
	log.Warn("ingest interrupted, will try again", "state", state, "error", err)
}

// hold records a gap that waits for a person. It is told once, however often the source is
// tried: the end of its range moves on while nobody acts.
func (in *Ingest) hold(log *slog.Logger, err error) {
	gap := err.Error()
	if g := (*onewrite.Gap)(nil); errors.As(err, &g) {
		gap = g.Reason + "\x00" + g.From
	}
	in.mu.Lock()
	fresh := in.held.gap != gap || !in.opened.IsZero() && time.Since(in.opened) > passed
	in.held = held{gap: gap, shuts: in.opened.IsZero()}
	in.status.State, in.status.LastError, in.status.Gap = InGap, err.Error(), err.Error()
	if fresh {
		in.status.GapAt = time.Now()
	}
	in.mu.Unlock()
	if !fresh {
		return
	}
	log.Error("gap in the source, waiting for a person", "error", err)
	if in.Observe.Gap != nil {
		in.Observe.Gap(in.Name, err.Error(), false)
	}
}

func (in *Ingest) update(f func(*IngestStatus)) {
	in.mu.Lock()
	f(&in.status)
	in.mu.Unlock()
}

// session reads and appends until something fails or ctx ends.
func (in *Ingest) session(ctx context.Context, log *slog.Logger) error {
	in.mu.Lock()
	in.opened = time.Time{}
	in.mu.Unlock()
	pos, offset, err := in.Bus.Position(ctx, in.Name)
	if err != nil {
		return fmt.Errorf("bus: position of source %s: %w", in.Name, err)
	}
	if err := sabotage.At("ingest.open"); err != nil {
		return err
	}
	src, err := in.Open(ctx, pos)
	if err != nil {
		return err
	}
	defer src.Close()
	in.mu.Lock()
	in.marks, in.behind = marks{}, nil
	if l, ok := src.(interface{ Lag() time.Duration }); ok {
		in.behind = l.Lag
	}
	in.marks.add(offset, pos)
	in.status.State, in.status.Position, in.status.Offset, in.status.LastError = OK, pos, offset, ""
	if in.opened = time.Now(); in.held.shuts {
		in.held = held{}
	}
	in.mu.Unlock()
	log.Info("reading", "offset", offset)

	ctx, cancel := context.WithCancelCause(ctx)
	batches := make(chan offer, 1)
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			b, err := src.Read(ctx)
			if err == nil {
				err = sabotage.At("ingest.read")
			}
			if err != nil {
				cancel(err)
				return
			}
			select {
			case batches <- in.offer(b):
			case <-ctx.Done():
				return
			}
		}
	})
	wg.Go(func() {
		if err := in.acknowledge(ctx, src); err != nil {
			cancel(err)
		}
	})
	stored, _ := src.(interface{ Stored(onewrite.Pos) })
	a := &appending{in: in, log: log, has: pos, prev: pos, stored: func(pos onewrite.Pos) {
		if stored != nil {
			stored.Stored(pos)
		}
	}}
	err = a.run(ctx, batches)
	cancel(err)
	wg.Wait()
	return context.Cause(ctx)
}

// ask notes since when the bus owes an answer.
func (in *Ingest) ask(since time.Time) {
	in.mu.Lock()
	in.asked = since
	in.mu.Unlock()
}

// appended records a stored batch.
func (in *Ingest) appended(last uint64, b onewrite.Batch, took time.Duration) {
	in.mu.Lock()
	in.marks.add(last, b.Pos)
	s := &in.status
	s.Position, s.Offset, s.LastError, s.LastEvent = b.Pos, last, "", time.Now()
	s.Events += uint64(len(b.Events))
	s.State, s.Lag = OK, 0
	if b.More || len(b.Events) == onewrite.MaxBatch {
		s.State = CatchingUp
		s.Lag = max(0, time.Since(b.Events[len(b.Events)-1].Time))
	}
	in.mu.Unlock()
	if in.AckDurable || sabotage.Bug == "ack-early" {
		in.Confirm(last)
	}
	if in.Observe.Appended != nil {
		in.Observe.Appended(in.Name, len(b.Events), took)
	}
}

// gap records a gap that the source healed. One cause often shows twice when a source is
// opened, in its outbox and in its log: the status keeps both, as they miss other things.
func (in *Ingest) gap(log *slog.Logger, g *onewrite.Gap) {
	log.Error("gap in the source, reading it again", "reason", g.Reason, "from", g.From, "to", g.To)
	in.mu.Lock()
	s := &in.status
	s.State = InGap
	if s.Gap != "" && !s.GapAt.Before(in.opened) && time.Since(in.opened) < passed {
		s.Gap += "; and " + g.Error()
	} else {
		s.Gap, s.GapAt = g.Error(), time.Now()
	}
	in.mu.Unlock()
	if in.Observe.Gap != nil {
		in.Observe.Gap(in.Name, g.Reason, true)
	}
}

// acknowledge hands confirmed positions to the source as they move.
func (in *Ingest) acknowledge(ctx context.Context, src onewrite.Source) error {
	for {
		in.mu.Lock()
		pos, ok := in.marks.take(in.confirmed)
		in.mu.Unlock()
		if ok {
			if err := sabotage.At("ingest.ack"); err != nil {
				return err
			}
			if err := src.Ack(ctx, pos); err != nil {
				return fmt.Errorf("acknowledge source %s: %w", in.Name, err)
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-in.wake:
		}
	}
}

// marks remembers which source position belongs to which bus offset. It is
// bounded: when it is full every second mark is dropped, which only makes the
// source forget in larger steps.
type marks struct{ list []mark }

type mark struct {
	offset uint64
	pos    onewrite.Pos
}

const maxMarks = 4096

func (m *marks) add(offset uint64, pos onewrite.Pos) {
	if len(m.list) >= maxMarks {
		kept := m.list[:0]
		for i, k := range m.list {
			if i%2 == 1 {
				kept = append(kept, k)
			}
		}
		m.list = kept
	}
	m.list = append(m.list, mark{offset, pos})
}

// take returns the newest position whose events are all within confirmed, and
// forgets it and those before it.
func (m *marks) take(confirmed uint64) (onewrite.Pos, bool) {
	n := 0
	for n < len(m.list) && m.list[n].offset <= confirmed {
		n++
	}
	if n == 0 {
		return "", false
	}
	pos := m.list[n-1].pos
	m.list = append(m.list[:0], m.list[n:]...)
	return pos, pos != ""
}
