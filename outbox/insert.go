package outbox

import (
	"bytes"
	"context"
	"encoding/json"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"
)

var columns = [...]string{"topic", "key", "payload", "payload_bytes", "id", "type", "content_type", "headers"}

// scheduledColumns are those of an event that is to be sent later.
var scheduledColumns = append(columns[:len(columns):len(columns)], "deliver_at")

// timeLayout of deliver_at: text that compares as the times do, which SQLite needs.
const timeLayout = "2006-01-02T15:04:05.000Z"

// maxStatement bounds the bytes of one statement, well below the packet limits
// of the databases (MariaDB's max_allowed_packet is 16 MiB by default). A
// single larger event still gets its statement.
const maxStatement = 8 << 20

// layout is how a dialect writes the INSERT.
type layout struct {
	table    string
	later    string // the table of scheduled events
	cancel   string // takes one out of it, and answers with a row of true if it was there
	quote    string // around the column names, of which key is a word of SQL
	dollar   bool   // $1, $2 instead of ?
	maxParam int    // the server's limit of parameters in one statement
}

var layouts = map[Dialect]layout{
	Postgres: {"onewrite.outbox", "onewrite.scheduled", "SELECT onewrite.cancel($1)", `"`, true, 65535},
	SQLite:   {"onewrite_outbox", "onewrite_scheduled", "DELETE FROM onewrite_scheduled WHERE lower(id) = lower(?) RETURNING true", `"`, false, 32766},
	MySQL:    {"onewrite_outbox", "", "", "`", false, 65535},
}

// row holds the values of an event in the order of columns.
type row struct {
	args [len(columns)]any
	at   string // when it is due, if it is to be sent later
	size int
}

// rows checks all events and makes their rows; the error is an *InvalidError.
func (p *Publisher) rows(ctx context.Context, events []Event) ([]row, error) {
	context, now := p.context(ctx), time.Now()
	rows := make([]row, len(events))
	var c checker
	var ids map[string]int
	for i := range events {
		e := &events[i]
		c.event = i
		c.check(e)
		id := strings.ToLower(e.ID)
		if id == "" {
			id = NewID()
		} else if ids == nil {
			ids = map[string]int{id: i}
		} else if first, twice := ids[id]; twice {
			c.add("ID", "is that of event %d too; give each event its own", first)
		} else {
			ids[id] = i
		}
		rows[i] = newRow(e, id, context)
		if e.DeliverAt.After(now) {
			if p.log {
				c.add("DeliverAt", "is in the future, and an event in the log cannot wait; publish it without outbox.InLog()")
			} else if p.layout.later == "" {
				c.add("DeliverAt", "is in the future, and this dialect has no scheduled events yet")
			}
			// Rounded up: not before its time.
			rows[i].at = e.DeliverAt.Add(time.Millisecond - 1).UTC().Format(timeLayout)
		}
		if n := rows[i].size; n > p.maxBytes {
			c.add("Size", "is %d bytes, and %d are allowed; publish a reference to the data, "+
				"or raise the limit with `onewrite migrate` and outbox.MaxBytes", n, p.maxBytes)
		}
	}
	if c.problems != nil {
		return nil, &InvalidError{Problems: c.problems}
	}
	return rows, nil
}

func newRow(e *Event, id string, context []attribute) row {
	var text, binary, contentType any
	if e.Payload != nil {
		if asText(e) {
			text = string(e.Payload)
		} else {
			binary = e.Payload
		}
		contentType = orNull(e.ContentType)
	}
	hs := headersJSON(with(e.Headers, context))
	r := row{args: [...]any{e.Topic, orNull(e.Key), text, binary, id, orNull(e.Type), contentType, orNull(hs)}}
	r.size = len(e.Topic) + len(e.Key) + len(e.Type) + len(e.Payload) + len(hs)
	if contentType != nil {
		r.size += len(e.ContentType)
	}
	return r
}

// asText tells the column. An empty payload is text whatever its type, since
// some drivers turn empty bytes into NULL.
func asText(e *Event) bool {
	if len(e.Payload) == 0 {
		return true
	}
	return (e.ContentType == "" || promisesText(e.ContentType)) && storableText(e.Payload)
}

func orNull(s string) any {
	if s == "" {
		return nil
	}
	return s
}

// headersJSON returns hs as a JSON object in the order of the names, empty if
// there are none.
func headersJSON(hs map[string]string) string {
	if len(hs) == 0 {
		return ""
	}
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	_ = enc.Encode(hs) // a map of strings cannot fail
	return strings.TrimSuffix(b.String(), "\n")
}

func sortedNames(hs map[string]string) []string { return slices.Sorted(maps.Keys(hs)) }

// inserts cuts the rows into statements, as few as the limits allow: those of the
// outbox, then those that are to be sent later.
func (l layout) inserts(rows []row) []Statement {
	isLater := func(r row) bool { return r.at != "" }
	if !slices.ContainsFunc(rows, isLater) {
		return l.into(l.table, columns[:], rows)
	}
	later := slices.DeleteFunc(slices.Clone(rows), func(r row) bool { return !isLater(r) })
	return append(l.into(l.table, columns[:], slices.DeleteFunc(rows, isLater)), l.into(l.later, scheduledColumns, later)...)
}

func (l layout) into(table string, columns []string, rows []row) []Statement {
	var out []Statement
	for len(rows) > 0 {
		n, size := 0, 0
		for n < len(rows) && (n+1)*len(columns) <= l.maxParam {
			if size += rows[n].size; n > 0 && size > maxStatement {
				break
			}
			n++
		}
		args := make([]any, 0, n*len(columns))
		for i := range rows[:n] {
			args = append(args, rows[i].args[:]...)
			if rows[i].at != "" {
				args = append(args, rows[i].at)
			}
		}
		out = append(out, Statement{Table: table, SQL: l.insert(table, columns, n), Args: args})
		rows = rows[n:]
	}
	return out
}

// insert returns the INSERT of n rows. The VALUES of one statement take their
// sequence numbers in the order in which they stand there.
func (l layout) insert(table string, columns []string, n int) string {
	var b strings.Builder
	b.Grow(120 + n*len(columns)*8)
	b.WriteString("INSERT INTO " + table + " (")
	for i, c := range columns {
		if i > 0 {
			b.WriteString(", ")
		}
		b.WriteString(l.quote + c + l.quote)
	}
	b.WriteString(") VALUES ")
	for i := range n * len(columns) {
		switch {
		case i == 0:
			b.WriteByte('(')
		case i%len(columns) == 0:
			b.WriteString("), (")
		default:
			b.WriteString(", ")
		}
		if l.dollar {
			b.WriteByte('$')
			b.WriteString(strconv.Itoa(i + 1))
		} else {
			b.WriteByte('?')
		}
	}
	b.WriteByte(')')
	return b.String()
}
