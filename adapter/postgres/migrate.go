package postgres

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

//go:embed schema.sql
var schemaSQL string

//go:embed scheduled.sql
var scheduledSQL string

// leaves is the number of leaf tables in the ring.
const leaves = 8

// columns are those that an application may give.
const columns = "topic, key, payload, payload_bytes, id, type, content_type, headers"

// MigrateOptions steer the making of the outbox.
type MigrateOptions struct {
	// MaxEvent is the largest event in bytes; default 1 MiB.
	MaxEvent int
	// AppRole, if set, is granted what an application needs: INSERT on the
	// columns that it may give, and nothing else.
	AppRole string
	// RelayRole, if set, is granted what onewrite run needs when it does not
	// connect as the owner of the tables.
	RelayRole string
	// Capture says what is read from the log.
	Capture Capture
}

func (o MigrateOptions) maxEvent() int {
	if o.MaxEvent <= 0 {
		return 1 << 20
	}
	return o.MaxEvent
}

// layout is the DDL of version 1.
func (o MigrateOptions) layout() string {
	var b strings.Builder
	for i := range leaves {
		fmt.Fprintf(&b, "CREATE TABLE onewrite.outbox_%d PARTITION OF onewrite.outbox FOR VALUES IN (%d) WITH (autovacuum_enabled = false, toast.autovacuum_enabled = false);\n", i, i)
	}
	return strings.NewReplacer("{{max_event}}", strconv.Itoa(o.maxEvent()), "{{leaves}}", b.String()).Replace(schemaSQL)
}

// deliverAtRoom is what the attribute deliverat adds to an event when it is due.
const deliverAtRoom = 64

// scheduled is the DDL of the events that are to be sent later.
func (o MigrateOptions) scheduled() string {
	return strings.ReplaceAll(scheduledSQL, "{{max_event}}", strconv.Itoa(o.maxEvent()-deliverAtRoom))
}

// grants is the least that the roles need.
func (o MigrateOptions) grants() string {
	var b strings.Builder
	role := func(name, example string) string {
		if name == "" {
			fmt.Fprintf(&b, "-- With %s in place of the role's name:\n", example)
			return example
		}
		return pgx.Identifier{name}.Sanitize()
	}
	line := func(name, format string, args ...any) {
		if name == "" {
			b.WriteString("-- ")
		}
		fmt.Fprintf(&b, format+"\n", args...)
	}
	b.WriteString("\n-- The application's role: it inserts events and can do nothing else here.\n")
	app := role(o.AppRole, "app_role")
	line(o.AppRole, "GRANT USAGE ON SCHEMA onewrite TO %s;", app)
	line(o.AppRole, "GRANT USAGE ON SEQUENCE onewrite.seq TO %s;", app)
	line(o.AppRole, "GRANT INSERT (%s) ON onewrite.outbox TO %s;", columns, app)
	line(o.AppRole, "GRANT INSERT (%s, deliver_at) ON onewrite.scheduled TO %s;", columns, app)
	line(o.AppRole, "GRANT EXECUTE ON FUNCTION onewrite.cancel(uuid) TO %s;", app)
	for _, payload := range []string{"text", "jsonb", "bytea"} {
		line(o.AppRole, "GRANT EXECUTE ON FUNCTION onewrite.publish(text, text, %s) TO %s;", payload, app)
	}
	if o.Capture.Messages {
		for _, e := range emitters {
			line(o.AppRole, "GRANT EXECUTE ON FUNCTION %s TO %s;", e.name(), app)
		}
	}
	b.WriteString("\n-- The relay's role, if it is not the owner of the tables.\n")
	relay := role(o.RelayRole, "relay_role")
	line(o.RelayRole, "GRANT USAGE ON SCHEMA onewrite TO %s;", relay)
	line(o.RelayRole, "GRANT SELECT, INSERT, TRUNCATE ON ALL TABLES IN SCHEMA onewrite TO %s;", relay)
	line(o.RelayRole, "REVOKE TRUNCATE ON onewrite.bus, onewrite.migration, onewrite.scheduled, onewrite.imported FROM %s;", relay)
	line(o.RelayRole, "GRANT UPDATE, DELETE ON onewrite.scheduled TO %s;", relay)
	line(o.RelayRole, "GRANT UPDATE ON onewrite.bus TO %s;", relay)
	o.grantsOfCapture(relay, line)
	line(o.RelayRole, "GRANT SELECT, USAGE, UPDATE ON ALL SEQUENCES IN SCHEMA onewrite TO %s;", relay)
	line(o.RelayRole, "GRANT EXECUTE ON FUNCTION onewrite.summarize() TO %s;", relay)
	return b.String()
}

// Schema returns SQL that does what Migrate does, for an administrator to run by
// psql: it makes the outbox where there is none, sets the largest event where it
// is another, and grants. It may be run again and again.
func Schema(o MigrateOptions) string {
	return fmt.Sprintf(`BEGIN;
SELECT FROM pg_advisory_xact_lock(%d, 2); -- one migration at a time
DO $migrate$ BEGIN
IF to_regclass('onewrite.migration') IS NULL THEN EXECUTE $layout$
%s
$layout$;
ELSIF NOT EXISTS (SELECT FROM pg_constraint WHERE conrelid = 'onewrite.outbox'::regclass AND conname = 'outbox_event_is_valid'
        AND pg_get_constraintdef(oid) LIKE '%%, %d)%%') THEN
    %s;
END IF;
IF to_regclass('onewrite.scheduled') IS NULL THEN EXECUTE $layout$
%s
$layout$;
END IF;
END $migrate$;
%s%s
-- All of it is the schema's owner's, whoever runs this.
%sCOMMIT;
`, lockClass, o.layout(), o.maxEvent(), strings.Join(o.limit(), ";\n    "), o.scheduled(), mendScript, o.grants(), giveScript(giveObjects))
}

// limit are the statements that set the largest event. An event that exceeds it and
// is scheduled already makes them fail: it could not be moved into the outbox when it
// is due.
func (o MigrateOptions) limit() []string {
	const check = `CHECK (onewrite.valid(id, topic, key, type, content_type, headers, payload, payload_bytes, %d))`
	return []string{
		fmt.Sprintf(`ALTER TABLE onewrite.outbox DROP CONSTRAINT outbox_event_is_valid, ADD CONSTRAINT outbox_event_is_valid `+check, o.maxEvent()),
		fmt.Sprintf(`ALTER TABLE IF EXISTS onewrite.scheduled DROP CONSTRAINT scheduled_event_is_valid, ADD CONSTRAINT scheduled_event_is_valid `+check, o.maxEvent()-deliverAtRoom),
	}
}

// Migrate makes the outbox or brings it up to date and returns what it did. It
// may be repeated, and run twice at once. It connects as the role of url, which
// needs CREATE on the database and becomes the owner of the tables. With an error
// it did nothing, or, if it returns what it did, all but what the error names.
func Migrate(ctx context.Context, url string, o MigrateOptions) (applied []string, err error) {
	conn, _, err := connect(ctx, url)
	if err != nil {
		return nil, err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	defer func() { err = withOptions(withNames(err, conn), o) }()
	tx, err := conn.Begin(ctx)
	if err != nil {
		return nil, explain(err)
	}
	defer func() { _ = tx.Rollback(context.WithoutCancel(ctx)) }()
	// One migration at a time; the lock ends with the transaction.
	if _, err := tx.Exec(ctx, `SELECT pg_advisory_xact_lock($1, 2)`, lockClass); err != nil {
		return nil, explain(err)
	}
	var there bool
	if err := tx.QueryRow(ctx, `SELECT to_regclass('onewrite.migration') IS NOT NULL`).Scan(&there); err != nil {
		return nil, explain(err)
	}
	if !there {
		if _, err := tx.Exec(ctx, o.layout(), pgx.QueryExecModeSimpleProtocol); err != nil {
			return nil, explain(err)
		}
		applied = append(applied, "created the outbox (version 1)")
	} else if applied, err = o.adjust(ctx, tx); err != nil {
		return nil, explain(err)
	}
	if err := tx.QueryRow(ctx, `SELECT to_regclass('onewrite.scheduled') IS NOT NULL`).Scan(&there); err != nil {
		return nil, explain(err)
	}
	if !there {
		if _, err := tx.Exec(ctx, o.scheduled(), pgx.QueryExecModeSimpleProtocol); err != nil {
			return nil, explain(err)
		}
		if len(applied) == 0 {
			applied = append(applied, "created the table of scheduled events")
		}
	}
	var left *leftSlotError
	for _, step := range []func(context.Context, pgx.Tx) ([]string, error){mendFunctions, o.capture, o.emitting, o.telling, giving, o.grant, o.needsReplication} {
		done, err := step(ctx, tx)
		if errors.As(err, &left) {
			err = nil
		}
		if err != nil {
			return nil, err
		}
		applied = append(applied, done...)
	}
	if err := tx.Commit(ctx); err != nil {
		return nil, explain(err)
	}
	if left != nil {
		return applied, left
	}
	return applied, nil
}

// grant gives the roles what they lack. PostgreSQL only warns when somebody who
// may not grant tries to, so the result is looked at.
func (o MigrateOptions) grant(ctx context.Context, tx pgx.Tx) (applied []string, err error) {
	lacks := func(role, sql string) (bool, error) {
		if role == "" {
			return false, nil
		}
		var has bool
		err := tx.QueryRow(ctx, sql, role).Scan(&has)
		return !has, explain(err)
	}
	const (
		outboxAppSQL = `SELECT has_any_column_privilege($1, 'onewrite.outbox', 'INSERT') AND has_any_column_privilege($1, 'onewrite.scheduled', 'INSERT') AND has_sequence_privilege($1, 'onewrite.seq', 'USAGE') AND has_schema_privilege($1, 'onewrite', 'USAGE')`
		outboxSQL    = `SELECT has_table_privilege($1, 'onewrite.outbox_0', 'TRUNCATE') AND has_table_privilege($1, 'onewrite.scheduled', 'DELETE') AND has_sequence_privilege($1, 'onewrite.slot', 'UPDATE') AND has_function_privilege($1, 'onewrite.summarize()', 'EXECUTE')`
		logSQL       = ` AND has_table_privilege($1, 'onewrite.log', 'UPDATE') AND has_table_privilege($1, 'onewrite.captured', 'UPDATE') AND has_table_privilege($1, 'onewrite.released', 'SELECT')
			AND NOT EXISTS (SELECT FROM onewrite.captured c JOIN pg_class k ON k.oid = c.rel WHERE NOT has_table_privilege($1, c.rel, 'SELECT'))`
	)
	appSQL, relaySQL := outboxAppSQL, outboxSQL
	if o.Capture.Messages {
		for _, e := range emitters {
			appSQL += ` AND has_function_privilege($1, '` + e.name() + `', 'EXECUTE')`
		}
	}
	if o.Capture.on() { // one of them may have been made anew
		relaySQL += logSQL
	}
	app, err := lacks(o.AppRole, appSQL)
	if err != nil {
		return nil, err
	}
	relay, err := lacks(o.RelayRole, relaySQL)
	if err != nil || !app && !relay {
		return nil, err
	}
	if _, err := tx.Exec(ctx, o.grants(), pgx.QueryExecModeSimpleProtocol); err != nil {
		return nil, explain(err)
	}
	for _, r := range []struct {
		name, sql string
		lacked    bool
	}{{o.AppRole, appSQL, app}, {o.RelayRole, relaySQL, relay}} {
		if !r.lacked {
			continue
		}
		if still, err := lacks(r.name, r.sql); err != nil {
			return nil, err
		} else if still {
			return nil, fmt.Errorf("postgres: this role may not grant to %s; run onewrite migrate as the owner of the schema onewrite", r.name)
		}
		applied = append(applied, "granted what it needs to role "+r.name)
	}
	return applied, nil
}

// adjust brings an outbox that is there to what o asks.
func (o MigrateOptions) adjust(ctx context.Context, tx pgx.Tx) (applied []string, err error) {
	var version int
	var limit string
	err = tx.QueryRow(ctx, `SELECT (SELECT max(version) FROM onewrite.migration),
		coalesce((SELECT pg_get_constraintdef(oid) FROM pg_constraint WHERE conrelid = 'onewrite.outbox'::regclass AND conname = 'outbox_event_is_valid'), '')`).Scan(&version, &limit)
	if err != nil {
		return nil, err
	}
	if version > 1 {
		return nil, fmt.Errorf("the outbox has layout version %d, this onewrite knows version 1; install the newer onewrite", version)
	}
	if strings.Contains(limit, fmt.Sprintf(", %d)", o.maxEvent())) {
		return nil, nil
	}
	_, err = tx.Exec(ctx, strings.Join(o.limit(), ";\n"), pgx.QueryExecModeSimpleProtocol)
	var pe *pgconn.PgError
	if errors.As(err, &pe) && pe.Code == "23514" {
		return nil, fmt.Errorf("an event that is in the outbox or scheduled is larger than the new limit of %d bytes; set a larger max_event, or wait until it is sent, or cancel it: SELECT onewrite.cancel(id)", o.maxEvent())
	}
	return []string{fmt.Sprintf("set the largest event to %d bytes", o.maxEvent())}, err
}

// Rollback removes the outbox. It refuses while rows are in it, which may not
// be delivered yet, unless forced.
func Rollback(ctx context.Context, url string, force bool) (err error) {
	conn, _, err := connect(ctx, url)
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	defer func() { err = withNames(err, conn) }()
	tx, err := conn.Begin(ctx)
	if err != nil {
		return explain(err)
	}
	defer func() { _ = tx.Rollback(context.WithoutCancel(ctx)) }()
	var there, rows bool
	if err := tx.QueryRow(ctx, `SELECT to_regclass('onewrite.outbox') IS NOT NULL`).Scan(&there); err != nil {
		return explain(err)
	}
	if !there {
		return nil
	}
	if _, err := tx.Exec(ctx, `SET LOCAL lock_timeout = '5s'; LOCK TABLE onewrite.outbox IN ACCESS EXCLUSIVE MODE`, pgx.QueryExecModeSimpleProtocol); err != nil {
		return explain(err)
	}
	if err := tx.QueryRow(ctx, `SELECT to_regclass('onewrite.scheduled') IS NOT NULL`).Scan(&there); err != nil {
		return explain(err)
	}
	held := `SELECT EXISTS (SELECT FROM onewrite.outbox)`
	if there {
		held += ` OR EXISTS (SELECT FROM onewrite.scheduled)`
	}
	if err := tx.QueryRow(ctx, held).Scan(&rows); err != nil {
		return explain(err)
	}
	if rows && !force {
		return errors.New("the outbox still holds events, or scheduled ones; let onewrite run deliver them, or drop them with onewrite migrate --down --force")
	}
	left := releaseAll(ctx, tx)
	if slot := (*leftSlotError)(nil); left != nil && !errors.As(left, &slot) {
		return left
	}
	if _, err := tx.Exec(ctx, `DROP SCHEMA onewrite CASCADE`); err != nil {
		return explain(err)
	}
	if err := tx.Commit(ctx); err != nil {
		return explain(err)
	}
	return left
}
