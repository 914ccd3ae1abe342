package storm

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	natsgo "github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/onewrite/onewrite/torture/history"
)

// stream is a NATS server with a stream, and a plain client that reads it.
type stream struct {
	book
	s      *storm
	server *server.Server
	conn   *natsgo.Conn
	held   jetstream.Stream
	stop   context.CancelFunc
	done   sync.WaitGroup
	log    *history.Log
	err    error // read after done
}

func newStream(ctx context.Context, s *storm) (*stream, error) {
	srv, err := server.NewServer(&server.Options{Host: "127.0.0.1", Port: server.RANDOM_PORT, JetStream: true, StoreDir: s.path("nats"), NoSigs: true, NoLog: true})
	if err != nil {
		return nil, err
	}
	srv.Start()
	k := &stream{s: s, server: srv}
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
	st, err := js.CreateStream(ctx, jetstream.StreamConfig{Name: "EVENTS", Subjects: []string{"events.>"}, Duplicates: time.Minute})
	if err != nil {
		return err
	}
	k.held = st
	c, err := st.OrderedConsumer(ctx, jetstream.OrderedConsumerConfig{})
	if err != nil {
		return err
	}
	if k.log, err = history.Create(k.s.Dir, history.ArrivedFile, k.name()); err != nil {
		return err
	}
	ctx, k.stop = context.WithCancel(context.WithoutCancel(ctx))
	k.done.Go(func() { k.read(ctx, c) })
	return nil
}

// read records what arrives until it is stopped.
func (k *stream) read(ctx context.Context, c jetstream.Consumer) {
	for ctx.Err() == nil {
		msgs, err := c.Fetch(500, jetstream.FetchMaxWait(200*time.Millisecond))
		if err != nil {
			k.err = err
			return
		}
		for m := range msgs.Messages() {
			a, err := arrival(k.s, m.Headers().Get("ce-id"), m.Data())
			if err != nil {
				k.err = err
				return
			}
			k.log.Add(&a)
			k.note(a.ID)
		}
	}
}

func (k *stream) name() string       { return "stream" }
func (k *stream) kind() history.Kind { return history.Kind{} }
func (k *stream) yaml() string {
	return fmt.Sprintf(`{type: nats, url: %q, subject: "events.{topic}"}`, k.server.ClientURL())
}

// seen asks the server: the client reads a moment later.
func (k *stream) seen() uint64 {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	info, err := k.held.Info(ctx)
	if err != nil {
		return k.book.seen()
	}
	return info.State.Msgs
}

func (k *stream) settle(string) error {
	k.stop()
	k.done.Wait()
	err := errors.Join(k.err, k.log.Close())
	k.log = nil
	return err
}

func (k *stream) close() (err error) {
	if k.stop != nil {
		k.stop()
		k.done.Wait()
	}
	if k.log != nil {
		err = k.log.Close()
	}
	if k.conn != nil {
		k.conn.Close()
	}
	k.server.Shutdown()
	k.server.WaitForShutdown()
	return err
}
