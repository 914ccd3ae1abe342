// Package ent places orders through ent. The code in the folder ent is generated
// with two features: sql/execquery gives the transaction the method that Publish
// needs; sql/schemaconfig is for the model of the outbox only.
package ent

import (
	"cmp"
	"context"
	"database/sql"

	"entgo.io/ent/dialect"
	entsql "entgo.io/ent/dialect/sql"

	"github.com/onewrite/onewrite/outbox"

	"github.com/onewrite/onewrite/examples/frameworks/ent/ent"
)

//go:generate go run -mod=mod entgo.io/ent/cmd/ent generate --feature sql/execquery,sql/schemaconfig ./ent/schema

var events = outbox.New(outbox.Postgres)

// NewClient returns a client of db. AlternateSchema is for the model of the outbox
// only.
func NewClient(db *sql.DB) *ent.Client {
	return ent.NewClient(ent.Driver(entsql.OpenDB(dialect.Postgres, db)),
		ent.AlternateSchema(ent.SchemaConfig{Event: "onewrite"}))
}

// PlaceOrder commits the order and its event together, or neither. eventID is
// outbox.NewID(), or empty if nobody needs to know it.
func PlaceOrder(ctx context.Context, client *ent.Client, order ent.Order, eventID string) error {
	tx, err := client.Tx(ctx)
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
func Place(ctx context.Context, tx *ent.Tx, order ent.Order, eventID string) error {
	err := tx.Order.Create().SetID(order.ID).SetCustomer(order.Customer).SetDocument(order.Document).Exec(ctx)
	if err != nil {
		return err
	}
	return events.Publish(ctx, tx, outbox.Event{
		ID: eventID, Topic: "order.placed", Key: order.Customer, Payload: order.Document,
	})
}

// PlaceByModel is Place with the event as a model. For many events use Publish:
// CreateBulk always asks the database to return the ids, whoever made them.
func PlaceByModel(ctx context.Context, tx *ent.Tx, order ent.Order, eventID string) error {
	err := tx.Order.Create().SetID(order.ID).SetCustomer(order.Customer).SetDocument(order.Document).Exec(ctx)
	if err != nil {
		return err
	}
	return tx.Event.Create().SetID(cmp.Or(eventID, outbox.NewID())).
		SetTopic("order.placed").SetKey(order.Customer).SetPayload(string(order.Document)).Exec(ctx)
}
