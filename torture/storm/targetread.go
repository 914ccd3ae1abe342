package storm

import (
	"context"
	"errors"
	"fmt"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
	goredis "github.com/redis/go-redis/v9"
	"github.com/twmb/franz-go/pkg/kadm"
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

// onKafka is what the log of the source on Kafka, the bus, ever held.
const onKafka = "lies on Kafka, the bus"

// countBus counts that.
func (s *storm) countBus(ctx context.Context) error {
	cl, err := kgo.NewClient(kgo.SeedBrokers(s.kafkaAddr()), kgo.DisableClientMetrics())
	if err != nil {
		return err
	}
	defer cl.Close()
	const topic = "onewrite.log.shop"
	ends, err := kadm.NewClient(cl).ListEndOffsets(ctx, topic)
	if end, has := ends.Lookup(topic, 0); err == nil && has && end.Err == nil {
		s.labels.hits(onKafka, int(end.Offset))
	}
	return err
}

// kafkaAddr is where the broker of the destinations listens.
func (s *storm) kafkaAddr() string { return s.hostOf("kafka").machine.(*servers.KafkaServer).Addr() }
