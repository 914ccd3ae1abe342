package postgres

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"

	"github.com/onewrite/onewrite/internal/pgoutput"
	"github.com/onewrite/onewrite/internal/sabotage"
)

// row makes the events of an INSERT, UPDATE or DELETE.
func (r *logReader) row(m *pgoutput.Message) error {
	t, err := r.tableOf(m.RelationID)
	if err != nil {
		return err
	}
	if n := len(t.columns); m.Kind != pgoutput.KindDelete && len(m.New) != n || m.OldKind != 0 && len(m.Old) != n {
		return fmt.Errorf("postgres: a row of %s has %d columns, the table has %d", t.topic, max(len(m.New), len(m.Old)), n)
	}
	if len(t.columns) == 0 { // a row without columns is a row
		m.New, m.Old = pgoutput.Tuple{}, pgoutput.Tuple{}
	}
	told, err := r.keyed(t, m)
	if err != nil {
		return err
	}
	c := change{table: t, before: nil, whole: m.OldKind == pgoutput.OldRow && !t.partial(m)}
	switch {
	case !told:
	case m.Kind == pgoutput.KindInsert:
		c.kind, c.op, c.after = "insert", 'c', m.New
		r.emit(&c, true)
	case m.Kind == pgoutput.KindDelete:
		c.kind, c.op, c.before = "delete", 'd', m.Old
		r.emit(&c, true)
	case m.Kind == pgoutput.KindUpdate:
		if err := r.update(&c, m); err != nil {
			return err
		}
	}
	r.tx.index++
	return nil
}

// keyed looks whether it is known which row a change is of. If it is not, that is a gap;
// what is known is told all the same. false: nothing is.
func (r *logReader) keyed(t *table, m *pgoutput.Message) (told bool, err error) {
	why := t.stray
	if m.OldKind != 0 && t.keyless(m.Old) {
		why = "an old row of " + t.topic + " had no value for its key: a partition had another replica identity than the table, or no key"
		m.OldKind = 0
		m.Old = nil
	}
	told = m.Kind != pgoutput.KindDelete || m.OldKind != 0
	if m.Kind != pgoutput.KindDelete && t.keyless(m.New) {
		told, why = false, "a row of "+t.topic+" had no value for its key"
	}
	if m.Kind == pgoutput.KindUpdate && m.OldKind == 0 {
		for _, i := range t.key {
			if m.New[i].Kind == pgoutput.ColumnUnchanged {
				told, why = false, cmp.Or(why, "a key of "+t.topic+" was not in the log")
			}
		}
	}
	if why == "" {
		return told, nil
	}
	t.stray = ""
	return told, r.lost(t, why)
}

// update makes one event, or two where the key changed: the old row goes and a new
// one comes, each in the lane of its key.
func (r *logReader) update(c *change, m *pgoutput.Message) error {
	t := c.table
	if sabotage.Bug == "toast-null" {
		for i := range m.New {
			if m.New[i].Kind == pgoutput.ColumnUnchanged {
				m.New[i].Kind = pgoutput.ColumnNull
			}
		}
	}
	moved := false
	if m.OldKind != 0 {
		for i := range m.New {
			if m.New[i].Kind != pgoutput.ColumnUnchanged {
				continue
			}
			if c.whole || t.inOld(i) { // the old row has it, and it is as it was
				m.New[i] = m.Old[i]
			}
		}
		for _, i := range t.key {
			moved = moved || m.Old[i].Kind != m.New[i].Kind || !bytes.Equal(m.Old[i].Data, m.New[i].Data)
		}
		c.before = m.Old
	}
	if !moved {
		c.kind, c.op, c.after = "update", 'u', m.New
		r.emit(c, true)
		return nil
	}
	c.kind, c.op = "delete", 'd'
	r.emit(c, false)
	n := change{table: t, kind: "insert", op: 'c', after: m.New, sub: 1}
	if !r.skipped(1) {
		var err error
		if n.reread, err = r.reread(t, m.New); err != nil {
			return err
		}
	}
	r.emit(&n, true)
	return nil
}

func (r *logReader) truncate(m *pgoutput.Message) error {
	for i, rel := range m.Relations {
		t, err := r.tableOf(rel)
		if err != nil {
			return err
		}
		c := change{table: t, kind: "truncate", op: 't', sub: uint8(min(i, 255))}
		if i > 255 {
			return errors.New("postgres: a TRUNCATE of more than 256 tables")
		}
		r.emit(&c, i == len(m.Relations)-1)
	}
	r.tx.index++
	return nil
}
