package pgxtest_test

import (
	"context"
	"fmt"
	"net/url"
	"reflect"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/onewrite/onewrite/adapter/postgres"
	"github.com/onewrite/onewrite/internal/servers"
	"github.com/onewrite/onewrite/onewritetest"
	"github.com/onewrite/onewrite/onewritetest/pgxtest"
	"github.com/onewrite/onewrite/outbox"
	"github.com/onewrite/onewrite/outbox/pgxoutbox"
)

// witness is a test that fails without ending the real one.
type witness struct {
	testing.TB
	said string
}

func (w *witness) Helper() {}

func (w *witness) Fatal(args ...any) {
	w.said = fmt.Sprint(args...)
	runtime.Goexit()
}

func (w *witness) Fatalf(format string, args ...any) { w.Fatal(fmt.Sprintf(format, args...)) }

// failure runs f and returns what it ended the test with; "" if it passed.
func failure(t *testing.T, f func(tb testing.TB)) string {
	w := &witness{TB: t}
	done := make(chan struct{})
	go func() {
		defer close(done)
		f(w)
	}()
	<-done
	return w.said
}

func connect(t *testing.T, dsn string) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(context.Background()) })
	return conn
}

func begin(t *testing.T, conn *pgx.Conn) pgx.Tx {
	t.Helper()
	tx, err := conn.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = tx.Rollback(context.Background()) })
	return tx
}

func publish(t *testing.T, tx pgx.Tx, events ...outbox.Event) {
	t.Helper()
	if err := pgxoutbox.Publish(t.Context(), tx, events...); err != nil {
		t.Fatal(err)
	}
}

// TestPublished looks through pgx, directly and through a transaction pooler: what
// is there, and what it leads to, are those of package onewritetest.
func TestPublished(t *testing.T) {
	pg := servers.Postgres(t, 15)
	direct := pg.NewDatabase(t)
	if _, err := postgres.Migrate(t.Context(), direct, postgres.MigrateOptions{}); err != nil {
		t.Fatal(err)
	}
	u, err := url.Parse(direct)
	if err != nil {
		t.Fatal(err)
	}
	pooled := servers.PgBouncer(t, pg)(strings.TrimPrefix(u.Path, "/"))
	sent := []outbox.Event{
		{Topic: "order.placed", Key: "alice", Payload: []byte(`{"order": "é"}`), Headers: map[string]string{"tenant": "a"}},
		{Topic: "thumb", Payload: []byte{0, 255}},
		{Topic: "empty", Payload: []byte{}},
		{Topic: "reminder", DeliverAt: time.Now().Add(time.Hour)},
	}
	committed := 0
	for name, dsn := range map[string]string{"direct": direct, "pooled": pooled} {
		other, tx := begin(t, connect(t, direct)), begin(t, connect(t, dsn))
		publish(t, other, outbox.Event{Topic: "other"}, outbox.Event{Topic: "other", DeliverAt: time.Now().Add(time.Hour)})
		pgxtest.RequireNothingPublished(t, tx)
		publish(t, tx, sent...)
		got := pgxtest.RequirePublished(t, tx, sent...)
		if published := pgxtest.Published(t, tx); !reflect.DeepEqual(published, got) {
			t.Errorf("%s: %v, then %v", name, published, got)
		}
		r := &onewritetest.Recorder{}
		for i := range got { // with the ids that were made
			sent[i].ID = got[i].ID
		}
		if err := outbox.New(outbox.Postgres).Publish(t.Context(), r, sent...); err != nil {
			t.Fatal(err)
		}
		if recorded := r.Events(); !reflect.DeepEqual(recorded, got) {
			t.Errorf("%s: %v, a recorder has %v", name, got, recorded)
		}
		for i := range sent {
			sent[i].ID = ""
		}
		if said := failure(t, func(tb testing.TB) { pgxtest.RequirePublished(tb, tx, sent[1:]...) }); !strings.Contains(said, "  + order.placed") {
			t.Errorf("%s: one is too much, and: %s", name, said)
		}
		if said := failure(t, func(tb testing.TB) { pgxtest.RequireNothingPublished(tb, tx) }); !strings.Contains(said, "want no events") {
			t.Errorf("%s: there is something, and: %s", name, said)
		}
		if err := tx.Commit(t.Context()); err != nil {
			t.Fatal(err)
		}
		committed += len(sent)
		if said := failure(t, func(tb testing.TB) { pgxtest.Published(tb, tx) }); !strings.Contains(said, "Stored") {
			t.Errorf("%s: the transaction has ended, and: %s", name, said)
		}
		if stored := pgxtest.Stored(t, connect(t, dsn)); len(stored) != committed {
			t.Errorf("%s: %d events are stored, want %d", name, len(stored), committed)
		}
	}
}

func TestTheApplicationsRole(t *testing.T) {
	pg := servers.Postgres(t, 18)
	dsn, role := pg.NewDatabase(t), pg.NewRole(t)
	if _, err := postgres.Migrate(t.Context(), dsn, postgres.MigrateOptions{AppRole: role.Name}); err != nil {
		t.Fatal(err)
	}
	tx := begin(t, connect(t, role.URL(dsn)))
	publish(t, tx, outbox.Event{Topic: "a"})
	if said := failure(t, func(tb testing.TB) { pgxtest.RequireNothingPublished(tb, tx) }); !strings.Contains(said, "connect as the owner") {
		t.Error(said)
	}
}
