package sqlite

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/onewrite/onewrite/outbox"
)

func uuidOf(n int) string { return fmt.Sprintf("00000000-0000-4000-8000-%012d", n) }

// later is when an event is due, as SQL has it.
func later(d time.Duration) string {
	return time.Now().Add(d).UTC().Format("2006-01-02T15:04:05.000Z")
}

func TestScheduled(t *testing.T) {
	path := migrated(t, "", MigrateOptions{})
	db := app(t, path)
	schedule := func(n int, at string) {
		exec1(t, db, `INSERT INTO onewrite_scheduled (deliver_at, id, topic, key, payload, headers) VALUES (?, ?, 'a', 'k', 'é', '{"a":"b"}')`, at, uuidOf(n))
	}
	schedule(2, later(-time.Hour))
	schedule(1, later(-2*time.Hour))
	schedule(9, later(24*time.Hour))
	s := opened(t, path, "")
	events, _, _ := read(t, s, 2)
	if events[0].ID != uuidOf(1) || events[1].ID != uuidOf(2) || string(events[0].Data) != "é" || events[0].Header["a"] != "b" || time.Since(events[0].Time) > time.Minute {
		t.Fatalf("%+v", events)
	}
	due := time.Now().Add(300 * time.Millisecond)
	schedule(3, later(300*time.Millisecond))
	if events, _, _ = read(t, s, 1); events[0].ID != uuidOf(3) || time.Now().Before(due.Truncate(time.Millisecond)) {
		t.Fatalf("%+v, %v before its time", events, time.Until(due))
	}
	if n := value[int](t, db, `SELECT count(*) FROM onewrite_scheduled`); n != 1 {
		t.Errorf("%d are scheduled, want that of tomorrow", n)
	}
}

func TestScheduledInBulk(t *testing.T) {
	path := migrated(t, "", MigrateOptions{})
	exec1(t, app(t, path), `WITH RECURSIVE i(n) AS (SELECT 1 UNION ALL SELECT n+1 FROM i WHERE n < 600)
		INSERT INTO onewrite_scheduled (deliver_at, topic, key) SELECT strftime('%Y-%m-%dT%H:%M:%fZ', 'now', printf('-%d seconds', n)), 'a', 'k' FROM i`)
	events, _, _ := read(t, opened(t, path, ""), 600)
	ids := map[string]bool{}
	for _, e := range events {
		ids[e.ID] = true
	}
	if len(ids) != 600 {
		t.Errorf("%d events of 600", len(ids))
	}
}

func TestScheduledAreGuarded(t *testing.T) {
	path := migrated(t, "", MigrateOptions{MaxEvent: 100})
	db := app(t, path)
	for what, values := range map[string]string{
		"no time":         `(NULL, 'a', NULL, NULL)`,
		"a local time":    `('2026-12-24 18:00:00', 'a', NULL, NULL)`,
		"no such day":     `('2026-19-39T18:00:00.000Z', 'a', NULL, NULL)`,
		"a bad topic":     `('` + later(0) + `', 'a b', NULL, NULL)`,
		"too large":       `('` + later(0) + `', 'a', printf('%.*c', 100, 'x'), NULL)`,
		"a bad header":    `('` + later(0) + `', 'a', NULL, '{"ce-id":"x"}')`,
		"headers of what": `('` + later(0) + `', 'a', NULL, '[]')`,
	} {
		if _, err := db.Exec(`INSERT INTO onewrite_scheduled (deliver_at, topic, payload, headers) VALUES ` + values); err == nil {
			t.Errorf("%s is taken", what)
		}
	}
	exec1(t, db, `INSERT INTO onewrite_scheduled (deliver_at, topic, payload) VALUES (?, 'a', printf('%.*c', 99, 'x'))`, later(time.Hour))
	if _, err := Migrate(t.Context(), path, MigrateOptions{MaxEvent: 50}); err == nil || !strings.Contains(err.Error(), "100 bytes") {
		t.Errorf("a limit below what is scheduled: %v", err)
	}
	if err := Rollback(t.Context(), path, false); err == nil {
		t.Error("a scheduled event was dropped")
	}
	if err := Rollback(t.Context(), path, true); err != nil {
		t.Error(err)
	}
}

// Through the Go library: at its time, cancelled, or at once.
func TestScheduledByTheLibrary(t *testing.T) {
	path := migrated(t, "", MigrateOptions{})
	db := app(t, path)
	events := outbox.New(outbox.SQLite)
	at := func(n int, d time.Duration) outbox.Event {
		return outbox.Event{ID: strings.ToUpper(uuidOf(n)), Topic: "a", DeliverAt: time.Now().Add(d)}
	}
	tx, err := db.Begin()
	if err != nil {
		t.Fatal(err)
	}
	if err := events.Publish(t.Context(), tx, at(1, time.Hour), at(2, -time.Hour), outbox.Event{ID: uuidOf(3), Topic: "a"}, at(4, 200*time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	if was, err := events.Cancel(t.Context(), tx, uuidOf(2)); was || err != nil {
		t.Errorf("an event that was sent at once was cancelled: %v %v", was, err)
	}
	if was, err := events.Cancel(t.Context(), tx, strings.ToUpper(uuidOf(1))); !was || err != nil {
		t.Errorf("cancel: %v %v", was, err)
	}
	if err := tx.Commit(); err != nil {
		t.Fatal(err)
	}
	if was, err := events.Cancel(t.Context(), db, uuidOf(1)); was || err != nil {
		t.Errorf("cancelled twice: %v %v", was, err)
	}
	if _, err := events.Cancel(t.Context(), db, "7"); err == nil {
		t.Error("7 is no id")
	}
	got, _, _ := read(t, opened(t, path, ""), 3)
	var ids []string
	for _, e := range got {
		ids = append(ids, e.ID)
	}
	if want := []string{uuidOf(2), uuidOf(3), uuidOf(4)}; !slices.Equal(ids, want) {
		t.Errorf("%v, want %v", ids, want)
	}
}

func TestScheduledOnAnOlderOutbox(t *testing.T) {
	path := migrated(t, "", MigrateOptions{})
	db := app(t, path)
	exec1(t, db, `DROP TABLE onewrite_scheduled`)
	exec1(t, db, `INSERT INTO onewrite_outbox (topic) VALUES ('a')`)
	s := opened(t, path, "")
	read(t, s, 1)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	applied, err := Migrate(t.Context(), path, MigrateOptions{})
	if err != nil || !strings.Contains(strings.Join(applied, "\n"), "scheduled") {
		t.Errorf("%q %v", applied, err)
	}
}

// What keeps scheduled events from being sent is an error of Read, not a silence.
func TestScheduledFailsAloud(t *testing.T) {
	path := migrated(t, "", MigrateOptions{})
	db := app(t, path)
	exec1(t, db, `CREATE TRIGGER full BEFORE INSERT ON onewrite_outbox BEGIN SELECT RAISE(ABORT, 'no room'); END`)
	exec1(t, db, `INSERT INTO onewrite_scheduled (deliver_at, topic) VALUES (?, 'a')`, later(-time.Second))
	s := opened(t, path, "")
	if _, err := s.Read(t.Context()); err == nil || !strings.Contains(err.Error(), "no room") {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	exec1(t, db, `DROP TRIGGER full`)
	read(t, opened(t, path, ""), 1)
}
