package relay

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/dashboard"
	"github.com/onewrite/onewrite/internal/places"
	"github.com/onewrite/onewrite/pipeline"
)

// orphan is a destination that has a place on the bus but is not in the configuration.
// Its events are kept until an operator forgets them.
type orphan struct {
	view    places.View
	looking sync.Mutex // held while the view is asked what it holds

	// Relay.mu guards what follows.
	floors map[string]uint64 // up to where it has confirmed each log, as far as it was asked
	held   *places.Held      // nil: not known
}

// addOrphan notes one; r.mu is held.
func (r *Relay) addOrphan(name string) *orphan {
	o := &orphan{view: r.bus.View(name, slices.Sorted(maps.Keys(r.cfg.Sources))), floors: map[string]uint64{}}
	r.orphans[name] = o
	return o
}

func (r *Relay) orphan(name string) *orphan {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.orphans[name]
}

// findOrphans notes the destinations that have a place on the bus but no configuration.
func (r *Relay) findOrphans(ctx context.Context) error {
	names, err := r.bus.Destinations(ctx)
	if err != nil {
		return fmt.Errorf("bus: list destinations: %w", err)
	}
	for _, name := range names {
		if _, ok := r.cfg.Destinations[name]; !ok {
			r.mu.Lock()
			r.addOrphan(name)
			r.mu.Unlock()
			r.log.Warn("a destination has a place on the bus but is not in the configuration; its events are kept", "destination", name, "cure", "put it back, or onewrite reload --forget "+name)
		}
	}
	r.lookAtOrphans(ctx)
	return nil
}

// lookAtOrphans learns what the orphans hold. What is known of one stays when the bus does
// not answer.
func (r *Relay) lookAtOrphans(ctx context.Context) {
	r.mu.Lock()
	all := maps.Clone(r.orphans)
	r.mu.Unlock()
	for name, o := range all {
		if held, err := r.look(ctx, o); err != nil && ctx.Err() == nil {
			r.log.Warn("bus: what a destination holds that is not in the configuration", "destination", name, "error", err)
		} else if err == nil {
			r.mu.Lock()
			o.held = &held
			r.mu.Unlock()
		}
	}
}

func (r *Relay) look(ctx context.Context, o *orphan) (places.Held, error) {
	o.looking.Lock()
	defer o.looking.Unlock()
	return o.view.Held(ctx)
}

// status is what the status shows of an orphan; Relay.mu is held.
func (o *orphan) status(name string) dashboard.Destination {
	d := dashboard.Destination{State: pipeline.Stopped, LastError: "not in the configuration; its events are kept: put it back, or onewrite reload --forget " + name}
	if o.held == nil {
		d.Unknown = true
		return d
	}
	c := o.held.Cursor
	at := make(map[string]uint64, len(c.Logs))
	for log, lc := range c.Logs {
		at[log] = lc.Floor
	}
	d.Position, d.Epoch, d.Pending, d.Parked = position(at), o.held.Epoch, o.held.Pending, o.held.Parked
	d.Delivered, d.Filtered, d.Skipped = c.Delivered, c.Filtered, c.Skipped
	return d
}

// forgetAll drops the place on the bus of destinations that are gone, but those that are
// left. dropped says what went with those of which it is known.
func (r *Relay) forgetAll(removed, forget, left []string) (gone []string, dropped map[string]dashboard.Dropped, err error) {
	r.mu.Lock()
	for _, name := range removed {
		if !slices.Contains(left, name) {
			gone = append(gone, name)
		}
	}
	for _, name := range forget {
		if r.orphans[name] != nil && !slices.Contains(gone, name) {
			gone = append(gone, name)
		}
	}
	sources := slices.Sorted(maps.Keys(r.cfg.Sources))
	r.mu.Unlock()
	for _, name := range gone {
		ctx, cancel := context.WithTimeout(r.ctx, 10*time.Second) // not the client's, who may go
		held, unknown := r.bus.View(name, sources).Held(ctx)
		err := r.bus.Forget(ctx, name)
		cancel()
		if err != nil {
			return nil, nil, fmt.Errorf("forget destination %s: %w", name, err)
		}
		if unknown != nil { // a place that cannot be read may be what is to go
			r.log.Warn("a destination is forgotten, and it is not known what went with it", "destination", name, "error", unknown)
		} else {
			if dropped == nil {
				dropped = map[string]dashboard.Dropped{}
			}
			dropped[name] = dashboard.Dropped{Pending: held.Pending, Parked: held.Parked}
			r.log.Warn("a destination is forgotten", "destination", name, "pending", held.Pending, "parked", held.Parked, "delivered", held.Cursor.Delivered)
		}
		r.mu.Lock()
		delete(r.orphans, name)
		r.mu.Unlock()
	}
	return gone, dropped, nil
}

// Parked lists parked events of a destination, also of one that is not in the
// configuration any more.
func (r *Relay) Parked(ctx context.Context, destination string, after uint64, limit int) ([]onewrite.Parked, error) {
	if o := r.orphan(destination); o != nil {
		list, err := o.view.Parked(ctx, after, limit)
		r.mu.Lock()
		defer r.mu.Unlock()
		if o.held != nil {
			pipeline.Answer(list, o.held.Cursor.Refused)
		}
		return list, err
	}
	d, err := r.destination(destination)
	if err != nil {
		return nil, err
	}
	return d.Parked(ctx, after, limit)
}
