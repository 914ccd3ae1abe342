package postgres

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
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
// While a chunk goes out the next one of the table is read, between marks of its own:
// the high mark of one and the low mark of the next are one transaction. A chunk goes
// out only where its table's snapshot stands at its beginning, so none can overtake
// one that has to be read again. Some tables are read at the same time; what is known
// of one says nothing of another.
//
// A table without a key has no rows to drop: it is read whole, in one transaction, while
// the log waits at the high mark. See flushWhole.
type backfill struct {
	r     *logReader
	url   string
	nonce string
	poke  chan struct{} // holds a token when there may be a table to read

	mu     sync.Mutex
	tables map[uint32]captured // all that are captured
	busy   map[uint32]bool     // tables that are being read, or were a moment ago and failed
	chunks map[int]*chunk      // whose high mark has not come yet, by id
	lastID int
	recent map[uint32]xids // transactions of the log that a chunk to come might not see, by table

	seen  uint32 // transactions before it are seen by every snapshot to come
	ended bool   // seen is known

	version atomic.Int64 // of tables

	// Of the goroutine that receives.
	windows map[uint32]*window // that are open, by table
	told    map[string]bool    // topics of which something was told, or is about to be
	first   bool               // nothing was told before this reader
	last    lastNoted
	pending bool // whether the snapshot of last's table is wanted
}

type xids map[uint32]struct{}

const (
	// snapshotReaders is how many tables are read at a time. Two keep both this program
	// and one core of the server busy; more would take from the application.
	snapshotReaders = 2
	// chunkRows and chunkBytes bound a chunk. For each reader there are two: one that is
	// read, and one that goes out.
	chunkRows, chunkBytes = 20_000, 2 << 20
	// chunkScan is how many rows are looked at for a chunk where a condition may leave
	// most of them out.
	chunkScan = 100_000
	// heldUp is how long a table is left alone whose snapshot failed.
	heldUp = 3 * time.Second
)

// chunk is a run of a table's rows.
type chunk struct {
	id     int
	of     captured
	from   snapPlace // where it begins
	end    snapPlace // of its last row; none: it begins at from
	table  *table
	order  []int        // the columns by which it is read on
	by     []comparison // and how they are compared
	sorted string       // stands for both in a place: after another key, it means nothing
	rows   []pgoutput.Tuple
	size   int
	cut    bool // there were more rows than it has room for
	last   bool
	snap   snapshot
	more   func() ([]pgoutput.Tuple, error) // the next rows of a table without a key
	lent   sync.Mutex                       // held while more uses the session
	back   bool                             // the session may be closed: more has no rows any more
	result chan error
	done   *progress
}

var errAgain = errors.New("a transaction was not visible yet")

func newBackfill(r *logReader, url string, list []captured) *backfill {
	nonce := make([]byte, 8)
	_, _ = rand.Read(nonce)
	f := &backfill{r: r, url: url, nonce: hex.EncodeToString(nonce), poke: make(chan struct{}, 1),
		busy: map[uint32]bool{}, chunks: map[int]*chunk{}, recent: map[uint32]xids{}, windows: map[uint32]*window{}, told: map[string]bool{}}
	f.set(list)
	return f
}

// set replaces the tables by what the registry says. What was finished here stays so.
func (f *backfill) set(list []captured) {
	f.r.cfg.Known.settle(&f.r.cfg, list)
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
	f.version.Add(1)
	f.wake()
}

func (f *backfill) wake() {
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

// of returns what is known of a table.
func (f *backfill) of(rel uint32) captured {
	f.mu.Lock()
	defer f.mu.Unlock()
	if c, ok := f.tables[rel]; ok {
		return c
	}
	return captured{rel: rel, key: unknownKey}
}

func (f *backfill) knows(rel uint32) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	_, ok := f.tables[rel]
	return ok
}

// next takes a table whose snapshot is to be made.
func (f *backfill) next() (c captured, ok bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, t := range f.tables {
		if t.pending() && !f.busy[t.rel] && (!ok || t.name < c.name) {
			c, ok = t, true
		}
	}
	if ok {
		f.busy[c.rel] = true
		f.wake() // another reader may find another
	}
	return c, ok
}

// leave puts a table back.
func (f *backfill) leave(rel uint32) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.busy, rel)
	f.wake()
}

// run makes the snapshots that are wanted, until the reader ends.
func (f *backfill) run() {
	var readers sync.WaitGroup
	for range cmp.Or(f.r.cfg.readers, snapshotReaders) {
		readers.Go(f.work)
	}
	readers.Wait()
}

func (f *backfill) work() {
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
		if err != nil && !f.knows(c.rel) { // the table was dropped, or taken out
			f.leave(c.rel)
			continue
		}
		if err != nil {
			problem = fmt.Sprintf("the snapshot of %s is held up: %v", c.name, err)
			time.AfterFunc(heldUp, func() { f.leave(c.rel) }) // other tables do not wait for it
		} else {
			f.leave(c.rel)
		}
		f.r.cfg.Known.tell(&f.r.cfg, snapshotOf+c.name, problem)
	}
}

// snapshot reads one table to its end.
func (f *backfill) snapshot(c captured) (err error) {
	ctx := f.r.alive
	conn, err := connectText(ctx, f.url, "onewrite snapshot")
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(context.Background()) }()
	defer func() { err = withNames(err, conn) }()
	if _, err := conn.Exec(ctx, `SET enable_seqscan = off; SET enable_sort = off; SET synchronous_commit = on`, pgx.QueryExecModeSimpleProtocol); err != nil {
		return explain(err)
	}
	if err := f.settled(ctx, conn, c); err != nil {
		return err
	}
	progress := newProgress(f.r, c)
	defer progress.stop()
	for limit := cmp.Or(f.r.cfg.chunk, 1000); ; {
		err := f.readOn(ctx, conn, f.newChunk(c, f.r.snapPlaceOf(c), progress), &limit)
		f.withdraw(c.rel)
		switch {
		case err == nil:
			progress.end()
			return nil
		case !errors.Is(err, errAgain):
			return err
		}
		if _, err := conn.Exec(ctx, "ROLLBACK"); err != nil {
			return explain(err)
		}
		select { // until the transaction is visible
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// settled waits until the transactions that are open now have ended. One of them may have
// written the table before it was published: the log tells only what it writes after
// that, and no snapshot sees the rest before it has ended. And one that the log told to a
// reader before this one may not be visible yet.
func (f *backfill) settled(ctx context.Context, conn *pgx.Conn, c captured) error {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	begun, open, said := time.Now(), uint64(0), false
	for {
		now, err := takeSnapshot(ctx, conn)
		if err != nil {
			return err
		}
		if open == 0 {
			open = now.xmax
		}
		if now.xmin >= open {
			if said {
				f.r.cfg.Known.tell(&f.r.cfg, snapshotOf+c.name, "")
			}
			return nil
		}
		if !said && time.Since(begun) > soon {
			said = true
			f.r.cfg.Known.tell(&f.r.cfg, snapshotOf+c.name, "the snapshot of "+c.name+" begins when the transactions that are open now have ended; the oldest: "+oldest)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}

// oldest finds the transactions that are waited for; prepared ones are waited for too.
const oldest = "SELECT pid::text, xact_start, application_name FROM pg_stat_activity WHERE backend_xid IS NOT NULL UNION ALL SELECT gid, prepared, 'prepared transaction' FROM pg_prepared_xacts ORDER BY 2 LIMIT 1"

// readOn reads a table from a chunk on, to its end.
func (f *backfill) readOn(ctx context.Context, conn *pgx.Conn, ch *chunk, limit *int) error {
	if err := f.emit(ctx, conn, ch.mark("low")); err != nil {
		return err
	}
	for before := (*chunk)(nil); ; {
		if err := f.load(ctx, conn, ch, *limit); err != nil {
			return err
		}
		if ch.more != nil {
			return f.readWhole(ctx, ch)
		}
		var next *chunk
		marks := []string{ch.mark("high")}
		if !ch.last {
			next = f.newChunk(ch.of, ch.end, ch.done)
			marks = append(marks, next.mark("low"))
			*limit = f.nextLimit(ch, *limit)
		}
		if err := f.emit(ctx, conn, marks...); err != nil { // from now on the rows are the receiver's
			return err
		}
		if before != nil {
			if err := before.wait(ctx); err != nil {
				return err
			}
		}
		if next == nil {
			return ch.wait(ctx)
		}
		before, ch = ch, next
	}
}

// readWhole leaves a table without a key to the receiver, which reads it in the
// transaction that is open: the mark needs another session.
func (f *backfill) readWhole(ctx context.Context, ch *chunk) error {
	other, err := connectText(ctx, f.url, "onewrite snapshot")
	if err != nil {
		return err
	}
	defer func() { _ = other.Close(context.Background()) }()
	defer ch.takeBack()
	if err := f.emit(ctx, other, ch.mark("high")); err != nil {
		return err
	}
	return ch.wait(ctx)
}

// takeBack waits until the receiver does not use the session that it reads a table by.
func (ch *chunk) takeBack() {
	ch.lent.Lock()
	defer ch.lent.Unlock()
	ch.back = true
}

// nextLimit is how many rows the next chunk may have.
func (f *backfill) nextLimit(ch *chunk, limit int) int {
	switch {
	case f.r.cfg.chunk > 0:
		return limit
	case ch.cut:
		return len(ch.rows)
	case ch.size < chunkBytes/2:
		return min(2*limit, chunkRows)
	}
	return limit
}

// newChunk registers a chunk, before its low mark is written.
func (f *backfill) newChunk(c captured, from snapPlace, done *progress) *chunk {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.lastID++
	ch := &chunk{id: f.lastID, of: c, from: from, end: from, result: make(chan error, 1), done: done}
	f.chunks[ch.id] = ch
	return ch
}

// withdraw gives up the chunks of a table that have not gone out.
func (f *backfill) withdraw(rel uint32) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for id, ch := range f.chunks {
		if ch.of.rel == rel {
			delete(f.chunks, id)
		}
	}
}

// wait returns what became of a chunk; until then its rows are the receiver's.
func (ch *chunk) wait(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case err := <-ch.result:
		return err
	}
}

func (ch *chunk) mark(word string) string { return fmt.Sprintf("%d:%s", ch.id, word) }

// emit writes marks into the log, in one transaction.
func (f *backfill) emit(ctx context.Context, conn *pgx.Conn, marks ...string) error {
	_, err := conn.Exec(ctx, `SELECT pg_logical_emit_message(true, $1, $2 || ':' || mark) FROM unnest($3::text[]) mark`, ownPrefix, f.nonce, marks)
	return explain(err)
}
