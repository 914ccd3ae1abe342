package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"time"
)

// MigrateOptions say what the tables and triggers are made for.
type MigrateOptions struct {
	// MaxEvent is the largest event in bytes; 0 means 1 MiB. Row changes have
	// no limit: they must not make a statement of the application fail.
	MaxEvent int
	// Tables are those whose row changes are captured. A table left out loses
	// its triggers.
	Tables []string
	// Snapshot writes an event for each row that a newly captured table has, in
	// the transaction that makes the triggers.
	Snapshot bool
}

func (o MigrateOptions) maxEvent() int {
	if o.MaxEvent <= 0 {
		return defaultMaxEvent
	}
	return o.MaxEvent
}

// step is one statement of a migration. what is for the person who runs it;
// empty for a statement that belongs to the one before.
type step struct{ what, sql string }

// Migrate makes the file if it is missing, and brings its outbox, and the
// triggers of the tables in o, to the state this version wants. It returns what
// it did, nothing if all was well. It may be repeated, and run twice at once.
// It sets the journal mode WAL, in which readers and the writer do not wait for
// each other.
//
// An error means that nothing was changed but the journal mode. It says which
// table cannot be captured and why, or that another writer held the file for
// more than 30 seconds.
func Migrate(ctx context.Context, path string, o MigrateOptions) (applied []string, err error) {
	c, done, err := open(ctx, path, "rwc", "busy_timeout(30000)")
	if err != nil {
		return nil, err
	}
	defer done()
	changed, err := setWAL(ctx, c)
	if err != nil {
		return nil, migrateError(path, err)
	}
	if changed {
		applied = append(applied, "journal mode set to WAL")
	}
	err = immediate(ctx, c, func() error {
		steps, err := plan(ctx, c, o)
		if err != nil {
			return err
		}
		for _, s := range steps {
			if _, err := c.ExecContext(ctx, s.sql); err != nil {
				return fmt.Errorf("%s: %w", s.what, err)
			}
			if s.what != "" {
				applied = append(applied, s.what)
			}
		}
		return nil
	})
	if err != nil {
		return nil, migrateError(path, err)
	}
	return applied, nil
}

// setWAL says whether it changed the journal mode. SQLite does not call the busy
// handler when the mode is read or changed, so another migration of the same
// moment is waited for here.
func setWAL(ctx context.Context, c *sql.Conn) (changed bool, err error) {
	for end := time.Now().Add(30 * time.Second); ; {
		var before, after string
		if err = c.QueryRowContext(ctx, "PRAGMA journal_mode").Scan(&before); err == nil && before == "wal" {
			return false, nil
		}
		if err == nil {
			err = c.QueryRowContext(ctx, "PRAGMA journal_mode = WAL").Scan(&after)
		}
		switch {
		case err == nil && after == "wal":
			return true, nil
		case err == nil:
			return false, fmt.Errorf("it stays in journal mode %s, and onewrite needs WAL: close the other programs that use the file and %s", after, migrateHint)
		case !isBusy(err) || time.Now().After(end):
			return false, err
		}
		select {
		case <-time.After(5 * time.Millisecond):
		case <-ctx.Done():
			return false, ctx.Err()
		}
	}
}

func migrateError(path string, err error) error {
	if isBusy(err) {
		return fmt.Errorf("sqlite: another program has been writing %s for 30 s: %w; end its transaction and %s", path, err, migrateHint)
	}
	return fmt.Errorf("sqlite: migrate %s: %w", path, err)
}

// Schema returns the SQL that Migrate would run on the file, for the sqlite3
// shell; that for a new file if path is empty or the file is missing. An error
// names a table that cannot be captured.
func Schema(ctx context.Context, path string, o MigrateOptions) (string, error) {
	_, err := os.Stat(path)
	mode := "rw"
	if path == "" || errors.Is(err, os.ErrNotExist) {
		// A private database that ends with the connection.
		path, mode = "schema", "memory"
	}
	c, done, err := open(ctx, path, mode, "busy_timeout(5000)", "query_only(1)")
	if err != nil {
		return "", err
	}
	defer done()
	steps, err := plan(ctx, c, o)
	if err != nil {
		return "", err
	}
	if len(steps) == 0 {
		return "-- up to date\n", nil
	}
	var b strings.Builder
	b.WriteString("PRAGMA journal_mode = WAL;\nBEGIN IMMEDIATE;\n")
	for _, s := range steps {
		if s.what != "" {
			fmt.Fprintf(&b, "-- %s\n", s.what)
		}
		b.WriteString(s.sql + ";\n")
	}
	b.WriteString("COMMIT;\n")
	return b.String(), nil
}

// Rollback removes all that Migrate made, but not the file and not its journal
// mode. It refuses while the outbox holds events, as they may not be delivered
// yet, unless force is set. A file without an outbox is no error.
func Rollback(ctx context.Context, path string, force bool) error {
	real, err := realPath(path)
	if err != nil {
		return err
	}
	c, done, err := open(ctx, real, "rw", "busy_timeout(30000)")
	if err != nil {
		return err
	}
	defer done()
	err = immediate(ctx, c, func() error {
		objects, err := readObjects(ctx, c)
		if err != nil || objects["onewrite_meta"].sql == "" {
			return err
		}
		var left int64
		count := "SELECT count(*) FROM onewrite_outbox"
		if objects["onewrite_scheduled"].sql != "" {
			count = "SELECT (" + count + ") + (SELECT count(*) FROM onewrite_scheduled)"
		}
		if err := c.QueryRowContext(ctx, count).Scan(&left); err != nil {
			return err
		}
		if left > 0 && !force {
			return fmt.Errorf("the outbox holds %d events, scheduled ones included, that may not be delivered; let onewrite run until it is empty, or drop them with --force", left)
		}
		var drops []string
		for _, name := range slices.Sorted(maps.Keys(objects)) {
			if objects[name].kind == "trigger" {
				drops = append(drops, "DROP TRIGGER "+ident(name))
			}
		}
		for _, t := range []string{"onewrite_outbox", "onewrite_meta", "onewrite_layout", "onewrite_replaced", "onewrite_scheduled"} {
			drops = append(drops, "DROP TABLE IF EXISTS "+t)
		}
		for _, s := range drops {
			if _, err := c.ExecContext(ctx, s); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("sqlite: rollback %s: %w", path, err)
	}
	return nil
}

// object is something of ours in the file.
type object struct {
	kind, table, sql string
	rowid            int64 // in sqlite_schema: a trigger fires before those with a lower one
}

func readObjects(ctx context.Context, c *sql.Conn) (map[string]object, error) {
	rows, err := c.QueryContext(ctx, `SELECT name, type, tbl_name, coalesce(sql, ''), rowid FROM sqlite_schema WHERE name LIKE 'onewrite\_%' ESCAPE '\'`)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	m := map[string]object{}
	for rows.Next() {
		var name string
		var o object
		if err := rows.Scan(&name, &o.kind, &o.table, &o.sql, &o.rowid); err != nil {
			return nil, err
		}
		m[name] = o
	}
	return m, rows.Err()
}

// plan compares what is there with what is wanted.
func plan(ctx context.Context, c *sql.Conn, o MigrateOptions) ([]step, error) {
	objects, err := readObjects(ctx, c)
	if err != nil {
		return nil, err
	}
	if err := checkEncoding(ctx, c); err != nil {
		return nil, err
	}
	var steps []step
	current := map[int64]bool{}
	if objects["onewrite_meta"].sql == "" {
		for _, name := range []string{"onewrite_outbox", "onewrite_layout", "onewrite_replaced"} {
			if objects[name].sql != "" {
				return nil, fmt.Errorf("the table %s is there, but onewrite_meta is not; rename the table if it is the application's, and %s", name, migrateHint)
			}
		}
		steps = append(steps, step{"outbox created", outboxTable}, step{"", metaTable}, step{"", metaRow},
			step{"", layoutTable}, step{"", replacedTable()})
	} else {
		if err := checkVersion(ctx, c); err != nil {
			return nil, err
		}
		if current, err = currentLayouts(ctx, c); err != nil {
			return nil, err
		}
	}
	if objects["onewrite_scheduled"].sql == "" {
		what := "table of scheduled events created"
		if len(steps) > 0 {
			what = ""
		}
		steps = append(steps, step{what, scheduledTable}, step{"", scheduledIndexes})
	} else if err := checkScheduled(ctx, c, o.maxEvent()); err != nil {
		return nil, err
	}
	for _, g := range []struct{ name, says, want string }{
		{guardName, fmt.Sprintf("largest event set to %d bytes", o.maxEvent()), guard(o.maxEvent())},
		{headersName, "", headerGuard("onewrite_outbox")},
		{scheduledGuardName, "", scheduledGuard(o.maxEvent())},
		{scheduledHeadersName, "", headerGuard("onewrite_scheduled")},
	} {
		if objects[g.name].sql == g.want {
			continue
		}
		if objects[g.name].sql != "" {
			steps = append(steps, step{"", "DROP TRIGGER " + g.name})
		}
		steps = append(steps, step{g.says, g.want})
	}
	capture, err := planTables(ctx, c, o, objects, current)
	return append(steps, capture...), err
}

// checkScheduled refuses a limit that an event exceeds which is scheduled already: it
// could not be moved into the outbox when it is due.
func checkScheduled(ctx context.Context, c *sql.Conn, maxEvent int) error {
	var large int
	err := c.QueryRowContext(ctx, "SELECT coalesce(max("+sizeOf("")+"), 0) FROM onewrite_scheduled").Scan(&large)
	if err != nil || large <= maxEvent {
		return err
	}
	return fmt.Errorf("an event that is scheduled has %d bytes, more than the new limit of %d; set max_event to at least that, or cancel the event: DELETE FROM onewrite_scheduled WHERE id = …", large, maxEvent)
}

// checkEncoding refuses UTF-16: the rules of the outbox count bytes of UTF-8.
func checkEncoding(ctx context.Context, c *sql.Conn) error {
	var encoding string
	if err := c.QueryRowContext(ctx, "PRAGMA encoding").Scan(&encoding); err != nil {
		return err
	}
	if encoding != "UTF-8" {
		return fmt.Errorf("the database keeps text as %s, and the rules of the outbox count bytes of UTF-8; copy it into a file of UTF-8 (sqlite3 app.db .dump | sqlite3 new.db), put that in its place, and %s", encoding, migrateHint)
	}
	return nil
}

func checkVersion(ctx context.Context, c *sql.Conn) error {
	var version int
	if err := c.QueryRowContext(ctx, "SELECT version FROM onewrite_meta").Scan(&version); err != nil {
		return fmt.Errorf("onewrite_meta: %w; restore the file from a backup", err)
	}
	if version != schemaVersion {
		return fmt.Errorf("the outbox has version %d, and this program knows %d; use the newer program", version, schemaVersion)
	}
	return nil
}

func currentLayouts(ctx context.Context, c *sql.Conn) (map[int64]bool, error) {
	rows, err := c.QueryContext(ctx, `SELECT id FROM onewrite_layout WHERE "current"`)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	m := map[int64]bool{}
	for rows.Next() {
		var id int64
		if err := rows.Scan(&id); err != nil {
			return nil, err
		}
		m[id] = true
	}
	return m, rows.Err()
}

// planTables drops the triggers that are not wanted (any more), makes those
// that are missing, and writes the snapshots.
func planTables(ctx context.Context, c *sql.Conn, o MigrateOptions, objects map[string]object, current map[int64]bool) ([]step, error) {
	var drops, layouts, creates, snapshots []step
	wanted := map[string]bool{guardName: true, headersName: true, scheduledGuardName: true, scheduledHeadersName: true}
	seen := map[string]bool{}
	for _, name := range o.Tables {
		t, found, err := describe(ctx, c, name)
		if err == nil && !found {
			err = refuse(name, "there is no such table; create it, correct the name")
		}
		if err != nil {
			return nil, err
		}
		if seen[t.Table] {
			continue
		}
		seen[t.Table] = true
		spec, id := t.spec()
		fresh := !current[id]
		if fresh {
			layouts = append(layouts, step{"", fmt.Sprintf(`INSERT INTO onewrite_layout (id, spec, "current") VALUES (%d, %s, 1) ON CONFLICT (id) DO UPDATE SET "current" = 1`,
				id, literal(spec))})
		}
		delete(current, id)
		said := false
		for _, tr := range t.triggers() {
			wanted[tr.name] = true
			have := objects[tr.name]
			if have.sql == tr.sql && strings.EqualFold(have.table, t.Table) && have.rowid > t.newest {
				continue
			}
			// Changes may have been missed, or told in a wrong order.
			fresh = true
			if have.sql != "" {
				drops = append(drops, step{"", "DROP TRIGGER " + ident(tr.name)})
			}
			what := ""
			if !said {
				what, said = "row changes of "+t.Table+" captured by triggers", true
			}
			creates = append(creates, step{what, tr.sql})
		}
		if fresh && o.Snapshot {
			snapshots = append(snapshots, step{"snapshot of " + t.Table, t.snapshot()})
		}
	}
	for id := range current {
		layouts = append([]step{{"", fmt.Sprintf(`UPDATE onewrite_layout SET "current" = 0 WHERE id = %d`, id)}}, layouts...)
	}
	gone := map[string]bool{}
	for _, name := range slices.Sorted(maps.Keys(objects)) {
		ob := objects[name]
		if ob.kind == "trigger" && !wanted[name] {
			what := ""
			if !gone[ob.table] && !seen[ob.table] {
				what, gone[ob.table] = "row changes of "+ob.table+" no longer captured", true
			}
			drops = append(drops, step{what, "DROP TRIGGER " + ident(name)})
		}
	}
	return slices.Concat(drops, layouts, creates, snapshots), nil
}
