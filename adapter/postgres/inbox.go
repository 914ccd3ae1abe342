package postgres

import (
	"context"

	"github.com/jackc/pgx/v5"

	"github.com/onewrite/onewrite/inbox"
)

// MigrateInbox makes the tables of package inbox in a consumer's database where they
// are missing, and grants a role, if set, what a consumer needs. It may be repeated,
// and run twice at once.
func MigrateInbox(ctx context.Context, url, role string) error {
	conn, _, err := connect(ctx, url)
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	tx, err := conn.Begin(ctx)
	if err != nil {
		return explain(err)
	}
	defer func() { _ = tx.Rollback(context.WithoutCancel(ctx)) }()
	if _, err := tx.Exec(ctx, `SELECT pg_advisory_xact_lock($1, 3)`, lockClass); err != nil {
		return explain(err)
	}
	if _, err := tx.Exec(ctx, inbox.Schema(inbox.Postgres, role), pgx.QueryExecModeSimpleProtocol); err != nil {
		return explain(err)
	}
	return explain(tx.Commit(ctx))
}
