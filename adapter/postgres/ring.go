package postgres

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/onewrite/onewrite/internal/sabotage"
)

// ring empties leaves. It works on the reader's own session, between reads: a
// session of its own starves under load.
type ring struct {
	dirty   bool   // rows may be in the ring
	given   string // the last number given out at the last look
	next    time.Time
	filled  time.Time // when the current leaf was first seen to hold rows; zero: it does not
	poked   atomic.Bool
	pinned  [leaves]time.Time // not before: a lock was not to be had
	skipped int               // locks that were not to be had
}

const (
	rotateBytes = 8 << 20
	rotateAfter = 4 * time.Second
)

// poke asks for a look at the ring soon.
func (r *ring) poke() { r.poked.Store(true) }

// reclaim rotates to the next leaf and truncates leaves whose rows are all
// acknowledged. It never waits for a lock.
func (s *Source) reclaim(ctx context.Context) error {
	r := &s.ring
	now := time.Now()
	if !r.dirty || now.Before(r.next) {
		return nil
	}
	r.next = now.Add(500 * time.Millisecond)
	if r.poked.Swap(false) {
		r.next = now.Add(200 * time.Millisecond)
	}
	sizes, current, err := s.sizes(ctx)
	if err != nil {
		return err
	}
	s.ackMu.Lock()
	acked := *s.acked
	s.ackMu.Unlock()
	if s.at.claim.sure.text != "" { // of the others there may be rows that nobody has read
		acked.from = acked.from.meet(s.at.proven())
	}
	used := 0
	for i, size := range sizes {
		if size == 0 {
			continue
		}
		used++
		if i == current || now.Before(r.pinned[i]) {
			continue
		}
		emptied, err := s.truncate(ctx, i, acked)
		if err != nil {
			return err
		}
		if emptied {
			sizes[i] = 0
			used--
		}
	}
	if sizes[current] == 0 {
		r.filled = time.Time{}
	} else if r.filled.IsZero() {
		r.filled = now
	}
	if sizes[current] >= rotateBytes || (sizes[current] > 0 && now.Sub(r.filled) >= rotateAfter) {
		if err := s.rotate(ctx, sizes, current); err != nil {
			return err
		}
	}
	r.dirty = used > 0
	return nil
}

// rotate lets inserts go to the next empty leaf. A leaf that a transaction pins
// is passed over; without an empty one, all stays.
func (s *Source) rotate(ctx context.Context, sizes [leaves]int64, current int) error {
	for i := 1; i < leaves; i++ {
		next := (current + i) % leaves
		if sizes[next] > 0 {
			continue
		}
		s.ring.filled = time.Time{}
		if err := sabotage.At("postgres.rotate"); err != nil {
			return err
		}
		_, err := s.conn.Exec(ctx, `SELECT setval('onewrite.slot', $1)`, next)
		return explain(err)
	}
	return nil
}

// sizes returns the bytes of each leaf and the leaf that inserts go to.
func (s *Source) sizes(ctx context.Context) (sizes [leaves]int64, current int, err error) {
	rows, err := s.conn.Query(ctx, `SELECT i, CASE WHEN pg_relation_size(leaf) > 0 THEN pg_table_size(leaf) ELSE 0 END, (SELECT last_value FROM onewrite.slot)::int
		FROM generate_series(0, $1 - 1) i, LATERAL (SELECT ('onewrite.outbox_' || i)::regclass AS leaf) l`, leaves)
	if err != nil {
		return sizes, 0, explain(err)
	}
	defer rows.Close()
	for rows.Next() {
		var i int
		var size int64
		if err := rows.Scan(&i, &size, &current); err != nil {
			return sizes, 0, explain(err)
		}
		sizes[i] = size
	}
	return sizes, current, explain(rows.Err())
}

// truncate empties a leaf if every row in it is covered by the acknowledged
// place. The lock proves that no transaction with rows in the leaf is open.
func (s *Source) truncate(ctx context.Context, leaf int, acked place) (emptied bool, err error) {
	uncovered := fmt.Sprintf(`SELECT EXISTS (SELECT FROM ONLY onewrite.outbox_%d WHERE (xid >= $1::text::xid8 OR xid = ANY ($2::text::xid8[]))
		AND ($3 = '' OR seq > $4 OR NOT pg_visible_in_snapshot(xid, nullif($3, '')::pg_snapshot)))`, leaf)
	args := []any{fmt.Sprint(acked.from.xmax), acked.from.array(), acked.to.text, acked.seq}
	var rest bool
	if err := s.conn.QueryRow(ctx, uncovered, args...).Scan(&rest); err != nil {
		return false, explain(err)
	}
	if rest && sabotage.Bug != "truncate-unread" {
		return false, nil
	}
	tx, err := s.conn.Begin(ctx)
	if err != nil {
		return false, explain(err)
	}
	defer func() { _ = tx.Rollback(context.WithoutCancel(ctx)) }()
	if _, err := tx.Exec(ctx, fmt.Sprintf(`LOCK TABLE ONLY onewrite.outbox_%d IN ACCESS EXCLUSIVE MODE NOWAIT`, leaf)); err != nil {
		var pe *pgconn.PgError
		if errors.As(err, &pe) && pe.Code == "55P03" { // somebody is in the leaf; later
			s.ring.skipped++
			s.ring.pinned[leaf] = time.Now().Add(500 * time.Millisecond)
			return false, nil
		}
		return false, explain(err)
	}
	if err := tx.QueryRow(ctx, uncovered, args...).Scan(&rest); err != nil {
		return false, explain(err)
	}
	if rest && sabotage.Bug != "truncate-unread" {
		return false, nil
	}
	if err := sabotage.At("postgres.truncate"); err != nil {
		return false, err
	}
	// Said before it is so: a bus that knows less than this has lost something.
	if _, err := tx.Exec(ctx, `SELECT setval('onewrite.freed', $1) FROM onewrite.freed WHERE last_value < $1`, acked.top); err != nil {
		return false, explain(err)
	}
	if _, err := tx.Exec(ctx, fmt.Sprintf(`TRUNCATE ONLY onewrite.outbox_%d`, leaf)); err != nil {
		return false, explain(err)
	}
	if err := sabotage.At("postgres.truncated"); err != nil {
		return false, err
	}
	return true, explain(tx.Commit(ctx))
}
