package history

import (
	"cmp"
	"fmt"
	"maps"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// tale is a run in memory, to be spoiled and then written.
type tale struct {
	run     Run
	truth   []Event
	clients []Outcome
	arrived map[string][]Arrival
	effects map[string][]Effect
	ledger  []Balance // of "db"
	checks  []Checkpoint
	samples []Sample
	faults  []Fault
}

const second = int64(time.Second)

// tell makes a good run: transactions of one to three events over some keys,
// two sinks, a few faults after which a window comes again, two copies that take
// over from each other.
func tell(t *rapid.T) *tale {
	n := rapid.IntRange(30, 120).Draw(t, "transactions")
	s := &tale{
		run: Run{Workload: "tale", Window: 8, Calm: 100 * second, Quiet: 101 * second,
			Sinks:  map[string]Kind{"db": {Once: true, Ledger: true}, "stream": {Ordered: true}},
			Labels: map[string]int{"replay": 1, "lost": 5}, Budget: Budget{RSS: 100, Lag: 30 * second, Takeover: 9 * second},
			Floors: Floors{Committed: 20, Aborted: 0.05, Keys: 2, KeyEvents: 3, Faults: map[string]int{"kill": 2}, Labels: []string{"replay"}, Counts: map[string]int{"lost": 5}, Checkpoints: 3}},
		arrived: map[string][]Arrival{}, effects: map[string][]Effect{},
		faults: []Fault{{Kind: "kill", Proof: "pid 1 is 2", Takeover: 8 * second}, {Kind: "kill", Proof: "pid 2 is 3", Times: 2},
			{Kind: "lost bus", Proof: "moved", At: 3*second + 1, Until: 4 * second, Says: "gap", Most: -1},
			{Kind: "full disk", Proof: "filled", At: 4*second + 1, Until: 5 * second, Says: "trouble", Most: -1}},
	}
	seqs := map[string]uint64{}
	for tx := range n {
		id := uint64(tx + 1)
		told := rapid.SampledFrom([]string{"ok", "ok", "ok", "info", "fail", "gone"}).Draw(t, "told")
		if tx < 40 && told == "gone" || tx%10 == 0 {
			told = "fail"
		} else if tx < 40 {
			told = "ok"
		}
		if told == "fail" || told == "gone" { // gone: the answer was lost, and so was the transaction
			s.clients = append(s.clients, Outcome{id, map[string]string{"fail": "fail", "gone": "info"}[told]})
			continue
		}
		s.clients = append(s.clients, Outcome{id, told})
		of := rapid.IntRange(1, 3).Draw(t, "events")
		for i := range of {
			e := Event{Tx: id, Part: i, Of: of, ID: fmt.Sprintf("id-%d-%d", id, i), Hash: id*10 + uint64(i), Amount: int64(id % 7)}
			if key := rapid.IntRange(0, 3).Draw(t, "key"); key > 0 {
				e.Key = fmt.Sprint("k", key)
				seqs[e.Key]++
				e.Seq = seqs[e.Key]
			}
			s.truth = append(s.truth, e)
		}
	}
	for key := 1; key <= 3; key++ { // enough of each key for the floors
		for range 3 {
			id, name := uint64(len(s.clients)+1), fmt.Sprint("k", key)
			seqs[name]++
			s.clients = append(s.clients, Outcome{id, "ok"})
			s.truth = append(s.truth, Event{Tx: id, Of: 1, Key: name, Seq: seqs[name], ID: fmt.Sprint("id-", id), Hash: id})
		}
	}
	for sink := range s.run.Sinks {
		s.deliver(t, sink)
	}
	s.keep()
	total := uint64(len(s.truth))
	for i := range uint64(11) {
		done := total * i / 10
		state := SinkState{State: "ok", Epoch: 1 + i/6, Position: done, Delivered: done, Pending: total - done, Seen: done}
		if i == 5 {
			state.State, state.Parked = "waiting", 0
		}
		gap := ""
		if i >= 6 {
			gap = "the bus is new"
		}
		s.samples = append(s.samples, Sample{Gap: gap, At: int64(i) * second, Copy: 1 + int(i/6), Up: true, State: "ok", Committed: total, Events: total, RSS: 50,
			Sinks: map[string]SinkState{"db": state, "stream": state}})
	}
	return s
}

// keep makes the balances of "db", and checkpoints on the way.
func (s *tale) keep() {
	sums := map[string]int64{}
	p := Checkpoint{}
	for i, e := range s.truth {
		sums[e.Key] += e.Amount
		p.Events++
		p.Sum += e.Amount
		p.Open = p.Sum - p.Single
		if e.Part == e.Of-1 {
			p.Single, p.Open = p.Sum, 0
		}
		if i%5 == 0 {
			s.checks = append(s.checks, p)
		}
	}
	for _, key := range slices.Sorted(maps.Keys(sums)) {
		s.ledger = append(s.ledger, Balance{key, sums[key]})
	}
}

// deliver lets a sink get all of the truth, windows of it again, in the second
// half from the second copy.
func (s *tale) deliver(t *rapid.T, sink string) {
	again := map[int]bool{}
	for len(again) < 2 {
		again[rapid.IntRange(3, len(s.truth)-1).Draw(t, "again")] = true
	}
	for i := range s.truth {
		copy := 1
		if i > len(s.truth)/2 {
			copy = 2
		}
		if again[i] {
			for j := max(0, i-3); j < i; j++ {
				s.arrived[sink] = append(s.arrived[sink], Arrival{Event: s.truth[j], Copy: copy, Pos: uint64(j + 1)})
			}
		}
		s.arrived[sink] = append(s.arrived[sink], Arrival{Event: s.truth[i], Copy: copy, Pos: uint64(i + 1)})
		s.effects[sink] = append(s.effects[sink], Effect{Tx: s.truth[i].Tx, Part: s.truth[i].Part, Times: 1})
	}
	if sink == "stream" {
		return
	}
	// Without one order of all, events of different keys may pass each other.
	list := s.arrived[sink]
	for range 20 {
		i := rapid.IntRange(0, len(list)-2).Draw(t, "pass")
		a, b := &list[i], &list[i+1]
		if a.Copy == b.Copy && (a.Key == "" || a.Key != b.Key) {
			*a, *b = *b, *a
		}
	}
}

func (s *tale) write(t testing.TB, dir string) {
	t.Helper()
	add := func(file, sink string, records func(*Log)) {
		l, err := Create(dir, file, sink)
		if err != nil {
			t.Fatal(err)
		}
		records(l)
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
	add(TruthFile, "", func(l *Log) { all(l, s.truth) })
	add(ClientFile, "", func(l *Log) { all(l, s.clients) })
	add(SampleFile, "", func(l *Log) { all(l, s.samples) })
	add(FaultFile, "", func(l *Log) { all(l, s.faults) })
	for sink := range s.run.Sinks {
		add(ArrivedFile, sink, func(l *Log) { all(l, s.arrived[sink]) })
		add(EffectFile, sink, func(l *Log) { all(l, s.effects[sink]) })
	}
	add(BalanceFile, "db", func(l *Log) { all(l, s.ledger) })
	add(CheckpointFile, "db", func(l *Log) { all(l, s.checks) })
	if err := s.run.Save(dir); err != nil {
		t.Fatal(err)
	}
}

func all[T any](l *Log, records []T) {
	for i := range records {
		l.Add(&records[i])
	}
}

func judge(t testing.TB, s *tale) *Report {
	t.Helper()
	dir, err := os.MkdirTemp("", "history")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	s.write(t, dir)
	r, err := Check(dir)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestGoodRunsPass(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		if r := judge(t, tell(rt)); !r.OK() {
			rt.Fatal(r)
		}
	})
}

// first returns the index of the first arrival of an event, and of the first of
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
	{"I1", "an event never came", func(t *rapid.T, s *tale) { s.remove("db", some(t, s.truth).ID) }},
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
	{"I2", "an event came to a sink that does not want it", func(t *rapid.T, s *tale) { some(t, s.truth).Sink = "stream"; s.dropEffects() }},
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
	{"I6", "a balance of nothing", func(t *rapid.T, s *tale) { s.ledger = append(s.ledger, Balance{"nobody", 1}) }},
	{"I6", "a checkpoint that does not add up", func(t *rapid.T, s *tale) { some(t, s.checks).Sum-- }},
	{"I6", "a checkpoint that goes back", func(t *rapid.T, s *tale) { slices.Reverse(s.checks) }},
	{"I7", "a sink that refuses repeats got one", func(t *rapid.T, s *tale) {
		s.run.Sinks["stream"] = Kind{Ordered: true, Distinct: true}
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
	{"I10", "more confirmed than arrived", func(t *rapid.T, s *tale) { s.change("stream", 3, func(d *SinkState) { d.Delivered++; d.Pending-- }) }},
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
	{"I11", "trouble that is not said", func(t *rapid.T, s *tale) {
		for _, sink := range []string{"db", "stream"} {
			s.change(sink, 5, func(d *SinkState) { d.State = "ok" })
		}
	}},
	{"I11", "takeovers that take too long", func(t *rapid.T, s *tale) { s.faults[0].Takeover = 10 * second }},
	{"I12", "a gap that is not said", func(t *rapid.T, s *tale) {
		for i := range s.samples {
			s.samples[i].Gap = ""
		}
	}},
	{"I12", "a gap that was said before", func(t *rapid.T, s *tale) {
		for i := range s.samples {
			s.samples[i].Gap = "the bus is new"
		}
	}},
	{"I12", "a gap that is said too late", func(t *rapid.T, s *tale) {
		for i := range s.samples[6:] {
			s.samples[6+i].At += 20 * second
		}
	}},
	{"I13", "the numbers add up to more than there is", func(t *rapid.T, s *tale) { s.change("db", 2, func(d *SinkState) { d.Pending++ }) }},
	{"I13", "more taken than committed", func(t *rapid.T, s *tale) { s.samples[0].Events++ }},
	{"I13", "at rest one is missing", func(t *rapid.T, s *tale) { s.change("db", 10, func(d *SinkState) { d.Delivered-- }) }},
	{"I13", "at rest one is pending", func(t *rapid.T, s *tale) { s.change("db", 10, func(d *SinkState) { d.Delivered--; d.Pending++ }) }},
	{"I13", "what was set aside came", func(t *rapid.T, s *tale) { s.run.Parked = map[string][]string{"db": {some(t, s.truth).ID}} }},
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
	{"V7", "the truth has one twice", func(t *rapid.T, s *tale) { s.truth = append(s.truth, s.truth[0]) }},
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
				if r := judge(t, s); r.Laws[c.law] == 0 {
					rt.Fatalf("%s was not broken:\n%v", c.law, r)
				}
			})
		})
	}
}

// A file that cannot be read is an error and no verdict.
func TestUnreadable(t *testing.T) {
	dir := t.TempDir()
	if _, err := Check(dir); err == nil || !strings.Contains(err.Error(), "start it again") {
		t.Errorf("no run: %v", err)
	}
	if err := (&Run{}).Save(dir); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(dir+"/"+TruthFile, []byte("{\"tx\":1,\"of\":1}\n{\"tx\":"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := Check(dir); err == nil || !strings.Contains(err.Error(), "truth.jsonl:2") {
		t.Errorf("a torn line: %v", err)
	}
}

// A run without onewrite fails.
func TestNothingArrived(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		s := tell(rt)
		s.arrived, s.effects, s.samples = nil, nil, nil
		if r := judge(t, s); r.Laws["I1"] != 2*len(s.truth) {
			rt.Fatal(r)
		}
	})
}

// A million events are judged in less than a gigabyte.
func TestMillion(t *testing.T) {
	dir := t.TempDir()
	n := 1_000_000
	if raceEnabled {
		n = 50_000 // the memory of the detector is not the checker's
	}
	truth, err := Create(dir, TruthFile, "")
	if err != nil {
		t.Fatal(err)
	}
	arrived, err := Create(dir, ArrivedFile, "db")
	if err != nil {
		t.Fatal(err)
	}
	for i := range n {
		e := Event{Tx: uint64(i + 1), Of: 1, Key: fmt.Sprint("key-", i%1000), Seq: uint64(i/1000 + 1), ID: fmt.Sprintf("%032x", i), Hash: uint64(i)}
		truth.Add(&e)
		arrived.Add(&Arrival{Event: e, Pos: uint64(i)})
	}
	for _, l := range []*Log{truth, arrived} {
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if err := (&Run{Sinks: map[string]Kind{"db": {Ordered: true}}, Quiet: 1}).Save(dir); err != nil {
		t.Fatal(err)
	}
	runtime.GC()
	r, err := Check(dir)
	if err != nil || !r.OK() || r.Events != n {
		t.Fatalf("%v, %v", err, r)
	}
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	t.Logf("%d MB from the system", m.Sys>>20)
	if m.Sys > 1<<30 {
		t.Errorf("%d MB", m.Sys>>20)
	}
}
