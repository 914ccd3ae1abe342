package postgres

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/onewrite/onewrite/internal/pgoutput"
)

// backfill makes events of the rows that are there, in chunks between two watermarks
// in the log (Andreakis and Papapanagiotou, "DBLog", 2019): a chunk is read between
// its low and its high mark, its rows that changed between the two in the log are
// dropped from it, and the rest goes out where the high mark is. So no row overwrites
// what is newer, there is no long transaction, and a crash costs one chunk.
//
// What the marks do not tell is which transactions a chunk has seen: a commit is in
// the log before other sessions see it. So each chunk comes with its snapshot; when a
// transaction that the log had before the low mark is not visible in it, the chunk is
// read again.
//
// A table without a key has no rows to drop: it is read whole, in one transaction,
// while the log waits; its changes of before the snapshot are left out, as the rows
// have them.
type backfill struct {
	r     *logReader
	url   string
	nonce string
	poke  chan struct{} // holds a token when the registry is to be read again

	mu     sync.Mutex
	tables map[uint32]captured // all that are captured
	chunk  *chunk              // the one under way

	// Of the goroutine that receives.
	win    *window
	recent map[uint32]struct{} // transactions of the log that changed a table whose snapshot is wanted
}

// chunk is a run of a table's rows.
type chunk struct {
	id     int
	of     captured
	place  snapPlace
	table  *table
	order  []int        // the columns by which it is read on
	by     []comparison // and how they are compared
	rows   []pgoutput.Tuple
	size   int
	last   bool
	snap   snapshot
	more   func() ([]pgoutput.Tuple, error) // the next rows of a table without a key
	result chan error
}

var errAgain = errors.New("a transaction was not visible yet")

// window is what the log says between the marks of a chunk.
type window struct {
	id        int
	rel       uint32
	lsn       pgoutput.LSN              // of the low mark
	at        time.Time                 // and when it was
	shape     *table                    // the table's columns in the changes; nil: there were none
	mixed     bool                      // and they were others before
	rows      map[string]pgoutput.Tuple // by key; nil: whole in the log, or gone
	held      []heldChange              // of a table without a key
	xids      map[uint32]struct{}       // its transactions that changed a table whose snapshot is wanted
	truncated bool
}

type heldChange struct {
	xid uint32
	item
}

func newBackfill(r *logReader, url string, list []captured) *backfill {
	nonce := make([]byte, 8)
	_, _ = rand.Read(nonce)
	f := &backfill{r: r, url: url, nonce: hex.EncodeToString(nonce), poke: make(chan struct{}, 1), recent: map[uint32]struct{}{}}
	f.set(list)
	return f
}

// set replaces the tables by what the registry says. What was finished here stays so.
func (f *backfill) set(list []captured) {
	f.mu.Lock()
	defer f.mu.Unlock()
	tables := make(map[uint32]captured, len(list))
	for _, c := range list {
		if was, ok := f.tables[c.rel]; ok {
			c.finished = max(c.finished, was.finished)
		}
		tables[c.rel] = c
	}
	f.tables = tables
	select {
	case f.poke <- struct{}{}:
	default:
	}
}

func (f *backfill) nameOf(rel uint32) string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.tables[rel].name
}

func (f *backfill) knows(rel uint32) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	_, ok := f.tables[rel]
	return ok
}

// wanted reports whether a snapshot of a table is still to be made.
func (f *backfill) wanted(rel uint32) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.tables[rel].pending()
}

// next returns a table whose snapshot is to be made.
func (f *backfill) next() (c captured, ok bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, t := range f.tables {
		if t.pending() && (!ok || t.name < c.name) {
			c, ok = t, true
		}
	}
	return c, ok
}

// run makes the snapshots that are wanted, until the reader ends.
func (f *backfill) run() {
	for {
		c, ok := f.next()
		if !ok {
			select {
			case <-f.r.alive.Done():
				return
			case <-f.poke:
			}
			continue
		}
		err := f.snapshot(c)
		if f.r.alive.Err() != nil {
			return
		}
		problem := ""
		if err != nil {
			problem = fmt.Sprintf("the snapshot of %s is held up: %v", c.name, err)
		}
		if f.r.cfg.Trouble != nil {
			f.r.cfg.Trouble("snapshot of "+c.name, problem)
		}
		if err != nil {
			select {
			case <-f.r.alive.Done():
				return
			case <-time.After(3 * time.Second):
			}
		}
	}
}

// snapshot reads one table to its end.
func (f *backfill) snapshot(c captured) error {
	ctx := f.r.alive
	conn, err := connectText(ctx, f.url, "onewrite snapshot")
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(context.Background()) }()
	if _, err := conn.Exec(ctx, `SET enable_seqscan = off; SET enable_sort = off; SET synchronous_commit = on`, pgx.QueryExecModeSimpleProtocol); err != nil {
		return explain(err)
	}
	p := f.r.snapPlaceOf(c)
	progress := newProgress(ctx, f.r.log, conn, c)
	for limit := cmp.Or(f.r.cfg.chunk, 1000); ; {
		ch, err := f.readChunk(ctx, conn, c, p, limit)
		if err == nil {
			select {
			case <-ctx.Done():
				return ctx.Err()
			case err = <-ch.result: // until then the rows are the receiver's
			}
			progress.step(len(ch.rows))
			p = ch.place
		}
		switch {
		case errors.Is(err, errAgain):
			p = f.r.snapPlaceOf(c)
			if _, err := conn.Exec(ctx, "ROLLBACK"); err != nil {
				return explain(err)
			}
			select { // until the transaction is visible
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(50 * time.Millisecond):
			}
			continue
		case err != nil:
			return err
		case ch.last:
			progress.end()
			return nil
		}
		if f.r.cfg.chunk > 0 {
			continue
		}
		if ch.size < 2<<20 && limit < 20_000 {
			limit *= 2
		} else if ch.size > 8<<20 && limit > 100 {
			limit /= 2
		}
	}
}

// saw is told each change before it becomes an event; true: it does not become one,
// or not yet. It runs in the goroutine that receives.
func (f *backfill) saw(r *logReader, c *change) bool {
	if !f.wanted(c.table.rel) {
		return false
	}
	w := f.win
	if w == nil {
		f.recent[c.xid] = struct{}{}
	} else {
		w.xids[c.xid] = struct{}{}
	}
	if w == nil || w.rel != c.table.rel {
		return len(c.table.key) == 0
	}
	w.mixed = w.mixed || w.shape != nil && !w.shape.sameColumns(c.table)
	w.shape = c.table
	if len(c.table.key) == 0 {
		w.held = append(w.held, heldChange{xid: c.xid, item: item{event: r.env.event(c)}})
		return true
	}
	w.note(c)
	return false
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
	ch := f.chunk
	f.mu.Unlock()
	if err != nil || ch == nil || ch.id != id {
		return nil // given up
	}
	if word[2] == "low" {
		if f.win != nil { // its chunk failed; what it saw still holds
			for xid := range f.win.xids {
				f.recent[xid] = struct{}{}
			}
		}
		f.win = &window{id: id, rel: ch.of.rel, lsn: r.tx.lsn, at: r.tx.at, rows: map[string]pgoutput.Tuple{}, xids: map[uint32]struct{}{}}
		return nil
	}
	w := f.win
	f.win = nil
	if w == nil || w.id != id {
		return nil
	}
	err = f.flush(r, ch, w)
	for xid := range w.xids {
		f.recent[xid] = struct{}{}
	}
	f.prune(ch.snap)
	ch.result <- err
	if err != nil && !errors.Is(err, errAgain) {
		return err
	}
	return nil
}

// prune forgets the transactions that every later chunk sees.
func (f *backfill) prune(s snapshot) {
	for xid := range f.recent {
		if int32(xid-uint32(s.xmin)) < 0 {
			delete(f.recent, xid)
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

// flush makes the events of a chunk.
func (f *backfill) flush(r *logReader, ch *chunk, w *window) error {
	for xid := range f.recent {
		if !ch.snap.sees(xid) {
			return errAgain
		}
	}
	if w.mixed || w.shape != nil && !w.shape.sameColumns(ch.table) {
		return errAgain // the table was altered meanwhile
	}
	switch {
	case ch.more != nil:
		if err := f.flushWhole(r, ch, w); err != nil {
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
	ch.place.key = placeOf(ch.rows[len(ch.rows)-1], ch.order)
	r.setSnaps(r.at.snaps.with(ch.place))
	return nil
}
