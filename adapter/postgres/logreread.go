package postgres

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/onewrite/onewrite/internal/pgoutput"
)

// lookup is how rows of a table are read again, by the names that its columns have now.
type lookup struct {
	xid   uint32   // the transaction for which it was made
	from  string   // the table in FROM; "": it is gone, or a column of its key
	names []string // of its columns; "": gone
	where string   // the key is $1 and so on
	check string   // in SQL, what its names are
	same  string   // and were
}

// reread completes a row that got a new key by what the table has now: the log does
// not carry the large values that the update left alone. If the row, the table or a column
// is gone by then, they stay absent. What fails otherwise ends the source, and the row is
// read when it is opened again: an event without the value would never be made good.
func (r *logReader) reread(t *table, row pgoutput.Tuple) (bool, error) {
	var missing []int
	for i := range row {
		if row[i].Kind == pgoutput.ColumnUnchanged {
			missing = append(missing, i)
		}
	}
	if len(missing) == 0 {
		return false, nil
	}
	r.side.Lock()
	defer r.side.Unlock()
	if r.visible != r.tx.xid {
		if err := r.untilVisible(r.tx.xid); err != nil {
			return false, err
		}
		r.visible = r.tx.xid
	}
	if t.look == nil || t.look.xid != r.tx.xid {
		if err := r.lookUp(t); err != nil {
			return false, err
		}
	}
	found, err := r.readAgain(t, row, missing)
	if errors.Is(err, errAltered) { // it was altered since it was looked up
		if err = r.lookUp(t); err == nil {
			found, err = r.readAgain(t, row, missing)
		}
	}
	if err != nil {
		return false, fmt.Errorf("a row of %s cannot be read for the large values that the log does not have: %w; it is tried again", t.topic, err)
	}
	return found, nil
}

// lookUp finds out how rows of a table are read again.
func (r *logReader) lookUp(t *table) error {
	l := &lookup{xid: r.tx.xid, names: make([]string, len(t.columns))}
	t.look = l
	now, err := r.cat.shape(r.alive, t.rel)
	if err != nil || len(now.attributes) == 0 || t.nums == nil {
		return err
	}
	for i, num := range t.nums {
		for _, a := range now.attributes {
			if a.num == num && !a.gone {
				l.names[i] = a.name
			}
		}
	}
	key := make([]string, len(t.key))
	for n, i := range t.key {
		key[n] = l.names[i]
	}
	by, err := comparisons(r.alive, r.cat.conn, t.rel, key)
	if err != nil || len(by) < len(key) {
		return err // a column is gone
	}
	terms := make([]string, len(key))
	for n, k := range key {
		terms[n] = fmt.Sprintf("%s %s $%d::%s", by[k].of(pgx.Identifier{k}.Sanitize()), by[k].eq, n+1, by[k].typ)
	}
	l.where = strings.Join(terms, " AND ")
	l.check = fmt.Sprintf("(SELECT concat(to_regclass(%s)::oid, string_agg(format('%%s %%L', attnum, attname), ',' ORDER BY attnum)) FROM pg_attribute WHERE attrelid = %d AND attnum > 0)",
		quoteText(strings.TrimPrefix(now.from, "ONLY ")), t.rel)
	l.from = now.from
	return explain(r.cat.conn.QueryRow(r.alive, "SELECT "+l.check).Scan(&l.same))
}

// readAgain asks for the columns that are missing. errAgain: the table is another one
// than it was looked up.
func (r *logReader) readAgain(t *table, row pgoutput.Tuple, missing []int) (found bool, err error) {
	l := t.look
	var list []string
	var there []int
	for _, i := range missing {
		if l.names[i] != "" {
			there, list = append(there, i), append(list, pgx.Identifier{l.names[i]}.Sanitize())
		}
	}
	if l.from == "" || len(there) == 0 {
		return false, nil
	}
	args := make([][]byte, len(t.key))
	for n, i := range t.key {
		args[n] = row[i].Data
	}
	sql := fmt.Sprintf("SELECT %s, r.* FROM (SELECT) one LEFT JOIN LATERAL (SELECT true, %s FROM %s WHERE %s) r ON true", l.check, strings.Join(list, ", "), l.from, l.where)
	res := r.cat.conn.PgConn().ExecParams(r.alive, sql, args, nil, nil, nil).Read()
	var pe *pgconn.PgError
	switch {
	case errors.As(res.Err, &pe) && (pe.Code == "42703" || pe.Code == "42P01" || pe.Code == "42883" || pe.Code == "42804"): // no such column, table, operator, type
		return false, errors.Join(errAltered, explain(res.Err))
	case errors.As(res.Err, &pe) && strings.HasPrefix(pe.Code, "22"):
		return false, nil // the key has another type now, and the value is none of it
	case res.Err != nil:
		return false, explain(res.Err)
	case len(res.Rows) == 0 || string(res.Rows[0][0]) != l.same:
		return false, errAltered
	case len(res.Rows) > 1 || res.Rows[0][1] == nil:
		return false, nil
	}
	for n, i := range there {
		v := res.Rows[0][2+n]
		row[i] = pgoutput.Column{Kind: pgoutput.ColumnText, Data: v}
		if v == nil {
			row[i].Kind = pgoutput.ColumnNull
		}
	}
	return true, nil
}

// untilVisible waits until other sessions see a transaction: the log has it earlier,
// by as long as a synchronous standby may take.
func (r *logReader) untilVisible(xid uint32) error {
	for deadline := time.Now().Add(visibleWithin); ; {
		s, err := takeSnapshot(r.alive, r.cat.conn)
		if err != nil || s.sees(xid) {
			return err
		}
		if time.Now().After(deadline) {
			return errInvisible
		}
		select {
		case <-r.alive.Done():
			return r.alive.Err()
		case <-time.After(time.Millisecond):
		}
	}
}

// visibleWithin is how long a transaction of the log is waited for, which holds up all
// else that needs the session.
const visibleWithin = 10 * time.Second

var errInvisible = errors.New("postgres: a transaction is in the log that other sessions do not see yet, as a synchronous standby has not confirmed it; SELECT pid, application_name FROM pg_stat_activity WHERE wait_event = 'SyncRep' shows who waits, SHOW synchronous_standby_names for whom")

var errAltered = errors.New("postgres: the table is being altered")
