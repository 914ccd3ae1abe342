package postgres

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/internal/servers"
)

// keysOf is the number of keys of the workload.
const keysOf = 40

// workload is the hard one for order: half of the transactions take their
// transaction number early, before they wait for the row of their key; some
// linger before they commit, some roll back, some abort a savepoint. The
// payload "n" counts up per key under the row's lock, so it is the true order.
func workload(t *testing.T, url string, writers, each int) (committed map[string]int) {
	t.Helper()
	conn := dial(t, url)
	sql(t, conn, `CREATE TABLE IF NOT EXISTS account (key text PRIMARY KEY, n int NOT NULL DEFAULT 0)`, `CREATE TABLE IF NOT EXISTS scratch (x int)`,
		fmt.Sprintf(`INSERT INTO account SELECT 'k' || i FROM generate_series(0, %d) i ON CONFLICT DO NOTHING`, keysOf-1))
	var wg sync.WaitGroup
	var failed atomic.Pointer[error]
	for w := range writers {
		c := dial(t, url)
		rnd := rand.New(rand.NewPCG(1, uint64(w)))
		wg.Go(func() {
			for range each {
				if err := writeOnce(t.Context(), c, rnd); err != nil {
					failed.CompareAndSwap(nil, &err)
					return
				}
			}
		})
	}
	wg.Wait()
	if err := failed.Load(); err != nil {
		t.Fatal(*err)
	}
	committed = map[string]int{}
	rows, err := conn.Query(t.Context(), `SELECT key, n FROM account`)
	if err != nil {
		t.Fatal(err)
	}
	var key string
	var n int
	if _, err := pgx.ForEachRow(rows, []any{&key, &n}, func() error { committed[key] = n; return nil }); err != nil {
		t.Fatal(err)
	}
	return committed
}

func writeOnce(ctx context.Context, c *pgx.Conn, rnd *rand.Rand) error {
	key, linger := fmt.Sprint("k", rnd.IntN(keysOf)), 0
	q := []string{"BEGIN"}
	if rnd.IntN(2) == 0 { // an early transaction number
		q = append(q, "INSERT INTO scratch VALUES (1)")
		linger = rnd.IntN(3)
	}
	if linger > 0 {
		q = append(q, fmt.Sprintf("SELECT pg_sleep(%f)", float64(linger)/1000))
	}
	if rnd.IntN(8) == 0 { // never to be seen
		q = append(q, "SAVEPOINT a", "SELECT onewrite.publish('aborted', '"+key+"', 'savepoint')", "ROLLBACK TO a")
	}
	inside := rnd.IntN(6) == 0
	if inside {
		q = append(q, "SAVEPOINT b")
	}
	for range 1 + rnd.IntN(2) {
		q = append(q, `WITH a AS (UPDATE account SET n = n + 1 WHERE key = '`+key+`' RETURNING n) SELECT onewrite.publish('ok', '`+key+`', n::text) FROM a`)
	}
	if inside {
		q = append(q, "RELEASE b")
	}
	if rnd.IntN(3) == 0 {
		q = append(q, "SELECT pg_sleep(0.001)")
	}
	end := "COMMIT"
	if rnd.IntN(10) == 0 {
		q = append(q, "SELECT onewrite.publish('aborted', '"+key+"', 'rollback')")
		end = "ROLLBACK"
	}
	_, err := c.Exec(ctx, strings.Join(append(q, end), ";"), pgx.QueryExecModeSimpleProtocol)
	return err
}

// verify checks that every committed event came once and in order per key.
func verify(t *testing.T, events []onewrite.Event, committed map[string]int) {
	t.Helper()
	last := map[string]int{}
	for _, e := range events {
		if e.Topic != "ok" {
			t.Fatalf("an event that was rolled back came: %s %s %q", e.Topic, e.Key, e.Data)
		}
		n, err := strconv.Atoi(string(e.Data))
		if err != nil {
			t.Fatal(err)
		}
		if n != last[e.Key]+1 {
			t.Fatalf("key %s: %d came after %d", e.Key, n, last[e.Key])
		}
		last[e.Key] = n
	}
	for key, n := range committed {
		if last[key] != n {
			t.Errorf("key %s: %d of %d events came", key, last[key], n)
		}
	}
}

func total(committed map[string]int) (n int) {
	for _, c := range committed {
		n += c
	}
	return n
}

func TestOrderUnderLoad(t *testing.T) {
	each(t, func(t *testing.T, pg *servers.PG) {
		url := newOutbox(t, pg, MigrateOptions{})
		conn := dial(t, url)
		open := dial(t, url) // an unrelated write transaction stalls nobody
		sql(t, open, `BEGIN`, `CREATE TEMP TABLE x ()`, `SELECT pg_current_xact_id()`)
		s := openWith(t, Config{URL: url}, "")
		count, stop := drain(t, s, false)
		committed := workload(t, url, 16, 300)
		want := total(committed)
		eventually(t, "all events came", func() bool { return count() >= want })
		events := stop()
		verify(t, events, committed)
		// The workload is worth something only if numbers and commits are at odds.
		inversions, high := 0, ""
		for _, e := range events {
			if e.Seq < high {
				inversions++
			}
			high = max(high, e.Seq)
		}
		early := one[int](t, conn, `SELECT count(*)::int FROM (SELECT xid < max(xid::text::bigint) OVER (ORDER BY seq ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING)::text::xid8 AS i FROM onewrite.outbox) x WHERE i`)
		t.Logf("%d events, %d came after one with a greater seq, %d have a smaller xid than one before them", len(events), inversions, early)
		if want < 5000 || early < 1000 || inversions == 0 {
			t.Errorf("the workload is too tame: %d events, %d inversions of xid, %d of seq", want, early, inversions)
		}
	})
}

// A reader that stops at any place and goes on there has seen each event once.
func TestRestartAnywhere(t *testing.T) {
	each(t, func(t *testing.T, pg *servers.PG) {
		r := restarts{url: newOutbox(t, pg, MigrateOptions{}), writers: 8, each: 150, reads: 3, cut: 2}
		r.config = func(int, onewrite.Pos) Config { return Config{MaxBatchBytes: 20_000} }
		t.Logf("%d restarts", r.run(t))
	})
}

// restarts reads the workload with a reader that stops again and again.
type restarts struct {
	url           string
	writers, each int                                                // of the workload
	reads         int                                                // after so many reads at the most the reader stops
	cut           int                                                // one in so many is taken in part, and the reader stops there
	config        func(n int, pos onewrite.Pos) Config               // of the n-th reader
	took          func(src onewrite.Source, pos onewrite.Pos, n int) // after the n-th whole batch, if set
}

// run checks that all came once and in order, and returns how often the reader stopped.
func (r *restarts) run(t *testing.T) (stops int) {
	t.Helper()
	done := make(chan map[string]int, 1)
	go func() { done <- workload(t, r.url, r.writers, r.each) }()
	rnd := rand.New(rand.NewPCG(7, 7))
	var events []onewrite.Event
	var pos onewrite.Pos
	var committed map[string]int
	want, batches, deadline := -1, 0, time.Now().Add(4*patience)
	all := func() bool { return want >= 0 && len(events) >= want }
	for ; !all(); stops++ {
		select {
		case committed = <-done:
			want = total(committed)
		default:
		}
		src := r.open(t, stops, pos)
		for range 1 + rnd.IntN(r.reads) {
			if all() {
				break
			}
			ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
			b, err := src.Read(ctx)
			cancel()
			if errors.Is(err, context.DeadlineExceeded) {
				break // all is read, and the writers are just about to say how much that is
			}
			if err != nil || b.Gap != nil {
				t.Fatalf("%v, gap: %v", err, b.Gap)
			}
			if n := len(b.Events); n > 0 && rnd.IntN(r.cut) == 0 { // in the middle of a batch
				i := rnd.IntN(n)
				events, pos = append(events, b.Events[:i+1]...), b.PosAt(i)
				break
			}
			events, pos = append(events, b.Events...), b.Pos
			if batches++; r.took != nil {
				r.took(src, pos, batches)
			}
		}
		if err := src.Close(); err != nil {
			t.Fatal(err)
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d of %d events came", len(events), want)
		}
	}
	verify(t, events, committed)
	return stops
}

// open waits for the place of the reader before: the server sees the end of a session a
// moment later.
func (r *restarts) open(t *testing.T, n int, pos onewrite.Pos) (src onewrite.Source) {
	t.Helper()
	cfg := r.config(n, pos)
	cfg.Name, cfg.URL, cfg.BusID = "shop", r.url, "bus1"
	eventually(t, "the place of the reader before is free", func() (ok bool) {
		var err error
		if src, err = OpenSource(t.Context(), cfg, pos); err != nil && !errors.Is(err, onewrite.ErrStandby) {
			t.Fatal(err)
		}
		return err == nil
	})
	return src
}

// Every place inside a backlog is one to go on from.
func TestRestartAtEachPlace(t *testing.T) {
	each(t, func(t *testing.T, pg *servers.PG) {
		url := newOutbox(t, pg, MigrateOptions{})
		conn := dial(t, url)
		const n = 3500
		for i := 0; i < n; i += 500 {
			sql(t, conn, fmt.Sprintf(`INSERT INTO onewrite.outbox (topic, payload) SELECT 't', i FROM generate_series(%d, %d) i`, i, i+499))
		}
		s := open(t, url, "")
		var places []onewrite.Pos
		for len(places) < n {
			b := read(t, s)
			for i := range b.Events {
				places = append(places, b.PosAt(i))
			}
			if places[len(places)-1] != b.Pos {
				t.Fatalf("PosAt of the last event is not Pos: %s, %s", places[len(places)-1], b.Pos)
			}
		}
		_ = s.Close()
		for i := 0; i < n; i += 97 {
			s := open(t, url, places[i])
			want := i + 1
			for want < n {
				for _, e := range read(t, s).Events {
					if string(e.Data) != strconv.Itoa(want) {
						t.Fatalf("after event %d at %s: %s came, want %d", i, places[i], e.Data, want)
					}
					want++
				}
			}
			nothing(t, s, conn)
			_ = s.Close()
			sql(t, conn, `DELETE FROM onewrite.outbox WHERE topic = 'mark'`)
		}
	})
}
