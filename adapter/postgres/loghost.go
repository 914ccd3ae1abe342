package postgres

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/onewrite/onewrite/internal/pgoutput"
)

// The log may be read from a standby (Config.LogURL), which keeps the slot and does the
// decoding. All else stays with the primary: the outbox, the registry, the watermarks, the
// rows of a snapshot. A standby has the same log at the same places, a moment later; what
// has to be made sure is that it is a standby of that primary, and still is.

// standbySlot ends the name of a slot on a standby: one of the usual name may be there, a
// copy of the primary's.
const standbySlot = "_s"

// logURL is where the log is read.
func (c *Config) logURL() string { return cmp.Or(c.LogURL, c.URL) }

// hostState is what a standby says of itself.
type hostState struct {
	version  int
	standby  bool
	level    string
	feedback bool
	slot     string // by which the primary keeps log for it; "" if none
	system   uint64
}

func lookAtHost(ctx context.Context, host *pgx.Conn) (h hostState, err error) {
	var system int64
	err = host.QueryRow(ctx, `SELECT current_setting('server_version_num')::int, pg_is_in_recovery(), current_setting('wal_level'), current_setting('hot_standby_feedback')::bool, current_setting('primary_slot_name'), (SELECT system_identifier FROM pg_control_system())`).
		Scan(&h.version, &h.standby, &h.level, &h.feedback, &h.slot, &system)
	h.system = uint64(system)
	return h, explain(err)
}

// problem says why the log cannot be read from a server, and the cure; "" is not at all.
// system is the cluster of the primary.
func (h hostState) problem(system uint64) (text, cure string) {
	switch {
	case h.version < 160000:
		return fmt.Sprintf("the server of log_url has version %d, and a standby can decode its log from 16 on", h.version/10000), "take log_url out of the source"
	case h.system != system:
		return fmt.Sprintf("the server of log_url is of another cluster than that of url (system identifier %d, there %d)", h.system, system), "name a standby of url's server in log_url"
	case !h.standby:
		return "the server of log_url is no standby, perhaps it was promoted: what it writes now is another history than that of url's server", "name a standby of url's server in log_url, or take log_url out where url names the new primary"
	case h.level != "logical":
		return "the standby of log_url has wal_level = " + h.level, "run there: ALTER SYSTEM SET wal_level = 'logical'; then restart it"
	case !h.feedback:
		return "the standby of log_url has hot_standby_feedback = off, so that the primary removes what its log needs to be decoded", "run there: ALTER SYSTEM SET hot_standby_feedback = on; SELECT pg_reload_conf()"
	}
	return "", ""
}

const (
	// endOfLog is up to where a server has log that can be decoded.
	endOfLog = `CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_flush_lsn() END`
	// timeline is that of a primary.
	timeline = `('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::bigint`
)

// timelineOf asks a standby for its timeline.
func timelineOf(ctx context.Context, host *pgx.Conn) (line uint32, err error) {
	var system, at string
	var database *string
	err = host.QueryRow(ctx, "IDENTIFY_SYSTEM").Scan(&system, &line, &at, &database)
	return line, explain(err)
}

// follow waits until the standby has all that the primary has now: the publication, without
// which nothing can be decoded, and what the bus has.
func (r *logReader) follow(ctx context.Context, system uint64) error {
	var line uint32
	var at string
	err := r.cat.conn.QueryRow(ctx, `SELECT pg_logical_emit_message(true, $1, 'follow')::text, `+timeline, ownPrefix).Scan(&at, &line)
	if err != nil {
		return explain(err)
	}
	for said := false; ; said = true {
		h, err := lookAtHost(ctx, r.host)
		if err != nil {
			return err
		}
		if text, cure := h.problem(system); text != "" {
			return fmt.Errorf("postgres: %s; %s", text, cure)
		}
		text := ""
		var there bool
		if err := r.host.QueryRow(ctx, `SELECT pg_last_wal_replay_lsn() >= $1::text::pg_lsn`, at).Scan(&there); err != nil {
			return explain(err)
		}
		now, err := timelineOf(ctx, r.host)
		switch {
		case err != nil:
			return err
		case now != line:
			text = fmt.Sprintf("the standby of log_url is on timeline %d, the server of url on %d", now, line)
		case !there:
			text = "the standby of log_url has not replayed yet what the server of url has"
		default:
			if said { // what is waited for from now on
				r.cfg.trouble("log", slotWaits)
			}
			return r.sameHistory(ctx, line)
		}
		r.cfg.trouble("log", "row changes are not read yet: "+text+"; look there: "+lookAtReceiver)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(100 * time.Millisecond):
		}
	}
}

const lookAtReceiver = "SELECT status, sender_host, latest_end_time FROM pg_stat_wal_receiver"

// sameHistory makes sure that two servers came to their timeline in the same way: of two
// standbys that were promoted side by side, both are on the next.
func (r *logReader) sameHistory(ctx context.Context, line uint32) error {
	if line == 1 {
		return nil
	}
	here, err := timelineHistory(ctx, r.cfg.URL, line)
	if err != nil {
		return err
	}
	there, err := timelineHistory(ctx, r.cfg.LogURL, line)
	if err == nil && here != there {
		err = fmt.Errorf("postgres: the server of log_url came to timeline %d in another way than that of url: it follows another primary; name a standby of url's server in log_url", line)
	}
	return err
}

// hostLate is how long a standby may be behind before it is said.
const hostLate = 30 * time.Second

// checkHost makes sure that the standby still follows the primary. behind says that it
// does so slowly, or has stopped to.
func (r *logReader) checkHost(ctx context.Context) (behind string, err error) {
	h, err := lookAtHost(ctx, r.host)
	if err != nil {
		return "", err
	}
	if text, cure := h.problem(r.opened.system); text != "" {
		return "", fmt.Errorf("postgres: %s; %s", text, cure)
	}
	var line uint32
	var flushed string
	if err := r.cat.conn.QueryRow(ctx, `SELECT `+timeline+`, pg_current_wal_flush_lsn()::text`).Scan(&line, &flushed); err != nil {
		return "", explain(err)
	}
	now, err := timelineOf(ctx, r.host)
	if err != nil {
		return "", err
	}
	if now != line || line != r.begin.line {
		return "", fmt.Errorf("postgres: the standby of log_url is on timeline %d, the server of url on %d, and reading began on %d", now, line, r.begin.line) // opening it again waits, or says why
	}
	var there bool
	if err := r.host.QueryRow(ctx, `SELECT pg_last_wal_replay_lsn() >= $1::text::pg_lsn`, r.ahead.String()).Scan(&there); err != nil {
		return "", explain(err)
	}
	if there {
		r.aheadAt = time.Now()
		r.ahead, err = pgoutput.ParseLSN(flushed)
		return "", err
	}
	if d := time.Since(r.aheadAt); d > hostLate {
		behind = fmt.Sprintf("the standby of log_url is %v behind the server of url; look there: %s", d.Round(time.Second), lookAtReceiver)
	}
	return behind, nil
}

// createSlot makes the slot and returns where it begins. A standby can do so when its log
// has told which transactions are open, which the primary writes now and then.
func (r *logReader) createSlot(ctx context.Context, system uint64, version int) (began string, err error) {
	r.slotting.Store(true)
	defer r.slotting.Store(false)
	const create = `SELECT lsn::text FROM pg_create_logical_replication_slot($1, 'pgoutput', %s)`
	options := "false, false"
	if r.host == r.cat.conn {
		if version >= 170000 { // a standby may keep a copy of it
			options = "false, false, true"
		}
		err = r.host.QueryRow(ctx, fmt.Sprintf(create, options), r.slot).Scan(&began)
		return began, explainSlot(err)
	}
	if err := r.follow(ctx, system); err != nil { // to the publication, perhaps made just now
		return "", err
	}
	waiting, end := context.WithCancel(ctx)
	defer end()
	made, asked := make(chan struct{}), make(chan error, 1)
	go func() {
		for pause := 200 * time.Millisecond; ; pause = min(2*pause, 5*time.Second) {
			select {
			case <-made:
				asked <- nil
				return
			case <-time.After(pause):
			}
			_, err := r.cat.conn.Exec(ctx, `SELECT pg_log_standby_snapshot()`)
			if isCode(err, "42501") { // it does so by itself within 15 s, if something was written
				_, err = r.cat.conn.Exec(ctx, `SELECT pg_logical_emit_message(true, $1, 'slot')`, ownPrefix)
			}
			if err != nil {
				asked <- explain(err)
				end() // it would wait for ever
				return
			}
		}
	}()
	err = r.host.QueryRow(waiting, fmt.Sprintf(create, options), r.slot).Scan(&began)
	close(made)
	return began, errors.Join(explainSlot(err), <-asked)
}

// dropOther drops the slot by which the log was read from another server, if it is on the
// primary: nobody reads it any more. That of another database is of the one that this one
// is a copy of, and somebody may read it.
func (r *logReader) dropOther(ctx context.Context, slot string) error {
	var ours int
	err := r.cat.conn.QueryRow(ctx, `SELECT count(*) FROM (SELECT CASE WHEN active THEN pg_terminate_backend(active_pid) END FROM pg_replication_slots WHERE slot_name = $1 AND database = current_database()) s`, slot).Scan(&ours)
	if err != nil || ours == 0 {
		return explain(err)
	}
	return dropSlot(ctx, r.cat.conn, slot)
}
