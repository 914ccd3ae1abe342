package postgres

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"pgregory.net/rapid"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/internal/servers"
)

const (
	takeOut = `ALTER PUBLICATION onewrite_shop DROP TABLE onewrite.outbox`
	putIn   = `ALTER PUBLICATION onewrite_shop ADD TABLE ONLY onewrite.outbox`
)

// publishNumbers publishes numbers under one key.
func publishNumbers(t *testing.T, conn *pgx.Conn, list ...int) {
	t.Helper()
	for _, n := range list {
		sql(t, conn, fmt.Sprintf(`SELECT onewrite.publish('a', 'k', '%d'::text)`, n))
	}
}

// numbers reads until n of them have come; what fails is opened again.
func (r *rig) numbers(n int) (came []string) {
	r.t.Helper()
	eventually(r.t, "what was published", func() bool {
		ctx, cancel := context.WithTimeout(r.t.Context(), patience) // one that ends breaks the session
		defer cancel()
		b, err := r.src.Read(ctx)
		if err != nil {
			if ctx.Err() == nil {
				r.open()
			}
			return false
		}
		for _, e := range b.Events {
			if e.Topic == "a" {
				came = append(came, string(e.Data))
			}
		}
		if b.Pos != "" {
			r.pos = b.Pos
			r.stored()
		}
		return len(came) >= n
	})
	return came
}

// openedAgain reads, with nothing to be read, until the source has noticed that the
// publication is another one, and reads the log again.
func (r *rig) openedAgain() {
	r.t.Helper()
	old := r.src
	eventually(r.t, "it is opened again", func() bool {
		ctx, cancel := context.WithTimeout(r.t.Context(), 700*time.Millisecond)
		defer cancel()
		if _, err := r.src.Read(ctx); err != nil && (ctx.Err() == nil || r.broken()) {
			r.open()
		}
		return r.src != old && r.src.(*Both).pushed.since > 0
	})
}

// broken reports whether a Read was ended in the middle of a query.
func (r *rig) broken() bool {
	ring := r.src.(*Both).ring
	ring.session.Lock()
	defer ring.session.Unlock()
	return ring.conn.IsClosed()
}

func (r *rig) stored() {
	if b, is := r.src.(*Both); is {
		b.Stored(r.pos)
	}
}

// What the log tells of the outbox may change while a transaction is open, or for a moment:
// its events come all the same, once and in their order.
func TestPushedWhileThePublicationChanges(t *testing.T) {
	for name, steps := range map[string]func(t *testing.T, r *rig, app *pgx.Conn){
		"put in while a transaction is open": func(t *testing.T, r *rig, app *pgx.Conn) {
			_ = r.src.Close()
			sql(t, r.conn, takeOut)
			r.src = nil
			r.open()
			for b := r.src.(*Both); b.log.Load() == nil || b.ring.looks <= b.pushed.looks+1; {
				sql(t, r.conn, `SELECT onewrite.publish('mark', 'k', 'mark'::text)`)
				r.read()
			}
			sql(t, app, `BEGIN`)
			publishNumbers(t, app, 1)
			sql(t, r.conn, putIn)
			publishNumbers(t, app, 2)
			// It is noticed before the transaction ends. Nothing else is published meanwhile: a
			// server that has told rows since then tells all of the transaction.
			r.openedAgain()
			sql(t, app, `COMMIT`)
			publishNumbers(t, app, 3)
		},
		"taken out in the middle of one": func(t *testing.T, r *rig, app *pgx.Conn) {
			sql(t, app, `BEGIN`)
			publishNumbers(t, app, 1)
			sql(t, r.conn, takeOut)
			publishNumbers(t, app, 2)
			sql(t, app, `COMMIT`)
			publishNumbers(t, app, 3)
			r.src.(*Both).pushed.timer.Reset(time.Second)
		},
		"out and in in the middle of one": func(t *testing.T, r *rig, app *pgx.Conn) {
			sql(t, app, `BEGIN`)
			publishNumbers(t, app, 1)
			sql(t, r.conn, takeOut)
			publishNumbers(t, app, 2)
			sql(t, r.conn, putIn)
			publishNumbers(t, app, 3)
			sql(t, app, `COMMIT`)
		},
		"out and in between two": func(t *testing.T, r *rig, app *pgx.Conn) {
			publishNumbers(t, app, 1)
			sql(t, r.conn, takeOut)
			publishNumbers(t, app, 2)
			sql(t, r.conn, putIn)
			publishNumbers(t, app, 3)
		},
		"no inserts are published for a moment": func(t *testing.T, r *rig, app *pgx.Conn) {
			publishNumbers(t, app, 1)
			sql(t, r.conn, `ALTER PUBLICATION onewrite_shop SET (publish = 'update')`)
			publishNumbers(t, app, 2)
			sql(t, r.conn, `ALTER PUBLICATION onewrite_shop SET (publish = 'insert, update, delete, truncate')`)
			publishNumbers(t, app, 3)
		},
		"a condition": func(t *testing.T, r *rig, app *pgx.Conn) {
			sql(t, r.conn, `ALTER PUBLICATION onewrite_shop SET TABLE onewrite.outbox WHERE (payload <> '2')`)
			r.openedAgain()
			sql(t, r.conn, `BEGIN`)
			publishNumbers(t, r.conn, 1, 2, 3)
			sql(t, r.conn, `COMMIT`)
		},
	} {
		t.Run(name, func(t *testing.T) {
			each(t, func(t *testing.T, pg *servers.PG) {
				url := newOutbox(t, pg, pushedCapture)
				r := &rig{t: t, url: url, conn: dial(t, url), cfg: Config{Name: "shop", URL: url, BusID: "bus1", Pushed: true}}
				r.pushing()
				steps(t, r, dial(t, url))
				if came := r.numbers(3); !slices.Equal(came, []string{"1", "2", "3"}) {
					t.Errorf("%q came", came)
				}
			})
		})
	}
}

// A row that was loaded has the number of a transaction that is to come, as of a cluster
// that is in use for longer: the ring has it, and the place does not name all between.
func TestPushedNumberOfAnotherTransaction(t *testing.T) {
	each(t, func(t *testing.T, pg *servers.PG) {
		url := newOutbox(t, pg, pushedCapture)
		r := &rig{t: t, url: url, conn: dial(t, url), cfg: Config{Name: "shop", URL: url, BusID: "bus1", Pushed: true}}
		r.pushing()
		publishNumbers(t, r.conn, 1)
		sql(t, r.conn, `INSERT INTO onewrite.outbox (xid, topic, key, payload) VALUES ('20000000', 'a', 'k', '2')`)
		r.src.(*Both).pushed.timer.Reset(time.Second)
		if came := r.numbers(2); !slices.Equal(came, []string{"1", "2"}) || len(r.pos) > 1000 {
			t.Errorf("%q came, with a position of %d bytes", came, len(r.pos))
		}
	})
}

// What the log did not tell of a transaction is found at the next look, and nothing of it
// comes twice.
func TestPushedInPart(t *testing.T) {
	each(t, func(t *testing.T, pg *servers.PG) {
		url := newOutbox(t, pg, pushedCapture)
		var said logs
		r := &rig{t: t, url: url, conn: dial(t, url), cfg: Config{Name: "shop", URL: url, BusID: "bus1", Pushed: true, Logger: said.logger()}}
		r.pushing()
		publishNumbers(t, r.conn, 1, 2)
		if came := r.numbers(2); !slices.Equal(came, []string{"1", "2"}) {
			t.Fatalf("%q came", came)
		}
		sql(t, r.conn, oneMore("2", "3"))
		r.src.(*Both).pushed.timer.Reset(time.Millisecond)
		if came := r.numbers(1); !slices.Equal(came, []string{"3"}) || !strings.Contains(said.String(), "events of transactions and not others: was") {
			t.Errorf("%q came, and it says\n%s", came, said.String())
		}
		publishNumbers(t, r.conn, 4)
		if came := r.numbers(1); !slices.Equal(came, []string{"4"}) || len(r.src.(*Both).ring.proof.told) != 1 {
			t.Errorf("%q came, %v are not proven", came, r.src.(*Both).ring.proof.told)
		}
		// Rows that somebody deletes were told all the same.
		sql(t, r.conn, takeOut, `DELETE FROM onewrite.outbox WHERE payload IN ('2', '4')`, putIn)
		publishNumbers(t, r.conn, 5)
		if came := r.numbers(1); !slices.Equal(came, []string{"5"}) {
			t.Errorf("%q came", came)
		}
	})
}

// oneMore is one more row of the transaction that has written one, as it were.
func oneMore(of, payload string) string {
	return fmt.Sprintf(`INSERT INTO onewrite.outbox (xid, topic, key, payload) SELECT xid, topic, key, '%s' FROM onewrite.outbox WHERE payload = '%s'`, payload, of)
}

// A transaction that was told in part is known as such over a restart, with either setting,
// and is not truncated before. One that was told to its end does not come again.
func TestPushedInPartBeforeARestart(t *testing.T) {
	for _, pushed := range []bool{true, false} {
		t.Run(fmt.Sprint("pushed ", pushed), func(t *testing.T) {
			each(t, func(t *testing.T, pg *servers.PG) {
				url := newOutbox(t, pg, pushedCapture)
				var said logs
				r := &rig{t: t, url: url, conn: dial(t, url), cfg: Config{Name: "shop", URL: url, BusID: "bus1", Pushed: true, Logger: said.logger()}}
				r.pushing()
				publishNumbers(t, r.conn, 1)
				if came := r.numbers(1); came[0] != "1" || !strings.Contains(string(r.pos), "/"+claimMark) {
					t.Fatalf("%q came, up to %s", came, r.pos)
				}
				again := func(pushed bool) {
					_ = r.src.Close()
					r.src, r.cfg.Pushed = nil, pushed
					r.open()
				}
				again(pushed)
				app := dial(t, url)
				publishNumbers(t, app, 2)
				if came := r.numbers(1); came[0] != "2" {
					t.Fatalf("%q came", came)
				}
				again(true)
				r.pushing()
				publishNumbers(t, app, 3)
				if came := r.numbers(1); !slices.Equal(came, []string{"3"}) {
					t.Fatalf("%q came", came)
				}
				sql(t, app, oneMore("3", "4"))
				if err := r.src.Ack(t.Context(), r.pos); err != nil {
					t.Fatal(err)
				}
				ring := r.src.(*Both).ring
				ring.session.Lock()
				ring.ring.dirty, ring.ring.next, ring.ring.filled = true, time.Time{}, time.Now().Add(-time.Hour)
				err := ring.reclaim(t.Context()) // inserts go to another leaf
				ring.ring.next = time.Time{}
				if err == nil {
					err = ring.reclaim(t.Context())
				}
				ring.session.Unlock()
				if n := one[int](t, r.conn, `SELECT count(*) FROM onewrite.outbox WHERE payload = '4'`); err != nil || n != 1 {
					t.Fatalf("the ring has %d rows that nobody has read, %v", n, err)
				}
				again(pushed)
				if came := r.numbers(1); came[len(came)-1] != "4" { // 3 may come again
					t.Errorf("%q came", came)
				}
				if !strings.Contains(said.String(), "and not others before the restart") {
					t.Errorf("it says\n%s", said.String())
				}
			})
		})
	}
}

// A claim is in the position, and the place without it is what was there before.
func TestClaim(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := place{system: 7, line: 8, epoch: 9, base: empty, bus: "bus", from: of(100, []uint64{40, 50})}
		if rapid.Bool().Draw(t, "page") {
			p.to, p.seq = of(120, nil), 5
		}
		before := p.from.text
		var pr proof
		n, last := 0, uint64(0)
		for range rapid.IntRange(0, 8).Draw(t, "items") {
			if last == 0 {
				last = rapid.SampledFrom([]uint64{0, 30, 40, 50, 100, 101, 107, 110}).Draw(t, "xid")
			}
			it := item{xid: last, seq: int64(rapid.SampledFrom([]int{0, 1 << 40}).Draw(t, "seq"))}
			if last == 0 || p.from.has(last) {
				it.seq = 0 // it would be left out
			}
			if it.at.tx = 1; rapid.Bool().Draw(t, "ends") {
				it.at.tx = 0
			}
			if it.at.tx == 0 && it.xid != 0 && !p.from.has(it.xid) {
				n++
			}
			pr.note(&p, &it)
			if p = p.after(&it); it.at.tx == 0 {
				last = 0
			}
			got, err := parsePlace(p.pos())
			if err != nil || got.pos() != p.pos() || got.claim.String() != p.claim.String() {
				t.Fatalf("%s is read as %+v: %v", p.pos(), got, err)
			}
		}
		all := tally{}
		for _, c := range pr.told {
			all = all.plus(c)
		}
		if proven := p.proven(); proven.text != before || len(pr.told) != n || p.claim.all != all {
			t.Fatalf("%d transactions, %s before, %s proven of %s; %+v and %+v", n, before, proven.text, p.from.text, all, p.claim.all)
		}
		if without := p.from.without(pr.unproven()); n > 0 && !slices.Equal(without.xip, slices.DeleteFunc(slices.Clone(without.xip), func(x uint64) bool { return p.proven().has(x) })) {
			t.Fatalf("%s without %v is %s", p.from.text, pr.unproven(), without.text)
		}
	})
	for _, bad := range []string{"~", "~1.2.3.4.5", "~1.2.3.4.5.x", "~a.2.3.4.5.1:1:"} {
		if _, err := parsePlace(place{base: empty, from: empty}.pos() + "/" + onewrite.Pos(bad)); err == nil {
			t.Errorf("%q is a position", bad)
		}
	}
}
