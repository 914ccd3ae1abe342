package relay

import (
	"context"
	"fmt"
	"math"
	"time"

	"github.com/onewrite/onewrite/internal/retention"
	"github.com/onewrite/onewrite/internal/sabotage"
)

// keepHouse confirms to the sources what every destination has, and lets the
// bus forget what is confirmed and old enough, until ctx ends.
func (r *Relay) keepHouse(ctx context.Context) {
	tick := time.NewTicker(500 * time.Millisecond)
	defer tick.Stop()
	var retained time.Time
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		r.confirm()
		if time.Since(retained) >= 5*time.Second {
			retained = time.Now()
			r.retain(ctx)
			r.lookAtOrphans(ctx)
		}
	}
}

// confirm passes on to the sources of an embedded bus what every destination
// has confirmed, parked or filtered out. A destination that is not known yet, or
// is not in the configuration any more, holds it back.
func (r *Relay) confirm() {
	for name, s := range r.running() {
		if floor, ok := r.confirmed(name, s.Status().Offset); ok {
			s.Confirm(floor)
		}
	}
}

func (r *Relay) confirmed(log string, last uint64) (floor uint64, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	floor = last
	for _, d := range r.destinations {
		f, known := d.Confirmed(log)
		if !known {
			return 0, false
		}
		floor = min(floor, f)
		if sabotage.Bug == "confirm-fastest" {
			floor = last
		}
	}
	for _, o := range r.orphans {
		floor = min(floor, o.floors[log])
	}
	return floor, true
}

func (r *Relay) running() map[string]*source {
	r.mu.Lock()
	defer r.mu.Unlock()
	m := make(map[string]*source, len(r.sources))
	for k, v := range r.sources {
		m[k] = v
	}
	return m
}

// retain lets the bus forget, and looks at the cap: when the events that wait
// for a destination outgrow keep, the outbox is freed all the same, aloud, and
// from then on the bus folder holds the only copy.
func (r *Relay) retain(ctx context.Context) {
	k := r.config().Bus.Keep
	keep := retention.Keep{Size: int64(k.Size), Age: k.Age}
	// What is kept for replay must leave room for what is not delivered yet.
	replay := keep
	replay.Size = min(keep.Size, int64(r.config().Bus.MaxSize)/2/max(1, int64(len(r.running()))))
	var silent error
	for name, s := range r.running() {
		floor, err := r.stored(ctx, name)
		var u retention.Usage
		if err == nil {
			u, err = r.bus.Retain(ctx, name, floor, replay)
		}
		if err != nil {
			if ctx.Err() == nil {
				r.log.Warn("bus: retention", "source", name, "error", err)
				silent = err
			}
			continue
		}
		r.mu.Lock()
		r.kept[name] = u
		r.mu.Unlock()
		if !r.bus.Durable() {
			if safe, ok := r.confirmed(name, u.Last); ok {
				r.capped(name, s, u, safe, keep)
			}
		}
	}
	r.measure(silent, time.Now())
}

// measure sums up what the logs hold. Of one that the bus does not tell about, what it told
// last counts, and the status says so.
func (r *Relay) measure(silent error, now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	use := &r.usage
	use.Bytes, use.Messages, use.LastError, use.Unknown = 0, 0, "", false
	for name := range r.sources {
		u, told := r.kept[name]
		use.Bytes += u.Bytes
		use.Messages += u.Messages
		use.Unknown = use.Unknown || !told
	}
	switch {
	case silent == nil:
		r.measured = now
	case use.Unknown:
		use.LastError = fmt.Sprintf("what it holds is not known: %v", silent)
	default:
		use.LastError = fmt.Sprintf("what it holds was told at %s, and not since: %v", r.measured.Format(time.DateTime), silent)
	}
}

// stored returns up to where every destination with a place on the bus is, as
// the bus holds it: of several copies each may deliver to some of them.
func (r *Relay) stored(ctx context.Context, log string) (uint64, error) {
	floors, err := r.bus.Floors(ctx, log)
	if err != nil {
		return 0, err
	}
	if err := r.orphaned(ctx, log, floors); err != nil {
		return 0, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	floor := uint64(math.MaxUint64 - 1) // no destination: nothing is waited for
	for name := range r.destinations {
		floor = min(floor, floors[name]) // one that has no place yet: 0
	}
	for _, f := range floors {
		floor = min(floor, f)
	}
	return floor, nil
}

// orphaned learns, once, up to where the orphans have confirmed a log; it does
// not change any more. A parked event is not confirmed.
func (r *Relay) orphaned(ctx context.Context, log string, floors map[string]uint64) error {
	r.mu.Lock()
	var unknown []string
	for name, o := range r.orphans {
		if _, ok := o.floors[log]; !ok {
			unknown = append(unknown, name)
		}
	}
	r.mu.Unlock()
	for _, name := range unknown {
		safe, err := r.bus.Unparked(ctx, name, log, floors[name])
		if err != nil {
			return err
		}
		r.mu.Lock()
		if o, ok := r.orphans[name]; ok {
			o.floors[log] = safe
		}
		r.mu.Unlock()
	}
	return nil
}

// capped frees the outbox of a source whose unconfirmed events exceed keep.
func (r *Relay) capped(name string, s *source, u retention.Usage, floor uint64, keep retention.Keep) {
	waiting := uint64(0)
	if u.Last > floor {
		waiting = u.Last - floor
	}
	var bytes int64
	if u.Messages > 0 {
		bytes = u.Bytes / int64(u.Messages) * int64(min(waiting, u.Messages))
	}
	old := waiting > 0 && u.Outlived(floor, keep.Age)
	over := u.Messages > 0 && (waiting > 0 && bytes > keep.Size || old) // an empty log holds no copy
	text := ""
	if over {
		text = fmt.Sprintf("source %s: %d events wait for the slowest destination, more than bus.keep allows; the outbox is freed and the bus folder holds their only copy: back it up, or fix the destination (onewrite status)", name, waiting)
	}
	if err := r.bus.Sole(name, u.Last, floor, over); err != nil {
		r.log.Warn("the outbox is not freed", "source", name, "error", err)
		return
	}
	if over {
		s.Confirm(u.Last)
	}
	r.mu.Lock()
	r.warn("cap."+name, text)
	r.mu.Unlock()
}
