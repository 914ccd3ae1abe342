package pipeline

import (
	"crypto/rand"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/internal/sabotage"
)

// takeOver compares what the sink keeps with the cursor, and settles what was
// written already.
func (r *deliverer) takeOver(s onewrite.Placed, data []byte, now time.Time) error {
	rec, read, err := readRecord(data)
	if err != nil {
		return err
	}
	pair, rec, err := r.pairWith(rec)
	if err != nil {
		return err
	}
	if rec == nil { // there is none, or it is of no use
		clear(read)
	} else if old, _ := parsePairing(rec.Pair); sabotage.Bug != "no-rewind" && (old.gen < pair.gen || rec.Delivered < r.cursor.Delivered) {
		return r.rewind(rec, read)
	}
	// The cursor knows of it before anything is written: else a crash in between would
	// leave a record that nobody believes.
	if r.cursor.Placed != pair.String() {
		r.cursor.Placed = pair.String()
		err := sabotage.At("placed.pair")
		if err == nil {
			err = r.flush()
		}
		if err == nil {
			err = sabotage.At("placed.paired")
		}
		if err != nil {
			r.torn = err
			return err
		}
	}
	r.placed = placed{sink: s, pair: pair, written: map[place]uint64{}, read: read}
	if sabotage.Bug == "placed-unread" {
		rec, r.placed.read = nil, map[place]uint64{}
	}
	if rec != nil {
		err := sabotage.At("placed.settle")
		if err == nil {
			err = r.settleWritten(rec, now)
		}
		if err == nil {
			err = sabotage.At("placed.settled")
		}
		if err != nil {
			r.torn = err
			return err
		}
	}
	return r.giveUp()
}

// pairWith returns the pairing from now on, and rec if it belongs to the cursor.
func (r *deliverer) pairWith(rec *placeRecord) (pair pairing, use *placeRecord, err error) {
	name := r.d.Interest.Name
	pair, void := parsePairing(r.cursor.Placed)
	var theirs pairing
	if rec != nil {
		theirs, _ = parsePairing(rec.Pair)
	}
	fresh := pair.name == ""
	if fresh { // on this bus there never was one
		pair.name, pair.gen = theirs.name, theirs.gen
	}
	switch {
	case rec != nil && (theirs.name != pair.name || !void && theirs.gen > pair.gen):
		return pair, nil, fmt.Errorf("the destination keeps the place of another onewrite, or of another bus, under the name %s; give one of the two another name", name)
	case fresh && rec == nil:
		return pairing{name: rand.Text(), base: r.cursor.Delivered}, nil, nil
	case fresh || void: // what the record names is of before, and written again
		return pairing{name: pair.name, gen: max(pair.gen, theirs.gen) + 1, base: r.cursor.Delivered}, nil, nil
	case rec == nil && r.cursor.Delivered > pair.base:
		r.log.Error("the destination had a place and has none any more; was it emptied? What it had got is not sent again", "delivered", r.cursor.Delivered,
			"cure", "to fill it again give the destination another name and from: beginning; the bus has what bus.keep says")
	case rec != nil && theirs.gen < pair.gen && r.cursor.Delivered == pair.base: // nothing was written since
		return pair, nil, nil
	}
	return pair, rec, nil
}

// errRewound ends a session whose cursor was set back.
var errRewound = errors.New("the destination has forgotten events that it had confirmed, and gets them again")

// rewind sets the cursor back to where the sink is: it has lost what it had confirmed.
func (r *deliverer) rewind(rec *placeRecord, written map[place]uint64) error {
	r.log.Error("the destination has forgotten events that it had confirmed; was it restored from a copy, or did it lose its newest writes? They are sent again, as far as the bus has them",
		"forgotten", int64(r.cursor.Delivered)-int64(rec.Delivered))
	c := r.cursor
	c.Placed, c.Delivered, c.Filtered, c.Skipped = rec.Pair, rec.Delivered, rec.Filtered, rec.Skipped
	c.Logs, c.Ahead = make(map[string]onewrite.LogCursor, len(rec.Logs)), rec.Ahead
	// What was parked then, and was delivered or skipped since, comes again too.
	left := map[string][]uint64{}
	for ref, at := range rec.Lot {
		_, parked := r.lot.places[ref]
		if _, there := rec.Again[ref]; !parked && !there {
			left[at.Log] = append(left[at.Log], at.Offset)
		}
	}
	for name, l := range rec.Logs {
		c.Logs[name] = without(l.LogCursor, left[name])
	}
	again := uint64(0) // what comes again is counted then
	for p := range written {
		if !covers(c.Logs[p.log], p.offset) {
			again++
		}
	}
	for ref := range rec.Again {
		if _, parked := r.lot.places[ref]; parked {
			again++
		}
	}
	c.Delivered -= min(again, c.Delivered)
	c.Parked, c.LastParked = r.lot.owed(c.Settled)
	if r.storing != nil {
		if err := r.stored(<-r.commits); err != nil {
			r.torn = err
			return err
		}
	}
	err := sabotage.At("placed.rewind")
	if err == nil {
		err = r.commit(c)
	}
	if err == nil {
		err = sabotage.At("placed.rewound")
	}
	if err != nil {
		r.torn = fmt.Errorf("bus: store the cursor of %s: %w", r.d.Interest.Name, err)
		return r.torn
	}
	r.dirty, r.torn = false, errRewound
	return errRewound
}

// without is a place in which some offsets are not done.
func without(c onewrite.LogCursor, open []uint64) onewrite.LogCursor {
	if len(open) == 0 {
		return c
	}
	slices.Sort(open)
	done := append([]onewrite.Span{{From: 1, To: c.Floor}}, c.Done...)
	var rest []onewrite.Span
	for _, s := range done {
		for _, o := range open {
			if o < s.From || o > s.To {
				continue
			}
			if o > s.From {
				rest = append(rest, onewrite.Span{From: s.From, To: o - 1})
			}
			s.From = o + 1
		}
		if s.From <= s.To {
			rest = append(rest, s)
		}
	}
	out := onewrite.LogCursor{Done: rest}
	if len(rest) > 0 && rest[0].From == 1 {
		out.Floor, out.Done = rest[0].To, rest[1:]
	}
	return out
}

// settleWritten takes what is in the sink already out of the lanes, and forgets parked
// events that are.
func (r *deliverer) settleWritten(rec *placeRecord, now time.Time) error {
	var there []*entry
	for l := range r.lanes.all() {
		rest := l.queue[:0:0]
		for _, e := range l.queue {
			if r.isWritten(e, rec) {
				there = append(there, e)
			} else {
				rest = append(rest, e)
			}
		}
		if len(rest) < len(l.queue) {
			l.queue, l.retry = rest, time.Time{}
			r.lanes.settle(l)
		}
	}
	for _, e := range there {
		if err := r.delivered(e, now); err != nil {
			return err
		}
	}
	var free []*lane
	for _, ref := range slices.Sorted(maps.Keys(r.lot.places)) {
		at, parked := r.lot.places[ref]
		if !parked {
			continue
		}
		hash, again := rec.Again[ref]
		if !again {
			hash, again = r.placed.read[at]
		}
		if again && hash == hashOf(r.lot.at[at]) {
			l, err := r.forgetDelivered(ref)
			if err != nil {
				return err
			}
			free = append(free, l)
		}
	}
	for _, l := range free { // what waits behind them goes, when all of them are forgotten
		if l.parked && !l.redo {
			l.redo, l.after = true, 0
			if err := r.refill(l); err != nil {
				return err
			}
		}
	}
	return nil
}

// forgetDelivered forgets a parked event that is in the sink, and returns its lane.
func (r *deliverer) forgetDelivered(ref uint64) (*lane, error) {
	p, err := r.parked(ref)
	if err != nil {
		return nil, err
	}
	l := r.lanes.byKey[onewrite.Lane{Log: p.Message.Log, Key: p.Message.Key}]
	if l == nil || p.Message.Key == "" {
		l = &lane{index: -1}
	}
	r.cursor.Delivered++
	return l, r.forget(l, ref)
}

// isWritten reports whether the sink has an event.
func (r *deliverer) isWritten(e *entry, rec *placeRecord) bool {
	if hash, ok := rec.Again[e.ref]; ok && e.ref != 0 && hash == hashOf(e.msg.ID) {
		return true
	}
	return r.placed.has(&e.msg)
}

// giveUp parks what had failed too often when nobody knew what became of it, and is not
// in the sink.
func (r *deliverer) giveUp() error {
	for l := range r.lanes.all() {
		if len(l.queue) == 0 || l.queue[0].attempts < r.d.Attempts {
			continue
		}
		if err := r.poison(l.queue[0], errors.New(r.lastError)); err != nil {
			r.torn = err
			return err
		}
		r.lanes.settle(l)
	}
	return nil
}
