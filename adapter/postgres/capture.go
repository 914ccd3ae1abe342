package postgres

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/onewrite/onewrite/internal/masking"
)

//go:embed capture.sql
var captureSQL string

// Capture says what is read from the log: which tables' row changes are events, and
// whether messages are.
type Capture struct {
	// Source is the source's name in the configuration.
	Source string
	// Tables are names with their schema, "public.orders"; "billing.*" is all tables
	// of a schema, and "!billing.scratch" leaves one of them out. A table that is left out
	// is captured no more.
	Tables []string
	// LogURL names the standby from which the log is read; empty: none. Examine looks at it.
	LogURL string
	// Snapshot makes an event of each row that is there when a table is first
	// captured.
	Snapshot bool
	// Where has conditions of the rows of snapshots, by table or by the pattern of its
	// schema; a table's own counts before that. One that has none is read whole.
	Where map[string]string
	// Masks are the rules for columns of the tables. They are stored with each table, so
	// that a process that was started with others does not take it up.
	Masks masking.Rules
	// Again asks for a snapshot of these tables, or patterns, once more; AgainWhere, if
	// set, is the condition of its rows in place of that of Where.
	Again      []string
	AgainWhere string
	// Messages makes events of the messages in the log with the prefix
	// outbox.LogPrefix.
	Messages bool
	// DDL makes events of the commands on captured tables.
	DDL bool
	// HoldGap says that a gap stops the source, for a person to decide. Examine looks at it.
	HoldGap bool
	// Pushed lets the log tell what is inserted into the outbox.
	Pushed bool
}

// on reports whether the log is read at all.
func (c Capture) on() bool { return len(c.Tables) > 0 || c.Messages || c.Pushed }

// found is a table that is to be captured.
type found struct {
	rel                    uint32
	schema, name, identity string
	key                    bool // it has a primary key, which is no deferrable one
	deferrable             bool // or it has one that is
	partitioned            bool
	owned                  bool
	generated              bool // its old rows would hold a generated column, which is not published
	whole                  bool // it logged whole old rows when it was captured
	where                  string
	again                  bool   // a snapshot of it is asked for; looked up for the script alone
	leaves                 []leaf // partitions that log other rows than it; looked up for the script alone
}

// columns are the rules for the columns of a table.
func (c Capture) columns(f found) string { return c.Masks.Text(f.schema, f.name) }

func (f found) full() string { return f.schema + "." + f.name }

func (f found) quoted() string { return pgx.Identifier{f.schema, f.name}.Sanitize() }

// topicTable are the names that can be a topic.
var topicTable = regexp.MustCompile(`^[A-Za-z0-9_-]+$`)

// capture brings the publication and the registry of a source to what is wanted.
func (o MigrateOptions) capture(ctx context.Context, tx pgx.Tx) (applied []string, err error) {
	c := o.Capture
	var there, lost, level bool
	var version int
	err = tx.QueryRow(ctx, `SELECT to_regclass('onewrite.captured') IS NOT NULL AND to_regclass('onewrite.log') IS NOT NULL,
			to_regclass('onewrite.captured') IS NOT NULL, current_setting('wal_level') = 'logical', current_setting('server_version_num')::int`).
		Scan(&there, &lost, &level, &version)
	if err != nil {
		return nil, explain(err)
	}
	switch {
	case !c.on() && !there:
		return nil, nil
	case !c.on():
		return release(ctx, tx, c.Source)
	case version < 150000:
		return nil, fmt.Errorf("postgres: the server has version %d, reading its log needs 15 or newer; take the settings tables and messages out", version/10000)
	case !level:
		return nil, errors.New("postgres: row changes and messages are read from the log, which needs wal_level = logical; run as superuser: ALTER SYSTEM SET wal_level = 'logical'; then restart the server")
	}
	if err := layRegistry(ctx, tx); err != nil {
		return nil, err
	}
	if lost && !there { // the record of what was read; a row that has no slot stands for it
		if _, err := tx.Exec(ctx, `INSERT INTO onewrite.log SELECT DISTINCT source, '', pg_lsn '0/0', pg_lsn '0/0', pg_lsn '0/0', 0::oid, '', 0, '' FROM onewrite.captured`); err != nil {
			return nil, explain(err)
		}
	}
	want, err := findTables(ctx, tx, c.Tables)
	if err != nil {
		return nil, err
	}
	if err := c.conditions(ctx, tx, want); err != nil {
		return nil, err
	}
	if applied, err = identifyAll(ctx, tx, c.Source, want); err != nil {
		return nil, err
	}
	warnings, err := c.checkMasks(ctx, tx, want)
	if err != nil {
		return nil, err
	}
	published, err := c.published(ctx, tx, want)
	if err != nil {
		return nil, err
	}
	steps, damaged, kept, err := publish(ctx, tx, c.Source, published)
	if err == nil {
		_, err = give(ctx, tx, givePublication(c.Source))
	}
	if err != nil {
		return nil, err
	}
	applied = append(applied, steps...)
	if damaged {
		c.Again = c.Tables
	}
	if steps, err = register(ctx, tx, c, want, kept); err != nil {
		return nil, err
	}
	return slices.Concat(applied, steps, warnings), c.renewSlot(ctx, tx)
}

// layRegistry makes the registry, or makes it what this version has.
func layRegistry(ctx context.Context, tx pgx.Tx) error {
	var whole bool
	err := tx.QueryRow(ctx, `SELECT to_regclass('onewrite.log') IS NOT NULL AND to_regclass('onewrite.released') IS NOT NULL
		AND (SELECT count(*) = 7 FROM pg_attribute WHERE attrelid = to_regclass('onewrite.captured') AND attname IN ('filter', 'once', 'asked', 'key', 'keyed', 'shape', 'columns'))`).Scan(&whole)
	if err == nil && !whole {
		_, err = tx.Exec(ctx, captureSQL, pgx.QueryExecModeSimpleProtocol)
	}
	return explain(err)
}

// renewSlot has the slot made anew where the publication is: the log of the time without
// it cannot be decoded.
func (c Capture) renewSlot(ctx context.Context, tx pgx.Tx) error {
	_, err := tx.Exec(ctx, `UPDATE onewrite.log SET publication = 0 WHERE source = $1 AND publication <> coalesce((SELECT oid FROM pg_publication WHERE pubname = $2), 0)`, c.Source, publicationOf(c.Source))
	return explain(err)
}

// published are the tables of the publication: those that are captured, and the outbox
// where the log tells it.
func (c Capture) published(ctx context.Context, tx pgx.Tx, want []found) ([]found, error) {
	if !c.Pushed {
		return want, nil
	}
	f := found{schema: "onewrite", name: "outbox"}
	err := tx.QueryRow(ctx, `SELECT oid, pg_has_role(relowner, 'USAGE') FROM pg_class WHERE oid = 'onewrite.outbox'::regclass`).Scan(&f.rel, &f.owned)
	return append(slices.Clip(want), f), explain(err)
}

// findTables looks the patterns up. Partitions are captured by their root.
func findTables(ctx context.Context, tx pgx.Tx, patterns []string) (want []found, err error) {
	seen := map[uint32]bool{}
	take, leave := splitPatterns(patterns)
	for _, pattern := range take {
		schema, name := cutTable(pattern)
		rows, err := tx.Query(ctx, `SELECT c.oid, n.nspname, c.relname, c.relreplident::text, c.relkind = 'p', pg_has_role(c.relowner, 'USAGE'),
				EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.oid AND i.indisprimary AND i.indimmediate), EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.oid AND i.indisprimary AND NOT i.indimmediate),
				current_setting('server_version_num')::int >= 180000 AND EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attgenerated = 's' AND NOT a.attisdropped AND
					(c.relreplident = 'f' OR NOT EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.oid AND CASE WHEN c.relreplident = 'i' THEN i.indisreplident ELSE i.indisprimary AND i.indimmediate END)
					OR EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.oid AND CASE WHEN c.relreplident = 'i' THEN i.indisreplident ELSE i.indisprimary END AND a.attnum = ANY (i.indkey)))),
				c.relkind::text, c.relpersistence::text
			FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
			WHERE n.nspname = $1 AND ($2 = '*' AND c.relkind IN ('r', 'p') AND NOT c.relispartition AND c.relpersistence = 'p' OR c.relname = $2) AND n.nspname || '.' || c.relname <> ALL ($3) ORDER BY c.relname`, schema, name, leave)
		if err != nil {
			return nil, explain(err)
		}
		n := 0
		var f found
		var kind, persistence string
		_, err = pgx.ForEachRow(rows, []any{&f.rel, &f.schema, &f.name, &f.identity, &f.partitioned, &f.owned, &f.key, &f.deferrable, &f.generated, &kind, &persistence}, func() error {
			n++
			switch {
			case kind != "r" && kind != "p":
				return fmt.Errorf("%s is no table; take it out of the setting tables", f.full())
			case persistence != "p":
				return fmt.Errorf("%s is unlogged or temporary: its changes are not in the log; take it out of tables:, or ALTER TABLE %s SET LOGGED", f.full(), f.quoted())
			case f.schema == "onewrite" || strings.HasPrefix(f.schema, "pg_") || f.schema == "information_schema":
				return fmt.Errorf("%s is a table of onewrite or of the server; take it out of the setting tables", f.full())
			case f.generated: // "Replica identity must not contain unpublished generated columns"
				return fmt.Errorf("%s has a generated column and no key without it, and the server would refuse to update it once it is captured; give it a primary key, or take it out of the setting tables", f.full())
			case !topicTable.MatchString(f.schema) || !topicTable.MatchString(f.name):
				return fmt.Errorf("%s cannot be a topic, which has letters, digits, _ and -; rename the table, or take it out of the setting tables", f.full())
			}
			if !seen[f.rel] {
				seen[f.rel] = true
				want = append(want, f)
			}
			return nil
		})
		if err != nil {
			return nil, explain(err)
		}
		if n == 0 && name != "*" {
			return nil, fmt.Errorf("there is no table %s.%s; create it, or take it out of the setting tables", schema, name)
		}
	}
	return want, nil
}

// splitPatterns returns the patterns of tables, and the full names of those that are left
// out of them.
func splitPatterns(patterns []string) (take, leave []string) {
	leave = []string{}
	for _, pattern := range patterns {
		if out, ok := strings.CutPrefix(pattern, "!"); ok {
			schema, name := cutTable(out)
			leave = append(leave, schema+"."+name)
		} else {
			take = append(take, pattern)
		}
	}
	return take, leave
}

// cutTable takes a name or a pattern apart.
func cutTable(pattern string) (schema, name string) {
	schema, name, ok := strings.Cut(pattern, ".")
	if !ok {
		return "public", pattern
	}
	return schema, name
}

// wantsIdentity is the replica identity that a table needs, "" if it has one.
func (f found) wantsIdentity() string {
	switch {
	case f.whole && f.identity == "n":
		return "FULL"
	case f.key && f.identity != "n", f.identity == "f", f.identity == "i":
		return ""
	case f.key:
		return "DEFAULT"
	}
	return "FULL"
}

// identifyAll lets the tables and their partitions log what is needed of old rows.
func identifyAll(ctx context.Context, tx pgx.Tx, source string, want []found) (applied []string, err error) {
	if err := rememberWhole(ctx, tx, source, want); err != nil {
		return nil, err
	}
	for _, f := range want {
		step, err := identifyRows(ctx, tx, f)
		if err != nil {
			return nil, err
		}
		applied = append(applied, step...)
		if step, err = likeRoot(ctx, tx, source, f); err != nil {
			return nil, err
		}
		applied = append(applied, step...)
	}
	return applied, nil
}

// rememberWhole looks up which tables logged whole old rows: one that logs nothing now is to
// do so again, or its events would have no old values from then on.
func rememberWhole(ctx context.Context, tx pgx.Tx, source string, want []found) error {
	var there bool
	if err := tx.QueryRow(ctx, `SELECT to_regclass('onewrite.captured') IS NOT NULL`).Scan(&there); err != nil || !there {
		return explain(err)
	}
	rows, err := tx.Query(ctx, `SELECT rel FROM onewrite.captured WHERE source = $1 AND identity = 'f'`, source)
	if err != nil {
		return explain(err)
	}
	whole, err := pgx.CollectRows(rows, pgx.RowTo[uint32])
	for i := range want {
		want[i].whole = slices.Contains(whole, want[i].rel)
	}
	return explain(err)
}

// identifyRows lets a table without a key log its whole old rows. Without that the
// server would refuse the application's UPDATE and DELETE once it is published.
func identifyRows(ctx context.Context, tx pgx.Tx, f found) (applied []string, err error) {
	wanted := f.wantsIdentity()
	if wanted == "" {
		return nil, nil
	}
	if !f.owned {
		return nil, fmt.Errorf("%s logs no old rows, and the server would refuse to update it once it is captured; run as its owner: ALTER TABLE %s REPLICA IDENTITY %s", f.full(), f.quoted(), wanted)
	}
	if _, err := tx.Exec(ctx, "ALTER TABLE "+f.quoted()+" REPLICA IDENTITY "+wanted); err != nil {
		return nil, explain(err)
	}
	step := fmt.Sprintf("set the replica identity of %s to %s, as it logged no old rows", f.full(), strings.ToLower(wanted))
	if f.deferrable {
		step += "; its primary key is deferrable, which is no key of events: they are one lane, with whole rows"
	}
	return []string{step}, nil
}

// publishAll are the options of the publication.
const publishAll = "(publish = 'insert, update, delete, truncate', publish_via_partition_root = true)"

// createPublication makes the publication. That needs a right on the database, and the
// tables to be the role's own.
func createPublication(ctx context.Context, tx pgx.Tx, source string, want []found) (applied []string, err error) {
	var owner bool
	if err := tx.QueryRow(ctx, `SELECT pg_has_role(nspowner, 'USAGE') FROM pg_namespace WHERE nspname = 'onewrite'`).Scan(&owner); err != nil {
		return nil, explain(err)
	}
	sql, tables := "CREATE PUBLICATION "+pgx.Identifier{publicationOf(source)}.Sanitize(), make([]string, len(want))
	for i, f := range want {
		tables[i] = "ONLY " + f.quoted()
		owner = owner && f.owned
	}
	if len(want) > 0 {
		sql += " FOR TABLE " + strings.Join(tables, ", ")
	}
	if _, err := tx.Exec(ctx, sql+" WITH "+publishAll); err != nil {
		if !owner {
			return nil, ungranted(explain(err))
		}
		return nil, explain(err)
	}
	return []string{"created the publication " + publicationOf(source)}, nil
}

// publish makes the publication, or takes tables in and out of it.
// damaged: it left changes out; kept are the tables that it had.
func publish(ctx context.Context, tx pgx.Tx, source string, want []found) (applied []string, damaged bool, kept map[uint32]bool, err error) {
	name := pgx.Identifier{publicationOf(source)}.Sanitize()
	var there, whole bool
	err = tx.QueryRow(ctx, `SELECT count(*) > 0, coalesce(bool_and(pubinsert AND pubupdate AND pubdelete AND pubtruncate AND pubviaroot), false) FROM pg_publication WHERE pubname = $1`, publicationOf(source)).Scan(&there, &whole)
	if err != nil {
		return nil, false, nil, explain(err)
	}
	if !there {
		applied, err = createPublication(ctx, tx, source, want)
		return applied, false, nil, err
	}
	if !whole {
		if _, err := tx.Exec(ctx, "ALTER PUBLICATION "+name+" SET "+publishAll); err != nil {
			return nil, false, nil, explain(err)
		}
		applied = append(applied, "made the publication "+publicationOf(source)+" whole again")
	}
	rows, err := tx.Query(ctx, `SELECT r.prrelid, quote_ident(n.nspname) || '.' || quote_ident(c.relname), r.prqual IS NOT NULL OR r.prattrs IS NOT NULL, EXISTS (SELECT FROM onewrite.captured k WHERE k.source = $2 AND k.rel = r.prrelid)
		FROM pg_publication_rel r JOIN pg_publication p ON p.oid = r.prpubid JOIN pg_class c ON c.oid = r.prrelid JOIN pg_namespace n ON n.oid = c.relnamespace WHERE p.pubname = $1`, publicationOf(source), source)
	if err != nil {
		return nil, false, nil, explain(err)
	}
	has := map[uint32]bool{}
	var drop []string
	var rel uint32
	var quoted string
	var partial, known bool
	_, err = pgx.ForEachRow(rows, []any{&rel, &quoted, &partial, &known}, func() error {
		if partial || !slices.ContainsFunc(want, func(f found) bool { return f.rel == rel }) {
			drop = append(drop, quoted)
			if !known { // of those the registry tells what becomes of them
				applied = append(applied, "took "+quoted+" out of the publication "+publicationOf(source))
			}
			return nil
		}
		has[rel] = true
		return nil
	})
	if err != nil {
		return nil, false, nil, explain(err)
	}
	for _, t := range drop {
		if _, err := tx.Exec(ctx, "ALTER PUBLICATION "+name+" DROP TABLE ONLY "+t); err != nil {
			return nil, false, nil, explain(err)
		}
	}
	for _, f := range want {
		if has[f.rel] {
			continue
		}
		if _, err := tx.Exec(ctx, "ALTER PUBLICATION "+name+" ADD TABLE ONLY "+f.quoted()); err != nil {
			return nil, false, nil, explain(err)
		}
		if f.schema == "onewrite" { // register tells of the others
			applied = append(applied, "put "+f.full()+" into the publication "+publicationOf(source))
		}
	}
	return applied, !whole, has, nil
}
