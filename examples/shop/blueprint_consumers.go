package shop

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
	"github.com/twmb/franz-go/pkg/kgo"
)

// subscriber is one of the five consumers of the blueprint. Those of RabbitMQ get the
// events that the order service publishes, those of Kafka the changes of its rows.
// Whatever the way, each remembers the ids of what it has done (once, in receive.go).
type subscriber struct {
	consumer
	broker string
	from   string // the queue, or the topic
	handle func(ctx context.Context, tx *sql.Tx, c consumer, body []byte) error
}

const (
	rabbitMQ = "RabbitMQ"
	kafka    = "Kafka"
)

var subscribers = []subscriber{
	{demoConsumer("inventory"), rabbitMQ, "inventory", handleEvent},
	{demoConsumer("email"), rabbitMQ, "email", handleEvent},
	{demoConsumer("analytics"), rabbitMQ, "analytics", handleEvent},
	{searchIndex, kafka, "shop.public.orders", handleOrderRow},
	{demoConsumer("fraud"), kafka, "shop.public.customers", handleCustomerRow},
}

// demoConsumer is one that does the same work as in the demo.
func demoConsumer(name string) consumer {
	c, _ := consumerNamed(name) // one of ours
	return c
}

// handleEvent takes an event of the outbox, whose payload is an order.
func handleEvent(ctx context.Context, tx *sql.Tx, c consumer, body []byte) error {
	var o order
	if err := json.Unmarshal(body, &o); err != nil {
		return err
	}
	return c.effect(ctx, tx, o)
}

// searchIndex keeps a document for each order, as its row is. $3, the place in the
// order, is the step of the row: 1 it was written, 2 it was paid.
var searchIndex = consumer{"search", `
	CREATE TABLE IF NOT EXISTS documents (n INTEGER PRIMARY KEY, text TEXT, paid INTEGER NOT NULL);
	CREATE TABLE IF NOT EXISTS changes (id INTEGER PRIMARY KEY, n INTEGER, step INTEGER)`,
	func(ctx context.Context, tx *sql.Tx, o order) error {
		return each(ctx, tx, o,
			`INSERT INTO changes (n, step) VALUES ($1, $3)`,
			`INSERT INTO documents (n, text, paid) VALUES ($1, $4 || ' ' || $2, $3 - 1)
			 ON CONFLICT (n) DO UPDATE SET text = excluded.text, paid = excluded.paid`)
	}}

// change is what is told of a changed row: docs/row-changes.md.
type change[R any] struct {
	Op    string `json:"op"`
	After R      `json:"after"`
}

// handleOrderRow takes a change of a row of orders. What is to be put in order is the
// row: its first change is that it was written, the second that it was paid.
func handleOrderRow(ctx context.Context, tx *sql.Tx, c consumer, body []byte) error {
	var row change[struct {
		N        int
		Customer string
		Item     string
		Paid     bool
	}]
	if err := json.Unmarshal(body, &row); err != nil {
		return err
	}
	o := order{N: row.After.N, Customer: row.After.Customer, Item: row.After.Item, Seq: 1}
	if row.After.Paid {
		o.Seq = 2
	}
	return c.effect(ctx, tx, o)
}

// handleCustomerRow takes a change of a row of customers: one more order, or the shop
// has closed for this customer.
func handleCustomerRow(ctx context.Context, tx *sql.Tx, c consumer, body []byte) error {
	var row change[struct {
		Customer  string
		Orders    int
		LastOrder int `json:"last_order"`
		LastCents int `json:"last_cents"`
		Closed    bool
	}]
	if err := json.Unmarshal(body, &row); err != nil {
		return err
	}
	a := row.After
	return c.effect(ctx, tx, order{N: a.LastOrder, Customer: a.Customer, Seq: a.Orders, Cents: a.LastCents, Closed: a.Closed})
}

// subscriberSettings is what a subscriber's process is told when it starts.
type subscriberSettings struct {
	Name    string
	Path    string // its store
	Address string // of its broker
	Orders  int    // that the warehouse has to be filled for
}

// subscribe is the process of one consumer. It says "ready" on stdout and ends with
// ctx. A broker that is away is tried again.
func subscribe(ctx context.Context, set subscriberSettings, stdout io.Writer) error {
	for _, s := range subscribers {
		if s.name != set.Name {
			continue
		}
		db, err := openSQLite(set.Path)
		if err != nil {
			return err
		}
		defer db.Close()
		if err := s.prepare(ctx, db, set.Orders); err != nil {
			return fmt.Errorf("shop: %s: %w", s.name, err)
		}
		if _, err := db.ExecContext(ctx, placesTable); err != nil {
			return fmt.Errorf("shop: %s: %w", s.name, err)
		}
		fmt.Fprintln(stdout, ready)
		if s.broker == kafka {
			return s.readTopic(ctx, db, set.Address)
		}
		return s.readQueue(ctx, db, set.Address)
	}
	return fmt.Errorf("shop: there is no consumer %q", set.Name)
}

// placesTable tells what was read twice, which is the consumer's own doing, from what
// was sent twice, which no consumer of Kafka may ever see: it is for the count alone.
const placesTable = `CREATE TABLE IF NOT EXISTS places (place TEXT PRIMARY KEY, id TEXT NOT NULL) WITHOUT ROWID`

// workError is the error of a store or a message, where another connection is no cure.
type workError struct{ error }

// take has the effect of a message once. Ids are unique within their source.
func (s subscriber) take(ctx context.Context, db *sql.DB, source, id string, body []byte) error {
	if source == "" || id == "" {
		return workError{fmt.Errorf("shop: %s: a message without source and id", s.name)}
	}
	ctx = context.WithoutCancel(ctx) // what was begun is ended
	err := once(ctx, db, source+" "+id, func(tx *sql.Tx) error { return s.handle(ctx, tx, s.consumer, body) })
	if err != nil {
		return workError{fmt.Errorf("shop: %s: %w", s.name, err)}
	}
	return nil
}

// readQueue reads a queue of RabbitMQ over one connection after the other.
func (s subscriber) readQueue(ctx context.Context, db *sql.DB, url string) error {
	for ctx.Err() == nil {
		err := s.readConnection(ctx, db, url)
		if errors.As(err, new(workError)) {
			return err
		}
		select { // the broker is away, or the queue is not made yet
		case <-ctx.Done():
		case <-time.After(200 * time.Millisecond):
		}
	}
	return nil
}

// readConnection acknowledges a message when its effect is durable. What was not
// acknowledged when a connection breaks comes again, before what had not been sent:
// the queue has a single active consumer, so that the next one cannot be too early.
func (s subscriber) readConnection(ctx context.Context, db *sql.DB, url string) error {
	conn, err := amqp.Dial(url)
	if err != nil {
		return err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	ch, err := conn.Channel()
	if err != nil {
		return err
	}
	if err := ch.Qos(100, 0, false); err != nil {
		return err
	}
	messages, err := ch.ConsumeWithContext(ctx, s.from, s.name, false, false, false, false, nil)
	if err != nil {
		return err
	}
	for m := range messages {
		source, _ := m.Headers["cloudEvents_source"].(string)
		if err := s.take(ctx, db, source, m.MessageId, m.Body); err != nil {
			return err
		}
		if err := m.Ack(false); err != nil {
			return err
		}
	}
	return amqp.ErrClosed
}

// readTopic reads a topic of Kafka as a group of its own, and sees what was committed
// only. Offsets are committed when the effects are durable.
func (s subscriber) readTopic(ctx context.Context, db *sql.DB, broker string) error {
	cl, err := kgo.NewClient(kgo.SeedBrokers(broker), kgo.ConsumeTopics(s.from), kgo.ConsumerGroup(s.name),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()), kgo.DisableAutoCommit(),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),                  // a new group begins at the beginning
		kgo.InstanceID(s.name),                                             // who is killed and comes back gets its partitions at once
		kgo.MetadataMinAge(time.Second), kgo.MetadataMaxAge(2*time.Second)) // the topic is not there before the first event
	if err != nil {
		return fmt.Errorf("shop: %s: %w", s.name, err)
	}
	defer cl.CloseAllowingRebalance()
	for ctx.Err() == nil {
		fetches := cl.PollFetches(ctx) // errors are tried again by the client
		for _, r := range fetches.Records() {
			header := make(map[string]string)
			for _, h := range r.Headers {
				header[h.Key] = string(h.Value)
			}
			_, err := db.ExecContext(context.WithoutCancel(ctx), `INSERT INTO places (place, id) VALUES ($1, $2) ON CONFLICT DO NOTHING`,
				fmt.Sprintf("partition %d, offset %d", r.Partition, r.Offset), header["ce_id"])
			if err == nil {
				err = s.take(ctx, db, header["ce_source"], header["ce_id"], r.Value)
			}
			if err != nil {
				return err
			}
		}
		// Not committed: the records come again, and the inbox knows them.
		_ = cl.CommitUncommittedOffsets(ctx)
	}
	return nil
}
