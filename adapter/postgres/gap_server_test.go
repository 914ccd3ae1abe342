package postgres

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os/exec"
	"strings"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/onewrite/onewrite/internal/servers"
)

// redial is for a server that went away.
func (f *follower) redial() {
	f.t.Helper()
	eventually(f.t, "the server may be written", func() bool {
		conn, err := pgx.Connect(f.t.Context(), f.url)
		if err != nil {
			return false
		}
		_ = conn.Close(f.t.Context())
		f.conn = dial(f.t, f.url)
		return !one[bool](f.t, f.conn, `SELECT pg_is_in_recovery()`)
	})
}

// lingering are rows that came and are not there: they were deleted in a gap, or are
// of a history that was lost.
func (f *follower) lingering() (keys []string) {
	f.t.Helper()
	for _, table := range []string{"a", "b"} {
		have := tableAsJSON(f.t, f.conn, `SELECT '{"id":' || id || '}', '' FROM `+table)
		for key := range f.state["public."+table] {
			if _, ok := have[key]; !ok {
				keys = append(keys, key)
			}
		}
	}
	return keys
}

// A slot that is kept for too long is given up by the server, while nobody reads it,
// and while a transaction that stays open holds it.
func TestSlotOutOfLog(t *testing.T) {
	options := []servers.Option{servers.NoSync(), servers.Set("max_slot_wal_keep_size", "16MB"), servers.Set("min_wal_size", "32MB"), servers.Set("max_wal_size", "32MB")}
	eachAlone(t, options, func(t *testing.T, pg *servers.PG) {
		f := newFollower(t, pg)
		f.begin()
		lost := func() bool {
			sql(t, f.conn, `INSERT INTO other (pad) VALUES ('x')`, `SELECT pg_switch_wal()`, `CHECKPOINT`)
			return one[bool](t, f.conn, `SELECT wal_status = 'lost' FROM pg_replication_slots`)
		}
		f.close()
		f.change(1)
		eventually(t, "the slot is lost", lost)
		f.change(2)
		f.cfg.HoldGap = true
		f.held("of no more use")
		f.cfg.HoldGap = false
		f.heals("of no more use")

		busy := dial(t, f.url)
		sql(t, busy, `BEGIN`, `INSERT INTO other (pad) VALUES ('x')`)
		f.change(3)
		var err error
		eventually(t, "the slot is lost while it is read", func() bool {
			if err == nil {
				err = f.step()
			}
			return lost()
		})
		if err == nil {
			f.fails("the loss of the slot")
		}
		sql(t, busy, `ROLLBACK`) // a new slot begins when all transactions from before have ended
		f.change(4)
		f.heals("of no more use")
	})
}

// A slot that nobody reads for too long is given up from 18 on.
func TestIdleSlotTimeout(t *testing.T) {
	pg := servers.NewPostgres(t, 18, servers.NoSync(), servers.Set("idle_replication_slot_timeout", "1s"))
	f := newFollower(t, pg)
	f.begin()
	f.close()
	f.change(1)
	eventually(t, "the slot is invalid", func() bool {
		sql(t, f.conn, `CHECKPOINT`)
		return one[bool](t, f.conn, `SELECT coalesce(invalidation_reason, '') = 'idle_timeout' FROM pg_replication_slots`)
	})
	f.cfg.HoldGap = true
	f.held("idle_timeout")
	f.cfg.HoldGap = false
	f.heals("idle_timeout")
}

// A copy of the data folder is put back: of a stopped server, or the disk's snapshot of
// a running one. Rows of the history that is gone linger. If the application writes
// before the reader comes, the log is beyond the place of the reader again.
func TestRestoredLog(t *testing.T) {
	for i, c := range []struct {
		name         string
		cold, beyond bool
		says         string
	}{
		{"cold", true, false, "another history"},
		{"cold, and much written since", true, true, "another history"},
		{"running, and much written since", false, true, "no transaction ends at"},
		{"running", false, false, "its log ends at"},
	} {
		oneAlone(t, c.name, i, func(t *testing.T, pg *servers.PG) {
			f := newFollower(t, pg)
			data := one[string](t, f.conn, `SHOW data_directory`)
			f.begin()
			var copied string
			if c.cold {
				f.close()
				pg.Stop(t)
				copied = copyData(t, data)
				pg.Start(t)
				f.redial()
			} else {
				pg.Pause(t)
				copied = copyData(t, data)
				pg.Resume(t)
			}
			f.change(1)
			sql(t, f.conn, `INSERT INTO a SELECT i, 5 FROM generate_series(20001, 20400) i`, `INSERT INTO other (pad) SELECT repeat('x', 1000) FROM generate_series(1, 5000)`)
			f.settle()
			f.close()
			swap(t, pg, data, copied)
			f.redial()
			if c.beyond {
				sql(t, f.conn, `INSERT INTO a SELECT i, 6 FROM generate_series(30001, 31000) i`, `INSERT INTO other (pad) SELECT repeat('x', 1000) FROM generate_series(1, 9000)`)
				f.change(2)
			}
			f.cfg.HoldGap = true
			f.held(c.says)
			f.cfg.HoldGap = false
			lingering := f.lingering()
			if len(lingering) < 400 {
				t.Fatalf("%d rows are of the history that is gone; nothing is proven", len(lingering))
			}
			f.heals(c.says, lingering...)
		})
	}
}

// The database is dumped and loaded into another cluster: nothing there is of the
// identity that it was, and one onewrite migrate puts it right.
func TestLogOfAnotherCluster(t *testing.T) {
	for _, version := range servers.Versions() {
		t.Run(fmt.Sprint("into=", version), func(t *testing.T) {
			t.Parallel()
			f := newFollower(t, servers.Postgres(t, 15))
			f.begin()
			f.close()
			f.change(1)
			dump, err := exec.CommandContext(t.Context(), servers.Bin(t, "pg_dump"), "-d", f.url).Output()
			if err != nil {
				t.Fatal(err)
			}
			f.url = servers.NewPostgres(t, version, servers.NoSync()).NewDatabase(t)
			mustPsql(t, f.url, string(dump))
			f.cfg.URL, f.conn = f.url, dial(t, f.url)
			f.change(2)
			f.cfg.HoldGap = true
			f.held("row changes")
			f.cure()
			f.heals("another cluster")
		})
	}
}

// A copy takes the place and the name of the database: the cause is said, and not a setting
// that nobody touched.
func TestLogOfACopiedDatabase(t *testing.T) {
	oneAlone(t, "copied", 0, func(t *testing.T, pg *servers.PG) {
		f := newFollower(t, pg)
		f.begin()
		f.close()
		name := one[string](t, f.conn, `SELECT current_database()`)
		_ = f.conn.Close(t.Context())
		admin := dial(t, pg.NewDatabase(t))
		eventually(t, "nobody is in the database", func() bool {
			return one[int](t, admin, `SELECT count(*) FROM pg_stat_activity WHERE datname = '`+name+`'`) == 0
		})
		sql(t, admin, `CREATE DATABASE copied TEMPLATE `+name, `ALTER DATABASE `+name+` RENAME TO old`, `ALTER DATABASE copied RENAME TO `+name)
		f.conn = dial(t, f.url)
		f.change(1)
		f.cfg.HoldGap = true
		if g := f.held("the database is another one of the same server"); strings.Contains(g.Error(), "log_url") {
			t.Error(g)
		}
		f.cfg.HoldGap = false
		f.heals("the database is another one of the same server")
		if n := one[int](t, f.conn, `SELECT count(*) FROM pg_replication_slots WHERE database = 'old'`); n != 1 {
			t.Errorf("the other database has %d slots", n)
		}
	})
}

// The url names another server, which has been read into this bus as well.
func TestLogOfAnotherServer(t *testing.T) {
	old := newFollower(t, servers.Postgres(t, 15))
	old.begin()
	f := newFollower(t, servers.Postgres(t, 18))
	f.begin()
	f.close()
	f.pos, f.cfg.HoldGap = old.pos, true
	f.held("another history")
	f.cfg.HoldGap = false
	f.heals("another history")
}

// load writes until it is stopped, whatever becomes of the server, and counts what was
// committed.
func (f *follower) load(workers int) (stop func() int) {
	ctx, cancel := context.WithCancel(f.t.Context())
	var work sync.WaitGroup
	var mu sync.Mutex
	committed := 0
	for w := range workers {
		rnd := rand.New(rand.NewPCG(uint64(w), 5))
		work.Go(func() {
			var conn *pgx.Conn
			own := context.WithoutCancel(ctx) // each statement ends before stop does
			for i := 1; ctx.Err() == nil; i++ {
				var err error
				if conn == nil || conn.IsClosed() {
					if conn, err = pgx.Connect(own, f.url); err != nil {
						conn = nil
						continue
					}
					_, _ = conn.Exec(own, fmt.Sprintf("SET synchronous_commit = %s", []string{"on", "off"}[w%2]))
				}
				id := rnd.IntN(400) + 1
				q := []string{
					fmt.Sprintf("INSERT INTO a VALUES (%d, %d) ON CONFLICT (id) DO UPDATE SET n = a.n + 1", id, i),
					fmt.Sprintf("DELETE FROM a WHERE id = %d", id),
					fmt.Sprintf("BEGIN; UPDATE a SET n = n + 1 WHERE id = %d; INSERT INTO b VALUES (%d, %d) ON CONFLICT (id) DO UPDATE SET n = b.n + 1; COMMIT", id, id, i),
					fmt.Sprintf("BEGIN; UPDATE a SET n = -1 WHERE id = %d; ROLLBACK", id),
				}[rnd.IntN(4)]
				if _, err = conn.Exec(own, q, pgx.QueryExecModeSimpleProtocol); err == nil {
					mu.Lock()
					committed++
					mu.Unlock()
				}
			}
			if conn != nil {
				_ = conn.Close(context.Background())
			}
		})
	}
	return func() int {
		cancel()
		work.Wait()
		return committed
	}
}

// The server crashes again and again under load. The slot goes back, and all the same
// there is no gap, nothing is lost, and nothing comes again that was stored.
func TestCrashesOfTheServer(t *testing.T) {
	eachAlone(t, nil, func(t *testing.T, pg *servers.PG) {
		f := newFollower(t, pg)
		f.begin()
		back := 0
		stop := f.load(3)
		seen := 0
		for range 5 {
			f.until("much was read", func() bool { return len(f.ids) >= seen+400 })
			p, _, err := splitPlaces(f.pos)
			if err != nil {
				t.Fatal(err)
			}
			pg.Restart(t, true)
			f.redial()
			if one[bool](t, f.conn, `SELECT confirmed_flush_lsn < $1::text::pg_lsn FROM pg_replication_slots`, p.done.String()) {
				back++
			}
			seen = len(f.ids)
		}
		f.until("much was read", func() bool { return len(f.ids) >= seen+400 })
		committed := stop()
		f.settle()
		f.equal()
		f.noGap()
		t.Logf("%d transactions, %d events, the slot went back %d times", committed, len(f.ids), back)
		if len(f.gaps) > 0 || f.again > 0 {
			t.Errorf("%d events came again, gaps: %v", f.again, f.gaps)
		}
		if back < 3 || committed < 1000 {
			t.Errorf("%d transactions, the slot went back %d times: nothing is proven", committed, back)
		}
	})
}
