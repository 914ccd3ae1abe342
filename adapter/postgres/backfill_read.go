package postgres

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"slices"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/onewrite/onewrite/internal/pgoutput"
)

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
	if len(ch.order) == 0 {
		if err := ch.done.begins(ctx, conn, ch.of, ch.of.within(from)); err != nil {
			return err
		}
		return f.whole(ctx, conn, ch, "SELECT "+strings.Join(list, ", ")+" FROM "+ch.of.within(from))
	}
	by := make([]string, len(ch.order))
	for n, i := range ch.order {
		by[n] = list[i]
	}
	if key := ch.begins(); key != nil {
		from += " WHERE " + behind(by, key, ch.by)
	}
	if err := ch.done.begins(ctx, conn, ch.of, ch.of.within(from)); err != nil {
		return err
	}
	if err := f.page(ctx, conn, ch, list, from, " ORDER BY "+strings.Join(by, ", "), limit); err != nil {
		return err
	}
	_, err = conn.Exec(ctx, "COMMIT")
	return explain(err)
}

// page reads the rows of a chunk. Where a condition leaves rows out, only so many are
// looked at that the transaction stays short; then the chunk ends with the last of them.
func (f *backfill) page(ctx context.Context, conn *pgx.Conn, ch *chunk, list []string, from, order string, limit int) error {
	looked, scan := from, cmp.Or(f.r.cfg.scan, chunkScan)
	if ch.of.where != "" {
		looked += order + " LIMIT " + strconv.Itoa(scan)
	}
	if err := ch.read(ctx, conn, fmt.Sprintf("SELECT %s FROM %s%s LIMIT %d", strings.Join(list, ", "), ch.of.within(looked), order, limit), chunkBytes); err != nil {
		return err
	}
	if len(ch.rows) > 0 {
		ch.end.key = ch.placeOf(ch.rows[len(ch.rows)-1], ch.order)
	}
	ch.last = len(ch.rows) < limit && !ch.cut
	if !ch.last || ch.of.where == "" {
		return nil
	}
	by, order1 := make([]string, len(ch.order)), make([]int, len(ch.order))
	for n, i := range ch.order {
		by[n], order1[n] = list[i], n
	}
	end := chunk{of: ch.of}
	if err := end.read(ctx, conn, fmt.Sprintf("SELECT %s FROM %s%s OFFSET %d LIMIT 1", strings.Join(by, ", "), from, order, scan-1), chunkBytes); err != nil {
		return err
	}
	if len(end.rows) > 0 { // there may be more behind what was looked at
		ch.last, ch.end.key = false, ch.placeOf(end.rows[0], order1)
	}
	return nil
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

// read runs a query and adds its rows. What there is no room for is left out; 0 is room
// for all.
func (ch *chunk) read(ctx context.Context, conn *pgx.Conn, sql string, most int) error {
	res := conn.PgConn().ExecParams(ctx, sql, nil, nil, nil, nil)
	var cells pgoutput.Tuple // rows come in thousands: they share what they are made of
	var room []byte
	for res.NextRow() {
		values := res.Values()
		size := 0
		for _, v := range values {
			size += len(v)
		}
		ch.cut = ch.cut || most > 0 && len(ch.rows) > 0 && ch.size+size > most
		if ch.cut {
			continue
		}
		ch.size += size + 32*len(values)
		if cells == nil || cap(cells)-len(cells) < len(values) { // a row without columns is a row
			cells = make(pgoutput.Tuple, 0, max(len(values), 4096))
		}
		if cap(room)-len(room) < size {
			room = make([]byte, 0, max(size, 64<<10))
		}
		first := len(cells)
		for _, v := range values {
			if v == nil {
				cells = append(cells, pgoutput.Column{Kind: pgoutput.ColumnNull})
				continue
			}
			at := len(room)
			room = append(room, v...)
			cells = append(cells, pgoutput.Column{Kind: pgoutput.ColumnText, Data: room[at:len(room):len(room)]})
		}
		ch.rows = append(ch.rows, cells[first:len(cells):len(cells)])
	}
	_, err := res.Close()
	return ch.of.refused(err)
}

// whole reads a table without a key in pages of one transaction.
func (f *backfill) whole(ctx context.Context, conn *pgx.Conn, ch *chunk, sql string) error {
	if _, err := conn.Exec(ctx, "DECLARE rows NO SCROLL CURSOR FOR "+sql); err != nil {
		return ch.of.refused(err)
	}
	ch.last = true
	page := 100
	ch.more = func() ([]pgoutput.Tuple, error) {
		ch.lent.Lock()
		defer ch.lent.Unlock()
		switch {
		case ch.back:
			return nil, errClosed
		case ch.size > chunkBytes && page > 1:
			page /= 2
		case ch.size < chunkBytes/2 && page < 2000:
			page *= 2
		}
		ch.rows, ch.size = nil, 0
		if err := ch.read(ctx, conn, fmt.Sprintf("FETCH %d FROM rows", page), 0); err != nil {
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
	rows, err := conn.Query(ctx, `SELECT attname::text, atttypid, attcollation FROM pg_attribute WHERE attrelid = $1 AND attnum > 0 AND NOT attisdropped AND attgenerated = '' ORDER BY attnum`, ch.of.rel)
	if err != nil {
		return explain(err)
	}
	collations := map[string]uint32{}
	columns, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (c tableColumn, err error) {
		var collation uint32
		err = row.Scan(&c.name, &c.oid, &collation)
		collations[c.name] = collation
		return c, err
	})
	if err != nil {
		return explain(err)
	}
	oids := make([]uint32, len(columns))
	for i := range columns {
		oids[i] = columns[i].oid
	}
	// Not by the reader's catalog: its session may be waiting, behind an ALTER TABLE, for the
	// lock that this transaction has.
	types := catalog{conn: conn, types: map[uint32]valueType{}}
	if err := types.resolve(ctx, oids); err != nil {
		return err
	}
	for i := range columns {
		columns[i].typ = types.typeOf(columns[i].oid)
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
	if err := covered(ctx, conn, f.r.cat.rules, ch.table, func() error { return nil }); err != nil {
		return err
	}
	if len(ch.table.key) == 0 {
		return nil // one lane
	}
	by, err := comparisons(ctx, conn, ch.of.rel, key)
	sum := crc32.NewIEEE()
	for _, k := range key {
		fmt.Fprintln(sum, k, by[k].typ, collations[k])
		ch.order = append(ch.order, slices.IndexFunc(columns, func(c tableColumn) bool { return c.name == k }))
		ch.by = append(ch.by, by[k])
	}
	ch.sorted = fmt.Sprintf("%x", sum.Sum32())
	return err
}
