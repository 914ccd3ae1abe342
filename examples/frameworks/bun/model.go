package bun

import (
	"context"

	"github.com/uptrace/bun"
)

// Event is the outbox as a model, for those who want to see its INSERT in bun's
// hooks. Publish checks more and says it better; this leaves it to the table. It
// has none of the columns that the application's role may not set.
type Event struct {
	bun.BaseModel `bun:"table:onewrite.outbox"`

	ID      string  `bun:"id,type:uuid,nullzero"` // empty: the database makes it
	Topic   string  `bun:"topic"`
	Key     string  `bun:"key,nullzero"`
	Payload *string `bun:"payload"` // text; bytes that are none need payload_bytes
}

// PlaceByModel is Place with the event as a model.
//
// Returning("NULL") is what makes it work: bun asks the database to return each
// column that got its default, and the application's role may not read the
// outbox. So leave an id that you want to know to outbox.NewID.
func PlaceByModel(ctx context.Context, tx bun.Tx, order Order, eventID string) error {
	if _, err := tx.NewInsert().Model(&order).Exec(ctx); err != nil {
		return err
	}
	payload := string(order.Document)
	event := Event{ID: eventID, Topic: "order.placed", Key: order.Customer, Payload: &payload}
	_, err := tx.NewInsert().Model(&event).Returning("NULL").Exec(ctx)
	return err
}
