package sqlsink

import (
	"context"
	"database/sql"
	"strings"

	"github.com/onewrite/onewrite/internal/disk"
)

// apply does the steps row by row, which costs no round trips here, and commits.
func (s *sqliteDB) apply(ctx context.Context, at *placed, steps []*step, _ bool) (failed int, err error) {
	if _, err = s.exec(ctx, "BEGIN IMMEDIATE"); err != nil {
		return 0, err
	}
	if failed, err = s.transaction(ctx, at, steps); err != nil {
		s.rollback(ctx)
		return failed, err
	}
	if err = committed(func() error { _, err := s.exec(ctx, "COMMIT"); return err }); err != nil { // also what foreign keys were found broken
		s.rollback(ctx)
		if sqliteCode(err) == 0 {
			err = &unknownOutcome{err}
		}
	}
	return len(steps), err
}

func (s *sqliteDB) rollback(ctx context.Context) {
	// Some errors have ended the transaction already; then this one says so.
	_, _ = s.conn.ExecContext(context.WithoutCancel(ctx), "ROLLBACK")
}

// transaction does the steps; foreign keys are checked at the commit.
func (s *sqliteDB) transaction(ctx context.Context, at *placed, steps []*step) (int, error) {
	if _, err := s.exec(ctx, "PRAGMA defer_foreign_keys = ON"); err != nil {
		return 0, err
	}
	if at != nil {
		n, err := s.exec(ctx, "UPDATE onewrite_places SET record = ?, written = strftime('%Y-%m-%dT%H:%M:%fZ', 'now') WHERE destination = ? AND owner = ?", at.record, at.destination, at.owner)
		if err != nil {
			return 0, err
		}
		if n == 0 {
			return 0, errFenced(at.destination)
		}
	}
	for i, st := range steps {
		if err := s.step(ctx, st); err != nil {
			return i, err
		}
	}
	return 0, nil
}

// culprit does the steps again with foreign keys checked at once, and undoes them.
// What is refused is tried again after the others, since they may be what it waits
// for: the first that never passes is to blame.
func (s *sqliteDB) culprit(ctx context.Context, steps []*step) (int, error) {
	if _, err := s.exec(ctx, "BEGIN IMMEDIATE"); err != nil {
		return 0, err
	}
	defer s.rollback(ctx)
	left := make([]int, len(steps))
	for i := range steps {
		left[i] = i
	}
	for before := len(left) + 1; len(left) > 0 && len(left) < before; {
		before = len(left)
		var again []int
		for _, i := range left {
			if err := s.step(ctx, steps[i]); sqliteCode(err) != 0 {
				again = append(again, i)
			} else if err != nil {
				return 0, err
			}
		}
		left = again
	}
	if len(left) == 0 { // keys that are declared to be checked at the commit
		return len(steps) - 1, nil
	}
	return left[0], nil
}

// exec runs a statement and returns how many rows it changed.
func (s *sqliteDB) exec(ctx context.Context, text string, args ...any) (int64, error) {
	r, err := s.conn.ExecContext(ctx, text, args...)
	if err != nil {
		return 0, s.noted(err)
	}
	return r.RowsAffected()
}

// mostPrepared bounds the statements that are kept compiled.
const mostPrepared = 256

// rows runs a statement for each row, compiled once.
func (s *sqliteDB) rows(ctx context.Context, text string, rows [][]any) (n int64, err error) {
	st := s.prepared[text]
	if st == nil {
		if len(s.prepared) >= mostPrepared {
			for k, old := range s.prepared {
				_ = old.Close()
				delete(s.prepared, k)
			}
		}
		if st, err = s.conn.PrepareContext(ctx, text); err != nil {
			return 0, s.noted(err)
		}
		s.prepared[text] = st
	}
	var r sql.Result
	for _, row := range rows {
		if r, err = st.ExecContext(ctx, row...); err != nil {
			return 0, s.noted(err)
		}
	}
	if r == nil {
		return 0, nil
	}
	return r.RowsAffected()
}

func (s *sqliteDB) step(ctx context.Context, st *step) error {
	t := st.table.quoted
	insert := "INSERT INTO " + t + " (" + quotedList(st.cols) + ") VALUES (" + strings.TrimSuffix(strings.Repeat("?,", len(st.cols)), ",") + ")"
	switch st.kind {
	case stepUpsert:
		do := "NOTHING"
		if set := excluded(st); set != "" {
			do = "UPDATE SET " + set
		}
		_, err := s.rows(ctx, insert+" ON CONFLICT ("+quotedList(st.key)+") DO "+do, st.rows)
		return err
	case stepAppend:
		_, err := s.rows(ctx, insert, st.rows)
		return err
	case stepMerge:
		return s.merge(ctx, st, insert)
	case stepDelete:
		_, err := s.rows(ctx, "DELETE FROM "+t+" WHERE "+equals(st.cols, " = ?", " AND "), st.rows)
		return err
	case stepReplace, stepErase:
		one := "rowid = (SELECT rowid FROM " + t + " WHERE " + equals(st.where, " IS ?", " AND ") + " LIMIT 1)"
		if st.kind == stepErase {
			_, err := s.exec(ctx, "DELETE FROM "+t+" WHERE "+one, st.before...)
			return err
		}
		args := append(append([]any(nil), st.rows[0]...), st.before...)
		n, err := s.exec(ctx, "UPDATE "+t+" SET "+equals(st.cols, " = ?", ", ")+" WHERE "+one, args...)
		if err == nil && n == 0 {
			_, err = s.rows(ctx, insert, st.rows)
		}
		return err
	}
	for _, t := range append([]*table{st.table}, st.also...) {
		if _, err := s.exec(ctx, "DELETE FROM "+t.quoted); err != nil {
			return err
		}
	}
	return nil
}

func equals(cols []*column, op, sep string) string {
	parts := make([]string, len(cols))
	for i, c := range cols {
		parts[i] = c.quoted + op
	}
	return strings.Join(parts, sep)
}

func excluded(st *step) string {
	var set []string
	for _, c := range st.cols {
		if !has(st.key, c) {
			set = append(set, c.quoted+" = excluded."+c.quoted)
		}
	}
	return strings.Join(set, ", ")
}

// merge updates the row of a key, and writes it if there is none.
func (s *sqliteDB) merge(ctx context.Context, st *step, insert string) error {
	var set, args, on []any
	var cols, key []*column
	for i, c := range st.cols {
		if has(st.key, c) {
			key, on = append(key, c), append(on, st.rows[0][i])
		} else {
			cols, set = append(cols, c), append(set, st.rows[0][i])
		}
	}
	if len(cols) == 0 {
		cols, set = key, on
	}
	args = append(append(args, set...), on...)
	n, err := s.rows(ctx, "UPDATE "+st.table.quoted+" SET "+equals(cols, " = ?", ", ")+" WHERE "+equals(key, " = ?", " AND "), [][]any{args})
	if err == nil && n == 0 {
		_, err = s.rows(ctx, insert, st.rows)
	}
	return err
}

func (s *sqliteDB) judge(err error) verdict {
	switch sqliteCode(err) & 0xff {
	case 1, 18, 19, 20, 25: // an SQL error, too big, a constraint, a mismatch, a range
		return refused
	}
	return outage
}

func (s *sqliteDB) cure(err error, t *table) string {
	of, file := "the table", disk.Quote(s.path)
	if t != nil {
		of = t.quoted
	}
	code := sqliteCode(err)
	switch code & 0xff {
	case 5, 6:
		return "another program holds the file locked: fuser -v " + file
	case 8:
		return "the file cannot be written: ls -l " + file
	case 10, 13:
		return "df -h " + disk.Quote(s.path)
	case 11, 26:
		return "sqlite3 " + file + " 'PRAGMA integrity_check'"
	}
	switch {
	case code == 787:
		return "deliver the table that it refers to as well, to the same destination, or make " + of + " without the foreign key"
	case code == 2067 || code == 1555:
		return "SQLite checks unique keys at each row: drop the index of " + of + " that is not unique at every moment in the source, or remove the other row"
	case s.judge(err) == refused:
		return "make " + of + " take what the source's table takes: sqlite3 " + file + " '.schema'"
	}
	return ""
}
