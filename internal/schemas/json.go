package schemas

import (
	"bytes"
	"encoding/json"
	"errors"
	"strings"

	"github.com/santhosh-tekuri/jsonschema/v6"
)

// jsonCodec leaves payloads as they are, once they are valid.
type jsonCodec struct {
	schema *jsonschema.Schema
	t      *table
}

// closed refuses to load what a schema refers to: a registry's text must not make us
// read files, or ask other machines.
type closed struct{}

// Load returns an error.
func (closed) Load(url string) (any, error) {
	return nil, errors.New("it refers to " + url + ", which is not read")
}

func parseJSON(text string) (*jsonCodec, error) {
	v, err := parse([]byte(text))
	if err != nil {
		return nil, err
	}
	doc, err := jsonschema.UnmarshalJSON(strings.NewReader(text))
	if err != nil {
		return nil, err
	}
	c := jsonschema.NewCompiler()
	c.UseLoader(closed{})
	const name = "https://registry.invalid/schema"
	if err := c.AddResource(name, doc); err != nil {
		return nil, err
	}
	s, err := c.Compile(name)
	if err != nil {
		return nil, err
	}
	return &jsonCodec{schema: s, t: jsonTable(v)}, nil
}

func (c *jsonCodec) table() *table { return c.t }

func (c *jsonCodec) append(b []byte, p *payload) ([]byte, error) {
	v, err := jsonschema.UnmarshalJSON(bytes.NewReader(p.data))
	if err != nil {
		return nil, misfitf("", "is not JSON: %v", err)
	}
	err = c.schema.Validate(v)
	var invalid *jsonschema.ValidationError
	switch {
	case errors.As(err, &invalid):
		return nil, misfitOf(invalid)
	case err != nil:
		return nil, misfitf("", "cannot be validated: %v", err)
	}
	return append(b, p.data...), nil
}

// misfitOf names the field that lies deepest.
func misfitOf(e *jsonschema.ValidationError) error {
	deepest := e
	var walk func(e *jsonschema.ValidationError)
	walk = func(e *jsonschema.ValidationError) {
		if len(e.InstanceLocation) > len(deepest.InstanceLocation) || len(e.InstanceLocation) == len(deepest.InstanceLocation) && len(deepest.Causes) > 0 {
			deepest = e
		}
		for _, cause := range e.Causes {
			walk(cause)
		}
	}
	walk(e)
	reason := "does not fit"
	if out := deepest.DetailedOutput(); out.Error != nil {
		reason += ": " + out.Error.String()
	}
	return misfitf(strings.Join(deepest.InstanceLocation, "."), "%s", reason)
}

// The schema of row changes in JSON Schema allows the members that are known, and none
// beside them: to one that is open nothing can be added, since what was there before
// could be anything. So a column that the table lost stays, and is never there.

const draft7 = "http://json-schema.org/draft-07/schema#"

// deriveJSON is the schema of a table.
func deriveJSON(t *table) (string, error) {
	columns := &object{values: map[string]any{}}
	for _, c := range t.columns {
		columns.set(c.name, jsonOf(c.kind))
	}
	source := &object{values: map[string]any{}}
	for _, f := range sourceMembers {
		if f.word == list {
			source.set(f.name, m{"type": "array", "items": m{"type": text}})
		} else {
			source.set(f.name, jsonOf(kind{base: f.word}))
		}
	}
	image := m{"anyOf": []any{m{"type": "null"}, m{"$ref": "#/definitions/Value"}}}
	integer := m{"type": "integer"}
	out, err := json.Marshal(m{
		"$schema": draft7, "title": t.space + ".Envelope", "description": "Row changes, as onewrite derives them from its events.",
		"type": "object", "additionalProperties": false, "required": []any{"before", "after", "source", "op"},
		"properties": m{
			"before": image, "after": image, "op": m{"type": text}, "ts_ms": integer,
			"source":      m{"type": "object", "additionalProperties": false, "properties": source},
			"transaction": m{"anyOf": []any{m{"type": "null"}, m{"type": "object", "additionalProperties": false, "properties": m{"id": m{"type": text}, "total_order": integer, "data_collection_order": integer}}}},
		},
		"definitions": m{"Value": m{"type": "object", "additionalProperties": false, "properties": columns}},
	})
	return string(out), err
}

// MarshalJSON keeps the order of the members.
func (o *object) MarshalJSON() ([]byte, error) {
	b := []byte{'{'}
	for i, name := range o.names {
		if i > 0 {
			b = append(b, ',')
		}
		for j, v := range []any{name, o.values[name]} {
			text, err := json.Marshal(v)
			if err != nil {
				return nil, err
			}
			if b = append(b, text...); j == 0 {
				b = append(b, ':')
			}
		}
	}
	return append(b, '}'), nil
}

// jsonOf is the type of a column: anyOf, so that it can get wider.
func jsonOf(k kind) m {
	branches := []any{m{"type": "null"}}
	switch k.base {
	case unknown:
	case long:
		branches = append(branches, m{"type": "integer"})
	case double:
		branches = append(branches, m{"type": "number"}, m{"enum": []any{"NaN", "Infinity", "-Infinity"}})
	case list:
		branches = append(branches, m{"type": "array", "items": jsonOf(*k.items)}, m{"enum": []any{unavailable}})
	default:
		branches = append(branches, m{"type": k.base})
	}
	return m{"anyOf": branches}
}

// jsonTable reads a table from its schema; nil: onewrite has not made it.
func jsonTable(v any) *table {
	root, _ := v.(*object)
	title, _ := root.get("title")
	name, _ := title.(string)
	space, ok := strings.CutSuffix(name, ".Envelope")
	if !ok || !strings.HasPrefix(space, ours) {
		return nil
	}
	for _, step := range []string{"definitions", "Value", "properties"} {
		v, _ := root.get(step)
		if root, ok = v.(*object); !ok {
			return nil
		}
	}
	t := &table{space: space}
	for _, name := range root.names {
		k, ok := kindOfJSON(root.values[name])
		if !ok {
			return nil
		}
		t.columns = append(t.columns, column{name, k})
	}
	return t
}

func kindOfJSON(v any) (kind, bool) {
	o, _ := v.(*object)
	anyOf, _ := o.get("anyOf")
	branches, ok := anyOf.([]any)
	if !ok || len(branches) == 0 {
		return kind{}, false
	}
	if len(branches) == 1 {
		return kind{}, true
	}
	one, _ := branches[1].(*object)
	word, _ := one.get("type")
	switch word {
	case "integer":
		return kind{base: long}, true
	case "number":
		return kind{base: double}, true
	case "boolean", "string":
		return kind{base: word.(string)}, true
	case "array":
		of, _ := one.get("items")
		items, ok := kindOfJSON(of)
		return kind{base: list, items: &items}, ok
	}
	return kind{}, false
}
