package postgres

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/internal/cloudevents"
	"github.com/onewrite/onewrite/internal/servers"
)

// odd makes 320 texts that are hard to quote and hard to sort, of the numbers i.
const odd = `(ARRAY['''', E'\\', '"', E'\n', 'é', '😀', 'A', 'a', ' ', 'Z', '%', E'\t', '', 'z', 'E''', E'a\\''b', '$1', 'À'])[i % 18 + 1] || i / 18`

// keyCase is a table whose column n counts its rows from 1. move changes a key.
type keyCase struct {
	name, columns, values string
	key                   []string // by which events are keyed, if it is not k
	move                  string
	more                  string // statements
	need                  string // a statement that has to succeed first
}

var keyCases = []keyCase{
	{name: "texts", columns: `k text PRIMARY KEY`, values: odd, move: `k = k || ''' "\'`},
	{name: "texts_c", columns: `k text COLLATE "C" PRIMARY KEY`, values: odd, move: `k = E'q\\' || k || 'q'`},
	{name: "texts_icu", columns: `k text COLLATE "und-x-icu" PRIMARY KEY`, values: odd, move: `k = E'q\n' || k || 'q'`, need: `SELECT 'a' COLLATE "und-x-icu"`},
	{name: "texts_ci", columns: `k text COLLATE ci PRIMARY KEY`, values: `(ARRAY['a', 'B', 'ç', E'\\'])[i % 4 + 1] || i`, move: `k = upper('qq' || k)`, need: `CREATE COLLATION ci (provider = icu, locale = 'und-u-ks-level2', deterministic = false); CREATE FUNCTION f() RETURNS bool LANGUAGE sql AS $$ SELECT 'a' = 'A' COLLATE ci $$`},
	{name: "collated_domain", columns: `k d_c COLLATE "POSIX" PRIMARY KEY`, values: odd, move: `k = 'qq' || k`, need: `CREATE DOMAIN d_c AS text COLLATE "C"`},
	{name: "varchars", columns: `k varchar(20) PRIMARY KEY`, values: odd, move: `k = k || 'q'`},
	{name: "chars", columns: `k char(12) PRIMARY KEY`, values: `'x' || i`, move: `k = 'q' || k::text`},
	{name: "citexts", columns: `k citext PRIMARY KEY`, values: `(ARRAY['a', 'B', 'c', 'D', '_', E'\\'])[i % 6 + 1] || i`, move: `k = upper(k::text || 'q')`, need: `CREATE EXTENSION citext`},
	{name: "citexts2", columns: `k citext, a int, c citext, PRIMARY KEY (c, a, k)`, key: []string{"a", "c", "k"}, values: `(ARRAY['a', 'B'])[i % 2 + 1], i % 5, (ARRAY['Z', 'y', 'X'])[i % 3 + 1] || i / 30`, move: `a = a + 10`, need: `SELECT 'a'::citext`},
	{name: "ltrees", columns: `k ltree PRIMARY KEY`, values: `(ARRAY['a', 'a.b', 'B.c'])[i % 3 + 1]::ltree || i::text`, move: `k = k || 'q'::ltree`, need: `CREATE EXTENSION ltree`},
	{name: "hstores", columns: `k hstore PRIMARY KEY`, values: `hstore(i::text, E'x"\\')`, move: `k = k || 'q=>1'`, need: `CREATE EXTENSION hstore`},
	{name: "uuids", columns: `k uuid PRIMARY KEY`, values: `md5(i::text)::uuid`, move: `k = md5(k::text)::uuid`},
	{name: "numerics", columns: `k numeric PRIMARY KEY`, values: `CASE i WHEN 1 THEN 'NaN' WHEN 2 THEN 'Infinity' WHEN 3 THEN '-Infinity' ELSE (100 - i) * 1.10 END`, move: `k = k / 7 + 1e30`},
	{name: "floats", columns: `k float8 PRIMARY KEY`, values: `CASE i WHEN 1 THEN 'NaN' WHEN 2 THEN 'Infinity' WHEN 3 THEN '-Infinity' WHEN 4 THEN '-0' WHEN 5 THEN 5e-324 ELSE (100.5 - i) / 3 END`, move: `k = k * 1.7 + 1e7`},
	{name: "instants", columns: `k timestamptz PRIMARY KEY`, values: `CASE i WHEN 1 THEN 'infinity' WHEN 2 THEN '-infinity' WHEN 3 THEN '0044-03-15 BC' WHEN 4 THEN '12024-01-01' ELSE '2024-01-01 00:00:00.000001+00'::timestamptz + (i - 100) * interval '1001 hours' END`, move: `k = k + interval '1 us'`},
	{name: "dates", columns: `k date PRIMARY KEY`, values: `CASE i WHEN 1 THEN 'infinity' WHEN 2 THEN '0044-03-15 BC' ELSE '2024-01-01'::date + i END`, move: `k = k + 1000`},
	{name: "timetzs", columns: `k timetz PRIMARY KEY`, values: `('00:00:00'::time + i * interval '1 minute' || '+05:30:' || lpad((i % 60)::text, 2, '0'))::timetz`, move: `k = k + interval '1 us'`},
	{name: "intervals", columns: `k interval PRIMARY KEY`, values: `(i - 100) * interval '1 mon 2 days 3.5 hours'`, move: `k = k * 1000`},
	{name: "byteas", columns: `k bytea PRIMARY KEY`, values: `decode(lpad(to_hex(i * 2654435), 8, '0'), 'hex') || '\x5c2700'`, move: `k = k || '\xff'`},
	{name: "bools", columns: `k bool, a int, PRIMARY KEY (k, a)`, key: []string{"a", "k"}, values: `i % 2 = 0, i`, move: `k = NOT k`},
	{name: "enums", columns: `k mood, a int, PRIMARY KEY (k, a)`, key: []string{"a", "k"}, values: `(ARRAY['sad', 'ha"ppy', 'a \'' b'])[i % 3 + 1]::mood, i`, move: `a = -a`, need: `CREATE TYPE mood AS ENUM ('sad', 'ha"ppy', 'a \'' b')`},
	{name: "domains", columns: `k d_mood, a d_pos, PRIMARY KEY (a, k)`, key: []string{"a", "k"}, values: `(ARRAY['sad', 'ha"ppy'])[i % 2 + 1]::d_mood, i`, move: `a = a + 1000`, need: `CREATE DOMAIN d_mood AS mood; CREATE DOMAIN d_pos AS int`, more: `ALTER DOMAIN d_pos ADD CHECK (value > 200) NOT VALID`},
	{name: "composites", columns: `k pair PRIMARY KEY`, values: `ROW(i % 7, E'a"\\,' || i)::pair`, move: `k = ROW(99, (k).b)::pair`, need: `CREATE TYPE pair AS (a int, b text)`},
	{name: "arrays", columns: `k text[] PRIMARY KEY`, values: `ARRAY[(i % 7)::text, E'a"\\,{' || i, NULL]`, move: `k = k || 'q'::text`},
	{name: "ranges", columns: `k int4range PRIMARY KEY`, values: `int4range(i % 17, i + 20)`, move: `k = int4range(-100, upper(k))`},
	{name: "inets", columns: `k inet PRIMARY KEY`, values: `'10.0.0.0/8'::inet + i * 7`, move: `k = k + 100000`},
	{name: "moneys", columns: `k money PRIMARY KEY`, values: `((i - 50) * 1000.5)::numeric::money`, move: `k = k + 1000000::money`},
	{name: "bits", columns: `k bit(12) PRIMARY KEY`, values: `i::bit(12)`, move: `k = ~k`},
	{name: "names", columns: `k name, a "char", PRIMARY KEY (a, k)`, key: []string{"a", "k"}, values: `'n' || i, chr(48 + i % 40)::"char"`, move: `k = 'q' || k`},
	{name: "jsonbs", columns: `k jsonb PRIMARY KEY`, values: `jsonb_build_object('a', i % 9, 'b', E'x"\\' || i)`, move: `k = k || '{"q":1}'`},
	{name: "three", columns: `b text COLLATE "C", a int, k timestamptz, PRIMARY KEY (k, b, a)`, key: []string{"a", "b", "k"}, values: `'b' || i % 3, i / 9, '2024-01-01'::timestamptz + i % 9 / 3 * interval '1 day'`, move: `b = b || E'\\'`},
	{name: "included", columns: `k int, x text DEFAULT 'x', PRIMARY KEY (k) INCLUDE (n, x)`, values: `-i`, move: `k = k - 1000`},
	{name: "full", columns: `k text PRIMARY KEY`, values: `'k' || i`, move: `k = k || 'q'`, more: `ALTER TABLE "full" REPLICA IDENTITY FULL`},
	{name: "other_index", columns: `id int PRIMARY KEY, k text COLLATE "C" NOT NULL`, values: `i, ` + odd, move: `k = k || 'q'`, more: `CREATE UNIQUE INDEX other ON other_index (k text_pattern_ops DESC) INCLUDE (n); ALTER TABLE other_index REPLICA IDENTITY USING INDEX other`},
	{name: "Odd-Names", columns: `"K.é""x'" int, "SELECT" text, PRIMARY KEY ("SELECT", "K.é""x'")`, key: []string{`K.é"x'`, "SELECT"}, values: `i, 's' || i % 5`, move: `"SELECT" = '"'`},
	{name: "parted", columns: `k int PRIMARY KEY) PARTITION BY RANGE (k`, values: `i`, move: `k = k + 1000`, more: `CREATE TABLE p1 PARTITION OF parted FOR VALUES FROM (0) TO (100); CREATE TABLE p2 PARTITION OF parted FOR VALUES FROM (100) TO (1001); CREATE TABLE p3 PARTITION OF parted FOR VALUES FROM (1001) TO (2000)`},
}

const keyRows = 320

// makeKeyTables makes the tables that the server can have, and returns their cases.
func makeKeyTables(t *testing.T, r *rig) (made []keyCase) {
	t.Helper()
	for _, c := range keyCases {
		if c.key == nil {
			c.key = []string{"k"}
		}
		if c.need != "" {
			if _, err := r.conn.Exec(t.Context(), c.need); err != nil {
				t.Logf("not proven here: %s: %v", c.name, err)
				continue
			}
		}
		columns := strings.Split(c.columns, ", PRIMARY KEY (")
		columns[0] = "n int, " + columns[0]
		first := fmt.Sprintf(`CREATE TABLE "%s" (%s)`, c.name, strings.Join(columns, ", PRIMARY KEY ("))
		fill := fmt.Sprintf(`INSERT INTO "%s" SELECT i, %s FROM generate_series(1, %d) i`, c.name, c.values, keyRows)
		if c.more == "" {
			sql(t, r.conn, first, fill)
		} else if c.name == "domains" {
			sql(t, r.conn, first, fill, c.more)
		} else {
			sql(t, r.conn, first, c.more, fill)
		}
		r.tables = append(r.tables, "public."+c.name)
		made = append(made, c)
	}
	return made
}

// keyedRow returns the number of a row, and checks that the event's key has the key's
// columns as the row has them.
func keyedRow(t *testing.T, c keyCase, e onewrite.Event) (n int) {
	t.Helper()
	var env struct {
		Before, After map[string]json.RawMessage
		Op            string
	}
	if err := json.Unmarshal(e.Data, &env); err != nil {
		t.Fatalf("%v: %s", err, e.Data)
	}
	row := env.After
	if row == nil {
		row = env.Before
	}
	parts := make([]string, len(c.key))
	for i, k := range c.key {
		parts[i] = string(cloudevents.AppendString(nil, k)) + ":" + string(row[k])
	}
	if key := "{" + strings.Join(parts, ",") + "}"; e.Key != key || !json.Valid([]byte(key)) {
		t.Errorf("%s: key %s, want %s", c.name, e.Key, key)
	}
	_ = json.Unmarshal(row["n"], &n)
	return n
}

// A snapshot in chunks has each row once, whatever the key is made of, and the changes
// of a row have the key that its snapshot had.
func TestEveryKey(t *testing.T) {
	each(t, func(t *testing.T, pg *servers.PG) {
		r := &rig{t: t, url: pg.NewDatabase(t)}
		r.conn = dial(t, r.url)
		made := makeKeyTables(t, r)
		if len(made) < len(keyCases)-5 {
			t.Fatalf("only %d tables", len(made))
		}
		r.migrate()
		r.cfg = Config{Name: "shop", URL: r.url, BusID: "bus1", Tables: r.tables, Logger: (&logs{}).logger(), chunk: 40}
		r.cfg.Trouble = func(name, problem string) {
			if problem != "" {
				t.Errorf("%s: %s", name, problem)
				go r.src.Close() // nothing more will come
			}
		}
		r.open()
		byTopic := map[string]keyCase{}
		keys := map[string][]string{} // by topic; of the rows in the order of n
		for _, c := range made {
			byTopic["public."+c.name] = c
			keys["public."+c.name] = make([]string, keyRows+1)
		}
		for _, e := range r.events(keyRows * len(made)) {
			n := keyedRow(t, byTopic[e.Topic], e)
			if e.Type != "snapshot" || n < 1 || keys[e.Topic][n] != "" {
				t.Fatalf("%s of row %d of %s came twice or is none: %s", e.Type, n, e.Topic, e.Key)
			}
			keys[e.Topic][n] = e.Key
		}
		r.whole()
		for _, c := range made {
			topic := "public." + c.name
			if distinct := slices.Compact(slices.Sorted(slices.Values(keys[topic]))); len(distinct) != keyRows+1 {
				t.Errorf("%s: %d keys of %d rows", c.name, len(distinct)-1, keyRows)
			}
			sql(t, r.conn, fmt.Sprintf(`UPDATE "%s" SET n = n WHERE n %% 5 = 0`, c.name))
			for _, e := range r.events(keyRows / 5) {
				if n := keyedRow(t, c, e); e.Type != "update" || e.Topic != topic || e.Key != keys[topic][n] {
					t.Errorf("%s of row %d of %s: %s, in the snapshot it was %s", e.Type, n, e.Topic, e.Key, keys[topic][n])
				}
			}
			r.checkMove(c, keys[topic])
		}
	})
}

// checkMove changes keys: the old row goes and a new one comes.
func (r *rig) checkMove(c keyCase, keys []string) {
	r.t.Helper()
	const moved = 3
	sql(r.t, r.conn, fmt.Sprintf(`UPDATE "%s" SET %s WHERE n IN (10, 20, 30)`, c.name, c.move))
	events := r.events(2 * moved)
	for i := 0; i < len(events); i += 2 {
		gone, came := events[i], events[i+1]
		keyedRow(r.t, c, gone)
		n := keyedRow(r.t, c, came)
		if gone.Type != "delete" || came.Type != "insert" || n < 1 || gone.Key != keys[n] || came.Key == gone.Key || gone.ID == came.ID || gone.Tx.ID != came.Tx.ID || gone.Seq >= came.Seq {
			r.t.Errorf("%s, row %d: %s %s, %s %s; it was %s", c.name, n, gone.Type, gone.Key, came.Type, came.Key, keys[n])
		}
	}
}
