package bench

import (
	"context"
	"database/sql"
	"sync/atomic"
	"testing"
	"time"

	"github.com/onewrite/onewrite/outbox"
	"github.com/onewrite/onewrite/pipeline"
)

const (
	litePairs = 6
	liteTime  = 2 * time.Second
)

// liteOrder is an application with the tables and the transaction of
// BenchmarkApplication, in one file with its outbox, its statements prepared.
type liteOrder struct {
	path string
	db   *sql.DB
	// each prepared once
	order, item, stock, note *sql.Stmt
	events, prepared         *outbox.Publisher
}

func liteShop(b *testing.B) *liteOrder {
	b.Helper()
	path, db := liteDatabase(b)
	if _, err := db.Exec(`
		CREATE TABLE stock (sku INTEGER PRIMARY KEY, n INTEGER NOT NULL);
		INSERT INTO stock WITH RECURSIVE s(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM s WHERE i < 1000) SELECT i, 1000000 FROM s;
		CREATE TABLE orders (id INTEGER PRIMARY KEY, customer INTEGER NOT NULL, placed TEXT NOT NULL DEFAULT (datetime()));
		CREATE TABLE items (order_id INTEGER NOT NULL REFERENCES orders, sku INTEGER NOT NULL REFERENCES stock, n INTEGER NOT NULL, PRIMARY KEY (order_id, sku));
		CREATE TABLE notes (id INTEGER PRIMARY KEY, body TEXT NOT NULL)`); err != nil {
		b.Fatal(err)
	}
	a := &liteOrder{path: path, db: db, events: outbox.New(outbox.SQLite)}
	for query, stmt := range map[string]**sql.Stmt{
		`INSERT INTO orders (customer) VALUES (?)`:              &a.order,
		`INSERT INTO items (order_id, sku, n) VALUES (?, ?, 1)`: &a.item,
		`UPDATE stock SET n = n - 1 WHERE sku = ?`:              &a.stock,
		`INSERT INTO notes (body) VALUES (?)`:                   &a.note,
	} {
		var err error
		if *stmt, err = db.Prepare(query); err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { (*stmt).Close() })
	}
	var err error
	if a.prepared, err = a.events.Prepare(b.Context(), db); err != nil {
		b.Fatal(err)
	}
	return a
}

// place returns a function that writes one order, and its event by p if p is
// not nil.
func (a *liteOrder) place(ctx context.Context, p *outbox.Publisher) func(tx *sql.Tx) error {
	return func(tx *sql.Tx) error {
		res, err := tx.StmtContext(ctx, a.order).ExecContext(ctx, 1)
		if err != nil {
			return err
		}
		id, err := res.LastInsertId()
		if err != nil {
			return err
		}
		skus := threeSKUs()
		item, stock := tx.StmtContext(ctx, a.item), tx.StmtContext(ctx, a.stock)
		for _, sku := range skus {
			if _, err := item.ExecContext(ctx, id, sku); err != nil {
				return err
			}
		}
		for _, sku := range skus {
			if _, err := stock.ExecContext(ctx, sku); err != nil {
				return err
			}
		}
		if p == nil {
			return nil
		}
		return p.Publish(ctx, tx, placed)
	}
}

// jot is the smallest transaction: one row of 200 bytes, and its event.
func (a *liteOrder) jot(ctx context.Context, p *outbox.Publisher) func(tx *sql.Tx) error {
	return func(tx *sql.Tx) error {
		if _, err := tx.StmtContext(ctx, a.note).ExecContext(ctx, payload); err != nil || p == nil {
			return err
		}
		return p.Publish(ctx, tx, placed)
	}
}

// BenchmarkLiteApplication compares an application's transaction with the same
// one that also publishes an event, each synced to disk, one client. publish and
// prepared are the order of BenchmarkApplication with [outbox.New] and
// [outbox.Publisher.Prepare]; relayed is prepared while the outbox is read;
// smallest is prepared with a single INSERT in place of the order.
func BenchmarkLiteApplication(b *testing.B) {
	for _, name := range []string{"publish", "prepared", "relayed", "smallest"} {
		b.Run(name, func(b *testing.B) {
			a := liteShop(b)
			if name == "relayed" {
				bus := openBus(b)
				ingest(b, bus, liteSource(a.path, bus.ID()), pipeline.Observer{})
			}
			p, do := a.prepared, a.place
			switch name {
			case "publish":
				p = a.events
			case "smallest":
				do = a.jot
			}
			alone, both := do(b.Context(), nil), do(b.Context(), p)
			run := func(do func(*sql.Tx) error) float64 {
				return clients(b, 1, liteTime, func(int, int) error { return outbox.InTx(b.Context(), a.db, do) })
			}
			run(both)
			var with, without []float64
			for i := range litePairs {
				if i%2 == 0 {
					without, with = append(without, run(alone)), append(with, run(both))
				} else {
					with, without = append(with, run(both)), append(without, run(alone))
				}
			}
			report(b, map[string]float64{"tx/s": median(with), "without-tx/s": median(without), "of-without": ratio(with, without)})
		})
	}
}

// BenchmarkLiteBacklogToBus carries a backlog in a file into the bus.
func BenchmarkLiteBacklogToBus(b *testing.B) {
	f, got := newFloor(b), samples{}
	for range runs {
		path, db := liteDatabase(b)
		if _, err := db.Exec(`WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?)
			INSERT INTO onewrite_outbox (topic, key, payload) SELECT 'order.placed', 'k' || i % 1000, ? FROM n`, backlogFor, payload); err != nil {
			b.Fatal(err)
		}
		bus := openBus(b)
		backlogRate(b, f, got, bus, liteSource(path, bus.ID()))
	}
	got.report(b)
}

// BenchmarkLiteCommitToBus measures COMMIT's return to durable on the bus, with
// the relay in the same process, at 300 transactions a second.
func BenchmarkLiteCommitToBus(b *testing.B) {
	path, db := liteDatabase(b)
	bus := openBus(b)
	at := &atomic.Pointer[trip]{}
	ingest(b, watched{Bus: bus, trip: at}, liteSource(path, bus.ID()), pipeline.Observer{})
	latency(b, at, 1, 300, 3000, ringing(b, db, outbox.SQLite))
}

// BenchmarkLiteGroup compares 32 callers that commit one by one with 32 that
// share commits, each placing an order with its event.
func BenchmarkLiteGroup(b *testing.B) {
	const callers = 32
	a := liteShop(b)
	group := outbox.NewGroup(a.db)
	defer group.Close()
	for name, do := range map[string]func(*sql.Tx) error{"order": a.place(b.Context(), a.prepared), "smallest": a.jot(b.Context(), a.prepared)} {
		b.Run(name, func(b *testing.B) {
			var single, shared []float64
			for range litePairs {
				single = append(single, clients(b, callers, liteTime, func(int, int) error { return outbox.InTx(b.Context(), a.db, do) }))
				shared = append(shared, clients(b, callers, liteTime, func(int, int) error { return group.Do(b.Context(), do) }))
			}
			report(b, map[string]float64{"tx/s": median(shared), "one-by-one-tx/s": median(single), "of-one-by-one": ratio(shared, single)})
		})
	}
}
