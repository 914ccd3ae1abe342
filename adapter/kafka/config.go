package kafka

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/sasl/oauth"
	"github.com/twmb/franz-go/pkg/sasl/plain"
	"github.com/twmb/franz-go/pkg/sasl/scram"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/internal/schemas"
)

// Config says where a sink writes, and how.
type Config struct {
	// Brokers are some brokers of the cluster, host:port each.
	Brokers []string
	// Destination is the destination's name: the key of its place, and after
	// "onewrite-" its transactional.id. In one cluster it belongs to one onewrite.
	Destination string
	// Topic is the template of the topic; {topic}, {source} and {type} stand for those
	// of the event. Default "{topic}".
	Topic string
	// Idempotent is for [NewIdempotent] and [Examine]: no transactions.
	Idempotent bool
	// Compression is none, gzip, snappy, lz4 or zstd. Default lz4.
	Compression string
	// NoCreate leaves topics that are missing to others to create.
	NoCreate bool
	// Partitions and Replication are those of a topic that is created; 0 leaves them
	// to the broker. Replication is that of the topic of places too.
	Partitions, Replication int
	// Tombstones sends a record with the key and null behind each delete of a row.
	Tombstones bool
	// Places is the compacted topic of the places. Default "onewrite-places".
	Places string
	// SASL is how to log in; nil: not at all.
	SASL *SASL
	// TLS is the client's configuration; nil connects in clear text.
	TLS *tls.Config
	// AcceptRepartitioned goes on with another number of partitions than the
	// destination found in a topic before.
	AcceptRepartitioned bool
	// MaxEvent is the largest event, in bytes; [Examine] compares it with what the
	// topics take. Default 1 MiB.
	MaxEvent int
	// Schemas says by which schemas payloads are written; nil: as they are.
	Schemas *schemas.Config
	// Logger gets warnings; nil discards them.
	Logger *slog.Logger
}

// SASL is how to log in.
type SASL struct {
	// Mechanism is plain, scram-sha-256, scram-sha-512 or oauthbearer.
	Mechanism string
	// User and Password are for all but oauthbearer, Token is for that.
	User, Password, Token string
}

const (
	// writeTimeout bounds a write: an outage is told within it.
	writeTimeout = 10 * time.Second
	// openTimeout bounds the opening of a sink.
	openTimeout = 10 * time.Second
	// txnTimeout is when the coordinator ends a transaction by itself. It is well
	// above writeTimeout, so that nobody is taken for fenced who was just slow.
	txnTimeout = 30 * time.Second
	// placeTimeout bounds Place, which may have to wait for the transaction of another
	// destination to end in the topic of places.
	placeTimeout = txnTimeout + 15*time.Second
	// defaultLimit is the broker's own default of message.max.bytes, taken where the
	// topic's cannot be read.
	defaultLimit = 1048588
	// largestLimit keeps a batch below what the client writes at once.
	largestLimit = 90 << 20
)

// complete fills in the defaults and refuses what cannot work.
func (c *Config) complete() error {
	if len(c.Brokers) == 0 {
		return errors.New("kafka: the destination has no broker; set brokers: [host:9092]")
	}
	if c.Destination == "" {
		return errors.New("kafka: the destination has no name")
	}
	if c.Topic == "" {
		c.Topic = "{topic}"
	}
	if c.Places == "" {
		c.Places = "onewrite-places"
	}
	if c.MaxEvent <= 0 {
		c.MaxEvent = 1 << 20
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if reason := badTopic(c.Places); reason != "" {
		return fmt.Errorf("kafka: places: %q is not a topic of Kafka: %s; write places: onewrite-places", c.Places, reason)
	}
	return nil
}

func (c *Config) transactionalID() string { return "onewrite-" + c.Destination }

// compression is what batches are compressed with.
func (c *Config) compression() (kgo.ProducerOpt, error) {
	switch c.Compression {
	case "none":
		return kgo.ProducerBatchCompression(kgo.NoCompression()), nil
	case "gzip":
		return kgo.ProducerBatchCompression(kgo.GzipCompression()), nil
	case "snappy":
		return kgo.ProducerBatchCompression(kgo.SnappyCompression()), nil
	case "", "lz4":
		return kgo.WithCompressor(&blocks{}), nil
	case "zstd": // and the next best of brokers that do not know it
		return kgo.ProducerBatchCompression(kgo.ZstdCompression(), kgo.Lz4Compression()), nil
	}
	return nil, fmt.Errorf("kafka: compression %q is unknown; write none, gzip, snappy, lz4 or zstd", c.Compression)
}

// mechanism is the way to log in.
func (c *Config) mechanism() (kgo.Opt, error) {
	s := c.SASL
	switch s.Mechanism {
	case "plain":
		return kgo.SASL(plain.Auth{User: s.User, Pass: s.Password}.AsMechanism()), nil
	case "scram-sha-256":
		return kgo.SASL(scram.Auth{User: s.User, Pass: s.Password}.AsSha256Mechanism()), nil
	case "scram-sha-512":
		return kgo.SASL(scram.Auth{User: s.User, Pass: s.Password}.AsSha512Mechanism()), nil
	case "oauthbearer":
		return kgo.SASL(oauth.Auth{Token: s.Token}.AsMechanism()), nil
	}
	return nil, fmt.Errorf("kafka: sasl.mechanism %q is unknown; write plain, scram-sha-256, scram-sha-512 or oauthbearer", s.Mechanism)
}

// options are what all clients of a destination have in common. The client's own
// patience ends within seconds.
func (c *Config) options(h *heard) ([]kgo.Opt, error) {
	opts := []kgo.Opt{
		kgo.SeedBrokers(c.Brokers...), kgo.ClientID("onewrite"), kgo.WithHooks(h),
		kgo.DialTimeout(3 * time.Second), kgo.RequestTimeoutOverhead(5 * time.Second), kgo.RetryTimeout(8 * time.Second),
		kgo.RequestRetries(5), kgo.MetadataMinAge(250 * time.Millisecond), kgo.MetadataMaxAge(time.Minute),
		kgo.DisableClientMetrics(), kgo.RetryBackoffFn(backoff),
	}
	if c.TLS != nil {
		opts = append(opts, kgo.DialTLSConfig(c.TLS))
	}
	if c.SASL != nil {
		m, err := c.mechanism()
		if err != nil {
			return nil, err
		}
		opts = append(opts, m)
	}
	return opts, nil
}

// backoff is the client's pause between tries, within the seconds that a call has.
func backoff(tries int) time.Duration {
	return min(50*time.Millisecond<<min(tries, 4), 500*time.Millisecond)
}

// heard keeps the last trouble with a connection: what the client says of a record
// that waited in vain is that it waited in vain.
type heard struct {
	mu   sync.Mutex
	last error
}

// OnBrokerConnect notes whether a connection was made.
func (h *heard) OnBrokerConnect(_ kgo.BrokerMetadata, _ time.Duration, _ net.Conn, err error) {
	h.note(err)
}

func (h *heard) note(err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.last = err
}

// with adds the last trouble to an error.
func (h *heard) with(err error) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.last == nil || strings.Contains(err.Error(), h.last.Error()) {
		return err
	}
	return fmt.Errorf("%w: %w", h.last, err)
}

// core is what both sinks are made of.
type core struct {
	c     Config
	cl    *kgo.Client
	adm   *kadm.Client
	opts  []kgo.Opt // of a client that writes
	heard *heard
	turn  chan struct{} // holds one: whose turn it is

	schemas *schemas.Encoder // nil: payloads are written as they are

	closing sync.Once
	closed  chan struct{}

	mu     sync.Mutex
	topics map[string]*topic
	counts map[string]int // partitions of each topic, as remembered; nil: not read yet
	fresh  bool           // counts has what the topic of places has not
}

// open connects and sees to the topic of places.
func open(ctx context.Context, c Config, more ...kgo.Opt) (*core, error) {
	if err := ctx.Err(); err != nil {
		return nil, context.Cause(ctx)
	}
	if err := c.complete(); err != nil {
		return nil, err
	}
	compression, err := c.compression()
	if err != nil {
		return nil, err
	}
	s := &core{c: c, heard: &heard{}, turn: make(chan struct{}, 1), closed: make(chan struct{}), topics: map[string]*topic{}}
	if c.Schemas != nil {
		if s.schemas, err = schemas.New(*c.Schemas); err != nil {
			return nil, fmt.Errorf("kafka: %w", err)
		}
	}
	opts, err := c.options(s.heard)
	if err != nil {
		return nil, err
	}
	s.opts = append(opts,
		kgo.RequiredAcks(kgo.AllISRAcks()), compression, kgo.RecordPartitioner(partitioner{s}),
		kgo.ProducerBatchMaxBytesFn(s.limit), kgo.ProducerLinger(0), kgo.MaxBufferedRecords(1<<20),
		kgo.ProduceRequestTimeout(5*time.Second), kgo.RecordRetries(8), kgo.UnknownTopicRetries(3))
	if s.cl, err = kgo.NewClient(append(s.opts, more...)...); err != nil {
		return nil, fmt.Errorf("kafka: %w", err)
	}
	s.adm = kadm.NewClient(s.cl)
	ctx, cancel := context.WithTimeout(ctx, openTimeout)
	defer cancel()
	if err := s.ensurePlaces(ctx); err != nil {
		_ = s.Close() // it cannot fail
		return nil, err
	}
	return s, nil
}

// Close ends the connections. A transaction that is open is not committed.
func (s *core) Close() error {
	s.closing.Do(func() {
		close(s.closed)
		s.cl.Close()
		if s.schemas != nil {
			s.schemas.Close()
		}
	})
	return nil
}

var errClosed = errors.New("kafka: the sink is closed")

// begin bounds a call and takes the turn; end gives it back.
func (s *core) begin(ctx context.Context, limit time.Duration) (bounded context.Context, end func(), err error) {
	bounded, cancel := context.WithTimeout(ctx, limit)
	if err := s.take(bounded); err != nil {
		cancel()
		return nil, nil, err
	}
	return bounded, func() { cancel(); <-s.turn }, nil
}

// take takes the turn.
func (s *core) take(ctx context.Context) error {
	if err := s.usable(ctx); err != nil {
		return err
	}
	select {
	case s.turn <- struct{}{}:
		return nil
	case <-s.closed:
		return errClosed
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// usable says why nothing can be done.
func (s *core) usable(ctx context.Context) error {
	select {
	case <-s.closed:
		return errClosed
	default:
		return context.Cause(ctx)
	}
}

var (
	_ onewrite.Placed = (*Sink)(nil)
	_ onewrite.Sink   = (*Idempotent)(nil)
)
