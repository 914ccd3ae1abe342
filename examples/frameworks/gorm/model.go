package gorm

import (
	"cmp"

	"gorm.io/gorm"

	"github.com/onewrite/onewrite/outbox"
)

// Event is the outbox as a model, for those who want to see its INSERT in gorm's
// log. Publish checks more and says it better; this leaves it to the table. It
// has none of the columns that the application's role may not set, and AutoMigrate
// must not get it: the table is made by onewrite migrate.
//
// No field has the tag default, and the primary key is no number. gorm asks the
// database to return each such field, and the application's role may not read
// the outbox. A nil pointer is NULL.
type Event struct {
	ID      string `gorm:"primaryKey"` // never empty: outbox.NewID()
	Topic   string
	Key     *string
	Payload *string // text; bytes that are none need payload_bytes
}

// TableName names the table with its schema.
func (Event) TableName() string { return "onewrite.outbox" }

// PlaceByModel is Place with the event as a model.
func PlaceByModel(tx *gorm.DB, order Order, eventID string) error {
	if err := tx.Create(&order).Error; err != nil {
		return err
	}
	payload := string(order.Document)
	return tx.Create(&Event{
		ID: cmp.Or(eventID, outbox.NewID()), Topic: "order.placed", Key: &order.Customer, Payload: &payload,
	}).Error
}
