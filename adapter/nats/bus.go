package nats

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"strconv"
	"strings"
	"sync"
	"time"

	natsgo "github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/internal/places"
	"github.com/onewrite/onewrite/internal/sabotage"
)

// Bus is a [onewrite.Bus] on JetStream. Its methods may be called by several
// goroutines at once.
type Bus struct {
	cfg   Config
	log   *slog.Logger
	link  *link
	emb   *embedded // nil: an external cluster
	owner string    // names this process in cursor records
	id    string
	// fetches bounds how many reads are under way at once, and so the memory
	// that answers take.
	fetches chan struct{}
	stop    context.CancelFunc // ends tending
	tending sync.WaitGroup

	mu       sync.Mutex
	logs     map[string]*logState
	claims   places.Claims // of destinations that another owner holds
	watchers map[chan struct{}]struct{}
	places   []string // the destinations in the list beside the embedded store
	state    bool     // the streams of cursors and parked events are there
	replicas int      // of the stream of parked events
}

// logState is what the bus knows of one source's log.
type logState struct {
	source string
	recent recent

	// writing is held by the one append at a time. It guards the fields below.
	writing sync.Mutex
	known   bool         // seq, shift, last and pos are what the stream holds
	exists  bool         // the stream is there
	seq     uint64       // of the stream, what the next append expects
	shift   uint64       // what the offset of an event is more than the sequence of its message
	last    uint64       // offset of the newest event; less than seq+shift if one was removed
	pos     onewrite.Pos // of the newest message
	enc     encoder
	acks    *natsgo.Subscription // answers to appends
	acksOn  *natsgo.Conn         // the connection it lives on
	calls   uint64               // tells the answers of one append from another's

	// Guarded by Bus.mu.
	tail   uint64    // every event up to here is durable
	packed bool      // there are packs: offsets are not sequences
	origin mark      // the first message, as it was looked up last
	looked time.Time // when the tail was learned last
	bytes  int64     // stored, by the last look and what was added since
}

// Open starts the embedded bus or connects to the external one, and makes its
// streams. The errors say what is wrong and what to do: a folder in use by
// another process, a store of a newer program, a cluster that is not there.
func Open(ctx context.Context, c Config) (*Bus, error) {
	if err := c.complete(); err != nil {
		return nil, err
	}
	b := &Bus{
		cfg: c, log: c.Logger, owner: randomID(), fetches: make(chan struct{}, 4),
		stop: func() {}, logs: map[string]*logState{}, watchers: map[chan struct{}]struct{}{},
	}
	if err := b.connect(ctx); err != nil {
		return nil, err
	}
	err := b.prepare(ctx)
	var bad damaged
	if errors.As(err, &bad) {
		b.emb.halt(b.link.drop)
		if err = setAside(&b.cfg, bad); err == nil {
			if err = b.emb.restart(ctx, &b.cfg, b.link.drop); err == nil {
				err = b.prepare(ctx)
			}
		}
	}
	if err != nil {
		_ = b.Close()
		return nil, err
	}
	if b.emb != nil {
		tending, stop := context.WithCancel(context.WithoutCancel(ctx))
		b.stop = stop
		b.tending.Go(func() { b.tend(tending) })
	}
	return b, nil
}

func (b *Bus) connect(ctx context.Context) error {
	if b.cfg.URL == "" {
		e, err := startEmbedded(ctx, &b.cfg)
		if err != nil {
			return err
		}
		b.emb = e
		b.link = &link{opts: append(quiet(b.log), natsgo.Name(b.cfg.Name), natsgo.NoReconnect(), natsgo.InProcessServer(e),
			natsgo.SkipSubjectValidation(), natsgo.UserInfo(e.user, e.password))}
		return nil
	}
	opts, err := external(&b.cfg)
	if err != nil {
		return err
	}
	b.link = &link{addr: b.cfg.URL, opts: opts, setup: b.listenForWakes}
	return nil
}

// prepare makes what every bus has and learns what this one holds.
func (b *Bus) prepare(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	nc, err := b.link.conn()
	if err != nil {
		return err
	}
	if room := int(nc.MaxPayload()); room < b.cfg.MaxEvent+maxHeader {
		b.log.Warn("the NATS server takes messages that are smaller than the largest event with its attributes; larger ones are refused and stop their source",
			"max_payload", room, "max_event", b.cfg.MaxEvent, "cure", "raise max_payload of the server, or lower max_event and run onewrite migrate")
	}
	if b.emb != nil {
		if err := b.sound(ctx); err != nil {
			return err
		}
	}
	if err := b.ensureState(ctx); err != nil {
		return err
	}
	if err := b.identify(ctx); err != nil {
		return err
	}
	if b.emb != nil {
		if err := b.remember(ctx); err != nil {
			return err
		}
	}
	names, err := b.sources(ctx)
	if err != nil {
		return err
	}
	for _, source := range names {
		if err := b.ensureRoom(ctx, source); err != nil {
			return err
		}
		if _, err := b.learnTail(ctx, b.logOf(source)); err != nil {
			b.log.Warn("a log of the bus cannot be read", "source", source, "error", err)
		}
	}
	return nil
}

// ID is the identity of the store, made when it was first opened. A bus with
// another identity holds nothing of what this one was given.
func (b *Bus) ID() string { return b.id }

// packs reports whether appends are packed: nobody else can read the messages.
func (b *Bus) packs() bool { return b.emb != nil && b.cfg.Listen == "" }

// Durable reports whether events on the bus outlive the loss of this machine:
// true for an external bus, false for the embedded one.
func (b *Bus) Durable() bool { return b.emb == nil }

// Close ends the connection and stops the embedded server. Subscriptions should
// be closed before.
func (b *Bus) Close() error {
	b.stop()
	b.tending.Wait()
	b.link.close()
	if b.emb != nil {
		if err := b.emb.close(); err != nil {
			return fmt.Errorf("nats: close the bus: %w", err)
		}
	}
	return nil
}

func (b *Bus) stream(source string) string   { return b.cfg.Name + "-" + source }
func (b *Bus) subjects(source string) string { return b.cfg.Name + "." + source + "." }
func (b *Bus) stateStream() string           { return b.cfg.Name + "-state" }
func (b *Bus) parkedStream() string          { return b.cfg.Name + "-parked" }
func (b *Bus) cursorSubject(dest string) string {
	return b.stateStream() + ".cursor." + dest
}

// logOf returns the state of a source's log, made when first asked for.
func (b *Bus) logOf(source string) *logState {
	b.mu.Lock()
	defer b.mu.Unlock()
	l := b.logs[source]
	if l == nil {
		l = &logState{source: source}
		b.logs[source] = l
	}
	return l
}

// checkSource refuses names that no log can have.
func (b *Bus) checkSource(source string) error {
	if !validName(source) {
		return fmt.Errorf("nats: source name %q: use letters, digits, _ and - only", source)
	}
	if source == "state" || source == "parked" {
		return fmt.Errorf("nats: the source name %q is taken by the bus itself; rename the source", source)
	}
	return nil
}

// ensureState makes the streams of cursors and of parked events.
func (b *Bus) ensureState(ctx context.Context) error {
	b.mu.Lock()
	done := b.state
	b.mu.Unlock()
	if done {
		return nil
	}
	if _, err := b.ensure(ctx, jetstream.StreamConfig{
		Name: b.stateStream(), Subjects: []string{b.stateStream() + ".>"}, MaxMsgsPerSubject: 1,
		Description: "onewrite: where each destination is",
	}); err != nil {
		return err
	}
	info, err := b.ensure(ctx, jetstream.StreamConfig{
		Name: b.parkedStream(), Subjects: []string{b.parkedStream() + ".>"}, Discard: jetstream.DiscardNew,
		Description: "onewrite: events that a destination refused",
	})
	if err != nil {
		return err
	}
	b.mu.Lock()
	b.state, b.replicas = true, max(1, info.Config.Replicas)
	b.mu.Unlock()
	return nil
}

// ensure makes a stream, or checks one that is there: what an operator tuned
// stays, what would lose events is put right.
func (b *Bus) ensure(ctx context.Context, want jetstream.StreamConfig) (*jetstream.StreamInfo, error) {
	js, err := b.link.jetStream()
	if err != nil {
		return nil, err
	}
	want.Storage, want.Retention, want.AllowDirect = jetstream.FileStorage, jetstream.LimitsPolicy, true
	s, err := js.Stream(ctx, want.Name)
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		if want.Replicas, err = b.copies(ctx); err != nil {
			return nil, err
		}
		s, err = js.CreateStream(ctx, want)
		var refusal *jetstream.APIError
		if want.MaxBytes <= 0 && errors.As(err, &refusal) && refusal.ErrorCode == codeNeedsLimit {
			want.MaxBytes = b.room()
			s, err = js.CreateStream(ctx, want)
		}
		if errors.Is(err, jetstream.ErrStreamNameAlreadyInUse) { // another copy was faster
			s, err = js.Stream(ctx, want.Name)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("nats: stream %s: %w; check that the account has JetStream and room for it", want.Name, err)
	}
	is := s.CachedInfo().Config
	fixed := is
	fixed.MaxAge, fixed.MaxMsgs, fixed.MaxMsgsPerSubject, fixed.Discard = 0, -1, want.MaxMsgsPerSubject, want.Discard
	if fixed.MaxMsgsPerSubject == 0 {
		fixed.MaxMsgsPerSubject = -1
	}
	fixed.AllowDirect, fixed.AllowAtomicPublish = true, want.AllowAtomicPublish || is.AllowAtomicPublish
	if b.emb != nil {
		fixed.MaxBytes = -1
		if want.MaxBytes > 0 {
			fixed.MaxBytes = max(want.MaxBytes, int64(s.CachedInfo().State.Bytes))
		}
	}
	if fixed.MaxAge == is.MaxAge && fixed.MaxMsgs == is.MaxMsgs && fixed.MaxMsgsPerSubject == is.MaxMsgsPerSubject && fixed.Discard == is.Discard &&
		fixed.AllowDirect == is.AllowDirect && fixed.AllowAtomicPublish == is.AllowAtomicPublish && fixed.MaxBytes == is.MaxBytes {
		return s.CachedInfo(), nil
	}
	if s, err = js.UpdateStream(ctx, fixed); err != nil {
		return nil, fmt.Errorf("nats: stream %s has limits that could drop events and cannot be changed: %w; look at it with: nats stream info %s", want.Name, err, want.Name)
	}
	return s.CachedInfo(), nil
}

// copies returns the number of replicas of a new stream.
func (b *Bus) copies(ctx context.Context) (int, error) {
	if b.emb != nil {
		return 1, nil
	}
	if b.cfg.Replicas > 0 {
		return b.cfg.Replicas, nil
	}
	js, err := b.link.jetStream()
	if err != nil {
		return 0, err
	}
	// The size of the cluster shows only in what it can place: try a probe.
	name := b.cfg.Name + "-probe-" + randomID()[:8]
	_, err = js.CreateStream(ctx, jetstream.StreamConfig{Name: name, Subjects: []string{name}, Replicas: 3, Storage: jetstream.FileStorage, MaxBytes: 1024})
	if err != nil {
		return 1, nil
	}
	if err := js.DeleteStream(ctx, name); err != nil {
		b.log.Warn("a probe stream was left behind", "stream", name, "error", err, "cure", "nats stream rm "+name)
	}
	return 3, nil
}

// room is the server's limit for one log. It is a backstop: the room is counted
// in Append, for all logs together.
func (b *Bus) room() int64 {
	if b.cfg.MaxBytes > math.MaxInt64/2 {
		return b.cfg.MaxBytes
	}
	return b.cfg.MaxBytes + b.cfg.MaxBytes/10 + 64<<20
}

// logConfig is the stream of a source's log. A cluster reserves what a stream
// may take; there the limit is left to its operator.
func (b *Bus) logConfig(source string) jetstream.StreamConfig {
	c := jetstream.StreamConfig{
		Name: b.stream(source), Subjects: []string{b.subjects(source) + ">"}, Discard: jetstream.DiscardNew,
		AllowAtomicPublish: true, Description: "onewrite: the log of source " + source,
	}
	if b.emb != nil {
		c.MaxBytes = b.room()
	}
	return c
}

func (b *Bus) ensureRoom(ctx context.Context, source string) error {
	info, err := b.ensure(ctx, b.logConfig(source))
	if err != nil {
		return err
	}
	b.measure(b.logOf(source), info.State.Bytes)
	return nil
}

// create makes the log of a source. A log that was lost begins behind every
// offset that a destination has seen, so that its cursor skips nothing.
func (b *Bus) create(ctx context.Context, source string) error {
	if err := sabotage.At("bus.create"); err != nil {
		return err
	}
	c := b.logConfig(source)
	records, err := b.records(ctx)
	if err != nil {
		return err
	}
	l := b.logOf(source)
	l.recent.reset()
	b.mu.Lock()
	if l.tail > 0 {
		c.FirstSeq = l.tail + 1
	}
	l.origin = mark{}
	b.mu.Unlock()
	for _, r := range records {
		if seen := r.Seen(source); seen > 0 {
			c.FirstSeq = max(c.FirstSeq, seen+1)
		}
	}
	_, err = b.ensure(ctx, c)
	return err
}

// sources returns the names of the logs that are there.
func (b *Bus) sources(ctx context.Context) ([]string, error) {
	js, err := b.link.jetStream()
	if err != nil {
		return nil, err
	}
	var names []string
	list := js.StreamNames(ctx, jetstream.WithStreamListSubject(b.cfg.Name+".*.>"))
	for name := range list.Name() {
		source, ok := strings.CutPrefix(name, b.cfg.Name+"-")
		if ok && b.checkSource(source) == nil {
			names = append(names, source)
		}
	}
	if err := list.Err(); err != nil {
		return nil, fmt.Errorf("nats: list the streams: %w", err)
	}
	return names, nil
}

// identify reads the identity of the store, or makes it.
func (b *Bus) identify(ctx context.Context) error {
	subject := b.stateStream() + ".id"
	for range 3 {
		m, err := b.link.get(ctx, b.stateStream(), query{LastFor: subject})
		if err != nil {
			return fmt.Errorf("nats: identity of the bus: %w", err)
		}
		if m != nil {
			b.id = string(m.Data)
			return nil
		}
		if err := sabotage.At("bus.identify"); err != nil {
			return err
		}
		_, err = b.link.publish(ctx, casMsg(subject, 0, []byte(randomID())))
		if err != nil && !moved(err) {
			return fmt.Errorf("nats: identity of the bus: %w", err)
		}
	}
	return errors.New("nats: identity of the bus: it is written and not there; check the stream " + b.stateStream())
}

// casMsg is a message that is stored only if the newest of its subject has this
// sequence.
func casMsg(subject string, seq uint64, data []byte) *natsgo.Msg {
	return &natsgo.Msg{Subject: subject, Data: data, Header: natsgo.Header{
		"Nats-Expected-Last-Subject-Sequence": {strconv.FormatUint(seq, 10)},
	}}
}
