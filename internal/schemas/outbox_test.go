package schemas

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/twmb/avro"

	"github.com/onewrite/onewrite"
)

// TestPayloadsByAvro: a payload is written by a schema of somebody else's, to the last
// digit, or the field is named that does not fit.
func TestPayloadsByAvro(t *testing.T) {
	record := func(fields string) string {
		return `{"type":"record","name":"Order","namespace":"shop","fields":[` + fields + `]}`
	}
	for _, c := range []struct{ name, schema, payload, want string }{
		{"all types", record(`{"name":"i","type":"int"},{"name":"l","type":"long"},{"name":"f","type":"float"},{"name":"d","type":"double"},{"name":"b","type":"boolean"},{"name":"s","type":"string"},{"name":"y","type":"bytes"},{"name":"x","type":{"type":"fixed","name":"X","size":2}},{"name":"e","type":{"type":"enum","name":"E","symbols":["A","B"]}},{"name":"m","type":{"type":"map","values":"long"}},{"name":"a","type":{"type":"array","items":["null","string"]}},{"name":"n","type":"null"}`),
			`{"i":-2147483648,"l":9007199254740993,"f":0.1,"d":0.1,"b":true,"s":"ä😀","y":"AAH/","x":"AQI=","e":"B","m":{"k":1},"a":["x",null],"n":null}`,
			`{"a":["x",null],"b":true,"d":0.1,"e":"B","f":0.1,"i":-2147483648,"l":9007199254740993,"m":{"k":1},"n":null,"s":"ä😀","x":"\u0001\u0002","y":"\u0000\u0001\u00ff"}`},
		{"a default", record(`{"name":"a","type":"int","default":7},{"name":"b","type":["null","string"],"default":null},{"name":"c","type":["string","null"],"default":"é"}`), `{}`, `{"a":7,"b":null,"c":"é"}`},
		{"a type that is used again", record(`{"name":"a","type":{"type":"record","name":"P","fields":[{"name":"x","type":"int"}]}},{"name":"b","type":["null","P"]},{"name":"c","type":"shop.P"}`), `{"a":{"x":1},"b":{"x":2},"c":{"x":3}}`, `{"a":{"x":1},"b":{"x":2},"c":{"x":3}}`},
		{"a list", record(`{"name":"v","type":"int"},{"name":"next","type":["null","Order"],"default":null}`), `{"v":1,"next":{"v":2}}`, `{"next":{"next":null,"v":2},"v":1}`},
		{"a decimal", record(`{"name":"a","type":{"type":"bytes","logicalType":"decimal","precision":22,"scale":2}},{"name":"b","type":{"type":"fixed","name":"D","size":4,"logicalType":"decimal","precision":5,"scale":1}}`), `{"a":"-12345678901234567890.10","b":-12.5}`, ``},
		{"a number for an int that is none", record(`{"name":"a","type":"int"}`), `{"a":2147483648}`, `!field a is 2147483648, which int does not hold`},
		{"a fraction for a long", record(`{"name":"a","type":"long"}`), `{"a":1.5}`, `!field a`},
		{"more digits than a double has", record(`{"name":"a","type":"double"}`), `{"a":0.1234567890123456789}`, `!field a is 0.1234567890123456789, which double does not hold exactly`},
		{"an integer that no double is", record(`{"name":"a","type":"double"}`), `{"a":9007199254740993}`, `!field a`},
		{"more digits than a float has", record(`{"name":"a","type":"float"}`), `{"a":0.123456789}`, `!field a`},
		{"a decimal with more places", record(`{"name":"a","type":{"type":"bytes","logicalType":"decimal","precision":5,"scale":2}}`), `{"a":"1.234"}`, `!field a`},
		{"a decimal with more digits", record(`{"name":"a","type":{"type":"bytes","logicalType":"decimal","precision":5,"scale":2}}`), `{"a":"1234.00"}`, `!field a`},
		{"a decimal that is none", record(`{"name":"a","type":{"type":"bytes","logicalType":"decimal","precision":5,"scale":2}}`), `{"a":"0x10"}`, `!field a`},
		{"a missing field", record(`{"name":"a","type":"int"}`), `{}`, `!field a is missing`},
		{"a field too many", record(`{"name":"a","type":"int"}`), `{"a":1,"b":{"c":1}}`, `!field b is not in the schema`},
		{"deep inside", record(`{"name":"a","type":{"type":"array","items":{"type":"record","name":"P","fields":[{"name":"x","type":"int"}]}}}`), `{"a":[{"x":1},{"x":"1"}]}`, `!field a[1].x is a string, the schema has int`},
		{"null where none may be", record(`{"name":"a","type":"string"}`), `{"a":null}`, `!field a is null, the schema has string`},
		{"none of several", record(`{"name":"a","type":["int","string"]}`), `{"a":true}`, `!field a is a boolean, the schema has int or string`},
		{"a symbol that is none", record(`{"name":"a","type":{"type":"enum","name":"E","symbols":["A"]}}`), `{"a":"Z"}`, `!field a is "Z"`},
		{"bytes that are no base64", record(`{"name":"a","type":"bytes"}`), `{"a":"~"}`, `!field a is not base64`},
		{"a fixed of another size", record(`{"name":"a","type":{"type":"fixed","name":"X","size":2}}`), `{"a":"AQ=="}`, `!field a has 1 bytes`},
		{"no object", record(``), `[1]`, `!the payload is an array`},
	} {
		codec, err := parseAvro(c.schema)
		if err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		p, err := read(&onewrite.Event{Type: "order.placed", ContentType: "application/json", Data: []byte(c.payload)})
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
		s := avro.MustParse(c.schema)
		var v any
		if rest, err := s.Decode(b, &v); err != nil || len(rest) > 0 {
			t.Errorf("%s: %v, %d bytes are left over", c.name, err, len(rest))
			continue
		}
		if c.want == "" { // decimals
			if got := v.(map[string]any); toJSON(t, got["a"]) != "-12345678901234567890.1" && toJSON(t, got["a"]) != `"-1234567890123456789010/100"` && toJSON(t, got["a"]) != `"-123456789012345678901/10"` {
				t.Errorf("%s: %s", c.name, toJSON(t, got))
			}
			continue
		}
		out, err := s.EncodeJSON(v)
		var sorted any
		if err == nil {
			err = json.Unmarshal(out, &sorted)
		}
		var want any
		if err := json.Unmarshal([]byte(c.want), &want); err != nil {
			t.Fatal(err)
		}
		if err != nil || toJSON(t, sorted) != toJSON(t, want) {
			t.Errorf("%s: %v: %s", c.name, err, out)
		}
	}
}

func toJSON(t *testing.T, v any) string {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
