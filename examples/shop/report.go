package shop

import (
	"errors"
	"fmt"
)

// Report is what the demo found.
type Report struct {
	Seed uint64 `json:"seed"`
	// Database is sqlite or postgres.
	Database string `json:"database"`
	// Orders is how many orders the plan ends with.
	Orders   int     `json:"orders"`
	Naive    Act     `json:"naive"`
	Onewrite Act     `json:"onewrite"`
	Seconds  float64 `json:"seconds"`
	// Problems are the reasons why the demo has failed: damage in the second
	// act, none in the first, or too little happened for either to mean
	// anything. Empty: all is as it should be.
	Problems []string `json:"problems"`
}

// Verdict returns the problems as one error, nil if there are none.
func (r Report) Verdict() error {
	var errs []error
	for _, p := range r.Problems {
		errs = append(errs, errors.New(p))
	}
	return errors.Join(errs...)
}

// Act is one act as the stores tell it afterwards.
type Act struct {
	// Committed orders, as the service's database has them.
	Committed int `json:"committed"`
	// RolledBack counts the orders that were written and taken back.
	RolledBack int `json:"rolled_back"`
	// Consoles is how often the one console was sold.
	Consoles int `json:"consoles_sold"`
	// Faults counts the requests that were spoilt at the consumers' doors.
	Faults int `json:"faults"`
	// Kills counts the processes that were killed while at work: service,
	// consumer, onewrite.
	Kills map[string]int `json:"kills"`
	// Repeats counts the events that came again and that the inboxes knew.
	Repeats int `json:"repeats"`
	// Tallies are the consumers' stores against the committed orders.
	Tallies []Tally `json:"consumers"`
	Seconds float64 `json:"seconds"`
}

// sum adds the tallies up.
func (a Act) sum() (t Tally) {
	for _, c := range a.Tallies {
		t.Effects += c.Effects
		t.Missing += c.Missing
		t.Doubled += c.Doubled
		t.OutOfOrder += c.OutOfOrder
		t.Phantom += c.Phantom
		t.WrongTotals += c.WrongTotals
	}
	return t
}

// judge fills in the problems.
func (r *Report) judge() {
	r.Problems = []string{}
	r.floors("act one", r.Naive, "service", "consumer")
	r.floors("act two", r.Onewrite, "service", "consumer", "onewrite")
	if s := r.Naive.sum(); s.Missing == 0 || s.Doubled == 0 {
		r.problem("act one: %d missing and %d doubled, so the faults have done too little to prove anything; try more --orders or another --seed", s.Missing, s.Doubled)
	}
	if r.Onewrite.Repeats == 0 {
		r.problem("act two: no event came twice, so nothing proves that the inboxes work; try more --orders or another --seed")
	}
	for _, t := range r.Onewrite.Tallies {
		if t.harmed() {
			r.problem("act two: %s: %d missing, %d doubled, %d out of order, %d phantom, %d wrong totals; please report it with the seed %d, and look with --keep",
				t.Consumer, t.Missing, t.Doubled, t.OutOfOrder, t.Phantom, t.WrongTotals, r.Seed)
		}
	}
}

// floors are what must have happened for an act to mean anything: nothing may
// look good because nothing took place.
func (r *Report) floors(name string, a Act, killed ...string) {
	if a.Committed != r.Orders {
		r.problem("%s: %d orders were committed in the place of %d", name, a.Committed, r.Orders)
	}
	if tried := a.Committed + a.RolledBack; a.RolledBack*20 < tried {
		r.problem("%s: only %d of %d orders were rolled back, 5 %% are needed", name, a.RolledBack, tried)
	}
	if a.Consoles != 1 {
		r.problem("%s: the last console was sold %d times", name, a.Consoles)
	}
	if a.Faults == 0 {
		r.problem("%s: no fault was injected", name)
	}
	if len(a.Tallies) != len(consumers) {
		r.problem("%s: %d of %d consumers were counted", name, len(a.Tallies), len(consumers))
	}
	for _, who := range killed {
		if a.Kills[who] == 0 {
			r.problem("%s: no %s was killed while at work", name, who)
		}
	}
}

func (r *Report) problem(format string, args ...any) {
	r.Problems = append(r.Problems, fmt.Sprintf(format, args...))
}
