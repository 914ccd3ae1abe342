package onewritetest_test

import (
	"database/sql"
	"fmt"
	"net/url"
	"path/filepath"
	"runtime"
	"testing"

	_ "github.com/jackc/pgx/v5/stdlib"
	_ "modernc.org/sqlite"

	"github.com/onewrite/onewrite/adapter/postgres"
	"github.com/onewrite/onewrite/adapter/sqlite"
	"github.com/onewrite/onewrite/internal/servers"
	"github.com/onewrite/onewrite/outbox"
)

// witness is a test that fails without ending the real one.
type witness struct {
	testing.TB
	said string
}

func (w *witness) Helper() {}

func (w *witness) Fatal(args ...any) {
	w.said = fmt.Sprint(args...)
	runtime.Goexit()
}

func (w *witness) Fatalf(format string, args ...any) { w.Fatal(fmt.Sprintf(format, args...)) }

// failure runs f and returns what it ended the test with; "" if it passed.
func failure(t *testing.T, f func(tb testing.TB)) string {
	t.Helper()
	w := &witness{TB: t}
	done := make(chan struct{})
	go func() {
		defer close(done)
		f(w)
	}()
	<-done
	return w.said
}

// database is one with an outbox, as its owner sees it.
type database struct {
	*sql.DB
	events *outbox.Publisher
	url    string // PostgreSQL's
}

func open(t *testing.T, driver, dsn string) *sql.DB {
	t.Helper()
	db, err := sql.Open(driver, dsn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	return db
}

func newSQLite(t *testing.T) database {
	t.Helper()
	path := filepath.Join(t.TempDir(), "app.db")
	if _, err := sqlite.Migrate(t.Context(), path, sqlite.MigrateOptions{}); err != nil {
		t.Fatal(err)
	}
	q := url.Values{"_pragma": {"busy_timeout(10000)"}}
	return database{open(t, "sqlite", "file:"+path+"?"+q.Encode()), outbox.New(outbox.SQLite), ""}
}

func newPostgres(t *testing.T, version int, o postgres.MigrateOptions) database {
	t.Helper()
	dsn := servers.Postgres(t, version).NewDatabase(t)
	if _, err := postgres.Migrate(t.Context(), dsn, o); err != nil {
		t.Fatal(err)
	}
	return database{open(t, "pgx", dsn), outbox.New(outbox.Postgres), dsn}
}

// each runs a test on SQLite and on the oldest and the newest PostgreSQL.
func each(t *testing.T, f func(t *testing.T, db database)) {
	t.Run("sqlite", func(t *testing.T) { f(t, newSQLite(t)) })
	for _, version := range []int{15, 18} {
		t.Run(fmt.Sprintf("postgres=%d", version), func(t *testing.T) {
			f(t, newPostgres(t, version, postgres.MigrateOptions{}))
		})
	}
}

// begin begins a transaction that is rolled back with the test.
func (db database) begin(t *testing.T) *sql.Tx {
	t.Helper()
	tx, err := db.BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = tx.Rollback() })
	return tx
}

func (db database) publish(t *testing.T, tx outbox.Execer, events ...outbox.Event) {
	t.Helper()
	if err := db.events.Publish(t.Context(), tx, events...); err != nil {
		t.Fatal(err)
	}
}

func execute(t *testing.T, tx outbox.Execer, statements ...string) {
	t.Helper()
	for _, s := range statements {
		if _, err := tx.ExecContext(t.Context(), s); err != nil {
			t.Fatalf("%s: %v", s, err)
		}
	}
}
