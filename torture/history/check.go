package history

import (
	"fmt"
	"slices"
	"sort"
	"strings"
	"time"
)

// Report is the answer of [Check].
type Report struct {
	Laws   map[string]int `json:"laws"`   // violations of each law, I1 to I14, V1, V2 and V7
	Broken []string       `json:"broken"` // the first of each law, in words

	Committed int             `json:"committed"` // transactions
	Aborted   int             `json:"aborted"`
	Unknown   int             `json:"unknown"`
	Events    int             `json:"events"`
	Arrived   map[string]int  `json:"arrived"`           // at each sink, repeats included
	Repeats   map[string]int  `json:"repeats"`           // arrivals of an event that was there before
	Faults    map[string]int  `json:"faults"`            // by kind
	Changes   int             `json:"changes,omitempty"` // of rows, that arrived
	Rows      int             `json:"rows,omitempty"`    // that the tables and their copies hold
	Memory    int64           `json:"memory,omitempty"`  // the most that a copy of onewrite had resident, in bytes
	Lag       time.Duration   `json:"lag"`               // from the end of the last fault until all was quiet
	Takeovers []time.Duration `json:"takeovers"`         // ascending
}

// shown is how many violations of a law are told in words.
const shown = 5

// OK reports whether every law held.
func (r *Report) OK() bool { return len(r.Laws) == 0 }

func (r *Report) fail(law, format string, args ...any) {
	r.Laws[law]++
	if r.Laws[law] <= shown {
		r.Broken = append(r.Broken, law+": "+fmt.Sprintf(format, args...))
	}
}

// String is the report for people.
func (r *Report) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d transactions committed, %d aborted, %d in doubt; %d events; lag %v after the last fault\n",
		r.Committed, r.Aborted, r.Unknown, r.Events, r.Lag.Round(time.Millisecond))
	for _, sink := range sorted(r.Arrived) {
		fmt.Fprintf(&b, "%-12s %d arrived, %d of them again\n", sink, r.Arrived[sink], r.Repeats[sink])
	}
	if r.Changes > 0 {
		fmt.Fprintf(&b, "%d changes of rows arrived, the copies hold %d rows\n", r.Changes, r.Rows)
	}
	for _, kind := range sorted(r.Faults) {
		fmt.Fprintf(&b, "%-12s %d times\n", kind, r.Faults[kind])
	}
	if n := len(r.Takeovers); n > 0 {
		fmt.Fprintf(&b, "takeover: %d times, p50 %v, p99 %v, longest %v\n", n,
			r.Takeover(50).Round(time.Millisecond), r.Takeover(99).Round(time.Millisecond), r.Takeovers[n-1].Round(time.Millisecond))
	}
	if r.Memory > 0 {
		fmt.Fprintf(&b, "onewrite had at most %d MB in memory\n", r.Memory>>20)
	}
	if r.OK() {
		return b.String() + "every law held\n"
	}
	for _, law := range sorted(r.Laws) {
		fmt.Fprintf(&b, "%s broken %d times\n", law, r.Laws[law])
	}
	return b.String() + strings.Join(r.Broken, "\n") + "\n"
}

// Takeover returns how long so many in a hundred took at most, by nearest rank; 0
// if there were none.
func (r *Report) Takeover(percent int) time.Duration {
	n := len(r.Takeovers)
	if n == 0 {
		return 0
	}
	return r.Takeovers[max(0, (n*percent+99)/100-1)]
}

func sorted[V any](m map[string]V) []string {
	names := make([]string, 0, len(m))
	for name := range m {
		names = append(names, name)
	}
	sort.Strings(names)
	return names
}

// fact is an event of the truth as the checker keeps it.
type fact struct {
	amount int64
	key    uint32 // index of the key, 0 for none
	seq    uint64
	hash   uint64
	id     uint64
	sink   string
}

type checker struct {
	*Report
	run    *Run
	facts  []fact
	index  map[part]int32
	keys   map[string]uint32
	names  []string       // of keys
	keyed  map[uint32]int // events of each key
	whole  map[uint64]int // events of each transaction
	most   map[string]int // events that may come again at a sink; under "" at each
	waves  map[string]int // how often what is in flight may, the same way
	reread []reread       // in the order of time
	says   []Fault        // those that have to show
	holes  []Fault        // those that lose row changes
}

// reread allows the source to have read n events again from a moment on.
type reread struct {
	at int64
	n  int
}

// slack is how many events of the source may be repeats at a moment.
func (c *checker) slack(at int64) (n uint64) {
	for _, r := range c.reread {
		if r.at <= at {
			n += uint64(r.n)
		}
	}
	return n
}

// part names an event.
type part struct {
	tx uint64
	i  int
}

// Check reads the files of a run and judges it. The error is that of a file
// which cannot be read; a law that is broken is no error.
func Check(dir string) (*Report, error) {
	run, err := Load(dir)
	if err != nil {
		return nil, err
	}
	c := &checker{
		Report: &Report{Laws: map[string]int{}, Arrived: map[string]int{}, Repeats: map[string]int{}, Faults: map[string]int{}},
		run:    run, index: map[part]int32{}, keys: map[string]uint32{"": 0}, names: []string{""},
		keyed: map[uint32]int{}, whole: map[uint64]int{}, most: map[string]int{}, waves: map[string]int{},
	}
	for _, step := range []func(string) error{c.truth, c.entries, c.clients, c.faults, c.sinks, c.samples} {
		if err := step(dir); err != nil {
			return nil, err
		}
	}
	c.floors()
	return c.Report, nil
}

// truth reads what the database holds.
func (c *checker) truth(dir string) error {
	seqs := map[uint32][]uint64{}
	parts := map[uint64]int{}
	err := each(dir, TruthFile, "", func(e *Event) {
		p := part{e.Tx, e.Part}
		if _, twice := c.index[p]; twice {
			c.fail("V7", "the truth has event %d.%d twice", e.Tx, e.Part)
			return
		}
		key, known := c.keys[e.Key]
		if !known {
			key = uint32(len(c.names))
			c.keys[e.Key] = key
			c.names = append(c.names, e.Key)
		}
		c.index[p] = int32(len(c.facts))
		c.facts = append(c.facts, fact{key: key, seq: e.Seq, hash: e.Hash, id: digest(e.ID), sink: e.Sink, amount: e.Amount})
		if of := c.whole[e.Tx]; of != 0 && of != e.Of {
			c.fail("V7", "the truth says that transaction %d has %d events, and %d", e.Tx, of, e.Of)
		}
		c.whole[e.Tx] = e.Of
		parts[e.Tx]++
		if key != 0 {
			c.keyed[key]++
			seqs[key] = append(seqs[key], e.Seq)
		}
	})
	for tx, of := range c.whole {
		if parts[tx] != of {
			c.fail("V7", "the truth has %d of the %d events of transaction %d", parts[tx], of, tx)
		}
	}
	for key, list := range seqs {
		slices.Sort(list)
		for i, s := range list {
			if s != uint64(i+1) {
				c.fail("V7", "the truth has no number %d of key %s", i+1, c.names[key])
				break
			}
		}
	}
	c.Committed, c.Events = len(c.whole), len(c.facts)
	return err
}

// clients compares what the writers were told with the truth: if the database
// lost what it had confirmed, the run says nothing about onewrite.
func (c *checker) clients(dir string) error {
	return each(dir, ClientFile, "", func(o *Outcome) {
		_, there := c.whole[o.Tx]
		switch o.Told {
		case "ok":
			if !there {
				c.fail("V7", "the database confirmed transaction %d and does not have it", o.Tx)
			}
		case "fail":
			c.Aborted++
			if there {
				c.fail("V7", "the database refused transaction %d and has it", o.Tx)
			}
		default:
			c.Unknown++
		}
	})
}

// faults collects what was done, what it allows and what has to be said of it.
func (c *checker) faults(dir string) error {
	err := each(dir, FaultFile, "", func(f *Fault) {
		if f.Proof == "" {
			c.fail("V2", "%s of %s had no effect", f.Kind, f.On)
			return
		}
		n := max(1, f.Times)
		c.Faults[f.Kind] += n
		where := f.Sinks
		if _, ok := c.run.Sinks[f.On]; ok && len(where) == 0 {
			where = []string{f.On}
		} else if len(where) == 0 {
			where = []string{""}
		}
		for _, at := range where {
			switch {
			case f.Most == 0:
				c.waves[at] += n
			case f.Most > 0:
				c.most[at] += f.Most
			}
		}
		c.reread = append(c.reread, reread{f.At, f.Again})
		if f.Healed > 0 {
			c.holes = append(c.holes, *f)
		}
		switch f.Says {
		case "":
		case "gap", "trouble":
			c.says = append(c.says, *f)
		default:
			c.fail("V2", "%s of %s has to say %q, which is nothing to look for", f.Kind, f.On, f.Says)
		}
		if f.Takeover > 0 {
			c.Takeovers = append(c.Takeovers, time.Duration(f.Takeover))
		}
	})
	slices.Sort(c.Takeovers)
	return err
}

// floors refuses a run in which too little happened.
func (c *checker) floors() {
	f := c.run.Floors
	if c.Committed < f.Committed {
		c.fail("V1", "%d transactions, at least %d are needed", c.Committed, f.Committed)
	}
	if all := c.Committed + c.Aborted; float64(c.Aborted) < f.Aborted*float64(all) {
		c.fail("V1", "%d of %d transactions were aborted, at least %.0f %% are needed", c.Aborted, all, 100*f.Aborted)
	}
	many := 0
	for _, n := range c.keyed {
		if n >= f.KeyEvents {
			many++
		}
	}
	if many < f.Keys {
		c.fail("V1", "%d keys have %d events, at least %d are needed", many, f.KeyEvents, f.Keys)
	}
	for _, kind := range sorted(f.Faults) {
		if c.Faults[kind] < f.Faults[kind] {
			c.fail("V1", "%d times %s, at least %d are needed", c.Faults[kind], kind, f.Faults[kind])
		}
	}
	for _, label := range f.Labels {
		if c.run.Labels[label] == 0 {
			c.fail("V2", "it never happened: %s", label)
		}
	}
	for _, label := range sorted(f.Counts) {
		if n := c.run.Labels[label]; n < f.Counts[label] {
			c.fail("V2", "it happened %d times, at least %d are needed: %s", n, f.Counts[label], label)
		}
	}
	if b := time.Duration(c.run.Budget.Takeover); b > 0 && c.Takeover(99) > b {
		c.fail("I11", "of a hundred takeovers 99 took up to %v, %v are allowed", c.Takeover(99), b)
	}
	c.Lag = max(0, time.Duration(c.run.Quiet-c.run.Calm))
	if c.run.Quiet == 0 {
		c.fail("I11", "it never became quiet")
	} else if b := c.run.Budget.Lag; b > 0 && c.run.Quiet-c.run.Calm > b {
		c.fail("I11", "quiet only %v after the last fault", c.Lag)
	}
}
