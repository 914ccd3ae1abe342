package rabbitmq

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/internal/faultnet"
)

// TestKilled kills the broker while it has what it has not confirmed: nothing that was
// confirmed is missing, and each key comes in its order.
func TestKilled(t *testing.T) {
	r := killable(t)
	for _, kind := range []string{"quorum", "classic"} {
		t.Run(kind, func(t *testing.T) {
			name := target(t, r.URL(), "#", amqp.Table{"x-queue-type": kind})
			if err := r.Sync(t.Context()); err != nil {
				t.Fatal(err)
			}
			s := open(t, Config{URL: r.URL(), Exchange: name})
			keys := make([]string, 50)
			for i := range keys {
				keys[i] = fmt.Sprint("key-", i)
			}
			events := some(0, 3000, "order.placed", keys...)
			at := 0
			deliver := func(upto int) {
				for end := time.Now().Add(patience); at < upto && time.Now().Before(end); {
					n, err := s.Write(t.Context(), events[at:min(at+256, upto)])
					at += n
					if errors.Is(err, onewrite.ErrRejected) || answered(err) {
						t.Fatalf("an outage told as a refusal: %v", err)
					}
				}
				if at < upto {
					t.Fatalf("%d of %d are delivered", at, upto)
				}
			}
			deliver(500)
			kill(t, r) // between two writes
			start(t, r)
			deliver(1000)

			// What is sent to a broker that is frozen stays unconfirmed until it is killed.
			if err := r.Pause(); err != nil {
				t.Fatal(err)
			}
			wrote := make(chan error, 1)
			go func() {
				n, err := s.Write(context.Background(), events[at:at+256])
				at += n
				wrote <- err
			}()
			waitFor(t, "a message to be on its way", func() bool { return unread(s) })
			kill(t, r)
			r.Resume() // forget that it was frozen
			if err := <-wrote; err == nil || errors.Is(err, onewrite.ErrRejected) || answered(err) || errors.Is(err, context.DeadlineExceeded) {
				t.Fatalf("killed in the middle: %v", err)
			}
			start(t, r)

			// And at a moment that nobody chose.
			go func() { wrote <- r.Kill() }()
			for n := 0; n < len(events); {
				var err error
				if n, err = s.Write(t.Context(), events[at:min(at+64, len(events))]); err != nil || at+n == len(events) {
					break
				}
				at += n
			}
			if err := <-wrote; err != nil {
				t.Fatal(err)
			}
			start(t, r)
			deliver(len(events))
			inOrder(t, events, ids(t, drain(t, r.URL(), name)))
		})
	}
}

// unread reports whether a write has published and waits.
func unread(s *Sink) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for ses := range s.busy {
		return ses.ch.GetNextPublishSeqNo() > 1
	}
	return false
}

// inOrder demands that all events are there, and the first of each in the order of
// its key.
func inOrder(t *testing.T, events []onewrite.Event, got []string) {
	t.Helper()
	seen, last, key := map[string]bool{}, map[string]string{}, map[string]string{}
	for _, e := range events {
		key[e.ID] = e.Key
	}
	repeats := 0
	for _, id := range got {
		if seen[id] {
			repeats++
			continue
		}
		seen[id] = true
		if id < last[key[id]] {
			t.Errorf("key %s: %s came after %s", key[id], id, last[key[id]])
		}
		last[key[id]] = id
	}
	for _, e := range events {
		if !seen[e.ID] {
			t.Errorf("%s is missing", e.ID)
		}
	}
	t.Logf("%d events, %d repeats", len(seen), repeats)
}

// TestBlocked: a broker without memory takes nothing. A write waits for it, and says
// why if it waits in vain.
func TestBlocked(t *testing.T) {
	r := killable(t)
	name := target(t, r.URL(), "#", nil)
	s := open(t, Config{URL: r.URL(), Exchange: name, Timeout: 2 * patience})
	put(t, s, some(1, 3, "order.placed", "a")...)
	control(t, r, "set_vm_memory_high_watermark", "0")
	t.Cleanup(func() { _, _ = r.Control(context.Background(), "set_vm_memory_high_watermark", "0.4") })
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	type result struct {
		n   int
		err error
	}
	events := some(4, 300, "order.placed", "a", "b")
	wrote := make(chan result, 1)
	write := func(ctx context.Context, events []onewrite.Event) {
		n, err := s.Write(ctx, events)
		wrote <- result{n, err}
	}
	blocked := func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		for ses := range s.busy {
			why, _ := ses.block()
			return why != ""
		}
		return false
	}
	go write(ctx, events)
	waitFor(t, "the broker to say that it is blocked", blocked)
	cancel()
	got := <-wrote
	if got.n != 0 || got.err == nil || errors.Is(got.err, onewrite.ErrRejected) || answered(got.err) {
		t.Fatalf("blocked: %+v", got)
	}
	says(t, got.err, r.URL(), "it is blocked: low on memory", "rabbitmqctl set_vm_memory_high_watermark 0.6")
	found := Examine(t.Context(), Config{URL: r.URL(), Exchange: name})
	if f := finding(found, "alarms"); f == nil || f.Severity.String() != "problem" || f.Cure == "" {
		t.Errorf("the doctor: %+v", found)
	}

	go write(t.Context(), events)
	waitFor(t, "the broker to say that it is blocked", blocked)
	select {
	case got := <-wrote:
		t.Fatalf("it did not wait: %+v", got)
	default:
	}
	control(t, r, "set_vm_memory_high_watermark", "0.4")
	if got := <-wrote; got.n != len(events) || got.err != nil {
		t.Fatalf("no longer blocked: %+v", got)
	}
	inOrder(t, append(some(1, 3, "order.placed", "a"), events...), ids(t, drain(t, r.URL(), name)))
}

// TestTimeout: a broker that says nothing is an outage after the time of a write, and
// what it may have is written again before what is behind it.
func TestTimeout(t *testing.T) {
	r := killable(t)
	name := target(t, r.URL(), "#", nil)
	s := open(t, Config{URL: r.URL(), Exchange: name})
	put(t, s, some(1, 1, "order.placed", "a")...)
	s.c.Timeout = 50 * time.Millisecond
	if err := r.Pause(); err != nil {
		t.Fatal(err)
	}
	events := some(2, 20, "order.placed", "a", "b")
	n, err := s.Write(context.Background(), events)
	r.Resume()
	if n != 0 || !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, onewrite.ErrRejected) || answered(err) {
		t.Fatalf("%d, %v", n, err)
	}
	says(t, err, r.URL(), "rabbitmqctl list_queues")
	s.c.Timeout = patience
	put(t, s, events...)
	inOrder(t, events, ids(t, drain(t, r.URL(), name))[1:])
}

// TestManyAtOnce: each write has a connection, and more than may be in flight wait.
func TestManyAtOnce(t *testing.T) {
	r := sharedBroker(t)
	name := target(t, r.URL(), "#", nil)
	s := open(t, Config{URL: r.URL(), Exchange: name})
	keys := make([]string, 2*maxInFlight+7)
	for i := range keys {
		keys[i] = fmt.Sprint("key-", i)
	}
	events := some(0, len(keys), "order.placed", keys...)
	put(t, s, events...)
	inOrder(t, events, ids(t, drain(t, r.URL(), name)))
	lost := open(t, Config{URL: r.URL(), Exchange: "amq.topic"})
	if n, err := lost.Write(t.Context(), events); n != 0 || !errors.Is(err, onewrite.ErrRejected) {
		t.Fatalf("all are returned: %d, %v", n, err)
	}
}

// TestLostAnswers: the broker has stored what it was sent, and nobody was told. It is
// sent again, the same, and in its place.
func TestLostAnswers(t *testing.T) {
	r := sharedBroker(t)
	name := target(t, r.URL(), "#", nil)
	proxy, err := faultnet.Listen(r.Addr())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = proxy.Close() })
	s := open(t, Config{URL: strings.Replace(r.URL(), r.Addr(), proxy.Addr(), 1), Exchange: name, Timeout: patience})
	ch := channel(t, r.URL())
	events := some(1, 40, "order.placed", "a", "b", "c")
	for round := range 5 {
		proxy.Set(faultnet.Fault{Down: faultnet.Stream{Hold: true}})
		wrote := make(chan error, 1)
		left := events[round*3:]
		go func() {
			n, err := s.Write(context.Background(), left)
			if n != 0 {
				err = fmt.Errorf("%d are durable without an answer: %w", n, err)
			}
			wrote <- err
		}()
		stored := 3 * (2*round + 1) // the first of each key
		waitFor(t, "the broker to store", func() bool {
			q, err := ch.QueueDeclarePassive(name, true, false, false, false, nil)
			return err == nil && q.Messages == stored
		})
		proxy.Cut(true)
		proxy.Set(faultnet.Fault{})
		if err := <-wrote; err == nil || errors.Is(err, onewrite.ErrRejected) || answered(err) || strings.Contains(err.Error(), "durable without") {
			t.Fatalf("no answer: %v", err)
		}
		put(t, s, left[:3]...)
	}
	put(t, s, events[15:]...)
	list := drain(t, r.URL(), name)
	inOrder(t, events, ids(t, list))
	bodies := map[string]string{}
	for i := range list {
		if b := string(list[i].Body); bodies[list[i].MessageId] != "" && bodies[list[i].MessageId] != b {
			t.Errorf("%s came with two contents", list[i].MessageId)
		} else {
			bodies[list[i].MessageId] = b
		}
	}
	if len(list) != 55 {
		t.Errorf("%d messages, want 40 and 15 repeats", len(list))
	}
}
