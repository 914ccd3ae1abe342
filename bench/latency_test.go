package bench

import (
	"context"
	"database/sql"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	natsgo "github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/onewrite/onewrite/outbox"
	"github.com/onewrite/onewrite/pipeline"
	"github.com/onewrite/onewrite/relay"
)

const (
	latencyRate   = 1000 // transactions a second
	latencyEvents = 6000 // in a run
	latencyWriter = 8
)

// A committer commits one event in a transaction of its own, with or without
// ringing the bell for a relay in the same process.
type committer func(key string) error

// ringing commits as an application in Go does.
func ringing(b *testing.B, db *sql.DB, d outbox.Dialect) committer {
	events := outbox.New(d)
	return func(key string) error {
		return outbox.InTx(b.Context(), db, func(tx *sql.Tx) error {
			return events.Publish(b.Context(), tx, outbox.Event{Topic: "order.placed", Key: key, Payload: []byte(payload)})
		})
	}
}

// plain commits as a program in any language does: no bell.
func plain(b *testing.B, db *sql.DB) committer {
	insert, err := db.Prepare(`INSERT INTO onewrite.outbox (topic, key, payload) VALUES ('order.placed', $1, $2)`)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { insert.Close() })
	return func(key string) error {
		_, err := insert.Exec(key, payload)
		return err
	}
}

// latency measures COMMIT's return to arrival at a fixed rate: at is where
// arrivals are noted.
func latency(b *testing.B, at *atomic.Pointer[trip], writers, rate, n int, commit committer) {
	b.Helper()
	got := samples{}
	for range runs {
		start := time.Now()
		d := oneTrip(b, at, writers, rate, n, commit)
		got.add("tx/s", float64(n)/time.Since(start).Seconds())
		got.add("p50-ms", percentile(d, 0.50))
		got.add("p99-ms", percentile(d, 0.99))
	}
	got.report(b)
}

// oneTrip sends n events at a rate and returns how long each was under way.
func oneTrip(b *testing.B, at *atomic.Pointer[trip], writers, rate, n int, commit committer) []time.Duration {
	b.Helper()
	t := newTrip(n)
	at.Store(t)
	paced(b, writers, n, rate, func(i int) error {
		err := commit(strconv.Itoa(i))
		t.leave(i)
		return err
	})
	return t.times(b)
}

// BenchmarkCommitToBus measures when an event is durable on the bus, at 1,000
// transactions a second of 8 writers.
func BenchmarkCommitToBus(b *testing.B) {
	run := func(how func(*testing.B, *sql.DB) committer) func(b *testing.B) {
		return func(b *testing.B) {
			url, db := database(b)
			db.SetMaxOpenConns(latencyWriter)
			db.SetMaxIdleConns(latencyWriter)
			bus := openBus(b)
			at := &atomic.Pointer[trip]{}
			ingest(b, watched{Bus: bus, trip: at}, pgSource(url, bus.ID()), pipeline.Observer{})
			latency(b, at, latencyWriter, latencyRate, latencyEvents, how(b, db))
		}
	}
	b.Run("bell", run(func(b *testing.B, db *sql.DB) committer { return ringing(b, db, outbox.Postgres) }))
	b.Run("plain", run(plain))
}

// BenchmarkCommitToConsumer measures when a consumer has the event. With bell
// the relay runs in the application's process; with plain it is the program, and
// the writers use SQL alone.
func BenchmarkCommitToConsumer(b *testing.B) {
	consumers := []struct {
		name  string
		start func(*testing.B, *atomic.Pointer[trip]) relay.Destination
	}{{"webhook", receiver}, {"nats", subscriber}}
	for _, c := range consumers {
		b.Run(c.name+"/bell", func(b *testing.B) {
			url, db := database(b)
			db.SetMaxOpenConns(latencyWriter)
			db.SetMaxIdleConns(latencyWriter)
			at := &atomic.Pointer[trip]{}
			embedded(b, &relay.Config{
				Sources:      map[string]relay.Source{"shop": {Type: "postgres", URL: relay.NewSecret(url)}},
				Destinations: map[string]relay.Destination{"consumer": c.start(b, at)},
			})
			latency(b, at, latencyWriter, latencyRate, latencyEvents, ringing(b, db, outbox.Postgres))
		})
		b.Run(c.name+"/plain", func(b *testing.B) {
			url, db := database(b)
			db.SetMaxOpenConns(latencyWriter)
			db.SetMaxIdleConns(latencyWriter)
			at := &atomic.Pointer[trip]{}
			d := c.start(b, at)
			options := ""
			if d.AllowPrivate {
				options = ", allow_private: true"
			}
			running(b, fmt.Sprintf("{type: postgres, url: %q}", url),
				fmt.Sprintf("destinations:\n  consumer: {type: %s, url: %q%s}\n", d.Type, d.URL.Reveal(), options))
			latency(b, at, latencyWriter, latencyRate, latencyEvents, plain(b, db))
		})
	}
}

// receiver is a consumer behind a webhook.
func receiver(b *testing.B, at *atomic.Pointer[trip]) relay.Destination {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, err := io.Copy(io.Discard, r.Body); err != nil {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		if t := at.Load(); t != nil {
			t.arrive(r.Header.Get("ce-partitionkey"))
		}
		w.WriteHeader(http.StatusNoContent)
	}))
	b.Cleanup(s.Close)
	return relay.Destination{Type: "webhook", URL: relay.NewSecret(s.URL), AllowPrivate: true}
}

// subscriber is a consumer of a stream on another NATS server.
func subscriber(b *testing.B, at *atomic.Pointer[trip]) relay.Destination {
	s, err := server.NewServer(&server.Options{ServerName: "consumer", Host: "127.0.0.1", Port: server.RANDOM_PORT, JetStream: true, StoreDir: filepath.Join(b.TempDir(), "consumer"), NoSigs: true, NoLog: true})
	if err != nil {
		b.Fatal(err)
	}
	s.Start()
	if !s.ReadyForConnections(10 * time.Second) {
		b.Fatal("the server is not ready")
	}
	b.Cleanup(func() { s.Shutdown(); s.WaitForShutdown() })
	nc, err := natsgo.Connect(s.ClientURL())
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(nc.Close)
	js, err := jetstream.New(nc)
	if err != nil {
		b.Fatal(err)
	}
	stream, err := js.CreateStream(b.Context(), jetstream.StreamConfig{Name: "orders", Subjects: []string{"order.>", "public.>"}, Storage: jetstream.FileStorage})
	if err != nil {
		b.Fatal(err)
	}
	consumer, err := stream.OrderedConsumer(context.Background(), jetstream.OrderedConsumerConfig{})
	if err != nil {
		b.Fatal(err)
	}
	reading, err := consumer.Consume(func(m jetstream.Msg) {
		if t := at.Load(); t != nil {
			t.arrive(rowNumber(m.Headers().Get("ce-partitionkey")))
		}
	})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(reading.Stop)
	return relay.Destination{Type: "nats", URL: relay.NewSecret(s.ClientURL())}
}
