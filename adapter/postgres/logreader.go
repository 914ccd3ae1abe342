package postgres

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/internal/pgoutput"
	"github.com/onewrite/onewrite/internal/sabotage"
)

// ownPrefix marks the messages in the log that are onewrite's own.
const ownPrefix = "onewrite"

// logReader reads row changes and messages from the log. One goroutine receives changes,
// which wait in queue for Read.
type logReader struct {
	cfg      Config
	log      *slog.Logger
	database string
	slot     string
	opened   logRecord
	rep      *replication
	version  int  // of the server that has the slot
	late     bool // a backlog is read in slices before the log is streamed
	queue    *logQueue
	env      *envelope // of the goroutine that receives
	made     *envelope // of the one that calls Read, which makes the events of rows
	fill     *backfill
	tell     func(*onewrite.Gap) // of a gap that is healed
	alive    context.Context
	stop     context.CancelFunc
	work     sync.WaitGroup

	streams atomic.Bool  // rep has the slot
	judged  pgoutput.LSN // where the slot was when it was opened

	slotting *atomic.Bool // the slot is being made

	side sync.Mutex // guards cat and its session, and host
	cat  catalog
	host *pgx.Conn // where the slot is: cat's, or a session on a standby

	// Of a standby, and of the goroutine that watches.
	ahead   pgoutput.LSN // a place that it had not replayed when it was looked at last
	aheadAt time.Time    // and when it had all before

	// Of the goroutine that receives.
	dec      pgoutput.Decoder
	msg      pgoutput.Message
	start    pgoutput.LSN // of the message at hand
	tables   map[uint32]*table
	at       logPlace     // after the last whole transaction; its snaps are the newest
	begin    logPlace     // where reading began
	inside   pgoutput.LSN // the commit of the transaction that begin is inside of, until it comes
	tx       transaction
	kept     keeper
	held     *item  // the newest event of tx that is not of the outbox: is it the last?
	newest   item   // where held is
	visible  uint32 // a transaction that other sessions see
	outbox   outboxRows
	member   *membership // at the start; nil: it is not known yet
	tail     []item      // events of the outbox behind held
	tailSize int
	run      []item
	size     int  // of run, in bytes
	astray   bool // a message of no transaction was spoken of

	mu      sync.Mutex
	snaps   *snapPlaces // as at.snaps
	handed  []handed
	stored  handed
	wanted  pgoutput.LSN // an idle place that is being noted
	noted   pgoutput.LSN // up to which the slot may move without an event
	lag     logLag
	again   time.Time // when it may move once more without a step; zero: not
	finish  []finished
	changed chan struct{} // holds a token when stored moved
	stirred chan struct{} // holds a token when a row change came; nil: nobody wants to know
}

// transaction is the one that is being received.
type transaction struct {
	open   bool
	old    bool         // it was handed over before
	lsn    pgoutput.LSN // of its commit
	ends   int64        // the moment of its commit, as the server writes it
	xid    uint32
	at     time.Time
	origin *string // where it was replicated from; nil: it is this server's own
	index  uint32  // the change that comes next
	order  int     // the event that comes next
	outbox uint64  // its number, if it has written the outbox
	looked bool    // whether the log tells that
}

// finished is a snapshot whose last event is number n.
type finished struct {
	rel    uint32
	wanted int
	n      uint64
}

// receive runs until the connection ends.
func (r *logReader) receive() {
	err := r.loop()
	r.flush() // what came before: whoever cures the error may change the form of events
	if r.alive.Err() != nil {
		err = context.Cause(r.alive)
	}
	r.queue.fail(err)
}

func (r *logReader) loop() error {
	if r.late {
		from, err := r.catchUp(r.begin.done)
		if err == nil {
			err = r.stream(r.alive, from)
		}
		if err != nil {
			return err
		}
	}
	for {
		data, err := r.rep.next()
		if err != nil {
			return r.badText(undecodable(err, r.slot))
		}
		switch data[0] {
		case pgoutput.FrameXLogData:
			x, err := pgoutput.ParseXLogData(data)
			if err != nil {
				return err
			}
			r.start = x.Start
			if err := r.decode(x.Data); err != nil {
				return err
			}
		case pgoutput.FrameKeepalive:
			k, err := pgoutput.ParseKeepalive(data)
			if err != nil {
				return err
			}
			if err := r.passes(max(k.WALEnd, 1) - 1); err != nil {
				return err
			}
			r.keepalive(k)
		default:
			return fmt.Errorf("postgres: replication connection: a frame of kind %q", data[0])
		}
		if len(r.run) > 0 && (!r.rep.buffered() || len(r.run) >= 256 || r.size >= 1<<20) && !r.flush() {
			return errClosed
		}
	}
}

var errClosed = errors.New("postgres: the source is closed")

// flush hands the run to the queue; false: the reader is closed.
func (r *logReader) flush() bool {
	if len(r.run) == 0 {
		return true
	}
	ok := r.queue.put(r.run)
	clear(r.run)
	r.run, r.size = r.run[:0], 0
	return ok
}

func (r *logReader) push(i *item) {
	r.run = append(r.run, *i)
	r.size += i.size()
}

func (r *logReader) decode(data []byte) error {
	if err := r.dec.Decode(data, &r.msg); err != nil {
		return fmt.Errorf("postgres: the log holds what onewrite cannot read: %w; install a newer onewrite", err)
	}
	return r.handle(&r.msg)
}

// stream begins to stream the log from a place on.
func (r *logReader) stream(ctx context.Context, from pgoutput.LSN) error {
	more := ""
	if r.atServer() {
		more = ", origin 'none'"
	}
	if err := r.rep.start(ctx, r.slot, publicationOf(r.cfg.Name), from, more); err != nil {
		return err
	}
	r.streams.Store(true)
	return r.unmoved(ctx, from)
}

// options are pgoutput's, for the functions that read a slot by a query.
func (r *logReader) options() string {
	more := ""
	if r.atServer() {
		more = ", 'origin', 'none'"
	}
	return "'proto_version', '1', 'publication_names', " + quoteText(pgx.Identifier{publicationOf(r.cfg.Name)}.Sanitize()) + ", 'messages', 'true'" + more
}

// atServer reports whether the server leaves out what is not local; one that cannot
// leaves it to handle. So does one that is to show the rest of a transaction: the part may
// have been read when others than local ones were.
func (r *logReader) atServer() bool {
	return r.cfg.LocalOnly && r.version >= 160000 && r.begin.tx == 0
}

// handle acts on one message.
func (r *logReader) handle(m *pgoutput.Message) error {
	switch m.Kind {
	case pgoutput.KindBegin:
		r.tx = transaction{open: true, lsn: m.FinalLSN, ends: int64(m.CommitTime), xid: m.XID, at: m.CommitTime.Time(), old: m.FinalLSN < r.at.done}
		return r.meets(m.FinalLSN, r.tx.ends)
	case pgoutput.KindCommit:
		return r.commit(m)
	case pgoutput.KindRelation:
		return r.relation(m.Relation)
	case pgoutput.KindInsert, pgoutput.KindUpdate, pgoutput.KindDelete:
		switch {
		case r.tx.old:
			return nil
		case m.RelationID == r.outbox.rel && m.RelationID != 0:
			return r.outboxRow(m)
		case r.foreign():
			return nil
		}
		return r.row(m)
	case pgoutput.KindTruncate:
		if r.tx.old || r.foreign() {
			return nil
		}
		return r.truncate(m)
	case pgoutput.KindMessage:
		if r.tx.old && m.Transactional {
			return nil
		}
		return r.message(m)
	case pgoutput.KindOrigin:
		name := string(m.Origin)
		r.tx.origin = &name
	case pgoutput.KindType:
	default:
		return fmt.Errorf("postgres: a message of kind %s, which was not asked for", m.Kind)
	}
	return nil
}

// foreign reports whether the transaction's changes are to be left out.
func (r *logReader) foreign() bool { return r.cfg.LocalOnly && r.tx.origin != nil }

func (r *logReader) commit(m *pgoutput.Message) error {
	if m.CommitLSN != r.tx.lsn {
		return fmt.Errorf("postgres: the transaction that began for %s is committed at %s", r.tx.lsn, m.CommitLSN)
	}
	r.tx.open = false
	if r.tx.old {
		return nil
	}
	r.at.done, r.at.when, r.at.tx, r.at.index, r.at.sub = m.EndLSN, int64(m.CommitTime), 0, 0, 0
	if r.held != nil {
		r.held.last = true
	}
	if r.held != nil || len(r.tail) > 0 {
		select {
		case r.stirred <- struct{}{}:
		default:
		}
	}
	if n := len(r.tail); n > 0 {
		r.tail[n-1].at, r.tail[n-1].xid = r.at, r.tx.outbox
	} else if r.held != nil {
		r.held.at, r.held.xid = r.at, r.tx.outbox
	}
	r.pushHeld()
	r.rep.received.Store(uint64(m.EndLSN))
	return nil
}

func (r *logReader) relation(rel *pgoutput.Relation) error {
	if rel.Namespace == "onewrite" && rel.Name == "outbox" {
		if r.outbox.rel = rel.ID; !r.cfg.Pushed {
			return nil
		}
		return r.outbox.describe(rel)
	}
	r.side.Lock()
	defer r.side.Unlock()
	if !r.fill.knows(rel.ID) { // it is captured since just now
		if err := r.takeUp(rel.ID); err != nil {
			return err
		}
	}
	c := r.fill.of(rel.ID)
	t, err := r.cat.describe(r.alive, r.database, rel, c, func() error { return r.untilVisible(r.tx.xid) })
	if err != nil {
		return err
	}
	t.compareKey(c)
	r.fill.told[t.topic] = true // a change of it comes next
	if was := r.tables[rel.ID]; was != nil {
		t.seen, t.count = was.seen, was.count
	}
	r.tables[rel.ID] = t
	return nil
}

func (r *logReader) tableOf(rel uint32) (*table, error) {
	if t := r.tables[rel]; t != nil {
		return t, nil
	}
	return nil, fmt.Errorf("postgres: a change of relation %d, which was not described", rel)
}

// skipped reports whether an event of the change at hand was handed over before.
func (r *logReader) skipped(sub uint8) bool {
	b := &r.begin
	if sabotage.Bug == "change-place" && r.start < b.done {
		return true
	}
	return b.tx == r.tx.lsn && (r.tx.index < b.index || r.tx.index == b.index && sub < b.sub)
}

// emit makes the event of a change; last: it is the change's last.
func (r *logReader) emit(c *change, last bool) {
	c.count = c.table.tally(r.tx.xid)
	if !r.stamp(c) {
		return
	}
	if r.fill != nil {
		r.fill.saw(c)
	}
	r.hold(c, last, item{row: r.kept.keep(c)})
}

// stamp says where in the log a change is, and whether its event is still to be handed
// over.
func (r *logReader) stamp(c *change) bool {
	c.lsn, c.at, c.xid, c.index, c.order, c.origin = r.tx.lsn, r.tx.at, r.tx.xid, r.tx.index, r.tx.order, r.tx.origin
	r.tx.order++
	return !r.skipped(c.sub)
}

// hold keeps the event of a change until it is known whether it is the transaction's
// last.
func (r *logReader) hold(c *change, last bool, i item) {
	p := logPlace{slot: r.at.slot, line: r.at.line, done: r.at.done, when: r.at.when, tx: r.tx.lsn, ends: r.tx.ends, index: c.index, sub: c.sub + 1, snaps: r.at.snaps}
	if last {
		p.index, p.sub = c.index+1, 0
	}
	r.pushHeld()
	i.at, i.xid = p, r.tx.outbox
	r.newest = i
	r.held = &r.newest
}

// Read returns the next items. The events of rows are made here, while more of the log
// is received: that is most of the work.
func (r *logReader) Read(ctx context.Context) ([]item, []onewrite.Event, error) {
	items, err := r.queue.take(ctx, r.cfg.MaxBatchBytes)
	return items, r.made.makeEvents(items), err
}

// hand notes a batch that is about to be stored, which ends at done. With it go n items,
// some of which may have been left out of it.
func (r *logReader) hand(pos onewrite.Pos, done pgoutput.LSN, items int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := r.stored.n
	if len(r.handed) > 0 {
		n = r.handed[len(r.handed)-1].n
	}
	r.handed = append(r.handed, handed{pos: pos, done: done, n: n + uint64(items)})
}

// pass notes items of which none is to be stored.
func (r *logReader) pass(items int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if n := len(r.handed); n > 0 {
		r.handed[n-1].n += uint64(items)
		return
	}
	r.stored.n += uint64(items)
}

// Stored says that the bus has all up to a position: the server may forget it.
func (r *logReader) Stored(pos onewrite.Pos) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for i := range r.handed {
		if r.handed[i].pos == pos {
			r.stored = r.handed[i]
			r.handed = append(r.handed[:0], r.handed[i+1:]...)
			r.rep.confirm(r.stored.done)
			r.wake()
			return
		}
	}
}

func (r *logReader) wake() {
	select {
	case r.changed <- struct{}{}:
	default:
	}
}

// tend writes down, in the database, what has to be there before or after something
// is stored: idle places and snapshots that are finished.
func (r *logReader) tend() {
	for {
		select {
		case <-r.alive.Done():
			return
		case <-r.changed:
		}
		r.mu.Lock()
		idle := r.wanted
		if idle <= r.noted {
			idle = 0
		}
		read := r.stored.done
		var done []finished
		for len(r.finish) > 0 && r.finish[0].n <= r.stored.n {
			done = append(done, r.finish[0])
			r.finish = r.finish[1:]
		}
		r.mu.Unlock()
		err := r.write(idle, read, done)
		if err != nil {
			r.stop()
			r.queue.fail(err)
			return
		}
		if idle > 0 {
			r.mu.Lock()
			r.noted = idle
			r.rep.confirm(idle) // the next keepalive may be beyond it
			r.mu.Unlock()
		}
	}
}

func (r *logReader) write(idle, read pgoutput.LSN, done []finished) error {
	r.side.Lock()
	defer r.side.Unlock()
	if idle > 0 {
		if _, err := r.cat.conn.Exec(r.alive, `UPDATE onewrite.log SET idle = $2::text::pg_lsn, read = greatest(read, $3::text::pg_lsn) WHERE source = $1`, r.cfg.Name, idle.String(), read.String()); err != nil {
			return explain(err)
		}
	}
	for _, f := range done {
		if _, err := r.cat.conn.Exec(r.alive, `UPDATE onewrite.captured SET finished = $3 WHERE source = $1 AND rel = $2 AND finished < $3`, r.cfg.Name, f.rel, f.wanted); err != nil {
			return explain(err)
		}
		r.log.Info("snapshot is on the bus", "table", r.nameOf(f.rel))
	}
	return nil
}

func (r *logReader) nameOf(rel uint32) string {
	if r.fill != nil {
		return r.fill.nameOf(rel)
	}
	return fmt.Sprint(rel)
}

// close ends the reading. What is confirmed is said to the server once more.
func (r *logReader) close() {
	r.stop()
	r.queue.fail(errClosed)
	r.rep.close(true)
	r.work.Wait()
	r.closeSessions()
}

func (r *logReader) closeSessions() {
	if r.host != nil && r.host != r.cat.conn {
		_ = r.host.Close(context.Background())
	}
	_ = r.cat.conn.Close(context.Background())
}
