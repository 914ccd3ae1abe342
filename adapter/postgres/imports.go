package postgres

import (
	"context"
	"errors"
	"fmt"
	"slices"
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

// copySQL copies rows that a snapshot has at these places.
func (i *Import) copySQL(binary bool) string {
	return fmt.Sprintf(`%[4]s FROM (SELECT ROW(%[2]s) AS e_order, %[3]s FROM %[1]s, unnest($1::bigint[], $2::text[]) AS onewrite_batch(onewrite_table, onewrite_row)
			WHERE tableoid = onewrite_table::oid AND ctid = onewrite_row::tid) AS e_rows ORDER BY e_order`,
		i.Table, strings.Join(i.Order, ", "), i.selection(binary), insertImported)
}

// importer runs one import beside the reader of a source, through a session of its
// own.
type importer struct {
	*Import
	url    string
	report func(problem string) // "" when there is none any more
	waits  func(rows int)       // that wait, as far as they were counted; -1: not known

	role    string // of the session
	counted time.Time
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
		pause := importPause
		if i.Keep {
			pause = importOncePause
		}
		timer := time.NewTimer(pause)
		select {
		case <-ctx.Done():
		case <-timer.C:
		}
		timer.Stop()
	}
}

// The time before a failed import is tried again; one that begins from its first row
// each time has a longer one.
const (
	importPause     = 3 * time.Second
	importOncePause = 10 * time.Second
)

// session moves rows until something fails. nil: there is no more to do.
func (i *importer) session(ctx context.Context) (err error) {
	conn, _, err := connect(ctx, i.url)
	if err != nil {
		i.waits(-1)
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	defer func() { err = withNames(err, conn) }()
	i.role = conn.Config().User
	// What row security would hide is an error, and what hangs is one too.
	if _, err := conn.Exec(ctx, `SET row_security = off; SET statement_timeout = '10s'; SET default_transaction_isolation = 'read committed'; `+noLimits, pgx.QueryExecModeSimpleProtocol); err != nil {
		return explain(err)
	}
	binary, err := i.describe(ctx, conn)
	if err != nil {
		return err
	}
	if i.Keep {
		if err = i.once(ctx, conn, binary); err != nil {
			i.count(ctx, conn, true)
		}
		return err
	}
	return i.moveAll(ctx, conn, binary)
}

// moveAll moves rows as they come.
func (i *importer) moveAll(ctx context.Context, conn *pgx.Conn, binary bool) error {
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
			i.count(ctx, conn, false)
			tick.Reset(max(i.Every, 50*time.Millisecond))
			continue
		case err != nil && isData(err):
			i.count(ctx, conn, true)
			return i.noEvent(err, i.first(ctx, conn))
		case err != nil:
			i.waits(-1)
			return i.cure(err)
		}
		i.report("")
		if moved == limit {
			i.count(ctx, conn, false)
		} else {
			i.waits(0)
		}
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
	if err == nil {
		fields := rows.FieldDescriptions()
		binary = len(fields) > 0 && fields[0].DataTypeOID == 17 // bytea
		rows.Close()
		err = rows.Err()
	}
	if err != nil {
		i.waits(-1)
		return false, i.wrongKey(ctx, conn, i.cure(err))
	}
	return binary, nil
}

// once copies all rows that one snapshot has, in one transaction, unless that was
// done before. It goes page by page, so that a row that cannot be an event is known.
func (i *importer) once(ctx context.Context, conn *pgx.Conn, binary bool) error {
	tx, err := conn.BeginTx(ctx, pgx.TxOptions{IsoLevel: pgx.RepeatableRead})
	if err != nil {
		return explain(err)
	}
	defer func() { _ = tx.Rollback(context.WithoutCancel(ctx)) }()
	tag, err := tx.Exec(ctx, `INSERT INTO onewrite.imported (name) VALUES ($1) ON CONFLICT DO NOTHING`, i.Name)
	if err != nil {
		return i.cure(err)
	}
	if tag.RowsAffected() == 0 {
		i.waits(0)
		return nil
	}
	cursor := fmt.Sprintf(`SET LOCAL statement_timeout = 0; DECLARE onewrite_rows NO SCROLL CURSOR FOR SELECT tableoid::bigint, ctid::text FROM %s%s ORDER BY %s`,
		i.Table, i.where(), strings.Join(i.Order, ", "))
	if _, err := tx.Exec(ctx, cursor, pgx.QueryExecModeSimpleProtocol); err != nil {
		return i.cure(err)
	}
	for {
		tables, rows, err := fetchPlaces(ctx, tx)
		if err != nil {
			return i.cure(err)
		}
		if len(rows) == 0 {
			break
		}
		if err := i.copy(ctx, tx, binary, tables, rows); err != nil {
			return err
		}
	}
	if err := tx.Commit(ctx); err != nil {
		return explain(err)
	}
	i.report("")
	i.waits(0)
	return nil
}

// fetchPlaces returns where the next rows of the cursor are.
func fetchPlaces(ctx context.Context, tx pgx.Tx) (tables []int64, rows []string, err error) {
	list, err := tx.Query(ctx, fmt.Sprintf(`FETCH %d FROM onewrite_rows`, importAtOnce))
	if err != nil {
		return nil, nil, err
	}
	var table int64
	var row string
	_, err = pgx.ForEachRow(list, []any{&table, &row}, func() error {
		tables, rows = append(tables, table), append(rows, row)
		return nil
	})
	return tables, rows, err
}

// copy copies the rows at these places. Of those that cannot all be events it finds
// the first that is none.
func (i *importer) copy(ctx context.Context, tx pgx.Tx, binary bool, tables []int64, rows []string) error {
	for n := len(rows); len(rows) > 0; n = min(n, len(rows)) {
		step, err := tx.Begin(ctx) // a savepoint
		if err != nil {
			return explain(err)
		}
		_, err = step.Exec(ctx, i.copySQL(binary), tables[:n], rows[:n])
		switch {
		case err == nil:
			if err := step.Commit(ctx); err != nil {
				return explain(err)
			}
			tables, rows = tables[n:], rows[n:]
			continue
		case !isData(err):
			return i.cure(err)
		}
		if rollback := step.Rollback(ctx); rollback != nil {
			return explain(rollback)
		}
		if n == 1 {
			return i.noEvent(err, i.nameOf(ctx, tx, fmt.Sprintf("WHERE tableoid = %d AND ctid = '%s'", tables[0], rows[0])))
		}
		n /= 2
	}
	return nil
}

// isTaken reports whether an error says that another session has a row.
func isTaken(err error) bool {
	var pe *pgconn.PgError
	return errors.As(err, &pe) && (pe.Code == "55P03" || pe.Code == "40P01" || pe.Code == "40001")
}

// notData are the classes of errors that are about the session, the server, or the
// statement as a whole: connections, states, rights, names, resources, locks.
var notData = []string{"03", "08", "0L", "0P", "24", "25", "26", "28", "2B", "2D", "34", "3B", "3D", "3F", "40", "42", "53", "55", "57", "58", "72", "F0"}

// isData reports whether an error may be about the values in a row: a rule of the
// outbox, a conversion, a limit, or what an expression, a function or a trigger makes of
// them, which may raise any code.
func isData(err error) bool {
	var pe *pgconn.PgError
	return errors.As(err, &pe) && len(pe.Code) == 5 && !slices.Contains(notData, pe.Code[:2])
}
