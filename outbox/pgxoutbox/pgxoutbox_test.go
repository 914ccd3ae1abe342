package pgxoutbox_test

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	_ "github.com/jackc/pgx/v5/stdlib"

	"github.com/onewrite/onewrite/adapter/postgres"
	"github.com/onewrite/onewrite/internal/servers"
	"github.com/onewrite/onewrite/outbox"
	"github.com/onewrite/onewrite/outbox/pgxoutbox"
)

// orders is the application's own table.
const orders = `
CREATE TABLE orders (id int PRIMARY KEY);
GRANT INSERT, SELECT ON orders TO %[1]s;`

// database returns an owner's connection and the URLs of a poor role, direct
// and through a transaction pooler.
func database(t *testing.T) (owner *pgx.Conn, direct, pooled string) {
	t.Helper()
	pg := servers.Postgres(t, 15)
	base := pg.NewDatabase(t)
	role := pg.NewRole(t)
	owner = connect(t, base)
	if _, err := postgres.Migrate(t.Context(), base, postgres.MigrateOptions{AppRole: role.Name}); err != nil {
		t.Fatal(err)
	}
	if _, err := owner.Exec(t.Context(), fmt.Sprintf(orders, role.Name)); err != nil {
		t.Fatal(err)
	}
	u, err := url.Parse(base)
	if err != nil {
		t.Fatal(err)
	}
	bouncer := servers.PgBouncer(t, pg)
	return owner, role.URL(base), role.URL(bouncer(strings.TrimPrefix(u.Path, "/")))
}

func connect(t *testing.T, url string) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close(context.Background()) })
	return conn
}

// take returns the stored events in order and empties the table.
func take(t *testing.T, owner *pgx.Conn) []outbox.Event {
	t.Helper()
	rows, err := owner.Query(t.Context(), `WITH gone AS (DELETE FROM onewrite.outbox RETURNING *)
		SELECT id::text, topic, coalesce(key, ''), coalesce(type, ''), payload, payload_bytes, coalesce(content_type, ''), headers::text
		FROM gone ORDER BY seq`)
	if err != nil {
		t.Fatal(err)
	}
	events, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (e outbox.Event, err error) {
		var text, headers *string
		if err = row.Scan(&e.ID, &e.Topic, &e.Key, &e.Type, &text, &e.Payload, &e.ContentType, &headers); err != nil {
			return e, err
		}
		if text != nil {
			e.Payload = []byte(*text)
		}
		if headers != nil {
			err = json.Unmarshal([]byte(*headers), &e.Headers)
		}
		return e, err
	})
	if err != nil {
		t.Fatal(err)
	}
	return events
}

func assertSame(t *testing.T, got, want []outbox.Event) {
	t.Helper()
	if len(got) != len(want) {
		t.Fatalf("%d events are stored, want %d", len(got), len(want))
	}
	for i, w := range want {
		g := got[i]
		if w.ID != "" && g.ID != strings.ToLower(w.ID) || g.Topic != w.Topic || g.Key != w.Key || g.Type != w.Type ||
			string(g.Payload) != string(w.Payload) || (g.Payload == nil) != (w.Payload == nil) ||
			g.ContentType != w.ContentType || !maps.Equal(g.Headers, w.Headers) {
			t.Fatalf("event %d is stored as\n%#v, want\n%#v", i, g, w)
		}
	}
}

func samples() []outbox.Event {
	return []outbox.Event{
		{Topic: "a"},
		{Topic: "order.placed", Key: `{"id":1}`, Type: "placed", ID: "0190163D-8694-739B-AEA5-966C26F8AD90",
			Payload: []byte(`{"x": "\\ ' \" \n $1 ä😀"}`), ContentType: "application/json",
			Headers: map[string]string{"tenant": `"<ä>\`, "X-Y": ""}},
		{Topic: "b", Payload: []byte("line\r\n\t'quoted' \\x41 \\N \\.\n")},
		{Topic: "b", Payload: []byte{0, 1, 255, '\\', 'x'}},
		{Topic: "b", Payload: []byte("looks like text"), ContentType: "application/x-protobuf"},
		{Topic: "b", Payload: []byte{}},
		{Topic: "b", Payload: []byte(strings.Repeat("ä", 1<<18))},
		{Topic: "a", Key: "last"},
	}
}

type publish func(ctx context.Context, tx pgx.Tx, events ...outbox.Event) error

func queue(ctx context.Context, tx pgx.Tx, events ...outbox.Event) error {
	b := &pgx.Batch{}
	b.Queue("SELECT 1")
	if err := pgxoutbox.Queue(ctx, b, events...); err != nil {
		return err
	}
	return tx.SendBatch(ctx, b).Close()
}

var ways = map[string]publish{"Publish": pgxoutbox.Publish, "Copy": pgxoutbox.Copy, "Queue": queue}

func TestEveryWayStoresTheSame(t *testing.T) {
	owner, direct, pooled := database(t)
	for name, way := range ways {
		for path, dsn := range map[string]string{"direct": direct, "pooled": pooled} {
			if path == "pooled" && name == "Queue" {
				dsn += "&default_query_exec_mode=exec" // the batch belongs to the application, and so does its mode
			}
			t.Run(name+"/"+path, func(t *testing.T) {
				conn := connect(t, dsn)
				for range 2 {
					err := pgx.BeginFunc(t.Context(), conn, func(tx pgx.Tx) error {
						return way(t.Context(), tx, samples()...)
					})
					if err != nil {
						t.Fatal(err)
					}
				}
				assertSame(t, take(t, owner), append(samples(), samples()...))
			})
		}
	}
}

// TestPoolerSharesAServer gives two clients the same server connection, where a
// statement prepared by the first would stand in the way of the second.
func TestPoolerSharesAServer(t *testing.T) {
	owner, _, pooled := database(t)
	for range 3 {
		conn := connect(t, pooled)
		err := pgx.BeginFunc(t.Context(), conn, func(tx pgx.Tx) error {
			return errors.Join(
				pgxoutbox.Publish(t.Context(), tx, samples()...),
				pgxoutbox.Copy(t.Context(), tx, samples()...))
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if n := len(take(t, owner)); n != 3*2*len(samples()) {
		t.Fatalf("%d events are stored", n)
	}
}

func TestAnEndedTransactionWritesNothing(t *testing.T) {
	owner, direct, _ := database(t)
	pool, err := pgxpool.New(t.Context(), direct)
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	for name, way := range ways {
		tx, err := pool.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if err := tx.Commit(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := way(t.Context(), tx, samples()[0]); !errors.Is(err, pgx.ErrTxClosed) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if n := len(take(t, owner)); n != 0 {
		t.Errorf("%d events were written", n)
	}
}

// TestPoolerSwitchesServers gives each transaction another server connection,
// where statements prepared earlier do not exist.
func TestPoolerSwitchesServers(t *testing.T) {
	owner, _, pooled := database(t)
	var conns []*pgx.Conn
	for range 4 {
		conns = append(conns, connect(t, pooled))
	}
	for round := range 8 {
		var open []pgx.Tx
		for i := range conns {
			tx, err := conns[(i+round)%len(conns)].Begin(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			open = append(open, tx)
			for _, way := range []publish{pgxoutbox.Publish, pgxoutbox.Copy} {
				if err := way(t.Context(), tx, samples()[:5]...); err != nil {
					t.Fatal(err)
				}
			}
		}
		for _, tx := range open {
			if err := tx.Commit(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
	}
	if n := len(take(t, owner)); n != 8*4*2*5 {
		t.Fatalf("%d events are stored", n)
	}
}

func TestDatabaseSQLStoresTheSame(t *testing.T) {
	owner, direct, pooled := database(t)
	for name, dsn := range map[string]string{
		"cached":          direct,
		"exec":            direct + "&default_query_exec_mode=exec",
		"simple protocol": direct + "&default_query_exec_mode=simple_protocol",
		"pooled":          pooled + "&default_query_exec_mode=exec",
	} {
		t.Run(name, func(t *testing.T) {
			db, err := sql.Open("pgx", dsn)
			if err != nil {
				t.Fatal(err)
			}
			defer db.Close()
			events := samples()
			if name == "simple protocol" {
				events = events[:6] // half a megabyte of SQL text is the driver's to send
			}
			err = outbox.InTx(t.Context(), db, func(tx *sql.Tx) error {
				return outbox.New(outbox.Postgres).Publish(t.Context(), tx, events...)
			})
			if err != nil {
				t.Fatal(err)
			}
			assertSame(t, take(t, owner), events)
		})
	}
}

func TestManyEventsKeepTheirOrder(t *testing.T) {
	owner, direct, _ := database(t)
	conn := connect(t, direct)
	events := make([]outbox.Event, 20000)
	for i := range events {
		events[i] = outbox.Event{Topic: "a", Key: fmt.Sprint(i % 7), Payload: fmt.Append(nil, i)}
	}
	for name, way := range ways {
		t.Run(name, func(t *testing.T) {
			if err := pgx.BeginFunc(t.Context(), conn, func(tx pgx.Tx) error { return way(t.Context(), tx, events...) }); err != nil {
				t.Fatal(err)
			}
			assertSame(t, take(t, owner), events)
		})
	}
}

func TestTheTransactionDecides(t *testing.T) {
	owner, direct, _ := database(t)
	conn := connect(t, direct)
	for name, way := range ways {
		tx, err := conn.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		var invalid *outbox.InvalidError
		if err := way(t.Context(), tx, samples()[0], outbox.Event{}); !errors.As(err, &invalid) {
			t.Errorf("%s of a bad event: %v", name, err)
		}
		if err := way(t.Context(), tx); err != nil {
			t.Errorf("%s of nothing: %v", name, err)
		}
		if err := way(t.Context(), tx, samples()...); err != nil { // tx can still go on
			t.Errorf("%s: %v", name, err)
		}
		if err := tx.Rollback(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got := take(t, owner); len(got) != 0 {
			t.Errorf("%s: %d events outlive the rollback", name, len(got))
		}
	}
}

func TestErrorsNameTheCure(t *testing.T) {
	owner, direct, _ := database(t)
	if _, err := owner.Exec(t.Context(), "DROP TABLE onewrite.outbox"); err != nil {
		t.Fatal(err)
	}
	conn := connect(t, direct)
	for _, name := range []string{"Publish", "Copy"} {
		err := pgx.BeginFunc(t.Context(), conn, func(tx pgx.Tx) error { return ways[name](t.Context(), tx, samples()[0]) })
		var pg *pgconn.PgError
		if !errors.As(err, &pg) || pg.Code != "42P01" || !strings.Contains(err.Error(), "onewrite migrate") {
			t.Errorf("%s: %v", name, err)
		}
		if err := ways[name](t.Context(), nil, samples()[0]); err == nil {
			t.Errorf("%s without a transaction is no error", name)
		}
	}
}

func TestOptions(t *testing.T) {
	p := pgxoutbox.New(outbox.MaxBytes(10))
	if err := p.Queue(t.Context(), &pgx.Batch{}, outbox.Event{Topic: "a", Payload: []byte("0123456789")}); err == nil {
		t.Error("MaxBytes is not heeded")
	}
}

// Events of now and later in one call, by INSERT and by COPY, under the poor role and
// through a pooler; and their cancel.
func TestDeliverAt(t *testing.T) {
	owner, direct, pooled := database(t)
	for name, dsn := range map[string]string{"direct": direct, "pooled": pooled} {
		conn := connect(t, dsn)
		for way, publish := range map[string]func(context.Context, pgx.Tx, ...outbox.Event) error{"insert": pgxoutbox.Publish, "copy": pgxoutbox.Copy} {
			later, now := outbox.NewID(), outbox.NewID()
			tx, err := conn.Begin(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if err := publish(t.Context(), tx, outbox.Event{ID: later, Topic: "later", DeliverAt: time.Now().Add(time.Hour)}, outbox.Event{ID: now, Topic: "now"}); err != nil {
				t.Fatalf("%s, %s: %v", name, way, err)
			}
			if err := tx.Commit(t.Context()); err != nil {
				t.Fatal(err)
			}
			var n int
			if err := owner.QueryRow(t.Context(), `SELECT (SELECT count(*) FROM onewrite.outbox WHERE id = $1) + 10 * (SELECT count(*) FROM onewrite.scheduled WHERE id = $2 AND deliver_at > now())`, now, later).Scan(&n); err != nil || n != 11 {
				t.Errorf("%s, %s: %d (%v)", name, way, n, err)
			}
			if tx, err = conn.Begin(t.Context()); err != nil {
				t.Fatal(err)
			}
			for i, want := range []bool{true, false} {
				if was, err := pgxoutbox.Cancel(t.Context(), tx, later); was != want || err != nil {
					t.Errorf("%s, %s: cancel %d says %v (%v)", name, way, i, was, err)
				}
			}
			if err := tx.Commit(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// Who has no rights is told how they are given.
func TestWithoutRights(t *testing.T) {
	pg := servers.Postgres(t, 15)
	base := pg.NewDatabase(t)
	if _, err := postgres.Migrate(t.Context(), base, postgres.MigrateOptions{}); err != nil {
		t.Fatal(err)
	}
	tx, err := connect(t, pg.NewRole(t).URL(base)).Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := pgxoutbox.Publish(t.Context(), tx, outbox.Event{Topic: "a"}); err == nil || !strings.Contains(err.Error(), "`onewrite migrate --app-role ROLE`") {
		t.Errorf("%v", err)
	}
}

// In the log there is nothing to cancel, and what keeps the role from it is said.
func TestInLogRefuses(t *testing.T) {
	owner, direct, _ := database(t)
	p := pgxoutbox.New(outbox.InLog())
	err := pgx.BeginFunc(t.Context(), owner, func(tx pgx.Tx) error {
		_, err := p.Cancel(t.Context(), tx, outbox.NewID())
		return err
	})
	if err == nil || !strings.Contains(err.Error(), "InLog") {
		t.Errorf("cancel: %v", err)
	}
	if _, err := owner.Exec(t.Context(), `REVOKE EXECUTE ON FUNCTION pg_logical_emit_message(boolean, text, bytea) FROM PUBLIC`); err != nil {
		t.Fatal(err)
	}
	err = pgx.BeginFunc(t.Context(), connect(t, direct), func(tx pgx.Tx) error { return p.Publish(t.Context(), tx, samples()...) })
	if err == nil || !strings.Contains(err.Error(), "EXECUTE on pg_logical_emit_message") {
		t.Errorf("without the right: %v", err)
	}
}
