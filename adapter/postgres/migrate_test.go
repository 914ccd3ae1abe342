package postgres

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/onewrite/onewrite/internal/servers"
)

func TestMigrateTwice(t *testing.T) {
	each(t, func(t *testing.T, pg *servers.PG) {
		url := pg.NewDatabase(t)
		first, err := Migrate(t.Context(), url, MigrateOptions{})
		if err != nil || len(first) != 1 {
			t.Fatalf("first: %q, %v", first, err)
		}
		if again, err := Migrate(t.Context(), url, MigrateOptions{}); err != nil || len(again) != 0 {
			t.Fatalf("again: %q, %v; want nothing to do", again, err)
		}
		// Another limit is set, in place, and only once.
		conn := dial(t, url)
		if did, err := Migrate(t.Context(), url, MigrateOptions{MaxEvent: 2000}); err != nil || len(did) != 1 {
			t.Fatalf("limit: %q, %v", did, err)
		}
		if did, err := Migrate(t.Context(), url, MigrateOptions{MaxEvent: 2000}); err != nil || len(did) != 0 {
			t.Fatalf("limit again: %q, %v", did, err)
		}
		sql(t, conn, `INSERT INTO onewrite.outbox (topic, payload) VALUES ('a', repeat('x', 1900))`)
		_, err = conn.Exec(t.Context(), `INSERT INTO onewrite.outbox (topic, payload) VALUES ('a', repeat('x', 2000))`)
		if err == nil || !strings.Contains(err.Error(), "outbox_event_is_within_the_size_limit") {
			t.Fatalf("over the limit: %v", err)
		}
		// An outbox of a newer program is left alone.
		sql(t, conn, `INSERT INTO onewrite.migration (version) VALUES (2)`)
		if _, err := Migrate(t.Context(), url, MigrateOptions{}); err == nil || !strings.Contains(err.Error(), "newer") {
			t.Fatalf("newer layout: %v", err)
		}
	})
}

func TestMigrateTwiceAtOnce(t *testing.T) {
	each(t, func(t *testing.T, pg *servers.PG) {
		url := pg.NewDatabase(t)
		var wg sync.WaitGroup
		errs, did := make([]error, 6), make([][]string, 6)
		for i := range errs {
			wg.Go(func() { did[i], errs[i] = Migrate(t.Context(), url, MigrateOptions{}) })
		}
		wg.Wait()
		if err := errors.Join(errs...); err != nil {
			t.Fatal(err)
		}
		made := 0
		for _, d := range did {
			made += len(d)
		}
		if made != 1 {
			t.Fatalf("the outbox was made %d times: %q", made, did)
		}
	})
}

func TestSchemaByPsql(t *testing.T) {
	each(t, func(t *testing.T, pg *servers.PG) {
		url := pg.NewDatabase(t)
		app, relay := pg.NewRole(t), pg.NewRole(t)
		mustPsql(t, url, Schema(MigrateOptions{AppRole: app.Name, RelayRole: relay.Name}))
		if did, err := Migrate(t.Context(), url, MigrateOptions{}); err != nil || len(did) != 0 {
			t.Fatalf("after psql: %q, %v; want nothing to do", did, err)
		}
		mustPsql(t, app.URL(url), `SELECT onewrite.publish('a', 'k', '1')`)
		if events, _ := readN(t, open(t, relay.URL(url), ""), 1); string(events[0].Data) != "1" {
			t.Fatalf("got %+v", events[0])
		}
		// Without roles the grants are comments, ready to be filled in.
		text := Schema(MigrateOptions{})
		if !strings.Contains(text, "-- GRANT INSERT (topic, key, payload, payload_bytes, id, type, content_type, headers) ON onewrite.outbox TO app_role;") {
			t.Errorf("no template of grants in\n%s", text)
		}
		mustPsql(t, pg.NewDatabase(t), text)
	})
}

func TestMigrateByPlainOwner(t *testing.T) {
	each(t, func(t *testing.T, pg *servers.PG) {
		url, owner := pg.NewDatabase(t), pg.NewRole(t)
		_, err := Migrate(t.Context(), owner.URL(url), MigrateOptions{})
		if err == nil || !strings.Contains(err.Error(), "GRANT CREATE ON DATABASE") {
			t.Fatalf("without CREATE: %v; want the SQL that cures it", err)
		}
		mustPsql(t, url, `SELECT format('GRANT CREATE ON DATABASE %I TO `+owner.Name+`', current_database()) \gexec`)
		if _, err := Migrate(t.Context(), owner.URL(url), MigrateOptions{}); err != nil {
			t.Fatal(err)
		}
		_, err = Migrate(t.Context(), owner.URL(url), MigrateOptions{AppRole: "nobody_of_that_name"})
		if err == nil || !strings.Contains(err.Error(), "CREATE ROLE") {
			t.Fatalf("a role that is not there: %v; want the SQL that cures it", err)
		}
		mustPsql(t, owner.URL(url), `SELECT onewrite.publish('a', NULL, 'x')`)
		readN(t, open(t, owner.URL(url), ""), 1)
	})
}

func TestRollback(t *testing.T) {
	each(t, func(t *testing.T, pg *servers.PG) {
		url := newOutbox(t, pg, MigrateOptions{})
		if err := Rollback(t.Context(), url, false); err != nil {
			t.Fatalf("an empty outbox: %v", err)
		}
		if err := Rollback(t.Context(), url, false); err != nil {
			t.Fatalf("no outbox: %v", err)
		}
		if _, err := Migrate(t.Context(), url, MigrateOptions{}); err != nil {
			t.Fatalf("migrate after rollback: %v", err)
		}
		conn := dial(t, url)
		sql(t, conn, `INSERT INTO onewrite.outbox (topic) VALUES ('a')`)
		if err := Rollback(t.Context(), url, false); err == nil || !strings.Contains(err.Error(), "--force") {
			t.Fatalf("an outbox with events: %v", err)
		}
		if n := one[int](t, conn, `SELECT count(*)::int FROM onewrite.outbox`); n != 1 {
			t.Fatalf("%d rows after a refused rollback", n)
		}
		if err := Rollback(t.Context(), url, true); err != nil {
			t.Fatalf("forced: %v", err)
		}
		if there := one[bool](t, conn, `SELECT to_regnamespace('onewrite') IS NOT NULL`); there {
			t.Fatal("the schema is still there")
		}
		_, err := tryOpen(t, Config{URL: url}, "")
		if err == nil || !strings.Contains(err.Error(), "onewrite migrate") {
			t.Fatalf("open without an outbox: %v", err)
		}
	})
}

// The printed SQL may be run where an outbox is: it changes what differs, gives a
// new role its rights, and nothing else happens to what is there.
func TestPrintedSQLRunsAgain(t *testing.T) {
	each(t, func(t *testing.T, pg *servers.PG) {
		url := pg.NewDatabase(t)
		first, second := pg.NewRole(t), pg.NewRole(t)
		for range 2 {
			if out := mustPsql(t, url, Schema(MigrateOptions{AppRole: first.Name})); out != "" {
				t.Errorf("it prints %q", out)
			}
		}
		mustPsql(t, first.URL(url), `INSERT INTO onewrite.outbox (topic, payload) VALUES ('t', 'kept')`)
		if _, err := psql(t, second.URL(url), `INSERT INTO onewrite.outbox (topic) VALUES ('t')`); err == nil {
			t.Error("the second role may insert already")
		}
		big := fmt.Sprintf(`INSERT INTO onewrite.outbox (topic, payload) VALUES ('big', repeat('x', %d))`, 2<<20)
		if _, err := psql(t, first.URL(url), big); err == nil {
			t.Error("the large event is taken already")
		}
		mustPsql(t, url, Schema(MigrateOptions{AppRole: second.Name, MaxEvent: 3 << 20}))
		mustPsql(t, second.URL(url), big)
		if got := mustPsql(t, url, `SELECT string_agg(topic || left(coalesce(payload, ''), 4), ',' ORDER BY seq) FROM onewrite.outbox`); got != "tkept,bigxxxx" {
			t.Errorf("the outbox holds %s", got)
		}
		if did, err := Migrate(t.Context(), url, MigrateOptions{AppRole: second.Name, MaxEvent: 3 << 20}); err != nil || len(did) > 0 {
			t.Errorf("migrate finds something to do: %v, %v", did, err)
		}
	})
}
