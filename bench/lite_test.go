package bench

import (
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

// liteShop makes an application's table beside an outbox in one file.
func liteShop(b *testing.B) (path string, db *sql.DB) {
	b.Helper()
	path, db = liteDatabase(b)
	if _, err := db.Exec(`CREATE TABLE orders (id INTEGER PRIMARY KEY, customer TEXT NOT NULL, body TEXT NOT NULL)`); err != nil {
		b.Fatal(err)
	}
	return path, db
}

const insertLite = `INSERT INTO orders (customer, body) VALUES (?, ?)`

// placeOrder returns a function that writes one order, and its event if publish
// is set.
func placeOrder(b *testing.B, publish bool) func(tx *sql.Tx) error {
	events := outbox.New(outbox.SQLite)
	return func(tx *sql.Tx) error {
		if _, err := tx.ExecContext(b.Context(), insertLite, "alice", payload); err != nil {
			return err
		}
		if !publish {
			return nil
		}
		return events.Publish(b.Context(), tx, placed)
	}
}

// placePrepared is placeOrder with statements that were prepared once.
func placePrepared(b *testing.B, db *sql.DB, publish bool) func(tx *sql.Tx) error {
	b.Helper()
	events := outbox.New(outbox.SQLite)
	list, err := events.Statements(b.Context(), placed)
	if err != nil {
		b.Fatal(err)
	}
	var prepared [2]*sql.Stmt
	for i, query := range []string{insertLite, list[0].SQL} {
		if prepared[i], err = db.Prepare(query); err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { prepared[i].Close() })
	}
	return func(tx *sql.Tx) error {
		if _, err := tx.Stmt(prepared[0]).ExecContext(b.Context(), "alice", payload); err != nil {
			return err
		}
		if !publish {
			return nil
		}
		list, err := events.Statements(b.Context(), placed)
		if err != nil {
			return err
		}
		_, err = tx.Stmt(prepared[1]).ExecContext(b.Context(), list[0].Args...)
		return err
	}
}

// BenchmarkLiteApplication compares an order with an order and its event, each
// synced to disk, one client. prepared prepares the statements once; relay is
// prepared while the outbox is read.
func BenchmarkLiteApplication(b *testing.B) {
	for _, name := range []string{"publish", "prepared", "relay"} {
		b.Run(name, func(b *testing.B) {
			path, db := liteShop(b)
			if name == "relay" {
				bus := openBus(b)
				ingest(b, bus, liteSource(path, bus.ID()), pipeline.Observer{})
			}
			place := func(publish bool) func(tx *sql.Tx) error {
				if name == "publish" {
					return placeOrder(b, publish)
				}
				return placePrepared(b, db, publish)
			}
			alone, both := place(false), place(true)
			run := func(do func(*sql.Tx) error) float64 {
				return clients(b, 1, liteTime, func(int, int) error { return outbox.InTx(b.Context(), db, do) })
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
// share commits.
func BenchmarkLiteGroup(b *testing.B) {
	const callers = 32
	_, db := liteShop(b)
	group := outbox.NewGroup(db)
	defer group.Close()
	do := placeOrder(b, true)
	var single, shared []float64
	for range litePairs {
		single = append(single, clients(b, callers, liteTime, func(int, int) error { return outbox.InTx(b.Context(), db, do) }))
		shared = append(shared, clients(b, callers, liteTime, func(int, int) error { return group.Do(b.Context(), do) }))
	}
	report(b, map[string]float64{"tx/s": median(shared), "one-by-one-tx/s": median(single), "of-one-by-one": ratio(shared, single)})
}
