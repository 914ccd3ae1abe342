package pipeline

import (
	"slices"

	"github.com/onewrite/onewrite"
)

// shaped is what the destination gets of an event.
type shaped struct {
	out  *onewrite.Event // nil: the event as it is
	drop bool            // nothing
	bad  error           // it cannot be shaped, and so is refused
}

func (s *shaped) size() int {
	if s.out == nil {
		return 0
	}
	return s.out.Size()
}

// event is what is written.
func (e *entry) event() *onewrite.Event {
	if e.out != nil {
		return e.out
	}
	return &e.msg.Event
}

func (d *Delivery) shape(e *onewrite.Event) (s shaped) {
	out, keep, err := d.Shape(e)
	switch {
	case err != nil:
		s.bad = err
	case !keep:
		s.drop = true
	default:
		out.ID = e.ID // a repeat is known by it
		s.out = &out
	}
	return s
}

// shapes shapes what was read; nil if nothing is shaped.
func (d *Delivery) shapes(msgs []onewrite.Message) []shaped {
	if d.Shape == nil {
		return nil
	}
	list := make([]shaped, len(msgs))
	for i := range msgs {
		list[i] = d.shape(&msgs[i].Event)
	}
	return list
}

// shapely settles the events of a batch that cannot be shaped, and those parked once
// that the destination does not want any more, and returns the others. Such an event has
// its turn when what its lane had before is done, and what comes after waits for it.
func (r *deliverer) shapely(batch []*entry) ([]*entry, error) {
	rest := make([]*entry, 0, len(batch))
	var back, first []*entry
	in := func(list []*entry, e *entry) bool {
		return slices.ContainsFunc(list, func(o *entry) bool { return o.lane == e.lane })
	}
	for _, e := range batch {
		fine := e.bad == nil && !e.drop
		switch {
		case fine && !in(back, e):
			rest = append(rest, e)
			continue
		case !fine && !in(back, e) && !in(rest, e):
			first = append(first, e)
		}
		back = append(back, e)
	}
	r.lanes.back(back)
	defer r.lanes.release(back)
	for _, e := range first {
		if err := r.settleUnshaped(e); err != nil {
			return nil, err
		}
	}
	return rest, nil
}

func (r *deliverer) settleUnshaped(e *entry) error {
	if e.bad != nil {
		e.attempts++
		r.lastError = e.bad.Error()
		if r.d.Observe.Failed != nil {
			r.d.Observe.Failed(r.d.Interest.Name, e.bad)
		}
		return r.poison(e, e.bad)
	}
	e.lane.queue = e.lane.queue[1:]
	r.health.settled(e)
	r.lanes.drop(e)
	r.cursor.Filtered++
	delete(r.lot.loaded, e.ref)
	return r.forget(e.lane, e.ref)
}
