package sqlsink

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/go-sql-driver/mysql"
)

// apply does the steps one after another, and commits.
func (m *mysqlDB) apply(ctx context.Context, at *placed, steps []*step, _ bool) (failed int, err error) {
	if _, err = m.exec(ctx, "START TRANSACTION"); err != nil {
		return 0, err
	}
	if failed, err = m.transaction(ctx, at, steps); err != nil {
		if m.usable() {
			_, _ = m.exec(ctx, "ROLLBACK") // if it fails, the connection is given up
		}
		return failed, err
	}
	if err = committed(func() error { _, err := m.exec(ctx, "COMMIT"); return err }); err != nil && mysqlCode(err) == 0 {
		err = &unknownOutcome{err}
	}
	return len(steps), err
}

func (m *mysqlDB) transaction(ctx context.Context, at *placed, steps []*step) (int, error) {
	if at != nil {
		n, err := m.exec(ctx, "UPDATE onewrite_places SET record = ?, written = utc_timestamp(6) WHERE destination = ? AND owner = ?", at.record, at.destination, at.owner)
		if err != nil {
			return 0, err
		}
		if n == 0 {
			return 0, errFenced(at.destination)
		}
	}
	for i, st := range steps {
		if err := m.step(ctx, st); err != nil {
			return i, err
		}
	}
	return 0, nil
}

// exec runs a statement and returns how many rows it found.
func (m *mysqlDB) exec(ctx context.Context, sql string, args ...any) (int64, error) {
	r, err := m.conn.ExecContext(ctx, sql, args...)
	if err != nil {
		return 0, m.noted(err)
	}
	return r.RowsAffected()
}

func (m *mysqlDB) step(ctx context.Context, st *step) error {
	switch st.kind {
	case stepUpsert:
		if !st.table.guarded {
			return m.insert(ctx, st, mysqlOnDuplicate(st))
		}
		// ON DUPLICATE KEY would change the row that any unique index names. A plain
		// INSERT fails whole, and then it is known which rows are there.
		err := m.insert(ctx, st, "")
		if mysqlCode(err) != 1062 {
			return err
		}
		for _, row := range st.rows {
			if err := m.merge(ctx, st, row); err != nil {
				return err
			}
		}
		return nil
	case stepMerge:
		return m.merge(ctx, st, st.rows[0])
	case stepAppend:
		return m.insert(ctx, st, "")
	case stepDelete:
		return m.delete(ctx, st)
	case stepReplace:
		where, args := m.like(st)
		set, values := mysqlSet(st, st.rows[0], nil)
		n, err := m.exec(ctx, "UPDATE "+st.table.quoted+" SET "+set+" WHERE "+where+" LIMIT 1", append(values, args...)...)
		if err != nil || n > 0 {
			return err
		}
		return m.insert(ctx, st, "")
	case stepErase:
		where, args := m.like(st)
		_, err := m.exec(ctx, "DELETE FROM "+st.table.quoted+" WHERE "+where+" LIMIT 1", args...)
		return err
	}
	for _, t := range append([]*table{st.table}, st.also...) { // TRUNCATE would commit
		if _, err := m.exec(ctx, "DELETE FROM "+t.quoted); err != nil {
			return err
		}
	}
	return nil
}

// insert writes rows in statements that the server takes.
func (m *mysqlDB) insert(ctx context.Context, st *step, tail string) error {
	head := "INSERT INTO " + st.table.quoted + " (" + quotedList(st.cols) + ") VALUES "
	row := "(" + strings.TrimSuffix(strings.Repeat("?,", len(st.cols)), ",") + ")"
	most := max(1<<16, m.packet/4) // escaping makes it longer, twice at most
	for rows := st.rows; len(rows) > 0; {
		n, size := 0, 0
		var args []any
		for n < len(rows) && (n == 0 || size+sizeOf(rows[n]) < most && len(args) < 60_000) {
			size += sizeOf(rows[n])
			args = append(args, rows[n]...)
			n++
		}
		if _, err := m.exec(ctx, head+strings.TrimSuffix(strings.Repeat(row+",", n), ",")+tail, args...); err != nil {
			return err
		}
		rows = rows[n:]
	}
	return nil
}

func sizeOf(row []any) int {
	n := 0
	for _, v := range row {
		switch v := v.(type) {
		case string:
			n += len(v)
		case []byte:
			n += len(v)
		}
		n += 8
	}
	return n
}

func mysqlOnDuplicate(st *step) string {
	var set []string
	for _, c := range st.cols {
		if !has(st.key, c) {
			set = append(set, c.quoted+" = VALUES("+c.quoted+")")
		}
	}
	if len(set) == 0 {
		set = []string{st.key[0].quoted + " = " + st.table.quoted + "." + st.key[0].quoted}
	}
	return " ON DUPLICATE KEY UPDATE " + strings.Join(set, ", ")
}

func mysqlSet(st *step, row []any, skip []*column) (string, []any) {
	var set []string
	var args []any
	for i, c := range st.cols {
		if !has(skip, c) {
			set, args = append(set, c.quoted+" = ?"), append(args, row[i])
		}
	}
	return strings.Join(set, ", "), args
}

// merge updates the row of a key, and writes it if there is none.
func (m *mysqlDB) merge(ctx context.Context, st *step, row []any) error {
	set, args := mysqlSet(st, row, st.key)
	var on []string
	for i, c := range st.cols {
		if has(st.key, c) {
			on, args = append(on, m.equal(c, "=")), append(args, row[i])
		}
	}
	where := strings.Join(on, " AND ")
	if set == "" {
		set = st.key[0].quoted + " = " + st.key[0].quoted
	}
	n, err := m.exec(ctx, "UPDATE "+st.table.quoted+" SET "+set+" WHERE "+where, args...)
	if err != nil || n > 0 {
		return err
	}
	return m.insert(ctx, &step{table: st.table, cols: st.cols, rows: [][]any{row}}, "")
}

// equal is a comparison with a value that keeps its digits.
func (m *mysqlDB) equal(c *column, op string) string {
	if c.kind == kindDecimal {
		return c.quoted + " " + op + " CAST(? AS " + c.typ + ")"
	}
	return c.quoted + " " + op + " ?"
}

// like is the condition of a row that looks like before. Texts are equal only if all
// of them is.
func (m *mysqlDB) like(st *step) (string, []any) {
	var on []string
	for _, c := range st.where {
		if c.kind == kindText {
			on = append(on, "CONVERT("+c.quoted+" USING utf8mb4) COLLATE "+m.text+" <=> ?")
		} else {
			on = append(on, m.equal(c, "<=>"))
		}
	}
	return strings.Join(on, " AND "), append([]any(nil), st.before...)
}

func (m *mysqlDB) delete(ctx context.Context, st *step) error {
	var on []string
	for _, c := range st.cols {
		on = append(on, m.equal(c, "="))
	}
	one := "(" + strings.Join(on, " AND ") + ")"
	for rows := st.rows; len(rows) > 0; {
		n := min(len(rows), 200)
		var args []any
		for _, row := range rows[:n] {
			args = append(args, row...)
		}
		if _, err := m.exec(ctx, "DELETE FROM "+st.table.quoted+" WHERE "+strings.TrimSuffix(strings.Repeat(one+" OR ", n), " OR "), args...); err != nil {
			return err
		}
		rows = rows[n:]
	}
	return nil
}

// culprit has nothing to find: MySQL checks everything at once.
func (m *mysqlDB) culprit(context.Context, []*step) (int, error) { return 0, nil }

var mysqlRefused = map[uint16]bool{
	1048: true, 1054: true, 1059: true, 1062: true, 1064: true, 1071: true, 1074: true, 1101: true, 1118: true, 1136: true, 1146: true, 1153: true,
	1169: true, 1170: true, 1216: true, 1217: true, 1264: true, 1265: true, 1269: true, 1292: true, 1364: true, 1366: true, 1367: true, 1369: true,
	1406: true, 1411: true, 1416: true, 1425: true, 1426: true, 1439: true, 1441: true, 1451: true, 1452: true, 1526: true, 1586: true, 1644: true,
	1690: true, 1748: true, 1761: true, 1762: true, 1859: true, 1906: true, 3105: true, 3140: true, 3141: true, 3819: true, 4025: true, 1300: true,
	1049: true, 1103: true, 1117: true, 1166: true, 3903: true, 1977: true,
}

// tooLarge reports a statement or value that the server does not take for its size,
// which it says in three ways.
func tooLarge(err error) bool {
	n := mysqlCode(err)
	return errors.Is(err, mysql.ErrPktTooLarge) || n == 1153 || n == 1105 && strings.Contains(err.Error(), "max_allowed_packet")
}

func (m *mysqlDB) judge(err error) verdict {
	if tooLarge(err) {
		return oversize
	}
	switch n := mysqlCode(err); {
	case mysqlRefused[n]:
		return refused
	case n == 1044 || n == 1142 || n == 1143 || n == 1227 || n == 1370:
		return denied
	}
	return outage
}

func (m *mysqlDB) cure(err error, t *table) string {
	of := "the table"
	if t != nil {
		of = t.quoted
	}
	if tooLarge(err) {
		return fmt.Sprintf("SET GLOBAL max_allowed_packet = %d, then start onewrite again", max(64<<20, 4*m.packet))
	}
	if cure := m.around(err, t.named()); cure != "" {
		return cure
	}
	switch n := mysqlCode(err); n {
	case 0:
		return ""
	case 1062:
		return "MySQL checks unique keys at each row: DROP INDEX of " + of + " that is not unique at every moment in the source, or remove the other row"
	case 1216, 1217, 1451, 1452:
		return "deliver the table that it refers to as well, to the same destination; MySQL checks at each row, so where the source checks at the commit: ALTER TABLE " + of + " DROP FOREIGN KEY ..."
	case 1290, 1836:
		return "the server is read only: point url at the primary"
	case 1021, 1114:
		return "give the server room on its disk"
	case 1040, 1203:
		return "SHOW PROCESSLIST; SET GLOBAL max_connections = more"
	}
	if m.judge(err) == refused {
		return "ALTER TABLE " + of + " so that it takes what the source's table takes"
	}
	return ""
}
