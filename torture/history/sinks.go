package history

import (
	"cmp"
	"hash/fnv"
	"math"
	"slices"
)

// digest makes a number of an id, to keep a million of them in little memory.
func digest(s string) uint64 {
	h := fnv.New64a()
	_, _ = h.Write([]byte(s))
	return h.Sum64()
}

// arrivals judges what came to one sink.
type arrivals struct {
	*checker
	sink   string
	kind   Kind
	seen   []uint8            // arrivals of each fact, at most 255
	lanes  map[uint32][]int32 // of each key the facts that the sink wants, in order
	next   map[uint32]int     // of each key the place in its lane that has to come
	parked map[uint64]bool
	place  uint64 // on the bus, of the last first arrival
	reign
}

// reign follows which copy of onewrite may deliver. A copy takes over with a
// greater epoch; who still delivers for the first time after another took over
// needs an epoch that is greater still.
type reign struct {
	epochs map[int][]uint64 // of each copy, ascending
	copy   int
	epoch  uint64
}

// take reports whether a first arrival from a copy is in order.
func (r *reign) take(copy int) bool {
	if copy == 0 || copy == r.copy || r.epochs == nil {
		return true
	}
	for _, e := range r.epochs[copy] {
		if e > r.epoch {
			r.copy, r.epoch = copy, e
			return true
		}
	}
	return false
}

// sinks judges the sinks one after the other.
func (c *checker) sinks(dir string) error {
	epochs, err := epochs(dir)
	if err != nil {
		return err
	}
	for _, sink := range sorted(c.run.Sinks) {
		if c.run.Sinks[sink].Rows {
			if err := c.rows(dir, sink); err != nil {
				return err
			}
			continue
		}
		a := &arrivals{
			checker: c, sink: sink, kind: c.run.Sinks[sink],
			seen: make([]uint8, len(c.facts)), lanes: map[uint32][]int32{}, next: map[uint32]int{}, parked: map[uint64]bool{},
			reign: reign{epochs: epochs[sink]},
		}
		for _, id := range c.run.Parked[sink] {
			a.parked[digest(id)] = true
		}
		for i := range c.facts {
			if f := &c.facts[i]; f.key != 0 && a.wants(f) {
				a.lanes[f.key] = append(a.lanes[f.key], int32(i))
			}
		}
		for _, lane := range a.lanes {
			slices.SortFunc(lane, func(i, j int32) int { return cmp.Compare(c.facts[i].seq, c.facts[j].seq) })
		}
		if err := each(dir, ArrivedFile, sink, a.arrived); err != nil {
			return err
		}
		a.complete()
		if err := a.effects(dir); err != nil {
			return err
		}
		if err := a.ledger(dir); err != nil {
			return err
		}
	}
	return nil
}

func (a *arrivals) wants(f *fact) bool { return f.sink == "" || f.sink == a.sink }

// arrived judges one arrival.
func (a *arrivals) arrived(e *Arrival) {
	a.Arrived[a.sink]++
	i, known := a.index[part{e.Tx, e.Part}]
	if !known {
		a.fail("I2", "%s got event %d.%d (%s), which was never committed", a.sink, e.Tx, e.Part, e.ID)
		return
	}
	f := &a.facts[i]
	switch {
	case !a.wants(f):
		a.fail("I2", "%s got event %d.%d, which is for %s", a.sink, e.Tx, e.Part, f.sink)
		return
	case e.Hash != f.hash:
		a.fail("I8", "%s got event %d.%d with another payload", a.sink, e.Tx, e.Part)
	case digest(e.ID) != f.id:
		a.fail("I7", "%s got event %d.%d as %s, which is not its id", a.sink, e.Tx, e.Part, e.ID)
	}
	if a.seen[i] > 0 {
		a.seen[i] = uint8(min(int(a.seen[i])+1, math.MaxUint8))
		a.Repeats[a.sink]++
		return
	}
	a.seen[i] = 1
	if a.kind.Ordered && e.Pos < a.place {
		a.fail("I5", "%s got place %d of the bus after %d", a.sink, e.Pos, a.place)
	}
	a.place = max(a.place, e.Pos)
	if !a.take(e.Copy) {
		a.fail("I14", "%s got event %d.%d from copy %d after copy %d had taken over", a.sink, e.Tx, e.Part, e.Copy, a.copy)
	}
	if f.key != 0 {
		a.order(i, f)
	}
}

// order judges a first arrival within its key: nothing before it may be missing
// but what was set aside.
func (a *arrivals) order(i int32, f *fact) {
	lane, n := a.lanes[f.key], a.next[f.key]
	for n < len(lane) && lane[n] != i && (a.seen[lane[n]] > 0 || a.parked[a.facts[lane[n]].id]) {
		n++
	}
	if n == len(lane) || lane[n] != i {
		if !a.parked[f.id] { // delivered after all, later than those that did not wait for it
			a.fail("I3", "%s got number %d of key %s while number %d had not come", a.sink, f.seq, a.names[f.key], a.facts[lane[min(n, len(lane)-1)]].seq)
		}
		return
	}
	a.next[f.key] = n + 1
}

// complete looks for what never came, and for too many repeats.
func (a *arrivals) complete() {
	for i := range a.facts {
		f := &a.facts[i]
		if !a.wants(f) {
			continue
		}
		switch parked := a.parked[f.id]; {
		case a.seen[i] == 0 && !parked:
			a.fail("I1", "%s never got number %d of key %q", a.sink, f.seq, a.names[f.key])
		case a.seen[i] > 0 && parked:
			a.fail("I13", "%s has number %d of key %q, which onewrite set aside as undelivered", a.sink, f.seq, a.names[f.key])
		}
	}
	most := int(a.slack(math.MaxInt64))
	if !a.kind.Distinct {
		window := a.run.Window
		if a.kind.Window > 0 {
			window = a.kind.Window
		}
		most += a.most[""] + a.most[a.sink] + (a.waves[""]+a.waves[a.sink])*window
	}
	if a.Repeats[a.sink] > most {
		a.fail("I7", "%s got %d events again, the faults allow %d", a.sink, a.Repeats[a.sink], most)
	}
}

// effects compares the consumer's database with the truth.
func (a *arrivals) effects(dir string) error {
	done := make([]uint8, len(a.facts))
	err := each(dir, EffectFile, a.sink, func(e *Effect) {
		i, known := a.index[part{e.Tx, e.Part}]
		switch {
		case !known || !a.wants(&a.facts[i]):
			a.fail("I6", "%s acted on event %d.%d, which was not for it", a.sink, e.Tx, e.Part)
		case e.Times != 1 || done[i] > 0:
			a.fail("I6", "%s acted %d times on event %d.%d", a.sink, max(e.Times, 2), e.Tx, e.Part)
			done[i] = 1
		default:
			done[i] = 1
		}
	})
	if err != nil || !a.kind.Once {
		return err
	}
	for i := range a.facts {
		if f := &a.facts[i]; a.wants(f) && done[i] == 0 && !a.parked[f.id] {
			a.fail("I6", "%s did not act on number %d of key %q", a.sink, f.seq, a.names[f.key])
		}
	}
	return nil
}
