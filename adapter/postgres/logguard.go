package postgres

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

const (
	// warnRetained is how much log the slot may keep, where the server has no limit,
	// before it is said.
	warnRetained = 8 << 30
	// warnShare is the part of the server's limit from which it is said.
	warnShare = 2
	// droppedForRoom begins what is noted of a slot that kept too much.
	droppedForRoom = "onewrite dropped the slot"
)

// guard looks at how much log the server keeps for the slot. It is freed as soon as the
// bus holds what is in it, so much of it means that the bus is full or down, or that
// somebody's transaction has been open for long. Beyond Config.MaxRetained the slot is
// dropped: a full disk stops the application, a gap does not. behind is what else is to be
// said.
func (r *logReader) guard(ctx context.Context, s *slotState, behind string) error {
	var limit int64 // -1: none
	var open string
	err := r.host.QueryRow(ctx, `SELECT setting::bigint * 1024 * 1024 FROM pg_settings WHERE name = 'max_slot_wal_keep_size'`).Scan(&limit)
	if err != nil {
		return explain(err)
	}
	err = r.cat.conn.QueryRow(ctx, `SELECT coalesce((SELECT format(', the oldest transaction (session %s, %s) is open since %s', pid, coalesce(nullif(application_name, ''), 'unnamed'), xact_start::timestamptz(0))
			FROM pg_stat_activity WHERE backend_xid IS NOT NULL AND xact_start < now() - interval '1 minute' ORDER BY xact_start LIMIT 1), '')`).Scan(&open)
	if err != nil {
		return explain(err)
	}
	if r.cfg.MaxRetained > 0 && s.retained > r.cfg.MaxRetained {
		err := fmt.Errorf("postgres: the slot kept %s of the server's log, more than max_retained allows (%s%s), and is dropped", mega(s.retained), mega(r.cfg.MaxRetained), open)
		_, noted := r.cat.conn.Exec(ctx, `UPDATE onewrite.log SET gap = $2 WHERE source = $1`, r.cfg.Name, // for whoever finds no slot
			fmt.Sprintf("%s %s, as it kept %s of the server's log, more than max_retained allows (%s)", droppedForRoom, r.slot, mega(s.retained), mega(r.cfg.MaxRetained)))
		r.queue.fail(err) // before the receiver says that its connection is gone
		r.rep.close(false)
		return errors.Join(err, explain(noted), dropSlot(context.WithoutCancel(ctx), r.host, r.slot)) // whoever was told of err closes the reader, which waits for it
	}
	text := behind
	switch {
	case limit >= 0 && s.retained > limit/warnShare:
		text = fmt.Sprintf("the server keeps %s of its log for the slot %s, and gives the slot up at %s (max_slot_wal_keep_size)%s; is the bus full? onewrite status", mega(s.retained), r.slot, mega(limit), open)
	case s.retained > warnRetained:
		text = fmt.Sprintf("the server keeps %s of its log for the slot %s%s; is the bus full? onewrite status", mega(s.retained), r.slot, open)
	}
	r.cfg.trouble("log", text)
	return nil
}

func mega(n int64) string { return fmt.Sprintf("%d MB", (n+999_999)/1_000_000) }

// dropped is how a slot that nobody reads is dropped by hand.
func dropped(slot string) string {
	return "SELECT pg_drop_replication_slot(" + quoteText(slot) + ")"
}

// stale returns the slots of onewrite in a database that no source reads: they keep the
// server's log for ever.
func stale(ctx context.Context, conn *pgx.Conn, mine string) ([]string, error) {
	rows, err := conn.Query(ctx, `SELECT slot_name::text FROM pg_replication_slots WHERE database = current_database() AND slot_name LIKE 'onewrite\_%' AND NOT active AND slot_name <> $1`, mine)
	if err != nil {
		return nil, explain(err)
	}
	names, err := pgx.CollectRows(rows, pgx.RowTo[string])
	return names, explain(err)
}

// dropSlot drops a slot whose reader was closed: the server sees that a moment later.
func dropSlot(ctx context.Context, conn *pgx.Conn, slot string) error {
	for deadline := time.Now().Add(5 * time.Second); ; {
		_, err := conn.Exec(ctx, `SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = $1`, slot)
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
