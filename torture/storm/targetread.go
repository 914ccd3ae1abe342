package storm

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/go-sql-driver/mysql"
	amqp "github.com/rabbitmq/amqp091-go"
	goredis "github.com/redis/go-redis/v9"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/onewrite/onewrite/internal/servers"
	"github.com/onewrite/onewrite/torture/history"
)

// openKafka: two destinations share the broker, each with topics of its own. The reader
// sees committed records only.
func openKafka(_ context.Context, t *target) error {
	k := t.host.machine.(*servers.KafkaServer)
	more := ""
	if t.called != "kafka" {
		more = ", transactions: false"
	}
	t.text = fmt.Sprintf("{type: kafka, brokers: [%q], topic: %q, create_topics: true, partitions: 4, replication: 1%s, retry: {first: 10ms, max: 500ms}}",
		k.Addr(), t.called+".{topic}", more)
	cl, err := kgo.NewClient(kgo.SeedBrokers(k.Addr()), kgo.DisableClientMetrics(), kgo.FetchIsolationLevel(kgo.ReadCommitted()),
		kgo.ConsumeTopics(t.called+".ledger.moved"), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), kgo.FetchMaxWait(100*time.Millisecond),
		kgo.MetadataMinAge(100*time.Millisecond), kgo.MetadataMaxAge(time.Second), kgo.RetryBackoffFn(func(int) time.Duration { return 50 * time.Millisecond }))
	if err != nil {
		return err
	}
	t.shut = func() error { cl.Close(); return nil }
	last := map[int32]int64{} // a client that begins again gets what it had
	t.read = func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, 200*time.Millisecond)
		defer cancel()
		fetches := cl.PollRecords(ctx, 2000)
		var list []history.Arrival
		for it := fetches.RecordIter(); !it.Done(); {
			r := it.Next()
			if at, had := last[r.Partition]; had && r.Offset <= at {
				continue
			}
			last[r.Partition] = r.Offset
			id := ""
			for _, h := range r.Headers {
				if h.Key == "ce_id" {
					id = string(h.Value)
				}
			}
			a, err := t.arrivalOf(id, r.Value)
			if err != nil {
				return err
			}
			list = append(list, a)
		}
		if err := fetches.Err(); len(list) == 0 && err != nil && ctx.Err() == nil {
			return err
		}
		return t.got(list...)
	}
	return nil
}

// openRedis reads the stream by its ids.
func openRedis(_ context.Context, t *target) error {
	t.url = t.host.machine.(*servers.RedisServer).URL()
	t.text = fmt.Sprintf(`{type: redis, url: "${env:%s}", stream: "events:{topic}", retry: {first: 10ms, max: 500ms}}`, t.env())
	t.lost = []byte("evalsha")
	opt, err := goredis.ParseURL(t.url)
	if err != nil {
		return err
	}
	cl := goredis.NewClient(opt)
	t.shut = cl.Close
	last := "0"
	t.read = func(ctx context.Context) error {
		for ctx.Err() == nil {
			res, err := cl.XRead(ctx, &goredis.XReadArgs{Streams: []string{"events:ledger.moved", last}, Count: 2000, Block: 100 * time.Millisecond}).Result()
			if errors.Is(err, goredis.Nil) {
				t.idle.Add(1)
				continue
			}
			if err != nil {
				return err
			}
			for _, stream := range res {
				var list []history.Arrival
				for _, m := range stream.Messages {
					id, _ := m.Values["ce_id"].(string)
					body, _ := m.Values["data"].(string)
					a, err := t.arrivalOf(id, []byte(body))
					if err != nil {
						return err
					}
					list = append(list, a)
					last = m.ID
				}
				if err := t.got(list...); err != nil {
					return err
				}
			}
		}
		return nil
	}
	return nil
}

// openRabbit makes a quorum queue, and has the broker write down that it did: what it was
// told seconds before it is killed it may forget.
func openRabbit(ctx context.Context, t *target) error {
	r := t.host.machine.(*servers.Rabbit)
	t.url = r.URL()
	t.text = fmt.Sprintf(`{type: rabbitmq, url: "${env:%s}", exchange: storm, retry: {first: 10ms, max: 500ms}}`, t.env())
	t.lost = []byte("ledger.moved")
	conn, err := amqp.Dial(t.url)
	if err != nil {
		return err
	}
	ch, err := conn.Channel()
	if err == nil {
		err = ch.ExchangeDeclare("storm", "topic", true, false, false, false, nil)
	}
	if err == nil {
		_, err = ch.QueueDeclare("events", true, false, false, false, amqp.Table{"x-queue-type": "quorum"})
	}
	if err == nil {
		err = ch.QueueBind("events", "#", "storm", false, nil)
	}
	if err = errors.Join(err, conn.Close(), r.Sync(ctx)); err != nil {
		return err
	}
	t.read = func(ctx context.Context) error { return t.drink(ctx, r.URL()) }
	return nil
}

// drink reads a queue, and acknowledges what has had its effect. A message that the
// broker hands out once more because this reader was cut off is no repeat of onewrite's.
func (t *target) drink(ctx context.Context, url string) error {
	conn, err := amqp.Dial(url)
	if err != nil {
		return err
	}
	defer conn.Close()
	ch, err := conn.Channel()
	if err != nil {
		return err
	}
	if err := ch.Qos(1000, 0, false); err != nil {
		return err
	}
	in, err := ch.Consume("events", "", false, false, false, false, nil)
	if err != nil {
		return err
	}
	for {
		var list []history.Arrival
		var last uint64
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(100 * time.Millisecond):
			t.idle.Add(1)
			continue
		case d, ok := <-in:
			for ; ok && len(list) < 500; d, ok = next(in) {
				last = d.DeliveryTag
				if d.Redelivered && t.has(d.MessageId) {
					continue
				}
				a, err := t.arrivalOf(d.MessageId, d.Body)
				if err != nil {
					return err
				}
				list = append(list, a)
			}
		}
		if err := t.got(list...); err != nil {
			return err
		}
		if last == 0 {
			return errors.New("the channel is closed")
		}
		if err := ch.Ack(last, true); err != nil {
			return err
		}
	}
}

// next is what has come already.
func next(in <-chan amqp.Delivery) (d amqp.Delivery, ok bool) {
	select {
	case d, ok = <-in:
	default:
	}
	return d, ok
}

// The table of messages is made before onewrite comes, and whatever is written into it,
// for the first time or again, is noted by a trigger in the same transaction.
var tableText = map[string][]string{
	"postgres": {
		`CREATE TABLE onewrite_messages (id text, source text, topic text, "key" text, data text, PRIMARY KEY (id, source))`,
		`CREATE TABLE arrival (n bigserial PRIMARY KEY, id text, data text)`,
		`CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN INSERT INTO arrival (id, data) VALUES (NEW.id, NEW.data); RETURN NULL; END $$`,
		`CREATE TRIGGER note AFTER INSERT OR UPDATE ON onewrite_messages FOR EACH ROW EXECUTE FUNCTION note()`,
	},
	"mysql": {
		"CREATE TABLE onewrite_messages (id VARCHAR(100) NOT NULL, source VARCHAR(100) NOT NULL, topic TEXT, `key` TEXT, data LONGTEXT, PRIMARY KEY (id, source))",
		`CREATE TABLE arrival (n BIGINT AUTO_INCREMENT PRIMARY KEY, id VARCHAR(100), data LONGTEXT)`,
		`CREATE TRIGGER note AFTER INSERT ON onewrite_messages FOR EACH ROW INSERT INTO arrival (id, data) VALUES (NEW.id, NEW.data)`,
		`CREATE TRIGGER again AFTER UPDATE ON onewrite_messages FOR EACH ROW INSERT INTO arrival (id, data) VALUES (NEW.id, NEW.data)`,
	},
	"sqlite": {
		`CREATE TABLE onewrite_messages (id TEXT, source TEXT, topic TEXT, key TEXT, data TEXT, PRIMARY KEY (id, source))`,
		`CREATE TABLE arrival (n INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT, data TEXT)`,
		`CREATE TRIGGER note AFTER INSERT ON onewrite_messages BEGIN INSERT INTO arrival (id, data) VALUES (NEW.id, NEW.data); END`,
		`CREATE TRIGGER again AFTER UPDATE ON onewrite_messages BEGIN INSERT INTO arrival (id, data) VALUES (NEW.id, NEW.data); END`,
	},
}

// openTable reads what the trigger noted. One transaction at a time writes, that of the
// owner of the place, so that the numbers are in the order of the commits.
func openTable(ctx context.Context, t *target) (err error) {
	var db *sql.DB
	address := fmt.Sprintf(`url: "${env:%s}"`, t.env())
	query := `SELECT n, id, data FROM arrival WHERE n > $1 ORDER BY n LIMIT 2000`
	switch t.called {
	case "postgres":
		t.url = t.host.machine.(*servers.PG).URL("postgres")
		db, err = openAt(t.url)
	case "mysql":
		if t.url, err = t.host.machine.(*servers.Maria).Make("storm"); err == nil {
			db, err = openMySQL(t.url)
		}
		query = strings.ReplaceAll(query, "$1", "?")
	default:
		path := t.s.path("replica.db")
		address = "path: " + strconv.Quote(path)
		db, err = sql.Open("sqlite", "file:"+path+"?_pragma=busy_timeout(20000)&_pragma=journal_mode(wal)")
	}
	if err != nil {
		return err
	}
	t.text = fmt.Sprintf("{type: %s, %s, retry: {first: 10ms, max: 500ms}}", t.called, address)
	t.lost = []byte("COMMIT")
	t.shut = db.Close
	for _, q := range tableText[t.called] {
		if _, err := db.ExecContext(ctx, q); err != nil {
			return err
		}
	}
	last := int64(0)
	t.read = func(ctx context.Context) error {
		rows, err := db.QueryContext(ctx, query, last)
		if err != nil {
			return err
		}
		defer rows.Close()
		var list []history.Arrival
		at := last
		for rows.Next() {
			var id, data string
			if err := rows.Scan(&at, &id, &data); err != nil {
				return err
			}
			a, err := t.arrivalOf(id, []byte(data))
			if err != nil {
				return err
			}
			list = append(list, a)
		}
		if err := rows.Err(); err != nil {
			return err
		}
		last = at
		return t.got(list...)
	}
	return nil
}

// openMySQL connects to the database of a mysql:// URL.
func openMySQL(url string) (*sql.DB, error) {
	rest := strings.TrimPrefix(url, "mysql://")
	login, host, _ := strings.Cut(rest, "@")
	c := mysql.NewConfig()
	c.User, c.Passwd, _ = strings.Cut(login, ":")
	c.Net = "tcp"
	c.Addr, c.DBName, _ = strings.Cut(host, "/")
	d, err := mysql.NewConnector(c)
	if err != nil {
		return nil, err
	}
	return sql.OpenDB(d), nil
}
