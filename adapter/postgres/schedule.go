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
	next    time.Time     // when to check
	belt    time.Time     // when to check even if nothing can be there
	given   string        // the last number given out, at the look before the last check
	empty   bool          // nothing was scheduled at the last check
	horizon int64         // transactions below it may have drawn a number up to given
	settled bool          // they all have ended: while no number is given out, nothing can come
	held    time.Duration // the pause while all that is due is held by others
}

const (
	// promoteAtOnce bounds one transaction.
	promoteAtOnce = 1000
	promoteBytes  = 4 << 20
	// checkEvery is the longest time between two checks while something is, or may
	// be, scheduled; and the shortest while nothing is due.
	checkEvery = time.Second
	checkLeast = 5 * time.Millisecond
	// checkAnyway is the belt: a transaction draws its number a moment before it has
	// an id of its own, and in that moment seems to have ended.
	checkAnyway = 10 * time.Second
	// missingEvery: an outbox of an older migrate has no such table, and may get it.
	missingEvery = 3 * time.Second
)

// dueSQL tells the seconds until the next event is due, and the snapshot.
const dueSQL = `SELECT (SELECT extract(epoch FROM min(deliver_at) - clock_timestamp())::float8 FROM onewrite.scheduled),
	pg_snapshot_xmin(pg_current_snapshot())::text::bigint, pg_snapshot_xmax(pg_current_snapshot())::text::bigint`

// promoteSQL marks what it moves by the attribute deliverat. Its number is drawn here,
// in a transaction of ours, which the application's locks on a key do not keep from
// those of the key that are still open: an inbox that goes by the numbers has to know.
// Headers that are as large as they may be stay as they are.
//
// It moves what is due, as long as what goes before is less than $2 bytes. An
// event that somebody is about to cancel is passed over, so that nobody is waited for.
// The moment is a value, not a function, so that it and the pairs of the join are
// found by the index. Nothing is inserted when nothing could be locked: an INSERT of
// no rows wakes a sleeping reader too, which would be ourselves.
const (
	lockDueSQL = `SELECT coalesce(array_agg(deliver_at), '{}'), coalesce(array_agg(n), '{}') FROM (
		SELECT deliver_at, n, sum(size) OVER (ORDER BY deliver_at, n ROWS UNBOUNDED PRECEDING) - size AS before FROM (
			SELECT deliver_at, n, 200 + coalesce(octet_length(payload), 0) + coalesce(octet_length(payload_bytes), 0) AS size
			FROM onewrite.scheduled WHERE deliver_at <= (SELECT clock_timestamp()) ORDER BY deliver_at, n LIMIT $1 FOR UPDATE SKIP LOCKED) d) w
		WHERE before < $2`
	promoteSQL = `WITH gone AS (DELETE FROM onewrite.scheduled s USING unnest($1::timestamptz[], $2::bigint[]) AS due(deliver_at, n)
			WHERE s.deliver_at = due.deliver_at AND s.n = due.n RETURNING s.*),
		marked AS (SELECT deliver_at, n, topic, key, payload, payload_bytes, id, type, content_type, CASE WHEN octet_length(headers::text) > 65000 THEN headers
			ELSE jsonb_build_object('deliverat', to_char(deliver_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')) || coalesce(headers, '{}') END AS headers FROM gone)
		INSERT INTO onewrite.outbox (` + columns + `) SELECT ` + columns + ` FROM marked ORDER BY deliver_at, n`
)

// move moves one portion of what is due and says how many events that were.
func (s *Source) move(ctx context.Context) (moved int64, err error) {
	tx, err := s.conn.Begin(ctx)
	if err != nil {
		return 0, err
	}
	defer func() { _ = tx.Rollback(context.WithoutCancel(ctx)) }()
	var at []time.Time
	var n []int64
	if err := tx.QueryRow(ctx, lockDueSQL, promoteAtOnce, promoteBytes).Scan(&at, &n); err != nil || len(n) == 0 {
		return 0, err
	}
	tag, err := tx.Exec(ctx, promoteSQL, at, n)
	if err != nil {
		return 0, err
	}
	return tag.RowsAffected(), tx.Commit(ctx)
}

// promote moves what is due, if it is time to look.
func (s *Source) promote(ctx context.Context) error {
	c := &s.schedule
	now := time.Now()
	if now.Before(c.next) {
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
		moved, err = s.move(ctx)
	}
	var pe *pgconn.PgError
	if errors.As(err, &pe) && (pe.Code == "42P01" || pe.Code == "42501") {
		c.next = now.Add(missingEvery)
		s.trouble("scheduled", "scheduled events are not sent: their table is missing, or this role may not take from it; run: onewrite migrate")
		return nil
	}
	if err != nil {
		return explain(err)
	}
	s.trouble("scheduled", "")
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
		pause, c.held = 1, 0 // when the next one is due is asked at the next look
	case wait != nil && *wait <= 0: // whoever holds it may cancel it
		c.held = min(max(2*c.held, 50*time.Millisecond), checkEvery)
		pause = c.held
	case wait != nil:
		c.held = 0
		pause = time.Duration(min(max(*wait, checkLeast.Seconds()), checkEvery.Seconds()) * float64(time.Second))
	}
	c.next = time.Now().Add(pause)
	return nil
}

// poke asks for a check: somebody inserted something.
func (c *schedule) poke() {
	if c.held == 0 {
		c.next = time.Time{}
	}
}

// trouble says aloud what is wrong beside the reading of the outbox, or no more.
func (s *Source) trouble(what, problem string) {
	if last, said := s.troubled[what]; !said || last != problem {
		s.cfg.trouble(what, problem)
	}
	s.troubled[what] = problem
}

// rest bounds a rest by when the next check is due.
func (c *schedule) rest(pause time.Duration) time.Duration {
	if c.empty && c.settled {
		return pause
	}
	return max(min(pause, time.Until(c.next)), time.Millisecond)
}
