package postgres

import (
	"fmt"
	"testing"
	"time"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/internal/servers"
)

// A gap lasts until a position of after it is stored: a reader that dies before
// that, as often as it likes, begins again at the oldest row.
func TestGapLasts(t *testing.T) {
	each(t, func(t *testing.T, pg *servers.PG) {
		url := newOutbox(t, pg, MigrateOptions{})
		insert(t, url, 20)
		first := take(t, Config{URL: url}, "", 20)
		p, err := parsePlace(first.pos)
		if err != nil {
			t.Fatal(err)
		}
		p.epoch += 3 // of the future that a restored backup does not have
		lost := p.pos()
		insert(t, url, 30)
		for range 5 {
			s := open(t, url, lost)
			if s.gap == nil {
				t.Fatal("the gap is forgotten")
			}
			_ = s.Close()
		}
		got := take(t, Config{URL: url}, lost, 50)
		if got.gap == nil {
			t.Fatal("the gap is forgotten")
		}
		insert(t, url, 1)
		if on := take(t, Config{URL: url}, got.pos, 1); on.gap != nil {
			t.Fatalf("the gap is reported again: %v", on.gap)
		}
	})
}

// The disk's snapshot of a moment is put back, what came after it was read within
// the second in which the register does not move, and numbers and transactions
// are given out again before the reader comes, twice without success.
func TestDiskSnapshotOfTheLastMoment(t *testing.T) {
	for _, version := range servers.Versions() {
		t.Run(fmt.Sprintf("postgres=%d", version), func(t *testing.T) {
			t.Parallel()
			pg := servers.NewPostgres(t, version)
			url := newOutbox(t, pg, MigrateOptions{})
			data := one[string](t, dial(t, url), `SHOW data_directory`)
			s := open(t, url, "")
			insertEach(t, url, 20)
			readN(t, s, 20)
			pg.Pause(t)
			copied := copyData(t, data)
			pg.Resume(t)
			insertEach(t, url, 100)
			_, pos := readN(t, s, 100)
			_ = s.Close()
			swap(t, pg, data, copied)
			insertEach(t, url, 300)
			for range 2 {
				_ = open(t, url, pos).Close()
			}
			conn := dial(t, url)
			sql(t, conn, `INSERT INTO onewrite.outbox (topic) VALUES ('mark')`)
			ids := map[string]bool{}
			s = open(t, url, pos)
			for marked := false; !marked; {
				for _, e := range read(t, s).Events {
					ids[e.ID] = true
					marked = marked || e.Topic == "mark"
				}
			}
			rows, err := conn.Query(t.Context(), `SELECT id::text FROM onewrite.outbox WHERE seq > 20`)
			if err != nil {
				t.Fatal(err)
			}
			n, missing := 0, 0
			for rows.Next() {
				var id string
				if err := rows.Scan(&id); err != nil {
					t.Fatal(err)
				}
				if n++; !ids[id] {
					missing++
				}
			}
			if rows.Err() != nil || n != 301 || missing > 0 {
				t.Errorf("%d of %d events are missing: %v", missing, n, rows.Err())
			}
		})
	}
}

// A recovery from a crash is told from a restart, after which nothing comes
// again.
func TestRecoveryBeginsALine(t *testing.T) {
	for _, version := range servers.Versions() {
		t.Run(fmt.Sprintf("postgres=%d", version), func(t *testing.T) {
			t.Parallel()
			pg := servers.NewPostgres(t, version)
			url := newOutbox(t, pg, MigrateOptions{})
			line := func() uint64 {
				s := open(t, url, "")
				defer s.Close()
				return s.id.line
			}
			was := line()
			pg.Restart(t, false)
			if now := line(); now != was {
				t.Errorf("a restart began a line: %d, %d", was, now)
			}
			pg.Restart(t, true)
			if line() == was {
				t.Error("a recovery began no line")
			}
		})
	}
}

// After a crash only the last moment is read again: also while a transaction is
// open that is older than all, and in the middle of a backlog.
func TestCrashRepeatsLittle(t *testing.T) {
	for _, version := range servers.Versions() {
		t.Run(fmt.Sprintf("postgres=%d", version), func(t *testing.T) {
			t.Parallel()
			pg := servers.NewPostgres(t, version)
			url := newOutbox(t, pg, MigrateOptions{})
			sql(t, dial(t, url), `BEGIN`, `SELECT pg_current_xact_id()`)
			seen, again := map[string]bool{}, 0
			read := func(s *Source, n int) (pos onewrite.Pos) {
				for range n {
					b := read(t, s)
					for i := range b.Events {
						if seen[b.Events[i].ID] {
							again++
						}
						seen[b.Events[i].ID] = true
					}
					pos = b.Pos
				}
				return pos
			}
			all := func(s *Source, n int) (pos onewrite.Pos) {
				for len(seen) < n {
					pos = read(s, 1)
				}
				return pos
			}
			s := open(t, url, "")
			insertEach(t, url, 300)
			all(s, 300)
			s.moved = time.Time{} // as after a second
			insertEach(t, url, 1)
			pos := all(s, 301)
			_ = s.Close()
			pg.Restart(t, true)
			s = open(t, url, pos)
			insertEach(t, url, 1) // now the register need not move for a second
			all(s, 302)
			insert(t, url, 5000)
			pos = all(s, 2302)
			_ = s.Close()
			pg.Restart(t, true)
			all(open(t, url, pos), 5302)
			if again > 10 {
				t.Errorf("%d events came again", again)
			}
		})
	}
}
