package schemas

import (
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/onewrite/onewrite"
)

// kind is the type of a column as far as the values that came so far tell it.
type kind struct {
	base  string // one of the words below
	items *kind  // of an array
}

const (
	unknown = "" // only null came so far
	boolean = "boolean"
	long    = "long"
	double  = "double"
	text    = "string"
	list    = "array"
	odd     = "odd" // NaN and the infinities, which JSON has as strings
	// anything is what the items of arrays are to a form that says it of each.
	anything = "any"
)

// unavailable stands for a large value that an update did not touch.
const unavailable = "__debezium_unavailable_value"

func isOdd(s string) bool { return s == "NaN" || s == "Infinity" || s == "-Infinity" }

// kindOf is what a value tells of its column.
func kindOf(path string, v any) (kind, error) {
	switch v := v.(type) {
	case nil:
		return kind{}, nil
	case bool:
		return kind{base: boolean}, nil
	case string:
		switch {
		case v == unavailable:
			return kind{}, nil
		case isOdd(v):
			return kind{base: odd}, nil
		}
		return kind{base: text}, nil
	case json.Number:
		if isLong(string(v)) {
			return kind{base: long}, nil
		}
		if _, ok := exact(string(v), 64); !ok {
			return kind{}, misfitf(path, "is %s, which no number of 64 bits is", what(v))
		}
		return kind{base: double}, nil
	case []any:
		items := kind{}
		for i, one := range v {
			k, err := kindOf(fmt.Sprintf("%s[%d]", path, i), one)
			if err != nil {
				return kind{}, err
			}
			items = items.with(k)
		}
		return kind{base: list, items: &items}, nil
	}
	return kind{}, misfitf(path, "is an object, which no column is")
}

// with is what a column is that was k and has a value of kind v now. Where it cannot be
// both it is v, and the registry has to say whether that may be.
func (k kind) with(v kind) kind {
	switch {
	case v.base == unknown || k.base == anything:
		return k
	case v.base == odd:
		switch k.base {
		case long, double:
			return kind{base: double}
		case text:
			return k
		}
		return kind{base: odd}
	case k.base == odd && (v.base == long || v.base == double):
		return kind{base: double}
	case k.base == double && v.base == long:
		return k
	case k.base == list && v.base == list:
		items := k.items.with(*v.items)
		return kind{base: list, items: &items}
	}
	return v
}

// settled is the kind of a column that is to be written down: the name of no number
// alone is taken for a text.
func (k kind) settled() kind {
	switch k.base {
	case odd:
		return kind{base: text}
	case list:
		items := k.items.settled()
		return kind{base: list, items: &items}
	}
	return k
}

func (k kind) equal(o kind) bool {
	if k.base != o.base {
		return false
	}
	return k.base != list || k.items.equal(*o.items)
}

// takes reports whether a value of kind v can be written to a column of kind k.
func (k kind) takes(v kind) bool { return k.with(v).settled().equal(k) }

// column is one of a table.
type column struct {
	name string
	kind kind
}

// table is what a schema of row changes says of its table.
type table struct {
	space   string // where the names of its schema are: onewrite.SOURCE.SCHEMA.TABLE
	columns []column
	sparse  bool // a column of which only null came has no place in the schema
}

func (t *table) column(name string) (kind, bool) {
	for i := range t.columns {
		if t.columns[i].name == name {
			return t.columns[i].kind, true
		}
	}
	return kind{}, false
}

// row is a row change.
type row struct {
	data          *object
	before, after *object // nil: null
	unchanged     []string
	table         table // as far as this event knows it
}

// ours begins the names of the schemas that onewrite makes, and evolves.
const ours = "onewrite."

// rowOf reads a payload as a row change; nil: it is none.
func rowOf(e *onewrite.Event, v any) (*row, error) {
	data, ok := v.(*object)
	if !ok || !slices.Contains([]string{"insert", "update", "delete", "truncate", "snapshot"}, e.Type) {
		return nil, nil
	}
	s, _ := data.get("source")
	source, ok := s.(*object)
	if !ok {
		return nil, nil
	}
	r := &row{data: data}
	for name, to := range map[string]**object{"before": &r.before, "after": &r.after} {
		image, has := data.get(name)
		if !has {
			return nil, nil
		}
		if *to, ok = image.(*object); !ok && image != nil {
			return nil, nil
		}
	}
	names := []string{strings.TrimSuffix(ours, ".")}
	for _, name := range []string{"name", "schema", "table"} {
		if word, _ := source.get(name); word != nil {
			word, ok := word.(string)
			if !ok {
				return nil, nil
			}
			names = append(names, identifier(word))
		} else if name != "schema" {
			return nil, nil
		}
	}
	r.table.space = strings.Join(names, ".")
	if u, _ := source.get("unchanged"); u != nil {
		list, _ := u.([]any)
		for _, name := range list {
			if name, ok := name.(string); ok {
				r.unchanged = append(r.unchanged, name)
			}
		}
	}
	return r, r.learn()
}

// learn notes the columns: those of the new row in its order, then what the old one has
// beside them.
func (r *row) learn() error {
	at := map[string]int{}
	for _, image := range []struct {
		name string
		row  *object
	}{{"after", r.after}, {"before", r.before}} {
		if image.row == nil {
			continue
		}
		for _, name := range image.row.names {
			k, err := kindOf(image.name+"."+name, image.row.values[name])
			if err != nil {
				return err
			}
			i, has := at[name]
			if !has {
				i, at[name] = len(r.table.columns), len(r.table.columns)
				r.table.columns = append(r.table.columns, column{name: name})
			}
			r.table.columns[i].kind = r.table.columns[i].kind.with(k)
		}
	}
	return nil
}

// whole reports whether the event tells all columns that the table has.
func (r *row) whole() bool { return r.after != nil }

// fits reports whether a schema of t has what the event has, and nothing that the table
// has lost.
func (r *row) fits(t *table, keepsDropped bool) bool {
	if t.space != r.table.space {
		return false
	}
	for _, c := range r.table.columns {
		if k, has := t.column(c.name); !has && !(t.sparse && c.kind.base == unknown) || has && !k.takes(c.kind) {
			return false
		}
	}
	return keepsDropped || !r.whole() || !slices.ContainsFunc(t.columns, r.lacks)
}

// lacks reports whether the table of the event has lost a column.
func (r *row) lacks(c column) bool {
	_, has := r.table.column(c.name)
	return !has && !slices.Contains(r.unchanged, c.name)
}

// evolve is the table after the event: what it was, with what is new, and without what
// is gone unless that is to be kept. Columns are in the order of the event where it
// tells all of them, so that the same columns are the same schema again.
func (r *row) evolve(was *table, keepsDropped bool) *table {
	t := &table{space: r.table.space}
	if was == nil {
		was = &table{}
	}
	if keepsDropped || !r.whole() || len(r.unchanged) > 0 {
		for _, c := range was.columns {
			if keepsDropped || !r.whole() || !r.lacks(c) {
				t.columns = append(t.columns, c)
			}
		}
	}
	for _, c := range r.table.columns {
		k, _ := was.column(c.name)
		k = k.with(c.kind).settled()
		if i := slices.IndexFunc(t.columns, func(has column) bool { return has.name == c.name }); i >= 0 {
			t.columns[i].kind = k
		} else {
			t.columns = append(t.columns, column{c.name, k})
		}
	}
	return t
}

// difference names the columns that have another type now, for a person who has to know
// what a registry objects to.
func difference(was, now *table) string {
	if was == nil {
		return ""
	}
	var list []string
	for _, c := range now.columns {
		if k, has := was.column(c.name); has && !k.equal(c.kind) && k.base != unknown {
			list = append(list, fmt.Sprintf("column %s was %s and is %s", c.name, k, c.kind))
		}
	}
	if list == nil {
		return ""
	}
	return " (" + strings.Join(list, ", ") + ")"
}

// String names the type in messages.
func (k kind) String() string {
	if k.base == list {
		return "array of " + k.items.String()
	}
	if k.base == unknown {
		return "null"
	}
	return k.base
}

// shaped is the row change as forms have it in which a column that is not there is null:
// absent names those.
func (r *row) shaped(t *table) *object {
	out := &object{values: map[string]any{}}
	absent := []any{}
	for _, name := range r.data.names {
		v := r.data.values[name]
		image, isRow := v.(*object)
		if name != "before" && name != "after" || !isRow {
			out.set(name, v)
			continue
		}
		full := &object{values: map[string]any{}}
		for _, c := range t.columns {
			v, has := image.get(c.name)
			if !has {
				absent = append(absent, name+"."+c.name)
			}
			if v == unavailable && c.kind.base != text {
				v = nil // it is named in source.unchanged
			}
			full.set(c.name, v)
		}
		for _, more := range image.names {
			if _, has := t.column(more); !has {
				full.set(more, image.values[more])
			}
		}
		out.set(name, full)
	}
	if len(absent) > 0 {
		out.set("absent", absent)
	}
	return out
}

// escaped is what identifier makes of a character.
var escaped = regexp.MustCompile(`^_x[0-9a-f]{0,2}_`)

// identifier makes a name of Avro of any text, each of another one: what
// they do not take is its number between _x and _.
func identifier(name string) string {
	if name == "" {
		return "_x_"
	}
	var b strings.Builder
	for i := 0; i < len(name); i++ {
		c := name[i]
		letter := c == '_' || 'a' <= c|0x20 && c|0x20 <= 'z' || i > 0 && '0' <= c && c <= '9'
		if letter && !escaped.MatchString(name[i:]) {
			b.WriteByte(c)
		} else {
			fmt.Fprintf(&b, "_x%02x_", c)
		}
	}
	return b.String()
}
