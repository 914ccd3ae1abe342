package schemas

import (
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/dynamicpb"
	"pgregory.net/rapid"
)

// protoCodecOf parses what is made of a table.
func protoCodecOf(tb rapid.TB, t *table, was *protoCodec) (*protoCodec, string) {
	tb.Helper()
	var before codec
	if was != nil {
		before = was
	}
	text, err := deriveProto(t, before)
	if err != nil {
		tb.Fatal(err)
	}
	c, err := parseProto(text)
	if err != nil {
		tb.Fatalf("%v\n%s", err, text)
	}
	if c.t == nil {
		tb.Fatalf("onewrite does not know its own:\n%s", text)
	}
	return c, text
}

// readProto is what a reader gets, as JSON: a row has the fields that are set, and those
// that are said to be null.
func readProto(tb rapid.TB, c *protoCodec, b []byte) *object {
	tb.Helper()
	if b[0] != 0 {
		tb.Fatalf("the message is not the first of its file: %v", b[:4])
	}
	m := dynamicpb.NewMessage(c.file.Messages().ByName("Envelope"))
	if err := (proto.UnmarshalOptions{}).Unmarshal(b[1:], m); err != nil {
		tb.Fatal(err)
	}
	out := plainProto(m)
	nulls, _ := out.get("nulls")
	delete(out.values, "nulls")
	for _, name := range []string{"before", "after"} {
		if _, has := out.get(name); !has {
			out.values[name] = nil
		}
	}
	if nulls, ok := nulls.([]any); ok {
		for _, path := range nulls {
			image, column, _ := strings.Cut(path.(string), ".")
			row := out.values[image].(*object)
			if _, has := row.get(column); has {
				tb.Fatalf("%s is null and has a value", path)
			}
			row.set(column, nil)
		}
	}
	out.names = slices.Collect(maps.Keys(out.values))
	return out
}

func plainProto(m protoreflect.Message) *object {
	o := &object{values: map[string]any{}}
	m.Range(func(fd protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		name := fd.JSONName()
		if of, isTwin := strings.CutSuffix(name, ".double"); isTwin && m.Descriptor().Fields().ByJSONName(of) != nil {
			name = of
		}
		if _, twice := o.get(name); twice {
			panic(name + " has two values")
		}
		if !fd.IsList() {
			o.set(name, plainValue(fd, v))
			return true
		}
		list := []any{}
		for i := range v.List().Len() {
			list = append(list, plainValue(fd, v.List().Get(i)))
		}
		o.set(name, list)
		return true
	})
	slices.Sort(o.names)
	return o
}

func plainValue(fd protoreflect.FieldDescriptor, v protoreflect.Value) any {
	switch fd.Kind() {
	case protoreflect.Int64Kind:
		return json.Number(strconv.FormatInt(v.Int(), 10))
	case protoreflect.DoubleKind:
		switch f := v.Float(); {
		case math.IsNaN(f):
			return "NaN"
		case math.IsInf(f, 0):
			return strings.TrimPrefix(strconv.FormatFloat(f, 'g', -1, 64), "+") + "inity"
		default:
			return json.Number(strconv.FormatFloat(f, 'g', -1, 64))
		}
	case protoreflect.MessageKind:
		o := plainProto(v.Message())
		switch fd.Message().Name() {
		case "Array":
			items, _ := o.get("items")
			if items == nil {
				items = []any{}
			}
			return items
		case "Item":
			if len(o.names) == 0 {
				return nil
			}
			return o.values[o.names[0]]
		}
		return o
	}
	return v.Interface()
}

// TestProtobufRowsComeBack: what a reader gets is what the JSON says, whatever came to
// the table before: null apart from absent, integers to the last digit. Through all
// versions a field's number is of one column, which gets no narrower, and a column's
// numbers stay its own.
func TestProtobufRowsComeBack(t *testing.T) {
	names1 := rapid.OneOf(words1.Filter(func(s string) bool { return s != "" }), rapid.SampledFrom([]string{"user_id", "userId", "USERID", "user_id_3", "Value", "Array", "nulls", "id_double", `"\`, "null", "message", "a\tb", "weight.double", "total_double"}))
	rapid.Check(t, func(t *rapid.T) {
		all := rapid.SliceOfNDistinct(names1, 1, 8, rapid.ID).Draw(t, "columns")
		kinds := rapid.SliceOfN(rapid.IntRange(0, 11), len(all), len(all)).Draw(t, "kinds")
		var was *protoCodec
		type field struct {
			name string
			kind kind
		}
		owner := map[protoreflect.FieldNumber]field{}
		for range rapid.IntRange(1, 6).Draw(t, "events") {
			names := slices.DeleteFunc(slices.Clone(all), func(string) bool { return rapid.IntRange(0, 5).Draw(t, "not a column now") == 0 })
			image := func(label string) (text string, left []string) {
				if rapid.IntRange(0, 4).Draw(t, label+" is null") == 0 {
					return "null", nil
				}
				parts := []string{}
				for _, name := range names {
					if rapid.IntRange(0, 4).Draw(t, "left out") == 0 {
						left = append(left, name)
						continue
					}
					q, _ := json.Marshal(name)
					parts = append(parts, string(q)+":"+value(kinds[slices.Index(all, name)]).Draw(t, name))
				}
				return "{" + strings.Join(parts, ",") + "}", left
			}
			after, left := image("after")
			before, _ := image("before")
			source := ""
			if len(left) > 0 {
				q, _ := json.Marshal(left)
				source = `,"unchanged":` + string(q)
			}
			p, err := read(change("update", source, before, after))
			if err != nil {
				t.Fatal(err)
			}
			text := "the version before"
			if was == nil || !p.row.fits(was.t, false) {
				var columns *table
				if was != nil {
					columns = was.t
				}
				was, text = protoCodecOf(t, p.row.evolve(columns, false), was)
			}
			if !p.row.fits(was.t, false) {
				t.Fatalf("%s\ndoes not fit\n%s", p.data, text)
			}
			for _, f := range was.fields {
				name := fmt.Sprint(f.column, f.twin)
				if was, has := owner[f.number]; has && (was.name != name || !was.kind.with(f.kind).settled().equal(f.kind)) {
					t.Fatalf("field %d was %+v and is %s of %v:\n%s", f.number, was, name, f.kind, text)
				}
				owner[f.number] = field{name, f.kind}
			}
			if len(owner) != len(was.fields) {
				t.Fatalf("%v were fields, these are left:\n%s", owner, text)
			}
			b, err := was.append(nil, p)
			if err != nil {
				t.Fatalf("%v\n%s\n%s", err, p.data, text)
			}
			if again, err := was.append(nil, p); err != nil || string(again) != string(b) {
				t.Fatalf("a repeat has other bytes: %v", err)
			}
			if got := readProto(t, was, b); !same(p.value, got) {
				text, _ := got.MarshalJSON()
				t.Fatalf("%s\nbecame\n%s", p.data, text)
			}
		}
	})
}

// TestProtobufPlaceholder: what stands for a value that was not touched is a text's; any
// other column is absent then.
func TestProtobufPlaceholder(t *testing.T) {
	p, err := read(change("insert", "", "null", `{"id":1,"note":"x","tags":[1],"more":null}`))
	if err != nil {
		t.Fatal(err)
	}
	c, _ := protoCodecOf(t, p.row.evolve(nil, false), nil)
	p, err = read(change("update", `,"unchanged":["note","tags","more"]`, "null", `{"id":1,"note":"`+unavailable+`","tags":"`+unavailable+`","more":"`+unavailable+`"}`))
	if err != nil || !p.row.fits(c.t, false) {
		t.Fatal(err)
	}
	b, err := c.append(nil, p)
	if err != nil {
		t.Fatal(err)
	}
	row, _ := readProto(t, c, b).get("after")
	if text := toJSON(t, row); text != `{"id":1,"note":"`+unavailable+`"}` {
		t.Error(text)
	}
}

// TestProtobufItems: what is no number is one among numbers, and a text among texts.
func TestProtobufItems(t *testing.T) {
	p, err := read(change("insert", "", "null", `{"numbers":[0.5,"NaN",2],"texts":["NaN","x",null]}`))
	if err != nil {
		t.Fatal(err)
	}
	c, _ := protoCodecOf(t, p.row.evolve(nil, false), nil)
	m := dynamicpb.NewMessage(c.file.Messages().Get(0))
	if err := c.change(m, p.row); err != nil {
		t.Fatal(err)
	}
	row := m.Get(m.Descriptor().Fields().ByName("after")).Message()
	for name, want := range map[protoreflect.Name][]protoreflect.Name{"numbers": {"number", "number", "integer"}, "texts": {"text", "text", ""}} {
		array := row.Get(row.Descriptor().Fields().ByName(name)).Message()
		items := array.Get(array.Descriptor().Fields().ByName("items")).List()
		for i, want := range want {
			item := items.Get(i).Message()
			if set := item.WhichOneof(item.Descriptor().Oneofs().Get(0)); (set == nil) != (want == "") || set != nil && set.Name() != want {
				t.Errorf("%s[%d] is %v, want %s", name, i, set, want)
			}
		}
	}
}

// TestProtobufMisfits: a row that its schema does not take names the field, whatever a
// transform made of it.
func TestProtobufMisfits(t *testing.T) {
	ev := change("insert", "", "null", `{"id":1,"weight":0.5,"ok":true,"note":"x","tags":[1]}`)
	p, err := read(ev)
	if err != nil {
		t.Fatal(err)
	}
	c, _ := protoCodecOf(t, p.row.evolve(nil, false), nil)
	for _, step := range []struct{ old, new, want string }{
		{`"id":1`, `"id":"1"`, "field after.id is a string, the schema has int64"},
		{`"id":1`, `"id":1.5`, "field after.id is the number 1.5, the schema has int64"},
		{`0.5`, `9007199254740993`, "field after.weight is 9007199254740993, which double does not hold exactly"},
		{`true`, `1`, "field after.ok is an integer"},
		{`"x"`, `true`, "field after.note is a boolean"},
		{`"x"`, `[1]`, "field after.note is an array"},
		{`[1]`, `"x"`, "field after.tags is a string"},
		{`"id":1`, `"other":1`, "field after.other is not in the schema"},
		{`"op"`, `"nulls":["x"],"op"`, "field nulls is not in the schema"},
		{`"op"`, `"more":{},"op"`, "field more is not in the schema"},
		{`"op":"c"`, `"op":["c"]`, "field op is an array"},
		{`"lsn":22869648`, `"lsn":"x"`, "field source.lsn is a string"},
		{`"lsn":22869648`, `"unchanged":"id"`, "field source.unchanged is a string, the schema has an array"},
		{`"lsn":22869648`, `"unchanged":[1]`, "field source.unchanged[0] is an integer"},
		{`"total_order":1,`, `"total_order":{},`, "field transaction.total_order is an object"},
	} {
		other := *ev
		if other.Data = []byte(strings.Replace(string(ev.Data), step.old, step.new, 1)); string(other.Data) == string(ev.Data) {
			t.Fatal(step.old)
		}
		p, err := read(&other)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.append(nil, p); err == nil || !strings.Contains(err.Error(), step.want) {
			t.Errorf("%s: %v", step.new, err)
		}
	}
}
