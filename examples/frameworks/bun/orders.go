// Package bun places orders through bun.
package bun

import (
	"context"

	"github.com/uptrace/bun"

	"github.com/onewrite/onewrite/outbox"
)

var events = outbox.New(outbox.Postgres)

// Order is a row of the table orders.
type Order struct {
	bun.BaseModel `bun:"table:orders"`

	ID       string `bun:"id,pk"`
	Customer string `bun:"customer"`
	Document []byte `bun:"document"`
}

// PlaceOrder commits the order and its event together, or neither. eventID is
// outbox.NewID(), or empty if nobody needs to know it.
func PlaceOrder(ctx context.Context, db *bun.DB, order Order, eventID string) error {
	err := db.RunInTx(ctx, nil, func(ctx context.Context, tx bun.Tx) error {
		return Place(ctx, tx, order, eventID)
	})
	if err == nil {
		outbox.Ring()
	}
	return err
}

// Place is PlaceOrder in a transaction of the caller, or in a savepoint of it:
// tx.RunInTx makes one. The caller calls outbox.Ring after the commit.
//
// Publish gets tx.Tx, the *sql.Tx within. A bun.Tx compiles too, but its
// ExecContext knows bun's placeholders only and drops the arguments of $1.
func Place(ctx context.Context, tx bun.Tx, order Order, eventID string) error {
	if _, err := tx.NewInsert().Model(&order).Exec(ctx); err != nil {
		return err
	}
	return events.Publish(ctx, tx.Tx, outbox.Event{
		ID: eventID, Topic: "order.placed", Key: order.Customer, Payload: order.Document,
	})
}
