package schemas

import (
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"

	"github.com/onewrite/onewrite"
)

// TestJSONSchemaOfRows: the schema that follows from rows takes them, is read back as
// what it says, and refuses a row of another table.
func TestJSONSchemaOfRows(t *testing.T) {
	var was *table
	for i, after := range []string{
		`{"id":9007199254740993,"total":"9.00","note":null,"größe":1,"flags":[true,null]}`,
		`{"id":1,"total":"9.00","note":"x","größe":1.5,"flags":[]}`,
		`{"id":1,"total":"9.00","größe":"NaN","flags":"__debezium_unavailable_value","more":{"a":1}}`,
		`{"id":1,"größe":2,"flags":null,"late":false}`,
	} {
		p, err := read(change("insert", "", "null", after))
		if i == 2 {
			if err == nil || !strings.Contains(err.Error(), "field after.more is an object") {
				t.Errorf("an object became a column: %v", err)
			}
			p, err = read(change("update", `,"unchanged":["flags"]`, `{"id":1}`, strings.Replace(after, `,"more":{"a":1}`, "", 1)))
		}
		if err != nil {
			t.Fatal(err)
		}
		was = p.row.evolve(was, true)
		text, err := deriveJSON(was)
		if err != nil {
			t.Fatal(err)
		}
		c, err := parseJSON(text)
		if err != nil {
			t.Fatal(err)
		}
		if c.t == nil || !p.row.fits(c.t, true) || !reflect.DeepEqual(c.t, was) {
			t.Fatalf("%v became %v", was, c.t)
		}
		out, err := c.append([]byte{1}, p)
		if err != nil || string(out[1:]) != string(p.data) {
			t.Fatalf("%v: %s by %s", err, out, text)
		}
		other, err := read(change("insert", "", "null", `{"id":"x"}`))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.append(nil, other); err == nil || !strings.Contains(err.Error(), "after.id") {
			t.Errorf("a text for a number: %v", err)
		}
	}
	if len(was.columns) != 6 {
		t.Errorf("%v", was.columns)
	}
}

// TestJSONSchemaIsClosed: a schema of a registry is not let to read files or other
// machines.
func TestJSONSchemaIsClosed(t *testing.T) {
	for _, ref := range []string{"file:///etc/passwd", "http://127.0.0.1:1/x", "x.json"} {
		if _, err := parseJSON(fmt.Sprintf(`{"$ref":%q}`, ref)); err == nil || !strings.Contains(err.Error(), "is not read") {
			t.Errorf("%s: %v", ref, err)
		}
	}
}

// TestRefusals: what is no JSON, or would come out as another value, is refused with a
// reason.
func TestRefusals(t *testing.T) {
	for data, want := range map[string]string{
		`{"a":`:         "is not JSON",
		`{"a":1} x`:     "JSON",
		`{"a":1}{}`:     "not one JSON value",
		"\"\xff\"":      "UTF-8",
		`"\ud800"`:      "surrogate",
		`{"a":1,"a":2}`: "twice",
		strings.Repeat("[", 300) + strings.Repeat("]", 300): "nested deeper",
	} {
		_, err := read(&onewrite.Event{Type: "order.placed", ContentType: "application/json", Data: []byte(data)})
		if !errors.Is(err, onewrite.ErrRejected) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", clip(data), err)
		}
	}
	if _, err := read(&onewrite.Event{ContentType: "text/plain", Data: []byte("1")}); !errors.Is(err, onewrite.ErrRejected) {
		t.Errorf("a text: %v", err)
	}
	for _, data := range []string{`"\ud83d\ude00"`, `"\ufffd"`, `"�"`, `1e400`, `{}`} {
		if _, err := read(&onewrite.Event{ContentType: "application/cloudevents+json; x=y", Data: []byte(data)}); err != nil {
			t.Errorf("%s: %v", data, err)
		}
	}
}
