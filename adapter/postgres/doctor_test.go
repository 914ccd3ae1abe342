package postgres

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/onewrite/onewrite/internal/diagnosis"
	"github.com/onewrite/onewrite/internal/servers"
)

// ward is a database with an outbox and its roles, to make ill and to examine.
type ward struct {
	t          *testing.T
	pg         *servers.PG
	admin      string // the superuser's url
	app, relay servers.Role
	o          MigrateOptions
}

func newWard(t *testing.T, pg *servers.PG) *ward {
	w := &ward{t: t, pg: pg, admin: pg.NewDatabase(t), app: pg.NewRole(t), relay: pg.NewRole(t)}
	w.o = MigrateOptions{AppRole: w.app.Name, RelayRole: w.relay.Name}
	w.migrate()
	return w
}

func (w *ward) migrate() {
	w.t.Helper()
	if _, err := Migrate(w.t.Context(), w.admin, w.o); err != nil {
		w.t.Fatal(err)
	}
}

// words puts the roles' names into SQL and cures.
func (w *ward) words(text string) string {
	u, _ := url.Parse(w.admin)
	return strings.NewReplacer("{{app}}", w.app.Name, "{{relay}}", w.relay.Name, "{{db}}", strings.TrimPrefix(u.Path, "/")).Replace(text)
}

// sql runs statements as the superuser, as psql does.
func (w *ward) sql(text string) {
	w.t.Helper()
	mustPsql(w.t, w.admin, w.words(text))
}

// examine examines as the relay's role.
func (w *ward) examine(change ...func(*examiner)) findings {
	w.t.Helper()
	return examineURL(w.t, w.relay.URL(w.admin), w.o, change...)
}

func examineURL(t *testing.T, url string, o MigrateOptions, change ...func(*examiner)) findings {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	e := &examiner{url: url, o: o, now: time.Now, old: 10 * time.Minute, large: 1 << 30}
	for _, c := range change {
		c(e)
	}
	e.run(ctx)
	return checked(t, url, e.found)
}

type findings []diagnosis.Finding

// checked fails the test when a finding tells a password or has no cure.
func checked(t *testing.T, text string, found findings) findings {
	t.Helper()
	if u, err := url.Parse(text); err == nil {
		if password, ok := u.User.Password(); ok && strings.Contains(fmt.Sprintf("%+v", found), password) {
			t.Errorf("the password is told: %v", found)
		}
	}
	for _, f := range found {
		if f.Check == "" || f.Text == "" || strings.ContainsAny(f.Text+f.Cure, "\n\r") || f.Severity > diagnosis.OK && f.Cure == "" {
			t.Errorf("not a whole finding of one line: %+v", f)
		}
	}
	return found
}

// bad are those that are worse than ok.
func (fs findings) bad() (out findings) {
	for _, f := range fs {
		if f.Severity > diagnosis.OK {
			out = append(out, f)
		}
	}
	return out
}

func (fs findings) String() string {
	var b strings.Builder
	for _, f := range fs {
		fmt.Fprintf(&b, "\n  %-8s %-20s %s\n           %s", f.Severity, f.Check, f.Text, f.Cure)
	}
	return b.String()
}

// find returns the finding of a check whose text or cure holds something.
func (fs findings) find(s diagnosis.Severity, check, holds string) (diagnosis.Finding, bool) {
	i := slices.IndexFunc(fs, func(f diagnosis.Finding) bool {
		return f.Severity == s && f.Check == check && (strings.Contains(f.Cure, holds) || strings.Contains(f.Text, holds))
	})
	if i < 0 {
		return diagnosis.Finding{}, false
	}
	return fs[i], true
}

// want fails the test if a finding is not there.
func (fs findings) want(t *testing.T, s diagnosis.Severity, check, holds string) diagnosis.Finding {
	t.Helper()
	f, ok := fs.find(s, check, holds)
	if !ok {
		t.Errorf("no %s of %q with %q in%v", s, check, holds, fs)
	}
	return f
}

// cure runs what the findings say until nothing is left to be said.
func (w *ward) cure(found findings, change ...func(*examiner)) {
	w.t.Helper()
	for range 3 {
		for _, f := range found.bad() {
			if strings.HasPrefix(f.Cure, "onewrite migrate  # as ") { // the relay's role may not
				w.migrate()
			} else {
				w.sql(f.Cure)
			}
		}
		if found = w.examine(change...); len(found.bad()) == 0 {
			return
		}
	}
	w.t.Errorf("not cured:%v", found.bad())
}

// illness is something to be found and cured.
type illness struct {
	name, sql string // what breaks it
	severity  diagnosis.Severity
	check     string
	holds     string // in the cure
	options   func(*MigrateOptions)
}

var illnesses = []illness{
	{name: "no schedule", sql: `DROP TABLE onewrite.scheduled; DROP FUNCTION onewrite.cancel(uuid);`, severity: diagnosis.Warning, check: "scheduled", holds: "onewrite migrate"},
	{name: "another max_event", severity: diagnosis.Warning, check: "max_event", holds: "onewrite migrate", options: func(o *MigrateOptions) { o.MaxEvent = 2 << 20 }},
	{name: "no check", sql: `ALTER TABLE onewrite.outbox DROP CONSTRAINT outbox_event_is_valid`, severity: diagnosis.Problem, check: "max_event", holds: "ALTER TABLE onewrite.outbox ADD CONSTRAINT"},
	{name: "no leaves", sql: `DROP TABLE onewrite.outbox_3, onewrite.outbox_5`, severity: diagnosis.Problem, check: "outbox", holds: "CREATE TABLE onewrite.outbox_3 PARTITION OF"},
	{name: "no wake", sql: `ALTER TABLE onewrite.outbox DISABLE TRIGGER wake`, severity: diagnosis.Warning, check: "outbox", holds: "ENABLE TRIGGER wake"},
	{name: "no version", sql: `DELETE FROM onewrite.migration`, severity: diagnosis.Problem, check: "outbox", holds: "INSERT INTO onewrite.migration"},

	{name: "no temporary tables", sql: `REVOKE TEMPORARY ON DATABASE {{db}} FROM PUBLIC`, severity: diagnosis.Warning, check: "rights", holds: `GRANT TEMPORARY ON DATABASE "{{db}}" TO "{{relay}}"`},
	{name: "app cannot connect", sql: `REVOKE CONNECT ON DATABASE {{db}} FROM PUBLIC; GRANT CONNECT ON DATABASE {{db}} TO {{relay}}`, severity: diagnosis.Problem, check: "rights of roles.app", holds: `GRANT CONNECT ON DATABASE "{{db}}" TO "{{app}}"`},
	{name: "hardened functions", sql: `REVOKE EXECUTE ON ALL FUNCTIONS IN SCHEMA onewrite FROM PUBLIC`, severity: diagnosis.Problem, check: "rights of roles.app", holds: `GRANT EXECUTE ON FUNCTION onewrite.valid(uuid`},
	{name: "the relay of a hardened schema", sql: `REVOKE EXECUTE ON ALL FUNCTIONS IN SCHEMA onewrite FROM PUBLIC, {{relay}}`, severity: diagnosis.Problem, check: "rights", holds: `GRANT EXECUTE ON FUNCTION onewrite.valid(uuid`},
	{name: "closed registers", sql: `REVOKE SELECT ON SEQUENCE onewrite.slot, onewrite.asleep FROM PUBLIC`, severity: diagnosis.Problem, check: "rights of roles.app", holds: `GRANT SELECT ON SEQUENCE onewrite.slot, onewrite.asleep TO "{{app}}"`},

	{name: "app reads", sql: `GRANT SELECT ON onewrite.outbox TO {{app}}`, severity: diagnosis.Problem, check: "rights of roles.app", holds: `REVOKE SELECT ON onewrite.outbox FROM "{{app}}"`},
	{name: "app updates", sql: `GRANT UPDATE ON onewrite.outbox TO {{app}}`, severity: diagnosis.Problem, check: "rights of roles.app", holds: `REVOKE UPDATE ON onewrite.outbox FROM "{{app}}"`},
	{name: "app deletes", sql: `GRANT DELETE, TRUNCATE ON onewrite.outbox TO {{app}}`, severity: diagnosis.Problem, check: "rights of roles.app", holds: `REVOKE DELETE, TRUNCATE ON onewrite.outbox FROM "{{app}}"`},
	{name: "app inserts all", sql: `GRANT INSERT ON onewrite.outbox TO {{app}}`, severity: diagnosis.Problem, check: "rights of roles.app", holds: `REVOKE INSERT ON onewrite.outbox FROM "{{app}}"; GRANT INSERT (topic, key`},
	{name: "app sets seq", sql: `GRANT INSERT (seq, xid, slot) ON onewrite.outbox TO {{app}}`, severity: diagnosis.Problem, check: "rights of roles.app", holds: `REVOKE INSERT (seq, slot, xid) ON onewrite.outbox FROM "{{app}}"`},
	{name: "app reads one column", sql: `GRANT SELECT (id) ON onewrite.outbox TO {{app}}`, severity: diagnosis.Problem, check: "rights of roles.app", holds: `REVOKE SELECT (id) ON onewrite.outbox`},
	{name: "app in a leaf", sql: `GRANT INSERT ON onewrite.outbox_3 TO {{app}}`, severity: diagnosis.Problem, check: "rights of roles.app", holds: `REVOKE INSERT ON onewrite.outbox_3 FROM`},
	{name: "app sets sequences", sql: `GRANT ALL ON ALL SEQUENCES IN SCHEMA onewrite TO {{app}}`, severity: diagnosis.Problem, check: "rights of roles.app", holds: `REVOKE UPDATE ON SEQUENCE onewrite.seq`},
	{name: "app does all", sql: `GRANT ALL ON ALL TABLES IN SCHEMA onewrite TO {{app}}; GRANT ALL ON SCHEMA onewrite TO {{app}}`, severity: diagnosis.Problem, check: "rights of roles.app", holds: `REVOKE CREATE ON SCHEMA onewrite FROM`},
	{name: "app in a group", sql: `GRANT SELECT ON onewrite.outbox TO pg_monitor; GRANT pg_monitor TO {{app}}`, severity: diagnosis.Problem, check: "rights of roles.app", holds: `REVOKE SELECT ON onewrite.outbox FROM "pg_monitor"`},
	{name: "app reads the server", sql: `GRANT pg_read_all_data TO {{app}}`, severity: diagnosis.Problem, check: "rights of roles.app", holds: `REVOKE pg_read_all_data FROM "{{app}}"`},
	{name: "app writes the server", sql: `GRANT pg_write_all_data TO {{app}}`, severity: diagnosis.Problem, check: "rights of roles.app", holds: `REVOKE pg_write_all_data FROM "{{app}}"`},
	{name: "app is superuser", sql: `ALTER ROLE {{app}} SUPERUSER`, severity: diagnosis.Problem, check: "rights of roles.app", holds: `ALTER ROLE "{{app}}" NOSUPERUSER`},
	{name: "app owns it", sql: `DO $$ DECLARE s text; BEGIN FOR s IN SELECT format('ALTER TABLE %s OWNER TO {{app}}', oid::regclass) FROM pg_class WHERE relnamespace = 'onewrite'::regnamespace AND relkind IN ('r', 'p', 'S') LOOP EXECUTE s; END LOOP; END $$`,
		severity: diagnosis.Problem, check: "rights of roles.app", holds: `ALTER TABLE %s OWNER TO`},
	{name: "app owns the database", sql: `ALTER DATABASE {{db}} OWNER TO {{app}}; ALTER TABLE onewrite.outbox OWNER TO {{app}}`, severity: diagnosis.Problem, check: "rights of roles.app", holds: `OWNER TO "postgres"`},

	{name: "everybody reads", sql: `GRANT SELECT ON onewrite.outbox TO PUBLIC`, severity: diagnosis.Problem, check: "rights of PUBLIC", holds: `REVOKE SELECT ON onewrite.outbox FROM PUBLIC`},
	{name: "everybody writes", sql: `GRANT INSERT ON onewrite.outbox, onewrite.scheduled TO PUBLIC`, severity: diagnosis.Problem, check: "rights of PUBLIC", holds: `REVOKE INSERT ON onewrite.outbox, onewrite.scheduled FROM PUBLIC; GRANT INSERT (topic`},
	{name: "everybody comes in", sql: `GRANT USAGE ON SCHEMA onewrite TO PUBLIC; REVOKE USAGE ON SCHEMA onewrite FROM {{app}}`, severity: diagnosis.Warning, check: "rights of PUBLIC", holds: `REVOKE USAGE ON SCHEMA onewrite FROM PUBLIC; GRANT USAGE ON SCHEMA onewrite TO "{{app}}"`},
	{name: "everybody makes objects", sql: `GRANT CREATE ON SCHEMA onewrite TO PUBLIC`, severity: diagnosis.Problem, check: "rights of PUBLIC", holds: `REVOKE CREATE ON SCHEMA onewrite FROM PUBLIC`},
	{name: "everybody cancels", sql: `GRANT EXECUTE ON FUNCTION onewrite.cancel(uuid) TO PUBLIC`, severity: diagnosis.Problem, check: "rights of PUBLIC", holds: `REVOKE EXECUTE ON FUNCTION onewrite.cancel(uuid) FROM PUBLIC`},
	{name: "everybody moves the slot", sql: `GRANT USAGE ON SEQUENCE onewrite.slot TO PUBLIC`, severity: diagnosis.Problem, check: "rights of PUBLIC", holds: `REVOKE USAGE ON SEQUENCE onewrite.slot FROM PUBLIC`},

	{name: "asynchronous by role", sql: `ALTER ROLE {{relay}} SET synchronous_commit = off`, severity: diagnosis.Warning, check: "synchronous_commit", holds: `ALTER ROLE "{{relay}}" RESET synchronous_commit`},
	{name: "asynchronous by database", sql: `ALTER DATABASE {{db}} SET synchronous_commit = off`, severity: diagnosis.Warning, check: "synchronous_commit", holds: `ALTER DATABASE "{{db}}" RESET synchronous_commit`},
	{name: "asynchronous by both", sql: `ALTER ROLE {{relay}} IN DATABASE {{db}} SET synchronous_commit = off`, severity: diagnosis.Warning, check: "synchronous_commit", holds: `ALTER ROLE "{{relay}}" IN DATABASE "{{db}}" RESET`},
	{name: "asynchronous app", sql: `ALTER ROLE {{app}} SET synchronous_commit = off`, severity: diagnosis.Warning, check: "synchronous_commit", holds: `ALTER ROLE "{{app}}" RESET synchronous_commit`},
	{name: "asynchronous app here", sql: `ALTER ROLE {{app}} IN DATABASE {{db}} SET synchronous_commit = off`, severity: diagnosis.Warning, check: "synchronous_commit", holds: `ALTER ROLE "{{app}}" IN DATABASE "{{db}}" RESET`},
	{name: "read-only by database", sql: `ALTER DATABASE {{db}} SET default_transaction_read_only = on`, severity: diagnosis.Problem, check: "default_transaction_read_only", holds: `ALTER DATABASE "{{db}}" RESET`},
}

// TestExamine breaks one thing after the other, finds it, and runs the cure: then
// nothing is left to be said.
func TestExamine(t *testing.T) {
	if len(illnesses) < 38 {
		t.Fatalf("only %d illnesses", len(illnesses))
	}
	each(t, func(t *testing.T, pg *servers.PG) {
		w := newWard(t, pg)
		if bad := w.examine().bad(); len(bad) > 0 {
			t.Fatalf("ill before anything was done:%v", bad)
		}
		for _, i := range illnesses {
			t.Run(i.name, func(t *testing.T) {
				w.t = t
				if i.options != nil {
					i.options(&w.o)
				}
				w.sql(i.sql)
				found := w.examine()
				found.want(t, i.severity, i.check, w.words(i.holds))
				w.cure(found)
			})
		}
		w.t = t
	})
}

// TestExamineRights takes each right that a role needs away, from the roles and from
// everybody; the cures give back what was taken, and are enough to work with.
func TestExamineRights(t *testing.T) {
	each(t, func(t *testing.T, pg *servers.PG) {
		w := newWard(t, pg)
		taken := 0
		for _, who := range []struct {
			role, check string
			needs       []right
		}{{w.relay.Name, "rights", relayNeeds()}, {w.app.Name, "rights of roles.app", appNeeds()}} {
			for at := 0; at < len(who.needs); {
				of := who.needs[at:]
				n := 1
				for n < len(of) && of[n].kind == of[0].kind && of[n].object == of[0].object {
					n++
				}
				of = of[:n]
				w.sql(statements(of, "REVOKE %s ON %s FROM PUBLIC, "+quoted(who.role)+";"))
				found := w.examine()
				if f := found.want(t, diagnosis.Problem, who.check, named(of[0].kind, of[0].object)); f.Cure != grants(who.role, of) {
					t.Errorf("%s\nfor %v", f.Cure, of)
				}
				w.cure(found)
				at += n
				taken += n
			}
		}
		if taken < 70 {
			t.Errorf("only %d rights were taken", taken)
		}
		// Roles that were given nothing have what the cures give them, and work.
		bare := &ward{t: t, pg: pg, admin: pg.NewDatabase(t), app: pg.NewRole(t), relay: pg.NewRole(t)}
		bare.migrate()
		bare.o = MigrateOptions{AppRole: bare.app.Name, RelayRole: bare.relay.Name}
		found := bare.examine()
		found.want(t, diagnosis.Problem, "rights", "more")
		for _, f := range found.bad() {
			bare.sql(f.Cure)
		}
		if bad := bare.examine().bad(); len(bad) > 0 {
			t.Fatalf("not cured:%v", bad)
		}
		s := open(t, bare.relay.URL(bare.admin), "")
		app := dial(t, bare.app.URL(bare.admin))
		sql(t, app, `INSERT INTO onewrite.outbox (topic, payload) VALUES ('a', '1')`, `SELECT onewrite.publish('b', NULL, '2')`,
			`INSERT INTO onewrite.scheduled (topic, deliver_at) VALUES ('c', now())`, `SELECT onewrite.cancel(gen_random_uuid())`)
		_, pos := readN(t, s, 3)
		if err := s.Ack(t.Context(), pos); err != nil {
			t.Fatal(err)
		}
		_, stop := drain(t, s, true)
		admin := dial(t, bare.admin)
		eventually(t, "the leaves are emptied", func() bool {
			return one[int64](t, admin, `SELECT sum(pg_relation_size('onewrite.outbox_' || i)) FROM generate_series(0, 7) i`) == 0
		})
		stop()
	})
}

func TestExamineVersions(t *testing.T) {
	for number, want := range map[int]diagnosis.Severity{120022: diagnosis.Problem, 130001: diagnosis.Warning, 149999: diagnosis.Warning, 150000: diagnosis.OK, 180001: diagnosis.OK} {
		e := &examiner{}
		e.version("1.2 (Debian 1.2-1.pgdg)", number)
		if f := e.found[0]; f.Severity != want || f.Check != "version" || strings.Contains(f.Text, "Debian") || (f.Cure == "") != (want == diagnosis.OK) {
			t.Errorf("%d: %+v", number, f)
		}
	}
}

// TestExamineBefore is a doctor that comes before migrate, or to the wrong address.
func TestExamineBefore(t *testing.T) {
	each(t, func(t *testing.T, pg *servers.PG) {
		w := &ward{t: t, pg: pg, admin: pg.NewDatabase(t), app: pg.NewRole(t), relay: pg.NewRole(t)}
		found := w.examine()
		found.want(t, diagnosis.Problem, "outbox", "onewrite migrate --print | psql")
		if bad := found.bad(); len(bad) != 1 {
			t.Errorf("more than the outbox is missing:%v", bad)
		}
		w.sql(`GRANT CREATE ON DATABASE {{db}} TO {{relay}}`)
		if f := w.examine().want(t, diagnosis.Problem, "outbox", "onewrite migrate"); f.Cure != "onewrite migrate" {
			t.Errorf("cure: %s", f.Cure)
		}
		// As a superuser, for roles that are not there.
		missing := MigrateOptions{AppRole: "no such app", RelayRole: "no such relay"}
		found = examineURL(t, w.admin, missing)
		found.want(t, diagnosis.Problem, "rights of roles.app", `CREATE ROLE "no such app" LOGIN`)
		found.want(t, diagnosis.Problem, "rights of roles.relay", `CREATE ROLE "no such relay" LOGIN`)
		found.want(t, diagnosis.Warning, "superuser", "no such relay in place of postgres")
		w.migrate()
		found = examineURL(t, w.admin, MigrateOptions{})
		found.want(t, diagnosis.Warning, "superuser", "CREATE ROLE onewrite_relay LOGIN;")
		if len(found.bad()) != 1 {
			t.Errorf("a superuser:%v", found.bad())
		}
		// The relay's role is asked too where the url names another one, and a role
		// that is both is no good.
		found = examineURL(t, w.admin, MigrateOptions{RelayRole: w.relay.Name})
		found.want(t, diagnosis.Problem, "rights of roles.relay", "GRANT SELECT, INSERT, TRUNCATE ON onewrite.outbox_0, onewrite.outbox_1")
		w.o = MigrateOptions{AppRole: w.relay.Name, RelayRole: w.relay.Name}
		w.migrate()
		w.examine().want(t, diagnosis.Warning, "rights of roles.app", "CREATE ROLE onewrite_relay")
		w.sql(`INSERT INTO onewrite.migration (version) VALUES (2)`)
		w.examine().want(t, diagnosis.Problem, "outbox", "install the newer onewrite")
		w.sql(`DELETE FROM onewrite.migration WHERE version = 2; DROP SEQUENCE onewrite.freed`)
		w.examine().want(t, diagnosis.Problem, "outbox", "onewrite migrate --down, then")

		for text, holds := range map[string]string{
			strings.Replace(w.admin, "/onewrite_", "/nothing_", 1):                      `CREATE DATABASE "nothing_`,
			servers.Role{Name: w.relay.Name, Password: "not-the-password"}.URL(w.admin): "check the user and password",
			strings.Replace(w.relay.URL(w.admin), pg.Addr(), "127.0.0.1:1", 1):          "pg_isready -h 127.0.0.1 -p 1",
			withQuery(w.relay.URL(w.admin), "sslmode=require"):                          "ssl = on",
			"postgres://" + w.relay.Name + ":secret-word@[":                             "write postgres://user@host",
		} {
			found := examineURL(t, text, MigrateOptions{})
			if len(found) != 1 {
				t.Errorf("%d findings of a server that cannot be reached", len(found))
			}
			found.want(t, diagnosis.Problem, "connection", holds)
		}
	})
}

func withQuery(text, query string) string {
	u, _ := url.Parse(text)
	u.RawQuery = query
	return u.String()
}

// TestExamineLive is about what goes on in the database.
func TestExamineLive(t *testing.T) {
	each(t, func(t *testing.T, pg *servers.PG) {
		w := newWard(t, pg)
		found := w.examine()
		found.want(t, diagnosis.OK, "two-phase commit", "max_prepared_transactions = 20")
		found.want(t, diagnosis.OK, "reader", "nobody reads this outbox, and nothing waits")
		found.want(t, diagnosis.OK, "backlog", "empty")
		found.want(t, diagnosis.OK, "session", "direct")
		found.want(t, diagnosis.OK, "clock", "within")
		found.want(t, diagnosis.OK, "transactions", "GRANT pg_read_all_stats")

		for ahead, way := range map[time.Duration]string{-time.Minute: "ahead of", time.Minute: "behind"} {
			f := w.examine(func(e *examiner) { e.now = func() time.Time { return time.Now().Add(ahead) } }).want(t, diagnosis.Warning, "clock", "set-ntp")
			if !strings.Contains(f.Text, way) {
				t.Error(f.Text)
			}
		}
		slow := 0 // an answer that takes a minute tells nothing of a clock that is within
		found = w.examine(func(e *examiner) {
			e.now = func() time.Time { slow++; return time.Now().Add(time.Duration(slow-3) * time.Minute) }
		})
		found.want(t, diagnosis.OK, "clock", "within 1m")

		w.sql(`GRANT pg_read_all_stats TO {{relay}}`)
		w.examine().want(t, diagnosis.OK, "transactions", "none is older")
		impatient := func(e *examiner) { e.old = 0 }
		holder := dial(t, w.admin)
		sql(t, holder, `BEGIN`, `INSERT INTO onewrite.outbox (topic) VALUES ('a')`)
		found = w.examine(impatient)
		if f := found.want(t, diagnosis.Warning, "transactions", "SELECT pg_terminate_backend("); !strings.Contains(f.Text, "onewrite.outbox_0") {
			t.Error(f.Text)
		}
		w.sql(found.want(t, diagnosis.Warning, "transactions", "").Cure)
		eventually(t, "the transaction is ended", func() bool { _, ill := w.examine(impatient).find(diagnosis.Warning, "transactions", ""); return !ill })
		holder = dial(t, w.admin)
		sql(t, holder, `BEGIN ISOLATION LEVEL REPEATABLE READ`, `SELECT 1`)
		w.sql(w.examine(impatient).want(t, diagnosis.Warning, "transactions", "holds a snapshot").Cure)
		eventually(t, "the snapshot is gone", func() bool { _, ill := w.examine(impatient).find(diagnosis.Warning, "transactions", ""); return !ill })

		holder = dial(t, w.admin)
		sql(t, holder, `BEGIN`, `INSERT INTO onewrite.outbox (topic) VALUES ('a')`, `PREPARE TRANSACTION 'it''s'`)
		w.sql(w.examine(impatient).want(t, diagnosis.Warning, "prepared", `ROLLBACK PREPARED 'it''s';`).Cure)
		if _, ill := w.examine(impatient).find(diagnosis.Warning, "prepared", ""); ill {
			t.Error("still prepared")
		}

		// A relay that has lost its rights runs, and reads nothing.
		w.sql(`REVOKE USAGE ON SCHEMA onewrite FROM {{relay}}`)
		grant := w.words(`GRANT USAGE ON SCHEMA onewrite TO "{{relay}}";`)
		if f := w.examine().want(t, diagnosis.Warning, "reader", "lacks its rights"); f.Cure != grant {
			t.Errorf("the cure: %s", f.Cure)
		}
		w.sql(grant)
		w.examine().want(t, diagnosis.Warning, "reader", "onewrite run") // the rows that were rolled back
		w.examine(func(e *examiner) { e.large = 1 }).want(t, diagnosis.Warning, "backlog", "onewrite status")
		s := open(t, w.relay.URL(w.admin), "")
		if f := w.examine().want(t, diagnosis.OK, "reader", "onewrite runs"); !strings.Contains(f.Text, fmt.Sprint("session ", s.conn.PgConn().PID())) {
			t.Error(f.Text)
		}
		// A lock that somebody holds for long is not waited for long.
		holder = dial(t, w.admin)
		sql(t, holder, `BEGIN`, `LOCK TABLE ONLY onewrite.outbox_0 IN ACCESS EXCLUSIVE MODE`)
		w.examine().want(t, diagnosis.Problem, "reader", "another session holds a lock")
	})
}

// TestExamineBeside runs beside a reader that reads and empties leaves, and a writer:
// nothing is lost or held up, and all is well.
func TestExamineBeside(t *testing.T) {
	each(t, func(t *testing.T, pg *servers.PG) {
		w := newWard(t, pg)
		s := open(t, w.relay.URL(w.admin), "")
		count, stop := drain(t, s, true)
		defer stop()
		app := dial(t, w.app.URL(w.admin))
		const rounds = 8
		for round := range rounds {
			sql(t, app, `INSERT INTO onewrite.outbox (topic, payload) SELECT 'a', repeat('x', 2000) FROM generate_series(1, 2000)`)
			if bad := w.examine().bad(); len(bad) > 0 {
				t.Fatalf("round %d:%v", round, bad)
			}
		}
		eventually(t, "all events came", func() bool { return count() == rounds*2000 })
		admin := dial(t, w.admin)
		eventually(t, "the leaves are emptied", func() bool {
			return one[int64](t, admin, `SELECT sum(pg_relation_size('onewrite.outbox_' || i)) FROM generate_series(0, 7) i`) == 0
		})
	})
}

// TestExaminePooler goes through PgBouncer, and through something that only passes
// the session on.
func TestExaminePooler(t *testing.T) {
	each(t, func(t *testing.T, pg *servers.PG) {
		w := newWard(t, pg)
		u, _ := url.Parse(w.relay.URL(w.admin))
		pooled, _ := url.Parse(servers.PgBouncer(t, pg)(""))
		u.Host = pooled.Host
		found := examineURL(t, u.String(), w.o)
		found.want(t, diagnosis.Problem, "session", pg.Addr())
		if bad := found.bad(); len(bad) != 1 {
			t.Errorf("more than the pooler:%v", bad)
		}
		// The number of the session that it was told is not the server's.
		u.Host = proxy(t, "127.0.0.1", pg.Addr(), func(piece []byte) {
			if i := bytes.Index(piece, []byte{'K', 0, 0, 0, 12}); i >= 0 {
				piece[i+8]++
			}
		})
		found = examineURL(t, u.String(), w.o)
		found.want(t, diagnosis.Warning, "session", pg.Addr())
		u.Host = outside(t)
		u.Host = proxy(t, u.Host, pg.Addr(), func([]byte) {})
		found = examineURL(t, u.String(), w.o)
		found.want(t, diagnosis.Warning, "tls", "sslmode=verify-full")
		if bad := found.bad(); len(bad) != 1 {
			t.Errorf("more than a clear connection:%v", bad)
		}
	})
}

// outside is an address of this machine that is not the loopback.
func outside(t *testing.T) string {
	t.Helper()
	addresses, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range addresses {
		if n, ok := a.(*net.IPNet); ok && n.IP.To4() != nil && !n.IP.IsLoopback() {
			return n.IP.String()
		}
	}
	t.Skip("this machine has no address but the loopback")
	return ""
}

// proxy passes connections on and lets look at what the server answers.
func proxy(t *testing.T, host, target string, look func(piece []byte)) (addr string) {
	t.Helper()
	l, err := net.Listen("tcp", net.JoinHostPort(host, "0"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			server, err := net.Dial("tcp", target)
			if err != nil {
				client.Close()
				return
			}
			go func() { _, _ = io.Copy(server, client); server.Close() }()
			go func() {
				defer client.Close()
				piece := make([]byte, 64<<10)
				for {
					n, err := server.Read(piece)
					if err != nil {
						return
					}
					look(piece[:n])
					if _, err := client.Write(piece[:n]); err != nil {
						return
					}
				}
			}()
		}
	}()
	return l.Addr().String()
}

// TestExamineServer is about servers that no other test may use.
func TestExamineServer(t *testing.T) {
	for _, version := range servers.Versions() {
		t.Run(fmt.Sprintf("postgres=%d", version), func(t *testing.T) {
			t.Parallel()
			pg := servers.NewPostgres(t, version, servers.Set("max_prepared_transactions", "0"))
			w := newWard(t, pg)
			if _, ok := w.examine().find(diagnosis.OK, "two-phase commit", ""); ok {
				t.Error("two-phase commit is off")
			}
			for _, name := range []string{"fsync", "full_page_writes", "synchronous_commit"} {
				w.sql("ALTER SYSTEM SET " + name + " = off; SELECT pg_reload_conf();")
				var found findings
				eventually(t, name+" is off", func() bool {
					found = w.examine()
					_, ill := found.find(diagnosis.Warning, name, "ALTER SYSTEM SET "+name+" = on; SELECT pg_reload_conf();")
					return ill
				})
				w.sql(found.want(t, diagnosis.Warning, name, "").Cure)
				eventually(t, name+" is on", func() bool { return len(w.examine().bad()) == 0 })
			}
			u, _ := url.Parse(w.relay.URL(w.admin))
			q := u.Query()
			q.Set("synchronous_commit", "off")
			u.RawQuery = q.Encode()
			examineURL(t, u.String(), w.o).want(t, diagnosis.Warning, "synchronous_commit", "remove synchronous_commit from the source's url")

			data := one[string](t, dial(t, w.admin), "SHOW data_directory")
			pg.Stop(t)
			pg.Start(t, servers.Set("full_page_writes", "off"))
			w.examine().want(t, diagnosis.Warning, "full_page_writes", "start the server without -c full_page_writes")

			// Frozen, it does not answer, and the end comes when it was to come.
			pg.Pause(t)
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
			defer cancel()
			found := checked(t, w.admin, Examine(ctx, w.relay.URL(w.admin), w.o))
			if len(found) != 1 {
				t.Errorf("of a server that does not answer:%v", found)
			}
			found.want(t, diagnosis.Problem, "connection", "")
			pg.Resume(t)

			pg.Stop(t)
			if err := os.WriteFile(filepath.Join(data, "standby.signal"), nil, 0o644); err != nil {
				t.Fatal(err)
			}
			pg.Start(t)
			w.examine().want(t, diagnosis.Problem, "primary", "target_session_attrs=read-write")
			pg.Stop(t)
		})
	}
}
