package shop

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"testing"
)

// told is a run in which everybody was told everything, without servers: what the
// consumers would get, each message twice, is given to them.
func told(t *testing.T) (dir string, rec record) {
	t.Helper()
	ctx := t.Context()
	dir = t.TempDir()
	rec = record{Seed: 3, Orders: 100, RolledBack: 20, Faults: map[string]Fault{}}
	for _, name := range plannedFaults {
		rec.Faults[name] = Fault{Times: 1}
	}
	seqs, sold := map[string]int{}, false
	for _, p := range newPlan(rec.Seed, rec.Orders).purchases {
		if p.Declined || p.Item == console && sold {
			continue
		}
		sold = sold || p.Item == console
		seqs[p.Customer]++
		rec.Truth = append(rec.Truth, order{N: p.N, Customer: p.Customer, Seq: seqs[p.Customer], Item: p.Item, Quantity: p.Quantity, Cents: p.Cents})
	}
	for _, s := range subscribers {
		db, err := openSQLite(storeIn(dir, s.name))
		if err != nil {
			t.Fatal(err)
		}
		defer db.Close()
		if err := s.prepare(ctx, db, rec.Orders); err != nil {
			t.Fatal(err)
		}
		if _, err := db.Exec(placesTable); err != nil {
			t.Fatal(err)
		}
		for _, o := range rec.Truth {
			for i, body := range messages(t, s, o) {
				for range 2 {
					if err := s.take(ctx, db, "/shop", fmt.Sprint(o.N, "-", i), []byte(body)); err != nil {
						t.Fatal(err)
					}
				}
			}
		}
	}
	if err := rec.write(dir); err != nil {
		t.Fatal(err)
	}
	return dir, rec
}

// messages are what a consumer is told of an order.
func messages(t *testing.T, s subscriber, o order) []string {
	t.Helper()
	row := func(op, format string, args ...any) string {
		return `{"op":"` + op + `","before":null,"after":{` + fmt.Sprintf(format, args...) + `}}`
	}
	switch s.name {
	case "search":
		const columns = `"n":%d,"customer":%q,"seq":%d,"item":%q,"quantity":%d,"cents":%d,"paid":%t`
		return []string{row("c", columns, o.N, o.Customer, o.Seq, o.Item, o.Quantity, o.Cents, false),
			row("u", columns, o.N, o.Customer, o.Seq, o.Item, o.Quantity, o.Cents, true)}
	case "fraud":
		return []string{row("u", `"customer":%q,"orders":%d,"last_order":%d,"last_cents":%d,"closed":false`, o.Customer, o.Seq, o.N, o.Cents)}
	}
	body, err := json.Marshal(o)
	if err != nil {
		t.Fatal(err)
	}
	return []string{string(body)}
}

// TestBlueprintCount: a run in which all is well has no problem, and each sort of harm
// in a store, and each fault that was not made, is one.
func TestBlueprintCount(t *testing.T) {
	dir, _ := told(t)
	r, err := RecountBlueprint(t.Context(), dir)
	if err != nil || r.Verdict() != nil {
		t.Fatal(err, r.Verdict())
	}
	for _, d := range r.Consumers {
		want := 101
		if d.Consumer == "search" {
			want = 202
		}
		if d.Committed != want || d.Effects != want || d.Repeats != want {
			t.Errorf("%+v, want %d of all", d, want)
		}
	}
	for _, c := range []struct{ consumer, plant, sign string }{
		{"inventory", `DELETE FROM picked WHERE id = 7`, "inventory: 1 missing, 0 doubled, 0 out of order, 0 phantom, 0 wrong"},
		{"inventory", `UPDATE stock SET units = units - 1 WHERE item = 'lamp'`, "inventory: 0 missing, 0 doubled, 0 out of order, 0 phantom, 1 wrong"},
		{"email", `INSERT INTO mails (n, customer, seq) SELECT n, customer, seq FROM mails WHERE id = 5`, "email: 0 missing, 1 doubled, 0 out of order, 0 phantom"},
		{"email", `INSERT INTO mails (n, customer, seq) VALUES (9999, 'nobody', 1)`, "email: 0 missing, 0 doubled, 0 out of order, 1 phantom"},
		{"analytics", `UPDATE counted SET id = 5000 WHERE id = (SELECT min(id) FROM counted WHERE customer = (SELECT customer FROM counted WHERE seq = 2 LIMIT 1))`,
			"analytics: 0 missing, 0 doubled, 1 out of order"},
		{"search", `DELETE FROM changes WHERE n = (SELECT min(n) FROM changes) AND step = 2`, "search: 1 missing"},
		{"search", `UPDATE changes SET id = 5000 WHERE id = 1`, "search: 0 missing, 0 doubled, 1 out of order"},
		{"search", `UPDATE documents SET paid = 0 WHERE n = (SELECT min(n) FROM documents)`, "1 wrong totals"},
		{"fraud", `INSERT INTO looked (n, customer, seq) SELECT n, customer, seq FROM looked WHERE id = 5`, "fraud: 0 missing, 1 doubled"},
		{"fraud", `UPDATE scores SET score = score + 1 WHERE customer = (SELECT min(customer) FROM scores)`, "1 wrong totals"},
		{"fraud", `INSERT INTO places (place, id) VALUES ('partition 0, offset 1', 'x'), ('partition 0, offset 2', 'x')`, "fraud: 1 events were written to Kafka twice"},
	} {
		dir, _ := told(t)
		spoil(t, storeIn(dir, c.consumer), c.plant)
		found(t, dir, c.plant, c.sign)
	}
	for _, c := range []struct {
		sign  string
		spoil func(*record)
	}{
		{"100 orders were committed in the place of 101", func(r *record) { r.Truth = r.Truth[1:] }},
		{"rolled back", func(r *record) { r.RolledBack = 1 }},
		{"a fault was not made: Kafka killed", func(r *record) { delete(r.Faults, "Kafka killed") }},
		{"sold 0 times", func(r *record) {
			for i := range r.Truth {
				r.Truth[i].Item = "lamp"
			}
		}},
	} {
		dir, rec := told(t)
		c.spoil(&rec)
		if err := rec.write(dir); err != nil {
			t.Fatal(err)
		}
		found(t, dir, c.sign, c.sign)
	}
	if _, err := RecountBlueprint(t.Context(), t.TempDir()); err == nil {
		t.Error("an empty folder was counted")
	}
}

// spoil changes a store.
func spoil(t *testing.T, store, statement string) {
	t.Helper()
	db, err := openSQLite(store)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	res, err := db.Exec(statement)
	if err != nil {
		t.Fatal(err)
	}
	if n, _ := res.RowsAffected(); n == 0 {
		t.Fatalf("%s: %d rows", statement, n)
	}
}

// found counts and expects a problem, in the verdict and below the table.
func found(t *testing.T, dir, plant, sign string) {
	t.Helper()
	r, err := RecountBlueprint(context.Background(), dir)
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := r.Write(&out); err != nil {
		t.Fatal(err)
	}
	if err := r.Verdict(); err == nil || !strings.Contains(err.Error(), sign) {
		t.Errorf("%s: the verdict is %v", plant, err)
	}
	if !strings.Contains(out.String(), sign) || strings.Contains(out.String(), "Nothing missing") {
		t.Errorf("%s: printed\n%s", plant, out.String())
	}
}

// TestSubscriberRefuses: what has no id cannot be remembered, and is no event of ours.
func TestSubscriberRefuses(t *testing.T) {
	db, err := openSQLite(storeIn(t.TempDir(), "x"))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	for _, s := range subscribers {
		if err := s.prepare(t.Context(), db, 100); err != nil {
			t.Fatal(err)
		}
		for _, c := range [][3]string{{"", "1", "{}"}, {"/shop", "", "{}"}, {"/shop", "1", "x"}} {
			if err := s.take(t.Context(), db, c[0], c[1], []byte(c[2])); err == nil {
				t.Errorf("%s: %q is taken", s.name, c)
			}
		}
	}
	if err := subscribe(t.Context(), subscriberSettings{Name: "nobody"}, &bytes.Buffer{}); err == nil {
		t.Error("there is a consumer named nobody")
	}
}

// TestBlueprintPage: the page shows the very file.
func TestBlueprintPage(t *testing.T) {
	page, err := os.ReadFile("../../docs/blueprint.md")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(page), "```yaml\n"+string(blueprintConfig)+"```") {
		t.Error("docs/blueprint.md shows another onewrite.yaml than examples/shop/blueprint has")
	}
}
