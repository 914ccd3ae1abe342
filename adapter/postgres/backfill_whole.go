package postgres

import (
	"encoding/binary"
	"errors"
	"strings"

	"github.com/onewrite/onewrite/internal/pgoutput"
)

// heldBytes is how much may change between the marks of a table without a key. Where more
// does it is read again: the changes are in memory.
const heldBytes = 64 << 20

// errStray says that rows went out which are not those of the table at the mark.
var errStray = errors.New("rows that changed meanwhile were not among those that were read; it is read again")

// flushWhole makes events of all rows of a table without a key, as they are at the high
// mark. Its changes come in their order, each when it comes in the log, and rows cannot be
// told from equal ones that a consumer has: so a TRUNCATE before them empties its copy,
// unless that is known to be empty. A copy goes by the topic, so rows of another table that
// had the name are in it too. With a condition they are not the whole table, and a copy
// keeps what it has.
func (f *backfill) flushWhole(r *logReader, ch *chunk, w *window, empty bool) error {
	diff, err := w.unseen(ch.snap)
	if err != nil {
		return err
	}
	p := ch.from
	p.key = nil
	snaps := r.at.snaps.with(p)
	all, n := ch.of.all(), uint32(0)
	if all && !empty && !f.out(r, change{table: ch.table, kind: "truncate", op: 't'}, snaps) {
		return errClosed
	}
	tell := func(rows []pgoutput.Tuple) error {
		for _, row := range rows {
			if diff.took(row) {
				continue
			}
			if n++; !f.out(r, ch.rowAt(n, row), snaps) {
				return errClosed
			}
		}
		ch.done.rows.Add(int64(len(rows)))
		return nil
	}
	for {
		rows, err := ch.more()
		if err != nil {
			return err
		}
		if len(rows) == 0 {
			break
		}
		if err := tell(rows); err != nil {
			return err
		}
	}
	if !all { // what was added came as a change, and what was taken away may not meet the condition
		return nil
	}
	added, missed := diff.rest()
	if missed {
		return errStray
	}
	return tell(added)
}

// all reports whether a snapshot has all rows: by its condition, which may be that of
// --where true.
func (c captured) all() bool {
	return c.where == "" || strings.EqualFold(strings.TrimSpace(c.where), "true")
}

// hold keeps a change of a table without a key: its snapshot may not see it.
func (w *window) hold(c *change) {
	if w.size > heldBytes {
		w.held = nil
		return
	}
	kept := w.kept.keep(c)
	w.held = append(w.held, kept)
	w.size += kept.size
}

// difference is what lies between the rows that a snapshot sees and those at its high
// mark, by what they consist of.
type difference struct {
	rows  map[string]*count
	order []*count
	buf   []byte
}

// count is how many more equal rows there are; below 0: how many fewer.
type count struct {
	n   int
	row pgoutput.Tuple
}

// unseen is what the transactions between the marks did that a snapshot does not see.
func (w *window) unseen(s snapshot) (*difference, error) {
	d := &difference{rows: map[string]*count{}}
	for _, c := range w.held {
		switch {
		case s.sees(c.xid):
			continue
		case c.op == 't', c.op != 'c' && !c.whole, !complete(c.before), !complete(c.after):
			return nil, errAgain // it does not say which rows are to be taken away; the next snapshot sees it
		}
		d.add(c.before, -1)
		d.add(c.after, 1)
	}
	return d, nil
}

// complete reports whether a row has all of its values.
func complete(row pgoutput.Tuple) bool {
	for i := range row {
		if row[i].Kind == pgoutput.ColumnUnchanged {
			return false
		}
	}
	return true
}

func (d *difference) add(row pgoutput.Tuple, n int) {
	if row == nil {
		return
	}
	d.buf = appendRow(d.buf[:0], row)
	c := d.rows[string(d.buf)]
	if c == nil {
		c = &count{row: row}
		d.rows[string(d.buf)] = c
		d.order = append(d.order, c)
	}
	c.n += n
}

// took reports whether a row that was read is gone at the mark, and counts it.
func (d *difference) took(row pgoutput.Tuple) bool {
	if len(d.rows) == 0 {
		return false
	}
	d.buf = appendRow(d.buf[:0], row)
	c := d.rows[string(d.buf)]
	if c == nil || c.n >= 0 {
		return false
	}
	c.n++
	return true
}

// rest returns the rows that were added, and whether there are some left that were taken
// away and not read.
func (d *difference) rest() (added []pgoutput.Tuple, missed bool) {
	for _, c := range d.order {
		missed = missed || c.n < 0
		for ; c.n > 0; c.n-- {
			added = append(added, c.row)
		}
	}
	return added, missed
}

// appendRow writes a row so that only equal ones are the same.
func appendRow(b []byte, row pgoutput.Tuple) []byte {
	for i := range row {
		b = append(b, byte(row[i].Kind))
		b = binary.AppendUvarint(b, uint64(len(row[i].Data)))
		b = append(b, row[i].Data...)
	}
	return b
}
