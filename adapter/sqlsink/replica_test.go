package sqlsink_test

import (
	"encoding/json"
	"flag"
	"fmt"
	"maps"
	"math/big"
	"math/rand/v2"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/adapter/sqlsink"
)

var seed = flag.Uint64("sqlsink.seed", 0, "seed of the random tables; 0: by the clock")

// world is a source that changes its tables at random, and what they hold.
type world struct {
	rng    *rand.Rand
	tables []string
	rows   map[string]map[string]row // table, key as JSON
	wide   bool                      // rows have got one more column
}

// The names are what identifiers may be, the values what is hard to carry.
const oddTable, oddColumn = `Odd "tbl" x'y`, `Grö"ße` + "`s"

var texts = []string{"", " ", "a", "A", "NULL", `"`, `\`, `\'`, "'; --", "trailing ", "tab\tnewline\n", "Grüße, 世界 🌍", "e\u0301", "0", "1e5", "{}", "[1]", "true", strings.Repeat("long ", 3000), "\u2028", "%s$1?"}

func (w *world) row(id int) row {
	r := row{"id": id, "Region": []string{"eu", "us ", "EU"}[id%3], "n": w.rng.Int64() - 1<<62, "real": float64(w.rng.IntN(1000)) + 0.25, "ok": w.rng.IntN(2) == 0,
		oddColumn: texts[w.rng.IntN(len(texts))], "doc": []any{json.Number(strconv.Itoa(w.rng.IntN(9))), "x", nil}, "gap": nil, "select": texts[w.rng.IntN(len(texts))]}
	if w.rng.IntN(4) == 0 {
		r["gap"] = texts[w.rng.IntN(len(texts))]
	}
	if w.wide {
		r["later"] = fmt.Sprint("later ", w.rng.IntN(100))
	}
	return r
}

func keyOf(r row) row { return row{"id": r["id"], "Region": r["Region"]} }

func keyText(r row) string {
	b, _ := json.Marshal(keyOf(r))
	return string(b)
}

// transaction changes some rows and returns the events of it.
func (w *world) transaction() (events []onewrite.Event) {
	for range 1 + w.rng.IntN(30) {
		name := w.tables[w.rng.IntN(len(w.tables))]
		rows := w.rows[name]
		next := w.row(w.rng.IntN(60))
		k := keyText(next)
		old := rows[k]
		switch n := w.rng.IntN(100); {
		case n < 1:
			events, w.rows[name] = append(events, ev("t", name, nil, nil, nil)), map[string]row{}
		case old == nil:
			events, rows[k] = append(events, ev([]string{"c", "r"}[w.rng.IntN(2)], name, keyOf(next), nil, next)), next
		case n < 25:
			events = append(events, ev("d", name, keyOf(old), keyOf(old), nil))
			delete(rows, k)
		case n < 40: // the key changes
			moved := w.row(100 + w.rng.IntN(60))
			if rows[keyText(moved)] == nil {
				events = append(events, ev("d", name, keyOf(old), keyOf(old), nil), ev("c", name, keyOf(moved), nil, moved))
				delete(rows, k)
				rows[keyText(moved)] = moved
			}
		case n < 55: // a large value is left alone
			sent := maps.Clone(next)
			next["select"] = old["select"]
			delete(sent, "select")
			events, rows[k] = append(events, ev("u", name, keyOf(next), nil, sent, "select")), next
		case n < 60:
			sent := maps.Clone(next)
			next["select"], sent["select"] = old["select"], "__debezium_unavailable_value"
			events, rows[k] = append(events, ev("u", name, keyOf(next), nil, sent)), next
		default:
			events, rows[k] = append(events, ev("u", name, keyOf(next), nil, next)), next
		}
	}
	for i := range events {
		events[i].Tx = onewrite.Tx{ID: strconv.Itoa(w.rng.Int()), Index: i, Last: i == len(events)-1}
	}
	return events
}

// equal reports whether a cell of the target holds the value of the source.
func equal(got *string, want any) bool {
	if want == nil || got == nil {
		return want == nil && got == nil
	}
	switch v := want.(type) {
	case string:
		return *got == v
	case bool:
		b, err := strconv.ParseBool(*got)
		return err == nil && b == v
	case []any:
		var g, w any
		b, _ := json.Marshal(v)
		return json.Unmarshal([]byte(*got), &g) == nil && json.Unmarshal(b, &w) == nil && reflect.DeepEqual(g, w)
	}
	a, ok := new(big.Rat).SetString(*got)
	b, too := new(big.Rat).SetString(fmt.Sprint(want))
	return ok && too && a.Cmp(b) == 0
}

func (x *target) quote(s string) string {
	if x.kind == sqlsink.MySQL {
		return "`" + strings.ReplaceAll(s, "`", "``") + "`"
	}
	return `"` + strings.ReplaceAll(s, `"`, `""`) + `"`
}

// compare looks at every cell of a table.
func (x *target) compare(t *testing.T, name string, want map[string]row) {
	t.Helper()
	rows, err := x.db.QueryContext(t.Context(), "SELECT * FROM "+x.quote(name))
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	cols, _ := rows.Columns()
	seen := 0
	for rows.Next() {
		vals, refs := make([]*string, len(cols)), make([]any, len(cols))
		for i := range vals {
			refs[i] = &vals[i]
		}
		if err := rows.Scan(refs...); err != nil {
			t.Fatal(err)
		}
		got := map[string]*string{}
		for i, c := range cols {
			got[c] = vals[i]
		}
		id, _ := strconv.Atoi(*got["id"])
		k := keyText(row{"id": id, "Region": *got["Region"]})
		w := want[k]
		if seen++; w == nil {
			t.Fatalf("%s has the row %s, which is not in the source", name, k)
		}
		for _, c := range cols {
			if !equal(got[c], w[c]) {
				t.Errorf("%s %s: %q is %v, want %v", name, k, c, deref(got[c]), w[c])
			}
		}
		for c := range w {
			if _, ok := got[c]; !ok {
				t.Fatalf("%s has no column %q", name, c)
			}
		}
	}
	if err := rows.Err(); err != nil || seen != len(want) {
		t.Errorf("%s has %d rows, want %d: %v", name, seen, len(want), err)
	}
}

func deref(s *string) any {
	if s == nil {
		return nil
	}
	return *s
}

// TestReplica mutates tables at random and writes the events in batches that know
// nothing of transactions, with a new sink now and then: in the end each cell is that
// of the source.
func TestReplica(t *testing.T) {
	each(t, func(t *testing.T, x *target) {
		n := *seed
		if n == 0 {
			n = uint64(time.Now().UnixNano())
		}
		t.Logf("-sqlsink.seed=%d", n)
		w := &world{rng: rand.New(rand.NewPCG(n, 1)), tables: []string{"orders", oddTable}, rows: map[string]map[string]row{"orders": {}, oddTable: {}}}
		s := x.sink(t)
		if _, err := s.Place(t.Context()); err != nil {
			t.Fatal(err)
		}
		var pending []onewrite.Event
		for i := range 120 {
			w.wide = i > 60
			pending = append(pending, w.transaction()...)
			if w.rng.IntN(3) > 0 && i < 119 {
				continue
			}
			for len(pending) > 0 {
				n := min(len(pending), 1+w.rng.IntN(100))
				place := fmt.Sprint("place ", i, " ", len(pending))
				if bad, err := s.WriteAt(t.Context(), at(pending[:n]...), []byte(place)); err != nil {
					t.Fatalf("event %d: %v\n%s", bad, err, pending[bad].Data)
				}
				pending = pending[n:]
				if w.rng.IntN(8) == 0 {
					s.Close()
					s = x.sink(t)
					if got, err := s.Place(t.Context()); err != nil || string(got) != place {
						t.Fatalf("Place = %q, %v; want %q", got, err, place)
					}
				}
			}
			if i%20 == 0 {
				for _, name := range w.tables {
					x.compareIfThere(t, name, w.rows[name])
				}
			}
		}
		for _, name := range w.tables {
			x.compare(t, name, w.rows[name])
		}
	})
}

func (x *target) compareIfThere(t *testing.T, name string, want map[string]row) {
	if len(want) > 0 {
		x.compare(t, name, want)
	}
}

// TestRepeat: the same events again give the same rows.
func TestRepeat(t *testing.T) {
	each(t, func(t *testing.T, x *target) {
		s := x.sink(t)
		events := []onewrite.Event{
			ev("c", "t", row{"id": 1}, nil, row{"id": 1, "v": "a"}), ev("c", "t", row{"id": 2}, nil, row{"id": 2, "v": "b"}),
			ev("u", "t", row{"id": 1}, nil, row{"id": 1, "v": "c"}), ev("d", "t", row{"id": 2}, row{"id": 2}, nil),
			{ID: "m", Source: "shop", Topic: "order.placed", Type: "order.placed", ContentType: "text/plain", Data: []byte("hello")},
		}
		for range 2 {
			write(t, s, events...)
			write(t, s, events...)
			x.want(t, "SELECT id, v FROM t", "1|c")
			x.want(t, "SELECT id, topic, data FROM onewrite_messages", "m|order.placed|hello")
		}
	})
}

// TestWithoutKey: rows of a table without key are appended, and found by what they
// looked like.
func TestWithoutKey(t *testing.T) {
	each(t, func(t *testing.T, x *target) {
		s := x.sink(t)
		a, b := row{"v": "a", "n": nil, "j": []any{1, "x"}}, row{"v": "A", "n": 7, "j": nil}
		write(t, s, ev("c", "t", nil, nil, a), ev("c", "t", nil, nil, a), ev("c", "t", nil, nil, b), ev("c", "t", nil, nil, b))
		write(t, s, ev("u", "t", nil, a, row{"v": "z", "n": 1, "j": nil}), ev("d", "t", nil, b, nil))
		got := x.rows(t, "SELECT v, n FROM t")
		slices.Sort(got)
		if !slices.Equal(got, []string{"A|7", "a|∅", "z|1"}) {
			t.Errorf("got %q", got)
		}
	})
}

// TestManyRows: more rows than a statement takes, with values of a size.
func TestManyRows(t *testing.T) {
	each(t, func(t *testing.T, x *target) {
		s := x.sink(t)
		var events []onewrite.Event
		for i := range 2500 {
			events = append(events, ev("c", "t", row{"id": i}, nil, row{"id": i, "v": strings.Repeat(`\'`, 1000)}))
		}
		write(t, s, events...)
		x.want(t, "SELECT count(*), min(length(v)), max(length(v)) FROM t", "2500|2000|2000")
		for i := range events {
			events[i] = ev("d", "t", row{"id": i}, row{"id": i}, nil)
		}
		write(t, s, events...)
		x.want(t, "SELECT count(*) FROM t", "0")
	})
}

// TestNoIndex: a table of a user whose key no upsert can name, since nothing is unique
// or only at the commit, has one row for each key all the same.
func TestNoIndex(t *testing.T) {
	each(t, func(t *testing.T, x *target) {
		x.exec(t, "CREATE TABLE t (id bigint, v varchar(9))")
		if x.kind == sqlsink.Postgres {
			x.exec(t, "ALTER TABLE t ADD PRIMARY KEY (id) DEFERRABLE")
		}
		s := x.sink(t)
		write(t, s, put(1, "a"), put(2, "b"), put(1, "c"), ev("r", "t", row{"id": 3}, nil, row{"id": 3}), ev("r", "t", row{"id": 3}, nil, row{"id": 3}))
		write(t, s, put(1, "d"), ev("d", "t", row{"id": 2}, row{"id": 2}, nil))
		x.want(t, "SELECT id, v FROM t ORDER BY id", "1|d", "3|∅")
	})
}
