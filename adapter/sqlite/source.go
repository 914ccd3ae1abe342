package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gofrs/flock"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/outbox"
)

const (
	// defaultBatchBytes bounds the memory of one batch.
	defaultBatchBytes = 8 << 20
	// A commit of another process is found by asking: often while there is
	// something to do, rarely otherwise.
	activePoll = time.Millisecond
	idlePoll   = 15 * time.Millisecond
	activeFor  = 2 * time.Second
	// statEvery is how often the file is looked at from outside.
	statEvery = time.Second
)

// Config describes the outbox to read.
type Config struct {
	// Name is the source's name; it becomes Event.Source.
	Name string
	// Path is the database file.
	Path string
	// BusID names the bus that gets the events. It is kept in the file, so that
	// a lost or foreign bus is noticed. Empty: no notice is taken.
	BusID string
	// Logger gets warnings; nil is silent.
	Logger *slog.Logger
	// MaxBatchBytes bounds the events of one batch; one event may be larger.
	// 0 means 8 MiB.
	MaxBatchBytes int
}

// Source reads the outbox of one file; see onewrite.Source. It never writes
// while it reads; what is acknowledged it deletes from a goroutine of its own,
// in transactions of a few milliseconds.
type Source struct {
	cfg    Config
	log    *slog.Logger
	path   string
	info   os.FileInfo
	lock   *flock.Flock
	reader *sql.Conn
	writer *sql.Conn // guarded by writing
	done   []func() error

	schedules bool // there is a table of scheduled events

	history string // the identity of the file's history; does not change
	writing sync.Mutex
	stop    context.CancelFunc
	reclaim sync.WaitGroup
	acked   atomic.Int64
	ackWake chan struct{}
	failed  atomic.Pointer[error] // why reclaiming or promoting ended
	longest atomic.Int64          // the longest transaction of ours, in ns
	deletes atomic.Int64          // how many there were

	// All below belongs to the goroutine that calls Read.
	at          place // the last event handed over
	gap         *onewrite.Gap
	stmts       statements
	layouts     map[int64]*layout
	dataVersion int64
	schema      int64
	more        bool // the last batch was cut: there may be rows left
	lastEvent   time.Time
	lastStat    time.Time
}

// lockPatience is how long a source waits for a file that another program holds. While it
// opens, the application is what may hold it; the pipeline tries again.
const lockPatience = 5 * time.Second

// Open opens the outbox at a position and locks it against other readers by the
// file <path>.onewrite.lock, a lock that ends with the process.
//
//   - ErrStandby: another live process, or another Source of this one, reads it
//   - ErrGap: a captured table was dropped, or its triggers are missing or no
//     longer the newest
//   - any other error: the file or its tables are missing or of another
//     version, or the position is not one of this package.
//
// If the file does not continue the history that pos belongs to, or BusID is
// not the bus that got its events before, all rows are read again and the first
// batch carries a Gap.
func Open(ctx context.Context, cfg Config, pos onewrite.Pos) (*Source, error) {
	at, err := parsePlace(pos)
	if err != nil {
		return nil, err
	}
	s := &Source{cfg: cfg, log: cfg.Logger, layouts: map[int64]*layout{}, ackWake: make(chan struct{}, 1), dataVersion: -1, schema: -1}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	if s.cfg.MaxBatchBytes <= 0 {
		s.cfg.MaxBatchBytes = defaultBatchBytes
	}
	if err := s.open(ctx, at); err != nil {
		return nil, errors.Join(heldUp(s.path, lockPatience, err), s.close())
	}
	if s.gap != nil {
		s.log.Error("gap in the outbox", "reason", s.gap.Reason, "from", s.gap.From, "to", s.gap.To, "cure", s.gap.Cure)
	}
	run, stop := context.WithCancel(context.Background())
	s.stop = stop
	s.reclaim.Go(func() { s.keepReclaiming(run) })
	if s.schedules {
		s.reclaim.Go(func() { s.keepPromoting(run) })
	}
	return s, nil
}

func (s *Source) open(ctx context.Context, at place) error {
	var err error
	if s.path, err = realPath(s.cfg.Path); err != nil {
		return err
	}
	s.lock = flock.New(s.path + ".onewrite.lock")
	held, err := s.lock.TryLock()
	if err != nil {
		return fmt.Errorf("sqlite: lock %s.onewrite.lock: %w (the folder must be writable)", s.path, err)
	}
	if !held {
		return fmt.Errorf("sqlite: %s is read by another onewrite: %w", s.path, onewrite.ErrStandby)
	}
	if s.info, err = os.Stat(s.path); err != nil {
		return fmt.Errorf("sqlite: %w", err)
	}
	// NORMAL: a lost deletion is made again, and checkpoints do sync. They are
	// made apart from the commits, which have to be short.
	wait := fmt.Sprintf("busy_timeout(%d)", lockPatience.Milliseconds())
	for _, o := range []struct {
		conn    **sql.Conn
		pragmas []string
	}{
		{&s.writer, []string{wait, "synchronous(NORMAL)", "wal_autocheckpoint(0)"}},
		{&s.reader, []string{wait, "query_only(1)"}},
	} {
		c, done, err := open(ctx, s.path, "rw", o.pragmas...)
		if err != nil {
			return err
		}
		*o.conn, s.done = c, append(s.done, done)
	}
	if err := s.check(ctx); err != nil {
		return err
	}
	if s.at, s.gap, err = adopt(ctx, s.writer, at, s.cfg.BusID); err != nil {
		return fmt.Errorf("sqlite: claim %s: %w", s.path, err)
	}
	s.history = s.at.file
	// From now on the application is not to be kept waiting.
	if _, err := s.writer.ExecContext(ctx, "PRAGMA busy_timeout = 100"); err != nil {
		return fmt.Errorf("sqlite: %s: %w", s.path, err)
	}
	if err := s.stmts.prepare(ctx, s.reader); err != nil {
		return fmt.Errorf("sqlite: the outbox in %s is not as it should be: %w; %s", s.path, err, migrateHint)
	}
	return s.verify(ctx)
}

// check looks for the tables and the journal mode.
func (s *Source) check(ctx context.Context) error {
	objects, err := readObjects(ctx, s.reader)
	if err != nil {
		return fmt.Errorf("sqlite: %s: %w", s.path, err)
	}
	for _, name := range []string{"onewrite_meta", "onewrite_outbox", "onewrite_layout"} {
		if objects[name].sql == "" {
			return fmt.Errorf("sqlite: %s has no table %s; %s", s.path, name, migrateHint)
		}
	}
	if err := checkVersion(ctx, s.reader); err != nil {
		return fmt.Errorf("sqlite: %s: %w", s.path, err)
	}
	if s.schedules = objects["onewrite_scheduled"].sql != ""; !s.schedules {
		s.log.Warn("scheduled events are not sent: their table is missing", "cure", "onewrite migrate")
	}
	var mode string
	if err := s.reader.QueryRowContext(ctx, "PRAGMA journal_mode").Scan(&mode); err != nil {
		return fmt.Errorf("sqlite: %s: %w", s.path, err)
	}
	if !strings.EqualFold(mode, "wal") {
		s.log.Warn("the journal mode is not WAL: the application waits while the outbox is read", "mode", mode, "cure", migrateHint)
	}
	return nil
}

// Read returns the next batch; see onewrite.Source.
//
//   - ErrGap: a captured table was dropped, or its triggers are missing or no
//     longer the newest, so changes are missing or in a wrong order
//   - ErrFenced: another reader has opened the file in spite of the lock
//   - any other error: the file was replaced, cannot be read, or cannot be written:
//     delivered events are not deleted, or scheduled ones not sent.
func (s *Source) Read(ctx context.Context) (onewrite.Batch, error) {
	poll := time.NewTimer(time.Hour)
	defer poll.Stop()
	for {
		if err := ctx.Err(); err != nil {
			return onewrite.Batch{}, err
		}
		bell := outbox.Bell()
		b, ok, err := s.look(ctx)
		if ok || err != nil {
			return b, err
		}
		every := idlePoll
		if time.Since(s.lastEvent) < activeFor {
			every = activePoll
		}
		poll.Reset(every)
		select {
		case <-ctx.Done():
		case <-bell:
		case <-poll.C:
		}
	}
}

// look reads a batch if something was committed since the last time. The number
// is taken before the rows: what is committed in between is found next time.
func (s *Source) look(ctx context.Context) (b onewrite.Batch, ok bool, err error) {
	if failed := s.failed.Load(); failed != nil {
		return b, false, *failed
	}
	if now := time.Now(); now.Sub(s.lastStat) >= statEvery {
		s.lastStat = now
		if err := s.sameFile(); err != nil {
			return b, false, err
		}
	}
	var version int64
	if err := s.stmts.dataVersion.QueryRow().Scan(&version); err != nil {
		return b, false, heldUp(s.path, lockPatience, fmt.Errorf("sqlite: read %s: %w", s.path, err))
	}
	if version == s.dataVersion && !s.more && s.gap == nil {
		return b, false, nil
	}
	if b, err = s.fetch(ctx); err != nil {
		return b, false, heldUp(s.path, lockPatience, err)
	}
	s.dataVersion = version
	b.More, b.Gap, s.gap = s.more, s.gap, nil
	if len(b.Events) > 0 {
		s.lastEvent = time.Now()
	}
	return b, len(b.Events) > 0 || b.Gap != nil, nil
}

// sameFile notices that the path leads to another file than the open one.
func (s *Source) sameFile() error {
	info, err := os.Stat(s.path)
	if err != nil {
		return fmt.Errorf("sqlite: the file of source %s is gone: %w; restore it, or %s", s.cfg.Name, err, migrateHint)
	}
	if !os.SameFile(info, s.info) {
		return fmt.Errorf("sqlite: the file of source %s was replaced; it will be read again", s.cfg.Name)
	}
	return nil
}

// Ack says that the events up to pos are safe; their rows are deleted within
// seconds. An error tells why deleting has ended: a full disk, for instance.
// A position of a history that was broken since is passed over.
func (s *Source) Ack(ctx context.Context, pos onewrite.Pos) error {
	if failed := s.failed.Load(); failed != nil {
		return *failed
	}
	p, err := parsePlace(pos)
	if err != nil || p.file != s.history {
		return err
	}
	for {
		old := s.acked.Load()
		if p.seq <= old {
			return nil
		}
		if s.acked.CompareAndSwap(old, p.seq) {
			break
		}
	}
	select {
	case s.ackWake <- struct{}{}:
	default:
	}
	return nil
}

// Close ends the goroutine and gives up the lock.
func (s *Source) Close() error {
	s.stop()
	s.reclaim.Wait()
	return s.close()
}

func (s *Source) close() error {
	var errs []error
	s.stmts.close()
	for _, done := range s.done {
		errs = append(errs, done())
	}
	s.done = nil
	if s.lock != nil {
		errs = append(errs, s.lock.Close())
	}
	return errors.Join(errs...)
}
