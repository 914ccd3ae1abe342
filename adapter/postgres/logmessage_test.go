package postgres

import (
	"context"
	stdsql "database/sql"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	_ "github.com/jackc/pgx/v5/stdlib"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/internal/servers"
	"github.com/onewrite/onewrite/outbox"
	"github.com/onewrite/onewrite/outbox/pgxoutbox"
)

// newMessages is a rig that reads messages too.
func newMessages(t *testing.T, pg *servers.PG, ddl string, tables ...string) *rig {
	t.Helper()
	r := newRig(t, pg, ddl, tables...)
	r.cfg.Messages = true
	r.migrate()
	r.open()
	if s, ok := r.src.(*Both); !ok || s.log.Load() == nil {
		t.Fatal("the log is not read")
	}
	r.snapshots()
	return r
}

// snapshots waits until those of tables without rows are finished.
func (r *rig) snapshots() {
	r.t.Helper()
	eventually(r.t, "the snapshots are finished", func() bool {
		return one[bool](r.t, r.conn, `SELECT coalesce(bool_and(finished = wanted), true) FROM onewrite.captured`)
	})
}

// brief is an event in short: topic, type, key, data.
func brief(e onewrite.Event) string {
	return fmt.Sprintf("%s %s %s %s", e.Topic, e.Type, e.Key, e.Data)
}

// raw writes a message as any language can.
func raw(content string) string {
	return fmt.Sprintf(`SELECT pg_logical_emit_message(true, 'onewrite.event', %s)`, quoteText(content))
}

// Messages and row changes of a transaction come in the order in which they were
// written, and transactions in that of their commits. What was rolled back is not there.
func TestMessagesComeInOrderWithRows(t *testing.T) {
	each(t, func(t *testing.T, pg *servers.PG) {
		r := newMessages(t, pg, `CREATE TABLE a (id int PRIMARY KEY)`, "a")
		other := dial(t, r.url)
		sql(t, r.conn, `BEGIN; SELECT onewrite.emit('m', 'k', '1'); INSERT INTO a VALUES (1); SELECT onewrite.emit('m', 'k', '2');
			SELECT pg_logical_emit_message(true, 'anybody', 'x'); SELECT pg_logical_emit_message(false, 'onewrite', 'x');
			SAVEPOINT s; SELECT onewrite.emit('m', 'k', 'no'); INSERT INTO a VALUES (99); ROLLBACK TO s;
			SAVEPOINT s; SELECT onewrite.emit('m', 'k', '3'); RELEASE s; UPDATE a SET id = 2`)
		sql(t, other, `BEGIN; SELECT onewrite.emit('m', 'k', 'no'); INSERT INTO a VALUES (98); ROLLBACK`, `BEGIN; SELECT onewrite.emit('n', NULL, 'first'); INSERT INTO a VALUES (50); COMMIT`)
		sql(t, r.conn, `SELECT onewrite.emit('m', 'k', '4'); COMMIT`, `SELECT onewrite.emit('n', NULL, 'last')`)
		want := []string{"n 0 false", "public.a 1 true", "m 0 false", "public.a 1 false", "m 2 false", "m 3 false", "public.a 4 false", "public.a 5 false", "m 6 true", "n 0 true"}
		data := map[int]string{0: "first", 2: "1", 4: "2", 5: "3", 8: "4", 9: "last"}
		got, seq := r.events(len(want)), ""
		for i, e := range got {
			if have := fmt.Sprintf("%s %d %v", e.Topic, e.Tx.Index, e.Tx.Last); have != want[i] || data[i] != "" && string(e.Data) != data[i] {
				t.Errorf("event %d is %s %s, want %s %s", i, have, e.Data, want[i], data[i])
			}
			if e.Seq <= seq || e.Tx.ID == "" {
				t.Errorf("event %d: sequence %s after %s, transaction %q", i, e.Seq, seq, e.Tx.ID)
			}
			seq = e.Seq
			if i > 0 && i < 9 && i != 1 && !got[i].Time.Equal(got[2].Time) && got[i].Tx.ID == got[2].Tx.ID {
				t.Errorf("event %d is of %v, its transaction of %v", i, e.Time, got[2].Time)
			}
		}
		if got[0].Tx.ID == got[2].Tx.ID || got[2].Tx.ID != got[8].Tx.ID || got[3].Tx.ID != got[8].Tx.ID {
			t.Error("the transactions are mixed up")
		}
		if d := got[2].Time.Sub(got[3].Time); d != 0 {
			t.Errorf("a message is %v younger than a row of its transaction", d)
		}
		err := pgx.BeginFunc(t.Context(), r.conn, func(tx pgx.Tx) error {
			err := pgx.BeginFunc(t.Context(), tx, func(tx pgx.Tx) error {
				return pgxoutbox.New(outbox.InLog()).Publish(t.Context(), tx, outbox.Event{Topic: "go"}, outbox.Event{Topic: "go"})
			})
			if err == nil {
				_, err = tx.Exec(t.Context(), `INSERT INTO a VALUES (3)`)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		if e := r.events(3); e[0].Topic != "go" || e[1].Topic != "go" || e[2].Topic != "public.a" || !e[2].Tx.Last {
			t.Errorf("from a savepoint of Go came %s, %s, %s", e[0].Topic, e[1].Topic, e[2].Topic)
		}
	})
}

// A reader that ends in the middle of a transaction of many messages goes on where it
// was: nothing is missing, nothing comes again, and a repeat has the same id and bytes.
func TestMessagesAreReadOnInTheMiddle(t *testing.T) {
	each(t, func(t *testing.T, pg *servers.PG) {
		r := newMessages(t, pg, `CREATE TABLE a (id int PRIMARY KEY)`, "a")
		const n = 3000
		sql(t, r.conn, fmt.Sprintf(`BEGIN; SELECT pg_logical_emit_message(true, 'onewrite.event', '{"topic":"m","payload":"' || i || '"}'), pg_logical_emit_message(true, 'anybody', 'x') FROM generate_series(1, %d) i; INSERT INTO a VALUES (1); COMMIT`, n))
		first := map[string]string{} // what each id was
		ids := map[string]bool{}
		i, opens := 0, 0
		for i < n+1 {
			b := readBoth(t, r.src)
			if b.Gap != nil {
				t.Fatal(b.Gap)
			}
			keep := len(b.Events)
			if keep > 300 {
				keep = 300 + opens*37
				r.pos = b.PosAt(keep - 1)
			} else if keep > 0 {
				r.pos = b.Pos
			}
			for k, e := range b.Events {
				text := brief(e) + fmt.Sprint(e.Seq, e.Time, e.Tx.ID, e.Tx.Index, e.Tx.Last)
				if was, ok := first[e.ID]; ok && was != text {
					t.Fatalf("a repeat differs: %s\n%s", was, text)
				}
				first[e.ID] = text
				if k >= keep {
					continue
				}
				i++
				if ids[e.ID] {
					t.Fatalf("event %d came again", i)
				}
				ids[e.ID] = true
				if last := i == n+1; !last && string(e.Data) != fmt.Sprint(i) || last != e.Tx.Last || last != (e.Topic == "public.a") {
					t.Fatalf("event %d is %s, last %v", i, brief(e), e.Tx.Last)
				}
			}
			if keep < len(b.Events) {
				r.open()
				opens++
			}
		}
		if opens < 3 || len(first) != n+1 {
			t.Errorf("opened %d times, %d ids for %d events: nothing is proven", opens, len(first), n+1)
		}
		sql(t, r.conn, raw(`{"topic":"after"}`))
		if e := r.events(1)[0]; e.Topic != "after" {
			t.Errorf("then comes %s", brief(e))
		}
	})
}

// readBoth reads one batch and stores nothing.
func readBoth(t *testing.T, src onewrite.Source) onewrite.Batch {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	b, err := src.Read(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// hard is text that breaks what is quoted badly.
const hard = "quote ' double \" backslash \\ newline \n tab \t ü 漢 🎉 \u2028 \x01 \\u0041 <&>"

// What the Go library writes, in its two forms, and what SQL writes come as equal
// events, and as those that go through the outbox.
func TestMessagesOfEveryWriterAreEqual(t *testing.T) {
	large := strings.Repeat("aé\"\\", 180_000)
	list := []outbox.Event{
		{Topic: "order.placed", Key: "alice", Payload: []byte(`{"n": 1}`)},
		{Topic: "t", Payload: []byte(hard), Key: hard},
		{Topic: "t", Payload: []byte{}},
		{Topic: "t", Key: "gone"},
		{Topic: "t", Payload: []byte{0, 255, 0x7b, 0x7d, '\n', 0}},
		{Topic: "t", Payload: []byte(large)},
		{Topic: "t", Payload: slices.Repeat([]byte{0, 1, 254, 255}, 225_000)},
		{Topic: "A_b-9.c", Key: "Grüße", Type: "com.example.thing", ContentType: "text/csv", Payload: []byte("a;b"), Headers: map[string]string{"X-a": "ä\"\\", "tenant": "eu"}},
	}
	each(t, func(t *testing.T, pg *servers.PG) {
		r := newMessages(t, pg, ``)
		db, err := stdsql.Open("pgx", r.url)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = db.Close() })
		log := outbox.New(outbox.Postgres, outbox.InLog())
		prepared, err := log.Prepare(t.Context(), db)
		if err != nil {
			t.Fatal(err)
		}
		inTx := func(p *outbox.Publisher, events ...outbox.Event) {
			t.Helper()
			if err := outbox.InTx(t.Context(), db, func(tx *stdsql.Tx) error { return p.Publish(t.Context(), tx, events...) }); err != nil {
				t.Fatal(err)
			}
		}
		inTx(outbox.New(outbox.Postgres), list...) // the outbox
		want := r.events(len(list))
		inTx(log, list...)
		for _, e := range list {
			inTx(prepared, e)
		}
		x := pgxoutbox.New(outbox.InLog())
		for _, write := range []func(context.Context, pgx.Tx, ...outbox.Event) error{x.Publish, x.Copy, func(ctx context.Context, tx pgx.Tx, events ...outbox.Event) error {
			var b pgx.Batch
			return errors.Join(x.Queue(ctx, &b, events...), tx.SendBatch(ctx, &b).Close())
		}} {
			if err := pgx.BeginFunc(t.Context(), r.conn, func(tx pgx.Tx) error { return write(t.Context(), tx, list...) }); err != nil {
				t.Fatal(err)
			}
		}
		for _, e := range list {
			if e.Type != "" {
				sql(t, r.conn, raw(`{"topic":"A_b-9.c","key":"Grüße","type":"com.example.thing","content_type":"text/csv","payload":"a;b","headers":{"X-a":"ä\"\\","tenant":"eu"}}`))
				continue
			}
			payload, cast := any(string(e.Payload)), "text"
			if e.Payload == nil {
				payload = nil
			} else if strings.ContainsRune(string(e.Payload), 0) {
				payload, cast = e.Payload, "bytea"
			}
			if _, err := r.conn.Exec(t.Context(), `SELECT onewrite.emit($1, nullif($2, ''), $3::`+cast+`)`, e.Topic, e.Key, payload); err != nil {
				t.Fatal(err)
			}
		}
		got := r.events(6 * len(list))
		ids := map[string]bool{}
		for i, e := range got {
			w := want[i%len(list)]
			if e.Source != w.Source || e.Topic != w.Topic || e.Type != w.Type || e.Key != w.Key || e.ContentType != w.ContentType || string(e.Data) != string(w.Data) || (e.Data == nil) != (w.Data == nil) || !maps.Equal(e.Header, w.Header) {
				t.Errorf("event %d of writer %d is %.200s %s %v, want %.200s %s %v", i%len(list), i/len(list), brief(e), e.ContentType, e.Header, brief(w), w.ContentType, w.Header)
			}
			if ids[e.ID] || len(e.ID) != 36 {
				t.Errorf("event %d: id %q", i, e.ID)
			}
			ids[e.ID] = true
		}
	})
}

// The id of SQL and Go is the event's; without one it follows from the log.
func TestMessageIDs(t *testing.T) {
	each(t, func(t *testing.T, pg *servers.PG) {
		r := newMessages(t, pg, ``)
		id := one[string](t, r.conn, `SELECT onewrite.emit('t', NULL, NULL)::text`)
		upper := "0192F0C4-7C1E-7D3A-9B52-0242AC120002"
		sql(t, r.conn, raw(`{"topic":"t","id":"`+upper+`","key":null,"payload":null,"headers":null}`), raw(`{"topic":"t"}`))
		e := r.events(3)
		if e[0].ID != id || e[1].ID != strings.ToLower(upper) || len(e[2].ID) != 36 {
			t.Errorf("ids %s, %s and %s", e[0].ID, e[1].ID, e[2].ID)
		}
		if e[0].Data != nil || e[1].Data != nil || e[1].ContentType != "" {
			t.Error("an event without data has some")
		}
	})
}

// A message that can be no event comes under a topic of its own, byte for byte, and
// stops nothing.
func TestMessagesThatAreNoEvents(t *testing.T) {
	each(t, func(t *testing.T, pg *servers.PG) {
		r := newMessages(t, pg, ``)
		said := &logs{}
		r.cfg.Logger = said.logger()
		r.open()
		bad := []struct{ content, why string }{
			{``, "no JSON object"}, {`{`, "no JSON object"}, {`null`, "no JSON object"}, {`["topic"]`, "no JSON object"}, {`{"topic":"t"} {}`, "no JSON object"},
			{`{}`, "Topic is empty"}, {`{"topic":null}`, "Topic is empty"}, {`{"topic":"a b"}`, "Topic"}, {`{"topic":1}`, "topic is no string"},
			{`{"topic":"` + strings.Repeat("t", 256) + `"}`, "Topic has 256 bytes"}, {`{"topic":"t","key":"` + strings.Repeat("k", 1025) + `"}`, "Key has 1025 bytes"},
			{`{"topic":"t","key":{}}`, "key is no string"}, {`{"topic":"t","key":"a\u0000"}`, "Key"},
			{`{"topic":"t","payload":"x","payload_bytes":"eA=="}`, "both set"}, {`{"topic":"t","payload_bytes":"%"}`, "not base64"}, {`{"topic":"t","payload":"a\u0000"}`, "NUL"},
			{`{"topic":"t","id":"1"}`, "ID is no UUID"}, {`{"topic":"t","id":"00000000-0000-0000-0000-000000000000"}`, "nil UUID"},
			{`{"topic":"t","type":"a\nb"}`, "Type"}, {`{"topic":"t","payload":"x","content_type":"x"}`, "ContentType"},
			{`{"topic":"t","headers":[]}`, "object of strings"}, {`{"topic":"t","headers":{"a":1}}`, "object of strings"}, {`{"topic":"t","headers":{"a":null}}`, "null"},
			{`{"topic":"t","headers":{"id":"x"}}`, "set by onewrite"}, {`{"topic":"t","headers":{"a":"x\ny"}}`, "control character"}, {`{"topic":"t","headers":{"a":"1","A":"2"}}`, "case only"},
			{`{"topic":"t","Payload":"x"}`, "no part of an event"}, {`{"topic":"t","deliver_at":"x"}`, "no part of an event"},
		}
		for _, b := range bad {
			sql(t, r.conn, `SELECT pg_logical_emit_message(true, 'onewrite.event', '\x`+fmt.Sprintf("%x", b.content)+`'::bytea)`)
		}
		sql(t, r.conn, `SELECT pg_logical_emit_message(true, 'onewrite.event', '\x7bff'::bytea)`,
			`SELECT pg_logical_emit_message(false, 'onewrite.event', '{"topic":"astray"}') FROM generate_series(1, 3)`,
			`BEGIN; SELECT onewrite.emit('t', 'k', 'x'); SELECT pg_logical_emit_message(true, 'onewrite.event', 'bad'); COMMIT`,
			raw(`{"topic":"t","payload":{"n": 1},"headers":{"traceparent":"00-1","tracestate":"x","a":"b"}}`))
		got := r.events(len(bad) + 4)
		for i, b := range bad {
			e := got[i]
			if e.Topic != "onewrite.invalid" || e.Type != "invalid" || e.Key != "" || e.ContentType != "application/octet-stream" || string(e.Data) != b.content || e.Data == nil || !e.Tx.Last {
				t.Errorf("%.60s came as %.200s, %s", b.content, brief(e), e.ContentType)
			}
		}
		lines := slices.Collect(strings.Lines(said.String()))
		lines = slices.DeleteFunc(lines, func(l string) bool { return !strings.Contains(l, "is no event;") })
		if len(lines) != len(bad)+2 {
			t.Fatalf("%d warnings, want %d:\n%s", len(lines), len(bad)+2, said)
		}
		for i, b := range bad {
			if !strings.Contains(lines[i], b.why) || !strings.Contains(lines[i], "xid="+got[i].Tx.ID) || !strings.Contains(lines[i], "lsn=0/") || strings.Contains(lines[i], "kkk") {
				t.Errorf("%.60s: it was said %s, want %q", b.content, lines[i], b.why)
			}
		}
		last := got[len(bad):]
		if string(last[0].Data) != "{\xff" || !strings.Contains(lines[len(bad)], "UTF-8") {
			t.Errorf("bytes that are no text: %q, %s", last[0].Data, lines[len(bad)])
		}
		if last[1].Topic != "t" || last[1].Tx.Last || string(last[2].Data) != "bad" || !last[2].Tx.Last || last[2].Tx.Index != 1 {
			t.Errorf("a good and a bad one in a transaction: %s, %s", brief(last[1]), brief(last[2]))
		}
		if e := last[3]; string(e.Data) != `{"n": 1}` || e.ContentType != "application/json" || !maps.Equal(e.Header, map[string]string{"a": "b"}) {
			t.Errorf("JSON in place of a string: %s %s %v", brief(e), e.ContentType, e.Header)
		}
		if n := strings.Count(said.String(), "belongs to no transaction"); n != 1 {
			t.Errorf("messages of no transaction are spoken of %d times", n)
		}
	})
}

// onewrite.emit refuses what the outbox refuses, in the same words, and needs no right
// but EXECUTE.
func TestEmitRefuses(t *testing.T) {
	each(t, func(t *testing.T, pg *servers.PG) {
		r := newMessages(t, pg, ``)
		app := pg.NewRole(t)
		sql(t, r.conn, `GRANT USAGE ON SCHEMA onewrite TO `+app.Name)
		conn := dial(t, app.URL(r.url))
		for _, args := range []string{`'a b', NULL, 'x'`, `'', NULL, 'x'`, `NULL, NULL, 'x'`, `'t', repeat('k', 1025), 'x'`, `'t', NULL, repeat('x', 1048576)`, `'t', NULL, to_jsonb(repeat('x', 1048576))`, `'t', NULL, convert_to(repeat('x', 1048576), 'UTF8')`} {
			answer := func(conn *pgx.Conn, call string) pgconn.PgError {
				_, err := conn.Exec(t.Context(), `SELECT onewrite.`+call+`(`+args+`)`)
				var pe *pgconn.PgError
				if !errors.As(err, &pe) {
					t.Fatalf("%s(%s): %v, want it refused", call, args, err)
				}
				return *pe
			}
			emitted, published := answer(conn, "emit"), answer(r.conn, "publish")
			if emitted.Code != published.Code || emitted.ConstraintName != published.ConstraintName || emitted.ColumnName != published.ColumnName || emitted.Code[:2] != "23" {
				t.Errorf("%s: emit says %s %s, publish says %s %s", args, emitted.Code, emitted.Message, published.Code, published.Message)
			}
		}
		sql(t, conn, `SELECT onewrite.emit('t', NULL, repeat('x', 1048575))`, `SELECT onewrite.emit(topic => 't', key => 'k', payload => 'named')`, `SELECT onewrite.emit('t', 'k', '{"b":1,"a":2}'::jsonb)`)
		if e := r.events(3); len(e[0].Data) != 1048575 || string(e[1].Data) != "named" || string(e[2].Data) != `{"a": 2, "b": 1}` {
			t.Errorf("%s, %s came", e[1].Data, e[2].Data)
		}
		if out := mustPsql(t, app.URL(r.url), `PREPARE p AS SELECT onewrite.emit('a', 'k', $1); SELECT parameter_types FROM pg_prepared_statements`); out != "{text}" {
			t.Errorf("an untyped parameter is %s", out)
		}
	})
}

// Where a slot is lost, what was written into the log in between is lost for good, and
// that is said.
func TestMessagesThatAreLost(t *testing.T) {
	each(t, func(t *testing.T, pg *servers.PG) {
		r := newMessages(t, pg, ``)
		lose := func() {
			t.Helper()
			_ = r.src.Close()
			eventually(t, "the slot is free", func() bool {
				_, err := r.conn.Exec(t.Context(), `SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE database = current_database()`)
				return err == nil
			})
			sql(t, r.conn, `SELECT onewrite.emit('lost', NULL, 'x')`)
		}
		sql(t, r.conn, `SELECT onewrite.emit('t', NULL, 'x')`)
		r.events(1)
		lose()
		r.cfg.HoldGap = true
		_, err := OpenSource(t.Context(), r.cfg, r.pos)
		var g *onewrite.Gap
		if !errors.As(err, &g) || !strings.Contains(g.Error(), "cannot be read again") || !strings.Contains(g.Cure, "published again") {
			t.Fatalf("on_gap: stop says %v", err)
		}
		r.cfg.HoldGap = false
		r.open()
		b := r.read()
		if b.Gap == nil || !strings.HasPrefix(b.Gap.Reason, "events in the log: ") || !strings.Contains(b.Gap.Reason, "cannot be read again") || strings.Contains(b.Gap.Reason, "tables") {
			t.Errorf("the gap is %v", b.Gap)
		}
		sql(t, r.conn, `SELECT onewrite.emit('after', NULL, 'x')`)
		if e := r.events(1)[0]; e.Topic != "after" {
			t.Errorf("%s came", brief(e))
		}
	})
}

// migrate makes what is needed, says so once, and takes it away again.
func TestMigrateMessages(t *testing.T) {
	each(t, func(t *testing.T, pg *servers.PG) {
		url := pg.NewDatabase(t)
		conn, app, relay := dial(t, url), pg.NewRole(t), pg.NewRole(t, "REPLICATION")
		o := MigrateOptions{AppRole: app.Name, RelayRole: relay.Name, Capture: Capture{Source: "shop", Messages: true}}
		migrate := func() string {
			t.Helper()
			applied, err := Migrate(t.Context(), url, o)
			if err != nil {
				t.Fatal(err)
			}
			return strings.Join(applied, "; ")
		}
		left := func() string {
			t.Helper()
			return one[string](t, conn, `SELECT (SELECT count(*) FROM pg_publication) || ' ' || (SELECT count(*) FROM pg_proc WHERE proname = 'emit') || ' ' || (SELECT count(*) FROM pg_namespace WHERE nspname = 'onewrite')`)
		}
		script, err := SchemaWithCapture(t.Context(), "no server is asked", o)
		if err != nil {
			t.Fatal(err)
		}
		for range 2 {
			mustPsql(t, url, script)
		}
		if got := migrate(); got != "" || left() != "1 3 1" {
			t.Errorf("migrate after the script says %q; %s", got, left())
		}
		o.MaxEvent = 2000
		if got := migrate(); !strings.Contains(got, "onewrite.emit") {
			t.Errorf("migrate with another max_event says %q", got)
		}
		if _, err := conn.Exec(t.Context(), `SELECT onewrite.emit('t', NULL, repeat('x', 2000))`); err == nil {
			t.Error("a large event passed")
		}
		r := &rig{t: t, url: url, conn: conn, cfg: Config{Name: "shop", URL: relay.URL(url), BusID: "bus1", Messages: true}}
		r.open()
		sql(t, dial(t, app.URL(url)), `SELECT onewrite.emit('t', 'k', 'x')`)
		if e := r.events(1)[0]; e.Topic != "t" {
			t.Errorf("%s came", brief(e))
		}
		_ = r.src.Close()
		o.Capture.Messages = false
		eventually(t, "the slot is free", func() bool { _, err := Migrate(t.Context(), url, o); return err == nil })
		if left() != "0 0 1" {
			t.Errorf("without messages there is still %s", left())
		}
		o.Capture.Messages = true
		if got := migrate(); !strings.Contains(got, "publication") || !strings.Contains(got, "onewrite.emit") || migrate() != "" {
			t.Errorf("migrate says %q, then not nothing", got)
		}
		if err := Rollback(t.Context(), url, false); err != nil || left() != "0 0 0" {
			t.Errorf("migrate --down leaves %s, %v", left(), err)
		}
	})
}

// Without messages: true they are no events, but count for the places of the changes.
func TestMessagesNobodyAskedFor(t *testing.T) {
	each(t, func(t *testing.T, pg *servers.PG) {
		r := newRig(t, pg, `CREATE TABLE a (id int PRIMARY KEY)`, "a")
		r.open()
		sql(t, r.conn, `BEGIN`, raw(`{"topic":"t"}`), `INSERT INTO a VALUES (1)`, raw(`{"topic":"t"}`), `COMMIT`)
		e := r.events(1)[0]
		if e.Topic != "public.a" || e.Tx.Index != 0 || !e.Tx.Last || !strings.Contains(e.Seq, ".00000001") {
			t.Errorf("%s came, number %d, last %v, sequence %s", brief(e), e.Tx.Index, e.Tx.Last, e.Seq)
		}
	})
}

// A message is not converted from the database's encoding: onewrite.emit and the Go
// library see to it themselves.
func TestMessagesOfAnotherEncoding(t *testing.T) {
	pg := servers.Postgres(t, 18)
	url := pg.NewDatabase(t)
	name := url[strings.LastIndex(url, "/")+1:]
	name, _, _ = strings.Cut(name, "?")
	sql(t, dial(t, pg.URL("postgres")), `DROP DATABASE `+name, `CREATE DATABASE `+name+` ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0`)
	r := &rig{t: t, url: url, conn: dial(t, url), cfg: Config{Name: "shop", URL: url, BusID: "bus1", Messages: true}}
	r.migrate()
	r.open()
	sql(t, r.conn, `SET client_encoding = 'UTF8'`, `SELECT onewrite.emit('t', 'ü', 'é')`, raw(`{"topic":"t","payload":"é"}`))
	if err := pgx.BeginFunc(t.Context(), r.conn, func(tx pgx.Tx) error {
		return pgxoutbox.New(outbox.InLog()).Publish(t.Context(), tx, outbox.Event{Topic: "t", Key: "ü", Payload: []byte("漢")})
	}); err != nil {
		t.Fatal(err)
	}
	e := r.events(3)
	if brief(e[0]) != "t t ü é" || e[1].Topic != "onewrite.invalid" || brief(e[2]) != "t t ü 漢" {
		t.Errorf("%s, %s, %s came", brief(e[0]), brief(e[1]), brief(e[2]))
	}
}

// The doctor finds that the log cannot be read, or onewrite.emit is missing, without
// tables too.
func TestExamineMessages(t *testing.T) {
	each(t, func(t *testing.T, pg *servers.PG) {
		w := newWard(t, pg)
		w.o.Capture = Capture{Source: "shop", Messages: true}
		said := func() string { return w.examine().bad().String() }
		for _, text := range []string{"may not read the log", "nothing captures", "onewrite.emit is missing"} {
			if got := said(); !strings.Contains(got, text) {
				t.Errorf("nobody said %q:%s", text, got)
			}
		}
		w.migrate()
		w.sql(`ALTER ROLE {{relay}} REPLICATION; REVOKE EXECUTE ON FUNCTION onewrite.emit(text, text, jsonb) FROM PUBLIC, {{app}}`)
		if got := said(); !strings.Contains(got, `GRANT EXECUTE ON FUNCTION onewrite.emit(text, text, jsonb)`) || strings.Contains(got, "captures") || strings.Contains(got, "missing") {
			t.Errorf("it was said:%s", got)
		}
		w.migrate()
		w.o.MaxEvent = 2000
		if got := said(); !strings.Contains(got, "does not check events as the configuration says") || strings.Contains(got, "GRANT EXECUTE") {
			t.Errorf("it was said:%s", got)
		}
	})
}

// The page's SQL is what it says.
func TestThePageWritesIntoTheLog(t *testing.T) {
	r := newMessages(t, servers.Postgres(t, 18), `CREATE TABLE orders (id int, state text)`)
	for i, block := range strings.Split(sqlPage(t, "Without a table (PostgreSQL)"), "```sql\n")[1:] {
		block, _, _ = strings.Cut(block, "```")
		mustPsql(t, r.url, block)
		for _, e := range r.events(1 + i) {
			if e.Topic == "onewrite.invalid" || e.Data == nil {
				t.Errorf("%s came", brief(e))
			}
		}
	}
}
