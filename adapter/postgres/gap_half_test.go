package postgres

import (
	"fmt"
	"slices"
	"testing"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/internal/servers"
)

// half reads a part of a transaction of 5,000 rows and stops there.
func (f *follower) half() {
	f.t.Helper()
	f.cfg.Known = &Known{}
	sql(f.t, f.conn, `INSERT INTO a SELECT i, 5 FROM generate_series(20001, 25000) i`)
	n := len(f.ids)
	f.until("a part of the transaction", func() bool { return len(f.ids) >= n+1000 })
	f.close()
	if p, _, err := splitPlaces(f.pos); err != nil || p.tx == 0 || p.ends == 0 || len(f.ids) >= n+5000 {
		f.t.Fatalf("%d events of it were read, the place is %+v, %v", len(f.ids)-n, p, err)
	}
}

// A standby takes over that lacks a transaction of which a part was read.
func TestPromotedStandbyThatLacksTheRest(t *testing.T) {
	o := newFailover(t, 18)
	o.follows(true)
	o.change(1)
	o.settle()
	o.follows(false)
	o.standby.Stop(t)
	o.half()
	o.lost(1000)
}

// The disk's snapshot of a running server is put back, of before a transaction of which a
// part was read. If the log is beyond its commit again, that shows when it is read on.
func TestRestoredLogOfHalf(t *testing.T) {
	for i, c := range []struct{ name, since, says string }{
		{"nothing written since", "", "its log ends at"},
		{"another transaction since", `INSERT INTO a SELECT i, 6 FROM generate_series(30001, 60000) i`, "no transaction commits at"},
		{"nothing of ours since", `INSERT INTO other (pad) SELECT repeat('x', 1000) FROM generate_series(1, 9000)`, "no transaction commits at"},
	} {
		oneAlone(t, c.name, i, func(t *testing.T, pg *servers.PG) {
			f := newFollower(t, pg)
			f.cfg.LocalOnly = i == 1 // which changes nothing
			data := one[string](t, f.conn, `SHOW data_directory`)
			f.begin()
			pg.Pause(t)
			copied := copyData(t, data)
			pg.Resume(t)
			f.half()
			swap(t, pg, data, copied)
			f.redial()
			if c.since != "" {
				sql(t, f.conn, c.since)
				if p, _, _ := splitPlaces(f.pos); !one[bool](t, f.conn, `SELECT pg_current_wal_flush_lsn() > $1::text::pg_lsn`, p.tx.String()) {
					t.Fatal("the log is not beyond the place")
				}
			}
			lingering := f.lingering()
			if len(lingering) < 1000 {
				t.Fatalf("%d rows are of the history that is gone; nothing is proven", len(lingering))
			}
			f.heals(c.says, lingering...)
		})
	}
}

// What was read in part is read on, after a crash of the server too: its slot is behind
// then.
func TestHalfGoesOn(t *testing.T) {
	eachAlone(t, nil, func(t *testing.T, pg *servers.PG) {
		f := newFollower(t, pg)
		f.begin()
		f.half()
		f.noGap()
		f.equal()
		sql(t, f.conn, `DELETE FROM a WHERE id > 20000`)
		f.half()
		pg.Crash(t)
		pg.Start(t)
		f.redial()
		f.noGap()
		f.equal()
		if f.again > 0 || len(f.gaps) > 0 {
			t.Errorf("%d events came again, gaps %v", f.again, f.gaps)
		}
	})
}

// A transaction from elsewhere of which a part was read is not lost where such changes are
// left out from now on.
func TestHalfOfForeignThenLocalOnly(t *testing.T) {
	t.Parallel()
	f := newFollower(t, servers.NewPostgres(t, 18))
	f.begin()
	sql(t, f.conn, `SELECT pg_replication_origin_create('peer')`, `SELECT pg_replication_origin_session_setup('peer')`)
	f.half()
	sql(t, f.conn, `SELECT pg_replication_origin_session_reset()`)
	f.cfg.LocalOnly = true
	f.noGap()
}

// Changes of a table that was dropped before they were read have the key that its rows had,
// also where the log does not say which columns that is, and whatever was done since.
func TestDroppedBeforeRead(t *testing.T) {
	for _, c := range []struct {
		name, first, then string // statements, before the changes and after the table is dropped
		tables            []string
		script            bool // for an administrator, in place of migrate
		key               string
	}{
		{name: "registered", key: "id"},
		{name: "its key renamed", first: `ALTER TABLE c RENAME id TO ident`, key: "ident"},
		{name: "other columns", first: `ALTER TABLE c DROP v; ALTER TABLE c ADD v int`, key: "id"},
		{name: "taken out", tables: []string{"public.b"}, key: "id"},
		{name: "taken out by the script", first: `ALTER TABLE c RENAME id TO ident`, tables: []string{"public.b"}, script: true, key: "ident"},
		{name: "made anew", then: `CREATE TABLE c (v int)`, tables: []string{"public.c", "public.b"}, key: "id"},
	} {
		t.Run(c.name, func(t *testing.T) {
			each(t, func(t *testing.T, pg *servers.PG) {
				r := newRig(t, pg, `CREATE TABLE c (gone int, id int PRIMARY KEY, v int); ALTER TABLE c DROP gone; ALTER TABLE c REPLICA IDENTITY FULL; CREATE TABLE b (id int PRIMARY KEY, ident int)`, "public.c", "public.b")
				r.open()
				r.whole() // else the snapshot of b has its row too
				sql(t, r.conn, `INSERT INTO c VALUES (1, 1)`)
				r.events(1)
				_ = r.src.Close()
				sql(t, r.conn, c.first, `UPDATE c SET v = 2`, `DELETE FROM c`, `DROP TABLE c; `+c.then, `INSERT INTO b VALUES (1)`)
				if c.tables != nil {
					r.tables, r.cfg.Tables = c.tables, c.tables
					r.bring(c.script)
				}
				r.src = nil
				r.open()
				want := []string{"update", "delete", "insert"}
				var events []onewrite.Event
				for len(events) < len(want) { // the snapshot of the table that was made anew may begin meanwhile
					events = append(events, slices.DeleteFunc(r.read().Events, func(e onewrite.Event) bool { return e.Type == "truncate" })...)
				}
				for i, e := range events {
					if e.Type != want[i] || e.Topic == "public.c" && e.Key != fmt.Sprintf(`{"%s":1}`, c.key) {
						t.Errorf("event %d is %s of %s, key %s", i, e.Type, e.Topic, e.Key)
					}
				}
			})
		})
	}
}

// bring has the database capture what the tables of the rig say, by migrate or the script.
func (r *rig) bring(script bool) {
	r.t.Helper()
	if !script {
		r.migrate()
		return
	}
	text, err := SchemaWithCapture(r.t.Context(), r.url, MigrateOptions{Capture: Capture{Source: "shop", Tables: r.tables, Snapshot: true}})
	if err != nil {
		r.t.Fatal(err)
	}
	mustPsql(r.t, r.url, text)
}
