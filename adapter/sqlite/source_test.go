package sqlite

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/outbox"
)

// TestMain lets the test program play another process: it opens the source,
// says so, and stays until its standard input ends or it is killed.
func TestMain(m *testing.M) {
	if path := os.Getenv("ONEWRITE_TEST_HOLD"); path != "" {
		s, err := Open(context.Background(), Config{Name: "shop", Path: path}, "")
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		fmt.Println("open")
		_, _ = io.Copy(io.Discard, os.Stdin)
		_ = s.Close()
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func TestOneReaderAtATime(t *testing.T) {
	path := migrated(t, "", MigrateOptions{})
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "ONEWRITE_TEST_HOLD="+path)
	in, err1 := cmd.StdinPipe()
	out, err2 := cmd.StdoutPipe()
	if err := errors.Join(err1, err2, cmd.Start()); err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	said := make([]byte, 5)
	if _, err := io.ReadFull(out, said); err != nil || string(said) != "open\n" {
		t.Fatalf("%q %v", said, err)
	}
	if _, err := Open(t.Context(), Config{Name: "shop", Path: path}, ""); !errors.Is(err, onewrite.ErrStandby) {
		t.Fatal("second process:", err)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	s := opened(t, path, "") // a dead process blocks nobody
	if _, err := Open(t.Context(), Config{Name: "shop", Path: path}, ""); !errors.Is(err, onewrite.ErrStandby) {
		t.Fatal("same process:", err)
	}
	link := filepath.Join(t.TempDir(), "link.db")
	if os.Symlink(path, link) == nil {
		if _, err := Open(t.Context(), Config{Name: "shop", Path: link}, ""); !errors.Is(err, onewrite.ErrStandby) {
			t.Fatal("by a link:", err)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	opened(t, path, "")
}

func TestMissingThingsSayTheCure(t *testing.T) {
	path := filepath.Join(t.TempDir(), "no.db")
	if _, err := Open(t.Context(), Config{Name: "shop", Path: path}, ""); err == nil || !strings.HasSuffix(err.Error(), migrateHint) {
		t.Error(err)
	}
	if _, err := os.Stat(path); err == nil {
		t.Error("Open made the file")
	}
	exec1(t, app(t, path), "CREATE TABLE x (a)")
	if _, err := Open(t.Context(), Config{Name: "shop", Path: path}, ""); err == nil || !strings.HasSuffix(err.Error(), migrateHint) {
		t.Error(err)
	}
	if _, err := Open(t.Context(), Config{Name: "shop", Path: path}, "0/16B3748"); err == nil || !strings.Contains(err.Error(), "position") {
		t.Error(err)
	}
}

func TestUncommittedIsNotSeen(t *testing.T) {
	path := migrated(t, "CREATE TABLE o (id INTEGER PRIMARY KEY)", MigrateOptions{Tables: []string{"o"}})
	s, db := opened(t, path, ""), app(t, path)
	for _, q := range []string{
		"BEGIN", "INSERT INTO onewrite_outbox (topic) VALUES ('rolled.back')", "INSERT INTO o VALUES (1)", "ROLLBACK",
		"BEGIN", "INSERT INTO onewrite_outbox (topic) VALUES ('kept')", "SAVEPOINT s",
		"INSERT INTO onewrite_outbox (topic) VALUES ('undone')", "INSERT INTO o VALUES (2)", "ROLLBACK TO s",
	} {
		exec1(t, db, q)
	}
	quiet(t, s)
	exec1(t, db, "COMMIT")
	if ev, _, _ := read(t, s, 1); ev[0].Topic != "kept" {
		t.Error(ev)
	}
	quiet(t, s)
}

// A source opened at any place that was handed out goes on exactly there, also
// in the middle of a batch and while rows before it are deleted.
func TestRestartAnywhere(t *testing.T) {
	path := migrated(t, "", MigrateOptions{})
	db := app(t, path)
	exec1(t, db, "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 2500) INSERT INTO onewrite_outbox (topic, payload) SELECT 't', i FROM n")
	s := opened(t, path, "")
	var all []onewrite.Event
	var places []onewrite.Pos
	for len(all) < 2500 {
		b, err := s.Read(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if len(b.Events) > onewrite.MaxBatch {
			t.Fatal("batch of", len(b.Events))
		}
		for i := range b.Events {
			places = append(places, b.PosAt(i))
		}
		if all = append(all, b.Events...); b.Pos != places[len(places)-1] {
			t.Fatal(b.Pos, places[len(places)-1])
		}
	}
	for i, e := range all {
		if string(e.Data) != fmt.Sprint(i+1) {
			t.Fatalf("event %d is %s", i, e.Data)
		}
	}
	for _, at := range []int{0, 1, 499, 500, 999, 1000, 1700, 2498} {
		_ = s.Close()
		s = opened(t, path, places[at])
		got, _, gap := read(t, s, len(all)-at-1)
		if gap != nil || got[0].ID != all[at+1].ID || got[0].Seq != all[at+1].Seq || string(got[0].Data) != string(all[at+1].Data) {
			t.Fatalf("at %d: gap %v, got %v, want %v", at, gap, got[0], all[at+1])
		}
		if err := s.Ack(t.Context(), places[at]); err != nil {
			t.Fatal(err)
		}
		until(t, "rows deleted", func() bool {
			return value[int](t, db, "SELECT coalesce(min(seq), 0) FROM onewrite_outbox") == at+2
		})
	}
	_ = s.Close()
	s = opened(t, path, places[2499])
	quiet(t, s)
}

func TestBatchesAreBoundedByBytes(t *testing.T) {
	path := migrated(t, "", MigrateOptions{})
	exec1(t, app(t, path), "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 20) INSERT INTO onewrite_outbox (topic, payload_bytes) SELECT 't', zeroblob(100000) FROM n")
	s, err := Open(t.Context(), Config{Name: "shop", Path: path, MaxBatchBytes: 350_000}, "")
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for n := 0; n < 20; {
		b, err := s.Read(t.Context())
		if err != nil || len(b.Events) == 0 || len(b.Events) > 3 {
			t.Fatal(len(b.Events), err)
		}
		if n += len(b.Events); b.More != (n < 20) {
			t.Errorf("%d of 20 events came, and there are more: %v", n, b.More)
		}
	}
	quiet(t, s)
}

// The bell wakes a reader in this process; another one is found by asking.
func TestWakeUp(t *testing.T) {
	path := migrated(t, "", MigrateOptions{})
	s, db := opened(t, path, ""), app(t, path)
	quiet(t, s)
	for range 3 {
		exec1(t, db, "INSERT INTO onewrite_outbox (topic) VALUES ('a')")
		outbox.Ring()
		read(t, s, 1)
	}
	if out, err := shell(t, path, "INSERT INTO onewrite_outbox (topic) VALUES ('a');"); err != nil {
		t.Fatal(out)
	}
	read(t, s, 1)
}

func TestReadEndsWithContext(t *testing.T) {
	path := migrated(t, "", MigrateOptions{})
	s := opened(t, path, "")
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		_, err := s.Read(ctx)
		ended <- err
	}()
	cancel()
	select {
	case err := <-ended:
		if !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	case <-time.After(patience):
		t.Error("Read goes on")
	}
}

// Acknowledged rows go by themselves, in short transactions, whatever their size,
// while the application writes.
func TestReclaim(t *testing.T) {
	path := migrated(t, "CREATE TABLE x (a)", MigrateOptions{MaxEvent: 2 << 20})
	db := app(t, path)
	exec1(t, db, "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 8000) INSERT INTO onewrite_outbox (topic, payload) SELECT 't', printf('%0200d', i) FROM n")
	exec1(t, db, "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 40) INSERT INTO onewrite_outbox (topic, payload) SELECT 't', printf('%.*c', 1000000, 'x') FROM n")
	exec1(t, db, "INSERT INTO onewrite_outbox (topic) VALUES ('last')")
	s := opened(t, path, "")
	_, pos, _ := read(t, s, 8041)
	exec1(t, db, "INSERT INTO onewrite_outbox (topic) VALUES ('kept')")
	start := time.Now()
	if err := s.Ack(t.Context(), pos); err != nil {
		t.Fatal(err)
	}
	n := 0
	until(t, "acknowledged rows deleted", func() bool {
		exec1(t, db, "INSERT INTO x VALUES (1)")
		n++
		return value[int](t, db, "SELECT min(seq) FROM onewrite_outbox") == 8042
	})
	// How long one takes is the benchmark's to say: that the rows went in many,
	// and the application's writes between them, is what keeps them short.
	deletes := s.deletes.Load()
	t.Logf("%v, %d transactions, %d writes of the application meanwhile, longest %v", time.Since(start), deletes, n, time.Duration(s.longest.Load()))
	if deletes < 8041/maxBudget+40*244/maxBudget {
		t.Errorf("only %d deleting transactions", deletes)
	}
	if topic := value[string](t, db, "SELECT topic FROM onewrite_outbox"); topic != "kept" {
		t.Error(topic)
	}
	if err := s.Ack(t.Context(), pos); err != nil { // late and repeated
		t.Error(err)
	}
	read(t, s, 1)
	// The numbers go on although the table was empty.
	exec1(t, db, "DELETE FROM onewrite_outbox")
	exec1(t, db, "INSERT INTO onewrite_outbox (topic) VALUES ('next')")
	if ev, _, _ := read(t, s, 1); ev[0].Seq != sequence(8043) {
		t.Error(ev[0].Seq)
	}
}

// While the application holds the file nothing is deleted and nothing fails.
func TestReclaimWaitsForTheApplication(t *testing.T) {
	path := migrated(t, "", MigrateOptions{})
	db := app(t, path)
	exec1(t, db, "INSERT INTO onewrite_outbox (topic) VALUES ('a')")
	s := opened(t, path, "")
	_, pos, _ := read(t, s, 1)
	exec1(t, db, "BEGIN IMMEDIATE")
	if err := s.Ack(t.Context(), pos); err != nil {
		t.Fatal(err)
	}
	quiet(t, s)
	quiet(t, s)
	exec1(t, db, "COMMIT")
	until(t, "row deleted", func() bool { return value[int](t, db, "SELECT count(*) FROM onewrite_outbox") == 0 })
	if err := s.Ack(t.Context(), pos); err != nil {
		t.Error(err)
	}
}
