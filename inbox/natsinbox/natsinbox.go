// Package natsinbox feeds package inbox from a JetStream consumer: from the stream
// that a `nats` destination of onewrite publishes to, or from the bus itself.
//
//	box := inbox.New(inbox.Postgres, "billing")
//	consumer, err := js.CreateOrUpdateConsumer(ctx, "events", jetstream.ConsumerConfig{
//		Durable: "billing", AckPolicy: jetstream.AckExplicitPolicy, MaxDeliver: -1,
//	})
//	err = natsinbox.Consume(ctx, consumer, box.Receiver(db, effect))
//
// A message is acknowledged after the commit, so what is in flight at a crash comes
// again, and the inbox finds it out.
//
// # Order
//
// Messages are handled one after the other, or batch after batch, and one that fails
// is tried again before those behind it. After a crash, or with several processes on
// one consumer, JetStream itself gives older messages out after newer ones. So ids are
// remembered, also by an inbox that is [inbox.Ordered]. With several processes, or
// where a handler has to see a key's events in order after a crash too, give the
// consumer MaxAckPending 1.
//
// # Failures
//
// Nothing is parked here. An effect that fails is tried for ever, and what is behind it
// waits; [onewrite.ErrRejected] ends [Consume], unless [OnReject] says where to put the
// message.
package natsinbox

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/inbox"
	"github.com/onewrite/onewrite/internal/cloudevents"
)

// Option changes a setting of [Consume].
type Option func(*loop)

// Batch sets how many messages may be handled in one transaction; the default is
// 64. They are not waited for: what is there is taken.
func Batch(n int) Option {
	return func(l *loop) {
		if n > 0 {
			l.batch = n
		}
	}
}

// Log gets what fails, with ids and without payloads; the default is silent.
func Log(log *slog.Logger) Option { return func(l *loop) { l.log = log } }

// OnReject is asked what to do with a message that can never be handled: it is no
// event, or the effect said [onewrite.ErrRejected]. nil from f drops the message: f
// has put it where somebody looks at it. An error ends [Consume] with it. Without
// this option Consume ends at the first such message, which stays in the stream.
func OnReject(f func(ctx context.Context, m jetstream.Msg, reason error) error) Option {
	return func(l *loop) { l.reject = f }
}

// loop is one Consume.
type loop struct {
	receive inbox.Receiver
	batch   int
	log     *slog.Logger
	reject  func(ctx context.Context, m jetstream.Msg, reason error) error
}

// The pause before a failed message is tried again.
const (
	firstPause = 100 * time.Millisecond
	maxPause   = 5 * time.Second
)

// Consume handles the messages of a consumer until ctx ends, and returns nil then.
// What fails is tried again, for ever, with a pause of 0.1 to 5 s. An error says that
// the consumer is not one with explicit acknowledgement, that it is gone, or that a
// message was rejected, see [OnReject].
func Consume(ctx context.Context, consumer jetstream.Consumer, receive inbox.Receiver, opts ...Option) error {
	l := &loop{receive: receive, batch: 64, log: slog.New(slog.DiscardHandler),
		reject: func(_ context.Context, _ jetstream.Msg, reason error) error { return reason }}
	for _, o := range opts {
		o(l)
	}
	info, err := consumer.Info(ctx)
	if err != nil {
		return fmt.Errorf("natsinbox: look at the consumer: %w", err)
	}
	if info.Config.AckPolicy != jetstream.AckExplicitPolicy {
		return fmt.Errorf("natsinbox: consumer %s has no explicit acknowledgement: set AckPolicy to jetstream.AckExplicitPolicy", info.Name)
	}
	if info.Config.MaxDeliver > 0 {
		return fmt.Errorf("natsinbox: consumer %s gives a message up after %d deliveries: set MaxDeliver to -1", info.Name, info.Config.MaxDeliver)
	}
	ctx, end := context.WithCancelCause(ctx)
	defer end(nil)
	queue := make(chan jetstream.Msg)
	pull, err := consumer.Consume(func(m jetstream.Msg) {
		select {
		case queue <- m:
		case <-ctx.Done():
		}
	}, jetstream.PullMaxMessages(2*l.batch), jetstream.ConsumeErrHandler(func(_ jetstream.ConsumeContext, err error) {
		if errors.Is(err, jetstream.ErrConsumerDeleted) || errors.Is(err, jetstream.ErrConsumerNotFound) {
			end(fmt.Errorf("natsinbox: consumer %s: %w", info.Name, err))
			return
		}
		l.log.Warn("natsinbox", "consumer", info.Name, "error", err)
	}))
	if err != nil {
		return fmt.Errorf("natsinbox: consume %s: %w", info.Name, err)
	}
	defer func() {
		pull.Stop()
		<-pull.Closed()
	}()
	defer end(nil) // before the pull is waited for: its callback may stand at the queue
	for {
		batch, ok := l.next(ctx, queue)
		if !ok {
			break
		}
		if err := l.handle(ctx, batch); err != nil {
			return err
		}
	}
	if err := context.Cause(ctx); !errors.Is(err, context.Canceled) && !errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return nil
}

// next waits for a message and takes what else is there.
func (l *loop) next(ctx context.Context, queue <-chan jetstream.Msg) (batch []jetstream.Msg, ok bool) {
	select {
	case m := <-queue:
		batch = append(batch, m)
	case <-ctx.Done():
		return nil, false
	}
	for len(batch) < l.batch {
		select {
		case m := <-queue:
			batch = append(batch, m)
		default:
			return batch, true
		}
	}
	return batch, true
}

// handle handles a batch whole, or, when that fails, message by message. An error
// ends the loop; that ctx has ended is none.
func (l *loop) handle(ctx context.Context, batch []jetstream.Msg) error {
	messages := make([]inbox.Message, 0, len(batch))
	for _, m := range batch {
		e, err := cloudevents.ParseNATS(m.Headers(), m.Data())
		if err != nil {
			break
		}
		messages = append(messages, inbox.Message{Event: e, Unordered: true})
	}
	if len(messages) == len(batch) {
		if _, err := l.receive(ctx, messages); err == nil {
			l.ack(batch)
			return nil
		}
	}
	for i, m := range batch {
		if err := l.one(ctx, m, batch[i:]); err != nil || ctx.Err() != nil {
			return err
		}
	}
	return nil
}

// one handles one message, as often as it takes. The server is told that rest is
// being worked on.
func (l *loop) one(ctx context.Context, m jetstream.Msg, rest []jetstream.Msg) error {
	e, err := cloudevents.ParseNATS(m.Headers(), m.Data())
	if err != nil {
		return l.rejected(ctx, m, fmt.Errorf("natsinbox: subject %s: %w: %w", m.Subject(), onewrite.ErrRejected, err))
	}
	for pause := firstPause; ; pause = min(2*pause, maxPause) {
		_, err := l.receive(ctx, []inbox.Message{{Event: e, Unordered: true}})
		switch {
		case err == nil:
			l.ack([]jetstream.Msg{m})
			return nil
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, onewrite.ErrRejected):
			return l.rejected(ctx, m, err)
		}
		l.log.Warn("natsinbox: tried again", "id", e.ID, "subject", m.Subject(), "pause", pause, "error", err)
		for _, waiting := range rest {
			_ = waiting.InProgress() // if it is lost, the message comes again
		}
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return nil
		}
	}
}

func (l *loop) rejected(ctx context.Context, m jetstream.Msg, reason error) error {
	if err := l.reject(ctx, m, reason); err != nil {
		return err
	}
	if err := m.TermWithReason("rejected"); err != nil {
		l.log.Warn("natsinbox: a message that was given up may come again", "subject", m.Subject(), "error", err)
	}
	return nil
}

func (l *loop) ack(batch []jetstream.Msg) {
	for _, m := range batch {
		if err := m.Ack(); err != nil {
			l.log.Warn("natsinbox: a message that was handled will come again", "subject", m.Subject(), "error", err)
		}
	}
}
