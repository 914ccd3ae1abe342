// Package pgxoutbox writes events into the PostgreSQL outbox through pgx, in the
// application's own transaction. What an event is and which events are refused
// says package outbox.
//
//	err := pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
//		if _, err := tx.Exec(ctx, `UPDATE orders SET …`); err != nil {
//			return err
//		}
//		return pgxoutbox.Publish(ctx, tx, outbox.Event{Topic: "order.placed", Key: "42", Payload: body})
//	})
//	if err == nil {
//		outbox.Ring()
//	}
//
// A role that may do nothing but INSERT suffices. Publish and Copy leave no
// prepared statement behind, so they work under PgBouncer in transaction mode
// whatever the mode of the connection; a Queue is sent as the batch it is in.
package pgxoutbox

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/onewrite/onewrite/outbox"
)

// Publisher writes events with settings of its own. Many goroutines may use it.
type Publisher struct{ events *outbox.Publisher }

// New returns a Publisher with the options of package outbox.
func New(opts ...outbox.Option) *Publisher {
	return &Publisher{outbox.New(outbox.Postgres, opts...)}
}

var standard = New()

// Publish is [Publisher.Publish] with the default settings.
func Publish(ctx context.Context, tx pgx.Tx, events ...outbox.Event) error {
	return standard.Publish(ctx, tx, events...)
}

// Queue is [Publisher.Queue] with the default settings.
func Queue(ctx context.Context, b *pgx.Batch, events ...outbox.Event) error {
	return standard.Queue(ctx, b, events...)
}

// Copy is [Publisher.Copy] with the default settings.
func Copy(ctx context.Context, tx pgx.Tx, events ...outbox.Event) error {
	return standard.Copy(ctx, tx, events...)
}

// Publish writes the events in tx, in the order given, in one round trip (one
// for each 8191 events or 8 MiB). It prepares no named statement. Call
// outbox.Ring after the commit. The outcomes are those of the method of the same
// name in package outbox: nil; an *outbox.InvalidError, after which tx can go on;
// or an error of the database, after which tx can only be rolled back.
func (p *Publisher) Publish(ctx context.Context, tx pgx.Tx, events ...outbox.Event) error {
	statements, err := p.events.Statements(ctx, events...)
	if err != nil {
		return err
	}
	if tx == nil && len(statements) > 0 {
		return errors.New("pgxoutbox: no transaction was given; pass the one that writes your data")
	}
	for _, s := range statements {
		args := append([]any{pgx.QueryExecModeExec}, s.Args...)
		if _, err := tx.Exec(ctx, s.SQL, args...); err != nil {
			return failed(what(s), err)
		}
	}
	return nil
}

// intoLog is what a statement of outbox.InLog does.
const intoLog = "write into the log"

func what(s outbox.Statement) string {
	if s.Table == "" {
		return intoLog
	}
	return "insert into " + s.Table
}

// Queue adds the statements of the events to a batch, to be sent in one round trip
// with the statements of the application. Send the batch in a transaction: the
// implicit one of pool.SendBatch will do. The error is an *outbox.InvalidError;
// nothing was queued then. What the database says comes with the results of the
// batch.
func (p *Publisher) Queue(ctx context.Context, b *pgx.Batch, events ...outbox.Event) error {
	statements, err := p.events.Statements(ctx, events...)
	if err != nil {
		return err
	}
	for _, s := range statements {
		b.Queue(s.SQL, s.Args...)
	}
	return nil
}

// Copy writes the events in tx, in the order given, by COPY: the fastest way
// for thousands of events, two round trips for few. With outbox.InLog there is nothing
// to copy into, and it does what Publish does. The outcomes are those of
// [Publisher.Publish].
func (p *Publisher) Copy(ctx context.Context, tx pgx.Tx, events ...outbox.Event) error {
	if p.events.InLog() {
		return p.Publish(ctx, tx, events...)
	}
	statements, err := p.events.Statements(ctx, events...)
	if err != nil || len(statements) == 0 {
		return err
	}
	if tx == nil {
		return errors.New("pgxoutbox: no transaction was given; pass the one that writes your data")
	}
	// The connection below knows nothing of tx: a tx that has ended must not
	// write on, through a connection that may be another's by now.
	if _, err := tx.Exec(ctx, "SELECT 1", pgx.QueryExecModeExec); err != nil {
		return failed("copy into onewrite.outbox", err)
	}
	written, now := int64(0), 0
	for now < len(statements) && statements[now].Table == outboxTable {
		now++
	}
	for _, s := range statements[now:] {
		tag, err := tx.Exec(ctx, s.SQL, append([]any{pgx.QueryExecModeExec}, s.Args...)...)
		if err != nil {
			return failed(what(s), err)
		}
		written += tag.RowsAffected()
	}
	columns := outbox.Columns()
	r := &copyReader{statements: statements[:now], columns: len(columns)}
	tag, err := tx.Conn().PgConn().CopyFrom(ctx, r, copySQL(columns))
	if err != nil {
		return failed("copy into onewrite.outbox", err)
	}
	if written += tag.RowsAffected(); written != int64(len(events)) {
		return fmt.Errorf("pgxoutbox: copy: %d of %d events were written; roll the transaction back", written, len(events))
	}
	return nil
}

// outboxTable is the table that COPY fills; scheduled events go to another one.
const outboxTable = "onewrite.outbox"

// Cancel is [Publisher.Cancel] with the default settings.
func Cancel(ctx context.Context, tx pgx.Tx, id string) (bool, error) {
	return standard.Cancel(ctx, tx, id)
}

// Cancel takes back, in tx, an event that was published with DeliverAt; see the
// method of the same name in package outbox.
func (p *Publisher) Cancel(ctx context.Context, tx pgx.Tx, id string) (was bool, err error) {
	if p.events.InLog() {
		return false, errors.New("pgxoutbox: events in the log cannot be sent later, so there is none to cancel; use a Publisher without outbox.InLog()")
	}
	if err := tx.QueryRow(ctx, `SELECT onewrite.cancel($1)`, pgx.QueryExecModeExec, id).Scan(&was); err != nil {
		return false, failed("cancel", err)
	}
	return was, nil
}

func failed(what string, err error) error {
	cure := "a missing table is made by `onewrite migrate`"
	if what == intoLog {
		cure = "the log needs PostgreSQL 15 or newer"
	}
	var pe *pgconn.PgError
	if errors.As(err, &pe) && pe.Code == "42501" {
		cure = "the role's rights are given by `onewrite migrate --app-role ROLE`"
		if what == intoLog {
			cure = "a superuser grants the role EXECUTE on pg_logical_emit_message"
		}
	}
	return fmt.Errorf("pgxoutbox: %s: %w (roll the transaction back; %s)", what, err, cure)
}
