package onewritetest_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/adapter/sqlite"
	"github.com/onewrite/onewrite/onewritetest"
	"github.com/onewrite/onewrite/outbox"
	"github.com/onewrite/onewrite/pipeline"
)

// due is when a customer is reminded.
var due = time.Date(2100, 1, 1, 8, 0, 0, 0, time.UTC)

// placeOrder is the function under test in the examples.
func placeOrder(ctx context.Context, tx outbox.Execer, id, customer string) error {
	if _, err := tx.ExecContext(ctx, `INSERT INTO orders (id, customer) VALUES (?, ?)`, id, customer); err != nil {
		return err
	}
	return outbox.New(outbox.SQLite).Publish(ctx, tx,
		outbox.Event{Topic: "order.placed", Key: customer, Payload: []byte(`{"order": "` + id + `"}`)},
		outbox.Event{Topic: "order.forgotten", Key: customer, DeliverAt: due})
}

// printer stands for the *testing.T of a test: it prints what the test would fail
// with.
type printer struct{ testing.TB }

func (printer) Helper()                           {}
func (printer) Context() context.Context          { return context.Background() }
func (printer) Fatal(args ...any)                 { fmt.Println(args...) }
func (printer) Fatalf(format string, args ...any) { fmt.Printf(format+"\n", args...) }

// exampleDB is a database with an outbox, for one test.
func exampleDB() (db *sql.DB, remove func()) {
	dir, err := os.MkdirTemp("", "onewritetest")
	if err != nil {
		log.Fatal(err)
	}
	path := filepath.Join(dir, "app.db")
	if _, err := sqlite.Migrate(context.Background(), path, sqlite.MigrateOptions{}); err != nil {
		log.Fatal(err)
	}
	if db, err = sql.Open("sqlite", "file:"+path); err != nil {
		log.Fatal(err)
	}
	if _, err := db.Exec(`CREATE TABLE orders (id TEXT, customer TEXT)`); err != nil {
		log.Fatal(err)
	}
	return db, func() {
		_ = db.Close()
		_ = os.RemoveAll(dir)
	}
}

// An application's test, in its transaction: what is not set may be anything.
func ExampleRequirePublished() {
	var t testing.TB = printer{} // func TestPlaceOrder(t *testing.T) {
	db, remove := exampleDB()
	defer remove()
	tx, err := db.BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback()
	if err := placeOrder(t.Context(), tx, "o-1", "alice"); err != nil {
		t.Fatal(err)
	}
	onewritetest.RequirePublished(t, tx,
		outbox.Event{Topic: "order.placed", Key: "alice", Payload: []byte(`{"order":"o-1"}`)},
		outbox.Event{Topic: "order.forgotten"})

	// A test that fails says what is different.
	onewritetest.RequirePublished(t, tx,
		outbox.Event{Topic: "order.placed", Key: "bob", Payload: []byte(`{"order":"o-2"}`)},
		outbox.Event{Topic: "mail.wanted"},
		outbox.Event{Topic: "order.forgotten"})
	// Output:
	// the transaction published 2 events, want 3 events (- missing, + not wanted, ! differs):
	//   ! order.placed key "alice" payload {"order":"o-1"}
	//         key is "alice", want "bob"
	//         payload.order is "o-1", want "o-2"
	//         wanted payload: {"order":"o-2"}
	//   - mail.wanted
	//     order.forgotten key "alice" waits until 2100-01-01T08:00:00Z
}

// With SQLite, what was in the outbox before is left out by a mark.
func ExampleMark() {
	var t testing.TB = printer{} // func TestPlaceOrder(t *testing.T) {
	db, remove := exampleDB()
	defer remove()
	if err := outbox.InTx(t.Context(), db, func(tx *sql.Tx) error { return placeOrder(t.Context(), tx, "o-0", "carol") }); err != nil {
		t.Fatal(err)
	}
	tx, err := db.BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback()
	after := onewritetest.Mark(t, tx)
	if err := placeOrder(t.Context(), tx, "o-1", "alice"); err != nil {
		t.Fatal(err)
	}
	onewritetest.RequirePublished(t, after, outbox.Event{Topic: "order.placed", Key: "alice"}, outbox.Event{Topic: "order.forgotten"})
	fmt.Println(len(onewritetest.Published(t, tx)), "events in the outbox,", len(onewritetest.Published(t, after)), "of them new")
	// Output: 4 events in the outbox, 2 of them new
}

// What is committed can be looked at without a transaction.
func ExampleStored() {
	var t testing.TB = printer{} // func TestPlaceOrder(t *testing.T) {
	db, remove := exampleDB()
	defer remove()
	fail := errors.New("out of stock")
	for id, want := range map[string]error{"o-1": nil, "o-2": fail} {
		err := outbox.InTx(t.Context(), db, func(tx *sql.Tx) error {
			return errors.Join(placeOrder(t.Context(), tx, id, "alice"), want)
		})
		if !errors.Is(err, want) {
			t.Fatal(err)
		}
	}
	for _, e := range onewritetest.Stored(t, db) {
		fmt.Println(e.Topic, string(e.Payload), !e.DeliverAt.IsZero())
	}
	// Output:
	// order.placed {"order": "o-1"} false
	// order.forgotten  true
}

// A unit test without a database.
func ExampleRecorder() {
	var t testing.TB = printer{} // func TestPlaceOrder(t *testing.T) {
	tx := &onewritetest.Recorder{}
	if err := placeOrder(t.Context(), tx, "o-1", "alice"); err != nil {
		t.Fatal(err)
	}
	onewritetest.RequireEvents(t, tx.Events(),
		outbox.Event{Topic: "order.placed", Key: "alice"},
		outbox.Event{Topic: "order.forgotten", Key: "alice"})
	for _, e := range tx.Events() {
		fmt.Println(e.Topic, e.Key)
	}
	// Output:
	// order.placed alice
	// order.forgotten alice
}

// A pipeline between a bus and a destination in memory: what is refused is parked
// with its key, and delivered when somebody has mended what was wrong.
func ExampleMemorySink() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	bus, sink := &onewritetest.MemoryBus{}, &onewritetest.MemorySink{}
	sink.Answer("e-2", onewrite.ErrRejected)
	event := func(id, customer string) onewrite.Event {
		return onewrite.Event{ID: id, Source: "shop", Topic: "order.placed", Type: "order.placed", Key: customer}
	}
	events := []onewrite.Event{event("e-1", "alice"), event("e-2", "bob"), event("e-3", "bob"), event("e-4", "alice")}
	if _, err := bus.Append(ctx, "shop", "", onewrite.Batch{Events: events, Pos: "4"}); err != nil {
		log.Fatal(err)
	}
	d := &pipeline.Delivery{
		Interest: onewrite.Interest{Name: "warehouse", Sources: []string{"shop"}}, Bus: bus, Open: sink.Open,
		Attempts: 3, Retry: pipeline.Backoff{First: time.Millisecond},
	}
	running, stop := context.WithCancel(ctx)
	done := make(chan error)
	go func() { done <- d.Run(running) }()

	for len(bus.Parked("warehouse")) < 2 && ctx.Err() == nil {
		time.Sleep(time.Millisecond)
	}
	for _, p := range bus.Parked("warehouse") {
		fmt.Println(p.Message.ID, "is parked:", p.Reason)
	}
	sink.Answer("e-2", nil)
	if err := d.Redrive(ctx, 0); err != nil {
		log.Fatal(err)
	}
	arrived, err := sink.Wait(ctx, 4)
	if err != nil {
		log.Fatal(err)
	}
	for _, e := range arrived {
		fmt.Println(e.ID, "arrived")
	}
	stop()
	fmt.Println(<-done)
	// Output:
	// e-2 is parked: rejected
	// e-3 is parked: waits behind e-2
	// e-1 arrived
	// e-4 arrived
	// e-2 arrived
	// e-3 arrived
	// <nil>
}

// The test of a sink. What the harness has no means for is skipped.
func ExampleTestSink() {
	_ = func(t *testing.T) { // func TestConformance(t *testing.T) {
		destination := &onewritetest.MemorySink{} // the other system: a real one
		onewritetest.TestSink(t, onewritetest.SinkHarness{
			New: func(t *testing.T) onewrite.Sink {
				s, err := destination.Open(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				return s
			},
			Received: func(*testing.T) []onewrite.Event { return destination.Received() },
			Refuse:   func(_ *testing.T, id string) { destination.Answer(id, onewrite.ErrRejected) },
		})
	}
}

// The test of a source: for each check a new database, that the application's side
// reaches through database/sql.
func ExampleTestSource() {
	_ = func(t *testing.T) { // func TestConformance(t *testing.T) {
		onewritetest.TestSource(t, func(t *testing.T) onewritetest.SourceHarness {
			path := filepath.Join(t.TempDir(), "app.db")
			if _, err := sqlite.Migrate(t.Context(), path, sqlite.MigrateOptions{}); err != nil {
				t.Fatal(err)
			}
			db, err := sql.Open("sqlite", "file:"+path+"?_pragma=busy_timeout(60000)&_txlock=immediate")
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { db.Close() })
			return onewritetest.SourceHarness{
				Open: func(ctx context.Context, pos onewrite.Pos) (onewrite.Source, error) {
					return sqlite.Open(ctx, sqlite.Config{Name: "shop", Path: path}, pos)
				},
				Begin:     onewritetest.BeginSQL(db, outbox.SQLite),
				OneWriter: true,
			}
		})
	}
}

// The test of a bus, by the one in memory.
func ExampleTestBus() {
	_ = func(t *testing.T) { // func TestConformance(t *testing.T) {
		buses := map[string]*onewritetest.MemoryBus{} // what the folder of a real one holds
		onewritetest.TestBus(t, func(_ *testing.T, dir string) onewritetest.Bus {
			if buses[dir] == nil {
				buses[dir] = &onewritetest.MemoryBus{}
			}
			return kept{buses[dir]}
		})
	}
}
