package postgres

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/internal/servers"
)

const ddlTables = `CREATE SCHEMA s; CREATE TABLE s.orders (id int PRIMARY KEY); CREATE TABLE s.parts (id int PRIMARY KEY) PARTITION BY RANGE (id);
	CREATE TABLE s.parts_1 PARTITION OF s.parts FOR VALUES FROM (0) TO (10); CREATE TABLE other (id int PRIMARY KEY); CREATE TABLE s.gone (id int PRIMARY KEY)`

// newDDL is a rig that is told of DDL on the tables of a schema, and a session of their
// owner, who may do nothing with onewrite.
func newDDL(t *testing.T, pg *servers.PG) (r *rig, owner *pgx.Conn) {
	t.Helper()
	r = newRig(t, pg, ddlTables, "s.*")
	role := pg.NewRole(t)
	sql(t, r.conn, strings.ReplaceAll(`ALTER SCHEMA s OWNER TO {{}}; ALTER TABLE s.orders OWNER TO {{}}; ALTER TABLE s.parts OWNER TO {{}}; ALTER TABLE s.parts_1 OWNER TO {{}}; ALTER TABLE s.gone OWNER TO {{}}; ALTER TABLE other OWNER TO {{}}`, "{{}}", role.Name))
	r.cfg.DDL = true
	if got := strings.Join(r.migrate(), "; "); !strings.Contains(got, "event triggers") {
		t.Fatalf("migrate says %q", got)
	}
	if got := r.migrate(); len(got) > 0 {
		t.Fatalf("migrate again says %q", got)
	}
	r.open()
	r.snapshots()
	return r, dial(t, role.URL(r.url))
}

// ddlOf is a DDL event in short, or the topic of any other.
func ddlOf(t *testing.T, e onewrite.Event) string {
	t.Helper()
	if e.Topic != "onewrite.ddl" {
		return e.Topic + " " + e.Type
	}
	var d struct {
		Command, Schema, Table, DDL string
		Source                      struct {
			Name, Schema, Table string
			TxID                uint32
			LSN                 uint64
		}
		TS int64 `json:"ts_ms"`
	}
	if err := json.Unmarshal(e.Data, &d); err != nil {
		t.Fatalf("%v: %s", err, e.Data)
	}
	if e.Type != "ddl" || e.ContentType != "application/json" || d.Source.Name != "shop" || d.Source.Schema != d.Schema || d.Source.Table != d.Table || fmt.Sprint(d.Source.TxID) != e.Tx.ID || d.Source.LSN == 0 || d.TS != e.Time.UnixMilli() {
		t.Errorf("%s %s %s", e.Type, e.ContentType, e.Data)
	}
	return fmt.Sprintf("%s: %s %s.%s: %s", e.Key, d.Command, d.Schema, d.Table, d.DDL)
}

// DDL on captured tables is told where it happened among the row changes, and nothing
// else is.
func TestDDLComesInOrderWithRows(t *testing.T) {
	each(t, func(t *testing.T, pg *servers.PG) {
		r, owner := newDDL(t, pg)
		steps := []struct {
			sql  string
			want []string
		}{
			{`BEGIN`, nil}, {`INSERT INTO s.orders VALUES (1)`, []string{"s.orders insert"}},
			{`ALTER TABLE s.orders ADD c int`, []string{"s.orders: ALTER TABLE s.orders: ALTER TABLE s.orders ADD c int"}},
			{`INSERT INTO s.orders VALUES (2, 2)`, []string{"s.orders insert"}},
			{`SAVEPOINT a`, nil}, {`ALTER TABLE s.orders ADD no int`, nil}, {`ROLLBACK TO a`, nil},
			{`SAVEPOINT b`, nil}, {`ALTER TABLE s.orders RENAME c TO d`, []string{"s.orders: ALTER TABLE s.orders: ALTER TABLE s.orders RENAME c TO d"}}, {`RELEASE b`, nil},
			{`UPDATE s.orders SET d = 3 WHERE id = 2`, []string{"s.orders update"}},
			{`ALTER TABLE other ADD x int`, nil}, {`CREATE INDEX ON s.orders (d)`, nil}, {`COMMIT`, nil},
			{`BEGIN; ALTER TABLE s.orders ADD no int; ROLLBACK`, nil}, {`CREATE TABLE s.fresh (id int)`, nil}, {`DROP TABLE s.fresh`, nil},
			{`ALTER TABLE s.parts ADD x text DEFAULT '"\ü'`, []string{`s.parts: ALTER TABLE s.parts: ALTER TABLE s.parts ADD x text DEFAULT '"\ü'`}},
			{`ALTER TABLE s.parts_1 ALTER x SET STATISTICS 10`, []string{"s.parts: ALTER TABLE s.parts_1: ALTER TABLE s.parts_1 ALTER x SET STATISTICS 10"}},
			{`CREATE TABLE s.parts_2 PARTITION OF s.parts FOR VALUES FROM (10) TO (20)`, []string{"s.parts: CREATE TABLE s.parts_2: CREATE TABLE s.parts_2 PARTITION OF s.parts FOR VALUES FROM (10) TO (20)"}},
			{`COMMENT ON TABLE s.orders IS 'x'`, []string{"s.orders: COMMENT s.orders: COMMENT ON TABLE s.orders IS 'x'"}},
			{`ALTER TABLE s.orders DROP d`, []string{"s.orders: ALTER TABLE s.orders: ALTER TABLE s.orders DROP d"}},
			{`INSERT INTO s.orders VALUES (3)`, []string{"s.orders insert"}},
		}
		var want []string
		for _, s := range steps {
			sql(t, owner, s.sql)
			want = append(want, s.want...)
		}
		got := r.events(len(want))
		for i, e := range got {
			if have := ddlOf(t, e); have != want[i] {
				t.Errorf("event %d is %s, want %s", i, have, want[i])
			}
			if last := i == 4 || i > 4; e.Tx.Last != last || i < 5 && e.Tx.Index != i {
				t.Errorf("event %d: number %d, last %v", i, e.Tx.Index, e.Tx.Last)
			}
		}
		if !strings.Contains(string(got[2].Data), `"after":{"id":2,"c":2}`) || !strings.Contains(string(got[4].Data), `"d":3`) {
			t.Errorf("the rows are %s and %s", got[2].Data, got[4].Data)
		}
		sql(t, owner, `ALTER TABLE s.orders ADD z text DEFAULT '`+strings.Repeat("z", 300_000)+`'`)
		if e := r.events(1)[0]; e.Topic != "onewrite.ddl" || len(e.Data) < 100_000 || len(e.Data) > 101_000 {
			t.Errorf("of a long command came %d bytes", len(e.Data))
		}
	})
}

// That a table was renamed or dropped is told under the name by which it was captured;
// reading may stop there until migrate was run.
func TestDDLTellsOfRenameAndDrop(t *testing.T) {
	each(t, func(t *testing.T, pg *servers.PG) {
		r, owner := newDDL(t, pg)
		for _, c := range []struct{ sql, want string }{
			{`ALTER TABLE s.orders RENAME TO sales`, "s.orders: ALTER TABLE s.sales: "}, {`DROP TABLE s.gone`, "s.gone: DROP TABLE s.gone: "},
			{`DROP SCHEMA s CASCADE`, "s.parts: DROP SCHEMA s.parts: "},
		} {
			sql(t, owner, c.sql)
			var all []string
			eventually(t, c.sql+" is told", func() bool {
				if r.src == nil {
					var err error
					if r.src, err = OpenSource(t.Context(), r.cfg, r.pos); err != nil {
						r.src = nil
						r.migrate()
						return false
					}
				}
				b, err := r.src.Read(t.Context())
				if err != nil { // the table is not what was captured any more
					_ = r.src.Close()
					r.src = nil
					return false
				}
				for _, e := range b.Events {
					r.pos = b.Pos
					all = append(all, ddlOf(t, e))
				}
				return strings.Contains(strings.Join(all, "\n"), c.want+c.sql)
			})
			if src := r.src; src != nil {
				_ = src.Close()
				r.src = nil
			}
			if !strings.Contains(c.sql, "SCHEMA") {
				r.migrate()
			}
		}
	})
}

// Whatever goes wrong in the triggers, the application's command works.
func TestDDLIsNeverRefused(t *testing.T) {
	each(t, func(t *testing.T, pg *servers.PG) {
		r, _ := newDDL(t, pg)
		var said []string
		cfg := r.conn.Config().Copy()
		cfg.OnNotice = func(_ *pgconn.PgConn, n *pgconn.Notice) { said = append(said, n.Severity+" "+n.Message) }
		conn, err := pgx.ConnectConfig(t.Context(), cfg)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = conn.Close(t.Context()) }()
		_ = r.src.Close()
		sql(t, conn, `ALTER TABLE onewrite.captured RENAME TO away`, `ALTER TABLE s.orders ADD c int`, `DROP TABLE s.gone`, `ALTER TABLE onewrite.away RENAME TO captured`)
		r.migrate()
		r.open()
		if text := strings.Join(said, "\n"); !strings.Contains(text, "WARNING onewrite could not tell of ALTER TABLE: ") || !strings.Contains(text, "could not tell of DROP TABLE") {
			t.Errorf("it was said %q", text)
		}
		sql(t, r.conn, `ALTER TABLE s.orders ADD d int; SELECT pg_logical_emit_message(true, 'onewrite.ddl', 'x')`)
		if e := r.events(2); e[0].Topic != "onewrite.ddl" || e[1].Topic != "onewrite.invalid" || string(e[1].Data) != "x" {
			t.Errorf("%s, %s came", brief(e[0]), brief(e[1]))
		}
	})
}

// Only a superuser can make event triggers: that is said with what to do, and what
// migrate --print prints does it. They go with the setting, and with migrate --down.
func TestMigrateDDL(t *testing.T) {
	each(t, func(t *testing.T, pg *servers.PG) {
		url := pg.NewDatabase(t)
		admin, role := dial(t, url), pg.NewRole(t)
		sql(t, admin, ddlTables, `GRANT CREATE ON DATABASE `+databaseOf(admin.Config())+` TO `+role.Name, strings.ReplaceAll(`ALTER TABLE s.orders OWNER TO {{}}; GRANT USAGE ON SCHEMA s TO {{}}`, "{{}}", role.Name))
		o := MigrateOptions{Capture: Capture{Source: "shop", Tables: []string{"s.orders"}, DDL: true}}
		_, err := Migrate(t.Context(), role.URL(url), o)
		if err == nil || !strings.Contains(err.Error(), "superuser") || !strings.HasSuffix(err.Error(), "or take ddl: out") {
			t.Fatalf("as no superuser: %v", err)
		}
		o.Capture.DDL = false
		if _, err := Migrate(t.Context(), role.URL(url), o); err != nil {
			t.Fatal(err)
		}
		o.Capture.DDL = true
		script, err := SchemaWithCapture(t.Context(), url, o)
		if err != nil {
			t.Fatal(err)
		}
		triggers := func() int { return one[int](t, admin, `SELECT count(*) FROM pg_event_trigger`) }
		for range 2 {
			mustPsql(t, url, script)
		}
		if applied, err := Migrate(t.Context(), role.URL(url), o); err != nil || len(applied) > 0 || triggers() != 2 {
			t.Errorf("migrate after the script: %q, %v, %d triggers", applied, err, triggers())
		}
		o.Capture.DDL = false
		_, err = Migrate(t.Context(), role.URL(url), o)
		if err == nil {
			t.Fatal("who is no superuser dropped the triggers")
		}
		_, cure, _ := strings.Cut(err.Error(), "let one run: ")
		sql(t, admin, cure)
		if applied, err := Migrate(t.Context(), role.URL(url), o); err != nil || len(applied) > 0 || triggers() != 0 {
			t.Errorf("after the cure %q: %q, %v, %d triggers", cure, applied, err, triggers())
		}
		o.Capture.DDL = true
		if _, err := Migrate(t.Context(), url, o); err != nil || triggers() != 2 {
			t.Fatalf("as superuser: %v", err)
		}
		if err := Rollback(t.Context(), role.URL(url), false); err != nil || triggers() != 0 {
			t.Errorf("migrate --down: %v, %d triggers are left", err, triggers())
		}
	})
}

// The doctor finds triggers that are missing or turned off.
func TestExamineDDL(t *testing.T) {
	each(t, func(t *testing.T, pg *servers.PG) {
		w := newWard(t, pg)
		w.sql(ddlTables)
		w.o.Capture = Capture{Source: "shop", Tables: []string{"s.*"}, DDL: true}
		ill := func() bool {
			return strings.Contains(w.examine().bad().String(), "event triggers that tell of DDL are missing")
		}
		if !ill() {
			t.Error("nobody said that the triggers are missing")
		}
		w.migrate()
		if ill() {
			t.Error("after migrate it is said again")
		}
		w.sql(`ALTER EVENT TRIGGER onewrite_drop DISABLE`)
		if !ill() {
			t.Error("nobody said that a trigger is turned off")
		}
		w.migrate()
		if ill() {
			t.Error("after migrate it is said again")
		}
	})
}
