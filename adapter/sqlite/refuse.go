package sqlite

import (
	"context"
	"database/sql"
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// A name as SQL may write it.
const nameRule = "(\"(?:[^\"]|\"\")+\"|`(?:[^`]|``)+`|\\[[^\\]]+\\]|'(?:[^']|'')+'|[\\w$\\x{80}-\\x{10ffff}]+)"

var (
	// writesRule finds the tables that a trigger writes.
	writesRule = regexp.MustCompile(`(?i)\b(?:INTO|DELETE\s+FROM|UPDATE(?:\s+OR\s+\w+)?)\s*` + nameRule)
	// afterRule matches an AFTER trigger. SQLite keeps the text from the name on,
	// and one that says neither is a BEFORE trigger.
	afterRule = regexp.MustCompile(`(?i)^CREATE\s+TRIGGER\s*` + nameRule + `\s*AFTER\b`)
)

// writes returns the tables that a trigger writes, in lower case. A word too
// many (UPDATE OF, UPDATE SET) is no harm: no table has its name.
func writes(text string) []string {
	var out []string
	for _, m := range writesRule.FindAllStringSubmatch(text, -1) {
		to, _ := unquote(m[1])
		out = append(out, strings.ToLower(to))
	}
	return out
}

// bare removes comments, and texts that are more than a word: a message may say
// what no statement does.
func bare(text string) string {
	var b strings.Builder
	for i := 0; i < len(text); {
		n := max(skip(text[i:]), 1)
		part := text[i : i+n]
		word, quoted := unquote(part)
		switch {
		case strings.HasPrefix(part, "--"), strings.HasPrefix(part, "/*"):
			b.WriteByte(' ')
		case quoted && part[0] == '\'' && !wordRule.MatchString(word):
			b.WriteString("''")
		default:
			b.WriteString(part)
		}
		i += n
	}
	return b.String()
}

// readTriggers finds the newest trigger of the application that writes the table
// again, itself or by others, and whether deleting
// a row may write the table, by way of keys and other triggers. It refuses the one
// thing that would hide a replaced row from ours: a BEFORE trigger that writes
// into its own table, itself or by the triggers of other tables, while the
// statement that fired it is about to.
func (t *table) readTriggers(ctx context.Context, c *sql.Conn, keys []foreignKey) error {
	rows, err := c.QueryContext(ctx, `SELECT rowid, name, tbl_name, sql FROM sqlite_schema WHERE type = 'trigger' AND name NOT LIKE 'onewrite\_%' ESCAPE '\'`)
	if err != nil {
		return fmt.Errorf("sqlite: triggers of %s: %w", t.Table, err)
	}
	defer rows.Close()
	written := map[string][]string{} // by the triggers of a table
	before := map[string][]string{}  // by a BEFORE trigger of this one
	own := strings.ToLower(t.Table)
	type fired struct {
		id int64
		to []string
	}
	var here []fired
	for rows.Next() {
		var id int64
		var name, on, text string
		if err := rows.Scan(&id, &name, &on, &text); err != nil {
			return fmt.Errorf("sqlite: triggers of %s: %w", t.Table, err)
		}
		text = bare(text)
		to, lower := writes(text), strings.ToLower(on)
		written[lower] = append(written[lower], to...)
		if lower == own {
			here = append(here, fired{id, to})
			if !afterRule.MatchString(text) {
				before[name] = to
			}
		}
	}
	if err := rows.Err(); err != nil {
		return fmt.Errorf("sqlite: triggers of %s: %w", t.Table, err)
	}
	for name, to := range before {
		if reaches(written, to, own) {
			return refuse(t.Table, "its BEFORE trigger %s writes the table itself, or another one whose triggers do, and what REPLACE removes then cannot be told; make it an AFTER trigger", name)
		}
	}
	var deleted []string
	for _, k := range keys {
		written[k.parent] = append(written[k.parent], k.child)
		if k.parent == own && k.onDelete {
			deleted = append(deleted, k.child)
		}
	}
	t.nests = reaches(written, deleted, own)
	for _, f := range here {
		if reaches(written, f.to, own) {
			t.newest = max(t.newest, f.id)
		}
	}
	return nil
}

// reaches follows what is written from table to table.
func reaches(written map[string][]string, from []string, to string) bool {
	seen := map[string]bool{}
	for from = slices.Clone(from); len(from) > 0; {
		next := from[0]
		if from = from[1:]; next == to {
			return true
		}
		if !seen[next] {
			seen[next] = true
			from = append(from, written[next]...)
		}
	}
	return false
}

// foreignKey is one column of a foreign key that acts on its child. All names
// are in lower case.
type foreignKey struct {
	child, column, parent, key string
	onUpdate, onDelete         bool
}

// readForeignKeys returns the foreign keys of all tables that do more than
// refuse.
func readForeignKeys(ctx context.Context, c *sql.Conn) ([]foreignKey, error) {
	rows, err := c.QueryContext(ctx, `SELECT lower(s.name), lower(f."from"), lower(f."table"), lower(coalesce(f."to",
			(SELECT i.name FROM pragma_table_info(f."table") i WHERE i.pk = f.seq + 1), '')), f.on_update, f.on_delete
		FROM sqlite_schema s, pragma_foreign_key_list(s.name) f WHERE s.type = 'table' AND s.sql LIKE '%references%' AND s.sql NOT LIKE 'create virtual%'`)
	if err != nil {
		return nil, fmt.Errorf("sqlite: foreign keys: %w", err)
	}
	defer rows.Close()
	acts := func(action string) bool { return action != "NO ACTION" && action != "RESTRICT" }
	var keys []foreignKey
	for rows.Next() {
		var k foreignKey
		var onUpdate, onDelete string
		if err := rows.Scan(&k.child, &k.column, &k.parent, &k.key, &onUpdate, &onDelete); err != nil {
			return nil, fmt.Errorf("sqlite: foreign keys: %w", err)
		}
		if k.onUpdate, k.onDelete = acts(onUpdate), acts(onDelete); k.onUpdate || k.onDelete {
			keys = append(keys, k)
		}
	}
	return keys, rows.Err()
}

// refuseForeignKeys refuses a table whose changed key may come back to the
// changed row: ON UPDATE of a foreign key acts before any AFTER trigger, so the
// row would be told in its last state first and in the one between last.
func (t *table) refuseForeignKeys(keys []foreignKey) error {
	own := strings.ToLower(t.Table)
	var changed []foreignKey // the columns that change when the keys of t do
	seen := map[foreignKey]bool{}
	follow := func(by func(foreignKey) bool) {
		for _, k := range keys {
			if k.onUpdate && !seen[k] && by(k) {
				seen[k] = true
				changed = append(changed, k)
			}
		}
	}
	follow(func(k foreignKey) bool { return k.parent == own })
	for len(changed) > 0 {
		at := changed[0]
		if changed = changed[1:]; at.child == own {
			return refuse(t.Table, "a foreign key with ON UPDATE leads from the table back to itself (to the column %s), and a row that points at itself would be told in the wrong order; "+
				"make it ON UPDATE NO ACTION", at.column)
		}
		follow(func(k foreignKey) bool { return k.parent == at.child && k.key == at.column })
	}
	return nil
}
