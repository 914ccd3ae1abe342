package shop

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/onewrite/onewrite/outbox"
)

// The service serves so many buyers at once, and a buyer comes every 2 ms.
const (
	workers = 8
	pace    = 2 * time.Millisecond
)

// The service's tables. seq counts the orders of a customer, so that everybody
// can see whether they arrive in order. A refusal is written down after the
// transaction of its order was rolled back.
const serviceTables = `
CREATE TABLE items (item TEXT PRIMARY KEY, units BIGINT NOT NULL);
CREATE TABLE customers (customer TEXT PRIMARY KEY, orders BIGINT NOT NULL);
CREATE TABLE orders (n BIGINT PRIMARY KEY, customer TEXT NOT NULL, seq BIGINT NOT NULL,
	item TEXT NOT NULL, quantity BIGINT NOT NULL, cents BIGINT NOT NULL);
CREATE TABLE refusals (n BIGINT PRIMARY KEY, reason TEXT NOT NULL)`

// serviceSettings is what the service's process is told when it starts.
type serviceSettings struct {
	Database database
	Seed     uint64
	Orders   int
	// Consumers are the addresses that the naive service calls. With none of
	// them it writes events.
	Consumers []string
}

// The reasons why an order is not placed; its transaction is rolled back.
var (
	errOutOfStock = errors.New("out of stock")
	errDeclined   = errors.New("payment declined")
	errPlaced     = errors.New("placed before")
)

// service is the order service of both acts.
type service struct {
	db     *sql.DB
	events *outbox.Publisher // the second act
	naive  *caller           // the first act
}

// serve is the process of the order service. It serves the buyers that were not
// served before it was killed, and ends when there are no more.
func serve(ctx context.Context, s serviceSettings) error {
	db, err := s.Database.open()
	if err != nil {
		return err
	}
	defer db.Close()
	svc := &service{db: db}
	if len(s.Consumers) > 0 {
		svc.naive = newCaller(s.Consumers)
		defer svc.naive.close()
	} else {
		svc.events = outbox.New(s.Database.dialect())
	}
	served, err := settled(ctx, db)
	if err != nil {
		return fmt.Errorf("shop: service: %w", err)
	}
	if err := serveAll(ctx, newPlan(s.Seed, s.Orders).purchases, served, pace, svc.serveOne); err != nil {
		return fmt.Errorf("shop: service: %w", err)
	}
	if svc.naive != nil {
		svc.naive.wait()
		return ctx.Err()
	}
	if err := svc.closeShop(ctx); err != nil {
		return fmt.Errorf("shop: service: %w", err)
	}
	return nil
}

// serveAll lets the buyers come in, one every pace. A customer always goes to the
// same worker: nobody sends an order while waiting for the one before.
func serveAll(ctx context.Context, buyers []purchase, served map[int]bool, pace time.Duration, serveOne func(context.Context, purchase) error) error {
	g, ctx := errgroup.WithContext(ctx)
	var counters [workers]chan purchase
	for i := range counters {
		counters[i] = make(chan purchase, 16)
		g.Go(func() error {
			for p := range counters[i] {
				if err := serveOne(ctx, p); err != nil {
					return err
				}
			}
			return nil
		})
	}
	g.Go(func() error {
		defer func() {
			for _, c := range counters {
				close(c)
			}
		}()
		tick := time.NewTicker(pace)
		defer tick.Stop()
		for _, p := range buyers {
			if served[p.N] {
				continue
			}
			h := fnv.New32a()
			h.Write([]byte(p.Customer))
			select {
			case <-tick.C:
			case <-ctx.Done():
				return ctx.Err()
			}
			select {
			case counters[h.Sum32()%workers] <- p:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		return nil
	})
	return g.Wait()
}

// serveOne places one order and, in the first act, tells the others.
func (s *service) serveOne(ctx context.Context, p purchase) error {
	o, err := s.place(ctx, p)
	if err != nil {
		return refuse(ctx, s.db, p, err)
	}
	if s.naive != nil {
		s.naive.tell(ctx, o) // the second write, which may not happen
	}
	return nil
}

// refuse writes down why an order was not placed; any other error is returned.
func refuse(ctx context.Context, db *sql.DB, p purchase, why error) error {
	switch {
	case errors.Is(why, errPlaced):
		return nil
	case errors.Is(why, errOutOfStock), errors.Is(why, errDeclined):
		_, err := db.ExecContext(ctx, `INSERT INTO refusals (n, reason) VALUES ($1, $2) ON CONFLICT (n) DO NOTHING`, p.N, why.Error())
		return err
	}
	return why
}

// place writes the order, and in the second act its event, in one transaction.
// The stock and the bank are asked last, so that an order that is refused was
// written, with its event, and is taken back.
func (s *service) place(ctx context.Context, p purchase) (o order, err error) {
	err = outbox.InTx(ctx, s.db, func(tx *sql.Tx) error {
		o = order{N: p.N, Customer: p.Customer, Item: p.Item, Quantity: p.Quantity, Cents: p.Cents}
		// This locks the customer's row: two orders of one customer cannot be
		// under way at once, so the order of their commits is that of seq.
		err := tx.QueryRowContext(ctx, `INSERT INTO customers (customer, orders) VALUES ($1, 1)
			ON CONFLICT (customer) DO UPDATE SET orders = customers.orders + 1 RETURNING orders`, p.Customer).Scan(&o.Seq)
		if err != nil {
			return err
		}
		// A transaction of the process that was killed may have been committed
		// after we looked; then there is nothing to do.
		r, err := tx.ExecContext(ctx, `INSERT INTO orders (n, customer, seq, item, quantity, cents)
			VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (n) DO NOTHING`, o.N, o.Customer, o.Seq, o.Item, o.Quantity, o.Cents)
		if err != nil {
			return err
		}
		if n, err := r.RowsAffected(); err != nil || n == 0 {
			return errors.Join(err, errPlaced)
		}
		if s.events != nil {
			if err := publish(ctx, tx, s.events, "order.placed", o); err != nil {
				return err
			}
		}
		return pay(ctx, tx, p)
	})
	return o, err
}

// publish is all that the second act needs in the place of calls, tries and hope.
func publish(ctx context.Context, tx *sql.Tx, events *outbox.Publisher, topic string, o order) error {
	body, err := json.Marshal(o)
	if err != nil {
		return err
	}
	return events.Publish(ctx, tx, outbox.Event{Topic: topic, Key: o.Customer, Payload: body})
}

// pay takes the goods from the stock and asks the bank.
func pay(ctx context.Context, tx *sql.Tx, p purchase) error {
	r, err := tx.ExecContext(ctx, `UPDATE items SET units = units - $1 WHERE item = $2 AND units >= $1`, p.Quantity, p.Item)
	if err != nil {
		return err
	}
	if n, err := r.RowsAffected(); err != nil || n == 0 {
		return errors.Join(err, errOutOfStock)
	}
	if p.Declined {
		return errDeclined
	}
	return nil
}

// closeShop sends a last event for every customer. As events of one key arrive
// in order, a consumer that has seen it has seen all of that customer's orders.
func (s *service) closeShop(ctx context.Context) error {
	names, err := column[string](ctx, s.db, `SELECT customer FROM customers ORDER BY customer`)
	if err != nil {
		return err
	}
	return outbox.InTx(ctx, s.db, func(tx *sql.Tx) error {
		for _, name := range names {
			if err := publish(ctx, tx, s.events, "order.closed", order{Customer: name, Closed: true}); err != nil {
				return err
			}
		}
		return nil
	})
}

// settled returns the numbers of the buyers that have their answer.
func settled(ctx context.Context, db *sql.DB) (map[int]bool, error) {
	list, err := column[int](ctx, db, `SELECT n FROM orders UNION ALL SELECT n FROM refusals`)
	served := make(map[int]bool, len(list))
	for _, n := range list {
		served[n] = true
	}
	return served, err
}

// createShop makes the service's tables and fills the stock.
func createShop(ctx context.Context, d database, orders int) error {
	db, err := d.open()
	if err != nil {
		return err
	}
	defer db.Close()
	return outbox.InTx(ctx, db, func(tx *sql.Tx) error {
		if _, err := tx.ExecContext(ctx, serviceTables); err != nil {
			return fmt.Errorf("shop: %w", err)
		}
		for item, units := range stock(orders) {
			if _, err := tx.ExecContext(ctx, `INSERT INTO items (item, units) VALUES ($1, $2)`, item, units); err != nil {
				return fmt.Errorf("shop: %w", err)
			}
		}
		return nil
	})
}

// column reads a query of one column.
func column[T any](ctx context.Context, db *sql.DB, query string) ([]T, error) {
	rows, err := db.QueryContext(ctx, query)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var list []T
	for rows.Next() {
		var v T
		if err := rows.Scan(&v); err != nil {
			return nil, err
		}
		list = append(list, v)
	}
	return list, rows.Err()
}
