package postgres

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/internal/servers"
)

// fill inserts n events of size bytes in transactions of 10,000, in two leaves.
func fill(t testing.TB, conn *pgx.Conn, n, size int) {
	t.Helper()
	for from := 1; from <= n; from += 10_000 {
		if from > n/2 {
			sql(t, conn, `SELECT setval('onewrite.slot', 1)`)
		}
		sql(t, conn, fmt.Sprintf(`INSERT INTO onewrite.outbox (topic, key, payload) SELECT 'order.placed', 'k' || i %% 1000, rpad(i::text, %d, '.') FROM generate_series(%d, %d) i`, size, from, min(n, from+9_999)))
	}
}

// explained is the plan of a prepared statement under the reader's settings.
func explained(t *testing.T, s *Source, query string, types string, args string) string {
	t.Helper()
	s.session.Lock()
	defer s.session.Unlock()
	sql(t, s.conn, `PREPARE explained (`+types+`) AS `+query)
	rows, err := s.conn.Query(t.Context(), `EXPLAIN (ANALYZE, BUFFERS, COSTS off, TIMING off) EXECUTE explained(`+args+`)`, pgx.QueryExecModeSimpleProtocol)
	if err != nil {
		t.Fatal(err)
	}
	lines, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		t.Fatal(err)
	}
	sql(t, s.conn, `DEALLOCATE explained`)
	return strings.Join(lines, "\n")
}

func TestPlans(t *testing.T) {
	each(t, func(t *testing.T, pg *servers.PG) {
		url := newOutbox(t, pg, MigrateOptions{})
		conn := dial(t, url)
		s := open(t, url, "")
		const n = 100_000
		fill(t, conn, n, 200)
		snap := one[string](t, conn, `SELECT pg_current_snapshot()::text`)
		sql(t, conn, `SELECT onewrite.summarize()`, `INSERT INTO onewrite.outbox (topic) VALUES ('new')`)
		to, err := parseSnapshot(snap)
		if err != nil {
			t.Fatal(err)
		}
		pages := one[int](t, conn, `SELECT (pg_relation_size('onewrite.outbox_0') + pg_relation_size('onewrite.outbox_1'))::int / 8192`)

		tail := explained(t, s, tailSQL, "bigint, bigint, text, text", fmt.Sprintf("1000, 8000000, '%d', '{}'", to.xmax))
		if badPlan(tail) || !strings.Contains(tail, "outbox_1_xid_idx") || buffers(t, tail) > 100 {
			t.Errorf("the tail is not read by the index on xid:\n%s", tail)
		}
		piece := explained(t, s, pieceSQL, "text, text, bigint, bigint, bigint", fmt.Sprintf("'%s', '%s', 20000, 30000, 8000000", empty.text, snap))
		if badPlan(piece) || !strings.Contains(piece, "outbox_0_seq_idx") || buffers(t, piece) > pages/5 {
			t.Errorf("a piece of %d pages is not read by its block ranges:\n%s", pages, piece)
		}
		for name, query := range map[string]string{"sum": tallySQL, "sums": talliesSQL} {
			tally := explained(t, s, query, "text, text, text, text", fmt.Sprintf("'%s', '%s', '%d', '{%d}'", to.without([]uint64{to.xmax - 1}).text, to.add(to.xmax).text, to.xmax, to.xmax-1))
			if badPlan(tally) || !strings.Contains(tally, "outbox_1_xid_idx") || buffers(t, tally) > pages/5 {
				t.Errorf("the %s of what was told are not read by the index on xid:\n%s", name, tally)
			}
		}
		t.Logf("buffers: tail %d, piece of a tenth %d, of %d pages", buffers(t, tail), buffers(t, piece), pages)
	})
}

// badPlan: the whole leaf is read, or workers are started for a few rows.
func badPlan(plan string) bool {
	return strings.Contains(plan, "Seq Scan on outbox") || strings.Contains(plan, "Gather")
}

// buffers returns how many pages the whole plan touched.
func buffers(t *testing.T, plan string) (n int) {
	t.Helper()
	_, rest, ok := strings.Cut(plan, "Buffers: shared")
	if !ok {
		t.Fatalf("no buffers in\n%s", plan)
	}
	line, _, _ := strings.Cut(rest, "\n")
	for _, f := range strings.Fields(line) {
		if k, v, _ := strings.Cut(f, "="); k == "hit" || k == "read" {
			i, err := strconv.Atoi(v)
			if err != nil {
				t.Fatal(err)
			}
			n += i
		}
	}
	return n
}

// numbers checks that the events are 1 to n in order, in full pages.
func numbers(t *testing.T, s *Source, n int) {
	t.Helper()
	next := 1
	for next <= n {
		b := read(t, s)
		if len(b.Events) > onewrite.MaxBatch {
			t.Fatalf("a batch of %d events", len(b.Events))
		}
		for _, e := range b.Events {
			if got := strings.TrimRight(string(e.Data), "."); got != strconv.Itoa(next) {
				t.Fatalf("event %s came, want %d", got, next)
			}
			next++
		}
	}
}

func TestBacklog(t *testing.T) {
	each(t, func(t *testing.T, pg *servers.PG) {
		url := newOutbox(t, pg, MigrateOptions{})
		conn := dial(t, url)
		const n = 300_000
		fill(t, conn, n, 100)
		s := open(t, url, "")
		start := time.Now()
		numbers(t, s, n)
		t.Logf("%d events in %v", n, time.Since(start))
		nothing(t, s, conn)
	})
}

func TestBacklogWithWriters(t *testing.T) {
	each(t, func(t *testing.T, pg *servers.PG) {
		url := newOutbox(t, pg, MigrateOptions{})
		conn := dial(t, url)
		const n = 100_000
		fill(t, conn, n, 100)
		// Numbers that were taken by transactions that are not there: holes.
		sql(t, conn, `SELECT setval('onewrite.seq', 5000000)`)
		done := make(chan map[string]int, 1)
		go func() { done <- workload(t, url, 8, 150) }()
		s := openWith(t, Config{URL: url, MaxBatchBytes: 500_000}, "")
		var live []onewrite.Event
		next, want := 1, -1
		var committed map[string]int
		for next <= n || want < 0 || len(live) < want {
			if want < 0 && next > n { // all of the backlog is read: wait for the writers
				committed = <-done
				want = total(committed)
				continue
			}
			for _, e := range read(t, s).Events {
				if e.Topic != "order.placed" {
					live = append(live, e)
					continue
				}
				if got := strings.TrimRight(string(e.Data), "."); got != strconv.Itoa(next) {
					t.Fatalf("event %s came, want %d", got, next)
				}
				next++
			}
		}
		verify(t, live, committed)
		nothing(t, s, conn)
	})
}

// A read holds the budget and one event at most, whatever a row weighs.
func TestByteBudget(t *testing.T) {
	each(t, func(t *testing.T, pg *servers.PG) {
		url := newOutbox(t, pg, MigrateOptions{})
		conn := dial(t, url)
		const n, row, budget = 100, 1_000_000, 3_000_000
		for range n / 2 {
			sql(t, conn, fmt.Sprintf(`INSERT INTO onewrite.outbox (topic, payload) VALUES ('t', repeat('x', %d))`, row))
			sql(t, conn, `INSERT INTO onewrite.outbox (topic, headers) SELECT 't', jsonb_object_agg('h' || i, repeat('v', 1000)) FROM generate_series(1, 60) i`)
		}
		s := openWith(t, Config{URL: url, MaxBatchBytes: budget}, "")
		seen, most := 0, 0
		for seen < n {
			size := 0
			b := read(t, s)
			for i := range b.Events {
				size += b.Events[i].Size()
			}
			for i := range s.queue.events {
				size += s.queue.events[i].Size()
			}
			most, seen = max(most, size), seen+len(b.Events)
			if seen < n && !b.More {
				t.Fatalf("%d of %d events came, and the batch does not say that there are more", seen, n)
			}
		}
		if seen != n {
			t.Fatalf("%d events, want %d", seen, n)
		}
		t.Logf("at most %d bytes at once", most)
		if most > budget+row+10_000 {
			t.Errorf("%d bytes at once; the budget is %d", most, budget)
		}
		nothing(t, s, conn)
	})
}

// A reader that is told to stop does so in the middle of a backlog, and leaves
// the outbox free for the next.
func TestStopInsideBacklog(t *testing.T) {
	each(t, func(t *testing.T, pg *servers.PG) {
		url := newOutbox(t, pg, MigrateOptions{})
		const n = 60_000
		fill(t, dial(t, url), n, 100)
		var pos onewrite.Pos
		seen := 0
		for seen < n {
			s := open(t, url, pos)
			ctx, cancel := context.WithCancel(t.Context())
			for range 9 {
				b, err := s.Read(ctx)
				if err != nil {
					t.Fatal(err)
				}
				seen, pos = seen+len(b.Events), b.Pos
				if seen >= n {
					break
				}
			}
			cancel()
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			eventually(t, "the lock is free", func() bool {
				return one[bool](t, dial(t, url), `SELECT NOT EXISTS (SELECT FROM pg_locks l JOIN pg_database d ON d.oid = l.database WHERE l.locktype = 'advisory' AND d.datname = current_database())`)
			})
		}
		if seen != n {
			t.Fatalf("%d events, want %d", seen, n)
		}
	})
}
