package sqlsink

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/internal/cloudevents"
)

// cellKind is what a value is in JSON.
type cellKind byte

const (
	cellNull cellKind = iota
	cellText
	cellNumber // its digits as they stand
	cellBool   // "true" or "false"
	cellJSON   // an array or object, as it stands
)

// cell is a value of a row as the event has it.
type cell struct {
	kind cellKind
	text string
}

// field is a cell with its column's name.
type field struct {
	name string
	cell cell
}

// change is one event as far as the tables are concerned.
type change struct {
	op     byte // c u d t r; m is a message
	table  name
	key    []field // empty: the table has no key
	row    []field // the new row, without columns that the event does not carry
	before []field // of an update or delete of a table without key
	part   bool    // the row lacks columns that an update did not touch
}

// unavailable stands for a large value that an update did not touch.
const unavailable = "__debezium_unavailable_value"

var changeOps = map[string]string{"insert": "c", "update": "u", "delete": "d", "truncate": "t", "snapshot": "r"}

// envelope is a row change; its rows are JSON still.
type envelope struct {
	before, after     []byte
	op                string
	db, schema, table string
	unchanged         bool // columns are named that it does not carry
}

// envelopeOf reads the data of an event; false: it is no row change.
func envelopeOf(data []byte) (v envelope, ok bool) {
	if !json.Valid(data) {
		return v, false
	}
	source := false
	members(data, func(name string, value []byte) {
		switch name {
		case "before":
			v.before = value
		case "after":
			v.after = value
		case "op":
			v.op = cellOf(value).text
		case "source":
			source = true
			members(value, func(name string, value []byte) {
				switch name {
				case "db":
					v.db = cellOf(value).text
				case "schema":
					v.schema = cellOf(value).text
				case "table":
					v.table = cellOf(value).text
				case "unchanged":
					v.unchanged = value[0] == '[' && len(elements(value)) > 0
				}
			})
		}
	})
	if v.schema == "" {
		v.schema = v.db
	}
	return v, source && v.table != ""
}

// changeOf reads an event. What is no row change is a message.
func (s *Sink) changeOf(e *onewrite.Event) (change, error) {
	op := changeOps[e.Type]
	if op == "" || !cloudevents.IsJSON(e.ContentType) {
		return s.messageOf(e), nil
	}
	v, ok := envelopeOf(e.Data)
	if !ok || v.op != op {
		return s.messageOf(e), nil
	}
	c := change{op: op[0], part: v.unchanged}
	var err error
	if c.table, err = s.nameOf(origin{v.schema, v.table, e.Topic}); err != nil || op == "t" {
		return c, err
	}
	if strings.HasPrefix(e.Key, "{") && json.Valid([]byte(e.Key)) {
		c.key = fields([]byte(e.Key))
	}
	if op == "d" || len(c.key) == 0 {
		c.before = fields(v.before)
	}
	if op == "d" {
		if len(c.key) == 0 && len(c.before) == 0 {
			return c, refuse("the delete has neither a key nor the old row", "ALTER TABLE "+v.table+" REPLICA IDENTITY FULL -- in the source")
		}
		return c, nil
	}
	c.row = fields(v.after)
	for _, f := range c.row {
		if f.cell.kind == cellText && f.cell.text == unavailable {
			c.part = true
			c.row = slices.DeleteFunc(c.row, func(f field) bool { return f.cell.kind == cellText && f.cell.text == unavailable })
			break
		}
	}
	if len(c.row) == 0 {
		return c, refuse("the row change has no new row", "correct the program that wrote it: the row stands under after")
	}
	if op == "u" && len(c.key) == 0 && len(c.before) == 0 {
		return c, refuse("the update of a table without key has no old row", "ALTER TABLE "+v.table+" REPLICA IDENTITY FULL -- in the source")
	}
	return c, nil
}

// origin is what the name of a table is made from.
type origin struct{ schema, table, topic string }

// mostNames bounds the names that are remembered.
const mostNames = 1000

func (s *Sink) nameOf(o origin) (name, error) {
	if n, ok := s.named[o]; ok {
		return n, nil
	}
	n, err := s.tables.name(o.schema, o.table, o.topic)
	if err == nil && len(s.named) < mostNames {
		s.named[o] = n
	}
	return n, err
}

// messageOf is an event as a row of the table of messages. Text is kept as text, so
// that SQL can look into it; what is no text, or has a NUL in it, as bytes.
func (s *Sink) messageOf(e *onewrite.Event) change {
	c := change{op: 'm', table: s.messages, key: []field{{"id", text(e.ID)}, {"source", text(e.Source)}}}
	optional := func(v string) cell {
		if v == "" {
			return cell{}
		}
		return text(v)
	}
	var at, data, raw, header, txid, txindex, txlast cell
	if !e.Time.IsZero() {
		at = text(e.Time.UTC().Format(time.RFC3339Nano))
	}
	if e.Data != nil && utf8.Valid(e.Data) && bytes.IndexByte(e.Data, 0) < 0 {
		data = text(string(e.Data))
	} else if e.Data != nil {
		raw = cell{cellText, base64Of(e.Data)}
	}
	if len(e.Header) > 0 {
		b, _ := json.Marshal(e.Header) // texts cannot fail
		header = text(string(b))
	}
	if e.Tx.ID != "" {
		txid, txindex, txlast = text(e.Tx.ID), cell{cellNumber, strconv.Itoa(e.Tx.Index)}, cell{cellBool, strconv.FormatBool(e.Tx.Last)}
	}
	c.row = []field{
		{"id", text(e.ID)}, {"source", text(e.Source)}, {"topic", text(e.Topic)}, {"key", optional(e.Key)}, {"type", text(e.Type)},
		{"time", at}, {"data", data}, {"data_bytes", raw}, {"content_type", optional(e.ContentType)}, {"sequence", optional(e.Seq)},
		{"headers", header}, {"txid", txid}, {"txindex", txindex}, {"txlast", txlast},
	}
	return c
}

func text(v string) cell { return cell{cellText, v} }

// fields cuts a JSON object that is known to be valid into its members.
func fields(b []byte) []field {
	list := make([]field, 0, 16)
	members(b, func(name string, value []byte) { list = append(list, field{name, cellOf(value)}) })
	return list
}

// members calls f for each member of a JSON object that is known to be valid.
func members(b []byte, f func(name string, value []byte)) {
	start := skipSpace(b, 0)
	if start >= len(b) || b[start] != '{' {
		return
	}
	for i := start + 1; ; {
		i = skipSpace(b, i)
		if i >= len(b) || b[i] == '}' {
			return
		}
		end := skipValue(b, i)
		name := unquote(b[i:end])
		i = skipSpace(b, skipSpace(b, end)+1) // the colon
		end = skipValue(b, i)
		f(name, b[i:end])
		if i = skipSpace(b, end); i < len(b) && b[i] == ',' {
			i++
		}
	}
}

// elements cuts a JSON array that is known to be valid into its elements.
func elements(b []byte) []cell {
	var list []cell
	for i := 1; ; {
		i = skipSpace(b, i)
		if i >= len(b) || b[i] == ']' {
			return list
		}
		end := skipValue(b, i)
		list = append(list, cellOf(b[i:end]))
		if i = skipSpace(b, end); i < len(b) && b[i] == ',' {
			i++
		}
	}
}

func cellOf(b []byte) cell {
	switch b[0] {
	case '"':
		return cell{cellText, unquote(b)}
	case '{', '[':
		return cell{cellJSON, string(b)}
	case 't', 'f':
		return cell{cellBool, string(b)}
	case 'n':
		return cell{}
	}
	return cell{cellNumber, string(b)}
}

func skipSpace(b []byte, i int) int {
	for i < len(b) && (b[i] == ' ' || b[i] == '\n' || b[i] == '\t' || b[i] == '\r') {
		i++
	}
	return i
}

// skipValue returns the end of the value that begins at i.
func skipValue(b []byte, i int) int {
	depth := 0
	for i < len(b) {
		switch b[i] {
		case '"':
			for i++; i < len(b) && b[i] != '"'; i++ {
				if b[i] == '\\' {
					i++
				}
			}
			if depth == 0 {
				return i + 1
			}
		case '{', '[':
			depth++
		case '}', ']':
			if depth == 0 {
				return i // of what is around a number or word
			}
			if depth--; depth == 0 {
				return i + 1
			}
		case ',', ':', ' ', '\n', '\t', '\r':
			if depth == 0 {
				return i
			}
		}
		i++
	}
	return i
}

func unquote(b []byte) string {
	if bytes.IndexByte(b, '\\') < 0 && utf8.Valid(b) {
		return string(b[1 : len(b)-1])
	}
	var v string
	if json.Unmarshal(b, &v) != nil {
		return string(b)
	}
	return v
}

// name is a table's, with its schema or without.
type name struct{ schema, table string }

// String is for people.
func (n name) String() string {
	if n.schema == "" {
		return n.table
	}
	return n.schema + "." + n.table
}

// template makes the names of tables.
type template struct{ schema, table string }

// templateOf reads the setting: a dot outside of braces ends the schema.
func templateOf(text string) (template, error) {
	schema, table, ok := strings.Cut(text, ".")
	if !ok {
		schema, table = "", text
	}
	t := template{schema, table}
	for _, part := range []string{schema, table} {
		rest := strings.NewReplacer("{schema}", "", "{table}", "", "{topic}", "").Replace(part)
		if strings.ContainsAny(rest, "{}.\x00") {
			return t, fmt.Errorf("%q is no name of tables; write {table}, or replica.{table}; {schema}, {table} and {topic} stand for the event's", text)
		}
	}
	if table == "" || ok && schema == "" {
		return t, fmt.Errorf("%q is no name of tables; write {table}, or replica.{table}", text)
	}
	return t, nil
}

func (t template) name(schema, table, topic string) (name, error) {
	r := strings.NewReplacer("{schema}", schema, "{table}", table, "{topic}", topic)
	n := name{r.Replace(t.schema), r.Replace(t.table)}
	if n.table == "" || t.schema != "" && n.schema == "" {
		return n, refuse("the event names no schema for the table "+table, "write table: \"{table}\" in the destination")
	}
	return n, nil
}
