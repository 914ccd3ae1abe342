//go:build unix

package postgres

import (
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/onewrite/onewrite/internal/pgoutput"
	"github.com/onewrite/onewrite/internal/servers"
)

// What the server has in its log and does not send is a lag, and is said; when it sends
// again it is none.
func TestLag(t *testing.T) {
	t.Parallel()
	pg := servers.NewPostgres(t, 18)
	var mu sync.Mutex
	said := ""
	f := newFollower(t, pg)
	f.cfg.Trouble = func(name, problem string) {
		if name == "log" {
			mu.Lock()
			said = problem
			mu.Unlock()
		}
	}
	f.begin()
	lag := f.src.(*Both).Lag
	if d := lag(); d != 0 {
		t.Errorf("a lag of %v where all was read", d)
	}
	pid := one[int](t, f.conn, `SELECT pid FROM pg_stat_replication`)
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	cont := sync.OnceFunc(func() { _ = syscall.Kill(pid, syscall.SIGCONT) })
	t.Cleanup(cont)
	n := len(f.ids)
	sql(t, f.conn, `INSERT INTO a VALUES (77777, 1)`)
	f.until("the lag is said", func() bool {
		mu.Lock()
		defer mu.Unlock()
		return lag() >= stuck && strings.Contains(said, "has sent nothing of its log for")
	})
	if len(f.ids) != n {
		t.Fatal("the server has sent something; nothing is proven")
	}
	cont()
	f.until("there is none", func() bool {
		mu.Lock()
		defer mu.Unlock()
		return lag() == 0 && said == "" && len(f.ids) > n
	})
}

// measured waits until it was looked at how far the bus is behind where the log ends now, and
// returns whether it is.
func (r *rig) measured() (behind bool) {
	r.t.Helper()
	log := r.src.(*Both).log.Load()
	end, err := pgoutput.ParseLSN(one[string](r.t, r.conn, `SELECT pg_current_wal_flush_lsn()::text`))
	if err != nil {
		r.t.Fatal(err)
	}
	eventually(r.t, "the log is looked at", func() bool {
		log.mu.Lock()
		defer log.mu.Unlock()
		n := len(log.lag.marks)
		behind = n > 0 && log.lag.marks[n-1].end >= end
		return behind || log.lag.at >= end
	})
	return behind
}

// What the server has sent is not read yet: a change that waits behind the snapshot of a
// table without a key is behind, though all of it fits into the sockets.
func TestLagBehindSnapshot(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, pg *servers.PG) {
		r := newRig(t, pg, `CREATE TABLE lane (n int, pad text); ALTER TABLE lane ALTER pad SET STORAGE EXTERNAL; INSERT INTO lane SELECT i, repeat('x', 20000) FROM generate_series(1, 2000) i; CREATE TABLE a (id int PRIMARY KEY)`, "public.lane", "public.a")
		r.open()
		r.read()
		sql(t, r.conn, `INSERT INTO a VALUES (1)`)
		if !r.measured() {
			t.Fatal("a change that waits is not behind")
		}
		for came := false; !came; {
			for _, e := range r.read().Events {
				came = came || e.Topic == "public.a" && e.Type == "insert"
			}
		}
		eventually(t, "nothing is behind", func() bool { return !r.measured() && r.src.(*Both).Lag() == 0 })
	})
}

// While the slot cannot be made nothing of the log is read, unless the ring has it all.
func TestLagWithoutLog(t *testing.T) {
	t.Parallel()
	pg := servers.NewPostgres(t, 18)
	r := newRig(t, pg, `CREATE TABLE a (id int PRIMARY KEY)`, "public.a")
	busy := dial(t, r.url)
	sql(t, busy, `BEGIN`, `SELECT pg_current_xact_id()`)
	r.open()
	if d := r.src.(*Both).Lag(); d != 0 {
		t.Errorf("a lag of %v at once", d)
	}
	sql(t, r.conn, `INSERT INTO a VALUES (1)`)
	eventually(t, "what cannot be read is behind", func() bool { return r.src.(*Both).Lag() >= lagTold })
	ring := &Both{ring: &Source{cfg: Config{Pushed: true}}}
	if d := ring.Lag(); d != 0 {
		t.Errorf("a lag of %v where the ring has it all", d)
	}
	sql(t, busy, `COMMIT`)
	r.expect(`a snapshot {"id":1} null {"id":1}`)
	eventually(t, "nothing is behind", func() bool { return !r.measured() && r.src.(*Both).Lag() == 0 })
}

// Log that holds nothing of ours is read too, and what an idle server writes by itself.
func TestNoLagOfOthers(t *testing.T) {
	t.Parallel()
	eachAlone(t, nil, func(t *testing.T, pg *servers.PG) {
		r := newRig(t, pg, `CREATE TABLE a (id int PRIMARY KEY)`, "public.a")
		r.open()
		r.whole()
		for _, s := range []string{`CREATE TABLE x AS SELECT i FROM generate_series(1, 100000) i`, `SELECT pg_switch_wal()`} {
			sql(t, r.conn, s)
			eventually(t, "nothing is behind after "+s, func() bool { return !r.measured() && r.src.(*Both).Lag() == 0 })
		}
	})
}

// The oldest end of the log that was not read up to is the lag; what is new is none yet.
func TestLogLag(t *testing.T) {
	var l logLag
	at := func(s int) time.Time { return time.Unix(int64(s), 0) }
	for _, c := range []struct {
		second   int
		end, got uint64
		want     time.Duration
	}{
		{0, 10, 10, 0}, {3, 20, 10, 0}, {6, 30, 10, 0}, {9, 40, 10, 6 * time.Second}, {12, 50, 10, 9 * time.Second},
		{15, 60, 35, 6 * time.Second}, {18, 70, 60, 0}, {21, 70, 70, 0}, {60, 70, 70, 0},
	} {
		l.note(at(c.second), pgoutput.LSN(c.end), pgoutput.LSN(c.got))
		if d := l.behind(at(c.second)); d != c.want {
			t.Errorf("after %d s: %v, want %v", c.second, d, c.want)
		}
	}
	for end, want := range map[uint64]time.Duration{70 + far - 1: 0, 70 + far: time.Millisecond} { // much, and at once
		much := logLag{}
		much.note(at(0), pgoutput.LSN(end), 70)
		if d := much.behind(at(0)); d != want {
			t.Errorf("%d bytes: %v, want %v", end-70, d, want)
		}
	}
	for s := 100; s < 100+5*maxMarks; s++ { // for long: the lag is that of the oldest, and what is remembered is bounded
		l.note(at(s), pgoutput.LSN(s), 80)
		if d := l.behind(at(s)); s >= 106 && d != at(s).Sub(at(100)) || len(l.marks) > maxMarks {
			t.Fatalf("after %d s: %v, %d marks", s, d, len(l.marks))
		}
	}
	if l.note(at(8000), 7000, 4000); l.behind(at(8000)) < 3500*time.Second || l.behind(at(8000)) > 4000*time.Second {
		t.Errorf("when it has read on: %v", l.behind(at(8000)))
	}
}
