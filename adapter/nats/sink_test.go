package nats_test

import (
	"context"
	"errors"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	natsgo "github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/adapter/nats"
	"github.com/onewrite/onewrite/onewritetest"
)

// target is a NATS to deliver to, with one stream.
type target struct {
	url  string
	port int
	dir  string
	srv  *server.Server
}

func newTarget(t *testing.T, subjects ...string) *target {
	t.Helper()
	x := &target{dir: t.TempDir()}
	x.start(t)
	js, err := jetstream.New(connect(t, x.url))
	if err != nil {
		t.Fatal(err)
	}
	if len(subjects) > 0 {
		if _, err := js.CreateStream(t.Context(), jetstream.StreamConfig{Name: "EVENTS", Subjects: subjects, MaxMsgSize: 4 << 20, AllowDirect: true}); err != nil {
			t.Fatal(err)
		}
	}
	return x
}

func (x *target) start(t *testing.T) {
	x.srv = natsServer(t, x.dir, func(o *server.Options) {
		if x.port != 0 {
			o.Port = x.port
		}
	})
	x.port = x.srv.Addr().(*net.TCPAddr).Port
	x.url = x.srv.ClientURL()
}

// received reads the stream with a plain client.
func (x *target) received(t *testing.T) []onewrite.Event {
	t.Helper()
	nc := connect(t, x.url)
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	s, err := js.Stream(t.Context(), "EVENTS")
	if err != nil {
		t.Fatal(err)
	}
	n := int(s.CachedInfo().State.Msgs)
	if n == 0 {
		return nil
	}
	c, err := js.OrderedConsumer(t.Context(), "EVENTS", jetstream.OrderedConsumerConfig{})
	if err != nil {
		t.Fatal(err)
	}
	var events []onewrite.Event
	for len(events) < n {
		msgs, err := c.Fetch(n-len(events), jetstream.FetchMaxWait(patience))
		if err != nil {
			t.Fatal(err)
		}
		for m := range msgs.Messages() {
			e, err := nats.Decode(m.Headers(), m.Data())
			if err != nil {
				t.Fatal(err)
			}
			events = append(events, e)
		}
		if err := msgs.Error(); err != nil {
			t.Fatal(err)
		}
	}
	return events
}

func newSink(t *testing.T, c nats.SinkConfig) *nats.Sink {
	t.Helper()
	s, err := nats.NewSink(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func TestSink(t *testing.T) {
	x := newTarget(t, "conformance.>")
	onewritetest.TestSink(t, onewritetest.SinkHarness{
		New: func(t *testing.T) onewrite.Sink {
			s, err := nats.NewSink(t.Context(), nats.SinkConfig{URL: x.url})
			if err != nil {
				t.Fatal(err)
			}
			return s
		},
		Received: x.received,
		Break: func(*testing.T) func() { // it is up again for the tests that follow
			x.srv.Shutdown()
			x.srv.WaitForShutdown()
			return func() { x.start(t) }
		},
	})
}

func TestSinkErrors(t *testing.T) {
	x := newTarget(t, "has.>")
	s := newSink(t, nats.SinkConfig{URL: x.url, Subject: "has.{topic}"})
	if n, err := s.Write(t.Context(), batch(1, 3).Events); n != 3 || err != nil {
		t.Fatalf("write: %d, %v", n, err)
	}
	if got := x.received(t); len(got) != 3 {
		t.Fatalf("%d events arrived", len(got))
	}
	large := batch(4, 3).Events
	large[1].Data = make([]byte, 5<<20)
	if n, err := s.Write(t.Context(), large); n != 1 || !errors.Is(err, onewrite.ErrRejected) {
		t.Fatalf("more than the stream takes: %d, %v", n, err)
	}
	large[1].Data = make([]byte, 9<<20)
	if n, err := s.Write(t.Context(), large); n != 1 || !errors.Is(err, onewrite.ErrRejected) {
		t.Fatalf("more than the server takes: %d, %v", n, err)
	}
	lost := newSink(t, nats.SinkConfig{URL: x.url})
	n, err := lost.Write(t.Context(), batch(1, 3).Events)
	var answered interface{ Answered() bool }
	if n != 0 || err == nil || !strings.Contains(err.Error(), "nats stream add") || !errors.As(err, &answered) || !answered.Answered() {
		t.Fatalf("no stream: %d, %v", n, err)
	}
	if _, err := nats.NewSink(t.Context(), nats.SinkConfig{URL: "nats://127.0.0.1:1"}); err == nil {
		t.Error("connected to nothing")
	}
}

// TestSinkOrder refuses the first event of a key for a while: the second may
// not arrive before it.
func TestSinkOrder(t *testing.T) {
	x := newTarget(t, "order.>")
	s := newSink(t, nats.SinkConfig{URL: x.url})
	events := batch(1, 4).Events
	for i := range events {
		events[i].Key = []string{"a", "b", "a", "b"}[i]
	}
	events[0].Topic = "elsewhere" // no stream
	if n, err := s.Write(t.Context(), events); n != 0 || err == nil {
		t.Fatalf("write: %d, %v", n, err)
	}
	for _, e := range x.received(t) {
		if e.Key == "a" {
			t.Fatalf("event %s arrived before the one that its key has to wait for", e.ID)
		}
	}
	events[0].Topic = "order.late"
	if n, err := s.Write(t.Context(), events); n != 4 || err != nil {
		t.Fatalf("write: %d, %v", n, err)
	}
	var a []string
	for _, e := range x.received(t) {
		if e.Key == "a" {
			a = append(a, e.ID)
		}
	}
	if !slices.Equal(a, []string{events[0].ID, events[2].ID}) {
		t.Errorf("key a arrived as %v", a)
	}
}

func TestSinkCore(t *testing.T) {
	x := newTarget(t)
	nc := connect(t, x.url)
	got := make(chan *natsgo.Msg, 10)
	if _, err := nc.ChanSubscribe("to.>", got); err != nil {
		t.Fatal(err)
	}
	if err := nc.Flush(); err != nil {
		t.Fatal(err)
	}
	s := newSink(t, nats.SinkConfig{URL: x.url, Subject: "to.{topic}", Core: true})
	events := batch(1, 3).Events
	if n, err := s.Write(t.Context(), events); n != 3 || err != nil {
		t.Fatalf("write: %d, %v", n, err)
	}
	for i := range events {
		select {
		case m := <-got:
			if m.Subject != "to.order.placed" || m.Header.Get("ce-id") != events[i].ID || m.Header.Get("Nats-Msg-Id") != events[i].ID+"@/shop" || string(m.Data) != string(events[i].Data) {
				t.Errorf("got %s %v %s", m.Subject, m.Header, m.Data)
			}
		case <-time.After(patience):
			t.Fatal("nothing came")
		}
	}
	x.srv.Shutdown()
	x.srv.WaitForShutdown()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if n, err := s.Write(ctx, events); n != 0 || err == nil {
		t.Fatalf("write without a server: %d, %v", n, err)
	}
}

// TestTwoDestinationsInOneStream: the stream drops the repeats of each, and not
// the events of the other.
func TestTwoDestinationsInOneStream(t *testing.T) {
	x := newTarget(t, "one.>", "two.>")
	for _, name := range []string{"one", "two"} {
		s := newSink(t, nats.SinkConfig{URL: x.url, Subject: name + ".{topic}", Destination: name})
		for range 2 { // the second time they are repeats
			if n, err := s.Write(t.Context(), batch(1, 5).Events); n != 5 || err != nil {
				t.Fatalf("%d, %v", n, err)
			}
		}
	}
	if got := x.received(t); len(got) != 10 {
		t.Errorf("the stream has %d events, want 5 of each", len(got))
	}
}

// TestTwoSourcesInOneStream: an id is unique within its source, so the stream must
// not take the event of one for a repeat of the other's.
func TestTwoSourcesInOneStream(t *testing.T) {
	x := newTarget(t, "to.>")
	s := newSink(t, nats.SinkConfig{URL: x.url, Subject: "to.{topic}", Destination: "hook"})
	for range 2 { // the second time they are repeats
		events := slices.Concat(batch(1, 2).Events, batch(1, 2).Events)
		events[2].Source, events[3].Source = "stock", "stock"
		if n, err := s.Write(t.Context(), events); n != 4 || err != nil {
			t.Fatalf("%d, %v", n, err)
		}
	}
	if got := x.received(t); len(got) != 4 {
		t.Errorf("the stream has %d events, want 2 of each source", len(got))
	}
}

// TestReservedSubjects: what belongs to the bus is refused, and nothing else.
func TestReservedSubjects(t *testing.T) {
	x := newTarget(t, "onewrite.>", "onewrite-state.>", "onewriter.>")
	for subject, refused := range map[string]bool{"onewrite.{topic}": true, "onewrite-state.{topic}": true, "onewriter.{topic}": false} {
		for _, core := range []bool{false, true} {
			s := newSink(t, nats.SinkConfig{URL: x.url, Subject: subject, Reserved: "onewrite", Core: core})
			n, err := s.Write(t.Context(), batch(1, 1).Events)
			if got := errors.Is(err, onewrite.ErrRejected); got != refused || !refused && (n != 1 || err != nil) {
				t.Errorf("%s, core %v: %d, %v", subject, core, n, err)
			}
		}
	}
	for _, c := range []struct {
		a, b string
		same bool
	}{
		{"nats://a:4222", "a", true}, {"tls://A,nats://b:1", "nats://b:1", true}, {"nats://localhost:4222", "127.0.0.1", true},
		{"nats://a:1", "nats://a:2", false}, {"nats://u:p@a", "nats://a:4222", true}, {"", "", false}, {"nats://a", "", false},
	} {
		if nats.SameServer(c.a, c.b) != c.same || nats.SameServer(c.b, c.a) != c.same {
			t.Errorf("%q and %q: want %v", c.a, c.b, c.same)
		}
	}
}

// TestSinkDenied: the server tells apart from any answer that a user may not
// publish somewhere. It is an answer about that event, at once, and names what
// to allow; other events are delivered.
func TestSinkDenied(t *testing.T) {
	account := server.NewAccount("shop")
	user := func(name string, p *server.Permissions) *server.User {
		return &server.User{Username: name, Password: name, Account: account, Permissions: p}
	}
	srv := natsServer(t, t.TempDir(), func(o *server.Options) {
		o.Accounts = []*server.Account{account}
		o.Users = []*server.User{user("all", nil),
			user("some", &server.Permissions{Publish: &server.SubjectPermission{Allow: []string{"order.>"}}, Subscribe: &server.SubjectPermission{Allow: []string{"_INBOX.>"}}}),
			user("deaf", &server.Permissions{Subscribe: &server.SubjectPermission{Allow: []string{"order.>"}}})}
	})
	real, err := srv.LookupAccount("shop")
	if err != nil {
		t.Fatal(err)
	}
	if err := real.EnableJetStream(map[string]server.JetStreamAccountLimits{"": {MaxMemory: -1, MaxStore: -1, MaxStreams: -1, MaxConsumers: -1, MemoryMaxStreamBytes: -1, StoreMaxStreamBytes: -1}}, nil); err != nil {
		t.Fatal(err)
	}
	url := func(name string) string { return "nats://" + name + ":" + name + "@" + srv.Addr().String() }
	nc := connect(t, url("all"))
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := js.CreateStream(t.Context(), jetstream.StreamConfig{Name: "EVENTS", Subjects: []string{"order.>", "stock.>"}}); err != nil {
		t.Fatal(err)
	}
	events := batch(1, 4).Events
	events[2].Topic = "stock.low"
	for _, c := range []struct {
		user      string
		core      bool
		n         int
		texts     []string
		unrelated bool // to the event
	}{
		{user: "some", n: 2, texts: []string{"user some ", "stock.low", "Permissions Violation for Publish", `publish {allow: ["stock.low"]}`}},
		{user: "some", core: true, n: 2, texts: []string{"user some ", "stock.low", `publish {allow: ["stock.low"]}`}},
		{user: "deaf", texts: []string{"user deaf ", "_INBOX", `subscribe {allow: ["_INBOX.>"]}`}, unrelated: true},
	} {
		s := newSink(t, nats.SinkConfig{URL: url(c.user), Core: c.core})
		// The pipeline's own deadline is not what ends it.
		for range 2 { // the second time the connection has an error of before
			n, err := s.Write(context.WithoutCancel(t.Context()), events)
			if n != c.n || err == nil || errors.Is(err, context.DeadlineExceeded) || strings.Contains(err.Error(), "timeout") {
				t.Fatalf("%s, core %v: %d, %v", c.user, c.core, n, err)
			}
			for _, text := range c.texts {
				if !strings.Contains(err.Error(), text) {
					t.Errorf("%s, core %v: no %q in: %v", c.user, c.core, text, err)
				}
			}
			var answered interface{ Answered() bool }
			if is := errors.As(err, &answered) && answered.Answered(); is == c.unrelated {
				t.Errorf("%s, core %v: answered about the event: %v", c.user, c.core, is)
			}
		}
		if n, err := s.Write(t.Context(), events[:2]); c.user == "some" && (n != 2 || err != nil) {
			t.Errorf("what is allowed: %d, %v", n, err)
		}
	}
}

// TestSinkDeniedOrder: without a stream too nothing of a key is published behind an event
// of it that the server denies, and the events of other keys are.
func TestSinkDeniedOrder(t *testing.T) {
	srv := natsServer(t, t.TempDir(), func(o *server.Options) {
		o.Users = []*server.User{{Username: "all", Password: "all"},
			{Username: "some", Password: "some", Permissions: &server.Permissions{Publish: &server.SubjectPermission{Allow: []string{"order.>"}}}}}
	})
	url := func(name string) string { return "nats://" + name + ":" + name + "@" + srv.Addr().String() }
	nc := connect(t, url("all"))
	sub, err := nc.SubscribeSync(">")
	if err == nil {
		err = nc.Flush()
	}
	if err != nil {
		t.Fatal(err)
	}
	events := batch(1, 4).Events
	for i, e := range []struct{ key, topic string }{{"a", "order.placed"}, {"b", "order.placed"}, {"a", "stock.low"}, {"a", "order.paid"}} {
		events[i].Key, events[i].Topic, events[i].Type = e.key, e.topic, e.topic
	}
	s := newSink(t, nats.SinkConfig{URL: url("some"), Core: true})
	if n, err := s.Write(t.Context(), events); n != 2 || err == nil {
		t.Fatalf("%d, %v", n, err)
	}
	if err := nc.Publish("end", nil); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"order.placed", "order.placed", "end"} {
		m, err := sub.NextMsg(patience)
		if err != nil || m.Subject != want {
			t.Fatalf("%v, %v; want %s", m, err, want)
		}
	}
}
