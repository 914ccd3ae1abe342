package shop

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
)

// record is what a run leaves in its folder beside the consumers' stores: all that is
// needed to count them, again or by somebody else.
type record struct {
	Seed       uint64           `json:"seed"`
	Orders     int              `json:"orders"`
	RolledBack int              `json:"rolled_back"`
	Faults     map[string]Fault `json:"faults"`
	Seconds    float64          `json:"seconds"`
	Truth      []order          `json:"truth"` // what the service's database has
}

const recordFile = "record.json"

func (r record) write(dir string) error {
	text, err := json.Marshal(r)
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, recordFile), text, 0o600)
	}
	if err != nil {
		return fmt.Errorf("shop: %w", err)
	}
	return nil
}

// BlueprintReport is what was found.
type BlueprintReport struct {
	Seed uint64 `json:"seed"`
	// Planned and Committed are orders; RolledBack were written and taken back.
	Planned    int `json:"planned"`
	Committed  int `json:"committed"`
	RolledBack int `json:"rolled_back"`
	// Consoles is how often the one console was sold.
	Consoles int `json:"consoles_sold"`
	// Faults are those that were made, by name.
	Faults map[string]Fault `json:"faults"`
	// Consumers are their stores against what was committed.
	Consumers []Delivery `json:"consumers"`
	Seconds   float64    `json:"seconds"`
	// Problems are the reasons why the run has failed; empty if all is well.
	Problems []string `json:"problems"`
}

// Delivery is one consumer's store against what was committed for it.
type Delivery struct {
	Tally
	// Broker is RabbitMQ or Kafka.
	Broker string `json:"broker"`
	// Committed is what it has to have an effect of, each once.
	Committed int `json:"committed"`
	// Repeats is how many messages came again and had no effect.
	Repeats int `json:"repeats"`
	// SentTwice is how many records of Kafka's topic hold an event that another record
	// holds too. One that is read again, by a consumer that was killed, is none.
	SentTwice int `json:"sent_twice"`
}

// Verdict returns the problems as one error, nil if there are none.
func (r BlueprintReport) Verdict() error { return Report{Problems: r.Problems}.Verdict() }

// RecountBlueprint counts what a run has left in its folder.
func RecountBlueprint(ctx context.Context, dir string) (BlueprintReport, error) {
	var rec record
	text, err := os.ReadFile(filepath.Join(dir, recordFile))
	if err == nil {
		err = json.Unmarshal(text, &rec)
	}
	if err != nil {
		return BlueprintReport{}, fmt.Errorf("shop: %s holds no run that has ended: %w", dir, err)
	}
	r := BlueprintReport{Seed: rec.Seed, Planned: newPlan(rec.Seed, rec.Orders).orders, Committed: len(rec.Truth),
		RolledBack: rec.RolledBack, Faults: rec.Faults, Seconds: rec.Seconds}
	for _, o := range rec.Truth {
		if o.Item == console {
			r.Consoles++
		}
	}
	for _, s := range subscribers {
		d, err := s.count(ctx, dir, rec)
		if err != nil {
			return r, err
		}
		r.Consumers = append(r.Consumers, d)
	}
	r.judge()
	return r, nil
}

// count counts the store of one consumer.
func (s subscriber) count(ctx context.Context, dir string, rec record) (d Delivery, err error) {
	path := storeIn(dir, s.name)
	if _, err := os.Stat(path); err != nil {
		return d, fmt.Errorf("shop: %w", err)
	}
	db, err := openReadOnly(path)
	if err != nil {
		return d, err
	}
	defer db.Close()
	d = Delivery{Broker: s.broker, Committed: len(rec.Truth)}
	if s.name == searchIndex.name {
		d.Committed = 2 * len(rec.Truth)
		d.Tally, err = tallySearch(ctx, db, rec.Truth)
	} else {
		d.Tally, err = tally(ctx, s.name, db, rec.Truth, stock(rec.Orders))
	}
	if err != nil {
		return d, err
	}
	if d.Repeats, err = number(ctx, db, `SELECT coalesce(sum(times - 1), 0) FROM inbox`); err != nil {
		return d, err
	}
	d.SentTwice, err = number(ctx, db, `SELECT count(*) - count(DISTINCT id) FROM places`)
	return d, err
}

// tallySearch counts the search index: two changes of each row, in their order, and a
// document that is as the row.
func tallySearch(ctx context.Context, db *sql.DB, truth []order) (t Tally, err error) {
	var want []order // one for each change; what is in order is the row
	documents := make(map[string]int, len(truth))
	for _, o := range truth {
		row := fmt.Sprintf("order %d", o.N)
		want = append(want, order{N: 2 * o.N, Customer: row, Seq: 1}, order{N: 2*o.N + 1, Customer: row, Seq: 2})
		documents[row+": "+o.Item+" "+o.Customer] = 1 // paid
	}
	got, err := effectsIn(ctx, db, `SELECT 2 * n + step - 1, 1, 'order ' || n, step FROM changes ORDER BY id`)
	if err != nil {
		return t, err
	}
	t = compare(want, got)
	t.Consumer = searchIndex.name
	found, err := pairs(ctx, db, `SELECT 'order ' || n || ': ' || text, paid FROM documents`)
	t.WrongTotals = differences(documents, found)
	return t, err
}

// judge fills in the problems. As in the demo nothing may look good because nothing
// took place.
func (r *BlueprintReport) judge() {
	r.Problems = []string{}
	problem := func(format string, args ...any) { r.Problems = append(r.Problems, fmt.Sprintf(format, args...)) }
	if r.Committed != r.Planned {
		problem("%d orders were committed in the place of %d", r.Committed, r.Planned)
	}
	if tried := r.Committed + r.RolledBack; r.RolledBack*20 < tried {
		problem("only %d of %d orders were rolled back, 5 %% are needed", r.RolledBack, tried)
	}
	if r.Consoles != 1 {
		problem("the last console was sold %d times", r.Consoles)
	}
	for _, name := range plannedFaults {
		if r.Faults[name].Times == 0 {
			problem("a fault was not made: %s", name)
		}
	}
	if len(r.Consumers) != len(subscribers) {
		problem("%d of %d consumers were counted", len(r.Consumers), len(subscribers))
	}
	for _, d := range r.Consumers {
		if d.harmed() {
			problem("%s: %d missing, %d doubled, %d out of order, %d phantom, %d wrong totals",
				d.Consumer, d.Missing, d.Doubled, d.OutOfOrder, d.Phantom, d.WrongTotals)
		}
		if d.SentTwice > 0 {
			problem("%s: %d events were written to Kafka twice, where transactions promise once", d.Consumer, d.SentTwice)
		}
	}
}

// Write prints the table and what it means.
func (r BlueprintReport) Write(w io.Writer) error {
	const row = "%-10s%-9s%10s%8s%8s%8s%13s%8s%13s%8s\n"
	var b strings.Builder
	fmt.Fprintf(&b, row, "consumer", "from", "committed", "effects", "missing", "doubled", "out of order", "phantom", "wrong totals", "repeats")
	effects, repeats := 0, 0
	for _, d := range r.Consumers {
		effects, repeats = effects+d.Effects, repeats+d.Repeats
		fmt.Fprintf(&b, row, d.Consumer, d.Broker, thousands(d.Committed), thousands(d.Effects), thousands(d.Missing), thousands(d.Doubled),
			thousands(d.OutOfOrder), thousands(d.Phantom), thousands(d.WrongTotals), thousands(d.Repeats))
	}
	fmt.Fprintf(&b, "\n%s orders committed, %s rolled back.\n%s", thousands(r.Committed), thousands(r.RolledBack), faultsText(r.Faults))
	if len(r.Problems) > 0 {
		fmt.Fprintf(&b, "\nThis did not go as it should (%.0f s):\n - %s\nRun it with --dir FOLDER to keep the stores and onewrite's log.\n",
			r.Seconds, strings.Join(r.Problems, "\n - "))
	} else {
		fmt.Fprintf(&b, "Nothing missing, nothing twice, nothing out of order: %s effects were counted from\n"+
			"the consumers' own stores in %.0f s. %s repeats came, were recognised and had no effect; to Kafka\n"+
			"no event was written twice.\n", thousands(effects), r.Seconds, thousands(repeats))
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// faultsText is a line of those that were killed and came back at once, and one of
// those that were away.
func faultsText(faults map[string]Fault) string {
	var killed, away []string
	for _, name := range plannedFaults {
		f := faults[name]
		if f.Seconds > 0 {
			away = append(away, fmt.Sprintf("%s, %.1f s", name, f.Seconds))
			continue
		}
		killed = append(killed, fmt.Sprintf("%s %dx", strings.TrimSuffix(name, " killed"), f.Times))
	}
	return "Killed: " + strings.Join(killed, ", ") + ".\nAway: " + strings.Join(away, "; ") + ".\n"
}
