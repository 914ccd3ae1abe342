package postgres

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/internal/pgoutput"
	"github.com/onewrite/onewrite/internal/sabotage"
)

// logState is what the server says of the log and of our slot.
type logState struct {
	name     string // of our slot
	version  int
	line     uint32
	flushed  pgoutput.LSN
	pub      uint32 // the publication's oid
	slot     *slotState
	recorded *logRecord
}

type slotState struct {
	name      string
	pid       uint32 // that reads it, 0: nobody
	confirmed pgoutput.LSN
	lost      string // why it cannot be read any more
	foreign   string // why it is not ours
	retained  int64
}

// lookAtLog reads it; host is the session where the slot is.
func lookAtLog(ctx context.Context, conn, host *pgx.Conn, source, slot string) (s logState, err error) {
	s.name = slot
	var flushed string
	err = conn.QueryRow(ctx, `SELECT current_setting('server_version_num')::int, `+timeline+`, coalesce((SELECT oid FROM pg_publication WHERE pubname = $1), 0)`, publicationOf(source)).
		Scan(&s.version, &s.line, &s.pub)
	if err == nil {
		err = host.QueryRow(ctx, `SELECT (`+endOfLog+`)::text`).Scan(&flushed)
	}
	if err != nil {
		return s, explain(err)
	}
	if s.flushed, err = pgoutput.ParseLSN(flushed); err != nil {
		return s, err
	}
	if s.recorded, err = recordOf(ctx, conn, source); err != nil {
		return s, err
	}
	s.slot, err = lookAtSlot(ctx, host, slot, s.version)
	return s, err
}

// lookAtSlot returns what the server says of a slot, nil if there is none.
func lookAtSlot(ctx context.Context, conn *pgx.Conn, slot string, version int) (*slotState, error) {
	reason := "NULL::text"
	switch {
	case version >= 170000:
		reason = "invalidation_reason"
	case version >= 160000:
		reason = "CASE WHEN conflicting THEN 'conflict with recovery' END"
	}
	s := slotState{name: slot}
	var confirmed, plugin, database, status, why *string
	var pid *uint32
	err := conn.QueryRow(ctx, `SELECT active_pid, confirmed_flush_lsn::text, plugin::text, wal_status, `+reason+`, coalesce(pg_wal_lsn_diff(`+endOfLog+`, restart_lsn), 0)::bigint,
		CASE WHEN database = current_database() THEN NULL ELSE database::text END FROM pg_replication_slots WHERE slot_name = $1`, slot).
		Scan(&pid, &confirmed, &plugin, &status, &why, &s.retained, &database)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, nil
	}
	if err != nil {
		return nil, explain(err)
	}
	if pid != nil {
		s.pid = *pid
	}
	switch {
	case plugin == nil || *plugin != "pgoutput" || database != nil:
		s.foreign = "it is another's"
	case status != nil && *status == "lost" || why != nil || confirmed == nil:
		s.lost = "the server has removed log that it needed (max_slot_wal_keep_size)"
		if why != nil {
			s.lost = "the server invalidated it: " + *why
		}
	default:
		if s.confirmed, err = pgoutput.ParseLSN(*confirmed); err != nil {
			return nil, err
		}
	}
	return &s, nil
}

// missed says that changes were lost to the reader.
type missed struct {
	reason   string
	from, to string
	agreed   bool // a person knows, and ran what the cure of another gap said
	told     bool // the slot was made anew for it before, but the bus has nothing of it yet
}

// asked is what judgeLog is asked: the log as it is, and what the bus has of it.
type asked struct {
	logState
	stored  *logPlace // nil: nothing
	before  bool      // snapshots were finished: something was on a bus
	broken  bool      // the outbox says that this is another history
	strayed bool      // the log does not have the transaction that stored is inside of
	system  uint64
	busID   string
	ended   func(line uint32) (pgoutput.LSN, error) // where a timeline did
	history func(p *logPlace) (bool, error)         // whether the transaction that ended there still does
}

// judgeLog decides where reading begins. fresh: the slot is made anew there, and every
// table gets a new snapshot; with it comes why, unless it is the first time.
//
// That nothing is missing takes a proof: the slot is the one that the bus has read
// from, it has not moved beyond what the bus has, and the server's history is the one
// that was read.
func judgeLog(s asked) (begin logPlace, fresh bool, why *missed, err error) {
	rec, p := s.recorded, s.stored
	since := func(format string, args ...any) (logPlace, bool, *missed, error) {
		m := s.missed(fmt.Sprintf(format, args...))
		m.agreed = rec != nil && rec.pub == 0
		return logPlace{}, true, m, nil
	}
	if s.slot != nil && s.slot.foreign != "" {
		return begin, false, nil, fmt.Errorf("postgres: a slot of the name that this source needs is there, and %s; drop it: SELECT pg_drop_replication_slot('%s')", s.slot.foreign, s.slot.name)
	}
	if rec == nil && p == nil && !s.before {
		return logPlace{}, true, nil, nil
	}
	if other := rec.other(s.name, s.system, s.pub); other != "" {
		return since("%s", other)
	}
	switch {
	case s.slot == nil && strings.HasPrefix(rec.gap, droppedForRoom):
		return since("%s", rec.gap)
	case s.slot == nil:
		return since("the slot %s is gone: it was dropped, or this server was promoted without it", rec.slot)
	case s.slot.lost != "":
		return since("the slot %s is of no more use: %s", rec.slot, s.slot.lost)
	case s.broken:
		return since("the database has another history than the one that was read")
	}
	fits := p != nil && p.slot == rec.began
	allowed := rec.began
	if fits {
		allowed = max(allowed, p.done)
	}
	if allowed >= rec.read { // the bus has what it had when idle was written
		allowed = max(allowed, rec.idle)
	}
	switch {
	case !fits && (rec.bus != s.busID || s.slot.confirmed > allowed):
		return since("the bus does not have what was read by the slot %s: its folder was lost, or it is another bus", rec.slot)
	case s.slot.confirmed > allowed && sabotage.Bug != "max-place":
		return since("the slot %s was moved by another than onewrite, or dropped and made again, or an older copy of the bus was put back: it begins at %s", rec.slot, s.slot.confirmed)
	case !fits:
		if rec.gap != "" {
			why = s.missed(rec.gap)
			why.told, why.to = true, rec.began.String()
		}
		return logPlace{slot: rec.began, line: s.line, done: s.slot.confirmed}, false, why, nil
	}
	lost, err := s.forked(p)
	if err != nil {
		return begin, false, nil, err
	}
	if lost != "" {
		return since("%s", lost)
	}
	begin = *p
	begin.line = s.line
	return begin, false, nil, nil
}

// missed is a gap from what the bus has up to now.
func (s *asked) missed(reason string) *missed {
	from := pgoutput.LSN(0)
	if s.stored != nil {
		from = s.stored.done
	} else if s.recorded != nil {
		from = s.recorded.began
	}
	return &missed{reason: reason, from: from.String(), to: s.flushed.String()}
}

// openLog begins to read the log. ring has the lock that makes this the only reader;
// broken says that its history is another one. A gap is told at once, nil where the ring
// has what is missing: the slot that is made after it waits for all transactions that are
// open.
func openLog(ctx context.Context, cfg Config, ring *Source, stored *logPlace, broken bool, tell func(*onewrite.Gap)) (*logReader, error) {
	conn, err := connectText(ctx, cfg.URL, "onewrite log")
	if err != nil {
		return nil, err
	}
	r := &logReader{slotting: &ring.slotting, cfg: cfg, log: ring.log, slot: slotOf(cfg.Name, ring.id.database), queue: newLogQueue(), changed: make(chan struct{}, 1),
		env: newEnvelope(cfg, ring.id.system), made: newEnvelope(cfg, ring.id.system), cat: catalog{source: cfg.Name, rules: cfg.Masks, hashes: cfg.MaskKey != "", conn: conn, types: map[uint32]valueType{}}, tables: map[uint32]*table{}, host: conn, tell: tell}
	if cfg.LogURL != "" {
		r.slot += standbySlot
		// SQL does not tell the timeline of a standby.
		if r.host, err = connectSender(ctx, cfg.LogURL, "onewrite log"); err == nil {
			err = r.follow(ctx, ring.id.system)
		}
	}
	if err == nil {
		err = r.open(ctx, ring.id.system, stored, broken, tell)
	}
	if err != nil {
		if r.rep != nil {
			r.rep.close(false)
		}
		r.closeSessions()
		return nil, withNames(err, conn)
	}
	r.alive, r.stop = context.WithCancel(context.WithoutCancel(ctx))
	if cfg.FlushWithin > 0 {
		r.stirred = make(chan struct{}, 1)
		r.work.Go(r.flushes)
	}
	for _, f := range []func(){r.receive, r.tend, r.watch, r.fill.run} {
		r.work.Go(f)
	}
	return r, nil
}

func (r *logReader) open(ctx context.Context, system uint64, stored *logPlace, broken bool, tell func(*onewrite.Gap)) error {
	conn := r.cat.conn
	list, state, err := r.look(ctx, stored)
	if err != nil {
		return err
	}
	if state.slot != nil && state.slot.pid != 0 { // of a reader that is gone: this one has the lock
		if err := r.evict(ctx, state.slot.pid); err != nil {
			return err
		}
	}
	begin, fresh, why, err := judgeLog(asked{logState: state, stored: stored, system: system, busID: r.cfg.BusID, broken: broken && stored != nil,
		strayed: r.cfg.Known.strays(stored),
		before:  slices.ContainsFunc(list, func(c captured) bool { return c.finished > 0 }),
		ended:   func(line uint32) (pgoutput.LSN, error) { return timelineEnd(ctx, r.cfg.logURL(), line, state.line) },
		history: func(p *logPlace) (bool, error) { return r.endsThere(ctx, p) },
	})
	if err != nil {
		return err
	}
	if why != nil {
		if err := r.announce(why, list, tell); err != nil {
			return err
		}
	}
	if fresh {
		if begin, err = r.renew(ctx, state, system, why); err != nil {
			return err
		}
		if list, err = r.tablesNow(ctx); err != nil {
			return err
		}
	} else {
		r.judged = state.slot.confirmed // it was judged, so it is there
	}
	rec, err := lookAtLog(ctx, conn, r.host, r.cfg.Name, r.slot)
	if err != nil || rec.recorded == nil {
		return errors.Join(errors.New("postgres: onewrite.log lost its row"), err)
	}
	r.noted, r.opened, r.version = rec.recorded.idle, *rec.recorded, rec.version
	r.startAt(begin, list)
	if stored != nil && stored.slot == begin.slot {
		r.stored.done = begin.done
	}
	if err := r.beginFill(ctx, list, fresh && why == nil); err != nil {
		return err
	}
	if r.rep, err = connectReplication(ctx, r.cfg.logURL(), "onewrite log"); err != nil {
		return err
	}
	if len(r.finish) > 0 {
		r.wake()
	}
	if r.cfg.Pushed {
		if err := r.lookAtOutbox(ctx); err != nil {
			return err
		}
	}
	r.rep.confirm(begin.done)
	if r.late = r.far(rec.flushed - begin.done); r.late {
		return nil
	}
	return r.stream(ctx, begin.done)
}

// beginFill makes what reads the rows that are there. first: neither the bus nor the record
// of the slot knows of a reader before this one.
func (r *logReader) beginFill(ctx context.Context, list []captured, first bool) error {
	r.fill = newBackfill(r, r.cfg.URL, list)
	if first {
		was, err := r.cat.wasCaptured(ctx)
		if err != nil {
			return err
		}
		r.fill.first = !was // else one told something
	}
	now, err := takeSnapshot(ctx, r.cat.conn)
	if err != nil {
		return err
	}
	r.fill.prune(0, now)
	return nil
}

// announce tells what is missing. A gap that a person is to decide on is an error.
func (r *logReader) announce(why *missed, list []captured, tell func(*onewrite.Gap)) error {
	if len(r.cfg.Tables) == 0 && !r.cfg.Messages { // the outbox has it all in its ring
		r.log.Warn("the slot is made anew; the ring of the outbox has what the log lost", "reason", why.reason)
		tell(nil)
		return nil
	}
	gap := r.gap(why, list)
	if gap.Cure != "" {
		return gap
	}
	tell(gap)
	return nil
}

// gap says what is missing, and what becomes of it. It has a cure if a person is to
// decide.
func (r *logReader) gap(why *missed, list []captured) *onewrite.Gap {
	g := &onewrite.Gap{Reason: "row changes: " + why.reason, From: why.from, To: why.to}
	if len(r.cfg.Tables) == 0 {
		g.Reason = "events in the log: " + why.reason
	}
	held := r.cfg.HoldGap && !why.agreed && !why.told
	if len(r.cfg.Tables) > 0 && !held {
		g.Reason += "; the rows of every captured table are read again, but what was deleted in between is not told"
		if slices.ContainsFunc(list, func(c captured) bool { return c.filter != "" }) {
			g.Reason += "; of a table that has a condition in snapshot_where, the rows that meet it are read"
		}
	}
	if r.cfg.Messages {
		g.Reason += "; events that were written into the log in between cannot be read again"
	}
	if held {
		g.Cure = "rows have to be read again, and events of the log, if any, published again; set on_gap: snapshot for the source and restart onewrite"
	}
	return g
}

// look reads what the database has of the capturing. An error that is a Gap: it was
// taken apart.
func (r *logReader) look(ctx context.Context, stored *logPlace) (list []captured, s logState, err error) {
	conn := r.cat.conn
	var there bool
	err = conn.QueryRow(ctx, `SELECT to_regclass('onewrite.captured') IS NOT NULL, current_database()`).Scan(&there, &r.database)
	if err != nil {
		return nil, s, explain(err)
	}
	switch {
	case stored == nil && !there:
		return nil, s, errors.New("postgres: the log is to be read, but nothing is published yet; run onewrite migrate")
	case !there:
		return nil, s, &onewrite.Gap{Reason: "row changes: the table onewrite.captured is gone, and with it what was captured", From: stored.done.String(), To: "now", Cure: cureRegistry}
	}
	if list, err = r.tablesNow(ctx); err != nil {
		return nil, s, err
	}
	s, err = lookAtLog(ctx, conn, r.host, r.cfg.Name, r.slot)
	return list, s, err
}

// evict ends the session that reads the slot.
func (r *logReader) evict(ctx context.Context, pid uint32) error {
	if _, err := r.host.Exec(ctx, `SELECT pg_terminate_backend($1)`, pid); err != nil {
		return explain(err)
	}
	for deadline := time.Now().Add(5 * time.Second); time.Now().Before(deadline); {
		var active bool
		err := r.host.QueryRow(ctx, `SELECT EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = $1 AND active)`, r.slot).Scan(&active)
		if err != nil || !active {
			return explain(err)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(20 * time.Millisecond):
		}
	}
	return nil // whoever needs the slot says that it is taken
}

// startAt sets where reading begins, and takes over what the registry and the places
// say of the snapshots.
func (r *logReader) startAt(begin logPlace, list []captured) {
	for i := range list {
		c := &list[i]
		if !c.pending() { // the places need not say so any more
			begin.snaps = begin.snaps.without(c.rel)
		} else if begin.snaps.of(c.rel, c.wanted).done {
			c.finished = c.wanted
			r.finish = append(r.finish, finished{rel: c.rel, wanted: c.wanted})
		}
	}
	r.begin, r.at, r.snaps = begin, begin, begin.snaps
	r.inside = begin.tx
	r.at.tx, r.at.ends, r.at.index, r.at.sub = 0, 0, 0, 0
}

// renew makes the slot anew. Everything before it is in the tables only.
func (r *logReader) renew(ctx context.Context, s logState, system uint64, why *missed) (logPlace, error) {
	conn := r.cat.conn
	if s.slot != nil {
		if _, err := r.host.Exec(ctx, `SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = $1`, r.slot); err != nil {
			return logPlace{}, explainSlot(err)
		}
	}
	if rec := s.recorded; rec != nil && rec.slot != "" && rec.slot != r.slot {
		if err := r.dropOther(ctx, rec.slot); err != nil {
			return logPlace{}, err
		}
	}
	text, err := r.createSlot(ctx, system, s.version)
	if err != nil {
		return logPlace{}, err
	}
	began, err := pgoutput.ParseLSN(text)
	if err != nil {
		return logPlace{}, err
	}
	tx, err := conn.Begin(ctx)
	if err != nil {
		return logPlace{}, explain(err)
	}
	defer func() { _ = tx.Rollback(context.WithoutCancel(ctx)) }()
	reason := ""
	if why != nil {
		reason = why.reason
	}
	_, err = tx.Exec(ctx, `INSERT INTO onewrite.log (source, slot, began, idle, read, publication, gap, system, bus_id) VALUES ($1, $2, $3::text::pg_lsn, $3::text::pg_lsn, $3::text::pg_lsn, $4, $5, $6, $7)
		ON CONFLICT (source) DO UPDATE SET slot = excluded.slot, began = excluded.began, idle = excluded.idle, read = excluded.read, publication = excluded.publication, gap = excluded.gap, system = excluded.system, bus_id = excluded.bus_id`,
		r.cfg.Name, r.slot, text, s.pub, reason, int64(system), r.cfg.BusID)
	if err == nil && why != nil {
		_, err = tx.Exec(ctx, `UPDATE onewrite.captured SET wanted = greatest(wanted, finished, `+snapshotNumber+`) + 1 WHERE source = $1`, r.cfg.Name)
	}
	if err == nil {
		err = tx.Commit(ctx)
	}
	return logPlace{slot: began, line: s.line, done: began}, explain(err)
}
