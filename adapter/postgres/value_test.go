package postgres

import (
	"encoding/json"
	"reflect"
	"strings"
	"testing"
	"unicode/utf8"

	"pgregory.net/rapid"
)

// scalars has every form with texts that a server sends, and some that none does.
var scalars = []struct {
	form form
	text string
	want string
}{
	{formText, ``, `""`},
	{formText, `plain`, `"plain"`},
	{formText, "a\"b\\c/d", `"a\"b\\c/d"`},
	{formText, "\x01\b\t\n\v\f\r\x1f\x7f", "\"\\u0001\\u0008\\t\\n\\u000b\\u000c\\r\\u001f\x7f\""},
	{formText, "é€😀\u2028<&>", "\"é€😀\u2028<&>\""},
	{formText, "a\xffb\xc3", "\"a\\ufffdb\\ufffd\""},
	{formText, "\xed\xa0\x80", "\"\\ufffd\\ufffd\\ufffd\""}, // half of a surrogate pair
	{formText, "\ufffd", "\"\ufffd\""},
	{formText, `{"a": 1,  "a":2}`, `"{\"a\": 1,  \"a\":2}"`},
	{formText, `NULL`, `"NULL"`},
	{formNumber, `0`, `0`},
	{formNumber, `-9223372036854775808`, `-9223372036854775808`},
	{formNumber, `9223372036854775807`, `9223372036854775807`},
	{formNumber, ``, `""`},
	{formNumber, `-`, `"-"`},
	{formNumber, `01`, `"01"`},
	{formNumber, `1x`, `"1x"`},
	{formNumber, `1 `, `"1 "`},
	{formNumber, `1"`, `"1\""`},
	{formFloat, `-0`, `-0`},
	{formFloat, `0.1`, `0.1`},
	{formFloat, `5e-324`, `5e-324`},
	{formFloat, `1.7976931348623157e+308`, `1.7976931348623157e+308`},
	{formFloat, `1E5`, `1E5`},
	{formFloat, `NaN`, `"NaN"`},
	{formFloat, `Infinity`, `"Infinity"`},
	{formFloat, `-Infinity`, `"-Infinity"`},
	{formFloat, `1.`, `"1."`},
	{formFloat, `.5`, `".5"`},
	{formFloat, `1e`, `"1e"`},
	{formFloat, `1e+`, `"1e+"`},
	{formFloat, `--1`, `"--1"`},
	{formBool, `t`, `true`},
	{formBool, `f`, `false`},
	{formBool, `true`, `"true"`},
	{formTimestamp, `2024-05-06 07:08:09.000001`, `"2024-05-06T07:08:09.000001"`},
	{formTimestamp, `2024-05-06 07:08:09`, `"2024-05-06T07:08:09"`},
	{formTimestamp, `294276-12-31 23:59:59.999999`, `"294276-12-31T23:59:59.999999"`},
	{formTimestamp, `0044-03-15 12:00:00 BC`, `"0044-03-15 12:00:00 BC"`},
	{formTimestamp, `infinity`, `"infinity"`},
	{formTimestamp, `2024-05-06 07:08:09"`, `"2024-05-06 07:08:09\""`},
	{formInstant, `2024-05-06 07:08:09.5+00`, `"2024-05-06T07:08:09.5Z"`},
	{formInstant, `0044-03-15 12:00:00+00 BC`, `"0044-03-15 12:00:00+00 BC"`},
	{formInstant, `-infinity`, `"-infinity"`},
	{formInstant, `2024-05-06 07:08:09+05:30`, `"2024-05-06 07:08:09+05:30"`},
	{formInstant, "\x00 +00", `"\u0000 +00"`},
	{formBytes, `\x`, `""`},
	{formBytes, `\x00ff10`, `"AP8Q"`},
	{formBytes, `\xABCD`, `"q80="`},
	{formBytes, `\x0`, `"\\x0"`},
	{formBytes, `\xzz`, `"\\xzz"`},
	{formBytes, `abc`, `"abc"`},
}

var arrays = []struct {
	elem  form
	delim byte
	text  string
	want  string
}{
	{formNumber, ',', `{}`, `[]`},
	{formNumber, ',', `{1}`, `[1]`},
	{formNumber, ',', `{1,NULL,-3}`, `[1,null,-3]`},
	{formNumber, ',', `{{1,2},{3,NULL}}`, `[[1,2],[3,null]]`},
	{formNumber, ',', `{{{{{{1}}}}}}`, `[[[[[[1]]]]]]`},
	{formNumber, ',', `[2:3]={1,2}`, `[1,2]`},
	{formNumber, ',', `[-1:0][5:6]={{1,2},{3,4}}`, `[[1,2],[3,4]]`},
	{formText, ',', `{NULL,"NULL","null",nil}`, `[null,"NULL","null","nil"]`},
	{formText, ',', `{"",a,"b c"}`, `["","a","b c"]`},
	{formText, ',', `{"a,b","{c}","d\\e","f\"g","\\\\\""}`, `["a,b","{c}","d\\e","f\"g","\\\\\""]`},
	{formText, ',', "{\"a\nb\",é😀}", `["a\nb","é😀"]`},
	{formText, ',', `{"{\"a\": [1, 2]}","null"}`, `["{\"a\": [1, 2]}","null"]`}, // of json
	{formText, ',', `{"(1,\"x y\")","(2,)"}`, `["(1,\"x y\")","(2,)"]`},         // of a composite type
	{formText, ';', `{(1,1),(0,0);(3,3),(2,2)}`, `["(1,1),(0,0)","(3,3),(2,2)"]`},
	{formText, ';', `{(1,1),(0,0);NULL}`, `["(1,1),(0,0)",null]`},
	{formInstant, ',', `{"2024-05-06 07:08:09+00",infinity,"0044-03-15 12:00:00+00 BC"}`, `["2024-05-06T07:08:09Z","infinity","0044-03-15 12:00:00+00 BC"]`},
	{formTimestamp, ',', `{"2024-05-06 07:08:09",NULL}`, `["2024-05-06T07:08:09",null]`},
	{formBytes, ',', `{"\\x00ff10","\\x",NULL}`, `["AP8Q","",null]`},
	{formBool, ',', `{t,f,NULL}`, `[true,false,null]`},
	{formFloat, ',', `{1.5,NaN,Infinity,-Infinity,-0,1e+20}`, `[1.5,"NaN","Infinity","-Infinity",-0,1e+20]`},
	// What no server sends is shown as it is.
	{formNumber, ',', ``, `""`},
	{formNumber, ',', `1 2 3`, `"1 2 3"`}, // but for int2vector
	{formNumber, ',', `{`, `"{"`},
	{formNumber, ',', `{1`, `"{1"`},
	{formNumber, ',', `{1,}`, `"{1,}"`},
	{formNumber, ',', `{,1}`, `"{,1}"`},
	{formNumber, ',', `{1}}`, `"{1}}"`},
	{formNumber, ',', `{1}x`, `"{1}x"`},
	{formNumber, ',', `{{1}{2}}`, `"{{1}{2}}"`},
	{formNumber, ',', `{1,{2}`, `"{1,{2}"`},
	{formText, ',', `{"a"b}`, `"{\"a\"b}"`},
	{formText, ',', `{"a`, `"{\"a"`},
	{formText, ',', `{"a\`, `"{\"a\\"`},
	{formNumber, ',', `[1:1]{1}`, `"[1:1]{1}"`},
	{formNumber, ',', `{{{{{{{1}}}}}}}`, `"{{{{{{{1}}}}}}}"`},
}

func TestValue(t *testing.T) {
	if len(scalars) < 40 || len(arrays) < 30 {
		t.Fatal("the tables are too short to prove anything")
	}
	forms := map[form]bool{}
	for _, c := range scalars {
		forms[c.form] = true
		if got := string(appendValue([]byte("x"), []byte(c.text), valueType{form: c.form})); got != "x"+c.want {
			t.Errorf("form %d, %q: %s, want %s", c.form, c.text, got[1:], c.want)
		}
	}
	if len(forms) != int(formArray) {
		t.Errorf("%d forms of %d are in the table", len(forms), formArray)
	}
	for _, c := range arrays {
		if got := string(appendValue([]byte("x"), []byte(c.text), valueType{form: formArray, elem: c.elem, delim: c.delim})); got != "x"+c.want {
			t.Errorf("array of form %d, %q: %s, want %s", c.elem, c.text, got[1:], c.want)
		}
	}
}

// FuzzValue: whatever a server sends, the event is JSON, and text comes through.
func FuzzValue(f *testing.F) {
	for _, c := range scalars {
		f.Add([]byte(c.text), uint8(c.form), uint8(0), byte(','))
	}
	for _, c := range arrays {
		f.Add([]byte(c.text), uint8(formArray), uint8(c.elem), c.delim)
	}
	f.Fuzz(func(t *testing.T, text []byte, of, elem uint8, delim byte) {
		typ := valueType{form: form(of % uint8(formArray+1)), elem: form(elem % uint8(formArray+1)), delim: ','}
		if delim%2 == 1 {
			typ.delim = ';'
		}
		out := appendValue([]byte(`{"a":`), text, typ)
		if out = append(out, '}'); !json.Valid(out) || !utf8.Valid(out) {
			t.Fatalf("%q of %+v becomes %q", text, typ, out)
		}
		if typ.form == formText {
			var back struct{ A string }
			if err := json.Unmarshal(out, &back); err != nil || back.A != string([]rune(string(text))) {
				t.Fatalf("%q comes back as %q (%v)", text, back.A, err)
			}
		}
	})
}

// literal writes an array as PostgreSQL does.
func literal(v any) string {
	switch v := v.(type) {
	case nil:
		return "NULL"
	case string:
		if v == "" || strings.EqualFold(v, "null") || strings.ContainsAny(v, "{},\"\\ \t\n\r\v\f") {
			return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(v) + `"`
		}
		return v
	case []any:
		parts := make([]string, len(v))
		for i := range v {
			parts[i] = literal(v[i])
		}
		return "{" + strings.Join(parts, ",") + "}"
	}
	panic("no value of an array")
}

// Any array of texts comes through as it is.
func TestArrayComesBack(t *testing.T) {
	text := rapid.StringOf(rapid.SampledFrom([]rune("ab ,;{}\"\\\n\tNULLé😀")))
	cell := rapid.Custom(func(t *rapid.T) any {
		if rapid.IntRange(0, 4).Draw(t, "null") == 0 {
			return nil
		}
		return text.Draw(t, "text")
	})
	rapid.Check(t, func(t *rapid.T) {
		row := rapid.SliceOfN(cell, 1, 5)
		var v []any
		if rapid.Bool().Draw(t, "flat") {
			v = row.Draw(t, "row")
		} else {
			for _, r := range rapid.SliceOfN(row, 1, 4).Draw(t, "rows") {
				v = append(v, r)
			}
		}
		out := appendValue(nil, []byte(literal(v)), array(formText))
		var back []any
		if err := json.Unmarshal(out, &back); err != nil || !reflect.DeepEqual(back, v) {
			t.Fatalf("%q becomes %s: %v", literal(v), out, err)
		}
	})
}
