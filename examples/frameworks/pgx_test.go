package frameworks_test

import (
	"context"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	example "github.com/onewrite/onewrite/examples/frameworks/pgx"
	"github.com/onewrite/onewrite/examples/frameworks/sqlc"
	"github.com/onewrite/onewrite/examples/frameworks/sqlc/db"
)

func testPgx(t *testing.T) {
	s, url := newPostgres(t)
	pool := newPool(t, url)
	check(t, s, framework{
		name: "pgx",
		placeOrder: func(ctx context.Context, o order, eventID string) error {
			return example.PlaceOrder(ctx, pool, example.Order(o), eventID)
		},
		inTx: pgxTx(pool, func(ctx context.Context, tx pgx.Tx, o order, eventID string) error {
			return example.Place(ctx, tx, example.Order(o), eventID)
		}),
	})
}

func testSqlc(t *testing.T) {
	s, url := newPostgres(t)
	pool := newPool(t, url)
	check(t, s, framework{
		name: "sqlc",
		placeOrder: func(ctx context.Context, o order, eventID string) error {
			return sqlc.PlaceOrder(ctx, pool, db.CreateOrderParams(o), eventID)
		},
		inTx: pgxTx(pool, func(ctx context.Context, tx pgx.Tx, o order, eventID string) error {
			return sqlc.Place(ctx, tx, db.CreateOrderParams(o), eventID)
		}),
	})
	check(t, s, framework{
		name:     "sqlc, query",
		textOnly: true,
		inTx: pgxTx(pool, func(ctx context.Context, tx pgx.Tx, o order, eventID string) error {
			return sqlc.PlaceByQuery(ctx, tx, db.CreateOrderParams(o), eventID)
		}),
	})
}

func newPool(t *testing.T, url string) *pgxpool.Pool {
	t.Helper()
	pool, err := pgxpool.New(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	return pool
}

// pgxTx runs transactions of pgx.
func pgxTx(pool *pgxpool.Pool, place func(context.Context, pgx.Tx, order, string) error) func(context.Context, func(transaction) error) error {
	return func(ctx context.Context, fn func(transaction) error) error {
		var part func(tx pgx.Tx) transaction
		part = func(tx pgx.Tx) transaction {
			return transaction{
				place: func(o order, eventID string) error { return place(ctx, tx, o, eventID) },
				nested: func(fn func(transaction) error) error {
					return pgx.BeginFunc(ctx, tx, func(tx pgx.Tx) error { return fn(part(tx)) })
				},
			}
		}
		return pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error { return fn(part(tx)) })
	}
}
