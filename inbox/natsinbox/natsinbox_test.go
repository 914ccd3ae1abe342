package natsinbox_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	_ "modernc.org/sqlite"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/inbox"
	"github.com/onewrite/onewrite/inbox/natsinbox"
	"github.com/onewrite/onewrite/internal/servers"
)

// rig is a stream with a consumer, and the database of an inbox.
type rig struct {
	js       jetstream.JetStream
	consumer jetstream.Consumer
	db       *sql.DB

	mu  sync.Mutex
	got []string // ids, in the order of their committed effects
}

func newRig(t *testing.T, c jetstream.ConsumerConfig) *rig {
	t.Helper()
	server, err := servers.LaunchNATS(1)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = server.Shutdown() })
	conn, err := nats.Connect(server.URL())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(conn.Close)
	r := &rig{}
	if r.js, err = jetstream.New(conn); err != nil {
		t.Fatal(err)
	}
	if _, err = r.js.CreateStream(t.Context(), jetstream.StreamConfig{Name: "events", Subjects: []string{"order.>"}}); err != nil {
		t.Fatal(err)
	}
	c.Durable = "billing"
	if r.consumer, err = r.js.CreateConsumer(t.Context(), "events", c); err != nil {
		t.Fatal(err)
	}
	if r.db, err = sql.Open("sqlite", "file:"+filepath.Join(t.TempDir(), "c.db")+"?_pragma=busy_timeout(10000)&_txlock=immediate"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.db.Close() })
	if err := inbox.New(inbox.SQLite, "any").Migrate(t.Context(), r.db); err != nil {
		t.Fatal(err)
	}
	return r
}

// publish puts events from to upto into the stream.
func (r *rig) publish(t *testing.T, from, upto int) {
	t.Helper()
	for n := from; n <= upto; n++ {
		m := nats.NewMsg("order.placed")
		m.Data = []byte(`{}`)
		for k, v := range map[string]string{"ce-specversion": "1.0", "ce-id": fmt.Sprint("id-", n), "ce-source": "/shop", "ce-type": "t",
			"ce-partitionkey": "k", "ce-sequence": fmt.Sprintf("%05d", n)} {
			m.Header[k] = []string{v}
		}
		if _, err := r.js.PublishMsg(t.Context(), m); err != nil {
			t.Fatal(err)
		}
	}
}

// receiver applies events through in, and calls seen after each commit.
func (r *rig) receiver(in *inbox.Inbox, fail func(id string) error, seen func()) inbox.Receiver {
	inner := in.Receiver(r.db, func(_ context.Context, _ *sql.Tx, e onewrite.Event) error { return fail(e.ID) })
	return func(ctx context.Context, messages []inbox.Message) ([]inbox.Outcome, error) {
		outcomes, err := inner(ctx, messages)
		r.mu.Lock()
		for i, o := range outcomes {
			if err == nil && o == inbox.Applied {
				r.got = append(r.got, messages[i].ID)
			}
		}
		r.mu.Unlock()
		seen()
		return outcomes, err
	}
}

func (r *rig) has(n int) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.got) >= n
}

func never(string) error { return nil }

var explicit = jetstream.ConsumerConfig{AckPolicy: jetstream.AckExplicitPolicy, MaxDeliver: -1}

// Consumers that end before they acknowledged: each effect once.
func TestEndedBeforeTheAcknowledgement(t *testing.T) {
	for name, maxPending := range map[string]int{"ids": 1000, "ordered": 1} {
		t.Run(name, func(t *testing.T) {
			c := explicit
			c.MaxAckPending = maxPending
			c.BackOff = nil
			r := newRig(t, c)
			opts := []inbox.Option{}
			if name == "ordered" {
				opts = append(opts, inbox.Ordered())
			}
			in := inbox.New(inbox.SQLite, "c", opts...)
			const events = 100
			r.publish(t, 1, events)
			repeats := 0
			for !r.has(events) {
				ctx, cancel := context.WithCancelCause(t.Context())
				calls := 0
				receive := r.receiver(in, never, func() {})
				err := natsinbox.Consume(ctx, r.consumer, func(ctx context.Context, ms []inbox.Message) ([]inbox.Outcome, error) {
					outcomes, err := receive(ctx, ms)
					for _, o := range outcomes {
						if o == inbox.Duplicate {
							repeats++
						}
					}
					if calls++; calls == 3 || r.has(events) {
						cancel(context.Canceled)
						return outcomes, errors.New("the answer is lost")
					}
					return outcomes, err
				}, natsinbox.Batch(10))
				if err != nil {
					t.Fatal(err)
				}
				// What was handed out comes again at once, as after the time to acknowledge.
				r.restart(t, c)
			}
			slices.Sort(r.got)
			if len(r.got) != events || len(slices.Compact(r.got)) != events {
				t.Errorf("%d effects of %d events", len(r.got), events)
			}
			if repeats == 0 {
				t.Error("nothing was repeated, so nothing was tried")
			}
		})
	}
}

// restart makes the consumer anew, at the oldest message without acknowledgement.
func (r *rig) restart(t *testing.T, c jetstream.ConsumerConfig) {
	t.Helper()
	info, err := r.consumer.Info(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := r.js.DeleteConsumer(t.Context(), "events", "billing"); err != nil {
		t.Fatal(err)
	}
	c.Durable, c.DeliverPolicy, c.OptStartSeq = "billing", jetstream.DeliverByStartSequencePolicy, info.AckFloor.Stream+1
	if r.consumer, err = r.js.CreateConsumer(t.Context(), "events", c); err != nil {
		t.Fatal(err)
	}
}

// One that fails is tried again before those behind it.
func TestFailuresKeepTheOrder(t *testing.T) {
	c := explicit
	c.MaxAckPending = 1
	r := newRig(t, c)
	failures := map[string]int{"id-2": 2, "id-5": 1}
	ctx, cancel := context.WithCancel(t.Context())
	r.publish(t, 1, 8)
	err := natsinbox.Consume(ctx, r.consumer, r.receiver(inbox.New(inbox.SQLite, "c", inbox.Ordered()), func(id string) error {
		if failures[id] > 0 {
			failures[id]--
			return errors.New("not now")
		}
		return nil
	}, func() {
		if r.has(8) {
			cancel()
		}
	}))
	if err != nil {
		t.Fatal(err)
	}
	if want := "id-1 id-2 id-3 id-4 id-5 id-6 id-7 id-8"; strings.Join(r.got, " ") != want {
		t.Errorf("%v", r.got)
	}
}

func TestRejected(t *testing.T) {
	r := newRig(t, explicit)
	r.publish(t, 1, 2)
	if _, err := r.js.Publish(t.Context(), "order.placed", []byte("no event")); err != nil {
		t.Fatal(err)
	}
	r.publish(t, 3, 5)
	in := inbox.New(inbox.SQLite, "c")
	reject := func(id string) error {
		if id == "id-4" {
			return fmt.Errorf("no such account: %w", onewrite.ErrRejected)
		}
		return nil
	}
	err := natsinbox.Consume(t.Context(), r.consumer, r.receiver(in, reject, func() {}))
	if !errors.Is(err, onewrite.ErrRejected) || !strings.Contains(err.Error(), "order.placed") {
		t.Fatalf("the first bad message: %v", err)
	}
	r.restart(t, explicit)
	ctx, cancel := context.WithCancel(t.Context())
	var reasons []string
	err = natsinbox.Consume(ctx, r.consumer, r.receiver(in, reject, func() {
		if r.has(4) {
			cancel()
		}
	}), natsinbox.OnReject(func(_ context.Context, m jetstream.Msg, reason error) error {
		reasons = append(reasons, reason.Error())
		return nil
	}))
	if err != nil || len(reasons) != 2 || !strings.Contains(reasons[1], "no such account") {
		t.Errorf("%v; %q", err, reasons)
	}
	if slices.Sort(r.got); strings.Join(r.got, " ") != "id-1 id-2 id-3 id-5" {
		t.Errorf("%v", r.got)
	}
}

func TestConsumersThatWillNotDo(t *testing.T) {
	for name, c := range map[string]jetstream.ConsumerConfig{
		"no acknowledgement": {AckPolicy: jetstream.AckNonePolicy},
		"gives up":           {AckPolicy: jetstream.AckExplicitPolicy, MaxDeliver: 3},
	} {
		r := newRig(t, c)
		if err := natsinbox.Consume(t.Context(), r.consumer, nil); err == nil || !strings.Contains(err.Error(), "billing") {
			t.Errorf("%s: %v", name, err)
		}
	}
	r := newRig(t, explicit)
	r.publish(t, 1, 1)
	err := natsinbox.Consume(t.Context(), r.consumer, r.receiver(inbox.New(inbox.SQLite, "c"), never, func() {
		if err := r.js.DeleteConsumer(context.Background(), "events", "billing"); err != nil {
			t.Error(err)
		}
	}))
	if !errors.Is(err, jetstream.ErrConsumerDeleted) && !errors.Is(err, jetstream.ErrConsumerNotFound) {
		t.Errorf("a consumer that is gone: %v", err)
	}
}
