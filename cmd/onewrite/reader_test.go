package main

import (
	"database/sql"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestReaderEnds: who reads standard output ends. That is an outage of one destination:
// the others go on, and the program does.
func TestReaderEnds(t *testing.T) {
	path := filepath.Join(t.TempDir(), "shop.db")
	db, err := sql.Open("sqlite", "file:"+path+"?_pragma=busy_timeout(10000)&_pragma=journal_mode(wal)&_txlock=immediate")
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	p := newProgram(t, fmt.Sprintf(`
sources: {shop: {type: sqlite, path: %q}}
destinations:
  pipe: {type: file, path: "-"}
  archive: {type: file, path: events.jsonl}
`, path))
	p.must("migrate")
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	p.cmd = p.command("run")
	p.cmd.Stdout, p.cmd.Stderr = w, p.log
	if err := errors.Join(p.cmd.Start(), w.Close(), r.Close()); err != nil {
		t.Fatal(err)
	}
	exec1(t, db, `INSERT INTO onewrite_outbox (topic, key, payload) VALUES ('order.placed', 'a', '{"k":"a","n":1}')`)
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
		s, err := p.status()
		if err == nil && s.Destinations["archive"].Delivered == 1 && strings.Contains(s.Destinations["pipe"].LastError, "check the program that reads it") {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("%+v, %v", s.Destinations, err)
		}
	}
	p.stop()
}
