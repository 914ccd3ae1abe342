package postgres

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/onewrite/onewrite"
)

// log looks at what the server needs for row changes and messages to be read.
func (e *examiner) log(ctx context.Context, tx pgx.Tx) error {
	if !e.o.Capture.on() {
		return nil
	}
	var level string
	var version, senders, sending, slots, used int
	var replication, timeout bool
	err := tx.QueryRow(ctx, `SELECT current_setting('wal_level'), current_setting('server_version_num')::int,
		current_setting('max_wal_senders')::int, (SELECT count(*) FROM pg_stat_replication), current_setting('max_replication_slots')::int, (SELECT count(*) FROM pg_replication_slots),
		(SELECT rolreplication OR rolsuper FROM pg_roles WHERE rolname = current_user), (SELECT setting::int = 0 FROM pg_settings WHERE name = 'wal_sender_timeout')`).
		Scan(&level, &version, &senders, &sending, &slots, &used, &replication, &timeout)
	if err != nil {
		return err
	}
	found := len(e.found)
	if level != "logical" {
		e.problem("log", "ALTER SYSTEM SET wal_level = 'logical'; -- then restart the server", "wal_level is %s: row changes and messages cannot be read", level)
	}
	if !replication {
		e.problem("log", "ALTER ROLE "+quoted(e.role)+" REPLICATION; -- as superuser", "role %s may not read the log", e.role)
	}
	if sending >= senders {
		e.problem("log", fmt.Sprintf("ALTER SYSTEM SET max_wal_senders = %d; -- then restart the server", senders+4), "all %d of max_wal_senders are in use", senders)
	}
	if used >= slots {
		e.warn("log", "SELECT slot_name, active FROM pg_replication_slots", "all %d of max_replication_slots are there; a new one cannot be made", slots)
	}
	if bad := badMinor[version]; bad {
		e.warn("log", "install the newest minor release", "version %d.%d can run out of memory, or miss that a publication changed, while it decodes", version/10000, version%10000)
	}
	if timeout {
		e.warn("log", "ALTER SYSTEM SET wal_sender_timeout = '60s'; SELECT pg_reload_conf()", "wal_sender_timeout is off: a reader whose machine is gone holds the slot until the network says so")
	}
	if len(e.found) == found {
		e.ok("log", "row changes and messages can be read: wal_level is logical, role %s may", e.role)
	}
	return nil
}

// logURL looks at the standby from which the log is read, if it is.
func (e *examiner) logURL(ctx context.Context, tx pgx.Tx) error {
	if len(e.o.Capture.Tables) == 0 || e.o.Capture.LogURL == "" {
		return nil
	}
	e.host = nil
	host, err := connectSender(ctx, e.o.Capture.LogURL, "onewrite")
	if err != nil {
		e.failed("log_url", err)
		f := &e.found[len(e.found)-1]
		if sql, ok := strings.CutPrefix(f.Cure, asSuperuser); ok {
			f.Cure = sql + "; -- as superuser, on the server of url: the standby gets it from there"
		}
		return nil
	}
	defer func() {
		if e.host == nil {
			closeSoon(ctx, host)
		}
	}()
	var system int64
	var snapshot bool
	if err := tx.QueryRow(ctx, `SELECT system_identifier, coalesce(has_function_privilege(to_regprocedure('pg_log_standby_snapshot()'), 'EXECUTE'), true) FROM pg_control_system()`).Scan(&system, &snapshot); err != nil {
		return err
	}
	h, err := lookAtHost(ctx, host)
	if err != nil {
		e.failed("log_url", err)
		return nil
	}
	if text, cure := h.problem(uint64(system)); text != "" {
		e.problem("log_url", cure, "%s", text)
		return nil
	}
	e.host = host
	found := len(e.found)
	if h.slot == "" {
		e.warn("log_url", "SELECT pg_create_physical_replication_slot('standby', true); -- on the server of url; then on the standby: ALTER SYSTEM SET primary_slot_name = 'standby'; SELECT pg_reload_conf()",
			"the standby has no slot on the primary: while it is away, the primary removes what its log needs, and the tables have to be read again")
	}
	if !snapshot {
		e.warn("log_url", "GRANT EXECUTE ON FUNCTION pg_log_standby_snapshot() TO "+quoted(e.role)+"; -- as superuser", "role %s may not run pg_log_standby_snapshot(): it takes longer to make the slot on the standby", e.role)
	}
	if len(e.found) == found {
		e.ok("log_url", "the log can be read from the standby")
	}
	return nil
}

// badMinor are the releases of May 2025, whose fix for invalidations in logical decoding
// was itself mended in the next.
var badMinor = map[int]bool{150013: true, 160009: true, 170005: true}

// messages looks at the functions that write events into the log.
func (e *examiner) messages(ctx context.Context, tx pgx.Tx) error {
	if !e.o.Capture.Messages || !e.objects["outbox"] {
		return nil
	}
	same := 0
	for _, m := range emitters {
		var source string
		if err := row(ctx, tx, `SELECT coalesce((SELECT p.prosrc FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace WHERE n.nspname = 'onewrite'
			AND 'onewrite.' || p.proname || '(' || oidvectortypes(p.proargtypes) || ')' = $1), '')`, m.name()).Scan(&source); err != nil {
			return err
		}
		if source == m.body(e.o) {
			same++
		}
	}
	if same < len(emitters) {
		e.problem("messages", "onewrite migrate", "the function onewrite.emit is missing, or does not check events as the configuration says")
		return nil
	}
	e.ok("messages", "onewrite.emit is there")
	return nil
}

// ddl looks at the event triggers.
func (e *examiner) ddl(ctx context.Context, tx pgx.Tx) error {
	if !e.o.Capture.DDL || !e.objects["outbox"] {
		return nil
	}
	_, same, err := tellStateOf(ctx, tx)
	if err != nil {
		return err
	}
	if same < len(tellers) {
		e.problem("ddl", "onewrite migrate", "the event triggers that tell of DDL are missing, turned off or others: as a superuser, or the provider's role for event triggers, make them")
		return nil
	}
	e.ok("ddl", "the event triggers that tell of DDL are there")
	return nil
}

// leaves looks at the partitions of what is captured.
func (e *examiner) leaves(ctx context.Context, tx pgx.Tx, list []captured) error {
	bad, err := leavesOf(ctx, tx, "", rels(list)...)
	for _, l := range bad {
		cure := l.cure + ";"
		if l.wrong() && !l.unlogged {
			cure = "onewrite migrate"
		}
		e.problem("tables", cure, "%s", l.problem())
	}
	return err
}

// tables looks at what is captured.
func (e *examiner) tables(ctx context.Context, tx pgx.Tx) error {
	if !e.o.Capture.on() {
		return nil
	}
	if !e.objects["captured"] {
		e.problem("tables", "onewrite migrate", "nothing captures the tables of tables:, or the messages of messages:, yet")
		return nil
	}
	list, err := registry(ctx, e.conn, e.o.Capture.Source)
	if err != nil {
		return err
	}
	found := len(e.found)
	if e.o.Capture.Pushed && e.objects["outbox"] {
		if member, err := outboxMember(ctx, e.conn, e.o.Capture.Source); err != nil {
			return err
		} else if member.oid == 0 {
			e.problem("tables", "onewrite migrate", "outbox: log is set, and the outbox is not in the publication %s: its events come up to a second late", publicationOf(e.o.Capture.Source))
		}
	}
	want, unfound := findTables(ctx, tx, e.o.Capture.Tables)
	rest, replaced, err := e.replaced(ctx, tx, list, want)
	if err != nil {
		return err
	}
	var gap *onewrite.Gap
	_, gone, err := verifyCapture(ctx, e.conn, e.o.Capture.Source, rest)
	if errors.As(err, &gap) {
		e.problem("tables", "onewrite migrate", "%s", strings.TrimPrefix(gap.Reason, "row changes: "))
	} else if err != nil {
		return err
	}
	if err := e.leaves(ctx, tx, rest); err != nil {
		return err
	}
	for _, name := range namesOf(gone) {
		e.problem("tables", "onewrite migrate  # as the owner of the tables, with it taken out of tables:", "the table %s was dropped", name)
	}
	if unfound != nil {
		e.failed("tables", unfound)
		return nil
	}
	if err := e.compare(ctx, tx, list, want, replaced); err != nil {
		return err
	}
	if len(e.found) == found { // with the rights that were looked at
		if err := e.o.Capture.conditions(ctx, tx, want); err != nil {
			e.problem("tables", "onewrite migrate", "%v", err)
		}
	}
	if len(e.found) == found {
		e.ok("tables", "captured tables: %d", len(list))
	}
	return nil
}

// compare looks at which tables are captured, and which are to be.
func (e *examiner) compare(ctx context.Context, tx pgx.Tx, list []captured, want []found, replaced map[string]bool) error {
	has := map[uint32]captured{}
	for _, c := range list {
		has[c.rel] = c
	}
	for _, f := range want {
		c, ok := has[f.rel]
		delete(has, f.rel)
		if !ok {
			if !replaced[f.full()] {
				e.problem("tables", "onewrite migrate", "%s is in tables: and not captured yet", f.full())
			}
			continue
		}
		var may bool
		if err := tx.QueryRow(ctx, `SELECT has_table_privilege($1::oid, 'SELECT')`, f.rel).Scan(&may); err != nil {
			return err
		}
		if !may {
			e.problem("tables", "GRANT SELECT ON "+c.quoted()+" TO "+quoted(e.role)+";", "role %s may not read %s, so there can be no snapshot of it", e.role, f.full())
		}
	}
	for _, c := range has {
		if !replaced[c.name] {
			e.warn("tables", "onewrite migrate", "%s is captured and not in tables: any more", c.name)
		}
	}
	return nil
}

// replaced finds the tables whose name is another's now, and says so where they were dropped:
// what is left of the list is to be compared with the publication, which says so where they
// have another name.
func (e *examiner) replaced(ctx context.Context, tx pgx.Tx, list []captured, want []found) (rest []captured, names map[string]bool, err error) {
	names = map[string]bool{}
	for _, c := range list {
		there := true
		if slices.ContainsFunc(want, func(f found) bool { return f.full() == c.name && f.rel != c.rel }) {
			names[c.name] = true
			if err := tx.QueryRow(ctx, `SELECT EXISTS (SELECT FROM pg_class WHERE oid = $1)`, c.rel).Scan(&there); err != nil {
				return nil, nil, err
			}
		}
		if there {
			rest = append(rest, c)
			continue
		}
		e.problem("tables", "onewrite migrate", "the table %s was dropped and made again: row changes of the new one are not captured", c.name)
	}
	return rest, names, nil
}
