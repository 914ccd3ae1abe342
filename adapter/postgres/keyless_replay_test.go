package postgres

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/internal/servers"
)

// twin is what two consumers have of a table without a key: one had its rows before the
// first event and applies all changes, one begins with nothing and applies snapshots too.
type twin struct {
	*rig
	rnd         *rand.Rand
	model, copy bag
	partly      bool // the snapshot that was asked for has the rows whose v can be divided by 3
	told        bag  // rows that came of it
	since       bag  // rows that came as changes since it was asked for
	reading     bool // its rows are coming
	snapshots   int
	live, cuts  int
	ended       bool
}

// take reads a batch, and may act as if the source died behind any of its events.
func (w *twin) take(r reins, cut bool) {
	w.t.Helper()
	if !cut {
		for _, e := range w.read().Events {
			w.apply(e)
		}
		r.loosen()
		return
	}
	b := w.readUnstored()
	r.loosen()
	if len(b.Events) == 0 {
		return
	}
	n := w.rnd.IntN(len(b.Events))
	midway := n+1 < len(b.Events) && b.Events[n+1].Tx.ID == ""
	if w.partly && !midway { // it may have been complete: only a TRUNCATE tells that it begins anew
		n = len(b.Events) - 1
	}
	for _, e := range b.Events[:n+1] {
		w.apply(e)
	}
	if w.pos = b.PosAt(n); w.partly && !midway {
		w.src.(interface{ Stored(onewrite.Pos) }).Stored(w.pos)
		return
	}
	w.cuts++
	if midway { // its rows come again
		clear(w.told)
		w.reading = false
	}
	w.open()
}

func (w *twin) apply(e onewrite.Event) {
	w.t.Helper()
	if e.Topic != "public.lane" {
		return
	}
	row := rowOf(w.t, e)
	if e.Tx.ID == "" {
		w.reading = true
		if e.Type == "truncate" {
			clear(w.copy)
			clear(w.told)
			return
		}
		if strings.Contains(row.After, "of before") && w.model[row.After] == 0 {
			w.model[row.After]++ // it was written before the table was captured: the log may not tell it
		}
		w.snapshots++
		w.copy[row.After]++
		if w.told[row.After]++; w.told[row.After] > w.model[row.After] {
			w.t.Errorf("the snapshot has %.60s %d times, at that place there are %d", row.After, w.told[row.After], w.model[row.After])
		}
		return
	}
	w.complete()
	w.live++
	w.model.apply(w.t, e)
	if row.Before != "null" && w.copy[row.Before] == 0 { // it was not told yet
		row.Before = "null"
	}
	w.copy.change(e.Type, row)
	w.since.change("insert", told{Before: "null", After: row.After})
	w.ended = w.ended || strings.Contains(row.After, "the end")
}

// change applies what came.
func (b bag) change(kind string, row told) {
	if kind == "truncate" {
		clear(b)
	}
	if row.Before != "null" {
		b[row.Before]--
	}
	if row.After != "null" {
		b[row.After]++
	}
}

// complete compares the rows of a snapshot, when all have come, with those of the table at
// that place.
func (w *twin) complete() {
	w.t.Helper()
	if !w.reading {
		return
	}
	w.reading = false
	for row, n := range w.model {
		var r struct{ V int }
		if err := json.Unmarshal([]byte(row), &r); err != nil {
			w.t.Fatal(err)
		}
		if has := w.told[row]; has < n && (!w.partly || r.V%3 == 0 && has+w.since[row] < n) {
			w.t.Errorf("the snapshot has %.60s %d times, at that place there are %d", row, has, n)
		}
	}
}

// settled reads until the snapshot is complete. Before that a transaction that was open
// when it was asked for ends.
func (w *twin) settled(r reins, busy func()) {
	w.t.Helper()
	enough, cuts := w.live+150+w.rnd.IntN(150), w.cuts+1+w.rnd.IntN(3)
	for done := false; !done; {
		before := w.snapshots
		w.take(r, w.cuts < cuts && w.rnd.IntN(4) == 0)
		if w.live > enough && busy != nil {
			busy()
			busy = nil
		}
		done = w.snapshots == before && busy == nil && one[bool](w.t, w.conn, `SELECT bool_and(finished = wanted) FROM onewrite.captured`)
	}
	w.complete()
}

// writeLane changes the rows of the table at random.
func writeLane(t *testing.T, ctx context.Context, url string, seed uint64, r reins) {
	conn, rnd := dial(t, url), rand.New(rand.NewPCG(seed, 5))
	for r.hold(ctx) {
		list := []string{`INSERT INTO lane VALUES (%[1]d, 'new')`, `INSERT INTO lane SELECT %[1]d, 'many' FROM generate_series(1, 15)`, `UPDATE lane SET w = w || 'u' WHERE v = %[1]d AND length(w) < 9`,
			`UPDATE lane SET v = v + 1 WHERE v = %[1]d`, `DELETE FROM lane WHERE v = %[1]d`, `BEGIN; INSERT INTO lane VALUES (%[1]d, 'brief'); DELETE FROM lane WHERE v = %[1]d AND w = 'brief'; COMMIT`,
			`BEGIN; INSERT INTO lane VALUES (%[1]d, 'two'); SAVEPOINT s; DELETE FROM lane; ROLLBACK TO s; UPDATE lane SET w = 'moved' WHERE v = %[1]d AND length(w) < 9; COMMIT`,
			`INSERT INTO lane VALUES (%[1]d, repeat('large', 700) || %[1]d)`}
		s := fmt.Sprintf(list[rnd.IntN(len(list))], rnd.IntN(400))
		if rnd.IntN(150) == 0 {
			s = `BEGIN; SET LOCAL lock_timeout = '100ms'; TRUNCATE lane; INSERT INTO lane SELECT i % 400, 'again' FROM generate_series(1, 900) i; COMMIT`
		}
		if _, err := conn.Exec(context.WithoutCancel(ctx), s); err != nil {
			if !strings.Contains(err.Error(), "40P01") && !strings.Contains(err.Error(), "55P03") {
				t.Error(err)
				return
			}
			_, _ = conn.Exec(context.WithoutCancel(ctx), `ROLLBACK`)
		}
	}
}

// Whatever is written while snapshots of a table without a key are asked for, wait, are
// read and are cut off: every change comes once and in order, and a copy that begins with
// nothing is the table.
func TestKeylessReplay(t *testing.T) {
	for seed := range uint64(2) {
		t.Run(fmt.Sprint("seed=", seed), func(t *testing.T) {
			each(t, func(t *testing.T, pg *servers.PG) {
				r := newRig(t, pg, `CREATE TABLE first (id int PRIMARY KEY); CREATE TABLE lane (v int, w text); ALTER TABLE lane ALTER w SET STORAGE EXTERNAL, REPLICA IDENTITY FULL;
					INSERT INTO lane SELECT i % 400, 'v' || i % 3 FROM generate_series(1, 4000) i`, "public.first")
				w := &twin{rig: r, rnd: rand.New(rand.NewPCG(seed, 1)), copy: bag{}, told: bag{}, since: bag{}}
				r.open()
				r.whole()
				busy := dial(t, r.url)
				sql(t, busy, `BEGIN`, `INSERT INTO lane VALUES (-6, 'of before')`)
				r.tables = append(r.tables, "public.lane")
				w.ask(seed%2 == 1)
				w.model = laneRows(t, r.conn)
				ctx, stop := context.WithCancel(t.Context())
				defer stop()
				reins := newReins()
				var writers sync.WaitGroup
				for i := range uint64(3) {
					writers.Go(func() { writeLane(t, ctx, r.url, 10*seed+i, reins) })
				}
				w.settled(reins, func() { sql(t, busy, `COMMIT`) })
				for _, partly := range []bool{false, true, true, false} {
					var end func()
					if w.rnd.IntN(2) == 0 {
						sql(t, busy, `BEGIN`, `INSERT INTO first SELECT coalesce(max(id), 0) + 1 FROM first`)
						end = func() { sql(t, busy, `COMMIT`) }
					}
					w.ask(partly, "public.lane")
					w.settled(reins, end)
				}
				stop()
				writers.Wait()
				sql(t, r.conn, `INSERT INTO lane VALUES (-1, 'the end')`)
				for !w.ended {
					w.take(reins, false)
				}
				w.compare(laneRows(t, r.conn))
				t.Logf("%d rows of snapshots, %d changes, opened %d times", w.snapshots, w.live, w.cuts)
				if w.cuts < 2 || w.live < 1000 || w.snapshots < 1500 {
					t.Error("too few to prove anything")
				}
			})
		})
	}
}

// ask captures the table with a snapshot, or wants another one; of a part of the rows, or
// of all.
func (w *twin) ask(partly bool, again ...string) {
	w.t.Helper()
	w.partly = partly
	clear(w.since)
	clear(w.told)
	var first map[string]string
	where := map[bool]string{true: "v % 3 = 0"}[partly]
	if len(again) == 0 && partly {
		first, where = map[string]string{"lane": where}, ""
	}
	if _, err := w.migrateWhere(first, where, again...); err != nil {
		w.t.Fatal(err)
	}
}

// laneRows returns the rows that are there, and how often.
func laneRows(t *testing.T, conn *pgx.Conn) bag {
	t.Helper()
	rows := bag{}
	for row, n := range tableAsJSON(t, conn, `SELECT format('{"v":%s,"w":"%s"}', v, w), count(*)::text FROM lane GROUP BY v, w`) {
		rows[row], _ = strconv.Atoi(n)
	}
	return rows
}

// compare compares what both consumers have with the table.
func (w *twin) compare(want bag) {
	w.t.Helper()
	for who, have := range map[string]bag{"changes": w.model, "snapshots and changes": w.copy} {
		bad := 0
		for _, list := range []bag{want, have} {
			for row := range list {
				if have[row] != want[row] {
					if bad++; bad < 5 {
						w.t.Errorf("by %s: %.60s %d times, want %d", who, row, have[row], want[row])
					}
				}
			}
		}
	}
}
