package postgres_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/adapter/postgres"
	"github.com/onewrite/onewrite/internal/servers"
)

// each runs a test on every version of the server.
func each(t *testing.T, test func(t *testing.T, pg *servers.PG)) {
	for _, version := range []int{15, 18} {
		t.Run(strconv.Itoa(version), func(t *testing.T) { test(t, servers.Postgres(t, version)) })
	}
}

func dial(t *testing.T, url string) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close(context.Background()) })
	return conn
}

func run(t *testing.T, conn *pgx.Conn, sql string, args ...any) {
	t.Helper()
	if _, err := conn.Exec(t.Context(), sql, args...); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

func migrate(t *testing.T, pg *servers.PG, o postgres.MigrateOptions) string {
	t.Helper()
	url := pg.NewDatabase(t)
	if _, err := postgres.Migrate(t.Context(), url, o); err != nil {
		t.Fatal(err)
	}
	return url
}

func open(t *testing.T, url, bus string, pos onewrite.Pos) *postgres.Source {
	t.Helper()
	var s *postgres.Source
	var err error
	for deadline := time.Now().Add(10 * time.Second); ; { // the server sees the end of the last session a moment later
		s, err = postgres.Open(t.Context(), postgres.Config{Name: "shop", URL: url, BusID: bus}, pos)
		if !errors.Is(err, onewrite.ErrStandby) || time.Now().After(deadline) {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// read reads until stop says that all is there.
func read(t *testing.T, s *postgres.Source, stop func(onewrite.Batch) bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for {
		b, err := s.Read(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if stop(b) {
			return
		}
	}
}

func TestMigrateTwice(t *testing.T) {
	each(t, func(t *testing.T, pg *servers.PG) {
		url := pg.NewDatabase(t)
		var wg sync.WaitGroup
		var made atomic.Int32
		for range 4 { // at once
			wg.Go(func() {
				applied, err := postgres.Migrate(t.Context(), url, postgres.MigrateOptions{})
				if err != nil {
					t.Error(err)
				}
				made.Add(int32(len(applied)))
			})
		}
		wg.Wait()
		if made.Load() != 1 {
			t.Errorf("%d steps applied, want 1", made.Load())
		}
		applied, err := postgres.Migrate(t.Context(), url, postgres.MigrateOptions{MaxEvent: 2000})
		if err != nil || len(applied) != 1 {
			t.Fatalf("new limit: %v %v", applied, err)
		}
		conn := dial(t, url)
		_, err = conn.Exec(t.Context(), `INSERT INTO onewrite.outbox (topic, payload) VALUES ('a', repeat('x', 3000))`)
		if !violates(err, "outbox_event_is_within_the_size_limit") {
			t.Errorf("too large: %v", err)
		}
		run(t, conn, `INSERT INTO onewrite.outbox (topic) VALUES ('a')`)
		if err := postgres.Rollback(t.Context(), url, false); err == nil || !strings.Contains(err.Error(), "still holds events") {
			t.Errorf("rollback of a full outbox: %v", err)
		}
		if err := postgres.Rollback(t.Context(), url, true); err != nil {
			t.Error(err)
		}
		if _, err := postgres.Open(t.Context(), postgres.Config{Name: "s", URL: url}, ""); err == nil || !strings.Contains(err.Error(), "onewrite migrate") {
			t.Errorf("open without an outbox: %v", err)
		}
	})
}

func violates(err error, constraint string) bool {
	var pe *pgconn.PgError
	return errors.As(err, &pe) && pe.ConstraintName == constraint
}

// TestRoles: the application's role can insert events and do nothing else; a
// relay's role that is not the owner can read, acknowledge and empty the ring.
func TestRoles(t *testing.T) {
	each(t, func(t *testing.T, pg *servers.PG) {
		app, relay := pg.NewRole(t), pg.NewRole(t)
		url := migrate(t, pg, postgres.MigrateOptions{AppRole: app.Name, RelayRole: relay.Name})
		conn := dial(t, app.URL(url))
		good := []string{
			`INSERT INTO onewrite.outbox (topic, key, payload) VALUES ('order.placed', 'alice', '{"a":"x\"y\n"}')`,
			`INSERT INTO onewrite.outbox (topic) VALUES ('tombstone')`,
			`INSERT INTO onewrite.outbox (topic, payload_bytes) VALUES ('bin', '\x00ff')`,
			`INSERT INTO onewrite.outbox (topic, payload, id, type, content_type, headers) VALUES ('a_b-c.D', 'plain', '0190a0a0-0000-7000-8000-000000000001', 'my.type', 'text/x', '{"tenant":"t1","X-Shop":"a b"}')`,
			`SELECT onewrite.publish('p', 'k', '{"x":1}')`,
			`SELECT onewrite.publish('p', 'k', '{"x":2}'::jsonb)`,
			`SELECT onewrite.publish('p', NULL, '\x01'::bytea)`,
			`SELECT onewrite.publish('p', 'k', NULL)`,
		}
		for _, sql := range good {
			run(t, conn, sql)
		}
		for sql, constraint := range map[string]string{
			`INSERT INTO onewrite.outbox (topic) VALUES ('a b')`:                                    "outbox_topic_is_letters_digits_and_single_dots",
			`INSERT INTO onewrite.outbox (topic) VALUES ('')`:                                       "outbox_topic_is_letters_digits_and_single_dots",
			`INSERT INTO onewrite.outbox (topic) VALUES ('a..b')`:                                   "outbox_topic_is_letters_digits_and_single_dots",
			`INSERT INTO onewrite.outbox (topic, payload, payload_bytes) VALUES ('a', 'x', '\x01')`: "outbox_has_one_payload_at_most",
			`INSERT INTO onewrite.outbox (topic, payload) VALUES ('a', repeat('x', 1048577))`:       "outbox_event_is_within_the_size_limit",
			`INSERT INTO onewrite.outbox (topic, key) VALUES ('a', repeat('x', 1025))`:              "outbox_key_is_at_most_1024_bytes",
			`INSERT INTO onewrite.outbox (topic, type) VALUES ('a', E'x\ny')`:                       "outbox_type_is_short_text_without_control_characters",
			`INSERT INTO onewrite.outbox (topic, headers) VALUES ('a', '["x"]')`:                    "outbox_headers_are_an_object_of_strings",
			`INSERT INTO onewrite.outbox (topic, headers) VALUES ('a', '{"a":1}')`:                  "outbox_headers_are_an_object_of_strings",
			`INSERT INTO onewrite.outbox (topic, headers) VALUES ('a', '{"a":["x"]}')`:              "outbox_headers_are_an_object_of_strings",
			`INSERT INTO onewrite.outbox (topic, headers) VALUES ('a', '{"ID":"x"}')`:               "outbox_header_names_are_allowed",
			`INSERT INTO onewrite.outbox (topic, headers) VALUES ('a', '{"a b":"x"}')`:              "outbox_header_names_are_allowed",
			`INSERT INTO onewrite.outbox (topic, headers) VALUES ('a', '{"Ce-x":"x"}')`:             "outbox_header_names_are_allowed",
			`INSERT INTO onewrite.outbox (topic, headers) VALUES ('a', '{"a":"x\ny"}')`:             "outbox_header_values_have_no_control_characters",
		} {
			if _, err := conn.Exec(t.Context(), sql); !violates(err, constraint) {
				t.Errorf("%s: %v", sql, err)
			}
		}
		for _, sql := range []string{
			`SELECT * FROM onewrite.outbox`, `SELECT id FROM onewrite.outbox_0`, `UPDATE onewrite.outbox SET topic = 'x'`, `DELETE FROM onewrite.outbox`, `TRUNCATE onewrite.outbox`,
			`INSERT INTO onewrite.outbox (topic, xid) VALUES ('a', '1')`, `INSERT INTO onewrite.outbox (topic, seq) VALUES ('a', 1)`, `INSERT INTO onewrite.outbox (topic, slot) VALUES ('a', 1)`,
			`INSERT INTO onewrite.outbox_0 (topic) VALUES ('a')`, `SELECT setval('onewrite.slot', 3)`, `SELECT setval('onewrite.seq', 3)`, `SELECT nextval('onewrite.slot')`, `SELECT onewrite.summarize()`,
		} {
			if _, err := conn.Exec(t.Context(), sql); !denied(err) {
				t.Errorf("the application's role may: %s (%v)", sql, err)
			}
		}
		s := open(t, relay.URL(url), "bus", "")
		var got []onewrite.Event
		var last onewrite.Pos
		read(t, s, func(b onewrite.Batch) bool {
			got, last = append(got, b.Events...), b.Pos
			return len(got) == len(good)
		})
		checkContent(t, got)
		if err := s.Ack(t.Context(), last); err != nil {
			t.Fatal(err)
		}
		untilEmpty(t, s, dial(t, url))
	})
}

func denied(err error) bool {
	var pe *pgconn.PgError
	return errors.As(err, &pe) && pe.Code == "42501"
}

func checkContent(t *testing.T, got []onewrite.Event) {
	t.Helper()
	want := []struct{ topic, typ, key, content, data string }{
		{"order.placed", "order.placed", "alice", "application/json", `{"a":"x\"y\n"}`},
		{"tombstone", "tombstone", "", "", ""},
		{"bin", "bin", "", "application/octet-stream", "\x00\xff"},
		{"a_b-c.D", "my.type", "", "text/x", "plain"},
		{"p", "p", "k", "application/json", `{"x":1}`},
		{"p", "p", "k", "application/json", `{"x": 2}`},
		{"p", "p", "", "application/octet-stream", "\x01"},
		{"p", "p", "k", "", ""},
	}
	for i, w := range want {
		g := got[i]
		if g.Topic != w.topic || g.Type != w.typ || g.Key != w.key || g.ContentType != w.content || string(g.Data) != w.data || g.Source != "shop" || g.ID == "" || time.Since(g.Time).Abs() > time.Minute {
			t.Errorf("event %d: %+v, want %+v", i, g, w)
		}
		if i > 0 && g.Seq <= got[i-1].Seq {
			t.Errorf("sequence %s after %s", g.Seq, got[i-1].Seq)
		}
	}
	if got[1].Data != nil || got[3].Header["tenant"] != "t1" || got[3].Header["X-Shop"] != "a b" || got[3].ID != "0190a0a0-0000-7000-8000-000000000001" {
		t.Errorf("tombstone %+v, headers %+v", got[1], got[3])
	}
}

// untilEmpty keeps the reader alive until the ring holds no bytes.
func untilEmpty(t *testing.T, s *postgres.Source, conn *pgx.Conn) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			s.Read(ctx)
		}
	}()
	defer func() { cancel(); <-done }()
	deadline := time.Now().Add(30 * time.Second) // CONTRACT: reclaimed <= 30 s later
	for {
		var bytes int64
		if err := conn.QueryRow(t.Context(), `SELECT sum(pg_relation_size(('onewrite.outbox_' || i)::regclass)) FROM generate_series(0, 7) i`).Scan(&bytes); err != nil {
			t.Fatal(err)
		}
		if bytes == 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d bytes are in the ring 30 s after everything was acknowledged", bytes)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// TestOrder: transactions take their number early, lock their key late and
// commit in another order; many roll back, wholly or to a savepoint; a write
// transaction and a snapshot stay open all the time. Nothing may be missing,
// phantom or out of order per key, and the reader is opened anew at arbitrary
// places.
func TestOrder(t *testing.T) {
	each(t, func(t *testing.T, pg *servers.PG) {
		url := migrate(t, pg, postgres.MigrateOptions{})
		setup := dial(t, url)
		run(t, setup, `CREATE TABLE keys (k int PRIMARY KEY, n int NOT NULL); INSERT INTO keys SELECT i, 0 FROM generate_series(0, 39) i; CREATE TABLE other (x int)`)
		long := dial(t, url)
		run(t, long, `BEGIN; INSERT INTO other VALUES (1)`)
		held := dial(t, url)
		run(t, held, `BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM keys`)

		const writers, each = 12, 500
		var wg sync.WaitGroup
		var committed atomic.Int64
		for w := range writers {
			conn := dial(t, url)
			wg.Go(func() {
				for i := range each {
					if ok, err := orderTx(t.Context(), conn, rand.IntN(40), (w+i)%2 == 0, rand.IntN(8)); err != nil {
						t.Error(err)
						return
					} else if ok {
						committed.Add(1)
					}
				}
			})
		}
		writersDone := make(chan struct{})
		go func() { wg.Wait(); close(writersDone) }()
		o := observeOrder(t, url, writersDone, &committed)
		var inversions int
		for i := 1; i < len(o.xids); i++ {
			if o.xids[i] < o.xids[i-1] {
				inversions++
			}
		}
		t.Logf("%d events, %d of them after one with a later transaction, %d re-openings", committed.Load(), inversions, o.opened)
		if committed.Load() < 4000 || inversions < 1000 || o.opened < 10 {
			t.Errorf("vacuous: %d events, %d inversions, %d re-openings", committed.Load(), inversions, o.opened)
		}
	})
}

// orderTx counts a key up and publishes the count. Early transactions take their
// number before they wait for the key.
func orderTx(ctx context.Context, conn *pgx.Conn, key int, early bool, fate int) (committed bool, err error) {
	tx, err := conn.Begin(ctx)
	if err != nil {
		return false, err
	}
	defer tx.Rollback(context.WithoutCancel(ctx))
	if early {
		if _, err := tx.Exec(ctx, `INSERT INTO other VALUES (2)`); err != nil {
			return false, err
		}
	}
	if fate == 0 { // a savepoint that is given up
		if _, err := tx.Exec(ctx, `SAVEPOINT s; INSERT INTO onewrite.outbox (topic, key, payload) VALUES ('phantom', 'x', '{}'); ROLLBACK TO s`, pgx.QueryExecModeSimpleProtocol); err != nil {
			return false, err
		}
	}
	var n int
	if err := tx.QueryRow(ctx, `UPDATE keys SET n = n + 1 WHERE k = $1 RETURNING n`, key).Scan(&n); err != nil {
		return false, err
	}
	topic := "order"
	if fate == 1 {
		topic = "phantom"
	}
	if _, err := tx.Exec(ctx, `INSERT INTO onewrite.outbox (topic, key, payload) VALUES ($1, $2, json_build_object('n', $3::int, 'xid', pg_current_xact_id()::text)::text)`, topic, fmt.Sprint(key), n); err != nil {
		return false, err
	}
	if fate == 1 {
		return false, nil
	}
	return true, tx.Commit(ctx)
}

type observed struct {
	xids   []uint64
	opened int
}

// observeOrder reads everything, and opens the source anew at some place of
// every tenth batch: what comes again must be what follows that place.
func observeOrder(t *testing.T, url string, writersDone <-chan struct{}, committed *atomic.Int64) (o observed) {
	t.Helper()
	last := map[string]int{}
	seen := map[string]bool{}
	var pos onewrite.Pos
	s := open(t, url, "bus", "")
	deadline := time.Now().Add(2 * time.Minute)
	for batches := 1; ; batches++ {
		select {
		case <-writersDone:
			if int64(len(seen)) == committed.Load() {
				return o
			}
		default:
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d of %d events after two minutes", len(seen), committed.Load())
		}
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		b, err := s.Read(ctx)
		cancel()
		if errors.Is(err, context.DeadlineExceeded) {
			s.Close()
			s = open(t, url, "bus", pos)
			continue
		} else if err != nil {
			t.Fatal(err)
		}
		keep := len(b.Events)
		if batches%10 == 0 && keep > 1 {
			keep = 1 + rand.IntN(keep-1)
		}
		for _, e := range b.Events[:keep] {
			var body struct {
				N   int
				Xid uint64 `json:",string"`
			}
			if err := json.Unmarshal(e.Data, &body); err != nil || e.Topic != "order" {
				t.Fatalf("%s: %s (%v)", e.Topic, e.Data, err)
			}
			if seen[e.ID] {
				t.Errorf("event %s came twice", e.ID)
			}
			seen[e.ID] = true
			if body.N != last[e.Key]+1 {
				t.Fatalf("key %s: %d after %d", e.Key, body.N, last[e.Key])
			}
			last[e.Key] = body.N
			o.xids = append(o.xids, body.Xid)
		}
		pos = b.Pos
		if keep < len(b.Events) {
			pos = b.PosAt(keep - 1)
			s.Close()
			s = open(t, url, "bus", pos)
			o.opened++
		}
	}
}

// TestBacklog: a backlog of many pages comes whole and in order while writers go
// on.
func TestBacklog(t *testing.T) {
	each(t, func(t *testing.T, pg *servers.PG) {
		url := migrate(t, pg, postgres.MigrateOptions{})
		conn := dial(t, url)
		const rows = 120_000
		for range rows / 1000 {
			run(t, conn, `INSERT INTO onewrite.outbox (topic, key, payload) SELECT 'a', 'k' || i % 50, repeat('x', 150) FROM generate_series(1, 1000) i`)
		}
		run(t, conn, `INSERT INTO onewrite.outbox (topic, key, payload) SELECT 'a', 'k', repeat('x', 1000000) FROM generate_series(1, 30) i`)
		s := open(t, url, "bus", "")
		seen := map[string]bool{}
		last := ""
		n := 0
		read(t, s, func(b onewrite.Batch) bool {
			for _, e := range b.Events {
				if seen[e.ID] || e.Seq <= last {
					t.Fatalf("event %s after %s, seen before: %v", e.Seq, last, seen[e.ID])
				}
				seen[e.ID], last = true, e.Seq
			}
			n += len(b.Events)
			if n < 50_000 && len(b.Events) == onewrite.MaxBatch { // in the middle: it belongs to the next difference
				run(t, conn, `INSERT INTO onewrite.outbox (topic) VALUES ('late')`)
			}
			return n >= rows+30+49
		})
	})
}

// TestWake: while the reader sleeps, plain SQL from another session wakes it,
// each time.
func TestWake(t *testing.T) {
	each(t, func(t *testing.T, pg *servers.PG) {
		url := migrate(t, pg, postgres.MigrateOptions{})
		conn := dial(t, url)
		s := open(t, url, "bus", "")
		seen := make(chan string, 10)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() {
			defer close(done)
			for {
				b, err := s.Read(ctx)
				if err != nil {
					return
				}
				for _, e := range b.Events {
					seen <- string(e.Data)
				}
			}
		}()
		defer func() { cancel(); <-done }()
		late := 0
		for i := range 150 {
			want := fmt.Sprint(i)
			open := i%10 == 0 // a transaction that inserts before the reader sleeps and commits after
			if open {
				run(t, conn, `BEGIN`)
			}
			run(t, conn, `INSERT INTO onewrite.outbox (topic, payload) VALUES ('a', $1)`, want)
			if open {
				run(t, conn, `SELECT pg_sleep(0.2)`)
				run(t, conn, `COMMIT`)
			}
			start := time.Now()
			select {
			case got := <-seen:
				if got != want {
					t.Fatalf("got %s, want %s", got, want)
				}
			case <-time.After(10 * time.Second):
				t.Fatalf("event %d never came", i)
			}
			if time.Since(start) > 700*time.Millisecond { // the belt looks after a second
				late++
			}
			if i%3 == 0 {
				run(t, conn, `SELECT pg_sleep(0.07)`) // long enough to fall asleep
			}
		}
		if late > 2 {
			t.Errorf("%d of 150 wake-ups were left to the belt", late)
		}
	})
}

// TestStandby: one reader at a time; a silent one is ended.
func TestStandby(t *testing.T) {
	each(t, func(t *testing.T, pg *servers.PG) {
		url := migrate(t, pg, postgres.MigrateOptions{})
		s := open(t, url, "bus", "")
		if _, err := postgres.Open(t.Context(), postgres.Config{Name: "shop", URL: url, BusID: "other"}, ""); !errors.Is(err, onewrite.ErrStandby) {
			t.Fatalf("a second reader: %v", err)
		}
		s.Close()
		frozen := dial(t, url)
		run(t, frozen, `SELECT pg_advisory_lock(1869505911, 1)`)
		start := time.Now()
		for {
			s, err := postgres.Open(t.Context(), postgres.Config{Name: "shop", URL: url, BusID: "other"}, "")
			if err == nil {
				s.Close()
				break
			}
			if !errors.Is(err, onewrite.ErrStandby) || time.Since(start) > 20*time.Second {
				t.Fatal(err)
			}
			time.Sleep(200 * time.Millisecond)
		}
		if took := time.Since(start); took < 5*time.Second {
			t.Errorf("taken over after %v, while the holder might live", took)
		}
	})
}

// TestIdentity: a new bus, a foreign bus and a database that went back are said
// aloud, and everything that is there comes again with the same ids.
func TestIdentity(t *testing.T) {
	each(t, func(t *testing.T, pg *servers.PG) {
		url := migrate(t, pg, postgres.MigrateOptions{})
		conn := dial(t, url)
		insert := func() { run(t, conn, `INSERT INTO onewrite.outbox (topic) SELECT 'a' FROM generate_series(1, 50)`) }
		insert()
		all := func(bus string, pos onewrite.Pos, n int) (ids map[string]bool, gap *onewrite.Gap, end onewrite.Pos) {
			s := open(t, url, bus, pos)
			defer s.Close()
			ids = map[string]bool{}
			read(t, s, func(b onewrite.Batch) bool {
				for _, e := range b.Events {
					ids[e.ID] = true
				}
				if b.Gap != nil {
					gap = b.Gap
				}
				end = b.Pos
				return len(ids) >= n
			})
			return ids, gap, end
		}
		first, gap, pos := all("one", "", 50)
		if gap != nil {
			t.Errorf("a first start is no gap: %v", gap)
		}
		insert()
		if next, gap, _ := all("one", pos, 50); gap != nil || len(next) != 50 || next[firstOf(first)] {
			t.Errorf("going on: gap %v, %d events", gap, len(next))
		}
		again, gap, onTwo := all("two", "", 100)
		if gap == nil || !strings.Contains(gap.Reason, "the bus is new") || !again[firstOf(first)] {
			t.Errorf("a lost bus: %v", gap)
		}
		if _, gap, _ := all("one", onTwo, 100); gap == nil || !strings.Contains(gap.Reason, "foreign") {
			t.Errorf("a foreign bus: %v", gap)
		}
		run(t, conn, `SELECT setval('onewrite.epoch', 1)`) // as a restored backup would have it
		if _, gap, _ := all("one", pos, 100); gap == nil || !strings.Contains(gap.Reason, "back in time") {
			t.Errorf("a restored backup: %v", gap)
		}
		// Rows loaded from another cluster: their transactions are in the future here.
		run(t, conn, `UPDATE onewrite.outbox SET xid = (pg_snapshot_xmax(pg_current_snapshot())::text::bigint + 1000000 + 100 - seq)::text::xid8`)
		adopted, gap, _ := all("one", pos, 100)
		if gap == nil || len(adopted) != 100 || !adopted[firstOf(first)] {
			t.Errorf("rows of another history: %v, %d events", gap, len(adopted))
		}
		if _, err := postgres.Open(t.Context(), postgres.Config{Name: "shop", URL: url, BusID: "one"}, "nonsense"); err == nil {
			t.Error("a nonsense position was accepted")
		}
	})
}

func firstOf(m map[string]bool) string {
	for k := range m {
		return k
	}
	return ""
}
