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
	pid       uint32 // that reads it, 0: nobody
	confirmed pgoutput.LSN
	lost      string // why it cannot be read any more
	foreign   string // why it is not ours
	retained  int64
}

// logRecord is the row of onewrite.log.
type logRecord struct {
	slot        string
	began, idle pgoutput.LSN
	pub         uint32
	system      uint64
	bus         string
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
	var began, idle string
	var system int64
	err = conn.QueryRow(ctx, `SELECT slot, began::text, idle::text, publication, system, bus_id FROM onewrite.log WHERE source = $1`, source).Scan(&r.slot, &began, &idle, &r.pub, &system, &r.bus)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
	case err != nil:
		return s, explain(err)
	default:
		r.system = uint64(system)
		if r.began, err = pgoutput.ParseLSN(began); err == nil {
			r.idle, err = pgoutput.ParseLSN(idle)
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
	var s slotState
	var confirmed, plugin, database, status, why *string
	var pid *uint32
	err := conn.QueryRow(ctx, `SELECT active_pid, confirmed_flush_lsn::text, plugin::text, database::text, wal_status, `+reason+`, coalesce(pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn), 0)::bigint,
		CASE WHEN database = current_database() THEN NULL ELSE database::text END FROM pg_replication_slots WHERE slot_name = $1`, slot).
		Scan(&pid, &confirmed, &plugin, new(*string), &status, &why, &s.retained, &database)
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
}

// judgeLog decides where reading begins. fresh: the slot is made anew there, and every
// table gets a new snapshot; with it comes why, unless it is the first time.
func judgeLog(s logState, p *logPlace, system uint64, busID string, switched func(line uint32) (pgoutput.LSN, error)) (begin logPlace, fresh bool, why *missed, err error) {
	rec := s.recorded
	since := func(format string, args ...any) (logPlace, bool, *missed, error) {
		from := pgoutput.LSN(0)
		if p != nil {
			from = p.done
		} else if rec != nil {
			from = rec.began
		}
		return logPlace{}, true, &missed{reason: fmt.Sprintf(format, args...), from: from.String(), to: s.flushed.String()}, nil
	}
	if s.slot != nil && s.slot.foreign != "" {
		return begin, false, nil, fmt.Errorf("postgres: a slot of the name that this source needs is there, and %s; drop it: SELECT pg_drop_replication_slot('%s')", s.slot.foreign, "NAME")
	}
	if rec == nil && p == nil {
		return logPlace{}, true, nil, nil
	}
	switch {
	case rec == nil:
		return since("the record of the slot is gone from onewrite.log: the outbox was made anew, or restored")
	case rec.system != system:
		return since("the database is another cluster than before (system identifier %d, was %d): cloned, or dumped and loaded", system, rec.system)
	case rec.pub != s.pub: // the log of the time without it cannot be decoded
		return since("the publication was dropped and made again")
	case s.slot == nil:
		return since("the slot %s is gone: it was dropped, or this server was promoted without it", rec.slot)
	case s.slot.lost != "":
		return since("the slot %s is of no more use: %s", rec.slot, s.slot.lost)
	}
	fits := p != nil && p.slot == rec.began
	allowed := max(rec.began, rec.idle)
	if fits {
		allowed = max(allowed, p.done)
	}
	switch {
	case !fits && (rec.bus != busID || s.slot.confirmed > allowed):
		return since("the bus does not have what was read by the slot %s: its folder was lost, or it is another bus", rec.slot)
	case s.slot.confirmed > allowed:
		return since("the slot %s was moved by another than onewrite, or dropped and made again: it begins at %s", rec.slot, s.slot.confirmed)
	case !fits:
		return logPlace{slot: rec.began, line: s.line, done: s.slot.confirmed}, false, nil, nil
	case p.done > s.flushed:
		return since("the database went back in time (a backup was restored, or a failover lost commits): its log ends at %s", s.flushed)
	case p.line != s.line:
		at, err := switched(p.line)
		if err != nil {
			return begin, false, nil, err
		}
		if p.done > at {
			return since("a failover lost commits that were read already: timeline %d ended at %s", p.line, at)
		}
	}
	begin = *p
	begin.line = s.line
	return begin, false, nil, nil
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

// openLog begins to read the log. ring has the lock that makes this the only reader;
// broken says that its history is another one.
func openLog(ctx context.Context, cfg Config, ring *Source, stored *logPlace, broken bool) (*logReader, *onewrite.Gap, error) {
	conn, err := connectText(ctx, cfg.URL, "onewrite log")
	if err != nil {
		return nil, nil, err
	}
	r := &logReader{cfg: cfg, log: ring.log, slot: slotOf(cfg.Name, ring.id.database), queue: newLogQueue(), changed: make(chan struct{}, 1),
		env: newEnvelope(cfg.Name, ring.id.system, cfg.Toast), cat: catalog{conn: conn, types: map[uint32]valueType{}}, tables: map[uint32]*table{}}
	gap, err := r.open(ctx, ring.id.system, stored, broken)
	if err != nil {
		if r.rep != nil {
			r.rep.close(false)
		}
		_ = conn.Close(context.WithoutCancel(ctx))
		return nil, nil, err
	}
	r.alive, r.stop = context.WithCancel(context.WithoutCancel(ctx))
	for _, f := range []func(){r.receive, r.tend, r.watch, r.fill.run} {
		r.work.Go(f)
	}
	return r, gap, nil
}

func (r *logReader) open(ctx context.Context, system uint64, stored *logPlace, broken bool) (*onewrite.Gap, error) {
	conn := r.cat.conn
	var there bool
	err := conn.QueryRow(ctx, `SELECT to_regclass('onewrite.captured') IS NOT NULL, current_database()`).Scan(&there, &r.database)
	if err != nil {
		return nil, explain(err)
	}
	if !there {
		return nil, errors.New("postgres: tables: is set, but nothing captures them yet; run onewrite migrate")
	}
	list, err := registry(ctx, conn, r.cfg.Name)
	if err != nil {
		return nil, err
	}
	if err := verifyCapture(ctx, conn, r.cfg.Name, list); err != nil {
		return nil, err
	}
	state, err := lookAtLog(ctx, conn, r.cfg.Name, r.slot)
	if err != nil {
		return nil, err
	}
	begin, fresh, why, err := judgeLog(state, stored, system, r.cfg.BusID, func(line uint32) (pgoutput.LSN, error) {
		return timelineEnd(ctx, conn, r.cfg.URL, line, state.line)
	})
	if err != nil {
		return nil, err
	}
	if broken && !fresh && stored != nil {
		fresh, why = true, &missed{reason: "the database has another history than the one that was read", from: stored.done.String(), to: state.flushed.String()}
	}
	var gap *onewrite.Gap
	if why != nil {
		gap = &onewrite.Gap{Reason: "row changes: " + why.reason, From: why.from, To: why.to}
		if r.cfg.HoldGap {
			gap.Cure = "rows have to be read again; set on_gap: snapshot for the source and restart onewrite"
			return nil, gap
		}
		gap.Reason += "; the rows of every captured table are read again, but what was deleted in between is not told"
	}
	if fresh {
		if begin, err = r.renew(ctx, state, system, why != nil); err != nil {
			return nil, err
		}
		if list, err = registry(ctx, conn, r.cfg.Name); err != nil {
			return nil, err
		}
	}
	rec, err := lookAtLog(ctx, conn, r.cfg.Name, r.slot)
	if err != nil || rec.recorded == nil {
		return nil, errors.Join(errors.New("postgres: onewrite.log lost its row"), err)
	}
	r.noted = rec.recorded.idle
	r.startAt(begin, list)
	r.fill = newBackfill(r, r.cfg.URL, list)
	if r.rep, err = connectReplication(ctx, r.cfg.URL, "onewrite log"); err != nil {
		return nil, err
	}
	if len(r.finish) > 0 {
		r.wake()
	}
	return gap, r.rep.start(ctx, r.slot, publicationOf(r.cfg.Name), begin.done)
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
func (r *logReader) renew(ctx context.Context, s logState, system uint64, again bool) (logPlace, error) {
	conn := r.cat.conn
	if s.slot != nil {
		if s.slot.pid != 0 { // of a reader of ours that is gone: this one has the lock
			if _, err := conn.Exec(ctx, `SELECT pg_terminate_backend($1)`, s.slot.pid); err != nil {
				return logPlace{}, explain(err)
			}
		}
		if err := r.dropSlot(ctx); err != nil {
			return logPlace{}, err
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
	_, err = tx.Exec(ctx, `INSERT INTO onewrite.log (source, slot, began, idle, publication, system, bus_id) VALUES ($1, $2, $3::text::pg_lsn, $3::text::pg_lsn, $4, $5, $6)
		ON CONFLICT (source) DO UPDATE SET slot = excluded.slot, began = excluded.began, idle = excluded.idle, publication = excluded.publication, system = excluded.system, bus_id = excluded.bus_id`,
		r.cfg.Name, r.slot, text, s.pub, int64(system), r.cfg.BusID)
	if err == nil && again {
		_, err = tx.Exec(ctx, `UPDATE onewrite.captured SET wanted = greatest(wanted, finished) + 1 WHERE source = $1`, r.cfg.Name)
	}
	if err == nil {
		err = tx.Commit(ctx)
	}
	return logPlace{slot: began, line: s.line, done: began}, explain(err)
}

func (r *logReader) dropSlot(ctx context.Context) error {
	for deadline := time.Now().Add(5 * time.Second); ; {
		_, err := r.cat.conn.Exec(ctx, `SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = $1`, r.slot)
		if !isCode(err, "55006") || time.Now().After(deadline) {
			return explainSlot(err)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// verifyCapture compares the publication with the registry.
func verifyCapture(ctx context.Context, conn *pgx.Conn, source string, list []captured) error {
	if len(list) == 0 {
		return nil
	}
	gap := func(format string, args ...any) error {
		return &onewrite.Gap{Reason: "row changes: " + fmt.Sprintf(format, args...), From: "the change of the publication", To: "now", Cure: "run onewrite migrate: it puts the publication right, and reading goes on by itself, with a snapshot of what missed changes"}
	}
	rows, err := conn.Query(ctx, `SELECT r.prrelid, r.oid, r.prqual IS NOT NULL OR r.prattrs IS NOT NULL, c.relreplident::text,
			p.pubinsert AND p.pubupdate AND p.pubdelete AND p.pubtruncate AND p.pubviaroot
		FROM pg_publication p LEFT JOIN pg_publication_rel r ON p.oid = r.prpubid LEFT JOIN pg_class c ON c.oid = r.prrelid WHERE p.pubname = $1`, publicationOf(source))
	if err != nil {
		return explain(err)
	}
	type member struct {
		rel, oid *uint32
		partial  *bool
		identity *string
		whole    bool
	}
	members, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (m member, err error) {
		return m, row.Scan(&m.rel, &m.oid, &m.partial, &m.identity, &m.whole)
	})
	if err != nil {
		return explain(err)
	}
	if len(members) == 0 {
		return gap("the publication %s is gone", publicationOf(source))
	}
	if !members[0].whole {
		return gap("the publication %s leaves out some kinds of changes, or tells partitions one by one", publicationOf(source))
	}
	for _, c := range list {
		i := slices.IndexFunc(members, func(m member) bool { return m.rel != nil && *m.rel == c.rel })
		switch {
		case i < 0:
			return gap("table %s is not in the publication %s any more", c.name, publicationOf(source))
		case *members[i].partial:
			return gap("the publication %s leaves out rows or columns of %s", publicationOf(source), c.name)
		case *members[i].oid != c.member:
			return gap("table %s was taken out of the publication %s and put back", c.name, publicationOf(source))
		case *members[i].identity != c.identity:
			return gap("the replica identity of %s was changed (%s, was %s)", c.name, *members[i].identity, c.identity)
		}
	}
	return nil
}
