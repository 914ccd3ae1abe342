package sqlsink

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/onewrite/onewrite/internal/sabotage"
)

// textArray is a column of values as an array of text, which the server unnests and
// converts.
type textArray struct {
	rows [][]any
	col  int
}

func (a textArray) Dimensions() []pgtype.ArrayDimension {
	return []pgtype.ArrayDimension{{Length: int32(len(a.rows)), LowerBound: 1}}
}

func (a textArray) Index(i int) any { return a.rows[i][a.col] }

func (a textArray) IndexType() any { return (*string)(nil) }

// bind makes the text that PostgreSQL reads; nil is NULL.
func (p *pgDB) bind(c *column, v cell) (any, error) {
	s, err := pgText(c, v)
	return s, err
}

func pgText(c *column, v cell) (*string, error) {
	out := v.text
	switch {
	case v.kind == cellNull:
		return nil, nil
	case c.kind == kindBinary:
		b, err := bytesOf(v)
		if err != nil {
			return nil, err
		}
		out = fmt.Sprintf(`\x%x`, b)
	case c.kind == kindArray && v.kind == cellJSON && v.text[0] == '[':
		var b strings.Builder
		if err := pgArray(&b, c, v.text); err != nil {
			return nil, err
		}
		out = b.String()
	}
	return &out, nil
}

// pgArray writes a JSON array as PostgreSQL's literal.
func pgArray(b *strings.Builder, c *column, text string) error {
	b.WriteByte('{')
	for i, e := range elements([]byte(text)) {
		if i > 0 {
			b.WriteByte(c.delim)
		}
		switch {
		case e.kind == cellNull:
			b.WriteString("NULL")
		case e.kind == cellJSON && e.text[0] == '[' && c.elem != kindJSON:
			if err := pgArray(b, c, e.text); err != nil {
				return err
			}
		default:
			if c.elem == kindBinary {
				raw, err := bytesOf(e)
				if err != nil {
					return err
				}
				e.text = fmt.Sprintf(`\x%x`, raw)
			}
			b.WriteByte('"')
			for i := range len(e.text) {
				if e.text[i] == '"' || e.text[i] == '\\' {
					b.WriteByte('\\')
				}
				b.WriteByte(e.text[i])
			}
			b.WriteByte('"')
		}
	}
	b.WriteByte('}')
	return nil
}

// apply sends all statements in one flight and commits when all are answered.
func (p *pgDB) apply(ctx context.Context, at *placed, steps []*step, single bool) (failed int, err error) {
	b := &pgx.Batch{}
	b.Queue("BEGIN")
	if at != nil && sabotage.Bug == "place-apart" {
		_, _ = p.conn.Exec(ctx, "UPDATE onewrite_places SET record = $1 WHERE destination = $2", at.record, at.destination)
	}
	if at != nil {
		b.Queue("UPDATE onewrite_places SET record = $1, written = now() WHERE destination = $2 AND owner = $3", at.record, at.destination, at.owner)
	}
	b.Queue("SET CONSTRAINTS ALL DEFERRED")
	head := b.Len()
	for _, st := range steps {
		sql, args := pgStatement(st, single)
		b.Queue(sql, args...)
	}
	b.Queue("SET CONSTRAINTS ALL IMMEDIATE") // what was deferred is checked here
	if failed, err = p.send(ctx, b, head, at); err != nil {
		p.rollback(ctx)
		return min(failed, len(steps)), err
	}
	if err = committed(func() error { _, err := p.conn.Exec(ctx, "COMMIT"); return err }); err != nil {
		if pgCode(err) == "" {
			err = &unknownOutcome{err}
		} else {
			p.rollback(ctx)
		}
	}
	return len(steps), err
}

// send runs a batch; failed is the statement, counted from head.
func (p *pgDB) send(ctx context.Context, b *pgx.Batch, head int, at *placed) (failed int, err error) {
	br := p.conn.SendBatch(ctx, b)
	fenced := false
	for i := range b.Len() {
		tag, e := br.Exec()
		if e != nil {
			failed, err = max(0, i-head), e
			break
		}
		if at != nil && i == 1 && tag.RowsAffected() == 0 {
			fenced = true
			break
		}
	}
	if e := br.Close(); err == nil && !fenced {
		err = e
	}
	if fenced {
		return 0, errFenced(at.destination)
	}
	return failed, err
}

// rollback ends a transaction that failed. A connection on which that does not work
// is given up.
func (p *pgDB) rollback(ctx context.Context) {
	if p.conn.IsClosed() || p.conn.PgConn().TxStatus() == 'I' {
		return
	}
	if _, err := p.conn.Exec(ctx, "ROLLBACK"); err != nil {
		_ = p.close()
	}
}

// culprit does the steps again and looks after each whether the constraints hold. The
// one after which they never hold again is to blame.
func (p *pgDB) culprit(ctx context.Context, steps []*step) (int, error) {
	if _, err := p.conn.Exec(ctx, "BEGIN"); err != nil {
		return 0, err
	}
	defer p.rollback(ctx)
	blame := -1
	for i, st := range steps {
		b := &pgx.Batch{}
		b.Queue("SET CONSTRAINTS ALL DEFERRED")
		sql, args := pgStatement(st, true)
		b.Queue(sql, args...)
		b.Queue("SAVEPOINT onewrite")
		if _, err := p.send(ctx, b, 0, nil); err != nil {
			return i, nil
		}
		_, err := p.conn.Exec(ctx, "SET CONSTRAINTS ALL IMMEDIATE")
		if err != nil && pgCode(err) == "" {
			return 0, err
		}
		if err == nil {
			blame = -1
		} else if blame < 0 {
			blame = i
		}
		if _, err := p.conn.Exec(ctx, "ROLLBACK TO SAVEPOINT onewrite"); err != nil {
			return 0, err
		}
	}
	return max(blame, 0), nil
}

// pgStatement is the SQL of a step. It is the same for any number of rows, so that it
// is parsed once.
func pgStatement(st *step, single bool) (string, []any) {
	var args []any
	for i := range st.cols {
		if many(st.kind) {
			args = append(args, textArray{st.rows, i})
		} else {
			args = append(args, st.rows[0][i])
		}
	}
	names := make([]string, len(st.cols))
	values := make([]string, len(st.cols)) // of a run
	params := make([]string, len(st.cols)) // of one row
	arrays := make([]string, len(st.cols))
	var set, excluded []string
	for i, c := range st.cols {
		names[i] = c.quoted
		values[i] = fmt.Sprintf("u.c%d::%s", i+1, c.typ)
		params[i] = fmt.Sprintf("$%d::text::%s", i+1, c.typ)
		arrays[i] = fmt.Sprintf("$%d::text[]", i+1)
		if !has(st.key, c) && !c.insertOnly {
			set = append(set, c.quoted+" = "+params[i])
			excluded = append(excluded, c.quoted+" = EXCLUDED."+c.quoted)
		}
	}
	t, list := st.table.quoted, strings.Join(names, ", ")
	run := fmt.Sprintf("unnest(%s) AS u(%s)", strings.Join(arrays, ", "), numbered(len(st.cols)))
	insert := fmt.Sprintf("INSERT INTO %s (%s) OVERRIDING SYSTEM VALUE SELECT ", t, list)
	switch st.kind {
	case stepAppend:
		return insert + strings.Join(values, ", ") + " FROM " + run, args
	case stepUpsert:
		do := "NOTHING"
		if len(excluded) > 0 {
			do = "UPDATE SET " + strings.Join(excluded, ", ")
		}
		return insert + strings.Join(values, ", ") + " FROM " + run + " ON CONFLICT (" + quotedList(st.key) + ") DO " + do, args
	case stepDelete:
		var on []string
		for i, c := range st.cols {
			on = append(on, fmt.Sprintf("t.%s = u.c%d::%s", c.quoted, i+1, c.typ))
		}
		return "DELETE FROM " + t + " AS t USING " + run + " WHERE " + strings.Join(on, " AND "), args
	case stepMerge:
		var on []string
		for i, c := range st.cols {
			if has(st.key, c) {
				on = append(on, c.quoted+" = "+params[i])
			}
		}
		where := strings.Join(on, " AND ")
		if len(set) == 0 {
			return insert + strings.Join(params, ", ") + " WHERE NOT EXISTS (SELECT FROM " + t + " WHERE " + where + ")", args
		}
		return "WITH u AS (UPDATE " + t + " SET " + strings.Join(set, ", ") + " WHERE " + where + " RETURNING 1) " +
			insert + strings.Join(params, ", ") + " WHERE NOT EXISTS (SELECT FROM u)", args
	case stepReplace, stepErase:
		one := fmt.Sprintf("(tableoid, ctid) = (SELECT tableoid, ctid FROM %s WHERE %s LIMIT 1)", t, pgLike(st, len(args)))
		args = append(args, st.before...)
		if st.kind == stepErase {
			return "DELETE FROM " + t + " WHERE " + one, args
		}
		return "WITH u AS (UPDATE " + t + " SET " + strings.Join(set, ", ") + " WHERE " + one + " RETURNING 1) " +
			insert + strings.Join(params, ", ") + " WHERE NOT EXISTS (SELECT FROM u)", args
	}
	return pgTruncate(st, single), nil
}

// pgLike is the condition of a row that looks like before. Types that cannot be
// compared are compared as text.
func pgLike(st *step, shift int) string {
	var on []string
	for i, c := range st.where {
		left, right := c.quoted, fmt.Sprintf("$%d::text::%s", shift+i+1, c.typ)
		if c.incomparable {
			left, right = left+"::text", right+"::text"
		}
		on = append(on, left+" IS NOT DISTINCT FROM "+right)
	}
	return strings.Join(on, " AND ")
}

// pgTruncate empties tables, all in one command since they may refer to each other. By
// itself, DELETE does what TRUNCATE refuses: to empty a table that others refer to.
func pgTruncate(st *step, single bool) string {
	if single {
		return "DELETE FROM " + st.table.quoted
	}
	list := []string{st.table.quoted}
	for _, t := range st.also {
		list = append(list, t.quoted)
	}
	return "TRUNCATE " + strings.Join(list, ", ")
}

func has(cols []*column, c *column) bool {
	for _, k := range cols {
		if k == c {
			return true
		}
	}
	return false
}

func numbered(n int) string {
	var b strings.Builder
	for i := range n {
		if i > 0 {
			b.WriteString(", ")
		}
		fmt.Fprintf(&b, "c%d", i+1)
	}
	return b.String()
}

func quotedList(cols []*column) string {
	names := make([]string, len(cols))
	for i, c := range cols {
		names[i] = c.quoted
	}
	return strings.Join(names, ", ")
}

func (p *pgDB) judge(err error) verdict {
	code := pgCode(err)
	if len(code) != 5 {
		return outage
	}
	switch code {
	case "42501":
		return denied
	case "25006", "57014":
		return outage
	}
	switch code[:2] {
	case "21", "22", "23", "42", "44", "54", "0A", "P0", "3F", "39", "38", "2F":
		return refused
	}
	return outage
}

// cure says what to do about a server's error.
func (p *pgDB) cure(err error, t *table) string {
	var e *pgconn.PgError
	if !errors.As(err, &e) {
		return ""
	}
	of := "the table"
	if t != nil {
		of = t.quoted
	}
	if cure := p.around(err, t.named()); cure != "" {
		return cure
	}
	switch code := e.Code; {
	case code == "42501":
		if m := deniedTo.FindStringSubmatch(e.Message); t == nil && m != nil {
			of = ident(m[2])
		}
		return "GRANT SELECT, INSERT, UPDATE, DELETE, TRUNCATE ON " + of + " TO " + p.who() + ";"
	case code == "23505":
		return "if the source moves unique values between rows in one transaction: ALTER TABLE " + of + " with the constraint " + ident(e.ConstraintName) + " as UNIQUE (...) DEFERRABLE; else remove the other row, or the constraint"
	case code == "23503":
		return "deliver the table that it refers to as well, to the same destination, or: ALTER TABLE " + of + " DROP CONSTRAINT " + ident(e.ConstraintName)
	case code[:2] == "23":
		return "ALTER TABLE " + of + " so that it takes what the source's table takes"
	case code[:2] == "22":
		return "ALTER TABLE " + of + " ALTER COLUMN ... TYPE one that takes the value"
	case code == "25006":
		return "the server is read only: point url at the primary"
	case code[:2] == "53":
		return "give the server room, or connections: it says what it lacks"
	case p.judge(err) == refused:
		return "compare the table with the event: \\d " + of
	}
	return ""
}
