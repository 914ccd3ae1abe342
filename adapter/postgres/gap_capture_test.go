package postgres

import (
	"strings"
	"testing"

	"github.com/onewrite/onewrite/internal/servers"
)

// damage is what somebody does to the publication, to a table or to the registry.
type damage struct {
	name, says string
	first      string // what costs changes
	then       string // done after some changes; "" is nothing
	a, b       bool   // whether the table is read again
	gap        string // told when reading goes on; "" is nothing
	touch      bool   // the snapshot waits for a change: the log still has the columns of before
	another    bool   // there is another table of the name: all of its rows go
}

var damages = []damage{
	{name: "publication dropped", says: "onewrite_shop is gone", first: `DROP PUBLICATION onewrite_shop`, a: true, b: true, gap: "dropped and made again"},
	{name: "publication made again by hand", says: "put back", first: `DROP PUBLICATION onewrite_shop`,
		then: `CREATE PUBLICATION onewrite_shop FOR TABLE a, b WITH (publish_via_partition_root)`, a: true, b: true, gap: "dropped and made again"},
	{name: "table taken out", says: "public.a is not in the publication", first: `ALTER PUBLICATION onewrite_shop DROP TABLE a`, a: true},
	{name: "table taken out and put back", says: "public.a was taken out", first: `ALTER PUBLICATION onewrite_shop DROP TABLE a`, then: `ALTER PUBLICATION onewrite_shop ADD TABLE a`, a: true},
	{name: "only inserts", says: "leaves out some kinds", first: `ALTER PUBLICATION onewrite_shop SET (publish = 'insert')`, a: true, b: true},
	{name: "only inserts for a time", says: "was altered", first: `ALTER PUBLICATION onewrite_shop SET (publish = 'insert')`,
		then: `ALTER PUBLICATION onewrite_shop SET (publish = 'insert, update, delete, truncate')`, a: true, b: true},
	{name: "row filter", says: "leaves out rows or columns of public.a", first: `ALTER PUBLICATION onewrite_shop SET TABLE a WHERE (id < 5), b`, a: true},
	{name: "column list", says: "leaves out rows or columns of public.a", first: `ALTER PUBLICATION onewrite_shop SET TABLE a (id), b`, a: true, touch: true},
	{name: "row filter for a time", says: "public.a was taken out", first: `ALTER PUBLICATION onewrite_shop SET TABLE a WHERE (id < 5), b`, then: `ALTER PUBLICATION onewrite_shop SET TABLE a, b`, a: true},
	{name: "replica identity", says: "replica identity of public.a was changed (", first: `ALTER TABLE a REPLICA IDENTITY FULL`},
	{name: "table dropped and made again", says: "public.a is not in the publication", another: true, a: true,
		first: `DROP TABLE a; CREATE TABLE a (id int PRIMARY KEY, n int); INSERT INTO a SELECT i, 7 FROM generate_series(1, 45) i`},
	{name: "table made again and put back", says: "public.a is not in the publication", another: true, a: true,
		first: `DROP TABLE a; CREATE TABLE a (id int PRIMARY KEY, n int); INSERT INTO a SELECT i, 7 FROM generate_series(1, 45) i`, then: `ALTER PUBLICATION onewrite_shop ADD TABLE a`},
	{name: "table exchanged", says: "public.a has another name", another: true, a: true,
		first: `CREATE TABLE a2 (id int PRIMARY KEY, n int); INSERT INTO a2 SELECT i, 7 FROM generate_series(1, 45) i; ALTER TABLE a RENAME TO a1; ALTER TABLE a2 RENAME TO a`},
	{name: "registry dropped", says: "onewrite.captured is gone", first: `DROP TABLE onewrite.captured`, a: true, b: true},
	{name: "record dropped", says: "onewrite.log is gone", first: `DROP TABLE onewrite.log`, a: true, b: true, gap: "the record of the slot is gone"},
}

// Damage to what captures is met by a reader that runs and by one that was stopped, and
// is held until onewrite migrate has put it right. Then reading goes on by itself, and
// what missed changes is read again, also if no snapshots are configured.
func TestDamagedCapture(t *testing.T) {
	for _, d := range damages {
		t.Run(d.name, func(t *testing.T) {
			each(t, func(t *testing.T, pg *servers.PG) {
				f := newFollower(t, pg)
				f.begin()
				for i, running := range []bool{true, false} {
					if !running {
						if strings.HasPrefix(d.first, "ALTER TABLE") {
							sql(t, f.conn, `ALTER TABLE a REPLICA IDENTITY DEFAULT`)
							f.fails("the identity from before")
							f.cure()
							f.noGap()
						}
						sql(t, f.conn, `DROP TABLE IF EXISTS a1`)
						f.close()
					}
					f.cfg.HoldGap = !running
					f.damage(d, 10*i)
					if running {
						f.fails(d.name)
					}
					f.held(d.says)
					f.cure()
					f.goesOn(d)
				}
			})
		})
	}
}

// damage does it between changes.
func (f *follower) damage(d damage, n int) {
	f.t.Helper()
	f.change(n + 1)
	for _, s := range strings.Split(d.first, "; ") {
		sql(f.t, f.conn, s)
	}
	f.change(n + 2)
	if d.then != "" {
		sql(f.t, f.conn, d.then)
		f.change(n + 3)
	}
}

// cure runs onewrite migrate, with no snapshots wanted.
func (f *follower) cure() {
	f.t.Helper()
	if _, err := Migrate(f.t.Context(), f.url, MigrateOptions{Capture: Capture{Source: "shop", Tables: f.tables}}); err != nil {
		f.t.Fatal(err)
	}
}

// goesOn proves that reading does so with a snapshot of what missed changes.
func (f *follower) goesOn(d damage) {
	f.t.Helper()
	var old []string
	if d.another { // nobody is told that the rows of the table before are gone
		for key := range f.state["public.a"] {
			old = append(old, key)
		}
	}
	f.kinds = map[string]int{}
	n := len(f.gaps)
	if d.touch {
		sql(f.t, f.conn, `UPDATE a SET n = n + 1 WHERE id = 3`)
	}
	f.settle()
	if a, b := f.kinds["public.a snapshot"] >= 40, f.kinds["public.b snapshot"] >= 20; a != d.a || b != d.b {
		f.t.Errorf("read again: %v %v, want %v %v", a, b, d.a, d.b)
	}
	switch told := f.gaps[n:]; {
	case d.gap == "" && len(told) > 0:
		f.t.Errorf("a gap is told that migrate has healed: %v", told[0])
	case d.gap != "" && (len(told) != 1 || !strings.Contains(told[0].Reason, d.gap)):
		f.t.Errorf("gaps %v, want %q", told, d.gap)
	}
	if d.another { // what came of the table before, up to its end, stays
		for key := range f.state["public.a"] {
			old = append(old, key)
		}
	}
	f.equal(old...)
	f.noGap()
	f.equal(old...)
}

// A reader that may do the least that it needs: what migrate makes anew it may read.
func TestDamagedCaptureOfAPoorRole(t *testing.T) {
	each(t, func(t *testing.T, pg *servers.PG) {
		f := newFollower(t, pg)
		relay := pg.NewRole(t, "REPLICATION")
		cure := func() {
			t.Helper()
			if _, err := Migrate(t.Context(), f.url, MigrateOptions{RelayRole: relay.Name, Capture: Capture{Source: "shop", Tables: f.tables}}); err != nil {
				t.Fatal(err)
			}
		}
		cure()
		f.cfg.URL, f.cfg.HoldGap = relay.URL(f.url), true
		f.begin()
		f.close()
		sql(t, f.conn, `DROP TABLE a`, `CREATE TABLE a (id int PRIMARY KEY, n int)`, `INSERT INTO a SELECT i, 7 FROM generate_series(1, 45) i`)
		f.held("public.a is not in the publication")
		cure()
		f.settle()
		f.close()
		sql(t, f.conn, `DROP TABLE onewrite.log`)
		f.change(1)
		f.held("onewrite.log is gone")
		cure()
		f.heals("the record of the slot is gone", f.lingering()...)
	})
}
