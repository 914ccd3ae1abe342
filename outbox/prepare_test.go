package outbox_test

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"modernc.org/sqlite"

	"github.com/onewrite/onewrite/outbox"
)

// counting is the SQLite driver, and counts the INSERTs into the outbox that it
// compiles.
type counting struct{ driver.Driver }

type countingConn struct {
	driver.Conn
	driver.ConnBeginTx
	driver.ExecerContext
	driver.ConnPrepareContext
}

var compiled atomic.Int64

func init() { sql.Register("counting", counting{&sqlite.Driver{}}) }

func note(query string) {
	if strings.HasPrefix(query, "INSERT INTO onewrite_outbox") {
		compiled.Add(1)
	}
}

func (d counting) Open(name string) (driver.Conn, error) {
	c, err := d.Driver.Open(name)
	if err != nil {
		return nil, err
	}
	return countingConn{c, c.(driver.ConnBeginTx), c.(driver.ExecerContext), c.(driver.ConnPrepareContext)}, nil
}

func (c countingConn) ExecContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Result, error) {
	note(query)
	return c.ExecerContext.ExecContext(ctx, query, args)
}

func (c countingConn) PrepareContext(ctx context.Context, query string) (driver.Stmt, error) {
	note(query)
	return c.ConnPrepareContext.PrepareContext(ctx, query)
}

func openCounting(t *testing.T) *sql.DB {
	t.Helper()
	db, err := sql.Open("counting", "file:"+filepath.ToSlash(filepath.Join(t.TempDir(), "app.db"))+"?_pragma=journal_mode(wal)&_pragma=busy_timeout(5000)")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	db.SetMaxOpenConns(1)
	if _, err := db.Exec(schema); err != nil {
		t.Fatal(err)
	}
	return db
}

// TestPrepare publishes single events by a statement that is compiled once, in
// every kind of transaction, and gets the same rows.
func TestPrepare(t *testing.T) {
	db, ctx := openCounting(t), t.Context()
	plain := outbox.New(outbox.SQLite)
	p, err := plain.Prepare(ctx, db)
	if err != nil {
		t.Fatal(err)
	}
	group := outbox.NewGroup(db)
	defer group.Close()
	var want []outbox.Event
	publish := func(p *outbox.Publisher, events ...outbox.Event) func(tx *sql.Tx) error {
		want = append(want, events...)
		return func(tx *sql.Tx) error { return p.Publish(ctx, tx, events...) }
	}
	before := compiled.Load()
	for i := range 20 {
		e := outbox.Event{Topic: "t", Key: "k", Payload: []byte{byte('a' + i)}, Headers: map[string]string{"x": "y"}}
		do := outbox.InTx
		if i%2 == 0 {
			do = func(ctx context.Context, _ *sql.DB, fn func(*sql.Tx) error) error { return group.Do(ctx, fn) }
		}
		if err := do(ctx, db, publish(p, e)); err != nil {
			t.Fatal(err)
		}
	}
	if n := compiled.Load() - before; n != 0 {
		t.Errorf("compiled %d times more", n)
	}
	// Several events are another statement; p is as it was.
	for _, do := range []func(*sql.Tx) error{publish(p, outbox.Event{Topic: "a"}, outbox.Event{Topic: "b"}), publish(plain, outbox.Event{Topic: "c"})} {
		if err := outbox.InTx(ctx, db, do); err != nil {
			t.Fatal(err)
		}
	}
	if n := compiled.Load() - before; n != 2 {
		t.Errorf("compiled %d times, want 2", n)
	}
	// A rolled back event leaves nothing, a refused one does not spoil the statement.
	boom := errors.New("boom")
	if err := outbox.InTx(ctx, db, func(tx *sql.Tx) error {
		if err := p.Publish(ctx, tx, outbox.Event{Topic: "never"}); err != nil {
			return err
		}
		return boom
	}); !errors.Is(err, boom) {
		t.Fatal(err)
	}
	// The table changes under the statement.
	if _, err := db.Exec("ALTER TABLE onewrite_outbox ADD COLUMN more TEXT"); err != nil {
		t.Fatal(err)
	}
	if err := outbox.InTx(ctx, db, publish(p, outbox.Event{Topic: "after"})); err != nil {
		t.Fatal(err)
	}
	assertStored(t, stored(t, db), want)
}

// TestPrepareFails: no outbox, no dialect, another database.
func TestPrepareFails(t *testing.T) {
	db, other, ctx := openCounting(t), openCounting(t), t.Context()
	p, err := outbox.New(outbox.SQLite).Prepare(ctx, db)
	if err != nil {
		t.Fatal(err)
	}
	if err := outbox.InTx(ctx, other, func(tx *sql.Tx) error { return p.Publish(ctx, tx, outbox.Event{Topic: "t"}) }); err == nil || !strings.Contains(err.Error(), "different database") {
		t.Errorf("in a transaction of another database: %v", err)
	}
	if n := len(stored(t, other)); n != 0 {
		t.Errorf("%d events in the other database", n)
	}
	if _, err := outbox.New(0).Prepare(ctx, db); err == nil || !strings.Contains(err.Error(), "dialect") {
		t.Errorf("without a dialect: %v", err)
	}
	if _, err := db.Exec("DROP TABLE onewrite_outbox"); err != nil {
		t.Fatal(err)
	}
	if _, err := outbox.New(outbox.SQLite).Prepare(ctx, db); err == nil || !strings.Contains(err.Error(), "onewrite migrate") {
		t.Errorf("without an outbox: %v", err)
	}
}
