package postgres

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/onewrite/onewrite/internal/pgoutput"
)

// A backlog is read in slices: by queries, which cost the server a fifth of what
// streaming costs it, as it sends the rows of a slice in one go. It makes a slice whole
// before it sends the first row, and decodes it from where its slot's restart_lsn is,
// which lies further back the older the oldest transaction is. So a slice has to be
// large against that, and a backlog worth it.
type sliceSizes struct {
	worth int64 // log that is read in slices; less is streamed
	least int64 // log in a slice
	most  int64 // which bounds the server's temporary files too
}

var sliceDefaults = sliceSizes{worth: 96 << 20, least: 512 << 20, most: 1 << 30}

// decodedAgain is how many times as large a slice is, at least, as what the server has
// to decode again for it. The last one only has to be half as large as that: nothing
// grows after it.
const decodedAgain = 3

// extent is how much of the log that is left the next slice takes, behind one of a size;
// 0: it is streamed. Where two sessions work at once, the server sends one slice while it
// makes the next. Nothing is sent before the first is made, so that one is small, and the
// next ones grow to twice the size at most, unless more is decoded again for them.
func (z sliceSizes) extent(again, rest, before int64, two bool) int64 {
	least := z.least
	if two {
		least = min(least, max(z.worth, 2*before))
	}
	size := min(max(least, decodedAgain*again), z.most)
	switch {
	case rest < z.worth:
		return 0
	case rest >= size+z.worth && size >= decodedAgain*again:
		return size
	case rest >= size+z.worth || 2*rest < again:
		return 0
	}
	return rest
}

// slicer reads a backlog. Its sessions take turns: while the rows of one slice are
// handled the server makes the next. Each has a temporary copy of the slot, so that the
// slot itself stays behind what the bus has.
type slicer struct {
	r        *logReader
	alive    context.Context
	stop     context.CancelFunc
	sizes    sliceSizes
	sessions []*sliceSession
	size     int64        // of the newest slice
	released pgoutput.LSN // up to which the server was told that the log may go
	handled  chan bool    // of the newest slice: whether it was handled whole
}

type sliceSession struct {
	conn *pgx.Conn
	slot string
	end  chan error // how its newest slice ended; nil: it has none
}

// unread is a slice that the server refused before it sent a row of it.
type unread struct {
	from pgoutput.LSN
	err  error
}

func (u *unread) Error() string { return u.err.Error() }

// far reports whether so much log is to be read that it is read in slices. A standby's
// is streamed: it costs the primary nothing.
func (r *logReader) far(behind pgoutput.LSN) bool {
	return !r.cfg.Stream && r.cfg.LogURL == "" && int64(behind) >= r.sliceSizes().worth
}

func (r *logReader) sliceSizes() sliceSizes {
	if r.cfg.slices != nil {
		return *r.cfg.slices
	}
	return sliceDefaults
}

// catchUp reads what lies behind from in slices and returns where streaming has to
// begin. What the server refuses, for want of a slot or of room, is left to streaming.
func (r *logReader) catchUp(from pgoutput.LSN) (pgoutput.LSN, error) {
	s := &slicer{r: r, sizes: r.sliceSizes(), released: from, handled: make(chan bool, 1)}
	s.handled <- true
	s.alive, s.stop = context.WithCancel(r.alive)
	defer s.close()
	if err := s.open(); err != nil {
		var pe *pgconn.PgError
		if errors.As(err, &pe) {
			r.log.Info("a backlog is streamed, as it cannot be read in slices", "error", err)
			return from, nil
		}
		return 0, err
	}
	upto, err := s.run(from)
	var u *unread
	if errors.As(err, &u) {
		r.log.Info("a backlog is streamed, as it cannot be read in slices", "error", u.err)
		return u.from, nil
	}
	return upto, err
}

// open makes the sessions: two, or one where slots are scarce.
func (s *slicer) open() error {
	for i := range 2 {
		conn, err := connectText(s.alive, s.r.cfg.URL, "onewrite log")
		if err != nil {
			return err
		}
		// Slots of a session that was cut are there for a moment longer.
		one := &sliceSession{conn: conn, slot: fmt.Sprintf("%.50s_p%d", s.r.slot, conn.PgConn().PID())}
		_, err = conn.Exec(s.alive, `SET work_mem = '4MB'`)
		if err == nil {
			_, err = conn.Exec(s.alive, `SELECT pg_copy_logical_replication_slot($1, $2, true)`, s.r.slot, one.slot)
		}
		if err == nil {
			err = s.unmoved(one)
		}
		if err != nil {
			_ = conn.Close(context.WithoutCancel(s.alive))
			if i == 0 {
				return err
			}
			return nil
		}
		s.sessions = append(s.sessions, one)
	}
	return nil
}

// unmoved makes sure that a copy begins where the slot was when it was opened.
func (s *slicer) unmoved(one *sliceSession) error {
	var moved bool
	err := one.conn.QueryRow(s.alive, `SELECT confirmed_flush_lsn > $2::text::pg_lsn FROM pg_replication_slots WHERE slot_name = $1`, one.slot, max(s.released, s.r.judged).String()).Scan(&moved)
	if err == nil && moved {
		return errMoved
	}
	return err
}

func (s *slicer) close() {
	s.stop()
	for _, one := range s.sessions {
		if one.end != nil {
			<-one.end
		}
		_ = one.conn.Close(context.WithoutCancel(s.alive))
	}
}

func (s *slicer) run(from pgoutput.LSN) (pgoutput.LSN, error) {
	for k := 0; ; k++ {
		one := s.sessions[k%len(s.sessions)]
		if err := one.wait(); err != nil {
			return 0, err
		}
		to, err := s.plan(one, from)
		if err != nil {
			err = &unread{from: from, err: err}
		}
		if err != nil || to == 0 {
			for i := range s.sessions { // the older slice first
				if e := s.sessions[(k+1+i)%len(s.sessions)].wait(); e != nil {
					return 0, e
				}
			}
			return from, err
		}
		s.begin(one, from, to)
		from = to
	}
}

// wait returns how the session's slice ended.
func (one *sliceSession) wait() error {
	if one.end == nil {
		return nil
	}
	err := <-one.end
	one.end = nil
	return err
}

// plan decides where the slice that begins at from ends; 0: what is left is streamed.
func (s *slicer) plan(one *sliceSession, from pgoutput.LSN) (to pgoutput.LSN, err error) {
	ctx := s.alive
	if err := s.release(one); err != nil {
		return 0, err
	}
	if s.size > s.sizes.worth && len(s.sessions) > 1 {
		// The server notes one place from which it could begin later, the first that it
		// meets behind the slot's place; of what lies before that place it takes the last.
		// Behind a small slice the first is as good.
		if err := s.advance(one, one.slot, from-1); err != nil {
			return 0, err
		}
	}
	if err := s.advance(one, one.slot, from); err != nil {
		return 0, err
	}
	var again, rest int64
	err = one.conn.QueryRow(ctx, `SELECT pg_wal_lsn_diff($2::text::pg_lsn, restart_lsn)::bigint, pg_wal_lsn_diff(pg_current_wal_flush_lsn(), $2::text::pg_lsn)::bigint FROM pg_replication_slots WHERE slot_name = $1`,
		one.slot, from.String()).Scan(&again, &rest)
	if err != nil {
		return 0, err
	}
	if s.size = s.sizes.extent(again, rest, s.size, len(s.sessions) > 1); s.size == 0 {
		return 0, nil
	}
	s.r.log.Info("a backlog is read in slices", "from", from.String(), "mb", s.size>>20, "again_mb", again>>20, "left_mb", (rest-s.size)>>20)
	return from + pgoutput.LSN(s.size), nil
}

// release lets the server forget log that the bus has.
func (s *slicer) release(one *sliceSession) error {
	s.r.mu.Lock()
	stored := s.r.stored.done
	s.r.mu.Unlock()
	if stored < s.released+pgoutput.LSN(s.sizes.least)/2 {
		return nil
	}
	s.released = stored
	return s.advance(one, s.r.slot, stored)
}

// advance moves a slot to a place, unless it is there already.
func (s *slicer) advance(one *sliceSession, slot string, to pgoutput.LSN) error {
	_, err := one.conn.Exec(s.alive, `SELECT pg_replication_slot_advance(slot_name, $2::text::pg_lsn) FROM pg_replication_slots WHERE slot_name = $1 AND confirmed_flush_lsn < $2::text::pg_lsn`, slot, to.String())
	return err
}

// begin asks for a slice. Its rows are handled when those of the one before are.
func (s *slicer) begin(one *sliceSession, from, to pgoutput.LSN) {
	before, handled := s.handled, make(chan bool, 1)
	s.handled, one.end = handled, make(chan error, 1)
	w := &sliceWriter{r: s.r, before: before}
	sql := fmt.Sprintf(`COPY (SELECT data FROM pg_logical_slot_get_binary_changes(%s, %s, NULL, %s)) TO STDOUT (FORMAT binary)`, quoteText(one.slot), quoteText(to.String()), s.r.options())
	go func() {
		_, err := one.conn.PgConn().CopyTo(s.alive, w, sql)
		if w.failed != nil {
			err = w.failed
		}
		if err == nil && !w.mine() {
			err = errBefore
		}
		var pe *pgconn.PgError
		if errors.As(err, &pe) && !w.begun && w.mine() {
			err = &unread{from: from, err: explainSlot(err)}
		}
		handled <- err == nil
		one.end <- err
	}()
}

// errBefore is the end of a slice after one that failed, which says why.
var errBefore = errors.New("postgres: the slice before was not read")

// sliceWriter handles the rows of a slice as they come, in COPY's binary format.
type sliceWriter struct {
	r      *logReader
	before chan bool
	turn   bool // the slice before was handled
	asked  bool
	begun  bool
	failed error
}

// mine waits for the slice before and reports whether it was handled whole.
func (w *sliceWriter) mine() bool {
	if !w.asked {
		w.asked, w.turn = true, <-w.before
	}
	return w.turn
}

var copySignature = []byte("PGCOPY\n\xff\r\n\x00")

// Write takes one or more whole rows, after the header that comes with the first.
func (w *sliceWriter) Write(p []byte) (int, error) {
	if w.failed == nil {
		w.failed = w.take(p)
	}
	return len(p), w.failed
}

func (w *sliceWriter) take(p []byte) error {
	if !w.mine() {
		return errBefore
	}
	if !w.begun {
		w.begun = true
		const header = 19 // signature, flags, length of an extension
		if len(p) < header || !bytes.HasPrefix(p, copySignature) {
			return errors.New("postgres: a slice of the log begins with something else than COPY's signature")
		}
		p = p[header:]
	}
	for len(p) > 0 {
		if len(p) >= 2 && binary.BigEndian.Uint16(p) == 0xffff { // the end
			if !w.r.flush() {
				return errClosed
			}
			return nil
		}
		if len(p) < 6 || binary.BigEndian.Uint16(p) != 1 || int64(binary.BigEndian.Uint32(p[2:])) > int64(len(p)-6) {
			return errors.New("postgres: a row of a slice of the log is cut")
		}
		n := 6 + int(binary.BigEndian.Uint32(p[2:]))
		if err := w.r.decode(p[6:n]); err != nil {
			return err
		}
		if (len(w.r.run) >= 256 || w.r.size >= 1<<20) && !w.r.flush() {
			return errClosed
		}
		p = p[n:]
	}
	return nil
}
