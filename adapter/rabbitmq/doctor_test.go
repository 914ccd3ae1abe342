package rabbitmq

import (
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
		if f == nil || f.Severity.String() != c.severity || !strings.Contains(f.Text, c.text) || (f.Severity != diagnosis.OK) != (f.Cure != "") {
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
