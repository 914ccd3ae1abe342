package pipeline

import (
	"maps"
	"time"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/internal/sabotage"
)

// feed is what the reader hands to the loop.
type feed struct {
	msgs   []onewrite.Message
	shaped []shaped // of each message; nil: all go as they are
	upto   map[string]uint64
}

func (f *feed) shape(i int) shaped {
	if f.shaped == nil {
		return shaped{}
	}
	return f.shaped[i]
}

func (f *feed) drops(i int) bool { return f.shape(i).drop }

// from is what is left from message i on.
func (f *feed) from(i int) *feed {
	rest := &feed{msgs: f.msgs[i:], upto: f.upto}
	if f.shaped != nil {
		rest.shaped = f.shaped[i:]
	}
	return rest
}

// blocked reports whether an event has to wait until all that its log had before it is
// done: it is a barrier, or comes after one.
func (r *deliverer) blocked(m *onewrite.Message) bool {
	switch barrier := m.Barrier(); {
	case !barrier && !r.behind[m.Log]:
		return false
	case r.lanes.held[m.Log] > 0:
		return true
	case barrier:
		r.behind[m.Log] = true
	default:
		delete(r.behind, m.Log)
	}
	return false
}

// resume goes on with what a barrier holds up.
func (r *deliverer) resume() error {
	if r.stalled == nil {
		return nil
	}
	f := *r.stalled
	r.stalled = nil
	return r.accept(f)
}

// wasSettled reports whether an event that the loop comes to was delivered or skipped
// before, as an entry of the parking lot that the cursor was not past.
func (r *deliverer) wasSettled(m *onewrite.Message) bool {
	at := place{m.Log, m.Offset}
	if _, ahead := r.lot.ahead[at]; !ahead {
		return false
	}
	delete(r.lot.ahead, at)
	hash, settled := r.passed(at)
	return settled && hash == hashOf(m.ID)
}

// accept takes events from the reader.
func (r *deliverer) accept(f feed) error {
	for i := range f.msgs {
		m := &f.msgs[i]
		if r.blocked(m) {
			r.stalled = f.from(i)
			return nil
		}
		t := r.track(m.Log)
		filtered, fresh := t.hand(m.Offset, m.Time)
		r.cursor.Filtered += filtered
		if !fresh {
			continue
		}
		r.accepted++
		r.unread -= min(r.unread, 1)
		if r.wasSettled(m) {
			t.finish(m.Offset)
			continue
		}
		if id, parked := r.lot.at[place{m.Log, m.Offset}]; parked && id == m.ID {
			t.finish(m.Offset) // the last owner died between the lot and the cursor
			continue
		}
		if r.placed.has(m) { // the last owner died between the sink and the cursor
			r.cursor.Delivered++
			t.finish(m.Offset)
			continue
		}
		if f.drops(i) {
			r.cursor.Filtered++
			t.finish(m.Offset)
			continue
		}
		l := r.lanes.find(onewrite.Lane{Log: m.Log, Key: m.Key})
		e := &entry{msg: *m, lane: l, shaped: f.shape(i)}
		if l.keyed() && (l.parked || l.redo) && sabotage.Bug != "followers-flow" {
			if err := r.park(e, true, "waits behind an event of its key", true); err != nil {
				return err
			}
			continue
		}
		r.lanes.add(l, e)
	}
	for name, offset := range f.upto {
		r.cursor.Filtered += r.track(name).pass(offset)
		maps.DeleteFunc(r.lot.ahead, func(p place, _ struct{}) bool {
			gone := p.log == name && p.offset <= offset
			if gone {
				r.passed(p)
			}
			return gone
		})
	}
	if r.d.Linger > 0 && r.linger.IsZero() && len(f.msgs) > 0 {
		r.linger = time.Now().Add(r.d.Linger)
	}
	r.dirty = true
	return nil
}
