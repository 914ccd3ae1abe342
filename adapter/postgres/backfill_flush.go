package postgres

import (
	"github.com/onewrite/onewrite/internal/pgoutput"
)

// snapPlaceOf is where the snapshot of a table goes on.
func (r *logReader) snapPlaceOf(c captured) snapPlace {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.snaps.of(c.rel, c.wanted)
}

// setSnaps moves the places of the snapshots, which go out with every event from now
// on.
func (r *logReader) setSnaps(s *snapPlaces) {
	r.at.snaps = s
	r.mu.Lock()
	r.snaps = s
	r.mu.Unlock()
}

// placeOf is the key of a row, whose columns are in order, in a place.
func (ch *chunk) placeOf(row pgoutput.Tuple, order []int) []string {
	key := make([]string, 1, 1+len(order))
	key[0] = ch.sorted
	for _, i := range order {
		key = append(key, string(row[i].Data))
	}
	return key
}

// begins is the key of the row behind which a chunk begins; nil: it begins with the
// table, as nothing was read yet, or the table has another key since.
func (ch *chunk) begins() []string {
	if len(ch.from.key) != 1+len(ch.order) || ch.from.key[0] != ch.sorted {
		return nil
	}
	return ch.from.key[1:]
}

// flushRows makes events of rows with a key, but for those that the log had newer.
func (f *backfill) flushRows(r *logReader, ch *chunk, w *window) error {
	var key []byte
	base := r.at.snaps.without(ch.of.rel)
	p := ch.end
	for n, row := range ch.rows {
		key = ch.table.appendKey(key[:0], row)
		if now, ok := w.rows[string(key)]; ok {
			if now == nil {
				continue
			}
			for i := range now { // what the log left out is as it was
				if now[i].Kind != pgoutput.ColumnUnchanged {
					row[i] = now[i]
				}
			}
		}
		p.key = ch.placeOf(row, ch.order)
		if !f.out(r, ch.rowAt(uint32(n), row), base.with(p)) {
			return errClosed
		}
	}
	ch.done.rows.Add(int64(len(ch.rows)))
	return nil
}

// rowAt is a row as a change; n is its number at the mark.
func (ch *chunk) rowAt(n uint32, row pgoutput.Tuple) change {
	return change{table: ch.table, kind: "snapshot", op: 'r', after: row, index: n}
}

// place is where events stand that are no change in the log.
func (r *logReader) place(snaps *snapPlaces) logPlace {
	p := r.at
	p.snaps = snaps
	return p
}

// out makes the event of a row at a mark, or of what else belongs to a snapshot.
func (f *backfill) out(r *logReader, c change, snaps *snapPlaces) bool {
	c.lsn, c.at = r.tx.lsn, r.tx.at
	r.push(&item{row: r.kept.keep(&c), at: r.place(snaps)})
	return len(r.run) < 256 && r.size < 1<<20 || r.flush()
}

// end notes that a table's snapshot is complete. The registry says so when all of it
// is on the bus; until then the places do.
func (f *backfill) end(r *logReader, ch *chunk) {
	done := snapPlace{rel: ch.of.rel, wanted: ch.of.wanted, done: true}
	r.setSnaps(r.at.snaps.with(done))
	if n := len(r.run); n > 0 {
		r.run[n-1].at.snaps = r.at.snaps
	}
	r.flush()
	f.mu.Lock()
	if c := f.tables[ch.of.rel]; c.wanted == ch.of.wanted {
		c.finished = c.wanted
		f.tables[ch.of.rel] = c
		f.version.Add(1)
	}
	f.mu.Unlock()
	r.mu.Lock()
	r.finish = append(r.finish, finished{rel: ch.of.rel, wanted: ch.of.wanted, n: r.queue.count()})
	r.mu.Unlock()
	r.wake()
}
