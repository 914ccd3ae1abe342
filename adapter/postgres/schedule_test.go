package postgres

import (
	"context"
	database "database/sql"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/inbox"
	"github.com/onewrite/onewrite/internal/servers"
)

// readIDs reads until n events have come and returns their ids.
func readIDs(t *testing.T, s *Source, n int) (ids []string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	for len(ids) < n {
		b, err := s.Read(ctx)
		if err != nil {
			t.Fatalf("%d of %d events came: %v", len(ids), n, err)
		}
		for _, e := range b.Events {
			ids = append(ids, e.ID)
		}
	}
	return ids
}

func uuidOf(n int) string { return fmt.Sprintf("00000000-0000-4000-8000-%012d", n) }

// An event comes when it is due, in the order of the times, and not before; whatever
// woke the reader in between.
func TestScheduled(t *testing.T) {
	for name, each := range map[string]func(*testing.T, func(*testing.T, *servers.PG)){"asleep": eachAsleep, "awake": each} {
		t.Run(name, func(t *testing.T) {
			each(t, func(t *testing.T, pg *servers.PG) {
				url := newOutbox(t, pg, MigrateOptions{})
				app := dial(t, url)
				sql(t, app, `INSERT INTO onewrite.scheduled (deliver_at, id, topic, key, payload, headers) VALUES
					(now() - interval '1 hour', '`+uuidOf(2)+`', 'late', 'k', 'é', '{"a":"b"}'), (now() - interval '2 hours', '`+uuidOf(1)+`', 'late', 'k', NULL, NULL),
					(now() + interval '1 day', '`+uuidOf(9)+`', 'tomorrow', NULL, NULL, NULL)`)
				s := open(t, url, "")
				if got := readIDs(t, s, 2); !slices.Equal(got, []string{uuidOf(1), uuidOf(2)}) {
					t.Fatalf("%v", got)
				}
				// While it is being read, from another session, and from a transaction that
				// was open for a while.
				sql(t, app, `BEGIN`, `INSERT INTO onewrite.scheduled (deliver_at, id, topic) VALUES (clock_timestamp() + interval '300 ms', '`+uuidOf(4)+`', 'soon')`)
				other := dial(t, url)
				sql(t, other, `INSERT INTO onewrite.outbox (id, topic) VALUES ('`+uuidOf(3)+`', 'now')`)
				if got := readIDs(t, s, 1); got[0] != uuidOf(3) {
					t.Fatalf("%v", got)
				}
				sql(t, app, `COMMIT`)
				if got := readIDs(t, s, 1); got[0] != uuidOf(4) {
					t.Fatalf("%v", got)
				}
				if late := one[bool](t, other, `SELECT deliver_at <= clock_timestamp() FROM onewrite.scheduled WHERE topic = 'tomorrow'`); late {
					t.Error("tomorrow has come")
				}
				if n := one[int](t, other, `SELECT count(*) FROM onewrite.scheduled`); n != 1 {
					t.Errorf("%d events are scheduled, want that of tomorrow", n)
				}
			})
		})
	}
}

// What was moved keeps all that it had, and its time is that of the move.
func TestScheduledIsTheSameEvent(t *testing.T) {
	each(t, func(t *testing.T, pg *servers.PG) {
		url := newOutbox(t, pg, MigrateOptions{})
		sql(t, dial(t, url), `INSERT INTO onewrite.scheduled (deliver_at, id, topic, key, payload_bytes, type, content_type, headers)
			VALUES (now() - interval '1 hour', '`+uuidOf(1)+`', 'a.b', 'k', '\x00ff', 'com.a', 'image/png', '{"tenant":"eu"}')`)
		s := open(t, url, "")
		b, err := s.Read(t.Context())
		if err != nil || len(b.Events) != 1 {
			t.Fatalf("%v %v", b, err)
		}
		e := b.Events[0]
		if e.ID != uuidOf(1) || e.Topic != "a.b" || e.Key != "k" || string(e.Data) != "\x00\xff" || e.Type != "com.a" || e.ContentType != "image/png" || e.Header["tenant"] != "eu" {
			t.Errorf("%+v", e)
		}
		if time.Since(e.Time) > time.Minute {
			t.Errorf("its time is %v", e.Time)
		}
	})
}

// More than one move holds, and several processes that come and go lose none.
func TestScheduledInBulk(t *testing.T) {
	each(t, func(t *testing.T, pg *servers.PG) {
		url := newOutbox(t, pg, MigrateOptions{})
		sql(t, dial(t, url), fmt.Sprintf(`INSERT INTO onewrite.scheduled (deliver_at, topic, key) SELECT now() - i * interval '1 s', 'bulk', 'k' FROM generate_series(1, %d) i`, 2500))
		seen := map[string]bool{}
		last := ""
		pos := onewrite.Pos("")
		for len(seen) < 2500 {
			s := open(t, url, pos)
			b, err := s.Read(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range b.Events {
				if seen[e.ID] || e.Seq <= last {
					t.Fatalf("event %s came again or out of order", e.ID)
				}
				seen[e.ID], last = true, e.Seq
			}
			pos = b.Pos
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
		}
	})
}

func TestCancel(t *testing.T) {
	each(t, func(t *testing.T, pg *servers.PG) {
		role := pg.NewRole(t)
		url := newOutbox(t, pg, MigrateOptions{AppRole: role.Name})
		app, owner := dial(t, role.URL(url)), dial(t, url)
		sql(t, app, `INSERT INTO onewrite.scheduled (deliver_at, id, topic) VALUES (now() + interval '1 day', '`+uuidOf(1)+`', 'a'), (now() + interval '1 day', '`+uuidOf(2)+`', 'a'), (now() + interval '1 s', '`+uuidOf(3)+`', 'a')`)
		if !one[bool](t, app, `SELECT onewrite.cancel('`+uuidOf(1)+`')`) || one[bool](t, app, `SELECT onewrite.cancel('`+uuidOf(1)+`')`) {
			t.Error("the first cancel must find it, the second must not")
		}
		for _, s := range []string{`SELECT * FROM onewrite.scheduled`, `DELETE FROM onewrite.scheduled`, `INSERT INTO onewrite.scheduled (deliver_at, topic, n) VALUES (now(), 'a', 1)`,
			`INSERT INTO onewrite.scheduled (deliver_at, topic) VALUES ('infinity', 'a')`, `INSERT INTO onewrite.scheduled (deliver_at, topic) VALUES (now(), 'a b')`} {
			if _, err := app.Exec(t.Context(), s); err == nil {
				t.Errorf("an application's role may do: %s", s)
			}
		}
		// An event that is being cancelled holds up no other, and is sent if it is not
		// cancelled after all.
		sql(t, app, `BEGIN`)
		if !one[bool](t, app, `SELECT onewrite.cancel('`+uuidOf(3)+`')`) {
			t.Fatal("it is not there")
		}
		sql(t, owner, `UPDATE onewrite.scheduled SET deliver_at = now() - interval '1 s' WHERE id = '`+uuidOf(2)+`'`)
		s := open(t, url, "")
		if got := readIDs(t, s, 1); got[0] != uuidOf(2) {
			t.Fatalf("%v", got)
		}
		sql(t, app, `ROLLBACK`)
		if got := readIDs(t, s, 1); got[0] != uuidOf(3) {
			t.Fatalf("%v", got)
		}
		if n := one[int](t, owner, `SELECT count(*) FROM onewrite.scheduled`); n != 0 {
			t.Errorf("%d are left", n)
		}
	})
}

// An outbox of before has no such table: it is read all the same, and migrate cures it.
func TestScheduledOnAnOlderOutbox(t *testing.T) {
	pg := servers.Postgres(t, 18)
	url := newOutbox(t, pg, MigrateOptions{})
	owner := dial(t, url)
	sql(t, owner, `DROP TABLE onewrite.scheduled, onewrite.imported`, `DROP FUNCTION onewrite.cancel`, `INSERT INTO onewrite.outbox (id, topic) VALUES ('`+uuidOf(1)+`', 'a')`)
	s := open(t, url, "")
	if got := readIDs(t, s, 1); got[0] != uuidOf(1) {
		t.Fatalf("%v", got)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	applied, err := Migrate(t.Context(), url, MigrateOptions{MaxEvent: 2 << 20})
	if err != nil || !strings.Contains(strings.Join(applied, "\n"), "scheduled") && len(applied) == 0 {
		t.Fatalf("%v %v", applied, err)
	}
	sql(t, owner, Schema(MigrateOptions{MaxEvent: 3 << 20}), Schema(MigrateOptions{MaxEvent: 3 << 20}))
	sql(t, owner, `INSERT INTO onewrite.scheduled (deliver_at, id, topic) VALUES (now(), '`+uuidOf(2)+`', 'a')`)
	if err := Rollback(t.Context(), url, false); err == nil {
		t.Error("a scheduled event was dropped")
	}
	if got := readIDs(t, open(t, url, ""), 1); got[0] != uuidOf(1) {
		t.Fatalf("%v", got)
	}
}

// Many that are due do not cost more for those that are not, large ones go in several
// portions, and an open cancel of what is due does not keep the reader busy.
func TestScheduledAmongMany(t *testing.T) {
	pg := servers.NewPostgres(t, 18, servers.Set("max_prepared_transactions", "0"))
	url := newOutbox(t, pg, MigrateOptions{})
	conn, app := dial(t, url), dial(t, url)
	sql(t, conn, `INSERT INTO onewrite.scheduled (deliver_at, topic) SELECT now() + interval '1 day', 'tomorrow' FROM generate_series(1, 20000)`,
		`INSERT INTO onewrite.scheduled (deliver_at, topic, payload) SELECT now() - interval '1 s', 'due', repeat('x', 1000000) FROM generate_series(1, 12)`)
	s := open(t, url, "")
	readIDs(t, s, 12)
	sql(t, conn, `INSERT INTO onewrite.scheduled (deliver_at, id, topic) VALUES (now() + interval '500 ms', '`+uuidOf(1)+`', 'held')`)
	sql(t, app, `BEGIN`)
	if !one[bool](t, app, `SELECT onewrite.cancel('`+uuidOf(1)+`')`) {
		t.Fatal("it is not there")
	}
	done := make(chan struct{})
	go func() { defer close(done); readIDs(t, s, 1) }()
	eventually(t, "the time of the held event", func() bool {
		return one[bool](t, conn, `SELECT deliver_at < clock_timestamp() - interval '300 ms' FROM onewrite.scheduled WHERE topic = 'held'`)
	})
	count := func() int {
		return one[int](t, conn, `SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = current_database()`)
	}
	before := count()
	eventually(t, "another second", func() bool {
		return one[bool](t, conn, `SELECT deliver_at < clock_timestamp() - interval '2 s' FROM onewrite.scheduled WHERE topic = 'held'`)
	})
	if n := count() - before; n > 1500 { // this session asks too, each few milliseconds
		t.Errorf("%d transactions while an open cancel holds what is due", n)
	}
	sql(t, app, `ROLLBACK`)
	<-done
}

// A scheduled event that falls due while a transaction of its key is open has the
// greater number and comes first. It says what it is, so that an inbox that goes by the
// numbers loses neither.
func TestScheduledAndOrderedInbox(t *testing.T) {
	each(t, func(t *testing.T, pg *servers.PG) {
		url := newOutbox(t, pg, MigrateOptions{})
		app, owner := dial(t, url), dial(t, url)
		s := open(t, url, "")
		sql(t, app, `BEGIN`, `INSERT INTO onewrite.outbox (topic, key) VALUES ('order.paid', 'o-1')`)
		sql(t, owner, `INSERT INTO onewrite.scheduled (deliver_at, topic, key, headers) VALUES (now(), 'order.reminder', 'o-1', '{"tenant": "a"}')`)
		events, _ := readN(t, s, 1)
		sql(t, app, `COMMIT`)
		more, _ := readN(t, s, 1)
		events = append(events, more...)
		if events[0].Topic != "order.reminder" || events[0].Seq < events[1].Seq || events[0].Header["deliverat"] == "" || events[0].Header["tenant"] != "a" || events[1].Header["deliverat"] != "" {
			t.Fatalf("%+v", events)
		}
		db, err := database.Open("pgx", url)
		if err != nil {
			t.Fatal(err)
		}
		defer db.Close()
		in := inbox.New(inbox.Postgres, "billing", inbox.Ordered())
		if err := in.Migrate(t.Context(), db); err != nil {
			t.Fatal(err)
		}
		for i, e := range append(events, events...) {
			outcome, err := in.Apply(t.Context(), db, inbox.Message{Event: e}, func(context.Context, *database.Tx) error { return nil })
			if want := []inbox.Outcome{inbox.Applied, inbox.Applied, inbox.Duplicate, inbox.Duplicate}[i]; err != nil || outcome != want {
				t.Errorf("delivery %d: %v, want %v: %v", i, outcome, want, err)
			}
		}
	})
}
