package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/internal/servers"
)

// migrated makes a database and its outbox, and runs setup before.
func migrated(tb testing.TB, setup string, o MigrateOptions) string {
	tb.Helper()
	path := filepath.Join(tb.TempDir(), "app.db")
	if setup != "" {
		exec1(tb, app(tb, path), setup)
	}
	if _, err := Migrate(tb.Context(), path, o); err != nil {
		tb.Fatal(err)
	}
	return path
}

// app is the application's connection.
func app(tb testing.TB, path string, pragmas ...string) *sql.DB {
	tb.Helper()
	dsn, err := dataSource(path, "rwc", append(pragmas, "busy_timeout(10000)"))
	if err != nil {
		tb.Fatal(err)
	}
	db, err := sql.Open("sqlite", dsn)
	if err != nil {
		tb.Fatal(err)
	}
	db.SetMaxOpenConns(1)
	tb.Cleanup(func() { db.Close() })
	return db
}

func exec1(tb testing.TB, db interface {
	Exec(string, ...any) (sql.Result, error)
}, query string, args ...any) {
	tb.Helper()
	if _, err := db.Exec(query, args...); err != nil {
		tb.Fatalf("%.200s: %v", query, err)
	}
}

func value[T any](tb testing.TB, db *sql.DB, query string, args ...any) (v T) {
	tb.Helper()
	if err := db.QueryRow(query, args...).Scan(&v); err != nil {
		tb.Fatalf("%.200s: %v", query, err)
	}
	return v
}

// shell runs SQL in the sqlite3 program and returns what it says.
func shell(tb testing.TB, path, query string) (string, error) {
	tb.Helper()
	cmd := exec.Command(servers.Bin(tb, "sqlite3"), "-batch", "-bail", path)
	cmd.Stdin = strings.NewReader(".timeout 10000\n" + query)
	out, err := cmd.CombinedOutput()
	return strings.TrimSpace(string(out)), err
}

func opened(tb testing.TB, path string, pos onewrite.Pos) *Source {
	tb.Helper()
	s, err := Open(tb.Context(), Config{Name: "shop", Path: path, BusID: "bus-1"}, pos)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { s.Close() })
	return s
}

// read reads until n events came; the first gap met is returned too.
func read(tb testing.TB, s *Source, n int) (events []onewrite.Event, pos onewrite.Pos, gap *onewrite.Gap) {
	tb.Helper()
	ctx, cancel := context.WithTimeout(tb.Context(), patience)
	defer cancel()
	for len(events) < n {
		b, err := s.Read(ctx)
		if err != nil {
			tb.Fatalf("after %d of %d events: %v", len(events), n, err)
		}
		events, pos = append(events, b.Events...), b.Pos
		if gap == nil {
			gap = b.Gap
		}
	}
	if len(events) != n {
		tb.Fatalf("got %d events, want %d", len(events), n)
	}
	return events, pos, gap
}

// quiet fails if anything more is handed over.
func quiet(tb testing.TB, s *Source) {
	tb.Helper()
	ctx, cancel := context.WithTimeout(tb.Context(), 150*time.Millisecond)
	defer cancel()
	if b, err := s.Read(ctx); err == nil {
		tb.Fatalf("unexpected batch: %d events, gap %v", len(b.Events), b.Gap)
	} else if ctx.Err() == nil {
		tb.Fatal(err)
	}
}

// patience bounds every wait. It says nothing of how fast a thing should be: a
// busy machine stands still for seconds.
const patience = 60 * time.Second

// until waits for a condition.
func until(tb testing.TB, what string, cond func() bool) {
	tb.Helper()
	deadline := time.Now().Add(patience)
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for !cond() {
		if time.Now().After(deadline) {
			tb.Fatalf("not within %v: %s", patience, what)
		}
		<-tick.C
	}
}

func isGapError(err error) bool {
	var gap *onewrite.Gap
	return errors.Is(err, onewrite.ErrGap) && errors.As(err, &gap) && gap.Cure != ""
}

// isGap expects Read to say that only an operator can go on.
func isGap(tb testing.TB, s *Source) {
	tb.Helper()
	ctx, cancel := context.WithTimeout(tb.Context(), patience)
	defer cancel()
	for {
		if _, err := s.Read(ctx); isGapError(err) {
			return
		} else if err != nil {
			tb.Fatal(err)
		}
	}
}

// pos2 is the position behind the last row.
func pos2(tb testing.TB, path string, pos onewrite.Pos) onewrite.Pos {
	tb.Helper()
	p, err := parsePlace(pos)
	if err != nil {
		tb.Fatal(err)
	}
	db := app(tb, path)
	p.seq = value[int64](tb, db, "SELECT max(seq) FROM onewrite_outbox")
	p.id = value[string](tb, db, "SELECT id FROM onewrite_outbox ORDER BY seq DESC LIMIT 1")
	return p.pos()
}
