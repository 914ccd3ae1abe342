package outbox_test

import (
	"context"
	"database/sql"
	"fmt"
	"log"
	"os"
	"path/filepath"
	"time"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/adapter/sqlite"
	"github.com/onewrite/onewrite/onewritetest"
	"github.com/onewrite/onewrite/outbox"
)

// A topic says once how its values travel; who consumes decodes by the same value.
func ExampleTopic() {
	type Order struct {
		ID       string `json:"id"`
		Customer string `json:"customer"`
	}
	placed := outbox.Topic[Order]{
		Name: "order.placed",
		Key:  func(o Order) string { return o.Customer },
	}
	ctx, tx := context.Background(), &onewritetest.Recorder{} // stands for a transaction
	if err := placed.Publish(ctx, outbox.New(outbox.Postgres), tx, Order{"o-1", "alice"}); err != nil {
		log.Fatal(err)
	}
	e := tx.Events()[0]
	fmt.Println(e.Topic, e.Key, string(e.Payload))

	order, err := placed.Decode(onewrite.Event{Topic: e.Topic, Data: e.Payload})
	fmt.Println(order.ID, order.Customer, err)
	// Output:
	// order.placed alice {"id":"o-1","customer":"alice"}
	// o-1 alice <nil>
}

// An event that is to be sent later can be taken back until then.
func ExamplePublisher_Cancel() {
	ctx := context.Background()
	db, remove := migratedDB()
	defer remove()
	events := outbox.New(outbox.SQLite)
	reminder := outbox.NewID() // to know it later
	err := outbox.InTx(ctx, db, func(tx *sql.Tx) error {
		return events.Publish(ctx, tx, outbox.Event{ID: reminder, Topic: "payment.reminder", Key: "alice", DeliverAt: time.Now().Add(7 * 24 * time.Hour)})
	})
	if err != nil {
		log.Fatal(err)
	}
	// She has paid.
	for range 2 {
		err := outbox.InTx(ctx, db, func(tx *sql.Tx) error {
			was, err := events.Cancel(ctx, tx, reminder)
			fmt.Println("taken back:", was)
			return err
		})
		if err != nil {
			log.Fatal(err)
		}
	}
	// Output:
	// taken back: true
	// taken back: false
}

// With SQLite a prepared Publisher makes single events cheaper.
func ExamplePublisher_Prepare() {
	ctx := context.Background()
	db, remove := migratedDB()
	defer remove()
	events, err := outbox.New(outbox.SQLite).Prepare(ctx, db) // once, at the start
	if err != nil {
		log.Fatal(err)
	}
	for id := range 3 {
		err := outbox.InTx(ctx, db, func(tx *sql.Tx) error {
			return events.Publish(ctx, tx, outbox.Event{Topic: "order.placed", Key: fmt.Sprint(id)})
		})
		if err != nil {
			log.Fatal(err)
		}
	}
	fmt.Println(count(db, "onewrite_outbox"), "events")
	// Output: 3 events
}

// For a library that cannot be an Execer: execute the statements in its transaction.
func ExamplePublisher_Statements() {
	statements, err := outbox.New(outbox.Postgres).Statements(context.Background(), outbox.Event{Topic: "order.placed", Key: "alice"})
	if err != nil {
		log.Fatal(err)
	}
	for _, s := range statements {
		fmt.Println(s.SQL)
		fmt.Println(len(s.Args), "arguments for", s.Table)
	}
	// Output:
	// INSERT INTO onewrite.outbox ("topic", "key", "payload", "payload_bytes", "id", "type", "content_type", "headers") VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
	// 8 arguments for onewrite.outbox
}

// What is published with the context of a request belongs to its trace.
func ExampleWithTraceparent() {
	ctx := outbox.WithTraceparent(context.Background(), "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", "")
	tx := &onewritetest.Recorder{} // stands for a transaction
	if err := outbox.New(outbox.SQLite).Publish(ctx, tx, outbox.Event{Topic: "order.placed"}); err != nil {
		log.Fatal(err)
	}
	fmt.Println(tx.Events()[0].Headers["traceparent"])
	// Output: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01
}

// migratedDB is a database with what `onewrite migrate` makes.
func migratedDB() (db *sql.DB, remove func()) {
	dir, err := os.MkdirTemp("", "outbox")
	if err != nil {
		log.Fatal(err)
	}
	path := filepath.Join(dir, "app.db")
	if _, err := sqlite.Migrate(context.Background(), path, sqlite.MigrateOptions{}); err != nil {
		log.Fatal(err)
	}
	if db, err = sql.Open("sqlite", "file:"+path+"?_pragma=busy_timeout(5000)&_txlock=immediate"); err != nil {
		log.Fatal(err)
	}
	return db, func() {
		_ = db.Close()
		_ = os.RemoveAll(dir)
	}
}
