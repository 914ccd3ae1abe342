package postgres

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/onewrite/onewrite/internal/diagnosis"
)

// Examine looks at the database of a source as onewrite run and the application
// use it, and says what it finds; the caller adds the Subject. It only reads, in
// short transactions, so it may run beside a reader, and before Migrate too. imports
// are those of the source.
func Examine(ctx context.Context, url string, o MigrateOptions, imports ...Import) []diagnosis.Finding {
	e := &examiner{url: url, o: o, imports: imports, now: time.Now, old: 10 * time.Minute, large: 1 << 30}
	e.run(ctx)
	return e.found
}

// examiner is one examination.
type examiner struct {
	url     string
	o       MigrateOptions
	imports []Import
	now     func() time.Time
	old     time.Duration // transactions that last longer are named
	large   int64         // bytes of an outbox that is said to be large
	found   []diagnosis.Finding

	conn     *pgx.Conn
	host     *pgx.Conn // a session where the slot is; nil: it cannot be reached
	role     string    // that the url names
	owner    string    // as whom onewrite migrate has to run; "": that role will do
	database string
	super    bool
	pooled   bool            // a session is not the same from one transaction to the next
	grant    string          // the SQL without which the role cannot read the outbox
	objects  map[string]bool // the tables and sequences in the schema
}

// migrates is the cure of what the owner of the schema onewrite mends.
const migrates = "onewrite migrate"

func (e *examiner) add(s diagnosis.Severity, check, text, cure string) {
	if rest, is := strings.CutPrefix(cure, migrates); is && e.owner != "" && (rest == "" || strings.HasPrefix(rest, "  # when ")) {
		cure = migrates + "  # as " + e.owner + ", who owns the schema onewrite" + strings.Replace(rest, "  # when ", ", when ", 1)
	}
	e.found = append(e.found, diagnosis.Finding{Severity: s, Check: check, Text: text, Cure: cure})
}

func (e *examiner) ok(check, format string, args ...any) {
	e.add(diagnosis.OK, check, fmt.Sprintf(format, args...), "")
}

func (e *examiner) warn(check, cure, format string, args ...any) {
	e.add(diagnosis.Warning, check, fmt.Sprintf(format, args...), cure)
}

func (e *examiner) problem(check, cure, format string, args ...any) {
	e.add(diagnosis.Problem, check, fmt.Sprintf(format, args...), cure)
}

// failed reports an error of this package, whose last words are the cure.
func (e *examiner) failed(check string, err error) {
	if errors.Is(err, context.DeadlineExceeded) {
		e.problem(check, "SELECT pid, state, wait_event, query FROM pg_stat_activity", "the server does not answer in time")
		return
	}
	text, cure := strings.TrimPrefix(err.Error(), "postgres: "), "look into the log of the server"
	if i := strings.LastIndex(text, "; "); i > 0 {
		text, cure = text[:i], text[i+2:]
	}
	var lines []string // the driver says it of each address, and of each way to connect
	for line := range strings.Lines(text) {
		if line = strings.TrimSpace(line); !slices.ContainsFunc(lines, func(l string) bool { return strings.Contains(l, line) }) {
			lines = append(lines, line)
		}
	}
	e.problem(check, cure, "%s", strings.Join(lines, ", "))
}

// run makes the checks in an order in which the first finding explains the next.
func (e *examiner) run(ctx context.Context) {
	start := e.now()
	conn, _, err := connect(ctx, e.url)
	if err != nil {
		e.failed("connection", err)
		f := &e.found[0]
		f.Cure = unreached(f.Text, f.Cure)
		return
	}
	e.conn, e.host = conn, conn
	defer func() {
		closeSoon(ctx, conn)
		if e.host != nil && e.host != conn {
			closeSoon(ctx, e.host)
		}
	}()
	if !e.look(ctx, "connection", func(ctx context.Context, tx pgx.Tx) error { return e.server(ctx, tx, e.now().Sub(start)) }) {
		return
	}
	e.direct(ctx)
	e.encryption()
	for _, c := range []struct {
		check string
		look  func(context.Context, pgx.Tx) error
	}{
		{"outbox", e.outbox}, {"functions", e.definers}, {"rights", e.rights}, {"settings", e.settings}, {"encoding", e.encoding}, {"clock", e.clock},
		{"transactions", e.transactions}, {"prepared", e.prepared}, {"reader", e.reader},
		{"log", e.log}, {"log_url", e.logURL}, {"slot", e.slot}, {"tables", e.tables}, {"tables", e.policies}, {"columns", e.columns}, {"messages", e.messages}, {"ddl", e.ddl},
	} {
		if !e.look(ctx, c.check, c.look) && (ctx.Err() != nil || conn.IsClosed()) {
			return // the same would be said of all that follows
		}
	}
	e.examineImports(ctx, e.imports)
}

var missing = regexp.MustCompile(`(role|database) "([^"]+)" does not exist`)

// unreached is the command for what keeps a connection from being made.
func unreached(text, cure string) string {
	what := missing.FindStringSubmatch(text)
	where, refused := strings.CutPrefix(text, "cannot connect to ")
	where, _, _ = strings.Cut(where, ": ")
	switch i := strings.LastIndexByte(where, ':'); {
	case what != nil && what[1] == "role":
		return "CREATE ROLE " + quoted(what[2]) + " LOGIN;"
	case what != nil:
		return "CREATE DATABASE " + quoted(what[2]) + ";"
	case strings.Contains(text, noTLS):
		return turnOnTLS
	case strings.Contains(text, "certificate"):
		return "add sslrootcert=ca.pem to the source's url"
	case refused && i > 0:
		return "pg_isready -h " + where[:i] + " -p " + where[i+1:]
	}
	return cure
}

func closeSoon(ctx context.Context, conn *pgx.Conn) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	_ = conn.Close(ctx)
}

// look runs one check in a transaction that can change nothing and gives up on
// locks. Its settings end with it: through a pooler, they would be somebody else's.
func (e *examiner) look(ctx context.Context, check string, f func(context.Context, pgx.Tx) error) bool {
	err := func() error {
		tx, err := e.conn.BeginTx(ctx, pgx.TxOptions{AccessMode: pgx.ReadOnly})
		if err != nil {
			return err
		}
		defer func() { _ = tx.Rollback(context.WithoutCancel(ctx)) }()
		if _, err := tx.Exec(ctx, `SET LOCAL statement_timeout = '8s'; SET LOCAL lock_timeout = '3s'; SET LOCAL search_path = pg_catalog`, pgx.QueryExecModeSimpleProtocol); err != nil {
			return err
		}
		return f(ctx, tx)
	}()
	if err == nil {
		return true
	}
	var pe *pgconn.PgError
	if errors.As(err, &pe) {
		err = explain(pe)
	}
	e.failed(check, err)
	return false
}

// row reads one row without preparing the statement, which poolers may not know.
func row(ctx context.Context, tx pgx.Tx, sql string, args ...any) pgx.Row {
	return tx.QueryRow(ctx, sql, append([]any{pgx.QueryExecModeExec}, args...)...)
}

// rowsOf reads all rows as texts.
func rowsOf(ctx context.Context, tx pgx.Tx, sql string, args ...any) ([][]string, error) {
	rows, err := tx.Query(ctx, sql, append([]any{pgx.QueryExecModeExec}, args...)...)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, func(r pgx.CollectableRow) ([]string, error) {
		out := make([]string, len(r.FieldDescriptions()))
		into := make([]any, len(out))
		for i := range out {
			into[i] = &out[i]
		}
		return out, r.Scan(into...)
	})
}

// server says who answers, and as whom.
func (e *examiner) server(ctx context.Context, tx pgx.Tx, took time.Duration) error {
	var version string
	var number int
	var standby bool
	err := row(ctx, tx, `SELECT current_setting('server_version'), current_setting('server_version_num')::int, pg_is_in_recovery(),
		current_user::text, current_database()::text, (SELECT rolsuper FROM pg_roles WHERE rolname = current_user),
		coalesce((SELECT pg_get_userbyid(nspowner)::text FROM pg_namespace WHERE nspname = 'onewrite' AND NOT pg_has_role(nspowner, 'USAGE')), '')`).
		Scan(&version, &number, &standby, &e.role, &e.database, &e.super, &e.owner)
	if err != nil {
		return err
	}
	e.ok("connection", "role %s on database %s, connected in %v", e.role, e.database, took.Round(time.Millisecond))
	e.version(version, number)
	if standby {
		e.problem("primary", "host=a,b target_session_attrs=read-write", "this server is a standby, which nobody can write to; name the primary in the source's url")
	} else {
		e.ok("primary", "yes")
	}
	if e.super {
		cure := splitRoles
		if e.o.RelayRole != "" {
			cure = "write " + e.o.RelayRole + " in place of " + e.role + " in the source's url"
		}
		e.warn("superuser", cure, "%s is a superuser, onewrite run needs none", e.role)
	}
	return nil
}

// splitRoles gives onewrite a role of its own.
const splitRoles = "CREATE ROLE onewrite_relay LOGIN; -- then roles: {relay: onewrite_relay}, onewrite migrate, and onewrite_relay in url"

// version judges the server's version: the outbox needs 13, and 15 to 18 are tested.
func (e *examiner) version(text string, number int) {
	text, _, _ = strings.Cut(text, " ") // what a distribution adds
	switch {
	case number < 130000:
		e.problem("version", "upgrade to PostgreSQL 15 or newer", "PostgreSQL %s, and the outbox needs 13 or newer", text)
	case number < 150000:
		e.warn("version", "upgrade to PostgreSQL 15 or newer", "PostgreSQL %s is not tested, 15 and newer are", text)
	default:
		e.ok("version", "PostgreSQL %s", text)
	}
}

// direct finds a pooler that gives each transaction the session that is free: of two
// clients one then gets what the other had. A direct session is nobody else's.
func (e *examiner) direct(ctx context.Context) {
	other, _, err := connect(ctx, e.url)
	if err != nil {
		e.failed("session", fmt.Errorf("a second connection is refused: %w", err))
		return
	}
	defer closeSoon(ctx, other)
	var seen [2][]int
	for range 3 {
		for i, conn := range []*pgx.Conn{e.conn, other} {
			var pid int
			if err := conn.QueryRow(ctx, `SELECT pg_backend_pid()`, pgx.QueryExecModeExec).Scan(&pid); err != nil {
				e.failed("session", explain(err))
				return
			}
			seen[i] = append(seen[i], pid)
		}
	}
	address := "host=SERVER port=5432"
	var host, port *string
	if err := e.conn.QueryRow(ctx, `SELECT host(inet_server_addr()), inet_server_port()::text`, pgx.QueryExecModeExec).Scan(&host, &port); err == nil && host != nil && port != nil {
		address = net.JoinHostPort(*host, *port)
	}
	first := seen[0][0]
	switch {
	case slices.Contains(seen[1], first), slices.ContainsFunc(seen[0], func(pid int) bool { return pid != first }):
		e.pooled = true
		e.problem("session", "write the server itself in the source's url: "+address,
			"a pooler gives each transaction another session, and onewrite keeps a lock, notifications and snapshots in one")
	case uint32(first) != e.conn.PgConn().PID():
		e.warn("session", "write the server itself in the source's url: "+address, "a pooler or proxy stands before the server; a dead one is noticed later than a dead server")
	default:
		e.ok("session", "direct")
	}
}

// encryption looks at the connection that was made, whatever the url asked for.
func (e *examiner) encryption() {
	conn := e.conn.PgConn().Conn()
	secure, isTLS := conn.(*tls.Conn)
	local := conn.RemoteAddr().Network() == "unix"
	if tcp, ok := conn.RemoteAddr().(*net.TCPAddr); ok {
		local = tcp.IP.IsLoopback()
	}
	const cure = "add sslmode=verify-full to the source's url"
	switch {
	case !isTLS && local:
		e.ok("tls", "none, and none needed: the server is on this machine")
	case !isTLS:
		e.warn("tls", cure, "the connection to %s is in clear text: events and the password's proof can be read on the way", conn.RemoteAddr())
	case !e.verified() && !local:
		e.warn("tls", cure, "%s, but nobody checks who answers: the certificate is not verified", tls.VersionName(secure.ConnectionState().Version))
	default:
		e.ok("tls", "%s", tls.VersionName(secure.ConnectionState().Version))
	}
}

// verified reports whether the client looks at the server's certificate.
func (e *examiner) verified() bool {
	c := e.conn.Config().TLSConfig
	return c != nil && (!c.InsecureSkipVerify || c.VerifyPeerCertificate != nil)
}

// parts are the tables and sequences of the outbox.
var parts = func() []string {
	names := []string{"outbox", "bus", "migration", "seq", "slot", "asleep", "epoch", "freed"}
	for i := range leaves {
		names = append(names, "outbox_"+strconv.Itoa(i))
	}
	return names
}()

// outbox looks at what onewrite migrate makes.
func (e *examiner) outbox(ctx context.Context, tx pgx.Tx) error {
	names, err := rowsOf(ctx, tx, `SELECT c.relname::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = 'onewrite' AND c.relkind IN ('r', 'p', 'S')`)
	if err != nil {
		return err
	}
	e.objects = map[string]bool{}
	for _, r := range names {
		e.objects[r[0]] = true
	}
	if !e.objects["outbox"] {
		return e.noOutbox(ctx, tx)
	}
	missing := slices.DeleteFunc(slices.Clone(parts), func(name string) bool { return e.objects[name] })
	if len(missing) > 0 {
		cure := "onewrite migrate --down, then onewrite migrate"
		if !slices.ContainsFunc(missing, func(name string) bool { return !strings.HasPrefix(name, "outbox_") }) {
			cure = e.remake(missing)
		}
		e.problem("outbox", cure, "onewrite.%s of the outbox is missing", strings.Join(missing, ", onewrite."))
	}
	if err := e.layout(ctx, tx, len(missing) == 0); err != nil {
		return err
	}
	if !e.objects["scheduled"] {
		e.warn("scheduled", "onewrite migrate", "there is no table onewrite.scheduled: events cannot be sent later")
	}
	return nil
}

// remake is the SQL that makes leaves again.
func (e *examiner) remake(names []string) string {
	var b []string
	for line := range strings.Lines(e.o.layout()) {
		for _, name := range names {
			if strings.HasPrefix(line, "CREATE TABLE onewrite."+name+" ") {
				b = append(b, strings.TrimSpace(line))
			}
		}
	}
	return strings.Join(b, " ")
}

func (e *examiner) noOutbox(ctx context.Context, tx pgx.Tx) error {
	var may bool
	if err := row(ctx, tx, `SELECT has_database_privilege(current_database(), 'CREATE')`).Scan(&may); err != nil {
		return err
	}
	if !may {
		e.problem("outbox", "onewrite migrate --print | psql -v ON_ERROR_STOP=1 "+e.database, "there is no outbox in database %s, and role %s may not make it: run the SQL as the owner of the database", e.database, e.role)
		return nil
	}
	e.problem("outbox", "onewrite migrate", "there is no outbox in database %s", e.database)
	return nil
}

// layout compares the outbox with what this program and its configuration want.
func (e *examiner) layout(ctx context.Context, tx pgx.Tx, whole bool) error {
	var limit string
	var may, wakes bool
	err := row(ctx, tx, `SELECT coalesce((SELECT pg_get_constraintdef(oid) FROM pg_constraint WHERE conrelid = c.oid AND conname = 'outbox_event_is_valid'), ''),
		EXISTS (SELECT FROM pg_trigger WHERE tgrelid = c.oid AND tgname = 'wake' AND tgenabled IN ('O', 'A')),
		has_schema_privilege(n.oid, 'USAGE') AND coalesce((SELECT has_table_privilege(oid, 'SELECT') FROM pg_class WHERE relnamespace = n.oid AND relname = 'migration'), false)
		FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = 'onewrite' AND c.relname = 'outbox'`).Scan(&limit, &wakes, &may)
	if err != nil {
		return err
	}
	if !wakes {
		e.warn("outbox", "ALTER TABLE onewrite.outbox ENABLE TRIGGER wake;", "the trigger wake is off: an idle onewrite looks once a second, nobody wakes it")
	}
	version := 1
	if may { // else the rights tell
		if err := row(ctx, tx, `SELECT coalesce(max(version), 0) FROM onewrite.migration`).Scan(&version); err != nil {
			return err
		}
	}
	switch {
	case version > 1:
		e.problem("outbox", "install the newer onewrite", "the outbox has layout version %d, this onewrite knows version 1", version)
	case version < 1:
		e.problem("outbox", "INSERT INTO onewrite.migration (version) VALUES (1);", "onewrite.migration is empty, so nobody knows which layout the outbox has")
	case whole:
		e.ok("outbox", "there, layout version 1")
	}
	_, n, _ := strings.Cut(limit[max(0, strings.LastIndex(limit, ", ")):], " ")
	n = strings.TrimRight(n, ")")
	switch {
	case limit == "":
		e.problem("max_event", "ALTER TABLE onewrite.outbox ADD "+e.o.check("outbox")+";", "the outbox has lost the check of what can be delivered")
	case n != strconv.Itoa(e.o.maxEvent()):
		e.warn("max_event", "onewrite migrate", "the outbox takes events of up to %s bytes, the configuration says %d", n, e.o.maxEvent())
	default:
		e.ok("max_event", "%s bytes", n)
	}
	return nil
}

// check is the constraint that refuses what cannot be delivered.
func (o MigrateOptions) check(table string) string {
	return fmt.Sprintf("CONSTRAINT %s_event_is_valid CHECK (onewrite.valid(id, topic, key, type, content_type, headers, payload, payload_bytes, %d))", table, o.maxEvent())
}
