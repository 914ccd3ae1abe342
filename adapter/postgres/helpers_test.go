package postgres

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/internal/servers"
)

// each runs a test on the oldest and the newest server that is at hand, at once: it mostly
// waits.
func each(t *testing.T, f func(t *testing.T, pg *servers.PG)) {
	for _, version := range servers.Versions() {
		t.Run(fmt.Sprintf("postgres=%d", version), func(t *testing.T) {
			t.Parallel()
			f(t, servers.Postgres(t, version))
		})
	}
}

// eachAlone is each on servers of its own.
func eachAlone(t *testing.T, options []servers.Option, f func(t *testing.T, pg *servers.PG)) {
	for _, version := range servers.Versions() {
		t.Run(fmt.Sprintf("postgres=%d", version), func(t *testing.T) {
			t.Parallel()
			f(t, servers.NewPostgres(t, version, options...))
		})
	}
}

// oneAlone runs case i of several on a server of its own, beside the others, and so that
// they share out the versions: for what the versions do not differ in, and takes long.
func oneAlone(t *testing.T, name string, i int, f func(t *testing.T, pg *servers.PG)) {
	versions := servers.Versions()
	version := versions[i%len(versions)]
	t.Run(fmt.Sprintf("%s/postgres=%d", name, version), func(t *testing.T) {
		t.Parallel()
		f(t, servers.NewPostgres(t, version))
	})
}

// eachAsleep is each on servers without two-phase commit, where writers wake the
// reader by NOTIFY.
func eachAsleep(t *testing.T, f func(t *testing.T, pg *servers.PG)) {
	eachAlone(t, []servers.Option{servers.Set("max_prepared_transactions", "0")}, f)
}

// newOutbox makes a database with an outbox.
func newOutbox(t testing.TB, pg *servers.PG, o MigrateOptions) (url string) {
	t.Helper()
	url = pg.NewDatabase(t)
	if _, err := Migrate(t.Context(), url, o); err != nil {
		t.Fatal(err)
	}
	return url
}

// dial opens a plain session.
func dial(t testing.TB, url string) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(context.Background()) })
	return conn
}

// sql runs statements on a session.
func sql(t testing.TB, conn *pgx.Conn, statements ...string) {
	t.Helper()
	for _, s := range statements {
		if _, err := conn.Exec(t.Context(), s); err != nil {
			t.Fatalf("%.200s: %v", s, err)
		}
	}
}

// one returns the only value that a query gives.
func one[T any](t testing.TB, conn *pgx.Conn, query string, args ...any) T {
	t.Helper()
	var v T
	if err := conn.QueryRow(t.Context(), query, args...).Scan(&v); err != nil {
		t.Fatalf("%.200s: %v", query, err)
	}
	return v
}

// psql runs a script as users do, and returns what it printed.
func psql(t testing.TB, url, script string) (string, error) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), servers.Bin(t, "psql"), "-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-d", url)
	cmd.Stdin = strings.NewReader(script)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	return out.String(), err
}

// mustPsql is psql for scripts that have to succeed.
func mustPsql(t testing.TB, url, script string) string {
	t.Helper()
	out, err := psql(t, url, script)
	if err != nil {
		t.Fatalf("psql: %v\n%s\n%s", err, script, out)
	}
	return strings.TrimSpace(out)
}

// logs is a logger that a test can ask.
type logs struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *logs) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *logs) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

func (l *logs) logger() *slog.Logger { return slog.New(slog.NewTextHandler(l, nil)) }

// open opens a source of bus "bus1" and closes it with the test.
func open(t testing.TB, url string, pos onewrite.Pos) *Source {
	t.Helper()
	return openWith(t, Config{URL: url}, pos)
}

func openWith(t testing.TB, cfg Config, pos onewrite.Pos) *Source {
	t.Helper()
	var s *Source
	var err error
	// The server sees the end of a broken session a moment later.
	eventually(t, "the place of the reader before is free", func() bool {
		s, err = tryOpen(t, cfg, pos)
		return !errors.Is(err, onewrite.ErrStandby)
	})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func tryOpen(t testing.TB, cfg Config, pos onewrite.Pos) (*Source, error) {
	t.Helper()
	if cfg.Name == "" {
		cfg.Name = "shop"
	}
	if cfg.BusID == "" {
		cfg.BusID = "bus1"
	}
	s, err := Open(t.Context(), cfg, pos)
	if err == nil {
		t.Cleanup(func() { _ = s.Close() })
	}
	return s, err
}

// read reads one batch.
func read(t testing.TB, s *Source) onewrite.Batch {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	b, err := s.Read(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// readN reads until n events came, and returns them and the last position.
func readN(t testing.TB, s *Source, n int) (events []onewrite.Event, pos onewrite.Pos) {
	t.Helper()
	for len(events) < n {
		b := read(t, s)
		if len(b.Events) > 0 {
			events, pos = append(events, b.Events...), b.Pos
		}
	}
	if len(events) > n {
		t.Fatalf("%d events came, want %d", len(events), n)
	}
	return events, pos
}

// nothing proves that no event comes: a later one is the next.
func nothing(t testing.TB, s *Source, conn *pgx.Conn) {
	t.Helper()
	sql(t, conn, `INSERT INTO onewrite.outbox (topic, payload) VALUES ('mark', 'mark')`)
	if b := read(t, s); len(b.Events) != 1 || b.Events[0].Topic != "mark" {
		t.Fatalf("unexpected events before the mark: %d, first %+v", len(b.Events), b.Events[0])
	}
}

// patience bounds every wait. It says nothing of how fast a thing should be: a
// busy machine stands still for seconds.
const patience = 90 * time.Second

// eventually waits for a condition.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within %v: %s", patience, what)
		}
	}
}

// drain reads on in the background, keeps count and acknowledges. It ends with
// stop, which returns what came.
func drain(t testing.TB, s *Source, ack bool) (count func() int, stop func() []onewrite.Event) {
	count, _, stop = drainPos(t, s, ack)
	return count, stop
}

// drainPos also says where it is.
func drainPos(t testing.TB, s *Source, ack bool) (count func() int, pos func() onewrite.Pos, stop func() []onewrite.Event) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	var mu sync.Mutex
	var events []onewrite.Event
	var at onewrite.Pos
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			b, err := s.Read(ctx)
			if err != nil {
				if ctx.Err() == nil {
					t.Errorf("read: %v", err)
				}
				return
			}
			mu.Lock()
			events, at = append(events, b.Events...), b.Pos
			mu.Unlock()
			if ack {
				if err := s.Ack(ctx, b.Pos); err != nil {
					t.Errorf("ack: %v", err)
				}
			}
		}
	}()
	count = func() int {
		mu.Lock()
		defer mu.Unlock()
		return len(events)
	}
	pos = func() onewrite.Pos {
		mu.Lock()
		defer mu.Unlock()
		return at
	}
	return count, pos, func() []onewrite.Event {
		cancel()
		<-done
		return events
	}
}
