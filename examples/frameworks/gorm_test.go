package frameworks_test

import (
	"context"
	"testing"

	driver "gorm.io/driver/postgres"
	"gorm.io/gorm"
	"gorm.io/gorm/clause"
	"gorm.io/gorm/logger"

	"github.com/onewrite/onewrite/outbox"

	example "github.com/onewrite/onewrite/examples/frameworks/gorm"
)

func openGorm(t *testing.T, url string, config gorm.Config) *gorm.DB {
	t.Helper()
	config.Logger = logger.Discard // the errors are wanted
	db, err := gorm.Open(driver.New(driver.Config{Conn: open(t, url)}), &config)
	if err != nil {
		t.Fatal(err)
	}
	return db
}

func testGorm(t *testing.T) {
	s, url := newPostgres(t)
	for name, config := range map[string]gorm.Config{
		"gorm":              {},
		"gorm, PrepareStmt": {PrepareStmt: true},
	} {
		db := openGorm(t, url, config)
		check(t, s, framework{
			name: name,
			placeOrder: func(ctx context.Context, o order, eventID string) error {
				return example.PlaceOrder(ctx, db, example.Order(o), eventID)
			},
			inTx: gormTx(db, example.Place),
		})
		check(t, s, framework{name: name + ", model", textOnly: true, inTx: gormTx(db, example.PlaceByModel)})
	}
	db := openGorm(t, url, gorm.Config{})
	t.Run("defaults are returned", func(t *testing.T) { gormReturnsDefaults(t, s, db) })
	t.Run("outside of a transaction", func(t *testing.T) { gormOutsideOfATransaction(t, s, db) })
}

func gormTx(db *gorm.DB, place func(*gorm.DB, example.Order, string) error) func(context.Context, func(transaction) error) error {
	return func(ctx context.Context, fn func(transaction) error) error {
		var part func(tx *gorm.DB) transaction
		part = func(tx *gorm.DB) transaction {
			return transaction{
				place: func(o order, eventID string) error { return place(tx, example.Order(o), eventID) },
				nested: func(fn func(transaction) error) error {
					return tx.Transaction(func(tx *gorm.DB) error { return fn(part(tx)) })
				},
			}
		}
		return db.WithContext(ctx).Transaction(func(tx *gorm.DB) error { return fn(part(tx)) })
	}
}

// gormReturnsDefaults: why the model of the example has neither tags of
// defaults nor a number as its key.
func gormReturnsDefaults(t *testing.T, s shop, db *gorm.DB) {
	type withDefault struct {
		ID    string `gorm:"primaryKey;default:gen_random_uuid()"`
		Topic string
	}
	type withNumber struct {
		Seq   int64 `gorm:"primaryKey"`
		Topic string
	}
	table := func() *gorm.DB { return db.Table("onewrite.outbox") }
	for name, create := range map[string]func() error{
		"a default": func() error { return table().Create(&withDefault{Topic: "a"}).Error },
		"a number":  func() error { return table().Create(&withNumber{Topic: "a"}).Error },
		"by wish": func() error {
			return db.Clauses(clause.Returning{}).Create(&example.Event{ID: outbox.NewID(), Topic: "a"}).Error
		},
	} {
		if err := create(); !denied(err) {
			t.Errorf("%s: %v; want: permission denied", name, err)
		}
	}
	s.take(t)
	many := []example.Event{{ID: outbox.NewID(), Topic: "a"}, {ID: outbox.NewID(), Topic: "b"}}
	if err := db.Create(&many).Error; err != nil {
		t.Error(err)
	}
	if _, events := s.read(t); len(events) != 2 || events[0].id != many[0].ID || events[1].id != many[1].ID || events[0].key.Valid {
		t.Errorf("%d events: %+v", len(events), events)
	}
	s.empty(t)
}

// gormOutsideOfATransaction: what the example warns of.
func gormOutsideOfATransaction(t *testing.T, s shop, db *gorm.DB) {
	err := outbox.New(outbox.Postgres).Publish(t.Context(), db.Statement.ConnPool, outbox.Event{Topic: "a"})
	if _, events := s.read(t); err != nil || len(events) != 1 {
		t.Errorf("%d events, %v", len(events), err)
	}
	s.empty(t)
}
