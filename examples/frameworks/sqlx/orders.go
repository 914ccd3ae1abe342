// Package sqlx places orders through sqlx, whose *sqlx.Tx can be given to Publish
// as it is.
package sqlx

import (
	"context"

	"github.com/jmoiron/sqlx"

	"github.com/onewrite/onewrite/outbox"
)

var events = outbox.New(outbox.Postgres)

// Order is a row of the table orders.
type Order struct {
	ID       string `db:"id"`
	Customer string `db:"customer"`
	Document []byte `db:"document"`
}

// PlaceOrder commits the order and its event together, or neither. eventID is
// outbox.NewID(), or empty if nobody needs to know it.
func PlaceOrder(ctx context.Context, db *sqlx.DB, order Order, eventID string) error {
	tx, err := db.BeginTxx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback() // nothing after the commit
	if err := Place(ctx, tx, order, eventID); err != nil {
		return err
	}
	if err := tx.Commit(); err != nil {
		return err
	}
	outbox.Ring()
	return nil
}

// Place is PlaceOrder in a transaction of the caller, who calls outbox.Ring
// after the commit.
func Place(ctx context.Context, tx *sqlx.Tx, order Order, eventID string) error {
	_, err := tx.NamedExecContext(ctx, `INSERT INTO orders (id, customer, document) VALUES (:id, :customer, :document)`, order)
	if err != nil {
		return err
	}
	return events.Publish(ctx, tx, outbox.Event{
		ID: eventID, Topic: "order.placed", Key: order.Customer, Payload: order.Document,
	})
}
