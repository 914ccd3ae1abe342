// Package pgxtest is the part of package onewritetest that looks into an outbox,
// through pgx.
package pgxtest

import (
	"context"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/onewrite/onewrite/onewritetest"
	"github.com/onewrite/onewrite/outbox"
)

// DB is what a look into an outbox needs: *pgx.Conn, *pgxpool.Pool and pgx.Tx have
// it.
type DB interface {
	// Query runs one statement.
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
}

// RequirePublished is [onewritetest.RequirePublished] for a pgx transaction.
func RequirePublished(tb testing.TB, tx pgx.Tx, want ...outbox.Event) []outbox.Event {
	tb.Helper()
	return through(tx).RequirePublished(tb, want...)
}

// RequireNothingPublished is [onewritetest.RequireNothingPublished] for a pgx
// transaction.
func RequireNothingPublished(tb testing.TB, tx pgx.Tx) {
	tb.Helper()
	through(tx).RequirePublished(tb)
}

// Published is [onewritetest.Published] for a pgx transaction.
func Published(tb testing.TB, tx pgx.Tx) []outbox.Event {
	tb.Helper()
	return through(tx).Published(tb)
}

// Stored is [onewritetest.Stored] for pgx.
func Stored(tb testing.TB, db DB) []outbox.Event {
	tb.Helper()
	return through(db).Stored(tb)
}

// through leaves no prepared statement behind, so that it works under PgBouncer.
func through(db DB) onewritetest.Query {
	return func(ctx context.Context, query string, row func(scan func(dest ...any) error) error) error {
		rows, err := db.Query(ctx, query, pgx.QueryExecModeExec)
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
}
