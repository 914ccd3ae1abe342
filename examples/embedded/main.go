// Command embedded is the whole way of an event in one process: an application that
// writes an order and its event in one transaction, onewrite embedded in it, and a
// webhook whose handler has its effect once. It needs no server: the database is an
// SQLite file, the bus a folder.
//
//	go run ./examples/embedded
package main

import (
	"context"
	"crypto/rand"
	"database/sql"
	"encoding/base64"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	_ "modernc.org/sqlite"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/inbox"
	"github.com/onewrite/onewrite/outbox"
	"github.com/onewrite/onewrite/relay"
)

// Order is what the event tells.
type Order struct {
	ID       int    `json:"id"`
	Customer string `json:"customer"`
}

// OrderPlaced is shared by those who publish and those who consume.
var OrderPlaced = outbox.Topic[Order]{
	Name: "order.placed",
	Key:  func(o Order) string { return o.Customer },
}

func main() {
	dir, err := os.MkdirTemp("", "onewrite-embedded-")
	if err != nil {
		log.Fatal(err)
	}
	err = run(context.Background(), dir, os.Stdout)
	_ = os.RemoveAll(dir)
	if err != nil {
		log.Fatal(err)
	}
}

// run places three orders and returns when the warehouse has reserved all of them.
func run(ctx context.Context, dir string, out io.Writer) error {
	path := filepath.Join(dir, "shop.db")
	db, err := sql.Open("sqlite", "file:"+path+"?_pragma=busy_timeout(5000)&_txlock=immediate")
	if err != nil {
		return err
	}
	defer db.Close()

	ctx, stop := context.WithCancel(ctx)
	defer stop()
	shipped := make(chan Order)
	hook, secret, err := warehouse(ctx, db, shipped)
	if err != nil {
		return err
	}
	cfg := &relay.Config{
		Sources:      map[string]relay.Source{"shop": {Type: "sqlite", Path: path}},
		Destinations: map[string]relay.Destination{"warehouse": {Type: "webhook", URL: relay.NewSecret(hook), Secret: []relay.Secret{relay.NewSecret(secret)}, AllowPrivate: true}},
		Bus:          relay.Bus{Dir: filepath.Join(dir, "bus")},
		Listen:       "off", // or an address; relay.New(…).Handler() is for a server of your own
	}
	if err := relay.Migrate(ctx, io.Discard, cfg, relay.MigrateOptions{}); err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- relay.Run(ctx, cfg, relay.Options{}) }()

	for n, customer := range []string{"alice", "bob", "alice"} {
		if err := place(ctx, db, Order{ID: n + 1, Customer: customer}); err != nil {
			return err
		}
	}
	for range 3 {
		select {
		case o := <-shipped:
			fmt.Fprintf(out, "order %d of %s is shipped\n", o.ID, o.Customer)
		case err := <-ended:
			return err
		}
	}
	stop() // what is under way is finished first
	return <-ended
}

var events = outbox.New(outbox.SQLite)

// place writes the order and its event: both, or neither.
func place(ctx context.Context, db *sql.DB, o Order) error {
	return outbox.InTx(ctx, db, func(tx *sql.Tx) error {
		if _, err := tx.ExecContext(ctx, `INSERT INTO orders (id, customer) VALUES (?, ?)`, o.ID, o.Customer); err != nil {
			return err
		}
		return OrderPlaced.Publish(ctx, events, tx, o)
	})
}

// warehouse is the consumer: for each order it reserves stock, once.
func warehouse(ctx context.Context, db *sql.DB, shipped chan<- Order) (url, secret string, err error) {
	box := inbox.New(inbox.SQLite, "warehouse")
	if err := box.Migrate(ctx, db); err != nil {
		return "", "", err
	}
	if _, err := db.ExecContext(ctx, `CREATE TABLE orders (id INTEGER PRIMARY KEY, customer TEXT); CREATE TABLE reserved (order_id INTEGER)`); err != nil {
		return "", "", err
	}
	receive := box.Receiver(db, func(ctx context.Context, tx *sql.Tx, e onewrite.Event) error {
		o, err := OrderPlaced.Decode(e)
		if err != nil {
			return err
		}
		_, err = tx.ExecContext(ctx, `INSERT INTO reserved (order_id) VALUES (?)`, o.ID)
		return err
	})
	told := func(ctx context.Context, messages []inbox.Message) ([]inbox.Outcome, error) {
		outcomes, err := receive(ctx, messages)
		for i, outcome := range outcomes {
			if o, bad := OrderPlaced.Decode(messages[i].Event); bad == nil && err == nil && outcome == inbox.Applied {
				shipped <- o
			}
		}
		return outcomes, err
	}
	secret = "whsec_" + base64.StdEncoding.EncodeToString([]byte(rand.Text())) // yours comes from ${env:…} or ${file:…}
	handler, err := inbox.HTTP(told, inbox.Secret(secret), inbox.From("shop"))
	if err != nil {
		return "", "", err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", "", err
	}
	server := &http.Server{Handler: handler, ReadHeaderTimeout: 5 * time.Second}
	context.AfterFunc(ctx, func() { _ = server.Close() })
	go func() { _ = server.Serve(l) }()
	return "http://" + l.Addr().String(), secret, nil
}
