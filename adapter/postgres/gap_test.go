package postgres

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/internal/servers"
)

// missing are the changes that a damage costs: rows come, change and go.
func (f *follower) change(n int) {
	sql(f.t, f.conn, fmt.Sprintf(`INSERT INTO a SELECT 1000 * %[1]d + i, %[1]d FROM generate_series(1, 10) i`, n),
		fmt.Sprintf(`UPDATE a SET n = n + 1000 WHERE id %% 7 = %d`, n%7), fmt.Sprintf(`UPDATE b SET n = n + 1 WHERE id > %d`, n))
}

func (f *follower) slot() string {
	return one[string](f.t, f.conn, `SELECT slot FROM onewrite.log`)
}

func (f *follower) dropSlot() {
	f.t.Helper()
	eventually(f.t, "the slot is dropped", func() bool {
		_, _ = f.conn.Exec(f.t.Context(), `SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = $1 AND active`, f.slot())
		_, _ = f.conn.Exec(f.t.Context(), `SELECT pg_drop_replication_slot($1)`, f.slot())
		return one[int](f.t, f.conn, `SELECT count(*)::int FROM pg_replication_slots WHERE slot_name = $1`, f.slot()) == 0
	})
}

// Damage that costs changes of every table: the slot is made anew, and all is read
// again. Every case is met by a reader that was stopped, and holds if that is wanted.
func TestGapInTheLog(t *testing.T) {
	for _, c := range []struct {
		name, says string
		lose       func(f *follower)
	}{
		{"slot dropped", "is gone: it was dropped", func(f *follower) { f.dropSlot() }},
		{"slot made again", "moved by another than onewrite", func(f *follower) {
			f.dropSlot()
			sql(f.t, f.conn, fmt.Sprintf(`SELECT pg_create_logical_replication_slot('%s', 'pgoutput')`, f.slot()))
		}},
		{"slot advanced", "moved by another than onewrite", func(f *follower) {
			sql(f.t, f.conn, fmt.Sprintf(`SELECT pg_replication_slot_advance('%s', pg_current_wal_flush_lsn())`, f.slot()))
		}},
		{"empty bus", "the bus does not have what was read", func(f *follower) { f.pos = "" }},
		{"another bus", "the bus does not have what was read", func(f *follower) { f.pos, f.cfg.BusID = "", "bus2" }},
		{"record deleted", "the record of the slot is gone", func(f *follower) { sql(f.t, f.conn, `DELETE FROM onewrite.log`) }},
		{"record and bus lost", "the record of the slot is gone", func(f *follower) {
			sql(f.t, f.conn, `DELETE FROM onewrite.log`)
			f.pos = ""
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			each(t, func(t *testing.T, pg *servers.PG) {
				f := newFollower(t, pg)
				f.begin()
				f.close()
				f.change(1)
				sql(t, f.conn, `DELETE FROM a WHERE id IN (20, 21)`) // of which nobody hears
				c.lose(f)
				f.change(2)
				f.cfg.HoldGap = true
				f.held(c.says)
				f.change(3)
				f.cfg.HoldGap = false // as the cure says
				f.heals(c.says, `{"id":20}`, `{"id":21}`)
			})
		})
	}
}

// The slot goes while it is read.
func TestSlotDroppedWhileReading(t *testing.T) {
	for _, made := range []bool{false, true} {
		t.Run(fmt.Sprint("made again=", made), func(t *testing.T) {
			each(t, func(t *testing.T, pg *servers.PG) {
				f := newFollower(t, pg)
				f.begin()
				f.dropSlot()
				if made {
					sql(t, f.conn, fmt.Sprintf(`SELECT pg_create_logical_replication_slot('%s', 'pgoutput')`, f.slot()))
				}
				f.change(1)
				f.fails("the end of the slot")
				f.heals(map[bool]string{false: "is gone", true: "moved by another"}[made])
			})
		})
	}
}

// A gap is told until the bus has something of after it, however often the reader dies
// before; and it is not told after that.
func TestGapOfTheLogLasts(t *testing.T) {
	each(t, func(t *testing.T, pg *servers.PG) {
		f := newFollower(t, pg)
		f.begin()
		f.close()
		f.dropSlot()
		f.change(1)
		for range 3 {
			if err := f.try(); err != nil {
				t.Fatal(err)
			}
			if b := f.src.(*Both); b.gap == nil {
				t.Fatal("the gap is forgotten")
			}
			f.close()
		}
		f.heals("is gone")
	})
}

// What is no gap: a source that stops and starts, whose connections break, or that
// was idle while much else was written; and a second reader.
func TestNoGapInTheLog(t *testing.T) {
	each(t, func(t *testing.T, pg *servers.PG) {
		f := newFollower(t, pg)
		if f.src != nil || f.pos != "" {
			t.Fatal("something was read")
		}
		for range 3 { // an empty bus that had nothing yet
			if err := f.try(); err != nil || f.src.(*Both).gap != nil {
				t.Fatalf("nothing was read yet: %v", err)
			}
			f.close()
		}
		f.begin()
		for i := range 5 {
			f.change(i + 1)
			if i%2 == 0 {
				f.close()
				f.change(i + 10)
			} else {
				n := one[int](t, f.conn, `SELECT count(pg_terminate_backend(pid))::int FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()`)
				if n < 3 {
					t.Fatalf("%d connections were cut", n)
				}
				f.fails("a cut connection")
			}
			f.noGap()
			f.equal()
		}
		second := f.cfg
		if _, err := OpenSource(t.Context(), second, f.pos); !errors.Is(err, onewrite.ErrStandby) {
			t.Errorf("a second reader: %v", err)
		}
		f.change(20)
		f.noGap()
		f.equal()
		if len(f.gaps) > 0 || f.again > 0 {
			t.Errorf("%d gaps, %d events again", len(f.gaps), f.again)
		}
	})
}

// idle lets the slot move beyond what the bus has, without an event.
func (f *follower) idle() {
	f.t.Helper()
	f.until("the idle slot moves", func() bool {
		sql(f.t, f.conn, `INSERT INTO other (pad) SELECT repeat('x', 1000) FROM generate_series(1, 2000)`)
		at := "0/0"
		if p, _, err := splitPlaces(f.pos); err == nil && p != nil {
			at = p.done.String()
		}
		return one[bool](f.t, f.conn, `SELECT confirmed_flush_lsn > greatest(began, $1::text::pg_lsn) AND idle >= confirmed_flush_lsn FROM onewrite.log JOIN pg_replication_slots ON slot = slot_name`, at)
	})
}

// Behind a backlog nothing more is written: the server may forget it all the same.
func TestIdleSlotForgets(t *testing.T) {
	eachAlone(t, []servers.Option{servers.NoSync(), servers.Set("wal_sender_timeout", "2s")}, func(t *testing.T, pg *servers.PG) { // where nobody else writes
		f := newFollower(t, pg)
		f.begin()
		sql(t, f.conn, `WITH much AS (INSERT INTO other (pad) SELECT repeat('x', 1000) FROM generate_series(1, 20000)) INSERT INTO a VALUES (1000, 0)`, `INSERT INTO other (pad) VALUES ('a little')`)
		f.until("the slot moves past what nobody reads", func() bool {
			return one[bool](t, f.conn, `SELECT idle > began AND confirmed_flush_lsn >= idle FROM onewrite.log JOIN pg_replication_slots ON slot = slot_name`)
		})
		sql(t, f.conn, `CHECKPOINT`) // the server notes what is running only now
		at := one[string](t, f.conn, `SELECT redo_lsn::text FROM pg_control_checkpoint()`)
		f.until("the slot lets go of the backlog", func() bool {
			return one[bool](t, f.conn, `SELECT restart_lsn >= $1::text::pg_lsn FROM pg_replication_slots`, at)
		})
		f.noGap()
		f.equal()
	})
}

// An idle slot moves beyond what the bus has. That is no gap, unless the bus is one
// that does not have what was read before.
func TestIdleSlotMoves(t *testing.T) {
	each(t, func(t *testing.T, pg *servers.PG) {
		f := newFollower(t, pg)
		sql(t, f.conn, `DELETE FROM a`, `DELETE FROM b`)
		if err := f.try(); err != nil {
			t.Fatal(err)
		}
		f.idle() // nothing was read yet, so an empty bus is no gap
		if f.pos != "" || len(f.kinds) > 0 {
			t.Fatalf("events came: %v", f.kinds)
		}
		f.noGap()
		f.change(1)
		f.settle()
		older := f.pos
		f.change(2)
		f.settle()
		f.idle()
		f.noGap()
		f.equal()
		for name, pos := range map[string]onewrite.Pos{"an older copy of the bus": older, "an empty bus": ""} {
			f.idle()
			f.close()
			f.cfg.HoldGap = true
			newest := f.pos
			f.pos = pos
			if err := f.try(); err == nil {
				t.Fatalf("%s is no gap", name)
			}
			f.cfg.HoldGap, f.pos = false, newest
			f.noGap()
		}
		if len(f.gaps) > 0 {
			t.Errorf("gaps: %v", f.gaps)
		}
	})
}

// A slot that is gone can be made anew only when the transactions that are open have
// ended. The gap is told before, once, and the outbox is read meanwhile.
func TestGapIsToldBeforeTheSlotIsMade(t *testing.T) {
	each(t, func(t *testing.T, pg *servers.PG) {
		f := newFollower(t, pg)
		f.begin()
		f.close()
		eventually(t, "the slot is not read", func() bool {
			return one[bool](t, f.conn, `SELECT NOT active FROM pg_replication_slots WHERE database = current_database()`)
		})
		sql(t, f.conn, `SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE database = current_database()`)
		f.change(1)
		was := one[int](t, f.conn, `SELECT max(wanted) FROM onewrite.captured`)
		open := dial(t, f.url)
		sql(t, open, `BEGIN`, `INSERT INTO other (pad) VALUES ('open')`)
		if err := f.try(); err != nil {
			t.Fatal(err)
		}
		f.until("the gap is told", func() bool { return len(f.gaps) > 0 })
		sql(t, f.conn, `INSERT INTO onewrite.outbox (topic, payload) VALUES ('order.placed', '{}')`)
		f.state["order.placed"] = replica{}
		f.until("the outbox is read", func() bool { return f.kinds["order.placed order.placed"] > 0 })
		if one[bool](t, f.conn, `SELECT EXISTS (SELECT FROM pg_replication_slots WHERE database = current_database() AND confirmed_flush_lsn IS NOT NULL)`) {
			t.Error("the slot did not wait: nothing is proven")
		}
		sql(t, open, `COMMIT`)
		f.until("the slot is made", func() bool { return one[bool](t, f.conn, `SELECT min(wanted) > $1 FROM onewrite.captured`, was) })
		f.settle()
		f.equal(f.lingering()...)
		if len(f.gaps) != 1 || !strings.Contains(f.gaps[0].Reason, "is gone") {
			t.Errorf("gaps: %v", f.gaps)
		}
	})
}
