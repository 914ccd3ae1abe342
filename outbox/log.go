package outbox

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/onewrite/onewrite/internal/causality"
	"github.com/onewrite/onewrite/internal/cloudevents"
)

// LogPrefix marks the messages in PostgreSQL's log that are events.
const LogPrefix = "onewrite.event"

// InLog makes Publish write events into PostgreSQL's log and nowhere else, by
// pg_logical_emit_message: no table is filled, so none has to be emptied. They are read
// by a source with `messages: true`, from the first start of onewrite run on. An event
// that is to be sent later is refused, and so are other dialects. Events of one key
// have to go one way: between log and table no order is kept.
func InLog() Option { return func(p *Publisher) { p.log = true } }

// InLog reports whether the events go into PostgreSQL's log; see the option [InLog].
func (p *Publisher) InLog() bool { return p.log }

var (
	errLogDialect = errors.New("outbox: only PostgreSQL has a log to write events into; leave outbox.InLog() out")
	errLogCancel  = errors.New("outbox: events in the log cannot be sent later, so there is none to cancel; use a Publisher without outbox.InLog()")
)

// LogNext marks the message after an event. A message has the place in the log where the
// next record begins, and one from a savepoint would come after a row change there.
const LogNext = "onewrite.next"

// emitSQL writes n messages, in the order of their parameters.
func emitSQL(n int) string {
	var b strings.Builder
	b.Grow(120 + n*36)
	b.WriteString("SELECT pg_logical_emit_message(true, p, m) FROM (VALUES ")
	for i := range n {
		b.WriteString("('" + LogPrefix + "', $" + strconv.Itoa(i+1) + "::bytea), ")
	}
	b.WriteString("('" + LogNext + "', '')) v (p, m)")
	return b.String()
}

// emits cuts the rows into statements, as few as the limits allow.
func (l layout) emits(rows []row) (out []Statement) {
	var args []any
	size := 0
	for i := range rows {
		content := rows[i].content()
		if n := len(args); n > 0 && (size+len(content) > maxStatement || n == l.maxParam) {
			out = append(out, Statement{SQL: emitSQL(n), Args: args})
			args, size = nil, 0
		}
		args, size = append(args, content), size+len(content)
	}
	return append(out, Statement{SQL: emitSQL(len(args)), Args: args})
}

// content is the row as a message: a JSON object of the columns that are set.
func (r *row) content() []byte {
	b := make([]byte, 0, 200+r.size+r.size/8)
	for i, v := range r.args {
		if v == nil {
			continue
		}
		b = append(b, ',', '"')
		b = append(append(b, columns[i]...), '"', ':')
		switch v := v.(type) {
		case []byte:
			b = base64.StdEncoding.AppendEncode(append(b, '"'), v)
			b = append(b, '"')
		case string:
			if columns[i] == "headers" {
				b = append(b, v...) // JSON already
			} else {
				b = cloudevents.AppendString(b, v)
			}
		}
	}
	b[0] = '{' // in place of the first comma; a topic is always there
	return append(b, '}')
}

// ParseLog reads the content of a message with the prefix [LogPrefix], for sources.
// The event has its ContentType, and an empty ID or Type where the content has none.
// The error says what keeps it from being an event; it quotes no payload, key or value.
func ParseLog(content []byte) (Event, error) {
	if !utf8.Valid(content) {
		return Event{}, errors.New("it is not UTF-8; where the database has another encoding, give pg_logical_emit_message convert_to(content, 'UTF8')")
	}
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(content, &fields); err != nil || fields == nil {
		return Event{}, errors.New(`it is no JSON object; write it like {"topic":"order.placed","key":"42","payload":"{}"}`)
	}
	var e Event
	binary := false
	for name, value := range fields {
		if string(value) == "null" {
			continue
		}
		if err := e.parse(name, value); err != nil {
			return Event{}, err
		}
		binary = binary || name == "payload_bytes"
	}
	if _, both := fields["payload"]; binary && both && string(fields["payload"]) != "null" {
		return Event{}, errors.New("payload and payload_bytes are both set; leave one of them out")
	}
	e.ID = strings.ToLower(e.ID)
	if e.Payload == nil {
		e.ContentType = ""
	} else if e.ContentType == "" {
		e.ContentType = DefaultContentType(e.Payload, binary)
	}
	if t := e.Headers[causality.Traceparent]; t != "" && !causality.IsTraceparent(t) {
		delete(e.Headers, causality.Traceparent) // a trace stops no event
		delete(e.Headers, causality.Tracestate)
	}
	var c checker
	if c.check(&e); c.problems != nil {
		texts := make([]string, len(c.problems))
		for i, p := range c.problems {
			texts[i] = p.Field + " " + p.Text
		}
		return Event{}, errors.New(strings.Join(texts[:min(len(texts), maxListed)], "; "))
	}
	return e, nil
}

// parse takes over one field of a message.
func (e *Event) parse(name string, value json.RawMessage) error {
	var text string
	switch name {
	case "headers":
		values := map[string]*string{}
		if json.Unmarshal(value, &values) != nil {
			return errors.New("headers are no object of strings; write them like {\"tenant\":\"eu\"}")
		}
		e.Headers = make(map[string]string, len(values))
		for k, v := range values {
			if v == nil {
				return errors.New("headers have a value of null; leave it out")
			}
			e.Headers[k] = *v
		}
		return nil
	case "payload":
		if value[0] != '"' { // JSON that was not put into a string
			e.Payload = value
			return nil
		}
	case "topic", "key", "payload_bytes", "id", "type", "content_type":
	default:
		return fmt.Errorf("%.40q is no part of an event; it has topic, key, payload, payload_bytes, id, type, content_type and headers", name)
	}
	if json.Unmarshal(value, &text) != nil {
		return fmt.Errorf("%s is no string; put it into quotes", name)
	}
	switch name {
	case "topic":
		e.Topic = text
	case "key":
		e.Key = text
	case "payload":
		e.Payload = []byte(text)
	case "payload_bytes":
		data, err := base64.StdEncoding.DecodeString(text)
		if err != nil {
			return errors.New("payload_bytes is not base64; write encode(payload, 'base64')")
		}
		e.Payload = data
	case "id":
		e.ID = text
	case "type":
		e.Type = text
	case "content_type":
		e.ContentType = text
	}
	return nil
}
