package rabbitmq

import (
	"context"
	"errors"
	"fmt"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/internal/sabotage"
)

// lane is what has an order.
type lane struct{ source, key string }

// flight is one message on its way.
type flight struct {
	confirm  *amqp.DeferredConfirmation
	id       fingerprint
	size     int // of the body, in bytes
	returned *amqp.Return
	settled  bool
	acked    bool
}

// write is one call of Write.
type write struct {
	*Sink
	*session
	ctx     context.Context //nolint:containedctx // lives as long as the call
	events  []onewrite.Event
	enc     encoder
	flights []flight     // of the events that were published, in their order
	lanes   map[lane]int // the last event of a key that was published
	oldest  int          // no flight before it is open
	cause   error        // why the first event that was not published was not
	lost    error        // the session is gone: what is open is unknown
	stray   error        // something was returned that is not known: nothing is certain
}

// run publishes and waits. A failure ends the publishing: what is behind it may be of
// its key. All that is in flight is waited for, so that the session is of use after.
func (w *write) run() (int, error) {
	// The client knows no context; closing the connection ends its calls.
	stop := context.AfterFunc(w.ctx, w.cut)
	defer stop()
	for i := range w.events {
		if !w.free(i) || w.cause != nil {
			break
		}
		if w.cause = w.publish(i); w.cause != nil {
			break
		}
	}
	for i := range w.flights {
		w.wait(i)
	}
	if w.stray != nil {
		return 0, w.stray
	}
	if err := sabotage.At("rabbitmq.confirmed"); err != nil {
		return 0, w.unknown(err)
	}
	for i := range w.flights {
		if f := &w.flights[i]; !f.acked || f.returned != nil {
			return i, w.failure(i)
		}
	}
	return len(w.flights), w.cause
}

// free waits until event i may be published: no event of its key is in flight, there
// are not too many, and the broker takes messages. It reports false when one before
// it has failed.
func (w *write) free(i int) bool {
	for ; i-w.oldest >= maxInFlight; w.oldest++ {
		if !w.wait(w.oldest) {
			return false
		}
	}
	if before, busy := w.lanes[lane{w.events[i].Source, w.events[i].Key}]; busy && w.events[i].Key != "" && !w.wait(before) {
		return false
	}
	for {
		why, change := w.block()
		if why == "" {
			return true
		}
		select {
		case <-change:
		case <-w.ctx.Done():
			w.cause = w.unknown(w.ctxError())
			return true
		case e := <-w.reason:
			w.lost, w.cause = w.gone(e, w.c.Exchange), w.unknown(w.gone(e, w.c.Exchange))
			return true
		}
	}
}

func (w *write) publish(i int) error {
	e := &w.events[i]
	key := w.routingKey(e)
	if len(key) > maxShort {
		return fmt.Errorf("rabbitmq: the routing key of event %s has %d bytes, and AMQP allows %d: %w; shorten routing_key in the configuration, or the key of the event", e.ID, len(key), maxShort, onewrite.ErrRejected)
	}
	m, err := w.enc.encode(e, w.conn.Config.FrameSize)
	if err != nil {
		return err
	}
	if err := sabotage.At("rabbitmq.publish"); err != nil {
		return w.unknown(err)
	}
	c, err := w.ch.PublishWithDeferredConfirm(w.c.Exchange, key, !w.c.Optional, false, m)
	if err != nil {
		if w.ctx.Err() != nil {
			err = w.ctxError()
		} else if w.ch.IsClosed() {
			err = w.gone(<-w.reason, w.c.Exchange)
		}
		w.lost = err
		// It may have left in part, but a message that is not whole is none.
		return w.unknown(err)
	}
	w.flights = append(w.flights, flight{confirm: c, id: printOf(key, m.MessageId, m.Headers), size: len(m.Body)})
	if e.Key != "" {
		w.lanes[lane{e.Source, e.Key}] = i
	}
	return nil
}

// wait waits for the answer about event i and reports whether it is durable.
func (w *write) wait(i int) bool {
	f := &w.flights[i]
	if sabotage.Bug == "no-confirm" {
		f.settled, f.acked = true, true
	}
	if !f.settled {
		select {
		case <-f.confirm.Done():
		case <-w.ctx.Done():
		}
		// A closed channel looks like a nack.
		f.settled, f.acked = true, f.confirm.Acked()
		if !f.acked && w.lost == nil {
			switch {
			case w.ctx.Err() != nil:
				w.lost = w.ctxError()
			case w.ch.IsClosed():
				w.lost = w.gone(<-w.reason, w.c.Exchange)
			}
		}
		w.takeReturns()
	}
	return f.acked && f.returned == nil
}

// takeReturns notes what the broker gave back. It does so before it confirms, and the
// client reads both in one goroutine: whoever has the confirmation has the return.
func (w *write) takeReturns() {
	for {
		select {
		case r, ok := <-w.returns:
			if !ok {
				return
			}
			w.noteReturn(&r)
		default:
			return
		}
	}
}

// noteReturn finds the event that was given back: the first of the same name, as all
// come in the order in which they were published.
func (w *write) noteReturn(r *amqp.Return) {
	id := printOf(r.RoutingKey, r.MessageId, r.Headers)
	for i := range w.flights {
		if f := &w.flights[i]; f.returned == nil && f.id == id {
			f.returned = r
			return
		}
	}
	if w.stray == nil {
		w.stray = fmt.Errorf("rabbitmq: the broker returned a message that is not in flight, with the routing key %q; does a proxy stand in between?", r.RoutingKey)
	}
}

// ctxError says why the time ended, as far as the broker told.
func (w *write) ctxError() error {
	cause := context.Cause(w.ctx)
	if why, _ := w.block(); why != "" {
		return fmt.Errorf("the broker %s takes no messages, it is blocked: %s (%w); %s", w.host, why, cause, blockedCure(why))
	}
	if errors.Is(cause, context.DeadlineExceeded) {
		return fmt.Errorf("no confirmation from %s within the time of the write: %w; look whether its disk or a queue stalls: rabbitmqctl list_queues%s name type state", w.host, cause, w.in())
	}
	return cause
}

// unknown makes an error of what is not known to be durable.
func (w *write) unknown(err error) error { return fmt.Errorf("rabbitmq: %w", err) }

// sound reports whether nothing is open and the session works. After a return a
// topology that the sink declares is declared anew: a queue of it may be gone.
func (w *write) sound() bool {
	if w.lost != nil || w.stray != nil || w.ctx.Err() != nil || !w.alive() {
		return false
	}
	for i := range w.flights {
		if f := &w.flights[i]; !f.settled || f.returned != nil && w.c.Declare != nil {
			return false
		}
	}
	return true
}
