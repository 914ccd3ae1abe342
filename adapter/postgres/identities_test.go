package postgres

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/internal/pgoutput"
	"github.com/onewrite/onewrite/internal/servers"
)

// Inside a statement two rows may share a deferrable key. Told by that key, the new row
// of one would be deleted as the old row of the other: such a table is one lane, with
// whole rows, also after somebody else set its identity.
func TestDeferrableKey(t *testing.T) {
	each(t, func(t *testing.T, pg *servers.PG) {
		r := newRig(t, pg, `CREATE TABLE d (id int PRIMARY KEY DEFERRABLE, v text); INSERT INTO d SELECT i, 'v' || i FROM generate_series(1, 2) i;
			CREATE TABLE u (id int PRIMARY KEY DEFERRABLE, v text, code int NOT NULL UNIQUE); CREATE UNIQUE INDEX u_id ON u (id); ALTER TABLE u REPLICA IDENTITY USING INDEX u_id; INSERT INTO u VALUES (1, 'v', 1)`)
		r.tables = []string{"public.d", "public.u"}
		if said := strings.Join(r.migrate(), "\n"); !strings.Contains(said, "public.d to full") || !strings.Contains(said, "primary key is deferrable") || strings.Contains(said, "public.u to") {
			t.Error(said)
		}
		r.cfg.Tables, r.cfg.readers = r.tables, 1
		r.open()
		r.expect(`d snapshot d null {"id":1,"v":"v1"}`, `d snapshot d null {"id":2,"v":"v2"}`, `u snapshot {"id":1} null {"id":1,"v":"v","code":1}`)
		sql(t, r.conn, `UPDATE d SET id = id + 1`, `DELETE FROM d WHERE id = 2`, `UPDATE u SET v = 'w'`)
		r.expect(`d update d {"id":1,"v":"v1"} {"id":2,"v":"v1"}`, `d update d {"id":2,"v":"v2"} {"id":3,"v":"v2"}`, `d delete d {"id":2,"v":"v1"} null`, `u update {"id":1} null {"id":1,"v":"w","code":1}`)
	})
}

// gap reads until a gap is told, and fails if events of later come before it.
func (r *rig) gap(says string) {
	r.t.Helper()
	for {
		b := r.read()
		if b.Gap == nil {
			continue
		}
		if !strings.Contains(b.Gap.Reason, says) || b.Gap.Cure != "" {
			r.t.Errorf("the gap is %v, want %q", b.Gap, says)
		}
		return
	}
}

// snapshotOf reads until rows came with these keys from a snapshot, and fails if another
// gap is told.
func (r *rig) snapshotOf(keys ...string) {
	r.t.Helper()
	missing := map[string]bool{}
	for _, key := range keys {
		missing[key] = true
	}
	for len(missing) > 0 {
		b := r.read()
		if b.Gap != nil {
			r.t.Fatalf("another gap: %v", b.Gap)
		}
		for _, e := range b.Events {
			if e.Type == "snapshot" {
				delete(missing, e.Key)
			}
		}
	}
}

// failure reads until the source fails, or opens it again.
func (r *rig) failure() (err error) {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.t.Context(), patience)
	defer cancel()
	for err == nil {
		_, err = r.src.Read(ctx)
	}
	if ctx.Err() != nil {
		r.t.Fatal("the source does not fail")
	}
	return err
}

const keyDDL = `CREATE TABLE t (id int PRIMARY KEY, code int NOT NULL, v text); CREATE UNIQUE INDEX t_code ON t (code); INSERT INTO t SELECT i, i * 100, 'v' FROM generate_series(1, 4) i`

// A replica identity that was another one for some time is seen in the log alone. What
// the rows were called before is not there: that is a gap.
func TestKeyForSomeTime(t *testing.T) {
	each(t, func(t *testing.T, pg *servers.PG) {
		for _, running := range []bool{true, false} {
			r := newRig(t, pg, keyDDL, "public.t")
			r.open()
			r.events(4)
			r.whole()
			if !running {
				_ = r.src.Close()
			}
			flip := `BEGIN; ALTER TABLE t REPLICA IDENTITY USING INDEX t_code; UPDATE t SET id = id + 10 WHERE id = 1; DELETE FROM t WHERE id = 2; ALTER TABLE t REPLICA IDENTITY DEFAULT; COMMIT`
			sql(t, r.conn, flip)
			if !running {
				r.open()
			}
			r.gap("rows were told by (code)")
			r.snapshotOf(`{"id":11}`, `{"id":3}`, `{"id":4}`)
			r.open()
			sql(t, r.conn, `UPDATE t SET v = 'w' WHERE id = 3`)
			r.snapshotNone(`{"id":3}`)

			r.cfg.HoldGap = true
			r.open()
			sql(t, r.conn, strings.ReplaceAll(flip, "id = 2", "id = 4"))
			var g *onewrite.Gap
			if err := r.failure(); !errors.As(err, &g) || !strings.Contains(g.Cure, "onewrite migrate --snapshot public.t") {
				t.Fatalf("the gap is %v", err)
			}
			r.migrate("public.t")
			r.open()
			r.snapshotOf(`{"id":11}`, `{"id":3}`)
			_ = r.src.Close()
		}
	})
}

// snapshotNone reads until an update of a key came, and fails on a gap.
func (r *rig) snapshotNone(key string) {
	r.t.Helper()
	for {
		b := r.read()
		if b.Gap != nil {
			r.t.Fatalf("another gap: %v", b.Gap)
		}
		for _, e := range b.Events {
			if e.Type == "update" && e.Key == key {
				return
			}
		}
	}
}

// A primary key in place of another one is a gap, as a changed identity is. What was told
// by the old one before migrate is no other.
func TestReplacedKey(t *testing.T) {
	each(t, func(t *testing.T, pg *servers.PG) {
		r := newRig(t, pg, keyDDL, "public.t")
		r.open()
		r.events(4)
		r.whole()
		sql(t, r.conn, `UPDATE t SET v = 'w' WHERE id = 2`, `ALTER TABLE t DROP CONSTRAINT t_pkey, ADD PRIMARY KEY (code)`, `DELETE FROM t WHERE id = 1`)
		r.failure()
		_ = r.src.Close()
		if err := r.tryOpen(t.Context()); !errors.Is(err, onewrite.ErrGap) || !strings.Contains(err.Error(), "the key of public.t is another one") {
			t.Fatal(err)
		}
		if said := strings.Join(r.migrate(), "\n"); !strings.Contains(said, "the key of public.t is another one than before: it gets a new snapshot") {
			t.Error(said)
		}
		r.open()
		r.snapshotOf(`{"code":200}`, `{"code":300}`, `{"code":400}`)
	})
}

// The old rows of REPLICA IDENTITY FULL do not tell the key. It is told by the name that
// its column had at that place in the log, whatever else was done to the table since.
func TestKeyOfWholeRows(t *testing.T) {
	each(t, func(t *testing.T, pg *servers.PG) {
		r := newRig(t, pg, `CREATE TABLE t (x int, y int, z int, id int PRIMARY KEY, v text); ALTER TABLE t DROP x; ALTER TABLE t REPLICA IDENTITY FULL; INSERT INTO t SELECT i, i, i, 'a' FROM generate_series(1, 3) i`, "public.t")
		r.open()
		r.events(3)
		r.whole()
		_ = r.src.Close()
		sql(t, r.conn, `UPDATE t SET v = 'b' WHERE id = 1`, `DELETE FROM t WHERE id = 2`, `ALTER TABLE t DROP y, ADD w int`, `UPDATE t SET v = 'c' WHERE id = 1`,
			`ALTER TABLE t RENAME id TO k`, `ALTER TABLE t RENAME z TO id`, `UPDATE t SET v = 'c' WHERE k = 3`)
		r.open()
		r.expect(`t update {"id":1} {"y":1,"z":1,"id":1,"v":"a"} {"y":1,"z":1,"id":1,"v":"b"}`, `t delete {"id":2} {"y":2,"z":2,"id":2,"v":"a"} null`,
			`t update {"id":1} {"z":1,"id":1,"v":"b","w":null} {"z":1,"id":1,"v":"c","w":null}`, `t update {"k":3} {"id":3,"k":3,"v":"a","w":null} {"id":3,"k":3,"v":"c","w":null}`)
	})
}

// logColumns are columns as the log has them, by name and a type that is as long.
func logColumns(columns ...string) (list []pgoutput.RelationColumn) {
	for _, c := range columns {
		name, oid, _ := strings.Cut(c, ":")
		list = append(list, pgoutput.RelationColumn{Name: name, Type: uint32(len(oid))})
	}
	return list
}

// attributes are columns as the catalogs have them; "" was dropped, gen is generated.
func attributes(columns ...string) (list []attribute) {
	for i, c := range columns {
		name, oid, _ := strings.Cut(c, ":")
		list = append(list, attribute{num: i + 1, name: name, oid: uint32(len(oid)), gone: name == "", hidden: name == "gen"})
	}
	return list
}

// Which columns the log had is found among those that are there now and those that are
// gone.
func TestAlign(t *testing.T) {
	log, now := logColumns, attributes
	for _, c := range []struct {
		log   []pgoutput.RelationColumn
		now   []attribute
		want  string
		exact bool
	}{
		{log("a:i", "b:ii"), now("a:i", "b:ii"), "[1 2]", true},
		{log(), now(), "[]", true},
		{log("a:i", "b:ii"), now("a:i", "b:ii", "c:i"), "[1 2]", true},
		{log("a:i", "b:ii"), now("a:i", "gen:i", "b:ii"), "[1 3]", true},
		{log("a:i", "b:ii"), now("", "a:i", "b:ii"), "[2 3]", true},
		{log("x:i", "a:i", "b:ii"), now("", "a:i", "b:ii"), "[1 2 3]", false},
		{log("a:i", "b:ii"), now("b:i", "a:ii"), "[1 2]", false},
		{log("a:i", "b:ii"), now("", "n:i", "b:ii"), "[2 3]", false},
		{log("a:i", "b:ii"), now("", "", "b:ii"), "[1 3]", false},
		{log("a:i", "b:ii", "c:iii"), now("", "a:i", "", "c:iii"), "[2 3 4]", false},
		{log("a:i", "b:ii"), now("a:i"), "[]", false}, // the catalogs are behind
		{log("a:i"), now(), "[]", false},              // the table is gone
	} {
		nums, exact := align(c.log, c.now)
		if got := fmt.Sprint(nums); got != c.want || exact != c.exact {
			t.Errorf("%v among %v: %v %v, want %v %v", c.log, c.now, got, exact, c.want, c.exact)
		}
	}
}

// The columns of a table that is gone are found by those that it had at some time, before
// or after: each may have been dropped since, and others added.
func TestAlignGone(t *testing.T) {
	for _, c := range []struct {
		log  []pgoutput.RelationColumn
		was  []attribute
		want string
	}{
		{logColumns("id:i", "v:ii"), attributes("id:i", "v:ii"), "[1 2]"},
		{logColumns("ident:i", "v:ii"), attributes("id:i", "v:ii"), "[1 2]"},
		{logColumns("ident:i", "v:ii", "w:i"), attributes("", "id:i", "gen:i", "v:ii"), "[2 4 0]"},
		{logColumns("id:i", "w:i"), attributes("v:ii", "id:i"), "[2 0]"},
		{logColumns("a:i", "id:i"), attributes("", "id:i"), "[1 2]"},
		{logColumns("id:i"), nil, "[0]"},
	} {
		if got := fmt.Sprint(alignGone(c.log, c.was)); got != c.want {
			t.Errorf("%v among %v: %s, want %s", c.log, c.was, got, c.want)
		}
	}
}

// What is met says what was changed, by whom it is cured and whether rows are read again,
// and that is what happens.
func TestCuresOfChangedTables(t *testing.T) {
	each(t, func(t *testing.T, pg *servers.PG) {
		for _, c := range []struct {
			ddl, from, cure string
			snapshot        bool
		}{
			{`ALTER TABLE t REPLICA IDENTITY FULL`, "replica identity", cureIdentity, false},
			{`ALTER TABLE t REPLICA IDENTITY NOTHING`, "replica identity", cureNothing, false},
			{`ALTER TABLE t REPLICA IDENTITY USING INDEX t_code`, "replica identity", cureKey, true},
			{`ALTER TABLE t DROP CONSTRAINT t_pkey, ADD PRIMARY KEY (code)`, "key", cureKey, true},
			{`ALTER PUBLICATION onewrite_shop DROP TABLE t`, "publication", cureMigrate, true},
			{`ALTER TABLE t RENAME TO old; CREATE TABLE t (id int PRIMARY KEY)`, "name", "snapshot of a table that took the name public.t", true},
			{`DROP TABLE onewrite.captured`, "", cureRegistry, true},
		} {
			r := newRig(t, pg, keyDDL, "public.t")
			r.open()
			r.events(4)
			r.whole()
			_ = r.src.Close()
			sql(t, r.conn, c.ddl)
			var g *onewrite.Gap
			if err := r.tryOpen(t.Context()); !errors.As(err, &g) || c.from != "" && g.From != "the change of the "+c.from || !strings.HasSuffix(g.Cure, c.cure) || !strings.Contains(g.Cure, "as the owner of the tables") {
				t.Errorf("%s: %v", c.ddl, err)
			}
			said := strings.Join(r.migrate(), "; ")
			if snapshot := one[bool](t, r.conn, `SELECT bool_or(wanted > finished) FROM onewrite.captured`); snapshot != c.snapshot {
				t.Errorf("%s: a snapshot is to come: %v, migrate says %s", c.ddl, snapshot, said)
			}
			r.open()
			_ = r.src.Close()
		}
	})
}

// A table that logged whole rows, and then nothing, does so again: its events would have no old
// values from then on, and nobody would know. That it logs less by somebody's choice is said.
func TestWholeRowsAgain(t *testing.T) {
	each(t, func(t *testing.T, pg *servers.PG) {
		r := newRig(t, pg, `CREATE TABLE t (id int PRIMARY KEY, v text); ALTER TABLE t REPLICA IDENTITY FULL`, "public.t")
		sql(t, r.conn, `ALTER TABLE t REPLICA IDENTITY NOTHING`)
		script, err := SchemaWithCapture(t.Context(), r.url, MigrateOptions{Capture: Capture{Source: "shop", Tables: r.tables}})
		if err != nil || !strings.Contains(script, `"t" REPLICA IDENTITY FULL`) {
			t.Errorf("the script makes it another: %v", err)
		}
		said := r.migrate()
		if now := one[string](t, r.conn, `SELECT relreplident::text FROM pg_class WHERE relname = 't'`); now != "f" || !strings.Contains(strings.Join(said, "\n"), "set the replica identity of public.t to full") {
			t.Errorf("it is %q, and migrate says %q", now, said)
		}
		sql(t, r.conn, `ALTER TABLE t REPLICA IDENTITY DEFAULT`)
		if said := r.migrate(); !strings.Contains(strings.Join(said, "\n"), "from now on its events have no old values but the key's") {
			t.Errorf("migrate says %q", said)
		}
	})
}
