package sqlite

import (
	"context"
	"fmt"
	"time"

	"github.com/onewrite/onewrite/internal/sabotage"
	"github.com/onewrite/onewrite/outbox"
)

// promoteEvery is how often the reader looks for what is due: one step in an index.
const promoteEvery = 100 * time.Millisecond

// keepPromoting moves events into the outbox when they are due, until ctx ends. A
// file that is locked is tried again later; any other failure ends it, and the next
// Read tells, so that the source is opened again.
func (s *Source) keepPromoting(ctx context.Context) {
	budget := minBudget
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		moved, err := s.promote(&budget)
		pause := promoteEvery
		switch {
		case isBusy(err):
			pause = busyPause
		case err != nil:
			err = fmt.Errorf("sqlite: move scheduled events into the outbox of %s: %w; look at the disk and its permissions", s.path, err)
			s.failed.Store(&err)
			return
		case moved > 0:
			outbox.Ring()
			pause = breath
		}
		timer.Reset(pause)
	}
}

// promote moves some of what is due, in one short transaction.
func (s *Source) promote(budget *int) (moved int64, err error) {
	s.writing.Lock()
	defer s.writing.Unlock()
	ctx := context.Background() // short, and interrupting a COMMIT helps nobody
	const due = ` FROM onewrite_scheduled WHERE deliver_at <= ?1 ORDER BY deliver_at, n LIMIT ?2`
	var any bool
	var now string // one moment for all statements
	err = s.writer.QueryRowContext(ctx, `SELECT now, EXISTS (SELECT 1 FROM onewrite_scheduled WHERE deliver_at <= now)
		FROM (SELECT strftime('%Y-%m-%dT%H:%M:%fZ', 'now') AS now)`).Scan(&now, &any)
	if err != nil || !any {
		return 0, err
	}
	var start time.Time
	err = immediate(ctx, s.writer, func() error {
		start = time.Now()
		_, err := s.writer.ExecContext(ctx, `INSERT INTO onewrite_outbox (topic, key, payload, payload_bytes, id, type, content_type, headers)
			SELECT topic, key, payload, payload_bytes, id, type, content_type, headers`+due, now, *budget)
		if err != nil {
			return err
		}
		res, err := s.writer.ExecContext(ctx, `DELETE FROM onewrite_scheduled WHERE n IN (SELECT n`+due+`)`, now, *budget)
		if err == nil {
			moved, err = res.RowsAffected()
		}
		if err == nil {
			err = sabotage.At("sqlite.promote")
		}
		return err
	})
	if err != nil {
		return 0, err
	}
	switch took := time.Since(start); {
	case took > aim:
		*budget = max(minBudget, *budget/2)
	case took < aim/2 && int(moved) == *budget:
		*budget = min(maxBudget, *budget*3/2+1)
	}
	return moved, nil
}
