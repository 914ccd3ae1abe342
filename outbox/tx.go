package outbox

import (
	"context"
	"database/sql"
	"fmt"
)

// InTx runs fn in a transaction of db with the default options, commits it and
// then rings the bell (see [Ring]).
//
//   - nil: committed
//   - fn's error as it is: rolled back. A panic of fn, or its end by
//     runtime.Goexit, rolls back too and goes on
//   - any other error: the transaction could not begin, or the commit failed. If
//     the connection broke in the commit, only a look into the database tells
//     whether it took place.
//
// ctx is that of the transaction: if it ends before the commit, all is rolled
// back. fn must not end tx, nor use db. An SQLite database is best opened with
// immediate transactions (_txlock=immediate for modernc.org/sqlite and mattn):
// else one that reads before it writes may be refused as busy.
func InTx(ctx context.Context, db *sql.DB, fn func(tx *sql.Tx) error) error {
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return fmt.Errorf("outbox: begin: %w (nothing was written; try again)", err)
	}
	ended := false
	defer func() {
		if !ended {
			_ = tx.Rollback() // what made fn fail says more than a failed rollback
		}
	}()
	if err := fn(tx); err != nil {
		return err
	}
	ended = true
	if err := tx.Commit(); err != nil {
		return fmt.Errorf("outbox: commit: %w (look whether it took place before you try again)", err)
	}
	Ring()
	return nil
}
