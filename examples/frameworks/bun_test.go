package frameworks_test

import (
	"context"
	"errors"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/uptrace/bun"
	"github.com/uptrace/bun/dialect/pgdialect"

	"github.com/onewrite/onewrite/outbox"

	example "github.com/onewrite/onewrite/examples/frameworks/bun"
)

func bunOrder(o order) example.Order {
	return example.Order{ID: o.ID, Customer: o.Customer, Document: o.Document}
}

func testBun(t *testing.T) {
	s, url := newPostgres(t)
	db := bun.NewDB(open(t, url), pgdialect.New())
	check(t, s, framework{
		name: "bun",
		placeOrder: func(ctx context.Context, o order, eventID string) error {
			return example.PlaceOrder(ctx, db, bunOrder(o), eventID)
		},
		inTx: bunTx(db, example.Place),
	})
	check(t, s, framework{name: "bun, model", textOnly: true, inTx: bunTx(db, example.PlaceByModel)})
	t.Run("a bun.Tx is no Execer", func(t *testing.T) { bunTxIsNoExecer(t, s, db) })
	t.Run("defaults are returned", func(t *testing.T) { bunReturnsDefaults(t, s, db) })
}

func bunTx(db *bun.DB, place func(context.Context, bun.Tx, example.Order, string) error) func(context.Context, func(transaction) error) error {
	return func(ctx context.Context, fn func(transaction) error) error {
		var part func(tx bun.Tx) transaction
		part = func(tx bun.Tx) transaction {
			return transaction{
				place: func(o order, eventID string) error { return place(ctx, tx, bunOrder(o), eventID) },
				nested: func(fn func(transaction) error) error {
					return tx.RunInTx(ctx, nil, func(_ context.Context, tx bun.Tx) error { return fn(part(tx)) })
				},
			}
		}
		return db.RunInTx(ctx, nil, func(_ context.Context, tx bun.Tx) error { return fn(part(tx)) })
	}
}

// bunTxIsNoExecer: a bun.Tx has the method that Publish calls, and drops the
// arguments. It says so at the first event, and writes nothing.
func bunTxIsNoExecer(t *testing.T, s shop, db *bun.DB) {
	err := db.RunInTx(t.Context(), nil, func(ctx context.Context, tx bun.Tx) error {
		return outbox.New(outbox.Postgres).Publish(ctx, tx, outbox.Event{Topic: "a"})
	})
	var pg *pgconn.PgError
	if !errors.As(err, &pg) || pg.Code != "42P02" {
		t.Errorf("%v; want: there is no parameter $1. If bun has learnt to pass it, the example need not say otherwise", err)
	}
	s.take(t)
}

// bunReturnsDefaults: what Returning("NULL") in the example is for.
func bunReturnsDefaults(t *testing.T, s shop, db *bun.DB) {
	if _, err := db.NewInsert().Model(&example.Event{Topic: "a"}).Exec(t.Context()); !denied(err) {
		t.Errorf("an INSERT as bun makes it: %v; want: permission denied", err)
	}
	many := []example.Event{{Topic: "a"}, {Topic: "b", Key: "k"}}
	if _, err := db.NewInsert().Model(&many).Returning("NULL").Exec(t.Context()); err != nil {
		t.Error(err)
	}
	if _, events := s.read(t); len(events) != 2 || events[0].topic != "a" || events[0].key.Valid || events[1].key.String != "k" {
		t.Errorf("%d events: %+v", len(events), events)
	}
	s.empty(t)
}
