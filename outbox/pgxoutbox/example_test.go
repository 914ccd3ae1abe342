package pgxoutbox_test

import (
	"context"
	"log"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/onewrite/onewrite/outbox"
	"github.com/onewrite/onewrite/outbox/pgxoutbox"
)

// The order and its event are committed together, or not at all.
func ExamplePublish() {
	ctx := context.Background()
	pool, err := pgxpool.New(ctx, "service=shop")
	if err != nil {
		log.Fatal(err)
	}
	defer pool.Close()
	err = pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, "INSERT INTO orders (id) VALUES ($1)", 42); err != nil {
			return err
		}
		return pgxoutbox.Publish(ctx, tx, outbox.Event{Topic: "order.placed", Key: "42", Payload: []byte(`{"id":42}`)})
	})
	if err != nil {
		log.Fatal(err)
	}
	outbox.Ring()
}

// Data and event in one round trip: a batch is a transaction of its own.
func ExampleQueue() {
	ctx := context.Background()
	pool, err := pgxpool.New(ctx, "service=shop")
	if err != nil {
		log.Fatal(err)
	}
	defer pool.Close()
	batch := &pgx.Batch{}
	batch.Queue("UPDATE orders SET state = 'paid' WHERE id = $1", 42)
	if err := pgxoutbox.Queue(ctx, batch, outbox.Event{Topic: "order.paid", Key: "42"}); err != nil {
		log.Fatal(err)
	}
	if err := pool.SendBatch(ctx, batch).Close(); err != nil {
		log.Fatal(err)
	}
	outbox.Ring()
}
