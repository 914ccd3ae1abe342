package postgres

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/internal/servers"
)

// foreignSettings are those of a database whose owner likes other texts than onewrite.
// A locale that the machine does not have cannot be set.
const foreignSettings = `DO $$ DECLARE s text; BEGIN
	FOREACH s IN ARRAY ARRAY['TimeZone = ''Asia/Kolkata''', 'DateStyle = ''German, DMY''', 'bytea_output = escape', 'extra_float_digits = 0', 'IntervalStyle = sql_standard', 'xmloption = document',
			'search_path = public', 'standard_conforming_strings = off', 'array_nulls = off', 'default_transaction_read_only = on', 'statement_timeout = 20000', 'quote_all_identifiers = on'] LOOP
		EXECUTE format('ALTER DATABASE %I SET ', current_database()) || s;
		EXECUTE format('ALTER ROLE CURRENT_USER IN DATABASE %I SET ', current_database()) || s;
	END LOOP;
	FOREACH s IN ARRAY ARRAY['de_DE.utf8', 'en_GB.utf8', 'C.utf8'] LOOP
		BEGIN
			EXECUTE format('ALTER DATABASE %I SET lc_monetary = %L', current_database(), s);
			EXIT;
		EXCEPTION WHEN others THEN NULL;
		END;
	END LOOP;
END $$`

// noValue are built-in types of which nobody can make a value.
var noValue = []string{"gtsvector", "pg_brin_bloom_summary", "pg_brin_minmax_multi_summary", "pg_dependencies", "pg_mcv_list", "pg_ndistinct", "pg_node_tree"}

// Each value is rendered as the contract says, and the same from a snapshot, an
// INSERT and the old row of a DELETE.
func TestEveryType(t *testing.T) {
	each(t, func(t *testing.T, pg *servers.PG) {
		r := &rig{t: t, url: pg.NewDatabase(t), tables: []string{"public.many"}}
		r.conn = dial(t, r.url)
		sql(t, r.conn, typesDDL)
		cases := slices.Clone(typeCases)
		extra := 0
		for _, need := range slices.Sorted(maps.Keys(extraTypes)) {
			if _, err := r.conn.Exec(t.Context(), need); err != nil {
				t.Logf("not proven here: %s: %v", need, err)
				continue
			}
			cases = append(cases, extraTypes[need]...)
			extra++
		}
		r.makeMany(cases)
		sql(t, r.conn, foreignSettings)
		r.cfg = Config{Name: "shop", URL: r.url, BusID: "bus1", Tables: r.tables, Logger: (&logs{}).logger()}
		writable := strings.Replace(r.url, "?", "?options=-c%20default_transaction_read_only%3Doff&", 1)
		if _, err := Migrate(t.Context(), writable, MigrateOptions{Capture: Capture{Source: "shop", Tables: r.tables, Snapshot: true}}); err != nil {
			t.Fatal(err)
		}
		r.cfg.URL = writable
		r.open()
		events := r.events(2)
		columns := make([]string, len(cases))
		for i := range cases {
			columns[i] = fmt.Sprint("c", i)
		}
		list := strings.Join(columns, ", ")
		sql(t, r.conn, fmt.Sprintf(`INSERT INTO many (k, %[1]s) SELECT k + 2, %[1]s FROM many`, list), `DELETE FROM many WHERE k > 2`)
		events = append(events, r.events(4)...)
		owner := one[string](t, r.conn, `SELECT rolname::text FROM pg_roles WHERE oid = 10`)
		compared := 0
		for n, e := range events {
			if kind := []string{"snapshot", "insert", "delete"}[n/2]; e.Type != kind {
				t.Fatalf("event %d is %s, want %s", n, e.Type, kind)
			}
			row := manyRow(t, e)
			for i, c := range cases {
				want := strings.ReplaceAll(c.want, "SUPERUSER", owner)
				if n%2 == 1 {
					want = "null"
				}
				if got := string(row[columns[i]]); got != want {
					t.Errorf("%s of %s, %s: %.300s, want %.300s", c.typ, e.Type, c.value, got, want)
				}
				compared++
			}
			for i := range noValue {
				if name := fmt.Sprint("n", i); string(row[name]) != "null" {
					t.Errorf("%s: %s", noValue[i], row[name])
				}
			}
		}
		t.Logf("%d values of %d columns, %d of %d optional types", compared, len(cases), extra, len(extraTypes))
		if len(cases) < 170 || compared != 6*len(cases) {
			t.Error("too few values to prove anything")
		}
	})
}

// makeMany makes a table with a column of every type, and two rows: one of values, and
// one of NULL.
func (r *rig) makeMany(cases []typeCase) {
	r.t.Helper()
	columns, values := []string{"k int PRIMARY KEY"}, []string{"1"}
	for i, c := range cases {
		columns = append(columns, fmt.Sprintf("c%d %s", i, c.typ))
		values = append(values, c.value)
	}
	for i, typ := range noValue {
		columns = append(columns, fmt.Sprintf("n%d %s", i, typ))
	}
	sql(r.t, r.conn, `CREATE TABLE many (); `+`ALTER TABLE many ADD `+strings.Join(columns, `, ADD `), `ALTER TABLE many REPLICA IDENTITY FULL`)
	missing := one[[]string](r.t, r.conn, `SELECT coalesce(array_agg(typname::text), '{}') FROM pg_type t WHERE typnamespace = 'pg_catalog'::regnamespace AND typtype IN ('b', 'r', 'm') AND typisdefined AND typcategory <> 'A'
		AND NOT EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = 'many'::regclass AND a.atttypid = t.oid)`)
	for _, typ := range missing {
		if typ != "xml" {
			r.t.Errorf("there is no column of %s in the test", typ)
		}
	}
	sql(r.t, r.conn, `SET TimeZone = 'UTC'`, `INSERT INTO many VALUES (`+strings.Join(values, ", ")+`)`, `INSERT INTO many (k) VALUES (2)`)
}

func manyRow(t *testing.T, e onewrite.Event) map[string]json.RawMessage {
	t.Helper()
	var env struct{ Before, After map[string]json.RawMessage }
	if err := json.Unmarshal(e.Data, &env); err != nil {
		t.Fatalf("%v: %.300s", err, e.Data)
	}
	if (env.Before != nil) == (env.After != nil) {
		t.Errorf("%s has not one row", e.Type)
	}
	if env.Before != nil {
		return env.Before
	}
	return env.After
}
