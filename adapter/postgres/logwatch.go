package postgres

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
)

// watchEvery is how often the catalogs are compared with what was there at the start.
const watchEvery = 3 * time.Second

// watch looks after what PostgreSQL is silent about: a publication that was changed, a
// slot that is not the one that was opened, a table that is to be captured since.
func (r *logReader) watch() {
	tick := time.NewTicker(watchEvery)
	defer tick.Stop()
	for {
		select {
		case <-r.alive.Done():
			return
		case <-tick.C:
		}
		if err := r.check(); err != nil && r.alive.Err() == nil {
			r.stop()
			r.queue.fail(err)
			r.rep.close(false)
			return
		}
	}
}

func (r *logReader) check() error {
	r.side.Lock()
	defer r.side.Unlock()
	ctx, cancel := context.WithTimeout(r.alive, 30*time.Second)
	defer cancel()
	list, err := r.tablesNow(ctx)
	if err != nil {
		return err
	}
	r.fill.set(list)
	var same bool
	err = r.cat.conn.QueryRow(ctx, `SELECT EXISTS (SELECT FROM onewrite.log l JOIN pg_publication p ON p.oid = l.publication WHERE l.source = $1 AND p.pubname = $2 AND l.began = $3::text::pg_lsn)`,
		r.cfg.Name, publicationOf(r.cfg.Name), r.opened.began.String()).Scan(&same)
	if err != nil {
		return explain(err)
	}
	now, err := takeSnapshot(ctx, r.cat.conn)
	if err != nil {
		return err
	}
	r.fill.prune(0, now)
	if !same {
		return errors.New("postgres: the record of the slot in onewrite.log is another one than at the start") // opening it again says why
	}
	behind := ""
	if r.host != r.cat.conn {
		if behind, err = r.checkHost(ctx); err != nil {
			return err
		}
	}
	s, err := lookAtSlot(ctx, r.host, r.slot, 150000)
	if err != nil {
		return err
	}
	if s == nil || s.foreign != "" || s.lost != "" || r.streams.Load() && s.pid != r.rep.pid {
		return errors.New("postgres: the slot is read by this process no more") // likewise
	}
	if r.cfg.Pushed {
		if err := r.lookAtOutbox(ctx); err != nil {
			return err
		}
	}
	says, err := r.measure(ctx)
	if err != nil {
		return err
	}
	if behind == "" {
		behind = says
	}
	return r.guard(ctx, s, behind)
}

func isCode(err error, code string) bool {
	var pe *pgconn.PgError
	return errors.As(err, &pe) && pe.Code == code
}

// undecodable adds the cure where the server fails inside while it decodes the log. It
// does so each time that it comes there: PostgreSQL 15 for instance where tables were
// rewritten while the slot was made ("could not map filenode").
func undecodable(err error, slot string) error {
	var se *serverError
	if errors.As(err, &se) && se.cure == "" && strings.HasSuffix(se.says, "(SQLSTATE XX000)") {
		se.cure = "if it stays so, the server cannot read its log from where the slot is; drop the slot, and the tables are read again: " + dropped(slot)
	}
	return err
}

// explainSlot is explain for what has to do with slots.
func explainSlot(err error) error {
	var pe *pgconn.PgError
	if !errors.As(err, &pe) {
		return err
	}
	cure := map[string]string{
		"42501": needsReplication + markRole + " REPLICATION",
		"53400": "raise max_replication_slots and restart the server, or drop a slot that nobody reads: SELECT slot_name, active FROM pg_replication_slots",
		"53300": "raise max_wal_senders and restart the server",
		"55000": "set wal_level = logical and restart the server",
		"55006": "another session reads the slot; end it: SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE active",
	}[pe.Code]
	if cure == "" {
		return explain(err)
	}
	return &serverError{says: fmt.Sprintf("postgres: %s (SQLSTATE %s)", pe.Message, pe.Code), cure: cure}
}

// needsReplication begins the cure for a role that may not read the log.
const needsReplication = asSuperuser + "ALTER ROLE "

// asSuperuser begins a cure that is for a superuser.
const asSuperuser = "run as superuser: "
