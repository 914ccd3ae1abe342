//go:build unix

package main

import (
	"database/sql"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/onewrite/onewrite/internal/servers"
	"github.com/onewrite/onewrite/outbox"
)

// yamlFor writes the destinations of a test.
func yamlFor(source, consumer string) string {
	return fmt.Sprintf(`
sources: {shop: %s}
destinations:
  consumer: {type: webhook, url: %q, allow_private: true, secret: for-tests-only, timeout: 2s}
`, source, consumer)
}

// TestLostBusFolder: events that wait for a destination are on the bus and still
// in the outbox; when the machine with the folder burns, they come again.
func TestLostBusFolder(t *testing.T) {
	t.Run("sqlite", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "shop.db")
		db, err := sql.Open("sqlite", "file:"+path+"?_pragma=busy_timeout(10000)&_pragma=journal_mode(wal)&_txlock=immediate")
		if err != nil {
			t.Fatal(err)
		}
		db.SetMaxOpenConns(1)
		t.Cleanup(func() { db.Close() })
		lostBusFolder(t, db, outbox.SQLite, fmt.Sprintf("{type: sqlite, path: %q}", path))
	})
	t.Run("postgres", func(t *testing.T) {
		url := servers.Postgres(t, 15).NewDatabase(t)
		db, err := sql.Open("pgx", url)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { db.Close() })
		lostBusFolder(t, db, outbox.Postgres, fmt.Sprintf("{type: postgres, url: %q}", url))
	})
}

func lostBusFolder(t *testing.T, db *sql.DB, dialect outbox.Dialect, source string) {
	c := newConsumer(t)
	p := newProgram(t, yamlFor(source, c.server.URL))
	p.must("migrate")
	exec1(t, db, `CREATE TABLE truth (k text, n bigint, PRIMARY KEY (k, n))`)
	p.start()
	load := startLoad(t, db, dialect, c)
	c.waitFor(t, 500)
	c.down.Store(true)
	held := c.count()
	wait(t, func() error { // events pile up on the bus, undelivered
		s, err := p.status()
		if err == nil && s.Sources["shop"].Events < uint64(held)+500 {
			err = fmt.Errorf("the bus has %d events", s.Sources["shop"].Events)
		}
		return err
	})
	p.kill()
	if err := os.RemoveAll(filepath.Join(p.dir, "onewrite-data")); err != nil {
		t.Fatal(err)
	}
	c.down.Store(false)
	p.start()
	wait(t, func() error {
		s, err := p.status()
		if err == nil && s.Sources["shop"].Gap == nil {
			err = fmt.Errorf("the lost bus is not said aloud: %+v", s.Sources["shop"])
		}
		return err
	})
	committed := load.stop()
	c.waitFor(t, committed)
	checkArrived(t, db, c)
	p.stop()
}

// TestFrozenLeader: of two copies on one PostgreSQL one stands by; when the
// active one is frozen the other takes over within 10 s, and the thawed one
// changes nothing.
func TestFrozenLeader(t *testing.T) {
	url := servers.Postgres(t, 15).NewDatabase(t)
	db, err := sql.Open("pgx", url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	c := newConsumer(t)
	yaml := yamlFor(fmt.Sprintf("{type: postgres, url: %q}", url), c.server.URL)
	a, b := newProgram(t, yaml), newProgram(t, yaml)
	a.must("migrate")
	exec1(t, db, `CREATE TABLE truth (k text, n bigint, PRIMARY KEY (k, n))`)
	a.start()
	a.waitState("ok", "catching-up")
	b.start()
	b.waitState("waiting")
	load := startLoad(t, db, outbox.Postgres, c)
	for round := range 4 {
		c.waitFor(t, c.count()+200)
		if err := a.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		frozen, before := time.Now(), c.count()
		b.waitState("ok", "catching-up")
		c.waitFor(t, before+100)
		if took := time.Since(frozen); took > time.Minute {
			t.Errorf("round %d: the standby took %v", round, took)
		}
		if err := a.cmd.Process.Signal(syscall.SIGCONT); err != nil {
			t.Fatal(err)
		}
		a.waitState("waiting")
		a, b = b, a
	}
	committed := load.stop()
	c.waitFor(t, committed)
	checkArrived(t, db, c)
	a.stop()
	b.stop()
}

// waitState waits until the source is in one of the states.
func (p *program) waitState(states ...string) {
	p.t.Helper()
	wait(p.t, func() error {
		s, err := p.status()
		if err != nil {
			return err
		}
		for _, want := range states {
			if string(s.Sources["shop"].State) == want {
				return nil
			}
		}
		return fmt.Errorf("source is %+v, want %v", s.Sources["shop"], states)
	})
}

// TestSecondRunIsRefused: one folder, one process; the port decides nothing.
func TestSecondRunIsRefused(t *testing.T) {
	p := newProgram(t, yamlFor(fmt.Sprintf("{type: sqlite, path: %q}", filepath.Join(t.TempDir(), "a.db")), "http://127.0.0.1:9/"))
	p.must("migrate")
	p.start()
	wait(t, func() error { _, err := p.status(); return err })
	out, err := p.command("run", "--listen", "off").CombinedOutput()
	if err == nil {
		t.Fatal("a second run on the same folder started")
	}
	want := fmt.Sprint(p.cmd.Process.Pid)
	if !strings.Contains(string(out), want) {
		t.Errorf("the refusal does not name pid %s: %s", want, out)
	}
	p.kill() // a lock left by a dead process blocks nobody
	p.start()
	wait(t, func() error { _, err := p.status(); return err })
	p.stop()
	if l, err := net.Listen("tcp", p.addr); err != nil {
		t.Errorf("the port is still taken: %v", err)
	} else {
		l.Close()
	}
}
