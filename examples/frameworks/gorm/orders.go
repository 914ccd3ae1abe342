// Package gorm places orders through gorm.
package gorm

import (
	"context"

	"gorm.io/gorm"

	"github.com/onewrite/onewrite/outbox"
)

var events = outbox.New(outbox.Postgres)

// Order is a row of the table orders.
type Order struct {
	ID       string `gorm:"primaryKey"`
	Customer string
	Document []byte
}

// PlaceOrder commits the order and its event together, or neither. eventID is
// outbox.NewID(), or empty if nobody needs to know it.
func PlaceOrder(ctx context.Context, db *gorm.DB, order Order, eventID string) error {
	err := db.WithContext(ctx).Transaction(func(tx *gorm.DB) error {
		return Place(tx, order, eventID)
	})
	if err == nil {
		outbox.Ring()
	}
	return err
}

// Place is PlaceOrder in a transaction of the caller, or in a savepoint of it:
// tx.Transaction makes one. The caller calls outbox.Ring after the commit.
//
// tx.Statement.ConnPool is the transaction as database/sql has it, so Publish
// takes it. Of a *gorm.DB outside of Transaction it is the whole database, and
// the event would be committed without the order.
func Place(tx *gorm.DB, order Order, eventID string) error {
	if err := tx.Create(&order).Error; err != nil {
		return err
	}
	return events.Publish(tx.Statement.Context, tx.Statement.ConnPool, outbox.Event{
		ID: eventID, Topic: "order.placed", Key: order.Customer, Payload: order.Document,
	})
}
