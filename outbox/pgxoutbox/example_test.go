package pgxoutbox_test

import (
	"context"
	"log"
	"time"

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

// Thousands of events by COPY, in the transaction that they tell of.
func ExampleCopy() {
	ctx := context.Background()
	pool, err := pgxpool.New(ctx, "service=shop")
	if err != nil {
		log.Fatal(err)
	}
	defer pool.Close()
	err = pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
		rows, err := tx.Query(ctx, "UPDATE items SET price = price * 2 RETURNING id")
		if err != nil {
			return err
		}
		ids, err := pgx.CollectRows(rows, pgx.RowTo[string])
		if err != nil {
			return err
		}
		events := make([]outbox.Event, len(ids))
		for i, id := range ids {
			events[i] = outbox.Event{Topic: "price.changed", Key: id}
		}
		return pgxoutbox.Copy(ctx, tx, events...)
	})
	if err != nil {
		log.Fatal(err)
	}
	outbox.Ring()
}

// An event that is to be sent later, and is not to be sent after all.
func ExampleCancel() {
	ctx := context.Background()
	pool, err := pgxpool.New(ctx, "service=shop")
	if err != nil {
		log.Fatal(err)
	}
	defer pool.Close()
	reminder := outbox.NewID()
	err = pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
		return pgxoutbox.Publish(ctx, tx, outbox.Event{ID: reminder, Topic: "payment.reminder", DeliverAt: time.Now().Add(time.Hour)})
	})
	if err != nil {
		log.Fatal(err)
	}
	err = pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
		was, err := pgxoutbox.Cancel(ctx, tx, reminder)
		if err == nil && !was {
			log.Print("it was sent already")
		}
		return err
	})
	if err != nil {
		log.Fatal(err)
	}
}
