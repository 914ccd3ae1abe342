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

// logRecord is the row of onewrite.log.
type logRecord struct {
	slot              string
	began, idle, read pgoutput.LSN
	pub               uint32
	gap               string
	system            uint64
	bus               string
}

func lookAtLog(ctx context.Context, conn *pgx.Conn, source, slot string) (s logState, err error) {
	var flushed string
	err = conn.QueryRow(ctx, `SELECT current_setting('server_version_num')::int, ('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::bigint, pg_current_wal_flush_lsn()::text,
		coalesce((SELECT oid FROM pg_publication WHERE pubname = $1), 0)`, publicationOf(source)).
		Scan(&s.version, &s.line, &flushed, &s.pub)
	if err != nil {
		return s, explain(err)
	}
	if s.flushed, err = pgoutput.ParseLSN(flushed); err != nil {
		return s, err
	}
	var r logRecord
	var began, idle, read string
	var system int64
	err = conn.QueryRow(ctx, `SELECT slot, began::text, idle::text, read::text, publication, gap, system, bus_id FROM onewrite.log WHERE source = $1`, source).Scan(&r.slot, &began, &idle, &read, &r.pub, &r.gap, &system, &r.bus)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
	case isCode(err, "42P01"):
		return s, &onewrite.Gap{Reason: "row changes: the table onewrite.log is gone, and with it the record of the slot", From: "unknown", To: "now", Cure: cureMigrate}
	case err != nil:
		return s, explain(err)
	default:
		r.system = uint64(system)
		if r.began, err = pgoutput.ParseLSN(began); err == nil {
			r.idle, err = pgoutput.ParseLSN(idle)
		}
		if err == nil {
			r.read, err = pgoutput.ParseLSN(read)
		}
		if err != nil {
			return s, err
		}
		s.recorded = &r
	}
	s.slot, err = lookAtSlot(ctx, conn, slot, s.version)
	return s, err
}

// lookAtSlot returns what the server says of a slot, nil if there is none.
func lookAtSlot(ctx context.Context, conn *pgx.Conn, slot string, version int) (*slotState, error) {
	reason := "NULL::text"
	if version >= 170000 {
		reason = "invalidation_reason"
	}
	s := slotState{name: slot}
	var confirmed, plugin, database, status, why *string
	var pid *uint32
	err := conn.QueryRow(ctx, `SELECT active_pid, confirmed_flush_lsn::text, plugin::text, wal_status, `+reason+`, coalesce(pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn), 0)::bigint,
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
	system  uint64
	busID   string
	ended   func(line uint32) (pgoutput.LSN, error) // where a timeline did
	history func(at pgoutput.LSN) (bool, error)     // whether a transaction ended there
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
	switch {
	case rec == nil || rec.slot == "":
		return since("the record of the slot is gone from onewrite.log: the outbox was made anew, or restored")
	case rec.system != s.system:
		return since("the database is another cluster than before (system identifier %d, was %d): cloned, or dumped and loaded", s.system, rec.system)
	case rec.pub != s.pub: // the log of the time without it cannot be decoded
		return since("the publication was dropped and made again")
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

// forked says how the server's history differs from the one that led to a place; ""
// is not at all. A slot that was confirmed up to the place is a proof; it is behind
// after a crash, of the server or of the reader, but also in a backup that was
// restored, where the log may be beyond the place again.
func (s *asked) forked(p *logPlace) (string, error) {
	if p.done > s.flushed {
		return fmt.Sprintf("the database went back in time (a backup was restored, or a failover lost commits): its log ends at %s", s.flushed), nil
	}
	if p.line != s.line {
		at, err := s.ended(p.line)
		if err == nil && p.done > at {
			return fmt.Sprintf("a failover lost commits that were read already: timeline %d ended at %s", p.line, at), nil
		}
		return "", err
	}
	if s.slot.confirmed >= p.done {
		return "", nil
	}
	ok, err := s.history(p.done)
	if err == nil && !ok {
		return fmt.Sprintf("the database went back in time (a backup was restored): no transaction ends at %s, where one that was read did", p.done), nil
	}
	return "", err
}

// timelineEnd asks where a timeline ended on the way to the present one.
func timelineEnd(ctx context.Context, conn *pgx.Conn, url string, line uint32, now uint32) (pgoutput.LSN, error) {
	rep, _, err := connectWith(ctx, url, func(c *pgx.ConnConfig) {
		c.RuntimeParams["replication"] = "database"
		c.DefaultQueryExecMode = pgx.QueryExecModeSimpleProtocol
	})
	if err != nil {
		return 0, err
	}
	defer func() { _ = rep.Close(context.WithoutCancel(ctx)) }()
	var file, content string
	if err := rep.QueryRow(ctx, fmt.Sprintf("TIMELINE_HISTORY %d", now)).Scan(&file, &content); err != nil {
		return 0, explain(err)
	}
	for l := range strings.Lines(content) {
		var n uint32
		var at string
		if _, err := fmt.Sscan(l, &n, &at); err == nil && n == line {
			return pgoutput.ParseLSN(at)
		}
	}
	return 0, nil // no ancestor: nothing of ours is in it
}

// endsThere asks whether a transaction of the publication ended at a place behind the
// one that the slot is confirmed up to.
func (r *logReader) endsThere(ctx context.Context, at pgoutput.LSN) (there bool, err error) {
	err = r.cat.conn.QueryRow(ctx, `SELECT EXISTS (SELECT FROM pg_logical_slot_peek_binary_changes($1, $2::text::pg_lsn, NULL, 'proto_version', '1', 'publication_names', $3, 'messages', 'true')
		WHERE lsn = $2::text::pg_lsn AND get_byte(data, 0) = 67)`, // 'C', a commit
		r.slot, at.String(), pgx.Identifier{publicationOf(r.cfg.Name)}.Sanitize()).Scan(&there)
	return there, explainSlot(err)
}

// openLog begins to read the log. ring has the lock that makes this the only reader;
// broken says that its history is another one. A gap is told at once: the slot that is
// made after it waits for all transactions that are open.
func openLog(ctx context.Context, cfg Config, ring *Source, stored *logPlace, broken bool, tell func(*onewrite.Gap)) (*logReader, error) {
	conn, err := connectText(ctx, cfg.URL, "onewrite log")
	if err != nil {
		return nil, err
	}
	r := &logReader{cfg: cfg, log: ring.log, slot: slotOf(cfg.Name, ring.id.database), queue: newLogQueue(), changed: make(chan struct{}, 1),
		env: newEnvelope(cfg, ring.id.system), cat: catalog{rules: cfg.Masks, conn: conn, types: map[uint32]valueType{}}, tables: map[uint32]*table{}}
	if err := r.open(ctx, ring.id.system, stored, broken, tell); err != nil {
		if r.rep != nil {
			r.rep.close(false)
		}
		_ = conn.Close(context.WithoutCancel(ctx))
		return nil, err
	}
	r.alive, r.stop = context.WithCancel(context.WithoutCancel(ctx))
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
		before:  slices.ContainsFunc(list, func(c captured) bool { return c.finished > 0 }),
		ended:   func(line uint32) (pgoutput.LSN, error) { return timelineEnd(ctx, conn, r.cfg.URL, line, state.line) },
		history: func(at pgoutput.LSN) (bool, error) { return r.endsThere(ctx, at) },
	})
	if err != nil {
		return err
	}
	if why != nil {
		gap := &onewrite.Gap{Reason: "row changes: " + why.reason, From: why.from, To: why.to}
		if r.cfg.HoldGap && !why.agreed && !why.told {
			gap.Cure = "rows have to be read again; set on_gap: snapshot for the source and restart onewrite"
			return gap
		}
		gap.Reason += "; the rows of every captured table are read again, but what was deleted in between is not told"
		tell(gap)
	}
	if fresh {
		if begin, err = r.renew(ctx, state, system, why); err != nil {
			return err
		}
		if list, err = registry(ctx, conn, r.cfg.Name); err != nil {
			return err
		}
	}
	rec, err := lookAtLog(ctx, conn, r.cfg.Name, r.slot)
	if err != nil || rec.recorded == nil {
		return errors.Join(errors.New("postgres: onewrite.log lost its row"), err)
	}
	r.noted, r.opened = rec.recorded.idle, *rec.recorded
	r.startAt(begin, list)
	if stored != nil && stored.slot == begin.slot {
		r.stored.done = begin.done
	}
	r.fill = newBackfill(r, r.cfg.URL, list)
	if r.rep, err = connectReplication(ctx, r.cfg.URL, "onewrite log"); err != nil {
		return err
	}
	if len(r.finish) > 0 {
		r.wake()
	}
	return r.rep.start(ctx, r.slot, publicationOf(r.cfg.Name), begin.done)
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
	if there {
		if list, err = registry(ctx, conn, r.cfg.Name); err != nil {
			return nil, s, err
		}
	}
	switch {
	case len(list) == 0 && stored == nil && !there:
		return nil, s, errors.New("postgres: tables: is set, but nothing captures them yet; run onewrite migrate")
	case !there:
		return nil, s, &onewrite.Gap{Reason: "row changes: the table onewrite.captured is gone, and with it what was captured", From: stored.done.String(), To: "now", Cure: cureMigrate}
	}
	if err := verifyCapture(ctx, conn, r.cfg.Name, list); err != nil {
		return nil, s, err
	}
	s, err = lookAtLog(ctx, conn, r.cfg.Name, r.slot)
	return list, s, err
}

// evict ends the session that reads the slot.
func (r *logReader) evict(ctx context.Context, pid uint32) error {
	if _, err := r.cat.conn.Exec(ctx, `SELECT pg_terminate_backend($1)`, pid); err != nil {
		return explain(err)
	}
	for deadline := time.Now().Add(5 * time.Second); time.Now().Before(deadline); {
		var active bool
		err := r.cat.conn.QueryRow(ctx, `SELECT EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = $1 AND active)`, r.slot).Scan(&active)
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
	r.at.tx, r.at.index, r.at.sub = 0, 0, 0
}

// renew makes the slot anew. Everything before it is in the tables only.
func (r *logReader) renew(ctx context.Context, s logState, system uint64, why *missed) (logPlace, error) {
	conn := r.cat.conn
	if s.slot != nil {
		if _, err := conn.Exec(ctx, `SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = $1`, r.slot); err != nil {
			return logPlace{}, explainSlot(err)
		}
	}
	options := "false, false"
	if s.version >= 170000 { // a standby may keep a copy of it
		options = "false, false, true"
	}
	var text string
	err := conn.QueryRow(ctx, fmt.Sprintf(`SELECT lsn::text FROM pg_create_logical_replication_slot($1, 'pgoutput', %s)`, options), r.slot).Scan(&text)
	if err != nil {
		return logPlace{}, explainSlot(err)
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
