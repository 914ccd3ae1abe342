package sqlite

import (
	"bytes"
	"database/sql"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/onewrite/onewrite"
)

// envelope is a row change as a consumer reads it.
type envelope struct {
	Op            string
	Before, After map[string]any
	Source        map[string]any
	Transaction   any
}

func decode(tb testing.TB, e onewrite.Event) envelope {
	tb.Helper()
	var v envelope
	d := json.NewDecoder(bytes.NewReader(e.Data))
	d.UseNumber()
	if err := d.Decode(&v); err != nil {
		tb.Fatalf("%s: %v", e.Data, err)
	}
	want := map[string]string{"c": "insert", "u": "update", "d": "delete", "r": "snapshot"}[v.Op]
	if e.Type != want || e.ContentType != "application/json" || e.Topic != v.Source["table"] {
		tb.Fatalf("%+v", e)
	}
	return v
}

// replica is a table rebuilt from events. A table without a primary key counts
// equal rows.
type replica struct {
	rows  map[string]string
	count map[string]int
}

func canon(row map[string]any) string {
	b, err := json.Marshal(row) // map keys are sorted
	if err != nil {
		return err.Error()
	}
	return string(b)
}

// apply is strict: an event that does not fit what came before is a mistake.
func (r *replica) apply(key string, lane bool, v envelope) error {
	before, after := canon(v.Before), canon(v.After)
	if lane {
		if v.Before != nil {
			if r.count[before]--; r.count[before] < 0 {
				return fmt.Errorf("%s of a row that is not there: %s", v.Op, before)
			} else if r.count[before] == 0 {
				delete(r.count, before)
			}
		}
		if v.After != nil {
			r.count[after]++
		}
		return nil
	}
	old, there := r.rows[key]
	if there != (v.Before != nil) || there && old != before {
		return fmt.Errorf("%s of %s: there is %q, the event says %q", v.Op, key, old, before)
	}
	if delete(r.rows, key); v.After != nil {
		r.rows[key] = after
	}
	return nil
}

// cells reads a table without any of the code under test.
func cells(tb testing.TB, db *sql.DB, table string, columns []string) []string {
	tb.Helper()
	var list []string
	for _, c := range columns {
		list = append(list, fmt.Sprintf("typeof(%[1]s), CAST(%[1]s AS BLOB), %[1]s", ident(c)))
	}
	rows, err := db.Query("SELECT " + strings.Join(list, ",") + " FROM " + ident(table))
	if err != nil {
		tb.Fatal(err)
	}
	defer rows.Close()
	var out []string
	for rows.Next() {
		vals := make([]any, 3*len(columns))
		ptrs := make([]any, len(vals))
		for i := range vals {
			ptrs[i] = &vals[i]
		}
		if err := rows.Scan(ptrs...); err != nil {
			tb.Fatal(err)
		}
		row := map[string]any{}
		for i, c := range columns {
			raw, _ := vals[3*i+1].([]byte)
			switch vals[3*i] {
			case "null":
				row[c] = nil
			case "integer":
				row[c] = json.Number(fmt.Sprint(vals[3*i+2]))
			case "real":
				if f := vals[3*i+2].(float64); math.IsInf(f, 0) {
					row[c] = map[bool]string{true: "Infinity", false: "-Infinity"}[f > 0]
				} else {
					row[c] = json.Number(string(appendReal(nil, fmt.Sprint(f))))
				}
			case "text":
				row[c] = strings.ToValidUTF8(string(raw), "\ufffd")
			case "blob":
				row[c] = base64.StdEncoding.EncodeToString(raw)
			}
		}
		out = append(out, canon(row))
	}
	slices.Sort(out)
	return out
}

// shapes are tables of every kind of key that REPLACE can strike.
var shapes = []struct {
	ddl     string
	lane    bool
	columns []string
}{
	{`CREATE TABLE t (a INTEGER PRIMARY KEY, b TEXT COLLATE NOCASE UNIQUE, c, d BLOB, UNIQUE (c, d))`, false, []string{"a", "b", "c", "d"}},
	{`CREATE TABLE t (a TEXT COLLATE NOCASE, b, c UNIQUE ON CONFLICT REPLACE, d, PRIMARY KEY (b, a)) WITHOUT ROWID`, false, []string{"a", "b", "c", "d"}},
	{`CREATE TABLE t (a PRIMARY KEY, b, c NOT NULL ON CONFLICT REPLACE DEFAULT 2, d, g AS (b || 'x') STORED, UNIQUE (c)); CREATE UNIQUE INDEX t_b ON t (b COLLATE RTRIM) WHERE d /* ) */ > 1 -- end`, false, []string{"a", "b", "c", "d"}},
	{`CREATE TABLE t (a, b UNIQUE, c, d); CREATE UNIQUE INDEX t_cd ON t (c, d DESC) WHERE b IS NOT NULL`, true, []string{"a", "b", "c", "d"}},
	{`CREATE TABLE t (rowid, a INT PRIMARY KEY ON CONFLICT REPLACE, b, _rowid_ UNIQUE ON CONFLICT IGNORE, c, d)`, false, []string{"rowid", "a", "b", "_rowid_", "c", "d"}},
}

var literals = []string{"1", "2", "3", "'a'", "'A'", "'b '", "'b'", "NULL", "1.0", "2.5", "x'01ff'", "x'00'", "9e999", "-9e999", "9007199254740993",
	"CAST(x'ff41' AS TEXT)", "'n' || char(0) || '\"\\,'", "0.1 + 0.2", "1e300", "''", "'NULL'", "', \"x'", "char(1, 31, 127, 8232)"}

func statement(t *rapid.T, columns []string) string {
	pick := func(list ...string) string { return rapid.SampledFrom(list).Draw(t, "pick") }
	row := func() string {
		v := make([]string, 0, len(columns))
		for range columns {
			v = append(v, pick(literals...))
		}
		return "(" + strings.Join(v, ", ") + ")"
	}
	policy := pick("", "", " OR REPLACE", " OR REPLACE", " OR IGNORE", " OR FAIL", " OR ABORT", " OR ROLLBACK")
	cond := func() string {
		return pick(columns...) + pick(" IS ", " IS NOT ", " > ", " < ") + pick(literals...)
	}
	into := "INTO t (" + strings.Join(columns, ", ") + ") "
	switch rapid.IntRange(0, 9).Draw(t, "kind") {
	case 0, 1, 2, 3:
		return "INSERT" + policy + " " + into + "VALUES " + row() + pick("", ", "+row(), ", "+row()+", "+row())
	case 4:
		return "INSERT " + into + "VALUES " + row() + ", " + row() + " ON CONFLICT DO " +
			pick("NOTHING", "UPDATE SET b = excluded.b, d = 7", "UPDATE SET a = "+pick(literals...)+", c = excluded.a")
	case 5:
		return "INSERT" + policy + " " + into + "SELECT " + strings.Join(columns[1:], ", ") + ", " + pick(literals...) + " FROM t"
	case 6, 7:
		return "UPDATE" + policy + " t SET " + pick(columns...) + " = " + pick(append([]string{"a", "b", "c", "d"}, literals...)...) + pick("", " WHERE "+cond())
	case 8:
		return "UPDATE" + policy + " t SET a = a + 1, b = " + pick(literals...) + pick("", " WHERE "+cond())
	}
	return "DELETE FROM t WHERE " + cond()
}

// Whatever is done to a table, its events rebuild it cell by cell, and it ends
// up the same as one without triggers.
func TestChangesRebuildTheTable(t *testing.T) {
	dir := t.TempDir()
	n := 0
	rapid.Check(t, func(rt *rapid.T) {
		n++
		shape := rapid.SampledFrom(shapes).Draw(rt, "shape")
		path := filepath.Join(dir, fmt.Sprintf("%d.db", n))
		plainPath := filepath.Join(dir, fmt.Sprintf("%d-plain.db", n))
		recursive := fmt.Sprintf("recursive_triggers(%d)", rapid.IntRange(0, 1).Draw(rt, "recursive"))
		db, plain := app(t, path, recursive, "synchronous(0)"), app(t, plainPath, recursive, "synchronous(0)")
		defer db.Close()
		defer plain.Close()
		both := func(q string) {
			_, err1 := db.Exec(q)
			_, err2 := plain.Exec(q)
			if fmt.Sprint(err1) != fmt.Sprint(err2) {
				rt.Fatalf("%s\nwith triggers: %v\nwithout: %v", q, err1, err2)
			}
		}
		both(shape.ddl)
		for range rapid.IntRange(0, 3).Draw(rt, "before") {
			both(statement(rt, shape.columns))
		}
		if _, err := Migrate(t.Context(), path, MigrateOptions{Tables: []string{"T"}, Snapshot: true}); err != nil {
			rt.Fatal(err)
		}
		// With a trigger, whatever it does, SQLite may visit the rows of a
		// statement in another order. So the other table has some too.
		for i, when := range []string{"BEFORE INSERT", "AFTER INSERT", "BEFORE UPDATE", "AFTER UPDATE", "AFTER DELETE"} {
			exec1(t, plain, fmt.Sprintf("CREATE TRIGGER x%d %s ON t BEGIN SELECT 1; END", i, when))
		}
		for range rapid.IntRange(1, 25).Draw(rt, "count") {
			switch rapid.IntRange(0, 7).Draw(rt, "tx") {
			case 0:
				both("BEGIN")
			case 1:
				both("COMMIT")
			case 2:
				both("ROLLBACK")
			case 3:
				both("SAVEPOINT s")
			case 4:
				both("ROLLBACK TO s")
			default:
				q := statement(rt, shape.columns)
				rt.Log(q)
				both(q)
			}
		}
		_, _ = db.Exec("COMMIT")
		_, _ = plain.Exec("COMMIT")
		want := cells(t, plain, "t", shape.columns)
		if got := cells(t, db, "t", shape.columns); !slices.Equal(got, want) {
			rt.Fatalf("the triggers changed the table:\n%v\n%v", got, want)
		}
		total := value[int](t, db, "SELECT count(*) FROM onewrite_outbox")
		s, err := Open(t.Context(), Config{Name: "shop", Path: path}, "")
		if err != nil {
			rt.Fatal(err)
		}
		defer s.Close()
		events, _, _ := read(t, s, total)
		r := replica{map[string]string{}, map[string]int{}}
		for _, e := range events {
			if err := r.apply(e.Key, shape.lane || strings.Contains(e.Key, ":null"), decode(t, e)); err != nil {
				rt.Fatal(err)
			}
		}
		got := slices.Sorted(maps.Values(r.rows))
		for row, n := range r.count {
			for range n {
				got = append(got, row)
			}
		}
		slices.Sort(got)
		if !slices.Equal(got, want) {
			rt.Fatalf("the events make another table:\n%s\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
	})
}
