package nats

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"

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
	// MaxEvent is the largest event that may come, in bytes; only [ExamineSink] looks at
	// it. 0 is not known.
	MaxEvent int
	// Core publishes without a stream's acknowledgement: the events are known to
	// have reached the server, and what no one listens to is lost.
	Core bool
	// Logger gets warnings; nil discards them.
	Logger *slog.Logger
}

// Sink publishes events to another NATS. The event's id, the destination and the
// source make the message id, so the stream drops a repeat within its duplicate window.
type Sink struct {
	c      SinkConfig
	link   *link
	denied denials
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
	s := &Sink{c: c}
	s.link = &link{addr: c.URL, opts: append(opts, natsgo.ErrorHandler(s.denied.heard(c.Logger)))}
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
	w := s.denied.watch(ctx)
	defer s.denied.forget(w)
	var in inbox
	write := func(events []onewrite.Event) (int, error) { return s.writeWindow(ctx, nc, &in, w, events) }
	if s.c.Core {
		write = func(events []onewrite.Event) (int, error) { return s.writeCore(ctx, nc, w, events) }
	} else {
		if err := in.open(nc); err != nil {
			return 0, fmt.Errorf("nats: %w", err)
		}
		defer in.close()
	}
	done := 0
	for done < len(events) {
		n, err := write(events[done:])
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
func (s *Sink) writeWindow(ctx context.Context, nc *natsgo.Conn, in *inbox, w *watch, events []onewrite.Event) (int, error) {
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
		i, err := s.answer(ctx, in, w, prefix, events, acked)
		if errors.Is(err, natsgo.ErrNoResponders) {
			// The client does not tell which: those are left that nobody answers.
			continue
		}
		if i < 0 {
			i = slices.Index(acked, false)
			if i < bad {
				bad, cause = i, s.silent(in, w, &events[i], err)
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
// error if none comes. That the server denied the subject is the answer of the
// first event with it.
func (s *Sink) answer(ctx context.Context, in *inbox, w *watch, prefix string, events []onewrite.Event, acked []bool) (int, error) {
	for {
		if w.any() { // seldom, and never while all is well
			if i, err := s.deniedOne(in, w, events, acked); err != nil {
				return i, err
			}
		}
		m, err := in.sub.NextMsgWithContext(w.wait)
		if errors.Is(err, context.Canceled) && w.woken(ctx) {
			continue
		}
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

// deniedOne notes the first event without an answer whose subject was denied, and
// returns it; -1 and an error if no answer can come at all.
func (s *Sink) deniedOne(in *inbox, w *watch, events []onewrite.Event, acked []bool) (int, error) {
	for i := range acked {
		if acked[i] {
			continue
		}
		if err := w.denied(publishTo, s.subject(&events[i])); err != nil {
			acked[i] = true
			return i, err
		}
	}
	return -1, w.denied(subscribeTo, in.sub.Subject)
}

// silent is the error of the first event that has no answer.
func (s *Sink) silent(in *inbox, w *watch, e *onewrite.Event, err error) error {
	if denied := w.denied(subscribeTo, in.sub.Subject); denied != nil {
		return fmt.Errorf("nats: the user%s may not subscribe to %s, so no stream's answer arrives: %w; allow it in the configuration of the server: permissions {subscribe {allow: [\"_INBOX.>\"]}}%s",
			s.user(), in.sub.Subject, denied, s.nsc("sub", "_INBOX.>"))
	}
	return fmt.Errorf("nats: no answer for event %s: %w", e.ID, err)
}

// subjectWindow returns how many leading events have no key twice with different
// subjects: one may be denied, and another not.
func (s *Sink) subjectWindow(events []onewrite.Event) int {
	subjects := make(map[[2]string]string, len(events))
	for i := range events {
		if events[i].Key == "" {
			continue
		}
		k, subject := [2]string{events[i].Source, events[i].Key}, s.subject(&events[i])
		if was, twice := subjects[k]; twice && was != subject {
			return i
		}
		subjects[k] = subject
	}
	return len(events)
}

// writeCore publishes as many leading events as may be under way and asks the server
// whether it has them.
func (s *Sink) writeCore(ctx context.Context, nc *natsgo.Conn, w *watch, events []onewrite.Event) (int, error) {
	events = events[:s.subjectWindow(events)]
	var enc encoder
	before := nc.LastError()
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
	// A denial comes before the answer to the flush, but may be heard after it.
	if last := nc.LastError(); last != before {
		if err := w.await(ctx, last); err != nil {
			return 0, fmt.Errorf("nats: %w: %w", last, err)
		}
	}
	for i := range events[:sent] {
		if err := w.denied(publishTo, s.subject(&events[i])); err != nil {
			return i, s.failed(&events[i], err)
		}
	}
	return sent, cause
}

// subject is where an event is published to.
func (s *Sink) subject(e *onewrite.Event) string {
	return strings.ReplaceAll(s.c.Subject, "{topic}", subjectOf(e.Topic))
}

func (s *Sink) message(enc *encoder, e *onewrite.Event) *natsgo.Msg {
	m := enc.encode(s.subject(e), e)
	if sabotage.Bug == "no-msg-id" {
		return m
	}
	// The id alone is unique within its source only, and the stream may be shared.
	enc.set(natsgo.MsgIdHdr, cloudevents.Escape(e.ID+"@"+s.c.Destination+"/"+e.Source))
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
	subject := s.subject(e)
	switch {
	case errors.Is(err, natsgo.ErrPermissionViolation):
		return refused{fmt.Errorf("nats: the user%s may not publish to %s: %w; allow it in the configuration of the server: permissions {publish {allow: [%q]}}%s",
			s.user(), subject, err, subject, s.nsc("pub", subject))}
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

// user is the name that the server knows the client by, if that is one to show.
func (s *Sink) user() string {
	name := s.c.User
	if u, err := url.Parse(strings.TrimSpace(strings.Split(s.c.URL, ",")[0])); name == "" && err == nil && u.User != nil {
		if _, has := u.User.Password(); has { // alone it is a token
			name = u.User.Username()
		}
	}
	if name != "" {
		name = " " + name
	}
	return name
}

// nsc is how a user with credentials, whom no server's configuration lists, is
// given a right.
func (s *Sink) nsc(right, subject string) string {
	if s.c.Creds == "" {
		return ""
	}
	return fmt.Sprintf(", or of its credentials: nsc edit user --allow-%s '%s'", right, subject)
}

// What a server denies, as the begin of what it says.
const (
	publishTo   = "Publish to "
	subscribeTo = "Subscription to "
)

// denials passes on what the server says apart from any answer: that a subject is
// not the user's to publish or to subscribe to.
type denials struct {
	mu      sync.Mutex
	watches map[*watch]struct{}
}

// heard is the client's handler of errors.
func (d *denials) heard(log *slog.Logger) natsgo.ErrHandler {
	return func(_ *natsgo.Conn, _ *natsgo.Subscription, err error) {
		log.Debug("nats connection", "error", err)
		d.mu.Lock()
		defer d.mu.Unlock()
		for w := range d.watches {
			w.hear(err)
		}
	}
}

// watch returns what one write hears; it hears the denials of other writes too.
func (d *denials) watch(ctx context.Context) *watch {
	w := &watch{said: map[string]error{}}
	w.arm(ctx)
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.watches == nil {
		d.watches = map[*watch]struct{}{}
	}
	d.watches[w] = struct{}{}
	return w
}

func (d *denials) forget(w *watch) {
	d.mu.Lock()
	delete(d.watches, w)
	d.mu.Unlock()
	w.wake()
}

// watch holds what was denied since it began. A message is denied once at most, so
// it is bounded by what is published in the time of the write.
type watch struct {
	wait context.Context // of the writer alone: ends with the next denial

	mu    sync.Mutex
	said  map[string]error // by what is denied: Publish to "x"
	heard []error
	wake  context.CancelFunc
}

// arm makes wait anew; whoever looks at what is denied after that misses nothing.
func (w *watch) arm(ctx context.Context) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.wake != nil {
		w.wake()
	}
	w.wait, w.wake = context.WithCancel(ctx)
}

// woken reports whether wait ended for a denial, and arms it again.
func (w *watch) woken(ctx context.Context) bool {
	if w.wait.Err() == nil || ctx.Err() != nil {
		return false
	}
	w.arm(ctx)
	return true
}

func (w *watch) hear(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.heard = append(w.heard, err)
	if _, what, is := strings.Cut(err.Error(), "Permissions Violation for "); is && errors.Is(err, natsgo.ErrPermissionViolation) {
		w.said[what] = err
	}
	w.wake()
}

func (w *watch) any() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.said) > 0
}

// denied returns what the server said of a subject, or nil.
func (w *watch) denied(verb, subject string) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.said[verb+strconv.Quote(subject)]
}

// await waits until err was heard, and with it all that came before.
func (w *watch) await(ctx context.Context, err error) error {
	for {
		w.mu.Lock()
		has := slices.Contains(w.heard, err)
		w.mu.Unlock()
		if has {
			return nil
		}
		<-w.wait.Done()
		if !w.woken(ctx) {
			return context.Cause(ctx)
		}
	}
}

var (
	_ onewrite.Sink = (*Sink)(nil)
	_ onewrite.Bus  = (*Bus)(nil)
)
