// Package pgxinbox is package inbox through pgx: the effect of an event and the mark
// that it was handled are committed in one pgx transaction.
//
//	box := inbox.New(inbox.Postgres, "billing")
//	handler, err := inbox.HTTP(pgxinbox.Receiver(box, pool, func(ctx context.Context, tx pgx.Tx, e onewrite.Event) error {
//		_, err := tx.Exec(ctx, `UPDATE account SET …`)
//		return err
//	}), inbox.Secret(os.Getenv("WEBHOOK_SECRET")), inbox.From("shop"))
//
// The outcomes and errors are those of package inbox. No prepared statement is left
// behind, so it works under PgBouncer in transaction mode.
package pgxinbox

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/inbox"
)

// DB is what begins transactions: *pgxpool.Pool and *pgx.Conn have it.
type DB interface {
	// Begin starts a transaction.
	Begin(ctx context.Context) (pgx.Tx, error)
	// Exec runs one statement outside of transactions.
	Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error)
}

// Mark is [inbox.Inbox.Mark] in a pgx transaction.
func Mark(ctx context.Context, in *inbox.Inbox, tx pgx.Tx, messages ...inbox.Message) ([]inbox.Outcome, error) {
	return in.MarkBy(ctx, func(ctx context.Context, query string, args []any, row func(scan func(...any) error) error) error {
		rows, err := tx.Query(ctx, query, append([]any{pgx.QueryExecModeExec}, args...)...)
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
	}, messages...)
}

// Apply is [inbox.Inbox.Apply] in a pgx transaction.
func Apply(ctx context.Context, in *inbox.Inbox, db DB, m inbox.Message, effect func(ctx context.Context, tx pgx.Tx) error) (inbox.Outcome, error) {
	outcomes, err := ApplyAll(ctx, in, db, []inbox.Message{m}, func(ctx context.Context, tx pgx.Tx, _ onewrite.Event) error {
		return effect(ctx, tx)
	})
	if len(outcomes) != 1 {
		return 0, err
	}
	return outcomes[0], err
}

// ApplyAll is [inbox.Inbox.ApplyAll] in a pgx transaction.
func ApplyAll(ctx context.Context, in *inbox.Inbox, db DB, messages []inbox.Message, effect func(ctx context.Context, tx pgx.Tx, e onewrite.Event) error) (outcomes []inbox.Outcome, err error) {
	tx, err := db.Begin(ctx)
	if err != nil {
		return nil, fmt.Errorf("pgxinbox: begin: %w", err)
	}
	ended := false
	defer func() {
		if !ended {
			_ = tx.Rollback(context.WithoutCancel(ctx)) // what failed before says more
		}
	}()
	if outcomes, err = Mark(ctx, in, tx, messages...); err != nil {
		return outcomes, err
	}
	applied := 0
	for i, o := range outcomes {
		if o != inbox.Applied {
			continue
		}
		applied++
		if err := effect(inbox.Caused(ctx, &messages[i].Event), tx, messages[i].Event); err != nil {
			return nil, &inbox.EffectError{ID: messages[i].ID, Err: err}
		}
	}
	if applied == 0 {
		return outcomes, nil
	}
	ended = true
	if err := tx.Commit(ctx); err != nil {
		return nil, fmt.Errorf("pgxinbox: commit: %w", err)
	}
	in.Committed(ctx, applied, func(ctx context.Context, query string, args ...any) error {
		_, err := db.Exec(ctx, query, append([]any{pgx.QueryExecModeExec}, args...)...)
		return err
	})
	return outcomes, nil
}

// Receiver is [inbox.Inbox.Receiver] with pgx transactions.
func Receiver(in *inbox.Inbox, db DB, effect func(ctx context.Context, tx pgx.Tx, e onewrite.Event) error) inbox.Receiver {
	return func(ctx context.Context, messages []inbox.Message) ([]inbox.Outcome, error) {
		return ApplyAll(ctx, in, db, messages, effect)
	}
}
