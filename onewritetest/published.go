package onewritetest

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/onewrite/onewrite/outbox"
)

// Queryer is what a look into an outbox needs: *sql.Tx has it, and so have the
// transactions of most libraries that wrap database/sql. For pgx there is package
// pgxtest.
type Queryer interface {
	// QueryContext runs one statement in the caller's transaction.
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
}

// Query is for libraries that cannot be a [Queryer]: it runs one statement and
// calls row for each row of its answer.
type Query func(ctx context.Context, query string, row func(scan func(dest ...any) error) error) error

// RequirePublished ends the test unless tx has published just the events that are
// wanted, in this order, and returns what it has. Fields of a wanted event that are
// not set may be anything; see [RequireEvents]. Call it before tx is committed or
// rolled back, and connect as the owner of the outbox: the application's role may
// write it, but not read it. The look changes nothing.
//
// PostgreSQL tells the rows of a transaction from those of others. SQLite does
// not: there everything counts that tx sees in the outbox. Let the test have an
// outbox of its own, or see [Mark].
func RequirePublished(tb testing.TB, tx Queryer, want ...outbox.Event) []outbox.Event {
	tb.Helper()
	return lookIn(tb, tx).require(tb, want)
}

// RequireNothingPublished ends the test if tx has published anything; see
// [RequirePublished].
func RequireNothingPublished(tb testing.TB, tx Queryer) {
	tb.Helper()
	RequirePublished(tb, tx)
}

// Published returns what tx has published, as it will arrive: those that are sent at
// the commit, then those that wait, which have DeliverAt; each in the order in which
// they were published. For the rest see [RequirePublished].
func Published(tb testing.TB, tx Queryer) []outbox.Event {
	tb.Helper()
	return lookIn(tb, tx).events(tb, false)
}

// Stored returns what the outbox of a database holds, whoever published it, in the
// order of [Published]: what is committed and not yet cleaned up by onewrite.
func Stored(tb testing.TB, db Queryer) []outbox.Event {
	tb.Helper()
	return lookOf(db).events(tb, true)
}

// RequirePublished is the function of that name through a transaction.
func (q Query) RequirePublished(tb testing.TB, want ...outbox.Event) []outbox.Event {
	tb.Helper()
	return (&look{query: q}).require(tb, want)
}

// Published is the function of that name through a transaction.
func (q Query) Published(tb testing.TB) []outbox.Event {
	tb.Helper()
	return (&look{query: q}).events(tb, false)
}

// Stored is the function of that name.
func (q Query) Stored(tb testing.TB) []outbox.Event {
	tb.Helper()
	return (&look{query: q}).events(tb, true)
}

// Mark returns tx as one that has published nothing so far: what is seen through it
// was published after the mark. This is exact with SQLite too, whose transactions
// see nothing of others from their first look on.
func Mark(tb testing.TB, tx Queryer) Queryer {
	tb.Helper()
	m := &marked{Queryer: tx}
	l := lookIn(tb, tx)
	m.after = l.after
	for _, r := range l.rows(tb, false) {
		of := &m.after.number
		if r.waits() {
			of = &m.after.waiting
		}
		*of = max(*of, r.number)
	}
	return m
}

// marked is a transaction with a mark.
type marked struct {
	Queryer
	after place
}

// place is the last numbers of both tables before a mark.
type place struct{ number, waiting int64 }

// look is one look into an outbox.
type look struct {
	query  Query
	after  place
	marked bool
	sqlite bool // found out by read
}

func lookOf(q Queryer) *look {
	l := &look{}
	if m, ok := q.(*marked); ok {
		q, l.after, l.marked = m.Queryer, m.after, true
	}
	l.query = func(ctx context.Context, query string, row func(scan func(dest ...any) error) error) error {
		rows, err := q.QueryContext(ctx, query)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			if err := row(rows.Scan); err != nil {
				return err
			}
		}
		return rows.Err()
	}
	return l
}

// lookIn refuses what is no transaction: nothing would be seen, and mean nothing.
func lookIn(tb testing.TB, tx Queryer) *look {
	tb.Helper()
	if _, alone := tx.(*sql.DB); alone {
		tb.Fatal("onewritetest: a *sql.DB is no transaction; give the one that published, or look at what is committed with onewritetest.Stored")
	}
	return lookOf(tx)
}

func (l *look) require(tb testing.TB, want []outbox.Event) []outbox.Event {
	tb.Helper()
	got, ifMore := l.events(tb, false), ""
	if l.sqlite && !l.marked {
		ifMore = "SQLite does not tell who wrote a row, so what was in the outbox before counts too: give the test an outbox of its own, or begin the transaction with onewritetest.Mark"
	}
	require(tb, "the transaction published", ifMore, got, want)
	return got
}

func (l *look) events(tb testing.TB, all bool) (events []outbox.Event) {
	tb.Helper()
	for _, r := range l.rows(tb, all) {
		if l.after.before(r) {
			events = append(events, r.Event)
		}
	}
	return events
}

func (p place) before(r outboxRow) bool {
	if r.waits() {
		return r.number > p.waiting
	}
	return r.number > p.number
}

func (l *look) rows(tb testing.TB, all bool) []outboxRow {
	tb.Helper()
	rows, err := l.read(tb.Context(), all)
	if err != nil {
		tb.Fatalf("onewritetest: look into the outbox: %v%s", err, cure(err))
	}
	return rows
}

// read reads both tables. A statement that fails ends a transaction of PostgreSQL,
// so each is one that the database understands: only version() fails, in SQLite.
func (l *look) read(ctx context.Context, all bool) (rows []outboxRow, err error) {
	var version string
	err = l.one(ctx, `SELECT version()`, &version)
	tables := postgresTables
	if err != nil {
		if l.one(ctx, `SELECT sqlite_version()`, &version) != nil {
			return nil, err
		}
		tables, l.sqlite = sqliteTables, true
	} else if !strings.Contains(version, "PostgreSQL") {
		return nil, fmt.Errorf("the database is %s; PostgreSQL and SQLite are understood", version)
	}
	var scheduled bool // an outbox of an older migrate has no such table
	if err := l.one(ctx, tables.hasScheduled, &scheduled); err != nil {
		return nil, err
	}
	for _, query := range tables.queries(all, scheduled) {
		err := l.query(ctx, query, func(scan func(dest ...any) error) error {
			r, err := scanRow(scan)
			rows = append(rows, r)
			return err
		})
		if err != nil {
			return nil, err
		}
	}
	return rows, nil
}

// one reads one value.
func (l *look) one(ctx context.Context, query string, dest any) error {
	return l.query(ctx, query, func(scan func(dest ...any) error) error { return scan(dest) })
}

// cure tells what helps against an error of the database.
func cure(err error) string {
	var state interface{ SQLState() string }
	code := ""
	if errors.As(err, &state) {
		code = state.SQLState()
	}
	switch {
	case code == "42501":
		return "; the application's role may write the outbox and not read it, as it should be: let the test connect as the owner of the tables, who ran `onewrite migrate`"
	case code == "42P01", code == "3F000", strings.Contains(err.Error(), "no such table"):
		return "; make the outbox in the test's database with `onewrite migrate`"
	case code == "25P02":
		return "; a statement before failed, and with it the transaction"
	case errors.Is(err, sql.ErrTxDone), strings.Contains(err.Error(), "tx is closed"):
		return "; look before the commit or rollback, or at what is committed with Stored"
	}
	return ""
}
