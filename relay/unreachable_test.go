package relay_test

import (
	"context"
	"net/http"
	"strings"
	"testing"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/onewrite/onewrite/dashboard"
	"github.com/onewrite/onewrite/internal/servers"
	"github.com/onewrite/onewrite/relay"
)

// TestBusUnreachable: while the bus is away its last numbers are shown, and that it is.
func TestBusUnreachable(t *testing.T) {
	s, err := server.NewServer(&server.Options{Host: "127.0.0.1", Port: server.RANDOM_PORT, NoSigs: true, NoLog: true, JetStream: true, StoreDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	s.Start()
	stop := func() { s.Shutdown(); s.WaitForShutdown() }
	defer stop()
	if !s.ReadyForConnections(soon) {
		t.Fatal("the NATS server did not start")
	}
	g := newRig(t, "")
	g.head = strings.Replace(g.head, "bus: {dir: bus}", "bus: {url: \""+s.ClientURL()+"\"}", 1)
	g.write(file("good", "good.jsonl"), dead(t, "dead"))
	g.publish("order.placed", "k", "1", 3)
	g.start()
	g.untilCounts("good", 3, 0, 0)
	g.untilCounts("dead", 0, 3, 0)
	until(t, "the bus to be measured", func() bool { return g.status().Bus.Messages == 3 })
	stop()
	until(t, "the status to say that the bus is away", func() bool { return g.status().Bus.LastError != "" })
	if not := g.relay.NotReady(t.Context()); len(not) == 0 || !strings.HasPrefix(not[0], "bus: what it holds was told at ") {
		t.Errorf("not ready: %q", not)
	}
	now := g.status()
	if b := now.Bus; b.Unknown || b.Messages != 3 || b.Bytes == 0 || !strings.Contains(b.LastError, "and not since") {
		t.Errorf("the bus is shown as %+v", b)
	}
	if d := now.Destinations["dead"]; d.Unknown || d.Pending != 3 {
		t.Errorf("a destination is shown as %+v", d)
	}
	if d := now.Destinations["good"]; d.Unknown || d.Delivered != 3 {
		t.Errorf("a destination is shown as %+v", d)
	}
}

// TestBusUnreadable: what the bus has not told since the start is not shown as 0.
func TestBusUnreadable(t *testing.T) {
	k := servers.Kafka(t)
	g := newRig(t, "")
	g.head = strings.Replace(g.head, "bus: {dir: bus}", "bus: {type: kafka, brokers: [\""+k.Addr()+"\"], name: unreadable}", 1)
	g.write(file("good", "good.jsonl"), dead(t, "dead"))
	g.publish("order.placed", "k", "1", 3)
	g.start()
	g.untilCounts("good", 3, 0, 0)
	g.untilCounts("dead", 0, 3, 0)
	g.stop()
	cl, err := kgo.NewClient(kgo.SeedBrokers(k.Addr()))
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	if _, err := kadm.NewClient(cl).AlterTopicConfigs(t.Context(), []kadm.AlterConfig{{Op: kadm.SetConfig, Name: "retention.ms", Value: kadm.StringPtr("3600000")}}, "unreadable.log.shop"); err != nil {
		t.Fatal(err)
	}
	listening := make(chan string, 1)
	again := relay.New(g.load(), relay.Options{ConfigPath: g.config(), Listening: func(addr string) { listening <- addr }})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- again.Run(ctx) }()
	defer func() { cancel(); <-done }()
	g.addr = <-listening
	until(t, "the status to say that the bus cannot be read", func() bool {
		s := again.Status(ctx)
		return strings.Contains(s.Bus.LastError, "is not known") && strings.Contains(s.Destinations["dead"].LastError, "would lose events")
	})
	s := again.Status(ctx)
	if !s.Bus.Unknown || !s.Sources["shop"].Unknown || !s.Destinations["dead"].Unknown || !s.Destinations["good"].Unknown {
		t.Errorf("shown as known: %+v", s)
	}
	_, text := g.api(http.MethodGet, "/api/status", nil)
	for _, want := range []string{`"pending": null`, `"events": null`, `"messages": null`} {
		if !strings.Contains(text, want) {
			t.Errorf("no %s in %s", want, text)
		}
	}
	_, text = g.api(http.MethodGet, "/metrics", nil)
	for _, not := range []string{"\nonewrite_bus_bytes ", "\nonewrite_destination_pending{", "\nonewrite_destination_delivered_total{", "\nonewrite_source_offset{"} {
		if strings.Contains(text, not) {
			t.Errorf("there is%s in the metrics", not)
		}
	}
	if !strings.Contains(text, "\nonewrite_bus_max_bytes ") {
		t.Error("the rest is missing in the metrics")
	}
	var back dashboard.Status
	if g.api(http.MethodGet, "/api/status", &back); !back.Bus.Unknown || !back.Destinations["dead"].Unknown {
		t.Errorf("read back as %+v", back)
	}
}
