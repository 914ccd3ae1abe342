package sqlite

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
)

func migrate(t *testing.T, path string, o MigrateOptions) []string {
	t.Helper()
	applied, err := Migrate(t.Context(), path, o)
	if err != nil {
		t.Fatal(err)
	}
	return applied
}

func TestMigrateIsIdempotent(t *testing.T) {
	path := filepath.Join(t.TempDir(), "it's 100% new?#.db")
	if got := migrate(t, path, MigrateOptions{}); len(got) != 3 {
		t.Error(got)
	}
	if _, err := os.Stat(path); err != nil {
		t.Error(err)
	}
	for range 2 {
		if got := migrate(t, path, MigrateOptions{}); len(got) != 0 {
			t.Error(got)
		}
	}
	db := app(t, path)
	if mode := value[string](t, db, "PRAGMA journal_mode"); mode != "wal" {
		t.Error(mode)
	}
	exec1(t, db, "INSERT INTO onewrite_outbox (topic, payload) VALUES ('a', printf('%.*c', 900, 'p'))")
	if got := migrate(t, path, MigrateOptions{MaxEvent: 500}); len(got) != 1 || !strings.Contains(got[0], "500") {
		t.Error(got)
	}
	if _, err := db.Exec("INSERT INTO onewrite_outbox (topic, payload) VALUES ('a', printf('%.*c', 900, 'p'))"); err == nil {
		t.Error("the new limit does not hold")
	}
	exec1(t, db, "UPDATE onewrite_meta SET version = 2")
	if _, err := Migrate(t.Context(), path, MigrateOptions{}); err == nil || !strings.Contains(err.Error(), "newer") {
		t.Error(err)
	}
	if _, err := Open(t.Context(), Config{Path: path}, ""); err == nil || !strings.Contains(err.Error(), "newer") {
		t.Error(err)
	}
	if _, err := Migrate(t.Context(), filepath.Join(path, "no", "folder.db"), MigrateOptions{}); err == nil || !strings.Contains(err.Error(), "folder") {
		t.Error(err)
	}
}

func TestMigrateTwiceAtOnce(t *testing.T) {
	path := filepath.Join(t.TempDir(), "app.db")
	exec1(t, app(t, path), "CREATE TABLE o (id INTEGER PRIMARY KEY); INSERT INTO o VALUES (1), (2)")
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			if _, err := Migrate(t.Context(), path, MigrateOptions{Tables: []string{"o"}, Snapshot: true}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n := value[int](t, app(t, path), "SELECT count(*) FROM onewrite_outbox"); n != 2 {
		t.Error(n, "events of the snapshot")
	}
}

// What Schema prints, run by the sqlite3 shell, is what Migrate makes.
func TestSchemaRunsInTheShell(t *testing.T) {
	text, err := Schema(t.Context(), "", MigrateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "app.db")
	if out, err := shell(t, path, text); err != nil {
		t.Fatal(out)
	}
	if got := migrate(t, path, MigrateOptions{}); len(got) != 0 {
		t.Error(got)
	}
	exec1(t, app(t, path), `CREATE TABLE o (id INTEGER PRIMARY KEY, "select" TEXT UNIQUE); INSERT INTO o VALUES (1, 'x')`)
	o := MigrateOptions{Tables: []string{"o"}, Snapshot: true}
	if text, err = Schema(t.Context(), path, o); err != nil {
		t.Fatal(err)
	}
	if out, err := shell(t, path, text); err != nil {
		t.Fatal(out)
	}
	if got := migrate(t, path, o); len(got) != 0 {
		t.Error(got)
	}
	if text, err = Schema(t.Context(), path, o); err != nil || text != "-- up to date\n" {
		t.Error(text, err)
	}
	s := opened(t, path, "")
	if out, err := shell(t, path, "INSERT OR REPLACE INTO o VALUES (2, 'x');"); err != nil {
		t.Fatal(out)
	}
	ev, _, _ := read(t, s, 3)
	if got := []string{ev[0].Type, ev[1].Type, ev[2].Type}; !slices.Equal(got, []string{"snapshot", "delete", "insert"}) {
		t.Error(got)
	}
	if _, err := Schema(t.Context(), "", o); err == nil {
		t.Error("tables cannot be described without a file")
	}
}

func TestRollback(t *testing.T) {
	path := migrated(t, "CREATE TABLE o (id INTEGER PRIMARY KEY)", MigrateOptions{Tables: []string{"o"}})
	db := app(t, path)
	exec1(t, db, "INSERT INTO o VALUES (1)")
	if err := Rollback(t.Context(), path, false); err == nil || !strings.Contains(err.Error(), "1 events") {
		t.Error(err)
	}
	for range 2 {
		if err := Rollback(t.Context(), path, true); err != nil {
			t.Error(err)
		}
		if left := value[int](t, db, "SELECT count(*) FROM sqlite_schema WHERE sql LIKE '%onewrite%'"); left != 0 {
			t.Error(left, "objects left")
		}
	}
	exec1(t, db, "INSERT INTO o VALUES (2)")
	if err := Rollback(t.Context(), path+".no", false); err == nil {
		t.Error("a missing file is an error")
	}
	migrate(t, path, MigrateOptions{})
	if err := Rollback(t.Context(), path, false); err != nil {
		t.Error(err)
	}
}

func TestForeignTablesAreLeftAlone(t *testing.T) {
	path := filepath.Join(t.TempDir(), "app.db")
	exec1(t, app(t, path), "CREATE TABLE onewrite_outbox (a)")
	if _, err := Migrate(t.Context(), path, MigrateOptions{}); err == nil || !strings.Contains(err.Error(), "rename") {
		t.Error(err)
	}
}

func TestTablesThatCannotBeCapturedAreRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "app.db")
	exec1(t, app(t, path), `
CREATE TABLE "two words" (a);
CREATE TABLE "ünï" (a);
CREATE TABLE shadowed (rowid, _rowid_, oid);
CREATE TABLE wide (a, b, c, d, e, f, g, h, i, PRIMARY KEY (a, b, c, d, e, f, g, h, i)) WITHOUT ROWID;
CREATE TABLE expr (a); CREATE UNIQUE INDEX expr_i ON expr (lower(a));
CREATE VIEW v AS SELECT 1;
CREATE VIRTUAL TABLE f USING fts5(a);
CREATE TABLE b (a UNIQUE); CREATE TRIGGER b_t BEFORE INSERT ON b BEGIN UPDATE OR IGNORE "b" SET a = 1; END;
CREATE TABLE fine (rowid, _rowid_, oid INTEGER PRIMARY KEY);
CREATE TABLE fine2 (a UNIQUE); CREATE TRIGGER fine2_t BEFORE INSERT ON fine2 BEGIN SELECT RAISE(ABORT, 'x') FROM fine2 WHERE 0; END;
`)
	for name, says := range map[string]string{
		"two words": "topic", "ünï": "topic", "missing": "no such table", "shadowed": "rowid", "wide": "WITHOUT ROWID", "expr": "expression",
		"v": "view", "f": "virtual", "f_data": "shadow", "b": "BEFORE trigger b_t", "sqlite_schema": "application", "onewrite_meta": "",
	} {
		_, err := Migrate(t.Context(), path, MigrateOptions{Tables: []string{"fine", name}})
		if err == nil || !strings.Contains(err.Error(), says) || !strings.Contains(err.Error(), "table "+name+":") || !strings.HasSuffix(err.Error(), migrateHint) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if n := value[int](t, app(t, path), "SELECT count(*) FROM sqlite_schema WHERE name LIKE 'onewrite%'"); n != 0 {
		t.Error("a refused migration left", n, "objects")
	}
	migrate(t, path, MigrateOptions{Tables: []string{"fine", "fine2", "FINE"}})
	if _, err := Migrate(t.Context(), path, MigrateOptions{Tables: []string{"onewrite_outbox"}}); err == nil {
		t.Error("the outbox captures itself")
	}
}

func TestPartialWhere(t *testing.T) {
	for text, want := range map[string]string{
		`CREATE UNIQUE INDEX i ON t(a) WHERE b > 1`:                                        "b > 1",
		`CREATE UNIQUE INDEX "i) WHERE" ON [t)](a COLLATE "x)y", 'b)', (c))where(d = ')')`: "(d = ')')",
		"CREATE INDEX i ON t /* ( */ (a -- )\n) -- x (\n /* WHERE 1 */ WHERE b -- end":     "b -- end",
		"CREATE INDEX `i``(` ON t(a,\"b\"\")\") WHERE c":                                   "c",
	} {
		if got, ok := partialWhere(text); !ok || got != want {
			t.Errorf("%s: %q", text, got)
		}
	}
	for _, text := range []string{"", "CREATE INDEX i ON t(a)", "(", "CREATE INDEX i ON t(a) WHEREVER", "CREATE INDEX i ON t('", "x(/*"} {
		if got, ok := partialWhere(text); ok {
			t.Errorf("%s: %q", text, got)
		}
	}
}

// ALTER TABLE is noticed, and a second Migrate puts the triggers in step.
func TestTriggersFollowTheTable(t *testing.T) {
	o := MigrateOptions{Tables: []string{"o"}, Snapshot: true}
	path := migrated(t, "CREATE TABLE o (id INTEGER PRIMARY KEY, a)", o)
	db := app(t, path)
	s := opened(t, path, "")
	exec1(t, db, "INSERT INTO o VALUES (1, 'x')")
	read(t, s, 1)
	exec1(t, db, "ALTER TABLE o ADD COLUMN b DEFAULT 7; ALTER TABLE o RENAME COLUMN a TO aa")
	exec1(t, db, "UPDATE o SET b = 8")
	ev, _, gap := read(t, s, 1)
	if gap == nil || !strings.Contains(gap.Reason, "columns or keys of o") || gap.Cure == "" {
		t.Errorf("%v", gap)
	}
	if v := decode(t, ev[0]); fmt.Sprint(v.After) != "map[a:x id:1]" {
		t.Error(v.After)
	}
	if got := migrate(t, path, o); len(got) != 2 {
		t.Error(got)
	}
	exec1(t, db, "UPDATE o SET b = 9")
	ev, _, gap = read(t, s, 2)
	if v := decode(t, ev[0]); gap != nil || v.Op != "r" || fmt.Sprint(v.After) != "map[aa:x b:8 id:1]" {
		t.Error(gap, v.Op, v.After)
	}
	if v := decode(t, ev[1]); fmt.Sprint(v.Before, v.After) != "map[aa:x b:8 id:1] map[aa:x b:9 id:1]" {
		t.Error(v.Before, v.After)
	}
	// A unique index that came later would be missed by REPLACE.
	exec1(t, db, "CREATE UNIQUE INDEX o_aa ON o (aa); INSERT INTO onewrite_outbox (topic) VALUES ('x')")
	if _, _, gap = read(t, s, 1); gap == nil {
		t.Error("a new key was not noticed")
	}
	if got := migrate(t, path, o); len(got) != 2 {
		t.Error(got)
	}
	_, pos, _ := read(t, s, 1) // the snapshot
	// No longer listed: no triggers, and then the table may lose a column.
	if got := migrate(t, path, MigrateOptions{}); len(got) != 1 || !strings.Contains(got[0], "no longer") {
		t.Error(got)
	}
	exec1(t, db, "ALTER TABLE o DROP COLUMN b; DELETE FROM o")
	quiet(t, s)
	_ = s.Close()
	quiet(t, opened(t, path, pos2(t, path, pos)))
}

// A rebuilt table has lost its triggers: that is a gap until Migrate has run.
func TestLostTriggersAreAGap(t *testing.T) {
	o := MigrateOptions{Tables: []string{"o"}, Snapshot: true}
	path := migrated(t, "CREATE TABLE o (id INTEGER PRIMARY KEY, a); INSERT INTO o VALUES (1, 1)", o)
	db := app(t, path)
	s := opened(t, path, "")
	_, pos, _ := read(t, s, 1)
	exec1(t, db, "BEGIN; CREATE TABLE n (id INTEGER PRIMARY KEY, a); INSERT INTO n SELECT * FROM o; DROP TABLE o; ALTER TABLE n RENAME TO o; UPDATE o SET a = 2; COMMIT")
	isGap(t, s)
	_ = s.Close()
	if _, err := Open(t.Context(), Config{Name: "shop", Path: path, BusID: "bus-1"}, pos); !isGapError(err) {
		t.Fatal(err)
	}
	migrate(t, path, o)
	s = opened(t, path, pos)
	ev, _, _ := read(t, s, 1)
	if v := decode(t, ev[0]); v.Op != "r" || fmt.Sprint(v.After) != "map[a:2 id:1]" {
		t.Error(v)
	}
}
