package pgxinbox_test

import (
	"context"
	"log"
	"net/http"
	"os"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/inbox"
	"github.com/onewrite/onewrite/inbox/pgxinbox"
)

// The receiver of a webhook of onewrite, with pgx transactions.
func ExampleReceiver() {
	pool, err := pgxpool.New(context.Background(), "service=billing")
	if err != nil {
		log.Fatal(err)
	}
	defer pool.Close()
	box := inbox.New(inbox.Postgres, "billing", inbox.Ordered())
	handler, err := inbox.HTTP(pgxinbox.Receiver(box, pool, func(ctx context.Context, tx pgx.Tx, e onewrite.Event) error {
		_, err := tx.Exec(ctx, `UPDATE account SET orders = orders + 1 WHERE customer = $1`, e.Key)
		return err
	}), inbox.Secret(os.Getenv("WEBHOOK_SECRET")))
	if err != nil {
		log.Fatal(err)
	}
	http.Handle("/events", handler)
}

// An event that comes by any other way.
func ExampleApply() {
	ctx := context.Background()
	pool, err := pgxpool.New(ctx, "service=billing")
	if err != nil {
		log.Fatal(err)
	}
	defer pool.Close()
	box := inbox.New(inbox.Postgres, "billing")
	e := onewrite.Event{ID: "e-1", Source: "shop", Topic: "order.placed", Key: "alice"}
	outcome, err := pgxinbox.Apply(ctx, box, pool, inbox.Message{Event: e}, func(ctx context.Context, tx pgx.Tx) error {
		_, err := tx.Exec(ctx, `UPDATE account SET orders = orders + 1 WHERE customer = $1`, e.Key)
		return err
	})
	if err != nil {
		log.Fatal(err) // nothing was done: let it come again
	}
	log.Print(outcome) // applied, or duplicate
}
