package history

import (
	"cmp"
	"maps"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// neighbours returns the index of the first arrival of an event, and of the first of
// the event after it in its key.
func (s *tale) neighbours(t *rapid.T, sink string) (i, j int) {
	list := s.arrived[sink]
	firsts := map[string]int{}
	var pairs [][2]int
	lastOf := map[string]int{}
	for at := range list {
		e := &list[at]
		if _, again := firsts[e.ID]; again || e.Key == "" {
			continue
		}
		firsts[e.ID] = at
		if before, ok := lastOf[e.Key]; ok {
			pairs = append(pairs, [2]int{before, at})
		}
		lastOf[e.Key] = at
	}
	p := rapid.SampledFrom(pairs).Draw(t, "pair")
	return p[0], p[1]
}

// remove takes every arrival of an event away.
func (s *tale) remove(sink, id string) {
	s.arrived[sink] = slices.DeleteFunc(s.arrived[sink], func(a Arrival) bool { return a.ID == id })
}

// some draws one of a list.
func some[T any](t *rapid.T, list []T) *T {
	return &list[rapid.IntRange(0, len(list)-1).Draw(t, "which")]
}

// spoils are the single mutations, by the law that has to notice each.
var spoils = []struct {
	law, what string
	do        func(t *rapid.T, s *tale)
}{
	{"I1", "an event never came", func(t *rapid.T, s *tale) { s.remove("db", some(t, s.arrived["db"]).ID) }},
	{"I2", "an event of nobody came", func(t *rapid.T, s *tale) {
		a := some(t, s.arrived["db"])
		b := *a
		b.Tx, b.ID = 1<<40, "foreign"
		s.arrived["db"] = append(s.arrived["db"], b)
	}},
	{"I2", "a rolled back one came", func(t *rapid.T, s *tale) {
		for _, o := range s.clients {
			if o.Told == "fail" {
				s.arrived["stream"] = append(s.arrived["stream"], Arrival{Event: Event{Tx: o.Tx, Of: 1, ID: "aborted"}, Pos: 1 << 30})
				return
			}
		}
	}},
	{"I2", "an event came to a sink that does not want it", func(t *rapid.T, s *tale) { s.fact(some(t, s.arrived["db"])).Sink = "stream"; s.dropEffects() }},
	{"I3", "two of a key changed places", func(t *rapid.T, s *tale) {
		i, j := s.neighbours(t, "db")
		list := s.arrived["db"]
		a, b := list[i], list[j]
		a.Copy, b.Copy = b.Copy, a.Copy
		list[i], list[j] = b, a
	}},
	{"I5", "the one stream went back", func(t *rapid.T, s *tale) {
		list := s.arrived["stream"]
		list[len(list)-1].Pos = 1
	}},
	{"I6", "an effect twice", func(t *rapid.T, s *tale) { some(t, s.effects["db"]).Times = 2 }},
	{"I6", "an effect in two rows", func(t *rapid.T, s *tale) { s.effects["db"] = append(s.effects["db"], *some(t, s.effects["db"])) }},
	{"I6", "no effect", func(t *rapid.T, s *tale) { s.effects["db"] = s.effects["db"][1:] }},
	{"I6", "an effect of nothing", func(t *rapid.T, s *tale) { s.effects["db"] = append(s.effects["db"], Effect{Tx: 1 << 40, Times: 1}) }},
	{"I7", "another id when it came again", func(t *rapid.T, s *tale) {
		a := *some(t, s.arrived["db"])
		a.ID += "-again"
		s.arrived["db"] = append(s.arrived["db"], a)
	}},
	{"I7", "more came again than was in flight", func(t *rapid.T, s *tale) {
		a := *some(t, s.arrived["db"])
		a.Copy = 2
		for range 30 {
			s.arrived["db"] = append(s.arrived["db"], a)
		}
	}},
	{"I6", "a balance that is wrong", func(t *rapid.T, s *tale) { some(t, s.ledger).Sum++ }},
	{"I6", "a balance that is not there", func(t *rapid.T, s *tale) {
		s.ledger = slices.DeleteFunc(s.ledger, func(b Balance) bool { return b.Sum != 0 })
	}},
	{"I6", "a balance in two rows", func(t *rapid.T, s *tale) { s.ledger = append(s.ledger, s.ledger[1]) }},
	{"I6", "a balance of nothing", func(t *rapid.T, s *tale) { s.ledger = append(s.ledger, Balance{"nobody", 1}) }},
	{"I6", "a checkpoint that does not add up", func(t *rapid.T, s *tale) { some(t, s.checks).Sum-- }},
	{"I6", "a checkpoint that forgets what came in part", func(t *rapid.T, s *tale) { some(t, s.checks).Open += 3 }},
	{"I6", "a checkpoint that forgets what came alone", func(t *rapid.T, s *tale) { some(t, s.checks).Single += 3 }},
	{"I6", "a checkpoint that goes back", func(t *rapid.T, s *tale) { slices.Reverse(s.checks) }},
	{"I7", "a sink that refuses repeats got one", func(t *rapid.T, s *tale) {
		s.run.Sinks["stream"] = Kind{Ordered: true, Distinct: true}
		s.arrived["stream"] = append(s.arrived["stream"], *some(t, s.arrived["stream"]))
	}},
	{"I7", "faults that allow nothing", func(t *rapid.T, s *tale) {
		for i := range s.faults {
			s.faults[i].Most = -1
		}
	}},
	{"I7", "faults that allow little", func(t *rapid.T, s *tale) {
		for i := range s.faults {
			s.faults[i].Most = -1
		}
		s.faults[0].Most = 2
	}},
	{"I7", "faults at the server of another sink", func(t *rapid.T, s *tale) {
		for i := range s.faults {
			s.faults[i].Most, s.faults[i].Sinks = 0, []string{"stream"}
		}
	}},
	{"I7", "a sink to which little is in flight", func(t *rapid.T, s *tale) {
		s.run.Sinks["db"] = Kind{Once: true, Ledger: true, Window: 1}
		a := *some(t, s.arrived["db"])
		a.Copy = 2
		for range 9 { // the faults allow 3, and two windows; the source may have read 3 again
			s.arrived["db"] = append(s.arrived["db"], a)
		}
	}},
	{"I7", "faults of another sink", func(t *rapid.T, s *tale) {
		for i := range s.faults {
			s.faults[i].Most, s.faults[i].On = 0, "stream"
		}
	}},
	{"I8", "another payload when it came again", func(t *rapid.T, s *tale) {
		a := *some(t, s.arrived["db"])
		a.Hash++
		s.arrived["db"] = append(s.arrived["db"], a)
	}},
	{"I8", "another payload", func(t *rapid.T, s *tale) { some(t, s.arrived["stream"]).Hash++ }},
	{"I9", "too much memory", func(t *rapid.T, s *tale) { some(t, s.samples).RSS = 101 }},
	{"I10", "a position went back", func(t *rapid.T, s *tale) { s.change("db", 4, func(d *SinkState) { d.Position = 0 }) }},
	{"I10", "more confirmed than arrived", func(t *rapid.T, s *tale) { s.change("stream", 3, func(d *SinkState) { d.Delivered = d.Seen + 1 }) }},
	{"I11", "it stands still and says ok", func(t *rapid.T, s *tale) {
		still := s.samples[2]
		for i := range s.samples[3:] {
			s.samples[3+i].At += 30 * second
		}
		for _, later := range []int64{6, 11} {
			again := still
			again.At += later * second
			s.samples = append(s.samples, again)
		}
		slices.SortFunc(s.samples, func(a, b Sample) int { return cmp.Compare(a.At, b.At) })
	}},
	{"I11", "it never became quiet", func(t *rapid.T, s *tale) { s.run.Quiet = 0 }},
	{"I11", "it took too long to become quiet", func(t *rapid.T, s *tale) { s.run.Quiet += 30 * second }},
	{"I11", "trouble that is not said", func(t *rapid.T, s *tale) { s.calm() }},
	{"I11", "trouble that is not said before the end", func(t *rapid.T, s *tale) { s.calm(); s.samples = s.samples[:4] }},
	{"I11", "trouble that is said too late", func(t *rapid.T, s *tale) {
		for i := range s.samples[5:] {
			s.samples[5+i].At += 20 * second
		}
	}},
	{"I11", "trouble that was said before", func(t *rapid.T, s *tale) {
		s.calm()
		s.samples[0].State, s.samples[1].Up = "waiting", false
	}},
	{"I11", "a warning that was there before", func(t *rapid.T, s *tale) {
		s.calm()
		for i := range s.samples[:6] { // those of the first copy
			s.samples[i].Warnings = 1
		}
	}},
	{"I11", "a warning that went and came again", func(t *rapid.T, s *tale) {
		s.calm()
		s.samples[1].Warnings, s.samples[3].Warnings = 1, 1
	}},
	{"I11", "catching up, which is no trouble", func(t *rapid.T, s *tale) {
		s.calm()
		s.samples[6].State = "catching-up"
		s.change("db", 7, func(d *SinkState) { d.State = "catching-up" })
	}},
	{"I11", "a gap, which is no trouble", func(t *rapid.T, s *tale) { s.calm(); s.samples[5].Gap = "the bus is new" }},
	{"I11", "takeovers that take too long", func(t *rapid.T, s *tale) { s.faults[0].Takeover = 10 * second }},
	{"I12", "a gap that is not said", func(t *rapid.T, s *tale) { s.gap("") }},
	{"I12", "a gap that is not said by those who said nothing before", func(t *rapid.T, s *tale) {
		s.gap("")
		s.faults[2].At = -1
	}},
	{"I12", "a gap that is not said before the end", func(t *rapid.T, s *tale) { s.samples = s.samples[:6] }},
	{"I12", "a gap, and nothing was asked", func(t *rapid.T, s *tale) { s.samples = nil }},
	{"I12", "a gap that was said before", func(t *rapid.T, s *tale) { s.gap("the bus is new") }},
	{"I12", "a gap that was said some time before", func(t *rapid.T, s *tale) { s.samples[0].Gap = "the bus is new" }},
	{"I12", "a gap that nobody answered", func(t *rapid.T, s *tale) {
		for i := range s.samples[6:] {
			s.samples[6+i].Up = false
		}
	}},
	{"I12", "a gap that is said too late", func(t *rapid.T, s *tale) {
		for i := range s.samples[6:] {
			s.samples[6+i].At += 20 * second
		}
	}},
	{"I13", "the numbers add up to more than there is", func(t *rapid.T, s *tale) { s.change("db", 2, func(d *SinkState) { d.Pending++ }) }},
	{"I13", "more taken than committed", func(t *rapid.T, s *tale) { s.samples[0].Events++ }},
	{"I13", "at rest one was never taken", func(t *rapid.T, s *tale) {
		s.samples[10].Age, s.samples[10].Events = 0, uint64(len(s.truth)-1)
		for sink := range s.run.Sinks {
			s.change(sink, 10, func(d *SinkState) { d.Delivered = s.samples[10].Events - d.Parked - d.Filtered })
		}
	}},
	{"I13", "at rest one is missing", func(t *rapid.T, s *tale) { s.change("db", 10, func(d *SinkState) { d.Delivered-- }) }},
	{"I13", "at rest one is pending", func(t *rapid.T, s *tale) { s.change("db", 10, func(d *SinkState) { d.Delivered--; d.Pending++ }) }},
	{"I13", "what was set aside came", func(t *rapid.T, s *tale) { s.run.Parked = map[string][]string{"db": {some(t, s.arrived["db"]).ID}} }},
	{"I13", "more read again than the crash allows", func(t *rapid.T, s *tale) {
		s.faults = append(s.faults, Fault{At: 9 * second, Kind: "crash", Proof: "p", Again: 2})
		s.samples[10].Events += 3
	}},
	{"I14", "two own one epoch", func(t *rapid.T, s *tale) { s.change("db", 8, func(d *SinkState) { d.Epoch = 1 }) }},
	{"I14", "the old owner goes on", func(t *rapid.T, s *tale) { s.arrived["db"][0].Copy = 2; s.arrived["db"][1].Copy = 1; s.uniq("db") }},
	{"V1", "too few", func(t *rapid.T, s *tale) { s.run.Floors.Committed = 1000 }},
	{"V1", "nothing aborted", func(t *rapid.T, s *tale) {
		s.clients = slices.DeleteFunc(s.clients, func(o Outcome) bool { return o.Told == "fail" })
	}},
	{"V1", "too few keys", func(t *rapid.T, s *tale) { s.run.Floors.Keys = 4 }},
	{"V1", "too few faults", func(t *rapid.T, s *tale) { s.faults = s.faults[:1] }},
	{"V2", "a fault without effect", func(t *rapid.T, s *tale) { s.faults = append(s.faults, Fault{Kind: "cut"}) }},
	{"V2", "a label without a hit", func(t *rapid.T, s *tale) { delete(s.run.Labels, "replay") }},
	{"V2", "a label hit too seldom", func(t *rapid.T, s *tale) { s.run.Labels["lost"] = 4 }},
	{"V2", "a fault that has to say what is not known", func(t *rapid.T, s *tale) { s.faults[0].Says = "something" }},
	{"V1", "too few checkpoints", func(t *rapid.T, s *tale) { s.checks = s.checks[:2] }},
	{"V7", "the database lost what it confirmed", func(t *rapid.T, s *tale) { s.clients = append(s.clients, Outcome{1 << 40, "ok"}) }},
	{"V7", "the database kept what it refused", func(t *rapid.T, s *tale) { s.clients = append(s.clients, Outcome{some(t, s.truth).Tx, "fail"}) }},
	{"V7", "the truth misses a part", func(t *rapid.T, s *tale) { some(t, s.truth).Of++ }},
	{"V7", "the truth misses a number", func(t *rapid.T, s *tale) {
		for i := range s.truth {
			if e := &s.truth[i]; e.Seq == 1 {
				e.Seq = 1 << 30
				return
			}
		}
	}},
	{"V7", "a transfer that takes less than it gives", func(t *rapid.T, s *tale) {
		s.run.Workload = "W2 W1"
		for i := range s.truth {
			if e := &s.truth[i]; e.Of == 2 {
				e.Amount++
				return
			}
		}
	}},
	{"V7", "the truth has one twice", func(t *rapid.T, s *tale) { s.truth = append(s.truth, s.truth[0]) }},
}

// fact returns the event of the truth that arrived.
func (s *tale) fact(a *Arrival) *Event {
	return &s.truth[slices.IndexFunc(s.truth, func(e Event) bool { return e.ID == a.ID })]
}

// calm says in every sample that all is well.
func (s *tale) calm() {
	for i := range s.samples {
		s.samples[i].Up, s.samples[i].State, s.samples[i].Warnings = true, "ok", 0
		for sink := range s.run.Sinks {
			s.change(sink, i, func(d *SinkState) { d.State = "ok" })
		}
	}
}

// gap says the same gap in every sample.
func (s *tale) gap(text string) {
	for i := range s.samples {
		s.samples[i].Gap = text
	}
}

// change spoils what one sample says of a sink.
func (s *tale) change(sink string, i int, do func(*SinkState)) {
	sinks := maps.Clone(s.samples[i].Sinks)
	d := sinks[sink]
	do(&d)
	sinks[sink] = d
	s.samples[i].Sinks = sinks
}

// uniq leaves the first arrivals alone.
func (s *tale) uniq(sink string) {
	seen := map[string]bool{}
	s.arrived[sink] = slices.DeleteFunc(s.arrived[sink], func(a Arrival) bool {
		again := seen[a.ID]
		seen[a.ID] = true
		return again
	})
}

// dropEffects forgets the effects, so that only arrivals are judged.
func (s *tale) dropEffects() {
	s.run.Sinks["db"] = Kind{}
	s.effects["db"] = nil
}

// Every single mutation of a good run is refused, by the law that names it.
func TestEverySpoiltRunIsRefused(t *testing.T) {
	if len(spoils) < 30 {
		t.Fatalf("only %d mutations", len(spoils))
	}
	for _, c := range spoils {
		t.Run(c.law+" "+c.what, func(t *testing.T) {
			n := 0
			rapid.Check(t, func(rt *rapid.T) {
				if n++; n > 5 {
					return
				}
				s := tell(rt)
				c.do(rt, s)
				if r := judge(t, s); r.Laws[c.law] == 0 || r.Lag < 0 {
					rt.Fatalf("%s was not broken:\n%v", c.law, r)
				}
			})
		})
	}
}
