package postgres

import (
	"context"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"
)

// slot looks at our slot and at those that nobody reads.
func (e *examiner) slot(ctx context.Context, tx pgx.Tx) error {
	var keep int64
	var mine *string
	err := tx.QueryRow(ctx, `SELECT (SELECT setting::bigint * 1024 * 1024 FROM pg_settings WHERE name = 'max_slot_wal_keep_size')`).Scan(&keep)
	if err == nil && e.objects["log"] && e.o.Capture.Source != "" {
		err = tx.QueryRow(ctx, `SELECT max(slot) FROM onewrite.log WHERE source = $1`, e.o.Capture.Source).Scan(&mine)
	}
	if err != nil {
		return err
	}
	name := ""
	if mine != nil {
		name = *mine
	}
	left, err := stale(ctx, e.conn, name)
	if err != nil {
		return err
	}
	for _, slot := range left {
		e.warn("slot", dropped(slot)+";", "slot %s is read by nobody and keeps the server's log; another copy of onewrite that is stopped may want it", slot)
	}
	if !e.o.Capture.on() {
		return e.leftSlot(ctx, name)
	}
	if keep < 0 {
		e.warn("slot", "ALTER SYSTEM SET max_slot_wal_keep_size = '20GB'; SELECT pg_reload_conf()", "max_slot_wal_keep_size has no limit: a relay that is down for long fills the server's disk with log")
	}
	if name == "" {
		e.ok("slot", "onewrite run makes the slot when it starts first")
		return nil
	}
	if e.host == nil {
		return nil // that was said
	}
	anew := "onewrite run  # it makes the slot anew and reads the tables again"
	if e.o.Capture.HoldGap {
		anew = "set on_gap: snapshot for the source and restart onewrite run, which makes the slot anew and reads the tables again"
	}
	s, err := lookAtSlot(ctx, e.host, name, 150000)
	if err != nil {
		return err
	}
	other, err := e.otherLog(ctx, s)
	switch {
	case err != nil:
		return err
	case other != "":
		e.problem("slot", anew, "%s: row changes and messages are missing", other)
	case s == nil:
		e.problem("slot", anew, "slot %s is gone: row changes and messages since are missing", name)
	case s.foreign != "" || s.lost != "":
		e.problem("slot", anew, "slot %s is of no more use: %s", name, s.foreign+s.lost)
	case s.retained > warnRetained:
		e.warn("slot", "onewrite status", "slot %s keeps %s of the server's log", name, mega(s.retained))
	default:
		e.ok("slot", "slot %s keeps %s of the server's log", name, mega(s.retained))
	}
	return nil
}

// otherLog says why the log, or the slot, is another one than was read, as far as it can be
// seen without what the bus has; "": nothing says so.
func (e *examiner) otherLog(ctx context.Context, s *slotState) (string, error) {
	rec, err := recordOf(ctx, e.conn, e.o.Capture.Source)
	if err != nil || rec == nil {
		return "", err
	}
	var system int64
	var database, pub uint32
	err = e.conn.QueryRow(ctx, `SELECT (SELECT system_identifier FROM pg_control_system()), (SELECT oid FROM pg_database WHERE datname = current_database()), coalesce((SELECT oid FROM pg_publication WHERE pubname = $1), 0)`, publicationOf(e.o.Capture.Source)).
		Scan(&system, &database, &pub)
	if err != nil {
		return "", explain(err)
	}
	if rec.pub == 0 || pub == 0 { // migrate was run for it, or is asked for by the check of the tables
		pub = rec.pub
	}
	name := slotOf(e.o.Capture.Source, database)
	if e.o.Capture.LogURL != "" {
		name += standbySlot
	}
	if other := rec.other(name, uint64(system), pub); other != "" {
		return other, nil
	}
	if s == nil || s.pid != 0 || s.foreign+s.lost != "" || s.confirmed <= max(rec.began, rec.idle, rec.read) {
		return "", nil
	}
	// It is beyond what is recorded, to where only reading moves it: its own counts are of this
	// slot alone.
	var read bool
	err = e.host.QueryRow(ctx, `SELECT coalesce((SELECT total_bytes > 0 FROM pg_stat_replication_slots WHERE slot_name = $1), true)`, s.name).Scan(&read)
	if err != nil || read {
		return "", explain(err)
	}
	return fmt.Sprintf("slot %s was dropped and made again: it begins at %s, and nothing was read by it", s.name, s.confirmed), nil
}

// leftSlot looks at the slot of a source that reads the log no more.
func (e *examiner) leftSlot(ctx context.Context, name string) error {
	if name == "" {
		return nil
	}
	const says = "the configuration reads the log no more, and nobody has run onewrite migrate since: slot %s keeps the log of its server"
	if strings.HasSuffix(name, standbySlot) {
		e.problem("slot", "onewrite migrate  # then on the standby that log_url named: "+dropped(name)+";", says, name)
		return nil
	}
	s, err := lookAtSlot(ctx, e.conn, name, 150000)
	if err != nil || s == nil {
		return err
	}
	var published bool
	if err := e.conn.QueryRow(ctx, `SELECT EXISTS (SELECT FROM pg_publication WHERE pubname = $1)`, publicationOf(e.o.Capture.Source)).Scan(&published); err != nil {
		return explain(err)
	}
	cure := "onewrite migrate"
	switch {
	case !published && s.pid == 0: // migrate was run by a role that may not drop it
		e.problem("slot", dropped(name)+"; -- as superuser, or as a role with REPLICATION", "the log is read no more, and slot %s is left: it keeps the log of its server", name)
		return nil
	case s.pid != 0:
		cure = "onewrite migrate  # when onewrite run, which reads it still, was restarted with this configuration"
	}
	e.problem("slot", cure, says, name)
	return nil
}
