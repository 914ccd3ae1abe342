package pipeline

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/internal/sabotage"
)

// gather is how long, where no linger is set, a write that is not whole waits for another
// that is under way. What comes until then goes with it: at a steady load each event alone
// would cost the destination, and us, what a few hundred together do.
const gather = 5 * time.Millisecond

// dispatch starts the writes that may start now and returns when to try again.
func (r *deliverer) dispatch(now time.Time) (next time.Time, err error) {
	if r.opening {
		return time.Time{}, nil
	}
	if now.Before(r.health.hold) {
		return r.health.hold, nil
	}
	if r.placed.full() {
		return time.Time{}, nil // until the cursor is stored
	}
	if r.health.outage() || r.sink == nil {
		return r.probe(now)
	}
	next = r.lanes.due(now)
	most := r.d.Concurrency
	if r.placed.sink != nil {
		most = 1
	}
	for r.halted == nil && r.writing < most && len(r.lanes.ready) > 0 {
		if due := r.patience(); now.Before(due) {
			return earlier(next, due), nil
		}
		if err := r.write(r.lanes.take(r.d.BatchCount, r.d.BatchBytes)); err != nil {
			return next, err
		}
	}
	r.linger = time.Time{}
	return next, nil
}

// patience is until when the next write waits for more events: not if what is there is a
// whole one, or nothing more can come.
func (r *deliverer) patience() time.Time {
	count, bytes := r.lanes.waiting()
	switch {
	case count >= r.d.BatchCount || bytes >= r.d.BatchBytes || r.full():
		return time.Time{}
	case r.d.Linger > 0:
		return r.linger
	case r.writing > 0:
		return r.began.Add(gather)
	}
	return time.Time{}
}

// earlier returns the earlier of two times; zero is never.
func earlier(a, b time.Time) time.Time {
	if a.IsZero() || b.Before(a) {
		return b
	}
	return a
}

// probe opens the sink if need be, and in an outage sends one event at a time,
// of another key each time, so that a poison event cannot hide that the
// destination is back.
func (r *deliverer) probe(now time.Time) (next time.Time, err error) {
	if r.writing > 0 {
		return time.Time{}, nil
	}
	if now.Before(r.health.probe) {
		return r.health.probe, nil
	}
	if r.sink == nil {
		r.opening = true
		go func() { r.results <- r.open() }()
		return time.Time{}, nil
	}
	// Failed events and fresh ones take turns: those that failed may all be
	// poison, and would never show that the destination is back.
	r.health.fresh = !r.health.fresh
	l := r.lanes.earliest()
	if l != nil && now.Before(l.queue[0].notBefore) {
		next, l = l.queue[0].notBefore, nil
	}
	if l != nil && !(r.health.fresh && len(r.lanes.ready) > 0 && sabotage.Bug != "probe-failed-only") {
		l.retry = time.Time{}
		r.lanes.settle(l)
		l.queue[0].solo = true
		batch := r.lanes.takeFrom(l)
		return time.Time{}, r.write(batch)
	}
	if len(r.lanes.ready) > 0 {
		return time.Time{}, r.write(r.lanes.take(1, r.d.BatchBytes))
	}
	return next, nil
}

// write hands a batch to the sink in a goroutine of its own. The error is one of the bus.
func (r *deliverer) write(batch []*entry) error {
	batch, err := r.shapely(batch)
	if len(batch) == 0 || err != nil {
		return err
	}
	r.writing++
	r.began = time.Now()
	if r.placed.sink != nil {
		for _, e := range batch {
			if e.tries == 0 {
				e.sentGen = r.health.gen
			}
		}
		r.writePlaced(batch)
		return nil
	}
	sink := r.sink
	events := make([]onewrite.Event, len(batch))
	for i, e := range batch {
		events[i] = *e.event()
		if e.tries == 0 {
			e.sentGen = r.health.gen
		} else if sabotage.Bug == "new-id" {
			events[i].ID += "-again"
		}
		if sabotage.Bug == "cursor-early" {
			r.track(e.msg.Log).finish(e.msg.Offset)
			r.dirty = true
		}
	}
	go func() {
		n, err := sabotaged(func() (int, error) { return sink.Write(r.finish, events) })
		if n < len(events) && err == nil {
			err = fmt.Errorf("short write: %d of %d events", n, len(events))
		}
		r.results <- result{batch: batch, n: min(n, len(batch)), err: err}
	}()
	return nil
}

// sabotaged is a write between two fail points.
func sabotaged(write func() (int, error)) (int, error) {
	if err := sabotage.At("delivery.write"); err != nil {
		return 0, err
	}
	n, err := write()
	if failed := sabotage.At("delivery.written"); failed != nil {
		return 0, failed
	}
	return n, err
}

// answer takes the result of a write. An error ends the session.
func (r *deliverer) answer(res result) error {
	now := time.Now()
	if res.batch == nil {
		return r.opened(res, now)
	}
	r.writing--
	if sabotage.Bug == "short-write" {
		res.n = len(res.batch)
	}
	if r.placed.sink != nil && res.n > 0 {
		r.placed.note(res.batch)
	}
	wasDown := r.health.down() // what is delivered proves something of the events that failed
	for _, e := range res.batch[:res.n] {
		if err := r.delivered(e, now); err != nil {
			return err
		}
	}
	if res.n > 0 {
		r.health.success(now)
		if wasDown {
			r.recovered()
		}
	}
	var err error
	if res.n < len(res.batch) {
		rest := res.batch[res.n:]
		r.lanes.back(rest)
		if r.placed.sink != nil {
			err = r.failedPlaced(res, now)
		} else {
			err = r.failed(rest, res.err, now)
		}
	}
	r.lanes.release(res.batch)
	return err
}

// halt ends all writing; the events stay on the bus and are counted.
func (r *deliverer) halt(err error) {
	if r.halted == nil {
		r.log.Error("delivery stopped; its events stay on the bus", "error", err)
	}
	r.halted = err
}

// recovered lets every waiting lane try at once, but for those that were asked to wait.
func (r *deliverer) recovered() {
	r.log.Info("destination takes events again")
	for l := range r.lanes.later {
		if e := l.queue[0]; time.Now().Before(e.notBefore) {
			l.retry = e.notBefore
		} else {
			l.retry, e.waits = time.Now(), 0
		}
	}
}

// delivered notes that an event is durable at the destination.
func (r *deliverer) delivered(e *entry, now time.Time) error {
	r.health.settled(e)
	r.lanes.drop(e)
	r.cursor.Delivered++
	r.dirty = true
	if r.d.Observe.Delivered != nil {
		r.d.Observe.Delivered(r.d.Interest.Name, now.Sub(e.msg.Time))
	}
	if e.ref == 0 {
		r.track(e.msg.Log).finish(e.msg.Offset)
		return nil
	}
	return r.redelivered(e)
}

// failed decides what a failed write means for its first event and for the
// destination. rest is at the front of its lanes again.
func (r *deliverer) failed(rest []*entry, err error, now time.Time) error {
	if r.finish.Err() != nil {
		return nil // given up at the end of the drain time: says nothing
	}
	r.lastError = err.Error()
	if r.d.Observe.Failed != nil {
		r.d.Observe.Failed(r.d.Interest.Name, err)
	}
	switch {
	case errors.Is(err, onewrite.ErrFenced):
		return err
	case errors.Is(err, onewrite.ErrGone):
		r.halt(fmt.Errorf("%w: %w; fix the destination and run onewrite reload, or remove it and run onewrite reload --forget %s", errStopped, err, r.d.Interest.Name))
		return nil
	}
	// A whole batch without an answer goes together once more: each alone, a transaction
	// each, takes minutes where the batch takes a moment.
	if len(rest) > 1 && !(r.undecided && rest[0].tries == 0) {
		for _, e := range rest {
			e.solo = true
		}
	}
	e := rest[0]
	if !r.health.down() {
		r.log.Warn("write failed, will try again", "id", e.msg.ID, "error", err)
	}
	if e.ref != 0 && (errors.Is(err, onewrite.ErrRejected) || answered(err)) {
		r.refusedAgain(e, err)
		return nil
	}
	r.health.failed(e, err, now)
	pause := r.d.Retry.Pause(e.waits)
	asked := askedPause(err)
	alone := asked > 0 && answered(err) // the event is to wait, not the destination
	switch pause = max(pause, asked); {
	case alone:
		e.notBefore = now.Add(asked)
	case asked > 0:
		r.health.hold = now.Add(asked)
	}
	e.lane.retry = now.Add(pause)
	if r.health.outage() {
		r.health.probe = now.Add(r.d.Retry.Pause(max(1, r.health.failures-r.health.unproven+1)))
	}
	if e.attempts >= r.d.Attempts && !r.undecided {
		return r.poison(e, err)
	}
	if r.health.down() && r.writing == 0 && !errors.Is(err, onewrite.ErrRejected) && !alone {
		r.shut()
	}
	return nil
}

// shut closes a sink that may be broken; the next probe opens it again.
func (r *deliverer) shut() {
	if r.sink == nil {
		return
	}
	if err := r.sink.Close(); err != nil {
		r.log.Debug("close the sink", "error", err)
	}
	r.sink, r.placed.sink = nil, nil
	if r.health.probe.IsZero() {
		if l := r.lanes.earliest(); l != nil {
			r.health.probe = l.retry
		}
	}
}

// opened takes the answer to the opening of the sink.
func (r *deliverer) opened(res result, now time.Time) error {
	r.opening = false
	if p, keeps := res.sink.(onewrite.Placed); keeps && res.err == nil {
		if res.err = r.takeOver(p, res.record, now); res.err != nil {
			if err := p.Close(); err != nil {
				r.log.Debug("close the sink", "error", err)
			}
		}
		if r.torn != nil {
			return r.torn
		}
	}
	if res.err == nil {
		r.sink = res.sink
		if r.placed.sink == nil && r.cursor.Placed != "" && !strings.HasPrefix(r.cursor.Placed, onewrite.PlacedVoid) {
			r.cursor.Placed, r.dirty = onewrite.PlacedVoid+r.cursor.Placed, true // a record that is still there will be old
		}
		return nil
	}
	if errors.Is(res.err, onewrite.ErrFenced) {
		return res.err
	}
	if r.finish.Err() != nil {
		return nil
	}
	if r.lastError != res.err.Error() {
		r.log.Warn("cannot open the destination, will try again", "error", res.err)
	}
	r.lastError = res.err.Error()
	r.health.failures++
	r.health.probe = now.Add(r.d.Retry.Pause(r.health.failures))
	return nil
}
