package inbox_test

import (
	"context"
	"database/sql"
	"fmt"
	"net/url"
	"path/filepath"
	"strings"
	"testing"

	_ "github.com/jackc/pgx/v5/stdlib"
	_ "modernc.org/sqlite"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/inbox"
	"github.com/onewrite/onewrite/internal/servers"
)

// rig is one database with the inbox's tables and one that effects go to.
type rig struct {
	dialect inbox.Dialect
	owner   *sql.DB
	db      *sql.DB // a consumer's role, where there are roles
}

// each runs a test on SQLite and on the oldest and the newest PostgreSQL.
func each(t *testing.T, f func(t *testing.T, r rig)) {
	t.Run("sqlite", func(t *testing.T) { f(t, newSQLite(t)) })
	for _, version := range []int{15, 18} {
		t.Run(fmt.Sprintf("postgres=%d", version), func(t *testing.T) { f(t, newPostgres(t, version)) })
	}
}

func newSQLite(t testing.TB) rig {
	path := filepath.Join(t.TempDir(), "consumer.db")
	q := url.Values{"_pragma": {"busy_timeout(20000)", "journal_mode(WAL)", "synchronous(NORMAL)"}, "_txlock": {"immediate"}}
	db := open(t, "sqlite", "file:"+path+"?"+q.Encode())
	r := rig{inbox.SQLite, db, db}
	r.prepare(t, "")
	return r
}

func newPostgres(t testing.TB, version int) rig {
	pg := servers.Postgres(t, version)
	base := pg.NewDatabase(t)
	role := pg.NewRole(t)
	r := rig{inbox.Postgres, open(t, "pgx", base), open(t, "pgx", role.URL(base))}
	r.db.SetMaxOpenConns(40)
	r.prepare(t, role.Name)
	return r
}

func open(t testing.TB, driver, dsn string) *sql.DB {
	t.Helper()
	db, err := sql.Open(driver, dsn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	return db
}

func (r rig) prepare(t testing.TB, role string) {
	t.Helper()
	// Twice: it may be run again.
	for range 2 {
		for _, s := range strings.SplitAfter(inbox.Schema(r.dialect, role), ";\n") {
			if strings.TrimSpace(s) != "" {
				r.exec(t, s)
			}
		}
	}
	if err := inbox.New(r.dialect, "any").Migrate(t.Context(), r.owner); err != nil {
		t.Fatal(err)
	}
	r.exec(t, `CREATE TABLE effect (id text, key text)`)
	if role != "" {
		r.exec(t, `GRANT SELECT, INSERT ON effect TO "`+role+`"`)
	}
}

func (r rig) exec(t testing.TB, query string) {
	t.Helper()
	if _, err := r.owner.ExecContext(t.Context(), query); err != nil {
		t.Fatalf("%s: %v", query, err)
	}
}

// count is the one number that a query gives.
func (r rig) count(t testing.TB, query string) (n int) {
	t.Helper()
	if err := r.owner.QueryRowContext(context.Background(), query).Scan(&n); err != nil {
		t.Fatalf("%s: %v", query, err)
	}
	return n
}

// effect is what a consumer does in its transaction.
func (r rig) effect(ctx context.Context, tx *sql.Tx, e onewrite.Event) error {
	query := `INSERT INTO effect (id, key) VALUES (?, ?)`
	if r.dialect == inbox.Postgres {
		query = `INSERT INTO effect (id, key) VALUES ($1, $2)`
	}
	_, err := tx.ExecContext(ctx, query, e.ID, e.Key)
	return err
}

// apply handles one event and checks what became of it.
func (r rig) apply(t testing.TB, in *inbox.Inbox, m inbox.Message, want inbox.Outcome) {
	t.Helper()
	got, err := in.Apply(t.Context(), r.db, m, func(ctx context.Context, tx *sql.Tx) error { return r.effect(ctx, tx, m.Event) })
	if got != want || (err != nil) != (want == inbox.Gap) {
		t.Fatalf("event %s: %v (%v), want %v", m.ID, got, err, want)
	}
}

// event n of a key, as a source makes it.
func event(n int, key string) onewrite.Event {
	return onewrite.Event{ID: fmt.Sprintf("id-%06d", n), Source: "shop", Topic: "order.placed", Type: "order.placed", Key: key, Seq: fmt.Sprintf("%020d", n)}
}

func message(n int, key string) inbox.Message { return inbox.Message{Event: event(n, key)} }
