package rabbitmq

import (
	"context"
	"strings"
	"testing"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/onewrite/onewrite/internal/diagnosis"
)

// finding returns the first one of a check.
func finding(found []diagnosis.Finding, check string) *diagnosis.Finding {
	for i := range found {
		if found[i].Check == check {
			return &found[i]
		}
	}
	return nil
}

func TestDoctor(t *testing.T) {
	r := sharedBroker(t)
	ch := channel(t, r.URL())
	name := target(t, r.URL(), "#", nil)
	for queue, args := range map[string]amqp.Table{"doctor-classic": {"x-queue-type": "classic"}, "doctor-drops": {"x-queue-type": "quorum", "x-max-length": 5}, "doctor-quorum": {"x-queue-type": "quorum"}} {
		if _, err := ch.QueueDeclare(queue, true, false, false, false, args); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _, _ = ch.QueueDelete(queue, false, false, false) })
	}
	if _, err := ch.QueueDeclare("doctor-fleeting", false, false, false, false, nil); err != nil {
		t.Fatal(err)
	}
	for exchange, durable := range map[string]bool{"doctor-fleeting": false, "doctor-fanout": true} {
		if err := ch.ExchangeDeclare(exchange, "fanout", durable, false, false, false, nil); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = ch.ExchangeDelete(exchange, false, false) })
	}
	t.Cleanup(func() { _, _ = ch.QueueDelete("doctor-fleeting", false, false, false) })
	queues := func(name, kind string) *Topology { return &Topology{Queues: map[string]Queue{name: {Type: kind}}} }
	for _, c := range []struct {
		what, check, severity, text string
		c                           Config
	}{
		{"all well", "connection", "ok", "RabbitMQ 3.", Config{Exchange: name}},
		{"all well", "exchange", "ok", "of type topic, durable", Config{Exchange: name}},
		{"all well", "alarms", "ok", "takes messages", Config{Exchange: name}},
		{"other type", "exchange", "ok", "of type fanout, durable", Config{Exchange: "doctor-fanout"}},
		{"other type declared", "exchange", "problem", "does not open", Config{Exchange: "doctor-fanout", Declare: &Topology{Exchange: "topic"}}},
		{"missing", "exchange", "problem", "NOT_FOUND", Config{Exchange: "doctor-nowhere"}},
		{"to be made", "exchange", "ok", "is made when", Config{Exchange: "doctor-nowhere", Declare: &Topology{Exchange: "topic"}}},
		{"fleeting", "exchange", "problem", "not durable", Config{Exchange: "doctor-fleeting"}},
		{"queue", "queue", "ok", "of type quorum", Config{RoutingKey: "doctor-quorum"}},
		{"queue missing", "queue", "problem", "NOT_FOUND", Config{RoutingKey: "doctor-nowhere"}},
		{"queue fleeting", "queue", "problem", "not durable", Config{RoutingKey: "doctor-fleeting"}},
		{"queue classic", "queue type", "warning", "one node", Config{RoutingKey: "doctor-classic"}},
		{"queue that drops", "queue", "warning", "dropped", Config{RoutingKey: "doctor-drops"}},
		{"queue to be made", "queue", "ok", "is made when", Config{Exchange: name, Declare: queues("doctor-nowhere", "")}},
		{"queue classic to be made", "queue type", "warning", "one node", Config{Exchange: name, Declare: queues("doctor-nowhere", "classic")}},
		{"queue of another type", "queue", "problem", "is of type classic, and declare says quorum", Config{Exchange: name, Declare: queues("doctor-classic", "quorum")}},
		{"queue with limits, declared", "queue", "problem", "x-max-length", Config{Exchange: name, Declare: queues("doctor-drops", "quorum")}},
		{"mandatory", "mandatory", "warning", "is lost", Config{Exchange: name, Optional: true}},
		{"nobody there", "connection", "problem", "check the address", Config{URL: "amqp://u:secret@127.0.0.1:1"}},
		{"the second lets us in", "exchange", "ok", "durable", Config{URL: "amqp://u:secret@127.0.0.1:1," + r.URL(), Exchange: name}},
		{"wrong password", "connection", "problem", "check user and password", Config{URL: r.UserURL("onewrite", "wrong-secret")}},
	} {
		if c.c.URL == "" {
			c.c.URL = r.URL()
		}
		found := Examine(t.Context(), c.c)
		f := finding(found, c.check)
		if f == nil || f.Severity.String() != c.severity || !strings.Contains(f.Text+"; "+f.Cure, c.text) || (f.Severity != diagnosis.OK) != (f.Cure != "") {
			t.Errorf("%s: %s is not %s with %q: %+v", c.what, c.check, c.severity, c.text, found)
		}
		for _, f := range found {
			if strings.Contains(f.Text+f.Cure, "secret") {
				t.Errorf("%s: a password is in %+v", c.what, f)
			}
		}
	}
	// Nothing was made by looking.
	for _, look := range []func() error{
		func() error {
			return ch.ExchangeDeclarePassive("doctor-nowhere", "topic", true, false, false, false, nil)
		},
		func() error {
			_, err := channel(t, r.URL()).QueueDeclarePassive("doctor-nowhere", true, false, false, false, nil)
			return err
		},
	} {
		if look() == nil {
			t.Error("the doctor has made something")
		}
	}
	ch = channel(t, r.URL()) // the refusal closed the other
}

// TestVirtualHost: commands name the virtual host, and the doctor's cure is the one that
// the text had. They are run.
func TestVirtualHost(t *testing.T) {
	r := sharedBroker(t)
	const vhost, queue = "doctor's", "doctor-lost"
	url := strings.TrimSuffix(r.URL(), "/") + "/doctor%27s"
	t.Cleanup(func() { _, _ = r.Control(context.Background(), "delete_vhost", vhost) })
	for what, c := range map[string][2]string{
		"wrong password": {r.UserURL("onewrite", "wrong-secret"), "check user and password in url (guest comes in from the broker's own machine only): rabbitmqctl authenticate_user 'onewrite'"},
		"no host":        {url, `make the virtual host and let the user in: rabbitmqctl add_vhost 'doctor'\''s' && rabbitmqctl set_permissions -p 'doctor'\''s' '`},
		"away":           {"amqp://u:secret@127.0.0.1:1", "check the address, and that the broker runs: rabbitmqctl await_startup"},
	} {
		if f := finding(Examine(t.Context(), Config{URL: c[0]}), "connection"); f == nil || !strings.HasPrefix(f.Cure, c[1]) || strings.Contains(f.Text, "rabbitmqctl") {
			t.Errorf("%s: %+v", what, f)
		}
	}
	user, _ := r.User()
	control := func(args ...string) {
		t.Helper()
		if out, err := r.Control(t.Context(), args...); err != nil {
			t.Fatalf("%s: %v", out, err)
		}
	}
	control("add_vhost", vhost)
	control("set_permissions", "-p", vhost, user, ".*", ".*", ".*")
	for c, want := range map[string]Config{
		`rabbitmqadmin --vhost='doctor'\''s' declare exchange name='nowhere'`:  {Exchange: "nowhere"},
		`rabbitmqadmin --vhost='doctor'\''s' declare queue name='doctor-lost'`: {RoutingKey: queue},
	} {
		want.URL = url
		_, err := NewSink(t.Context(), want)
		says(t, err, url, c)
		text := ""
		for _, f := range Examine(t.Context(), want) {
			text += f.Cure + "\n"
		}
		if !strings.Contains(text, c) {
			t.Errorf("the doctor does not say %s:\n%s", c, text)
		}
	}
	ch := channel(t, url)
	if _, err := ch.QueueDeclare(queue, false, false, false, false, nil); err != nil {
		t.Fatal(err)
	}
	f := finding(Examine(t.Context(), Config{URL: url, RoutingKey: queue}), "queue")
	if f == nil || !strings.HasPrefix(f.Cure, `rabbitmqctl delete_queue -p 'doctor'\''s' 'doctor-lost'`) {
		t.Fatalf("%+v", f)
	}
	control("delete_queue", "-p", vhost, queue)
	if _, err := ch.QueueDeclarePassive(queue, false, false, false, false, nil); err == nil {
		t.Error("the queue is still there")
	}
}
