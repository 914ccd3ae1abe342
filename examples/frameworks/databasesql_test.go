package frameworks_test

import (
	"context"
	"database/sql"
	"testing"

	"github.com/onewrite/onewrite/outbox"

	"github.com/onewrite/onewrite/examples/frameworks/databasesql"
	"github.com/onewrite/onewrite/examples/frameworks/sqlite"
)

func testDatabaseSQL(t *testing.T) {
	s, url := newPostgres(t)
	db := open(t, url)
	check(t, s, framework{
		name: "databasesql",
		placeOrder: func(ctx context.Context, o order, eventID string) error {
			return databasesql.PlaceOrder(ctx, db, databasesql.Order(o), eventID)
		},
		inTx: sqlTx(db, func(ctx context.Context, tx *sql.Tx, o order, eventID string) error {
			return databasesql.Place(ctx, tx, databasesql.Order(o), eventID)
		}),
	})
}

func testSQLite(t *testing.T) {
	s, db := newSQLite(t)
	check(t, s, framework{
		name: "sqlite",
		placeOrder: func(ctx context.Context, o order, eventID string) error {
			return sqlite.PlaceOrder(ctx, db, sqlite.Order(o), eventID)
		},
		inTx: sqlTx(db, func(ctx context.Context, tx *sql.Tx, o order, eventID string) error {
			return sqlite.Place(ctx, tx, sqlite.Order(o), eventID)
		}),
	})
	testSQLiteGroup(t)
}

// testSQLiteGroup: callers that share their commits do not share their failures.
func testSQLiteGroup(t *testing.T) {
	s, db := newSQLite(t)
	group := outbox.NewGroup(db)
	defer group.Close()
	check(t, s, framework{
		name: "sqlite, Group",
		placeOrder: func(ctx context.Context, o order, eventID string) error {
			return group.Do(ctx, func(tx *sql.Tx) error { return sqlite.Place(ctx, tx, sqlite.Order(o), eventID) })
		},
		inTx: sqlTx(db, func(ctx context.Context, tx *sql.Tx, o order, eventID string) error {
			return sqlite.Place(ctx, tx, sqlite.Order(o), eventID)
		}),
	})
}

// sqlTx runs transactions of database/sql.
func sqlTx(db *sql.DB, place func(context.Context, *sql.Tx, order, string) error) func(context.Context, func(transaction) error) error {
	return func(ctx context.Context, fn func(transaction) error) error {
		tx, err := db.BeginTx(ctx, nil)
		if err != nil {
			return err
		}
		defer tx.Rollback()
		if err := fn(savepoints(ctx, tx, func(o order, eventID string) error { return place(ctx, tx, o, eventID) })); err != nil {
			return err
		}
		return tx.Commit()
	}
}

// savepoints is the transaction of a framework that has savepoints in SQL only.
func savepoints(ctx context.Context, tx outbox.Execer, place func(order, string) error) (t transaction) {
	t.place = place
	t.nested = func(fn func(transaction) error) error {
		if _, err := tx.ExecContext(ctx, "SAVEPOINT nested"); err != nil {
			return err
		}
		err := fn(t)
		end := "RELEASE SAVEPOINT nested"
		if err != nil {
			end = "ROLLBACK TO SAVEPOINT nested"
		}
		if _, endErr := tx.ExecContext(ctx, end); endErr != nil {
			return endErr
		}
		return err
	}
	return t
}
