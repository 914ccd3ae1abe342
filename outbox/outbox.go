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
	return p
}

// Execer is what Publish needs of a transaction: *sql.Tx has it, and so have
// *sql.Conn and the transactions of most libraries that wrap database/sql.
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
// A tx that is a *sql.DB makes the events a transaction of their own, which
// fits events that tell of nothing else in the database; more than one
// statement is refused then.
func (p *Publisher) Publish(ctx context.Context, tx Execer, events ...Event) error {
	statements, err := p.Statements(ctx, events...)
	if err != nil {
		return err
	}
	if _, alone := tx.(*sql.DB); alone && len(statements) > 1 {
		return errors.New("outbox: too many events for one statement outside of a transaction; use outbox.InTx")
	}
	if tx == nil && len(statements) > 0 {
		return errors.New("outbox: no transaction was given; pass the one that writes your data, or use outbox.InTx")
	}
	for _, s := range statements {
		if _, err := tx.ExecContext(ctx, s.SQL, s.Args...); err != nil {
			return fmt.Errorf("outbox: insert into %s: %w (roll the transaction back; "+
				"a missing table is made by `onewrite migrate`)", p.layout.table, err)
		}
	}
	return nil
}

// Statement is an INSERT and its arguments: string, []byte or nil.
type Statement struct {
	SQL  string
	Args []any
}

// Columns are the columns that every [Statement] fills, in this order: its
// Args are the rows one after the other.
func Columns() []string { return append([]string(nil), columns[:]...) }

// Statements checks the events and returns what [Publisher.Publish] would
// execute, for libraries that cannot be an [Execer]. Execute all of them in
// this order in one transaction. The error is an *[InvalidError], or says that
// the dialect is unknown.
func (p *Publisher) Statements(ctx context.Context, events ...Event) ([]Statement, error) {
	if len(events) == 0 {
		return nil, nil
	}
	if p.layout.table == "" {
		return nil, errors.New("outbox: unknown dialect; use outbox.New(outbox.Postgres), SQLite or MySQL")
	}
	rows, err := p.rows(ctx, events)
	if err != nil {
		return nil, err
	}
	return p.layout.inserts(rows), nil
}
