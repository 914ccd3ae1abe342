package postgres

import (
	"fmt"
	"strings"
	"testing"

	"github.com/onewrite/onewrite/internal/servers"
)

// migrateWhere migrates with conditions of the snapshots.
func (r *rig) migrateWhere(where map[string]string, againWhere string, again ...string) (string, error) {
	r.t.Helper()
	applied, err := Migrate(r.t.Context(), r.url, MigrateOptions{Capture: Capture{Source: "shop", Tables: r.tables, Snapshot: true, Where: where, Again: again, AgainWhere: againWhere}})
	return strings.Join(applied, "; "), err
}

// snapshotIDs reads n events of snapshots and returns them as table and id, in order; a
// table that is emptied has no id.
func (r *rig) snapshotIDs(n int) string {
	r.t.Helper()
	var ids []string
	for _, e := range r.events(n) {
		if e.Type == "truncate" && e.Tx.ID == "" {
			ids = append(ids, strings.TrimPrefix(e.Topic, "public."))
			continue
		}
		if e.Type != "snapshot" {
			r.t.Errorf("%s of %s", e.Type, e.Topic)
		}
		ids = append(ids, strings.TrimPrefix(e.Topic, "public.")+rowOf(r.t, e).After[len(`{"id":`):strings.IndexByte(rowOf(r.t, e).After, ',')])
	}
	return strings.Join(ids, " ")
}

// A snapshot has the rows that meet its condition: that of the configuration, or its
// own. Changes come of all rows.
func TestSnapshotWhere(t *testing.T) {
	each(t, func(t *testing.T, pg *servers.PG) {
		r := newRig(t, pg, `CREATE TABLE other (id int)`, "public.other")
		sql(t, r.conn, `CREATE TABLE a (id int PRIMARY KEY, n int, "Odd ""x" text); INSERT INTO a SELECT i, i % 50, 'it''s' FROM generate_series(1, 500) i`,
			`CREATE TABLE lane (id int, n int); INSERT INTO lane SELECT i, i FROM generate_series(1, 9) i`,
			`CREATE TABLE p (id int PRIMARY KEY, n int) PARTITION BY RANGE (id); CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (10); INSERT INTO p SELECT i, i FROM generate_series(1, 9) i`)
		r.tables = []string{"a", "lane", "p"}
		where := map[string]string{"public.*": "n = 7", "a": `a.n = 49 AND "Odd ""x" = 'it''s' OR id = 1 -- the first`}
		if said, err := r.migrateWhere(where, ""); err != nil || !strings.Contains(said, "public.a are captured, with a snapshot first, of the rows WHERE a.n = 49") {
			t.Fatal(said, err)
		}
		r.cfg.Tables, r.cfg.chunk, r.cfg.scan, r.cfg.readers = r.tables, 3, 20, 1
		r.cfg.Trouble = func(name, problem string) {
			if problem != "" {
				t.Errorf("%s: %s", name, problem)
			}
		}
		r.open()
		if got := r.snapshotIDs(13); got != "a1 a49 a99 a149 a199 a249 a299 a349 a399 a449 a499 lane7 p7" {
			t.Error(got)
		}
		r.whole()
		sql(t, r.conn, `UPDATE a SET n = 0 WHERE id = 2`)
		r.expect(`a update {"id":2} null {"id":2,"n":0,"Odd \"x":"it's"}`)
		if said, err := r.migrateWhere(where, "id IN (SELECT id FROM public.lane)", "a"); err != nil || said != "public.a gets a new snapshot, of the rows WHERE id IN (SELECT id FROM public.lane)" {
			t.Error(said, err)
		}
		if got := r.snapshotIDs(9); got != "a1 a2 a3 a4 a5 a6 a7 a8 a9" {
			t.Error(got)
		}
		r.whole()
		where["a"] = "id > 498"
		if said, err := r.migrateWhere(where, ""); err != nil || said != "later snapshots of public.a have other rows, of the rows WHERE id > 498" {
			t.Error(said, err)
		}
		if said, err := r.migrateWhere(where, "", "a", "lane", "p"); err != nil {
			t.Error(said, err)
		}
		if got := r.snapshotIDs(4); got != "a499 a500 lane7 p7" {
			t.Error(got)
		}
		r.whole()
		_, err := r.migrateWhere(where, "true", "lane")
		if got := r.snapshotIDs(10); err != nil || got != "lane lane1 lane2 lane3 lane4 lane5 lane6 lane7 lane8 lane9" {
			t.Error(got, err)
		}
	})
}

// What the server does not take as one condition is refused, with what it says.
func TestConditionsThatAreRefused(t *testing.T) {
	each(t, func(t *testing.T, pg *servers.PG) {
		r := newRig(t, pg, `CREATE TABLE a (id int PRIMARY KEY, n int); CREATE FUNCTION mine(int) RETURNS bool LANGUAGE sql AS 'SELECT true'; CREATE TABLE log (id int)`, "a")
		for _, c := range []struct{ where, says string }{
			{"n =", "syntax error"}, {"m = 1", `column "m" does not exist`}, {"n + 1", "must be type boolean"}, {"true) OR (true", "syntax error"}, {"true] OR [true", "syntax error"},
			{"true); DROP TABLE a; --", "syntax error"}, {"true; DELETE FROM a", "syntax error"}, {"count(*) > 0", "aggregate"}, {"id = $1", "parameter $1"}, {"mine(n)", "function mine(integer) does not exist"},
			{"'a' /*", "unterminated"}, {"n > 0 LIMIT 1", "syntax error"}, {"id IN (SELECT id FROM log)", "does not exist"},
		} {
			for _, try := range []func() (string, error){
				func() (string, error) { return r.migrateWhere(map[string]string{"public.a": c.where}, "") },
				func() (string, error) { return r.migrateWhere(nil, c.where, "a") },
			} {
				said, err := try()
				if err == nil || !strings.Contains(err.Error(), c.says) || !strings.Contains(err.Error(), "the condition of public.a is refused") {
					t.Errorf("%s: %q, %v", c.where, said, err)
				}
			}
			o := MigrateOptions{Capture: Capture{Source: "shop", Tables: r.tables, Where: map[string]string{"public.a": c.where}}}
			if _, err := SchemaWithCapture(t.Context(), r.url, o); err == nil || !strings.Contains(err.Error(), c.says) {
				t.Errorf("%s: migrate --print: %v", c.where, err)
			}
		}
		if n := one[int](t, r.conn, `SELECT count(*) FROM onewrite.captured WHERE filter <> '' OR once <> ''`); n != 0 {
			t.Errorf("%d conditions were kept", n)
		}
		if said, err := r.migrateWhere(map[string]string{"a": "public.mine(n)"}, ""); err != nil {
			t.Error(said, err)
		}
	})
}

// A condition that does not hold any more is said, holds up no other table, and is
// healed by migrate.
func TestConditionThatFailsLater(t *testing.T) {
	each(t, func(t *testing.T, pg *servers.PG) {
		r := newRig(t, pg, `CREATE TABLE a (id int PRIMARY KEY, n int); CREATE TABLE b (id int PRIMARY KEY, n int); INSERT INTO a VALUES (1, 1), (2, 0); INSERT INTO b VALUES (1, 1)`, "a", "b")
		if said, err := r.migrateWhere(map[string]string{"a": "1 / n = 1"}, ""); err != nil || !strings.Contains(said, "the snapshot of public.a begins anew, of the rows WHERE 1 / n = 1") {
			t.Fatal(said, err)
		}
		said := make(chan string, 100)
		r.cfg.readers = 1
		r.cfg.Trouble = func(what, problem string) { said <- what + ": " + problem }
		r.open()
		if got := r.snapshotIDs(1); got != "b1" {
			t.Error(got)
		}
		text := ""
		for !strings.HasPrefix(text, "snapshot of public.a: ") {
			text = <-said
		}
		if !strings.Contains(text, "division by zero") || !strings.Contains(text, "1 / n = 1") || !strings.Contains(text, "onewrite migrate") {
			t.Error(text)
		}
		if said, err := r.migrateWhere(map[string]string{"a": "n = 0"}, ""); err != nil {
			t.Error(said, err)
		}
		if got := r.snapshotIDs(1); got != "a2" {
			t.Error(got)
		}
		for text != "snapshot of public.a: " {
			text = <-said
		}
	})
}

// A registry of before there were conditions and keys is read, and is brought up by migrate.
func TestRegistryWithoutConditions(t *testing.T) {
	each(t, func(t *testing.T, pg *servers.PG) {
		r := newRig(t, pg, `CREATE TABLE a (id int PRIMARY KEY, n int); INSERT INTO a SELECT i, i FROM generate_series(1, 4) i`, "a")
		sql(t, r.conn, `ALTER TABLE onewrite.captured DROP filter, DROP once, DROP asked, DROP key, DROP keyed, DROP shape; DROP TABLE onewrite.released`)
		r.open()
		if got := r.snapshotIDs(4); got != "a1 a2 a3 a4" {
			t.Error(got)
		}
		r.whole()
		if said, err := r.migrateWhere(nil, "id > 2", "a"); err != nil || said != "public.a gets a new snapshot, of the rows WHERE id > 2" {
			t.Error(said, err)
		}
		if got := r.snapshotIDs(2); got != "a3 a4" {
			t.Error(got)
		}
		r.whole()
		where := map[string]string{"a": "n < 2 AND 'it''s \\' <> ''"}
		script, err := SchemaWithCapture(t.Context(), r.url, MigrateOptions{Capture: Capture{Source: "shop", Tables: r.tables, Where: where}})
		if err != nil {
			t.Fatal(err)
		}
		for range 2 {
			mustPsql(t, r.url, script)
		}
		if said, err := r.migrateWhere(where, "", "a"); err != nil || said != fmt.Sprintf("public.a gets a new snapshot, of the rows WHERE %s", where["a"]) {
			t.Error(said, err)
		}
		if got := r.snapshotIDs(1); got != "a1" {
			t.Error(got)
		}
	})
}

// Rows that row-level security hides are not left out: the snapshot says what lets the role
// read them, and nothing of the condition.
func TestSnapshotOfHiddenRows(t *testing.T) {
	each(t, func(t *testing.T, pg *servers.PG) {
		url, relay := pg.NewDatabase(t), pg.NewRole(t, "REPLICATION")
		admin := dial(t, url)
		sql(t, admin, `CREATE TABLE a (id int PRIMARY KEY); INSERT INTO a VALUES (1); ALTER TABLE a ENABLE ROW LEVEL SECURITY; CREATE POLICY p ON a USING (true)`)
		o := MigrateOptions{RelayRole: relay.Name, Capture: Capture{Source: "shop", Tables: []string{"a"}, Snapshot: true, Where: map[string]string{"a": "id > 0"}}}
		if _, err := Migrate(t.Context(), url, o); err != nil {
			t.Fatal(err)
		}
		said := make(chan string, 1000)
		r := &rig{t: t, url: url, conn: admin, cfg: Config{Name: "shop", URL: relay.URL(url), BusID: "bus1", Tables: o.Capture.Tables, Trouble: func(what, problem string) {
			if strings.HasPrefix(what, "snapshot") && problem != "" {
				said <- problem
			}
		}}}
		r.open()
		text := <-said
		_, cure, _ := strings.Cut(text, "; run as superuser: ")
		if cure != `ALTER ROLE "`+relay.Name+`" BYPASSRLS` || strings.Contains(text, "condition") {
			t.Fatal(text)
		}
		sql(t, admin, cure)
		if e := r.events(1)[0]; e.Type != "snapshot" {
			t.Errorf("%s came", e.Type)
		}
	})
}

// A role without REPLICATION is named in the cure.
func TestRoleThatMayNotReadTheLog(t *testing.T) {
	each(t, func(t *testing.T, pg *servers.PG) {
		url, relay := pg.NewDatabase(t), pg.NewRole(t)
		sql(t, dial(t, url), `CREATE TABLE a (id int PRIMARY KEY)`)
		o := MigrateOptions{RelayRole: relay.Name, Capture: Capture{Source: "shop", Tables: []string{"a"}}}
		if _, err := Migrate(t.Context(), url, o); err != nil {
			t.Fatal(err)
		}
		r := &rig{t: t, cfg: Config{Name: "shop", URL: relay.URL(url), BusID: "bus1", Tables: o.Capture.Tables}}
		if _, err := r.stops(); !strings.HasSuffix(errText(err), `run as superuser: ALTER ROLE "`+relay.Name+`" REPLICATION`) {
			t.Error(err)
		}
	})
}

// A gap speaks of snapshot_where where it is configured, and not after one snapshot that had a
// condition of its own.
func TestGapSpeaksOfConditions(t *testing.T) {
	oneAlone(t, "conditions", 1, func(t *testing.T, pg *servers.PG) {
		f := newFollower(t, pg)
		f.begin()
		for i, where := range []map[string]string{nil, {"a": "id > 0"}} {
			if _, err := f.migrateWhere(where, "n >= 0", "a"); err != nil {
				t.Fatal(err)
			}
			f.settle()
			f.close()
			sql(t, f.conn, `SELECT pg_drop_replication_slot(slot) FROM onewrite.log`)
			f.heals("is gone")
			if says := strings.Contains(f.gaps[i].Reason, "snapshot_where"); says != (where != nil) {
				t.Errorf("with the conditions %v: %v", where, f.gaps[i])
			}
		}
	})
}
