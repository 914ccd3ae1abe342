package pipeline

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/internal/sabotage"
)

// lot is what a deliverer knows of its parking lot.
type lot struct {
	top    uint64                     // the greatest ref
	places map[uint64]place           // the parked entries, and where each stood on the bus
	at     map[place]string           // the ids of the events at those places
	keys   map[uint64]string          // the keys of those that have one
	ahead  map[place]struct{}         // those of them that the loop has not accepted since: the cursor was older
	loaded map[uint64]struct{}        // refs of those loaded to be delivered again
	edited map[uint64][]byte          // the payloads that some of them get for it
	sweep  []uint64                   // refs that are still to be loaded, as there is room: all are to be delivered again
	begun  map[onewrite.Lane]struct{} // lanes that were loaded for it
}

// place is an offset in a log.
type place struct {
	log    string
	offset uint64
}

// below returns the greatest offset up to floor that has no parked entry at or
// before it: the row of a parked event in the outbox is its second copy, and
// stays.
func (l *lot) below(log string, floor uint64) uint64 {
	for _, p := range l.places {
		if p.log == log && p.offset <= floor {
			floor = p.offset - 1
		}
	}
	return floor
}

// add notes a parked entry, drop forgets it.
func (l *lot) add(ref uint64, m *onewrite.Message) {
	p := place{m.Log, m.Offset}
	l.places[ref] = p
	l.at[p] = m.ID
	if m.Key != "" {
		l.keys[ref] = m.Key
	}
	l.top = max(l.top, ref)
}

func (l *lot) drop(ref uint64) {
	delete(l.at, l.places[ref])
	delete(l.places, ref)
	delete(l.keys, ref)
	if ref != l.top {
		return
	}
	l.top = 0
	for r := range l.places {
		l.top = max(l.top, r)
	}
}

// owed returns how many entries must be there when the cursor is read again, and
// the newest of them: those that are settled may be gone.
func (l *lot) owed(settled []uint64) (n, last uint64) {
	n, last = uint64(len(l.places)), l.top
	for _, ref := range settled {
		if _, ok := l.places[ref]; ok {
			n--
		}
	}
	if !slices.Contains(settled, last) {
		return n, last
	}
	last = 0
	for ref := range l.places {
		if !slices.Contains(settled, ref) {
			last = max(last, ref)
		}
	}
	return n, last
}

// page is how many parked events are read at once: they are in memory then, and each may
// be as large as events are.
const page = 100

// maxAhead bounds the events that a cursor names ahead of its place: those of the last
// moment of an owner that died are fewer. In a replay there may be more, and the oldest
// come again with it.
const maxAhead = 4096

// loadLot counts the parked entries and holds the lanes that they hold. Entries
// that the last owner had counted, and died before it forgot them, are forgotten
// now.
func (r *deliverer) loadLot(ctx context.Context) error {
	r.lot = lot{
		edited: map[uint64][]byte{}, loaded: map[uint64]struct{}{}, places: map[uint64]place{}, at: map[place]string{},
		keys: map[uint64]string{}, ahead: map[place]struct{}{},
	}
	for _, ref := range r.cursor.Settled {
		if err := r.sub.Unpark(ctx, ref); err != nil {
			return fmt.Errorf("bus: forget parked event %d of %s: %w", ref, r.d.Interest.Name, err)
		}
		r.dirty = true
	}
	r.cursor.Settled = nil
	for after := uint64(0); ; {
		list, err := r.sub.Parked(ctx, after, page, nil)
		if err != nil {
			return fmt.Errorf("bus: parked events of %s: %w", r.d.Interest.Name, err)
		}
		for i := range list {
			p := &list[i]
			after = p.Ref
			at := place{p.Message.Log, p.Message.Offset}
			r.lot.add(p.Ref, &p.Message)
			if !covers(r.cursor.Logs[at.log], at.offset) {
				r.lot.ahead[at] = struct{}{}
			}
			id := onewrite.Lane{Log: p.Message.Log, Key: p.Message.Key}
			if p.Holds {
				r.lanes.find(id).parked = true
			}
		}
		if len(list) < page {
			break
		}
	}
	r.pruneRefusals()
	known := r.cursor.Ahead
	r.cursor.Ahead = nil
	for _, a := range known {
		if !covers(r.cursor.Logs[a.Log], a.Offset) {
			r.cursor.Ahead = append(r.cursor.Ahead, a)
			r.lot.ahead[place{a.Log, a.Offset}] = struct{}{}
		}
	}
	return nil
}

// settledAhead notes that an event which the loop has not come to is delivered or
// skipped: it is not in the parking lot any more when its turn comes.
func (r *deliverer) settledAhead(at place, hash uint64) {
	if _, ahead := r.lot.ahead[at]; !ahead {
		return
	}
	r.passed(at)
	delete(r.placed.read, at) // it is counted
	r.cursor.Ahead = append(r.cursor.Ahead, onewrite.Ahead{Log: at.log, Offset: at.offset, ID: hash})
	if n := len(r.cursor.Ahead); n > maxAhead {
		r.cursor.Ahead = r.cursor.Ahead[n-maxAhead:]
	}
}

// passed forgets what was settled ahead at a place, and returns the hash of its id.
func (r *deliverer) passed(at place) (hash uint64, settled bool) {
	r.cursor.Ahead = slices.DeleteFunc(r.cursor.Ahead, func(a onewrite.Ahead) bool {
		here := a.Log == at.log && a.Offset == at.offset
		if here {
			hash, settled = a.ID, true
		}
		return here
	})
	return hash, settled
}

// poison acts on an event that the destination refuses while it takes others.
// e is the first of its lane.
func (r *deliverer) poison(e *entry, cause error) error {
	if e.ref == 0 && r.d.OnReject == Stop {
		r.halt(fmt.Errorf("%w at event %s (on_reject: stop): %w; fix the destination or the event's cause and run onewrite reload, or set on_reject: park-key and reload", errStopped, e.msg.ID, cause))
		return nil
	}
	l := e.lane
	l.retry = time.Time{}
	if e.ref != 0 {
		r.refusedAgain(e, cause)
		return nil
	}
	l.queue = l.queue[1:]
	holds := r.d.OnReject == ParkKey && l.keyed()
	r.lanes.drop(e)
	if err := r.park(e, holds, cause.Error(), false); err != nil {
		return err
	}
	r.log.Warn("event parked", "id", e.msg.ID, "attempts", e.attempts, "writes", e.tries, "error", cause)
	if !holds {
		return nil
	}
	l.parked = true
	for _, f := range l.queue {
		r.lanes.drop(f)
		if err := r.park(f, sabotage.Bug != "followers-lost", behind+e.msg.ID, true); err != nil {
			return err
		}
	}
	l.queue = nil
	return nil
}

// refusedAgain ends the redelivery of a parked event.
func (r *deliverer) refusedAgain(e *entry, cause error) {
	r.log.Warn("parked event refused again, it stays parked", "id", e.msg.ID, "ref", e.ref, "error", cause)
	r.noteRefusal(e, cause)
	r.giveBack(e.lane)
}

// park sets an event aside, durably, before the cursor passes it.
func (r *deliverer) park(e *entry, holds bool, reason string, behind bool) error {
	err := sabotage.At("delivery.park")
	var ref uint64
	if err == nil {
		ref, err = r.sub.Park(r.finish, onewrite.Parked{
			Message: e.msg, Reason: reason, Attempts: e.attempts, Holds: holds, At: time.Now(),
		})
	}
	if err == nil {
		err = sabotage.At("delivery.parked")
	}
	if err != nil {
		return fmt.Errorf("bus: park event %s of %s: %w", e.msg.ID, r.d.Interest.Name, err)
	}
	r.health.settled(e)
	r.track(e.msg.Log).finish(e.msg.Offset)
	r.dirty = true
	r.lot.add(ref, &e.msg)
	if r.d.Observe.Parked != nil {
		r.d.Observe.Parked(r.d.Interest.Name, e.msg.ID, reason, behind)
	}
	return nil
}

// redrive starts the delivery of a parked entry and of what waits behind it, or
// of all entries.
func (r *deliverer) redrive(ref uint64) error {
	if ref == 0 {
		r.lot.sweep, r.lot.begun = slices.Sorted(maps.Keys(r.lot.places)), map[onewrite.Lane]struct{}{}
		return nil
	}
	p, err := r.parked(ref)
	if err != nil {
		return err
	}
	return r.redo(p)
}

// parked finds one entry.
func (r *deliverer) parked(ref uint64) (*onewrite.Parked, error) {
	list, err := r.sub.Parked(r.finish, ref-1, 1, nil)
	if err != nil {
		return nil, fmt.Errorf("bus: parked events of %s: %w", r.d.Interest.Name, err)
	}
	if ref == 0 || len(list) == 0 || list[0].Ref != ref {
		return nil, fmt.Errorf("destination %s has no parked event %d; list them with onewrite parked list %s", r.d.Interest.Name, ref, r.d.Interest.Name)
	}
	return &list[0], nil
}

// sweep loads what comes next while everything parked is being redriven, about a page, if
// there is room for it. A lane is loaded by itself, as its turn comes; it is read once, and
// one that is refused again stays parked.
func (r *deliverer) sweep() error {
	for most := r.lanes.count + page; len(r.lot.sweep) > 0 && r.lanes.count < most && !r.full(); {
		ref := r.lot.sweep[0]
		id, l := r.heldBy(ref)
		_, parked := r.lot.places[ref]
		_, begun := r.lot.begun[id]
		switch {
		case parked && l == nil:
			if err := r.sweepAlone(); err != nil {
				return err
			}
			continue
		case parked && !begun:
			r.lot.begun[id] = struct{}{}
			if err := r.redoLane(l); err != nil {
				return err
			}
		}
		r.lot.sweep = r.lot.sweep[1:]
	}
	return nil
}

// heldBy returns the lane that a parked entry holds up, or waits in; nil: none, it was
// parked alone.
func (r *deliverer) heldBy(ref uint64) (onewrite.Lane, *lane) {
	id := onewrite.Lane{Log: r.lot.places[ref].log, Key: r.lot.keys[ref]}
	if l := r.lanes.byKey[id]; id.Key != "" && l != nil && l.parked {
		return id, l
	}
	return id, nil
}

// sweepAlone loads the next entries that were parked alone.
func (r *deliverer) sweepAlone() error {
	n := 0
	for ; n < min(page, len(r.lot.sweep)); n++ {
		_, parked := r.lot.places[r.lot.sweep[n]]
		if _, l := r.heldBy(r.lot.sweep[n]); !parked || l != nil {
			break
		}
	}
	list, err := r.sub.Parked(r.finish, r.lot.sweep[0]-1, n, nil)
	if err != nil {
		return fmt.Errorf("bus: parked events of %s: %w", r.d.Interest.Name, err)
	}
	r.lot.sweep = r.lot.sweep[n:]
	for i := range list {
		if err := r.redo(&list[i]); err != nil {
			return err
		}
	}
	return nil
}

// redo puts one entry, or its whole lane in order, back to work.
func (r *deliverer) redo(p *onewrite.Parked) error {
	id := onewrite.Lane{Log: p.Message.Log, Key: p.Message.Key}
	if l := r.lanes.byKey[id]; id.Key != "" && l != nil && l.parked {
		return r.redoLane(l)
	}
	if id.Key != "" { // parked alone by on_reject: skip; its key flows
		id.Key = ""
	}
	l := &lane{id: id, index: -1}
	r.load(l, p)
	return nil
}

// redoLane puts what is parked of a lane back to work, if it is not under way.
func (r *deliverer) redoLane(l *lane) error {
	if l.redo {
		return nil
	}
	l.redo, l.after = true, 0
	return r.refill(l)
}

func (r *deliverer) load(l *lane, p *onewrite.Parked) {
	if _, twice := r.lot.loaded[p.Ref]; twice {
		return
	}
	r.lot.loaded[p.Ref] = struct{}{}
	e := &entry{msg: p.Message, ref: p.Ref}
	if data, ok := r.lot.edited[p.Ref]; ok {
		delete(r.lot.edited, p.Ref)
		e.msg.Data = data
	}
	if r.d.Shape != nil {
		e.shaped = r.d.shape(&e.msg.Event)
	}
	r.lanes.add(l, e)
}

// refill loads the next parked entries of a lane; when there are none left, the
// lane flows again.
func (r *deliverer) refill(l *lane) error {
	list, err := r.sub.Parked(r.finish, l.after, page, &l.id)
	if err != nil {
		return fmt.Errorf("bus: parked events of %s: %w", r.d.Interest.Name, err)
	}
	if len(list) == 0 {
		l.redo, l.parked, l.after = false, false, 0
		r.lanes.settle(l)
		return nil
	}
	for i := range list {
		l.after = list[i].Ref
		r.load(l, &list[i])
	}
	return nil
}

// redelivered forgets a parked entry whose delivery is done.
func (r *deliverer) redelivered(e *entry) error {
	delete(r.lot.loaded, e.ref)
	return r.forget(e.lane, e.ref)
}

// forget drops a parked entry that is delivered or skipped: counted as such,
// durably, before it is gone from the lot, and by its ref in one of the two only.
func (r *deliverer) forget(l *lane, ref uint64) error {
	r.cursor.Settled = append(r.cursor.Settled, ref)
	if at, parked := r.lot.places[ref]; parked {
		r.settledAhead(at, hashOf(r.lot.at[at]))
	}
	err := r.flush()
	if err == nil {
		err = sabotage.At("delivery.forget")
	}
	if err == nil {
		if err = r.sub.Unpark(r.finish, ref); err != nil {
			err = fmt.Errorf("bus: forget parked event %d of %s: %w", ref, r.d.Interest.Name, err)
		}
	}
	if err == nil {
		err = sabotage.At("delivery.forgotten")
	}
	if err != nil {
		r.torn = err // counted, perhaps, and not forgotten: the next session knows
		return err
	}
	r.lot.drop(ref)
	r.pruneRefusals()
	r.cursor.Settled = slices.DeleteFunc(r.cursor.Settled, func(s uint64) bool { return s == ref })
	r.dirty = true
	if l.redo && len(l.queue) == 0 {
		return r.refill(l)
	}
	return nil
}

// giveBack ends the redelivery of a lane whose first event is refused again;
// the entries are still in the parking lot.
func (r *deliverer) giveBack(l *lane) {
	for _, e := range l.queue {
		r.health.settled(e)
		r.lanes.drop(e)
		delete(r.lot.loaded, e.ref)
	}
	l.queue, l.redo, l.after = nil, false, 0
	clear(r.lot.edited)
}

// discard forgets a parked entry undelivered. If it held its key, what waits
// behind it is delivered.
func (r *deliverer) discard(ref uint64) error {
	p, err := r.parked(ref)
	if err != nil {
		return err
	}
	l := r.lanes.byKey[onewrite.Lane{Log: p.Message.Log, Key: p.Message.Key}]
	if l == nil {
		l = &lane{index: -1}
	}
	if _, underWay := r.lot.loaded[ref]; underWay {
		return fmt.Errorf("parked event %d is being delivered now; try again when it is done", ref)
	}
	first, err := r.sub.Parked(r.finish, 0, 1, &l.id)
	if err != nil {
		return fmt.Errorf("bus: parked events of %s: %w", r.d.Interest.Name, err)
	}
	r.cursor.Skipped++
	r.dirty = true
	if err := r.forget(l, ref); err != nil {
		return err
	}
	if p.Holds && l.parked && !l.redo && len(first) > 0 && first[0].Ref == ref {
		l.redo, l.after = true, 0
		return r.refill(l)
	}
	return nil
}
