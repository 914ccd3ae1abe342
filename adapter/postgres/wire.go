package postgres

import (
	"context"
	"net"
	"sync/atomic"
	"time"
)

// wire is the connection below a session. It remembers when something passed
// last. A network that swallows everything and keeps connections open breaks
// nothing by itself: a reader would wait for an answer for ever.
type wire struct {
	net.Conn
	moved atomic.Int64 // when bytes passed last, in ns of the process's clock
	idle  atomic.Bool  // no answer is owed
}

// born is where the wires' clocks begin; only the differences matter.
var born = time.Now()

func newWire(c net.Conn) *wire {
	w := &wire{Conn: c}
	w.touch()
	return w
}

func (w *wire) touch() { w.moved.Store(int64(time.Since(born))) }

func (w *wire) silent() time.Duration { return time.Since(born) - time.Duration(w.moved.Load()) }

// Read notes that bytes came.
func (w *wire) Read(p []byte) (int, error) {
	n, err := w.Conn.Read(p)
	if n > 0 {
		w.touch()
	}
	return n, err
}

// Write notes that bytes went.
func (w *wire) Write(p []byte) (int, error) {
	n, err := w.Conn.Write(p)
	if n > 0 {
		w.touch()
	}
	return n, err
}

// rest brackets a time in which the server owes no answer.
func (w *wire) rest(begin bool) {
	w.touch()
	w.idle.Store(begin)
}

const (
	// silentFor is how long an answer may take before the server is asked, over
	// another connection, whether it works on one.
	silentFor = 8 * time.Second
	// askFor bounds that question.
	askFor = 5 * time.Second
)

// watch cuts a session whose answer does not come although the server does not
// work on it, or cannot be reached. Read returns the error then.
func (s *Source) watch() {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	var asked time.Time
	for {
		select {
		case <-s.alive.Done():
			return
		case <-tick.C:
		}
		if s.wire.idle.Load() || s.wire.silent() < silentFor || time.Since(asked) < askFor {
			continue
		}
		if s.session.TryLock() { // nobody uses it
			s.session.Unlock()
			continue
		}
		asked = time.Now()
		works, err := s.works()
		if works || s.alive.Err() != nil || s.wire.silent() < silentFor {
			continue
		}
		s.log.Warn("no answer from the database, the session is cut", "silent", s.wire.silent().Round(time.Second), "error", err)
		_ = s.wire.Close()
	}
}

// works asks the server whether it is busy with a statement of this session.
func (s *Source) works() (bool, error) {
	ctx, cancel := context.WithTimeout(s.alive, askFor)
	defer cancel()
	conn, _, err := connect(ctx, s.cfg.URL)
	if err != nil {
		return false, err
	}
	defer func() { _ = conn.Close(ctx) }()
	var works bool
	err = conn.QueryRow(ctx, `SELECT EXISTS (SELECT FROM pg_stat_activity WHERE pid = $1 AND state = 'active' AND wait_event_type IS DISTINCT FROM 'Client')`,
		int64(s.conn.PgConn().PID())).Scan(&works)
	return works, explain(err)
}

// heartbeat shows a standby that this reader lives while nobody calls Read: the
// bus may be full for hours.
func (s *Source) heartbeat() {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-s.alive.Done():
			return
		case <-tick.C:
		}
		if !s.session.TryLock() {
			continue // it is in use, which shows as well
		}
		ctx, cancel := context.WithTimeout(s.alive, 5*time.Second)
		_, _ = s.conn.Exec(ctx, "SELECT 1") // a broken session shows in the next Read
		cancel()
		s.session.Unlock()
	}
}
