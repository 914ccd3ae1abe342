package sqlite

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/onewrite/onewrite/internal/diagnosis"
)

// examined examines a file; every finding must be whole.
func examined(t *testing.T, path string, o MigrateOptions) []diagnosis.Finding {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	found := Examine(ctx, path, o)
	for _, f := range found {
		if f.Check == "" || f.Text == "" || strings.Contains(f.Text+f.Cure, "\n") || f.Severity > diagnosis.OK && f.Cure == "" {
			t.Errorf("not a whole finding of one line: %+v", f)
		}
	}
	return found
}

// wants fails the test if a finding is not there; holds is in its cure or text.
func wants(t *testing.T, found []diagnosis.Finding, s diagnosis.Severity, check, holds string) diagnosis.Finding {
	t.Helper()
	for _, f := range found {
		if f.Severity == s && f.Check == check && strings.Contains(f.Cure+"\x00"+f.Text, holds) {
			return f
		}
	}
	t.Errorf("no %v of %q with %q in\n%s", s, check, holds, list(found))
	return diagnosis.Finding{}
}

func list(found []diagnosis.Finding) string {
	var b strings.Builder
	for _, f := range found {
		fmt.Fprintf(&b, "%-8s %-10s %s | %s\n", f.Severity, f.Check, f.Text, f.Cure)
	}
	return b.String()
}

// healthy fails the test if something is worse than ok. The disk is the machine's.
func healthy(t *testing.T, found []diagnosis.Finding) {
	t.Helper()
	for _, f := range found {
		if f.Severity > diagnosis.OK && f.Check != "disk" {
			t.Errorf("%+v", f)
		}
	}
}

const (
	orders   = "CREATE TABLE o (id INTEGER PRIMARY KEY, a)"
	twoMega  = 2 << 20
	newTouch = "CREATE TRIGGER o_touch AFTER UPDATE OF a ON o BEGIN UPDATE o SET a = 1 WHERE id = NEW.id; END"
)

// TestExamine breaks one thing after the other and finds it. What onewrite migrate
// cures is gone after it.
func TestExamine(t *testing.T) {
	capture := MigrateOptions{Tables: []string{"o"}, Snapshot: true}
	cases := []struct {
		name, sql string
		o         MigrateOptions // what is configured when it is examined
		severity  diagnosis.Severity
		check     string
		holds     string
	}{
		{"no outbox", "DROP TABLE onewrite_meta; DROP TABLE onewrite_outbox; DROP TABLE onewrite_layout; DROP TABLE onewrite_replaced; DROP TABLE onewrite_scheduled; DROP TABLE o; " + orders, capture, diagnosis.Problem, "outbox", "there is no outbox"},
		{"half an outbox", "DROP TABLE onewrite_meta", capture, diagnosis.Problem, "outbox", "rename the table"},
		{"a newer version", "UPDATE onewrite_meta SET version = 2", capture, diagnosis.Problem, "outbox", "use the newer program"},
		{"another journal", "PRAGMA journal_mode = DELETE", capture, diagnosis.Warning, "journal", "is delete"},
		{"another limit", "", MigrateOptions{Tables: []string{"o"}, Snapshot: true, MaxEvent: twoMega}, diagnosis.Warning, "max_event", "largest event set to 2097152"},
		{"no schedule", "DROP TABLE onewrite_scheduled", capture, diagnosis.Warning, "scheduled", "cannot be sent later"},
		{"no guard", "DROP TRIGGER onewrite_outbox_headers", capture, diagnosis.Problem, "outbox", "guard"},
		{"a table made anew", "DROP TABLE o; " + orders, capture, diagnosis.Problem, "tables", "row changes of o captured by triggers, snapshot of o"},
		{"one trigger lost", "DROP TRIGGER onewrite_o_au", capture, diagnosis.Problem, "tables", "row changes of o captured by triggers"},
		{"a newer trigger", newTouch, capture, diagnosis.Problem, "tables", "row changes of o captured by triggers"},
		{"a new column", "ALTER TABLE o ADD COLUMN b", capture, diagnosis.Problem, "tables", "row changes of o captured by triggers"},
		{"a table too many", "", MigrateOptions{}, diagnosis.Problem, "tables", "row changes of o no longer captured"},
		{"a table to come", "CREATE TABLE p (a)", MigrateOptions{Tables: []string{"o", "p"}}, diagnosis.Problem, "tables", "row changes of p captured"},
		{"a table that is not there", "", MigrateOptions{Tables: []string{"o", "q"}}, diagnosis.Problem, "outbox", "create it, correct the name"},
		{"a view", "CREATE VIEW v AS SELECT 1", MigrateOptions{Tables: []string{"v"}}, diagnosis.Problem, "outbox", "name the table that holds its rows"},
		{"nobody reads", "INSERT INTO onewrite_outbox (topic) VALUES ('a'), ('b'); INSERT INTO o VALUES (1, 1)", capture, diagnosis.Warning, "reader", "about 3 rows wait"},
	}
	if len(cases) < 16 {
		t.Fatalf("only %d cases", len(cases))
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			path := migrated(t, orders, capture)
			healthy(t, examined(t, path, capture))
			if c.sql != "" {
				db := app(t, path)
				exec1(t, db, c.sql)
				db.Close()
			}
			f := wants(t, examined(t, path, c.o), c.severity, c.check, c.holds)
			if f.Cure != "onewrite migrate" {
				return
			}
			if _, err := Migrate(t.Context(), path, c.o); err != nil {
				t.Fatal(err)
			}
			for _, f := range examined(t, path, c.o) {
				if f.Severity > diagnosis.OK && f.Check != "disk" && f.Check != "reader" { // the snapshot waits
					t.Errorf("not cured: %+v", f)
				}
			}
		})
	}
}

// TestExamineFile is about files that are no outbox yet, or never.
func TestExamineFile(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	wants(t, examined(t, filepath.Join(dir, "app.db"), MigrateOptions{}), diagnosis.Problem, "file", "onewrite migrate")
	wants(t, examined(t, filepath.Join(dir, "a b", "app.db"), MigrateOptions{}), diagnosis.Problem, "file", "mkdir -p '"+filepath.Join(dir, "a b")+"' && onewrite migrate")
	wants(t, examined(t, dir, MigrateOptions{}), diagnosis.Problem, "file", "is no file")
	wants(t, examined(t, write("file", ""), MigrateOptions{}), diagnosis.Problem, "outbox", "onewrite migrate")
	wants(t, examined(t, filepath.Join(write("plain", "x"), "app.db"), MigrateOptions{}), diagnosis.Problem, "file", "ls -ld")
	wants(t, examined(t, write("text", strings.Repeat("no database\n", 1000)), MigrateOptions{}), diagnosis.Problem, "database", "the application's database")

	path := migrated(t, orders, MigrateOptions{})
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for i := 100; i < 4096; i++ {
		data[i] = 0xff
	}
	wants(t, examined(t, write("damaged", string(data)), MigrateOptions{}), diagnosis.Problem, "database", "PRAGMA integrity_check")

	wide := filepath.Join(dir, "wide.db")
	db := app(t, wide)
	exec1(t, db, "PRAGMA encoding = 'UTF-16'; "+orders)
	exec1(t, db, outboxTable+";"+metaTable+";"+metaRow)
	wants(t, examined(t, wide, MigrateOptions{}), diagnosis.Problem, "outbox", "UTF-8")

	link := filepath.Join(dir, "link.db")
	if err := os.Symlink(path, link); err != nil {
		t.Fatal(err)
	}
	healthy(t, examined(t, link, MigrateOptions{}))

	// Whoever locks the file for long is not waited for long.
	locked := filepath.Join(dir, "locked.db")
	db = app(t, locked)
	exec1(t, db, orders)
	exec1(t, db, "BEGIN EXCLUSIVE")
	wants(t, examined(t, locked, MigrateOptions{}), diagnosis.Warning, "database", "fuser -v")
}

// TestExamineBeside runs beside a reader and says so.
func TestExamineBeside(t *testing.T) {
	path := migrated(t, orders, MigrateOptions{})
	s := opened(t, path, "")
	db := app(t, path)
	for i := range 20 {
		exec1(t, db, "INSERT INTO onewrite_outbox (topic) VALUES ('a')")
		found := examined(t, path, MigrateOptions{})
		healthy(t, found)
		wants(t, found, diagnosis.OK, "reader", fmt.Sprintf("process %d reads this outbox, %d rows", os.Getpid(), i+1))
	}
	read(t, s, 20)
	s.Close()
	wants(t, examined(t, path, MigrateOptions{}), diagnosis.Warning, "reader", "about 20 rows")
	exec1(t, db, "DELETE FROM onewrite_outbox")
	wants(t, examined(t, path, MigrateOptions{}), diagnosis.OK, "reader", "nothing waits")
}

// TestExamineChangesNothing compares every byte in the folder before and after.
func TestExamineChangesNothing(t *testing.T) {
	o := MigrateOptions{Tables: []string{"o"}}
	for _, c := range []struct {
		name  string
		leave string // a file that may be new
		make  func(t *testing.T) string
	}{
		{"at rest", "", func(t *testing.T) string { return migrated(t, orders, o) }},
		{"in use", "", func(t *testing.T) string {
			path := migrated(t, orders, o)
			exec1(t, app(t, path), "INSERT INTO o VALUES (1, 1)")
			return path
		}},
		{"before migrate", "", func(t *testing.T) string {
			path := filepath.Join(t.TempDir(), "app.db")
			db := app(t, path)
			exec1(t, db, orders)
			db.Close()
			return path
		}},
		{"after a crash", "app.db-shm", func(t *testing.T) string {
			path, crashed := migrated(t, orders, o), t.TempDir()
			db := app(t, path)
			exec1(t, db, "INSERT INTO o VALUES (1, 1)")
			for _, suffix := range []string{"", "-wal"} {
				data, err := os.ReadFile(path + suffix)
				if err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(filepath.Join(crashed, "app.db"+suffix), data, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			return filepath.Join(crashed, "app.db")
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := c.make(t)
			before := contents(t, filepath.Dir(path))
			if len(examined(t, path, o)) < 3 {
				t.Error("little was looked at")
			}
			after := contents(t, filepath.Dir(path))
			delete(after, c.leave)
			for name, text := range after {
				if before[name] != text && !strings.HasSuffix(name, "-shm") { // marks of readers
					t.Errorf("%s changed or is new", name)
				}
				delete(before, name)
			}
			for name := range before {
				t.Errorf("%s is gone", name)
			}
		})
	}
}

func contents(t *testing.T, dir string) map[string]string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]string{}
	for _, e := range entries {
		text, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		all[e.Name()] = string(text)
	}
	return all
}
