package postgres

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/internal/servers"
)

// large makes n characters that do not compress, so that they are stored apart.
const large = `CREATE FUNCTION large(n int, of text) RETURNS text LANGUAGE sql AS $$ SELECT left(string_agg(md5(of || i), '' ORDER BY i), n) FROM generate_series(0, n / 32) i $$;`

// whole waits until all snapshots are known to be complete.
func (r *rig) whole() {
	r.t.Helper()
	eventually(r.t, "the snapshots are complete", func() bool {
		return one[bool](r.t, r.conn, `SELECT bool_and(finished = wanted) FROM onewrite.captured`)
	})
}

// A large value that an update does not touch is not in the log.
func TestUntouchedLargeValue(t *testing.T) {
	each(t, func(t *testing.T, pg *servers.PG) {
		r := newRig(t, pg, large+`CREATE TABLE d (id int PRIMARY KEY, v int, big text); CREATE TABLE f (LIKE d INCLUDING ALL); CREATE TABLE k (id text PRIMARY KEY, v int);
			ALTER TABLE d ALTER big SET STORAGE EXTERNAL; ALTER TABLE f ALTER big SET STORAGE EXTERNAL, REPLICA IDENTITY FULL; ALTER TABLE k ALTER id SET STORAGE EXTERNAL`, "public.d", "public.f", "public.k")
		big, next := one[string](t, r.conn, `SELECT large(5000, 'a')`), one[string](t, r.conn, `SELECT large(5000, 'b')`)
		key := one[string](t, r.conn, `SELECT large(2500, 'k')`)
		r.open()
		r.whole()
		sql(t, r.conn, `INSERT INTO d VALUES (1, 1, large(5000, 'a'))`, `UPDATE d SET v = 2`, `UPDATE d SET id = 2`)
		r.expect(`d insert {"id":1} null {"id":1,"v":1,"big":"`+big+`"}`, `d update {"id":1} null {"id":1,"v":2} ["big"]`, `d delete {"id":1} {"id":1} null`,
			`d insert {"id":2} null {"id":2,"v":2,"big":"`+big+`"}`)
		sql(t, r.conn, `UPDATE d SET big = large(5000, 'b')`)
		r.expect(`d update {"id":2} null {"id":2,"v":2,"big":"` + next + `"}`)
		sql(t, r.conn, `BEGIN; UPDATE d SET id = 3; DELETE FROM d; COMMIT`)
		r.expect(`d delete {"id":2} {"id":2} null`, `d insert {"id":3} null {"id":3,"v":2} ["big"]`, `d delete {"id":3} {"id":3} null`)
		sql(t, r.conn, `INSERT INTO f VALUES (1, 1, large(5000, 'a'))`, `UPDATE f SET v = 2`, `UPDATE f SET id = 2`, `DELETE FROM f`)
		row := func(id, v int) string { return fmt.Sprintf(`{"id":%d,"v":%d,"big":"%s"}`, id, v, big) }
		r.expect(`f insert {"id":1} null `+row(1, 1), `f update {"id":1} `+row(1, 1)+` `+row(1, 2), `f delete {"id":1} `+row(1, 2)+` null`, `f insert {"id":2} null `+row(2, 2), `f delete {"id":2} `+row(2, 2)+` null`)
		sql(t, r.conn, `INSERT INTO k VALUES (large(2500, 'k'), 1)`, `UPDATE k SET v = 2`, `UPDATE k SET id = 'q'`)
		id := `{"id":"` + key + `"}`
		r.expect(`k insert `+id+` null {"id":"`+key+`","v":1}`, `k update `+id+` `+id+` {"id":"`+key+`","v":2}`, `k delete `+id+` `+id+` null`, `k insert {"id":"q"} null {"id":"q","v":2}`)
	})
}

// Debezium's placeholder stands where the value would, unless the row could be read
// again.
func TestPlaceholder(t *testing.T) {
	each(t, func(t *testing.T, pg *servers.PG) {
		r := newRig(t, pg, large+`CREATE TABLE d (id int PRIMARY KEY, big text, v int); ALTER TABLE d ALTER big SET STORAGE EXTERNAL; INSERT INTO d VALUES (1, large(5000, 'a'), 1)`, "public.d")
		big := one[string](t, r.conn, `SELECT big FROM d`)
		r.cfg.Toast = ToastDebezium
		r.open()
		r.expect(`d snapshot {"id":1} null {"id":1,"big":"` + big + `","v":1}`)
		sql(t, r.conn, `UPDATE d SET v = 2`)
		r.expect(`d update {"id":1} null {"id":1,"big":"__debezium_unavailable_value","v":2} ["big"]`)
		sql(t, r.conn, `UPDATE d SET id = 2`)
		moved := r.expect(`d delete {"id":1} {"id":1} null`, `d insert {"id":2} null {"id":2,"big":"`+big+`","v":2}`)
		if !strings.Contains(string(moved[1].Data), `"reread":true`) || strings.Contains(string(moved[0].Data), "reread") {
			t.Error("source.reread is not where the row was read again")
		}
		sql(t, r.conn, `BEGIN; UPDATE d SET id = 3; DELETE FROM d; COMMIT`)
		r.expect(`d delete {"id":2} {"id":2} null`, `d insert {"id":3} null {"id":3,"big":"__debezium_unavailable_value","v":2} ["big"]`, `d delete {"id":3} {"id":3} null`)
	})
}

// TRUNCATE of several tables is one event for each.
func TestTruncateOfSeveral(t *testing.T) {
	each(t, func(t *testing.T, pg *servers.PG) {
		r := newRig(t, pg, `CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE b (id int PRIMARY KEY REFERENCES a); CREATE TABLE c (n int REFERENCES b); CREATE TABLE other (id int PRIMARY KEY REFERENCES a)`, "public.a", "public.b", "public.c")
		r.open()
		r.whole()
		sql(t, r.conn, `BEGIN; INSERT INTO a VALUES (1); TRUNCATE a CASCADE; INSERT INTO a VALUES (1); COMMIT`)
		events := r.events(5)
		topics := map[string]bool{}
		for i, e := range events {
			if e.Tx.Index != i || e.Tx.Last != (i == 4) || i > 0 && e.Seq <= events[i-1].Seq {
				t.Errorf("event %d: %+v, %s", i, e.Tx, e.Seq)
			}
			if (e.Type == "truncate") != (i > 0 && i < 4) {
				t.Errorf("event %d is %s", i, e.Type)
			}
			if e.Type == "truncate" {
				topics[e.Key] = true
			}
		}
		if len(topics) != 3 {
			t.Errorf("truncated: %v", topics)
		}
	})
}

// The sequences of a TRUNCATE of very many tables are text that grows.
func TestTruncateOfVeryMany(t *testing.T) {
	each(t, func(t *testing.T, pg *servers.PG) {
		const tables = 200
		r := newRig(t, pg, fmt.Sprintf(`CREATE SCHEMA many; DO $$ BEGIN FOR i IN 1..%d LOOP EXECUTE format('CREATE TABLE many.m%%s (id int PRIMARY KEY)', i); END LOOP; END $$; CREATE TABLE a (id int PRIMARY KEY)`, tables), "public.a")
		r.tables = []string{"many.*"}
		if _, err := Migrate(t.Context(), r.url, MigrateOptions{Capture: Capture{Source: "shop", Tables: r.tables}}); err != nil {
			t.Fatal(err)
		}
		r.open()
		sql(t, r.conn, `DO $$ BEGIN EXECUTE (SELECT 'TRUNCATE ' || string_agg(oid::regclass::text, ', ') FROM pg_class WHERE relnamespace = 'many'::regnamespace AND relkind = 'r'); END $$`)
		was := ""
		for _, e := range r.events(tables) {
			if e.Type != "truncate" || e.Seq <= was || strings.Trim(e.Seq, "0123456789abcdef.") != "" {
				t.Fatalf("%s: sequence %q after %q", e.Type, e.Seq, was)
			}
			was = e.Seq
		}
	})
}

// history checks what has to hold for every event that a reader gets.
type history struct {
	t    *testing.T
	ids  map[string]bool
	seqs map[string]string // by key and topic
	n    int
}

func (h *history) add(e onewrite.Event) {
	h.t.Helper()
	h.n++
	lane := e.Topic + " " + e.Key
	if h.ids[e.ID] {
		h.t.Errorf("id %s came twice", e.ID)
	}
	if e.Seq <= h.seqs[lane] {
		h.t.Errorf("%s: sequence %s came after %s", lane, e.Seq, h.seqs[lane])
	}
	h.ids[e.ID], h.seqs[lane] = true, e.Seq
}

func newHistory(t *testing.T) *history {
	return &history{t: t, ids: map[string]bool{}, seqs: map[string]string{}}
}

// The events of a transaction are counted, and a reader that is closed after each
// batch goes on where it was.
func TestLargeTransactions(t *testing.T) {
	each(t, func(t *testing.T, pg *servers.PG) {
		r := newRig(t, pg, `CREATE TABLE t (id int PRIMARY KEY, v text); CREATE TABLE lane (n int); INSERT INTO t SELECT i, 'old' FROM generate_series(1, 1500) i; INSERT INTO lane SELECT generate_series(1, 50)`, "public.t", "public.lane")
		h := newHistory(t)
		r.cfg.chunk = 100
		r.open()
		for _, e := range r.events(1550) {
			h.add(e)
		}
		r.whole()
		for _, size := range []int{1000, 5000} {
			// A changed key makes two events.
			sql(t, r.conn, fmt.Sprintf(`BEGIN; UPDATE t SET v = 'new' WHERE id <= 100; INSERT INTO t SELECT i + 10000 * %[1]d, repeat('x', 300) FROM generate_series(1, %[1]d - 200 - 40) i; UPDATE lane SET n = n WHERE n <= 20; UPDATE t SET id = -id - %[1]d WHERE id BETWEEN 201 AND 250; DELETE FROM lane WHERE n <= 20; DELETE FROM t WHERE id < 0 AND v = 'gone'; COMMIT;
				UPDATE t SET id = abs(id) - %[1]d WHERE id BETWEEN -250 - %[1]d AND -201 - %[1]d; INSERT INTO lane SELECT generate_series(1, 20)`, size))
			next, opened := 0, 0
			for last := false; !last; {
				b := r.read()
				for _, e := range b.Events {
					h.add(e)
					if e.Tx.Index != next || last {
						t.Fatalf("txindex %d, want %d; after the last: %v", e.Tx.Index, next, last)
					}
					next++
					last = e.Tx.Last
				}
				if !last {
					r.open()
					opened++
				}
			}
			if next != size {
				t.Errorf("%d events in the transaction, want %d", next, size)
			}
			t.Logf("%d events, opened %d times", next, opened)
			if size > onewrite.MaxBatch && opened < 2 {
				t.Error("the reader was not closed in the middle")
			}
			for _, e := range r.events(100 + 20) {
				h.add(e)
			}
		}
	})
}

// bag is what a consumer has of a table without a key: rows, and how often.
type bag map[string]int

func (b bag) apply(t *testing.T, e onewrite.Event) {
	t.Helper()
	var env struct{ Before, After json.RawMessage }
	if err := json.Unmarshal(e.Data, &env); err != nil {
		t.Fatal(err)
	}
	if e.Type == "truncate" {
		clear(b)
	}
	if string(env.Before) != "null" {
		if b[string(env.Before)]--; b[string(env.Before)] < 0 {
			t.Errorf("%s of a row that is not there: %s", e.Type, env.Before)
		}
	}
	if string(env.After) != "null" {
		b[string(env.After)]++
	}
}

func (b bag) size() (n int) {
	for _, of := range b {
		n += of
	}
	return n
}

// A table without a key is whole after its snapshot, whatever others write meanwhile.
func TestLaneSnapshotUnderLoad(t *testing.T) {
	each(t, func(t *testing.T, pg *servers.PG) {
		r := newRig(t, pg, `CREATE TABLE lane (n int, v text); INSERT INTO lane SELECT i % 1000, 'v' || i % 3 FROM generate_series(1, 5000) i`, "public.lane")
		ctx, stop := context.WithCancel(t.Context())
		var writers sync.WaitGroup
		for w := range 3 {
			conn := dial(t, r.url)
			writers.Go(func() {
				for i := w; ctx.Err() == nil; i += 3 {
					s := fmt.Sprintf([]string{`INSERT INTO lane VALUES (%[1]d, 'new')`, `UPDATE lane SET v = v || 'u' WHERE n = %[1]d AND length(v) < 9`, `DELETE FROM lane WHERE n = %[1]d`, `BEGIN; INSERT INTO lane VALUES (%[1]d, 'two'), (%[1]d, 'two'); UPDATE lane SET v = 'moved' WHERE n = %[1]d; COMMIT`}[i%4], i*7%1000)
					if _, err := conn.Exec(context.WithoutCancel(ctx), s); err != nil && !strings.Contains(err.Error(), "40P01") {
						t.Error(err)
						return
					} else if err != nil {
						_, _ = conn.Exec(context.WithoutCancel(ctx), `ROLLBACK`)
					}
				}
			})
		}
		h, got := newHistory(t), bag{}
		snapshots, live, told := 0, 0, false
		take := func() (end bool) {
			for _, e := range r.read().Events {
				h.add(e)
				if told = told || e.Type == "truncate" || e.Type == "snapshot"; told { // before that, changes are of rows that had not come
					got.apply(t, e)
				}
				if e.Type == "snapshot" {
					snapshots++
				} else {
					live++
				}
				end = end || strings.Contains(string(e.Data), `"the end"`)
			}
			return end
		}
		r.open()
		for live < 500 {
			take()
		}
		for enough := live + 300; live < enough; {
			take()
		}
		stop()
		writers.Wait()
		sql(t, r.conn, `INSERT INTO lane VALUES (-1, 'the end')`)
		for !take() {
		}
		want := tableAsJSON(t, r.conn, `SELECT format('{"n":%s,"v":"%s"}', n, v), count(*)::text FROM lane GROUP BY n, v`)
		for row, n := range got {
			if want[row] != fmt.Sprint(n) && (n != 0 || want[row] != "") {
				t.Errorf("%s: %d times, want %q", row, n, want[row])
			}
			delete(want, row)
		}
		if len(want) > 0 {
			t.Errorf("missing: %.300s", fmt.Sprint(want))
		}
		t.Logf("%d snapshot rows, %d changes", snapshots, live)
		if snapshots < 3000 || live < 800 {
			t.Error("too few to prove anything")
		}
	})
}
