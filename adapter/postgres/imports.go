package postgres

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// Import says how the rows of a table that an application has already become events:
// a home-made outbox, or that of another library. They are moved into the outbox, in
// the transaction that deletes them from their table, so none is lost or doubled,
// whoever dies. The fields from ID to Headers are SQL expressions over a row; the name
// of a column is one.
type Import struct {
	// Name names the import in messages.
	Name string
	// Table is the table, with its schema.
	Table string
	// Where, if set, is the condition of the rows that are events.
	Where string
	// Order are the expressions by which rows are in the order of their events.
	Order []string
	// ID is the event's identity. A value that is no UUID gives one that is always the
	// same for it. Empty: one is made.
	ID string
	// Topic is required. Key, Type, ContentType and Headers may be empty.
	Topic, Key, Type, ContentType, Headers string
	// Payload is sent as it is if it is of type bytea, else as its text.
	Payload string
	// Keep leaves the rows where they are, and reads them once, in one transaction.
	Keep bool
	// Every is the pause between two looks.
	Every time.Duration
}

// importAtOnce bounds one transaction.
const importAtOnce = 1000

// selection are the expressions of the outbox's columns, each named as the column with
// e_ before it; binary tells the type of the payload.
func (i *Import) selection(binary bool) string {
	orNull := func(expression, as string) string {
		if expression == "" {
			return "NULL::" + as
		}
		return "(" + expression + ")::" + as
	}
	text, bytes := orNull(i.Payload, "text"), "NULL::bytea"
	if binary {
		text, bytes = "NULL::text", orNull(i.Payload, "bytea")
	}
	id := "gen_random_uuid()"
	if i.ID != "" {
		given := "(" + i.ID + ")::text"
		id = fmt.Sprintf(`CASE WHEN %[1]s ~* '^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$' THEN %[1]s ELSE md5(tableoid::regclass::text || '/' || %[1]s) END::uuid`, given)
	}
	headers := "NULL::jsonb"
	if i.Headers != "" {
		headers = "(SELECT jsonb_object_agg(h.name, h.value) FROM jsonb_each_text(nullif((" + i.Headers + ")::jsonb, 'null')) AS h(name, value) WHERE h.value IS NOT NULL)"
	}
	var b strings.Builder
	for _, c := range []struct{ name, expression string }{
		{"topic", orNull(i.Topic, "text")}, {"key", orNull(i.Key, "text")}, {"payload", text}, {"payload_bytes", bytes},
		{"id", id}, {"type", orNull(i.Type, "text")}, {"content_type", orNull(i.ContentType, "text")}, {"headers", headers},
	} {
		fmt.Fprintf(&b, ", %s AS e_%s", c.expression, c.name)
	}
	return b.String()[2:]
}

func (i *Import) where() string {
	if i.Where == "" {
		return ""
	}
	return " WHERE (" + i.Where + ")"
}

// insert begins an INSERT from rows that have the names of selection.
var insertImported = "INSERT INTO onewrite.outbox (" + columns + ") SELECT e_" + strings.ReplaceAll(columns, ", ", ", e_")

// lockSQL finds at most $1 rows and locks them, or fails at one that another session
// has: who waited with locked rows in hand would make the application wait too.
func (i *Import) lockSQL() string {
	return fmt.Sprintf(`SELECT coalesce(array_agg(t), '{}'), coalesce(array_agg(r), '{}') FROM (
		SELECT tableoid::bigint AS t, ctid::text AS r FROM %s%s ORDER BY %s LIMIT $1 FOR UPDATE NOWAIT) AS locked`, i.Table, i.where(), strings.Join(i.Order, ", "))
}

// moveSQL moves the locked rows. It is a statement of its own, so that it sees them as
// they were locked, whoever changed them a moment before.
func (i *Import) moveSQL(binary bool) string {
	return fmt.Sprintf(`WITH gone AS (DELETE FROM %[1]s USING unnest($1::bigint[], $2::text[]) AS onewrite_batch(onewrite_table, onewrite_row)
			WHERE tableoid = onewrite_table::oid AND ctid = onewrite_row::tid RETURNING ROW(%[2]s) AS e_order, %[3]s)
		%[4]s FROM gone ORDER BY e_order`, i.Table, strings.Join(i.Order, ", "), i.selection(binary), insertImported)
}

// copySQL reads all rows, once.
func (i *Import) copySQL(binary bool) string {
	return fmt.Sprintf(`%s FROM (SELECT ROW(%s) AS e_order, %s FROM %s%s) AS e_rows ORDER BY e_order`,
		insertImported, strings.Join(i.Order, ", "), i.selection(binary), i.Table, i.where())
}

// importer runs one import beside the reader of a source, through a session of its
// own.
type importer struct {
	*Import
	url    string
	report func(problem string) // "" when there is none any more
}

// run moves rows until ctx ends. What fails is tried again, and said aloud: the
// outbox itself goes on.
func (i *importer) run(ctx context.Context) {
	for ctx.Err() == nil {
		err := i.session(ctx)
		if err == nil || ctx.Err() != nil {
			return
		}
		i.report(fmt.Sprintf("import %s from %s has stopped and is tried again: %v", i.Name, i.Table, err))
		timer := time.NewTimer(importPause)
		select {
		case <-ctx.Done():
		case <-timer.C:
		}
		timer.Stop()
	}
}

// importPause is the time before a failed import is tried again.
const importPause = 3 * time.Second

// session moves rows until something fails. nil: there is no more to do.
func (i *importer) session(ctx context.Context) error {
	conn, _, err := connect(ctx, i.url)
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	// What row security would hide is an error, and what hangs is one too.
	if _, err := conn.Exec(ctx, `SET row_security = off; SET statement_timeout = '10s'; SET default_transaction_isolation = 'read committed'`, pgx.QueryExecModeSimpleProtocol); err != nil {
		return explain(err)
	}
	binary, err := i.describe(ctx, conn)
	if err != nil {
		return err
	}
	if i.Keep {
		return i.once(ctx, conn, binary)
	}
	limit := importAtOnce
	tick := time.NewTimer(0)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		moved, err := i.move(ctx, conn, binary, limit)
		switch {
		case err != nil && limit > 1 && (isData(err) || isTaken(err)):
			// What is before the bad or the taken row is moved all the same.
			limit /= 2
			tick.Reset(0)
			continue
		case isTaken(err):
			tick.Reset(max(i.Every, 50*time.Millisecond))
			continue
		case err != nil && isData(err):
			return fmt.Errorf("the row with (%s) = %s can be no event: %w; correct it, delete it, or leave it out with where:",
				strings.Join(i.Order, ", "), i.first(ctx, conn), explain(err))
		case err != nil:
			return i.cure(err)
		}
		i.report("")
		pause := i.Every
		if moved == limit {
			pause = 0
		}
		if moved > 0 && limit < importAtOnce {
			limit = min(2*limit, importAtOnce)
		}
		tick.Reset(pause)
	}
}

// move moves at most limit rows, in one transaction.
func (i *importer) move(ctx context.Context, conn *pgx.Conn, binary bool, limit int) (moved int, err error) {
	tx, err := conn.Begin(ctx)
	if err != nil {
		return 0, err
	}
	defer func() { _ = tx.Rollback(context.WithoutCancel(ctx)) }()
	var tables []int64
	var rows []string
	// An INSERT of no rows would wake a sleeping reader for nothing.
	if err := tx.QueryRow(ctx, i.lockSQL(), limit).Scan(&tables, &rows); err != nil || len(rows) == 0 {
		return 0, err
	}
	tag, err := tx.Exec(ctx, i.moveSQL(binary), tables, rows)
	if err != nil {
		return 0, err
	}
	if moved = int(tag.RowsAffected()); moved != len(rows) {
		return 0, fmt.Errorf("%d of %d rows cannot be deleted: a trigger or a row security policy keeps them", len(rows)-moved, len(rows))
	}
	return moved, tx.Commit(ctx)
}

// describe asks for the type of the payload, which also proves that the expressions
// are understood.
func (i *importer) describe(ctx context.Context, conn *pgx.Conn) (binary bool, err error) {
	payload := i.Payload
	if payload == "" {
		payload = "NULL"
	}
	rows, err := conn.Query(ctx, fmt.Sprintf(`SELECT (%s), %s FROM %s%s ORDER BY %s LIMIT 0`, payload, i.selection(false), i.Table, i.where(), strings.Join(i.Order, ", ")))
	if err != nil {
		return false, i.cure(err)
	}
	fields := rows.FieldDescriptions()
	binary = len(fields) > 0 && fields[0].DataTypeOID == 17 // bytea
	rows.Close()
	if err := rows.Err(); err != nil {
		return false, i.cure(err)
	}
	return binary, nil
}

// once copies all rows, unless that was done before.
func (i *importer) once(ctx context.Context, conn *pgx.Conn, binary bool) error {
	tx, err := conn.Begin(ctx)
	if err != nil {
		return explain(err)
	}
	defer func() { _ = tx.Rollback(context.WithoutCancel(ctx)) }()
	tag, err := tx.Exec(ctx, `INSERT INTO onewrite.imported (name) VALUES ($1) ON CONFLICT DO NOTHING`, i.Name)
	if err != nil {
		return i.cure(err)
	}
	if tag.RowsAffected() == 0 {
		return nil
	}
	if _, err := tx.Exec(ctx, `SET LOCAL statement_timeout = 0; `+i.copySQL(binary), pgx.QueryExecModeSimpleProtocol); err != nil {
		return i.cure(err)
	}
	if err := tx.Commit(ctx); err != nil {
		return explain(err)
	}
	i.report("")
	return nil
}

// first names the row that the next batch begins with.
func (i *importer) first(ctx context.Context, conn *pgx.Conn) string {
	order := strings.Join(i.Order, ", ")
	var row string
	if err := conn.QueryRow(ctx, fmt.Sprintf(`SELECT ROW(%s)::text FROM %s%s ORDER BY %s LIMIT 1`, order, i.Table, i.where(), order)).Scan(&row); err != nil {
		return "(gone)"
	}
	return row
}

// isTaken reports whether an error says that another session has a row.
func isTaken(err error) bool {
	var pe *pgconn.PgError
	return errors.As(err, &pe) && (pe.Code == "55P03" || pe.Code == "40P01" || pe.Code == "40001")
}

// isData reports whether an error is about the values in a row: a rule of the outbox,
// or a conversion.
func isData(err error) bool {
	var pe *pgconn.PgError
	return errors.As(err, &pe) && (strings.HasPrefix(pe.Code, "22") || strings.HasPrefix(pe.Code, "23"))
}

// cure says what to do about an error of the statement.
func (i *importer) cure(err error) error {
	var pe *pgconn.PgError
	if errors.As(err, &pe) {
		switch {
		case pe.Code == "42501" && strings.HasPrefix(pe.Message, "permission denied for schema "):
			return fmt.Errorf("postgres: %s (SQLSTATE %s); run as its owner: GRANT USAGE ON SCHEMA %s TO the relay's role", pe.Message, pe.Code, strings.TrimPrefix(pe.Message, "permission denied for schema "))
		case pe.Code == "42501" && i.Keep:
			return fmt.Errorf("postgres: %s (SQLSTATE %s); run as the table's owner: GRANT SELECT ON %s TO the relay's role", pe.Message, pe.Code, i.Table)
		case pe.Code == "42501":
			return fmt.Errorf("postgres: %s (SQLSTATE %s); run as the table's owner: GRANT SELECT, UPDATE, DELETE ON %s TO the relay's role", pe.Message, pe.Code, i.Table)
		case pe.Code == "42P01" && strings.Contains(pe.Message, "onewrite."):
			return explain(err)
		case strings.HasPrefix(pe.Code, "42"):
			return fmt.Errorf("postgres: %s (SQLSTATE %s); correct table:, columns:, where: or order: of the import", pe.Message, pe.Code)
		}
	}
	return explain(err)
}
