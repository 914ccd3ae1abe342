package sqlsink

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/onewrite/onewrite/internal/diagnosis"
	"github.com/onewrite/onewrite/internal/disk"
)

// SourceTable is a table whose row changes a source captures.
type SourceTable struct {
	// Schema and Table name it in the source, Topic is that of its events.
	Schema, Table, Topic string
}

// Examine looks at a database that is written to, and says what it finds; the caller
// adds the Subject. It changes nothing. tables are those that the sources capture,
// topics the patterns that the destination wants.
func Examine(ctx context.Context, c Config, tables []SourceTable, topics []string) []diagnosis.Finding {
	e := &examiner{cfg: c}
	e.run(ctx, tables, topics)
	return e.Found
}

// inspector is what an examination asks of a connection.
type inspector interface {
	// server names the server and its version.
	server(ctx context.Context) (string, error)
	// readOnly reports a server on which nothing can be written.
	readOnly(ctx context.Context) (bool, error)
	// lacks returns which of the rights the user does not have on a table, or nil if
	// that cannot be told; of an empty name, whether tables can be made.
	lacks(ctx context.Context, t *table) ([]string, error)
	// room reports whether there is a schema, and whether tables can be made in it.
	room(ctx context.Context, schema string) (there, may bool, err error)
	// mayMake is the statement that lets the user make tables.
	mayMake(ctx context.Context) (string, error)
	// holder returns when the destination was last written; "": never.
	holder(ctx context.Context, destination string) (string, error)
}

// examiner is one examination.
type examiner struct {
	diagnosis.List
	cfg Config
	db  interface {
		database
		inspector
	}
}

func (e *examiner) failed(check string, err error) {
	text, cure, _ := strings.Cut(strings.TrimPrefix(err.Error(), "sqlsink: "), "; cure: ")
	if cure == "" {
		cure = e.db.cure(err, nil)
	}
	e.Add(diagnosis.Problem, check, cure, "%s", text)
}

func (e *examiner) run(ctx context.Context, tables []SourceTable, topics []string) {
	names, messages, err := e.cfg.names()
	if err != nil {
		e.Add(diagnosis.Problem, "table", `write table: "{table}"`, "%v", err)
		return
	}
	if e.cfg.Kind == SQLite && !e.file() || !e.connect(ctx) {
		return
	}
	defer func() { _ = e.db.close() }()
	version, err := e.db.server(ctx)
	if err != nil {
		e.failed("version", err)
		return
	}
	e.Add(diagnosis.OK, "version", "", "%s", version)
	if only, err := e.db.readOnly(ctx); err != nil {
		e.failed("writable", err)
	} else if only {
		e.Add(diagnosis.Problem, "writable", "point url at the primary", "the server is read only")
	}
	e.places(ctx)
	e.making(ctx)
	for _, t := range tables {
		if len(topics) > 0 && !slices.ContainsFunc(topics, func(p string) bool { return matches(p, t.Topic) }) {
			continue
		}
		n, err := names.name(t.Schema, t.Table, t.Topic)
		if err != nil {
			e.failed("table", err)
			continue
		}
		e.table(ctx, n, t.Topic)
	}
	switch t, err := e.db.describe(ctx, messages); {
	case err != nil:
		e.failed("messages", err)
	case t != nil:
		e.rights(ctx, t, "messages")
	default:
		e.room(ctx, messages, "messages")
	}
}

// room says what keeps a table that is missing from being made where it is to be, and
// reports that nothing does.
func (e *examiner) room(ctx context.Context, n name, check string) bool {
	if n.schema == "" {
		return true // the check create has it
	}
	there, may, err := e.db.room(ctx, n.schema)
	switch {
	case err != nil:
		e.failed(check, err)
	case !there:
		e.Add(diagnosis.Problem, check, e.db.home(n.schema), "there is no %s to make the table %s in, or the user may not see it: its events would be held back", n.schema, n)
	case !may && !e.cfg.NoCreate:
		e.Add(diagnosis.Problem, check, e.db.allow(n.schema), "the user may not make the table %s: its events would be held back", n)
	default:
		return true
	}
	return false
}

// file looks at an SQLite file from outside: an examination must not make it.
func (e *examiner) file() bool {
	dir := filepath.Dir(e.cfg.Path)
	if _, err := os.Stat(dir); errors.Is(err, os.ErrNotExist) {
		e.Add(diagnosis.Problem, "folder", "mkdir -p "+disk.Quote(dir), "there is no folder %s", dir)
		return false
	}
	if why, cure := disk.Unwritable(dir); why != "" {
		e.Add(diagnosis.Problem, "folder", cure, "%s: SQLite keeps its journal beside the file", why)
		return false
	}
	if _, err := os.Stat(e.cfg.Path); errors.Is(err, os.ErrNotExist) {
		e.Add(diagnosis.OK, "file", "", "%s is not there yet; onewrite run makes it", e.cfg.Path)
		return false
	}
	if short := disk.Scarce(dir); short != "" {
		e.Add(diagnosis.Warning, "disk", "df -h "+disk.Quote(dir), "%s", short)
	}
	return true
}

// connect opens a connection that makes no table of places.
func (e *examiner) connect(ctx context.Context) bool {
	var err error
	switch e.cfg.Kind {
	case Postgres:
		var p *pgDB
		if p, err = dialPostgres(ctx, e.cfg); err == nil {
			e.db = p
		}
	case MySQL:
		var m *mysqlDB
		if m, err = dialMySQL(ctx, e.cfg); err == nil {
			e.db = m
		}
	default:
		s := &sqliteDB{path: e.cfg.Path}
		if err = s.open(ctx, "rw"); err == nil {
			err = s.conn.PingContext(ctx)
		}
		e.db = s
	}
	if err == nil {
		return true
	}
	text, cure, _ := strings.Cut(strings.TrimPrefix(err.Error(), "sqlsink: "), "; cure: ")
	if cure == "" {
		cure = sqliteFileCure(e.cfg.Path, err)
	}
	e.Add(diagnosis.Problem, "reach", cure, "%s", text)
	return false
}

func (e *examiner) places(ctx context.Context) {
	t, err := e.db.describe(ctx, name{"", placesTable})
	switch {
	case err != nil:
		e.failed("places", err)
		return
	case t == nil:
		lacks, err := e.db.lacks(ctx, nil)
		if err != nil {
			e.failed("places", err)
		} else if slices.Contains(lacks, "CREATE") {
			e.Add(diagnosis.Problem, "places", e.grant(ctx), "%s is not there, and the user may not make it: nothing would be delivered", placesTable)
		} else {
			e.Add(diagnosis.OK, "places", "", "%s is not there yet; onewrite run makes it", placesTable)
		}
		return
	}
	for _, c := range []string{"destination", "owner", "record", "written"} {
		if t.find(c, true) == nil {
			e.Add(diagnosis.Problem, "places", "ALTER TABLE "+placesTable+" RENAME TO "+placesTable+"_old;", "the table %s is not onewrite's: it has no column %s", placesTable, c)
			return
		}
	}
	if lacks, err := e.db.lacks(ctx, t); err == nil && (slices.Contains(lacks, "INSERT") || slices.Contains(lacks, "UPDATE") || slices.Contains(lacks, "SELECT")) {
		e.Add(diagnosis.Problem, "places", "GRANT SELECT, INSERT, UPDATE ON "+t.quoted+" TO "+e.db.who()+";", "the user may not %s %s", strings.Join(lacks, ", "), placesTable)
		return
	}
	at, err := e.db.holder(ctx, e.cfg.Destination)
	switch {
	case err != nil:
		e.failed("places", err)
	case at == "":
		e.Add(diagnosis.OK, "places", "", "the destination %s was never written here", e.cfg.Destination)
	default:
		e.Add(diagnosis.OK, "places", "", "the destination %s was last written at %s", e.cfg.Destination, at)
	}
}

// making says whether tables can be made, where that is asked for.
func (e *examiner) making(ctx context.Context) {
	if e.cfg.NoCreate {
		return
	}
	lacks, err := e.db.lacks(ctx, nil)
	if err != nil {
		e.failed("create", err)
	} else if len(lacks) > 0 {
		e.Add(diagnosis.Warning, "create", e.grant(ctx)+" -- or make the tables yourself and write create: false", "the user may not make tables; one that is missing would hold its events back")
	}
}

// grant is the statement that lets the user make tables.
func (e *examiner) grant(ctx context.Context) string {
	text, err := e.db.mayMake(ctx)
	if err != nil {
		return e.db.cure(err, nil)
	}
	return text
}

func (e *examiner) table(ctx context.Context, n name, topic string) {
	t, err := e.db.describe(ctx, n)
	switch {
	case err != nil:
		e.failed("table", err)
		return
	case t == nil && e.cfg.NoCreate:
		e.Add(diagnosis.Problem, "table", "make it, or write create: true", "there is no table %s for %s", n, topic)
		return
	case t == nil:
		if e.room(ctx, n, "table") {
			e.Add(diagnosis.OK, "table", "", "%s for %s is not there yet; its first event makes it", n, topic)
		}
		return
	}
	if len(t.unique) == 0 {
		e.Add(diagnosis.Warning, "table", e.addKey(t)+" -- if the source's table has no key either, give it one there first, or leave both", "%s has no key that rows can be written by: each change of a row looks for it in the whole table", n)
	} else {
		e.Add(diagnosis.OK, "table", "", "%s for %s: %d columns, key %s", n, topic, len(t.columns), strings.Join(t.primary, ", "))
	}
	e.rights(ctx, t, "table")
}

// addKey is the statement that gives a table a key. SQLite adds none to one that is there.
func (e *examiner) addKey(t *table) string {
	const columns = " (the key columns of the source);"
	if e.cfg.Kind == SQLite {
		schema, _ := strings.CutSuffix(t.quoted, ident(t.name.table))
		return "CREATE UNIQUE INDEX " + schema + ident(t.name.table+"_key") + " ON " + ident(t.name.table) + columns
	}
	return "ALTER TABLE " + t.quoted + " ADD PRIMARY KEY" + columns
}

func (e *examiner) rights(ctx context.Context, t *table, check string) {
	lacks, err := e.db.lacks(ctx, t)
	if err != nil {
		e.failed(check, err)
		return
	}
	if e.cfg.IgnoreTruncate {
		lacks = slices.DeleteFunc(lacks, func(r string) bool { return r == "TRUNCATE" })
	}
	if len(lacks) > 0 {
		list := strings.Join(lacks, ", ")
		e.Add(diagnosis.Problem, check, "GRANT "+list+" ON "+t.quoted+" TO "+e.db.who()+";", "the user may not %s the table %s", list, t.name)
	}
}

// matches reports whether a topic matches a pattern: * is one word, > all that follow.
func matches(pattern, topic string) bool {
	parts, words := strings.Split(pattern, "."), strings.Split(topic, ".")
	for i, p := range parts {
		if p == ">" {
			return i < len(words)
		}
		if i >= len(words) || p != "*" && p != words[i] {
			return false
		}
	}
	return len(parts) == len(words)
}
