package outbox_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log"
	"sync"

	"github.com/onewrite/onewrite/outbox"
)

// exampleDB stands for the application's database; its outbox table comes from
// `onewrite migrate`.
func exampleDB() *sql.DB {
	db, err := sql.Open("sqlite", "file:example?mode=memory&cache=shared&_pragma=busy_timeout(5000)")
	if err != nil {
		log.Fatal(err)
	}
	if _, err := db.Exec(schema); err != nil {
		log.Fatal(err)
	}
	return db
}

func count(db *sql.DB, table string) (n int) {
	if err := db.QueryRow("SELECT count(*) FROM " + table).Scan(&n); err != nil {
		log.Fatal(err)
	}
	return n
}

// The order and its event are committed together, or not at all.
func ExampleInTx() {
	ctx, db := context.Background(), exampleDB()
	defer db.Close()
	events := outbox.New(outbox.SQLite)

	place := func(id int, inStock bool) error {
		return outbox.InTx(ctx, db, func(tx *sql.Tx) error {
			if _, err := tx.ExecContext(ctx, "INSERT INTO orders (id) VALUES (?)", id); err != nil {
				return err
			}
			err := events.Publish(ctx, tx, outbox.Event{
				Topic:   "order.placed",
				Key:     fmt.Sprint(id), // events of one order stay in order
				Payload: fmt.Appendf(nil, `{"id":%d}`, id),
			})
			if err == nil && !inStock {
				err = errors.New("out of stock")
			}
			return err
		})
	}
	fmt.Println(place(1, true))
	fmt.Println(place(2, false))
	fmt.Println(count(db, "orders"), "order,", count(db, "onewrite_outbox"), "event")
	// Output:
	// <nil>
	// out of stock
	// 1 order, 1 event
}

// With a transaction of your own, ring after the commit.
func ExamplePublisher_Publish() {
	ctx, db := context.Background(), exampleDB()
	defer db.Close()
	events := outbox.New(outbox.SQLite, outbox.MaxBytes(64<<10))

	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		log.Fatal(err)
	}
	defer tx.Rollback()
	id := outbox.NewID() // to know the event's id
	err = events.Publish(ctx, tx,
		outbox.Event{ID: id, Topic: "order.placed", Key: "7", Payload: []byte(`{"id":7}`)},
		outbox.Event{Topic: "mail.wanted", Key: "7", Type: "com.example.mail", Payload: []byte("Thank you!"),
			Headers: map[string]string{"tenant": "acme"}},
	)
	if err != nil {
		log.Fatal(err)
	}
	if err := tx.Commit(); err != nil {
		log.Fatal(err)
	}
	outbox.Ring()
	fmt.Println(count(db, "onewrite_outbox"), "events")
	// Output: 2 events
}

// Bad events are refused before anything is written, all problems at once.
func ExampleInvalidError() {
	ctx, db := context.Background(), exampleDB()
	defer db.Close()
	err := outbox.New(outbox.SQLite).Publish(ctx, db,
		outbox.Event{Topic: "order placed"},
		outbox.Event{Topic: "order.placed", ID: "7"},
	)
	var invalid *outbox.InvalidError
	if errors.As(err, &invalid) {
		for _, p := range invalid.Problems {
			fmt.Println(p)
		}
	}
	// Output:
	// event 0: Topic "order placed" is not made of letters, digits, _ and - joined by single dots; write it like "order.placed"
	// event 1: ID is no UUID of 36 characters; leave it empty or use outbox.NewID()
}

// Callers share the commits of a busy SQLite database.
func ExampleGroup() {
	ctx, db := context.Background(), exampleDB()
	defer db.Close()
	events := outbox.New(outbox.SQLite)
	group := outbox.NewGroup(db)
	defer group.Close()

	var requests sync.WaitGroup
	for id := range 20 {
		requests.Go(func() {
			err := group.Do(ctx, func(tx *sql.Tx) error {
				if _, err := tx.ExecContext(ctx, "INSERT INTO orders (id) VALUES (?)", id); err != nil {
					return err
				}
				return events.Publish(ctx, tx, outbox.Event{Topic: "order.placed", Key: fmt.Sprint(id)})
			})
			if err != nil {
				log.Print(err)
			}
		})
	}
	requests.Wait()
	fmt.Println(count(db, "orders"), "orders,", count(db, "onewrite_outbox"), "events")
	// Output: 20 orders, 20 events
}

// A relay takes the bell, looks, and only then waits.
func ExampleBell() {
	var table []string
	var mu sync.Mutex
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			bell := outbox.Bell()
			mu.Lock()
			found := len(table) > 0
			mu.Unlock()
			if found {
				fmt.Println("found it")
				return
			}
			<-bell
		}
	}()
	mu.Lock()
	table = append(table, "event")
	mu.Unlock()
	outbox.Ring()
	<-done
	// Output: found it
}

func ExampleDefaultContentType() {
	fmt.Println(outbox.DefaultContentType([]byte(`{"id":1}`), false))
	fmt.Println(outbox.DefaultContentType([]byte(`hello`), false))
	fmt.Println(outbox.DefaultContentType([]byte(`hello`), true))
	// Output:
	// application/json
	// text/plain; charset=utf-8
	// application/octet-stream
}
