package kafka

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/internal/places"
)

// BusConfig says which cluster is the bus.
type BusConfig struct {
	// Brokers are some brokers of the cluster, host:port each.
	Brokers []string
	// SASL is how to log in; nil: not at all.
	SASL *SASL
	// TLS is the client's configuration; nil connects in clear text.
	TLS *tls.Config
	// Name is the first part of the names of topics; letters, digits, _ and -; default
	// "onewrite".
	Name string
	// Replicas is the number of copies of every topic that is made; 0 means 3 where the
	// cluster has at least 3 brokers, else as many as it has.
	Replicas int
	// MaxBytes is the room for events, all logs together; when it is used up, Append
	// returns ErrFull. Default 10 GiB.
	MaxBytes int64
	// MaxEvent is the largest event in bytes; default 1 MiB.
	MaxEvent int
	// Vanished is told of events that left the bus from outside before a destination had
	// got them: offsets from to to of a source's log. It may be nil, and is called by any
	// goroutine.
	Vanished func(destination, source string, from, to uint64)
	// Logger gets warnings; nil discards them.
	Logger *slog.Logger

	lease time.Duration // tests shorten it
	slack int64         // records of a place's log that do not count; tests lessen it
}

const (
	// answerTimeout bounds an append. Who is cut off from the cluster has to let go of the
	// source soon, so that another copy can go on.
	answerTimeout = 4 * time.Second
	// callTimeout bounds every other call.
	callTimeout = 10 * time.Second
	// defaultLease is how long an owner may go without a commit.
	defaultLease = 6 * time.Second
	// defaultSlack is how many records the log of a place may have that do not count.
	defaultSlack = 10_000
	// batchBytes is what a topic takes in one batch of records, at least.
	batchBytes = 8 << 20
)

// complete fills in the defaults and refuses what cannot work.
func (c *BusConfig) complete() error {
	c.Name = cmp.Or(c.Name, "onewrite")
	if c.MaxBytes <= 0 {
		c.MaxBytes = 10 << 30
	}
	if c.MaxEvent <= 0 {
		c.MaxEvent = 1 << 20
	}
	c.lease = cmp.Or(c.lease, defaultLease)
	c.slack = cmp.Or(c.slack, defaultSlack)
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if len(c.Brokers) == 0 {
		return errors.New("kafka: the bus has no broker; set bus.brokers: [host:9092]")
	}
	if !validName(c.Name) {
		return fmt.Errorf("kafka: bus name %q: use letters, digits, _ and - only", c.Name)
	}
	return nil
}

// validName reports whether s can be part of the names of topics.
func validName(s string) bool { return places.ValidName(s, 100) }

// Bus is a [onewrite.Bus] on Kafka: a topic of one partition for each source, and one
// for the place of each destination. Its methods may be called by several goroutines at
// once.
type Bus struct {
	cfg   BusConfig
	log   *slog.Logger
	owner string // names this process in the records of places
	id    string
	heard *heard
	opts  []kgo.Opt
	cl    *kgo.Client // for all but appends and reading
	adm   *kadm.Client

	closed   atomic.Bool
	scanning gate // one at a time reads a piece of a topic
	scanner  *kgo.Client

	mu     sync.Mutex
	logs   map[string]*busLog
	places map[string]*place
	known  map[string]int // topics that are there: their largest batch
	claims places.Claims
}

// OpenBus connects to the cluster and makes what every bus has. The errors say what is
// wrong and what to do.
func OpenBus(ctx context.Context, c BusConfig) (*Bus, error) {
	if err := c.complete(); err != nil {
		return nil, err
	}
	b := &Bus{
		cfg: c, log: c.Logger, owner: rand.Text(), heard: &heard{}, scanning: make(gate, 1),
		logs: map[string]*busLog{}, places: map[string]*place{}, known: map[string]int{},
	}
	if err := b.connect(); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, openTimeout)
	defer cancel()
	if err := b.identify(ctx); err != nil {
		_ = b.Close()
		return nil, err
	}
	if err := b.measure(ctx); err != nil {
		b.log.Warn("it is not known how much the bus holds; it is looked at again", "error", err)
	}
	return b, nil
}

func (b *Bus) connect() error {
	link := Config{Brokers: b.cfg.Brokers, SASL: b.cfg.SASL, TLS: b.cfg.TLS}
	opts, err := link.options(b.heard)
	if err != nil {
		return err
	}
	b.opts = opts
	if b.cl, err = b.producer(); err != nil {
		return err
	}
	b.adm = kadm.NewClient(b.cl)
	b.adm.SetTimeoutMillis(int32(callTimeout.Milliseconds()))
	if b.scanner, err = b.consumer(nil, kgo.KeepControlRecords()); err != nil { // the last offset may be one's
		b.cl.Close()
	}
	return err
}

// producer makes the client that writes to the one partition of topics. Compression is
// left out: it would cost more than the room it saves.
func (b *Bus) producer() (*kgo.Client, error) {
	cl, err := kgo.NewClient(append(slices.Clone(b.opts),
		kgo.RequiredAcks(kgo.AllISRAcks()), kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.ProducerBatchCompression(kgo.NoCompression()),
		kgo.ProducerBatchMaxBytesFn(b.limit), kgo.ProducerLinger(0), kgo.MaxBufferedRecords(1<<20),
		kgo.ProduceRequestTimeout(answerTimeout), kgo.RecordDeliveryTimeout(answerTimeout), kgo.UnknownTopicRetries(3))...)
	if err != nil {
		return nil, fmt.Errorf("kafka: %w", err)
	}
	return cl, nil
}

// consumer makes a client that reads topics from the offsets given.
func (b *Bus) consumer(from map[string]int64, more ...kgo.Opt) (*kgo.Client, error) {
	at := make(map[string]map[int32]kgo.Offset, len(from))
	for topic, offset := range from {
		at[topic] = map[int32]kgo.Offset{0: kgo.NewOffset().At(offset)}
	}
	cl, err := kgo.NewClient(append(append(slices.Clone(b.opts), more...),
		kgo.ConsumePartitions(at), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), kgo.MaxConcurrentFetches(1),
		kgo.FetchMaxBytes(readBytes), kgo.FetchMaxPartitionBytes(readBytes/2), kgo.FetchMaxWait(readWait), kgo.FetchMinBytes(1))...)
	if err != nil {
		return nil, fmt.Errorf("kafka: %w", err)
	}
	return cl, nil
}

// ID is the identity of the bus, made when it was first opened. A bus with another
// identity holds nothing of what this one was given.
func (b *Bus) ID() string { return b.id }

// Durable reports that events on the bus outlive the loss of this machine.
func (b *Bus) Durable() bool { return true }

// Sole is about a bus that holds the only copy of events; this one is never alone.
func (b *Bus) Sole(string, uint64, uint64, bool) error { return nil }

// Close ends the connections. Subscriptions should be closed before.
func (b *Bus) Close() error {
	b.closed.Store(true)
	b.cl.Close()
	b.scanner.Close()
	b.mu.Lock()
	logs := slices.Collect(maps.Values(b.logs))
	b.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), answerTimeout+time.Second)
	defer cancel()
	var errs []error
	for _, l := range logs {
		err := l.writing.enter(ctx)
		if err == nil {
			err = l.drop(ctx)
			l.writing.leave()
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("kafka: close the bus: an append for source %s does not end: %w", l.source, err))
		}
	}
	return errors.Join(errs...)
}

func (b *Bus) logTopic(source string) string { return b.cfg.Name + ".log." + source }
func (b *Bus) placeTopic(dest string) string { return b.cfg.Name + ".place." + dest }
func (b *Bus) idTopic() string               { return b.cfg.Name + ".bus" }

// limit tells a client the largest batch of a topic.
func (b *Bus) limit(topic string) int32 {
	b.mu.Lock()
	defer b.mu.Unlock()
	if n := b.known[topic]; n > 0 {
		return int32(n)
	}
	return defaultLimit
}

// names returns the topics of this bus below a prefix, without it.
func (b *Bus) names(ctx context.Context, prefix string) ([]string, error) {
	// The client's own list may be some time old.
	all, err := kmsg.NewPtrMetadataRequest().RequestWith(ctx, b.cl)
	if err != nil {
		return nil, b.worded(err, "list the topics", prefix)
	}
	var names []string
	for _, t := range all.Topics {
		if t.Topic == nil || t.ErrorCode != 0 {
			continue
		}
		if name, ok := strings.CutPrefix(*t.Topic, prefix); ok && validName(name) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names, nil
}

// exists reports whether a topic is there, and learns its largest batch.
func (b *Bus) exists(ctx context.Context, topic string) (bool, error) {
	b.mu.Lock()
	there := b.known[topic] > 0
	b.mu.Unlock()
	if there {
		return true, nil
	}
	found, err := details(ctx, b.cl, topic)
	if err != nil {
		return false, b.worded(err, "connect", topic)
	}
	switch d := found[topic]; {
	case errors.Is(d.err, kerr.UnknownTopicOrPartition):
		return false, nil
	case d.err != nil:
		return false, b.worded(d.err, "topic "+topic, topic)
	case d.partitions > 1:
		b.log.Warn(firstOnly(topic, d.partitions))
	}
	return true, b.learn(ctx, topic)
}

// firstOnly is about a topic that was given more partitions, which cannot be taken back.
// Every record of the bus names the first one, so its order is what it was.
func firstOnly(topic string, partitions int) string {
	return fmt.Sprintf("topic %s has %d partitions, and the bus uses the first one only: nothing is lost by that, and nothing has to be done; to delete the topic would drop what is pending and parked on it", topic, partitions)
}

// learn reads the settings of a topic and refuses those that lose events. Who may not
// read them may still use it.
func (b *Bus) learn(ctx context.Context, topic string) error {
	limit := defaultLimit
	c := topicSettings(ctx, b.cl, topic)[topic]
	if n, err := strconv.Atoi(c["max.message.bytes"]); err == nil {
		limit = min(max(n, 1024), largestLimit)
	}
	for _, key := range kept {
		want := *topicConfig(0)[key]
		if is, told := c[key]; told && is != want {
			return fmt.Errorf("kafka: topic %s has %s=%s and would lose events; alter it: kafka-configs.sh --alter --entity-type topics --entity-name %s --add-config %s=%s", topic, key, is, topic, key, want)
		}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.known[topic] = limit
	return nil
}

// forget is for a topic that is there no more, or takes less than it did.
func (b *Bus) forget(topic string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.known, topic)
}

// kept are the settings with which a topic forgets nothing by itself.
var kept = []string{"cleanup.policy", "retention.ms", "retention.bytes"}

// topicConfig is how the bus makes a topic: nothing goes by itself, and the time of a
// record is when the bus stored it.
func topicConfig(largest int) map[string]*string {
	text := func(n int) *string { return kadm.StringPtr(strconv.Itoa(n)) }
	return map[string]*string{
		"cleanup.policy": kadm.StringPtr("delete"), "retention.ms": text(-1), "retention.bytes": text(-1),
		"message.timestamp.type": kadm.StringPtr("LogAppendTime"),
		"segment.bytes":          text(max(128<<20, 2*largest)), // what is deleted is freed segment by segment
		"max.message.bytes":      text(largest),
	}
}

// ensure makes a topic, or checks one that is there.
func (b *Bus) ensure(ctx context.Context, topic string) error {
	there, err := b.exists(ctx, topic)
	if err != nil || there {
		return err
	}
	brokers, err := b.adm.ListBrokers(ctx)
	if err != nil {
		return b.worded(err, "list the brokers", topic)
	}
	copies := min(3, max(1, len(brokers)))
	if b.cfg.Replicas > 0 {
		copies = b.cfg.Replicas
	}
	config := topicConfig(max(batchBytes, b.cfg.MaxEvent+1<<20))
	if copies >= 3 {
		config["min.insync.replicas"] = kadm.StringPtr("2")
	}
	_, err = b.adm.CreateTopic(ctx, 1, int16(copies), config, topic)
	if err != nil && !errors.Is(err, kerr.TopicAlreadyExists) { // another copy was faster
		return b.worded(err, "create topic "+topic, topic)
	}
	for {
		found, err := details(ctx, b.cl, topic)
		if err != nil {
			return b.worded(err, "create topic "+topic, topic)
		}
		if d := found[topic]; d.leader >= 0 {
			break
		}
		select {
		case <-ctx.Done():
			return b.worded(ctx.Err(), "wait for the leader of topic "+topic, topic)
		case <-time.After(20 * time.Millisecond):
		}
	}
	_, err = b.exists(ctx, topic)
	return err
}

// identify reads the identity of the bus, or makes it. Of several copies that make it
// the first wins, as everywhere here: its record lies where it was to lie.
func (b *Bus) identify(ctx context.Context) error {
	topic := b.idTopic()
	if err := b.ensure(ctx, topic); err != nil {
		return err
	}
	start, end, err := b.bounds(ctx, topic)
	if err != nil {
		return err
	}
	if end == 0 {
		mark := &kgo.Record{Topic: topic, Value: []byte(rand.Text()), Headers: []kgo.RecordHeader{newMark(0, 1).header(0)}}
		if err := b.store(ctx, []*kgo.Record{mark}); err != nil {
			return b.worded(b.heard.with(err), "make the identity of the bus", topic)
		}
		end = 1
	}
	if start == 0 {
		err = b.scan(ctx, topic, 0, end, func(r *kgo.Record) error {
			if m, ok := markOf(r); ok && m.at == r.Offset && b.id == "" {
				b.id = string(r.Value)
			}
			return nil
		})
	}
	if err == nil && b.id == "" {
		err = fmt.Errorf("kafka: topic %s has lost the identity of the bus; if the other topics of %s are whole, delete this one, which holds no event, and start again", topic, b.cfg.Name)
	}
	return err
}

// worded gives an error its cure.
func (b *Bus) worded(err error, about, topic string) error {
	if err == nil {
		return nil
	}
	if errors.Is(err, context.DeadlineExceeded) {
		err = b.heard.with(err)
	}
	var ke *kerr.Error
	user := "NAME"
	if b.cfg.SASL != nil && b.cfg.SASL.User != "" {
		user = b.cfg.SASL.User
	}
	cure := strings.NewReplacer("{topic}", topic, "{user}", user)
	if errors.As(err, &ke) {
		if text := cmp.Or(busCures[ke.Code], outages[ke.Code]); text != "" {
			return fmt.Errorf("kafka: bus: %s: %w; %s", about, err, cure.Replace(text))
		}
	}
	var dial *net.OpError
	if errors.As(err, &dial) {
		return fmt.Errorf("kafka: bus: %s: %w; compare bus.brokers with the listeners of the brokers: nc -vz %s", about, err, strings.Replace(b.cfg.Brokers[0], ":", " ", 1))
	}
	return fmt.Errorf("kafka: bus: %s: %w", about, err)
}

// busCures are for the answers that the bus gets.
var busCures = map[int16]string{
	kerr.TopicAuthorizationFailed.Code:   "allow it: kafka-acls.sh --add --allow-principal User:{user} --operation All --topic {topic}",
	kerr.ClusterAuthorizationFailed.Code: "allow it: kafka-acls.sh --add --allow-principal User:{user} --operation Create --operation IdempotentWrite --cluster",
	kerr.InvalidReplicationFactor.Code:   "there are fewer brokers than copies: write a smaller bus.replicas",
	kerr.PolicyViolation.Code:            "the brokers' policy has an objection; see bus.replicas, or create the topic with one partition and cleanup.policy=delete, retention.ms=-1: kafka-topics.sh --create --topic {topic}",
	kerr.MessageTooLarge.Code:            "let the topic take more: kafka-configs.sh --alter --entity-type topics --entity-name {topic} --add-config max.message.bytes=N",
	kerr.UnknownTopicOrPartition.Code:    "the topic was deleted from outside; restart onewrite: it makes it anew and says what is missing",
}

var _ onewrite.Bus = (*Bus)(nil)
