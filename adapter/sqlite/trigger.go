package sqlite

import (
	"fmt"
	"strings"
)

// trigger is one of a table's triggers.
type trigger struct{ name, sql string }

// triggerSuffixes tell a table's triggers apart: before and after insert, before
// and after update, before and after delete.
var triggerSuffixes = []string{"bi", "ai", "bu", "au", "bd", "ad"}

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

// triggers returns the six triggers of a table.
//
// REPLACE removes rows without firing DELETE triggers, unless the connection
// has recursive_triggers on. A BEFORE trigger cannot know whether the statement
// is going to replace, ignore, update or fail; an AFTER trigger no longer sees
// the replaced rows. So the BEFORE trigger notes the rows that are in the way,
// and the AFTER trigger, which fires only if the row was written, reports those
// that are gone. If DELETE triggers do fire, they strike the row off the notes
// before it goes, and report it themselves.
//
// Foreign keys act on the removal of a replaced row at once, and what they do
// may write the same table, between the BEFORE and the AFTER trigger of the
// statement that replaces. Where they can (see nests), for such a nested
// statement:
//
//   - a note is always true: it is of a row that is there with this image, or
//     of one that REPLACE removed and nobody reported. So any AFTER trigger may
//     report all notes of rows that are gone.
//   - it knows that it is nested: there is a note of a row that is gone. Its
//     BEFORE trigger then clears nothing and leaves a mark, a row of layout -id.
//     Its AFTER trigger takes the mark away and keeps the notes. What it has
//     reported stays as a row without image, so that the next one knows as well.
//   - what it wrote may be in the way of the statement around it, so it is noted.
//
// A nested statement that is ignored leaves its mark. That costs time, not
// changes, until the source sweeps it out; see sweep.
func (t *table) triggers() []trigger {
	_, id := t.spec()
	topic := literal(t.Table)
	event := func(op, before, after, where string) string {
		return fmt.Sprintf("  INSERT INTO onewrite_outbox (topic, op, layout, \"before\", \"after\")\n    SELECT %s, '%s', %d, %s, %s%s;\n",
			topic, op, id, before, after, where)
	}
	changed, same := t.keysChanged(), t.sameKey()
	begin := t.beginNotes(id)
	body := []struct{ suffix, head, body string }{
		{"bi", "BEFORE INSERT ON %s", begin + t.note(id, "")},
		{"ai", "AFTER INSERT ON %s", t.endNotes(id, event, "", "") + t.keepNote(id, "") + event("c", "NULL", t.image("NEW"), "")},
		{"bu", "BEFORE UPDATE ON %s WHEN " + strings.ReplaceAll(changed, "%", "%%"), begin + t.note(id, " AND NOT ("+t.sameRow("OLD")+")")},
		{"au", "AFTER UPDATE ON %s", t.endNotes(id, event, " AND NOT ("+t.noted("OLD")+")", " AND ("+changed+")") +
			t.keepNote(id, t.strike(id)) +
			event("u", t.image("OLD"), t.image("NEW"), " WHERE "+same) +
			event("d", t.image("OLD"), "NULL", " WHERE NOT ("+same+")") +
			event("c", "NULL", t.image("NEW"), " WHERE NOT ("+same+")")},
		{"bd", "BEFORE DELETE ON %s", t.strike(id)},
		{"ad", "AFTER DELETE ON %s", t.tellNotes(id, event) + event("d", t.image("OLD"), "NULL", "")},
	}
	out := make([]trigger, len(body))
	for i, b := range body {
		out[i].name = triggerName(t.Table, b.suffix)
		out[i].sql = "CREATE TRIGGER " + ident(out[i].name) + " " + fmt.Sprintf(b.head, ident(t.Table)) + "\nBEGIN\n" + b.body + "END"
	}
	return out
}

// beginNotes clears the notes of statements that wrote nothing, or leaves a mark
// if this one is nested.
func (t *table) beginNotes(id int64) string {
	if !t.nests {
		return clearNotes(id)
	}
	nested := t.nested(id)
	return fmt.Sprintf("  DELETE FROM onewrite_replaced WHERE layout IN (%d, %d) AND NOT %s;\n"+
		"  INSERT INTO onewrite_replaced (layout, image) SELECT %d, '' WHERE %s;\n", id, -id, nested, -id, nested)
}

// endNotes reports the noted rows that are gone, and clears the notes, unless
// the statement is nested. but leaves notes out; when is the condition of it all.
func (t *table) endNotes(id int64, event func(op, before, after, where string) string, but, when string) string {
	gone := fmt.Sprintf("layout = %d AND image <> ''%s%s AND %s", id, when, but, t.gone())
	report := event("d", "image", "NULL", " FROM onewrite_replaced WHERE "+gone)
	if !t.nests {
		return report + clearNotes(id)
	}
	mark := fmt.Sprintf("(SELECT max(rowid) FROM onewrite_replaced WHERE layout = %d)", -id)
	return report +
		fmt.Sprintf("  UPDATE onewrite_replaced SET k1 = NULL, image = '' WHERE %s AND %s IS NOT NULL;\n", gone, mark) +
		fmt.Sprintf("  DELETE FROM onewrite_replaced WHERE (rowid = %s OR layout = %d AND %s IS NULL)%s;\n", mark, id, mark, when)
}

func clearNotes(id int64) string {
	return fmt.Sprintf("  DELETE FROM onewrite_replaced WHERE layout = %d;\n", id)
}

// keepNote notes the row that a nested statement wrote: the one around it may be
// about to replace it. first takes the note of the row before off.
func (t *table) keepNote(id int64, first string) string {
	if !t.nests {
		return ""
	}
	k, ids := t.names("NEW")
	return first + fmt.Sprintf("  INSERT INTO onewrite_replaced (layout, %s, image) SELECT %d, %s, %s WHERE %s;\n", k, id, ids, t.image("NEW"), t.nested(id))
}

// strike takes the note of a row off.
func (t *table) strike(id int64) string {
	return fmt.Sprintf("  DELETE FROM onewrite_replaced WHERE layout = %d AND %s;\n", id, t.noted("OLD"))
}

// nested is true while a replaced row is gone and the statement that replaced it
// has not ended.
func (t *table) nested(id int64) string {
	return fmt.Sprintf("EXISTS (SELECT 1 FROM onewrite_replaced WHERE layout = %d AND %s)", id, t.missing())
}

// names returns the columns of a note that name a row, and those of the row.
func (t *table) names(row string) (k, ids string) {
	list, ks := make([]string, len(t.identity)), make([]string, len(t.identity))
	for i, p := range t.identity {
		list[i], ks[i] = row+"."+p.column, fmt.Sprintf("k%d", i+1)
	}
	return strings.Join(ks, ", "), strings.Join(list, ", ")
}

// tellNotes reports what is gone when a nested statement deletes a row: if that
// is the row which the statement around it updates, no AFTER trigger will.
func (t *table) tellNotes(id int64, event func(op, before, after, where string) string) string {
	if !t.nests {
		return ""
	}
	gone := fmt.Sprintf("layout = %d AND image <> '' AND %s", id, t.missing())
	return event("d", "image", "NULL", " FROM onewrite_replaced WHERE "+gone) +
		fmt.Sprintf("  UPDATE onewrite_replaced SET k1 = NULL, image = '' WHERE %s;\n", gone)
}

// sweep removes what nested statements may have left. It is run by a
// transaction of the source, which no statement of the application shares.
const sweep = "DELETE FROM onewrite_replaced WHERE image = ''"

// snapshot writes an event for each row there is.
func (t *table) snapshot() string {
	_, id := t.spec()
	name := ident(t.Table)
	return fmt.Sprintf("INSERT INTO onewrite_outbox (topic, op, layout, \"after\") SELECT %s, 'r', %d, %s FROM %s",
		literal(t.Table), id, t.image(name), name)
}

// note writes the rows that share a unique key with NEW into onewrite_replaced.
// Each key is looked up by a query of its own, so that its index serves. A row
// that is noted already, by the statement around this one, is noted once.
func (t *table) note(id int64, but string) string {
	name := ident(t.Table)
	k, ids := t.names(name)
	finds := make([]string, len(t.unique))
	for i, u := range t.unique {
		conds := make([]string, len(u.parts))
		for j, p := range u.parts {
			value := "NEW." + p.column
			if p.fallback != "" {
				value = "coalesce(" + value + ", (" + p.fallback + "\n))" // it may end with a comment
			}
			conds[j] = name + "." + p.column + p.collation() + " = " + value
		}
		finds[i] = "SELECT " + ids + " FROM " + name + " WHERE " + strings.Join(conds, " AND ")
		if u.where != "" {
			finds[i] += " AND (" + u.where + "\n)"
		}
	}
	return fmt.Sprintf("  INSERT INTO onewrite_replaced (layout, %s, image)\n    SELECT %d, %s, %s FROM %s WHERE (%s) IN (\n      %s)%s\n"+
		"      AND NOT EXISTS (SELECT 1 FROM onewrite_replaced WHERE layout = %d AND %s);\n",
		k, id, ids, t.image(name), name, ids, strings.Join(finds, "\n      UNION "), but, id, t.noted(name))
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
	mine := make([]string, len(t.identity))
	for i, p := range t.identity {
		mine[i] = fmt.Sprintf("onewrite_replaced.k%d%s = NEW.%s", i+1, p.collation(), p.column)
	}
	return "(" + strings.Join(mine, " AND ") + "\n      OR " + t.missing() + ")"
}

// missing is true for a noted row whose identity no row has.
func (t *table) missing() string {
	name := ident(t.Table)
	there := make([]string, len(t.identity))
	for i, p := range t.identity {
		there[i] = fmt.Sprintf("%s.%s%s = onewrite_replaced.k%d", name, p.column, p.collation(), i+1)
	}
	return "NOT EXISTS (SELECT 1 FROM " + name + " WHERE " + strings.Join(there, " AND ") + ")"
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
