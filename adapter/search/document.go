package search

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/internal/cloudevents"
)

// What is done to a document.
const (
	put     = "index"
	del     = "delete"
	empties = "truncate" // all of the index that is older
)

// op is what an event does.
type op struct {
	event   *onewrite.Event
	kind    string
	index   string
	id      string
	track   string // "" if the event has no place
	version int64  // 0: none
	doc     []byte // of put, in one line
	missing []string
}

// row is what is read of a row change.
type row struct {
	After  json.RawMessage `json:"after"`
	Op     string          `json:"op"`
	Source struct {
		Connector string   `json:"connector"`
		Unchanged []string `json:"unchanged"`
	} `json:"source"`
}

// kinds are the types of row changes and their op.
var kinds = map[string]string{"insert": "c", "update": "u", "delete": "d", "truncate": "t", "snapshot": "r"}

// rowOf returns the row change that an event is; nil if it is none. An application may
// name its own events so too: what tells is the envelope.
func rowOf(e *onewrite.Event) *row {
	want, ok := kinds[e.Type]
	if !ok || !cloudevents.IsJSON(e.ContentType) {
		return nil
	}
	r := &row{}
	if json.Unmarshal(e.Data, r) != nil || r.Op != want || r.Source.Connector == "" {
		return nil
	}
	return r
}

// plan says what an event does. An error is ErrRejected: nothing can be done with it.
func (s *Sink) plan(e *onewrite.Event) (op, error) {
	o := op{event: e, kind: put, index: indexName(s.index.fill(e, e.Key))}
	key := e.Key
	if key == "" {
		key = e.ID
	}
	if s.c.Document == Event {
		o.id, o.doc = documentID(s.id.fill(e, key)), cloudevents.AppendJSON(nil, e)
		return o, nil
	}
	if r := rowOf(e); r != nil {
		return s.planRow(o, r)
	}
	o.id = documentID(s.id.fill(e, key))
	switch {
	case e.Data == nil && e.Key == "":
		return o, rejected(e, "it has neither data nor a key, so there is no document", "write document: event, or leave its topic out of topics")
	case e.Data == nil:
		o.kind = del
	case !cloudevents.IsJSON(e.ContentType) || !isObject(e.Data):
		return o, rejected(e, "its payload is no JSON object, and no document can be anything else", "write document: event, or leave its topic out of topics")
	default:
		o.doc = oneLine(e.Data)
	}
	return o, nil
}

func (s *Sink) planRow(o op, r *row) (op, error) {
	e := o.event
	if s.index.has("type") || s.id.has("type") || !s.id.has("key") {
		return o, rejected(e, "an update or delete of a row cannot find its document: index or id has {type}, or id has no {key}", `write id: "{key}" and take {type} out, or write document: event`)
	}
	if r.Op == "t" {
		o.kind = empties
		if !s.index.has("topic") || s.c.Sources > 1 && !s.index.has("source") {
			return o, rejected(e, "which documents of "+o.index+" are rows of the truncated table cannot be told",
				`write index: "{topic}", and "{source}-{topic}" where several sources deliver, and delete them: curl -sS -X `+s.wipe(o.index))
		}
		return o, nil
	}
	if !strings.HasPrefix(e.Key, "{") {
		return o, rejected(e, "its table has no primary key, so its rows have no id", "ALTER TABLE "+e.Topic+" ADD PRIMARY KEY (…), and onewrite migrate; or write document: event")
	}
	o.id = documentID(s.id.fill(e, rowKey(e.Key)))
	if r.Op == "d" {
		o.kind = del
		return o, nil
	}
	if !isObject(r.After) {
		return o, rejected(e, "its envelope has no row", "correct the program that wrote it: the row stands under after")
	}
	o.doc, o.missing = oneLine(r.After), r.Source.Unchanged
	return o, nil
}

// wipe is what a person does to an index whose documents are to go.
func (s *Sink) wipe(index string) string {
	if s.c.meili {
		return "DELETE '" + s.http.origin() + "/indexes/" + meiliIndex(index) + "/documents'"
	}
	return "POST '" + s.http.origin() + "/" + index + "/_delete_by_query'"
}

func rejected(e *onewrite.Event, why, cure string) error {
	return fmt.Errorf("search: event %s cannot be written: %s: %w; %s", e.ID, why, onewrite.ErrRejected, cure)
}

func isObject(b []byte) bool {
	t := bytes.TrimLeft(b, " \t\r\n")
	return len(t) > 0 && t[0] == '{' && json.Valid(b)
}

// oneLine takes line breaks out, which would end an item of a bulk request.
func oneLine(b []byte) []byte {
	if !bytes.ContainsAny(b, "\r\n") {
		return b
	}
	var line bytes.Buffer
	_ = json.Compact(&line, b) // it is valid
	return line.Bytes()
}

// complete adds the columns that the log did not carry from the document that is
// there; it returns the first that is not.
func (o *op) complete(stored []byte) (lacks string, err error) {
	var doc, old map[string]json.RawMessage
	if err := json.Unmarshal(o.doc, &doc); err != nil {
		return "", err
	}
	if err := json.Unmarshal(stored, &old); err != nil || old == nil {
		return o.missing[0], nil
	}
	for _, name := range o.missing {
		value, ok := old[name]
		if !ok {
			return name, nil
		}
		doc[name] = value
	}
	var line bytes.Buffer
	enc := json.NewEncoder(&line)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(doc); err != nil {
		return "", err
	}
	o.doc = bytes.TrimSpace(line.Bytes())
	return "", nil
}
