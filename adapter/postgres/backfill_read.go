package postgres

import (
	"context"
	"errors"
	"fmt"
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

// load reads the chunk in one transaction, which sees what its snapshot says.
func (f *backfill) load(ctx context.Context, conn *pgx.Conn, ch *chunk, limit int) error {
	if _, err := conn.Exec(ctx, "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"); err != nil {
		return explain(err)
	}
	var text string
	if err := conn.QueryRow(ctx, "SELECT pg_current_snapshot()::text").Scan(&text); err != nil {
		return explain(err)
	}
	var err error
	if ch.snap, err = parseSnapshot(text); err != nil {
		return err
	}
	types, err := f.describe(ctx, conn, ch)
	if err != nil {
		return err
	}
	list := make([]string, len(ch.table.columns))
	for i, c := range ch.table.columns {
		list[i] = pgx.Identifier{c.name}.Sanitize()
	}
	sql := "SELECT " + strings.Join(list, ", ") + " FROM " + ch.of.quoted()
	if len(list) == 0 {
		sql = "SELECT FROM " + ch.of.quoted()
	}
	if len(ch.order) == 0 {
		return f.whole(ctx, conn, ch, sql)
	}
	by := make([]string, len(ch.order))
	after := make([]string, len(ch.order))
	for n, i := range ch.order {
		by[n] = list[i]
		if ch.place.key != nil {
			after[n] = quoteText(ch.place.key[n]) + "::" + types[i]
		}
	}
	if ch.place.key != nil {
		if len(ch.place.key) != len(ch.order) {
			ch.place.key = nil // the key was changed since: from the beginning
		} else {
			sql += " WHERE (" + strings.Join(by, ", ") + ") > (" + strings.Join(after, ", ") + ")"
		}
	}
	sql += " ORDER BY " + strings.Join(by, ", ") + " LIMIT " + strconv.Itoa(limit)
	if err := ch.read(ctx, conn, sql); err != nil {
		return err
	}
	ch.last = len(ch.rows) < limit
	_, err = conn.Exec(ctx, "COMMIT")
	return explain(err)
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

// describe learns the table's columns and key as the chunk's transaction sees them,
// and returns the names of the columns' types.
func (f *backfill) describe(ctx context.Context, conn *pgx.Conn, ch *chunk) (types []string, err error) {
	rows, err := conn.Query(ctx, `SELECT a.attname::text, a.atttypid, format_type(a.atttypid, a.atttypmod), n.nspname::text, c.relname::text,
			coalesce(array_position(string_to_array(i.indkey::text, ' ')::int[], a.attnum::int), 0)
		FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''
		LEFT JOIN pg_index i ON i.indrelid = c.oid AND CASE WHEN c.relreplident = 'i' THEN i.indisreplident ELSE i.indisprimary END
		WHERE c.oid = $1 ORDER BY a.attnum`, ch.of.rel)
	if err != nil {
		return nil, explain(err)
	}
	var columns []tableColumn
	var oids []uint32
	var col tableColumn
	var typ, schema, name string
	var place int
	places := map[int]int{}
	_, err = pgx.ForEachRow(rows, []any{&col.name, &col.oid, &typ, &schema, &name, &place}, func() error {
		if place > 0 {
			places[place] = len(columns)
		}
		columns, types, oids = append(columns, col), append(types, typ), append(oids, col.oid)
		return nil
	})
	if err != nil {
		return nil, explain(err)
	}
	if len(columns) == 0 && name == "" {
		var there bool
		if err := conn.QueryRow(ctx, `SELECT EXISTS (SELECT FROM pg_class WHERE oid = $1)`, ch.of.rel).Scan(&there); err != nil || !there {
			return nil, errors.Join(fmt.Errorf("the table is gone; take it out of tables:, or create it, and run onewrite migrate"), explain(err))
		}
		schema, name, _ = strings.Cut(ch.of.name, ".")
	}
	f.r.side.Lock()
	err = f.r.cat.resolve(ctx, oids)
	for i := range columns {
		columns[i].typ = f.r.cat.typeOf(columns[i].oid)
	}
	f.r.side.Unlock()
	if err != nil {
		return nil, err
	}
	var key []string
	for n := 1; n <= len(places); n++ {
		ch.order = append(ch.order, places[n])
		key = append(key, columns[places[n]].name)
	}
	ch.table = newTable(ch.of.rel, f.r.database, schema, name, columns, key)
	return types, nil
}
