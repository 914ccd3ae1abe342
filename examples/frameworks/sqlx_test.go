package frameworks_test

import (
	"context"
	"testing"

	"github.com/jmoiron/sqlx"

	example "github.com/onewrite/onewrite/examples/frameworks/sqlx"
)

func testSqlx(t *testing.T) {
	s, url := newPostgres(t)
	db := sqlx.NewDb(open(t, url), "pgx")
	check(t, s, framework{
		name: "sqlx",
		placeOrder: func(ctx context.Context, o order, eventID string) error {
			return example.PlaceOrder(ctx, db, example.Order(o), eventID)
		},
		inTx: func(ctx context.Context, fn func(transaction) error) error {
			tx, err := db.BeginTxx(ctx, nil)
			if err != nil {
				return err
			}
			defer tx.Rollback()
			err = fn(savepoints(ctx, tx, func(o order, eventID string) error {
				return example.Place(ctx, tx, example.Order(o), eventID)
			}))
			if err != nil {
				return err
			}
			return tx.Commit()
		},
	})
}
