package postgres

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

const (
	// flushAwake is how long the log is looked at after a row change.
	flushAwake = 2 * time.Second
	// flushLook returns where the log ends. If it is not on disk up to where it ended at
	// the look before, a commit of this session puts it there.
	flushLook = `SELECT pg_current_wal_insert_lsn()::text, CASE WHEN pg_current_wal_flush_lsn() < $1::text::pg_lsn THEN pg_logical_emit_message(true, '` + ownPrefix + `', 'flush')::text END`
)

// flushes keeps what was committed with synchronous_commit = off from waiting for the
// server's WAL writer: only what is on disk is decoded. It looks twice in the time of
// Config.FlushWithin for as long as row changes come. Its own commits are none, and what
// they flush is flushed, so that they never cause another.
func (r *logReader) flushes() {
	var conn *pgx.Conn
	defer func() {
		if conn != nil {
			_ = conn.Close(context.Background())
		}
	}()
	said := ""
	say := func(problem string) {
		if problem != said {
			r.cfg.trouble("flush_within", problem)
		}
		said = problem
	}
	for {
		select {
		case <-r.alive.Done():
			return
		case <-r.stirred:
		}
		var err error
		if conn == nil {
			conn, err = r.connectFlush()
		}
		if err == nil {
			say("")
			err = r.flushWhileStirred(conn)
		}
		if err == nil || r.alive.Err() != nil {
			continue
		}
		say(fmt.Sprintf("commits with synchronous_commit = off come late, as the log cannot be flushed: %v", err))
		if conn != nil {
			_ = conn.Close(context.Background())
			conn = nil
		}
		select {
		case <-r.alive.Done():
		case <-time.After(3 * time.Second):
		}
	}
}

// connectFlush opens a session whose commits wait for the disk, and for no standby.
func (r *logReader) connectFlush() (*pgx.Conn, error) {
	return connectUnlimited(r.alive, r.cfg.URL, func(c *pgx.ConnConfig) {
		c.RuntimeParams["application_name"], c.RuntimeParams["synchronous_commit"] = "onewrite flush", "local"
	})
}

// flushWhileStirred looks until no row change has come for a while.
func (r *logReader) flushWhileStirred(conn *pgx.Conn) error {
	tick := time.NewTicker(r.cfg.FlushWithin / 2)
	defer tick.Stop()
	end, last := "0/0", time.Now()
	for time.Since(last) < flushAwake {
		select {
		case <-r.alive.Done():
			return nil
		case <-tick.C:
		}
		select {
		case <-r.stirred:
			last = time.Now()
		default:
		}
		var flushed *string
		if err := conn.QueryRow(r.alive, flushLook, end).Scan(&end, &flushed); err != nil {
			return explain(err)
		}
	}
	return nil
}
