package postgres

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/internal/servers"
	"github.com/onewrite/onewrite/outbox"
)

// arrivals reads in the background and says when each event came, by payload.
func arrivals(t *testing.T, s *Source) (wait func(payload string, within time.Duration) (time.Time, bool)) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	var mu sync.Mutex
	came := map[string]time.Time{}
	news := make(chan struct{}, 1)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			b, err := s.Read(ctx)
			if err != nil {
				if ctx.Err() == nil {
					t.Errorf("read: %v", err)
				}
				return
			}
			now := time.Now()
			mu.Lock()
			for _, e := range b.Events {
				came[string(e.Data)] = now
			}
			mu.Unlock()
			select {
			case news <- struct{}{}:
			default:
			}
		}
	}()
	t.Cleanup(func() { cancel(); <-done })
	return func(payload string, within time.Duration) (time.Time, bool) {
		deadline := time.After(within)
		for {
			mu.Lock()
			at, ok := came[payload]
			mu.Unlock()
			if ok {
				return at, true
			}
			select {
			case <-news:
			case <-deadline:
				return time.Time{}, false
			}
		}
	}
}

// asleep waits until the register says that writers have to wake the reader.
func asleep(t *testing.T, conn *pgx.Conn) {
	t.Helper()
	eventually(t, "the reader sleeps", func() bool {
		return one[int](t, conn, `SELECT last_value::int FROM onewrite.asleep`) == 2
	})
}

// late is what no wake-up may take. The belt, which would find the event of a
// lost one, is off in these tests: late or never.
const late = 20 * time.Second

// unbelted opens a source that rests until something wakes it.
func unbelted(t *testing.T, url string) *Source {
	t.Helper()
	s := open(t, url, "")
	s.nap.belt = time.Hour
	return s
}

// summary sorts delays and says what they are.
func summary(delays []time.Duration) string {
	slices.Sort(delays)
	n := len(delays)
	return fmt.Sprintf("%d wake-ups: p50 %v, p99 %v, max %v", n, delays[n/2], delays[n*99/100], delays[n-1])
}

// Plain SQL of another program wakes the reader, wherever it is on its way to
// sleep: the pauses sweep over the moment when it lies down.
func TestNoWakeUpIsLost(t *testing.T) {
	eachAsleep(t, func(t *testing.T, pg *servers.PG) {
		url := newOutbox(t, pg, MigrateOptions{})
		wait := arrivals(t, unbelted(t, url))
		conn := dial(t, url)
		asleep(t, conn)
		const n = 300
		var delays []time.Duration
		for i := range n {
			payload := fmt.Sprint(i)
			time.Sleep(time.Duration(i%30) * 1500 * time.Microsecond) // the subject of the test, not synchronisation
			sql(t, conn, `INSERT INTO onewrite.outbox (topic, payload) VALUES ('t', '`+payload+`')`)
			start := time.Now()
			at, ok := wait(payload, late)
			if !ok {
				t.Fatalf("the wake-up of event %d was lost", i)
			}
			delays = append(delays, max(0, at.Sub(start)))
		}
		t.Log(summary(delays))
	})
}

// A transaction that inserts before the reader lies down looks at the register
// too early, pays no NOTIFY, and commits when the reader sleeps.
func TestCommitAfterTheReaderFellAsleep(t *testing.T) {
	eachAsleep(t, func(t *testing.T, pg *servers.PG) {
		url := newOutbox(t, pg, MigrateOptions{})
		wait := arrivals(t, unbelted(t, url))
		conn, other := dial(t, url), dial(t, url)
		const n = 40
		var delays []time.Duration
		for i := range n {
			early := false
			for try := 0; !early; try++ {
				// Events that come thick keep the reader awake.
				for k := range 8 {
					payload := fmt.Sprint("thick", i, try, k)
					sql(t, other, `INSERT INTO onewrite.outbox (topic, payload) VALUES ('t', '`+payload+`')`)
					if _, ok := wait(payload, patience); !ok {
						t.Fatal("nothing came")
					}
				}
				sql(t, conn, `BEGIN`, fmt.Sprintf(`INSERT INTO onewrite.outbox (topic, payload) VALUES ('t', 'late%d.%d')`, i, try))
				if early = one[int](t, other, `SELECT last_value::int FROM onewrite.asleep`) == 1; !early {
					sql(t, conn, `ROLLBACK`)
				}
				if early {
					delays = append(delays, commitLate(t, conn, other, fmt.Sprintf("late%d.%d", i, try), i, wait))
				}
			}
		}
		t.Log(summary(delays))
	})
}

// commitLate commits some time after the reader fell asleep, and says how long
// the event took.
func commitLate(t *testing.T, conn, other *pgx.Conn, payload string, i int, wait func(string, time.Duration) (time.Time, bool)) time.Duration {
	t.Helper()
	asleep(t, other)
	time.Sleep(time.Duration(i%12) * 10 * time.Millisecond) // the subject of the test
	sql(t, conn, `COMMIT`)
	start := time.Now()
	at, ok := wait(payload, late)
	if !ok {
		t.Fatalf("the wake-up of %s was lost", payload)
	}
	return max(0, at.Sub(start))
}

// The reader that comes after one that died asleep or awake trusts no register.
func TestFirstSleepAfterOpen(t *testing.T) {
	eachAsleep(t, func(t *testing.T, pg *servers.PG) {
		url := newOutbox(t, pg, MigrateOptions{})
		conn := dial(t, url)
		for _, left := range []int{1, 2} {
			sql(t, conn, fmt.Sprintf(`SELECT setval('onewrite.asleep', %d)`, left), `INSERT INTO onewrite.outbox (topic, payload) VALUES ('t', 'there before')`)
			s := unbelted(t, url)
			t.Run(fmt.Sprint(left), func(t *testing.T) {
				wait := arrivals(t, s)
				if _, ok := wait("there before", patience); !ok {
					t.Fatal("nothing came")
				}
				for i := range 5 {
					time.Sleep(150 * time.Millisecond) // long enough to fall asleep
					payload := fmt.Sprint(left, i)
					sql(t, conn, `INSERT INTO onewrite.outbox (topic, payload) VALUES ('t', '`+payload+`')`)
					if _, ok := wait(payload, late); !ok {
						t.Fatalf("the wake-up of event %d was lost", i)
					}
				}
			})
			_ = s.Close()
		}
	})
}

// The bell of the same process wakes without NOTIFY.
func TestBellWakes(t *testing.T) {
	eachAsleep(t, func(t *testing.T, pg *servers.PG) {
		url := newOutbox(t, pg, MigrateOptions{})
		conn := dial(t, url)
		sql(t, conn, `ALTER TABLE onewrite.outbox DISABLE TRIGGER wake`)
		wait := arrivals(t, unbelted(t, url))
		var delays []time.Duration
		for i := range 40 {
			time.Sleep(70 * time.Millisecond) // long enough to fall asleep
			sql(t, conn, fmt.Sprintf(`INSERT INTO onewrite.outbox (topic, payload) VALUES ('t', '%d')`, i))
			start := time.Now()
			outbox.Ring()
			at, ok := wait(fmt.Sprint(i), late)
			if !ok {
				t.Fatalf("bell %d was not heard", i)
			}
			delays = append(delays, max(0, at.Sub(start)))
		}
		t.Log(summary(delays))
	})
}

// The belt: even an insert that rang nothing is found after a second.
func TestBelt(t *testing.T) {
	eachAsleep(t, func(t *testing.T, pg *servers.PG) {
		url := newOutbox(t, pg, MigrateOptions{})
		conn := dial(t, url)
		sql(t, conn, `ALTER TABLE onewrite.outbox DISABLE TRIGGER wake`)
		wait := arrivals(t, open(t, url, ""))
		asleep(t, conn)
		sql(t, conn, `INSERT INTO onewrite.outbox (topic, payload) VALUES ('t', 'x')`)
		if _, ok := wait("x", late); !ok {
			t.Fatal("not found")
		}
	})
}

// An idle reader asks little, also with an unrelated write transaction open.
func TestIdleIsQuiet(t *testing.T) {
	eachAsleep(t, func(t *testing.T, pg *servers.PG) {
		url := newOutbox(t, pg, MigrateOptions{})
		conn, long := dial(t, url), dial(t, url)
		s := open(t, url, "")
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { _, err := s.Read(ctx); done <- err }()
		asleep(t, conn)
		count := func() int { // transactions of the database in 5 s, less our own two
			sql(t, conn, `SELECT pg_stat_clear_snapshot()`)
			return one[int](t, conn, `SELECT pg_stat_get_db_xact_commit(oid)::int FROM pg_database WHERE datname = current_database()`)
		}
		time.Sleep(1500 * time.Millisecond) // the subject of the test is time
		before := count()
		time.Sleep(5 * time.Second)
		if n := count() - before; n > 25 { // autovacuum comes by, too
			t.Errorf("%d transactions in 5 s of idleness", n)
		} else {
			t.Logf("%d transactions in 5 s of idleness", n)
		}
		sql(t, long, `BEGIN`, `SELECT pg_current_xact_id()`)
		before = count()
		time.Sleep(3 * time.Second)
		if n := count() - before; n > 25 { // autovacuum comes by, too
			t.Errorf("%d transactions in 3 s with an open transaction that began while asleep", n)
		}
		cancel()
		if err := <-done; err == nil || ctx.Err() == nil {
			t.Errorf("read: %v", err)
		}
	})
}

// Read ends soon after ctx does, with the source to be closed.
func TestReadEndsWithContext(t *testing.T) {
	each(t, func(t *testing.T, pg *servers.PG) {
		url := newOutbox(t, pg, MigrateOptions{})
		s := open(t, url, "")
		for _, after := range []time.Duration{0, 3 * time.Millisecond, 80 * time.Millisecond, 300 * time.Millisecond} {
			ctx, cancel := context.WithTimeout(t.Context(), after)
			start := time.Now()
			b, err := s.Read(ctx)
			cancel()
			if err == nil || len(b.Events) > 0 || time.Since(start) > after+5*time.Second {
				t.Errorf("after %v: %v, %v, %d events", after, err, time.Since(start), len(b.Events))
			}
			if s.conn.IsClosed() {
				s = open(t, url, onewrite.Pos(""))
			}
		}
	})
}
