package postgres

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/onewrite/onewrite"
)

// identity is what a server says of itself at Open.
type identity struct {
	system   uint64 // pg_control_system's identifier
	line     uint64 // the timeline and the last recovery from a crash, in one number
	xmax     uint64 // next transaction
	seq      int64  // last number given out
	epoch    int64  // what the register says
	freed    int64  // greatest number among what was confirmed and truncated
	database uint32 // the database's oid
	bus      string // recorded for this source; "" if none
	recorded uint64 // the system identifier recorded with it
	where    uint32 // the database's oid recorded with it
	valid    int64  // positions of an earlier epoch count for nothing
	future   bool   // rows with transactions that do not exist yet
}

func identify(ctx context.Context, conn *pgx.Conn, source string) (id identity, err error) {
	var system, recorded, line int64
	err = conn.QueryRow(ctx, `SELECT (SELECT system_identifier FROM pg_control_system()),
		('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::bigint
			+ coalesce((SELECT (extract(epoch FROM stats_reset) * 1000000)::bigint FROM pg_stat_bgwriter), 0), -- a recovery drops the statistics
		pg_snapshot_xmax(pg_current_snapshot())::text::bigint, (SELECT last_value FROM onewrite.seq), (SELECT last_value FROM onewrite.epoch), (SELECT last_value FROM onewrite.freed),
		coalesce((SELECT bus_id FROM onewrite.bus WHERE source = $1), ''), coalesce((SELECT system_identifier FROM onewrite.bus WHERE source = $1), 0),
		(SELECT oid FROM pg_database WHERE datname = current_database()), coalesce((SELECT database FROM onewrite.bus WHERE source = $1), 0),
		coalesce((SELECT valid_from FROM onewrite.bus WHERE source = $1), 0),
		EXISTS (SELECT FROM onewrite.outbox WHERE xid >= pg_snapshot_xmax(pg_current_snapshot()))`, source).
		Scan(&system, &line, &id.xmax, &id.seq, &id.epoch, &id.freed, &id.bus, &recorded, &id.database, &id.where, &id.valid, &id.future)
	id.system, id.line, id.recorded = uint64(system), uint64(line), uint64(recorded)
	return id, explain(err)
}

// judge decides where reading starts: at the position, or, when the position
// does not belong to this server or this bus, at the oldest row that is there.
// The place's epoch is above that of every position given out before.
//
// The register epoch moves with the positions and is on disk before they are
// given out. So a server whose register is behind a position went back in time,
// and one whose register is not has all that was on disk when it was moved: after
// a failover to a standby that lacks the last moment, reading goes on from there,
// for the transaction numbers of that moment may be given out again. A large
// difference of snapshots is safe from that, as the register moved when its
// reading began, and is read on where it was left.
// adopt says that rows carry transaction numbers of another history.
func judge(id identity, pos onewrite.Pos, busID string) (start place, gap *onewrite.Gap, adopt bool, err error) {
	fresh := place{system: id.system, line: id.line, epoch: id.epoch + 1, base: empty, bus: busID, from: empty, top: id.freed}
	again := func(format string, args ...any) (place, *onewrite.Gap, bool, error) {
		return fresh, &onewrite.Gap{Reason: fmt.Sprintf(format, args...) + "; every row of the outbox is read again, with the same ids", From: "the oldest row", To: fmt.Sprint("seq ", id.seq)}, adopt, nil
	}
	moved := id.recorded != 0 && (id.recorded != id.system || id.where != id.database)
	adopt = id.future || moved
	if pos == "" {
		switch {
		case moved:
			return again("the outbox was carried here from another cluster or database (system identifier %d, database %d; here %d, %d)", id.recorded, id.where, id.system, id.database)
		case id.bus != "" && id.bus != busID:
			return again("the bus is new: this outbox was read into bus %s before, which is lost or was exchanged", id.bus)
		case id.bus != "" && id.freed > 0: // under another name it was another's log
			return again("the bus has lost its log of this source, with events up to seq %d that it had confirmed and that were deleted from the outbox for it", id.freed)
		}
		return fresh, nil, adopt, nil
	}
	p, err := parsePlace(pos)
	if err != nil {
		return place{}, nil, false, err
	}
	switch {
	case p.system != id.system:
		adopt = true
		return again("the database is another cluster than before (system identifier %d, was %d): cloned, or dumped and loaded", id.system, p.system)
	case p.bus != busID:
		return again("the bus is a foreign one: its place belongs to bus %s", p.bus)
	case moved:
		return again("the outbox was carried here from another database (%d, here %d)", id.where, id.database)
	case p.from.xmax > id.xmax || p.to.xmax > id.xmax || p.epoch > id.epoch || p.top > id.seq:
		fresh.epoch = max(id.epoch, p.epoch) + 1
		return again("the database went back in time (a backup was restored, or a failover lost commits): transaction %d, seq %d, epoch %d; was at least %d, %d, %d",
			id.xmax, id.seq, id.epoch, max(p.from.xmax, p.to.xmax), p.top, p.epoch)
	}
	if p.epoch < id.valid {
		return again("the outbox began to be read again, and no position of since then is on the bus")
	}
	if adopt {
		return again("rows of another history were loaded into the outbox")
	}
	p.epoch = id.epoch + 1
	if p.top < id.freed {
		gap = &onewrite.Gap{
			Reason: "the bus does not have events that it confirmed and that were deleted from the outbox for it: an older copy of it was put back; destinations that had not got them yet miss them",
			From:   fmt.Sprint("seq ", p.top+1), To: fmt.Sprint("seq ", id.freed),
		}
		p.top = id.freed
	}
	if p.line != id.line && (p.to.text == "" || p.base.text != p.to.short().text) {
		p.base = p.base.meet(p.proven())
		p.from, p.to, p.seq, p.claim.sure, p.claim.all = p.base, snapshot{}, 0, snapshot{}, tally{}
	}
	p.line = id.line
	return p, gap, false, nil
}

// record notes which bus reads this outbox, if that is news, and after a gap that
// older positions count for nothing: whoever opens at one of them begins again as
// well, as long as no other is stored.
func record(ctx context.Context, conn *pgx.Conn, source string, id identity, busID string, valid int64) error {
	if id.bus == busID && id.recorded == id.system && id.where == id.database && id.valid == valid {
		return nil
	}
	_, err := conn.Exec(ctx, `INSERT INTO onewrite.bus AS b (source, bus_id, system_identifier, database, valid_from) VALUES ($1, $2, $3, $4, $5)
		ON CONFLICT (source) DO UPDATE SET bus_id = excluded.bus_id, system_identifier = excluded.system_identifier, database = excluded.database, valid_from = excluded.valid_from, since = now()`,
		source, busID, int64(id.system), id.database, valid)
	return explain(err)
}

// adoptAll gives every row a transaction of this server: each leaf's rows are
// inserted again, in the order of seq, and the leaf is emptied, in one
// transaction. Ids, order and content stay.
func adoptAll(ctx context.Context, conn *pgx.Conn) error {
	for leaf := range leaves {
		tx, err := conn.Begin(ctx)
		if err != nil {
			return explain(err)
		}
		if err := adopt(ctx, tx, leaf); err != nil {
			_ = tx.Rollback(context.WithoutCancel(ctx))
			return fmt.Errorf("adopt the rows of leaf %d: %w", leaf, err)
		}
	}
	return nil
}

func adopt(ctx context.Context, tx pgx.Tx, leaf int) error {
	name := fmt.Sprintf("onewrite.outbox_%d", leaf)
	if _, err := tx.Exec(ctx, "SET LOCAL lock_timeout = '10s'"); err != nil {
		return explain(err)
	}
	// Nobody who inserts from now on waits for the lock.
	if _, err := tx.Exec(ctx, "SELECT setval('onewrite.slot', $1) FROM onewrite.slot WHERE last_value = $2", (leaf+1)%leaves, leaf); err != nil {
		return explain(err)
	}
	if _, err := tx.Exec(ctx, "LOCK TABLE ONLY "+name+" IN ACCESS EXCLUSIVE MODE"); err != nil {
		return explain(err)
	}
	const cols = "seq, created, " + columns
	// The rows pass through a temporary table: the leaf may be the current one.
	for _, q := range []string{
		"CREATE TEMP TABLE onewrite_adopt ON COMMIT DROP AS SELECT " + cols + " FROM ONLY " + name,
		"TRUNCATE ONLY " + name,
		fmt.Sprintf("INSERT INTO %s (slot, %s) SELECT %d, %s FROM pg_temp.onewrite_adopt ORDER BY seq", name, cols, leaf, cols),
	} {
		if _, err := tx.Exec(ctx, q); err != nil {
			return explain(err)
		}
	}
	return explain(tx.Commit(ctx))
}
