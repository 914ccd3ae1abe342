package postgres

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/internal/servers"
)

// usedLeaves is how many leaves hold anything.
const usedLeaves = `SELECT count(*)::int FROM generate_series(0, 7) i WHERE pg_relation_size(('onewrite.outbox_' || i)::regclass) > 0`

// idle keeps reading in the background until the test ends.
func idle(t *testing.T, s *Source) {
	t.Helper()
	_, stop := drain(t, s, false)
	t.Cleanup(func() { stop() })
}

func TestRingIsEmptySoonAfterAck(t *testing.T) {
	each(t, func(t *testing.T, pg *servers.PG) {
		url := newOutbox(t, pg, MigrateOptions{})
		conn := dial(t, url)
		const n = 20_000
		fill(t, conn, n, 100)
		s := open(t, url, "")
		count, pos, stop := drainPos(t, s, false)
		defer stop()
		eventually(t, "all is read", func() bool { return count() == n })
		time.Sleep(6 * time.Second) // nothing acknowledged: nothing may go
		if left := one[int](t, conn, `SELECT count(*)::int FROM onewrite.outbox`); left != n {
			t.Fatalf("%d rows are left of %d that nobody acknowledged", left, n)
		}
		empty := func(what string) {
			t.Helper()
			start := time.Now()
			if err := s.Ack(t.Context(), pos()); err != nil {
				t.Fatal(err)
			}
			eventually(t, "the ring is empty after "+what, func() bool { return one[int64](t, conn, ringBytes) == 0 })
			t.Logf("empty %v after the acknowledgement of %s", time.Since(start).Round(time.Millisecond), what)
		}
		empty("a backlog")
		sql(t, conn, `INSERT INTO onewrite.outbox (topic) VALUES ('t')`)
		eventually(t, "the row is read", func() bool { return count() == n+1 })
		empty("a lonely row")
	})
}

// Only what is acknowledged goes: at a place in the middle, the rest stays.
func TestRingKeepsTheRest(t *testing.T) {
	each(t, func(t *testing.T, pg *servers.PG) {
		url := newOutbox(t, pg, MigrateOptions{})
		conn := dial(t, url)
		const n, first = 6000, 4000 // 2000 in each of three leaves
		for slot := range 3 {
			sql(t, conn, fmt.Sprintf(`SELECT setval('onewrite.slot', %d)`, slot))
			fill(t, conn, n/3, 100)
		}
		sql(t, conn, `SELECT setval('onewrite.slot', 3)`)
		s := open(t, url, "")
		var places []onewrite.Pos
		for len(places) < n {
			b := read(t, s)
			for i := range b.Events {
				places = append(places, b.PosAt(i))
			}
		}
		idle(t, s)
		rows := func() int { return one[int](t, conn, `SELECT count(*)::int FROM onewrite.outbox`) }
		// All but the last row of the second leaf: the leaf has to stay.
		if err := s.Ack(t.Context(), places[first-2]); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the first leaf is empty", func() bool { return rows() == n-n/3 })
		time.Sleep(1500 * time.Millisecond)
		if left := rows(); left != n-n/3 {
			t.Fatalf("%d rows are left, want the %d of the leaves that are not all acknowledged", left, n-n/3)
		}
		_ = s.Ack(t.Context(), places[first-1])
		eventually(t, "the second leaf is empty", func() bool { return rows() == n-first })
		_ = s.Ack(t.Context(), places[n-1])
		eventually(t, "all is gone", func() bool { return rows() == 0 })
	})
}

// load inserts at about rate events a second until stop.
func load(t *testing.T, url string, rate int) (count *atomic.Int64, stop func()) {
	t.Helper()
	const writers, rows = 4, 20
	count = &atomic.Int64{}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for range writers {
		conn := dial(t, url)
		wg.Go(func() {
			tick := time.NewTicker(time.Second * writers * rows / time.Duration(rate))
			defer tick.Stop()
			for ctx.Err() == nil {
				if _, err := conn.Exec(t.Context(), fmt.Sprintf(`INSERT INTO onewrite.outbox (topic, key, payload) SELECT 't', i, repeat('x', 200) FROM generate_series(1, %d) i`, rows)); err != nil {
					t.Errorf("insert: %v", err)
					return
				}
				count.Add(rows)
				select {
				case <-ctx.Done():
				case <-tick.C:
				}
			}
		})
	}
	return count, func() { cancel(); wg.Wait() }
}

func TestRingStaysSmallUnderLoad(t *testing.T) {
	each(t, func(t *testing.T, pg *servers.PG) {
		url := newOutbox(t, pg, MigrateOptions{})
		conn, snap, long := dial(t, url), dial(t, url), dial(t, url)
		sql(t, conn, `CREATE TABLE other (x int)`)
		sql(t, snap, `BEGIN ISOLATION LEVEL REPEATABLE READ`, `SELECT count(*) FROM other`)
		sql(t, long, `BEGIN`, `INSERT INTO other VALUES (1)`)
		s := open(t, url, "")
		read, stopReading := drain(t, s, true)
		written, stop := load(t, url, 10_000)
		most, behind := int64(0), int64(0)
		for end := time.Now().Add(15 * time.Second); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
			most = max(most, one[int64](t, conn, ringBytes))
			behind = max(behind, written.Load()-int64(read()))
		}
		stop()
		n := int(written.Load())
		eventually(t, "all is read", func() bool { return read() >= n })
		sql(t, conn, `SELECT pg_stat_clear_snapshot()`)
		dead := one[int64](t, conn, `SELECT sum(n_dead_tup)::bigint FROM pg_stat_user_tables WHERE schemaname = 'onewrite'`)
		eventually(t, "the ring is empty", func() bool { return one[int64](t, conn, ringBytes) == 0 })
		if got := len(stopReading()); got != n {
			t.Errorf("%d events came of %d", got, n)
		}
		t.Logf("%d events, ring at most %d KB, reader at most %d behind, %d dead rows", n, most>>10, behind, dead)
		if most > 24<<20 || dead != 0 {
			t.Errorf("the ring grew to %d KB, %d dead rows", most>>10, dead)
		}
		if n < 60_000 {
			t.Logf("the machine is busy: only %d events", n)
		}
	})
}

// A leaf that an open transaction pins is passed over; the others go round.
func TestPinnedLeafIsPassedOver(t *testing.T) {
	each(t, func(t *testing.T, pg *servers.PG) {
		url := newOutbox(t, pg, MigrateOptions{})
		conn, pin := dial(t, url), dial(t, url)
		s := open(t, url, "")
		read, stopReading := drain(t, s, true)
		slot := func() int { return one[int](t, conn, `SELECT last_value::int FROM onewrite.slot`) }
		sql(t, pin, `BEGIN`, `INSERT INTO onewrite.outbox (topic, payload) VALUES ('pinned', 'x')`)
		pinned := slot()
		n := 1
		visited := map[int]bool{}
		heavy := `INSERT INTO onewrite.outbox (topic, payload) SELECT 't', string_agg(md5(random()::text), '') FROM generate_series(1, 2000) i, generate_series(1, 20) j GROUP BY j`
		eventually(t, "inserts went round the ring twice", func() bool {
			before := slot()
			for range 8 {
				sql(t, conn, heavy)
				n += 20
			}
			eventually(t, "inserts go on to another leaf", func() bool { return slot() != before })
			now := slot()
			if now == pinned {
				t.Fatalf("inserts go to leaf %d, which is pinned", now)
			}
			if visited[now] && len(visited) == leaves-1 {
				return true
			}
			visited[now] = true
			return false
		})
		if n := one[int](t, conn, usedLeaves); n > 5 {
			t.Errorf("%d leaves are in use: the others are not emptied", n)
		}
		sql(t, pin, `COMMIT`)
		eventually(t, "all is read and gone", func() bool { return read() == n && one[int64](t, conn, ringBytes) == 0 })
		seen := 0
		for _, e := range stopReading() {
			if e.Topic == "pinned" {
				seen++
			}
		}
		if seen != 1 {
			t.Errorf("the late event came %d times", seen)
		}
	})
}

// With every leaf in use nothing is lost: inserts stay where they are.
func TestFullRing(t *testing.T) {
	each(t, func(t *testing.T, pg *servers.PG) {
		url := newOutbox(t, pg, MigrateOptions{})
		conn := dial(t, url)
		s := open(t, url, "")
		read, _ := drain(t, s, false)
		n := 0
		heavy := `INSERT INTO onewrite.outbox (topic, payload) SELECT 't', string_agg(md5(random()::text), '') FROM generate_series(1, 2000) i, generate_series(1, 20) j GROUP BY j`
		eventually(t, "every leaf is in use", func() bool {
			before := one[int](t, conn, usedLeaves)
			for range 8 {
				sql(t, conn, heavy)
				n += 20
			}
			eventually(t, "it is read", func() bool { return read() == n })
			if before < leaves {
				eventually(t, "a leaf more", func() bool {
					sql(t, conn, `INSERT INTO onewrite.outbox (topic) VALUES ('small')`)
					n++
					return one[int](t, conn, usedLeaves) > before || before == leaves
				})
			}
			return one[int](t, conn, usedLeaves) == leaves
		})
		for range 5 {
			sql(t, conn, heavy)
			n += 20
		}
		eventually(t, "it is read", func() bool { return read() == n })
		if rows := one[int](t, conn, `SELECT count(*)::int FROM onewrite.outbox`); rows != n {
			t.Fatalf("%d rows are left of %d not acknowledged", rows, n)
		}
	})
}

// Rows that were rolled back take room too, and are given back.
func TestRolledBackRowsAreReclaimed(t *testing.T) {
	each(t, func(t *testing.T, pg *servers.PG) {
		url := newOutbox(t, pg, MigrateOptions{})
		conn := dial(t, url)
		s := open(t, url, "")
		sql(t, conn, `INSERT INTO onewrite.outbox (topic) VALUES ('t')`)
		_, pos := readN(t, s, 1)
		_ = s.Ack(t.Context(), pos)
		idle(t, s)
		eventually(t, "the ring is empty", func() bool { return one[int64](t, conn, ringBytes) == 0 })
		_, err := conn.Exec(t.Context(), `BEGIN; INSERT INTO onewrite.outbox (topic, payload) SELECT 't', repeat('x', 100) FROM generate_series(1, 10000); ROLLBACK`, pgx.QueryExecModeSimpleProtocol)
		if err != nil {
			t.Fatal(err)
		}
		eventually(t, "the ring is empty again", func() bool { return one[int64](t, conn, ringBytes) == 0 })
	})
}
