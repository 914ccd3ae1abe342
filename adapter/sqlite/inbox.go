package sqlite

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/onewrite/onewrite/inbox"
)

// MigrateInbox makes the tables of package inbox in a consumer's file where they are
// missing; the file too, if its folder exists. It may be repeated, and run twice at
// once.
func MigrateInbox(ctx context.Context, path string) (err error) {
	c, done, err := open(ctx, path, "rwc", "busy_timeout(20000)")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, done()) }()
	if _, err := c.ExecContext(ctx, "BEGIN IMMEDIATE;\n"+inbox.Schema(inbox.SQLite, "")+"COMMIT"); err != nil {
		return heldUp(path, 20*time.Second, fmt.Errorf("sqlite: make the inbox in %s: %w", path, err))
	}
	return nil
}
