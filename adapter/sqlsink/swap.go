package sqlsink

import (
	"context"

	"github.com/onewrite/onewrite"
)

// A transaction with a deferrable primary key can swap keys: row 1 becomes 2, and row
// 2 becomes 1. It comes as
//
//	delete 1, insert 2, delete 2, insert 1
//
// where "delete 2" means the row that was 2 before, which the upsert of 2 has replaced
// already. Done as it stands, it would take the new one away. A row that is moved and
// moved back comes as the very same events; but then there was no row 2 before.

// opGone is a delete of a row that an insert has replaced: there is nothing to do.
const opGone = 'x'

// swaps marks deletes of rows that were replaced before they were deleted.
func (s *Sink) swaps(ctx context.Context, events []onewrite.Event, changes []change) (bad int, err error) {
	for i := range changes {
		if !moves(events, changes, i) {
			continue
		}
		first := i // the first change of this row in the transaction
		for j := i - 1; j >= 0 && together(&events[j], &events[i]); j-- {
			if changes[j].table == changes[i].table && events[j].Key == events[i].Key {
				first = j
			}
		}
		if first == i || first == 0 || changes[first].op != 'c' || !moves(events, changes, first-1) {
			continue
		}
		there, err := s.was(ctx, events, changes, first)
		if err != nil {
			return i, err
		}
		if there {
			changes[i].op = opGone
		}
	}
	return 0, nil
}

// together reports whether two events are of one transaction.
func together(a, b *onewrite.Event) bool {
	return a.Tx.ID != "" && a.Tx.ID == b.Tx.ID && a.Source == b.Source
}

// moves reports whether change i and the next one are a row whose key changes.
func moves(events []onewrite.Event, changes []change, i int) bool {
	return i+1 < len(changes) && (changes[i].op == 'd' || changes[i].op == opGone) && len(changes[i].key) > 0 && changes[i+1].op == 'c' &&
		changes[i].table == changes[i+1].table && together(&events[i], &events[i+1])
}

// was reports whether the row of change i was there before it: by what comes before in
// this write, else in the table.
func (s *Sink) was(ctx context.Context, events []onewrite.Event, changes []change, i int) (bool, error) {
	for j := i - 1; j >= 0; j-- {
		c := &changes[j]
		if c.table != changes[i].table {
			continue
		}
		if c.op == 't' && !s.cfg.IgnoreTruncate {
			return false, nil
		}
		if events[j].Key == events[i].Key && c.op != opGone {
			return c.op != 'd', nil
		}
	}
	t := s.known[changes[i].table]
	if t == nil {
		return false, nil
	}
	p := &planner{s: s}
	cols, err := p.columns(t, changes[i].key)
	if err != nil {
		return false, err
	}
	values := make([]any, len(cols))
	for n, c := range cols {
		if values[n], err = s.db.bind(c, changes[i].key[n].cell); err != nil {
			return false, refuse(err.Error(), "change the type of the column "+c.name)
		}
	}
	there, err := s.db.exists(ctx, t, cols, values)
	if err != nil {
		return false, judged(s.db.judge(err), err, s.db.cure(err, t))
	}
	return there, nil
}

func (p *pgDB) exists(ctx context.Context, t *table, key []*column, values []any) (is bool, err error) {
	st := &step{table: t, where: key}
	err = p.conn.QueryRow(ctx, "SELECT EXISTS (SELECT FROM "+t.quoted+" WHERE "+pgLike(st, 0)+")", values...).Scan(&is)
	return is, err
}

func (m *mysqlDB) exists(ctx context.Context, t *table, key []*column, values []any) (is bool, err error) {
	on := ""
	for _, c := range key {
		on += " AND " + m.equal(c, "=")
	}
	err = m.conn.QueryRowContext(ctx, "SELECT EXISTS (SELECT 1 FROM "+t.quoted+" WHERE true"+on+")", values...).Scan(&is)
	return is, m.noted(err)
}

func (s *sqliteDB) exists(ctx context.Context, t *table, key []*column, values []any) (is bool, err error) {
	err = s.conn.QueryRowContext(ctx, "SELECT EXISTS (SELECT 1 FROM "+t.quoted+" WHERE "+equals(key, " = ?", " AND ")+")", values...).Scan(&is)
	return is, s.noted(err)
}
