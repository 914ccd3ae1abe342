package schemas

import (
	"encoding/json"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/dynamicpb"

	"github.com/onewrite/onewrite"
)

// TestPayloadsByProtobuf: a payload is written by a schema of somebody else's as
// Protobuf's own mapping of JSON has it, or the field is named that does not fit.
func TestPayloadsByProtobuf(t *testing.T) {
	order := func(fields string) string {
		return "syntax = \"proto3\";\npackage shop;\nimport \"google/protobuf/timestamp.proto\";\nimport \"google/protobuf/wrappers.proto\";\nimport \"google/protobuf/struct.proto\";\nimport \"google/protobuf/any.proto\";\nmessage Order {\n" + fields + "\n}\nmessage Placed { message Deep { string s = 1; } string s = 1; }\n"
	}
	for _, c := range []struct{ name, typ, schema, payload, want string }{
		{"all types", "", order("int32 i = 1; int64 l = 2; float f = 3; double d = 4; bool b = 5; string s = 6; bytes y = 7; enum E { A = 0; B = 1; } E e = 8; map<string, int64> m = 9; repeated string a = 10; google.protobuf.Timestamp t = 11; Order next = 12; google.protobuf.DoubleValue w = 13; google.protobuf.Value v = 14;"),
			`{"i":-2147483648,"l":9007199254740993,"f":0.1,"d":"0.1","b":true,"s":"ä😀","y":"AAH/","e":"B","m":{"k":1},"a":["x"],"t":"2024-02-29T12:30:59Z","next":{"i":1},"w":1.5,"v":{"a":[1,null,"0.1234567890123456789"]}}`,
			`{"i":-2147483648,"l":"9007199254740993","f":0.1,"d":0.1,"b":true,"s":"ä😀","y":"AAH/","e":"B","m":{"k":"1"},"a":["x"],"t":"2024-02-29T12:30:59Z","next":{"i":1},"w":1.5,"v":{"a":[1,null,"0.1234567890123456789"]}}`},
		{"both names of a field", "", order("string first_name = 1; string last_name = 2;"), `{"first_name":"a","lastName":"b"}`, `{"firstName":"a","lastName":"b"}`},
		{"null where it may be", "", order("optional string a = 1; Order b = 2; google.protobuf.Value c = 3; google.protobuf.NullValue d = 4;"), `{"a":null,"b":null,"c":null,"d":null}`, `{"c":null}`},
		{"the message of the type", "shop.Placed.Deep", order("string a = 1;"), `{"s":"x"}`, `{"s":"x"}`},
		{"a field too many", "", order("int32 a = 1;"), `{"a":1,"b":{"c":1}}`, `!message shop.Order: (line 1:8): unknown field "b"`},
		{"more than an int has", "", order("int32 a = 1;"), `{"a":2147483648}`, `!invalid value for int32`},
		{"a fraction for a long", "", order("int64 a = 1;"), `{"a":1.5}`, `!invalid value for int64`},
		{"a text for a number", "", order("int64 a = 1;"), `{"a":"x"}`, `!invalid value for int64`},
		{"a symbol that is none", "", order("enum E { A = 0; } E a = 1;"), `{"a":"Z"}`, `!invalid value for enum`},
		{"bytes that are no base64", "", order("bytes a = 1;"), `{"a":"~"}`, `!invalid value for bytes`},
		{"a time that is none", "", order("google.protobuf.Timestamp a = 1;"), `{"a":"yesterday"}`, `!google.protobuf.Timestamp`},
		{"more digits than a double has", "", order("double a = 1;"), `{"a":0.1234567890123456789}`, `!field a is 0.1234567890123456789`},
		{"an integer that no double is", "", order("repeated double a = 1;"), `{"a":[1,9007199254740993]}`, `!field a is 9007199254740993`},
		{"digits in quotes", "", order("double a = 1;"), `{"a":"0.1234567890123456789"}`, `!field a is 0.1234567890123456789`},
		{"more digits than a float has", "", order("map<string, float> a = 1;"), `{"a":{"x":0.123456789}}`, `!field a is 0.123456789`},
		{"deep inside", "", order("repeated Order a = 1; double b = 2;"), `{"a":[{"a":[{"b":9007199254740993}]}]}`, `!field a.a.b is`},
		{"in a value", "", order("google.protobuf.Struct a = 1;"), `{"a":{"b":[9007199254740993]}}`, `!field a.b is`},
		{"in a wrapper", "", order("google.protobuf.FloatValue a = 1;"), `{"a":"0.123456789"}`, `!field a is`},
		{"null for a text", "", order("string a = 1;"), `{"a":null}`, `!field a is null`},
		{"null for a list", "", order("repeated string a = 1;"), `{"a":null}`, `!field a is null`},
		{"null for a map", "", order("map<string, int32> a = 1;"), `{"a":null}`, `!field a is null`},
		{"null in a list", "", order("repeated string a = 1;"), `{"a":[null]}`, `!does not fit`},
		{"two of one", "", order("oneof x { int32 a = 1; int32 b = 2; }"), `{"a":1,"b":1}`, `!oneof`},
		{"any", "", order("google.protobuf.Any a = 1;"), `{"a":{"@type":"x/shop.Order"}}`, `!shop.Order`},
		{"no object", "", order(""), `[1]`, `!does not fit message shop.Order`},
		{"a required field", "", `syntax = "proto2"; message A { required string a = 1; }`, `{}`, `!required field`},
		{"no message", "", `syntax = "proto3";`, `{}`, `!the schema has no message`},
	} {
		codec, err := parseProto(c.schema)
		if err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		p, err := read(&onewrite.Event{Type: c.typ, ContentType: "application/json", Data: []byte(c.payload)})
		if err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		b, err := codec.append(nil, p)
		if want, refused := strings.CutPrefix(c.want, "!"); refused {
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%s: %v", c.name, err)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		md, head := codec.file.Messages().Get(0), "\x00"
		if c.typ != "" {
			md, head = codec.file.Messages().ByName("Placed").Messages().Get(0), "\x04\x02\x00"
		}
		m := dynamicpb.NewMessage(md)
		body, ok := strings.CutPrefix(string(b), head)
		if err := proto.Unmarshal([]byte(body), m); err != nil || !ok {
			t.Errorf("%s: %v: %q", c.name, err, b)
			continue
		}
		out, err := protojson.Marshal(m)
		var got, want any
		if err := json.Unmarshal([]byte(c.want), &want); err != nil {
			t.Fatal(err)
		}
		if err == nil {
			err = json.Unmarshal(out, &got)
		}
		if err != nil || toJSON(t, got) != toJSON(t, want) {
			t.Errorf("%s: %v: %s", c.name, err, out)
		}
	}
}

// TestRowsByProtobufOfOthers: a row change is a payload as any other to a schema that
// somebody else has registered.
func TestRowsByProtobufOfOthers(t *testing.T) {
	c, err := parseProto(`syntax = "proto3"; package shop; import "google/protobuf/struct.proto"; message Change {
		message Row { int64 id = 1; optional string note = 2; } Row before = 1; Row after = 2; google.protobuf.Struct source = 3; string op = 4; int64 ts_ms = 5; google.protobuf.Struct transaction = 6; }`)
	if err != nil {
		t.Fatal(err)
	}
	for after, want := range map[string]string{`{"id":1,"note":null}`: "\x12\x02\x08\x01", `{"id":1,"more":1}`: `!unknown field "more"`} {
		p, err := read(change("insert", "", "null", after))
		if err != nil || p.row == nil {
			t.Fatal(err)
		}
		b, err := c.append(nil, p)
		if want, refused := strings.CutPrefix(want, "!"); refused != (err != nil) || refused && !strings.Contains(err.Error(), want) || !refused && !strings.HasPrefix(string(b), "\x00"+want) {
			t.Errorf("%s: %q, %v", after, b, err)
		}
	}
}

// TestProtobufIsClosed: a schema of a registry is not let to read files.
func TestProtobufIsClosed(t *testing.T) {
	for _, path := range []string{"/etc/passwd", "proto_test.go", "other.proto"} {
		if _, err := parseProto("syntax = \"proto3\";\nimport \"" + path + "\";\n"); err == nil || !strings.Contains(err.Error(), "it refers to "+path+", which is not read") {
			t.Errorf("%s: %v", path, err)
		}
	}
}
