package postgres

import (
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/onewrite/onewrite/internal/servers"
)

// inside makes a source that stopped after the first of the three events, 1 to 3, of a
// transaction that the log told. They come in the order of their numbers; seen is the
// last one that came.
type inside struct {
	*rig
	seen int
}

func newInside(t *testing.T, pg *servers.PG) *inside {
	t.Helper()
	url := newOutbox(t, pg, pushedCapture)
	r := &inside{rig: &rig{t: t, url: url, conn: dial(t, url), cfg: Config{Name: "shop", URL: url, BusID: "bus1", Pushed: true}}}
	r.pushing()
	sql(t, r.conn, `INSERT INTO onewrite.outbox (topic, key, payload) VALUES ('a', 'k', '1'), ('a', 'k', '2'), ('a', 'k', '3')`)
	b := r.readUnstored()
	if len(b.Events) != 3 {
		t.Fatalf("%d events came of the transaction", len(b.Events))
	}
	r.seen, r.pos = 1, b.PosAt(0)
	if p, _, err := splitPlaces(r.pos); err != nil || p == nil || p.tx == 0 {
		t.Fatalf("%s is not inside a transaction, %v", r.pos, err)
	}
	_ = r.src.Close()
	r.src = nil
	return r
}

// publish publishes events by their numbers, each in a transaction of its own.
func (r *inside) publish(numbers ...int) {
	r.t.Helper()
	for _, n := range numbers {
		sql(r.t, r.conn, fmt.Sprintf(`SELECT onewrite.publish('a', 'k', '%d'::text)`, n))
	}
}

// batch reads one batch, in which the next ones have to be.
func (r *inside) batch() {
	r.t.Helper()
	for _, e := range r.read().Events {
		if r.seen++; string(e.Data) != fmt.Sprint(r.seen) {
			r.t.Fatalf("%s came, want %d", e.Data, r.seen)
		}
	}
}

// until reads up to an event.
func (r *inside) until(n int) {
	r.t.Helper()
	for r.seen < n {
		r.batch()
	}
	if r.seen > n {
		r.t.Fatalf("%d came after %d", r.seen, n)
	}
}

// hold keeps the log from being opened until it is let go.
func (r *inside) hold() (letGo func()) {
	r.t.Helper()
	conn := dial(r.t, r.url)
	sql(r.t, conn, `BEGIN`, `LOCK TABLE onewrite.log IN ACCESS EXCLUSIVE MODE`)
	return func() { sql(r.t, conn, `COMMIT`) }
}

// tooLate says that the log was not opened for too long; nil: it never is.
func (r *inside) tooLate(late chan time.Time) {
	r.src.(*Both).pushed.late = late
}

// What was told in part is told on by the log, even where it takes long to open.
func TestPushedInsideWaits(t *testing.T) {
	each(t, func(t *testing.T, pg *servers.PG) {
		r := newInside(t, pg)
		r.publish(4)
		letGo := r.hold()
		r.open()
		r.tooLate(nil)
		b := r.src.(*Both)
		if b.log.Load() != nil || b.ringFirst() {
			t.Fatal("the ring would be looked at")
		}
		eventually(t, "the log waits to be opened", func() bool {
			return one[bool](t, r.conn, `SELECT EXISTS (SELECT FROM pg_locks WHERE relation = 'onewrite.log'::regclass AND NOT granted)`)
		})
		letGo()
		r.until(4)
		r.publish(5)
		r.until(5)
	})
}

// The outbox does not wait for a log that begins elsewhere: what was told in part is told
// by the ring, from its beginning.
func TestPushedInsideLost(t *testing.T) {
	each(t, func(t *testing.T, pg *servers.PG) {
		r := newInside(t, pg)
		r.publish(4)
		writer := dial(t, r.url) // no slot is made while it is open
		sql(t, writer, `BEGIN`, `SELECT pg_current_xact_id()`)
		sql(t, r.conn, `SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE database = current_database()`)
		r.open()
		r.tooLate(nil)
		r.seen = 0
		r.until(4)
		b := r.src.(*Both)
		if b.log.Load() != nil {
			t.Fatal("the log is open")
		}
		sql(t, writer, `COMMIT`)
		eventually(t, "the log is open", func() bool { return b.log.Load() != nil })
		r.publish(5, 6)
		r.until(6)
	})
}

// A look at the ring that was begun goes on to its end when the log is opened, and after
// a restart: the log tells nothing of it again, and nothing before.
func TestPushedInsideAPage(t *testing.T) {
	for _, restart := range []bool{false, true} {
		t.Run(fmt.Sprintf("restart=%v", restart), func(t *testing.T) {
			each(t, func(t *testing.T, pg *servers.PG) {
				r := newInside(t, pg)
				for n := range 20 {
					r.publish(4 + n)
				}
				letGo := r.hold()
				r.cfg.MaxBatchBytes = 700
				r.open()
				late := make(chan time.Time, 1)
				late <- time.Now()
				r.tooLate(late)
				r.seen = 0
				r.batch()
				b := r.src.(*Both)
				if b.ring.swept() || b.log.Load() != nil {
					t.Fatal("the look is over, or the log is open")
				}
				letGo()
				if restart {
					r.open()
					b = r.src.(*Both)
				}
				eventually(t, "the log is open", func() bool { return b.log.Load() != nil })
				r.until(23)
				r.publish(24)
				r.until(24)
			})
		})
	}
}

// What was committed while the outbox was not in the publication comes from the ring, in
// its place: the log tells no more than the rest of the transaction before.
func TestPushedInsideUnpublished(t *testing.T) {
	each(t, func(t *testing.T, pg *servers.PG) {
		r := newInside(t, pg)
		publication := pgx.Identifier{publicationOf("shop")}.Sanitize()
		sql(t, r.conn, `ALTER PUBLICATION `+publication+` DROP TABLE onewrite.outbox`)
		r.publish(4)
		sql(t, r.conn, `ALTER PUBLICATION `+publication+` ADD TABLE onewrite.outbox`)
		r.publish(5, 6)
		r.open()
		r.until(6)
	})
}
