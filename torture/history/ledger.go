package history

import (
	"slices"
	"strings"
)

// entries holds the truth against its workload: a transfer of the ledger W1 takes
// from one account what it gives to another. Only then the balances of a consumer
// move by nothing but transfers that have come in part, and by single events.
func (c *checker) entries(string) error {
	if !slices.Contains(strings.Fields(c.run.Workload), "W1") {
		return nil
	}
	sums := map[uint64]int64{}
	for p, i := range c.index {
		if c.whole[p.tx] == 2 {
			sums[p.tx] += c.facts[i].amount
		}
	}
	for tx, sum := range sums {
		if sum != 0 {
			c.fail("V7", "the truth has transfer %d, which adds up to %d", tx, sum)
		}
	}
	return nil
}

// ledger judges the balances that a consumer keeps in the transaction of its
// effects: at every checkpoint and at the end.
func (a *arrivals) ledger(dir string) error {
	if !a.kind.Ledger {
		return nil
	}
	n, before := 0, uint64(0)
	err := each(dir, CheckpointFile, a.sink, func(p *Checkpoint) {
		n++
		if p.Sum != p.Single+p.Open {
			a.fail("I6", "the balances of %s add up to %d after %d events, which amount to %d", a.sink, p.Sum, p.Events, p.Single+p.Open)
		}
		if p.Events < before {
			a.fail("I6", "%s had acted on %d events, and then on %d", a.sink, before, p.Events)
		}
		before = p.Events
	})
	if err != nil {
		return err
	}
	if least := a.run.Floors.Checkpoints; n < least {
		a.fail("V1", "%d checkpoints of %s, at least %d are needed", n, a.sink, least)
	}
	want := map[string]int64{}
	for i := range a.facts {
		if f := &a.facts[i]; a.wants(f) && !a.parked[f.id] {
			want[a.names[f.key]] += f.amount
		}
	}
	err = each(dir, BalanceFile, a.sink, func(b *Balance) {
		if b.Sum != want[b.Key] {
			a.fail("I6", "the balance of %s at %s is %d, the database's is %d", b.Key, a.sink, b.Sum, want[b.Key])
		}
		delete(want, b.Key)
	})
	for _, key := range sorted(want) {
		if want[key] != 0 {
			a.fail("I6", "%s has no balance of %s, the database's is %d", a.sink, key, want[key])
		}
	}
	return err
}
