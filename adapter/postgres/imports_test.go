package postgres

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/internal/servers"
)

// importing opens a source with imports, and collects what is wrong with them.
func importing(t *testing.T, url string, pos onewrite.Pos, imports ...Import) (s *Source, trouble func() string) {
	t.Helper()
	var mu sync.Mutex
	said := map[string]string{}
	for i := range imports {
		if imports[i].Every == 0 {
			imports[i].Every = 10 * time.Millisecond
		}
	}
	s = openWith(t, Config{Name: "shop", URL: url, BusID: "bus", Imports: imports, Trouble: func(name, problem string) {
		mu.Lock()
		defer mu.Unlock()
		said[name] = problem
	}}, pos)
	return s, func() string {
		mu.Lock()
		defer mu.Unlock()
		return said[imports[0].Name]
	}
}

// layouts are tables that others have, as their documentation makes them, and the
// import that docs/migrating.md gives for each.
var layouts = map[string]struct {
	ddl, insert string
	Import
	want []onewrite.Event
}{
	"home-made": {
		ddl: `CREATE TABLE outbox_events (id bigserial PRIMARY KEY, event_type text NOT NULL, aggregate_id bigint, payload bytea, sent_at timestamptz, created_at timestamptz DEFAULT now())`,
		insert: `INSERT INTO outbox_events (event_type, aggregate_id, payload, sent_at) VALUES
			('order.placed', 7, '\x00ff', NULL), ('order.placed', 8, '{"n":1}', now()), ('order.paid', 7, NULL, NULL)`,
		Import: Import{Table: "public.outbox_events", Where: "sent_at IS NULL", Order: []string{"id"}, ID: "id", Topic: "event_type", Key: "aggregate_id", Payload: "payload"},
		want: []onewrite.Event{
			{Topic: "order.placed", Key: "7", Data: []byte("\x00\xff"), ContentType: "application/octet-stream"},
			{Topic: "order.paid", Key: "7"}},
	},
	"debezium": { // https://debezium.io/documentation/reference/stable/transformations/outbox-event-router.html
		ddl: `CREATE TABLE outbox (id uuid NOT NULL PRIMARY KEY, aggregatetype varchar(255) NOT NULL, aggregateid varchar(255) NOT NULL, type varchar(255) NOT NULL, payload jsonb, "timestamp" timestamptz DEFAULT clock_timestamp())`,
		insert: `INSERT INTO outbox (id, aggregatetype, aggregateid, type, payload) VALUES
			('406c07f3-26f0-4eea-a50c-109940064b8f', 'Order', '1', 'OrderCreated', '{"id": 1}'), ('406c07f3-26f0-4eea-a50c-109940064b90', 'Customer', '456', 'InvoiceCreated', NULL)`,
		Import: Import{Table: "public.outbox", Order: []string{`"timestamp"`}, ID: "id", Topic: `'outbox.event.' || aggregatetype`, Key: "aggregateid", Payload: "payload", Type: "type"},
		want: []onewrite.Event{
			{ID: "406c07f3-26f0-4eea-a50c-109940064b8f", Topic: "outbox.event.Order", Key: "1", Type: "OrderCreated", Data: []byte(`{"id": 1}`), ContentType: "application/json"},
			{ID: "406c07f3-26f0-4eea-a50c-109940064b90", Topic: "outbox.event.Customer", Key: "456", Type: "InvoiceCreated"}},
	},
	"watermill": { // DefaultPostgreSQLSchema of watermill-sql v3 and v4
		ddl: `CREATE TABLE "watermill_orders" ("offset" BIGSERIAL, "uuid" VARCHAR(36) NOT NULL, "created_at" TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP,
			"payload" JSON DEFAULT NULL, "metadata" JSON DEFAULT NULL, "transaction_id" xid8 NOT NULL, PRIMARY KEY ("transaction_id", "offset"))`,
		insert: `INSERT INTO watermill_orders (uuid, payload, metadata, transaction_id) VALUES
			('0192f0c4-7c1e-7d3a-9b52-0242ac120002', '{"a": 1}', '{"partition_key": "k", "n": 5, "none": null}', pg_current_xact_id()), ('01HF7YAT00ULIDULIDULIDULID', '[]', 'null', pg_current_xact_id())`,
		Import: Import{Table: "watermill_orders", Order: []string{"transaction_id", `"offset"`}, ID: "uuid", Topic: "'orders'", Key: "metadata->>'partition_key'", Payload: "payload", Headers: "metadata"},
		want: []onewrite.Event{
			{ID: "0192f0c4-7c1e-7d3a-9b52-0242ac120002", Topic: "orders", Key: "k", Data: []byte(`{"a": 1}`), ContentType: "application/json", Header: map[string]string{"partition_key": "k", "n": "5"}},
			{Topic: "orders", Data: []byte(`[]`), ContentType: "application/json"}},
	},
	"river": { // river_job as its migrations 1 to 6 leave it, without what an outbox does not use
		ddl: `CREATE TYPE river_job_state AS ENUM ('available', 'cancelled', 'completed', 'discarded', 'pending', 'retryable', 'running', 'scheduled');
			CREATE TABLE river_job (id bigserial PRIMARY KEY, state river_job_state NOT NULL DEFAULT 'available', attempt smallint NOT NULL DEFAULT 0, max_attempts smallint NOT NULL,
				created_at timestamptz NOT NULL DEFAULT now(), scheduled_at timestamptz NOT NULL DEFAULT now(), priority smallint NOT NULL DEFAULT 1, args jsonb, errors jsonb[],
				kind text NOT NULL, metadata jsonb NOT NULL DEFAULT '{}', queue text NOT NULL DEFAULT 'default', tags varchar(255)[])`,
		insert: `INSERT INTO river_job (kind, args, max_attempts, state, queue) VALUES
			('order_placed', '{"customer": "alice"}', 25, 'available', 'outbox'), ('resize_image', '{}', 25, 'available', 'default'), ('order_paid', '{"customer": "alice"}', 25, 'completed', 'outbox')`,
		Import: Import{Table: "river_job", Where: "queue = 'outbox' AND state = 'available'", Order: []string{"id"}, ID: "id", Topic: "kind", Key: "args->>'customer'", Payload: "args"},
		want:   []onewrite.Event{{Topic: "order_placed", Key: "alice", Data: []byte(`{"customer": "alice"}`), ContentType: "application/json"}},
	},
}

func TestImportLayouts(t *testing.T) {
	each(t, func(t *testing.T, pg *servers.PG) {
		for name, l := range layouts {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				url := newOutbox(t, pg, MigrateOptions{})
				conn := dial(t, url)
				sql(t, conn, l.ddl, l.insert)
				all := one[int](t, conn, `SELECT count(*) FROM `+l.Table)
				l.Name = name
				s, trouble := importing(t, url, "", l.Import)
				events, _ := readN(t, s, len(l.want))
				for i, want := range l.want {
					got := events[i]
					if want.ID != "" && got.ID != want.ID || got.Topic != want.Topic || got.Key != want.Key || want.Type != "" && got.Type != want.Type ||
						string(got.Data) != string(want.Data) || (got.Data == nil) != (want.Data == nil) || got.ContentType != want.ContentType || fmt.Sprint(got.Header) != fmt.Sprint(want.Header) {
						t.Errorf("event %d is %+v\nwant %+v", i, got, want)
					}
				}
				if left := one[int](t, conn, `SELECT count(*) FROM `+l.Table); left != all-len(l.want) {
					t.Errorf("%d rows are left of %d", left, all)
				}
				if trouble() != "" {
					t.Error(trouble())
				}
			})
		}
	})
}

// While the application goes on writing, and the relay comes and goes, every row comes
// once and those of a key in order.
func TestImportGoesOn(t *testing.T) {
	each(t, func(t *testing.T, pg *servers.PG) {
		url := newOutbox(t, pg, MigrateOptions{})
		conn := dial(t, url)
		sql(t, conn, `CREATE TABLE old (id bigserial PRIMARY KEY, key text, n int)`)
		const rows, perKey = 3000, 300
		done := make(chan error, 1)
		go func() {
			app := dial(t, url)
			for n := range perKey {
				if _, err := app.Exec(t.Context(), `INSERT INTO old (key, n) SELECT 'k' || k, $1 FROM generate_series(1, 10) k`, n); err != nil {
					done <- err
					return
				}
			}
			done <- nil
		}()
		next, seen := map[string]int{}, 0
		pos := onewrite.Pos("")
		for seen < rows {
			s, _ := importing(t, url, pos, Import{Name: "old", Table: "old", Order: []string{"id"}, ID: "id", Topic: "'t'", Key: "key", Payload: "n"})
			for range 5 {
				if seen == rows {
					break
				}
				b := read(t, s)
				for _, e := range b.Events {
					if want := fmt.Sprint(next[e.Key]); string(e.Data) != want {
						t.Fatalf("key %s: %s came, want %s", e.Key, e.Data, want)
					}
					next[e.Key]++
					seen++
				}
				pos = b.Pos
			}
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
		}
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		if n := one[int](t, conn, `SELECT count(*) FROM old`); n != 0 || len(next) != 10 {
			t.Errorf("%d rows are left, %d keys came", n, len(next))
		}
	})
}

// Rows that are kept are read once, whoever reads.
func TestImportOnce(t *testing.T) {
	pg := servers.Postgres(t, 18)
	url := newOutbox(t, pg, MigrateOptions{})
	conn := dial(t, url)
	sql(t, conn, `CREATE TABLE old (id bigserial PRIMARY KEY, key text); INSERT INTO old (key) SELECT 'k' FROM generate_series(1, 2500)`)
	im := Import{Name: "old", Table: "old", Order: []string{"id"}, ID: "id", Topic: "'t'", Key: "key", Payload: "id", Keep: true}
	s, _ := importing(t, url, "", im)
	events, pos := readN(t, s, 2500)
	if !slices.IsSortedFunc(events, func(a, b onewrite.Event) int { return strings.Compare(a.Seq, b.Seq) }) || string(events[2499].Data) != "2500" {
		t.Error("they are out of order")
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s, _ = importing(t, url, pos, im)
	sql(t, conn, `INSERT INTO onewrite.outbox (topic) VALUES ('last')`)
	if events, _ := readN(t, s, 1); events[0].Topic != "last" {
		t.Errorf("they came again: %+v", events[0])
	}
	if n := one[int](t, conn, `SELECT count(*) FROM old`); n != 2500 {
		t.Errorf("%d rows are left", n)
	}
}

// What cannot be an event stops the import, aloud, and nothing else; what stands
// before it was moved, and after the cure it goes on.
func TestImportTrouble(t *testing.T) {
	pg := servers.Postgres(t, 18)
	url := newOutbox(t, pg, MigrateOptions{})
	conn := dial(t, url)
	sql(t, conn, `CREATE TABLE old (id bigserial PRIMARY KEY, topic text); INSERT INTO old (topic) VALUES ('a'), ('b'), ('no good'), ('c')`)
	s, trouble := importing(t, url, "", Import{Name: "old", Table: "old", Order: []string{"id"}, Topic: "topic"})
	if events, _ := readN(t, s, 2); events[1].Topic != "b" {
		t.Fatalf("%+v", events)
	}
	eventually(t, "the row that is no event", func() bool {
		return strings.Contains(trouble(), "the row of old with id = '3' can be no event") && strings.Contains(trouble(), "SELECT * FROM old WHERE id = '3'") && strings.Contains(trouble(), "outbox_topic_is")
	})
	sql(t, conn, `INSERT INTO onewrite.outbox (topic) VALUES ('meanwhile')`)
	if events, _ := readN(t, s, 1); events[0].Topic != "meanwhile" {
		t.Fatalf("%+v", events)
	}
	sql(t, conn, `UPDATE old SET topic = 'good' WHERE id = 3`)
	if events, _ := readN(t, s, 2); events[0].Topic != "good" || events[1].Topic != "c" {
		t.Fatalf("%+v", events)
	}
	eventually(t, "no more trouble", func() bool { return trouble() == "" })
}

func TestImportErrorsSayTheCure(t *testing.T) {
	pg := servers.Postgres(t, 18)
	role := pg.NewRole(t)
	url := newOutbox(t, pg, MigrateOptions{RelayRole: role.Name})
	conn := dial(t, url)
	sql(t, conn, `CREATE TABLE old (id bigserial PRIMARY KEY, topic text)`)
	for want, im := range map[string]Import{
		"GRANT SELECT, UPDATE, DELETE ON old TO \"" + role.Name + "\"":                                                                                      {Name: "x", Table: "old", Order: []string{"id"}, Topic: "topic"},
		`import.x.columns.topic: column "nothing" does not exist (SQLSTATE 42703); name a column of old, or quote a constant for SQL and YAML: "'nothing'"`: {Name: "x", Table: "old", Order: []string{"id"}, Topic: "nothing"},
		`quote a constant for SQL and YAML: "'order.placed'"`:                                                                                               {Name: "x", Table: "old", Order: []string{"id"}, Topic: "order.placed"},
		`import.x.columns.key: function lowercase(text) does not exist`:                                                                                     {Name: "x", Table: "old", Order: []string{"id"}, Topic: "topic", Key: "lowercase(topic)"},
		`import.x.order: column "n" does not exist`:                                                                                                         {Name: "x", Table: "old", Order: []string{"id", "n"}, Topic: "topic"},
		`import.x.where: column "sent" does not exist`:                                                                                                      {Name: "x", Table: "old", Order: []string{"id"}, Topic: "topic", Where: "sent IS NULL"},
		`import.x.table: relation "none" does not exist`:                                                                                                    {Name: "x", Table: "none", Order: []string{"id"}, Topic: "topic"},
	} {
		as := role.URL(url)
		if !strings.HasPrefix(want, "GRANT") {
			as = url
		}
		s, trouble := importing(t, as, "", im)
		eventually(t, want, func() bool { return strings.Contains(trouble(), want) })
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	// With the grant it works.
	sql(t, conn, `GRANT SELECT, UPDATE, DELETE ON old TO "`+role.Name+`"; INSERT INTO old (topic) VALUES ('a')`)
	s, _ := importing(t, role.URL(url), "", Import{Name: "x", Table: "old", Order: []string{"id"}, Topic: "topic"})
	readN(t, s, 1)
}

// A row that is kept and cannot be an event is named too, wherever it stands, and
// nothing is read until it is corrected.
func TestImportOnceNamesTheBadRow(t *testing.T) {
	pg := servers.Postgres(t, 18)
	url := newOutbox(t, pg, MigrateOptions{})
	conn := dial(t, url)
	sql(t, conn, `CREATE TABLE old (id uuid, n int, topic text); INSERT INTO old SELECT md5(n::text)::uuid, n, 'a' FROM generate_series(1, 2500) n; UPDATE old SET topic = 'no good' WHERE n IN (1777, 2001)`)
	s, trouble := importing(t, url, "", Import{Name: "old", Table: "old", Order: []string{"n"}, ID: "id", Topic: "topic", Payload: "n", Keep: true})
	id := one[string](t, conn, `SELECT id::text FROM old WHERE n = 1777`)
	look := "SELECT * FROM old WHERE id = '" + id + "'"
	eventually(t, "the row that is no event", func() bool {
		return strings.Contains(trouble(), "the row of old with id = '"+id+"'") && strings.Contains(trouble(), look+";")
	})
	if n := one[int](t, conn, `SELECT n FROM (`+look+`) AS found`); n != 1777 {
		t.Errorf("the SQL finds %d", n)
	}
	sql(t, conn, `UPDATE old SET topic = 'b' WHERE topic = 'no good'`)
	events, _ := readN(t, s, 2500)
	for i, e := range events {
		if string(e.Data) != fmt.Sprint(i+1) {
			t.Fatalf("event %d is row %s", i+1, e.Data)
		}
	}
	eventually(t, "no more trouble", func() bool { return trouble() == "" })
}

// Errors that a row's values cause have many codes; each is narrowed down to the row.
func TestImportNamesTheRowOfAnyError(t *testing.T) {
	pg := servers.Postgres(t, 18)
	for code, topic := range map[string]string{
		"21000": "(SELECT 't' FROM generate_series(1, n))",
		"54000": "repeat('t', CASE WHEN n > 1 THEN 2000000000 ELSE 1 END)",
		"P0001": "picky(n)",
		"OW001": "own(n)",
	} {
		for _, keep := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s keep %v", code, keep), func(t *testing.T) {
				url := newOutbox(t, pg, MigrateOptions{})
				conn := dial(t, url)
				sql(t, conn, `CREATE TABLE old (id bigserial PRIMARY KEY, n int); INSERT INTO old (n) VALUES (1), (1), (3), (1);
					CREATE FUNCTION picky(n int) RETURNS text LANGUAGE plpgsql AS $$BEGIN IF n > 1 THEN RAISE 'too picky'; END IF; RETURN 't'; END$$;
					CREATE FUNCTION own(n int) RETURNS text LANGUAGE plpgsql AS $$BEGIN IF n > 1 THEN RAISE 'own' USING ERRCODE = 'OW001'; END IF; RETURN 't'; END$$`)
				s, trouble := importing(t, url, "", Import{Name: "old", Table: "old", Order: []string{"id"}, ID: "id", Topic: topic, Payload: "id", Keep: keep})
				if !keep {
					if events, _ := readN(t, s, 2); string(events[1].Data) != "2" {
						t.Fatalf("%+v", events)
					}
				}
				eventually(t, "the row that is no event", func() bool {
					return strings.Contains(trouble(), "the row of old with id = '3' can be no event") && strings.Contains(trouble(), code)
				})
			})
		}
	}
}

// What waits in the table of an import is counted, while it waits.
func TestImportCountsWhatWaits(t *testing.T) {
	pg := servers.Postgres(t, 18)
	url := newOutbox(t, pg, MigrateOptions{})
	conn := dial(t, url)
	sql(t, conn, `CREATE TABLE old (id bigserial PRIMARY KEY, topic text, sent bool DEFAULT false); INSERT INTO old (topic) VALUES ('a'), ('no good'); INSERT INTO old (topic) SELECT 'b' FROM generate_series(1, 15000);
		INSERT INTO old (topic, sent) SELECT 'c', true FROM generate_series(1, 10)`)
	var waits atomic.Int64
	s := openWith(t, Config{URL: url, Imports: []Import{{Name: "old", Table: "old", Order: []string{"id"}, Topic: "topic", Where: "NOT sent", Every: 10 * time.Millisecond}},
		Importing: func(_ string, rows int) { waits.Store(int64(rows)) }}, "")
	readN(t, s, 1)
	eventually(t, "many are counted", func() bool { return waits.Load() == importCounted })
	sql(t, conn, `DELETE FROM old WHERE id > 5`)
	eventually(t, "what is left is counted", func() bool { return waits.Load() == 4 })
	sql(t, conn, `UPDATE old SET topic = 'good' WHERE topic = 'no good'`)
	readN(t, s, 4)
	eventually(t, "nothing waits", func() bool { return waits.Load() == 0 })
}

// A row that the application has locked is not waited for, and nothing overtakes it.
func TestImportDoesNotWait(t *testing.T) {
	pg := servers.Postgres(t, 18)
	url := newOutbox(t, pg, MigrateOptions{})
	app, other := dial(t, url), dial(t, url)
	sql(t, app, `CREATE TABLE old (id bigserial PRIMARY KEY, n int); INSERT INTO old (n) VALUES (0), (0), (0), (0)`, `BEGIN`, `UPDATE old SET n = 1 WHERE id = 3`)
	s, trouble := importing(t, url, "", Import{Name: "old", Table: "old", Order: []string{"id"}, ID: "id", Topic: "'t'", Key: "'k'", Payload: "id"})
	payloads := func(n int) (out string) {
		events, _ := readN(t, s, n)
		for _, e := range events {
			out += string(e.Data)
		}
		return out
	}
	if got := payloads(2); got != "12" {
		t.Fatalf("%s came before the locked row", got)
	}
	sql(t, other, `SET lock_timeout = '5s'; UPDATE old SET n = 2 WHERE id = 4`) // nobody holds it
	sql(t, app, `COMMIT`)
	if got := payloads(2); got != "34" {
		t.Fatalf("%s came", got)
	}
	if trouble() != "" {
		t.Error(trouble())
	}
}

// Rows that cannot be deleted are said aloud, and are no events.
func TestImportOfWhatStays(t *testing.T) {
	pg := servers.Postgres(t, 18)
	url := newOutbox(t, pg, MigrateOptions{})
	conn := dial(t, url)
	sql(t, conn, `CREATE TABLE old (id bigserial PRIMARY KEY); INSERT INTO old DEFAULT VALUES;
		CREATE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'; CREATE TRIGGER keep BEFORE DELETE ON old FOR EACH ROW EXECUTE FUNCTION keep()`)
	s, trouble := importing(t, url, "", Import{Name: "old", Table: "old", Order: []string{"id"}, Topic: "'t'"})
	eventually(t, "the rows that stay", func() bool { return strings.Contains(trouble(), "cannot be deleted") })
	sql(t, conn, `DROP TRIGGER keep ON old`)
	readN(t, s, 1)
}
