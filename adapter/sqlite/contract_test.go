package sqlite

import (
	"strings"
	"testing"
)

// What the contract promises for plain SQL, written by the sqlite3 shell.
func TestShellWritesEvents(t *testing.T) {
	path := migrated(t, "", MigrateOptions{})
	payload := "{\"a\":\"quote ' and \\\\ back\\nslash\"}\n\tπ 🚀 <&>"
	out, err := shell(t, path, `
INSERT INTO onewrite_outbox (topic, key, payload) VALUES ('order.placed', '42', '{"id":42}');
INSERT INTO onewrite_outbox (topic, payload) VALUES ('order.placed', '`+strings.ReplaceAll(payload, "'", "''")+`');
INSERT INTO onewrite_outbox (topic, payload_bytes) VALUES ('a', x'00ff10');
INSERT INTO onewrite_outbox (topic, key) VALUES ('a-b_c.D9', 'gone');
INSERT INTO onewrite_outbox (topic, payload, id, type, content_type, headers) VALUES
  ('order.paid', 'hi', '0198C2A5-7B3C-7E1F-9A44-0123456789AB', 'com.example.paid', 'text/plain', '{"tenant":"t1","X-Trace":"abc"}');
INSERT INTO onewrite_outbox (topic, payload) VALUES ('number', 12.5), ('number', 7), ('empty', '');
INSERT INTO onewrite_outbox (topic, payload_bytes, id) VALUES ('empty', x'', NULL);
`)
	if err != nil {
		t.Fatal(out, err)
	}
	s := opened(t, path, "")
	ev, _, gap := read(t, s, 9)
	if gap != nil {
		t.Error("first start is no gap:", gap)
	}
	if e := ev[0]; e.Topic != "order.placed" || e.Key != "42" || string(e.Data) != `{"id":42}` || e.ContentType != "application/json" ||
		e.Type != "order.placed" || e.Source != "shop" || e.Seq != "00000000000000000001" || len(e.ID) != 36 || e.Time.IsZero() {
		t.Errorf("%+v", e)
	}
	if e := ev[1]; string(e.Data) != payload || e.ContentType != "text/plain; charset=utf-8" || e.Key != "" {
		t.Errorf("%+v", e)
	}
	if e := ev[2]; string(e.Data) != "\x00\xff\x10" || e.ContentType != "application/octet-stream" {
		t.Errorf("%+v", e)
	}
	if e := ev[3]; e.Data != nil || e.ContentType != "" || e.Key != "gone" {
		t.Errorf("%+v", e)
	}
	if e := ev[4]; e.ID != "0198c2a5-7b3c-7e1f-9a44-0123456789ab" || e.Type != "com.example.paid" || e.ContentType != "text/plain" ||
		e.Header["tenant"] != "t1" || e.Header["X-Trace"] != "abc" {
		t.Errorf("%+v", e)
	}
	if string(ev[5].Data) != "12.5" || string(ev[6].Data) != "7" {
		t.Errorf("%q %q", ev[5].Data, ev[6].Data)
	}
	for _, e := range ev[7:] {
		if e.Data == nil || len(e.Data) != 0 || len(e.ID) != 36 {
			t.Errorf("%+v", e)
		}
	}
	if ev[0].ID == ev[1].ID || ev[0].ID[14] != '4' {
		t.Error(ev[0].ID, ev[1].ID)
	}
}

// Each bad row fails at INSERT, with words that help, in both libraries.
func TestBadRowsAreRefused(t *testing.T) {
	path := migrated(t, "", MigrateOptions{MaxEvent: 2000})
	db := app(t, path)
	bad := []struct{ columns, values, says string }{
		{"payload", "'x'", "NOT NULL"},
		{"topic", "''", "topic must be"},
		{"topic", "'a b'", "topic must be"},
		{"topic", "'.a'", "topic must be"},
		{"topic", "'a.'", "topic must be"},
		{"topic", "'a..b'", "topic must be"},
		{"topic", "'ä'", "topic must be"},
		{"topic", "'a*'", "topic must be"},
		{"topic", "'a>'", "topic must be"},
		{"topic", "'a' || char(10)", "topic must be"},
		{"topic", "'a' || char(0) || 'b c'", "topic must be"},
		{"topic", "x'6162'", "topic must be"},
		{"topic", "printf('%.*c', 256, 'a')", "topic must be"},
		{"topic, key", "'a', printf('%.*c', 1025, 'k')", "key must be"},
		{"topic, key", "'a', x'01'", "key must be"},
		{"topic, key", "'a', 'k' || char(0)", "key must be"},
		{"topic, payload", "'a', x'01'", "payload must be text"},
		{"topic, payload_bytes", "'a', 'text'", "payload_bytes must be a BLOB"},
		{"topic, payload_bytes", "'a', 5", "payload_bytes must be a BLOB"},
		{"topic, payload, payload_bytes", "'a', 'x', x'01'", "at most one"},
		{"topic, id", "'a', 'no'", "id must be"},
		{"topic, id", "'a', '0198c2a5-7b3c-7e1f-9a44-0123456789ag'", "id must be"},
		{"topic, id", "'a', '0198c2a57b3c-7e1f-9a44-0123456789abcd'", "id must be"},
		{"topic, id", "'a', '00000000-0000-0000-0000-000000000000'", "id must be"},
		{"topic, type", "'a', 'x' || char(10)", "type must be"},
		{"topic, type", "'a', printf('%.*c', 256, 't')", "type must be"},
		{"topic, payload, content_type", "'a', 'x', 'json'", "content_type must be"},
		{"topic, payload, content_type", "'a', 'x', 'text/plain' || char(13,10) || 'x: y'", "content_type must be"},
		{"topic, headers", "'a', 'x'", "headers must be"},
		{"topic, headers", "'a', '[1]'", "headers must be"},
		{"topic, headers", "'a', '{\"a\":1}'", "header value"},
		{"topic, headers", "'a', '{\"a\":null}'", "header value"},
		{"topic, headers", "'a', '{\"a\":{}}'", "header value"},
		{"topic, headers", `'a', '{"a":"x\ny"}'`, "header value"},
		{"topic, headers", `'a', '{"a":"x\u0000"}'`, "header value"},
		{"topic, headers", "'a', '{\"\":\"x\"}'", "header name"},
		{"topic, headers", "'a', '{\"a b\":\"x\"}'", "header name"},
		{"topic, headers", "'a', '{\"ä\":\"x\"}'", "header name"},
		{"topic, headers", "'a', '{\"a:\":\"x\"}'", "header name"},
		{"topic, headers", "'a', '{\"a]\":\"x\"}'", "header name"},
		{"topic, headers", "'a', '{\"a\":\"1\",\"A\":\"2\"}'", "differ by case"},
		{"topic, headers", "'a', '{\"CE-id\":\"x\"}'", "onewrite sets"},
		{"topic, headers", "'a', '{\"ce_id\":\"x\"}'", "onewrite sets"},
		{"topic, headers", "'a', '{\"Nats-Msg-Id\":\"x\"}'", "onewrite sets"},
		{"topic, headers", "'a', '{\"onewrite-x\":\"x\"}'", "onewrite sets"},
		{"topic, headers", "'a', '{\"webhook-id\":\"x\"}'", "onewrite sets"},
		{"topic, headers", "'a', '{\"Content-Type\":\"x\"}'", "onewrite sets"},
		{"topic, headers", "'a', '{\"partitionkey\":\"x\"}'", "onewrite sets"},
		{"topic, payload", "'a', printf('%.*c', 2000, 'p')", "more than 2000 bytes"},
		{"topic, payload", "'a', printf('%.*c', 1000, 'π')", "more than 2000 bytes"},
		{"topic, payload_bytes", "'a', zeroblob(2000)", "more than 2000 bytes"},
		{"topic, headers", "'a', json_object('h', printf('%.*c', 2000, 'p'))", "more than 2000 bytes"},
		{"topic, seq", "'a', 0", "seq is given"},
		{"topic, seq", "'a', -4", "seq is given"},
		{"topic, seq", "'a', 9223372036854775807", "seq is given"},
		{"topic, created", "'a', 'yesterday'", "created is given"},
		{"topic, op", "'a', 'c'", "written by triggers"},
		{`topic, "before"`, "'a', 'c'", "written by triggers"},
	}
	for _, b := range bad {
		q := "INSERT INTO onewrite_outbox (" + b.columns + ") VALUES (" + b.values + ")"
		if _, err := db.Exec(q); err == nil || !strings.Contains(err.Error(), b.says) {
			t.Errorf("%.150s: %v", q, err)
		}
		if out, err := shell(t, path, q+";"); err == nil || !strings.Contains(out, b.says) {
			t.Errorf("shell: %.150s: %s", q, out)
		}
	}
	for _, q := range []string{ // and what is just good enough
		"INSERT INTO onewrite_outbox (topic, payload) VALUES ('a', printf('%.*c', 1999, 'p'))",
		"INSERT INTO onewrite_outbox (topic, payload, content_type, headers) VALUES ('a', '', 'text/plain; charset=\"utf-8\"', '{}')",
		"INSERT INTO onewrite_outbox (topic, key) VALUES (printf('%.*c', 255, 'a'), printf('%.*c', 1024, 'k'))",
		"INSERT INTO onewrite_outbox (topic, type, headers) VALUES ('a', 'ä type', '{\"!#$%&''*+-.^_`|~Z9\":\"ä\"}')",
	} {
		if _, err := db.Exec(q); err != nil {
			t.Errorf("%.150s: %v", q, err)
		}
		if out, err := shell(t, path, q+";"); err != nil {
			t.Errorf("shell: %.150s: %s", q, out)
		}
	}
}

// A number at or below one that was given out would never be read.
func TestSeqCannotBeGiven(t *testing.T) {
	path := migrated(t, "", MigrateOptions{})
	db := app(t, path)
	exec1(t, db, "INSERT INTO onewrite_outbox (topic) VALUES ('a'), ('a'), ('a')")
	exec1(t, db, "INSERT INTO onewrite_outbox (topic) SELECT topic FROM onewrite_outbox")
	exec1(t, db, "DELETE FROM onewrite_outbox")
	for _, verb := range []string{"INSERT", "INSERT OR REPLACE", "INSERT OR IGNORE"} {
		if _, err := db.Exec(verb + " INTO onewrite_outbox (seq, topic) VALUES (2, 'a')"); err == nil {
			t.Error(verb, "of an old number was taken")
		}
	}
	exec1(t, db, "INSERT INTO onewrite_outbox (topic) VALUES ('b')")
	if n := value[int](t, db, "SELECT seq FROM onewrite_outbox"); n != 7 {
		t.Error("next seq:", n)
	}
}
