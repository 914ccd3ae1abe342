package history

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"reflect"
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

// tell makes a good run: transactions of one to three events over some keys, some
// of them transfers, two sinks, faults after which some comes again, two copies of
// which the second takes over.
func tell(t *rapid.T) *tale {
	s := &tale{
		run: Run{Workload: "W2", Window: 8, Calm: 100 * second, Quiet: 101 * second, Sinks: map[string]Kind{
			"db": {Once: true, Ledger: true}, "stream": {Ordered: true, Distinct: rapid.Bool().Draw(t, "distinct")}},
			Labels: map[string]int{"replay": 1, "lost": 5}, Budget: Budget{RSS: 100, Lag: 30 * second, Takeover: 9 * second},
			Floors: Floors{Committed: 20, Aborted: 0.05, Keys: 2, KeyEvents: 3, Faults: map[string]int{"kill": 2}, Labels: []string{"replay"}, Counts: map[string]int{"lost": 5}, Checkpoints: 3},
			Parked: map[string][]string{}},
		arrived: map[string][]Arrival{}, effects: map[string][]Effect{},
		faults: []Fault{{Kind: "kill", Proof: "pid 1 is 2", Takeover: 8 * second, Most: 3}, {Kind: "kill", Proof: "pid 2 is 3", Times: 2, On: "db"},
			{Kind: "lost bus", Proof: "moved", At: 4 * second, Until: 9 * second, Says: "gap", Most: -1},
			{Kind: "full disk", Proof: "filled", At: 4 * second, Until: 9 * second, Says: "trouble", Most: -1},
			{Kind: "crash", Proof: "started", At: 200 * second, Again: 3, Most: -1}},
	}
	// Of a hundred and one takeovers the longest may be longer than allowed.
	s.faults = append(s.faults, Fault{Kind: "round", Proof: "state T", Takeover: 20 * second, Most: -1})
	for i := range 99 {
		s.faults = append(s.faults, Fault{Kind: "round", Proof: "state T", Takeover: int64(8-i%8) * second, Most: -1})
	}
	if rapid.Bool().Draw(t, "W1") {
		s.run.Workload = "W1 W2"
	}
	s.commit(t)
	for range rapid.IntRange(0, 3).Draw(t, "parked") {
		s.run.Parked["db"] = append(s.run.Parked["db"], some(t, s.truth).ID)
	}
	for _, sink := range []string{"db", "stream"} {
		s.deliver(t, sink)
	}
	s.keep()
	s.watch(t)
	return s
}

// commit makes the truth, and what the writers are told of it.
func (s *tale) commit(t *rapid.T) {
	seqs := map[string]uint64{}
	add := func(e Event, key string) {
		if e.Key = key; key != "" {
			seqs[key]++
			e.Seq = seqs[key]
		}
		e.ID, e.Hash = fmt.Sprintf("id-%d-%d", e.Tx, e.Part), e.Tx*10+uint64(e.Part)
		s.truth = append(s.truth, e)
	}
	n := rapid.IntRange(30, 120).Draw(t, "transactions")
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
		if tx == 1 {
			of = 2 // so that there is a transfer
		}
		for i := range of {
			e := Event{Tx: id, Part: i, Of: of, Amount: 1 + int64(id%7)}
			if of == 2 && i == 1 && s.run.Workload == "W1 W2" {
				e.Amount = -e.Amount
			}
			if id%4 == 0 {
				e.Sink = rapid.SampledFrom([]string{"", "db", "stream"}).Draw(t, "only for")
			}
			key := ""
			if k := rapid.IntRange(0, 3).Draw(t, "key"); k > 0 {
				key = fmt.Sprint("k", k)
			}
			add(e, key)
		}
	}
	for _, key := range []string{"k1", "k1", "k1", "k2", "k2", "k2", "k3", "k3", "k3", "sentinel"} { // enough of each for the floors
		id := uint64(len(s.clients) + 1)
		s.clients = append(s.clients, Outcome{id, "ok"})
		add(Event{Tx: id, Of: 1, Amount: map[string]int64{"k2": 1000}[key]}, key)
	}
}

// gets reports whether a sink is to get an event.
func (s *tale) gets(sink string, e *Event) bool {
	return (e.Sink == "" || e.Sink == sink) && !slices.Contains(s.run.Parked[sink], e.ID)
}

// watch makes the samples. The fourth is of another bus, or not; the sixth says
// that there is trouble, and the seventh that there is a gap.
func (s *tale) watch(t *rapid.T) {
	total := uint64(len(s.truth))
	mine, parked := map[string]uint64{}, map[string]uint64{}
	for i := range s.truth {
		for sink := range s.run.Sinks {
			switch e := &s.truth[i]; {
			case s.gets(sink, e):
				mine[sink]++
			case e.Sink == "" || e.Sink == sink:
				parked[sink]++
			}
		}
	}
	exchanged := rapid.Bool().Draw(t, "exchanged")
	for i := range uint64(11) {
		o := Sample{At: int64(3*i) * second, Copy: 1 + int(i/6), Up: true, State: "ok", Committed: total, Events: total, RSS: 50, Sinks: map[string]SinkState{}}
		before := uint64(0) // the counts that went with the bus
		if exchanged && i > 2 {
			o.Age, before = 1, min(mine["db"], mine["stream"])*2/10
		}
		o.Events -= before
		for sink := range s.run.Sinks {
			done := mine[sink] * i / 10
			o.Sinks[sink] = SinkState{State: "ok", Epoch: 1 + i/6, Position: done - before, Delivered: done - before, Pending: mine[sink] - done,
				Parked: parked[sink], Filtered: total - mine[sink] - parked[sink], Seen: done}
		}
		if o.Copy == 1 {
			o.Warnings = 1
		} else {
			o.Gap = "the bus is new"
		}
		s.samples = append(s.samples, o)
	}
	switch rapid.SampledFrom([]string{"a sink", "the source", "a warning", "no answer"}).Draw(t, "trouble") {
	case "a sink":
		s.change("db", 5, func(d *SinkState) { d.State = "waiting" })
	case "the source":
		s.samples[5].State = "waiting"
	case "a warning":
		s.samples[5].Warnings = 2
	case "no answer":
		s.samples[5].Up = false
	}
}

// keep makes the balances of "db", and checkpoints on the way.
func (s *tale) keep() {
	sums := map[string]int64{}
	half, parts := map[uint64]int64{}, map[uint64]int{} // what has come of a transaction
	p := Checkpoint{}
	for i := range s.truth {
		e := &s.truth[i]
		if !s.gets("db", e) {
			continue
		}
		sums[e.Key] += e.Amount
		p.Events++
		p.Sum += e.Amount
		p.Open += e.Amount
		half[e.Tx] += e.Amount
		if parts[e.Tx]++; parts[e.Tx] == e.Of {
			p.Open -= half[e.Tx]
			p.Single += half[e.Tx]
		}
		if p.Events%5 == 0 {
			s.checks = append(s.checks, p)
		}
	}
	s.ledger = append(s.ledger, Balance{"nobody", 0})
	for _, key := range slices.Sorted(maps.Keys(sums)) {
		if sums[key] != 0 {
			s.ledger = append(s.ledger, Balance{key, sums[key]})
		}
	}
}

// deliver lets a sink get all that it wants and that is not set aside, some of it
// again, in the second half from the second copy.
func (s *tale) deliver(t *rapid.T, sink string) {
	var mine []Arrival
	for i, e := range s.truth {
		if s.gets(sink, &e) {
			mine = append(mine, Arrival{Event: e, Copy: 1, Pos: uint64(i + 1)})
			s.effects[sink] = append(s.effects[sink], Effect{Tx: e.Tx, Part: e.Part, Times: 1})
		}
	}
	windows := map[string]int{"db": 3, "stream": 2}[sink]
	if s.run.Sinks[sink].Distinct {
		windows = 1 // that the source read again
	}
	again := map[int]bool{}
	for len(again) < windows {
		again[rapid.IntRange(3, len(mine)-1).Draw(t, "again")] = true
	}
	for i, a := range mine {
		if i > len(mine)/2 {
			a.Copy = 2
		}
		if again[i] {
			for _, b := range mine[i-3 : i] {
				b.Copy = a.Copy
				s.arrived[sink] = append(s.arrived[sink], b)
			}
		}
		s.arrived[sink] = append(s.arrived[sink], a)
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

// What stands while a copy does not answer, as it is frozen, is no lie of it.
func TestFrozenSaysNothing(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		s := tell(rt)
		for _, answers := range []bool{true, false} {
			with := *s
			with.samples = slices.Clone(s.samples)
			for i := range with.samples[3:] {
				with.samples[3+i].At += 30 * second
			}
			for _, later := range []int64{6, 11, 12} {
				again := s.samples[2]
				again.At += later * second
				again.Up = answers || later == 12
				with.samples = append(with.samples, again)
			}
			slices.SortFunc(with.samples, func(a, b Sample) int { return cmp.Compare(a.At, b.At) })
			if says := strings.Contains(strings.Join(judge(t, &with).Broken, " "), "stands at"); says != answers {
				rt.Fatalf("it answers: %v, and stands: %v", answers, says)
			}
		}
	})
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
		want := 0
		for i := range s.truth {
			for sink := range s.run.Sinks {
				if s.gets(sink, &s.truth[i]) {
					want++
				}
			}
		}
		if r := judge(t, s); r.Laws["I1"] != want {
			rt.Fatal(r)
		}
	})
}

// A report is kept as JSON, and means the same when it is read back.
func TestReportIsKept(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		s := tell(rt)
		if rapid.Bool().Draw(rt, "spoilt") {
			some(rt, spoils).do(rt, s)
		}
		r := judge(t, s)
		text, err := json.Marshal(r)
		if err != nil {
			rt.Fatal(err)
		}
		back := &Report{}
		if err := json.Unmarshal(text, back); err != nil {
			rt.Fatal(err)
		}
		if !reflect.DeepEqual(r, back) || r.OK() != back.OK() || r.String() != back.String() {
			rt.Fatalf("%s\nis not %v\nbut %v", text, r, back)
		}
		fields := map[string]any{}
		if err := json.Unmarshal(text, &fields); err != nil {
			rt.Fatal(err)
		}
		for name := range fields {
			if name != strings.ToLower(name[:1])+name[1:] {
				rt.Errorf("%s is not lower camel", name)
			}
		}
	})
}

// What a hundred takeovers took is told by nearest rank.
func TestTakeovers(t *testing.T) {
	r := &Report{}
	if p := r.Takeover(99); p != 0 || strings.Contains(r.String(), "takeover") {
		t.Errorf("none: %v, %v", p, r)
	}
	for _, c := range []struct{ n, percent, want int }{
		{1, 50, 1}, {1, 99, 1}, {2, 50, 1}, {2, 99, 2}, {3, 50, 2}, {99, 99, 99}, {100, 50, 50}, {100, 99, 99}, {101, 99, 100}, {200, 99, 198}, {5, 0, 1}, {5, 100, 5},
	} {
		r := &Report{}
		for i := range c.n {
			r.Takeovers = append(r.Takeovers, time.Duration(i+1)*time.Second)
		}
		if p := r.Takeover(c.percent); p != time.Duration(c.want)*time.Second {
			t.Errorf("%d of %d: %v, want %d s", c.percent, c.n, p, c.want)
		}
	}
	rapid.Check(t, func(rt *rapid.T) {
		if r := judge(t, tell(rt)); !strings.Contains(r.String(), "takeover: 101 times, p50 5s, p99 8s, longest 20s\n") {
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
		e := Event{Tx: uint64(i/2 + 1), Part: i % 2, Of: 2, Key: fmt.Sprint("key-", i%1000), Seq: uint64(i/1000 + 1), ID: fmt.Sprintf("%032x", i), Hash: uint64(i), Amount: int64(1 - i%2*2)}
		truth.Add(&e)
		arrived.Add(&Arrival{Event: e, Pos: uint64(i)})
	}
	balances, err := Create(dir, BalanceFile, "db")
	if err != nil {
		t.Fatal(err)
	}
	for i := range 1000 {
		balances.Add(&Balance{fmt.Sprint("key-", i), int64(n / 1000 * (1 - i%2*2))})
	}
	for _, l := range []*Log{truth, arrived, balances} {
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if err := (&Run{Sinks: map[string]Kind{"db": {Ordered: true, Ledger: true}}, Quiet: 1, Workload: "W1"}).Save(dir); err != nil {
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
