package schemas

import (
	"encoding/json"
	"fmt"
	"math"
	"reflect"
	"strconv"
	"strings"
	"testing"

	"github.com/twmb/avro"
	"pgregory.net/rapid"

	"github.com/onewrite/onewrite"
)

// change makes the event of a row change.
func change(typ, source, before, after string) *onewrite.Event {
	op := map[string]string{"insert": "c", "update": "u", "delete": "d", "truncate": "t", "snapshot": "r"}[typ]
	return &onewrite.Event{
		ID: "1", Source: "shop", Topic: "public.orders", Type: typ, Key: `{"id":1}`, ContentType: "application/json",
		Data: fmt.Appendf(nil, `{"before":%s,"after":%s,"source":{"version":"1","connector":"postgresql","name":"shop","ts_ms":1795941665366,"snapshot":"false","db":"shop","schema":"public","table":"orders","txId":737,"lsn":22869648%s},"op":%q,"ts_ms":1795941665366,"transaction":{"id":"737","total_order":1,"data_collection_order":1}}`, before, after, source, op),
	}
}

// decoded is what a reader of Avro gets, as JSON: members that the schema adds are left
// out, and so are columns that are said to be absent.
func decoded(tb rapid.TB, schema string, b []byte) *object {
	tb.Helper()
	s, err := avro.Parse(schema)
	if err != nil {
		tb.Fatal(err)
	}
	var v any
	rest, err := s.Decode(b, &v)
	if err != nil || len(rest) > 0 {
		tb.Fatalf("%v, %d bytes are left over", err, len(rest))
	}
	names := columnNames(s.Root())
	env := v.(map[string]any)
	absent := map[string]bool{}
	if list, ok := env["absent"].([]any); ok {
		for _, name := range list {
			absent[name.(string)] = true
		}
	}
	out := &object{values: map[string]any{}}
	for name, v := range env {
		if name == "absent" {
			continue
		}
		row, isRow := v.(map[string]any)
		if name != "before" && name != "after" || !isRow {
			out.set(name, plain(v))
			continue
		}
		image := &object{values: map[string]any{}}
		for field, v := range row {
			column := names[field]
			if absent[name+"."+column] {
				if v != nil {
					tb.Fatalf("%s.%s is absent and has a value", name, column)
				}
				continue
			}
			image.set(column, plain(v))
		}
		out.set(name, image)
	}
	return out
}

func columnNames(root *avro.SchemaNode) map[string]string {
	out := map[string]string{}
	for _, f := range root.Fields[0].Type.Branches[1].Fields {
		out[f.Name] = f.Name
		if column, ok := f.Props["column"].(string); ok {
			out[f.Name] = column
		}
	}
	return out
}

// plain makes JSON values of what a reader of Avro gets.
func plain(v any) any {
	switch v := v.(type) {
	case int64:
		return json.Number(strconv.FormatInt(v, 10))
	case float64:
		switch {
		case math.IsNaN(v):
			return "NaN"
		case math.IsInf(v, 0):
			return strings.TrimPrefix(strconv.FormatFloat(v, 'g', -1, 64), "+") + "inity"
		}
		return json.Number(strconv.FormatFloat(v, 'g', -1, 64))
	case []any:
		out := make([]any, len(v))
		for i := range v {
			out[i] = plain(v[i])
		}
		return out
	case map[string]any:
		o := &object{values: map[string]any{}}
		for name, one := range v {
			if one != nil { // what a source does not write is null
				o.set(name, plain(one))
			}
		}
		return o
	}
	return v
}

// same compares values; numbers by what they are.
func same(a, b any) bool {
	switch a := a.(type) {
	case json.Number:
		b, ok := b.(json.Number)
		if !ok {
			return false
		}
		ad, ae := digits(string(a))
		bd, be := digits(string(b))
		return ad == bd && ae == be && (ad == "" || strings.HasPrefix(string(a), "-") == strings.HasPrefix(string(b), "-"))
	case []any:
		b, ok := b.([]any)
		if !ok || len(a) != len(b) {
			return false
		}
		for i := range a {
			if !same(a[i], b[i]) {
				return false
			}
		}
		return true
	case *object:
		b, ok := b.(*object)
		if !ok || len(a.names) != len(b.names) {
			return false
		}
		for _, name := range a.names {
			v, has := b.values[name]
			if !has || !same(a.values[name], v) {
				return false
			}
		}
		return true
	}
	return reflect.DeepEqual(a, b)
}

var words1 = rapid.SampledFrom([]string{"id", "total", "note", "größe", "a b", "a_x20_b", "Id", "1st", "", "_x_", "before", "absent", "select", "x-y"})

// value generates one of a column's kind; PostgreSQL's arrays have elements of one kind.
func value(k int) *rapid.Generator[string] {
	return rapid.Custom(func(t *rapid.T) string {
		if rapid.IntRange(0, 5).Draw(t, "null") == 0 {
			return "null"
		}
		quote := func(s string) string {
			b, _ := json.Marshal(s)
			return string(b)
		}
		switch k {
		case 0:
			return strconv.FormatInt(rapid.Int64().Draw(t, "long"), 10)
		case 1:
			f := rapid.Float64().Draw(t, "double")
			if math.IsInf(f, 0) || math.IsNaN(f) || rapid.IntRange(0, 9).Draw(t, "odd") == 0 {
				return rapid.SampledFrom([]string{`"NaN"`, `"Infinity"`, `"-Infinity"`}).Draw(t, "name")
			}
			format := rapid.SampledFrom([]byte{'g', 'e'}).Draw(t, "format")
			return strconv.FormatFloat(f, format, -1, 64)
		case 2:
			return rapid.SampledFrom([]string{"true", "false"}).Draw(t, "boolean")
		case 3:
			return quote(rapid.String().Draw(t, "text"))
		case 4:
			return quote(strconv.FormatInt(rapid.Int64().Draw(t, "numeric"), 10) + ".00")
		}
		n := rapid.IntRange(0, 3).Draw(t, "length")
		items := make([]string, n)
		for i := range items {
			items[i] = value(k-5).Draw(t, "item")
		}
		return "[" + strings.Join(items, ",") + "]"
	})
}

// TestRowsComeBack: what a reader of Avro gets is what the JSON says, whatever came to
// the table before: numbers to the last digit, null apart from absent, and what was not
// touched apart from both.
func TestRowsComeBack(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		names := rapid.SliceOfNDistinct(words1, 1, 6, rapid.ID).Draw(t, "columns")
		kinds := rapid.SliceOfN(rapid.IntRange(0, 11), len(names), len(names)).Draw(t, "kinds")
		image := func(label string, all bool) (text string, left []string) {
			if !all && rapid.Bool().Draw(t, label+" is null") {
				return "null", nil
			}
			parts := []string{}
			for i, name := range names {
				if i > 0 && rapid.IntRange(0, 4).Draw(t, "left out") == 0 {
					left = append(left, name)
					continue
				}
				q, _ := json.Marshal(name)
				parts = append(parts, string(q)+":"+value(kinds[i]).Draw(t, name))
			}
			return "{" + strings.Join(parts, ",") + "}", left
		}
		var was *table
		for n := range rapid.IntRange(1, 5).Draw(t, "events") {
			after, left := image("after", n == 0)
			before, _ := image("before", false)
			source := ""
			if len(left) > 0 {
				q, _ := json.Marshal(left)
				source = `,"unchanged":` + string(q)
			}
			ev := change("update", source, before, after)
			p, err := read(ev)
			if err != nil {
				t.Fatal(err)
			}
			if p.row == nil {
				t.Fatal("no row change is seen")
			}
			if was == nil || !p.row.fits(was, false) {
				was = p.row.evolve(was, false)
			}
			schema, err := deriveAvro(was)
			if err != nil {
				t.Fatal(err)
			}
			c, err := parseAvro(schema)
			if err != nil {
				t.Fatalf("%v\n%s", err, schema)
			}
			if c.t == nil || !p.row.fits(c.t, false) || !reflect.DeepEqual(c.t.columns, was.columns) && len(was.columns) > 0 {
				t.Fatalf("%+v became %+v of %s", was, c.t, schema)
			}
			b, err := c.append(nil, p)
			if err != nil {
				t.Fatalf("%v\n%s\n%s", err, ev.Data, schema)
			}
			if got := decoded(t, schema, b); !same(p.value, got) {
				t.Fatalf("%s\nbecame %+v\nby %s", ev.Data, got, schema)
			}
		}
	})
}

// TestNames: any two columns have two names, and what is a name of Avro stays one.
func TestNames(t *testing.T) {
	seen := map[string]string{}
	for _, name := range []string{"", "_x_", "a b", "a_x20_b", "a_x5f_x20_b", "id", "Id", "tax_xyz", "1", "_1", "_x31_", "größe", "_x", "x-y", "x_y"} {
		out := identifier(name)
		if other, twice := seen[out]; twice {
			t.Errorf("%q and %q are both %q", other, name, out)
		}
		seen[out] = name
		if _, err := avro.Parse(`{"type":"record","name":"` + out + `","fields":[]}`); err != nil {
			t.Errorf("%q became %q: %v", name, out, err)
		}
	}
	for _, name := range []string{"id", "tax_xyz", "_1", "a_x"} {
		if identifier(name) != name {
			t.Errorf("%q became %q", name, identifier(name))
		}
	}
}

// TestPlaceholder: what stands for a value that was not touched is none of an array's,
// and is a text's.
func TestPlaceholder(t *testing.T) {
	p, err := read(change("insert", "", "null", `{"id":1,"note":"x","tags":[1]}`))
	if err != nil {
		t.Fatal(err)
	}
	was := p.row.evolve(nil, false)
	p, err = read(change("update", `,"unchanged":["note","tags"]`, "null", `{"id":1,"note":"`+unavailable+`","tags":"`+unavailable+`"}`))
	if err != nil || !p.row.fits(was, false) {
		t.Fatal(err)
	}
	schema, err := deriveAvro(was)
	if err != nil {
		t.Fatal(err)
	}
	c, err := parseAvro(schema)
	if err != nil {
		t.Fatal(err)
	}
	b, err := c.append(nil, p)
	if err != nil {
		t.Fatal(err)
	}
	row, _ := decoded(t, schema, b).get("after")
	if o := row.(*object); o.values["note"] != unavailable || o.values["tags"] != nil {
		t.Errorf("%v", o)
	}
}

// TestKindsWiden: a column is never less than it was, in whatever order values come.
func TestKindsWiden(t *testing.T) {
	for values, want := range map[string]string{
		`1,null,2`: "long", `1,1.5,2,null`: "double", `1.5,1`: "double", `"NaN",1`: "double", `1,"NaN"`: "double", `"NaN"`: "string", `"x","NaN"`: "string", `null`: "null",
		`[],[null],[1],[1.5],[2]`: "array of double", `[["a"]],[[null]],[]`: "array of array of string", `true,null`: "boolean", `"` + unavailable + `",1`: "long",
	} {
		v, err := parse([]byte("[" + values + "]"))
		if err != nil {
			t.Fatal(err)
		}
		var k kind
		for _, one := range v.([]any) {
			now, err := kindOf("x", one)
			if err != nil {
				t.Fatal(err)
			}
			if k = k.with(now); !k.settled().takes(now) {
				t.Errorf("%s: %v does not take %v", values, k, one)
			}
		}
		if got := k.settled().String(); got != want {
			t.Errorf("%s are %s, want %s", values, got, want)
		}
	}
}

// TestLostColumns: a version has what the table has; what an event need not tell is no
// column that is lost.
func TestLostColumns(t *testing.T) {
	of := func(e *onewrite.Event) *row {
		t.Helper()
		p, err := read(e)
		if err != nil {
			t.Fatal(err)
		}
		return p.row
	}
	was := of(change("insert", "", "null", `{"id":1,"note":"x"}`)).evolve(nil, false)
	for name, c := range map[string]struct {
		e    *onewrite.Event
		fits bool
	}{
		"lost":      {change("insert", "", "null", `{"id":1}`), false},
		"untouched": {change("update", `,"unchanged":["note"]`, "null", `{"id":1}`), true},
		"the key":   {change("delete", "", `{"id":1}`, "null"), true},
		"truncate":  {change("truncate", "", "null", "null"), true},
	} {
		r := of(c.e)
		if r.fits(was, false) != c.fits || !r.fits(was, true) {
			t.Errorf("%s: fits is %v", name, !c.fits)
		}
		if _, has := r.evolve(was, false).column("note"); has != c.fits {
			t.Errorf("%s: the column is there: %v", name, has)
		}
		if _, has := r.evolve(was, true).column("note"); !has {
			t.Errorf("%s: the column is not kept", name)
		}
	}
}
