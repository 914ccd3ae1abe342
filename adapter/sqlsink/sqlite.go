package sqlsink

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"path/filepath"
	"slices"
	"strings"

	driver "modernc.org/sqlite"

	"github.com/onewrite/onewrite/internal/disk"
)

// sqliteDB is a connection to a file.
type sqliteDB struct {
	path     string
	pool     *sql.DB // of one connection
	conn     *sql.Conn
	prepared map[string]*sql.Stmt
	dead     bool
}

func openSQLite(ctx context.Context, c Config) (database, error) {
	s := &sqliteDB{path: c.Path, prepared: map[string]*sql.Stmt{}}
	err := s.open(ctx, "rwc")
	if err == nil {
		err = s.prepare(ctx)
	}
	if err != nil {
		_ = s.close() // the error says more
		return nil, fmt.Errorf("sqlsink: %s: %w; cure: %s", c.Path, err, sqliteFileCure(c.Path, err))
	}
	return s, nil
}

func sqliteFileCure(path string, err error) string {
	switch sqliteCode(err) & 0xff {
	case 5, 6:
		return "fuser -v " + disk.Quote(path) + ", and let that program end its transaction"
	case 26:
		return "name a file that is an SQLite database, or does not exist"
	}
	return "the folder must exist and be writable: ls -ld " + disk.Quote(filepath.Dir(path))
}

func (s *sqliteDB) open(ctx context.Context, mode string) error {
	full, err := filepath.Abs(s.path)
	if err != nil {
		return err
	}
	full = filepath.ToSlash(full)
	if !strings.HasPrefix(full, "/") { // C:/…
		full = "/" + full
	}
	// A commit is on the disk when it returns; the foreign keys of the target hold.
	q := url.Values{"mode": {mode}, "_pragma": {"busy_timeout(5000)", "synchronous(FULL)", "foreign_keys(1)"}}
	if s.pool, err = sql.Open("sqlite", "file://"+(&url.URL{Path: full}).EscapedPath()+"?"+q.Encode()); err != nil {
		return err
	}
	s.pool.SetMaxOpenConns(1)
	s.conn, err = s.pool.Conn(ctx)
	return err
}

const sqlitePlaces = "CREATE TABLE IF NOT EXISTS onewrite_places (destination TEXT PRIMARY KEY NOT NULL, owner TEXT NOT NULL, record BLOB, written TEXT NOT NULL)"

// prepare makes a new file one that can be read while it is written.
func (s *sqliteDB) prepare(ctx context.Context) error {
	var objects int
	if err := s.conn.QueryRowContext(ctx, "SELECT count(*) FROM sqlite_master").Scan(&objects); err != nil {
		return err
	}
	if objects == 0 {
		if _, err := s.conn.ExecContext(ctx, "PRAGMA journal_mode = WAL"); err != nil {
			return err
		}
	}
	t, err := s.describe(ctx, name{"", placesTable})
	if err != nil || t != nil {
		return err
	}
	_, err = s.conn.ExecContext(ctx, sqlitePlaces)
	return err
}

func (s *sqliteDB) describe(ctx context.Context, n name) (*table, error) {
	schema := n.schema
	if schema == "" {
		schema = "main"
	}
	t := &table{name: n, quoted: name{schema, n.table}.quote(ident)}
	rows, err := s.conn.QueryContext(ctx, "SELECT name, type, pk, hidden FROM pragma_table_xinfo(?, ?) ORDER BY cid", n.table, schema)
	if sqliteCode(err)&0xff == 1 { // unknown database
		return nil, refuse("an SQLite file has no schema "+n.schema, `write table: "{table}" in the destination`)
	}
	if err != nil {
		return nil, s.noted(err)
	}
	defer rows.Close()
	keys := map[int]string{}
	for rows.Next() {
		var name, typ string
		var pk, hidden int
		if err := rows.Scan(&name, &typ, &pk, &hidden); err != nil {
			return nil, s.noted(err)
		}
		if pk > 0 {
			keys[pk] = name
		}
		t.columns = append(t.columns, &column{name: name, quoted: ident(name), kind: sqliteKind(typ), generated: hidden > 1})
	}
	if err := rows.Err(); err != nil || len(t.columns) == 0 {
		return nil, s.noted(err)
	}
	for i := range len(keys) {
		t.primary = append(t.primary, keys[i+1])
	}
	if len(t.primary) > 0 {
		u := slices.Clone(t.primary)
		slices.Sort(u)
		t.unique = append(t.unique, u)
	}
	return t, s.indexes(ctx, t, schema)
}

func (s *sqliteDB) indexes(ctx context.Context, t *table, schema string) error {
	rows, err := s.conn.QueryContext(ctx, `SELECT l.name, i.name FROM pragma_index_list(?, ?) l JOIN pragma_index_info(l.name, ?) i
 WHERE l."unique" AND NOT l.partial ORDER BY l.name, i.seqno`, t.name.table, schema, schema)
	if err != nil {
		return s.noted(err)
	}
	defer rows.Close()
	parts := map[string][]string{}
	for rows.Next() {
		var index string
		var column *string // nil: an expression
		if err := rows.Scan(&index, &column); err != nil {
			return s.noted(err)
		}
		if column == nil {
			column = new(string)
		}
		parts[index] = append(parts[index], *column)
	}
	for _, names := range parts {
		if slices.Sort(names); names[0] != "" {
			t.unique = append(t.unique, names)
		}
	}
	return s.noted(rows.Err())
}

// sqliteKind is the affinity of a declared type, by SQLite's own rules.
func sqliteKind(declared string) columnKind {
	d := strings.ToUpper(declared)
	contains := func(words ...string) bool {
		return slices.ContainsFunc(words, func(w string) bool { return strings.Contains(d, w) })
	}
	switch {
	case contains("INT"):
		return kindInteger
	case contains("CHAR", "CLOB", "TEXT"):
		return kindText
	case contains("BLOB"):
		return kindBinary
	case contains("REAL", "FLOA", "DOUB"):
		return kindFloat
	}
	return kindAny
}

func (s *sqliteDB) alter(ctx context.Context, sql string) error {
	_, err := s.conn.ExecContext(ctx, sql)
	if err != nil && (strings.Contains(err.Error(), "already exists") || strings.Contains(err.Error(), "duplicate column")) {
		return nil // somebody made it meanwhile; if not, the next look says so
	}
	return s.noted(err)
}

var sqliteTypes = map[columnForm]string{formText: "TEXT", formInteger: "INTEGER", formHuge: "TEXT", formReal: "REAL", formNumber: "NUMERIC", formBoolean: "BOOLEAN", formDocument: "TEXT"}

func sqliteColumn(s *shape) (string, error) {
	return ident(s.field) + " " + sqliteTypes[s.form()], nil
}

func (s *sqliteDB) create(w *want) (string, int, error) {
	return createTable(w, ident, sqliteColumn, "")
}

func (s *sqliteDB) createMessages(n name) string {
	return "CREATE TABLE " + n.quote(ident) + ` (id TEXT NOT NULL, source TEXT NOT NULL, topic TEXT NOT NULL, "key" TEXT, type TEXT NOT NULL, "time" TEXT, data TEXT, data_bytes BLOB, content_type TEXT, "sequence" TEXT, headers TEXT, txid TEXT, txindex INTEGER, txlast BOOLEAN, PRIMARY KEY (id, source))`
}

func (s *sqliteDB) addColumn(t *table, sh *shape) (string, error) {
	def, err := sqliteColumn(sh)
	return "ALTER TABLE " + t.quoted + " ADD COLUMN " + def, err
}

func (s *sqliteDB) folds() bool { return true }

func (s *sqliteDB) take(ctx context.Context, destination, owner string) (record []byte, err error) {
	err = s.conn.QueryRowContext(ctx, `INSERT INTO onewrite_places (destination, owner, written) VALUES (?, ?, strftime('%Y-%m-%dT%H:%M:%fZ', 'now'))
 ON CONFLICT (destination) DO UPDATE SET owner = excluded.owner RETURNING record`, destination, owner).Scan(&record)
	return record, s.noted(err)
}

func (s *sqliteDB) owns(ctx context.Context, destination, owner string) error {
	var n int
	err := s.conn.QueryRowContext(ctx, "SELECT count(*) FROM onewrite_places WHERE destination = ? AND owner = ?", destination, owner).Scan(&n)
	if err == nil && n == 0 {
		return errFenced(destination)
	}
	return s.noted(err)
}

// noted gives the connection up after an error that SQLite did not report.
func (s *sqliteDB) noted(err error) error {
	if err != nil && sqliteCode(err) == 0 {
		s.dead = true
	}
	return err
}

func (s *sqliteDB) usable() bool { return !s.dead }

func (s *sqliteDB) close() error {
	for _, st := range s.prepared {
		_ = st.Close()
	}
	var err error
	if s.conn != nil {
		err = s.conn.Close()
	}
	if s.pool != nil {
		err = errors.Join(err, s.pool.Close())
	}
	return err
}

func sqliteCode(err error) int {
	var e *driver.Error
	if errors.As(err, &e) {
		return e.Code()
	}
	return 0
}
