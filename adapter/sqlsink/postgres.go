package sqlsink

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// pgDB is a connection to PostgreSQL.
type pgDB struct{ conn *pgx.Conn }

// pgSession makes what the events have as text mean the same on every server. What
// waits for a lock, or for us, gives way in the end, so that another copy can go on.
const pgSession = `SELECT set_config('timezone', 'UTC', false), set_config('datestyle', 'ISO, YMD', false), set_config('intervalstyle', 'postgres', false),
 set_config('lock_timeout', '30s', false), set_config('idle_in_transaction_session_timeout', '60s', false)`

func openPostgres(ctx context.Context, c Config) (database, error) {
	p, err := dialPostgres(ctx, c)
	if err != nil {
		return nil, err
	}
	if err = p.prepare(ctx); err != nil {
		_ = p.close() // the error says more
		return nil, fmt.Errorf("sqlsink: %w", err)
	}
	return p, nil
}

// dialPostgres connects and changes nothing.
func dialPostgres(ctx context.Context, c Config) (*pgDB, error) {
	cfg, err := pgx.ParseConfig(c.URL)
	if err != nil {
		return nil, errors.New("sqlsink: url is not a PostgreSQL connection string; cure: write postgres://user:password@host:5432/database?sslmode=verify-full")
	}
	if cfg.ConnectTimeout == 0 {
		cfg.ConnectTimeout = 10 * time.Second
	}
	if cfg.RuntimeParams["application_name"] == "" {
		cfg.RuntimeParams["application_name"] = "onewrite " + c.Destination
	}
	cfg.StatementCacheCapacity = 256
	conn, err := pgx.ConnectConfig(ctx, cfg)
	if err != nil {
		return nil, pgUnreached(err, cfg)
	}
	p := &pgDB{conn: conn}
	if _, err = conn.Exec(ctx, pgSession); err != nil {
		_ = p.close() // the error says more
		return nil, fmt.Errorf("sqlsink: %w", err)
	}
	return p, nil
}

const pgPlaces = `CREATE TABLE IF NOT EXISTS onewrite_places (
  destination text PRIMARY KEY,
  owner text NOT NULL,
  record bytea,
  written timestamptz NOT NULL DEFAULT now())`

// prepare makes the table of places; a role that may not make tables can use one that
// is there.
func (p *pgDB) prepare(ctx context.Context) error {
	var there bool
	if err := p.conn.QueryRow(ctx, "SELECT to_regclass('onewrite_places') IS NOT NULL").Scan(&there); err != nil || there {
		return err
	}
	_, err := p.conn.Exec(ctx, pgPlaces)
	if pgCode(err) == "23505" || pgCode(err) == "42P07" { // another copy made it at the same moment
		return nil
	}
	if err != nil {
		return fmt.Errorf("make the table of places: %w; cure, as the owner of the schema: %s; GRANT SELECT, INSERT, UPDATE ON onewrite_places TO %s;", err, strings.Join(strings.Fields(pgPlaces), " "), p.who())
	}
	return nil
}

func ident(s string) string { return `"` + strings.ReplaceAll(s, `"`, `""`) + `"` }

func (n name) quote(f func(string) string) string {
	if n.schema == "" {
		return f(n.table)
	}
	return f(n.schema) + "." + f(n.table)
}

const pgColumns = `SELECT a.attname::text, quote_ident(tn.nspname) || '.' || quote_ident(t.typname), b.typname::text, b.typcategory::text,
  coalesce(e.typname::text, ''), coalesce(e.typdelim::text, ','), a.attgenerated <> '', a.attidentity = 'a'
FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid JOIN pg_namespace tn ON tn.oid = t.typnamespace
JOIN pg_type b ON b.oid = CASE WHEN t.typtype = 'd' THEN t.typbasetype ELSE t.oid END
LEFT JOIN pg_type e ON e.oid = b.typelem AND b.typcategory = 'A'
WHERE a.attrelid = $1::oid AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum`

const pgUnique = `SELECT i.indisprimary, i.indpred IS NULL AND i.indexprs IS NULL AND i.indimmediate AND i.indisvalid,
  ARRAY(SELECT a.attname::text FROM unnest(i.indkey[0:i.indnkeyatts-1]) WITH ORDINALITY k(n, o) JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.n ORDER BY k.o)
FROM pg_index i WHERE i.indrelid = $1::oid AND i.indisunique`

func (p *pgDB) describe(ctx context.Context, n name) (*table, error) {
	if len(n.table) > 63 || len(n.schema) > 63 { // it would be cut
		return nil, refuse("the name "+n.String()+" is longer than 63 bytes", "name the table in the destination: table: \"SHORT_NAME\", with topics: for it alone")
	}
	t := &table{name: n, quoted: n.quote(ident)}
	var oid *uint32
	if err := p.conn.QueryRow(ctx, "SELECT to_regclass($1)::oid", t.quoted).Scan(&oid); err != nil || oid == nil {
		return nil, err
	}
	rows, err := p.conn.Query(ctx, pgColumns, *oid)
	if err != nil {
		return nil, err
	}
	var name, typ, base, category, elem, delim string
	var generated, counted bool
	_, err = pgx.ForEachRow(rows, []any{&name, &typ, &base, &category, &elem, &delim, &generated, &counted}, func() error {
		c := &column{name: name, quoted: ident(name), typ: typ, generated: generated, insertOnly: counted, kind: pgKind(base), delim: delim[0], incomparable: pgIncomparable[base] || pgIncomparable[elem]}
		if category == "A" && elem != "" {
			c.kind, c.elem = kindArray, pgKind(elem)
		}
		t.columns = append(t.columns, c)
		return nil
	})
	if err != nil {
		return nil, err
	}
	if rows, err = p.conn.Query(ctx, pgUnique, *oid); err != nil {
		return nil, err
	}
	var primary, usable bool
	var names []string
	_, err = pgx.ForEachRow(rows, []any{&primary, &usable, &names}, func() error {
		if primary {
			t.primary = slices.Clone(names)
		}
		if usable {
			u := slices.Clone(names)
			slices.Sort(u)
			t.unique = append(t.unique, u)
		}
		return nil
	})
	return t, err
}

// pgIncomparable have no equality, or one that is not that of all they hold.
var pgIncomparable = map[string]bool{"json": true, "xml": true, "point": true, "polygon": true, "path": true, "box": true, "line": true, "lseg": true, "circle": true}

func pgKind(typname string) columnKind {
	switch typname {
	case "bytea":
		return kindBinary
	case "json", "jsonb":
		return kindJSON
	}
	return kindText
}

func (p *pgDB) alter(ctx context.Context, sql string) error {
	_, err := p.conn.Exec(ctx, sql)
	switch pgCode(err) {
	case "42P07", "42701", "23505": // somebody made it meanwhile
		return nil
	}
	return err
}

var pgTypes = map[columnForm]string{formText: "text", formInteger: "numeric", formHuge: "numeric", formReal: "numeric", formNumber: "numeric", formBoolean: "boolean", formDocument: "jsonb"}

// pgColumn is the definition of a column. A number is numeric, which holds them all,
// since 1 may be the first value of a column of reals; a key of integers is bigint.
func pgColumn(s *shape) (string, error) {
	if len(s.field) > 63 {
		return "", refuse(fmt.Sprintf("the name of the column %q is longer than 63 bytes", s.field), "leave the column out at the source: columns:")
	}
	typ := pgTypes[s.form()]
	if s.key && s.form() == formInteger {
		typ = "bigint"
	}
	return ident(s.field) + " " + typ, nil
}

func (p *pgDB) create(w *want) (string, int, error) { return createTable(w, ident, pgColumn, "") }

// createTable is CREATE TABLE with a primary key if the events have one.
func createTable(w *want, quote func(string) string, define func(*shape) (string, error), tail string) (sql string, bad int, err error) {
	var parts []string
	for _, s := range w.shapes {
		def, err := define(s)
		if err != nil {
			return "", s.first, err
		}
		parts = append(parts, def)
	}
	if len(w.key) > 0 {
		names := make([]string, len(w.key))
		for i, k := range w.key {
			names[i] = quote(k)
		}
		parts = append(parts, "PRIMARY KEY ("+strings.Join(names, ", ")+")")
	}
	return "CREATE TABLE " + w.name.quote(quote) + " (" + strings.Join(parts, ", ") + ")" + tail, 0, nil
}

func (p *pgDB) createMessages(n name) string {
	return "CREATE TABLE " + n.quote(ident) + ` (id text, source text, topic text NOT NULL, "key" text, type text NOT NULL, "time" timestamptz, data text, data_bytes bytea, content_type text, "sequence" text, headers jsonb, txid text, txindex bigint, txlast boolean, arrived bigint GENERATED BY DEFAULT AS IDENTITY, PRIMARY KEY (id, source))`
}

func (p *pgDB) addColumn(t *table, s *shape) (string, error) {
	def, err := pgColumn(s)
	return "ALTER TABLE " + t.quoted + " ADD COLUMN " + def, err
}

func (p *pgDB) folds() bool { return false }

// take makes owner the owner. It waits for a transaction of the owner before that is
// under way, and sees what it stored.
func (p *pgDB) take(ctx context.Context, destination, owner string) (record []byte, err error) {
	err = p.conn.QueryRow(ctx, `INSERT INTO onewrite_places AS p (destination, owner) VALUES ($1, $2)
 ON CONFLICT (destination) DO UPDATE SET owner = EXCLUDED.owner RETURNING p.record`, destination, owner).Scan(&record)
	return record, err
}

func (p *pgDB) owns(ctx context.Context, destination, owner string) error {
	var is bool
	err := p.conn.QueryRow(ctx, "SELECT EXISTS (SELECT FROM onewrite_places WHERE destination = $1 AND owner = $2)", destination, owner).Scan(&is)
	if err == nil && !is {
		return errFenced(destination)
	}
	return err
}

func (p *pgDB) usable() bool { return !p.conn.IsClosed() }

func (p *pgDB) close() error {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	_ = p.conn.Close(ctx) // that the goodbye did not get through is no loss
	return nil
}

func pgCode(err error) string {
	var e *pgconn.PgError
	if errors.As(err, &e) {
		return e.Code
	}
	return ""
}
