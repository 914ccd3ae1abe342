package storm

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/onewrite/onewrite/torture/history"
)

// idleRows is how often W7 writes into the table where nothing happens.
func (s *storm) idleRows() int {
	if s.has("W7") {
		return 3
	}
	return 0
}

// idleRow writes a row into a table that nobody changed for long, while the log is full
// of others.
func (s *storm) idleRow(ctx context.Context, f *history.Fault) error {
	f.On, f.Most = "row changes", -1
	pause(ctx, 3*time.Second) // in which the log grows
	start := time.Now()
	if err := s.read(ctx); err != nil {
		return err
	}
	if took := time.Since(start); took < 5*time.Second { // later has no proof
		f.Proof = fmt.Sprintf("came after %v", took.Round(time.Millisecond))
	}
	return nil
}

// retained is how much log there is from where the slot is; 0 when nobody can say.
func (s *storm) retained() (n int64) {
	if !s.has("W7") {
		return 0
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_ = s.db.QueryRowContext(ctx, `SELECT max(pg_wal_lsn_diff(pg_current_wal_lsn(), confirmed_flush_lsn))::bigint FROM pg_replication_slots WHERE slot_type = 'logical'`).Scan(&n)
	return n
}

// rowFloors are what has to be among the row changes.
func (s *storm) rowFloors(f *history.Floors) {
	need := func(n int, labels string) {
		for _, label := range strings.Fields(labels) {
			f.Counts[label] = n
		}
	}
	if s.has("W6") {
		need(3, "update large delete upsert same_key savepoint rolled_back moved keyless partition prepared_commit prepared_rollback unchanged_toast snapshot")
		need(1, "reread")
		if len(s.Traps) == 0 {
			need(1, "truncate")
		}
		if len(s.Traps) == 0 && s.Kills > 0 {
			need(1, "row_open_across_restart")
		}
	}
	if s.has("W4") {
		need(30, "ddl")
		need(3, "rolled_back_ddl")
	}
	if s.has("W5") {
		need(80, "extreme")
	}
	if s.has("W7") {
		need(50, "busy")
	}
	if s.has("W8") {
		need(1, "large large_rolled_back large_savepoint")
	}
	loud := 0
	for _, name := range s.Traps {
		f.Faults[name]++
		if traps[name].says != "" {
			loud++
		}
	}
	if loud > 0 {
		f.Counts["loud"] = loud
	}
}
