package sqlsink_test

import (
	"net/url"
	"strings"
	"testing"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/adapter/sqlsink"
	"github.com/onewrite/onewrite/internal/servers"
)

// cureOf is what stands behind "cure" in an error.
func cureOf(t *testing.T, err error) string {
	t.Helper()
	if err == nil {
		t.Fatal("no error")
	}
	_, cure, ok := strings.Cut(err.Error(), "; cure")
	if !ok {
		t.Fatalf("no cure: %v", err)
	}
	if _, sql, ok := strings.Cut(cure, ": "); ok {
		return sql
	}
	return cure
}

// run does what a cure says, statement by statement.
func (x *target) run(t *testing.T, cure string) {
	t.Helper()
	for _, sql := range strings.Split(cure, ";") {
		if sql = strings.TrimSpace(sql); sql != "" {
			x.exec(t, sql)
		}
	}
}

// TestCureOfSchema: the schema that a template names has to be there and open. The
// doctor sees it first, and each cure cures.
func TestCureOfSchema(t *testing.T) {
	for _, kind := range []string{sqlsink.Postgres, sqlsink.MySQL} {
		t.Run(kind, func(t *testing.T) {
			x := newTarget(t, kind, false)
			u, _ := url.Parse(x.cfg.URL)
			schema := "re " + strings.TrimPrefix(u.Path, "/")
			x.cfg.Table, x.cfg.Messages = schema+".{table}", schema+".m"
			if kind == sqlsink.Postgres {
				role := servers.Postgres(t, 15).NewRole(t)
				x.exec(t, "GRANT CREATE ON SCHEMA public TO "+role.Name)
				x.cfg.URL = role.URL(x.cfg.URL)
			} else {
				x.cfg.URL = servers.MariaDB(t).NewUser(t, x.cfg.URL, "SELECT, INSERT, UPDATE, DELETE, CREATE, ALTER")
				t.Cleanup(func() { _, _ = x.db.Exec("DROP DATABASE IF EXISTS `" + schema + "`") })
			}
			tables := []sqlsink.SourceTable{{Schema: "public", Table: "t", Topic: "public.t"}}
			makes := map[string]string{"postgres": `CREATE SCHEMA IF NOT EXISTS "` + schema + `" AUTHORIZATION "role_`, "mysql": "CREATE DATABASE IF NOT EXISTS `" + schema + "`; GRANT"}[kind]
			finds(t, sqlsink.Examine(t.Context(), x.cfg, tables, nil), "problem table "+schema, "problem table "+makes, "problem messages "+makes)
			s := x.sink(t)
			_, err := s.Write(t.Context(), []onewrite.Event{put(1, "a")})
			if kind == sqlsink.Postgres {
				refused(t, x.sink(t, func(c *sqlsink.Config) { c.NoCreate = true }), []onewrite.Event{put(1, "a")}, 0, makes, "CREATE TABLE")
				x.exec(t, `CREATE SCHEMA "`+schema+`"`) // of somebody else
				finds(t, sqlsink.Examine(t.Context(), x.cfg, tables, nil), "problem table permission denied for schema", "problem table GRANT USAGE, CREATE ON SCHEMA", "problem messages GRANT USAGE, CREATE ON SCHEMA")
				_, err := s.Write(t.Context(), []onewrite.Event{put(1, "a")})
				x.run(t, cureOf(t, err))
				write(t, s, put(1, "a"))
				x.exec(t, `DROP SCHEMA "`+schema+`" CASCADE`)
				_, err = s.Write(t.Context(), []onewrite.Event{put(1, "a")})
				x.run(t, cureOf(t, err))
			} else {
				x.run(t, cureOf(t, err))
			}
			finds(t, sqlsink.Examine(t.Context(), x.cfg, tables, nil), "ok table its first event makes it")
			write(t, s, put(1, "a"), onewrite.Event{ID: "m", Source: "s", Topic: "note", Type: "note"})
		})
	}
}

// TestCureOfRights: a role that may make nothing gets the SQL with its name.
func TestCureOfRights(t *testing.T) {
	for _, kind := range []string{sqlsink.Postgres, sqlsink.MySQL} {
		t.Run(kind, func(t *testing.T) {
			x := newTarget(t, kind, false)
			if kind == sqlsink.Postgres {
				x.exec(t, "REVOKE CREATE ON SCHEMA public FROM PUBLIC")
				x.cfg.URL = servers.Postgres(t, 15).NewRole(t).URL(x.cfg.URL)
			} else {
				x.cfg.URL = servers.MariaDB(t).NewUser(t, x.cfg.URL, "SELECT")
			}
			_, err := sqlsink.Open(t.Context(), x.cfg)
			x.run(t, cureOf(t, err))
			s := x.sink(t)
			for range 3 { // the table, and rights on it where they are another's
				n, err := s.Write(t.Context(), []onewrite.Event{put(1, "a")})
				if n == 1 && err == nil {
					return
				}
				x.run(t, cureOf(t, err))
			}
			_, err = s.Write(t.Context(), []onewrite.Event{put(1, "a")})
			t.Errorf("the cures do not cure: %v", err)
		})
	}
}

// TestCureOfConnecting: each reason has its own.
func TestCureOfConnecting(t *testing.T) {
	t.Run("postgres", func(t *testing.T) {
		x := newTarget(t, sqlsink.Postgres, false)
		u, _ := url.Parse(x.cfg.URL)
		role := servers.Postgres(t, 15).NewRole(t)
		closed := strings.TrimPrefix(u.Path, "/")
		x.exec(t, "REVOKE CONNECT ON DATABASE "+closed+" FROM PUBLIC")
		at := u.Host
		for what, want := range map[string]string{
			"postgres://" + u.User.String() + "@" + at + "/no%20such":             `; cure: CREATE DATABASE "no such";`,
			"postgres://" + u.User.String() + "@127.0.0.1:1/x":                    "; cure: pg_isready -h 127.0.0.1 -p 1",
			"postgres://" + u.User.String() + "@" + at + "/x?sslmode=verify-full": "turn TLS on at the server: ALTER SYSTEM SET ssl = on; SELECT pg_reload_conf();",
			role.URL(x.cfg.URL): `; cure: GRANT CONNECT ON DATABASE "` + closed + `" TO "` + role.Name + `";`,
			"postgres://" + role.Name + ":a-secret-word@" + at + "/postgres": "correct user and password in url; try them: psql -h 127.0.0.1 -p " + u.Port() + " -U " + role.Name + " -d postgres",
		} {
			c := x.cfg
			c.URL = what
			connects(t, c, want)
		}
	})
	t.Run("mysql", func(t *testing.T) {
		x := newTarget(t, sqlsink.MySQL, false)
		u, _ := url.Parse(x.cfg.URL)
		other, _ := url.Parse(servers.MariaDB(t).NewUser(t, servers.MariaDB(t).NewDatabase(t), "SELECT"))
		base := "mysql://" + u.User.String() + "@"
		denied := "mysql://" + other.User.String() + "@" + u.Host + u.Path
		for what, want := range map[string]string{
			base + u.Host + "/nosuch":                    "; cure: CREATE DATABASE `nosuch`;",
			base + "127.0.0.1:1/x":                       "; cure: nc -vz 127.0.0.1 1",
			base + u.Host + u.Path + "?tls=true":         "; cure: turn TLS on at the server",
			base + u.Host + "/x?socket=/no/such.sock":    "; cure: ls -l /no/such.sock",
			"mysql://x:a-secret-word@" + u.Host + u.Path: "mariadb -h 127.0.0.1 -P " + u.Port() + " -u x -p " + u.Path[1:],
			denied: "; cure: GRANT SELECT, INSERT, UPDATE, DELETE, CREATE, ALTER ON `" + u.Path[1:] + "`.* TO '" + other.User.Username() + "'@'127.0.0.1';",
		} {
			c := x.cfg
			c.URL = what
			connects(t, c, want)
		}
		x.cfg.URL = denied
		_, err := sqlsink.Open(t.Context(), x.cfg)
		x.run(t, cureOf(t, err))
		x.sink(t)
	})
}

// connects demands an error of connecting, in one line, that the doctor has too.
func connects(t *testing.T, c sqlsink.Config, want string) {
	t.Helper()
	s, err := sqlsink.Open(t.Context(), c)
	if err == nil {
		_ = s.Close()
		t.Errorf("opened, want %q", want)
		return
	}
	if text := err.Error(); !strings.HasSuffix(text, want) && !strings.Contains(text, want) || strings.Contains(text, "a-secret-word") || strings.Contains(text, "\n") {
		t.Errorf("no %q in: %v", want, err)
	}
	_, cure, _ := strings.Cut(want, "; cure: ")
	finds(t, sqlsink.Examine(t.Context(), c, nil, nil), "problem reach "+cure)
}
