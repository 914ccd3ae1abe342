// Package sqlc places orders through the code that sqlc generates, here for pgx.
// The code in the folder db is generated from the SQL beside it.
package sqlc

import (
	"cmp"
	"context"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/onewrite/onewrite/outbox"
	"github.com/onewrite/onewrite/outbox/pgxoutbox"

	"github.com/onewrite/onewrite/examples/frameworks/sqlc/db"
)

//go:generate go run github.com/sqlc-dev/sqlc/cmd/sqlc@v1.31.1 generate

// PlaceOrder commits the order and its event together, or neither. eventID is
// outbox.NewID(), or empty if nobody needs to know it.
func PlaceOrder(ctx context.Context, pool *pgxpool.Pool, order db.CreateOrderParams, eventID string) error {
	err := pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
		return Place(ctx, tx, order, eventID)
	})
	if err == nil {
		outbox.Ring()
	}
	return err
}

// Place is PlaceOrder in a transaction of the caller, or in a savepoint of it:
// tx.Begin makes one. The caller calls outbox.Ring after the commit. Code that
// sqlc generates for database/sql goes with the Publish of package outbox, which
// takes its *sql.Tx.
func Place(ctx context.Context, tx pgx.Tx, order db.CreateOrderParams, eventID string) error {
	if err := db.New(tx).CreateOrder(ctx, order); err != nil {
		return err
	}
	return pgxoutbox.Publish(ctx, tx, outbox.Event{
		ID: eventID, Topic: "order.placed", Key: order.Customer, Payload: order.Document,
	})
}

// PlaceByQuery is Place with a query of your own in place of Publish. Publish
// checks more and says it better; this leaves it to the table. The payload is
// text; bytes that are none need the column payload_bytes.
func PlaceByQuery(ctx context.Context, tx pgx.Tx, order db.CreateOrderParams, eventID string) error {
	queries := db.New(tx)
	if err := queries.CreateOrder(ctx, order); err != nil {
		return err
	}
	payload := string(order.Document)
	return queries.CreateEvent(ctx, db.CreateEventParams{
		ID: cmp.Or(eventID, outbox.NewID()), Topic: "order.placed", Key: &order.Customer, Payload: &payload,
	})
}
