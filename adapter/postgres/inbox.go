package postgres

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/onewrite/onewrite/inbox"
	"github.com/onewrite/onewrite/internal/disk"
)

// inboxIsThere reports whether nothing is left to do for a role, or for that of the
// session: a role that may make nothing may ask too. It looks into the catalog, as
// names of a schema that one may not use are an error.
const inboxIsThere = `SELECT count(*) = 3 AND coalesce(bool_and(has_schema_privilege(r.oid, n.oid, 'USAGE')), false)
	AND coalesce(bool_and(c.relkind <> 'r' OR has_table_privilege(r.oid, c.oid, 'SELECT') AND has_table_privilege(r.oid, c.oid, 'INSERT')
		AND has_table_privilege(r.oid, c.oid, 'UPDATE') AND has_table_privilege(r.oid, c.oid, 'DELETE')), false)
	FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace JOIN pg_roles r ON r.rolname = coalesce(nullif($1, ''), current_user)
	WHERE n.nspname = 'onewrite_inbox' AND (c.relname, c.relkind) IN (('watermark', 'r'), ('seen', 'r'), ('seen_n', 'i'))`

// MigrateInbox makes the tables of package inbox in a consumer's database where they
// are missing, and grants a role, if set, what a consumer needs. It may be repeated,
// by the consumer's own role too, and run twice at once.
func MigrateInbox(ctx context.Context, url, role string) error {
	conn, _, err := connect(ctx, url)
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	return explainInbox(makeInbox(ctx, conn, role), conn, role)
}

func makeInbox(ctx context.Context, conn *pgx.Conn, role string) error {
	tx, err := conn.Begin(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback(context.WithoutCancel(ctx)) }()
	var there bool
	if err := tx.QueryRow(ctx, inboxIsThere, role).Scan(&there); err != nil || there {
		return err
	}
	if _, err := tx.Exec(ctx, `SELECT pg_advisory_xact_lock($1, 3)`, lockClass); err != nil {
		return err
	}
	if _, err := tx.Exec(ctx, inbox.Schema(inbox.Postgres, role), pgx.QueryExecModeSimpleProtocol); err != nil {
		return err
	}
	return tx.Commit(ctx)
}

// explainInbox is explain with the cures of an inbox.
func explainInbox(err error, conn *pgx.Conn, role string) error {
	var pe *pgconn.PgError
	if !errors.As(err, &pe) || pe.Code != "42501" {
		return withNames(explain(err), conn)
	}
	if role == "" {
		role = conn.Config().User
	}
	db := disk.Quote(databaseOf(conn.Config()))
	return fmt.Errorf("postgres: %s (SQLSTATE %s); let an administrator run: onewrite migrate --inbox --print --database postgres:///%s --app-role %s | psql -v ON_ERROR_STOP=1 %[3]s",
		pe.Message, pe.Code, db, disk.Quote(role))
}
