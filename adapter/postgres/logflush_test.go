package postgres

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/onewrite/onewrite/internal/servers"
)

// What is committed with synchronous_commit = off is decoded once it is on disk. The WAL
// writer of this server sleeps for ten seconds; a session of ours does not.
func TestFlushWithin(t *testing.T) {
	for _, version := range servers.Versions() {
		t.Run(fmt.Sprint("postgres=", version), func(t *testing.T) {
			t.Parallel()
			pg := servers.NewPostgres(t, version, servers.Set("wal_writer_delay", "10s"), servers.Set("autovacuum", "off"))
			r := newRig(t, pg, `CREATE TABLE a (id int PRIMARY KEY)`, "public.a")
			r.cfg.FlushWithin = 50 * time.Millisecond
			r.open()
			r.whole()
			sql(t, r.conn, `INSERT INTO a VALUES (0)`)
			r.events(1)
			eventually(t, "somebody looks", func() bool { return r.looks() != "" })

			// As long as every commit is on disk, nobody helps.
			before, commits, looks := r.xid(), 0, map[string]bool{}
			for ; len(looks) < 30; commits++ {
				sql(t, r.conn, fmt.Sprintf(`INSERT INTO a VALUES (%d)`, 1000+commits))
				looks[r.looks()] = true
			}
			if spent := r.xid() - before - commits; spent > 5 {
				t.Errorf("%d transactions of ours among %d that were on disk", spent, commits)
			}
			r.events(commits)

			sql(t, r.conn, `SET synchronous_commit = off`)
			began := time.Now()
			for i := range 20 {
				sql(t, r.conn, fmt.Sprintf(`INSERT INTO a VALUES (%d)`, i+1))
				r.events(1)
			}
			if took := time.Since(began); took > 50*time.Second {
				t.Errorf("20 commits took %v to come", took)
			}

			// It ends with what it is for, and does not wake itself.
			eventually(t, "nobody looks any more", func() bool {
				return one[bool](t, r.conn, `SELECT clock_timestamp() - state_change > interval '4 seconds' FROM pg_stat_activity WHERE application_name = 'onewrite flush'`)
			})
			sql(t, r.conn, `INSERT INTO a VALUES (-1)`) // comes in the server's time
			if err := r.src.Close(); err != nil {
				t.Fatal(err)
			}
			eventually(t, "its session ends", func() bool {
				return one[int](t, r.conn, `SELECT count(*)::int FROM pg_stat_activity WHERE application_name = 'onewrite flush'`) == 0
			})
		})
	}
}

// looks is when the last look at the log was; "" if there was none.
func (r *rig) looks() string {
	r.t.Helper()
	return one[string](r.t, r.conn, `SELECT coalesce(max(query_start)::text, '') FROM pg_stat_activity WHERE application_name = 'onewrite flush' AND query LIKE '%flush_lsn%'`)
}

func (r *rig) xid() int {
	r.t.Helper()
	return one[int](r.t, r.conn, `SELECT pg_snapshot_xmax(pg_current_snapshot())::text::int`)
}

// A session that is cut is opened again.
func TestFlushSessionCut(t *testing.T) {
	r := newRig(t, servers.Postgres(t, 15), `CREATE TABLE a (id int PRIMARY KEY)`, "public.a")
	r.cfg.FlushWithin = 10 * time.Millisecond
	heard := make(chan string, 100)
	r.cfg.Trouble = func(name, problem string) {
		if name == "flush_within" {
			heard <- problem
		}
	}
	r.open()
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	go func() {
		for ctx.Err() == nil {
			if _, err := r.src.Read(ctx); err != nil && ctx.Err() == nil {
				t.Error(err)
				return
			}
		}
	}()
	stir := func(what string, done func() bool) {
		t.Helper()
		n := 0
		eventually(t, what, func() bool {
			n++
			sql(t, r.conn, fmt.Sprintf(`INSERT INTO a VALUES (%d) ON CONFLICT (id) DO UPDATE SET id = a.id`, n))
			return done()
		})
	}
	stir("the session looks", func() bool { return r.looks() != "" })
	sql(t, r.conn, `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'onewrite flush'`)
	for _, over := range []bool{false, true} {
		stir("it is said", func() bool {
			select {
			case problem := <-heard:
				if over != (problem == "") {
					t.Errorf("said %q", problem)
				}
				return true
			default:
				return false
			}
		})
	}
	stir("the session looks again", func() bool { return r.looks() != "" })
}
