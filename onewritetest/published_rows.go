package onewritetest

import (
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/onewrite/onewrite/outbox"
)

// outboxRow is a row of the outbox or of the scheduled events.
type outboxRow struct {
	outbox.Event
	number int64
}

// waits is true for an event that is scheduled.
func (r *outboxRow) waits() bool { return !r.DeliverAt.IsZero() }

// tables are how a database is asked. Own are the conditions for the rows of the
// transaction that looks.
type tables struct {
	columns        string // those of both tables, as scanRow takes them
	outbox         string
	ownOutbox      string
	hasScheduled   string
	scheduled, due string // its table, and the column of the time
	ownScheduled   string
}

var (
	postgresTables = tables{
		columns: `id::text, topic, key, type, payload, payload_bytes, payload_bytes IS NOT NULL, content_type, headers::text`,
		outbox:  `onewrite.outbox`,
		// The number of the outermost transaction, in a savepoint too.
		ownOutbox:    `xid = pg_current_xact_id_if_assigned()`,
		hasScheduled: `SELECT to_regclass('onewrite.scheduled') IS NOT NULL`,
		scheduled:    `onewrite.scheduled`,
		due:          `to_char(deliver_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')`,
		// There is no such column. xmin may be a savepoint's and has 32 of 64 bits, so
		// it is counted from the transaction's own. What can be seen and is in progress
		// is written by this transaction.
		ownScheduled: `(SELECT CASE WHEN ahead < 2147483648 THEN pg_xact_status((own + ahead)::text::xid8) = 'in progress' END
			FROM (SELECT pg_current_xact_id_if_assigned()::text::bigint AS own) a,
			LATERAL (SELECT (xmin::text::bigint - own) & 4294967295 AS ahead) b)`,
	}
	// SQLite does not tell who wrote a row.
	sqliteTables = tables{
		columns:      `lower(id), topic, key, type, payload, payload_bytes, payload_bytes IS NOT NULL, content_type, headers`,
		outbox:       `(SELECT * FROM onewrite_outbox WHERE op IS NULL)`, // the others are row changes
		ownOutbox:    `true`,
		hasScheduled: `SELECT EXISTS (SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = 'onewrite_scheduled')`,
		scheduled:    `onewrite_scheduled`,
		due:          `deliver_at`,
		ownScheduled: `true`,
	}
)

// queries are those that read the rows, all or the transaction's own.
func (t tables) queries(all, scheduled bool) []string {
	query := func(number, due, from, own string) string {
		if all {
			own = "true"
		}
		return "SELECT " + number + ", " + due + ", " + t.columns + " FROM " + from + " WHERE " + own + " ORDER BY " + number
	}
	qs := []string{query("seq", "NULL", t.outbox, t.ownOutbox)}
	if scheduled {
		qs = append(qs, query("n", t.due, t.scheduled, t.ownScheduled))
	}
	return qs
}

// scanRow reads one row of such a query.
func scanRow(scan func(dest ...any) error) (r outboxRow, err error) {
	var due, key, kind, text, media, headers *string
	var blob []byte
	var binary bool
	if err := scan(&r.number, &due, &r.ID, &r.Topic, &key, &kind, &text, &blob, &binary, &media, &headers); err != nil {
		return r, err
	}
	set := func(to *string, v *string) {
		if v != nil {
			*to = *v
		}
	}
	set(&r.Key, key)
	set(&r.Type, kind)
	set(&r.ContentType, media)
	switch {
	case text != nil:
		r.Payload = []byte(*text)
	case binary:
		r.Payload = append([]byte{}, blob...)
	}
	if headers != nil {
		if err := json.Unmarshal([]byte(*headers), &r.Headers); err != nil {
			return r, fmt.Errorf("the headers of event %s are no object of strings: %w", r.ID, err)
		}
	}
	if due != nil {
		if r.DeliverAt, err = time.Parse(time.RFC3339Nano, *due); err != nil {
			return r, fmt.Errorf("event %s waits for %q, which is no time", r.ID, *due)
		}
	}
	arrive(&r.Event, binary)
	return r, nil
}

// arrive fills in what an event arrives with that the row leaves open.
func arrive(e *outbox.Event, binary bool) {
	e.ID = strings.ToLower(e.ID)
	if e.Type == "" {
		e.Type = e.Topic
	}
	if e.ContentType == "" {
		e.ContentType = outbox.DefaultContentType(e.Payload, binary)
	}
}
