package pipeline

import (
	"container/heap"
	"iter"
	"maps"
	"slices"
	"time"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/internal/sabotage"
)

// entry is one event that a delivery holds.
type entry struct {
	msg   onewrite.Message
	order uint64 // arrival, which is bus order within a log
	size  int
	lane  *lane
	ref   uint64 // the entry in the parking lot that this redelivers, or 0
	shaped
	trial
}

// lane is a queue of events that must stay in order: those of one key, or a
// single event without a key. A lane has at most one write under way.
type lane struct {
	id     onewrite.Lane
	queue  []*entry
	busy   int       // entries in the write under way
	retry  time.Time // not before; zero when nothing failed
	index  int       // place in the heap of ready lanes, -1 outside
	parked bool      // later events go to the parking lot
	redo   bool      // the parking lot is being delivered
	after  uint64    // while redo: entries up to this ref were loaded
}

func (l *lane) keyed() bool { return l.id.Key != "" }

// lanes holds every lane with work, and the ready ones by the place of their
// first event, so that events leave in bus order as far as their keys allow.
type lanes struct {
	byKey map[onewrite.Lane]*lane
	ready laneHeap
	later map[*lane]struct{} // waiting for their retry time
	count int                // entries held, those being written included
	held  map[string]int     // the same by log
	bytes int
	next  uint64

	busy, busyBytes int // of them: in the writes under way
}

func newLanes() *lanes {
	return &lanes{byKey: map[onewrite.Lane]*lane{}, later: map[*lane]struct{}{}, held: map[string]int{}}
}

// find returns the key's lane and makes it if need be.
func (ls *lanes) find(id onewrite.Lane) *lane {
	if id.Key == "" {
		return &lane{id: id, index: -1}
	}
	l := ls.byKey[id]
	if l == nil {
		l = &lane{id: id, index: -1}
		ls.byKey[id] = l
	}
	return l
}

// add puts a new event at the end of its lane.
func (ls *lanes) add(l *lane, e *entry) {
	ls.next++
	e.order, e.lane, e.size = ls.next, l, e.msg.Size()+e.shaped.size()
	l.queue = append(l.queue, e)
	ls.count++
	ls.held[e.msg.Log]++
	ls.bytes += e.size
	ls.settle(l)
}

// drop forgets an event that is done.
func (ls *lanes) drop(e *entry) {
	ls.count--
	ls.held[e.msg.Log]--
	ls.bytes -= e.size
}

// waiting returns what is held and not being written.
func (ls *lanes) waiting() (count, bytes int) {
	return ls.count - ls.busy, ls.bytes - ls.busyBytes
}

// pop removes the first event of a lane for a write.
func (ls *lanes) pop(l *lane) *entry {
	e := l.queue[0]
	l.queue = l.queue[1:]
	l.busy++
	ls.busy++
	ls.busyBytes += e.size
	return e
}

// settle puts the lane where its state says.
func (ls *lanes) settle(l *lane) {
	delete(ls.later, l)
	switch {
	case l.busy > 0 && sabotage.Bug != "parallel-key" || len(l.queue) == 0:
		if l.index >= 0 {
			heap.Remove(&ls.ready, l.index)
		}
		if l.busy == 0 && !l.parked && !l.redo && l.keyed() {
			delete(ls.byKey, l.id)
		}
	case !l.retry.IsZero():
		if l.index >= 0 {
			heap.Remove(&ls.ready, l.index)
		}
		ls.later[l] = struct{}{}
	case l.index >= 0:
		ls.ready.fix(l)
	default:
		heap.Push(&ls.ready, l)
	}
}

// due makes the lanes ready whose retry time has come and returns the next time.
func (ls *lanes) due(now time.Time) (next time.Time) {
	for l := range ls.later {
		if !l.retry.After(now) {
			l.retry = time.Time{}
			ls.settle(l)
		} else if next.IsZero() || l.retry.Before(next) {
			next = l.retry
		}
	}
	return next
}

// earliest returns the waiting lane whose time comes first.
func (ls *lanes) earliest() *lane {
	var first *lane
	for l := range ls.later {
		if first == nil || l.retry.Before(first.retry) {
			first = l
		}
	}
	return first
}

// take removes up to count events and bytes from the ready lanes, in bus order,
// and marks their lanes busy. An event that failed in a batch travels alone, so
// that the batch cannot hide which one is refused.
func (ls *lanes) take(count, bytes int) []*entry {
	batch := make([]*entry, 0, min(count, ls.count))
	size := 0
	for len(ls.ready) > 0 && len(batch) < count {
		l := ls.ready[0].lane
		e := l.queue[0]
		if len(batch) > 0 && (size+e.size > bytes || e.solo) {
			break
		}
		size += e.size
		batch = append(batch, ls.pop(l))
		if len(l.queue) == 0 {
			heap.Pop(&ls.ready)
		} else {
			ls.ready.fix(l)
		}
		if e.solo {
			break
		}
	}
	for _, e := range batch { // lanes with events left must wait for this write
		ls.settle(e.lane)
	}
	return batch
}

// back returns events of a write that were not done to the front of their
// lanes, in their order. Their lanes stay busy until release.
func (ls *lanes) back(rest []*entry) {
	for i := len(rest) - 1; i >= 0; i-- {
		l := rest[i].lane
		l.queue = append([]*entry{rest[i]}, l.queue...)
	}
}

// release ends the write of a batch.
func (ls *lanes) release(batch []*entry) {
	for _, e := range batch {
		e.lane.busy--
		ls.busy--
		ls.busyBytes -= e.size
	}
	for _, e := range batch {
		ls.settle(e.lane)
	}
}

// laneHeap has each lane with the order of its first event, so that comparing two looks
// at neither.
type laneHeap []turn

type turn struct {
	order uint64
	lane  *lane
}

func (h laneHeap) Len() int           { return len(h) }
func (h laneHeap) Less(i, j int) bool { return h[i].order < h[j].order }
func (h laneHeap) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].lane.index, h[j].lane.index = i, j
}
func (h *laneHeap) Push(x any) {
	l := x.(*lane)
	l.index = len(*h)
	*h = append(*h, turn{l.queue[0].order, l})
}
func (h *laneHeap) Pop() any {
	old := *h
	l := old[len(old)-1].lane
	old[len(old)-1] = turn{}
	*h = old[:len(old)-1]
	l.index = -1
	return l
}

// fix moves a lane whose first event may be another one now.
func (h *laneHeap) fix(l *lane) {
	(*h)[l.index].order = l.queue[0].order
	heap.Fix(h, l.index)
}

// all returns every lane with events; none of them is being written.
func (ls *lanes) all() iter.Seq[*lane] {
	list := slices.Collect(maps.Keys(ls.later))
	for _, t := range ls.ready {
		list = append(list, t.lane)
	}
	return slices.Values(list)
}

// takeFrom removes the first event of one lane.
func (ls *lanes) takeFrom(l *lane) []*entry {
	e := ls.pop(l)
	if l.index >= 0 {
		heap.Remove(&ls.ready, l.index)
	}
	return []*entry{e}
}
