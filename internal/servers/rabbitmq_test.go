package servers_test

import (
	"net"
	"os"
	"strings"
	"testing"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/onewrite/onewrite/internal/servers"
)

// A broker keeps what it confirmed over a kill, and nothing of it is left behind.
func TestRabbitMQ(t *testing.T) {
	r, err := servers.LaunchRabbitMQ()
	if err != nil {
		servers.RabbitMQ(t) // skips, or fails for the same reason
	}
	t.Cleanup(func() { _ = r.Shutdown() })
	publish := func() (depth int) {
		conn, err := amqp.Dial(r.URL())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close() //nolint:errcheck // of a test
		ch, err := conn.Channel()
		if err != nil {
			t.Fatal(err)
		}
		q, err := ch.QueueDeclare("kept", true, false, false, false, amqp.Table{"x-queue-type": "quorum"})
		if err != nil {
			t.Fatal(err)
		}
		if err := ch.Confirm(false); err != nil {
			t.Fatal(err)
		}
		c, err := ch.PublishWithDeferredConfirmWithContext(t.Context(), "", "kept", true, false, amqp.Publishing{DeliveryMode: amqp.Persistent, Body: []byte("x")})
		if err != nil || !c.Wait() {
			t.Fatal("not confirmed", err)
		}
		return q.Messages
	}
	publish()
	if err := r.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := r.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := r.Start(); err != nil {
		t.Fatal(err)
	}
	if n := publish(); n != 1 {
		t.Errorf("%d messages outlived the kill, want 1", n)
	}
	if out, err := r.Control(t.Context(), "list_vhosts"); err != nil || !strings.Contains(out, "/") {
		t.Errorf("%q %v", out, err)
	}
	if err := r.Shutdown(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(r.CA()); err == nil {
		t.Error("the folder is still there")
	}
	if conn, err := net.Dial("tcp", r.Addr()); err == nil {
		_ = conn.Close()
		t.Error("the broker still runs")
	}
}
