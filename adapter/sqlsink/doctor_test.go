package sqlsink_test

import (
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/onewrite/onewrite/adapter/sqlsink"
	"github.com/onewrite/onewrite/internal/diagnosis"
	"github.com/onewrite/onewrite/internal/servers"
)

// finds demands findings: "severity check part of the text", and no other problems or
// warnings.
func finds(t *testing.T, got []diagnosis.Finding, want ...string) {
	t.Helper()
	for _, w := range want {
		part := strings.SplitN(w, " ", 3)
		found := false
		for _, f := range got {
			found = found || f.Severity.String() == part[0] && f.Check == part[1] && strings.Contains(f.Text+" "+f.Cure, part[2])
		}
		if !found {
			t.Errorf("nothing like %q in %v", w, got)
		}
	}
	for _, f := range got {
		if f.Severity == diagnosis.OK {
			continue
		}
		if f.Cure == "" {
			t.Errorf("no cure: %v", f)
		}
		meant := false
		for _, w := range want {
			meant = meant || strings.HasPrefix(w, f.Severity.String()+" "+f.Check+" ")
		}
		if !meant {
			t.Errorf("not expected: %v", f)
		}
	}
}

func TestDoctor(t *testing.T) {
	each(t, func(t *testing.T, x *target) {
		tables := []sqlsink.SourceTable{{"public", "t", "public.t"}, {"public", "later", "public.later"}, {"public", "nokey", "public.nokey"}, {"public", "unwanted", "public.unwanted"}}
		topics := []string{"public.t", "*.later", "public.nokey"}
		look := func(change ...func(*sqlsink.Config)) []diagnosis.Finding {
			c := x.cfg
			for _, f := range change {
				f(&c)
			}
			return sqlsink.Examine(t.Context(), c, tables, topics)
		}
		if x.kind == sqlsink.SQLite {
			finds(t, look(), "ok file not there yet")
			if _, err := os.Stat(x.cfg.Path); err == nil {
				t.Error("the doctor made the file")
			}
			finds(t, look(func(c *sqlsink.Config) { c.Path = filepath.Join(c.Path, "no", "folder.db") }), "problem folder mkdir -p")
		} else {
			finds(t, look(), "ok places not there yet", "ok table its first event makes it")
			x.want(t, "SELECT count(*) FROM information_schema.tables WHERE table_name = 'onewrite_places' AND table_schema NOT IN ('x')", "0")
		}
		s := x.sink(t)
		take(t, s)
		if _, err := s.WriteAt(t.Context(), at(put(1, "a")), []byte("x")); err != nil {
			t.Fatal(err)
		}
		x.exec(t, "CREATE TABLE nokey (id int)", "CREATE TABLE unwanted (id int)")
		finds(t, look(), "ok version "+map[string]string{"postgres": "PostgreSQL 15", "mysql": "MariaDB", "sqlite": "SQLite 3"}[x.kind], "ok places last written at",
			"ok table t for public.t: 2 columns, key id", "ok table later for public.later is not there yet", "warning table nokey has no key")
		for _, f := range look() {
			if f.Severity == diagnosis.Warning {
				sql, _, _ := strings.Cut(f.Cure, "--")
				x.exec(t, "CREATE TABLE had AS SELECT * FROM nokey", strings.Replace(sql, "(the key columns of the source)", "(id)", 1))
				finds(t, look(), "ok table for public.nokey: 1 columns, key")
				x.exec(t, "DROP TABLE nokey", "ALTER TABLE had RENAME TO nokey")
			}
		}
		finds(t, look(func(c *sqlsink.Config) { c.NoCreate = true }), "problem table no table later", "warning table nokey has no key")
		finds(t, look(func(c *sqlsink.Config) { c.Table = "{nothing}" }), "problem table no name of tables")
		x.exec(t, "ALTER TABLE onewrite_places RENAME TO theirs", "CREATE TABLE onewrite_places (id int)")
		finds(t, look(), "problem places not onewrite's", "warning table nokey has no key")
		x.exec(t, "DROP TABLE onewrite_places", "DROP TABLE nokey", "ALTER TABLE theirs RENAME TO onewrite_places")
		tables = tables[:2]
		switch x.kind {
		case sqlsink.Postgres:
			role := servers.Postgres(t, 15).NewRole(t)
			x.exec(t, "REVOKE CREATE ON SCHEMA public FROM PUBLIC", "GRANT SELECT, INSERT ON t TO "+role.Name)
			x.exec(t, "ALTER TABLE onewrite_places RENAME TO theirs")
			x.cfg.URL = role.URL(x.cfg.URL)
			finds(t, look(), "problem places GRANT CREATE ON SCHEMA public TO "+role.Name+";", "warning create GRANT CREATE ON SCHEMA public TO "+role.Name+";", "problem table may not UPDATE")
			x.exec(t, "ALTER TABLE theirs RENAME TO onewrite_places")
			finds(t, look(), "problem places GRANT SELECT, INSERT, UPDATE", "warning create may not make tables", "problem table may not UPDATE, DELETE, TRUNCATE the table t")
			finds(t, look(func(c *sqlsink.Config) { c.URL += "&default_transaction_read_only=on" }), "problem writable read only", "problem places GRANT", "warning create may not", "problem table may not")
		case sqlsink.MySQL:
			x.cfg.URL = servers.MariaDB(t).NewUser(t, x.cfg.URL, "SELECT, INSERT, UPDATE")
			finds(t, look(), "warning create may not make tables", "problem table may not DELETE the table t")
		case sqlsink.SQLite:
			if err := os.WriteFile(x.cfg.Path+"2", []byte(strings.Repeat("no database ", 100)), 0o600); err != nil {
				t.Fatal(err)
			}
			x.cfg.Path += "2"
			finds(t, look(), "problem reach not a database")
			return
		}
		u, _ := url.Parse(x.cfg.URL)
		u.User = url.UserPassword("nobody", "a-secret-word")
		x.cfg.URL = u.String()
		got := look()
		finds(t, got, "problem reach nobody")
		for _, f := range got {
			if strings.Contains(f.Text+f.Cure, "a-secret-word") {
				t.Errorf("shows the password: %v", f)
			}
		}
		x.cfg.URL = "no url"
		finds(t, look(), "problem reach write "+x.kind+"://")
	})
}
