package postgres

import (
	"context"
	"strings"
	"sync"
	"testing"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/internal/pgoutput"
	"github.com/onewrite/onewrite/internal/servers"
)

// untilSaid reads, and applies what comes of a topic, until a trouble with a text is
// told; one that was told before it was asked for does.
func (r *rig) untilSaid(told *toldTroubles, text string, topic string, got replica) {
	r.t.Helper()
	for !told.has(text) {
		r.readInto(topic, got)
	}
}

// readInto reads one batch, or nothing for a moment.
func (r *rig) readInto(topic string, got replica) {
	r.t.Helper()
	sql(r.t, r.conn, `INSERT INTO beat DEFAULT VALUES`) // so that there is something to read
	for _, e := range r.read().Events {
		if e.Topic == topic {
			got.apply(r.t, e)
		}
	}
}

// toldTroubles are what a source told beside its events.
type toldTroubles struct {
	mu   sync.Mutex
	list []string
}

func (s *toldTroubles) add(_, problem string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.list = append(s.list, problem)
}

func (s *toldTroubles) has(text string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return strings.Contains(strings.Join(s.list, "\n"), text)
}

// A transaction that wrote a table before it was published, and commits after its
// snapshot is asked for: the log does not tell what it wrote before, so the snapshot has
// to see it.
func TestOpenWhenPublished(t *testing.T) {
	for _, prepared := range []bool{false, true} {
		eachAlone(t, []servers.Option{servers.Set("max_prepared_transactions", "10")}, func(t *testing.T, pg *servers.PG) {
			r := newRig(t, pg, `CREATE TABLE beat (id serial PRIMARY KEY); CREATE TABLE b (id int PRIMARY KEY, v text); INSERT INTO b VALUES (1, 'old')`, "public.beat")
			told := &toldTroubles{}
			r.cfg.Trouble = told.add
			r.open()
			got := replica{}
			r.readInto("public.b", got)
			writer := dial(t, r.url)
			sql(t, writer, `BEGIN`, `INSERT INTO b VALUES (2, 'before')`, `UPDATE b SET v = 'new' WHERE id = 1`)
			if prepared {
				sql(t, writer, `PREPARE TRANSACTION 'p'`)
			}
			r.tables = append(r.tables, "public.b")
			r.migrate()
			r.untilSaid(told, "begins when the transactions that are open now have ended", "public.b", got)
			if len(got) > 0 {
				t.Errorf("the snapshot did not wait: %v", got)
			}
			if prepared {
				sql(t, writer, `COMMIT PREPARED 'p'`)
			} else {
				sql(t, writer, `INSERT INTO b VALUES (3, 'after')`, `COMMIT`)
			}
			sql(t, writer, `INSERT INTO b VALUES (4, 'end')`)
			want := tableAsJSON(t, r.conn, `SELECT '{"id":' || id || '}', v FROM b`)
			for len(got) < len(want) {
				r.readInto("public.b", got)
			}
			for key, v := range want {
				if string(got[key]["v"]) != `"`+v+`"` {
					t.Errorf("%s is %s, want %s", key, got[key]["v"], v)
				}
			}
		})
	}
}

// A snapshot that goes on in another reader waits as well: a commit that was told to the
// reader before may not be visible yet.
func TestSnapshotGoesOnSettled(t *testing.T) {
	each(t, func(t *testing.T, pg *servers.PG) {
		r := newRig(t, pg, `CREATE TABLE beat (id serial PRIMARY KEY); CREATE TABLE b (id int PRIMARY KEY, v text); INSERT INTO b SELECT i, 'old' FROM generate_series(1, 200) i`, "public.beat", "public.b")
		told := &toldTroubles{}
		r.cfg.Trouble, r.cfg.chunk = told.add, 10
		r.open()
		got := replica{}
		for len(got) == 0 {
			r.readInto("public.b", got)
		}
		_ = r.src.Close()
		r.src = nil
		if len(got) >= 200 {
			t.Fatal("the snapshot is whole; nothing is proven")
		}
		other, before := dial(t, r.url), len(got)
		sql(t, other, `BEGIN`, `INSERT INTO beat DEFAULT VALUES`)
		r.open()
		r.untilSaid(told, "begins when the transactions that are open now have ended", "public.b", got)
		if len(got) != before {
			t.Errorf("%d rows came while a transaction was open, %d before", len(got), before)
		}
		sql(t, other, `ROLLBACK`)
		for len(got) < 200 {
			r.readInto("public.b", got)
		}
	})
}

// A slot that is moved by hand while its backlog is read in slices, when nobody holds it,
// is noticed before anything behind it is read.
func TestSlotMovedDuringSlices(t *testing.T) {
	each(t, func(t *testing.T, pg *servers.PG) {
		r := newRig(t, pg, `CREATE TABLE t (id int PRIMARY KEY, n int, pad text); CREATE TABLE seen (id bigserial PRIMARY KEY, w int); CREATE TABLE other (n text)`, "public.t", "public.seen")
		var said logs
		r.cfg.Logger = said.logger()
		r.open()
		r.whole()
		sql(t, r.conn, `INSERT INTO t VALUES (-1, 0, '')`)
		r.events(1)
		_ = r.src.Close()
		r.src = nil
		for range 30 {
			sql(t, r.conn, `INSERT INTO seen (w) SELECT generate_series(1, 5000)`)
		}
		backlog := one[int64](t, r.conn, `SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), confirmed_flush_lsn)::bigint FROM pg_replication_slots WHERE database = current_database()`)
		r.cfg.slices = &sliceSizes{worth: backlog / 3, least: 1 << 30, most: 1 << 30}
		r.open() // the slices, a third and the rest, wait until what they told is read
		eventually(t, "both slices", func() bool { return strings.Count(said.String(), sliced) == 2 })
		sql(t, r.conn, `INSERT INTO t VALUES (1, 0, 'behind the slice')`, `SELECT pg_replication_slot_advance(slot_name, pg_current_wal_lsn()) FROM pg_replication_slots WHERE database = current_database() AND NOT temporary`,
			`INSERT INTO t VALUES (2, 0, 'behind the place')`)
		for err := error(nil); err == nil; {
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			var b onewrite.Batch
			b, err = r.src.Read(ctx)
			if ctx.Err() != nil {
				t.Fatal("the reader does not notice")
			}
			cancel()
			for _, e := range b.Events {
				if e.Topic == "public.t" {
					t.Fatalf("%s came", e.Data)
				}
			}
		}
		r.open()
		var b onewrite.Batch
		for b.Gap == nil {
			b = r.readUnstored()
			if len(b.Events) > 0 {
				t.Fatalf("%d events before the gap", len(b.Events))
			}
		}
		if !strings.Contains(b.Gap.Reason, "was moved by another than onewrite") {
			t.Errorf("%v", b.Gap)
		}
	})
}

// A history in which another transaction ends where one that was read did is another one.
func TestEndsThere(t *testing.T) {
	each(t, func(t *testing.T, pg *servers.PG) {
		r := newRig(t, pg, `CREATE TABLE beat (id serial PRIMARY KEY)`, "public.beat")
		r.open()
		sql(t, r.conn, `INSERT INTO beat DEFAULT VALUES`)
		b := r.readUnstored() // the slot stays before it
		place, _, err := splitPlaces(b.Pos)
		if err != nil || place.when == 0 {
			t.Fatalf("%+v, %v", place, err)
		}
		_ = r.src.Close()
		r.src = nil
		host, err := connectText(t.Context(), r.url, "test")
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = host.Close(context.Background()) }()
		l := &logReader{cfg: r.cfg, host: host, slot: one[string](t, r.conn, `SELECT slot_name FROM pg_replication_slots WHERE database = current_database()`)}
		asks := func(done pgoutput.LSN, when int64) (ok bool) {
			t.Helper()
			eventually(t, "the slot is free", func() bool {
				ok, err = l.endsThere(t.Context(), &logPlace{done: done, when: when})
				return err == nil || !strings.Contains(err.Error(), "55006")
			})
			if err != nil {
				t.Fatal(err)
			}
			return ok
		}
		for _, c := range []struct {
			done pgoutput.LSN
			when int64
			want bool
		}{{place.done, place.when, true}, {place.done, place.when + 1, false}, {place.done, 0, true}, {place.done - 8, place.when, false}} {
			if got := asks(c.done, c.when); got != c.want {
				t.Errorf("at %v, %d: %v", c.done, c.when, got)
			}
		}
	})
}
