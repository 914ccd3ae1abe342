package shop

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"
)

// order is what the consumers are told, as JSON.
type order struct {
	N        int    `json:"order"` // the order's number; 0 in a closing notice
	Customer string `json:"customer"`
	Seq      int    `json:"seq"` // the customer's 1st, 2nd, ... order
	Item     string `json:"item"`
	Quantity int    `json:"quantity"`
	Cents    int    `json:"cents"`
	// Closed says that the shop has closed for this customer: no order follows.
	Closed bool `json:"closed,omitempty"`
}

// consumer is one of the five: its tables, and what it does with an order. The
// work is the same in both acts.
type consumer struct {
	name   string
	schema string
	work   func(ctx context.Context, tx *sql.Tx, o order) error
}

var consumers = []consumer{
	{"inventory", `
		CREATE TABLE IF NOT EXISTS stock (item TEXT PRIMARY KEY, units INTEGER NOT NULL);
		CREATE TABLE IF NOT EXISTS picked (id INTEGER PRIMARY KEY, n INTEGER, customer TEXT, seq INTEGER)`,
		func(ctx context.Context, tx *sql.Tx, o order) error {
			return each(ctx, tx, o,
				`INSERT INTO picked (n, customer, seq) VALUES ($1, $2, $3)`,
				`UPDATE stock SET units = units - $5 WHERE item = $4`)
		}},
	{"email", `
		CREATE TABLE IF NOT EXISTS mails (id INTEGER PRIMARY KEY, n INTEGER, customer TEXT, seq INTEGER, text TEXT)`,
		func(ctx context.Context, tx *sql.Tx, o order) error {
			return each(ctx, tx, o,
				`INSERT INTO mails (n, customer, seq, text) VALUES ($1, $2, $3, 'Thank you for your order of ' || $5 || ' ' || $4)`)
		}},
	{"analytics", `
		CREATE TABLE IF NOT EXISTS sales (item TEXT PRIMARY KEY, orders INTEGER NOT NULL, cents INTEGER NOT NULL);
		CREATE TABLE IF NOT EXISTS counted (id INTEGER PRIMARY KEY, n INTEGER, customer TEXT, seq INTEGER)`,
		func(ctx context.Context, tx *sql.Tx, o order) error {
			return each(ctx, tx, o,
				`INSERT INTO counted (n, customer, seq) VALUES ($1, $2, $3)`,
				`INSERT INTO sales (item, orders, cents) VALUES ($4, 1, $6)
				 ON CONFLICT (item) DO UPDATE SET orders = orders + 1, cents = cents + excluded.cents`)
		}},
	{"search", `
		CREATE TABLE IF NOT EXISTS documents (id INTEGER PRIMARY KEY, n INTEGER UNIQUE, customer TEXT, seq INTEGER,
			version INTEGER NOT NULL, text TEXT)`,
		func(ctx context.Context, tx *sql.Tx, o order) error {
			return each(ctx, tx, o,
				`INSERT INTO documents (n, customer, seq, version, text) VALUES ($1, $2, $3, 1, $4 || ' ' || $2)
				 ON CONFLICT (n) DO UPDATE SET version = version + 1`)
		}},
	{"fraud", `
		CREATE TABLE IF NOT EXISTS scores (customer TEXT PRIMARY KEY, score INTEGER NOT NULL);
		CREATE TABLE IF NOT EXISTS looked (id INTEGER PRIMARY KEY, n INTEGER, customer TEXT, seq INTEGER)`,
		func(ctx context.Context, tx *sql.Tx, o order) error {
			return each(ctx, tx, o,
				`INSERT INTO looked (n, customer, seq) VALUES ($1, $2, $3)`,
				// Older orders count half as much: the score depends on the order.
				`INSERT INTO scores (customer, score) VALUES ($2, $6)
				 ON CONFLICT (customer) DO UPDATE SET score = score / 2 + excluded.score`)
		}},
}

// each runs the statements with the order's values as $1 to $6.
func each(ctx context.Context, tx *sql.Tx, o order, statements ...string) error {
	for _, s := range statements {
		if _, err := tx.ExecContext(ctx, s, o.N, o.Customer, o.Seq, o.Item, o.Quantity, o.Cents); err != nil {
			return err
		}
	}
	return nil
}

// consumerSettings is what a consumer's process is told when it starts.
type consumerSettings struct {
	Name             string
	Path             string // its store
	Listen           string
	Orders           int    // that the warehouse has to be filled for
	KeyFile          string // of the signatures; empty in the naive act
	Seed             uint64
	PeakFrom, PeakTo int
}

const sharedTables = `
	CREATE TABLE IF NOT EXISTS inbox (id TEXT PRIMARY KEY, times INTEGER NOT NULL) WITHOUT ROWID;
	CREATE TABLE IF NOT EXISTS closed (customer TEXT PRIMARY KEY) WITHOUT ROWID;
	CREATE TABLE IF NOT EXISTS faults (id INTEGER PRIMARY KEY, n INTEGER, try INTEGER, kind INTEGER)`

// consume is the process of one consumer. It says "ready" on stdout when it
// listens, and ends with ctx.
func consume(ctx context.Context, s consumerSettings, stdout io.Writer) error {
	c, err := consumerNamed(s.Name)
	if err != nil {
		return err
	}
	db, err := openSQLite(s.Path)
	if err != nil {
		return err
	}
	defer db.Close()
	if err := c.prepare(ctx, db, s.Orders); err != nil {
		return fmt.Errorf("shop: %s: %w", s.Name, err)
	}
	handler, err := newReceiver(c, db, s.KeyFile)
	if err != nil {
		return err
	}
	d, err := newDoor(ctx, s, db, handler)
	if err != nil {
		return fmt.Errorf("shop: %s: %w", s.Name, err)
	}
	l, err := net.Listen("tcp", s.Listen)
	if err != nil {
		return fmt.Errorf("shop: %s: %w", s.Name, err)
	}
	server := &http.Server{Handler: d, ReadHeaderTimeout: 5 * time.Second}
	stop := context.AfterFunc(ctx, func() { server.Close() })
	defer stop()
	fmt.Fprintln(stdout, ready)
	if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("shop: %s: %w", s.Name, err)
	}
	return nil
}

func consumerNamed(name string) (consumer, error) {
	for _, c := range consumers {
		if c.name == name {
			return c, nil
		}
	}
	return consumer{}, fmt.Errorf("shop: there is no consumer %q", name)
}

// prepare makes the tables of an empty store and fills the warehouse.
func (c consumer) prepare(ctx context.Context, db *sql.DB, orders int) error {
	if _, err := db.ExecContext(ctx, sharedTables+";"+c.schema); err != nil {
		return err
	}
	if c.name != "inventory" {
		return nil
	}
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback()
	for item, units := range stock(orders) {
		if _, err := tx.ExecContext(ctx, `INSERT INTO stock (item, units) VALUES ($1, $2) ON CONFLICT DO NOTHING`, item, units); err != nil {
			return err
		}
	}
	return tx.Commit()
}
