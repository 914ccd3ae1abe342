package postgres

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/internal/servers"
)

// took is what one opening gave.
type took struct {
	ids map[string]bool
	in  []onewrite.Event
	gap *onewrite.Gap
	pos onewrite.Pos
}

// take opens at a position, reads n events, proves that there are no more, and
// counts the gaps. If ack is set, it first acknowledges the position that it
// opens at, as the pipeline does.
func take(t *testing.T, cfg Config, pos onewrite.Pos, n int) (got took) {
	t.Helper()
	s := openWith(t, cfg, pos)
	defer s.Close()
	if pos != "" {
		if err := s.Ack(t.Context(), pos); err != nil {
			t.Fatal(err)
		}
	}
	got.ids, got.pos = map[string]bool{}, pos
	for len(got.in) < n {
		b := read(t, s)
		if b.Gap != nil {
			if got.gap != nil {
				t.Fatalf("a second gap: %v", b.Gap)
			}
			got.gap = b.Gap
		}
		for _, e := range b.Events {
			got.ids[e.ID] = true
		}
		got.in = append(got.in, b.Events...)
		if len(b.Events) > 0 {
			got.pos = b.Pos
		}
	}
	if len(got.in) != n || len(got.ids) != n {
		t.Fatalf("%d events with %d ids, want %d", len(got.in), len(got.ids), n)
	}
	conn := dial(t, cfg.URL)
	nothing(t, s, conn)
	sql(t, conn, `DELETE FROM onewrite.outbox WHERE topic = 'mark'`)
	return got
}

func insert(t *testing.T, url string, n int) {
	t.Helper()
	sql(t, dial(t, url), fmt.Sprintf(`INSERT INTO onewrite.outbox (topic) SELECT 't' FROM generate_series(1, %d)`, n))
}

// insertEach inserts n events in n transactions.
func insertEach(t *testing.T, url string, n int) {
	t.Helper()
	conn := dial(t, url)
	for range n {
		sql(t, conn, `INSERT INTO onewrite.outbox (topic) VALUES ('t')`)
	}
}

func TestBusIsRecognised(t *testing.T) {
	each(t, func(t *testing.T, pg *servers.PG) {
		url := newOutbox(t, pg, MigrateOptions{})
		bus1, bus2 := Config{URL: url, BusID: "bus1"}, Config{URL: url, BusID: "bus2"}
		insert(t, url, 50)
		first := take(t, bus1, "", 50)
		if first.gap != nil {
			t.Fatalf("a first start is no gap: %v", first.gap)
		}
		insert(t, url, 5)
		next := take(t, bus1, first.pos, 5)
		if next.gap != nil {
			t.Fatalf("going on is no gap: %v", next.gap)
		}
		// Its folder is lost: a new bus, which knows nothing.
		lost := take(t, bus2, "", 55)
		if lost.gap == nil || !strings.Contains(lost.gap.Reason, "bus is new") || lost.gap.Cure != "" {
			t.Fatalf("a lost bus: %+v", lost.gap)
		}
		for id := range first.ids {
			if !lost.ids[id] {
				t.Fatal("the ids changed")
			}
		}
		insert(t, url, 3)
		if on := take(t, bus2, lost.pos, 3); on.gap != nil {
			t.Fatalf("the gap is reported again: %v", on.gap)
		}
		// A place that belongs to another bus.
		if foreign := take(t, bus1, lost.pos, 58); foreign.gap == nil || !strings.Contains(foreign.gap.Reason, "foreign") {
			t.Fatalf("a foreign bus: %v", foreign.gap)
		}
		// Two sources may read one outbox, one after the other, by different names.
		if other := take(t, Config{URL: url, Name: "other"}, "", 58); other.gap != nil {
			t.Fatalf("a source of another name: %v", other.gap)
		}
	})
}

// A bus that knows less than it had confirmed has lost what was truncated for it.
func TestBusThatForgot(t *testing.T) {
	each(t, func(t *testing.T, pg *servers.PG) {
		url := newOutbox(t, pg, MigrateOptions{})
		conn := dial(t, url)
		insertEach(t, url, 10)
		s := open(t, url, "")
		_, older := readN(t, s, 10)
		insertEach(t, url, 10)
		_, pos := readN(t, s, 10)
		if err := s.Ack(t.Context(), pos); err != nil {
			t.Fatal(err)
		}
		_, stop := drain(t, s, false)
		eventually(t, "the ring is empty", func() bool { return one[int](t, conn, `SELECT count(*)::int FROM onewrite.outbox`) == 0 })
		stop()
		_ = s.Close()
		insertEach(t, url, 3)
		for _, c := range []struct {
			pos        onewrite.Pos
			says, from string
		}{{pos, "", ""}, {older, "older copy", "seq 11"}, {"", "lost its log", "the oldest row"}} {
			got := take(t, Config{URL: url}, c.pos, 3)
			if (got.gap == nil) != (c.says == "") || got.gap != nil && (!strings.Contains(got.gap.Reason, c.says) || got.gap.From != c.from) {
				t.Errorf("%q: %+v", c.says, got.gap)
			}
			if p, err := parsePlace(got.pos); err != nil || p.top < 20 {
				t.Errorf("%q: the next position would say it again: %s", c.says, got.pos)
			}
		}
		if got := take(t, Config{URL: url, Name: "other"}, "", 3); got.gap != nil {
			t.Errorf("a source of another name, which never had a log: %v", got.gap)
		}
	})
}

// An empty outbox says its gap too, and does not wait for an event.
func TestGapWithoutEvents(t *testing.T) {
	each(t, func(t *testing.T, pg *servers.PG) {
		url := newOutbox(t, pg, MigrateOptions{})
		insert(t, url, 1)
		take(t, Config{URL: url}, "", 1)
		sql(t, dial(t, url), `TRUNCATE onewrite.outbox`)
		s := openWith(t, Config{URL: url, BusID: "bus2"}, "")
		if b := read(t, s); b.Gap == nil || len(b.Events) != 0 || b.Pos == "" {
			t.Fatalf("got %+v", b)
		}
		nothing(t, s, dial(t, url))
	})
}

func TestPositionOfAnotherCluster(t *testing.T) {
	a := newOutbox(t, servers.Postgres(t, 15), MigrateOptions{})
	b := newOutbox(t, servers.Postgres(t, 18), MigrateOptions{})
	insert(t, a, 10)
	insert(t, b, 20)
	pos := take(t, Config{URL: a}, "", 10).pos
	got := take(t, Config{URL: b}, pos, 20)
	if got.gap == nil || !strings.Contains(got.gap.Reason, "another cluster") {
		t.Fatalf("gap: %v", got.gap)
	}
	insert(t, b, 1)
	if on := take(t, Config{URL: b}, got.pos, 1); on.gap != nil {
		t.Fatalf("the gap is reported again: %v", on.gap)
	}
}

// Rows that pg_dump carried to another cluster have transaction numbers that do
// not exist there yet. They are adopted: nothing is lost and order is kept.
func TestDumpAndLoad(t *testing.T) {
	for _, version := range servers.Versions() { // into; pg_dump is as old as the oldest server
		t.Run(fmt.Sprint("into=", version), func(t *testing.T) {
			from := servers.Postgres(t, 15)
			src := newOutbox(t, from, MigrateOptions{})
			conn := dial(t, src)
			sql(t, conn, `SET synchronous_commit = off`)
			if _, err := conn.Exec(t.Context(), `DO $$BEGIN FOR i IN 1..20000 LOOP PERFORM pg_current_xact_id(); COMMIT; END LOOP; END$$`, pgx.QueryExecModeSimpleProtocol); err != nil {
				t.Fatal(err)
			}
			s := open(t, src, "")
			committed := workload(t, src, 8, 40)
			want := total(committed)
			before, pos := readN(t, s, want)
			_ = s.Close()

			target := servers.NewPostgres(t, version, servers.NoSync())
			dst := target.NewDatabase(t)
			dump, err := exec.CommandContext(t.Context(), servers.Bin(t, "pg_dump"), "-d", src).Output()
			if err != nil {
				t.Fatal(err)
			}
			mustPsql(t, dst, string(dump))
			dstConn := dial(t, dst)
			if future := one[bool](t, dstConn, `SELECT min(xid) > pg_snapshot_xmax(pg_current_snapshot()) FROM onewrite.outbox`); !future {
				t.Fatal("the rows are not of the future; the test shows nothing")
			}
			// The application is faster than the reader.
			mustPsql(t, dst, `SELECT onewrite.publish('ok', 'new', '1')`)
			for name, p := range map[string]onewrite.Pos{"its position": pos, "none": ""} {
				bus := map[string]string{"its position": "bus1", "none": "bus1"}[name]
				got := take(t, Config{URL: dst, BusID: bus}, p, want+1)
				committed["new"] = 1
				verify(t, got.in, committed)
				for _, e := range before {
					if !got.ids[e.ID] {
						t.Fatalf("%s: event %s is lost or has another id", name, e.ID)
					}
				}
				if p != "" && got.gap == nil {
					t.Errorf("%s: no gap is reported", name)
				}
				if future := one[bool](t, dstConn, `SELECT EXISTS (SELECT FROM onewrite.outbox WHERE xid >= pg_snapshot_xmax(pg_current_snapshot()))`); future {
					t.Errorf("%s: rows of the future are left", name)
				}
				sql(t, dstConn, `INSERT INTO onewrite.outbox (topic, key, payload) VALUES ('ok', 'on', '1')`)
				if on := take(t, Config{URL: dst, BusID: bus}, got.pos, 1); on.gap != nil {
					t.Errorf("%s: the gap is reported again: %v", name, on.gap)
				}
				sql(t, dstConn, `DELETE FROM onewrite.outbox WHERE key = 'on'`)
			}
		})
	}
}

// swap stops the server, puts the copied data folder in its place and starts it.
func swap(t *testing.T, pg *servers.PG, data, copied string, options ...servers.Option) {
	t.Helper()
	pg.Crash(t)
	for _, s := range [][2]string{{data, data + ".lost"}, {copied, data}} {
		if err := os.Rename(s[0], s[1]); err != nil {
			t.Fatal(err)
		}
	}
	_ = os.Remove(filepath.Join(data, "postmaster.pid"))
	pg.Start(t, options...)
	eventually(t, "the server may be written", func() bool { return !one[bool](t, dial(t, pg.URL("")), `SELECT pg_is_in_recovery()`) })
}

// copyData copies the data folder of a server that is stopped or paused.
func copyData(t *testing.T, data string) (copied string) {
	t.Helper()
	copied = data + ".copy"
	if out, err := exec.CommandContext(t.Context(), "cp", "-a", data, copied).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return copied
}

// A backup is restored, and the application writes more than was lost before
// the reader comes: neither transaction nor event number gives it away.
func TestBackInTime(t *testing.T) {
	for _, version := range servers.Versions() {
		t.Run(fmt.Sprint("postgres=", version), func(t *testing.T) {
			t.Parallel()
			pg := servers.NewPostgres(t, version)
			url := newOutbox(t, pg, MigrateOptions{})
			data := one[string](t, dial(t, url), `SHOW data_directory`)
			insert(t, url, 20)
			first := take(t, Config{URL: url}, "", 20)
			pg.Stop(t)
			copied := copyData(t, data)
			pg.Start(t)
			insertEach(t, url, 30)
			late := take(t, Config{URL: url}, first.pos, 30)
			swap(t, pg, data, copied)
			insertEach(t, url, 10) // in a leaf of their own, free to be emptied once they are read
			sql(t, dial(t, url), `SELECT setval('onewrite.slot', 1)`)
			insertEach(t, url, 190)
			got := take(t, Config{URL: url}, late.pos, 220)
			if got.gap == nil || !strings.Contains(got.gap.Reason, "back in time") {
				t.Fatalf("gap: %v", got.gap)
			}
			insert(t, url, 1)
			if on := take(t, Config{URL: url}, got.pos, 1); on.gap != nil {
				t.Fatalf("the gap is reported again: %v", on.gap)
			}
		})
	}
}

// A standby takes over that lacks the last moment, which was read and stored
// already. The new primary gives the same transaction numbers out again.
func TestFailoverWithoutTheLastMoment(t *testing.T) {
	for _, version := range servers.Versions() {
		t.Run(fmt.Sprint("postgres=", version), func(t *testing.T) {
			t.Parallel()
			pg := servers.NewPostgres(t, version)
			url := newOutbox(t, pg, MigrateOptions{})
			conn := dial(t, url)
			data := one[string](t, conn, `SHOW data_directory`)
			s := open(t, url, "")
			insert(t, url, 20)
			readN(t, s, 20)
			pg.Pause(t)
			copied := copyData(t, data)
			pg.Resume(t)
			s.session.Lock()
			s.moved = time.Now().Add(time.Hour) // all of it within the second
			s.session.Unlock()
			epoch := s.at.epoch
			insertEach(t, url, 30)
			_, pos := readN(t, s, 30)
			_ = s.Close()
			if p, err := parsePlace(pos); err != nil || p.epoch != epoch {
				t.Fatalf("the register moved by itself, so the last moment is not lost: %+v %v", p, err)
			}
			if err := os.WriteFile(filepath.Join(copied, "recovery.signal"), nil, 0o600); err != nil {
				t.Fatal(err)
			}
			swap(t, pg, data, copied, servers.Set("restore_command", "false"))
			insertEach(t, url, 10)
			sql(t, dial(t, url), `SELECT setval('onewrite.slot', 1)`)
			insertEach(t, url, 190)
			// All of the new history comes; of the old one at most the last moment.
			s = open(t, url, pos)
			if err := s.Ack(t.Context(), pos); err != nil {
				t.Fatal(err)
			}
			ids := map[string]bool{}
			conn = dial(t, url)
			sql(t, conn, `INSERT INTO onewrite.outbox (topic) VALUES ('mark')`)
			for marked := false; !marked; {
				b := read(t, s)
				for _, e := range b.Events {
					ids[e.ID] = true
					marked = marked || e.Topic == "mark"
				}
			}
			var all []string
			rows, err := conn.Query(t.Context(), `SELECT id::text FROM onewrite.outbox WHERE seq > 20`)
			if err != nil {
				t.Fatal(err)
			}
			if all, err = pgx.CollectRows(rows, pgx.RowTo[string]); err != nil || len(all) != 201 {
				t.Fatalf("%d rows are left, want 201 (%v)", len(all), err)
			}
			missing := 0
			for _, id := range all {
				if !ids[id] {
					missing++
				}
			}
			t.Logf("%d events came, %d of them again", len(ids), len(ids)-len(all))
			if missing > 0 || len(ids) > len(all)+20 {
				t.Errorf("%d of %d events of the new history are missing", missing, len(all))
			}
		})
	}
}
