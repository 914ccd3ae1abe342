package postgres

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/internal/servers"
)

// replica is what a consumer has who applies row changes.
type replica map[string]map[string]json.RawMessage

// apply takes one event. Columns that are absent keep what they had.
func (r replica) apply(t testing.TB, e onewrite.Event) {
	t.Helper()
	var env struct {
		After  map[string]json.RawMessage
		Source struct{ Unchanged []string }
	}
	if err := json.Unmarshal(e.Data, &env); err != nil {
		t.Fatalf("%v: %s", err, e.Data)
	}
	switch e.Type {
	case "delete":
		delete(r, e.Key) // perhaps of a row that the snapshot had not come to
	case "truncate":
		clear(r)
	default:
		row := r[e.Key]
		if row == nil || e.Type != "update" {
			row = map[string]json.RawMessage{}
		}
		for k, v := range env.After {
			row[k] = v
		}
		r[e.Key] = row
	}
}

// tableAsJSON reads a table by a query of keys and rows.
func tableAsJSON(t testing.TB, conn *pgx.Conn, query string) map[string]string {
	t.Helper()
	rows, err := conn.Query(t.Context(), query)
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	var key, row string
	if _, err := pgx.ForEachRow(rows, []any{&key, &row}, func() error { out[key] = row; return nil }); err != nil {
		t.Fatal(err)
	}
	return out
}

// A snapshot under load, with the source closed and opened again in the middle, gives
// every consumer the table as it is: no row is missing, none is older than it was, and
// large values that no change carried are there.
func TestSnapshotUnderLoad(t *testing.T) {
	each(t, func(t *testing.T, pg *servers.PG) {
		newRig(t, pg, itemsDDL, "public.items").snapshotUnderLoad(func(int) {})
	})
}

// reins hold writers that are far ahead of the reader. On a busy machine he would only fall
// further behind, for minutes, and read a log that proves no more: what matters is what
// changes between the marks of a chunk.
type reins chan struct{}

// ahead is how many transactions there may be between one batch and the next.
const ahead = 100

func newReins() reins {
	r := make(reins, ahead)
	r.loosen()
	return r
}

// loosen lets the writers do what they may do before the next batch.
func (r reins) loosen() {
	for {
		select {
		case r <- struct{}{}:
		default:
			return
		}
	}
}

// hold waits until a writer may go on; false: ctx has ended.
func (r reins) hold(ctx context.Context) bool {
	select {
	case <-r:
	case <-ctx.Done():
	}
	return ctx.Err() == nil
}

const itemsDDL = `CREATE TABLE items (region text COLLATE "C", id int, n int, big text, PRIMARY KEY (region, id));
	ALTER TABLE items ALTER COLUMN big SET STORAGE EXTERNAL;
	INSERT INTO items SELECT 'r' || i % 7, i, 0, repeat('x', 3000) || i FROM generate_series(1, 6000) i`

// snapshotUnderLoad tells before each time that it opens the source how often it has.
func (r *rig) snapshotUnderLoad(reopen func(n int)) {
	t := r.t
	t.Helper()
	ctx, stop := context.WithCancel(t.Context())
	var writers sync.WaitGroup
	changes, reins := 0, newReins()
	var mu sync.Mutex
	for w := range 3 {
		conn, err := pgx.Connect(ctx, r.url)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close(context.Background()) })
		rnd := rand.New(rand.NewPCG(uint64(w), 1))
		writers.Go(func() {
			for i := 0; reins.hold(ctx); i++ {
				id := rnd.IntN(6000) + 1
				where := fmt.Sprintf("region = 'r%d' AND id = %d", id%7, id)
				q := []string{
					fmt.Sprintf("UPDATE items SET n = n + 1 WHERE %s", where),
					fmt.Sprintf("UPDATE items SET n = n + 1, big = repeat('y', 2500) || %d WHERE %s", i, where),
					fmt.Sprintf("DELETE FROM items WHERE %s", where),
					fmt.Sprintf("INSERT INTO items VALUES ('r%d', %d, %d, repeat('z', 2600)) ON CONFLICT DO NOTHING", id%7, id, i),
					fmt.Sprintf("UPDATE items SET region = 'm' || region WHERE %s", where),
					fmt.Sprintf("BEGIN; UPDATE items SET n = -1 WHERE %s; SAVEPOINT s; DELETE FROM items WHERE id < 100; ROLLBACK TO s; ROLLBACK", where),
					fmt.Sprintf("BEGIN; UPDATE items SET n = n + 1 WHERE %[1]s; SAVEPOINT s; UPDATE items SET n = n + 7 WHERE %[1]s; RELEASE s; UPDATE items SET n = n + 1 WHERE id %% 1000 = 3; COMMIT", where),
				}[rnd.IntN(7)]
				if _, err := conn.Exec(context.WithoutCancel(ctx), q, pgx.QueryExecModeSimpleProtocol); err != nil && !strings.Contains(err.Error(), "23505") && !strings.Contains(err.Error(), "40P01") {
					t.Error(err)
					return
				} else if err != nil {
					_, _ = conn.Exec(context.WithoutCancel(ctx), "ROLLBACK")
				}
				mu.Lock()
				changes++
				mu.Unlock()
			}
		})
	}
	got := replica{}
	snapshots, live := 0, 0
	take := func(b onewrite.Batch) {
		for _, e := range b.Events {
			got.apply(t, e)
			if e.Type == "snapshot" {
				snapshots++
			} else {
				live++
			}
		}
	}
	r.open()
	opens := 1
	done := func() bool {
		return one[bool](t, r.conn, "SELECT bool_and(finished = wanted) FROM onewrite.captured")
	}
	for !done() || live < 500 {
		b := r.read()
		reins.loosen()
		take(b)
		if opens < 15 && snapshots >= opens*300 { // all along the way
			reopen(opens)
			r.open()
			opens++
		}
	}
	stop()
	writers.Wait()
	sql(t, r.conn, `INSERT INTO items VALUES ('end', 0, 0, 'end')`)
	for end := false; !end; {
		b := r.read()
		take(b)
		for _, e := range b.Events {
			end = end || strings.Contains(e.Key, `"end"`)
		}
	}
	want := tableAsJSON(t, r.conn, `SELECT json_build_object('id', id, 'region', region)::text, json_build_object('region', region, 'id', id, 'n', n, 'big', big)::text FROM items`)
	if len(got) != len(want) || len(want) < 1000 {
		t.Errorf("%d rows, want %d", len(got), len(want))
	}
	bad := 0
	for key, text := range want {
		var k struct {
			ID     int
			Region string
		}
		_ = json.Unmarshal([]byte(key), &k)
		var row map[string]json.RawMessage
		_ = json.Unmarshal([]byte(text), &row)
		have := got[fmt.Sprintf(`{"id":%d,"region":%q}`, k.ID, k.Region)]
		for col, v := range row {
			if string(have[col]) != string(v) && bad < 5 {
				bad++
				t.Errorf("%s.%s: %.60s, want %.60s", key, col, have[col], v)
			}
		}
	}
	t.Logf("%d snapshot rows, %d changes in %d transactions, opened %d times", snapshots, live, changes, opens)
	if opens < 5 || snapshots < 3000 {
		t.Errorf("opened %d times, %d snapshot rows: nothing is proven", opens, snapshots)
	}
}
