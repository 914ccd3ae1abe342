package postgres

import (
	"errors"
	"net"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/onewrite/onewrite/inbox"
	"github.com/onewrite/onewrite/internal/disk"
	"github.com/onewrite/onewrite/internal/servers"
)

// What keeps a connection from being made is said once, although the driver tries
// with TLS and without, and of each address.
func TestUnreachableIsSaidOnce(t *testing.T) {
	closed := func() string {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		return l.Addr().String()
	}
	a, b := closed(), closed()
	for url, want := range map[string]string{
		"postgres://u:geheim@" + a + "/d":                 "postgres: cannot connect to " + a + ": connection refused; check",
		"postgres://u:geheim@" + a + "/d?sslmode=disable": "postgres: cannot connect to " + a + ": connection refused; check",
		"postgres://u:geheim@" + a + "," + b + "/d":       ": " + a + ": connection refused, " + b + ": connection refused; check",
	} {
		_, _, err := connect(t.Context(), url)
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "geheim") || strings.Contains(err.Error(), "\n") || !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("%s: %v\nwant %s", url, err, want)
		}
	}
}

// A cure is to be copied: it has the names of this session, quoted, and does it.
func TestCuresNameTheSession(t *testing.T) {
	pg := servers.Postgres(t, 18)
	url, role := pg.NewDatabase(t), pg.NewRole(t)
	admin := dial(t, url)
	as := role.URL(url)
	_, err := Migrate(t.Context(), as, MigrateOptions{})
	if first, second := strings.Index(errText(err), "onewrite migrate --print"), strings.Index(errText(err), "GRANT CREATE"); first < 0 || first > second {
		t.Errorf("the administrator's way is not the first: %v", err)
	}
	grant := regexp.MustCompile(`GRANT CREATE ON DATABASE "[^"]+" TO "[^"]+"`).FindString(errText(err))
	db := one[string](t, admin, `SELECT current_database()`)
	if grant == "" || !strings.Contains(errText(err), "onewrite migrate --print --relay-role "+disk.Quote(role.Name)+" | psql -v ON_ERROR_STOP=1 "+disk.Quote(db)) {
		t.Fatalf("%v", err)
	}
	sql(t, admin, grant)
	if _, err := Migrate(t.Context(), as, MigrateOptions{}); err != nil {
		t.Fatal(err)
	}
	_, err = Migrate(t.Context(), as, MigrateOptions{AppRole: "no body"})
	if !strings.HasSuffix(errText(err), `make it: CREATE ROLE "no body" LOGIN`) {
		t.Errorf("%v", err)
	}
	// The relay's role that is configured is not the one that migrates.
	third := pg.NewRole(t)
	if _, err := Migrate(t.Context(), third.URL(url), MigrateOptions{RelayRole: "the relay"}); !strings.Contains(errText(err), "--relay-role 'the relay' | psql") {
		t.Errorf("%v", err)
	}
	// The reader of an outbox that belongs to another role.
	other := pg.NewRole(t)
	if _, err := tryOpen(t, Config{URL: other.URL(url)}, ""); !strings.Contains(errText(err), "--relay-role "+disk.Quote(other.Name)+" | psql") {
		t.Errorf("%v", err)
	}
}

// The reader of the log may meet that its publication is gone before it looks for it.
func TestLostPublicationIsCured(t *testing.T) {
	err := explain(&pgconn.PgError{Code: "42704", Message: `publication "onewrite_shop" does not exist`})
	if text := errText(err); !strings.HasSuffix(text, cureMigrate) || strings.Contains(text, "CREATE ROLE") {
		t.Error(text)
	}
}

// A server that cannot decode its log fails for ever: the cure is said with it.
func TestUndecodableLogIsCured(t *testing.T) {
	err := undecodable(explain(&pgconn.PgError{Code: "XX000", Message: `could not map filenode "base/5/6" to relation OID`}), "onewrite_shop_5")
	if !strings.HasSuffix(errText(err), `SELECT pg_drop_replication_slot('onewrite_shop_5')`) {
		t.Error(err)
	}
	if err := undecodable(explain(&pgconn.PgError{Code: "57P01", Message: "terminating"}), "onewrite_shop_5"); strings.Contains(errText(err), "drop") {
		t.Error(err)
	}
}

// The consumer's own role may ask for what an administrator has made, and is told
// how where that is missing.
func TestMigrateInboxAsTheConsumer(t *testing.T) {
	each(t, func(t *testing.T, pg *servers.PG) {
		url, role := pg.NewDatabase(t), pg.NewRole(t)
		as, admin := role.URL(url), dial(t, url)
		err := MigrateInbox(t.Context(), as, "")
		db := disk.Quote(one[string](t, admin, `SELECT current_database()`))
		want := "onewrite migrate --inbox --print --database postgres:///" + db + " --app-role " + disk.Quote(role.Name) + " | psql -v ON_ERROR_STOP=1 " + db
		if !strings.HasSuffix(errText(err), want) {
			t.Fatalf("%v\nwant %s", err, want)
		}
		mustPsql(t, url, inbox.Schema(inbox.Postgres, ""))
		if err := MigrateInbox(t.Context(), as, ""); err == nil {
			t.Error("all is there, said to a role that may not use it")
		}
		for range 2 { // the second time there is nothing to grant
			if err := MigrateInbox(t.Context(), url, role.Name); err != nil {
				t.Fatal(err)
			}
		}
		for _, r := range []string{"", role.Name} {
			if err := MigrateInbox(t.Context(), as, r); err != nil {
				t.Errorf("as the consumer, role %q: %v", r, err)
			}
		}
		// What is half there is completed.
		sql(t, admin, `DROP TABLE onewrite_inbox.seen`)
		if err := MigrateInbox(t.Context(), as, ""); err == nil {
			t.Error("a missing table was not noticed")
		}
		if err := MigrateInbox(t.Context(), url, role.Name); err != nil {
			t.Fatal(err)
		}
		sql(t, dial(t, as), `SELECT FROM onewrite_inbox.seen`)
	})
}

func errText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// splitRig is a database whose tables belong to one role and are read by another.
type splitRig struct {
	url, owner, relay string
	o                 MigrateOptions
}

func newSplitRig(t *testing.T, pg *servers.PG, ddl string) splitRig {
	t.Helper()
	url, owner, relay := pg.NewDatabase(t), pg.NewRole(t), pg.NewRole(t, "REPLICATION")
	admin := dial(t, url)
	sql(t, admin, `GRANT CREATE ON DATABASE `+one[string](t, admin, `SELECT quote_ident(current_database())`)+` TO `+owner.Name, `GRANT CREATE ON SCHEMA public TO `+owner.Name)
	s := splitRig{url, owner.URL(url), relay.URL(url), MigrateOptions{RelayRole: relay.Name, Capture: Capture{Source: "shop", Tables: []string{"a", "b"}}}}
	sql(t, dial(t, s.owner), ddl)
	s.migrate(t)
	return s
}

// migrate is that of the owner.
func (s splitRig) migrate(t *testing.T) string {
	t.Helper()
	done, err := Migrate(t.Context(), s.owner, s.o)
	if err != nil {
		t.Fatal(err)
	}
	return strings.Join(done, "; ")
}

// A snapshot that the relay's role asks for, which may not: the cures ask for it, with its
// condition.
func TestSnapshotAskedForByTheRelay(t *testing.T) {
	each(t, func(t *testing.T, pg *servers.PG) {
		s := newSplitRig(t, pg, `CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE b (id int PRIMARY KEY)`)
		admin := dial(t, s.url)
		asked := func() string {
			return one[string](t, admin, `SELECT string_agg(name || CASE WHEN wanted > finished THEN ' wanted ' || CASE WHEN asked = wanted THEN once ELSE 'all' END ELSE '' END, ', ' ORDER BY name) FROM onewrite.captured`)
		}
		s.o.Capture.Again, s.o.Capture.AgainWhere = []string{"public.a"}, "id > 5"
		_, err := Migrate(t.Context(), s.relay, s.o)
		cure := "run onewrite migrate --source shop --snapshot public.a --where 'id > 5' --relay-role " + disk.Quote(s.o.RelayRole) +
			" with the owner of the tables as the user of the source's url, or let an administrator run: onewrite migrate --print --source shop --snapshot public.a --where 'id > 5' --relay-role "
		if !strings.Contains(errText(err), cure) {
			t.Errorf("%v\nwant %s", err, cure)
		}
		text, err := SchemaWithCapture(t.Context(), s.relay, s.o)
		if err != nil {
			t.Fatal(err)
		}
		if before := asked(); before != "public.a, public.b" {
			t.Fatalf("asked for is %s", before)
		}
		for range 2 {
			mustPsql(t, s.url, text)
			if got := asked(); got != "public.a wanted id > 5, public.b" {
				t.Errorf("by the script is asked for %s", got)
			}
		}
		s.o.Capture.AgainWhere = ""
		if text, err = SchemaWithCapture(t.Context(), s.relay, s.o); err != nil {
			t.Fatal(err)
		}
		mustPsql(t, s.url, text)
		if got := asked(); got != "public.a wanted all, public.b" {
			t.Errorf("by the script is asked for %s", got)
		}
		s.o.Capture.Again = []string{"public.a", "public.b"}
		s.migrate(t)
		if got := asked(); got != "public.a wanted all, public.b wanted all" {
			t.Errorf("by the owner is asked for %s", got)
		}
		s.o.Capture.Tables = []string{"b"}
		if _, err := SchemaWithCapture(t.Context(), s.relay, s.o); !strings.Contains(errText(err), "public.a is not captured") {
			t.Errorf("a table that is not captured: %v", err)
		}
	})
}

// Where the publication was dropped, a right on the database would not help the relay's role:
// the tables are not its own. It would help their owner.
func TestDroppedPublicationIsNotForTheRelay(t *testing.T) {
	each(t, func(t *testing.T, pg *servers.PG) {
		s := newSplitRig(t, pg, `CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE b (id int PRIMARY KEY)`)
		admin := dial(t, s.url)
		sql(t, admin, `DROP PUBLICATION onewrite_shop`)
		for _, role := range []string{s.o.RelayRole, ""} { // as one who has not set roles:, too
			o := s.o
			o.RelayRole = role
			if _, err := Migrate(t.Context(), s.relay, o); strings.Contains(errText(err), "GRANT") || !strings.Contains(errText(err), "with the owner of the tables as the user") {
				t.Errorf("the relay's migrate: %v", err)
			}
		}
		text, err := SchemaWithCapture(t.Context(), s.relay, s.o)
		if err != nil {
			t.Fatal(err)
		}
		mustPsql(t, s.url, text)
		if n := one[int](t, admin, `SELECT count(*)::int FROM pg_publication_tables WHERE pubname = 'onewrite_shop'`); n != 2 {
			t.Errorf("%d tables are published", n)
		}
		sql(t, admin, `DROP PUBLICATION onewrite_shop`, `REVOKE CREATE ON DATABASE `+one[string](t, admin, `SELECT quote_ident(current_database())`)+` FROM `+one[string](t, dial(t, s.owner), `SELECT current_user::text`))
		_, err = Migrate(t.Context(), s.owner, s.o)
		grant := regexp.MustCompile(`GRANT CREATE ON DATABASE "[^"]+" TO "[^"]+"`).FindString(errText(err))
		if grant == "" {
			t.Fatalf("the owner's migrate: %v", err)
		}
		sql(t, admin, grant)
		s.migrate(t)
	})
}

// The role of onewrite run is not told to give itself more rights.
func TestGrantIsNotForTheRelay(t *testing.T) {
	for relay, want := range map[string]bool{"": true, "other": true, "onewrite_relay": false} {
		e := &serverError{says: "postgres: no", cure: "ask the owner", grant: ", or run: GRANT CREATE", role: "onewrite_relay", relay: relay}
		if got := strings.Contains(e.Error(), "GRANT"); got != want {
			t.Errorf("with the relay %q: %v", relay, e)
		}
	}
}
