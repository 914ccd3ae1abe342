package sqlite

import (
	"fmt"
	"strings"
)

// trigger is one of a table's triggers.
type trigger struct{ name, sql string }

// triggerSuffixes tell a table's triggers apart: before and after insert, before
// and after update, after delete.
var triggerSuffixes = []string{"bi", "ai", "bu", "au", "ad"}

func triggerName(table, suffix string) string { return "onewrite_" + table + "_" + suffix }

// cell is one value as text: SQL's quote, which tells integers, reals and BLOBs
// apart and gives reals back exactly, but JSON for text, since quote ends at a
// NUL. Neither fails for any value; json_object fails for BLOBs.
func cell(value string) string {
	return "CASE typeof(" + value + ") WHEN 'text' THEN json_quote(" + value + ") ELSE quote(" + value + ") END"
}

// image is a row as text: its cells with commas between them.
func (t *table) image(row string) string {
	parts := make([]string, 0, 2*len(t.Columns))
	for i, col := range t.Columns {
		if i > 0 {
			parts = append(parts, "','")
		}
		parts = append(parts, cell(row+"."+ident(col.Name)))
	}
	return concat(parts)
}

// concat joins by || in a balanced tree: SQLite allows expressions of a depth
// of 1000, which a list of 500 columns would pass.
func concat(parts []string) string {
	if len(parts) == 1 {
		return parts[0]
	}
	half := len(parts) / 2
	return "(" + concat(parts[:half]) + " || " + concat(parts[half:]) + ")"
}

// triggers returns the five triggers of a table.
//
// REPLACE removes rows without firing DELETE triggers, unless the connection
// has recursive_triggers on. A BEFORE trigger cannot know whether the statement
// is going to replace, ignore, update or fail; an AFTER trigger no longer sees
// the replaced rows. So the BEFORE trigger notes the rows that are in the way,
// and the AFTER trigger, which fires only if the row was written, reports those
// that are gone. If DELETE triggers do fire, they strike the row off the notes.
func (t *table) triggers() []trigger {
	_, id := t.spec()
	topic := literal(t.Table)
	event := func(op, before, after, where string) string {
		return fmt.Sprintf("  INSERT INTO onewrite_outbox (topic, op, layout, \"before\", \"after\")\n    SELECT %s, '%s', %d, %s, %s%s;\n",
			topic, op, id, before, after, where)
	}
	clear := fmt.Sprintf("  DELETE FROM onewrite_replaced WHERE layout = %d", id)
	replaced := func(when string) string {
		return event("d", "image", "NULL", fmt.Sprintf(" FROM onewrite_replaced WHERE layout = %d%s AND %s", id, when, t.gone()))
	}
	changed, same := t.keysChanged(), t.sameKey()
	body := []struct{ suffix, head, body string }{
		{"bi", "BEFORE INSERT ON %s", clear + ";\n" + t.note(id, "")},
		{"ai", "AFTER INSERT ON %s", replaced("") + clear + ";\n" + event("c", "NULL", t.image("NEW"), "")},
		{"bu", "BEFORE UPDATE ON %s WHEN " + strings.ReplaceAll(changed, "%", "%%"), clear + ";\n" + t.note(id, " AND NOT ("+t.sameRow("OLD")+")")},
		{"au", "AFTER UPDATE ON %s", replaced(" AND ("+changed+")") + clear + ";\n" +
			event("u", t.image("OLD"), t.image("NEW"), " WHERE "+same) +
			event("d", t.image("OLD"), "NULL", " WHERE NOT ("+same+")") +
			event("c", "NULL", t.image("NEW"), " WHERE NOT ("+same+")")},
		{"ad", "AFTER DELETE ON %s", clear + " AND " + t.noted("OLD") + ";\n" + event("d", t.image("OLD"), "NULL", "")},
	}
	out := make([]trigger, len(body))
	for i, b := range body {
		out[i].name = triggerName(t.Table, b.suffix)
		out[i].sql = "CREATE TRIGGER " + ident(out[i].name) + " " + fmt.Sprintf(b.head, ident(t.Table)) + "\nBEGIN\n" + b.body + "END"
	}
	return out
}

// snapshot writes an event for each row there is.
func (t *table) snapshot() string {
	_, id := t.spec()
	name := ident(t.Table)
	return fmt.Sprintf("INSERT INTO onewrite_outbox (topic, op, layout, \"after\") SELECT %s, 'r', %d, %s FROM %s",
		literal(t.Table), id, t.image(name), name)
}

// note writes the rows that share a unique key with NEW into onewrite_replaced.
// Each key is looked up by a query of its own, so that its index serves.
func (t *table) note(id int64, but string) string {
	name := ident(t.Table)
	list := make([]string, len(t.identity))
	k := make([]string, len(t.identity))
	for i, p := range t.identity {
		list[i], k[i] = name+"."+p.column, fmt.Sprintf("k%d", i+1)
	}
	ids := strings.Join(list, ", ")
	finds := make([]string, len(t.unique))
	for i, u := range t.unique {
		conds := make([]string, len(u.parts))
		for j, p := range u.parts {
			value := "NEW." + p.column
			if p.fallback != "" {
				value = "coalesce(" + value + ", (" + p.fallback + "))"
			}
			conds[j] = name + "." + p.column + p.collation() + " = " + value
		}
		finds[i] = "SELECT " + ids + " FROM " + name + " WHERE " + strings.Join(conds, " AND ")
		if u.where != "" {
			finds[i] += " AND (" + u.where + "\n)"
		}
	}
	return fmt.Sprintf("  INSERT INTO onewrite_replaced (layout, %s, image)\n    SELECT %d, %s, %s FROM %s WHERE (%s) IN (\n      %s)%s;\n",
		strings.Join(k, ", "), id, ids, t.image(name), name, ids, strings.Join(finds, "\n      UNION "), but)
}

func (p part) collation() string {
	if p.collate == "" {
		return ""
	}
	return " COLLATE " + p.collate
}

// gone is true for a noted row that is there no more; the place of one that had
// the identity of NEW is NEW's now.
func (t *table) gone() string {
	name := ident(t.Table)
	mine, there := make([]string, len(t.identity)), make([]string, len(t.identity))
	for i, p := range t.identity {
		k := fmt.Sprintf("onewrite_replaced.k%d", i+1)
		mine[i] = k + p.collation() + " = NEW." + p.column
		there[i] = name + "." + p.column + p.collation() + " = " + k
	}
	return "(" + strings.Join(mine, " AND ") + "\n      OR NOT EXISTS (SELECT 1 FROM " + name + " WHERE " + strings.Join(there, " AND ") + "))"
}

// noted compares the identity of a row with that of a noted one.
func (t *table) noted(row string) string {
	conds := make([]string, len(t.identity))
	for i, p := range t.identity {
		conds[i] = fmt.Sprintf("k%d IS %s.%s", i+1, row, p.column)
	}
	return strings.Join(conds, " AND ")
}

// sameRow compares the identity of a row of the table with that of OLD.
func (t *table) sameRow(row string) string {
	conds := make([]string, len(t.identity))
	for i, p := range t.identity {
		conds[i] = ident(t.Table) + "." + p.column + " COLLATE BINARY IS " + row + "." + p.column
	}
	return strings.Join(conds, " AND ")
}

// keysChanged is true for an update that may run into another row.
func (t *table) keysChanged() string {
	var conds []string
	seen := map[string]bool{}
	for _, u := range t.unique {
		if u.where != "" {
			return "1" // any column may bring the row under the index
		}
		for _, p := range u.parts {
			if !seen[p.column] {
				seen[p.column] = true
				conds = append(conds, "NEW."+p.column+" COLLATE BINARY IS NOT OLD."+p.column)
			}
		}
	}
	return strings.Join(conds, " OR ")
}

// sameKey is true for an update that leaves the event's key as it is, to the
// byte: the column's collation may take two texts for one.
func (t *table) sameKey() string {
	conds := []string{"1"}
	for _, col := range t.Columns {
		if col.Key > 0 {
			o, n := "OLD."+ident(col.Name), "NEW."+ident(col.Name)
			conds = append(conds, n+" COLLATE BINARY IS "+o, "typeof("+n+") = typeof("+o+")")
		}
	}
	return strings.Join(conds, " AND ")
}
