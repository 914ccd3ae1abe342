package postgres

import (
	"context"
	"slices"
	"time"

	"github.com/onewrite/onewrite"
)

// pushed is the outbox read from the log, which tells a row at its commit, with the ring
// as the truth. There is one place for both: the snapshot of the ring. A transaction
// that the log told is added to it, and what it saw is left out of the log. So a sweep,
// which is an ordinary look at the ring, finds what the log has not told, and finds
// nothing where it has told all; only what the place saw is ever truncated; and a source
// that reads the ring alone goes on from the same place.
//
// The one goroutine that calls Read does both in turn: nothing is told twice because
// two looked at once.
type pushed struct {
	timer *time.Timer
	due   bool // to sweep
	looks int  // of the ring when the log was opened: what was committed before the slot began is in the ring alone, and comes first
	swept time.Time
	late  <-chan time.Time // the log has not been opened for too long
	rest  []item           // of the log, that come after a look which is owed
	since uint64           // transactions before this one may have begun before the log told their rows; 0: that is not known yet
	owed  uint64           // such a one that has ended, and that the next look has to see; 0: none
}

const (
	// sweepEvery is how often the ring is looked at.
	sweepEvery = time.Second
	// alone is how often while the log is not there yet.
	alone = 20 * time.Millisecond
	// maxBetween bounds the transactions that a place names: those that did not write
	// the outbox, or not yet, between some that did. A sweep forgets those that ended.
	maxBetween = 128
	// overdue is the age of an event from which on the log should have told it.
	overdue = 3 * time.Second
	// tooLong is how long a transaction that the log told in part waits for the log. The
	// ring would tell it from its beginning.
	tooLong = 10 * time.Second
)

func newPushed() *pushed {
	return &pushed{timer: time.NewTimer(0), due: true, late: time.After(tooLong)}
}

// ringFirst reports whether the ring is to be looked at, before anything more of the log.
//
// A look that has begun goes on to its end: the log would tell what is left of it once
// more, and before what came earlier. Inside a transaction of the log none begins: it
// would tell the first part again. So after a restart there the log is waited for; but
// not one that cannot be read.
func (b *Both) ringFirst() bool {
	if !b.ring.swept() {
		return true
	}
	inside := b.at != nil && b.at.tx != 0
	return b.pushed.due && (!inside || b.anew && b.log.Load() == nil)
}

func (b *Both) readPushed(ctx context.Context) (onewrite.Batch, error) {
	p := b.pushed
	for {
		if g := b.gap; g != nil {
			b.gap = nil
			return onewrite.Batch{Pos: b.place(b.at, b.pos), Gap: g}, nil
		}
		for b.ringFirst() {
			out, found, err := b.ring.sweep(ctx)
			if err != nil {
				return onewrite.Batch{}, err
			}
			b.pos = b.ring.at.pos()
			if found {
				b.missed(out)
			}
			if b.ring.swept() && b.ring.looks > p.looks { // under load the next look would find something too
				b.looked()
			}
			if found {
				return b.fromRing(ringResult{batch: out})
			}
		}
		logOut := b.logOut
		if p.owed != 0 {
			logOut = nil
		} else if r := (logResult{items: p.rest}); len(r.items) > 0 {
			p.rest = nil
			if out, ok, err := b.fromPushed(r); ok || err != nil {
				return out, err
			}
			continue
		}
		select {
		case <-ctx.Done():
			return onewrite.Batch{}, ctx.Err()
		case <-p.timer.C:
			p.due = true
		case <-p.late:
			b.anew = true
		case r := <-logOut:
			if r.isNews() {
				b.opened(r)
				p.due, p.looks = true, b.ring.looks
				continue
			}
			if out, ok, err := b.fromPushed(r); ok || err != nil {
				return out, err
			}
		}
	}
}

// looked notes that the ring was looked at, after the log was opened if it is.
func (b *Both) looked() {
	p := b.pushed
	p.due, p.swept = false, time.Now()
	every := b.sweepEvery()
	if p.owed != 0 && !b.ring.at.from.has(p.owed) { // the log tells a commit before it can be seen
		every = alone
	} else {
		p.owed = 0
	}
	if p.since == 0 && b.begun {
		p.since = b.ring.xmax
	}
	p.timer.Reset(b.ring.schedule.rest(every))
}

// owes reports whether an item is of a transaction that was open when the log was opened.
// The outbox may have been put into the publication meanwhile, and the log tells only the
// rows of such a transaction from then on: the ring has all of them, and what comes later
// waits for it. One that reading began inside of was told from its beginning.
func (b *Both) owes(it *item) bool {
	return it.xid != 0 && it.xid < b.pushed.since && !b.ring.at.from.has(it.xid)
}

func (b *Both) sweepEvery() time.Duration {
	if b.log.Load() == nil {
		return alone
	}
	return sweepEvery
}

// missed says that a sweep found what the log should have told.
func (b *Both) missed(out onewrite.Batch) {
	if b.log.Load() == nil || time.Since(b.pushed.swept) > 2*overdue {
		return // what is found is a backlog
	}
	late := 0
	for i := range out.Events {
		if time.Since(out.Events[i].Time) > overdue {
			late++
		}
	}
	if late > 0 {
		b.ring.log.Warn("the ring had events that the log has not told; is it far behind, or is the outbox not in the publication? onewrite migrate as its owner puts it there", "events", late, "publication", publicationOf(b.ring.cfg.Name))
	}
}

// fromPushed leaves out what the ring's place saw, and adds the transactions that the
// items end. false: nothing is left.
func (b *Both) fromPushed(r logResult) (onewrite.Batch, bool, error) {
	if r.err != nil {
		return onewrite.Batch{}, false, r.err
	}
	items := r.items
	if b.at.tx != 0 && b.ring.looks <= b.pushed.looks { // no further than to the end of this transaction
		n := 1 + slices.IndexFunc(items, func(it item) bool { return it.at.tx == 0 })
		if n > 0 {
			items, b.pushed.rest = items[:n], items[n:]
		}
	} else if n := 1 + slices.IndexFunc(items, func(it item) bool { return it.at.tx == 0 && b.owes(&it) }); n > 0 {
		b.pushed.owed, b.pushed.due = items[n-1].xid, true
		items, b.pushed.rest = items[:n], items[n:]
	}
	total := len(items)
	end := items[total-1].at // its address would keep all of them
	b.at = &end
	start, at := b.ring.at, &b.ring.at
	kept := items[:0]
	for i := range items {
		it := &items[i]
		if it.seq != 0 && at.from.has(it.xid) {
			continue
		}
		if b.owes(it) {
			if it.seq != 0 {
				continue
			}
			it.xid = 0 // the place has it when the ring was read
		}
		b.ring.proof.note(at, it)
		*at = at.after(it)
		kept = append(kept, *it)
		b.ring.pushed = b.ring.pushed || it.seq != 0
	}
	if len(at.from.xip) > maxBetween {
		b.pushed.due = true
	}
	b.pos = at.pos()
	if len(kept) == 0 {
		b.log.Load().pass(total)
		return onewrite.Batch{}, false, nil
	}
	kept = slices.Clip(kept)
	out := onewrite.Batch{Pos: joinPlaces(*b.at, b.pos), Events: make([]onewrite.Event, len(kept))}
	for i := range kept {
		out.Events[i] = *kept[i].event
	}
	last := out.Pos
	out.PosAt = func(n int) onewrite.Pos {
		if n == len(kept)-1 {
			return last
		}
		p := start
		for i := range kept[:n+1] {
			p = p.after(&kept[i])
		}
		return joinPlaces(kept[n].at, p.pos())
	}
	b.log.Load().hand(out.Pos, b.at.done, total)
	return out, true, nil
}
