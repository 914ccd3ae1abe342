package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	driver "modernc.org/sqlite"

	"github.com/onewrite/onewrite/internal/disk"
)

const migrateHint = "run: onewrite migrate"

// open returns one connection to the file. mode is SQLite's: rw, or rwc to make
// a missing file. The database/sql pool would give each statement whatever
// connection is free; data_version and temporary states belong to one.
func open(ctx context.Context, path, mode string, pragmas ...string) (*sql.Conn, func() error, error) {
	dsn, err := dataSource(path, mode, pragmas)
	if err != nil {
		return nil, nil, err
	}
	db, err := sql.Open("sqlite", dsn)
	if err != nil {
		return nil, nil, fmt.Errorf("sqlite: open %s: %w", path, err)
	}
	db.SetMaxOpenConns(1)
	c, err := db.Conn(ctx)
	if err != nil {
		_ = db.Close()
		return nil, nil, fmt.Errorf("sqlite: open %s: %w (the folder must exist and be writable)", path, err)
	}
	return c, func() error { return errors.Join(c.Close(), db.Close()) }, nil
}

// dataSource writes the path as a URI, so that no character of it is taken for
// an option.
func dataSource(path, mode string, pragmas []string) (string, error) {
	full, err := filepath.Abs(path)
	if err != nil {
		return "", fmt.Errorf("sqlite: %s: %w", path, err)
	}
	full = filepath.ToSlash(full)
	if !strings.HasPrefix(full, "/") { // C:/…
		full = "/" + full
	}
	q := url.Values{"mode": {mode}, "_pragma": pragmas}
	return "file://" + (&url.URL{Path: full}).EscapedPath() + "?" + q.Encode(), nil
}

// realPath resolves links, so that one file has one lock.
func realPath(path string) (string, error) {
	real, err := filepath.EvalSymlinks(path)
	if errors.Is(err, os.ErrNotExist) {
		return "", fmt.Errorf("sqlite: the file %s does not exist; %s", path, migrateHint)
	}
	if err != nil {
		return "", fmt.Errorf("sqlite: %s: %w", path, err)
	}
	return real, nil
}

// isBusy reports that another connection holds the lock.
func isBusy(err error) bool {
	var e *driver.Error
	if !errors.As(err, &e) {
		return false
	}
	code := e.Code() & 0xff
	return code == 5 || code == 6 // SQLITE_BUSY, SQLITE_LOCKED
}

// heldUp names the file that another program has held for longer than this one waits,
// and how to find that program; any other error it returns as it is.
func heldUp(path string, waited time.Duration, err error) error {
	if !isBusy(err) {
		return err
	}
	return fmt.Errorf("sqlite: another program has held %s locked for %v: %w; find it with: fuser -v %s, and let it end its transaction", path, waited, err, disk.Quote(path))
}

// immediate runs fn in a transaction that holds the write lock from its start.
func immediate(ctx context.Context, c *sql.Conn, fn func() error) error {
	if err := begin(ctx, c); err != nil {
		return err
	}
	err := fn()
	if err == nil {
		_, err = c.ExecContext(ctx, "COMMIT")
	}
	if err != nil {
		// Some errors have ended the transaction already; then this one says so.
		_, _ = c.ExecContext(context.WithoutCancel(ctx), "ROLLBACK")
	}
	return err
}

// begin takes the write lock within the busy timeout. SQLite's own handler waits
// up to 100 ms between two tries, and starves behind an application that commits
// without a pause; a try each millisecond finds the moment between two commits.
func begin(ctx context.Context, c *sql.Conn) error {
	var wait int64 // ms
	if err := c.QueryRowContext(ctx, "PRAGMA busy_timeout").Scan(&wait); err != nil {
		return err
	}
	if _, err := c.ExecContext(ctx, "PRAGMA busy_timeout = 0"); err != nil {
		return err
	}
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	deadline := time.Now().Add(time.Duration(wait) * time.Millisecond)
	_, err := c.ExecContext(ctx, "BEGIN IMMEDIATE")
	for isBusy(err) && time.Now().Before(deadline) && ctx.Err() == nil {
		<-tick.C
		_, err = c.ExecContext(ctx, "BEGIN IMMEDIATE")
	}
	if _, back := c.ExecContext(context.WithoutCancel(ctx), fmt.Sprintf("PRAGMA busy_timeout = %d", wait)); err == nil {
		err = back
	}
	return err
}

func ident(name string) string { return `"` + strings.ReplaceAll(name, `"`, `""`) + `"` }

func literal(text string) string { return "'" + strings.ReplaceAll(text, "'", "''") + "'" }
