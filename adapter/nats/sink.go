package nats

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"strings"

	natsgo "github.com/nats-io/nats.go"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/internal/cloudevents"
	"github.com/onewrite/onewrite/internal/sabotage"
)

// SinkConfig says where a [Sink] publishes.
type SinkConfig struct {
	// URL is the address, nats://... or tls://..., several with commas.
	URL string
	// Name is what the server shows for the connection; default "onewrite".
	Name string
	// Creds and NKey are paths of a credentials file and of a file with an NKey
	// seed.
	Creds, NKey string
	// User and Password are the other way to log in.
	User, Password string
	// TLS is the client's configuration; nil lets the URL decide.
	TLS *tls.Config
	// Subject is the subject to publish to; {topic} stands for the event's
	// topic. Default "{topic}".
	Subject string
	// Destination is part of the message ids, so that two destinations may share a
	// stream.
	Destination string
	// Reserved is the name of the bus, where it is on the same server: its subjects
	// are not published to. Empty reserves none.
	Reserved string
	// Core publishes without a stream's acknowledgement: the events are known to
	// have reached the server, and what no one listens to is lost.
	Core bool
	// Logger gets warnings; nil discards them.
	Logger *slog.Logger
}

// Sink publishes events to another NATS. The event's id and the destination make
// the message id, so the stream drops a repeat within its duplicate window.
type Sink struct {
	c    SinkConfig
	link *link
}

// NewSink connects. The error says why it cannot.
func NewSink(ctx context.Context, c SinkConfig) (*Sink, error) {
	if err := ctx.Err(); err != nil {
		return nil, context.Cause(ctx)
	}
	if c.URL == "" {
		return nil, errors.New("nats: the destination has no address; set url")
	}
	if c.Name == "" {
		c.Name = defaultName
	}
	if c.Subject == "" {
		c.Subject = "{topic}"
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	opts, err := external(&Config{URL: c.URL, Name: c.Name, Logger: c.Logger, Creds: c.Creds, NKey: c.NKey, User: c.User, Password: c.Password, TLS: c.TLS})
	if err != nil {
		return nil, err
	}
	s := &Sink{c: c, link: &link{addr: c.URL, opts: opts}}
	if _, err := s.link.conn(); err != nil {
		return nil, err
	}
	return s, nil
}

// Close ends the connection.
func (s *Sink) Close() error {
	s.link.close()
	return nil
}

// Write publishes the events; see [onewrite.Sink]. Many are in flight at once,
// but never two with one key: if the first were refused and the second stored,
// they would end in the wrong order.
func (s *Sink) Write(ctx context.Context, events []onewrite.Event) (int, error) {
	nc, err := s.link.conn()
	if err != nil {
		return 0, err
	}
	ctx, cancel := bounded(ctx)
	defer cancel()
	if s.c.Core {
		return s.writeCore(ctx, nc, events)
	}
	var in inbox
	if err := in.open(nc); err != nil {
		return 0, fmt.Errorf("nats: %w", err)
	}
	defer in.close()
	done := 0
	for done < len(events) {
		n, err := s.writeWindow(ctx, nc, &in, events[done:])
		done += n
		if err != nil {
			return done, err
		}
	}
	return done, nil
}

// window returns how many leading events have different keys.
func window(events []onewrite.Event) int {
	keys := make(map[[2]string]struct{}, len(events))
	for i := range events {
		if events[i].Key == "" {
			continue
		}
		k := [2]string{events[i].Source, events[i].Key}
		if _, twice := keys[k]; twice {
			return i
		}
		keys[k] = struct{}{}
	}
	return len(events)
}

// writeWindow publishes as many leading events as may be in flight and waits for
// the answers.
func (s *Sink) writeWindow(ctx context.Context, nc *natsgo.Conn, in *inbox, events []onewrite.Event) (int, error) {
	events = events[:window(events)]
	if err := sabotage.At("stream.publish"); err != nil {
		return 0, err
	}
	in.calls++
	prefix := strings.TrimSuffix(in.sub.Subject, "*") + strconv.FormatUint(in.calls, 10) + "-"
	var enc encoder
	sent, bad := 0, len(events)
	var cause error
	for ; sent < len(events); sent++ {
		m := s.message(&enc, &events[sent])
		if err := s.allowed(m.Subject); err != nil {
			bad, cause = sent, err
			break
		}
		m.Reply = prefix + strconv.Itoa(sent)
		if err := nc.PublishMsg(m); err != nil {
			bad, cause = sent, s.failed(&events[sent], err)
			break
		}
	}
	if sabotage.Bug == "no-puback" {
		return bad, cause
	}
	acked := make([]bool, sent)
	for left := sent; left > 0; left-- {
		i, err := s.answer(ctx, in, prefix, acked)
		if errors.Is(err, natsgo.ErrNoResponders) {
			// The client does not tell which: those are left that nobody answers.
			continue
		}
		if i < 0 {
			i = slices.Index(acked, false)
			if i < bad {
				bad, cause = i, fmt.Errorf("nats: no answer for event %s: %w", events[i].ID, err)
			}
			return bad, cause
		}
		if err != nil && i < bad {
			bad, cause = i, s.failed(&events[i], err)
		}
	}
	if err := sabotage.At("stream.stored"); err != nil {
		return 0, err
	}
	if i := slices.Index(acked, false); i >= 0 && i < bad {
		bad, cause = i, s.failed(&events[i], natsgo.ErrNoResponders)
	}
	return bad, cause
}

// answer waits for the next answer and notes which event it is for; -1 and an
// error if none comes.
func (s *Sink) answer(ctx context.Context, in *inbox, prefix string, acked []bool) (int, error) {
	for {
		m, err := in.sub.NextMsgWithContext(ctx)
		if err != nil {
			return -1, err
		}
		text, ok := strings.CutPrefix(m.Subject, prefix)
		i, err := strconv.Atoi(text)
		if !ok || err != nil || i < 0 || i >= len(acked) || acked[i] {
			continue
		}
		acked[i] = true
		_, err = parseAck(m)
		return i, err
	}
}

func (s *Sink) writeCore(ctx context.Context, nc *natsgo.Conn, events []onewrite.Event) (int, error) {
	var enc encoder
	sent := 0
	var cause error
	for ; sent < len(events); sent++ {
		m := s.message(&enc, &events[sent])
		if cause = s.allowed(m.Subject); cause != nil {
			break
		}
		if err := nc.PublishMsg(m); err != nil {
			cause = s.failed(&events[sent], err)
			break
		}
	}
	if err := nc.FlushWithContext(ctx); err != nil {
		return 0, fmt.Errorf("nats: the server did not answer: %w", err)
	}
	return sent, cause
}

func (s *Sink) message(enc *encoder, e *onewrite.Event) *natsgo.Msg {
	m := enc.encode(strings.ReplaceAll(s.c.Subject, "{topic}", subjectOf(e.Topic)), e)
	id := e.ID
	if sabotage.Bug == "no-msg-id" {
		return m
	}
	if s.c.Destination != "" {
		id += "@" + s.c.Destination
	}
	enc.set(natsgo.MsgIdHdr, cloudevents.Escape(id))
	return m
}

// allowed refuses the subjects of the bus: an event that lands there would be
// taken for one of its own.
func (s *Sink) allowed(subject string) error {
	rest, ours := strings.CutPrefix(subject, s.c.Reserved)
	if s.c.Reserved == "" || !ours || rest == "" || rest[0] != '.' && rest[0] != '-' {
		return nil
	}
	return fmt.Errorf("nats: the subject %s belongs to the bus on the same server: %w; give the destination a subject such as events.{topic}", subject, onewrite.ErrRejected)
}

// refused is an answer of the other side about one event, that may change.
type refused struct{ error }

// Answered says that the other side was reached.
func (refused) Answered() bool { return true }

func (r refused) Unwrap() error { return r.error }

func (s *Sink) failed(e *onewrite.Event, err error) error {
	subject := strings.ReplaceAll(s.c.Subject, "{topic}", subjectOf(e.Topic))
	switch {
	case errors.Is(err, natsgo.ErrNoResponders):
		return refused{fmt.Errorf("nats: no stream takes the subject %s: %w; create one: nats stream add EVENTS --subjects '%s' --defaults (or set jetstream: false)", subject, err, subject)}
	case errors.Is(err, natsgo.ErrMaxPayload), code(err) == codeTooLarge, code(err) == codeHeaderTooLarge:
		return fmt.Errorf("nats: event %s is larger than the server or the stream takes: %w: %w; raise max_payload or the stream's max_msg_size", e.ID, err, onewrite.ErrRejected)
	case errors.Is(err, natsgo.ErrBadSubject), errors.Is(err, natsgo.ErrInvalidMsg):
		return fmt.Errorf("nats: event %s cannot be published to %s: %w: %w", e.ID, subject, err, onewrite.ErrRejected)
	case full(err):
		return refused{fmt.Errorf("nats: the stream of %s is full: %w; raise its limits or purge it: nats stream edit", subject, err)}
	case code(err) != 0:
		return refused{fmt.Errorf("nats: event %s to %s: %w", e.ID, subject, err)}
	}
	return fmt.Errorf("nats: event %s to %s: %w", e.ID, subject, err)
}

var (
	_ onewrite.Sink = (*Sink)(nil)
	_ onewrite.Bus  = (*Bus)(nil)
)
