package relay_test

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"os"
	"path/filepath"
	"time"

	"github.com/onewrite/onewrite/outbox"
	"github.com/onewrite/onewrite/pipeline"
	"github.com/onewrite/onewrite/relay"
)

// An application that brings its own relay: no second program, no server.
func ExampleRun() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	dir, err := os.MkdirTemp("", "relay")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	file := func(name string) string { return filepath.Join(dir, name) }

	cfg := &relay.Config{
		Sources:      map[string]relay.Source{"shop": {Type: "sqlite", Path: file("app.db")}},
		Destinations: map[string]relay.Destination{"archive": {Type: "file", Path: file("events.jsonl"), Topics: []string{"order.>"}}},
		Bus:          relay.Bus{Dir: file("bus")},
		Listen:       "off",
	}
	if err := cfg.Validate(); err != nil {
		log.Fatal(err)
	}
	if err := relay.Migrate(ctx, io.Discard, cfg, relay.MigrateOptions{}); err != nil { // when it is installed
		log.Fatal(err)
	}

	running, stop := context.WithCancel(ctx)
	delivered, done := make(chan string, 1), make(chan error)
	go func() {
		done <- relay.Run(running, cfg, relay.Options{Observe: pipeline.Observer{
			Delivered: func(destination string, _ time.Duration) { delivered <- destination },
		}})
	}()

	db, err := sql.Open("sqlite", "file:"+file("app.db")+"?_pragma=busy_timeout(5000)&_txlock=immediate")
	if err != nil {
		log.Fatal(err)
	}
	defer db.Close()
	err = outbox.InTx(ctx, db, func(tx *sql.Tx) error {
		return outbox.New(outbox.SQLite).Publish(ctx, tx, outbox.Event{Topic: "order.placed", Key: "alice", Payload: []byte(`{"order":"o-1"}`)})
	})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("delivered to", <-delivered)
	stop()
	fmt.Println("stopped:", <-done)

	line, err := os.ReadFile(file("events.jsonl"))
	if err != nil {
		log.Fatal(err)
	}
	var e struct{ Source, Type, PartitionKey, Data any }
	if err := json.Unmarshal(line, &e); err != nil {
		log.Fatal(err)
	}
	fmt.Println(e.Source, e.Type, e.PartitionKey, e.Data)
	// Output:
	// delivered to archive
	// stopped: <nil>
	// /shop order.placed alice map[order:o-1]
}
