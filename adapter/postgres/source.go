package postgres

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/internal/masking"
	"github.com/onewrite/onewrite/internal/sabotage"
	"github.com/onewrite/onewrite/outbox"
)

// Config names the outbox to read.
type Config struct {
	// Name is the source's name in the configuration.
	Name string
	// URL names the database; a direct session, not through a pooler.
	URL string
	// LogURL names a standby of that server, 16 or newer, from which row changes are read;
	// empty: they are read from the server itself.
	LogURL string
	// BusID is the identity of the bus that stores the positions.
	BusID string
	// MaxBatchBytes bounds the payload of one read; default 8 MiB.
	MaxBatchBytes int
	// Logger gets what an operator should know; nil is silent.
	Logger *slog.Logger
	// Tables are those whose row changes are read from the log, as Migrate captures
	// them; none: the outbox alone is read.
	Tables []string
	// Messages makes events of the messages in the log with the prefix outbox.LogPrefix.
	Messages bool
	// DDL makes events of the commands that alter, rename or drop captured tables.
	DDL bool
	// Toast says what becomes of large values that an update did not touch: ToastOmit,
	// the default, or ToastDebezium.
	Toast string
	// Masks say which columns are left out of events or shown in another form; MaskKey is
	// the key of the hashes.
	Masks   masking.Rules
	MaskKey string
	// Known is kept by whoever opens a source again and again, and is one for each process; nil: this
	// is the only time.
	Known *Known
	// LocalOnly leaves out changes that were replicated into this database from elsewhere.
	LocalOnly bool
	// FlushWithin is how long what was committed with synchronous_commit = off may stay out
	// of the log, while row changes come; 0: as long as the server likes.
	FlushWithin time.Duration
	// HoldGap stops at a gap in the row changes, for a person to decide. Otherwise the
	// captured tables are read again.
	HoldGap bool
	// MaxRetained is how many bytes of log the slot may keep on the server before it is
	// dropped and the tables are read again; 0: no limit.
	MaxRetained int64
	// Imports are tables whose rows are moved into the outbox.
	Imports []Import
	// Trouble is told what is wrong beside the reading of the outbox, with an import by
	// its name for one, and "" when it is no more; nil: nobody is.
	Trouble func(name, problem string)
	// Importing is told how many rows of an import wait to be moved, by its name: 10,000
	// means that or more, and -1 that it is not known; nil: nobody is.
	Importing func(name string, rows int)

	// Snapshotting is told now and then how far the snapshot of a table is, and when it
	// is done; nil: nobody is.
	Snapshotting func(table string, p Progress)
	// Pushed reads the outbox from the log as well, which tells its rows at their commit.
	Pushed bool
	// Stream reads a backlog of the log by streaming alone. Otherwise a large one is read
	// in slices, by queries.
	Stream bool

	// For tests; 0: as many as it takes, nil: sliceDefaults.
	slices  *sliceSizes
	chunk   int           // rows of a chunk of a snapshot
	scan    int           // rows that are looked at for one that has a condition
	readers int           // tables that are read at a time
	say     time.Duration // how often it is said how far a snapshot is
}

// trouble tells what is wrong beside the reading of the outbox; "" is nothing any more.
func (c *Config) trouble(name, problem string) {
	if c.Trouble != nil {
		c.Trouble(name, problem)
	}
}

// Source is the reader of one outbox. See [onewrite.Source].
type Source struct {
	cfg   Config
	log   *slog.Logger
	texts texts

	session sync.Mutex // held while conn is used
	conn    *pgx.Conn
	wire    *wire           // below conn
	alive   context.Context // ends with Close
	stop    context.CancelFunc
	work    sync.WaitGroup // goroutines that use conn

	id    identity
	at    place
	since int64         // acknowledgements of an earlier epoch are of another history
	moved time.Time     // when the register epoch was moved
	gap   *onewrite.Gap // to be handed over with the next batch

	queue rows // read and not handed over yet
	pages pager
	nap   nap
	ring  ring

	slotting atomic.Bool // the slot of the log is being made

	looks  int
	xmax   uint64 // the first transaction that had not begun at the last look
	pushed bool   // the log told rows since the last look; see Both
	proof  proof

	schedule schedule
	troubled map[string]string // what was said last, by subject

	ackMu sync.Mutex
	acked *place        // covers what the source may forget
	acks  chan struct{} // holds a token when acked moved
}

// Open starts to read at a position.
//   - ErrStandby: another live session reads this outbox
//   - an error that ends with its cure: no server, no outbox, no rights.
//
// When the position does not fit the database or the bus, the outbox is read
// from its oldest row and the first batch carries a Gap that says why.
func Open(ctx context.Context, cfg Config, pos onewrite.Pos) (*Source, error) {
	pos = ringOf(pos)
	if cfg.MaxBatchBytes <= 0 {
		cfg.MaxBatchBytes = 8 << 20
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	conn, wire, err := connect(ctx, cfg.URL)
	if err != nil {
		return nil, err
	}
	s := &Source{cfg: cfg, log: cfg.Logger, texts: texts{}, conn: conn, wire: wire,
		acks: make(chan struct{}, 1), nap: nap{belt: time.Second}, troubled: map[string]string{}}
	s.alive, s.stop = context.WithCancel(context.WithoutCancel(ctx))
	s.work.Go(s.watch)
	s.session.Lock()
	err = s.begin(ctx, pos)
	s.session.Unlock()
	if err != nil {
		s.stop()
		s.work.Wait()
		s.release(ctx)
		return nil, withNames(err, conn)
	}
	s.work.Go(s.heartbeat)
	for _, im := range cfg.Imports {
		last, waiting := "?", -2
		i := &importer{Import: &im, url: cfg.URL, report: func(problem string) {
			if problem != last {
				cfg.trouble(im.Name, problem)
			}
			last = problem
		}, waits: func(rows int) {
			if rows != waiting && cfg.Importing != nil {
				cfg.Importing(im.Name, rows)
			}
			waiting = rows
		}}
		s.work.Go(func() { i.run(s.alive) })
	}
	return s, nil
}

// release gives the lock back before the session ends, which the server does in
// its own time: whoever opens next, perhaps at once, is no standby.
func (s *Source) release(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	_, _ = s.conn.Exec(ctx, `SELECT pg_advisory_unlock_all()`)
	_ = s.conn.Close(ctx)
}

func (s *Source) begin(ctx context.Context, pos onewrite.Pos) error {
	if err := prepare(ctx, s.conn); err != nil {
		return err
	}
	if len(s.cfg.Tables) > 0 && s.cfg.Known != nil {
		if err := s.cfg.Known.begin(ctx, s.conn, s.cfg.Name); err != nil {
			return err
		}
	}
	if err := lead(ctx, s.conn, s.log.Warn); err != nil {
		return err
	}
	if err := sabotage.At("postgres.lead"); err != nil {
		return err
	}
	id, err := identify(ctx, s.conn, s.cfg.Name)
	if err != nil {
		return err
	}
	start, gap, adopt, err := judge(id, pos, s.cfg.BusID)
	if err != nil {
		return err
	}
	if adopt {
		s.log.Warn("rows of another history are in the outbox, giving them transactions of this server")
		if err := adoptAll(ctx, s.conn); err != nil {
			return err
		}
	}
	valid := id.valid
	if gap != nil && start.from.text == empty.text { // all is read again
		valid = start.epoch
	}
	if err := record(ctx, s.conn, s.cfg.Name, id, s.cfg.BusID, valid); err != nil {
		return err
	}
	if err := sabotage.At("postgres.record"); err != nil {
		return err
	}
	s.id, s.at, s.gap = id, start, gap
	if was, err := parsePlace(pos); err != nil || was.from.text != start.from.text {
		s.since = start.epoch
	}
	s.acked = &place{from: empty}
	s.ring.dirty = true
	if _, err := s.conn.Exec(ctx, `SELECT setval('onewrite.epoch', $1)`, start.epoch); err != nil {
		return explain(err)
	}
	if err := s.register(ctx, 1); err != nil { // the last reader may have left it asleep
		return err
	}
	err = s.conn.QueryRow(ctx, `SELECT current_setting('max_prepared_transactions')::int > 0`).Scan(&s.nap.polls)
	if err != nil {
		return explain(err)
	}
	if err := s.proveStart(ctx); err != nil {
		return err
	}
	if s.at.to.text != "" {
		if err := s.pages.resume(ctx, s); err != nil {
			return err
		}
	}
	_, err = s.conn.Exec(ctx, `LISTEN onewrite`)
	return explain(err)
}

// Read returns the next committed events. See [onewrite.Source].
func (s *Source) Read(ctx context.Context) (_ onewrite.Batch, err error) {
	defer func() { err = withNames(err, s.conn) }()
	if b, ok, err := s.ready(ctx); ok || err != nil {
		return b, err
	}
	s.session.Lock()
	defer s.session.Unlock()
	for {
		if b, ok, err := s.find(ctx); ok || err != nil {
			return b, err
		}
		if err := s.rest(ctx); err != nil {
			return onewrite.Batch{}, err
		}
	}
}

// sweep is Read without the wait: it returns false when nothing is there to be read. It
// ends the look that is under way and begins no other in the same call.
func (s *Source) sweep(ctx context.Context) (_ onewrite.Batch, ok bool, err error) {
	defer func() { err = withNames(err, s.conn) }()
	looking := !s.swept()
	if b, ok, err := s.ready(ctx); ok || err != nil {
		return b, ok, err
	}
	if looking && s.swept() {
		return onewrite.Batch{}, false, nil
	}
	s.session.Lock()
	defer s.session.Unlock()
	return s.find(ctx)
}

// swept reports whether all that the last look saw is handed over.
func (s *Source) swept() bool { return s.queue.len() == 0 && s.pages.ahead == nil && !s.pages.on() }

// ready hands over what was read already.
func (s *Source) ready(ctx context.Context) (b onewrite.Batch, ok bool, err error) {
	if s.queue.len() > 0 {
		return s.batch(), true, nil
	}
	if s.pages.ahead != nil { // it has the session, or will have it next
		if found, err := s.pages.next(ctx, s); err != nil {
			return onewrite.Batch{}, false, err
		} else if found {
			return s.batch(), true, nil
		}
	}
	return onewrite.Batch{}, false, nil
}

// find looks for rows until some are found or there are none. The session is held.
func (s *Source) find(ctx context.Context) (b onewrite.Batch, ok bool, err error) {
	for {
		if s.queue.len() > 0 {
			return s.batch(), true, nil
		}
		if err := s.reclaim(ctx); err != nil {
			return onewrite.Batch{}, false, err
		}
		s.nap.bell = outbox.Bell()
		if err := s.promote(ctx); err != nil {
			return onewrite.Batch{}, false, err
		}
		found, err := s.look(ctx)
		if err != nil {
			return onewrite.Batch{}, false, err
		}
		if found {
			continue
		}
		if g := s.gap; g != nil {
			s.gap = nil
			return onewrite.Batch{Pos: s.at.pos(), Gap: g}, true, nil
		}
		if !s.pages.on() { // otherwise it was a page without rows of ours
			return onewrite.Batch{}, false, nil
		}
	}
}

// look reads the next rows into the queue.
func (s *Source) look(ctx context.Context) (found bool, err error) {
	if s.pages.on() {
		return s.pages.next(ctx, s)
	}
	if err := s.prove(ctx); err != nil {
		return false, err
	}
	res, err := s.run(ctx, tailSQL, onewrite.MaxBatch, fmt.Sprint(s.at.from.xmax), s.at.from.array())
	if err != nil {
		return false, err
	}
	snap, err := parseSnapshot(res.snap)
	if err == nil {
		err = sabotage.At("postgres.look")
	}
	if err != nil {
		return false, err
	}
	s.nap.saw(snap)
	s.looks++
	s.xmax = snap.xmax
	last := int64(0)
	if res.len() > 0 {
		last = res.last()
	}
	res.drop(s.proof.skip)
	if res.given != s.ring.given { // rows were inserted, if only to be rolled back
		s.ring.given, s.ring.dirty = res.given, true
	}
	if sabotage.Bug == "id-cursor" {
		for res.len() > 0 && res.seqs[0] <= s.at.top {
			res.cut(1)
		}
	}
	if res.len() == 0 && !res.more {
		if s.pushed {
			s.pushed = false
			err = s.settle(ctx, snap, res.lsn, false)
		}
		s.at.from = snap.join(s.at.from)
		s.stand()
		return false, err
	}
	if err := s.settle(ctx, snap, res.lsn, res.more); err != nil {
		return false, err
	}
	s.queue, s.ring.dirty = res.rows, true
	s.nap.busy()
	s.at.to, s.at.seq = snap, 0
	if res.more {
		return true, s.pages.begin(ctx, s, last)
	}
	return true, nil
}

// settle flushes the log up to where it was when the snapshot was taken. A
// snapshot counts transactions as ended whose end is not on disk yet: one that
// rolled back, or committed asynchronously. After a crash their numbers are given
// out again, and the rows of the new owners would look as if they were read; and
// an event could be delivered whose transaction the crash undoes.
//
// What flushes is a move of the register epoch, which is made once a second at
// least, and before a large difference is read; see judge.
func (s *Source) settle(ctx context.Context, snap snapshot, lsn string, large bool) error {
	due := large || time.Since(s.moved) >= time.Second
	if err := sabotage.At("postgres.settle"); err != nil {
		return err
	}
	var epoch *int64
	err := s.conn.QueryRow(ctx, `SELECT CASE WHEN $1 OR pg_current_wal_flush_lsn() < $2::text::pg_lsn THEN setval('onewrite.epoch', $3) END`,
		due, lsn, s.at.epoch+1).Scan(&epoch)
	if err == nil && epoch != nil {
		s.moved, s.at.epoch, s.at.base = time.Now(), *epoch, snap.short()
	}
	return explain(err)
}

// end notes that all of the difference is read.
func (s *Source) end() {
	s.at.from, s.at.to, s.at.seq = s.at.to.join(s.at.from), snapshot{}, 0
	s.stand()
}

// batch hands over the head of the queue.
func (s *Source) batch() onewrite.Batch {
	n := min(s.queue.len(), onewrite.MaxBatch)
	head := s.queue.cut(n)
	if sabotage.Bug == "reversed" {
		slices.Reverse(head.events)
	}
	s.at.top = max(s.at.top, head.last())
	start := s.at
	s.at.seq = head.last()
	if s.queue.len() == 0 && !s.pages.on() {
		s.end()
	}
	b := onewrite.Batch{Events: head.events, Pos: s.at.pos(), More: !s.swept(), Gap: s.gap}
	s.gap = nil
	last := b.Pos
	b.PosAt = func(i int) onewrite.Pos {
		if i == n-1 {
			return last
		}
		p := start
		p.seq = head.seqs[i]
		return p.pos()
	}
	return b
}

// Ack notes what the source may forget; the reading session does the work.
func (s *Source) Ack(_ context.Context, pos onewrite.Pos) error {
	if pos = ringOf(pos); pos == "" {
		return nil
	}
	p, err := parsePlace(pos)
	if err != nil {
		return err
	}
	if p.system != s.id.system || p.bus != s.cfg.BusID || p.epoch < s.since {
		return nil // of another history; it covers nothing here
	}
	s.ackMu.Lock()
	s.acked = &p
	s.ackMu.Unlock()
	select {
	case s.acks <- struct{}{}:
	default:
	}
	return nil
}

// Close ends the session, and with it the lock.
func (s *Source) Close() error {
	if s.alive.Err() != nil {
		return nil
	}
	s.stop()
	s.work.Wait()
	s.session.Lock()
	defer s.session.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	// Said aloud, for the server sees the end of a session only a moment later:
	// the next reader need not wait, and writers need not wake anybody.
	_, _ = s.conn.Exec(ctx, `SELECT setval('onewrite.asleep', 1), pg_advisory_unlock_all()`)
	if err := s.conn.Close(ctx); err != nil && !errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("postgres: close: %w", err)
	}
	return nil
}
