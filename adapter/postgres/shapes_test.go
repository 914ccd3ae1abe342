package postgres

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/internal/servers"
)

// expect reads as many events as are wanted, and compares them as
// "topic type key before after unchanged".
func (r *rig) expect(want ...string) (events []onewrite.Event) {
	r.t.Helper()
	events = r.events(len(want))
	for i, e := range events {
		d := rowOf(r.t, e)
		got := strings.TrimSpace(strings.Join([]string{strings.TrimPrefix(d.Topic, "public."), d.Type, strings.TrimPrefix(d.Key, "public."), d.Before, d.After, d.Unchanged}, " "))
		if got != want[i] {
			r.t.Errorf("event %d:\n%.600s\nwant\n%.600s", i, got, want[i])
		}
	}
	return events
}

// Tables of odd shapes: without columns, with 1,000, with generated and dropped ones.
func TestOddTables(t *testing.T) {
	each(t, func(t *testing.T, pg *servers.PG) {
		wide, row := make([]string, 1000), make([]string, 1000)
		for i := range wide {
			wide[i], row[i] = fmt.Sprintf("c%d int DEFAULT %d", i, i), fmt.Sprintf(`"c%d":%d`, i, i)
		}
		all := "{" + strings.Join(row, ",") + "}"
		virtual := ""
		if pg.Version >= 18 {
			virtual = ", v int GENERATED ALWAYS AS (a * 2) VIRTUAL"
		}
		r := newRig(t, pg, `CREATE TABLE empty (); CREATE TABLE wide (`+strings.Join(wide, ", ")+`, PRIMARY KEY (c7)); INSERT INTO wide DEFAULT VALUES;
			CREATE TABLE made (id int PRIMARY KEY, g int GENERATED ALWAYS AS (a + 1) STORED, a int, "D.é""x'" text`+virtual+`); INSERT INTO made VALUES (1, DEFAULT, 5, 'd');
			CREATE TABLE "Dropped-1" (x int, id int PRIMARY KEY, y int, z text); ALTER TABLE "Dropped-1" DROP x, DROP y; INSERT INTO "Dropped-1" VALUES (1, 'z');
			INSERT INTO empty DEFAULT VALUES; INSERT INTO empty DEFAULT VALUES`, "public.empty", "public.wide", "public.made", "public.Dropped-1")
		r.cfg.readers = 1 // in the order of their names
		r.open()
		r.expect(`Dropped-1 snapshot {"id":1} null {"id":1,"z":"z"}`, `empty snapshot empty null {}`, `empty snapshot empty null {}`,
			`made snapshot {"id":1} null {"id":1,"a":5,"D.é\"x'":"d"}`, `wide snapshot {"c7":7} null `+all)
		sql(t, r.conn, `INSERT INTO empty DEFAULT VALUES`, `UPDATE wide SET c7 = 7`, `UPDATE made SET a = 6`, `DELETE FROM made`, `UPDATE "Dropped-1" SET z = NULL`, `DELETE FROM empty`)
		r.expect(`empty insert empty null {}`, `wide update {"c7":7} null `+all, `made update {"id":1} null {"id":1,"a":6,"D.é\"x'":"d"}`, `made delete {"id":1} {"id":1} null`,
			`Dropped-1 update {"id":1} null {"id":1,"z":null}`, `empty delete empty {} null`, `empty delete empty {} null`, `empty delete empty {} null`)
	})
}

// Names that cannot be a topic are refused.
func TestNamesThatAreNoTopic(t *testing.T) {
	each(t, func(t *testing.T, pg *servers.PG) {
		url := pg.NewDatabase(t)
		conn := dial(t, url)
		for _, name := range []string{"a.b", "é", `x"y`, "a b", "x'"} {
			sql(t, conn, `CREATE TABLE `+pgx.Identifier{name}.Sanitize()+` (id int PRIMARY KEY)`)
			_, err := Migrate(t.Context(), url, MigrateOptions{Capture: Capture{Source: "shop", Tables: []string{"public." + name}}})
			if err == nil || !strings.Contains(err.Error(), "cannot be a topic") {
				t.Errorf("%s: %v", name, err)
			}
		}
	})
}

// A key that is generated in part is not in the log: the table is one lane, in the
// snapshot as well.
func TestGeneratedKey(t *testing.T) {
	each(t, func(t *testing.T, pg *servers.PG) {
		if pg.Version >= 18 {
			return // migrate refuses it: the server would refuse to update it
		}
		r := newRig(t, pg, `CREATE TABLE g (id int, n int, h int GENERATED ALWAYS AS (n % 2) STORED, PRIMARY KEY (h, id)); INSERT INTO g VALUES (1, 1), (1, 2)`, "public.g")
		r.open()
		r.expect(`g snapshot g null {"id":1,"n":1}`, `g snapshot g null {"id":1,"n":2}`)
		sql(t, r.conn, `INSERT INTO g VALUES (2, 1)`)
		r.expect(`g insert g null {"id":2,"n":1}`)
	})
}

// The log goes on through changes of the table, also in a transaction with rows of
// before and after.
func TestAlteredInTheStream(t *testing.T) {
	each(t, func(t *testing.T, pg *servers.PG) {
		r := newRig(t, pg, `CREATE TABLE t (id int PRIMARY KEY, a text, b int)`, "public.t")
		r.open()
		r.whole()
		sql(t, r.conn, `INSERT INTO t VALUES (1, 'a', 1)`, `ALTER TABLE t ADD c text DEFAULT 'x'`, `UPDATE t SET b = 2`,
			`BEGIN; INSERT INTO t VALUES (2, 'b', 1, 'y'); ALTER TABLE t DROP b; UPDATE t SET a = 'q' WHERE id = 2; ALTER TABLE t RENAME a TO "A.é"; DELETE FROM t WHERE id = 1;
			CREATE DOMAIN num AS int; CREATE TYPE mood AS ENUM ('sad'); ALTER TABLE t ALTER c DROP DEFAULT, ALTER c TYPE num USING length(c); INSERT INTO t VALUES (3, 'r', 5);
			ALTER TABLE t ADD m mood[] DEFAULT '{sad}', ADD n num[] DEFAULT '{1}'; INSERT INTO t VALUES (4, NULL, NULL); COMMIT`,
			`ALTER TABLE t ALTER id TYPE bigint`, `UPDATE t SET id = 9007199254740993 WHERE id = 2`,
			`DELETE FROM t WHERE id = 4; ALTER TABLE t DROP CONSTRAINT t_pkey, ADD PRIMARY KEY (c, id)`, `UPDATE t SET c = c + 1 WHERE id = 3`)
		got := r.expect(`t insert {"id":1} null {"id":1,"a":"a","b":1}`, `t update {"id":1} null {"id":1,"a":"a","b":2,"c":"x"}`,
			`t insert {"id":2} null {"id":2,"a":"b","b":1,"c":"y"}`, `t update {"id":2} null {"id":2,"a":"q","c":"y"}`, `t delete {"id":1} {"id":1} null`,
			`t insert {"id":3} null {"id":3,"A.é":"r","c":5}`, `t insert {"id":4} null {"id":4,"A.é":null,"c":null,"m":["sad"],"n":[1]}`,
			`t delete {"id":2} {"id":2} null`, `t insert {"id":9007199254740993} null {"id":9007199254740993,"A.é":"q","c":1,"m":["sad"],"n":[1]}`,
			`t delete {"id":4} {"id":4} null`, `t delete {"c":5,"id":3} {"id":3,"c":5} null`, `t insert {"c":6,"id":3} null {"id":3,"A.é":"r","c":6,"m":["sad"],"n":[1]}`)
		for i, e := range got[2:7] {
			if e.Tx.ID != got[2].Tx.ID || e.Tx.Index != i || e.Tx.Last != (i == 4) {
				t.Errorf("event %d of the transaction: %+v", i, e.Tx)
			}
		}
	})
}

// altered is a table of n rows that others alter while its snapshot is made.
func altered(t *testing.T, pg *servers.PG, n int) *rig {
	r := newRig(t, pg, fmt.Sprintf(`CREATE TABLE t (id int PRIMARY KEY, v int); INSERT INTO t SELECT i, i FROM generate_series(1, %d) i`, n), "public.t")
	r.cfg.chunk = 20
	return r
}

// ids reads the snapshot's rows and returns their numbers.
func (r *rig) ids(n int) []int {
	r.t.Helper()
	var ids []int
	for _, e := range r.events(n) {
		var env struct{ After struct{ ID int } }
		if err := json.Unmarshal(e.Data, &env); err != nil || e.Type != "snapshot" {
			r.t.Fatalf("%s: %v: %s", e.Type, err, e.Data)
		}
		ids = append(ids, env.After.ID)
	}
	slices.Sort(ids)
	return slices.Compact(ids)
}

// A table that is rewritten looks empty to a snapshot of before: the snapshot is taken
// once the table is locked.
func TestRewrittenBeforeItsChunk(t *testing.T) {
	each(t, func(t *testing.T, pg *servers.PG) {
		const rows = 5000
		r := altered(t, pg, rows)
		r.open()
		r.ids(rows)
		r.migrate("public.t")
		first := len(r.read().Events) // the snapshot has begun: it waited for transactions that were open before
		sql(t, r.conn, `BEGIN; ALTER TABLE t ALTER v TYPE bigint`)
		other := dial(t, r.url)
		eventually(t, "a chunk waits for the table", func() bool {
			return one[bool](t, other, `SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted AND relation = 't'::regclass)`)
		})
		sql(t, r.conn, `COMMIT`)
		if got := r.ids(rows - first); len(got) != rows-first {
			t.Errorf("%d rows of %d", len(got), rows-first)
		}
	})
}

// A table that was altered, and then not changed any more, gets its snapshot.
func TestAlteredAndLeftAlone(t *testing.T) {
	each(t, func(t *testing.T, pg *servers.PG) {
		r := altered(t, pg, 100)
		r.open()
		r.ids(100)
		sql(t, r.conn, `UPDATE t SET v = 0 WHERE id = 1`)
		r.expect(`t update {"id":1} null {"id":1,"v":0}`)
		sql(t, r.conn, `ALTER TABLE t ADD w text DEFAULT 'w'`)
		r.migrate("public.t")
		if got := r.ids(100); len(got) != 100 {
			t.Errorf("%d rows of 100", len(got))
		}
	})
}

// Each row comes once from the snapshot of a table that is altered all the time.
func TestAlteredInASnapshot(t *testing.T) {
	each(t, func(t *testing.T, pg *servers.PG) {
		const rows = 2000
		r := altered(t, pg, rows)
		ctx, stop := context.WithCancel(t.Context())
		altered := make(chan int)
		conn := dial(t, r.url)
		go func() {
			n := 0
			for ; ctx.Err() == nil; n++ {
				s := []string{`ALTER TABLE t ADD w text DEFAULT clock_timestamp()::text`, `ALTER TABLE t ALTER v TYPE bigint`, `ALTER TABLE t RENAME v TO "V"`, `ALTER TABLE t DROP w`, `ALTER TABLE t ALTER "V" TYPE int`, `ALTER TABLE t RENAME "V" TO v`}[n%6]
				if _, err := conn.Exec(context.WithoutCancel(ctx), s); err != nil {
					t.Error(err)
					break
				}
			}
			altered <- n
		}()
		r.open()
		got := r.ids(rows)
		stop()
		n := <-altered
		if t.Logf("altered %d times", n); n < 6 || len(got) != rows {
			t.Errorf("altered %d times, %d rows of %d", n, len(got), rows)
		}
	})
}

// A place in the order of one type means nothing in the order of another.
func TestAnotherOrderInASnapshot(t *testing.T) {
	each(t, func(t *testing.T, pg *servers.PG) {
		const rows = 2000
		r := newRig(t, pg, fmt.Sprintf(`CREATE TABLE t (id int PRIMARY KEY, n int); INSERT INTO t SELECT i, i FROM generate_series(1, %d) i`, rows), "public.t")
		r.cfg.chunk = 20
		r.open()
		seen := map[int]bool{}
		for altered := false; len(seen) < rows; {
			for _, e := range r.read().Events {
				var env struct{ After struct{ N int } }
				if err := json.Unmarshal(e.Data, &env); err != nil {
					t.Fatal(err)
				}
				seen[env.After.N] = true
			}
			if !altered && len(seen) > rows/4 {
				sql(t, r.conn, `ALTER TABLE t ALTER id TYPE text COLLATE "C"`)
				altered = true
				r.open()
			}
		}
	})
}

// How far a snapshot is is told, and that it is done.
func TestSnapshotIsTold(t *testing.T) {
	each(t, func(t *testing.T, pg *servers.PG) {
		r := altered(t, pg, 2000)
		sql(t, r.conn, `ANALYZE t`)
		said := make(chan Progress, 100_000)
		r.cfg.say = time.Millisecond
		r.cfg.Snapshotting = func(table string, p Progress) {
			if table != "public.t" {
				t.Error(table)
			}
			said <- p
		}
		r.open()
		r.ids(2000)
		told := false
		for p := range said {
			if p.Rows > 0 && p.About == 2000 && p.Left >= 0 {
				told = true
			}
			if p.Done {
				break
			}
		}
		if !told {
			t.Error("nothing was told before the end")
		}
	})
}

// Partitions are told under their root, and the snapshot of the root has each row once.
func TestPartitions(t *testing.T) {
	each(t, func(t *testing.T, pg *servers.PG) {
		r := newRig(t, pg, `CREATE TABLE p (r text, id int, v int, PRIMARY KEY (r, id)) PARTITION BY LIST (r);
			CREATE TABLE p_a PARTITION OF p FOR VALUES IN ('a'); CREATE TABLE p_b (v int, x int, id int NOT NULL, r text NOT NULL); ALTER TABLE p_b DROP x; ALTER TABLE p ATTACH PARTITION p_b FOR VALUES IN ('b');
			CREATE TABLE p_c PARTITION OF p FOR VALUES IN ('c') PARTITION BY RANGE (id); CREATE TABLE p_c1 PARTITION OF p_c FOR VALUES FROM (0) TO (10);
			INSERT INTO p VALUES ('a', 1, 1), ('b', 2, 2), ('c', 3, 3);
			CREATE TABLE parent (id int PRIMARY KEY); CREATE TABLE child () INHERITS (parent); INSERT INTO parent VALUES (1); INSERT INTO child VALUES (2)`, "public.p", "public.parent")
		r.cfg.readers = 1 // in the order of their names
		r.open()
		r.expect(`p snapshot {"id":1,"r":"a"} null {"r":"a","id":1,"v":1}`, `p snapshot {"id":2,"r":"b"} null {"r":"b","id":2,"v":2}`, `p snapshot {"id":3,"r":"c"} null {"r":"c","id":3,"v":3}`, `parent snapshot {"id":1} null {"id":1}`)
		sql(t, r.conn, `UPDATE p SET v = v + 10`, `UPDATE p SET r = 'b' WHERE id = 1`, `CREATE TABLE p_d (LIKE p INCLUDING ALL); INSERT INTO p_d VALUES ('d', 4, 4); ALTER TABLE p ATTACH PARTITION p_d FOR VALUES IN ('d')`,
			`UPDATE p_d SET v = 5`, `ALTER TABLE p DETACH PARTITION p_b`, `UPDATE p_b SET v = 0`, `DELETE FROM p_c1`, `TRUNCATE p`, `INSERT INTO p_a VALUES ('a', 6, 6)`)
		r.expect(`p update {"id":1,"r":"a"} null {"r":"a","id":1,"v":11}`, `p update {"id":2,"r":"b"} null {"r":"b","id":2,"v":12}`, `p update {"id":3,"r":"c"} null {"r":"c","id":3,"v":13}`,
			`p delete {"id":1,"r":"a"} {"r":"a","id":1} null`, `p insert {"id":1,"r":"b"} null {"r":"b","id":1,"v":11}`, `p update {"id":4,"r":"d"} null {"r":"d","id":4,"v":5}`,
			`p delete {"id":3,"r":"c"} {"r":"c","id":3} null`, `p truncate p null null`, `p insert {"id":6,"r":"a"} null {"r":"a","id":6,"v":6}`)
	})
}

// A table without rows that nobody has analysed is said to have none: the planner would
// say 1270 or so.
func TestSnapshotOfNoRows(t *testing.T) {
	each(t, func(t *testing.T, pg *servers.PG) {
		r := newRig(t, pg, `CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE p (id int PRIMARY KEY) PARTITION BY RANGE (id); CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (100); INSERT INTO p VALUES (1)`, "a", "p")
		var said logs
		r.cfg.Logger = said.logger()
		r.open()
		r.events(1)
		eventually(t, "the snapshots are read", func() bool { return strings.Count(said.String(), "snapshot begins") == 2 })
		if text := said.String(); !strings.Contains(text, `table=public.a rows="about 0"`) || strings.Contains(text, `table=public.p rows="about 0"`) {
			t.Error(text)
		}
	})
}
