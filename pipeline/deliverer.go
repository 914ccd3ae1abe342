package pipeline

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/internal/sabotage"
)

// deliverer is one session of a Delivery: one subscription, one owner. All its
// fields belong to the goroutine of loop.
type deliverer struct {
	d      *Delivery
	log    *slog.Logger
	sub    onewrite.Subscription
	finish context.Context // outlives the session's ctx by the drain time

	sink    onewrite.Sink
	placed  placed
	opening bool
	writing int       // writes under way
	began   time.Time // the last of them
	results chan result

	lanes   *lanes
	behind  map[string]bool // logs whose newest accepted event is a barrier
	stalled *feed           // what a barrier holds up
	health  health
	lot     lot

	tracks    map[string]*track
	cursor    onewrite.Cursor
	epoch     uint64
	dirty     bool
	committed time.Time // start of the last commit
	renewed   time.Time // start of the last commit that was stored
	cancel    context.CancelFunc
	wg        sync.WaitGroup // background calls to the subscription
	commits   chan error     // one answer a commit
	storing   *onewrite.Cursor
	spans     int

	unread    uint64 // matching events on the bus that the loop has not accepted, when it was last counted
	accepted  uint64 // events that the loop accepted
	sampling  chan unread
	sampled   time.Time
	mute      time.Time // since when the bus does not answer a count; zero: it does
	published time.Time
	linger    time.Time // send a short batch not before
	halted    error     // nothing more is written; errStopped
	lastError string
	torn      error // a command left something half done; ends the session
	undecided bool  // the failure at hand says nothing of what is durable
}

// unread is an answer of the bus: n events were not accepted when accepted were.
type unread struct{ n, accepted uint64 }

// result is the answer to a write, or to the opening of the sink.
type result struct {
	batch  []*entry
	n      int
	bad    int // of a whole batch that failed, the one that err is about
	err    error
	sink   onewrite.Sink
	record []byte // the place that it keeps
}

// session delivers until something of the bus fails, another copy takes over or
// ctx ends.
func (d *Delivery) session(ctx context.Context, log *slog.Logger) error {
	if err := sabotage.At("delivery.subscribe"); err != nil {
		return err
	}
	sub, err := d.Bus.Subscribe(ctx, d.Interest)
	if err != nil {
		return fmt.Errorf("bus: subscribe %s: %w", d.Interest.Name, err)
	}
	finish, cancel := context.WithCancel(context.WithoutCancel(ctx))
	r := &deliverer{
		d: d, log: log, sub: sub, finish: finish, cancel: cancel,
		results: make(chan result, d.Concurrency+1),
		lanes:   newLanes(), tracks: map[string]*track{}, behind: map[string]bool{},
		commits: make(chan error, 1), sampling: make(chan unread, 1),
	}
	defer r.close()
	r.cursor, r.epoch = sub.Cursor()
	floors := map[string]uint64{}
	for name, c := range r.cursor.Logs {
		r.tracks[name] = newTrack(c)
		floors[name] = c.Floor
	}
	if err := r.loadLot(ctx); err != nil {
		return err
	}
	safe := map[string]uint64{}
	for name, floor := range floors {
		safe[name] = r.lot.below(name, floor)
	}
	d.mu.Lock()
	d.floors, d.safe = floors, safe
	d.mu.Unlock()
	r.committed = time.Now()
	r.renewed = r.committed
	log.Info("delivering", "epoch", r.epoch, "parked", len(r.lot.places))
	return r.run(ctx)
}

// run starts the reader and loops.
func (r *deliverer) run(ctx context.Context) error {
	readCtx, stopReading := context.WithCancelCause(ctx)
	feeds := make(chan feed)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			msgs, upto, err := r.sub.Read(readCtx)
			if err != nil {
				stopReading(fmt.Errorf("bus: read for %s: %w", r.d.Interest.Name, err))
				return
			}
			select {
			case feeds <- feed{msgs, r.d.shapes(msgs), upto}:
			case <-readCtx.Done():
				return
			}
		}
	}()
	r.d.takeCommands(true)
	err := r.loop(readCtx, feeds)
	r.d.takeCommands(false)
	stopReading(err)
	<-done
	if errors.Is(err, onewrite.ErrFenced) {
		r.cancel() // what is under way must not be recorded any more
	}
	if derr := r.drain(); err == nil || errors.Is(err, context.Canceled) {
		err = derr
	}
	return err
}

// loop is the heart: it owns all state, and everything else reports to it.
func (r *deliverer) loop(ctx context.Context, feeds <-chan feed) error {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		now := time.Now()
		wake, err := r.step(now)
		if err != nil {
			return err
		}
		timer.Reset(max(0, time.Until(wake)))
		in := feeds
		if r.full() {
			in = nil
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case f := <-in:
			err = r.accept(f)
		case res := <-r.results:
			err = r.answer(res)
		case err = <-r.commits:
			err = r.stored(err)
		case u := <-r.sampling:
			r.unread = u.n - min(u.n, r.accepted-u.accepted)
		case c := <-r.d.commands:
			c.done <- c.run(r)
			err = r.torn
		case <-timer.C:
		}
		if err != nil {
			return err
		}
	}
}

func (r *deliverer) full() bool {
	return r.lanes.count >= r.d.Window || r.lanes.bytes >= r.d.WindowBytes || r.stalled != nil
}

// step does what is due and returns when to look again.
func (r *deliverer) step(now time.Time) (wake time.Time, err error) {
	wake = now.Add(time.Second)
	soonest := func(t time.Time) {
		if !t.IsZero() && t.Before(wake) {
			wake = t
		}
	}
	if err := r.resume(); err != nil {
		return wake, err
	}
	if !r.full() {
		r.unread = 0
		if err := r.sweep(); err != nil {
			return wake, err
		}
		if len(r.lot.sweep) > 0 && !r.full() {
			soonest(now)
		}
	}
	if r.halted == nil && r.mayWrite(now) {
		due, err := r.dispatch(now)
		if err != nil {
			return wake, err
		}
		soonest(due)
	}
	if r.storing == nil && (r.dirty || r.leaseDue(now)) {
		due := r.committed.Add(20 * time.Millisecond * time.Duration(1+r.spans/64))
		if r.leaseDue(now) || !now.Before(due) {
			r.store(now)
		} else {
			soonest(due)
		}
	}
	if r.full() && now.Sub(r.sampled) > 500*time.Millisecond {
		r.sampled = now
		at, accepted := r.places(), r.accepted
		r.wg.Go(func() {
			if n, err := r.sub.Pending(r.finish, at); err == nil {
				select {
				case r.sampling <- unread{n, accepted}:
				default:
				}
			}
		})
	}
	if due := r.published.Add(50 * time.Millisecond); now.Before(due) {
		soonest(due)
	} else {
		r.publish(now)
	}
	return wake, nil
}

// leaseDue reports whether the lease must be renewed by a commit.
func (r *deliverer) leaseDue(now time.Time) bool {
	l := r.sub.Lease()
	return l > 0 && now.Sub(r.committed) > l/3
}

// mayWrite is false while another copy might have taken over without our
// knowing: after a freeze the lease is renewed before the next write.
func (r *deliverer) mayWrite(now time.Time) bool {
	l := r.sub.Lease()
	return l == 0 || now.Sub(r.renewed) < l/2
}

func (r *deliverer) track(log string) *track {
	t := r.tracks[log]
	if t == nil {
		t = newTrack(onewrite.LogCursor{})
		r.tracks[log] = t
	}
	return t
}

// store commits the cursor in the background; stored takes the answer.
func (r *deliverer) store(now time.Time) {
	c := r.cursor
	c.Settled, c.Ahead = slices.Clone(c.Settled), slices.Clone(c.Ahead)
	c.Parked, c.LastParked = r.lot.owed(c.Settled)
	c.Logs = make(map[string]onewrite.LogCursor, len(r.tracks))
	r.spans = 0
	for name, t := range r.tracks {
		lc := t.cursor()
		r.spans += len(lc.Done)
		c.Logs[name] = lc
	}
	r.storing, r.dirty, r.committed = &c, false, now
	r.wg.Go(func() { r.commits <- r.commit(c) })
}

func (r *deliverer) commit(c onewrite.Cursor) error {
	err := sabotage.At("delivery.commit")
	if err == nil {
		err = r.sub.Commit(r.finish, c)
	}
	if err == nil {
		err = sabotage.At("delivery.committed")
	}
	return err
}

func (r *deliverer) stored(err error) error {
	c := r.storing
	r.storing = nil
	if err != nil && sabotage.Bug == "ignore-fence" && errors.Is(err, onewrite.ErrFenced) {
		r.renewed = r.committed
		return nil
	}
	if err != nil {
		return fmt.Errorf("bus: store the cursor of %s: %w", r.d.Interest.Name, err)
	}
	r.renewed = r.committed
	r.placed.stored(c)
	r.d.mu.Lock()
	for name, lc := range c.Logs {
		r.d.floors[name] = lc.Floor
		r.d.safe[name] = r.lot.below(name, lc.Floor)
	}
	r.d.mu.Unlock()
	return nil
}

// count asks the bus how much is not read yet.
func (r *deliverer) count() {
	ctx, cancel := context.WithTimeout(r.finish, 250*time.Millisecond)
	defer cancel()
	n, err := r.sub.Pending(ctx, r.places())
	switch {
	case err == nil:
		r.unread, r.mute = n, time.Time{}
	case r.mute.IsZero():
		r.mute = time.Now()
	}
}

// silent reports whether the bus has not answered for so long that it must be
// said.
func (r *deliverer) silent(now time.Time) bool {
	return !r.mute.IsZero() && now.Sub(r.mute) > silence || r.storing != nil && now.Sub(r.committed) > silence
}

// places is up to where the loop accepted what is on the bus.
func (r *deliverer) places() map[string]onewrite.LogCursor {
	at := make(map[string]onewrite.LogCursor, len(r.tracks))
	for name, t := range r.tracks {
		at[name] = onewrite.LogCursor{Floor: t.handed, Done: slices.Clone(t.prior)}
	}
	return at
}

// flush stores the cursor as it is now and waits for it.
func (r *deliverer) flush() error {
	if r.storing != nil {
		if err := r.stored(<-r.commits); err != nil {
			return err
		}
	}
	r.store(time.Now())
	return r.stored(<-r.commits)
}

// publish refreshes the status and returns it.
func (r *deliverer) publish(now time.Time) (out DeliveryStatus) {
	r.published = now
	pending := r.unread - min(r.unread, uint64(len(r.lot.ahead))) + uint64(r.lanes.count-len(r.lot.loaded))
	state := OK
	switch {
	case r.halted != nil:
		state, r.lastError = Stopped, r.halted.Error()
	case r.silent(now):
		state, r.lastError = Waiting, errSilent.Error()
	case sabotage.Bug == "says-ok":
	case r.health.down() || r.sink == nil && r.health.failures > 0:
		state = Waiting
	case pending > 1000:
		state = CatchingUp
	}
	if r.halted == nil && !r.silent(now) && r.health.failing == 0 && (r.sink != nil || r.health.failures == 0) {
		r.lastError = ""
	}
	var lag time.Duration
	for _, t := range r.tracks {
		if len(t.open) > 0 {
			lag = max(lag, now.Sub(t.open[0].at))
		}
	}
	r.d.set(func(s *DeliveryStatus) {
		s.State, s.Epoch, s.Lag, s.LastError = state, r.epoch, lag, r.lastError
		s.Delivered, s.Filtered, s.Skipped = r.cursor.Delivered, r.cursor.Filtered, r.cursor.Skipped
		s.Pending, s.Parked = pending, uint64(len(r.lot.places))
		out = *s
	})
	return out
}

// drain waits for the writes under way, within the drain time, and stores the
// last cursor.
func (r *deliverer) drain() error {
	timer := time.AfterFunc(r.d.Drain, r.cancel)
	defer timer.Stop()
	var first error
	for r.writing > 0 || r.opening {
		res := <-r.results
		if err := r.answer(res); err != nil && first == nil {
			first = err
		}
	}
	if r.storing != nil {
		if err := r.stored(<-r.commits); err != nil && first == nil {
			first = err
		}
	}
	if r.finish.Err() == nil && first == nil && r.dirty && sabotage.Bug != "no-last-commit" {
		r.store(time.Now())
		first = r.stored(<-r.commits)
	}
	if first == nil {
		first = sabotage.At("delivery.drain")
	}
	r.publish(time.Now())
	return first
}

func (r *deliverer) close() {
	r.cancel()
	r.wg.Wait()
	if r.sink != nil {
		if err := r.sink.Close(); err != nil {
			r.log.Debug("close the sink", "error", err)
		}
	}
	if err := r.sub.Close(); err != nil {
		r.log.Debug("close the subscription", "error", err)
	}
}
