package shop

import (
	"context"
	"database/sql"
	_ "embed" // the schema
	"errors"
	"fmt"
	"time"

	"github.com/onewrite/onewrite/outbox"
)

// The order service of the blueprint. It knows PostgreSQL and nothing else: no broker,
// no consumer, no retry. Its rows are what Kafka's readers learn from, the event that
// it publishes in the same transaction is for RabbitMQ's.

//go:embed blueprint/schema.sql
var blueprintSchema string

// orderSettings is what the order service's process is told when it starts.
type orderSettings struct {
	Database database
	Seed     uint64
	Orders   int
	Pace     time.Duration // a buyer comes so often
}

type orderService struct {
	db     *sql.DB
	events *outbox.Publisher
}

// takeOrders is the process of the order service. As in the demo it serves the buyers
// that were not served before it was killed, and ends when there are no more.
func takeOrders(ctx context.Context, set orderSettings) error {
	db, err := set.Database.open()
	if err != nil {
		return err
	}
	defer db.Close()
	s := &orderService{db: db, events: outbox.New(outbox.Postgres)}
	served, err := settled(ctx, db)
	if err == nil {
		err = serveAll(ctx, newPlan(set.Seed, set.Orders).purchases, served, set.Pace, s.serveOne)
	}
	if err == nil {
		err = s.closeShop(ctx)
	}
	if err != nil {
		return fmt.Errorf("shop: the order service: %w", err)
	}
	return nil
}

func (s *orderService) serveOne(ctx context.Context, p purchase) error {
	if err := s.place(ctx, p); err != nil {
		return refuse(ctx, s.db, p, err)
	}
	return nil
}

// place writes the rows of an order and publishes its event, in one transaction. The
// stock and the bank are asked behind that: an order that is refused was written and
// published, and nobody may ever hear of it.
func (s *orderService) place(ctx context.Context, p purchase) error {
	return outbox.InTx(ctx, s.db, func(tx *sql.Tx) error {
		o := order{N: p.N, Customer: p.Customer, Item: p.Item, Quantity: p.Quantity, Cents: p.Cents}
		// This locks the customer's row, so the order of the commits is that of seq.
		err := tx.QueryRowContext(ctx, `INSERT INTO customers (customer, orders, last_order, last_cents) VALUES ($1, 1, $2, $3)
			ON CONFLICT (customer) DO UPDATE SET orders = customers.orders + 1, last_order = $2, last_cents = $3
			RETURNING orders`, o.Customer, o.N, o.Cents).Scan(&o.Seq)
		if err != nil {
			return err
		}
		// It may have been placed by the process that was killed, after we looked.
		r, err := tx.ExecContext(ctx, `INSERT INTO orders (n, customer, seq, item, quantity, cents)
			VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (n) DO NOTHING`, o.N, o.Customer, o.Seq, o.Item, o.Quantity, o.Cents)
		if err != nil {
			return err
		}
		if n, err := r.RowsAffected(); err != nil || n == 0 {
			return errors.Join(err, errPlaced)
		}
		if err := publish(ctx, tx, s.events, "order.placed", o); err != nil {
			return err
		}
		if err := pay(ctx, tx, p); err != nil {
			return err
		}
		_, err = tx.ExecContext(ctx, `UPDATE orders SET paid = true WHERE n = $1`, o.N)
		return err
	})
}

// closeShop tells everybody, by both ways, that no order of a customer follows. A
// service that was killed after this and started again does it no second time.
func (s *orderService) closeShop(ctx context.Context) error {
	return outbox.InTx(ctx, s.db, func(tx *sql.Tx) error {
		rows, err := tx.QueryContext(ctx, `UPDATE customers SET closed = true WHERE NOT closed RETURNING customer`)
		if err != nil {
			return err
		}
		defer rows.Close()
		var names []string
		for rows.Next() {
			var name string
			if err := rows.Scan(&name); err != nil {
				return err
			}
			names = append(names, name)
		}
		if err := rows.Err(); err != nil {
			return err
		}
		for _, name := range names {
			if err := publish(ctx, tx, s.events, "order.closed", order{Customer: name, Closed: true}); err != nil {
				return err
			}
		}
		return nil
	})
}

// prepareShop makes the database of the order service on a server of ours, and the two
// roles that log in there. It returns the URLs of the owner, the service and onewrite.
func prepareShop(ctx context.Context, server string, orders int) (owner, app, relay database, err error) {
	fail := func(err error) (database, database, database, error) {
		return owner, app, relay, fmt.Errorf("shop: prepare the database: %w", err)
	}
	if err := onServer(ctx, server, "CREATE DATABASE shop"); err != nil {
		return fail(err)
	}
	if owner, err = databaseOf(server, "", ""); err != nil {
		return fail(err)
	}
	db, err := owner.open()
	if err != nil {
		return fail(err)
	}
	defer db.Close()
	for _, role := range []struct {
		name, attributes string
		to               *database
	}{{"shop_app", "LOGIN", &app}, {"onewrite_relay", "LOGIN REPLICATION", &relay}} {
		password := newPassword()
		if _, err := db.ExecContext(ctx, "CREATE ROLE "+role.name+" "+role.attributes+" PASSWORD '"+password+"'"); err != nil {
			return fail(err)
		}
		if *role.to, err = databaseOf(server, role.name, password); err != nil {
			return fail(err)
		}
	}
	if _, err := db.ExecContext(ctx, blueprintSchema); err != nil {
		return fail(err)
	}
	for item, units := range stock(orders) {
		if _, err := db.ExecContext(ctx, `INSERT INTO items (item, units) VALUES ($1, $2)`, item, units); err != nil {
			return fail(err)
		}
	}
	return owner, app, relay, nil
}
