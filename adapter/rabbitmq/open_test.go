package rabbitmq

import (
	"crypto/tls"
	"crypto/x509"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/onewrite/onewrite/internal/servers"
)

func sharedBroker(t testing.TB) *servers.Rabbit {
	t.Helper()
	return servers.RabbitMQ(t)
}

// waitFor waits for a condition.
func waitFor(t testing.TB, what string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !is(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("waited in vain for " + what)
		}
	}
}

// TestMissing: what is not there is said at the opening, with the command.
func TestMissing(t *testing.T) {
	r := sharedBroker(t)
	for _, c := range []struct {
		c     Config
		texts []string
	}{
		{Config{Exchange: "nowhere"}, []string{"NOT_FOUND", "rabbitmqadmin declare exchange name='nowhere'", "declare: {exchange: topic}"}},
		{Config{RoutingKey: "noqueue"}, []string{"NOT_FOUND", "rabbitmqadmin declare queue name='noqueue'", "declare: {queues: {noqueue"}},
		{Config{Exchange: "amq.topic", Declare: &Topology{Exchange: "fanout"}}, []string{"declare the exchange amq.topic", "take it out"}},
	} {
		c.c.URL = r.URL()
		_, err := NewSink(t.Context(), c.c)
		says(t, err, r.URL(), c.texts...)
	}
	open(t, Config{URL: r.URL()}) // the default exchange is always there
	_, err := NewSink(t.Context(), Config{URL: strings.TrimSuffix(r.URL(), "/") + "/nohost"})
	says(t, err, r.URL(), "virtual host nohost", "rabbitmqctl add_vhost 'nohost'")
	for url, text := range map[string]string{"": "set url", "amqp://u:secret%zz@h": "not a URL", "http://u:secret@h": "not one of RabbitMQ", "amqp://u:secret@127.0.0.1:1": "check the address"} {
		_, err := NewSink(t.Context(), Config{URL: url})
		says(t, err, url, text)
		if strings.Contains(err.Error(), "secret") {
			t.Errorf("the password is in: %v", err)
		}
	}
	// The first that answers is taken.
	open(t, Config{URL: "amqp://u:secret@127.0.0.1:1," + r.URL()})
}

// TestDeclare makes what is published to, twice, and publishes to queues of all kinds.
func TestDeclare(t *testing.T) {
	r := sharedBroker(t)
	kinds := []string{"quorum", "classic", "stream"}
	ch := channel(t, r.URL())
	for _, exchange := range []string{"topic", "direct", "fanout", "headers"} {
		t.Run(exchange, func(t *testing.T) {
			c := Config{URL: r.URL(), Exchange: "declared-" + exchange, Declare: &Topology{Exchange: exchange, Queues: map[string]Queue{}}}
			for _, kind := range kinds {
				q := Queue{Type: kind}
				if exchange == "topic" {
					q.Bind = []string{"order.>", "exact"}
				} else if exchange == "direct" {
					q.Bind = []string{"order.placed"}
				}
				c.Declare.Queues[exchange+"-"+kind] = q
			}
			t.Cleanup(func() {
				for name := range c.Declare.Queues {
					_, _ = ch.QueueDelete(name, false, false, false)
				}
				_ = ch.ExchangeDelete(c.Exchange, false, false)
			})
			put(t, open(t, c), some(1, 3, "order.placed", "a")...)
			put(t, open(t, c), some(4, 3, "order.placed", "a", "b")...)
			want := []string{"order.placed-0001", "order.placed-0002", "order.placed-0003", "order.placed-0004", "order.placed-0005", "order.placed-0006"}
			for _, kind := range kinds[:2] {
				if got := ids(t, drain(t, r.URL(), exchange+"-"+kind)); !slices.Equal(got, want) {
					t.Errorf("%s: %v", kind, got)
				}
			}
			if got := ids(t, streamed(t, r.URL(), exchange+"-stream", 6)); !slices.Equal(got, want) {
				t.Errorf("stream: %v", got)
			}
			c.Declare.Queues[exchange+"-quorum"] = Queue{Type: "classic"}
			_, err := NewSink(t.Context(), c)
			says(t, err, r.URL(), "declare the queue "+exchange+"-quorum", "inequivalent", "change declare")
		})
	}
}

// TestSingleActive: with two readers the second gets nothing before the first is gone,
// and then begins with what the first had not acknowledged.
func TestSingleActive(t *testing.T) {
	r := sharedBroker(t)
	c := Config{URL: r.URL(), RoutingKey: "single", Declare: &Topology{Queues: map[string]Queue{"single": {SingleActive: true}}}}
	s := open(t, c)
	admin := channel(t, r.URL())
	t.Cleanup(func() { _, _ = admin.QueueDelete("single", false, false, false) })
	read := func() (*amqp.Channel, <-chan amqp.Delivery) {
		ch := channel(t, r.URL())
		if err := ch.Qos(3, 0, false); err != nil {
			t.Fatal(err)
		}
		in, err := ch.Consume("single", "", false, false, false, false, nil)
		if err != nil {
			t.Fatal(err)
		}
		return ch, in
	}
	next := func(in <-chan amqp.Delivery) amqp.Delivery {
		select {
		case m := <-in:
			return m
		case <-time.After(patience):
			t.Fatal("nothing comes")
		}
		return amqp.Delivery{}
	}
	first, got := read()
	_, other := read()
	put(t, s, some(1, 6, "order.placed", "a")...)
	for range 3 {
		next(got) // and acknowledges none
	}
	select {
	case m := <-other:
		t.Fatalf("the second reader got %s while the first one reads", decode(t, &m).ID)
	default:
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	var list []amqp.Delivery
	for range 6 {
		m := next(other)
		if err := m.Ack(false); err != nil {
			t.Fatal(err)
		}
		list = append(list, m)
	}
	if got := ids(t, list); !slices.IsSorted(got) {
		t.Errorf("the second reader got %v", got)
	}
	c.Declare.Queues["single"] = Queue{}
	_, err := NewSink(t.Context(), c)
	says(t, err, r.URL(), "declare the queue single", "inequivalent", "change declare")
}

// streamed reads a stream from its beginning.
func streamed(t *testing.T, url, name string, n int) (list []amqp.Delivery) {
	t.Helper()
	ch := channel(t, url)
	if err := ch.Qos(100, 0, false); err != nil {
		t.Fatal(err)
	}
	in, err := ch.Consume(name, "", false, false, false, false, amqp.Table{"x-stream-offset": "first"})
	if err != nil {
		t.Fatal(err)
	}
	for len(list) < n {
		select {
		case m := <-in:
			list = append(list, m)
		case <-time.After(patience):
			t.Fatalf("the stream has %d of %d", len(list), n)
		}
	}
	return list
}

// TestPatterns: what > means to topics is not what # means to AMQP.
func TestPatterns(t *testing.T) {
	for in, want := range map[string]string{">": "#", "order.>": "order.*.#", "*.placed": "*.placed", "order.#": "order.#", "order": "order"} {
		if got := pattern(in); got != want {
			t.Errorf("%s became %s, want %s", in, got, want)
		}
	}
	r := sharedBroker(t)
	name := target(t, r.URL(), pattern("order.>"), nil)
	s := open(t, Config{URL: r.URL(), Exchange: name, Optional: true})
	for i, topic := range []string{"order", "order.placed", "order.placed.eu", "stock.low"} {
		put(t, s, some(i, 1, topic, "a")...)
	}
	if got := ids(t, drain(t, r.URL(), name)); !slices.Equal(got, []string{"order.placed-0001", "order.placed.eu-0002"}) {
		t.Errorf("order.> takes %v", got)
	}
}

func TestTLS(t *testing.T) {
	r := sharedBroker(t)
	pem, err := os.ReadFile(r.CA())
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(pem)
	trusted := &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}
	name := target(t, r.URL(), "#", nil)
	put(t, open(t, Config{URL: r.TLSURL(), TLS: trusted, Exchange: name}), some(1, 3, "order.placed", "a")...)
	if trusted.ServerName != "" {
		t.Error("the caller's configuration was changed")
	}
	if got := ids(t, drain(t, r.URL(), name)); len(got) != 3 {
		t.Errorf("arrived: %v", got)
	}
	_, err = NewSink(t.Context(), Config{URL: r.TLSURL(), Exchange: name})
	says(t, err, r.URL(), "tls: {ca: ca.pem}")
	_, err = NewSink(t.Context(), Config{URL: r.TLSURL(), Exchange: name, TLS: &tls.Config{RootCAs: pool, ServerName: "elsewhere.example", MinVersion: tls.VersionTLS12}})
	says(t, err, r.URL(), "server_name")
	_, err = NewSink(t.Context(), Config{URL: strings.Replace(r.URL(), "amqp://", "amqps://", 1), Exchange: name, TLS: trusted})
	says(t, err, r.URL(), "speaks no TLS")
}
