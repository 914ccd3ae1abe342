package bench

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/onewrite/onewrite/outbox"
	"github.com/onewrite/onewrite/outbox/pgxoutbox"
)

const (
	appClients = 8
	appPairs   = 6
	appTime    = 3 * time.Second
)

// BenchmarkApplication compares an application's transaction, an order with
// three items and three stock updates, with the same one that also publishes an
// event. steps sends the statements one by one and the event along with the last
// of them; batch sends all in one round trip. relayed is steps while the program
// runs on the same machine and relays what is published: it takes its share of
// the cores and of the disk, which is no cost of the transaction where onewrite
// has a machine of its own.
func BenchmarkApplication(b *testing.B) {
	for _, how := range []struct {
		name  string
		place func(context.Context, *pgxpool.Pool, [3]int, bool) error
		relay bool
	}{{"steps", placeInSteps, false}, {"batch", placeInBatch, false}, {"relayed", placeInSteps, true}} {
		b.Run(how.name, func(b *testing.B) {
			url, pool := shop(b)
			if how.relay {
				running(b, fmt.Sprintf("{type: postgres, url: %q}", url), "")
			}
			run := func(publish bool) float64 {
				return clients(b, appClients, appTime, func(int, int) error {
					return how.place(b.Context(), pool, threeSKUs(), publish)
				})
			}
			run(true) // warm-up: plans, pages, the program
			var with, without []float64
			for i := range appPairs {
				if i%2 == 0 {
					without, with = append(without, run(false)), append(with, run(true))
				} else {
					with, without = append(with, run(true)), append(without, run(false))
				}
			}
			report(b, map[string]float64{"tx/s": median(with), "without-tx/s": median(without), "of-without": ratio(with, without)})
		})
	}
}

// shop makes the application's tables beside an outbox.
func shop(b *testing.B) (string, *pgxpool.Pool) {
	b.Helper()
	url, db := database(b)
	if _, err := db.Exec(`
		CREATE TABLE stock (sku int PRIMARY KEY, n int NOT NULL) WITH (fillfactor = 50);
		INSERT INTO stock SELECT i, 1000000 FROM generate_series(1, 1000) i;
		CREATE TABLE orders (id bigserial PRIMARY KEY, customer int NOT NULL, placed timestamptz NOT NULL DEFAULT now());
		CREATE TABLE items (order_id bigint NOT NULL REFERENCES orders, sku int NOT NULL REFERENCES stock, n int NOT NULL, PRIMARY KEY (order_id, sku))`); err != nil {
		b.Fatal(err)
	}
	return url, newPool(b, url, appClients)
}

// threeSKUs returns three different products in order, so that no two
// transactions wait for each other in a circle.
func threeSKUs() (s [3]int) {
	for {
		for i := range s {
			s[i] = 1 + rand.IntN(1000)
		}
		slices.Sort(s[:])
		if s[0] != s[1] && s[1] != s[2] {
			return s
		}
	}
}

const (
	insertOrder = `INSERT INTO orders (customer) VALUES ($1) RETURNING id`
	insertItem  = `INSERT INTO items (order_id, sku, n) VALUES ($1, $2, 1)`
	insertItem2 = `INSERT INTO items (order_id, sku, n) VALUES (currval('orders_id_seq'), $1, 1)`
	updateStock = `UPDATE stock SET n = n - 1 WHERE sku = $1`
)

var placed = outbox.Event{Topic: "order.placed", Key: "42", Payload: []byte(payload)}

func placeInSteps(ctx context.Context, pool *pgxpool.Pool, skus [3]int, publish bool) error {
	return pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
		var id int64
		if err := tx.QueryRow(ctx, insertOrder, 1).Scan(&id); err != nil {
			return err
		}
		for _, sku := range skus {
			if _, err := tx.Exec(ctx, insertItem, id, sku); err != nil {
				return err
			}
		}
		for _, sku := range skus[:2] {
			if _, err := tx.Exec(ctx, updateStock, sku); err != nil {
				return err
			}
		}
		if !publish {
			_, err := tx.Exec(ctx, updateStock, skus[2])
			return err
		}
		batch := &pgx.Batch{}
		batch.Queue(updateStock, skus[2])
		if err := pgxoutbox.Queue(ctx, batch, placed); err != nil {
			return err
		}
		return tx.SendBatch(ctx, batch).Close()
	})
}

func placeInBatch(ctx context.Context, pool *pgxpool.Pool, skus [3]int, publish bool) error {
	batch := &pgx.Batch{}
	batch.Queue(insertOrder, 1)
	for _, sku := range skus {
		batch.Queue(insertItem2, sku)
	}
	for _, sku := range skus {
		batch.Queue(updateStock, sku)
	}
	if publish {
		if err := pgxoutbox.Queue(ctx, batch, placed); err != nil {
			return err
		}
	}
	return pool.SendBatch(ctx, batch).Close()
}
