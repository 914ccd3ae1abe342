package postgres

import (
	"errors"
	"strings"
	"sync"
	"testing"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/internal/servers"
)

// troubles notes what a source says.
type troubles struct {
	mu   sync.Mutex
	last map[string]string
}

func (s *troubles) note(what, problem string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.last == nil {
		s.last = map[string]string{}
	}
	s.last[what] = problem
}

func (s *troubles) of(what string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.last[what]
}

// A partition logs what its own replica identity says, and the log says what the root's
// does. Old rows that are less than that have no nulls for what is not there; what says
// nothing of the key is a gap; migrate makes all of them alike.
func TestLeafIdentity(t *testing.T) {
	each(t, func(t *testing.T, pg *servers.PG) {
		r := newRig(t, pg, large+`CREATE TABLE p (id int PRIMARY KEY, big text, v text) PARTITION BY RANGE (id); ALTER TABLE p REPLICA IDENTITY FULL; CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (100);
			ALTER TABLE p1 ALTER big SET STORAGE EXTERNAL; INSERT INTO p SELECT i, large(5000, 'a'), 'v' FROM generate_series(1, 3) i`, "public.p")
		if got := one[string](t, r.conn, `SELECT relreplident::text FROM pg_class WHERE relname = 'p1'`); got != "f" {
			t.Errorf("migrate left the partition at %s", got)
		}
		var said troubles
		r.cfg.Trouble = said.note
		r.open()
		r.events(3)
		r.whole()
		big := one[string](t, r.conn, `SELECT large(5000, 'a')`)
		sql(t, r.conn, `CREATE TABLE p2 PARTITION OF p FOR VALUES FROM (100) TO (200); ALTER TABLE p2 ALTER big SET STORAGE EXTERNAL; INSERT INTO p VALUES (101, large(5000, 'a'), 'v')`,
			`UPDATE p SET v = 'w' WHERE id IN (1, 101)`, `UPDATE p SET id = 102 WHERE id = 101`, `DELETE FROM p WHERE id = 102`, `DELETE FROM p WHERE id = 2`)
		r.expect(`p insert {"id":101} null {"id":101,"big":"`+big+`","v":"v"}`,
			`p update {"id":1} {"id":1,"big":"`+big+`","v":"v"} {"id":1,"big":"`+big+`","v":"w"}`, `p update {"id":101} null {"id":101,"v":"w"} ["big"]`,
			`p delete {"id":101} {"id":101} null`, `p insert {"id":102} null {"id":102,"v":"w"} ["big"]`, `p delete {"id":102} {"id":102} null`, `p delete {"id":2} {"id":2,"big":"`+big+`","v":"v"} null`)
		eventually(t, "it is said", func() bool {
			return strings.Contains(said.of("partitions"), "not told whole; run as its owner: ALTER TABLE public.p2 REPLICA IDENTITY FULL")
		})
		if step := strings.Join(r.migrate(), "\n"); !strings.Contains(step, "gave the partition public.p2 the replica identity of public.p") || strings.Contains(step, "snapshot") {
			t.Error(step)
		}
		eventually(t, "it is said no more", func() bool { return said.of("partitions") == "" })

		_ = r.src.Close()
		sql(t, r.conn, `CREATE UNIQUE INDEX p1_v ON p1 (v); ALTER TABLE p1 ALTER v SET NOT NULL, REPLICA IDENTITY USING INDEX p1_v`, `UPDATE p SET v = 'z' WHERE id = 3`, `ALTER TABLE p1 REPLICA IDENTITY FULL`)
		r.open()
		r.gap("had no value for its key")
		r.snapshotOf(`{"id":1}`, `{"id":3}`)
	})
}

// A partition by which rows cannot be told, or that is not in the log, is a gap until
// migrate, whatever is done to the partition meanwhile.
func TestLeafThatIsNotTold(t *testing.T) {
	each(t, func(t *testing.T, pg *servers.PG) {
		for _, c := range []struct{ ddl, says, cure string }{
			{`CREATE UNIQUE INDEX p1_code ON p1 (code); ALTER TABLE p1 REPLICA IDENTITY USING INDEX p1_code`, "which rows are changed is not told", ``},
			{`ALTER TABLE p1 SET UNLOGGED`, "is unlogged", `ALTER TABLE p1 SET LOGGED`},
			{`CREATE UNLOGGED TABLE p3 (LIKE p INCLUDING ALL); ALTER TABLE p ATTACH PARTITION p3 FOR VALUES FROM (200) TO (300)`, "is unlogged", `ALTER TABLE p3 SET LOGGED`},
		} {
			r := newRig(t, pg, `CREATE TABLE p (id int PRIMARY KEY, code int NOT NULL) PARTITION BY RANGE (id); CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (100); INSERT INTO p VALUES (1, 100)`, "public.p")
			r.open()
			r.events(1)
			r.whole()
			sql(t, r.conn, c.ddl)
			if err := r.failure(); !errors.Is(err, onewrite.ErrGap) || !strings.Contains(err.Error(), c.says) {
				t.Fatalf("%s: %v", c.ddl, err)
			}
			sql(t, r.conn, `UPDATE p SET code = 200`)
			_ = r.src.Close()
			if c.cure != "" {
				_, err := Migrate(t.Context(), r.url, MigrateOptions{Capture: Capture{Source: "shop", Tables: r.tables}})
				if err == nil || !strings.Contains(err.Error(), strings.ReplaceAll(c.cure, "TABLE p", "TABLE public.p")) {
					t.Errorf("%s: migrate says %v", c.ddl, err)
				}
				sql(t, r.conn, c.cure)
			}
			if err := r.tryOpen(t.Context()); !errors.Is(err, onewrite.ErrGap) {
				t.Fatalf("%s: %v", c.ddl, err)
			}
			if step := strings.Join(r.migrate(), "\n"); !strings.Contains(step, "it gets a new snapshot") {
				t.Error(step)
			}
			r.open()
			r.snapshotOf(`{"id":1}`)
			_ = r.src.Close()
		}
	})
}

// A new partition of a table without a key logs no old rows, and the server refuses to
// update it: that is said, with the cure.
func TestNewLeafWithoutKey(t *testing.T) {
	each(t, func(t *testing.T, pg *servers.PG) {
		w := newWard(t, pg)
		w.sql(`CREATE TABLE p (d int, v int) PARTITION BY RANGE (d); CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (100)`)
		w.o.Capture = Capture{Source: "shop", Tables: []string{"p"}}
		w.migrate()
		w.sql(`CREATE TABLE p2 PARTITION OF p FOR VALUES FROM (100) TO (200)`)
		cure := ""
		for _, f := range w.examine() {
			if f.Check == "tables" && strings.Contains(f.Text, "refuses to update") {
				cure = f.Cure
			}
		}
		if !strings.Contains(cure, "ALTER TABLE public.p2 REPLICA IDENTITY FULL") {
			t.Fatalf("the cure is %q", cure)
		}
		w.sql(cure)
		for _, f := range w.examine() {
			if f.Check == "tables" && strings.Contains(f.Text, "p2") {
				t.Error(f)
			}
		}

		r := newRig(t, pg, `CREATE TABLE p (d int, v int) PARTITION BY RANGE (d); CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (100)`, "public.p")
		var said troubles
		r.cfg.Trouble = said.note
		r.open()
		sql(t, r.conn, `CREATE TABLE p2 PARTITION OF p FOR VALUES FROM (100) TO (200); INSERT INTO p VALUES (101, 1)`)
		r.events(1)
		if _, err := r.conn.Exec(t.Context(), `UPDATE p SET v = 2`); err == nil {
			t.Fatal("the server does not refuse it")
		}
		eventually(t, "it is said", func() bool {
			return strings.Contains(said.of("partitions"), "refuses to update and to delete its rows; run as its owner: ALTER TABLE public.p2 REPLICA IDENTITY FULL")
		})
	})
}

// The script for an administrator does the same.
func TestLeavesInTheScript(t *testing.T) {
	each(t, func(t *testing.T, pg *servers.PG) {
		url := pg.NewDatabase(t)
		conn := dial(t, url)
		sql(t, conn, `CREATE TABLE p (d int, v int) PARTITION BY RANGE (d); CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (100);
			CREATE TABLE q (id int PRIMARY KEY, code int NOT NULL) PARTITION BY RANGE (id); CREATE UNIQUE INDEX q_code ON q (code, id); CREATE TABLE q1 PARTITION OF q FOR VALUES FROM (0) TO (100); ALTER TABLE q REPLICA IDENTITY USING INDEX q_code`)
		o := MigrateOptions{Capture: Capture{Source: "shop", Tables: []string{"p", "q"}}}
		script, err := SchemaWithCapture(t.Context(), url, o)
		if err != nil {
			t.Fatal(err)
		}
		mustPsql(t, url, script)
		if got := one[string](t, conn, `SELECT string_agg(relname || ' ' || relreplident::text, ', ' ORDER BY relname) FROM pg_class WHERE relname IN ('p', 'p1', 'q', 'q1')`); got != "p f, p1 f, q i, q1 i" {
			t.Error(got)
		}
	})
}
