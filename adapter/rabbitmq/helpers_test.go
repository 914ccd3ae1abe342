package rabbitmq

import (
	"crypto/rand"
	"encoding/json"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/internal/cloudevents"
	"github.com/onewrite/onewrite/internal/servers"
)

const patience = 60 * time.Second

var fragile struct {
	sync.Mutex
	server *servers.Rabbit
}

// killable returns the broker of the tests that kill, freeze or starve it, one after
// the other. It ends with the process.
func killable(t *testing.T) *servers.Rabbit {
	t.Helper()
	servers.RabbitMQ(t) // skips if there is none
	fragile.Lock()
	defer fragile.Unlock()
	if fragile.server == nil {
		r, err := servers.LaunchRabbitMQ()
		if err != nil {
			t.Fatal(err)
		}
		fragile.server = r
	}
	if err := fragile.server.Start(); err != nil {
		t.Fatal(err)
	}
	return fragile.server
}

// control runs rabbitmqctl.
func control(t *testing.T, r *servers.Rabbit, args ...string) string {
	t.Helper()
	out, err := r.Control(t.Context(), args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func kill(t *testing.T, r *servers.Rabbit) {
	t.Helper()
	if err := r.Kill(); err != nil {
		t.Fatal(err)
	}
}

func start(t *testing.T, r *servers.Rabbit) {
	t.Helper()
	if err := r.Start(); err != nil {
		t.Fatal(err)
	}
}

// channel opens one that ends with the test.
func channel(t testing.TB, url string) *amqp.Channel {
	t.Helper()
	conn, err := amqp.Dial(url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	ch, err := conn.Channel()
	if err != nil {
		t.Fatal(err)
	}
	return ch
}

// target makes a topic exchange and a queue that gets all of it that matches pattern,
// both of the test's name, and removes them with it.
func target(t testing.TB, url, pattern string, args amqp.Table) string {
	t.Helper()
	name := strings.ReplaceAll(t.Name(), "/", ".")
	ch := channel(t, url)
	if args == nil {
		args = amqp.Table{"x-queue-type": "quorum"}
	}
	err := ch.ExchangeDeclare(name, "topic", true, false, false, false, nil)
	if err == nil {
		_, err = ch.QueueDeclare(name, true, false, false, false, args)
	}
	if err == nil {
		err = ch.QueueBind(name, pattern, name, false, nil)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if x := taps[url+name]; x != nil {
			_ = x.connectionClose()
			delete(taps, url+name)
		}
		if ch, err := amqpChannel(url); err == nil { // the broker of a test that kills it may be away
			_, _ = ch.QueueDelete(name, false, false, false)
			_ = ch.ExchangeDelete(name, false, false)
			_ = ch.connectionClose()
		}
	})
	return name
}

type ownChannel struct {
	*amqp.Channel
	conn *amqp.Connection
}

func (c ownChannel) connectionClose() error { return c.conn.Close() }

func amqpChannel(url string) (ownChannel, error) {
	conn, err := amqp.Dial(url)
	if err != nil {
		return ownChannel{}, err
	}
	ch, err := conn.Channel()
	return ownChannel{ch, conn}, err
}

// tap is a consumer that stays: a quorum queue may forget what was acknowledged just
// before a channel is closed, and hand it out once more. It ends with its target.
type tap struct {
	ownChannel
	in <-chan amqp.Delivery
}

var taps = map[string]*tap{} // by broker and queue; tests do not run in parallel

func tapOf(t testing.TB, url, queue string) *tap {
	t.Helper()
	at := url + queue
	if x := taps[at]; x != nil && !x.conn.IsClosed() && !x.IsClosed() {
		return x
	}
	c, err := amqpChannel(url)
	if err == nil {
		err = c.Confirm(false)
	}
	if err != nil {
		t.Fatal(err)
	}
	in, err := c.Consume(queue, "", false, false, false, false, nil)
	if err != nil {
		t.Fatal(err)
	}
	taps[at] = &tap{c, in}
	return taps[at]
}

// drain takes all that is in a queue by now, up to a message of its own behind it.
func drain(t testing.TB, url, queue string) (list []amqp.Delivery) {
	t.Helper()
	x := tapOf(t, url, queue)
	sentinel := "sentinel " + rand.Text()
	d, err := x.PublishWithDeferredConfirm("", queue, true, false, amqp.Publishing{DeliveryMode: amqp.Persistent, Type: sentinel})
	if err != nil || !d.Wait() {
		t.Fatal("the sentinel was not taken", err)
	}
	late := time.NewTimer(patience)
	defer late.Stop()
	for {
		select {
		case m, ok := <-x.in:
			if !ok {
				t.Fatalf("the consumer has ended, %d messages came", len(list))
			}
			if err := m.Ack(false); err != nil { // at once: a quorum queue hands out 2000
				t.Fatal(err)
			}
			switch {
			case m.Type == sentinel:
				return list
			case strings.HasPrefix(m.Type, "sentinel "): // of before a kill
			default:
				list = append(list, m)
			}
		case <-late.C:
			t.Fatalf("the sentinel does not come, %d messages did", len(list))
		}
	}
}

// decode reads an event back, as a consumer would by the documentation.
func decode(t testing.TB, m *amqp.Delivery) onewrite.Event {
	t.Helper()
	var e onewrite.Event
	var err error
	if _, binary := m.Headers["cloudEvents_id"]; !binary && strings.HasPrefix(m.ContentType, "application/cloudevents+json") {
		if e, err = cloudevents.ParseJSON(m.Body); err != nil {
			t.Fatal(err)
		}
		return e
	}
	e.ContentType = m.ContentType
	for name, v := range m.Headers {
		if strings.HasPrefix(name, "x-") { // the broker's own: x-delivery-count
			continue
		}
		text, ok := v.(string)
		if !ok {
			t.Fatalf("header %s is %T", name, v)
		}
		switch attr, is := strings.CutPrefix(name, "cloudEvents_"); {
		case is:
			err = cloudevents.Set(&e, attr, text)
		case name == "Onewrite-Headers":
			more := map[string]string{}
			err = json.Unmarshal([]byte(text), &more)
			for k, v := range more {
				setHeader(&e, k, v)
			}
		default:
			setHeader(&e, name, text)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	e.Data = cloudevents.Settle(m.Body, e.ContentType)
	return e
}

func setHeader(e *onewrite.Event, name, value string) {
	if e.Header == nil {
		e.Header = map[string]string{}
	}
	e.Header[name] = value
}

// ids are those of messages in their order.
func ids(t testing.TB, list []amqp.Delivery) (ids []string) {
	for i := range list {
		ids = append(ids, decode(t, &list[i]).ID)
	}
	return ids
}

// some makes events whose keys take turns.
func some(from, n int, topic string, keys ...string) []onewrite.Event {
	es := make([]onewrite.Event, n)
	for i := range es {
		es[i] = onewrite.Event{ID: fmt.Sprintf("%s-%04d", topic, from+i), Source: "shop", Topic: topic, Type: topic, Key: keys[i%len(keys)],
			Time: time.Date(2024, 2, 29, 12, 30, 59, 123456000, time.UTC), Seq: fmt.Sprintf("%012d", from+i),
			ContentType: "application/json", Data: fmt.Appendf(nil, `{"number":%d}`, from+i)}
	}
	return es
}

func open(t testing.TB, c Config) *Sink {
	t.Helper()
	s, err := NewSink(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// put writes events that have to be taken.
func put(t testing.TB, s *Sink, events ...onewrite.Event) {
	t.Helper()
	if n, err := s.Write(t.Context(), events); n != len(events) || err != nil {
		t.Fatalf("write of %d: %d, %v", len(events), n, err)
	}
}

// says demands that an error has all texts, and no password.
func says(t testing.TB, err error, url string, texts ...string) {
	t.Helper()
	if err == nil {
		t.Fatal("no error")
	}
	for _, text := range texts {
		if !strings.Contains(err.Error(), text) {
			t.Errorf("no %q in: %v", text, err)
		}
	}
	if _, rest, ok := strings.Cut(strings.Split(url, "@")[0], "://"); ok {
		if _, password, ok := strings.Cut(rest, ":"); ok && strings.Contains(err.Error(), password) {
			t.Errorf("the password is in: %v", err)
		}
	}
}
