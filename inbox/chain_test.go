package inbox_test

import (
	"context"
	"database/sql"
	"encoding/json"
	"strings"
	"testing"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/adapter/postgres"
	"github.com/onewrite/onewrite/adapter/sqlite"
	"github.com/onewrite/onewrite/inbox"
	"github.com/onewrite/onewrite/internal/servers"
	"github.com/onewrite/onewrite/outbox"
)

// What an effect publishes is committed with it, and tells what it follows from.
func TestChain(t *testing.T) {
	r := newSQLite(t)
	var path string
	if err := r.owner.QueryRow(`SELECT file FROM pragma_database_list WHERE name = 'main'`).Scan(&path); err != nil {
		t.Fatal(err)
	}
	if _, err := sqlite.Migrate(t.Context(), path, sqlite.MigrateOptions{}); err != nil {
		t.Fatal(err)
	}
	in := inbox.New(r.dialect, "c")
	const trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	first := message(1, "a")
	first.Header = map[string]string{"traceparent": trace, "tracestate": "a=b"}
	second := message(2, "a")
	second.Header = map[string]string{"correlationid": "where-it-began", "traceparent": "none"}
	odd := message(3, "a")
	odd.ID = "id\nwith a line break"
	bell := outbox.Bell()
	events := outbox.New(outbox.SQLite)
	for _, m := range []inbox.Message{first, first, second, odd} {
		if _, err := in.Apply(t.Context(), r.db, m, func(ctx context.Context, tx *sql.Tx) error {
			return events.Publish(ctx, tx, outbox.Event{Topic: "follows", Headers: map[string]string{"mine": "1"}})
		}); err != nil {
			t.Fatal(err)
		}
	}
	select {
	case <-bell:
	default:
		t.Error("nobody was woken")
	}
	rows, err := r.db.Query(`SELECT headers FROM onewrite_outbox ORDER BY seq`)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	want := []map[string]string{
		{"mine": "1", "causationid": "id-000001", "correlationid": "id-000001", "traceparent": trace, "tracestate": "a=b"},
		{"mine": "1", "causationid": "id-000002", "correlationid": "where-it-began"},
		{"mine": "1"},
	}
	for i := 0; rows.Next(); i++ {
		var text string
		if err := rows.Scan(&text); err != nil {
			t.Fatal(err)
		}
		var got map[string]string
		if err := json.Unmarshal([]byte(text), &got); err != nil {
			t.Fatal(err)
		}
		if i >= len(want) {
			t.Fatalf("event %d is too many: %v", i, got)
		}
		for k, v := range want[i] {
			if got[k] != v {
				t.Errorf("event %d: %s is %q, want %q", i, k, got[k], v)
			}
		}
		if len(got) != len(want[i]) {
			t.Errorf("event %d: %v, want %v", i, got, want[i])
		}
		want[i] = nil
	}
	if want[2] != nil {
		t.Error("events are missing")
	}
}

// A consumer's role that may handle events may not yet publish any; the error says how
// it may.
func TestChainWithoutRights(t *testing.T) {
	pg := servers.Postgres(t, 18)
	url, role := pg.NewDatabase(t), pg.NewRole(t)
	if _, err := postgres.Migrate(t.Context(), url, postgres.MigrateOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := postgres.MigrateInbox(t.Context(), url, role.Name); err != nil {
		t.Fatal(err)
	}
	db, in, events := open(t, "pgx", role.URL(url)), inbox.New(inbox.Postgres, "c"), outbox.New(outbox.Postgres)
	handle := func() error {
		_, err := in.Apply(t.Context(), db, message(1, "a"), func(ctx context.Context, tx *sql.Tx) error {
			return events.Publish(ctx, tx, outbox.Event{Topic: "follows"})
		})
		return err
	}
	if err := handle(); err == nil || !strings.Contains(err.Error(), "permission denied") || !strings.Contains(err.Error(), "`onewrite migrate --app-role ROLE`") {
		t.Errorf("%v", err)
	}
	if _, err := postgres.Migrate(t.Context(), url, postgres.MigrateOptions{AppRole: role.Name}); err != nil {
		t.Fatal(err)
	}
	if err := handle(); err != nil {
		t.Error(err)
	}
}

// The header that an event sets itself wins over what it follows from.
func TestOwnCauseWins(t *testing.T) {
	ctx := inbox.Caused(t.Context(), &onewrite.Event{ID: "e"})
	st, err := outbox.New(outbox.SQLite).Statements(ctx, outbox.Event{Topic: "t", Headers: map[string]string{"causationid": "mine"}})
	if err != nil {
		t.Fatal(err)
	}
	if got := st[0].Args[7]; got != `{"causationid":"mine","correlationid":"e"}` {
		t.Errorf("%s", got)
	}
}
