package postgres

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/onewrite/onewrite/internal/disk"
)

// settings looks at what the server promises of a commit.
func (e *examiner) settings(ctx context.Context, tx pgx.Tx) error {
	found, err := rowsOf(ctx, tx, `SELECT name, setting, source FROM pg_settings WHERE name IN
		('fsync', 'full_page_writes', 'synchronous_commit', 'max_prepared_transactions', 'default_transaction_read_only') ORDER BY name`)
	if err != nil {
		return err
	}
	said := len(e.found)
	prepared := ""
	for _, f := range found {
		name, value, source := f[0], f[1], f[2]
		switch {
		case name == "max_prepared_transactions" && value != "0":
			prepared = value
		case name == "fsync" && value == "off":
			e.warn(name, e.reset(name, "on", source), "off: after a power failure the database may be unusable, and committed events with it")
		case name == "full_page_writes" && value == "off":
			e.warn(name, e.reset(name, "on", source), "off: after a power failure pages of the database may be torn, and committed events with them")
		case name == "synchronous_commit" && value == "off":
			e.warn(name, e.reset(name, "on", source), "off: a crash takes back commits of the last moment that the application was told of, rows and events together; onewrite delivers none of them")
		case name == "default_transaction_read_only" && value == "on":
			e.problem(name, e.reset(name, "off", source), "on: onewrite cannot write what it has read")
		}
	}
	if err := e.appSettings(ctx, tx); err != nil {
		return err
	}
	if len(e.found) == said {
		e.ok("settings", "commits are durable")
	}
	if prepared != "" {
		e.ok("two-phase commit", "max_prepared_transactions = %s: writers send no NOTIFY, onewrite looks by itself up to 50 ms later", prepared)
	}
	return nil
}

// appSettings looks at what the application's role was given.
func (e *examiner) appSettings(ctx context.Context, tx pgx.Tx) error {
	if e.o.AppRole == "" || e.o.AppRole == e.role {
		return nil
	}
	found, err := rowsOf(ctx, tx, `SELECT (s.setdatabase = 0)::text FROM pg_db_role_setting s JOIN pg_roles r ON r.oid = s.setrole
		WHERE r.rolname = $1 AND (s.setdatabase = 0 OR s.setdatabase = (SELECT oid FROM pg_database WHERE datname = current_database())) AND 'synchronous_commit=off' = ANY (s.setconfig)`, e.o.AppRole)
	for _, f := range found {
		where := ""
		if f[0] != "true" {
			where = " IN DATABASE " + quoted(e.database)
		}
		e.warn("synchronous_commit", "ALTER ROLE "+quoted(e.o.AppRole)+where+" RESET synchronous_commit;",
			"off for %s: a crash takes back commits of the last moment that it was told of, rows and events together; onewrite delivers none of them", e.o.AppRole)
	}
	return err
}

// reset is what gives a setting the value that it should have, where it was set.
func (e *examiner) reset(name, want, source string) string {
	sql := ""
	switch source {
	case "client":
		return "remove " + name + " from the source's url"
	case "command line", "environment variable":
		return "start the server without -c " + name
	case "database":
		sql = fmt.Sprintf("ALTER DATABASE %s RESET %s;", quoted(e.database), name)
	case "user":
		sql = fmt.Sprintf("ALTER ROLE %s RESET %s;", quoted(e.role), name)
	case "database user":
		sql = fmt.Sprintf("ALTER ROLE %s IN DATABASE %s RESET %s;", quoted(e.role), quoted(e.database), name)
	default:
		sql = fmt.Sprintf("ALTER SYSTEM SET %s = %s; SELECT pg_reload_conf();", name, want)
	}
	if name == "default_transaction_read_only" { // it may hold for whoever runs this
		sql = "SET default_transaction_read_only = off; " + sql
	}
	return sql
}

// maxSkew is how far two clocks may differ before it is said.
const maxSkew = 5 * time.Second

// clock compares the server's clock with that of this machine. The answer was given
// somewhere between the question and its arrival.
func (e *examiner) clock(ctx context.Context, tx pgx.Tx) error {
	before := e.now()
	var server time.Time
	if err := row(ctx, tx, `SELECT clock_timestamp()`).Scan(&server); err != nil {
		return err
	}
	after := e.now()
	skew := max(server.Sub(after), before.Sub(server))
	if skew <= maxSkew {
		e.ok("clock", "within %v of this machine's", max(after.Sub(before), time.Millisecond).Round(time.Millisecond))
		return nil
	}
	way := "behind"
	if server.After(after) {
		way = "ahead of"
	}
	e.warn("clock", "timedatectl set-ntp true", "the server's clock is %v %s this machine's: lag and the times of events are wrong by that", skew.Round(time.Second), way)
	return nil
}

// transactions names those that have lasted for long and are in the way.
func (e *examiner) transactions(ctx context.Context, tx pgx.Tx) error {
	found, err := rowsOf(ctx, tx, `SELECT a.pid::text, coalesce(a.usename, '')::text, coalesce(a.application_name, ''), date_trunc('second', clock_timestamp() - a.xact_start)::text,
			coalesce((SELECT string_agg(DISTINCT c.relname::text, ', ') FROM pg_locks l JOIN pg_class c ON c.oid = l.relation JOIN pg_namespace n ON n.oid = c.relnamespace
				WHERE l.pid = a.pid AND l.locktype = 'relation' AND l.granted AND l.database = a.datid AND n.nspname = 'onewrite' AND c.relname ~ '^outbox_[0-9]$'), '') AS held
		FROM pg_stat_activity a
		WHERE a.datname = current_database() AND a.pid <> pg_backend_pid() AND a.backend_type = 'client backend' AND a.xact_start < clock_timestamp() - make_interval(secs => $1)
			AND (a.backend_xid IS NOT NULL OR a.backend_xmin IS NOT NULL OR EXISTS (SELECT FROM pg_locks l JOIN pg_class c ON c.oid = l.relation JOIN pg_namespace n ON n.oid = c.relnamespace
				WHERE l.pid = a.pid AND l.granted AND n.nspname = 'onewrite'))
		ORDER BY a.xact_start LIMIT 5`, e.old.Seconds())
	if err != nil {
		return err
	}
	for _, f := range found {
		does := "it holds a snapshot, and vacuum leaves what is dead since then"
		if f[4] != "" {
			does = "it holds onewrite." + f[4] + ", which cannot be emptied, and its events come when it commits"
		}
		e.warn("transactions", "SELECT pg_terminate_backend("+f[0]+");", "session %s (role %s, %s) has been in a transaction for %s: %s", f[0], f[1], f[2], f[3], does)
	}
	if len(found) > 0 {
		return nil
	}
	var all bool
	if err := row(ctx, tx, `SELECT pg_has_role(current_user, 'pg_read_all_stats', 'USAGE')`).Scan(&all); err != nil {
		return err
	}
	if all {
		e.ok("transactions", "none is older than %.0f minutes", e.old.Minutes())
	} else {
		e.ok("transactions", "none of %[1]s is older than %.0[2]f minutes; those of other roles show after GRANT pg_read_all_stats TO %[3]s", e.role, e.old.Minutes(), quoted(e.role))
	}
	return nil
}

// prepared names transactions that were prepared and forgotten.
func (e *examiner) prepared(ctx context.Context, tx pgx.Tx) error {
	found, err := rowsOf(ctx, tx, `SELECT quote_literal(gid), owner::text, date_trunc('second', clock_timestamp() - prepared)::text FROM pg_prepared_xacts
		WHERE database = current_database() AND prepared < clock_timestamp() - make_interval(secs => $1) ORDER BY prepared LIMIT 5`, e.old.Seconds())
	for _, f := range found {
		e.warn("prepared", "ROLLBACK PREPARED "+f[0]+";", "the transaction %s of %s was prepared %s ago and not ended: what it wrote waits, its locks and snapshot stay; COMMIT PREPARED is the other way", f[0], f[1], f[2])
	}
	return err
}

// reader says who reads the outbox, and what lies in it.
func (e *examiner) reader(ctx context.Context, tx pgx.Tx) error {
	if !e.objects["outbox"] {
		return nil
	}
	var used int
	var bytes int64
	err := row(ctx, tx, `SELECT count(*) FILTER (WHERE pg_relation_size(c.oid) > 0), coalesce(sum(CASE WHEN pg_relation_size(c.oid) > 0 THEN pg_total_relation_size(c.oid) END), 0)::bigint
		FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = 'onewrite' AND c.relname ~ '^outbox_[0-9]$' AND c.relkind = 'r'`).Scan(&used, &bytes)
	if err != nil {
		return err
	}
	var pid, who, since string
	err = row(ctx, tx, `SELECT l.pid::text, coalesce(a.usename::text, '?') || coalesce(' from ' || host(a.client_addr), ''), coalesce(' since ' || to_char(a.backend_start, 'YYYY-MM-DD HH24:MI:SS'), '')
		FROM pg_locks l LEFT JOIN pg_stat_activity a USING (pid)
		WHERE l.locktype = 'advisory' AND l.classid = $1::bigint::oid AND l.objid = 1 AND l.objsubid = 2 AND l.granted
		AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())`, int64(lockClass)).Scan(&pid, &who, &since)
	switch {
	case err == nil:
		e.ok("reader", "onewrite runs: session %s (%s) reads this outbox%s", pid, strings.TrimSpace(who), since)
	case !errors.Is(err, pgx.ErrNoRows):
		return err
	case e.grant != "":
		e.warn("reader", e.grant, "nobody reads this outbox: onewrite run cannot, as long as %s lacks its rights", e.role)
	case used > 0:
		e.warn("reader", "onewrite run", "nobody reads this outbox, and rows wait in it")
	default:
		e.ok("reader", "nobody reads this outbox, and nothing waits in it")
	}
	if bytes >= e.large {
		e.warn("backlog", "onewrite status", "the outbox holds %s in %d of %d leaves: a destination is slow, or a transaction holds a leaf", disk.Bytes(bytes), used, leaves)
	} else if used > 0 {
		e.ok("backlog", "%s in %d of %d leaves", disk.Bytes(bytes), used, leaves)
	} else {
		e.ok("backlog", "empty")
	}
	return nil
}
