package postgres

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/internal/pgoutput"
	"github.com/onewrite/onewrite/internal/sabotage"
)

// ownPrefix marks the messages in the log that are onewrite's own.
const ownPrefix = "onewrite"

// logReader reads row changes from the log. One goroutine receives and makes events,
// which wait in queue for Read.
type logReader struct {
	cfg      Config
	log      *slog.Logger
	database string
	slot     string
	opened   logRecord
	rep      *replication
	queue    *logQueue
	env      *envelope
	fill     *backfill
	alive    context.Context
	stop     context.CancelFunc
	work     sync.WaitGroup

	side sync.Mutex // guards cat and its session
	cat  catalog

	// Of the goroutine that receives.
	dec    pgoutput.Decoder
	msg    pgoutput.Message
	start  pgoutput.LSN // where in the log the message is, which is no place to go on from
	tables map[uint32]*table
	at     logPlace // after the last whole transaction; its snaps are the newest
	begin  logPlace // where reading began
	tx     transaction
	held   *item // the newest event of tx: is it the last?
	run    []item
	size   int // of run, in bytes

	mu      sync.Mutex
	snaps   *snapPlaces // as at.snaps
	handed  []handed
	stored  handed
	wanted  pgoutput.LSN // an idle place that is being noted
	noted   pgoutput.LSN // up to which the slot may move without an event
	finish  []finished
	changed chan struct{} // holds a token when stored moved
}

// transaction is the one that is being received.
type transaction struct {
	open  bool
	lsn   pgoutput.LSN // of its commit
	xid   uint32
	at    time.Time
	index uint32 // the change that comes next
	order int    // the event that comes next
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
	if r.alive.Err() != nil {
		err = context.Cause(r.alive)
	}
	r.queue.fail(err)
}

func (r *logReader) loop() error {
	for {
		data, err := r.rep.next()
		if err != nil {
			return undecodable(err, r.slot)
		}
		switch data[0] {
		case pgoutput.FrameXLogData:
			x, err := pgoutput.ParseXLogData(data)
			if err != nil {
				return err
			}
			if err := r.dec.Decode(x.Data, &r.msg); err != nil {
				return fmt.Errorf("postgres: the log holds what onewrite cannot read: %w; install a newer onewrite", err)
			}
			r.start = x.Start
			if err := r.handle(&r.msg); err != nil {
				return err
			}
		case pgoutput.FrameKeepalive:
			k, err := pgoutput.ParseKeepalive(data)
			if err != nil {
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
	r.size += i.event.Size()
}

// handle acts on one message.
func (r *logReader) handle(m *pgoutput.Message) error {
	switch m.Kind {
	case pgoutput.KindBegin:
		r.tx = transaction{open: true, lsn: m.FinalLSN, xid: m.XID, at: m.CommitTime.Time()}
	case pgoutput.KindCommit:
		return r.commit(m)
	case pgoutput.KindRelation:
		return r.relation(m.Relation)
	case pgoutput.KindInsert, pgoutput.KindUpdate, pgoutput.KindDelete:
		return r.row(m)
	case pgoutput.KindTruncate:
		return r.truncate(m)
	case pgoutput.KindMessage:
		if !m.Transactional {
			return nil
		}
		r.tx.index++
		if string(m.Prefix) == ownPrefix && r.fill != nil {
			return r.fill.mark(r, m.Content)
		}
	case pgoutput.KindOrigin, pgoutput.KindType:
	default:
		return fmt.Errorf("postgres: a message of kind %s, which was not asked for", m.Kind)
	}
	return nil
}

func (r *logReader) commit(m *pgoutput.Message) error {
	if m.CommitLSN != r.tx.lsn {
		return fmt.Errorf("postgres: the transaction that began for %s is committed at %s", r.tx.lsn, m.CommitLSN)
	}
	r.at.done, r.at.tx, r.at.index, r.at.sub = m.EndLSN, 0, 0, 0
	if r.held != nil {
		r.held.event.Tx.Last = true
		r.held.at = r.at
		r.push(r.held)
		r.held = nil
	}
	r.tx.open = false
	r.rep.received.Store(uint64(m.EndLSN))
	return nil
}

// keepalive lets an idle slot move: when all that was received is on the bus, what
// the server has decoded beyond it holds nothing for us.
func (r *logReader) keepalive(k pgoutput.Keepalive) {
	r.rep.received.Store(max(r.rep.received.Load(), uint64(k.WALEnd)))
	r.mu.Lock()
	idle := !r.tx.open && len(r.run) == 0 && r.queue.idle(r.stored.n)
	if idle && k.WALEnd <= r.noted {
		r.rep.confirm(k.WALEnd)
	} else if idle && k.WALEnd-max(r.noted, r.at.done) > idleStep && k.WALEnd > r.wanted {
		r.wanted = k.WALEnd
		r.wake()
	}
	r.mu.Unlock()
	if k.ReplyRequested {
		r.rep.reply()
	}
}

// idleStep is how much log an idle slot keeps at most: moving it is written down
// first, which is itself log.
const idleStep = 16 << 20

func (r *logReader) relation(rel *pgoutput.Relation) error {
	r.side.Lock()
	defer r.side.Unlock()
	t, err := r.cat.describe(r.alive, r.database, rel, func() error { return r.untilVisible(r.tx.xid) })
	if err != nil {
		return err
	}
	if was := r.tables[rel.ID]; was != nil {
		t.seen, t.count = was.seen, was.count
	}
	r.tables[rel.ID] = t
	if r.fill.knows(rel.ID) {
		return nil
	}
	list, err := registry(r.alive, r.cat.conn, r.cfg.Name) // it is captured since just now
	if err == nil {
		r.fill.set(list)
	}
	return err
}

func (r *logReader) tableOf(rel uint32) (*table, error) {
	if t := r.tables[rel]; t != nil {
		return t, nil
	}
	return nil, fmt.Errorf("postgres: a change of relation %d, which was not described", rel)
}

// skipped reports whether an event of the change at hand was handed over before.
func (r *logReader) skipped(sub uint8) bool {
	b, end := &r.begin, r.tx.lsn
	if sabotage.Bug == "change-place" {
		end = r.start
	}
	if end < b.done {
		return true
	}
	return b.tx == r.tx.lsn && (r.tx.index < b.index || r.tx.index == b.index && sub < b.sub)
}

// emit makes the event of a change; last: it is the change's last.
func (r *logReader) emit(c *change, last bool) {
	c.lsn, c.at, c.xid, c.index, c.order = r.tx.lsn, r.tx.at, r.tx.xid, r.tx.index, r.tx.order
	r.tx.order++
	c.table.tally(c.xid)
	if r.skipped(c.sub) {
		return
	}
	p := logPlace{slot: r.at.slot, line: r.at.line, done: r.at.done, tx: r.tx.lsn, index: c.index, sub: c.sub + 1, snaps: r.at.snaps}
	if last {
		p.index, p.sub = c.index+1, 0
	}
	if r.fill != nil && r.fill.saw(r, c) {
		return
	}
	if r.held != nil {
		r.push(r.held)
	} else {
		r.held = new(item)
	}
	*r.held = item{event: r.env.event(c), at: p}
}

// Read returns the next items.
func (r *logReader) Read(ctx context.Context) ([]item, error) {
	return r.queue.take(ctx, r.cfg.MaxBatchBytes)
}

// hand notes a batch that is about to be stored.
func (r *logReader) hand(pos onewrite.Pos, items []item) {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := r.stored.n
	if len(r.handed) > 0 {
		n = r.handed[len(r.handed)-1].n
	}
	r.handed = append(r.handed, handed{pos: pos, done: items[len(items)-1].at.done, n: n + uint64(len(items))})
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
	_ = r.cat.conn.Close(context.Background())
}
