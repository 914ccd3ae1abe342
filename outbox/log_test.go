package outbox

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/json"
	"maps"
	"strings"
	"testing"
	"time"
)

// Many events are one statement, and what is in them can be read back.
func TestInLogStatements(t *testing.T) {
	id := NewID()
	events := []Event{
		{Topic: "a"},
		{Topic: "b.c", Key: "k \" \\ \n ä", ID: strings.ToUpper(id), Type: "T", Payload: []byte("{\"x\":1}"), Headers: map[string]string{"tenant": "<&>\""}},
		{Topic: "d", Payload: []byte{0, 255}},
		{Topic: "e", Payload: []byte{}, ContentType: "text/csv"},
	}
	st, err := New(Postgres, InLog()).Statements(WithTraceparent(t.Context(), goodTrace, ""), events...)
	if err != nil || len(st) != 1 || len(st[0].Args) != len(events) || st[0].Table != "" || strings.Count(st[0].SQL, "::bytea") != len(events) {
		t.Fatalf("%v: %+v", err, st)
	}
	for i, e := range events {
		got, err := ParseLog(st[0].Args[i].([]byte))
		if err != nil {
			t.Fatalf("event %d: %v", i, err)
		}
		if len(got.ID) != 36 || e.ID != "" && got.ID != id || got.Topic != e.Topic || got.Key != e.Key || got.Type != e.Type || !bytes.Equal(got.Payload, e.Payload) || (got.Payload == nil) != (e.Payload == nil) {
			t.Errorf("event %d: %+v, want %+v", i, got, e)
		}
		want := map[string]string{"traceparent": goodTrace}
		maps.Copy(want, e.Headers)
		if !maps.Equal(got.Headers, want) {
			t.Errorf("event %d: headers %v", i, got.Headers)
		}
		if e.ContentType != "" && got.ContentType != e.ContentType {
			t.Errorf("event %d: content type %q", i, got.ContentType)
		}
	}
	large := make([]Event, 20)
	for i := range large {
		large[i] = Event{Topic: "a", Payload: bytes.Repeat([]byte{255}, 1<<19)}
	}
	if st, err := New(Postgres, InLog()).Statements(t.Context(), large...); err != nil || len(st) != 2 || len(st[0].Args)+len(st[1].Args) != len(large) {
		t.Errorf("%d statements, %v", len(st), err)
	}
}

// What the log cannot do is refused, with nothing written.
func TestInLogRefuses(t *testing.T) {
	for _, d := range []Dialect{SQLite, MySQL} {
		if err := New(d, InLog()).Publish(t.Context(), nil, Event{Topic: "a"}); err == nil || !strings.Contains(err.Error(), "InLog") {
			t.Errorf("dialect %d: %v", d, err)
		}
		if _, err := New(d, InLog()).Prepare(t.Context(), nil); err == nil {
			t.Errorf("dialect %d is prepared", d)
		}
	}
	if err := New(0, InLog()).Publish(t.Context(), nil, Event{Topic: "a"}); err != errDialect {
		t.Errorf("no dialect: %v", err)
	}
	p := New(Postgres, InLog())
	assertLog := func(e Event, holds string) {
		t.Helper()
		if err := p.Publish(t.Context(), nil, e); err == nil || !strings.Contains(err.Error(), holds) {
			t.Errorf("%+v: %v", e, err)
		}
	}
	assertLog(Event{Topic: "a", DeliverAt: time.Now().Add(time.Hour)}, "event 0: DeliverAt")
	assertLog(Event{Topic: "a b"}, "event 0: Topic")
	assertLog(Event{Topic: "a", Payload: make([]byte, DefaultMaxBytes)}, "event 0: Size")
	if _, err := p.Cancel(t.Context(), nil, NewID()); err == nil || !strings.Contains(err.Error(), "InLog") {
		t.Errorf("cancel: %v", err)
	}
	if _, err := p.Statements(t.Context(), Event{Topic: "a", DeliverAt: time.Now().Add(-time.Hour)}); err != nil {
		t.Errorf("an event whose time has come: %v", err)
	}
	var failing Execer = failingTx{}
	if err := p.Publish(t.Context(), failing, Event{Topic: "a"}); err == nil || !strings.Contains(err.Error(), "EXECUTE on pg_logical_emit_message") {
		t.Errorf("without the right: %v", err)
	}
}

type failingTx struct{}

type denied struct{}

func (denied) Error() string    { return "denied" }
func (denied) SQLState() string { return "42501" }

func (failingTx) ExecContext(context.Context, string, ...any) (sql.Result, error) {
	return nil, denied{}
}

// Whatever the content is, it is an event that may be delivered or an error.
func FuzzParseLog(f *testing.F) {
	for _, s := range []string{``, `{}`, `{"topic":"a"}`, `{"topic":"a","payload":{"x":1},"headers":{"a":"b"}}`, `{"topic":"a","payload_bytes":"AP8=","id":null}`, `{"topic":"a","payload":"\ud800"}`, "{\"topic\":\"\xff\"}"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, content []byte) {
		e, err := ParseLog(content)
		if err != nil {
			if err.Error() == "" {
				t.Error("an error without words")
			}
			return
		}
		if !json.Valid(content) || (e.Payload == nil) != (e.ContentType == "") {
			t.Errorf("%q came from %q", e.ContentType, content)
		}
		again, err := New(Postgres, InLog(), MaxBytes(1<<30)).Statements(t.Context(), e)
		if err != nil {
			t.Fatalf("%q cannot be published: %v", content, err)
		}
		back, err := ParseLog(again[0].Args[0].([]byte))
		if err != nil || back.Topic != e.Topic || back.Key != e.Key || back.Type != e.Type || !bytes.Equal(back.Payload, e.Payload) || back.ContentType != e.ContentType || !maps.Equal(back.Headers, e.Headers) {
			t.Errorf("%+v\n%+v %v", e, back, err)
		}
	})
}
