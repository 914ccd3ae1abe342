package schemas

import (
	"encoding/base64"
	"reflect"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
)

// TestProtobufNumbers: the rows' message through the life of a table.
func TestProtobufNumbers(t *testing.T) {
	var was *protoCodec
	for _, step := range []struct{ after, want string }{
		{`{"id":1,"created_at":"x","note":null,"größe":1,"tags":null}`, `
  optional int64 id = 1;
  optional string created_at = 2 [json_name = "created_at"];
  optional int64 gr_xc3__xb6__xc3__x9f_e = 3 [json_name = "größe"];
`}, // null alone is no type
		{`{"id":1,"created_at":"x","note":"x","größe":1,"tags":[1]}`, `
  optional int64 id = 1;
  optional string created_at = 2 [json_name = "created_at"];
  optional int64 gr_xc3__xb6__xc3__x9f_e = 3 [json_name = "größe"];
  optional string note = 4;
  optional Array tags = 5;
`},
		{`{"id":1,"größe":1,"tags":["x",null],"late":true}`, `
  optional int64 id = 1;
  optional string created_at = 2 [json_name = "created_at", deprecated = true];
  optional int64 gr_xc3__xb6__xc3__x9f_e = 3 [json_name = "größe"];
  optional string note = 4 [deprecated = true];
  optional Array tags = 5;
  optional bool late = 6;
`}, // lost, and added
		{`{"id":1,"größe":1.5,"late":null,"note":"x","createdAt":1}`, `
  optional int64 id = 1;
  optional string created_at = 2 [json_name = "created_at", deprecated = true];
  optional int64 gr_xc3__xb6__xc3__x9f_e = 3 [json_name = "größe"];
  optional string note = 4;
  optional Array tags = 5 [deprecated = true];
  optional bool late = 6;
  optional double gr_xc3__xb6__xc3__x9f_e_double = 7 [json_name = "größe.double"];
  optional int64 createdAt_8 = 8 [json_name = "createdAt"];
`}, // back again, a fraction, a name that Protobuf takes for another one
		{`{"id":1,"late":true,"note":"x","createdAt":1}`, `
  optional int64 id = 1;
  optional string created_at = 2 [json_name = "created_at", deprecated = true];
  optional int64 gr_xc3__xb6__xc3__x9f_e = 3 [json_name = "größe", deprecated = true];
  optional string note = 4;
  optional Array tags = 5 [deprecated = true];
  optional bool late = 6;
  optional double gr_xc3__xb6__xc3__x9f_e_double = 7 [json_name = "größe.double", deprecated = true];
  optional int64 createdAt_8 = 8 [json_name = "createdAt"];
`}, // lost with its second field
		{`{"id":1,"late":true,"note":"x","createdAt":1,"größe":2}`, `
  optional int64 id = 1;
  optional string created_at = 2 [json_name = "created_at", deprecated = true];
  optional int64 gr_xc3__xb6__xc3__x9f_e = 3 [json_name = "größe"];
  optional string note = 4;
  optional Array tags = 5 [deprecated = true];
  optional bool late = 6;
  optional double gr_xc3__xb6__xc3__x9f_e_double = 7 [json_name = "größe.double", deprecated = true];
  optional int64 createdAt_8 = 8 [json_name = "createdAt"];
`}, // back without it
		{`{"id":1,"late":true,"note":"x","createdAt":1,"größe":"NaN"}`, `
  optional int64 id = 1;
  optional string created_at = 2 [json_name = "created_at", deprecated = true];
  optional int64 gr_xc3__xb6__xc3__x9f_e = 3 [json_name = "größe"];
  optional string note = 4;
  optional Array tags = 5 [deprecated = true];
  optional bool late = 6;
  optional double gr_xc3__xb6__xc3__x9f_e_double = 7 [json_name = "größe.double"];
  optional int64 createdAt_8 = 8 [json_name = "createdAt"];
`}, // which it needs
		{`{"id":"one","note":2,"late":false,"createdAt":2}`, `
  optional string id = 1;
  optional string created_at = 2 [json_name = "created_at", deprecated = true];
  optional int64 gr_xc3__xb6__xc3__x9f_e = 3 [json_name = "größe", deprecated = true];
  optional int64 note = 4;
  optional Array tags = 5 [deprecated = true];
  optional bool late = 6;
  optional double gr_xc3__xb6__xc3__x9f_e_double = 7 [json_name = "größe.double", deprecated = true];
  optional int64 createdAt_8 = 8 [json_name = "createdAt"];
`}, // other types, for the registry to refuse
	} {
		p, err := read(change("insert", "", "null", step.after))
		if err != nil {
			t.Fatal(err)
		}
		var columns *table
		if was != nil {
			if columns = was.t; p.row.fits(columns, false) {
				t.Errorf("%s fits", step.after)
			}
		}
		var text string
		was, text = protoCodecOf(t, p.row.evolve(columns, false), was)
		if is, err := parseProto(base64.StdEncoding.EncodeToString(descriptor(t, was))); err != nil || !reflect.DeepEqual(is.t, was.t) || !reflect.DeepEqual(is.fields, was.fields) {
			t.Errorf("the descriptor of %s is another schema: %v", text, err)
		}
		_, rest, _ := strings.Cut(text, "message Value {")
		if got, _, _ := strings.Cut(rest, "}"); got != step.want {
			t.Errorf("%s made%swant%s", step.after, got, step.want)
		}
	}
}

func descriptor(t *testing.T, c *protoCodec) []byte {
	t.Helper()
	b, err := proto.Marshal(protodesc.ToFileDescriptorProto(c.file))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestProtobufBack: a column that is back is not narrower than it was.
func TestProtobufBack(t *testing.T) {
	var was *protoCodec
	var columns *table
	text := ""
	for _, after := range []string{`{"id":1,"weight":0.5}`, `{"id":1}`, `{"id":1,"weight":1}`} {
		p, err := read(change("insert", "", "null", after))
		if err != nil {
			t.Fatal(err)
		}
		was, text = protoCodecOf(t, p.row.evolve(columns, false), was)
		columns = was.t
	}
	if !strings.Contains(text, "optional double weight = 2;") {
		t.Error(text)
	}
}

// TestProtobufFarNumbers: numbers that are Protobuf's own are passed over.
func TestProtobufFarNumbers(t *testing.T) {
	p, err := read(change("insert", "", "null", `{"id":1,"more":1}`))
	if err != nil {
		t.Fatal(err)
	}
	_, text := protoCodecOf(t, p.row.evolve(nil, false), nil)
	was, err := parseProto(strings.Replace(strings.Replace(text, "more = 2", "x = 18999", 1), "id = 1;", "id = 18998;", 1))
	if err != nil {
		t.Fatal(err)
	}
	if _, text = protoCodecOf(t, p.row.evolve(was.t, false), was); !strings.Contains(text, "int64 more = 20000;") {
		t.Error(text)
	}
}

// TestProtobufOrder: fields in whatever order are numbered on from the highest.
func TestProtobufOrder(t *testing.T) {
	p, err := read(change("insert", "", "null", `{"id":1,"a":1,"b":1,"more":1,"weight":"x","weight.double":0.5}`))
	if err != nil {
		t.Fatal(err)
	}
	c, text := protoCodecOf(t, p.row.evolve(nil, false), nil)
	if columns := c.t.columns; len(columns) != 6 || columns[5] != (column{"weight.double", kind{base: double}}) {
		t.Errorf("a column that is called as a second field is: %+v", columns)
	}
	a, b := "  optional int64 a = 2;\n", "  optional int64 b = 3;\n"
	was, err := parseProto(strings.Replace(strings.Replace(text, a+b, b+a, 1), "  optional int64 more = 4;\n", "", 1))
	if err != nil {
		t.Fatal(err)
	}
	if _, text = protoCodecOf(t, p.row.evolve(was.t, false), was); !strings.Contains(text, a+b) || !strings.Contains(text, "int64 more = 7;") {
		t.Error(text)
	}
}

// TestProtobufOfOthers: what somebody else wrote is not taken for a table's schema.
func TestProtobufOfOthers(t *testing.T) {
	p, err := read(change("insert", "", "null", `{"id":1}`))
	if err != nil {
		t.Fatal(err)
	}
	_, text := protoCodecOf(t, p.row.evolve(nil, false), nil)
	for old, new := range map[string]string{
		"package onewrite.": "package other.", "optional int64 id": "int64 id", "int64 id": "int32 id", "optional int64 id = 1": "Source id = 1", "repeated string nulls": "repeated string others", "repeated string nulls ": "string nulls ",
		"message Envelope": "message First {}\nmessage Envelope", "message Value": "message Row {}\nmessage Value2",
	} {
		changed := strings.Replace(text, old, new, 1)
		if old == "message Value" {
			changed = strings.ReplaceAll(strings.ReplaceAll(text, "message Value", "message Row"), "Value ", "Row ")
		}
		c, err := parseProto(changed)
		if err != nil || changed == text {
			t.Fatalf("%s: %v", new, err)
		}
		if c.t != nil {
			t.Errorf("%s: %+v", new, c.t)
		}
	}
}

// TestProtobufChangedByHand: what somebody made of onewrite's schema takes a row, or the
// row is refused; nothing breaks.
func TestProtobufChangedByHand(t *testing.T) {
	p, err := read(change("insert", `,"unchanged":["x"],"origin":{"a":[{}]}`, `{"id":1}`, `{"id":1,"weight":0.5,"ok":true,"note":"x","tags":[1,[null]]}`))
	if err != nil {
		t.Fatal(err)
	}
	columns := p.row.evolve(nil, false)
	_, text := protoCodecOf(t, columns, nil)
	text = strings.Replace(text, "optional string origin", "Origin origin", 1) + "message Origin { repeated Origin a = 1; }\n"
	if c, err := parseProto(text); err != nil || c.t == nil {
		t.Fatal(err)
	} else if _, err := c.append(nil, p); err != nil {
		t.Fatal(err)
	}
	for old, new := range map[string]string{
		"Origin origin": "map<string, Origin> origin", "repeated Origin a": "map<string, Origin> a", "repeated string unchanged": "map<string, string> unchanged", "Value before": "Source before",
		"Value after": "repeated Value after", "Source source": "string source", "string op": "bytes op", "optional int64 ts_ms": "float ts_ms", "repeated Item items": "repeated int64 items",
		"Item items": "Item others", "int64 integer": "string integer", "int64 integer = ": "int64 whole = ", "Array array": "map<string, Array> array",
	} {
		changed := strings.Replace(text, old, new, 1)
		if strings.HasPrefix(new, "map") && old == "Array array" {
			changed = strings.Replace(text, "    Array array = 5;\n  }", "  }\n  map<string, Array> array = 5;", 1)
		}
		c, err := parseProto(changed)
		if err != nil || changed == text || c.t == nil {
			t.Fatalf("%s: %v", new, err)
		}
		if _, err := c.append(nil, p); err == nil || !strings.Contains(err.Error(), "field ") {
			t.Errorf("%s: %v", new, err)
		}
	}
}
