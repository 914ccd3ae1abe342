package postgres

import (
	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/internal/pgoutput"
)

// keeper copies changes out of the buffer that the log is received in, so that their
// events can be made by another goroutine while more is received. As they are many,
// what they consist of lies in slabs.
type keeper struct {
	changes []change
	columns []pgoutput.Column
	bytes   []byte
}

const (
	slabChanges = 128
	slabColumns = 1024
	slabBytes   = 64 << 10
)

// keep copies a change.
func (k *keeper) keep(c *change) *change {
	if len(k.changes) == cap(k.changes) {
		k.changes = make([]change, 0, slabChanges)
	}
	k.changes = append(k.changes, *c)
	kept := &k.changes[len(k.changes)-1]
	kept.size = c.table.frame
	kept.before, kept.after = k.tuple(kept, c.before), k.tuple(kept, c.after)
	return kept
}

func (k *keeper) tuple(c *change, t pgoutput.Tuple) pgoutput.Tuple {
	if len(t) == 0 {
		return t
	}
	if len(t) > cap(k.columns)-len(k.columns) {
		k.columns = make([]pgoutput.Column, 0, max(slabColumns, len(t)))
	}
	first := len(k.columns)
	for i := range t {
		k.columns = append(k.columns, pgoutput.Column{Kind: t[i].Kind, Data: k.data(t[i].Data)})
		c.size += len(c.table.columns[i].json) + len(t[i].Data) + 2
	}
	return pgoutput.Tuple(k.columns[first:len(k.columns):len(k.columns)])
}

// data copies a value; a large one by itself, so that it goes when its change goes.
func (k *keeper) data(v []byte) []byte {
	if v == nil || len(v) > slabBytes/16 {
		return append([]byte(nil), v...)
	}
	if k.bytes == nil || len(v) > cap(k.bytes)-len(k.bytes) { // one that is empty is not nil
		k.bytes = make([]byte, 0, slabBytes)
	}
	first := len(k.bytes)
	k.bytes = append(k.bytes, v...)
	return k.bytes[first:len(k.bytes):len(k.bytes)]
}

// makeEvents makes the events of the rows among items, and returns all events.
func (v *envelope) makeEvents(items []item) []onewrite.Event {
	events := make([]onewrite.Event, len(items))
	for i := range items {
		it := &items[i]
		if c := it.row; c == nil {
			events[i] = *it.event
		} else {
			events[i] = v.event(c)
			clear(c.before) // its slab may be there for longer
			clear(c.after)
			*c = change{}
		}
		events[i].Tx.Last = it.last
		it.event, it.row = &events[i], nil
	}
	return events
}
