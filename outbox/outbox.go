package outbox

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
)

// DefaultMaxBytes is the size of the largest event unless [MaxBytes] says
// otherwise: what `onewrite migrate` makes the tables accept.
const DefaultMaxBytes = 1 << 20

// Publisher writes events into the outbox of one database. It holds no state
// but its settings and may be used by many goroutines at once.
type Publisher struct {
	layout    layout
	maxBytes  int
	traceFrom func(context.Context) (traceparent, tracestate string)
	single    *sql.Stmt // the INSERT of one event, or nil
	log       bool      // events go into the log
	refusal   error     // of all events; nil: the dialect can have them
}

// Option changes a setting of [New].
type Option func(*Publisher)

// MaxBytes sets the largest event, in bytes: topic, key, type, content type,
// payload and headers (as JSON) together. Give it the size that the table was
// migrated with; 0 or less means [DefaultMaxBytes].
func MaxBytes(n int) Option {
	return func(p *Publisher) {
		if n > 0 {
			p.maxBytes = n
		}
	}
}

// New returns a Publisher for databases that speak d. A d that is none of the
// dialects shows at the first Publish.
func New(d Dialect, opts ...Option) *Publisher {
	p := &Publisher{layout: layouts[d], maxBytes: DefaultMaxBytes}
	for _, o := range opts {
		o(p)
	}
	switch {
	case p.layout.table == "":
		p.refusal = errDialect
	case p.log && d != Postgres:
		p.refusal = errLogDialect
	}
	return p
}

// Prepare returns a Publisher like p for transactions of db (*sql.Tx, or what embeds
// one), which
// prepares the INSERT of a single event once per connection instead of at each
// Publish. With SQLite this makes an event several times cheaper, for its INSERT
// carries the rules of the outbox; a driver that keeps statements by itself, as
// pgx does, gains nothing. Any other transaction is served as p would serve it; one
// of another database is refused. Call it once, outside
// of transactions; closing db ends what it holds.
//
// The error is the database's: the outbox is missing (`onewrite migrate` makes
// it), or cannot be reached.
func (p *Publisher) Prepare(ctx context.Context, db *sql.DB) (*Publisher, error) {
	if p.refusal != nil {
		return nil, p.refusal
	}
	one := Statement{Table: p.layout.table, SQL: p.layout.insert(p.layout.table, columns[:], 1)}
	if p.log {
		one = Statement{SQL: emitSQL(1)}
	}
	stmt, err := db.PrepareContext(ctx, one.SQL)
	if err != nil {
		return nil, fmt.Errorf("outbox: prepare the %s: %w (%s)", one.what(), err, p.cure(err))
	}
	prepared := *p
	prepared.single = stmt
	return &prepared, nil
}

// errDialect is the answer to a Dialect that is none.
var errDialect = errors.New("outbox: unknown dialect; use outbox.New(outbox.Postgres), SQLite or MySQL")

// Execer is what Publish needs of a transaction: *sql.Tx has it, and so have
// *sql.Conn and the transactions of libraries that wrap database/sql: those of sqlx
// and ent as they are, bun's as tx.Tx, gorm's as tx.Statement.ConnPool.
type Execer interface {
	// ExecContext runs one statement in the caller's transaction.
	ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error)
}

// Publish writes the events in tx, in the order given, with one statement (one
// round trip) for as many as the database's limit of parameters and 8 MiB
// allow: 8191 events (SQLite 4095). They are sent when tx commits, and never if
// it does not. Call [Ring] after the commit, or use [InTx].
//
//   - nil: the events are part of tx; no events are no error
//   - *[InvalidError]: all that is wrong with the events; nothing was written
//     and tx can go on
//   - any other error is the database's: roll tx back, for some of the events
//     may be written already.
//
// A tx that is a *sql.DB, or embeds one, makes the events a transaction of their own, which
// fits events that tell of nothing else in the database; more than one
// statement is refused then.
func (p *Publisher) Publish(ctx context.Context, tx Execer, events ...Event) error {
	statements, err := p.Statements(ctx, events...)
	if err != nil {
		return err
	}
	if _, alone := tx.(pool); alone && len(statements) > 1 {
		return errors.New("outbox: too many events for one statement outside of a transaction; use outbox.InTx")
	}
	if tx == nil && len(statements) > 0 {
		return errors.New("outbox: no transaction was given; pass the one that writes your data, or use outbox.InTx")
	}
	for _, s := range statements {
		if err := p.exec(ctx, tx, s, len(events)); err != nil {
			return fmt.Errorf("outbox: %s: %w (roll the transaction back; %s)", s.what(), err, p.cure(err))
		}
	}
	return nil
}

// cure is what helps against an error of the database, as far as its driver lets tell.
func (p *Publisher) cure(err error) string {
	var coded interface{ SQLState() string }
	denied := errors.As(err, &coded) && coded.SQLState() == "42501"
	switch {
	case p.log && denied:
		return "a superuser grants the role EXECUTE on pg_logical_emit_message"
	case p.log:
		return "the log needs PostgreSQL 15 or newer"
	case denied:
		return "the role's rights are given by `onewrite migrate --app-role ROLE`"
	}
	return "a missing table is made by `onewrite migrate`"
}

// pool is a *sql.DB, or what embeds one.
type pool interface{ SetMaxOpenConns(n int) }

// preparer is a *sql.Tx, or what embeds one.
type preparer interface {
	StmtContext(ctx context.Context, stmt *sql.Stmt) *sql.Stmt
}

// exec runs one statement, by the prepared one if it fits.
func (p *Publisher) exec(ctx context.Context, tx Execer, s Statement, events int) (err error) {
	if own, ok := tx.(preparer); ok && p.single != nil && events == 1 && (p.log || s.Table == p.layout.table) {
		_, err = own.StmtContext(ctx, p.single).ExecContext(ctx, s.Args...)
	} else {
		_, err = tx.ExecContext(ctx, s.SQL, s.Args...)
	}
	return err
}

// Statement is an INSERT, or with [InLog] a SELECT, and its arguments: string, []byte
// or nil.
type Statement struct {
	// Table is the table that it fills: the outbox, or that of the scheduled events.
	// It is empty with [InLog].
	Table string
	SQL   string
	Args  []any
}

// what says what a statement does.
func (s *Statement) what() string {
	if s.Table == "" {
		return "write into the log"
	}
	return "insert into " + s.Table
}

// Columns are the columns that a [Statement] fills, in this order: its Args are the
// rows one after the other. One of scheduled events fills deliver_at too, at the end.
func Columns() []string { return append([]string(nil), columns[:]...) }

// Statements checks the events and returns what [Publisher.Publish] would
// execute, for libraries that cannot be an [Execer]. Execute all of them in
// this order in one transaction. The error is an *[InvalidError], or says that
// the dialect is unknown.
func (p *Publisher) Statements(ctx context.Context, events ...Event) ([]Statement, error) {
	if len(events) == 0 {
		return nil, nil
	}
	if p.refusal != nil {
		return nil, p.refusal
	}
	rows, err := p.rows(ctx, events)
	if err != nil {
		return nil, err
	}
	if p.log {
		return p.layout.emits(rows), nil
	}
	return p.layout.inserts(rows), nil
}
