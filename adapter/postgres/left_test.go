package postgres

import (
	"strings"
	"testing"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/internal/diagnosis"
	"github.com/onewrite/onewrite/internal/servers"
)

// A source whose tables were taken out of the file goes on from a position with a place in
// the log, also in its acknowledgements, and the doctor names the slot that is left.
func TestTablesTakenOutBeforeMigrate(t *testing.T) {
	each(t, func(t *testing.T, pg *servers.PG) {
		r := newRig(t, pg, `CREATE TABLE a (id int PRIMARY KEY)`, "a")
		r.open()
		r.snapshots()
		sql(t, r.conn, `INSERT INTO a VALUES (1)`, `INSERT INTO onewrite.outbox (topic) VALUES ('one')`)
		r.events(2)
		both := r.pos
		if !strings.Contains(string(both), dual) {
			t.Fatalf("position %s", both)
		}
		r.cfg.Tables = nil
		r.open()
		sql(t, r.conn, `INSERT INTO onewrite.outbox (topic) VALUES ('two')`)
		if e := r.events(1)[0]; e.Topic != "two" {
			t.Errorf("%s came", e.Topic)
		}
		for _, pos := range []onewrite.Pos{both, "wal1,0,1,0,0,0,0|", r.pos} {
			if err := r.src.Ack(t.Context(), pos); err != nil {
				t.Errorf("acknowledge %s: %v", pos, err)
			}
		}
		ring, err := tryOpen(t, Config{URL: r.url}, both) // another process, which stands by
		if err == nil || ring != nil || strings.Contains(err.Error(), "is not a position") {
			t.Errorf("open at the old position: %v", err)
		}
		go func() {
			for { // whoever reads frees too
				if _, err := r.src.Read(t.Context()); err != nil {
					return
				}
			}
		}()
		eventually(t, "the outbox is emptied", func() bool { return one[int](t, r.conn, `SELECT count(*) FROM onewrite.outbox`) == 0 })
		f := findingOf(Examine(t.Context(), r.url, MigrateOptions{Capture: Capture{Source: "shop"}}), "slot")
		slot := one[string](t, r.conn, `SELECT slot_name::text FROM pg_replication_slots WHERE database = current_database()`)
		if f.Severity != diagnosis.Problem || f.Cure != "onewrite migrate" || !strings.Contains(f.Text, slot) {
			t.Errorf("the doctor says %s; %s", f.Text, f.Cure)
		}
		r.tables = nil
		r.migrate()
		if f := findingOf(Examine(t.Context(), r.url, MigrateOptions{Capture: Capture{Source: "shop"}}), "slot"); f.Text != "" {
			t.Errorf("after migrate the doctor says %s", f.Text)
		}
	})
}

// A table from which others inherit is captured alone, and taken out alone.
func TestParentTakenOut(t *testing.T) {
	each(t, func(t *testing.T, pg *servers.PG) {
		r := newRig(t, pg, `CREATE TABLE parent (id int PRIMARY KEY); CREATE TABLE child (more int) INHERITS (parent); CREATE TABLE a (id int PRIMARY KEY)`, "parent", "a")
		r.tables = []string{"a"}
		if got := strings.Join(r.migrate(), "; "); !strings.Contains(got, "public.parent are captured no more") {
			t.Errorf("migrate says %q", got)
		}
	})
}

// A table that is dropped stops nobody: the others and the outbox go on, and it is said
// until onewrite migrate is run.
func TestDroppedTableStopsNobody(t *testing.T) {
	each(t, func(t *testing.T, pg *servers.PG) {
		r := newRig(t, pg, `CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE plain (id int PRIMARY KEY)`, "a", "plain")
		said := make(chan string, 1000)
		r.cfg.Trouble = func(what, problem string) {
			if what == "tables" {
				said <- problem
			}
		}
		r.open()
		r.snapshots()
		sql(t, r.conn, `INSERT INTO plain VALUES (1)`)
		r.events(1)
		until := func(want string) {
			t.Helper()
			for text := "-"; text != want; {
				text = <-said
			}
		}
		const dropped = "the table public.plain was dropped; take it out of tables: and run onewrite migrate as the owner of the tables"
		sql(t, r.conn, `INSERT INTO plain VALUES (2)`, `DROP TABLE plain`)
		until(dropped)
		for range 2 { // while it runs, and when it opens again
			sql(t, r.conn, `INSERT INTO a SELECT coalesce(max(id), 0) + 1 FROM a`, `INSERT INTO onewrite.outbox (topic) VALUES ('t')`)
			n := 0
			for seen := map[string]bool{}; !seen["public.a"] || !seen["t"]; n++ {
				for _, e := range r.read().Events {
					seen[e.Topic] = true
				}
			}
			r.open()
			until(dropped)
		}
		o := MigrateOptions{Capture: Capture{Source: "shop", Tables: r.tables}}
		if _, err := Migrate(t.Context(), r.url, o); !strings.Contains(errText(err), "there is no table public.plain") {
			t.Errorf("migrate with the table that is gone: %v", err)
		}
		if f := findingOf(Examine(t.Context(), r.url, o), "tables"); f.Severity != diagnosis.Problem || !strings.Contains(f.Text, "public.plain was dropped") || !strings.HasPrefix(f.Cure, "onewrite migrate  #") {
			t.Errorf("the doctor says %s; %s", f.Text, f.Cure)
		}
		r.tables = []string{"a"}
		r.migrate()
		until("")
		// Made anew and captured again, it is dropped no more.
		sql(t, r.conn, `CREATE TABLE plain (id int PRIMARY KEY)`)
		r.tables = []string{"a", "plain"}
		r.migrate()
		r.open()
		sql(t, r.conn, `DROP TABLE plain`)
		until(dropped)
		sql(t, r.conn, `CREATE TABLE plain (id int PRIMARY KEY)`)
		r.migrate()
		until("")
	})
}
