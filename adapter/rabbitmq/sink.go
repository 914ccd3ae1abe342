package rabbitmq

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/onewrite/onewrite"
)

// Config says where a [Sink] publishes.
type Config struct {
	// URL is the address, amqp://user:password@host:5672/vhost or amqps://...,
	// several with commas, that are tried in turn. Required.
	URL string
	// Name is what the broker shows for the connection; default "onewrite".
	Name string
	// TLS is the client's configuration for amqps; nil trusts the system's
	// authorities.
	TLS *tls.Config
	// Exchange is published to; empty is the default exchange, in which every queue
	// is bound by its name.
	Exchange string
	// RoutingKey is a template with {topic}, {key}, {source} and {type}; default
	// "{topic}".
	RoutingKey string
	// Declare is made at every opening, if it is not there; nil looks whether the
	// exchange is there, and with the default exchange and a routing key that is
	// one queue's name, the queue.
	Declare *Topology
	// Optional takes an event that no queue wants for delivered: it is lost. By
	// default it is refused.
	Optional bool
	// Timeout bounds one Write, opening included; default 15 s.
	Timeout time.Duration
	// Logger gets warnings; nil discards them.
	Logger *slog.Logger
}

// Topology is an exchange with queues, all durable.
type Topology struct {
	// Exchange is the type of Config.Exchange: topic, direct, fanout or headers.
	// Empty declares no exchange.
	Exchange string
	// Queues are declared and bound, by name.
	Queues map[string]Queue
}

// Queue is a durable queue.
type Queue struct {
	// Type is quorum, classic or stream; default quorum.
	Type string
	// Bind are the routing keys or patterns of its bindings to the exchange: those
	// of AMQP, and those of topics, in which > at the end stands for one word or
	// more. Empty: all of a topic, fanout or headers exchange, the queue's name of a
	// direct one.
	Bind []string
	// SingleActive lets one consumer read at a time. When it is gone, what it had not
	// acknowledged comes first, before another one gets anything.
	SingleActive bool
}

const (
	defaultName    = "onewrite"
	defaultTimeout = 15 * time.Second
)

func (c Config) withDefaults() Config {
	if c.Name == "" {
		c.Name = defaultName
	}
	if c.RoutingKey == "" {
		c.RoutingKey = "{topic}"
	}
	if c.Timeout <= 0 {
		c.Timeout = defaultTimeout
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return c
}

// Sink publishes events to RabbitMQ. Each Write has a connection for itself while it
// runs, so that giving up one harms no other.
type Sink struct {
	c     Config
	addrs []address

	mu     sync.Mutex
	idle   []*session
	busy   map[*session]struct{}
	closed bool
}

var errClosed = errors.New("rabbitmq: the sink is closed")

// NewSink connects, and declares or checks what is published to. The error says why
// it cannot.
func NewSink(ctx context.Context, c Config) (*Sink, error) {
	if err := ctx.Err(); err != nil {
		return nil, context.Cause(ctx)
	}
	addrs, err := parse(c.URL)
	if err != nil {
		return nil, err
	}
	s := &Sink{c: c.withDefaults(), addrs: addrs, busy: map[*session]struct{}{}}
	ctx, cancel := context.WithTimeout(ctx, s.c.Timeout)
	defer cancel()
	ses, err := s.take(ctx)
	if err != nil {
		return nil, err
	}
	s.release(ses, true)
	return s, nil
}

// Write publishes the events and waits until the broker has confirmed them; see
// [onewrite.Sink]. An error leaves what is in flight unknown, and ends its
// connection.
func (s *Sink) Write(ctx context.Context, events []onewrite.Event) (int, error) {
	if len(events) == 0 {
		return 0, nil
	}
	if ctx.Err() != nil {
		return 0, fmt.Errorf("rabbitmq: %w", context.Cause(ctx))
	}
	ctx, cancel := context.WithTimeout(ctx, s.c.Timeout)
	defer cancel()
	ses, err := s.take(ctx)
	if err != nil {
		return 0, err
	}
	w := &write{Sink: s, session: ses, ctx: ctx, events: events, lanes: map[lane]int{}}
	n, err := w.run()
	s.release(ses, w.sound())
	return n, err
}

// take returns a session that nobody else has, and dials if there is none.
func (s *Sink) take(ctx context.Context) (*session, error) {
	s.mu.Lock()
	for len(s.idle) > 0 && !s.closed {
		ses := s.idle[len(s.idle)-1]
		s.idle = s.idle[:len(s.idle)-1]
		if ses.alive() {
			s.busy[ses] = struct{}{}
			s.mu.Unlock()
			return ses, nil
		}
		ses.abort()
	}
	closed := s.closed
	s.mu.Unlock()
	if closed {
		return nil, errClosed
	}
	ses, err := s.open(ctx)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		ses.abort()
		return nil, errClosed
	}
	s.busy[ses] = struct{}{}
	return ses, nil
}

// release gives a session back. One that is not sound may have messages in flight,
// that must not come after what is written next: it is given up.
func (s *Sink) release(ses *session, sound bool) {
	s.mu.Lock()
	delete(s.busy, ses)
	keep := sound && !s.closed
	if keep {
		s.idle = append(s.idle, ses)
	}
	s.mu.Unlock()
	if !keep {
		ses.abort()
	}
}

// Close ends the connections, and every Write that waits on one.
func (s *Sink) Close() error {
	s.mu.Lock()
	idle := s.idle
	s.idle, s.closed = nil, true
	for ses := range s.busy {
		ses.cut()
	}
	s.mu.Unlock()
	for _, ses := range idle {
		ses.close()
	}
	return nil
}

var _ onewrite.Sink = (*Sink)(nil)
