package sqlite

import (
	"context"
	"errors"
	"os"
	"runtime"
	"strings"
	"testing"

	"github.com/onewrite/onewrite"
)

// backup copies the file as an operator would, by the shell.
func backup(t *testing.T, path string) string {
	t.Helper()
	to := path + ".backup"
	if out, err := shell(t, path, ".backup "+to); err != nil {
		t.Fatal(out, err)
	}
	return to
}

// restore puts a copy in the place of the file. Its WAL must go too: SQLite
// would write it into the copy.
func restore(t *testing.T, path, from string) {
	t.Helper()
	for _, suffix := range []string{"", "-wal", "-shm"} {
		if err := os.Remove(path + suffix); err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
	}
	if err := os.Rename(from, path); err != nil {
		t.Fatal(err)
	}
}

const three = "INSERT INTO onewrite_outbox (topic) VALUES ('a'), ('a'), ('a')"

// hasGap opens at pos and expects all rows again, with a gap that says why;
// and the same once more, since the position has not moved.
func hasGap(t *testing.T, path string, pos onewrite.Pos, bus string, rows int, why string) onewrite.Pos {
	t.Helper()
	var at onewrite.Pos
	for range 2 {
		s, err := Open(t.Context(), Config{Name: "shop", Path: path, BusID: bus}, pos)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		b, err := s.Read(ctx)
		cancel()
		_ = s.Close()
		if err != nil || len(b.Events) != rows {
			t.Fatalf("%d events, want %d: %v", len(b.Events), rows, err)
		}
		if b.Gap == nil || b.Gap.Cure != "" || b.Gap.From == "" || b.Gap.To == "" {
			t.Fatalf("gap: %v", b.Gap)
		}
		if why != "" && !strings.Contains(b.Gap.Reason, why) {
			t.Fatalf("gap: %v, want %s", b.Gap, why)
		}
		at, why = b.Pos, ""
		if pos == "" {
			break // a lost bus is reported once
		}
	}
	if rows > 0 { // with the new position stored, all is well again
		s, err := Open(t.Context(), Config{Name: "shop", Path: path, BusID: bus}, at)
		if err != nil {
			t.Fatal(err)
		}
		quiet(t, s)
		_ = s.Close()
	}
	return at
}

func TestOlderCopyIsNoticed(t *testing.T) {
	for _, c := range []struct {
		name  string
		open  bool // the source is opened between copy and restore
		after string
		rows  int
		why   string
	}{
		{name: "copy from before the source was opened", open: true, rows: 3, why: "older copy"},
		{name: "copy of the same epoch", rows: 3, why: "holds less"},
		{name: "copy of the same epoch, written since", after: three + ";" + three, rows: 9, why: "older copy of the file was restored and written since"},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := migrated(t, "", MigrateOptions{})
			db := app(t, path)
			exec1(t, db, three)
			s := opened(t, path, "")
			_, pos, _ := read(t, s, 3)
			if c.open {
				_ = s.Close()
			}
			copied := backup(t, path)
			if c.open {
				s = opened(t, path, pos)
			}
			exec1(t, db, three)
			_, pos, _ = read(t, s, 3)
			_ = s.Close()
			_ = db.Close()
			restore(t, path, copied)
			if c.after != "" {
				db := app(t, path)
				exec1(t, db, c.after)
				_ = db.Close()
			}
			hasGap(t, path, pos, "bus-1", c.rows, c.why)
		})
	}
}

func TestForeignFileIsNoticed(t *testing.T) {
	path := migrated(t, "", MigrateOptions{})
	exec1(t, app(t, path), three)
	s := opened(t, path, "")
	_, pos, _ := read(t, s, 3)
	_ = s.Close()
	other := migrated(t, "", MigrateOptions{})
	exec1(t, app(t, other), three+";"+three)
	hasGap(t, other, pos, "bus-1", 6, "not the one that was read before")
	// With nothing in it there is a gap all the same.
	hasGap(t, migrated(t, "", MigrateOptions{}), pos, "bus-1", 0, "not the one")
}

func TestLostBusIsNoticed(t *testing.T) {
	path := migrated(t, "", MigrateOptions{})
	db := app(t, path)
	exec1(t, db, three)
	s := opened(t, path, "")
	first, pos, _ := read(t, s, 3)
	if err := s.Ack(t.Context(), pos); err != nil {
		t.Fatal(err)
	}
	until(t, "deleted", func() bool { return value[int](t, db, "SELECT count(*) FROM onewrite_outbox") == 0 })
	exec1(t, db, three)
	second, pos, _ := read(t, s, 3)
	_ = s.Close()

	at := hasGap(t, path, "", "bus-2", 3, "bus is not the one")
	if !strings.Contains(string(at), second[2].ID) || first[0].ID == second[0].ID {
		t.Error(at)
	}
	// Back to the first bus: it knows nothing of what the second one got.
	hasGap(t, path, pos, "bus-1", 3, "bus is not the one")

	// A file that nobody wrote to has nothing to lose.
	empty := migrated(t, "", MigrateOptions{})
	_ = opened(t, empty, "").Close()
	s, err := Open(t.Context(), Config{Name: "shop", Path: empty, BusID: "bus-2"}, "")
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	quiet(t, s)
}

// A position that was not stored because the bus failed leads to the same
// events, without a gap.
func TestSamePositionAgainIsNoGap(t *testing.T) {
	path := migrated(t, "", MigrateOptions{})
	exec1(t, app(t, path), three)
	for range 3 {
		s := opened(t, path, "")
		if _, _, gap := read(t, s, 3); gap != nil {
			t.Error(gap)
		}
		_ = s.Close()
	}
}

func TestChangesUnderTheReaderAreNoticed(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("an open file cannot be replaced there")
	}
	for _, c := range []struct {
		name   string
		damage func(t *testing.T, path, copied string)
		gap    bool
	}{
		{"file replaced", func(t *testing.T, path, copied string) {
			restore(t, path, copied)
		}, true},
		{"older copy restored in place", func(t *testing.T, path, copied string) {
			if out, err := shell(t, path, ".restore "+copied); err != nil {
				t.Fatal(out)
			}
		}, true},
		{"numbers begin anew", func(t *testing.T, path, copied string) {
			exec1(t, app(t, path), "DELETE FROM onewrite_outbox; DELETE FROM sqlite_sequence; "+three)
		}, true},
		{"file removed", func(t *testing.T, path, copied string) {
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
		}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := migrated(t, "", MigrateOptions{})
			db := app(t, path)
			exec1(t, db, three)
			s := opened(t, path, "")
			read(t, s, 3)
			copied := backup(t, path)
			exec1(t, db, three)
			_, pos, _ := read(t, s, 3)
			_ = db.Close()
			c.damage(t, path, copied)
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			if b, err := s.Read(ctx); err == nil || ctx.Err() != nil {
				t.Fatalf("not noticed: %d events, %v", len(b.Events), err)
			}
			_ = s.Close()
			if c.gap {
				hasGap(t, path, pos, "bus-1", 3, "")
			} else if _, err := Open(t.Context(), Config{Name: "shop", Path: path}, pos); err == nil || !strings.HasSuffix(err.Error(), migrateHint) {
				t.Error(err)
			}
		})
	}
}

// A second reader that passed the lock (another machine on a shared disk, say)
// ends the first one.
func TestSecondReaderFencesTheFirst(t *testing.T) {
	path := migrated(t, "", MigrateOptions{})
	s := opened(t, path, "")
	exec1(t, app(t, path), "UPDATE onewrite_meta SET epoch = epoch + 1")
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if _, err := s.Read(ctx); !errors.Is(err, onewrite.ErrFenced) {
		t.Error(err)
	}
}

// An acknowledgement for a history that was broken since deletes nothing.
func TestForeignAckDeletesNothing(t *testing.T) {
	path := migrated(t, "", MigrateOptions{})
	db := app(t, path)
	exec1(t, db, three)
	s := opened(t, path, "")
	_, pos, _ := read(t, s, 3)
	_ = s.Close()
	s, err := Open(t.Context(), Config{Name: "shop", Path: path, BusID: "bus-2"}, pos)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if err := s.Ack(t.Context(), pos); err != nil {
		t.Fatal(err)
	}
	read(t, s, 3)
	quiet(t, s)
	if n := value[int](t, db, "SELECT count(*) FROM onewrite_outbox"); n != 3 {
		t.Error(n, "rows left")
	}
	if err := s.Ack(t.Context(), "nonsense"); err == nil {
		t.Error("nonsense was taken")
	}
}
