package natsinbox_test

import (
	"context"
	"database/sql"
	"fmt"
	"log"
	"os"
	"path/filepath"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/inbox"
	"github.com/onewrite/onewrite/inbox/natsinbox"
)

// streamOf starts a server with the stream that a `nats` destination of onewrite
// fills, and publishes an event, twice.
func streamOf(ctx context.Context, dir string) (js jetstream.JetStream, stop func()) {
	s, err := server.NewServer(&server.Options{Host: "127.0.0.1", Port: server.RANDOM_PORT, NoSigs: true, NoLog: true, JetStream: true, StoreDir: dir})
	if err != nil {
		log.Fatal(err)
	}
	s.Start()
	if !s.ReadyForConnections(time.Minute) {
		log.Fatal("the server did not start")
	}
	conn, err := nats.Connect(s.ClientURL())
	if err != nil {
		log.Fatal(err)
	}
	if js, err = jetstream.New(conn); err != nil {
		log.Fatal(err)
	}
	if _, err := js.CreateStream(ctx, jetstream.StreamConfig{Name: "events", Subjects: []string{"order.>"}}); err != nil {
		log.Fatal(err)
	}
	m := nats.NewMsg("order.placed")
	for name, value := range map[string]string{"ce-specversion": "1.0", "ce-id": "e-1", "ce-source": "/shop", "ce-type": "order.placed", "ce-partitionkey": "alice"} {
		m.Header[name] = []string{value}
	}
	for range 2 {
		if _, err := js.PublishMsg(ctx, m); err != nil {
			log.Fatal(err)
		}
	}
	return js, func() {
		conn.Close()
		s.Shutdown()
		s.WaitForShutdown()
	}
}

// A consumer that applies the events of a stream; a repeat has no effect.
func ExampleConsume() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	dir, err := os.MkdirTemp("", "natsinbox")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	js, stop := streamOf(ctx, dir)
	defer stop()
	db, err := sql.Open("sqlite", "file:"+filepath.Join(dir, "billing.db")+"?_pragma=busy_timeout(5000)&_txlock=immediate")
	if err != nil {
		log.Fatal(err)
	}
	defer db.Close()
	box := inbox.New(inbox.SQLite, "billing")
	if err := box.Migrate(ctx, db); err != nil {
		log.Fatal(err)
	}

	consumer, err := js.CreateOrUpdateConsumer(ctx, "events", jetstream.ConsumerConfig{
		Durable: "billing", AckPolicy: jetstream.AckExplicitPolicy, MaxDeliver: -1,
	})
	if err != nil {
		log.Fatal(err)
	}
	receive := box.Receiver(db, func(_ context.Context, _ *sql.Tx, e onewrite.Event) error {
		fmt.Println("bill", e.Key, "for", e.ID)
		return nil
	})
	handled := 0
	err = natsinbox.Consume(ctx, consumer, func(ctx context.Context, messages []inbox.Message) ([]inbox.Outcome, error) {
		outcomes, err := receive(ctx, messages)
		if handled += len(outcomes); handled == 2 {
			cancel() // the example is over; a service goes on until it is stopped
		}
		return outcomes, err
	})
	fmt.Println(handled, "messages handled,", err)
	// Output:
	// bill alice for e-1
	// 2 messages handled, <nil>
}
