package outbox_test

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	_ "modernc.org/sqlite"
	"pgregory.net/rapid"

	"github.com/onewrite/onewrite/adapter/sqlite"
	"github.com/onewrite/onewrite/outbox"
)

// schema has the columns that an application may give.
const schema = `
CREATE TABLE onewrite_outbox (
	seq INTEGER PRIMARY KEY AUTOINCREMENT,
	topic TEXT NOT NULL CHECK (topic <> '' AND topic NOT GLOB '*[^A-Za-z0-9_.-]*'),
	key TEXT CHECK (key IS NULL OR typeof(key) = 'text'),
	payload TEXT CHECK (payload IS NULL OR typeof(payload) = 'text'),
	payload_bytes BLOB CHECK (payload_bytes IS NULL OR typeof(payload_bytes) = 'blob'),
	id TEXT NOT NULL CHECK (length(id) = 36 AND lower(id) = id),
	type TEXT,
	content_type TEXT,
	headers TEXT CHECK (headers IS NULL OR json_type(headers) = 'object'),
	CHECK (payload IS NULL OR payload_bytes IS NULL)
);
CREATE TABLE orders (id INTEGER PRIMARY KEY, parent INTEGER REFERENCES orders(id) DEFERRABLE INITIALLY DEFERRED);`

func openSQLite(tb testing.TB) *sql.DB {
	tb.Helper()
	db, err := sql.Open("sqlite", "file:"+filepath.ToSlash(filepath.Join(tb.TempDir(), "app.db"))+
		"?_pragma=journal_mode(wal)&_pragma=synchronous(full)&_pragma=busy_timeout(5000)&_pragma=foreign_keys(1)")
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = db.Close() })
	if _, err := db.Exec(schema); err != nil {
		tb.Fatal(err)
	}
	return db
}

// stored reads the outbox as a source does, in order.
func stored(tb testing.TB, db interface {
	Query(string, ...any) (*sql.Rows, error)
}) []outbox.Event {
	tb.Helper()
	rows, err := db.Query(`SELECT id, topic, coalesce(key, ''), coalesce(type, ''), payload, payload_bytes,
		coalesce(content_type, ''), headers FROM onewrite_outbox ORDER BY seq`)
	if err != nil {
		tb.Fatal(err)
	}
	defer rows.Close()
	var out []outbox.Event
	for rows.Next() {
		var e outbox.Event
		var text, headers sql.NullString
		var blob []byte
		if err := rows.Scan(&e.ID, &e.Topic, &e.Key, &e.Type, &text, &blob, &e.ContentType, &headers); err != nil {
			tb.Fatal(err)
		}
		e.Payload = blob
		if text.Valid {
			e.Payload = []byte(text.String)
		}
		if headers.Valid {
			if err := json.Unmarshal([]byte(headers.String), &e.Headers); err != nil {
				tb.Fatal(err)
			}
		}
		out = append(out, e)
	}
	if err := rows.Err(); err != nil {
		tb.Fatal(err)
	}
	return out
}

func sameEvent(got, want outbox.Event) bool {
	if want.Payload == nil {
		want.ContentType = ""
	}
	return (want.ID == "" || got.ID == strings.ToLower(want.ID)) && got.Topic == want.Topic && got.Key == want.Key &&
		got.Type == want.Type && string(got.Payload) == string(want.Payload) &&
		(got.Payload == nil) == (want.Payload == nil) && got.ContentType == want.ContentType &&
		maps.Equal(got.Headers, want.Headers)
}

func assertStored(tb testing.TB, got, want []outbox.Event) {
	tb.Helper()
	if len(got) != len(want) {
		tb.Fatalf("%d events are stored, want %d", len(got), len(want))
	}
	for i := range got {
		if !sameEvent(got[i], want[i]) {
			tb.Fatalf("event %d is stored as\n%#v, want\n%#v", i, got[i], want[i])
		}
	}
}

// goodEvent draws events that the rules allow, with a liking for their edges.
func goodEvent() *rapid.Generator[outbox.Event] {
	text := rapid.OneOf(rapid.String(), rapid.StringMatching(`[\\"'{}<>& %$1?\n\tä😀]{0,20}`))
	noNUL := rapid.Map(text, func(s string) string { return strings.ReplaceAll(strings.ToValidUTF8(s, "?"), "\x00", "0") })
	plain := rapid.StringMatching(`[ -~äß😀]{0,40}`)
	return rapid.Custom(func(t *rapid.T) outbox.Event {
		e := outbox.Event{
			Topic: rapid.StringMatching(`[A-Za-z0-9_-]{1,20}(\.[A-Za-z0-9_-]{1,20}){0,4}`).Draw(t, "topic"),
			Key:   noNUL.Draw(t, "key"),
			Type:  plain.Draw(t, "type"),
		}
		if rapid.Bool().Draw(t, "own id") {
			e.ID = outbox.NewID()
			if rapid.Bool().Draw(t, "upper case") {
				e.ID = strings.ToUpper(e.ID)
			}
		}
		switch rapid.IntRange(0, 4).Draw(t, "payload") {
		case 0: // none
		case 1:
			e.Payload = []byte(noNUL.Draw(t, "text"))
			e.ContentType = rapid.SampledFrom([]string{"", "text/plain", "application/json", "text/x; charset=UTF-8"}).Draw(t, "content type")
		case 2:
			e.Payload = rapid.SliceOf(rapid.Byte()).Draw(t, "bytes")
			if e.Payload == nil {
				e.Payload = []byte{}
			}
			e.ContentType = rapid.SampledFrom([]string{"", "application/octet-stream", "text/plain; charset=koi8-r"}).Draw(t, "content type")
		case 3:
			e.Payload = []byte{}
		case 4:
			e.Payload = []byte(strings.Repeat(rapid.SampledFrom([]string{"x", "ä", "\\", "\x01"}).Draw(t, "c"), 100_000))
		}
		names := rapid.StringMatching("x[a-z0-9]{1,18}|[XYZ][-A-Za-z0-9!#$%&'*+.^_`|~]{0,60}")
		e.Headers = rapid.MapOfN(names, plain, 0, 5).Draw(t, "headers")
		seen := map[string]bool{}
		maps.DeleteFunc(e.Headers, func(k, _ string) bool {
			k = strings.ToLower(k)
			twice := seen[k]
			seen[k] = true
			return twice
		})
		return e
	})
}

// openMigrated has the table as it really is, with its checks.
func openMigrated(tb testing.TB) *sql.DB {
	tb.Helper()
	path := filepath.Join(tb.TempDir(), "app.db")
	if _, err := sqlite.Migrate(context.Background(), path, sqlite.MigrateOptions{}); err != nil {
		tb.Fatal(err)
	}
	db, err := sql.Open("sqlite", "file:"+filepath.ToSlash(path))
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = db.Close() })
	return db
}

func TestEveryGoodEventIsStoredAsItIs(t *testing.T) {
	t.Run("contract", func(t *testing.T) { storesGoodEvents(t, openSQLite(t)) })
	t.Run("migrated", func(t *testing.T) { storesGoodEvents(t, openMigrated(t)) })
}

// TestTheLargestEventIsStored finds each limit to be the same here and in the
// table: what is accepted must not fail at the INSERT.
func TestTheLargestEventIsStored(t *testing.T) {
	db := openMigrated(t)
	ctx := context.Background()
	p := outbox.New(outbox.SQLite)
	headers := map[string]string{"x": strings.Repeat("\"<\\ä&", 1000), "Y-z": "", "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}
	for name, e := range map[string]outbox.Event{
		"text":   {Topic: strings.Repeat("t", 255), Key: strings.Repeat("ä", 512), Type: strings.Repeat("y", 255), Headers: headers},
		"binary": {Topic: "a", ContentType: "x/" + strings.Repeat("y", 253), Headers: headers},
		"json":   {Topic: "a", ContentType: "application/json"},
	} {
		lo, hi := 1, outbox.DefaultMaxBytes+1 // the largest payload that is accepted
		for lo < hi-1 {
			mid := (lo + hi) / 2
			e.Payload = []byte(strings.Repeat("7", mid))
			if _, err := p.Statements(ctx, e); err == nil {
				lo = mid
			} else {
				hi = mid
			}
		}
		e.Payload = []byte(strings.Repeat("7", lo))
		if err := p.Publish(ctx, db, e); err != nil {
			t.Errorf("%s, payload of %d bytes: %v", name, lo, err)
		}
	}
}

func storesGoodEvents(t *testing.T, db *sql.DB) {
	rapid.Check(t, func(rt *rapid.T) {
		events := rapid.SliceOfN(goodEvent(), 1, 8).Draw(rt, "events")
		tx, err := db.Begin()
		if err != nil {
			rt.Fatal(err)
		}
		defer tx.Rollback()
		if err := outbox.New(outbox.SQLite).Publish(context.Background(), tx, events...); err != nil {
			rt.Fatal(err)
		}
		got := stored(t, tx)
		if len(got) != len(events) {
			rt.Fatalf("%d events are stored, want %d", len(got), len(events))
		}
		for i := range got {
			if !sameEvent(got[i], events[i]) {
				rt.Fatalf("stored as %#v, want %#v", got[i], events[i])
			}
		}
	})
}

// TestOneBadEventStopsAll spoils one event of a good call and expects just that
// field named, and nothing written.
func TestOneBadEventStopsAll(t *testing.T) {
	db := openSQLite(t)
	spoil := map[string]func(*outbox.Event){
		"Topic":       func(e *outbox.Event) { e.Topic += "." },
		"Key":         func(e *outbox.Event) { e.Key += "\x00" },
		"Type":        func(e *outbox.Event) { e.Type += "\x1f" },
		"ID":          func(e *outbox.Event) { e.ID = "1" + outbox.NewID() },
		"Payload":     func(e *outbox.Event) { e.Payload, e.ContentType = append(e.Payload, 0xc3), "application/json" },
		"ContentType": func(e *outbox.Event) { e.Payload, e.ContentType = []byte{}, "a" },
		"Headers":     func(e *outbox.Event) { e.Headers = map[string]string{"Source": ""} },
		"Size":        func(e *outbox.Event) { e.Payload, e.ContentType = make([]byte, outbox.DefaultMaxBytes), "" },
	}
	rapid.Check(t, func(rt *rapid.T) {
		events := rapid.SliceOfN(goodEvent(), 1, 5).Draw(rt, "events")
		bad := rapid.IntRange(0, len(events)-1).Draw(rt, "bad")
		field := rapid.SampledFrom(slices.Sorted(maps.Keys(spoil))).Draw(rt, "field")
		spoil[field](&events[bad])
		err := outbox.New(outbox.SQLite).Publish(context.Background(), db, events...)
		var invalid *outbox.InvalidError
		if !errors.As(err, &invalid) || len(invalid.Problems) != 1 ||
			invalid.Problems[0].Event != bad || invalid.Problems[0].Field != field {
			rt.Fatalf("%v, want a problem with %s of event %d", err, field, bad)
		}
	})
	assertStored(t, stored(t, db), nil)
}

func TestManyEventsKeepTheirOrder(t *testing.T) {
	db := openSQLite(t)
	events := make([]outbox.Event, 9000) // three statements
	for i := range events {
		events[i] = outbox.Event{Topic: "a", Key: string(rune('a' + i%26)), ID: outbox.NewID()}
	}
	ctx := context.Background()
	p := outbox.New(outbox.SQLite)
	if err := p.Publish(ctx, db, events...); err == nil {
		t.Fatal("several statements passed outside of a transaction")
	}
	assertStored(t, stored(t, db), nil)
	if err := outbox.InTx(ctx, db, func(tx *sql.Tx) error { return p.Publish(ctx, tx, events...) }); err != nil {
		t.Fatal(err)
	}
	assertStored(t, stored(t, db), events)
}

func TestPublishIsPartOfTheTransaction(t *testing.T) {
	db := openSQLite(t)
	ctx := context.Background()
	p := outbox.New(outbox.SQLite)
	boom := errors.New("boom")
	bell := outbox.Bell()
	err := outbox.InTx(ctx, db, func(tx *sql.Tx) error {
		if err := p.Publish(ctx, tx, outbox.Event{Topic: "a"}); err != nil {
			return err
		}
		return boom
	})
	if err != boom {
		t.Fatalf("%v, want the function's error", err)
	}
	func() {
		defer func() {
			if recover() != boom {
				t.Error("the panic was swallowed")
			}
		}()
		_ = outbox.InTx(ctx, db, func(tx *sql.Tx) error {
			_ = p.Publish(ctx, tx, outbox.Event{Topic: "a"})
			panic(boom)
		})
	}()
	assertStored(t, stored(t, db), nil)
	select {
	case <-bell:
		t.Error("the bell rang for a rollback")
	default:
	}
	want := outbox.Event{Topic: "a"}
	err = outbox.InTx(ctx, db, func(tx *sql.Tx) error {
		err := p.Publish(ctx, tx, want)
		select {
		case <-bell:
			t.Error("the bell rang before the commit")
		default:
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	select {
	case <-bell:
	default:
		t.Error("the bell did not ring after the commit")
	}
	assertStored(t, stored(t, db), []outbox.Event{want})
	if n := db.Stats().InUse; n != 0 {
		t.Errorf("%d connections are not given back", n)
	}
}

func TestInTxTellsOfAFailedCommit(t *testing.T) {
	db := openSQLite(t)
	bell := outbox.Bell()
	ctx := context.Background()
	err := outbox.InTx(ctx, db, func(tx *sql.Tx) error {
		_, err := tx.Exec("INSERT INTO orders VALUES (1, 99)") // fails at COMMIT
		return err
	})
	if err == nil || !strings.Contains(err.Error(), "commit") {
		t.Fatalf("%v", err)
	}
	select {
	case <-bell:
		t.Error("the bell rang for a failed commit")
	default:
	}
	ended, cancel := context.WithCancel(ctx)
	cancel()
	if err := outbox.InTx(ended, db, func(*sql.Tx) error { return nil }); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}

func TestMissingTableIsNamedWithItsCure(t *testing.T) {
	db := openSQLite(t)
	if _, err := db.Exec("DROP TABLE onewrite_outbox"); err != nil {
		t.Fatal(err)
	}
	err := outbox.New(outbox.SQLite).Publish(context.Background(), db, outbox.Event{Topic: "a"})
	if err == nil || !strings.Contains(err.Error(), "onewrite migrate") {
		t.Fatalf("%v", err)
	}
	err = outbox.New(outbox.SQLite).Publish(context.Background(), nil, outbox.Event{Topic: "a"})
	if err == nil {
		t.Fatal("no transaction is no error")
	}
}
