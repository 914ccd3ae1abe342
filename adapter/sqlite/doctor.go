package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"os"
	"path/filepath"
	"strings"

	driver "modernc.org/sqlite"

	"github.com/onewrite/onewrite/internal/diagnosis"
	"github.com/onewrite/onewrite/internal/disk"
)

// Examine looks at the file of a source as onewrite run and the application use it,
// and says what it finds; the caller adds the Subject. It only reads and holds no
// lock for longer than that takes, so it may run beside a reader, and before Migrate
// too. The options are those of [Migrate].
func Examine(ctx context.Context, path string, o MigrateOptions) []diagnosis.Finding {
	e := &examiner{path: path, o: o}
	e.run(ctx)
	return e.Found
}

// examiner is one examination.
type examiner struct {
	diagnosis.List
	path string
	o    MigrateOptions
}

func (e *examiner) run(ctx context.Context) {
	if !e.file() {
		return
	}
	e.folder()
	c, done, err := open(ctx, e.path, e.mode(), "busy_timeout(3000)", "query_only(1)")
	if err == nil {
		defer func() { _ = done() }()
		err = e.database(ctx, c)
	}
	var de *driver.Error
	switch {
	case err == nil:
	case errors.As(err, &de) && de.Code()&0xff == 26: // SQLITE_NOTADB
		e.Add(diagnosis.Problem, "database", "write the path of the application's database", "%s is not an SQLite database", e.path)
	case isBusy(err):
		e.Add(diagnosis.Warning, "database", "fuser -v "+disk.Quote(e.path), "another program has locked it, so it cannot be looked at")
	default:
		e.Add(diagnosis.Problem, "database", "sqlite3 "+disk.Quote(e.path)+" 'PRAGMA integrity_check'", "it cannot be read: %s", strings.TrimPrefix(err.Error(), "sqlite: "))
	}
}

// file looks at the file from outside; false if there is nothing inside.
func (e *examiner) file() bool {
	if full, err := filepath.Abs(e.path); err == nil { // it shows where a relative one leads
		e.path = full
	}
	real, err := filepath.EvalSymlinks(e.path)
	if errors.Is(err, os.ErrNotExist) {
		cure := "onewrite migrate"
		if dir := filepath.Dir(e.path); disk.Existing(dir) != dir {
			cure = "mkdir -p " + disk.Quote(dir) + " && onewrite migrate"
		}
		e.Add(diagnosis.Problem, "file", cure, "there is no file %s", e.path)
		return false
	}
	var info os.FileInfo
	if err == nil {
		e.path = real
		info, err = os.Stat(real)
	}
	switch {
	case err != nil:
		e.Add(diagnosis.Problem, "file", "ls -ld "+disk.Quote(filepath.Dir(e.path)), "%v", err)
		return false
	case !info.Mode().IsRegular():
		e.Add(diagnosis.Problem, "file", "write the path of the application's database", "%s is no file", e.path)
		return false
	}
	if why, cure := disk.Unreadable(e.path); why != "" {
		e.Add(diagnosis.Problem, "file", cure, "%s", why)
		return false
	}
	if why, cure := disk.Unwritable(e.path); why != "" {
		e.Add(diagnosis.Problem, "file", cure, "%s: onewrite deletes what it has delivered", why)
		return true
	}
	e.Add(diagnosis.OK, "file", "", "%s, %s", e.path, disk.Bytes(info.Size()))
	return true
}

// folder looks at what is beside the file: SQLite and the reader make files there.
func (e *examiner) folder() {
	dir := filepath.Dir(e.path)
	if why, cure := disk.Unwritable(dir); why != "" {
		e.Add(diagnosis.Problem, "folder", cure, "%s: SQLite and onewrite keep their locks and the WAL beside the file", why)
	}
	if short := disk.Scarce(dir); short != "" {
		e.Add(diagnosis.Warning, "disk", "df -h "+disk.Quote(dir), "%s: a full disk stops the application's writes, and its events", short)
	} else if free, _, known := disk.Room(dir); known {
		e.Add(diagnosis.OK, "disk", "", "%s free", disk.Bytes(free))
	}
}

// mode is how the file can be opened so that nothing changes. The last connection
// that may write moves a WAL that a crash has left into the file; one that may not
// leaves files behind that were not there.
func (e *examiner) mode() string {
	for _, suffix := range []string{"-wal", "-journal"} {
		if info, err := os.Stat(e.path + suffix); err == nil && info.Size() > 0 {
			return "ro"
		}
	}
	if why, _ := disk.Unwritable(e.path); why != "" {
		return "ro"
	}
	return "rw"
}

func (e *examiner) database(ctx context.Context, c *sql.Conn) error {
	objects, err := readObjects(ctx, c)
	if err != nil {
		return err
	}
	if objects["onewrite_meta"].sql == "" && objects["onewrite_outbox"].sql == "" {
		e.Add(diagnosis.Problem, "outbox", "onewrite migrate", "there is no outbox in %s", e.path)
		return nil
	}
	var mode string
	if err := c.QueryRowContext(ctx, "PRAGMA journal_mode").Scan(&mode); err != nil {
		return err
	}
	if strings.EqualFold(mode, "wal") {
		e.Add(diagnosis.OK, "journal", "", "WAL")
	} else {
		e.Add(diagnosis.Warning, "journal", "onewrite migrate", "the journal mode is %s, not WAL: the application waits while the outbox is read", mode)
	}
	if err := e.plan(ctx, c); err != nil {
		return err
	}
	return e.reader(ctx, c, objects)
}

// plan says what Migrate would do, as it works that out itself.
func (e *examiner) plan(ctx context.Context, c *sql.Conn) error {
	steps, err := plan(ctx, c, e.o)
	if isBusy(err) || ctx.Err() != nil {
		return err
	}
	if err != nil { // its last words are the cure
		text, cure := strings.TrimPrefix(err.Error(), "sqlite: "), "onewrite migrate"
		if i := strings.Index(text, "; "); i > 0 {
			text, cure = text[:i], text[i+2:]
		}
		e.Add(diagnosis.Problem, "outbox", cure, "%s", text)
		return nil
	}
	var tables []string
	said := len(e.Found)
	for _, s := range steps {
		switch {
		case s.what == "":
		case strings.HasPrefix(s.what, "largest event"):
			e.Add(diagnosis.Warning, "max_event", "onewrite migrate", "the outbox has another limit than the configuration; migrate says: %s", s.what)
		case strings.HasPrefix(s.what, "table of scheduled"):
			e.Add(diagnosis.Warning, "scheduled", "onewrite migrate", "there is no table onewrite_scheduled: events cannot be sent later")
		default:
			tables = append(tables, s.what)
		}
	}
	if len(tables) > 0 {
		e.Add(diagnosis.Problem, "tables", "onewrite migrate", "not as configured, or changed since; migrate would do: %s", strings.Join(tables, ", "))
	} else if len(steps) > 0 && len(e.Found) == said {
		e.Add(diagnosis.Problem, "outbox", "onewrite migrate", "the triggers that guard the outbox are missing, or another program's")
	}
	if len(steps) == 0 {
		captured := ""
		if n := len(e.o.Tables); n > 0 {
			captured = ", row changes captured: " + strings.Join(e.o.Tables, ", ")
		}
		e.Add(diagnosis.OK, "outbox", "", "there, version %d%s", schemaVersion, captured)
	}
	return nil
}

// reader says who reads the outbox, and what waits in it.
func (e *examiner) reader(ctx context.Context, c *sql.Conn, objects map[string]object) error {
	var waiting int64
	if objects["onewrite_outbox"].sql != "" { // rows are deleted from the oldest on
		if err := c.QueryRowContext(ctx, "SELECT coalesce(max(seq) - min(seq) + 1, 0) FROM onewrite_outbox").Scan(&waiting); err != nil {
			return err
		}
	}
	pid, held := disk.Holder(e.path + ".onewrite.lock")
	switch {
	case held && pid > 0:
		e.Add(diagnosis.OK, "reader", "", "onewrite runs: process %d reads this outbox, %d rows are in it", pid, waiting)
	case held:
		e.Add(diagnosis.OK, "reader", "", "onewrite runs and reads this outbox, %d rows are in it", waiting)
	case waiting > 0:
		e.Add(diagnosis.Warning, "reader", "onewrite run", "nobody reads this outbox, and about %d rows wait in it", waiting)
	default:
		e.Add(diagnosis.OK, "reader", "", "nobody reads this outbox, and nothing waits in it")
	}
	return nil
}
