package schemas

import (
	"encoding/json"
	"slices"
	"strings"

	"github.com/twmb/avro"
)

// The schema of row changes is that of Debezium's envelope, with a record of its own for
// the table. Each column may be null, which is its default: a reader with another
// version takes what it does not find for that.

type m = map[string]any

// deriveAvro is the schema of a table.
func deriveAvro(t *table) (string, error) {
	fields := []any{}
	for _, c := range t.columns {
		f := m{"name": identifier(c.name), "type": avroOf(c.kind), "default": nil}
		if identifier(c.name) != c.name {
			f[columnProp] = c.name
		}
		fields = append(fields, f)
	}
	row := m{"type": "record", "name": "Value", "fields": fields}
	text, err := json.Marshal(m{
		"type": "record", "name": "Envelope", "namespace": t.space, "doc": "Row changes, as onewrite derives them from its events.",
		"fields": []any{
			optional("before", row), optional("after", t.space+".Value"),
			required("source", m{"type": "record", "name": "Source", "namespace": "onewrite", "fields": sourceFields()}),
			required("op", "string"), optional("ts_ms", "long"),
			optional("transaction", m{"type": "record", "name": "Transaction", "namespace": "onewrite", "fields": []any{
				required("id", "string"), required("total_order", "long"), required("data_collection_order", "long"),
			}}),
			optional("absent", m{"type": "array", "items": "string"}),
		},
	})
	return string(text), err
}

func required(name string, typ any) m { return m{"name": name, "type": typ} }

func optional(name string, typ any) m {
	return m{"name": name, "type": []any{"null", typ}, "default": nil}
}

// sourceMembers are those that a source may write, and their types. A new one goes to the
// end: its place is its number in Protobuf.
var sourceMembers = []struct{ name, word string }{
	{"version", text}, {"connector", text}, {"name", text}, {"ts_ms", long}, {"snapshot", text}, {"db", text}, {"schema", text}, {"table", text},
	{"txId", long}, {"lsn", long}, {"seq", long}, {"unchanged", list}, {"reread", boolean}, {"origin", text},
}

func sourceFields() (fields []any) {
	for _, f := range sourceMembers {
		if f.word == list {
			fields = append(fields, optional(f.name, m{"type": "array", "items": "string"}))
		} else {
			fields = append(fields, optional(f.name, f.word))
		}
	}
	return fields
}

// avroOf is the type of a column: a union with null, first, so that null can be the
// default.
func avroOf(k kind) []any {
	switch k.base {
	case unknown:
		return []any{"null"}
	case list:
		return []any{"null", m{"type": "array", "items": avroOf(*k.items)}}
	}
	return []any{"null", k.base}
}

// avroTable reads a table from its schema; nil: onewrite has not made it.
func avroTable(n *avro.SchemaNode) *table {
	if n.Type != "record" || n.Name != "Envelope" || !strings.HasPrefix(n.Namespace, ours) {
		return nil
	}
	i := slices.IndexFunc(n.Fields, func(f avro.SchemaField) bool { return f.Name == "before" })
	if i < 0 || len(n.Fields[i].Type.Branches) != 2 || n.Fields[i].Type.Branches[1].Name != "Value" {
		return nil
	}
	t := &table{space: n.Namespace}
	for _, f := range n.Fields[i].Type.Branches[1].Fields {
		k, ok := kindOfAvro(&f.Type)
		if !ok {
			return nil
		}
		name := f.Name
		if column, ok := f.Props[columnProp].(string); ok {
			name = column
		}
		t.columns = append(t.columns, column{name, k})
	}
	return t
}

func kindOfAvro(n *avro.SchemaNode) (kind, bool) {
	if n.Type != "union" || len(n.Branches) == 0 || len(n.Branches) > 2 || n.Branches[0].Type != "null" {
		return kind{}, false
	}
	if len(n.Branches) == 1 {
		return kind{}, true
	}
	switch one := &n.Branches[1]; one.Type {
	case boolean, long, double, text:
		return kind{base: one.Type}, one.LogicalType == ""
	case list:
		items, ok := kindOfAvro(one.Items)
		return kind{base: list, items: &items}, ok
	}
	return kind{}, false
}
