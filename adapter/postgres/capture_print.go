package postgres

import (
	"context"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"
)

// SchemaWithCapture is [Schema] with what captures row changes, or ends that. It asks the database at
// url, as any role, what the tables are; it changes nothing.
func SchemaWithCapture(ctx context.Context, url string, o MigrateOptions) (string, error) {
	if len(o.Capture.Tables) == 0 && len(o.Capture.Again) == 0 {
		return o.withCapture(nil), nil
	}
	conn, _, err := connect(ctx, url)
	if err != nil {
		return "", err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	tx, err := conn.BeginTx(ctx, pgx.TxOptions{AccessMode: pgx.ReadOnly})
	if err != nil {
		return "", explain(err)
	}
	defer func() { _ = tx.Rollback(context.WithoutCancel(ctx)) }()
	want, err := findTables(ctx, tx, o.Capture.Tables)
	if err != nil {
		return "", err
	}
	if err := o.Capture.conditions(ctx, tx, want); err != nil {
		return "", err
	}
	if err := rememberWhole(ctx, tx, o.Capture.Source, want); err != nil {
		return "", err
	}
	for i := range want {
		f := &want[i]
		identity := map[string]string{"FULL": "f", "DEFAULT": "d"}[f.wantsIdentity()]
		if f.leaves, err = leavesOf(ctx, tx, identity, f.rel); err != nil {
			return "", err
		}
		for _, l := range f.leaves {
			if l.unlogged {
				return "", fmt.Errorf("%s; run as its owner: %s", l.problem(), l.cure)
			}
		}
	}
	rels := make([]uint32, len(want))
	for i, f := range want {
		rels[i] = f.rel
	}
	again, err := o.Capture.findAgain(ctx, tx, rels)
	if err != nil {
		return "", err
	}
	for i := range want {
		want[i].again = again[want[i].rel]
	}
	warnings, err := o.Capture.checkMasks(ctx, tx, want)
	if err != nil {
		return "", err
	}
	text := o.withCapture(want)
	for _, w := range warnings {
		text = "-- " + w + "\n" + text
	}
	return text, nil
}

func (o MigrateOptions) withCapture(want []found) string {
	if !o.Capture.on() && o.Capture.Source == "" {
		return Schema(o)
	}
	text := strings.TrimSuffix(Schema(o), "COMMIT;\n")
	if !o.Capture.on() {
		return text + releaseScript(o.Capture.Source) + "COMMIT;\n"
	}
	head, grants, _ := strings.Cut(text, "\n-- The application's role:")
	return head + o.captureScript(want) + "\n-- The application's role:" + grants + "COMMIT;\n"
}

// captureScript does what capture does, for tables that were looked up.
func (o MigrateOptions) captureScript(want []found) string {
	var b strings.Builder
	source, publication := quoteText(o.Capture.Source), publicationOf(o.Capture.Source)
	fmt.Fprintf(&b, "\n-- Row changes and messages, read from the log: needs wal_level = logical.\n%s", captureSQL)
	names := make([]string, len(want))
	for i, f := range want {
		names[i] = "ONLY " + f.quoted()
		if identity := f.wantsIdentity(); identity != "" {
			fmt.Fprintf(&b, "ALTER TABLE %s REPLICA IDENTITY %s; -- it logs no old rows, and could not be updated once it is published\n", f.quoted(), identity)
		}
		for _, l := range f.leaves {
			fmt.Fprintf(&b, "%s; -- as its table\n", l.cure)
			if l.wrong() {
				fmt.Fprintf(&b, "UPDATE onewrite.captured SET altered = '0' WHERE source = %s AND rel = %d; -- changes are missing: it gets a snapshot\n", source, f.rel)
			}
		}
	}
	if o.Capture.Pushed {
		names = append(names, "ONLY onewrite.outbox")
	}
	fmt.Fprintf(&b, `DO $migrate$ BEGIN
IF NOT EXISTS (SELECT FROM pg_publication WHERE pubname = %s) THEN
    CREATE PUBLICATION %s WITH %s;
ELSIF NOT (SELECT pubinsert AND pubupdate AND pubdelete AND pubtruncate AND pubviaroot FROM pg_publication WHERE pubname = %[1]s) THEN
    ALTER PUBLICATION %[2]s SET %[3]s;
END IF;
END $migrate$;
`, quoteText(publication), pgx.Identifier{publication}.Sanitize(), publishAll)
	if len(names) > 0 {
		fmt.Fprintf(&b, "ALTER PUBLICATION %s SET TABLE %s;\n", pgx.Identifier{publication}.Sanitize(), strings.Join(names, ", "))
	}
	b.WriteString(giveScript(givePublication(o.Capture.Source)))
	first := 0
	if o.Capture.Snapshot {
		first = 1
	}
	fmt.Fprintf(&b, releaseTables+";\n", source, "rel NOT IN\n    (SELECT r.prrelid FROM pg_publication_rel r JOIN pg_publication p ON p.oid = r.prpubid WHERE p.pubname = "+quoteText(publication)+")")
	fmt.Fprintf(&b, forgetTables+";\n", source)
	fmt.Fprintf(&b, `INSERT INTO onewrite.captured AS o (source, rel, name, member, altered, identity, key, shape, keyed, filter, columns, wanted)
SELECT %[1]s, r.prrelid, n.nspname || '.' || c.relname, r.oid, p.xmin, c.relreplident,
    %[7]s, %[9]s, pg_current_wal_insert_lsn(),
    %[5]s,
    %[6]s,
    CASE WHEN %[3]d > 0 OR EXISTS (SELECT FROM onewrite.log l WHERE l.source = %[1]s) THEN %[4]s + 1 ELSE 0 END
FROM pg_publication_rel r JOIN pg_publication p ON p.oid = r.prpubid JOIN pg_class c ON c.oid = r.prrelid JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE p.pubname = %[2]s AND n.nspname <> 'onewrite'
ON CONFLICT (source, rel) DO UPDATE SET name = excluded.name, member = excluded.member, altered = excluded.altered, identity = excluded.identity,
    key = excluded.key, shape = excluded.shape, filter = excluded.filter, columns = excluded.columns,
    (keyed, wanted) = (SELECT CASE WHEN same THEN o.keyed ELSE excluded.keyed END, CASE WHEN same THEN o.wanted ELSE greatest(o.wanted, o.finished, %[4]s) + 1 END
        FROM (SELECT o.member = excluded.member AND o.altered::text = excluded.altered::text AND o.key IN ('%[8]s', excluded.key)
            AND (o.filter = excluded.filter OR o.wanted = o.finished OR o.asked = o.wanted) AS same) s);
`, source, quoteText(publication), first, snapshotNumber,
		byTable(want, func(f found) string { return f.where }), byTable(want, o.Capture.columns), keyColumns, unknownKey, shapeOfTable)
	b.WriteString(o.Capture.againScript(want))
	if o.Capture.DDL {
		b.WriteString(tellScript())
	}
	if o.Capture.Messages {
		b.WriteString(o.emitScript())
	}
	return b.String()
}

// againScript asks for the snapshots that are to be made once more.
func (c Capture) againScript(want []found) string {
	var b strings.Builder
	for _, f := range want {
		if !f.again {
			continue
		}
		row := fmt.Sprintf("WHERE source = %s AND name = %s", quoteText(c.Source), quoteText(f.full()))
		fmt.Fprintf(&b, "UPDATE onewrite.captured SET wanted = greatest(wanted, finished, %s) + 1, keyed = pg_current_wal_insert_lsn() %s; -- a snapshot, each time that this runs\n", snapshotNumber, row)
		if c.AgainWhere != "" {
			fmt.Fprintf(&b, "UPDATE onewrite.captured SET once = %s, asked = wanted %s;\n", quoteText(c.AgainWhere), row)
		}
	}
	return b.String()
}

// byTable is a text for the table c, as SQL.
func byTable(want []found, text func(found) string) string {
	var b strings.Builder
	for _, f := range want {
		if t := text(f); t != "" {
			fmt.Fprintf(&b, " WHEN n.nspname = %s AND c.relname = %s THEN %s", quoteText(f.schema), quoteText(f.name), quoteText(t))
		}
	}
	if b.Len() == 0 {
		return "''"
	}
	return "CASE" + b.String() + " ELSE '' END"
}

// grantsOfCapture is what the relay's role needs to read the log and the tables.
func (o MigrateOptions) grantsOfCapture(relay string, line func(name, format string, args ...any)) {
	if !o.Capture.on() {
		return
	}
	line(o.RelayRole, "REVOKE TRUNCATE ON onewrite.captured, onewrite.log FROM %s;", relay)
	line(o.RelayRole, "REVOKE INSERT, TRUNCATE ON onewrite.released FROM %s;", relay)
	line(o.RelayRole, "GRANT UPDATE ON onewrite.captured, onewrite.log TO %s;", relay)
	take, leave := splitPatterns(o.Capture.Tables)
	for _, t := range take {
		schema, name := cutTable(t)
		line(o.RelayRole, "GRANT USAGE ON SCHEMA %s TO %s;", pgx.Identifier{schema}.Sanitize(), relay)
		var out []string
		for _, l := range leave {
			if rest, ok := strings.CutPrefix(l, schema+"."); ok {
				out = append(out, quoteText(rest))
			}
		}
		switch {
		case name != "*":
			line(o.RelayRole, "GRANT SELECT ON %s TO %s;", pgx.Identifier{schema, name}.Sanitize(), relay)
		case len(out) == 0:
			line(o.RelayRole, "GRANT SELECT ON ALL TABLES IN SCHEMA %s TO %s;", pgx.Identifier{schema}.Sanitize(), relay)
		default:
			line(o.RelayRole, "DO $grant$ DECLARE t text; BEGIN FOR t IN SELECT format('%%I.%%I', schemaname, tablename) FROM pg_tables WHERE schemaname = %s AND tablename NOT IN (%s) LOOP EXECUTE 'GRANT SELECT ON ' || t || %s; END LOOP; END $grant$;",
				quoteText(schema), strings.Join(out, ", "), quoteText(" TO "+relay))
		}
	}
	// A superuser's to give, and a right of the whole cluster: it is said, not done.
	if o.RelayRole == "" {
		relay = "relay_role"
	}
	line("", "As superuser, once: ALTER ROLE %s REPLICATION;", relay)
}

// needsReplication says so where the relay's role may not read the log: only a
// superuser can give it that.
func (o MigrateOptions) needsReplication(ctx context.Context, tx pgx.Tx) (note []string, err error) {
	if o.RelayRole == "" || !o.Capture.on() {
		return nil, nil
	}
	var may bool
	if err := tx.QueryRow(ctx, `SELECT rolreplication OR rolsuper FROM pg_roles WHERE rolname = $1`, o.RelayRole).Scan(&may); err != nil || may {
		return nil, explain(err)
	}
	return []string{fmt.Sprintf("role %s may not read the log yet; run as superuser: ALTER ROLE %s REPLICATION", o.RelayRole, pgx.Identifier{o.RelayRole}.Sanitize())}, nil
}
