// Package pgx places orders through pgx itself, whose transactions are not those
// of database/sql: package pgxoutbox takes them.
package pgx

import (
	"context"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/onewrite/onewrite/outbox"
	"github.com/onewrite/onewrite/outbox/pgxoutbox"
)

// Order is a row of the table orders.
type Order struct {
	ID, Customer string
	Document     []byte
}

// PlaceOrder commits the order and its event together, or neither. eventID is
// outbox.NewID(), or empty if nobody needs to know it.
func PlaceOrder(ctx context.Context, pool *pgxpool.Pool, order Order, eventID string) error {
	err := pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
		return Place(ctx, tx, order, eventID)
	})
	if err == nil {
		outbox.Ring()
	}
	return err
}

// Place is PlaceOrder in a transaction of the caller, or in a savepoint of it:
// tx.Begin makes one. The caller calls outbox.Ring after the commit.
func Place(ctx context.Context, tx pgx.Tx, order Order, eventID string) error {
	_, err := tx.Exec(ctx, `INSERT INTO orders (id, customer, document) VALUES ($1, $2, $3)`,
		order.ID, order.Customer, order.Document)
	if err != nil {
		return err
	}
	return pgxoutbox.Publish(ctx, tx, outbox.Event{
		ID: eventID, Topic: "order.placed", Key: order.Customer, Payload: order.Document,
	})
}
