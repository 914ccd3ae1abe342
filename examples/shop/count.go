package shop

import (
	"context"
	"database/sql"
	"fmt"
)

// The count reads the service's orders and each consumer's store with plain SQL.
// It shares nothing with onewrite, nor with the code that wrote the stores.

// Tally compares one consumer's store with the committed orders. All but
// Effects are numbers of mistakes.
type Tally struct {
	Consumer string `json:"consumer"`
	// Effects is how often the consumer has worked for an order.
	Effects int `json:"effects"`
	// Missing orders were committed and never worked for.
	Missing int `json:"missing"`
	// Doubled is how often it worked for an order that it had worked for.
	Doubled int `json:"doubled"`
	// OutOfOrder is how many orders came after a later one of their customer.
	OutOfOrder int `json:"out_of_order"`
	// Phantom is how often it worked for an order that was never committed.
	Phantom int `json:"phantom"`
	// WrongTotals is how many of the consumer's sums (the units of an item, the
	// sales of an item, the score of a customer) are not what the orders give.
	WrongTotals int `json:"wrong_totals"`
}

// harmed reports whether anything is wrong.
func (t Tally) harmed() bool {
	return t.Missing+t.Doubled+t.OutOfOrder+t.Phantom+t.WrongTotals > 0
}

// effect is one row of a consumer's store: it has worked for order n, so often.
type effect struct {
	n, times int
	customer string
	seq      int
}

// effectsOf are the queries for a consumer's effects in the order of the first.
var effectsOf = map[string]string{
	"inventory": `SELECT n, 1, customer, seq FROM picked ORDER BY id`,
	"email":     `SELECT n, 1, customer, seq FROM mails ORDER BY id`,
	"analytics": `SELECT n, 1, customer, seq FROM counted ORDER BY id`,
	"search":    `SELECT n, version, customer, seq FROM documents ORDER BY id`,
	"fraud":     `SELECT n, 1, customer, seq FROM looked ORDER BY id`,
}

// totalsOf are the queries for a consumer's sums, by name.
var totalsOf = map[string]string{
	"inventory": `SELECT item, units FROM stock`,
	"analytics": `SELECT item || ' orders', orders FROM sales UNION ALL SELECT item || ' cents', cents FROM sales`,
	"fraud":     `SELECT customer, score FROM scores`,
}

// truthOf reads the committed orders, each customer's in their order.
func truthOf(ctx context.Context, db *sql.DB) ([]order, error) {
	rows, err := db.QueryContext(ctx, `SELECT n, customer, seq, item, quantity, cents FROM orders ORDER BY customer, seq`)
	if err != nil {
		return nil, fmt.Errorf("shop: count: %w", err)
	}
	defer rows.Close()
	var truth []order
	for rows.Next() {
		var o order
		if err := rows.Scan(&o.N, &o.Customer, &o.Seq, &o.Item, &o.Quantity, &o.Cents); err != nil {
			return nil, fmt.Errorf("shop: count: %w", err)
		}
		truth = append(truth, o)
	}
	return truth, rows.Err()
}

// tally counts one consumer's store.
func tally(ctx context.Context, name string, db *sql.DB, truth []order, initial map[string]int) (Tally, error) {
	effects, err := effectsIn(ctx, db, effectsOf[name])
	if err != nil {
		return Tally{}, fmt.Errorf("%w (%s)", err, name)
	}
	t := compare(truth, effects)
	t.Consumer = name
	if query := totalsOf[name]; query != "" {
		got, err := pairs(ctx, db, query)
		if err != nil {
			return Tally{}, fmt.Errorf("%w (%s)", err, name)
		}
		t.WrongTotals = differences(totals(name, truth, initial), got)
	}
	return t, nil
}

// effectsIn reads a query of effects.
func effectsIn(ctx context.Context, db *sql.DB, query string) (effects []effect, err error) {
	rows, err := db.QueryContext(ctx, query)
	if err != nil {
		return nil, fmt.Errorf("shop: count: %w", err)
	}
	defer rows.Close()
	for rows.Next() {
		var e effect
		if err := rows.Scan(&e.n, &e.times, &e.customer, &e.seq); err != nil {
			return nil, fmt.Errorf("shop: count: %w", err)
		}
		effects = append(effects, e)
	}
	return effects, rows.Err()
}

// compare holds the effects, in the order in which they came, against the truth.
func compare(truth []order, effects []effect) Tally {
	var t Tally
	committed := make(map[int]order, len(truth))
	for _, o := range truth {
		committed[o.N] = o
	}
	seen := make(map[int]bool, len(truth))
	last := make(map[string]int) // the latest order of each customer so far
	for _, e := range effects {
		t.Effects += e.times
		o, ok := committed[e.n]
		if !ok || o.Customer != e.customer || o.Seq != e.seq {
			t.Phantom += e.times
			continue
		}
		if seen[e.n] {
			t.Doubled += e.times
			continue
		}
		seen[e.n] = true
		t.Doubled += e.times - 1
		if e.seq < last[e.customer] {
			t.OutOfOrder++
		}
		last[e.customer] = max(last[e.customer], e.seq)
	}
	t.Missing = len(committed) - len(seen)
	return t
}

// totals works out the sums that the orders give.
func totals(name string, truth []order, initial map[string]int) map[string]int {
	want := make(map[string]int)
	if name == "inventory" {
		for item, units := range initial {
			want[item] = units
		}
	}
	for _, o := range truth {
		switch name {
		case "inventory":
			want[o.Item] -= o.Quantity
		case "analytics":
			want[o.Item+" orders"]++
			want[o.Item+" cents"] += o.Cents
		case "fraud":
			want[o.Customer] = want[o.Customer]/2 + o.Cents
		}
	}
	return want
}

// differences counts the names whose values differ.
func differences(want, got map[string]int) (n int) {
	for name, v := range want {
		if g, ok := got[name]; !ok || g != v {
			n++
		}
	}
	for name := range got {
		if _, ok := want[name]; !ok {
			n++
		}
	}
	return n
}

// pairs reads a query of a text and a number.
func pairs(ctx context.Context, db *sql.DB, query string) (map[string]int, error) {
	rows, err := db.QueryContext(ctx, query)
	if err != nil {
		return nil, fmt.Errorf("shop: count: %w", err)
	}
	defer rows.Close()
	m := make(map[string]int)
	for rows.Next() {
		var name string
		var value int
		if err := rows.Scan(&name, &value); err != nil {
			return nil, fmt.Errorf("shop: count: %w", err)
		}
		m[name] = value
	}
	return m, rows.Err()
}

// number reads a query of one number.
func number(ctx context.Context, db *sql.DB, query string) (n int, err error) {
	if err := db.QueryRowContext(ctx, query).Scan(&n); err != nil {
		return 0, fmt.Errorf("shop: count: %w", err)
	}
	return n, nil
}
