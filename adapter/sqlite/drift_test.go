package sqlite

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/onewrite/onewrite"
)

// story is what a consumer sees, an event a word: op, key and new row.
func story(tb testing.TB, events []onewrite.Event) string {
	tb.Helper()
	var words []string
	for _, e := range events {
		v := decode(tb, e)
		words = append(words, v.Op+e.Key+fmt.Sprint(v.After))
	}
	return strings.Join(words, " ")
}

// gapNow expects a gap that only an operator can end: from a source that is
// open, and from Open. It closes the source.
func gapNow(tb testing.TB, s *Source, pos onewrite.Pos, says string) {
	tb.Helper()
	isGap(tb, s)
	_ = s.Close()
	_, err := Open(tb.Context(), Config{Name: "shop", Path: s.path, BusID: "bus-1"}, pos)
	var gap *onewrite.Gap
	if !errors.As(err, &gap) || !strings.Contains(gap.Reason, says) || !strings.Contains(gap.Cure, "onewrite migrate") {
		tb.Fatalf("want a gap that says %q: %v", says, err)
	}
}

// SQLite fires the newest trigger first. One of the application that is newer
// than ours would have the change that it makes captured before its cause.
func TestNewerTriggersOfTheApplicationAreAGap(t *testing.T) {
	o := MigrateOptions{Tables: []string{"o"}, Snapshot: true}
	const touch = "CREATE TRIGGER o_touch AFTER UPDATE OF a ON O BEGIN UPDATE o SET n = n + 1 WHERE id = NEW.id; END"
	path := migrated(t, "CREATE TABLE o (id INTEGER PRIMARY KEY, a, n INT DEFAULT 0); INSERT INTO o VALUES (1, 1, 0);"+touch, o)
	db := app(t, path)
	s := opened(t, path, "")
	_, pos, _ := read(t, s, 1)
	exec1(t, db, "DROP TRIGGER o_touch;"+touch+"; CREATE TRIGGER o_veto AFTER INSERT ON o WHEN NEW.a < 0 BEGIN DELETE FROM o WHERE id = NEW.id; END")
	gapNow(t, s, pos, "newer than those")
	if got := migrate(t, path, o); !slices.Equal(got, []string{"row changes of o captured by triggers", "snapshot of o"}) {
		t.Error(got)
	}
	if got := migrate(t, path, o); len(got) != 0 {
		t.Error(got)
	}
	s = opened(t, path, pos)
	exec1(t, db, "UPDATE o SET a = 2; INSERT INTO o VALUES (2, -1, 0)")
	ev, _, gap := read(t, s, 5)
	want := `r{"id":1}map[a:1 id:1 n:0] u{"id":1}map[a:2 id:1 n:0] u{"id":1}map[a:2 id:1 n:1] c{"id":2}map[a:-1 id:2 n:0] d{"id":2}map[]`
	if got := story(t, ev); got != want || gap != nil {
		t.Errorf("%v\n%s\n%s", gap, got, want)
	}
	// A trigger on another table is nobody's business.
	exec1(t, db, "CREATE TABLE p (a); CREATE TRIGGER p_t AFTER INSERT ON p BEGIN SELECT 1; END; UPDATE o SET n = 7")
	read(t, s, 1)
}

// The triggers go with a renamed table; one made under its old name has none.
func TestRenamedAndMadeAnewIsAGap(t *testing.T) {
	o := MigrateOptions{Tables: []string{"o"}, Snapshot: true}
	const make = "CREATE TABLE o (id INTEGER PRIMARY KEY, a)"
	path := migrated(t, make+"; INSERT INTO o VALUES (1, 1)", o)
	db := app(t, path)
	s := opened(t, path, "")
	_, pos, _ := read(t, s, 1)
	exec1(t, db, "BEGIN; ALTER TABLE o RENAME TO o_old; "+make+"; INSERT INTO o VALUES (2, 2); COMMIT")
	gapNow(t, s, pos, "o_old")
	if got := migrate(t, path, o); !slices.Contains(got, "snapshot of o") {
		t.Error(got)
	}
	s = opened(t, path, pos)
	exec1(t, db, "INSERT INTO o_old VALUES (3, 3); INSERT INTO o VALUES (4, 4)")
	ev, _, _ := read(t, s, 2)
	if got := story(t, ev); got != `r{"id":2}map[a:2 id:2] c{"id":4}map[a:4 id:4]` {
		t.Error(got)
	}
	// Renamed only: nothing is lost, but it is said.
	exec1(t, db, "ALTER TABLE o RENAME TO orders; INSERT INTO orders VALUES (5, 5)")
	_, pos, gap := read(t, s, 1)
	if gap == nil || !strings.Contains(gap.Reason, "o was renamed to orders") || !strings.Contains(gap.Cure, "onewrite migrate") {
		t.Error(gap)
	}
	_ = s.Close()
	exec1(t, db, "INSERT INTO orders VALUES (6, 6)")
	s = opened(t, path, pos)
	if _, _, gap = read(t, s, 1); gap == nil {
		t.Error("not said at Open")
	}
	migrate(t, path, MigrateOptions{Tables: []string{"orders"}, Snapshot: true})
	ev, _, gap = read(t, s, 4)
	if gap != nil || ev[3].Topic != "orders" {
		t.Error(gap, ev)
	}
}

// DROP TABLE fires no trigger: that the rows are gone is in no event.
func TestDroppedTableIsAGap(t *testing.T) {
	path := migrated(t, "CREATE TABLE o (id INTEGER PRIMARY KEY); INSERT INTO o VALUES (1)", MigrateOptions{Tables: []string{"o"}, Snapshot: true})
	db := app(t, path)
	s := opened(t, path, "")
	_, pos, _ := read(t, s, 1)
	exec1(t, db, "DROP TABLE o; INSERT INTO onewrite_outbox (topic) VALUES ('x')")
	gapNow(t, s, pos, "the table o was dropped")
	migrate(t, path, MigrateOptions{})
	s = opened(t, path, pos)
	if ev, _, gap := read(t, s, 1); gap != nil || ev[0].Topic != "x" {
		t.Error(gap, ev)
	}
}

// What a new key let REPLACE remove before Migrate ran is in no event, so the
// rows are told again.
func TestNewKeyMakesASnapshot(t *testing.T) {
	o := MigrateOptions{Tables: []string{"o"}, Snapshot: true}
	path := migrated(t, "CREATE TABLE o (id INTEGER PRIMARY KEY, a)", o)
	db := app(t, path)
	exec1(t, db, "INSERT INTO o VALUES (1, 1); CREATE UNIQUE INDEX o_a ON o (a); INSERT OR REPLACE INTO o VALUES (2, 1)")
	if got := migrate(t, path, o); !slices.Equal(got, []string{"row changes of o captured by triggers", "snapshot of o"}) {
		t.Error(got)
	}
	if got := migrate(t, path, o); len(got) != 0 {
		t.Error(got)
	}
}

// A key that comes later and lets a deletion write the table asks for other
// triggers; one of a table that leads nowhere does not.
func TestLaterForeignKeysAreNoticed(t *testing.T) {
	o := MigrateOptions{Tables: []string{"o"}}
	path := migrated(t, "CREATE TABLE o (id INTEGER PRIMARY KEY, a)", o)
	db := app(t, path)
	s := opened(t, path, "")
	exec1(t, db, "CREATE TABLE c (o REFERENCES o ON DELETE CASCADE ON UPDATE CASCADE); INSERT INTO o VALUES (1, 1)")
	if _, _, gap := read(t, s, 1); gap != nil {
		t.Error(gap)
	}
	exec1(t, db, "CREATE TRIGGER c_d AFTER DELETE ON c BEGIN UPDATE o SET a = a + 1; END; INSERT INTO o VALUES (2, 1)")
	if _, _, gap := read(t, s, 1); gap == nil || !strings.Contains(gap.Cure, "onewrite migrate") {
		t.Error("not noticed")
	}
	if got := migrate(t, path, o); len(got) != 1 {
		t.Error(got)
	}
	exec1(t, db, "CREATE TABLE d (a); INSERT INTO o VALUES (3, 1)")
	if _, _, gap := read(t, s, 1); gap != nil {
		t.Error(gap)
	}
}

// A newer trigger that leaves the table alone changes no order, and stops nobody.
func TestNewerTriggersThatWriteElsewhere(t *testing.T) {
	o := MigrateOptions{Tables: []string{"o"}}
	path := migrated(t, "CREATE TABLE o (id INTEGER PRIMARY KEY, a); CREATE TABLE log (a)", o)
	db := app(t, path)
	s := opened(t, path, "")
	exec1(t, db, "CREATE TRIGGER o_audit AFTER INSERT ON o BEGIN INSERT INTO log VALUES (NEW.a); END; INSERT INTO o VALUES (1, 1)")
	if ev, _, gap := read(t, s, 1); gap != nil || story(t, ev) != `c{"id":1}map[a:1 id:1]` {
		t.Errorf("%v, %s", gap, story(t, ev))
	}
	if got := migrate(t, path, o); len(got) != 0 {
		t.Error(got)
	}
	// By way of the other table it comes back.
	exec1(t, db, "CREATE TRIGGER log_back AFTER INSERT ON log BEGIN UPDATE o SET a = a + 1 WHERE a = NEW.a; END")
	isGap(t, s)
}
