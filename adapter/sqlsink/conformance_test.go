package sqlsink_test

import (
	"context"
	"database/sql"
	"encoding/json"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/adapter/sqlsink"
	"github.com/onewrite/onewrite/onewritetest"
)

// received reads the table of messages back, in the order in which they came.
func (x *target) received(t *testing.T) []onewrite.Event {
	t.Helper()
	query := "SELECT id, source, topic, `key`, type, `time`, data, data_bytes, content_type, `sequence`, headers, txid, txindex, txlast FROM onewrite_messages ORDER BY arrived"
	switch x.kind {
	case sqlsink.Postgres:
		query = strings.ReplaceAll(strings.ReplaceAll(query, "`", `"`), `"time"`, `to_char("time" AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')`)
	case sqlsink.MySQL:
		query = strings.ReplaceAll(query, "`time`", "date_format(`time`, '%Y-%m-%dT%H:%i:%s.%fZ')")
	case sqlsink.SQLite:
		query = strings.ReplaceAll(query, "arrived", "rowid")
	}
	rows, err := x.db.QueryContext(context.Background(), query)
	if err != nil {
		if strings.Contains(err.Error(), "onewrite_messages") { // nothing came yet
			return nil
		}
		t.Fatal(err)
	}
	defer rows.Close()
	var events []onewrite.Event
	for rows.Next() {
		var e onewrite.Event
		var key, at, data, contentType, seq, headers, txid, txlast sql.NullString
		var txindex sql.NullInt64
		var raw []byte
		if err := rows.Scan(&e.ID, &e.Source, &e.Topic, &key, &e.Type, &at, &data, &raw, &contentType, &seq, &headers, &txid, &txindex, &txlast); err != nil {
			t.Fatal(err)
		}
		e.Key, e.ContentType, e.Seq = key.String, contentType.String, seq.String
		if e.Data = raw; data.Valid {
			e.Data = []byte(data.String)
		}
		if at.Valid {
			if e.Time, err = time.Parse(time.RFC3339Nano, at.String); err != nil {
				t.Error(err)
			}
		}
		if headers.Valid {
			if err := json.Unmarshal([]byte(headers.String), &e.Header); err != nil {
				t.Error(err)
			}
		}
		last, _ := strconv.ParseBool(txlast.String)
		e.Tx = onewrite.Tx{ID: txid.String, Index: int(txindex.Int64), Last: last}
		events = append(events, e)
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	return events
}

// refuse makes the database refuse a message.
func (x *target) refuse(t *testing.T, id string) {
	t.Helper()
	write(t, x.sink(t), onewrite.Event{ID: "so that there is a table", Source: "test", Topic: "none", Type: "none"})
	switch x.kind {
	case sqlsink.Postgres:
		x.exec(t, "ALTER TABLE onewrite_messages ADD CHECK (id <> '"+id+"')")
	case sqlsink.MySQL:
		x.exec(t, "CREATE TRIGGER `refuse "+id+"` BEFORE INSERT ON onewrite_messages FOR EACH ROW IF NEW.id = '"+id+"' THEN SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = 'not this one'; END IF")
	case sqlsink.SQLite:
		x.exec(t, "CREATE TRIGGER \"refuse "+id+"\" BEFORE INSERT ON onewrite_messages WHEN NEW.id = '"+id+"' BEGIN SELECT RAISE(ABORT, 'not this one'); END")
	}
}

func TestSink(t *testing.T) {
	for _, kind := range kinds {
		t.Run(kind, func(t *testing.T) {
			x := newTarget(t, kind, true)
			h := onewritetest.SinkHarness{
				New: func(t *testing.T) onewrite.Sink {
					s, err := sqlsink.Open(t.Context(), x.cfg)
					if err != nil {
						t.Fatal(err)
					}
					return s
				},
				Received: x.received,
				Refuse:   x.refuse,
			}
			switch kind {
			case sqlsink.Postgres:
				h.Break = func(t *testing.T) func() { x.pg.Crash(t); return func() { x.pg.Start(t) } }
				h.Stall = func(t *testing.T) func() { x.pg.Pause(t); return func() { x.pg.Resume(t) } }
			case sqlsink.MySQL:
				h.Break = func(t *testing.T) func() { x.my.Kill(t); return func() { x.my.Start(t) } }
				h.Stall = func(t *testing.T) func() { x.my.Pause(t); return func() { x.my.Resume(t) } }
			case sqlsink.SQLite:
				hold := func(t *testing.T) func() {
					c, err := x.db.Conn(t.Context())
					if err == nil {
						_, err = c.ExecContext(t.Context(), "BEGIN IMMEDIATE")
					}
					if err != nil {
						t.Fatal(err)
					}
					return func() {
						if _, err := c.ExecContext(t.Context(), "ROLLBACK"); err != nil {
							t.Fatal(err)
						}
						_ = c.Close()
					}
				}
				h.Break, h.Stall = hold, hold
			}
			onewritetest.TestSink(t, h)
		})
	}
}
