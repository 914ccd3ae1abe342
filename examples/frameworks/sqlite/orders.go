// Package sqlite places orders in an SQLite file through database/sql and
// modernc.org/sqlite.
package sqlite

import (
	"context"
	"database/sql"
	"net/url"
	"path/filepath"
	"strings"

	_ "modernc.org/sqlite" // the driver named sqlite

	"github.com/onewrite/onewrite/outbox"
)

var events = outbox.New(outbox.SQLite)

// Order is a row of the table orders.
type Order struct {
	ID, Customer string
	Document     []byte
}

// Open opens the file. With immediate transactions a writer waits for its turn;
// a deferred one that has read already would be refused as busy instead.
func Open(path string) (*sql.DB, error) {
	path = filepath.ToSlash(path)
	if !strings.HasPrefix(path, "/") {
		path = "/" + path // C:/...
	}
	query := url.Values{
		"_txlock": {"immediate"},
		"_pragma": {"busy_timeout(10000)", "foreign_keys(1)", "synchronous(FULL)"},
	}
	file := url.URL{Scheme: "file", Path: path, RawQuery: query.Encode()}
	return sql.Open("sqlite", file.String())
}

// PlaceOrder commits the order and its event together, or neither. eventID is
// outbox.NewID(), or empty if nobody needs to know it. Where many callers write
// at once, the method Do of an outbox.Group in place of outbox.InTx lets them
// share their commits.
func PlaceOrder(ctx context.Context, db *sql.DB, order Order, eventID string) error {
	return outbox.InTx(ctx, db, func(tx *sql.Tx) error {
		return Place(ctx, tx, order, eventID)
	})
}

// Place is PlaceOrder in a transaction of the caller, who calls outbox.Ring
// after the commit.
func Place(ctx context.Context, tx *sql.Tx, order Order, eventID string) error {
	_, err := tx.ExecContext(ctx, `INSERT INTO orders (id, customer, document) VALUES (?, ?, ?)`,
		order.ID, order.Customer, order.Document)
	if err != nil {
		return err
	}
	return events.Publish(ctx, tx, outbox.Event{
		ID: eventID, Topic: "order.placed", Key: order.Customer, Payload: order.Document,
	})
}
