package storm

import (
	"context"
	"errors"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	natsgo "github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/onewrite/onewrite/torture/history"
)

// stream is a NATS server with a stream, and a plain client that reads it. Its
// subjects say which copy of onewrite published.
type stream struct {
	*consumer
	server *server.Server
	conn   *natsgo.Conn
	held   jetstream.Stream
	stop   context.CancelFunc
	done   sync.WaitGroup
	err    error // read after done
}

func newStream(ctx context.Context, s *storm) (*stream, error) {
	srv, err := server.NewServer(&server.Options{Host: "127.0.0.1", Port: server.RANDOM_PORT, JetStream: true, StoreDir: s.path("nats"), NoSigs: true, NoLog: true})
	if err != nil {
		return nil, err
	}
	c, err := newConsumer(s, "stream")
	if err != nil {
		return nil, err
	}
	srv.Start()
	k := &stream{consumer: c, server: srv}
	if !srv.ReadyForConnections(20 * time.Second) {
		return nil, errors.Join(errors.New("the NATS server does not start"), k.close())
	}
	if err = k.open(ctx); err != nil {
		return nil, errors.Join(err, k.close())
	}
	return k, nil
}

func (k *stream) open(ctx context.Context) (err error) {
	if k.conn, err = natsgo.Connect(k.server.ClientURL()); err != nil {
		return err
	}
	js, err := jetstream.New(k.conn)
	if err != nil {
		return err
	}
	// An hour: no fault of a storm lasts longer than the server remembers ids.
	st, err := js.CreateStream(ctx, jetstream.StreamConfig{Name: "EVENTS", Subjects: []string{"events.>"}, Duplicates: time.Hour})
	if err != nil {
		return err
	}
	k.held = st
	c, err := st.OrderedConsumer(ctx, jetstream.OrderedConsumerConfig{})
	if err != nil {
		return err
	}
	ctx, k.stop = context.WithCancel(context.WithoutCancel(ctx))
	k.done.Go(func() { k.err = k.read(ctx, c) })
	return nil
}

// read takes what arrives until it is stopped.
func (k *stream) read(ctx context.Context, c jetstream.Consumer) error {
	for ctx.Err() == nil {
		msgs, err := c.Fetch(every, jetstream.FetchMaxWait(200*time.Millisecond))
		if err != nil {
			return err
		}
		var list []history.Arrival
		for m := range msgs.Messages() {
			from, _ := strconv.Atoi(strings.Split(m.Subject(), ".")[1])
			a, err := k.s.arrival(from, m.Headers().Get("ce-id"), m.Data())
			if err != nil {
				return err
			}
			list = append(list, a)
		}
		if len(list) == 0 {
			continue
		}
		if _, err := k.take(list...); err != nil {
			return err
		}
	}
	return nil
}

func (k *stream) name() string { return "stream" }
func (k *stream) kind() history.Kind {
	return history.Kind{Once: true, Ledger: true, Distinct: true}
}
func (k *stream) yaml() string {
	return `{type: nats, url: "${env:OW_STREAM}", subject: "events.${env:OW_COPY}.{topic}", retry: {first: 10ms, max: 500ms}}`
}

// seen asks the server: the client reads a moment later.
func (k *stream) seen() uint64 {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	info, err := k.held.Info(ctx)
	if err != nil {
		return k.consumer.seen()
	}
	return info.State.Msgs
}

func (k *stream) settle(dir string) error {
	if n := k.s.answersLost(k.name()); n > 0 {
		k.s.faults.Add(&history.Fault{At: 1, Until: k.s.now(), Kind: "answer lost", Times: n, On: k.name(), Proof: strconv.Itoa(n) + " answers of the server were dropped by the proxy"})
	}
	k.stop()
	k.done.Wait()
	return errors.Join(k.err, k.consumer.settle(dir))
}

func (k *stream) close() error {
	if k.stop != nil {
		k.stop()
		k.done.Wait()
	}
	if k.conn != nil {
		k.conn.Close()
	}
	k.server.Shutdown()
	k.server.WaitForShutdown()
	return k.consumer.close()
}
