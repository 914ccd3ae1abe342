package postgres

import (
	"bytes"
	"errors"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/onewrite/onewrite/internal/pgoutput"
)

// window is what the log says between the marks of a chunk.
type window struct {
	id        int
	shape     *table                    // the table's columns in the changes; nil: there were none
	mixed     bool                      // and they were others before
	rows      map[string]pgoutput.Tuple // by key; nil: whole in the log, or gone
	kept      keeper                    // of held
	held      []*change                 // of a table without a key
	size      int                       // of held, in bytes
	xids      xids                      // its transactions that changed the table
	truncated bool
}

// saw is told each change before it becomes an event. It runs in the goroutine that
// receives.
func (f *backfill) saw(c *change) {
	w := f.windows[c.table.rel]
	if !f.noted(c, w) || w == nil {
		return
	}
	w.mixed = w.mixed || w.shape != nil && !w.shape.sameColumns(c.table)
	w.shape = c.table
	if len(c.table.key) == 0 {
		w.hold(c)
		return
	}
	w.note(c)
}

// noted notes the transaction of a change, in its window or as one of before: also where
// no snapshot of the table is wanted yet, as the first chunk may not see it either.
// False: none is wanted.
func (f *backfill) noted(c *change, w *window) bool {
	now := lastNoted{rel: c.table.rel, xid: c.xid, window: w, version: f.version.Load()}
	if now == f.last { // as for all rows of a large transaction but the first
		return f.pending
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if w != nil {
		w.xids[c.xid] = struct{}{}
	} else if f.busy[c.table.rel] || !f.ended || int32(c.xid-f.seen) >= 0 { // others are seen by every chunk to come
		f.add(c.table.rel, c.xid)
	}
	f.last, f.pending = now, f.tables[c.table.rel].pending()
	return f.pending
}

// lastNoted is what was noted last.
type lastNoted struct {
	rel, xid uint32
	window   *window
	version  int64
}

// add notes transactions that the log had; f.mu is held.
func (f *backfill) add(rel uint32, list ...uint32) {
	if f.recent[rel] == nil {
		f.recent[rel] = xids{}
	}
	for _, xid := range list {
		f.recent[rel][xid] = struct{}{}
	}
}

// note remembers the newest state of a row. Large values that a change left alone are
// unknown until some other change tells them.
func (w *window) note(c *change) {
	if c.op == 't' {
		clear(w.rows)
		w.truncated = true
		return
	}
	row := c.after
	if row == nil {
		row = c.before
	}
	key := string(c.table.appendKey(nil, row))
	was, known := w.rows[key]
	if c.after == nil || known && was == nil {
		w.rows[key] = nil
		return
	}
	whole := true
	for i := range row {
		whole = whole && row[i].Kind != pgoutput.ColumnUnchanged
	}
	if whole {
		w.rows[key] = nil
		return
	}
	now := make(pgoutput.Tuple, len(row))
	for i := range row {
		now[i] = pgoutput.Column{Kind: row[i].Kind, Data: bytes.Clone(row[i].Data)}
		if row[i].Kind == pgoutput.ColumnUnchanged && len(was) == len(row) {
			now[i] = was[i]
		}
	}
	w.rows[key] = now
}

// mark acts on a message of ours in the log. It runs in the goroutine that receives.
func (f *backfill) mark(r *logReader, content []byte) error {
	word := strings.Split(string(content), ":")
	if len(word) != 3 || word[0] != f.nonce {
		return nil // of a reader before
	}
	id, err := strconv.Atoi(word[1])
	f.mu.Lock()
	ch := f.chunks[id]
	f.mu.Unlock()
	if err != nil || ch == nil {
		return nil // given up
	}
	rel := ch.of.rel
	w := f.windows[rel]
	if word[2] == "low" {
		if w != nil { // its chunk was given up; what it saw still holds
			f.shut(rel, w)
		}
		f.windows[rel] = &window{id: id, rows: map[string]pgoutput.Tuple{}, xids: xids{}}
		return nil
	}
	if w == nil || w.id != id {
		return nil
	}
	err = f.flush(r, ch, w)
	f.shut(rel, w)
	f.prune(rel, ch.snap)
	ch.result <- err
	if err != nil && !errors.Is(err, errAgain) && !errors.Is(err, errStray) {
		return err
	}
	return nil
}

// shut ends a window: its transactions are of before the next one.
func (f *backfill) shut(rel uint32, w *window) {
	delete(f.windows, rel)
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.chunks, w.id)
	f.add(rel, slices.Collect(maps.Keys(w.xids))...)
}

// prune forgets the transactions that every later chunk sees: of the table that a
// snapshot was taken for, and of all that are not being read. It happens with each chunk,
// and every few seconds.
func (f *backfill) prune(of uint32, s snapshot) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if of == 0 {
		f.seen, f.ended = uint32(s.xmin), true
	}
	for rel, list := range f.recent {
		if rel != of && f.busy[rel] {
			continue
		}
		for xid := range list {
			if int32(xid-uint32(s.xmin)) < 0 {
				delete(list, xid)
			}
		}
		if len(list) == 0 {
			delete(f.recent, rel)
		}
	}
}

// sees reports whether a snapshot sees a transaction, which was committed or is in
// the log before long: the number tells all but its epoch.
func (s snapshot) sees(xid uint32) bool {
	if int32(xid-uint32(s.xmax)) >= 0 {
		return false
	}
	for _, x := range s.xip {
		if uint32(x) == xid {
			return false
		}
	}
	return true
}

// visible reports whether a chunk has seen all transactions of before its low mark.
func (f *backfill) visible(ch *chunk) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	for xid := range f.recent[ch.of.rel] {
		if !ch.snap.sees(xid) {
			return false
		}
	}
	return true
}

// flush makes the events of a chunk.
func (f *backfill) flush(r *logReader, ch *chunk, w *window) error {
	if !slices.Equal(ch.from.key, r.at.snaps.of(ch.of.rel, ch.of.wanted).key) {
		return errAgain // the chunk before it is read again
	}
	if !f.visible(ch) {
		return errAgain
	}
	if w.mixed || w.shape != nil && !w.shape.sameColumns(ch.table) {
		return errAgain // the table was altered meanwhile
	}
	if w.size > heldBytes {
		return errAgain // and not all that changed is known
	}
	empty := f.first && !f.told[ch.table.topic]
	f.told[ch.table.topic] = true
	switch {
	case ch.more != nil:
		if err := f.flushWhole(r, ch, w, empty); err != nil {
			return err
		}
	case !w.truncated:
		if err := f.flushRows(r, ch, w); err != nil {
			return err
		}
	}
	if ch.last {
		f.end(r, ch)
		return nil
	}
	r.setSnaps(r.at.snaps.with(ch.end))
	return nil
}
