package postgres

import (
	"slices"
	"strings"
	"testing"

	"github.com/onewrite/onewrite/internal/diagnosis"
	"github.com/onewrite/onewrite/internal/servers"
)

// What keeps row changes from being read is said with its cure, and the cure works.
func TestExamineLog(t *testing.T) {
	each(t, func(t *testing.T, pg *servers.PG) {
		w := newWard(t, pg)
		w.sql(`CREATE TABLE orders (id int PRIMARY KEY, n int); CREATE TABLE stock (id int PRIMARY KEY)`)
		w.o.Capture = Capture{Source: "shop", Tables: []string{"orders"}}
		said := func(check, text string) diagnosis.Finding {
			t.Helper()
			for _, f := range w.examine() {
				if f.Check == check && f.Severity != diagnosis.OK && strings.Contains(f.Text, text) {
					return f
				}
			}
			t.Fatalf("nobody said %q of %s: %v", text, check, w.examine())
			return diagnosis.Finding{}
		}
		cured := func(f diagnosis.Finding) {
			t.Helper()
			w.sql(f.Cure)
			for _, g := range w.examine() {
				if g.Check == f.Check && g.Text == f.Text {
					t.Errorf("after %q it is said again: %s", f.Cure, g.Text)
				}
			}
		}
		if f := said("tables", "nothing captures"); f.Cure != "onewrite migrate  # as postgres, who owns the schema onewrite" {
			t.Error(f)
		}
		w.o.Capture.LogURL = w.relay.URL(w.admin)
		if f := said("log_url", "SQLSTATE 42501"); !strings.HasPrefix(f.Cure, w.words(`ALTER ROLE "{{relay}}" REPLICATION; --`)) {
			t.Error(f)
		}
		w.o.Capture.LogURL = ""
		cured(said("log", "may not read the log"))
		w.migrate()
		w.o.Capture.Tables = []string{"orders", "nowhere"}
		if f := said("tables", "there is no table public.nowhere"); f.Cure != "create it, or take it out of the setting tables" {
			t.Error(f)
		}
		w.o.Capture.Tables = []string{"orders"}
		w.sql(`INSERT INTO onewrite.log SELECT 'shop', 'onewrite_shop_' || oid, '0/0', '0/0', '0/0', 0, '', system_identifier, '' FROM pg_database, pg_control_system() WHERE datname = current_database()`)
		for hold, cure := range map[bool]string{false: "onewrite run", true: "set on_gap: snapshot"} {
			w.o.Capture.HoldGap = hold
			if f := said("slot", " is gone: row changes"); !strings.HasPrefix(f.Cure, cure) {
				t.Error(f)
			}
		}
		w.sql(`DELETE FROM onewrite.log; ALTER TABLE orders ENABLE ROW LEVEL SECURITY; CREATE POLICY all_rows ON orders USING (true)`)
		cured(said("tables", "row-level security hides rows of public.orders"))
		w.o.Capture.Tables = []string{"orders", "stock"}
		said("tables", "public.stock is in tables: and not captured yet")
		w.o.Capture.Tables = []string{"orders"}
		w.sql(`REVOKE SELECT ON orders FROM {{relay}}`)
		cured(said("tables", "may not read public.orders"))
		w.o.Capture.Where = map[string]string{"orders": "m > 0"}
		said("tables", `snapshot_where: the condition of public.orders is refused: column "m" does not exist`)
		w.o.Capture.Where = map[string]string{"orders": "n > 0"}
		w.sql(`ALTER PUBLICATION onewrite_shop SET (publish = 'insert')`)
		said("tables", "leaves out")
		w.o.Capture.Pushed = true
		said("tables", "outbox: log is set, and the outbox is not in the publication")
		w.migrate()
		w.sql(`SELECT pg_create_logical_replication_slot('onewrite_left_' || oid, 'pgoutput') FROM pg_database WHERE datname = current_database()`)
		cured(said("slot", "is read by nobody"))
		for _, f := range w.examine() {
			if (f.Check == "log" || f.Check == "tables") && f.Severity != diagnosis.OK {
				t.Errorf("all is well, and yet: %+v", f)
			}
		}
	})
}

// A slot that is not the one that was read is said, and so is another database: onewrite run
// would tell a gap.
func TestExamineAnotherSlot(t *testing.T) {
	each(t, func(t *testing.T, pg *servers.PG) {
		f := newFollower(t, pg)
		f.begin()
		f.close()
		says := func(severity diagnosis.Severity, text string) {
			t.Helper()
			found := Examine(t.Context(), f.url, MigrateOptions{Capture: Capture{Source: "shop", Tables: f.tables}})
			for _, g := range found {
				if g.Check == "slot" && g.Severity == severity && strings.Contains(g.Text, text) {
					return
				}
			}
			t.Errorf("nobody said %q: %v", text, found)
		}
		says(diagnosis.OK, "keeps")
		f.change(1)
		says(diagnosis.OK, "keeps")
		sql(t, f.conn, `SELECT pg_drop_replication_slot(slot_name), pg_create_logical_replication_slot(slot_name, 'pgoutput') FROM (SELECT slot FROM onewrite.log) l (slot_name)`)
		says(diagnosis.Problem, "was dropped and made again: it begins at ")
		sql(t, f.conn, `UPDATE onewrite.log SET publication = 1`)
		says(diagnosis.Problem, "the publication was dropped and made again")
		sql(t, f.conn, `UPDATE onewrite.log SET slot = 'onewrite_shop_1'`)
		says(diagnosis.Problem, "the database is another one of the same server than before")
		sql(t, f.conn, `UPDATE onewrite.log SET system = 1`)
		says(diagnosis.Problem, "the database is another cluster than before")
		f.cfg.HoldGap = true
		f.held("the database is another cluster than before")
	})
}

// A table that was dropped and made again is one line of the doctor, and one of onewrite migrate.
func TestExamineTableMadeAgain(t *testing.T) {
	each(t, func(t *testing.T, pg *servers.PG) {
		r := newRig(t, pg, `CREATE TABLE late (id int PRIMARY KEY)`, "public.late")
		says := func() (said []string) {
			for _, f := range Examine(t.Context(), r.url, MigrateOptions{Capture: Capture{Source: "shop", Tables: r.tables}}) {
				if f.Check == "tables" {
					said = append(said, f.Text)
				}
			}
			return said
		}
		sql(t, r.conn, `DROP TABLE late`, `CREATE TABLE late (id int PRIMARY KEY, more text)`)
		if said := says(); len(said) != 1 || !strings.HasPrefix(said[0], "the table public.late was dropped and made again: ") {
			t.Errorf("the doctor says %q", said)
		}
		applied := r.migrate()
		if n := strings.Count(strings.Join(applied, "\n"), "public.late"); n != 1 || !slices.Contains(applied, "public.late is another table than before: it gets a new snapshot") {
			t.Errorf("migrate says %q", applied)
		}
		sql(t, r.conn, `ALTER TABLE late RENAME TO soon`, `CREATE TABLE late (id int PRIMARY KEY)`)
		if said := says(); len(said) != 1 || said[0] != "table public.late has another name now: public.soon" {
			t.Errorf("the doctor says %q", said)
		}
	})
}
