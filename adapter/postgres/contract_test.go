package postgres

import (
	"context"
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/internal/servers"
)

// uuidText is a version 4 UUID as the database makes it.
var uuidText = regexp.MustCompile(`^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$`)

// poor makes an outbox owned by the superuser, an application's role and a
// relay's role that own nothing, and returns their URLs.
func poor(t *testing.T, pg *servers.PG) (super, app, relay string) {
	t.Helper()
	a, r := pg.NewRole(t), pg.NewRole(t)
	super = newOutbox(t, pg, MigrateOptions{AppRole: a.Name, RelayRole: r.Name})
	return super, a.URL(super), r.URL(super)
}

func TestContractRows(t *testing.T) {
	const hard = "quote ' double \" backslash \\ newline \n tab \t nul-free ü 漢 🎉 \u2028 \x01"
	const id = "0b7e1c1e-3f5a-4c65-9d3e-0123456789ab"
	rows := []struct {
		name, insert string
		want         onewrite.Event
	}{
		{"topic only", `(topic) VALUES ('order.placed')`, onewrite.Event{Topic: "order.placed"}},
		{"json", `(topic, key, payload) VALUES ('order.placed', 'alice', '{"n": 1}')`,
			onewrite.Event{Topic: "order.placed", Key: "alice", ContentType: "application/json", Data: []byte(`{"n": 1}`)}},
		{"byte for byte", `(topic, payload) VALUES ('t', E'` + strings.NewReplacer(`\`, `\\`, `'`, `''`).Replace(hard) + `')`,
			onewrite.Event{Topic: "t", ContentType: "text/plain; charset=utf-8", Data: []byte(hard)}},
		{"empty text", `(topic, payload) VALUES ('t', '')`, onewrite.Event{Topic: "t", ContentType: "text/plain; charset=utf-8", Data: []byte{}}},
		{"empty bytes", `(topic, payload_bytes) VALUES ('t', '')`, onewrite.Event{Topic: "t", ContentType: "application/octet-stream", Data: []byte{}}},
		{"binary", `(topic, payload_bytes) VALUES ('t', '\x00ff7b7d')`,
			onewrite.Event{Topic: "t", ContentType: "application/octet-stream", Data: []byte{0, 255, 0x7b, 0x7d}}},
		{"tombstone", `(topic, key, content_type) VALUES ('t', 'k', 'text/csv')`, onewrite.Event{Topic: "t", Key: "k"}},
		{"every column", `(topic, key, payload, id, type, content_type, headers)
			VALUES ('A_b-9.c.D', 'Grüße', 'a;b', '` + id + `', 'com.example.thing', 'text/csv', '{"traceparent": "00-1", "X-a": "ä"}')`,
			onewrite.Event{ID: id, Topic: "A_b-9.c.D", Key: "Grüße", Type: "com.example.thing", ContentType: "text/csv", Data: []byte("a;b"), Header: map[string]string{"traceparent": "00-1", "X-a": "ä"}}},
		{"long topic", `(topic) VALUES (repeat('t', 255))`, onewrite.Event{Topic: strings.Repeat("t", 255)}},
		{"long key", `(topic, key) VALUES ('t', repeat('k', 1024))`, onewrite.Event{Topic: "t", Key: strings.Repeat("k", 1024)}},
		{"as large as may be", `(topic, payload, content_type, headers) VALUES ('t', repeat('x', 1048576 - 28), 'text/plain', '{"a": "b", "c": "d"}')`,
			onewrite.Event{Topic: "t", ContentType: "text/plain", Data: []byte(strings.Repeat("x", 1<<20-28)), Header: map[string]string{"a": "b", "c": "d"}}},
		{"no headers", `(topic, headers) VALUES ('t', '{}')`, onewrite.Event{Topic: "t"}},
		{"large", `(topic, payload) VALUES ('t', repeat('x', 1000000))`, onewrite.Event{Topic: "t", ContentType: "text/plain; charset=utf-8", Data: []byte(strings.Repeat("x", 1000000))}},
	}
	each(t, func(t *testing.T, pg *servers.PG) {
		_, app, relay := poor(t, pg)
		var script strings.Builder
		for _, r := range rows {
			fmt.Fprintf(&script, "INSERT INTO onewrite.outbox %s;\n", r.insert)
		}
		before := time.Now()
		mustPsql(t, app, script.String())
		events, _ := readN(t, open(t, relay, ""), len(rows))
		for i, r := range rows {
			if err := differs(events[i], r.want, i+1); err != "" {
				t.Errorf("%s: %s", r.name, err)
			}
			if d := events[i].Time.Sub(before); d < -time.Second || d > 20*time.Second || events[i].Time.Location() != time.UTC {
				t.Errorf("%s: time %v", r.name, events[i].Time)
			}
		}
	})
}

// differs compares what came with what was meant.
func differs(got, want onewrite.Event, seq int) string {
	if want.Type == "" {
		want.Type = want.Topic
	}
	switch {
	case want.ID == "" && !uuidText.MatchString(got.ID), want.ID != "" && got.ID != want.ID:
		return "id " + got.ID
	case got.Source != "shop", got.Topic != want.Topic, got.Type != want.Type, got.Key != want.Key, got.ContentType != want.ContentType:
		return fmt.Sprintf("got %q %q %q %q %q", got.Source, got.Topic, got.Type, got.Key, got.ContentType)
	case got.Seq != fmt.Sprintf("%020d", seq):
		return "seq " + got.Seq
	case string(got.Data) != string(want.Data), (got.Data == nil) != (want.Data == nil):
		return fmt.Sprintf("data %q", got.Data)
	case len(got.Header) != len(want.Header):
		return fmt.Sprintf("headers %q", got.Header)
	}
	for k, v := range want.Header {
		if got.Header[k] != v {
			return fmt.Sprintf("header %s: %q", k, got.Header[k])
		}
	}
	return ""
}

func TestBadRowsAreRefused(t *testing.T) {
	const (
		topic       = "outbox_topic_is_letters_digits_and_single_dots"
		typ         = "outbox_type_is_short_text_without_control_characters"
		contentType = "outbox_content_type_is_a_short_media_type"
		object      = "outbox_headers_are_an_object_of_strings"
		names       = "outbox_header_names_are_allowed"
		values      = "outbox_header_values_have_no_control_characters"
		size        = "outbox_event_is_within_the_size_limit"
		twins       = "outbox_header_names_differ_by_more_than_case"
	)
	bad := []struct{ constraint, insert string }{
		{topic, `(topic) VALUES ('')`}, {topic, `(topic) VALUES ('a b')`}, {topic, `(topic) VALUES ('.a')`}, {topic, `(topic) VALUES ('a.')`},
		{topic, `(topic) VALUES ('a..b')`}, {topic, `(topic) VALUES ('a.>')`}, {topic, `(topic) VALUES ('*')`}, {topic, `(topic) VALUES ('ä')`},
		{topic, `(topic) VALUES (E'a\n')`}, {topic, `(topic) VALUES (E'a\nb')`}, {topic, `(topic) VALUES (repeat('t', 256))`},
		{"null value in column \"topic\"", `(topic) VALUES (NULL)`}, {"null value in column \"id\"", `(topic, id) VALUES ('t', NULL)`},
		{"outbox_has_one_payload_at_most", `(topic, payload, payload_bytes) VALUES ('t', '', '')`},
		{"outbox_key_is_at_most_1024_bytes", `(topic, key) VALUES ('t', repeat('ä', 513))`},
		{typ, `(topic, type) VALUES ('t', '')`}, {typ, `(topic, type) VALUES ('t', E'a\nb')`}, {typ, `(topic, type) VALUES ('t', repeat('x', 256))`},
		{contentType, `(topic, content_type) VALUES ('t', '')`}, {contentType, `(topic, content_type) VALUES ('t', E'a\r\nb: c')`},
		{object, `(topic, headers) VALUES ('t', '[]')`}, {object, `(topic, headers) VALUES ('t', '["a"]')`}, {object, `(topic, headers) VALUES ('t', '"a"')`}, {object, `(topic, headers) VALUES ('t', 'null')`},
		{object, `(topic, headers) VALUES ('t', '1')`}, {object, `(topic, headers) VALUES ('t', '{"a": 1}')`}, {object, `(topic, headers) VALUES ('t', '{"a": null}')`},
		{object, `(topic, headers) VALUES ('t', '{"a": "b", "c": {"d": "e"}}')`}, {object, `(topic, headers) VALUES ('t', '{"a": ["b"]}')`},
		{"outbox_headers_have_at_most_65536_bytes", `(topic, headers) VALUES ('t', jsonb_build_object('a', repeat('x', 65536)))`},
		{values, `(topic, headers) VALUES ('t', '{"a": "b\r\nc: d"}')`}, {values, `(topic, headers) VALUES ('t', '{"a": "b", "c": "\u0001"}')`}, {values, `(topic, headers) VALUES ('t', '{"a": "\u007f"}')`},
		{size, `(topic, payload) VALUES ('t', repeat('x', 1048576))`}, {size, `(topic, payload) VALUES ('t', repeat('ä', 524288))`}, {size, `(topic, payload_bytes) VALUES ('t', convert_to(repeat('x', 1048576), 'UTF8'))`},
		// "t", text/plain and {"a":"b","c":"d"} are 28 bytes.
		{size, `(topic, payload, content_type, headers) VALUES ('t', repeat('x', 1048576 - 27), 'text/plain', '{"a": "b", "c": "d"}')`},
		{twins, `(topic, headers) VALUES ('t', '{"a": "b", "A": "c"}')`}, {"outbox_id_is_not_nil", `(topic, id) VALUES ('t', '00000000-0000-0000-0000-000000000000')`},
	}
	for _, name := range []string{"", "a b", "a:b", "ä", `a\n`, `\"`, "specversion", "id", "ID", "source", "type", "time", "datacontenttype", "data", "data_base64", "topic", "partitionkey",
		"sequence", "txid", "txindex", "txlast", "headers", "content-type", "Content-Type", "ce-id", "CE-x", "ce_id", "Nats-Msg-Id", "onewrite-x", "webhook-id"} {
		bad = append(bad, struct{ constraint, insert string }{names, `(topic, headers) VALUES ('t', '{"ok": "b", "` + name + `": "b"}')`})
	}
	each(t, func(t *testing.T, pg *servers.PG) {
		super, app, _ := poor(t, pg)
		conn := dial(t, app)
		for _, b := range bad {
			_, err := conn.Exec(t.Context(), `INSERT INTO onewrite.outbox `+b.insert)
			if err == nil || !strings.Contains(err.Error(), b.constraint) {
				t.Errorf("%s: %v\n\twant it refused by %s", b.insert, err, b.constraint)
			}
		}
		for _, name := range []string{"identity", "types", "centre", "traceparent", "x!#$%&'*+.^_`|~0", "natsx", "topics", "contenttype"} {
			if _, err := conn.Exec(t.Context(), `INSERT INTO onewrite.outbox (topic, headers) VALUES ('t', jsonb_build_object($1::text, 'v'))`, name); err != nil {
				t.Errorf("header %s: %v", name, err)
			}
		}
		if n := one[int](t, dial(t, super), `SELECT count(*)::int FROM onewrite.outbox`); n != 8 {
			t.Errorf("%d rows, want 8", n)
		}
	})
}

func TestPublishOverloads(t *testing.T) {
	each(t, func(t *testing.T, pg *servers.PG) {
		_, app, relay := poor(t, pg)
		calls := []struct{ args, data, contentType string }{
			{`'a', 'k', '{"x":1}'`, `{"x":1}`, "application/json"},
			{`'a', 'k', '{"a": "x\"y\\z"}'`, `{"a": "x\"y\\z"}`, "application/json"},
			{`'a', 'k', 'plain'::text`, "plain", "text/plain; charset=utf-8"},
			{`'a', NULL, '{"b":1,"a":2}'::jsonb`, `{"a": 2, "b": 1}`, "application/json"},
			{`'a', 'k', '\x0001'::bytea`, "\x00\x01", "application/octet-stream"},
			{`'a', 'k', NULL`, "", ""},
			{`topic => 'a', key => 'k', payload => 'named'`, "named", "text/plain; charset=utf-8"},
		}
		var ids []string
		for _, c := range calls {
			ids = append(ids, mustPsql(t, app, `SELECT onewrite.publish(`+c.args+`)`))
		}
		events, _ := readN(t, open(t, relay, ""), len(calls))
		for i, c := range calls {
			e := events[i]
			if e.ID != ids[i] || e.Topic != "a" || string(e.Data) != c.data || e.ContentType != c.contentType || (e.Data == nil) != (c.contentType == "") {
				t.Errorf("publish(%s) = %s: got %s %q %q", c.args, ids[i], e.ID, e.Data, e.ContentType)
			}
		}
		// A driver that sends a parameter without a type means text as well.
		out := mustPsql(t, app, `PREPARE p AS SELECT onewrite.publish('a', 'k', $1); SELECT parameter_types FROM pg_prepared_statements`)
		if out != "{text}" {
			t.Errorf("an untyped parameter is %s", out)
		}
	})
}

func TestAppRoleMayOnlyInsert(t *testing.T) {
	each(t, func(t *testing.T, pg *servers.PG) {
		super, app, _ := poor(t, pg)
		conn := dial(t, app)
		for _, q := range []string{
			`INSERT INTO onewrite.outbox (topic, seq) VALUES ('t', 1)`,
			`INSERT INTO onewrite.outbox (topic, xid) VALUES ('t', '1')`,
			`INSERT INTO onewrite.outbox (topic, slot) VALUES ('t', 1)`,
			`INSERT INTO onewrite.outbox (topic, created) VALUES ('t', now())`,
			`INSERT INTO onewrite.outbox (topic) VALUES ('t') RETURNING id`,
			`INSERT INTO onewrite.outbox_0 (topic) VALUES ('t')`,
			`SELECT FROM onewrite.outbox`, `SELECT topic FROM onewrite.outbox_0`, `TABLE onewrite.bus`,
			`UPDATE onewrite.outbox SET topic = 'u'`, `DELETE FROM onewrite.outbox`, `TRUNCATE onewrite.outbox`,
			`SELECT setval('onewrite.slot', 3)`, `SELECT setval('onewrite.asleep', 1)`, `SELECT setval('onewrite.seq', 1)`,
			`SELECT nextval('onewrite.slot')`, `SELECT nextval('onewrite.epoch')`, `SELECT onewrite.summarize()`,
			`CREATE TABLE onewrite.x ()`,
		} {
			if _, err := conn.Exec(t.Context(), q); err == nil || !strings.Contains(err.Error(), "42501") {
				t.Errorf("%s: %v; want it forbidden", q, err)
			}
		}
		// The registers, read by the defaults and the trigger, work for it: asleep or awake.
		sql(t, dial(t, super), `SELECT setval('onewrite.asleep', 2)`, `SELECT setval('onewrite.slot', 5)`)
		sql(t, conn, `INSERT INTO onewrite.outbox (topic) VALUES ('t')`)
		if n := one[int](t, dial(t, super), `SELECT count(*)::int FROM onewrite.outbox_5`); n != 1 {
			t.Errorf("%d rows in the leaf that the register names", n)
		}
	})
}

func TestRelayRoleThatIsNotTheOwner(t *testing.T) {
	each(t, func(t *testing.T, pg *servers.PG) {
		super, app, relay := poor(t, pg)
		s := open(t, relay, "")
		appConn := dial(t, app)
		const n = 3000 // more than a page, so that block ranges are summarised
		sql(t, appConn, fmt.Sprintf(`INSERT INTO onewrite.outbox (topic, payload) SELECT 't', i FROM generate_series(1, %d) i`, n))
		_, pos := readN(t, s, n)
		if err := s.Ack(t.Context(), pos); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go func() { _, _ = s.Read(ctx) }()
		conn := dial(t, super)
		eventually(t, "the ring is empty", func() bool {
			return one[int64](t, conn, ringBytes) == 0
		})
	})
}

// ringBytes is the size of the outbox without its indexes.
const ringBytes = `SELECT sum(pg_relation_size(('onewrite.outbox_' || i)::regclass))::bigint FROM generate_series(0, 7) i`
