package sqlite

import (
	"context"
	"fmt"
	"time"

	"github.com/onewrite/onewrite/internal/sabotage"
)

const (
	// aim is how long a deleting transaction should last. The contract allows
	// 5 ms; the rest is for what cannot be foreseen.
	aim = 1500 * time.Microsecond
	// breath is the pause between two, in which the application may write: its
	// busy handler first tries again after 1 to 2 ms.
	breath = 2 * time.Millisecond
	// busyPause follows an attempt that found the file locked.
	busyPause = 50 * time.Millisecond

	minBudget, maxBudget = 4, 2000
	// checkpointEvery is the cost after which the WAL is copied back, as an idle
	// application would not do it. It needs no write lock.
	checkpointEvery = 4000
)

// keepReclaiming deletes what is acknowledged until ctx ends. A file that is
// locked is tried again later; any other failure ends it, and Ack tells.
func (s *Source) keepReclaiming(ctx context.Context) {
	r := reclaimer{s: s, budget: 64}
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.ackWake:
		}
		for {
			again, err := r.once()
			if err == nil {
				err = r.checkpoint(again)
			}
			pause := breath
			if isBusy(err) {
				again, pause = true, busyPause
			} else if err != nil {
				err = fmt.Errorf("sqlite: delete delivered events from %s: %w; look at the disk and its permissions", s.path, err)
				s.failed.Store(&err)
				return
			}
			if !again {
				break
			}
			timer.Reset(pause)
			select {
			case <-ctx.Done():
				return
			case <-timer.C:
			}
		}
	}
}

// reclaimer holds what the goroutine learns.
type reclaimer struct {
	s      *Source
	budget int   // the cost of one transaction: rows and pages
	low    int64 // all rows up to it are deleted
	since  int   // the cost since the last checkpoint
}

// checkpoint copies the WAL back after much was deleted, or at the end. What
// another connection is doing at the time is left to it.
func (r *reclaimer) checkpoint(again bool) error {
	if r.since < checkpointEvery && (again || r.since < checkpointEvery/8) {
		return nil
	}
	r.s.writing.Lock()
	defer r.s.writing.Unlock()
	r.since = 0
	if err := sabotage.At("sqlite.checkpoint"); err != nil {
		return err
	}
	_, err := r.s.writer.ExecContext(context.Background(), "PRAGMA wal_checkpoint(PASSIVE)")
	return err
}

// once deletes the oldest acknowledged rows in one short transaction and
// reports whether there may be more.
func (r *reclaimer) once() (again bool, err error) {
	r.s.writing.Lock()
	defer r.s.writing.Unlock()
	acked := r.s.acked.Load()
	upto, cost, more, err := r.measure(acked)
	if err != nil || cost == 0 {
		return false, err
	}
	ctx := context.Background() // short, and interrupting a COMMIT helps nobody
	var start time.Time
	err = immediate(ctx, r.s.writer, func() error {
		start = time.Now()
		_, err := r.s.writer.ExecContext(ctx, "DELETE FROM onewrite_outbox WHERE seq > ? AND seq <= ?", r.low, upto)
		if err == nil {
			_, err = r.s.writer.ExecContext(ctx, "UPDATE onewrite_meta SET freed = max(freed, ?)", upto)
		}
		if err == nil {
			_, err = r.s.writer.ExecContext(ctx, sweep)
		}
		if err == nil {
			err = sabotage.At("sqlite.delete")
		}
		return err
	})
	if err != nil {
		return false, err
	}
	if err := sabotage.At("sqlite.deleted"); err != nil {
		return false, err
	}
	took := time.Since(start)
	r.s.longest.Store(max(r.s.longest.Load(), int64(took)))
	r.s.deletes.Add(1)
	r.low, r.since = upto, r.since+cost
	switch {
	case took > aim:
		r.budget = max(minBudget, int(float64(r.budget)*max(0.25, 0.8*float64(aim)/float64(took))))
	case took < aim/2 && cost >= r.budget/2:
		r.budget = min(maxBudget, r.budget*3/2+1)
	}
	return more, nil
}

// measure finds, without the write lock, how many rows the budget allows. A row
// costs about as much as a page of its overflow.
func (r *reclaimer) measure(acked int64) (upto int64, cost int, more bool, err error) {
	rows, err := r.s.writer.QueryContext(context.Background(), `SELECT seq, 1 + (coalesce(octet_length(payload), 0) + coalesce(octet_length(payload_bytes), 0)
		+ coalesce(octet_length("before"), 0) + coalesce(octet_length("after"), 0)) / 4096
		FROM onewrite_outbox WHERE seq > ? AND seq <= ? ORDER BY seq LIMIT ?`, r.low, acked, r.budget+1)
	if err != nil {
		return 0, 0, false, err
	}
	defer rows.Close()
	for rows.Next() {
		var seq int64
		var c int
		if err := rows.Scan(&seq, &c); err != nil {
			return 0, 0, false, err
		}
		if cost > 0 && cost+c > r.budget {
			return upto, cost, true, nil
		}
		upto, cost = seq, cost+c
	}
	return upto, cost, false, rows.Err()
}
