// Package databasesql places orders through database/sql, here with the driver
// of pgx.
package databasesql

import (
	"context"
	"database/sql"

	"github.com/onewrite/onewrite/outbox"
)

var events = outbox.New(outbox.Postgres)

// Order is a row of the table orders.
type Order struct {
	ID, Customer string
	Document     []byte
}

// PlaceOrder commits the order and its event together, or neither. eventID is
// outbox.NewID(), or empty if nobody needs to know it.
func PlaceOrder(ctx context.Context, db *sql.DB, order Order, eventID string) error {
	return outbox.InTx(ctx, db, func(tx *sql.Tx) error {
		return Place(ctx, tx, order, eventID)
	})
}

// Place is PlaceOrder in a transaction of the caller, who calls outbox.Ring
// after the commit.
func Place(ctx context.Context, tx *sql.Tx, order Order, eventID string) error {
	_, err := tx.ExecContext(ctx, `INSERT INTO orders (id, customer, document) VALUES ($1, $2, $3)`,
		order.ID, order.Customer, order.Document)
	if err != nil {
		return err
	}
	return events.Publish(ctx, tx, outbox.Event{
		ID: eventID, Topic: "order.placed", Key: order.Customer, Payload: order.Document,
	})
}
