package nats

import (
	"sync"
	"time"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/internal/cloudevents"
)

// recentBytes bounds the newest events that are kept in memory, all logs
// together. A reader that keeps up is served from there: the store is not read,
// which is the larger part of the work, and does not hold blocks in memory for
// it.
const recentBytes = 8 << 20

// recent are the newest events of a log that this process appended, in the form
// in which the store would give them back.
type recent struct {
	mu     sync.Mutex
	first  uint64 // offset of events[0]
	events []onewrite.Event
	room   []onewrite.Event // what events are a part of: they move in it, and rarely to another
	bytes  int
}

// add appends durable events whose first has this offset, and drops old ones
// beyond limit bytes.
func (r *recent) add(first uint64, events []onewrite.Event, limit int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if first != r.first+uint64(len(r.events)) { // another copy wrote between
		clear(r.events)
		r.first, r.events, r.bytes = first, r.events[:0], 0
	}
	if n := len(r.events) + len(events); n > cap(r.events) {
		if n+n/2 > cap(r.room) {
			r.room = make([]onewrite.Event, 0, 2*n)
		}
		r.events = append(r.room[:0], r.events...)
		clear(r.room[len(r.events):cap(r.room)]) // from where they were moved
	}
	for i := range events {
		r.events = append(r.events, canonical(&events[i]))
		r.bytes += events[i].Size()
	}
	n := 0
	for n < len(r.events) && r.bytes > limit {
		r.bytes -= r.events[n].Size()
		r.events[n] = onewrite.Event{}
		n++
	}
	r.first += uint64(n)
	r.events = r.events[n:]
}

// reset forgets everything.
func (r *recent) reset() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.first, r.events, r.room, r.bytes = 0, nil, nil, 0
}

// each hands over the events from offset next on, at most up to tail, while take
// says so. It reports false if next is not among them.
func (r *recent) each(next, tail uint64, take func(offset uint64, e *onewrite.Event) bool) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if next < r.first || next-r.first >= uint64(len(r.events)) {
		return false
	}
	for i := int(next - r.first); i < len(r.events); i++ {
		offset := r.first + uint64(i)
		if offset > tail || !take(offset, &r.events[i]) {
			break
		}
	}
	return true
}

// canonical returns e as it comes back from the wire.
func canonical(e *onewrite.Event) onewrite.Event {
	c := *e
	if !c.Time.IsZero() {
		c.Time = c.Time.UTC().Truncate(time.Microsecond)
	}
	if c.Tx.ID == "" {
		c.Tx = onewrite.Tx{}
	}
	c.Data = cloudevents.Settle(c.Data, c.ContentType)
	bad := len(c.Header) == 0
	for k := range c.Header {
		bad = bad || cloudevents.IsAttribute(k) && cloudevents.Reserved(k)
	}
	if !bad {
		return c
	}
	var h map[string]string
	for k, v := range c.Header {
		if cloudevents.IsAttribute(k) && cloudevents.Reserved(k) {
			continue
		}
		if h == nil {
			h = make(map[string]string, len(c.Header))
		}
		h[k] = v
	}
	c.Header = h
	return c
}
