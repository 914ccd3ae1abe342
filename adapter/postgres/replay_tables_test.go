package postgres

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/internal/servers"
)

// loadedTables are read at the same time: of the second a snapshot has some rows only,
// and the third is altered meanwhile.
var loadedTables = []string{"plain", "part", "shaped", "texts"}

const loadedRows = 3000

// writeLoaded changes rows of all tables but the last 300, several in a transaction,
// until ctx ends.
func writeLoaded(t *testing.T, ctx context.Context, conn *pgx.Conn, seed uint64, reins reins, count *atomic.Int64) {
	rnd := rand.New(rand.NewPCG(seed, 2))
	for i := 0; reins.hold(ctx); i++ {
		var b strings.Builder
		b.WriteString("BEGIN; ")
		for range rnd.IntN(3) + 1 {
			id, table := rnd.IntN(loadedRows-300)+1, loadedTables[rnd.IntN(len(loadedTables))]
			fmt.Fprintf(&b, []string{
				"UPDATE %[1]s SET n = n + 1 WHERE id = %[2]d; ", "UPDATE %[1]s SET n = n + 1, big = repeat('y', 2500) || %[3]d WHERE id = %[2]d; ",
				"DELETE FROM %[1]s WHERE id = %[2]d; ", "INSERT INTO %[1]s (k, id, n, big) VALUES ('k' || %[2]d %% 5, %[2]d, %[3]d, repeat('z', 2600)) ON CONFLICT DO NOTHING; ",
				"UPDATE %[1]s SET id = -id WHERE abs(id) = %[2]d; ", "SAVEPOINT s; DELETE FROM %[1]s WHERE id < 50; ROLLBACK TO s; ",
			}[rnd.IntN(6)], table, id, i)
		}
		b.WriteString([]string{"COMMIT", "COMMIT", "COMMIT", "ROLLBACK"}[rnd.IntN(4)])
		_, err := conn.Exec(context.WithoutCancel(ctx), b.String(), pgx.QueryExecModeSimpleProtocol)
		if err != nil {
			_, _ = conn.Exec(context.WithoutCancel(ctx), "ROLLBACK")
		}
		if err != nil && !strings.Contains(err.Error(), "23505") && !strings.Contains(err.Error(), "40P01") {
			t.Error(err)
			return
		}
		count.Add(1)
	}
}

// compareLoaded compares what a consumer has with a table. Rows that a snapshot has left
// out are there if they were changed since, perhaps without a large value; a column that
// was added is not told to those who had the row before.
func compareLoaded(t *testing.T, conn *pgx.Conn, table string, got replica) (missing int) {
	t.Helper()
	want := tableAsJSON(t, conn, fmt.Sprintf(`SELECT CASE WHEN '%[1]s' = 'texts' THEN json_build_object('k', k, 'id', id) ELSE json_build_object('id', id) END::text, to_json(x)::text FROM %[1]s x`, table))
	if len(want) < loadedRows/3 {
		t.Errorf("%s: %d rows: nothing is proven", table, len(want))
	}
	bad := 0
	complain := func(format string, args ...any) {
		if bad++; bad < 5 {
			t.Errorf(table+": "+format, args...)
		}
	}
	for key, text := range want {
		var row map[string]json.RawMessage
		if err := json.Unmarshal([]byte(text), &row); err != nil {
			t.Fatal(err)
		}
		key = fmt.Sprintf(`{"id":%s}`, row["id"])
		if table == "texts" {
			key = fmt.Sprintf(`{"id":%s,"k":%s}`, row["id"], row["k"])
		}
		have, ok := got[key]
		delete(got, key)
		var id int
		_ = json.Unmarshal(row["id"], &id)
		outside := table == "part" && abs(id)%3 == 0
		if !ok && outside {
			missing++
			continue
		}
		for col, v := range row {
			if h, there := have[col]; string(h) != string(v) && !(!there && (outside && col == "big" || col == "added" && string(v) == `"x"`)) {
				complain("%s.%s: %.60s, want %.60s", key, col, h, v)
			}
		}
	}
	for key := range got {
		complain("%s is not in the table", key)
	}
	return missing
}

func abs(n int) int { return max(n, -n) }

// Snapshots of several tables at once, of which one has a condition and one is altered
// meanwhile, give a consumer the tables as they are, wherever the source is cut off: the
// bus may have any part of a batch.
func TestSnapshotsUnderLoad(t *testing.T) {
	each(t, func(t *testing.T, pg *servers.PG) {
		var ddl strings.Builder
		var names []string
		for _, table := range loadedTables {
			key := map[bool]string{true: "k, id", false: "id"}[table == "texts"]
			fmt.Fprintf(&ddl, `CREATE TABLE %[1]s (k text, id int, n int, big text, PRIMARY KEY (%[2]s)); ALTER TABLE %[1]s ALTER big SET STORAGE EXTERNAL;
				INSERT INTO %[1]s SELECT 'k' || i %% 5, i, 0, repeat('x', 2500) || i FROM generate_series(1, %[3]d) i;`, table, key, loadedRows)
			names = append(names, "public."+table)
		}
		r := newRig(t, pg, ddl.String(), names...)
		if _, err := r.migrateWhere(map[string]string{"part": "id % 3 <> 0"}, ""); err != nil {
			t.Fatal(err)
		}
		r.cfg.chunk, r.cfg.scan = 60, 70
		ctx, stop := context.WithCancel(t.Context())
		var writers sync.WaitGroup
		var changes atomic.Int64
		reins := newReins()
		for w := range 3 {
			conn := dial(t, r.url)
			writers.Go(func() { writeLoaded(t, ctx, conn, uint64(w), reins, &changes) })
		}
		state := map[string]replica{}
		for _, n := range names {
			state[n] = replica{}
		}
		snapshots, live, end := 0, 0, 0
		rnd := rand.New(rand.NewPCG(9, 9))
		take := func(cut bool) {
			var b onewrite.Batch
			if !cut {
				b = r.read()
			} else if b = r.readUnstored(); len(b.Events) > 0 {
				n := rnd.IntN(len(b.Events))
				b.Events, r.pos = b.Events[:n+1], b.PosAt(n)
			}
			reins.loosen()
			for _, e := range b.Events {
				state[e.Topic].apply(t, e)
				if e.Type == "snapshot" {
					snapshots++
				} else {
					live++
				}
				if strings.Contains(e.Key, "999999") {
					end++
				}
			}
		}
		r.open()
		opens, altered := 1, 0
		steps := []string{`ALTER TABLE shaped ADD added text DEFAULT 'x'`, `ALTER TABLE shaped ALTER n TYPE bigint`, `ALTER TABLE shaped ADD gone int; ALTER TABLE shaped DROP gone`}
		for done := false; !done || live < 500; {
			cut := opens < 15 && snapshots >= opens*400 // all along the way
			take(cut)
			if cut {
				r.open()
				opens++
			}
			if altered < len(steps) && snapshots > (altered+1)*1500 {
				sql(t, r.conn, steps[altered])
				altered++
			}
			done = one[bool](t, r.conn, "SELECT bool_and(finished = wanted) FROM onewrite.captured")
		}
		stop()
		writers.Wait()
		for _, table := range loadedTables {
			sql(t, r.conn, fmt.Sprintf(`INSERT INTO %s (k, id, n, big) VALUES ('e', 999999, 0, 'e')`, table))
		}
		for end < len(loadedTables) {
			take(false)
		}
		missing := 0
		for i, table := range loadedTables {
			missing += compareLoaded(t, r.conn, table, state[names[i]])
		}
		t.Logf("%d snapshot rows, %d changes in %d transactions, opened %d times, altered %d times, %d rows left out", snapshots, live, changes.Load(), opens, altered, missing)
		if opens < 5 || altered < len(steps) || snapshots < loadedRows || missing < 100 {
			t.Error("nothing is proven")
		}
	})
}
