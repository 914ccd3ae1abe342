package onewritetest_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/onewrite/onewrite/adapter/postgres"
	"github.com/onewrite/onewrite/adapter/sqlite"
	"github.com/onewrite/onewrite/internal/servers"
	"github.com/onewrite/onewrite/onewritetest"
	"github.com/onewrite/onewrite/outbox"
)

const someID = "0190163d-8694-739b-aea5-966c26f8ad90"

var tomorrow = time.Now().Add(24 * time.Hour)

// published are events in every form, and those that wait at the end.
func published() []outbox.Event {
	return []outbox.Event{
		{Topic: "order.placed", Key: "alice", ID: strings.ToUpper(someID), Payload: []byte(`{"order": "o-1", "total": 12.50, "lines": [1, 2]}`)},
		{Topic: "mail.wanted", Type: "com.example.mail", Payload: []byte("Thank you! é\n\"quoted\""), Headers: map[string]string{"tenant": "acme", "X-Y": "z"}},
		{Topic: "thumb", Payload: []byte{0, 255}},
		{Topic: "typed", Payload: []byte("looks like text"), ContentType: "application/x-protobuf"},
		{Topic: "empty", Payload: []byte{}},
		{Topic: "gone", Key: "alice"},
		{Topic: "reminder", Key: "alice", DeliverAt: tomorrow, Payload: []byte("1")},
		{Topic: "reminder", Key: "bob", DeliverAt: tomorrow.Add(time.Hour)},
	}
}

// wanted are the same events as they arrive.
func wanted() []outbox.Event {
	es := published()
	es[0].ID, es[0].ContentType = someID, "application/json"
	es[1].ContentType = "text/plain; charset=utf-8"
	es[2].ContentType = "application/octet-stream"
	for i := range es {
		if es[i].Type == "" {
			es[i].Type = es[i].Topic
		}
	}
	return es
}

func TestPublished(t *testing.T) {
	each(t, func(t *testing.T, db database) {
		tx := db.begin(t)
		onewritetest.RequireNothingPublished(t, tx)
		// Those that wait are published first, and come last.
		db.publish(t, tx, published()[6:]...)
		db.publish(t, tx, published()[:6]...)
		got := onewritetest.RequirePublished(t, tx, wanted()...)
		for _, e := range []int{4, 5} {
			if (got[e].Payload == nil) != (e == 5) || len(got[e].Payload) > 0 {
				t.Errorf("the payload of %s is %v", got[e].Topic, got[e].Payload)
			}
		}
		if again := onewritetest.Published(t, tx); !reflect.DeepEqual(got, again) {
			t.Errorf("a second look sees\n%v, want\n%v", again, got)
		}
		r := &onewritetest.Recorder{}
		db.publish(t, r, published()[6:]...)
		db.publish(t, r, published()[:6]...)
		recorded := r.Events()
		for i := range got {
			if got[i].ID = ""; i == 0 {
				got[i].ID = someID
			}
			if recorded[i].ID = ""; i == 0 {
				recorded[i].ID = someID
			}
		}
		if !reflect.DeepEqual(recorded, got) {
			t.Errorf("a Recorder has\n%v\nthe database\n%v", recorded, got)
		}
		if err := tx.Commit(); err != nil { // the looks did no harm
			t.Fatal(err)
		}
		onewritetest.RequireEvents(t, onewritetest.Stored(t, db), wanted()...)
	})
}

// Each difference fails the test, and is named.
func TestRequirePublishedFails(t *testing.T) {
	each(t, func(t *testing.T, db database) {
		tx := db.begin(t)
		db.publish(t, tx, published()...)
		change := func(i int, f func(*outbox.Event)) []outbox.Event {
			es := wanted()
			f(&es[i])
			return es
		}
		es := wanted()
		for name, c := range map[string]struct {
			want []outbox.Event
			says []string
		}{
			"nothing":   {nil, []string{"published 8 events, want no events", `  + order.placed key "alice" payload {"order":"o-1"`}},
			"one less":  {es[:7], []string{"8 events, want 7", "  + reminder key \"bob\"", "waits until"}},
			"one more":  {append(wanted(), outbox.Event{Topic: "more", Key: "k"}), []string{"want 9 events", "  - more key \"k\""}},
			"order":     {append(append(wanted()[1:2], wanted()[0]), wanted()[2:]...), []string{"  + mail.wanted", "  - mail.wanted", "8 events, not those"}},
			"topic":     {change(2, func(e *outbox.Event) { e.Topic, e.Type = "thumbs", "" }), []string{"  - thumbs", "  + thumb "}},
			"key":       {change(5, func(e *outbox.Event) { e.Key = "bob" }), []string{"  ! gone", `key is "alice", want "bob"`}},
			"id":        {change(0, func(e *outbox.Event) { e.ID = outbox.NewID() }), []string{"id is \"" + someID}},
			"type":      {change(0, func(e *outbox.Event) { e.Type = "other" }), []string{`type is "order.placed", want "other"`}},
			"media":     {change(1, func(e *outbox.Event) { e.ContentType = "text/csv" }), []string{`content type is "text/plain; charset=utf-8", want "text/csv"`}},
			"value":     {change(0, func(e *outbox.Event) { e.Payload = []byte(`{"order":"o-1","total":12.5,"lines":[1,2]}`) }), []string{"payload.total is 12.50, want 12.5", "wanted payload: {"}},
			"one field": {change(3, func(e *outbox.Event) { e.Key = "k" }), []string{"(- missing, + not wanted, ! differs):\n    order.placed"}},
			"element":   {change(0, func(e *outbox.Event) { e.Payload = []byte(`{"order":"o-1","total":12.50,"lines":[1,3]}`) }), []string{"payload.lines[1] is 2, want 3"}},
			"elements":  {change(0, func(e *outbox.Event) { e.Payload = []byte(`{"order":"o-1","total":12.50,"lines":[1]}`) }), []string{"payload.lines has 2 elements, want 1"}},
			"field":     {change(0, func(e *outbox.Event) { e.Payload = []byte(`{"order":"o-1","lines":[1,2]}`) }), []string{"payload has total, which is not wanted"}},
			"no field":  {change(0, func(e *outbox.Event) { e.Payload = []byte(`{"order":"o-1","total":12.50,"lines":[1,2],"x":null}`) }), []string{"payload has no x"}},
			"kind":      {change(0, func(e *outbox.Event) { e.Payload = []byte(`[]`) }), []string{"payload is {"}},
			"text":      {change(1, func(e *outbox.Event) { e.Payload = []byte("Thank you!") }), []string{`payload is "Thank you! é\n\"quoted\"", want "Thank you!"`}},
			"bytes":     {change(2, func(e *outbox.Event) { e.Payload = []byte{0} }), []string{`payload is "\x00\xff", want "\x00"`}},
			"data":      {change(5, func(e *outbox.Event) { e.Payload = []byte("x") }), []string{`payload is missing, want "x"`}},
			"header":    {change(1, func(e *outbox.Event) { e.Headers = map[string]string{"tenant": "b"} }), []string{`header tenant is "acme", want "b"`}},
			"headers":   {change(1, func(e *outbox.Event) { e.Headers = map[string]string{"absent": ""} }), []string{`header absent is missing, want ""`}},
			"waits":     {change(5, func(e *outbox.Event) { e.DeliverAt = tomorrow }), []string{"deliver at is not set, want 20"}},
			"longer":    {change(6, func(e *outbox.Event) { e.DeliverAt = tomorrow.Add(time.Second) }), []string{"deliver at is 20"}},
			"topics":    {[]outbox.Event{{Key: "k"}}, []string{"wanted event 0 has no topic"}},
		} {
			said := failure(t, func(tb testing.TB) { onewritetest.RequirePublished(tb, tx, c.want...) })
			for _, s := range c.says {
				if !strings.Contains(said, s) {
					t.Errorf("%s: does not say %q:\n%s", name, s, said)
				}
			}
		}
		if said := failure(t, func(tb testing.TB) { onewritetest.RequireNothingPublished(tb, tx) }); !strings.Contains(said, "want no events") {
			t.Errorf("there is something, and: %q", said)
		}
	})
}

// What is not set may be anything.
func TestWhatIsNotSet(t *testing.T) {
	each(t, func(t *testing.T, db database) {
		tx := db.begin(t)
		db.publish(t, tx, published()...)
		var topics []outbox.Event
		for _, e := range published() {
			topics = append(topics, outbox.Event{Topic: e.Topic})
		}
		topics[0].Payload = []byte(`{"total":12.50,"lines":[1,2],"order":"o-1"}`)
		topics[1].Headers = map[string]string{"X-Y": "z"}
		onewritetest.RequirePublished(t, tx, topics...)
	})
}

// A transaction sees what it published and nothing of others, in savepoints and
// out of them.
func TestOnlyThisTransaction(t *testing.T) {
	for _, version := range []int{15, 18} {
		db := newPostgres(t, version, postgres.MigrateOptions{})
		now, later := outbox.Event{Topic: "other"}, outbox.Event{Topic: "other", DeliverAt: tomorrow}
		commit := func() {
			t.Helper()
			if err := outbox.InTx(t.Context(), db.DB, func(tx *sql.Tx) error {
				execute(t, tx, "SAVEPOINT s")
				return db.events.Publish(t.Context(), tx, now, later)
			}); err != nil {
				t.Fatal(err)
			}
		}
		commit()
		open, tx := db.begin(t), db.begin(t)
		db.publish(t, open, now, later)
		onewritetest.RequireNothingPublished(t, tx)
		mine := func(topic string) []outbox.Event {
			return []outbox.Event{{Topic: topic}, {Topic: topic, DeliverAt: tomorrow}}
		}
		db.publish(t, tx, mine("first")...)
		commit() // after tx has a number of its own
		execute(t, tx, "SAVEPOINT kept")
		db.publish(t, tx, mine("kept")...)
		execute(t, tx, "SAVEPOINT undone")
		db.publish(t, tx, mine("undone")...)
		id := outbox.NewID()
		db.publish(t, tx, outbox.Event{Topic: "cancelled", ID: id, DeliverAt: tomorrow})
		execute(t, tx, "ROLLBACK TO undone", "SAVEPOINT released")
		db.publish(t, tx, mine("released")...)
		execute(t, tx, "RELEASE released")
		id = outbox.NewID()
		db.publish(t, tx, outbox.Event{Topic: "cancelled", ID: id, DeliverAt: tomorrow})
		if was, err := db.events.Cancel(t.Context(), tx, id); !was || err != nil {
			t.Fatal(was, err)
		}
		commit()
		want := []outbox.Event{{Topic: "first"}, {Topic: "kept"}, {Topic: "released"}}
		for _, e := range want[:3:3] {
			want = append(want, outbox.Event{Topic: e.Topic, DeliverAt: tomorrow})
		}
		onewritetest.RequirePublished(t, tx, want...)
		after := onewritetest.Mark(t, tx)
		onewritetest.RequireNothingPublished(t, after)
		db.publish(t, tx, mine("last")...)
		onewritetest.RequirePublished(t, after, mine("last")...)
		if err := tx.Rollback(); err != nil {
			t.Fatal(err)
		}
		if n := len(onewritetest.Stored(t, db)); n != 6 {
			t.Errorf("%d events are stored, want those of the 3 others", n)
		}
	}
}

// SQLite does not know who wrote a row; a mark does.
func TestMark(t *testing.T) {
	db := newSQLite(t)
	db.publish(t, db, outbox.Event{Topic: "before"})
	db.publish(t, db, outbox.Event{Topic: "before", DeliverAt: tomorrow})
	tx := db.begin(t)
	after := onewritetest.Mark(t, tx)
	mine := []outbox.Event{{Topic: "mine"}, {Topic: "mine", DeliverAt: tomorrow}}
	db.publish(t, tx, mine...)
	onewritetest.RequirePublished(t, after, mine...)
	said := failure(t, func(tb testing.TB) { onewritetest.RequirePublished(tb, tx, mine...) })
	for _, s := range []string{"published 4 events, want 2", "  + before", "onewritetest.Mark"} {
		if !strings.Contains(said, s) {
			t.Errorf("does not say %q:\n%s", s, said)
		}
	}
	onewritetest.RequireNothingPublished(t, onewritetest.Mark(t, after))
	if said := failure(t, func(tb testing.TB) { onewritetest.RequireNothingPublished(tb, after) }); said == "" || strings.Contains(said, "Mark") {
		t.Errorf("with a mark it says: %s", said)
	}
}

// Captured row changes are events too, but none that anybody published.
func TestRowChangesDoNotCount(t *testing.T) {
	path := filepath.Join(t.TempDir(), "app.db")
	db := database{DB: open(t, "sqlite", "file:"+path), events: outbox.New(outbox.SQLite)}
	execute(t, db, "CREATE TABLE orders (id INTEGER PRIMARY KEY)")
	if _, err := sqlite.Migrate(t.Context(), path, sqlite.MigrateOptions{Tables: []string{"orders"}}); err != nil {
		t.Fatal(err)
	}
	tx := db.begin(t)
	execute(t, tx, "INSERT INTO orders VALUES (1)")
	var rows int
	if err := tx.QueryRow("SELECT count(*) FROM onewrite_outbox").Scan(&rows); err != nil || rows != 1 {
		t.Fatal(rows, err)
	}
	onewritetest.RequireNothingPublished(t, tx)
}

// What cannot be looked at fails the test and says what to do.
func TestLooksThatFail(t *testing.T) {
	role := servers.Postgres(t, 15).NewRole(t)
	pg, lite := newPostgres(t, 15, postgres.MigrateOptions{AppRole: role.Name}), newSQLite(t)
	poor := database{DB: open(t, "pgx", role.URL(pg.url)), events: pg.events}
	tx := poor.begin(t)
	poor.publish(t, tx, outbox.Event{Topic: "a"})
	ended := lite.begin(t)
	if err := ended.Commit(); err != nil {
		t.Fatal(err)
	}
	empty := database{DB: open(t, "pgx", servers.Postgres(t, 15).NewDatabase(t))}
	aborted := pg.begin(t)
	if _, err := aborted.ExecContext(t.Context(), "SELECT 1/0"); err == nil {
		t.Fatal("no error")
	}
	for name, c := range map[string]struct {
		tx  onewritetest.Queryer
		say string
	}{
		"the application's role": {tx, "connect as the owner"},
		"an ended transaction":   {ended, "Stored"},
		"no outbox":              {empty.begin(t), "onewrite migrate"},
		"no outbox, SQLite":      {database{DB: open(t, "sqlite", ":memory:")}.begin(t), "onewrite migrate"},
		"a database":             {pg.DB, "no transaction"},
		"an aborted one":         {aborted, "a statement before failed"},
	} {
		if said := failure(t, func(tb testing.TB) { onewritetest.RequireNothingPublished(tb, c.tx) }); !strings.Contains(said, c.say) {
			t.Errorf("%s: %q", name, said)
		}
		if said := failure(t, func(tb testing.TB) { onewritetest.Mark(tb, c.tx) }); said == "" {
			t.Errorf("%s: there is a mark", name)
		}
	}
	mysql := onewritetest.Query(func(_ context.Context, _ string, row func(scan func(...any) error) error) error {
		return row(func(dest ...any) error { *dest[0].(*string) = "8.4.0 MySQL"; return nil })
	})
	if said := failure(t, func(tb testing.TB) { mysql.Published(tb) }); !strings.Contains(said, "MySQL") {
		t.Errorf("MySQL: %q", said)
	}
}

// A long list is shown where it differs.
func TestLongListsAreShort(t *testing.T) {
	var got []outbox.Event
	for i := range 500 {
		got = append(got, outbox.Event{Topic: "a", Key: fmt.Sprint(i)})
	}
	want := slices.Clone(got)
	want[50].Key = "x"
	said := failure(t, func(tb testing.TB) { onewritetest.RequireEvents(tb, got, want...) })
	for _, s := range []string{
		"    a key \"0\"\n    a key \"1\"\n    … 47 events as wanted\n    a key \"49\"\n  ! a key \"50\"\n        key is \"50\", want \"x\"\n    a key \"51\"\n",
		"… 300 events at the end were not compared",
	} {
		if !strings.Contains(said, s) {
			t.Errorf("does not say %q:\n%s", s, said)
		}
	}
}

func TestRecorder(t *testing.T) {
	r := &onewritetest.Recorder{}
	result, err := r.ExecContext(t.Context(), "INSERT INTO orders (id) VALUES ($1)", 7)
	if err != nil {
		t.Fatal(err)
	}
	if n, err := result.RowsAffected(); n != 1 || err != nil {
		t.Error(n, err)
	}
	for _, d := range []outbox.Dialect{outbox.Postgres, outbox.SQLite, outbox.MySQL} {
		if err := outbox.New(d).Publish(t.Context(), r, outbox.Event{Topic: "a", Payload: []byte(`{"n":1}`)}, outbox.Event{Topic: "b"}); err != nil {
			t.Fatal(err)
		}
	}
	a, b := outbox.Event{Topic: "a", Payload: []byte(`{"n": 1}`)}, outbox.Event{Topic: "b"}
	onewritetest.RequireEvents(t, r.Events(), a, b, a, b, a, b)
	if said := failure(t, func(tb testing.TB) { onewritetest.RequireEvents(tb, r.Events(), a, b) }); !strings.Contains(said, "there are 6 events, want 2") {
		t.Error(said)
	}
	for _, query := range []string{
		"INSERT INTO onewrite.outbox (topic, key) VALUES ('a', $1)",
		"SELECT onewrite.publish('a', 'k', $1)",
		"INSERT INTO onewrite.outbox SELECT * FROM x",
	} {
		if _, err := r.ExecContext(t.Context(), query, "x"); err == nil || !strings.Contains(err.Error(), query) {
			t.Errorf("%s: %v", query, err)
		}
	}
	if _, err := r.ExecContext(t.Context(), "INSERT INTO onewrite.outbox (topic) VALUES ('a')"); err == nil {
		t.Error("an event was passed over")
	}
	boom := errors.New("boom")
	r.Fail = func(query string) error {
		if strings.Contains(query, "outbox") {
			return boom
		}
		return nil
	}
	if err := outbox.New(outbox.Postgres).Publish(t.Context(), r, b); !errors.Is(err, boom) {
		t.Error(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := r.ExecContext(ctx, "SELECT 1"); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if n := len(r.Events()); n != 6 {
		t.Errorf("%d events", n)
	}
}
