package postgres

import (
	"context"
	"errors"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/onewrite/onewrite/internal/sabotage"
)

// schedule moves events into the outbox when they are due. The reading session does
// it between two looks, so that what it moved is found by the next look at once.
type schedule struct {
	missing bool      // an outbox of an older migrate has no such table
	next    time.Time // when to check
	belt    time.Time // when to check even if nothing can be there
	given   string    // the last number given out, at the look before the last check
	empty   bool      // nothing was scheduled at the last check
	horizon int64     // transactions below it may have drawn a number up to given
	settled bool      // they all have ended: while no number is given out, nothing can come
}

const (
	// promoteAtOnce bounds one transaction.
	promoteAtOnce = 1000
	// checkEvery is the longest time between two checks while something is, or may
	// be, scheduled; and the shortest while nothing is due.
	checkEvery = time.Second
	checkLeast = 5 * time.Millisecond
	// checkAnyway is the belt: a transaction draws its number a moment before it has
	// an id of its own, and in that moment seems to have ended.
	checkAnyway = 10 * time.Second
)

// dueSQL tells the seconds until the next event is due, and the snapshot.
const dueSQL = `SELECT (SELECT extract(epoch FROM min(deliver_at) - clock_timestamp())::float8 FROM onewrite.scheduled),
	pg_snapshot_xmin(pg_current_snapshot())::text::bigint, pg_snapshot_xmax(pg_current_snapshot())::text::bigint`

// promoteSQL moves what is due. An event that somebody is about to cancel is passed
// over, so that nobody is waited for. It is run only when something is due: an INSERT
// of no rows wakes a sleeping reader too, which would be ourselves.
const promoteSQL = `WITH due AS (SELECT n FROM onewrite.scheduled WHERE deliver_at <= clock_timestamp() ORDER BY deliver_at, n LIMIT $1 FOR UPDATE SKIP LOCKED),
	gone AS (DELETE FROM onewrite.scheduled s USING due WHERE s.n = due.n RETURNING s.*)
	INSERT INTO onewrite.outbox (` + columns + `) SELECT ` + columns + ` FROM gone ORDER BY deliver_at, n`

// promote moves what is due, if it is time to look.
func (s *Source) promote(ctx context.Context) error {
	c := &s.schedule
	now := time.Now()
	if c.missing || now.Before(c.next) {
		return nil
	}
	fresh := c.given != s.ring.given || c.next.IsZero()
	if !fresh && c.empty && c.settled && now.Before(c.belt) {
		c.next = now.Add(checkEvery)
		return nil
	}
	c.given, c.belt = s.ring.given, now.Add(checkAnyway)
	var xmin, xmax int64
	var wait *float64
	err := s.conn.QueryRow(ctx, dueSQL).Scan(&wait, &xmin, &xmax)
	moved := int64(0)
	if err == nil && wait != nil && *wait <= 0 {
		var tag pgconn.CommandTag
		tag, err = s.conn.Exec(ctx, promoteSQL, promoteAtOnce)
		moved = tag.RowsAffected()
	}
	var pe *pgconn.PgError
	if errors.As(err, &pe) && (pe.Code == "42P01" || pe.Code == "42501") {
		c.missing = true
		s.log.Warn("scheduled events are not sent: their table is missing, or this role may not take from it", "cure", "onewrite migrate")
		return nil
	}
	if err != nil {
		return explain(err)
	}
	if err := sabotage.At("postgres.promote"); err != nil {
		return err
	}
	if fresh {
		c.horizon, c.settled = xmax, false
	}
	c.settled = c.settled || xmin >= c.horizon
	c.empty = wait == nil
	pause := checkEvery
	switch {
	case moved > 0:
		pause = 1 // when the next one is due is asked at the next look
	case wait != nil:
		pause = time.Duration(min(max(*wait, checkLeast.Seconds()), checkEvery.Seconds()) * float64(time.Second))
	}
	c.next = time.Now().Add(pause)
	return nil
}

// poke asks for a check: somebody inserted something.
func (c *schedule) poke() { c.next = time.Time{} }

// rest bounds a rest by when the next check is due.
func (c *schedule) rest(pause time.Duration) time.Duration {
	if c.missing || c.empty && c.settled {
		return pause
	}
	return max(min(pause, time.Until(c.next)), time.Millisecond)
}
