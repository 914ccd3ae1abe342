package postgres

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/onewrite/onewrite/internal/pgoutput"
)

// readChunk reads the rows behind a place between two marks, and leaves them to the
// goroutine that receives.
func (f *backfill) readChunk(ctx context.Context, conn *pgx.Conn, c captured, p snapPlace, limit int) (*chunk, error) {
	f.mu.Lock()
	id := 1
	if f.chunk != nil {
		id = f.chunk.id + 1
	}
	ch := &chunk{id: id, of: c, place: p, result: make(chan error, 1)}
	f.chunk = ch
	f.mu.Unlock()
	if err := f.emit(ctx, conn, id, "low"); err != nil {
		return nil, err
	}
	if err := f.load(ctx, conn, ch, limit); err != nil {
		_, _ = conn.Exec(ctx, "ROLLBACK")
		return nil, err
	}
	if ch.more != nil { // its transaction is open: the mark needs another session
		other, err := connectText(ctx, f.url, "onewrite snapshot")
		if err != nil {
			return nil, err
		}
		defer func() { _ = other.Close(context.Background()) }()
		return ch, f.emit(ctx, other, id, "high")
	}
	return ch, f.emit(ctx, conn, id, "high")
}

func (f *backfill) emit(ctx context.Context, conn *pgx.Conn, id int, mark string) error {
	_, err := conn.Exec(ctx, `SELECT pg_logical_emit_message(true, $1, $2)`, ownPrefix, fmt.Sprintf("%s:%d:%s", f.nonce, id, mark))
	return explain(err)
}

// load reads the chunk in one transaction, which sees what its snapshot says. The
// table is locked before the snapshot is taken: one that is rewritten by ALTER TABLE
// looks empty to a snapshot of before.
func (f *backfill) load(ctx context.Context, conn *pgx.Conn, ch *chunk, limit int) error {
	var from string
	err := conn.QueryRow(ctx, `SELECT CASE c.relkind WHEN 'p' THEN '' ELSE 'ONLY ' END || format('%I.%I', n.nspname, c.relname)
		FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = $1`, ch.of.rel).Scan(&from)
	if errors.Is(err, pgx.ErrNoRows) {
		return errors.New("the table is gone; take it out of tables:, or create it, and run onewrite migrate")
	}
	if err != nil {
		return explain(err)
	}
	if _, err := conn.Exec(ctx, "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; LOCK TABLE "+from+" IN ACCESS SHARE MODE", pgx.QueryExecModeSimpleProtocol); err != nil {
		return explain(err)
	}
	var text string
	var same bool
	if err := conn.QueryRow(ctx, "SELECT pg_current_snapshot()::text, coalesce(to_regclass($1)::oid = $2, false)", strings.TrimPrefix(from, "ONLY "), ch.of.rel).Scan(&text, &same); err != nil {
		return explain(err)
	}
	if !same {
		return errAgain // the table was renamed or dropped just now
	}
	if ch.snap, err = parseSnapshot(text); err != nil {
		return err
	}
	if err := f.describe(ctx, conn, ch); err != nil {
		return err
	}
	list := make([]string, len(ch.table.columns))
	for i, c := range ch.table.columns {
		list[i] = pgx.Identifier{c.name}.Sanitize()
	}
	sql := "SELECT " + strings.Join(list, ", ") + " FROM " + from
	if len(ch.order) == 0 {
		return f.whole(ctx, conn, ch, sql)
	}
	by := make([]string, len(ch.order))
	for n, i := range ch.order {
		by[n] = list[i]
	}
	if len(ch.place.key) != len(ch.order) {
		ch.place.key = nil // none yet, or the key was changed since: from the beginning
	} else {
		sql += " WHERE " + behind(by, ch.place.key, ch.by)
	}
	sql += " ORDER BY " + strings.Join(by, ", ") + " LIMIT " + strconv.Itoa(limit)
	if err := ch.read(ctx, conn, sql); err != nil {
		return err
	}
	ch.last = len(ch.rows) < limit
	_, err = conn.Exec(ctx, "COMMIT")
	return explain(err)
}

// behind is the condition that a row comes after a place.
func behind(columns, key []string, by []comparison) string {
	columns = slices.Clone(columns)
	values := make([]string, len(columns))
	plain := true
	for n := range columns {
		columns[n] = by[n].of(columns[n])
		values[n] = quoteText(key[n]) + "::" + by[n].typ
		plain = plain && by[n].plain
	}
	if plain {
		return "(" + strings.Join(columns, ", ") + ") > (" + strings.Join(values, ", ") + ")"
	}
	// A comparison of rows has one operator for all columns. This is the same, column
	// by column, from the last to the first.
	n := len(columns) - 1
	sql := columns[n] + " " + by[n].gt + " " + values[n]
	for n--; n >= 0; n-- {
		c, v := columns[n], values[n]
		sql = fmt.Sprintf("%s %s %s AND (%s %s %s OR %s)", c, by[n].ge, v, c, by[n].gt, v, sql)
	}
	return sql
}

// quoteText writes a text literal.
func quoteText(s string) string {
	s = "'" + strings.ReplaceAll(s, "'", "''") + "'"
	if strings.Contains(s, `\`) {
		return " E" + strings.ReplaceAll(s, `\`, `\\`)
	}
	return s
}

// read runs a query and adds its rows.
func (ch *chunk) read(ctx context.Context, conn *pgx.Conn, sql string) error {
	res := conn.PgConn().ExecParams(ctx, sql, nil, nil, nil, nil)
	for res.NextRow() {
		values := res.Values()
		size := 0
		for _, v := range values {
			size += len(v)
		}
		room := make([]byte, 0, size)
		row := make(pgoutput.Tuple, len(values))
		for i, v := range values {
			if v == nil {
				row[i].Kind = pgoutput.ColumnNull
				continue
			}
			at := len(room)
			room = append(room, v...)
			row[i] = pgoutput.Column{Kind: pgoutput.ColumnText, Data: room[at:len(room):len(room)]}
		}
		ch.rows = append(ch.rows, row)
		ch.size += size + 32*len(row)
	}
	_, err := res.Close()
	return explain(err)
}

// whole reads a table without a key in pages of one transaction.
func (f *backfill) whole(ctx context.Context, conn *pgx.Conn, ch *chunk, sql string) error {
	if _, err := conn.Exec(ctx, "DECLARE rows NO SCROLL CURSOR FOR "+sql); err != nil {
		return explain(err)
	}
	ch.last = true
	ch.more = func() ([]pgoutput.Tuple, error) {
		ch.rows = nil
		if err := ch.read(ctx, conn, "FETCH 2000 FROM rows"); err != nil {
			return nil, err
		}
		if len(ch.rows) == 0 {
			_, err := conn.Exec(ctx, "COMMIT")
			return nil, explain(err)
		}
		return ch.rows, nil
	}
	return nil
}

// describe learns the table's columns and key as the chunk's transaction sees them.
func (f *backfill) describe(ctx context.Context, conn *pgx.Conn, ch *chunk) error {
	var schema, name, identity string
	err := conn.QueryRow(ctx, `SELECT n.nspname::text, c.relname::text, c.relreplident::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = $1`, ch.of.rel).Scan(&schema, &name, &identity)
	if err != nil {
		return explain(err)
	}
	rows, err := conn.Query(ctx, `SELECT attname::text, atttypid FROM pg_attribute WHERE attrelid = $1 AND attnum > 0 AND NOT attisdropped AND attgenerated = '' ORDER BY attnum`, ch.of.rel)
	if err != nil {
		return explain(err)
	}
	columns, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (c tableColumn, err error) {
		return c, row.Scan(&c.name, &c.oid)
	})
	if err != nil {
		return explain(err)
	}
	oids := make([]uint32, len(columns))
	for i := range columns {
		oids[i] = columns[i].oid
	}
	f.r.side.Lock()
	err = f.r.cat.resolve(ctx, oids)
	for i := range columns {
		columns[i].typ = f.r.cat.typeOf(columns[i].oid)
	}
	f.r.side.Unlock()
	if err != nil {
		return err
	}
	parts, err := keyOf(ctx, conn, ch.of.rel, identity[0])
	if err != nil {
		return err
	}
	key := make([]string, len(parts))
	for n := range parts {
		key[n] = parts[n].name
	}
	ch.table = newTable(ch.of.rel, f.r.database, schema, name, columns, key)
	if err := ch.table.mask(f.r.cat.rules); err != nil {
		return err
	}
	if len(ch.table.key) == 0 {
		return nil // one lane
	}
	by, err := comparisons(ctx, conn, ch.of.rel, key)
	for _, k := range key {
		ch.order = append(ch.order, slices.IndexFunc(columns, func(c tableColumn) bool { return c.name == k }))
		ch.by = append(ch.by, by[k])
	}
	return err
}
