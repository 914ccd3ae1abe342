package postgres

import (
	"context"
	"strings"
	"testing"

	"github.com/onewrite/onewrite/internal/servers"
)

// What migrate --print prints makes the same as migrate, for roles that may do no
// more than they need, and may be run again.
func TestCaptureByAdministrator(t *testing.T) {
	each(t, func(t *testing.T, pg *servers.PG) {
		url := pg.NewDatabase(t)
		admin := dial(t, url)
		relay, app := pg.NewRole(t, "REPLICATION"), pg.NewRole(t)
		sql(t, admin, `CREATE SCHEMA billing; CREATE TABLE billing.bills (id int PRIMARY KEY, n int); CREATE TABLE billing.notes (text text); CREATE TABLE orders (id int PRIMARY KEY)`,
			`INSERT INTO billing.bills VALUES (1, 1)`, `GRANT USAGE ON SCHEMA billing TO `+app.Name, `GRANT SELECT, INSERT, UPDATE, DELETE ON billing.bills, billing.notes, orders TO `+app.Name)
		o := MigrateOptions{AppRole: app.Name, RelayRole: relay.Name, Capture: Capture{Source: "shop", Tables: []string{"orders", "billing.*"}, Snapshot: true}}
		for range 2 {
			script, err := SchemaWithCapture(t.Context(), url, o)
			if err != nil {
				t.Fatal(err)
			}
			mustPsql(t, url, script)
		}
		if applied, err := Migrate(t.Context(), url, o); err != nil || len(applied) > 0 {
			t.Errorf("migrate after the script: %q, %v; want nothing to do", applied, err)
		}
		r := &rig{t: t, url: url, conn: admin, cfg: Config{Name: "shop", URL: relay.URL(url), BusID: "bus1", Tables: o.Capture.Tables, Trouble: func(what, problem string) { t.Log(what, problem) }}}
		r.open()
		if e := r.events(1)[0]; e.Type != "snapshot" || e.Topic != "billing.bills" {
			t.Errorf("the snapshot has %s of %s", e.Type, e.Topic)
		}
		eventually(t, "every snapshot is on the bus", func() bool {
			return one[bool](t, admin, `SELECT bool_and(finished = wanted) FROM onewrite.captured`)
		})
		writer := dial(t, app.URL(url))
		sql(t, writer, `INSERT INTO billing.notes VALUES ('a')`, `UPDATE billing.notes SET text = 'b'`, `UPDATE billing.bills SET n = 2`, `DELETE FROM billing.notes`)
		var types []string
		for _, e := range r.events(4) {
			types = append(types, e.Topic+" "+e.Type)
		}
		if got := strings.Join(types, ", "); got != "billing.notes insert, billing.notes update, billing.bills update, billing.notes delete" {
			t.Error(got)
		}
	})
}

// What is made is removed again, and a slot that nobody reads does not stay.
func TestCaptureEnds(t *testing.T) {
	each(t, func(t *testing.T, pg *servers.PG) {
		r := newRig(t, pg, `CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE b (id int PRIMARY KEY)`, "a", "b")
		slots := func() int {
			return one[int](t, r.conn, `SELECT count(*) FROM pg_replication_slots WHERE database = current_database()`)
		}
		r.open()
		r.whole() // else the snapshot of a finds the row
		r.tables = []string{"b"}
		if got := strings.Join(r.migrate(), "; "); !strings.Contains(got, "public.a are captured no more") {
			t.Errorf("migrate said %q", got)
		}
		sql(t, r.conn, `INSERT INTO a VALUES (1)`, `INSERT INTO b VALUES (1)`)
		if e := r.events(1)[0]; e.Topic != "public.b" {
			t.Errorf("an event of %s", e.Topic)
		}
		r.tables = nil
		if _, err := Migrate(t.Context(), r.url, MigrateOptions{Capture: Capture{Source: "shop"}}); err == nil || !strings.Contains(err.Error(), "stop it") {
			t.Errorf("migrate while the slot is read: %v", err)
		}
		_ = r.src.Close()
		eventually(t, "the slot is free", func() bool {
			return one[bool](t, r.conn, `SELECT NOT bool_or(active) FROM pg_replication_slots WHERE database = current_database()`)
		})
		if n := slots(); n != 1 {
			t.Fatalf("%d slots", n)
		}
		if got := strings.Join(r.migrate(), "; "); !strings.Contains(got, "dropped the slot") {
			t.Errorf("migrate said %q", got)
		}
		if n := slots() + one[int](t, r.conn, `SELECT count(*) FROM pg_publication`); n != 0 {
			t.Errorf("%d slots and publications are left", n)
		}
		r.tables, r.pos = []string{"b"}, ""
		r.migrate()
		r.open()
		_ = r.src.Close()
		eventually(t, "the slot is free", func() bool { return Rollback(t.Context(), r.url, true) == nil })
		if n := slots() + one[int](t, r.conn, `SELECT count(*) FROM pg_publication`); n != 0 {
			t.Errorf("%d slots and publications are left by migrate --down", n)
		}
	})
}

// A slot that keeps too much is dropped, aloud, and the tables are read again.
func TestRetainedLog(t *testing.T) {
	each(t, func(t *testing.T, pg *servers.PG) {
		r := newRig(t, pg, `CREATE TABLE a (id int PRIMARY KEY, n int); INSERT INTO a VALUES (1, 1); CREATE TABLE noise (t text)`, "a")
		said := make(chan string, 100)
		r.cfg.MaxRetained = 1 << 20
		r.cfg.Trouble = func(what, problem string) { said <- what + ": " + problem }
		r.open()
		r.events(1)
		busy := dial(t, r.url)
		sql(t, busy, `BEGIN; INSERT INTO a VALUES (2, 2)`) // holds the slot where it is
		sql(t, r.conn, `INSERT INTO noise SELECT repeat('x', 1000) FROM generate_series(1, 4000)`)
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		var err error
		for err == nil {
			_, err = r.src.Read(ctx)
		}
		if !strings.Contains(err.Error(), "max_retained") {
			t.Fatal(err)
		}
		sql(t, busy, `COMMIT`)
		r.cfg.MaxRetained = 0
		r.open()
		b := r.read()
		if b.Gap == nil || !strings.Contains(b.Gap.Reason, "onewrite dropped the slot") || !strings.Contains(b.Gap.Reason, "max_retained") {
			t.Errorf("no gap is told: %+v", b.Gap)
		}
		if got := len(b.Events) + len(r.events(2-len(b.Events))); got != 2 {
			t.Errorf("%d rows were read again, want 2", got)
		}
	})
}

// Capturing a table makes no statement of the application fail.
func TestCaptureLeavesTheApplicationAlone(t *testing.T) {
	each(t, func(t *testing.T, pg *servers.PG) {
		r := newRig(t, pg, `CREATE TABLE parent (id int PRIMARY KEY, n int); CREATE TABLE child (more int) INHERITS (parent);
			CREATE TABLE late (id int PRIMARY KEY DEFERRABLE INITIALLY DEFERRED, n int);
			CREATE TABLE reckoned (id int PRIMARY KEY, n int, twice int GENERATED ALWAYS AS (n * 2) STORED);
			CREATE TABLE odd (n int, twice int GENERATED ALWAYS AS (n * 2) STORED)`, "parent", "late", "reckoned")
		for _, table := range []string{"parent", "child", "late", "reckoned"} {
			columns := "(id, n)"
			sql(t, r.conn, "INSERT INTO "+table+" "+columns+" VALUES (1, 1)", "UPDATE "+table+" SET n = 2", "DELETE FROM "+table)
		}
		r.tables = append(r.tables, "odd")
		_, err := Migrate(t.Context(), r.url, MigrateOptions{Capture: Capture{Source: "shop", Tables: r.tables}})
		if (err != nil) != (pg.Version >= 18) {
			t.Errorf("a table that cannot be published: %v", err)
		}
		sql(t, r.conn, "INSERT INTO odd VALUES (1)", "UPDATE odd SET n = 2", "DELETE FROM odd")
	})
}

// A slot can be made only when the transactions that are open have ended. The outbox
// does not wait for that, and it is said.
func TestOutboxDoesNotWaitForTheSlot(t *testing.T) {
	each(t, func(t *testing.T, pg *servers.PG) {
		r := newRig(t, pg, `CREATE TABLE a (id int PRIMARY KEY); INSERT INTO a VALUES (1)`, "a")
		said := make(chan string, 100)
		r.cfg.Trouble = func(what, problem string) { said <- what + ": " + problem }
		old := dial(t, r.url)
		sql(t, old, `BEGIN`, `SELECT pg_current_xact_id()`)
		r.open()
		if text := <-said; !strings.HasPrefix(text, "log: row changes are not read yet") {
			t.Errorf("it was said %q", text)
		}
		sql(t, r.conn, `INSERT INTO onewrite.outbox (topic) VALUES ('first')`)
		if e := r.events(1)[0]; e.Topic != "first" {
			t.Errorf("%s came", e.Topic)
		}
		r.open() // where nothing of the log was read, too
		sql(t, r.conn, `INSERT INTO onewrite.outbox (topic) VALUES ('second')`)
		if e := r.events(1)[0]; e.Topic != "second" {
			t.Errorf("%s came", e.Topic)
		}
		sql(t, old, `COMMIT`)
		if e := r.events(1)[0]; e.Topic != "public.a" || e.Type != "snapshot" {
			t.Errorf("%s %s came", e.Type, e.Topic)
		}
		for text := ""; text != "log: "; {
			text = <-said
		}
	})
}

// An entry with ! leaves a table out of a pattern: it is neither captured nor granted, and
// what could not be captured of it is no matter.
func TestTablesLeftOut(t *testing.T) {
	each(t, func(t *testing.T, pg *servers.PG) {
		url, relay := pg.NewDatabase(t), pg.NewRole(t)
		admin := dial(t, url)
		sql(t, admin, `CREATE SCHEMA s; CREATE TABLE s.a (id int PRIMARY KEY); CREATE TABLE s.b (id int PRIMARY KEY); CREATE TABLE s."no topic" (id int)`)
		o := MigrateOptions{RelayRole: relay.Name, Capture: Capture{Source: "shop", Tables: []string{"s.*", "!s.no topic", "!s.b", "!s.typo"}}}
		captured := func() string {
			t.Helper()
			return one[string](t, admin, `SELECT string_agg(name || CASE WHEN has_table_privilege($1, rel, 'SELECT') THEN '' ELSE '?' END, ' ' ORDER BY name) || ' ' || (SELECT string_agg(tablename, ' ') FROM pg_publication_tables)
				FROM onewrite.captured`, relay.Name)
		}
		got, err := Migrate(t.Context(), url, o)
		if err != nil || !strings.Contains(strings.Join(got, "; "), `"!s.typo" leaves out a table that is not there`) {
			t.Fatalf("migrate says %q, %v", got, err)
		}
		if got := captured(); got != "s.a a" {
			t.Errorf("captured are %q", got)
		}
		script, err := SchemaWithCapture(t.Context(), url, o)
		if err != nil {
			t.Fatal(err)
		}
		mustPsql(t, url, script)
		if got := captured(); got != "s.a a" || one[bool](t, admin, `SELECT has_table_privilege($1, 's.b', 'SELECT')`, relay.Name) {
			t.Errorf("after the script captured are %q", got)
		}
		o.Capture.Tables = []string{"s.*", "!s.no topic"}
		if _, err := Migrate(t.Context(), url, o); err != nil || captured() != "s.a s.b a b" {
			t.Errorf("taken in again: %q, %v", captured(), err)
		}
		o.Capture.Tables = append(o.Capture.Tables, "!s.b")
		if got, err := Migrate(t.Context(), url, o); err != nil || captured() != "s.a a" || !strings.Contains(strings.Join(got, "; "), "s.b are captured no more") {
			t.Errorf("taken out again: %q, %q, %v", captured(), got, err)
		}
	})
}

// The owner of the tables may not drop a slot as a rule: migrate does the rest, and names a
// way that the relay's role has too. What it prints for an administrator does all of it.
func TestOwnerEndsCapture(t *testing.T) {
	each(t, func(t *testing.T, pg *servers.PG) {
		for _, script := range []bool{false, true} {
			url, owner, relay := pg.NewDatabase(t), pg.NewRole(t), pg.NewRole(t, "REPLICATION")
			admin := dial(t, url)
			sql(t, admin, `GRANT CREATE ON DATABASE `+one[string](t, admin, `SELECT quote_ident(current_database())`)+` TO `+owner.Name, `GRANT CREATE ON SCHEMA public TO `+owner.Name)
			as := owner.URL(url)
			sql(t, dial(t, as), `CREATE TABLE a (id int PRIMARY KEY)`)
			o := MigrateOptions{RelayRole: relay.Name, Capture: Capture{Source: "shop", Tables: []string{"a"}}}
			if _, err := Migrate(t.Context(), as, o); err != nil {
				t.Fatal(err)
			}
			r := &rig{t: t, url: url, conn: admin, cfg: Config{Name: "shop", URL: relay.URL(url), BusID: "bus1", Tables: o.Capture.Tables}}
			r.open()
			const left = `SELECT (SELECT count(*) FROM pg_publication) + (SELECT count(*) FROM onewrite.captured), (SELECT count(*) FROM pg_replication_slots WHERE database = current_database()), (SELECT count(*) FROM onewrite.log)`
			state := func() (got [3]int) {
				t.Helper()
				if err := admin.QueryRow(t.Context(), left).Scan(&got[0], &got[1], &got[2]); err != nil {
					t.Fatal(err)
				}
				return got
			}
			o.Capture.Tables = nil
			text, err := SchemaWithCapture(t.Context(), url, o)
			if err != nil {
				t.Fatal(err)
			}
			if out, err := psql(t, url, text); err == nil || !strings.Contains(out, "stop it, and run this again") {
				t.Errorf("the script while the slot is read: %s", out)
			}
			_ = r.src.Close()
			eventually(t, "the slot is free", func() bool {
				return one[bool](t, admin, `SELECT NOT bool_or(active) FROM pg_replication_slots WHERE database = current_database()`)
			})
			if script {
				for range 2 {
					mustPsql(t, url, text)
				}
			} else {
				done, err := Migrate(t.Context(), as, o)
				_, cure, found := strings.Cut(errText(err), "which that of onewrite run has: ")
				if got := state(); !found || got != [3]int{0, 1, 1} || !strings.Contains(strings.Join(done, "; "), "captured no more") {
					t.Fatalf("%v are left after %q, %v", got, done, err)
				}
				if f := findingOf(Examine(t.Context(), url, o), "slot"); !strings.Contains(f.Cure, cure) {
					t.Errorf("the doctor says %s; %s", f.Text, f.Cure)
				}
				sql(t, dial(t, relay.URL(url)), cure)
				if _, err := Migrate(t.Context(), as, o); err != nil {
					t.Error(err)
				}
			}
			if got := state(); got != [3]int{} {
				t.Errorf("script %v: %v are left", script, got)
			}
		}
	})
}

// migrate --down of such an owner removes the outbox, and names the slot that is left.
func TestOwnerRemovesTheOutbox(t *testing.T) {
	each(t, func(t *testing.T, pg *servers.PG) {
		url, owner := pg.NewDatabase(t), pg.NewRole(t)
		admin := dial(t, url)
		sql(t, admin, `GRANT CREATE ON DATABASE `+one[string](t, admin, `SELECT quote_ident(current_database())`)+` TO `+owner.Name, `GRANT CREATE ON SCHEMA public TO `+owner.Name)
		sql(t, dial(t, owner.URL(url)), `CREATE TABLE a (id int PRIMARY KEY)`)
		r := &rig{t: t, url: owner.URL(url), conn: admin, tables: []string{"a"}, cfg: Config{Name: "shop", URL: url, BusID: "bus1", Tables: []string{"a"}}}
		r.migrate()
		r.open()
		_ = r.src.Close()
		var err error
		eventually(t, "the slot is free", func() bool {
			err = Rollback(t.Context(), r.url, true)
			return !strings.Contains(errText(err), "stop it")
		})
		slot := one[string](t, admin, `SELECT slot_name::text FROM pg_replication_slots WHERE database = current_database()`)
		if !strings.HasSuffix(errText(err), dropped(slot)) || !one[bool](t, admin, `SELECT to_regnamespace('onewrite') IS NULL`) {
			t.Fatalf("migrate --down: %v", err)
		}
		sql(t, admin, dropped(slot))
	})
}
