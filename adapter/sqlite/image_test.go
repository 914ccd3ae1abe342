package sqlite

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/onewrite/onewrite"
)

// captured runs statements on a captured table and returns their events.
func capture(t *testing.T, ddl, table string, n int, statements ...string) []onewrite.Event {
	t.Helper()
	path := migrated(t, ddl, MigrateOptions{Tables: []string{table}, Snapshot: true, MaxEvent: 1000})
	db := app(t, path)
	for _, q := range statements {
		exec1(t, db, q)
	}
	s := opened(t, path, "")
	ev, _, _ := read(t, s, n)
	quiet(t, s)
	return ev
}

func TestEnvelope(t *testing.T) {
	ev := capture(t, `CREATE TABLE orders (id INTEGER PRIMARY KEY, note TEXT, paid BOOLEAN, price DECIMAL(10,2), raw BLOB, twice AS (id * 2), later AS (note || 'x') STORED);
		INSERT INTO orders (id, note) VALUES (1, 'old')`, "orders", 5,
		`INSERT INTO orders (id, note, paid, price, raw) VALUES (9007199254740993, '<é&>"', 1, 12.50, x'00ff')`,
		`UPDATE orders SET paid = 0, price = NULL WHERE id > 1`,
		`UPDATE orders SET id = 7 WHERE id > 1`)
	want := []struct{ kind, key, before, after, op string }{
		{"snapshot", `{"id":1}`, `null`, `{"id":1,"note":"old","paid":null,"price":null,"raw":null}`, "r"},
		{"insert", `{"id":9007199254740993}`, `null`, `{"id":9007199254740993,"note":"<é&>\"","paid":true,"price":12.5,"raw":"AP8="}`, "c"},
		{"update", `{"id":9007199254740993}`, `{"id":9007199254740993,"note":"<é&>\"","paid":true,"price":12.5,"raw":"AP8="}`, `{"id":9007199254740993,"note":"<é&>\"","paid":false,"price":null,"raw":"AP8="}`, "u"},
		{"delete", `{"id":9007199254740993}`, `{"id":9007199254740993,"note":"<é&>\"","paid":false,"price":null,"raw":"AP8="}`, `null`, "d"},
		{"insert", `{"id":7}`, `null`, `{"id":7,"note":"<é&>\"","paid":false,"price":null,"raw":"AP8="}`, "c"},
	}
	for i, w := range want {
		e := ev[i]
		ms := e.Time.UnixMilli()
		data := fmt.Sprintf(`{"before":%s,"after":%s,"source":{"version":"1","connector":"sqlite","name":"shop","ts_ms":%d,"snapshot":"%t","db":"main","table":"orders","seq":%d},"op":"%s","ts_ms":%d,"transaction":null}`,
			w.before, w.after, ms, w.op == "r", i+1, w.op, ms)
		if e.Type != w.kind || e.Key != w.key || e.Topic != "orders" || string(e.Data) != data || e.ContentType != "application/json" || e.Tx != (onewrite.Tx{}) || e.Time.IsZero() {
			t.Errorf("%+v\n%s\n%s", e, e.Data, data)
		}
	}
	if ev[3].ID == ev[4].ID {
		t.Error("two events share an id")
	}
}

// No value makes the statement fail, and each arrives as it is.
func TestEveryValueArrives(t *testing.T) {
	for literal, want := range map[string]string{
		"NULL": `null`, "x''": `""`, "''": `""`, "0": `0`, "-9223372036854775808": `-9223372036854775808`, "9223372036854775807": `9223372036854775807`,
		"1.0": `1.0`, "0.1 + 0.2": `0.30000000000000004`, "1e300": `1e+300`, "5e-324": `5e-324`, "-2.2250738585072014e-308": `-2.2250738585072014e-308`, "123456789012345680000.0": `1.2345678901234568e+20`,
		"1.7976931348623157e308": `1.7976931348623157e+308`, "9e999": `"Infinity"`, "-9e999": `"-Infinity"`, "'a' || char(0) || 'b'": `"a\u0000b"`, "CAST(x'61ff62' AS TEXT)": `"a` + "\ufffd" + `b"`,
		`'"\,' || char(10) || '''X'''`: `"\"\\,\n'X'"`, "'NULL'": `"NULL"`, "'🚀'": `"🚀"`, "x'4e554c4c'": `"TlVMTA=="`, "'{\"a\":1}'": `"{\"a\":1}"`, "json('{\"a\":1}')": `"{\"a\":1}"`,
	} {
		ev := capture(t, "CREATE TABLE v (id INTEGER PRIMARY KEY, v)", "v", 1, "INSERT INTO v VALUES (1, "+literal+")")
		if got := string(ev[0].Data); !strings.Contains(got, `"after":{"id":1,"v":`+want+`},"source"`) || !json.Valid(ev[0].Data) {
			t.Errorf("%s: want %s in %s", literal, want, got)
		}
	}
}

// The sqlite3 shell may be older than our library; its reals come back exactly too.
func TestValuesWrittenByTheShell(t *testing.T) {
	path := migrated(t, "CREATE TABLE v (id INTEGER PRIMARY KEY, v)", MigrateOptions{Tables: []string{"v"}})
	if out, err := shell(t, path, `INSERT INTO v (v) VALUES (0.1 + 0.2), (9e999), (x'00'), ('a' || char(0)), (1e15), (0.1), (3.0e-310);
		INSERT OR REPLACE INTO v VALUES (1, 2); INSERT OR IGNORE INTO v VALUES (1, 3); INSERT INTO v VALUES (1, 4) ON CONFLICT DO UPDATE SET v = excluded.v;`); err != nil {
		t.Fatal(out)
	}
	s := opened(t, path, "")
	ev, _, _ := read(t, s, 10)
	for i, want := range []string{`0.30000000000000004`, `"Infinity"`, `"AA=="`, `"a\u0000"`, `1e+15`, `0.1`, `3e-310`} {
		if !strings.Contains(string(ev[i].Data), `,"v":`+want+`},"source"`) {
			t.Errorf("want %s in %s", want, ev[i].Data)
		}
	}
	if got := ev[7].Type + ev[8].Type + ev[9].Type; got != "deleteinsertupdate" {
		t.Error(got)
	}
	quiet(t, s)
}

func TestWideAndOddTables(t *testing.T) {
	var cols, vals []string
	for i := range 700 {
		cols = append(cols, fmt.Sprintf(`"c%d ""%%s' ü"`, i))
		vals = append(vals, fmt.Sprint(i))
	}
	ev := capture(t, "CREATE TABLE wide ("+strings.Join(cols, ",")+", PRIMARY KEY ("+cols[1]+", "+cols[0]+"))", "wide", 4,
		"INSERT INTO wide VALUES ("+strings.Join(vals, ",")+")", "INSERT OR REPLACE INTO wide VALUES ("+strings.Join(vals, ",")+")", "UPDATE wide SET "+cols[5]+" = 'x'")
	if ev[3].Key != `{"c0 \"%s' ü":0,"c1 \"%s' ü":1}` || !strings.Contains(string(ev[3].Data), `"c5 \"%s' ü":"x"`) || !strings.Contains(string(ev[3].Data), `"c699 \"%s' ü":699`) {
		t.Errorf("%s %.300s", ev[3].Key, ev[3].Data)
	}
	ev = capture(t, `CREATE TABLE "order-items.v2" ("select" TEXT, "new" INT, old, k1, image, layout, "before", PRIMARY KEY ("new", "select")) WITHOUT ROWID`, "order-items.v2", 3,
		`INSERT INTO "order-items.v2" VALUES ('a', 1, 2, 3, 4, 5, 6)`, `UPDATE "order-items.v2" SET old = 3, k1 = NULL`, `DELETE FROM "order-items.v2"`)
	if ev[1].Key != `{"new":1,"select":"a"}` || ev[1].Topic != "order-items.v2" || !strings.Contains(string(ev[2].Data), `"before":{"select":"a","new":1,"old":3,"k1":null,"image":4,"layout":5,"before":6}`) {
		t.Errorf("%+v %s", ev[1], ev[2].Data)
	}
	ev = capture(t, "CREATE TABLE log (line)", "log", 2, "INSERT INTO log VALUES ('a'), ('b')")
	if ev[0].Key != "log" || ev[1].Key != "log" {
		t.Error("a table without a key is one lane:", ev[0].Key)
	}
	// Larger than any event may be: the statement does not fail, and the row
	// comes whole.
	ev = capture(t, "CREATE TABLE big (id INTEGER PRIMARY KEY, b)", "big", 2, "INSERT INTO big VALUES (1, zeroblob(3000000))", "UPDATE big SET b = 1")
	if len(ev[0].Data) < 4_000_000 || !json.Valid(ev[0].Data) || len(ev[1].Data) < 4_000_000 {
		t.Error(len(ev[0].Data), len(ev[1].Data))
	}
}

// NOT NULL ON CONFLICT REPLACE turns NULL into the default after the BEFORE
// trigger has seen it, and the default may run into another row.
func TestDefaultReplacesARow(t *testing.T) {
	ev := capture(t, "CREATE TABLE d (id INTEGER PRIMARY KEY, u INT NOT NULL ON CONFLICT REPLACE DEFAULT 5 UNIQUE ON CONFLICT REPLACE)", "d", 6,
		"INSERT INTO d VALUES (1, 5)", "INSERT INTO d VALUES (2, NULL)", "INSERT INTO d VALUES (3, 6)", "UPDATE d SET u = NULL WHERE id = 3")
	var got []string
	for _, e := range ev {
		got = append(got, e.Type+e.Key)
	}
	if s := strings.Join(got, " "); s != `insert{"id":1} delete{"id":1} insert{"id":2} insert{"id":3} delete{"id":2} update{"id":3}` {
		t.Error(s)
	}
}

// Foreign keys, triggers of the application and RETURNING go on as before.
func TestApplicationsTriggersAndForeignKeys(t *testing.T) {
	path := migrated(t, `CREATE TABLE p (id INTEGER PRIMARY KEY, u UNIQUE);
		CREATE TABLE c (id INTEGER PRIMARY KEY, p REFERENCES p ON DELETE CASCADE ON UPDATE CASCADE, up REFERENCES c ON DELETE SET NULL);
		CREATE TRIGGER p_n AFTER INSERT ON p WHEN NEW.id < 100 BEGIN INSERT INTO p VALUES (NEW.id + 100, NULL); INSERT INTO onewrite_outbox (topic, payload) VALUES ('p.made', NEW.id); END`,
		MigrateOptions{Tables: []string{"p", "c"}})
	db := app(t, path, "foreign_keys(1)")
	if id := value[int](t, db, "INSERT INTO p VALUES (1, 'x') RETURNING id"); id != 1 {
		t.Error(id)
	}
	exec1(t, db, "INSERT INTO c VALUES (10, 1, NULL), (11, 101, 10), (12, 1, 11)")
	r, err := db.Exec("INSERT OR REPLACE INTO p VALUES (200, 'x')")
	if err != nil {
		t.Fatal(err)
	}
	if n, _ := r.RowsAffected(); n != 1 {
		t.Error(n, "rows affected")
	}
	if id, _ := r.LastInsertId(); id != 200 {
		t.Error("last id", id)
	}
	s := opened(t, path, "")
	total := value[int](t, db, "SELECT count(*) FROM onewrite_outbox")
	ev, _, _ := read(t, s, total)
	tables := map[string]*replica{"p": {map[string]string{}, nil}, "c": {map[string]string{}, nil}}
	made := 0
	for _, e := range ev {
		if e.Topic == "p.made" {
			made++
			continue
		}
		if err := tables[e.Topic].apply(e.Key, false, decode(t, e)); err != nil {
			t.Fatal(err)
		}
	}
	if made != 1 || len(tables["p"].rows) != value[int](t, db, "SELECT count(*) FROM p") || len(tables["c"].rows) != 1 || value[int](t, db, "SELECT count(*) FROM c") != 1 {
		t.Error(made, tables["p"].rows, tables["c"].rows)
	}
	if row := tables["c"].rows[`{"id":11}`]; row != `{"id":11,"p":101,"up":null}` {
		t.Error(row)
	}
}
