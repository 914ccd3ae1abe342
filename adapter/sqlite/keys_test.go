package sqlite

import (
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// refused expects Migrate to refuse a table, with the reason and the cure.
func refused(t *testing.T, ddl, table, says string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "app.db")
	exec1(t, app(t, path), ddl)
	_, err := Migrate(t.Context(), path, MigrateOptions{Tables: []string{table}})
	if err == nil || !strings.Contains(err.Error(), says) || !strings.HasSuffix(err.Error(), migrateHint) {
		t.Errorf("%s\nwant a refusal that says %q: %v", ddl, says, err)
	}
}

// rebuilds runs statements on the captured table t and expects its events to
// rebuild it, strictly and with either setting of recursive_triggers.
func rebuilds(t *testing.T, ddl string, columns []string, want string, statements ...string) {
	t.Helper()
	for recursive := range 2 {
		path := migrated(t, ddl, MigrateOptions{Tables: []string{"t"}, Snapshot: true})
		db := app(t, path, "foreign_keys(1)", fmt.Sprintf("recursive_triggers(%d)", recursive))
		for _, q := range statements {
			// SQLite refuses some of these for any table with a DELETE trigger.
			if _, err := db.Exec(q); err != nil && (recursive == 0 || !strings.HasPrefix(q, "UPDATE OR REPLACE") || !strings.Contains(err.Error(), "constraint failed")) {
				t.Errorf("%s: %v", q, err)
			}
		}
		s := opened(t, path, "")
		ev, _, _ := read(t, s, value[int](t, db, "SELECT count(*) FROM onewrite_outbox WHERE topic = 't'"))
		r := replica{map[string]string{}, nil}
		for _, e := range ev {
			if err := r.apply(e.Key, false, decode(t, e)); err != nil {
				t.Errorf("recursive %d: %v\n%s", recursive, err, story(t, ev))
				break
			}
		}
		var got []string
		for _, row := range r.rows {
			got = append(got, row)
		}
		slices.Sort(got)
		if there := cells(t, db, "t", columns); !slices.Equal(got, there) {
			t.Errorf("recursive %d: the events make %v, the table has %v\n%s", recursive, got, there, story(t, ev))
		}
		if got := strings.Join(got, " "); want != "" && got != want {
			t.Errorf("recursive %d: %s", recursive, got)
		}
	}
}

// The action of a foreign key changes other rows of the table while a REPLACE
// is under way.
func TestForeignKeyActionsWithinAReplace(t *testing.T) {
	const tree = "CREATE TABLE t (id INTEGER PRIMARY KEY, u UNIQUE, v UNIQUE, up REFERENCES t ON DELETE %s);" +
		"INSERT INTO t VALUES (1, 'a', 'p', NULL), (2, 'b', 'q', 1), (3, 'c', 'r', 1), (4, 'd', 's', 2), (5, 'e', 't', NULL)"
	cols := []string{"id", "u", "v", "up"}
	for action, want := range map[string]string{
		"SET NULL": `{"id":3,"u":"c","up":null,"v":"r"} {"id":4,"u":"d","up":null,"v":"s"} {"id":5,"u":"e","up":null,"v":"t"} {"id":9,"u":"a","up":null,"v":"q"}`,
		"CASCADE":  `{"id":5,"u":"e","up":null,"v":"t"} {"id":9,"u":"a","up":null,"v":"q"}`,
	} {
		t.Run(action, func(t *testing.T) {
			ddl := fmt.Sprintf(tree, action)
			// The new row replaces 1 and 2, and 2 is changed by the deletion of 1.
			rebuilds(t, ddl, cols, want, "INSERT OR REPLACE INTO t VALUES (9, 'a', 'q', NULL)")
			rebuilds(t, ddl, cols, "", "UPDATE OR REPLACE t SET u = 'a', v = 'q' WHERE id = 5")
			rebuilds(t, ddl, cols, "", "UPDATE OR REPLACE t SET id = 1 WHERE id = 5", "INSERT OR REPLACE INTO t VALUES (2, 'x', 'y', NULL)")
			if action == "CASCADE" { // the row that is updated goes too
				rebuilds(t, ddl, cols, "", "UPDATE OR REPLACE t SET u = 'a', v = 'q' WHERE id = 4")
			}
			// Notes of a row that was kept are not told later.
			rebuilds(t, ddl, cols, "", "INSERT OR IGNORE INTO t VALUES (9, 'a', 'q', 3)", "DELETE FROM t WHERE id = 1",
				"INSERT OR IGNORE INTO t VALUES (9, 'c', 'r', 5)", "UPDATE t SET u = 'z' WHERE u = 'c'", "INSERT OR REPLACE INTO t VALUES (7, 'z', 's', NULL)")
		})
	}
	rebuilds(t, strings.Replace(fmt.Sprintf(tree, "SET DEFAULT"), "up REF", "up DEFAULT 4 REF", 1), cols, "", "INSERT OR REPLACE INTO t VALUES (9, 'a', 'q', NULL)")
	// By way of another table, whose trigger writes the captured one in several
	// ways.
	cycle := `CREATE TABLE t (id INTEGER PRIMARY KEY, u UNIQUE, v UNIQUE, n INT DEFAULT 0);
		CREATE TABLE c (id INTEGER PRIMARY KEY, t REFERENCES t ON DELETE CASCADE);
		CREATE TRIGGER c_d AFTER DELETE ON c BEGIN UPDATE t SET n = n + 1; UPDATE t SET v = v || 'x' WHERE id = 3;
			INSERT OR IGNORE INTO t VALUES (50, 'c', NULL, 0); INSERT INTO t VALUES (3, 0, 0, 0) ON CONFLICT DO UPDATE SET n = n + 10;
			INSERT OR REPLACE INTO t VALUES (OLD.id + 100, 'e', NULL, 0); END;
		INSERT INTO t VALUES (1, 'a', 'p', 0), (2, 'b', 'q', 0), (3, 'c', 'r', 0), (4, 'd', 's', 0), (5, 'e', NULL, 0);
		INSERT INTO c VALUES (1, 1), (2, 1), (3, 2)`
	rebuilds(t, cycle, []string{"id", "u", "v", "n"}, "", "INSERT OR REPLACE INTO t VALUES (9, 'a', 'q', 0)",
		"INSERT INTO c VALUES (5, 9)", "UPDATE OR REPLACE t SET u = 'a', v = 's' WHERE id = 2", "INSERT OR REPLACE INTO t VALUES (60, 'a', 'z', 0)")
}

// The same with whatever statements.
func TestForeignKeyActionsRebuildTheTable(t *testing.T) {
	dir := t.TempDir()
	n := 0
	rapid.Check(t, func(rt *rapid.T) {
		if n++; n > 30 { // a file each
			return
		}
		path := filepath.Join(dir, fmt.Sprintf("%d.db", n))
		recursive := rapid.IntRange(0, 1).Draw(rt, "recursive")
		db := app(t, path, "foreign_keys(1)", fmt.Sprintf("recursive_triggers(%d)", recursive), "synchronous(0)")
		defer db.Close()
		exec1(t, db, "CREATE TABLE t (id INTEGER PRIMARY KEY, u UNIQUE, v UNIQUE, up REFERENCES t ON DELETE "+rapid.SampledFrom([]string{"SET NULL", "SET DEFAULT", "CASCADE"}).Draw(rt, "action")+");"+
			"CREATE TABLE c (t REFERENCES t ON DELETE CASCADE)")
		if rapid.Bool().Draw(rt, "trigger") {
			exec1(t, db, `CREATE TRIGGER c_d AFTER DELETE ON c BEGIN INSERT OR IGNORE INTO t VALUES (50, 1, 9, NULL);
				UPDATE OR IGNORE t SET v = v + 1 WHERE id % 2; INSERT INTO t VALUES (20, NULL, NULL, NULL) ON CONFLICT DO UPDATE SET u = NULL; INSERT OR REPLACE INTO t VALUES (60, 2, 3, NULL); END`)
		}
		if _, err := Migrate(t.Context(), path, MigrateOptions{Tables: []string{"t"}}); err != nil {
			rt.Fatal(err)
		}
		num := func() string { return rapid.SampledFrom([]string{"1", "2", "3", "4", "5", "NULL"}).Draw(rt, "num") }
		for range rapid.IntRange(1, 20).Draw(rt, "count") {
			row := "(" + num() + ", " + num() + ", " + num() + ", "
			col := rapid.SampledFrom([]string{"id", "u", "v"}).Draw(rt, "column")
			q := rapid.SampledFrom([]string{
				"INSERT OR REPLACE INTO t VALUES " + row + "NULL)", "INSERT OR REPLACE INTO t VALUES " + row + num() + "), " + row + "NULL)",
				"INSERT OR IGNORE INTO t VALUES " + row + num() + ")", "INSERT INTO t VALUES " + row + "NULL) ON CONFLICT DO UPDATE SET v = " + num(),
				"UPDATE t SET up = " + num() + " WHERE id = " + num(), "UPDATE OR IGNORE t SET " + col + " = " + num(), "DELETE FROM t WHERE u = " + num(),
				"INSERT INTO c VALUES (" + num() + ")", "UPDATE OR REPLACE t SET " + col + " = " + num() + " WHERE up IS NULL AND id = " + num(),
			}).Draw(rt, "statement")
			rt.Log(q)
			_, _ = db.Exec(q) // that of a foreign key that is broken fails
		}
		s, err := Open(t.Context(), Config{Name: "shop", Path: path}, "")
		if err != nil {
			rt.Fatal(err)
		}
		defer s.Close()
		r := replica{map[string]string{}, nil}
		ev, _, _ := read(t, s, value[int](t, db, "SELECT count(*) FROM onewrite_outbox"))
		for _, e := range ev {
			if err := r.apply(e.Key, false, decode(t, e)); err != nil {
				rt.Fatalf("%v\n%s", err, story(t, ev))
			}
		}
		if got, want := slices.Sorted(maps.Values(r.rows)), cells(t, db, "t", []string{"id", "u", "v", "up"}); !slices.Equal(got, want) {
			rt.Fatalf("the events make %v, the table has %v\n%s", got, want, story(t, ev))
		}
	})
}

// What the triggers note is gone when the statement is over, or when the source
// deletes what was delivered.
func TestNotesDoNotPileUp(t *testing.T) {
	path := migrated(t, `CREATE TABLE t (id INTEGER PRIMARY KEY, u UNIQUE, n INT DEFAULT 0); CREATE TABLE c (id INTEGER PRIMARY KEY, t REFERENCES t ON DELETE CASCADE);
		CREATE TRIGGER c_d AFTER DELETE ON c BEGIN INSERT OR IGNORE INTO t VALUES (1, 'c', 0); END;
		INSERT INTO t VALUES (1, 'a', 0), (3, 'c', 0)`, MigrateOptions{Tables: []string{"t"}})
	db := app(t, path, "foreign_keys(1)")
	notes := func() int { return value[int](t, db, "SELECT count(*) FROM onewrite_replaced") }
	for i := range 50 {
		exec1(t, db, "INSERT OR IGNORE INTO t VALUES (?, 'a', 0)", 100+i)
		exec1(t, db, "INSERT INTO t VALUES (1, 'a', 0) ON CONFLICT DO UPDATE SET n = n + 1")
		exec1(t, db, "INSERT OR REPLACE INTO t VALUES (3, 'c', 0)")
	}
	if n := notes(); n != 0 {
		t.Error(n, "notes left")
	}
	exec1(t, db, "INSERT INTO c VALUES (1, 3)")
	exec1(t, db, "INSERT OR REPLACE INTO t VALUES (3, 'd', 0)") // a nested statement that was ignored
	if notes() == 0 {
		t.Error("the test has nothing to sweep")
	}
	s := opened(t, path, "")
	_, pos, _ := read(t, s, value[int](t, db, "SELECT count(*) FROM onewrite_outbox"))
	if err := s.Ack(t.Context(), pos); err != nil {
		t.Fatal(err)
	}
	until(t, "the rest is gone", func() bool {
		return value[int](t, db, "SELECT count(*) FROM onewrite_outbox") == 0 && value[int](t, db, "SELECT count(*) FROM onewrite_replaced WHERE image = ''") == 0
	})
	exec1(t, db, "INSERT OR REPLACE INTO t VALUES (4, 'd', 0)")
	if n := notes(); n != 0 {
		t.Error(n, "notes left")
	}
}

// The action of ON UPDATE changes the row itself before its own change can be
// told.
func TestForeignKeysThatChangeTheirOwnRowAreRefused(t *testing.T) {
	for _, action := range []string{"CASCADE", "SET NULL", "SET DEFAULT"} {
		refused(t, "CREATE TABLE t (id INTEGER PRIMARY KEY, up REFERENCES T ON UPDATE "+action+")", "t", "foreign key")
		refused(t, "CREATE TABLE t (id INTEGER PRIMARY KEY, u UNIQUE REFERENCES c (b) ON UPDATE "+action+");"+
			"CREATE TABLE c (b UNIQUE REFERENCES t (u) ON UPDATE CASCADE)", "t", "foreign key")
	}
	// Two tables that point at each other by keys which no action changes.
	migrated(t, "CREATE TABLE t (id INTEGER PRIMARY KEY, c REFERENCES c ON UPDATE CASCADE, up REFERENCES t ON DELETE SET NULL);"+
		"CREATE TABLE c (id INTEGER PRIMARY KEY, t REFERENCES t ON UPDATE CASCADE ON DELETE CASCADE)", MigrateOptions{Tables: []string{"t", "c"}})
}

// A BEFORE trigger sees no generated column, so a key over one cannot be looked
// up.
func TestKeysOverGeneratedColumnsAreRefused(t *testing.T) {
	refused(t, "CREATE TABLE t (a, b, c, g AS (b || c) UNIQUE)", "t", "generated column g")
	refused(t, "CREATE TABLE t (a, b, c, g AS (b || c) STORED); CREATE UNIQUE INDEX t_g ON t (a, g)", "t", "generated column g")
	path := filepath.Join(t.TempDir(), "app.db")
	exec1(t, app(t, path), "CREATE TABLE t (a); CREATE UNIQUE INDEX t_a ON t (lower(a))")
	if _, err := Migrate(t.Context(), path, MigrateOptions{Tables: []string{"t"}}); err == nil || strings.Contains(err.Error(), "generated") {
		t.Error("a generated column is no way out:", err)
	}
}

// A bare or double-quoted word is text as a default, and a name anywhere else.
func TestDefaultsOfEveryForm(t *testing.T) {
	for dflt, want := range map[string]string{
		`pending`: `"pending"`, `"it's ""so"""`: `"it's \"so\""`, "`a``b`": "\"a`b\"", `[x y]`: `"x y"`, `"true"`: `"true"`, `Änder_1$`: `"Änder_1$"`,
		`'it''s'`: `"it's"`, `-5`: `-5`, `+.5`: `0.5`, `1e3`: `1000.0`, `x'00'`: `"AA=="`, `TRUE`: `1`, `false`: `0`, `0x10`: `16`,
		"(1 + 2 -- three\n)": `3`, `('a' || lower('B'))`: `"ab"`, `current_date`: "", `CURRENT_TIMESTAMP`: "", `NULL`: "",
	} {
		ddl := "CREATE TABLE d (id INTEGER PRIMARY KEY, s NOT NULL ON CONFLICT REPLACE DEFAULT " + dflt + " UNIQUE ON CONFLICT REPLACE)"
		if dflt == "NULL" {
			capture(t, ddl, "d", 1, "INSERT INTO d VALUES (1, 7)")
			continue
		}
		inserts := []string{"INSERT INTO d (id) VALUES (1)", "INSERT INTO d VALUES (2, NULL)"}
		if dflt == "CURRENT_TIMESTAMP" || dflt == "current_date" { // the same within a statement alone
			inserts = []string{"INSERT INTO d (id) VALUES (1), (2)"}
		}
		ev := capture(t, ddl, "d", 3, inserts...)
		if got := ev[0].Type + ev[1].Type + ev[2].Type; got != "insertdeleteinsert" || want != "" && !strings.Contains(string(ev[2].Data), `"s":`+want+`}`) {
			t.Errorf("%s: %s %s", dflt, got, ev[2].Data)
		}
	}
}

// Within a trigger the names mean the row before and after.
func TestTablesNamedOldAndNewAreRefused(t *testing.T) {
	for _, name := range []string{"old", "new", "Old", "NEW"} {
		refused(t, "CREATE TABLE "+name+" (a INTEGER PRIMARY KEY, b)", name, "means the row")
	}
}

func TestUTF16IsRefused(t *testing.T) {
	for _, encoding := range []string{"UTF-16le", "UTF-16be"} {
		path := filepath.Join(t.TempDir(), "app.db")
		exec1(t, app(t, path), "PRAGMA encoding = '"+encoding+"'; CREATE TABLE t (a)")
		for _, o := range []MigrateOptions{{}, {Tables: []string{"t"}}} {
			_, err := Migrate(t.Context(), path, o)
			if err == nil || !strings.Contains(err.Error(), encoding) || !strings.Contains(err.Error(), ".dump") || !strings.HasSuffix(err.Error(), migrateHint) {
				t.Error(err)
			}
		}
	}
}

// The trigger of a table that a BEFORE trigger writes writes the captured one.
func TestBeforeTriggersThatWriteByOthersAreRefused(t *testing.T) {
	refused(t, `CREATE TABLE t (a UNIQUE); CREATE TABLE "a b" (x); CREATE TABLE [log] (x);
		CREATE TRIGGER t_b BEFORE INSERT ON t BEGIN INSERT OR IGNORE INTO "a b" VALUES (1); END;
		CREATE TRIGGER ab_i AFTER INSERT ON "a b" BEGIN DELETE FROM [Log]; END;
		CREATE TRIGGER log_d AFTER DELETE ON log BEGIN UPDATE OR FAIL T SET a = 1; END`, "t", "BEFORE trigger t_b")
	refused(t, "CREATE TABLE t (a UNIQUE); CREATE TRIGGER t_b BEFORE INSERT ON t BEGIN /* x */ REPLACE INTO /* y */ t VALUES (1); END", "t", "BEFORE trigger t_b")
	refused(t, "CREATE TABLE t (a UNIQUE); CREATE TRIGGER [t AFTER b] /* AFTER */ INSERT ON t BEGIN DELETE FROM 't'; END", "t", "BEFORE trigger t AFTER b")
	migrated(t, `CREATE TABLE t (a UNIQUE); CREATE TABLE p (x);
		CREATE TRIGGER t_r BEFORE DELETE ON t WHEN OLD.a = 1 BEGIN SELECT RAISE(ABORT, 'do not delete from t'); -- insert into t
		END;
		CREATE TRIGGER t_b BEFORE INSERT ON t BEGIN INSERT INTO p SELECT a FROM t; END;
		CREATE TRIGGER t_a AFTER INSERT ON t BEGIN UPDATE t SET a = 2; END;
		CREATE TRIGGER p_i AFTER INSERT ON p BEGIN SELECT a FROM t; END`, MigrateOptions{Tables: []string{"t"}})
}
