package sqlite

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"hash/fnv"
	"regexp"
	"slices"
	"strings"
)

// column is a column of a captured table, as the images hold it.
type column struct {
	Name string `json:"name"`
	Type string `json:"type,omitempty"`
	Key  int    `json:"key,omitempty"` // the place in the primary key, from 1
}

// layout is how images are read: the table and its columns at the time.
type layout struct {
	Table   string   `json:"table"`
	Columns []column `json:"columns"`
}

// spec returns the layout as text, and its number, which follows from the text:
// so the SQL of a migration is the same wherever it is made.
func (l *layout) spec() (string, int64) {
	text, _ := json.Marshal(l) // strings and numbers cannot fail
	h := fnv.New64a()
	_, _ = h.Write(text)
	return string(text), int64(h.Sum64() >> 1)
}

// table is a captured table as it is now.
type table struct {
	layout
	rowid    string // a name of the rowid; empty for a table WITHOUT ROWID
	identity []part // what names a row: the rowid or the primary key
	unique   []unique
	nests    bool  // what a foreign key does when a row of it is deleted may write it
	newest   int64 // the rowid in sqlite_schema of the application's newest trigger of it
}

// part is one column of a unique key.
type part struct {
	column   string // quoted
	collate  string
	fallback string // what NULL becomes where NOT NULL ON CONFLICT REPLACE holds
}

// unique is a key that no two rows share; where limits it to some rows.
type unique struct {
	parts []part
	where string
}

func refuse(name, format string, args ...any) error {
	return fmt.Errorf("sqlite: table %s: %s; or take it out of tables: and run: onewrite migrate", name, fmt.Sprintf(format, args...))
}

var topicRule = regexp.MustCompile(`^[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*$`)

// describe reads what the triggers of a table depend on, and refuses what they
// could not capture exactly. found is false when there is no such table.
func describe(ctx context.Context, c *sql.Conn, name string) (t *table, found bool, err error) {
	var kind string
	var withoutRowid bool
	t = &table{}
	err = c.QueryRowContext(ctx, `SELECT name, type, wr FROM pragma_table_list WHERE schema = 'main' AND name = ? COLLATE NOCASE`, name).
		Scan(&t.Table, &kind, &withoutRowid)
	if err == sql.ErrNoRows {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, fmt.Errorf("sqlite: table %s: %w", name, err)
	}
	lower := strings.ToLower(t.Table)
	switch {
	case kind != "table":
		return nil, true, refuse(name, "is a %s; name the table that holds its rows", kind)
	case strings.HasPrefix(lower, "onewrite_") || strings.HasPrefix(lower, "sqlite_"):
		return nil, true, refuse(name, "is not a table of the application; name another one")
	case lower == "old" || lower == "new":
		return nil, true, refuse(name, "its name means the row before or after the change in a trigger; rename the table")
	case !topicRule.MatchString(t.Table) || len(t.Table) > 255:
		return nil, true, refuse(name, "its name is the topic, and a topic is made of letters, digits, _ and - joined by single dots; rename the table")
	}
	fallback, taken, err := t.readColumns(ctx, c)
	if err != nil {
		return nil, true, err
	}
	if err := t.readKeys(ctx, c, withoutRowid, fallback, taken); err != nil {
		return nil, true, err
	}
	keys, err := readForeignKeys(ctx, c)
	if err == nil {
		err = t.refuseForeignKeys(keys)
	}
	if err != nil {
		return nil, true, err
	}
	return t, true, t.readTriggers(ctx, c, keys)
}

// readColumns returns the defaults of NOT NULL columns, and all names in lower
// case.
func (t *table) readColumns(ctx context.Context, c *sql.Conn) (fallback map[string]string, taken map[string]bool, err error) {
	rows, err := c.QueryContext(ctx, `SELECT name, type, "notnull", dflt_value, pk, hidden FROM pragma_table_xinfo(?) ORDER BY cid`, t.Table)
	if err != nil {
		return nil, nil, fmt.Errorf("sqlite: columns of %s: %w", t.Table, err)
	}
	defer rows.Close()
	fallback, taken = map[string]string{}, map[string]bool{}
	for rows.Next() {
		var col column
		var notNull bool
		var dflt sql.NullString
		var hidden int
		if err := rows.Scan(&col.Name, &col.Type, &notNull, &dflt, &col.Key, &hidden); err != nil {
			return nil, nil, fmt.Errorf("sqlite: columns of %s: %w", t.Table, err)
		}
		taken[strings.ToLower(col.Name)] = true
		if notNull && dflt.Valid {
			fallback[col.Name] = defaultValue(dflt.String)
		}
		if hidden == 0 { // the others are generated
			t.Columns = append(t.Columns, col)
		}
	}
	return fallback, taken, rows.Err()
}

// readKeys finds the unique keys and what names a row.
func (t *table) readKeys(ctx context.Context, c *sql.Conn, withoutRowid bool, fallback map[string]string, taken map[string]bool) error {
	type index struct {
		name, origin string
		partial      bool
		sql          sql.NullString
	}
	var indexes []index
	rows, err := c.QueryContext(ctx, `SELECT l.name, l.origin, l.partial, s.sql FROM pragma_index_list(?) l
		LEFT JOIN sqlite_schema s ON s.type = 'index' AND s.name = l.name WHERE l."unique" ORDER BY l.name`, t.Table)
	if err != nil {
		return fmt.Errorf("sqlite: indexes of %s: %w", t.Table, err)
	}
	defer rows.Close()
	for rows.Next() {
		var ix index
		if err := rows.Scan(&ix.name, &ix.origin, &ix.partial, &ix.sql); err != nil {
			return fmt.Errorf("sqlite: indexes of %s: %w", t.Table, err)
		}
		indexes = append(indexes, ix)
	}
	if err := rows.Err(); err != nil {
		return fmt.Errorf("sqlite: indexes of %s: %w", t.Table, err)
	}
	_ = rows.Close()
	integerKey := t.keyColumn()
	for _, ix := range indexes {
		u := unique{}
		if u.parts, err = t.indexParts(ctx, c, ix.name, fallback); err != nil {
			return err
		}
		if ix.partial {
			var ok bool
			if u.where, ok = partialWhere(ix.sql.String); !ok {
				return refuse(t.Table, "the WHERE of index %s cannot be read; write it anew", ix.name)
			}
		}
		if ix.origin == "pk" {
			integerKey = ""
			if withoutRowid {
				t.identity = u.parts
			}
		}
		t.unique = append(t.unique, u)
	}
	if withoutRowid {
		if len(t.identity) == 0 || len(t.identity) > maxIdentity {
			return refuse(t.Table, "is WITHOUT ROWID and has a primary key of more than %d columns; make it a table with rowid", maxIdentity)
		}
		return nil
	}
	for _, alias := range []string{"rowid", "_rowid_", "oid"} {
		if !taken[alias] && t.rowid == "" {
			t.rowid = alias
		}
	}
	if t.rowid == "" && integerKey != "" {
		t.rowid = ident(integerKey)
	}
	if t.rowid == "" {
		return refuse(t.Table, "its columns hide rowid, _rowid_ and oid; rename one of them")
	}
	t.identity = []part{{column: t.rowid}}
	t.unique = append(t.unique, unique{parts: t.identity})
	return nil
}

// keyColumn is the only column of the primary key; it is the rowid itself if
// the key has no index.
func (t *table) keyColumn() string {
	name := ""
	for _, col := range t.Columns {
		if col.Key > 0 && name != "" {
			return ""
		}
		if col.Key > 0 {
			name = col.Name
		}
	}
	return name
}

func (t *table) indexParts(ctx context.Context, c *sql.Conn, index string, fallback map[string]string) ([]part, error) {
	rows, err := c.QueryContext(ctx, `SELECT name, coll FROM pragma_index_xinfo(?) WHERE key ORDER BY seqno`, index)
	if err != nil {
		return nil, fmt.Errorf("sqlite: index %s: %w", index, err)
	}
	defer rows.Close()
	var parts []part
	for rows.Next() {
		var name sql.NullString
		var collate string
		if err := rows.Scan(&name, &collate); err != nil {
			return nil, fmt.Errorf("sqlite: index %s: %w", index, err)
		}
		if !name.Valid {
			return nil, refuse(t.Table, "the unique index %s has an expression, and rows that REPLACE removes by it cannot be told; "+
				"make what it computes a plain column that the application fills, and index that", index)
		}
		if !slices.ContainsFunc(t.Columns, func(col column) bool { return col.Name == name.String }) {
			return nil, refuse(t.Table, "the unique index %s has the generated column %s, which no BEFORE trigger sees, so rows that REPLACE removes by it cannot be told; "+
				"make it a plain column that the application fills", index, name.String)
		}
		collate = strings.ToUpper(collate)
		if !slices.Contains([]string{"BINARY", "NOCASE", "RTRIM"}, collate) {
			return nil, refuse(t.Table, "the unique index %s has the collation %s, which only the application knows; use BINARY, NOCASE or RTRIM", index, collate)
		}
		parts = append(parts, part{ident(name.String), collate, fallback[name.String]})
	}
	return parts, rows.Err()
}
