package onewritetest

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/onewrite/onewrite/outbox"
)

// Recorder is a transaction without a database, for unit tests of functions that
// take an [outbox.Execer]: what package outbox publishes in it can be read back. All
// other statements succeed, change one row, and are forgotten. The zero value is
// ready; many goroutines may use it.
//
// It checks what package outbox checks. What a database would check is for a test
// with one, see [RequirePublished].
type Recorder struct {
	// Fail, if set, is asked before each statement, and an error is its answer.
	Fail func(query string) error

	mu      sync.Mutex
	now     []outbox.Event
	waiting []outbox.Event
}

// Events returns what was published, in the order of [Published].
func (r *Recorder) Events() []outbox.Event {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Concat(r.now, r.waiting)
}

// ExecContext records the statement if it publishes. An INSERT into the outbox
// that package outbox did not write may be more than can be read here; the error
// says so.
func (r *Recorder) ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if r.Fail != nil {
		if err := r.Fail(query); err != nil {
			return nil, err
		}
	}
	if !strings.Contains(query, "onewrite") {
		return driver.RowsAffected(1), nil
	}
	events, err := recorded(query, args)
	if err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, e := range events {
		if e.DeliverAt.IsZero() {
			r.now = append(r.now, e)
		} else {
			r.waiting = append(r.waiting, e)
		}
	}
	return driver.RowsAffected(len(events)), nil
}

// recorded reads the rows of an INSERT as package outbox writes it.
func recorded(query string, args []any) ([]outbox.Event, error) {
	unknown := fmt.Errorf("onewritetest: a Recorder reads what package outbox writes, and cannot read: %s; test it with a database", clipped(query))
	into, isInsert := strings.CutPrefix(query, "INSERT INTO onewrite")
	_, list, isList := strings.Cut(into, " (")
	list, values, isValues := strings.Cut(list, ") VALUES (")
	isValues = isValues && len(args) > 0 && strings.Trim(values, "(), ?$0123456789") == "" // placeholders alone
	columns := strings.Split(strings.NewReplacer(`"`, "", "`", "").Replace(list), ", ")
	if !isInsert || !isList || !isValues || len(args)%len(columns) != 0 {
		return nil, unknown
	}
	var events []outbox.Event
	for row := range slices.Chunk(args, len(columns)) {
		values := map[string]any{}
		for i, c := range columns {
			values[c] = row[i]
		}
		e, ok := recordedEvent(values)
		if !ok {
			return nil, unknown
		}
		events = append(events, e)
	}
	return events, nil
}

// recordedEvent makes an event of the values of a row.
func recordedEvent(values map[string]any) (e outbox.Event, ok bool) {
	ok = true
	text := func(column string) string {
		s, is := values[column].(string)
		ok = ok && (is || values[column] == nil)
		return s
	}
	e = outbox.Event{ID: text("id"), Topic: text("topic"), Key: text("key"), Type: text("type"), ContentType: text("content_type")}
	payload, binary := text("payload"), values["payload_bytes"] != nil
	switch {
	case binary:
		var is bool
		e.Payload, is = values["payload_bytes"].([]byte)
		e.Payload, ok = append([]byte{}, e.Payload...), ok && is
	case values["payload"] != nil:
		e.Payload = []byte(payload)
	}
	if headers := text("headers"); headers != "" {
		ok = ok && json.Unmarshal([]byte(headers), &e.Headers) == nil
	}
	if due := text("deliver_at"); due != "" {
		var err error
		e.DeliverAt, err = time.Parse(time.RFC3339Nano, due)
		ok = ok && err == nil
	}
	arrive(&e, binary)
	return e, ok && e.Topic != ""
}
