package postgres

import (
	"fmt"
	"testing"
	"time"

	"github.com/onewrite/onewrite/internal/servers"
)

// Where two-phase commit is on, an event never makes PREPARE TRANSACTION fail,
// however deep the reader sleeps, and comes when the transaction is committed.
func TestPreparedTransactions(t *testing.T) {
	each(t, func(t *testing.T, pg *servers.PG) {
		url := newOutbox(t, pg, MigrateOptions{})
		conn, app := dial(t, url), dial(t, url)
		sql(t, conn, `SELECT setval('onewrite.asleep', 2)`) // left by a reader of before two-phase commit was turned on
		gid := one[string](t, conn, `SELECT current_database()`)
		prepare := func(i int) {
			sql(t, app, `BEGIN`, fmt.Sprintf(`INSERT INTO onewrite.outbox (topic, payload) VALUES ('t', '%d')`, i), fmt.Sprintf(`PREPARE TRANSACTION '%s%d'`, gid, i))
		}
		prepare(0)
		wait := arrivals(t, unbelted(t, url))
		for i := 1; i <= 6; i++ {
			time.Sleep(time.Duration(i) * 100 * time.Millisecond) // the subject of the test
			prepare(i)
			if i%3 == 0 {
				sql(t, app, fmt.Sprintf(`ROLLBACK PREPARED '%s%d'`, gid, i))
				continue
			}
			time.Sleep(50 * time.Millisecond)
			sql(t, app, fmt.Sprintf(`COMMIT PREPARED '%s%d'`, gid, i))
			if _, ok := wait(fmt.Sprint(i), late); !ok {
				t.Fatalf("event %d never came", i)
			}
		}
		sql(t, app, fmt.Sprintf(`COMMIT PREPARED '%s0'`, gid))
		if _, ok := wait("0", late); !ok {
			t.Fatal("the first event never came")
		}
	})
}

// Without NOTIFY the reader looks by itself at the last number given out, and
// not only when the belt is due.
func TestDozing(t *testing.T) {
	each(t, func(t *testing.T, pg *servers.PG) {
		url := newOutbox(t, pg, MigrateOptions{})
		wait := arrivals(t, unbelted(t, url))
		conn := dial(t, url)
		var delays []time.Duration
		for i := range 60 {
			time.Sleep(time.Duration(40+i*3) * time.Millisecond) // the subject of the test
			sql(t, conn, fmt.Sprintf(`INSERT INTO onewrite.outbox (topic, payload) VALUES ('t', '%d')`, i))
			start := time.Now()
			at, ok := wait(fmt.Sprint(i), late)
			if !ok {
				t.Fatalf("event %d never came", i)
			}
			delays = append(delays, max(0, at.Sub(start)))
		}
		t.Log(summary(delays))
	})
}

// A transaction that took its number long before it commits is waited for.
func TestDozingBesideALateCommit(t *testing.T) {
	each(t, func(t *testing.T, pg *servers.PG) {
		url := newOutbox(t, pg, MigrateOptions{})
		wait := arrivals(t, unbelted(t, url))
		conn := dial(t, url)
		for i := range 8 {
			sql(t, conn, `BEGIN`, fmt.Sprintf(`INSERT INTO onewrite.outbox (topic, payload) VALUES ('t', '%d')`, i))
			time.Sleep(time.Duration(i) * 60 * time.Millisecond) // the subject of the test
			sql(t, conn, `COMMIT`)
			if _, ok := wait(fmt.Sprint(i), late); !ok {
				t.Fatalf("event %d never came", i)
			}
		}
	})
}
