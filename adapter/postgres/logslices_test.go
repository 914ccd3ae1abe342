package postgres

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/internal/pgoutput"
	"github.com/onewrite/onewrite/internal/servers"
)

const sliced = "a backlog is read in slices"

// backlog writes n transactions of which some are rolled back, in part or whole, some
// are large, and some begin long before they end.
func (r *rig) backlog(writers, n int) {
	r.t.Helper()
	var wg sync.WaitGroup
	for w := range writers {
		conn := dial(r.t, r.url)
		rnd := rand.New(rand.NewPCG(uint64(w), 9))
		wg.Go(func() {
			for i := range n {
				id := rnd.IntN(200)
				q := []string{
					fmt.Sprintf("INSERT INTO seen (w) VALUES (%d); INSERT INTO t VALUES (%d, 0, repeat('a', 200)) ON CONFLICT (id) DO UPDATE SET n = t.n + 1", w, id),
					fmt.Sprintf("BEGIN; INSERT INTO seen (w) VALUES (%d); UPDATE t SET n = n + 1 WHERE id = %d; COMMIT", w, id),
					fmt.Sprintf("BEGIN; INSERT INTO seen (w) VALUES (%d); SAVEPOINT s; INSERT INTO seen (w) VALUES (-1); ROLLBACK TO s; DELETE FROM t WHERE id = %d; COMMIT", w, id),
					fmt.Sprintf("BEGIN; INSERT INTO seen (w) VALUES (-1); DELETE FROM t WHERE id = %d; ROLLBACK", id),
					fmt.Sprintf("INSERT INTO seen (w) SELECT %d FROM generate_series(1, %d)", w, rnd.IntN(3)*rnd.IntN(400)),
					"SELECT pg_logical_emit_message(true, 'somebody', repeat('m', 300))",
				}[rnd.IntN(6)]
				if _, err := conn.Exec(context.Background(), q, pgx.QueryExecModeSimpleProtocol); err != nil {
					r.t.Error(err)
					return
				}
				if w == 0 && i%40 == 20 { // lets the slots' beginning move
					if _, err := conn.Exec(context.Background(), "CHECKPOINT"); err != nil {
						r.t.Error(err)
					}
				}
			}
		})
	}
	wg.Wait()
}

// A backlog comes whole, in order and once, whatever dies in the middle, and what is
// written meanwhile comes behind it.
func TestSlices(t *testing.T) {
	each(t, func(t *testing.T, pg *servers.PG) {
		r := newRig(t, pg, `CREATE TABLE t (id int PRIMARY KEY, n int, pad text); CREATE TABLE seen (id bigserial PRIMARY KEY, w int); CREATE TABLE other (n text)`, "public.t", "public.seen")
		var said logs
		r.cfg.Logger = said.logger()
		r.cfg.slices = &sliceSizes{worth: 64 << 10, least: 128 << 10, most: 4 << 20}
		r.open()
		r.whole()
		sql(t, r.conn, `INSERT INTO t VALUES (-1, 0, '')`)
		r.events(1)
		_ = r.src.Close()
		r.src = nil
		r.backlog(3, 150)
		var load sync.WaitGroup
		load.Go(func() { r.backlog(2, 150) })
		rnd := rand.New(rand.NewPCG(3, 4))
		h, got, seen := newHistory(t), replica{}, 0
		got[`{"id":-1}`] = nil
		take := func(b onewrite.Batch) (end bool) {
			for _, e := range b.Events {
				h.add(e)
				if e.Topic == "public.seen" {
					seen++
				} else {
					got.apply(t, e)
				}
				end = end || e.Key == `{"id":-2}`
			}
			r.pos = b.Pos
			if rnd.IntN(3) > 0 { // or the server does not hear of it before the end
				r.src.(*Both).Stored(b.Pos)
			}
			return end
		}
		r.open()
		opened, ended, cut := 1, false, 0
		for end := false; !end; {
			if !ended && h.n > 2000 {
				load.Wait()
				sql(t, r.conn, `INSERT INTO t VALUES (-2, 0, '')`)
				ended = true
			}
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			b, err := r.src.Read(ctx)
			cancel()
			if err != nil && cut > 0 {
				r.open()
				continue
			}
			if err != nil {
				t.Fatal(err)
			}
			if rnd.IntN(3) == 0 && cut < 10 { // a session dies
				cut += one[int](t, r.conn, `SELECT count(pg_terminate_backend(active_pid)) FROM pg_replication_slots WHERE temporary AND database = current_database()`)
			}
			if b.Gap != nil {
				t.Fatalf("a gap: %+v", b.Gap)
			}
			if rnd.IntN(6) == 0 && opened < 12 { // what was read is lost
				r.open()
				opened++
				continue
			}
			end = take(b)
		}
		want := tableAsJSON(t, r.conn, `SELECT '{"id":' || id || '}', n::text FROM t`)
		for key, n := range want {
			if key != `{"id":-1}` && string(got[key]["n"]) != n {
				t.Errorf("%s: n is %s, want %s", key, got[key]["n"], n)
			}
			delete(got, key)
		}
		if len(got) > 0 || len(want) < 50 {
			t.Errorf("%d rows, and %d that are not in the table", len(want), len(got))
		}
		if n := one[int](t, r.conn, `SELECT count(*) FROM seen`); seen != n || n < 1000 {
			t.Errorf("%d rows were inserted, %d came", n, seen)
		}
		slices := strings.Count(said.String(), sliced)
		t.Logf("%d events, opened %d times, %d slices, %d sessions cut", h.n, opened, slices, cut)
		if slices < 5 || opened < 5 || cut < 1 {
			t.Errorf("%d slices, opened %d times, %d sessions cut", slices, opened, cut)
		}
	})
}

// alone waits until the temporary slots are gone.
func (r *rig) alone() {
	r.t.Helper()
	eventually(r.t, "the temporary slots are gone", func() bool {
		return one[int](r.t, r.conn, `SELECT count(*) FROM pg_replication_slots WHERE temporary AND database = current_database()`) == 0
	})
}

// inOrder reads the rows of ids first to last, and takes no other.
func (r *rig) inOrder(first, last int) {
	r.t.Helper()
	for id := first; id <= last; {
		for _, e := range r.read().Events {
			if e.Key != fmt.Sprintf(`{"id":%d}`, id) {
				r.t.Fatalf("%s came, want %d", e.Key, id)
			}
			id++
		}
	}
}

// The slot stays behind what the bus has, however far the slices are.
func TestSlicesForgetNothing(t *testing.T) {
	each(t, func(t *testing.T, pg *servers.PG) {
		r := newRig(t, pg, `CREATE TABLE t (id int PRIMARY KEY, pad text)`, "public.t")
		r.cfg.slices = &sliceSizes{worth: 64 << 10, least: 128 << 10, most: 4 << 20}
		r.open()
		r.whole()
		sql(t, r.conn, `INSERT INTO t VALUES (0, '')`)
		r.events(1)
		_ = r.src.Close()
		place, _, err := splitPlaces(r.pos)
		if err != nil {
			t.Fatal(err)
		}
		for i := range 40 {
			sql(t, r.conn, fmt.Sprintf(`INSERT INTO t SELECT i, repeat('x', 200) FROM generate_series(%d, %d) i`, i*100+1, i*100+100), `CHECKPOINT`)
		}
		r.src = nil
		r.open()
		var first onewrite.Batch
		for n := 0; n < 3000; { // far into the slices, and nothing of it is stored
			b, err := r.src.Read(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if n == 0 {
				first = b
			}
			n += len(b.Events)
		}
		confirmed := func() pgoutput.LSN {
			text := one[string](t, r.conn, `SELECT confirmed_flush_lsn::text FROM pg_replication_slots WHERE NOT temporary AND database = current_database()`)
			at, err := pgoutput.ParseLSN(text)
			if err != nil {
				t.Fatal(err)
			}
			return at
		}
		if at := confirmed(); at > place.done {
			t.Errorf("the slot is at %s, the bus has the log up to %s", at, place.done)
		}
		r.src.(*Both).Stored(first.Pos)
		r.pos = first.Pos
		r.open() // what was not stored comes again
		r.inOrder(len(first.Events)+1, 4000)
		stored, _, _ := splitPlaces(r.pos)
		r.src.(*Both).Close()
		if at := confirmed(); at > stored.done {
			t.Errorf("the slot is at %s, the bus has the log up to %s", at, stored.done)
		}
		r.alone()
	})
}

// A backlog of many slices is read in slices to its end: what is decoded again for one does
// not grow with what was read before.
func TestManySlices(t *testing.T) {
	eachAlone(t, []servers.Option{servers.NoSync()}, func(t *testing.T, pg *servers.PG) { // an old transaction of anybody keeps those places back
		r := newRig(t, pg, `CREATE TABLE t (id int PRIMARY KEY, pad text)`, "public.t")
		var said logs
		r.cfg.Logger = said.logger()
		r.cfg.slices = &sliceSizes{worth: 64 << 10, least: 128 << 10, most: 256 << 10}
		r.open()
		r.whole()
		_ = r.src.Close()
		r.src = nil
		for i := range 100 { // a checkpoint is a place from which a slot can begin
			sql(t, r.conn, fmt.Sprintf(`INSERT INTO t SELECT i, repeat('x', 200) FROM generate_series(%d, %d) i`, i*100+1, i*100+100), `CHECKPOINT`)
		}
		backlog := one[int](t, r.conn, `SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), confirmed_flush_lsn)::bigint FROM pg_replication_slots WHERE database = current_database()`)
		r.open()
		r.inOrder(1, 10_000)
		if n, least := strings.Count(said.String(), sliced), backlog/(256<<10); n < least || least < 6 {
			t.Errorf("%d slices of %d kB, want %d\n%s", n, backlog>>10, least, said.String())
		}
	})
}

// How much of a backlog a slice takes.
func TestSliceExtent(t *testing.T) {
	const mb = 1 << 20
	for _, c := range []struct {
		again, rest int64
		before      int64
		alone       bool // there is one session
		want        int64
	}{
		{rest: 95 * mb, want: 0},         // is streamed
		{rest: 96 * mb, want: 96 * mb},   // half of it would not be worth it
		{rest: 191 * mb, want: 191 * mb}, // what is behind it would not
		{rest: 192 * mb, want: 96 * mb},  // the other session makes the rest meanwhile
		{rest: 300 * mb, alone: true, want: 300 * mb},
		{again: 96 * mb, rest: 258 * mb, before: 96 * mb, want: 258 * mb},
		{again: 60 * mb, rest: 3000 * mb, before: 96 * mb, want: 192 * mb},
		{again: 60 * mb, rest: 3000 * mb, before: 192 * mb, want: 384 * mb},
		{again: 60 * mb, rest: 3000 * mb, before: 384 * mb, want: 512 * mb},
		{again: 150 * mb, rest: 150 * mb, before: 150 * mb, want: 150 * mb},
		{again: 150 * mb, rest: 96 * mb, before: 150 * mb, want: 96 * mb},
		{again: 193 * mb, rest: 96 * mb, before: 193 * mb, want: 0}, // decoding it again takes longer than streaming
		{again: 60 * mb, rest: 300 * mb, want: 180 * mb},
		{again: 60 * mb, rest: 275 * mb, want: 275 * mb},
		{rest: 607 * mb, alone: true, want: 607 * mb},
		{rest: 608 * mb, alone: true, want: 512 * mb},
		{again: 300 * mb, rest: 3000 * mb, want: 900 * mb},
		{again: 350 * mb, rest: 3000 * mb, want: 0}, // pinned: slices would decode more and more
		{again: 350 * mb, rest: 1000 * mb, want: 1000 * mb},
	} {
		if got := sliceDefaults.extent(c.again, c.rest, c.before, !c.alone); got != c.want {
			t.Errorf("%d MB left, %d MB again, %d MB before, alone %v: %d MB, want %d", c.rest/mb, c.again/mb, c.before/mb, c.alone, got/mb, c.want/mb)
		}
	}
}

// Where slots are scarce one session reads the slices, or the log is streamed; so it is
// where an old transaction makes every slice begin at it.
func TestSlicesWithoutRoom(t *testing.T) {
	pg := servers.NewPostgres(t, 18, servers.Set("max_replication_slots", "3"))
	for _, c := range []struct {
		name         string
		before       string // runs while the source is closed
		after        string // at the end
		stream       bool
		pad          int // characters of a row that are not seen in the size of the log
		says, silent string
	}{
		{name: "two sessions", says: sliced, silent: "is streamed"},
		{name: "one session", before: `SELECT pg_create_physical_replication_slot('one')`, after: `SELECT pg_drop_replication_slot('one')`, says: sliced, silent: "is streamed"},
		{name: "no slot", before: `SELECT pg_create_physical_replication_slot('one'), pg_create_physical_replication_slot('two')`, after: `SELECT pg_drop_replication_slot('one'), pg_drop_replication_slot('two')`, says: "is streamed", silent: sliced},
		{name: "no room for files", before: `ALTER ROLE CURRENT_USER SET temp_file_limit = '64kB'`, after: `ALTER ROLE CURRENT_USER RESET temp_file_limit`, pad: 5000, says: "is streamed"},
		{name: "an old transaction", before: `BEGIN; SELECT pg_current_xact_id(); INSERT INTO free SELECT repeat('y', 200) FROM generate_series(1, 5000)`, after: `COMMIT`, says: sliced}, // some of it
		{name: "streaming is asked for", stream: true, silent: sliced},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t, pg, `CREATE TABLE t (id int PRIMARY KEY, pad text); CREATE TABLE free (pad text)`, "public.t")
			r.cfg.slices = &sliceSizes{worth: 64 << 10, least: 128<<10 + int64(c.pad)<<8, most: 2 << 20}
			r.cfg.Stream = c.stream
			r.open()
			r.whole()
			_ = r.src.Close()
			var said logs
			r.cfg.Logger = said.logger()
			holder := dial(t, r.url)
			if c.before != "" {
				sql(t, holder, c.before)
			}
			for i := range 20 {
				sql(t, r.conn, fmt.Sprintf(`INSERT INTO t SELECT i, repeat('x', %d) FROM generate_series(%d, %d) i`, 200+c.pad, i*200+1, i*200+200))
			}
			r.src = nil
			r.open()
			r.inOrder(1, 4000)
			if c.says != "" && !strings.Contains(said.String(), c.says) || c.silent != "" && strings.Contains(said.String(), c.silent) {
				t.Errorf("it says\n%s", said.String())
			}
			_ = r.src.Close()
			if c.after != "" {
				sql(t, holder, c.after)
			}
		})
	}
}
