package rabbitmq

import (
	"context"
	"errors"
	"slices"
	"testing"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/onewritetest"
)

func answered(err error) bool {
	var a interface{ Answered() bool }
	return errors.As(err, &a) && a.Answered()
}

// elsewhere sends refused events where no queue listens.
type elsewhere struct {
	onewrite.Sink
	refused map[string]bool
}

func (s elsewhere) Write(ctx context.Context, events []onewrite.Event) (int, error) {
	events = slices.Clone(events)
	for i := range events {
		if s.refused[events[i].ID] {
			events[i].Topic = "nobody.listens"
		}
	}
	return s.Sink.Write(ctx, events)
}

func TestSink(t *testing.T) {
	r := killable(t)
	name := target(t, r.URL(), "conformance.#", nil)
	if err := r.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	var got []onewrite.Event
	refused := map[string]bool{}
	onewritetest.TestSink(t, onewritetest.SinkHarness{
		New: func(t *testing.T) onewrite.Sink {
			s, err := NewSink(t.Context(), Config{URL: r.URL(), Exchange: name})
			if err != nil {
				t.Fatal(err)
			}
			return elsewhere{s, refused}
		},
		Received: func(t *testing.T) []onewrite.Event {
			list := drain(t, r.URL(), name)
			for i := range list {
				got = append(got, decode(t, &list[i]))
			}
			return got
		},
		Refuse: func(_ *testing.T, id string) { refused[id] = true },
		Break: func(t *testing.T) func() {
			kill(t, r)
			return func() { start(t, r) }
		},
		Stall: func(t *testing.T) func() {
			if err := r.Pause(); err != nil {
				t.Fatal(err)
			}
			return r.Resume
		},
	})
}

// TestUnroutable: what no queue takes is acknowledged as well, and is not delivered.
// What is behind it in its key waits, other keys go on.
func TestUnroutable(t *testing.T) {
	r := sharedBroker(t)
	name := target(t, r.URL(), "order.#", nil)
	s := open(t, Config{URL: r.URL(), Exchange: name})
	events := some(1, 5, "order.placed", "a", "b")
	events[2].Topic = "nobody" // of key a, as the first and the last
	for range 2 {
		n, err := s.Write(t.Context(), events)
		if n != 2 || !errors.Is(err, onewrite.ErrRejected) {
			t.Fatalf("write: %d, %v", n, err)
		}
		says(t, err, r.URL(), events[2].ID, `"nobody"`, "NO_ROUTE", "rabbitmqadmin declare binding source='"+name+"'")
	}
	if got := ids(t, drain(t, r.URL(), name)); slices.Contains(got, events[4].ID) || slices.Contains(got, events[2].ID) {
		t.Errorf("arrived past a refusal: %v", got)
	}
	lossy := open(t, Config{URL: r.URL(), Exchange: name, Optional: true})
	put(t, lossy, events...)
	if got := ids(t, drain(t, r.URL(), name)); len(got) != 4 {
		t.Errorf("with mandatory: false %v arrived", got)
	}
	// Two sources may have one id; only the one that was returned is refused.
	twins := some(1, 2, "order.placed", "x", "y")
	twins[1].ID, twins[1].Source, twins[1].Topic = twins[0].ID, "stock", "nobody"
	if n, err := s.Write(t.Context(), twins); n != 1 || !errors.Is(err, onewrite.ErrRejected) {
		t.Errorf("twins: %d, %v", n, err)
	}
}

// TestFull: a full queue answers for the event, and order holds when it has room
// again.
func TestFull(t *testing.T) {
	r := sharedBroker(t)
	for _, kind := range []string{"quorum", "classic"} {
		t.Run(kind, func(t *testing.T) {
			name := target(t, r.URL(), "#", amqp.Table{"x-queue-type": kind, "x-max-length": 2, "x-overflow": "reject-publish"})
			s := open(t, Config{URL: r.URL(), Exchange: name})
			var got []string
			events := some(1, 12, "order.placed", "a")
			refusals := 0
			for left := events; len(left) > 0; {
				n, err := s.Write(t.Context(), left)
				left = left[n:]
				if err == nil {
					continue
				}
				if !answered(err) || errors.Is(err, onewrite.ErrRejected) {
					t.Fatalf("a nack: %v", err)
				}
				says(t, err, r.URL(), left[0].ID, "reject-publish", "rabbitmqctl list_queues")
				refusals++
				got = append(got, ids(t, takeAll(t, r.URL(), name))...)
			}
			got = append(got, ids(t, takeAll(t, r.URL(), name))...)
			if refusals == 0 || len(got) != 12 || !slices.IsSorted(got) {
				t.Errorf("%d refusals, arrived %v", refusals, got)
			}
		})
	}
}

// takeAll empties a queue that may have no room for a sentinel.
func takeAll(t *testing.T, url, queue string) (list []amqp.Delivery) {
	t.Helper()
	ch := channel(t, url)
	for {
		m, ok, err := ch.Get(queue, true)
		if err != nil {
			t.Fatal(err)
		}
		if !ok {
			return list
		}
		list = append(list, m)
	}
}

// TestTooLarge: the broker closes the channel for a message that is too large, and
// does not say which it was.
func TestTooLarge(t *testing.T) {
	r := sharedBroker(t)
	name := target(t, r.URL(), "#", nil)
	s := open(t, Config{URL: r.URL(), Exchange: name})
	events := some(1, 3, "order.placed", "a", "b", "c")
	events[1].Data = make([]byte, 16<<20+1)
	if n, err := s.Write(t.Context(), events[1:]); n != 0 || !errors.Is(err, onewrite.ErrRejected) {
		t.Fatalf("too large: %d, %v", n, err)
	} else {
		says(t, err, r.URL(), events[1].ID, "max_message_size")
	}
	n, err := s.Write(t.Context(), events)
	switch {
	case n == 1 && errors.Is(err, onewrite.ErrRejected): // the first was confirmed by then
	case n == 0 && answered(err) && !errors.Is(err, onewrite.ErrRejected):
		says(t, err, r.URL(), events[0].ID, events[1].ID)
	default:
		t.Errorf("in doubt: %d, %v", n, err)
	}
	put(t, s, events[0])
	put(t, s, events[2])
	got := ids(t, drain(t, r.URL(), name))
	if !slices.Contains(got, events[0].ID) || !slices.Contains(got, events[2].ID) || slices.Contains(got, events[1].ID) {
		t.Errorf("arrived: %v", got)
	}
}

// TestDenied: rights on the exchange are about the destination, rights on a topic
// about its events.
func TestDenied(t *testing.T) {
	r := sharedBroker(t)
	name := target(t, r.URL(), "#", nil)
	const user, password = "limited", "made-up-4711"
	url := r.UserURL(user, password)
	if _, err := NewSink(t.Context(), Config{URL: url, Exchange: name}); err == nil {
		t.Fatal("a user that is not there comes in")
	} else {
		says(t, err, url, "limited", "rabbitmqctl authenticate_user 'limited'")
	}
	control(t, r, "add_user", user, password)
	t.Cleanup(func() { _, _ = r.Control(context.Background(), "delete_user", user) })
	if _, err := NewSink(t.Context(), Config{URL: url, Exchange: name}); err == nil {
		t.Fatal("a user without rights comes in")
	} else {
		says(t, err, url, "rabbitmqctl set_permissions -p '/' 'limited'")
	}
	control(t, r, "set_permissions", user, "^$", "^$", "^$")
	s := open(t, Config{URL: url, Exchange: name})
	events := some(1, 3, "order.placed", "a", "b", "c")
	n, err := s.Write(t.Context(), events)
	if n != 0 || answered(err) || errors.Is(err, onewrite.ErrRejected) {
		t.Fatalf("no right on the exchange: %d, %v", n, err)
	}
	says(t, err, url, "ACCESS_REFUSED", "rabbitmqctl set_permissions -p '/' 'limited' '^$' '^"+name+"$' '^$'")
	if _, err := NewSink(t.Context(), Config{URL: url, Exchange: "own", Declare: &Topology{Exchange: "topic"}}); err == nil {
		t.Fatal("declared without the right")
	} else {
		says(t, err, url, "let the user configure it")
	}
	control(t, r, "set_permissions", user, "^$", ".*", "^$")
	control(t, r, "set_topic_permissions", user, name, "^order", "^$")
	put(t, s, events...)
	events = some(4, 3, "order.placed", "a", "b", "c")
	events[0].Topic = "stock.low"
	if n, err := s.Write(t.Context(), events); n != 0 || !answered(err) {
		t.Fatalf("no right on the topic: %d, %v", n, err)
	} else {
		says(t, err, url, "stock.low", "set_topic_permissions")
	}
	put(t, s, events[1:]...)
}

// TestGoneInTheMiddle: exchange and queue are removed while the sink is open.
func TestGoneInTheMiddle(t *testing.T) {
	r := sharedBroker(t)
	name := target(t, r.URL(), "#", nil)
	ch := channel(t, r.URL())
	s := open(t, Config{URL: r.URL(), Exchange: name})
	own := open(t, Config{URL: r.URL(), Exchange: name, Declare: &Topology{Exchange: "topic", Queues: map[string]Queue{name: {}}}})
	put(t, s, some(1, 3, "order.placed", "a")...)
	put(t, own, some(4, 3, "order.placed", "a")...)
	if _, err := ch.QueueDelete(name, false, false, false); err != nil {
		t.Fatal(err)
	}
	events := some(7, 3, "order.placed", "a")
	for range 2 {
		if n, err := s.Write(t.Context(), events); n != 0 || !errors.Is(err, onewrite.ErrRejected) {
			t.Fatalf("no queue: %d, %v", n, err)
		}
	}
	if n, err := own.Write(t.Context(), events); n != 0 || !errors.Is(err, onewrite.ErrRejected) {
		t.Fatalf("no queue: %d, %v", n, err)
	}
	put(t, own, events...) // declares it again
	if err := ch.ExchangeDelete(name, false, false); err != nil {
		t.Fatal(err)
	}
	events = some(10, 3, "order.placed", "a")
	for range 2 {
		n, err := s.Write(t.Context(), events)
		if n != 0 || answered(err) || errors.Is(err, onewrite.ErrRejected) {
			t.Fatalf("no exchange: %d, %v", n, err)
		}
		says(t, err, r.URL(), "NOT_FOUND", "rabbitmqadmin declare exchange name='"+name+"'")
	}
	if n, err := own.Write(t.Context(), events); n == 3 {
		t.Fatalf("no exchange: %d, %v", n, err)
	}
	put(t, own, events...)
	put(t, s, events...)
	if got := ids(t, drain(t, r.URL(), name)); len(got) != 9 {
		t.Errorf("arrived: %v", got)
	}
}

// TestClose ends a write that waits.
func TestClose(t *testing.T) {
	r := killable(t)
	name := target(t, r.URL(), "#", nil)
	s := open(t, Config{URL: r.URL(), Exchange: name, Timeout: patience})
	put(t, s, some(1, 1, "order.placed", "a")...)
	if err := r.Pause(); err != nil {
		t.Fatal(err)
	}
	defer r.Resume()
	done := make(chan error, 1)
	go func() {
		_, err := s.Write(context.Background(), some(2, 3, "order.placed", "a"))
		done <- err
	}()
	waitFor(t, "the write to be under way", func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return len(s.busy) == 1
	})
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if err := <-done; err == nil || errors.Is(err, onewrite.ErrRejected) || errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("write: %v", err)
	}
}
