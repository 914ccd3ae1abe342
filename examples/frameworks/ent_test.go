package frameworks_test

import (
	"context"
	"testing"

	example "github.com/onewrite/onewrite/examples/frameworks/ent"
	"github.com/onewrite/onewrite/examples/frameworks/ent/ent"
	"github.com/onewrite/onewrite/examples/frameworks/ent/ent/migrate"
)

func entOrder(o order) ent.Order {
	return ent.Order{ID: o.ID, Customer: o.Customer, Document: o.Document}
}

func testEnt(t *testing.T) {
	s, url := newPostgres(t)
	client := example.NewClient(open(t, url))
	check(t, s, framework{
		name: "ent",
		placeOrder: func(ctx context.Context, o order, eventID string) error {
			return example.PlaceOrder(ctx, client, entOrder(o), eventID)
		},
		inTx: entTx(client, example.Place),
	})
	check(t, s, framework{name: "ent, model", textOnly: true, inTx: entTx(client, example.PlaceByModel)})
	t.Run("ids of many are returned", func(t *testing.T) { entReturnsIDsOfMany(t, s, client) })
}

func entTx(client *ent.Client, place func(context.Context, *ent.Tx, ent.Order, string) error) func(context.Context, func(transaction) error) error {
	return func(ctx context.Context, fn func(transaction) error) error {
		tx, err := client.Tx(ctx)
		if err != nil {
			return err
		}
		defer tx.Rollback()
		err = fn(savepoints(ctx, tx, func(o order, eventID string) error { return place(ctx, tx, entOrder(o), eventID) }))
		if err != nil {
			return err
		}
		return tx.Commit()
	}
}

// entReturnsIDsOfMany: why the example sends those who have many to Publish.
func entReturnsIDsOfMany(t *testing.T, s shop, client *ent.Client) {
	if err := client.Event.CreateBulk(client.Event.Create().SetTopic("a")).Exec(t.Context()); !denied(err) {
		t.Errorf("%v; want: permission denied", err)
	}
	s.take(t)
}

// TestEntMigratesNoOutbox: the table is made by onewrite migrate only.
func TestEntMigratesNoOutbox(t *testing.T) {
	if len(migrate.Tables) != 1 || migrate.Tables[0].Name != "orders" {
		t.Errorf("ent would migrate %d tables", len(migrate.Tables))
	}
}
