package onewritetest

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"sync"
	"testing"
	"time"

	"github.com/onewrite/onewrite"
)

// patience bounds every wait of a suite; promptly is the longest that a sink
// may take to notice the end of its context.
const (
	patience = 20 * time.Second
	promptly = 5 * time.Second
)

// SinkHarness tells [TestSink] how to make a sink and how to look at what it
// delivered.
type SinkHarness struct {
	// New opens a sink. All sinks of a harness deliver to one destination; the
	// suite closes each, and has two of them open only to see one that keeps its
	// place take over from the other.
	New func(t *testing.T) onewrite.Sink
	// Received returns the events at the destination in the order in which they
	// arrived, repeats included. It may return those of other tests too.
	Received func(t *testing.T) []onewrite.Event
	// MaxData is the largest payload the destination takes, in bytes; 0 means
	// 1 MiB.
	MaxData int
	// JSONByValue is set when a payload of JSON arrives as an equal JSON value
	// instead of byte for byte.
	JSONByValue bool
	// Refuse, if set, makes the destination refuse the event of this id from now
	// on, and take all others.
	Refuse func(t *testing.T, id string)
	// Break, if set, makes the destination unusable until mend is called. After
	// that a new sink has to work.
	Break func(t *testing.T) (mend func())
	// Stall, if set, makes the destination take what it is sent and say nothing
	// until resume is called.
	Stall func(t *testing.T) (resume func())
}

// TestSink checks that a sink keeps the contract of [onewrite.Sink], and that of
// [onewrite.Placed] if it is one. What the harness has no means for is skipped.
func TestSink(t *testing.T, h SinkHarness) {
	if h.MaxData == 0 {
		h.MaxData = 1 << 20
	}
	run := func(name string, can bool, f func(*sinkTest)) {
		t.Run(name, func(t *testing.T) {
			if !can {
				t.Skip("the harness has no means for it")
			}
			f(&sinkTest{T: t, h: h, topic: "conformance." + name})
		})
	}
	run("order", true, (*sinkTest).order)
	run("fidelity", true, (*sinkTest).fidelity)
	run("largest", true, (*sinkTest).largest)
	run("repeat", true, (*sinkTest).repeat)
	run("nothing", true, (*sinkTest).nothing)
	run("concurrent", true, (*sinkTest).concurrent)
	run("cancelled", true, (*sinkTest).cancelled)
	run("close", true, (*sinkTest).close)
	run("refuse", h.Refuse != nil, (*sinkTest).refuse)
	run("placed", true, (*sinkTest).placed)
	run("placed-refuse", h.Refuse != nil, (*sinkTest).placedRefuse)
	run("break", h.Break != nil, (*sinkTest).broken)
	run("placed-break", h.Break != nil, (*sinkTest).placedBroken)
	run("stall", h.Stall != nil, (*sinkTest).stall)
}

// sinkTest is one check; its events have a topic of their own.
type sinkTest struct {
	*testing.T
	h     SinkHarness
	topic string
	made  int
	// offset is the place of the newest message on the bus.
	offset uint64
}

// open opens a sink that is closed with the test.
func (t *sinkTest) open() onewrite.Sink {
	t.Helper()
	s := t.h.New(t.T)
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return s
}

// events makes n events whose keys take turns.
func (t *sinkTest) events(n int, keys ...string) []onewrite.Event {
	es := make([]onewrite.Event, n)
	for i := range es {
		t.made++
		es[i] = onewrite.Event{
			ID:          fmt.Sprintf("%s-%04d", t.topic, t.made),
			Source:      "conformance",
			Topic:       t.topic,
			Type:        t.topic,
			Key:         keys[i%len(keys)],
			Time:        time.Date(2024, 2, 29, 12, 30, 59, 123456000, time.UTC).Add(time.Duration(t.made) * time.Second),
			Seq:         fmt.Sprintf("%012d", t.made),
			ContentType: "application/json",
			Data:        fmt.Appendf(nil, `{"number":%d}`, t.made),
		}
	}
	return es
}

// write writes events that have to arrive.
func (t *sinkTest) write(s onewrite.Sink, events ...onewrite.Event) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if n, err := s.Write(ctx, events); n != len(events) || err != nil {
		t.Fatalf("Write of %d events = %d, %v", len(events), n, err)
	}
}

// attempt writes events that may fail, and checks what holds for every answer.
func (t *sinkTest) attempt(ctx context.Context, s onewrite.Sink, events ...onewrite.Event) (int, error) {
	t.Helper()
	n, err := s.Write(ctx, events)
	if n < 0 || n > len(events) || (n < len(events)) != (err != nil) {
		t.Fatalf("Write of %d events = %d, %v; an error has to say why fewer are durable, and nothing else", len(events), n, err)
	}
	if n > 0 {
		t.check(events[:n]...)
	}
	return n, err
}

// arrived returns the events of this test at the destination.
func (t *sinkTest) arrived() []onewrite.Event {
	t.Helper()
	var mine []onewrite.Event
	for _, e := range t.h.Received(t.T) {
		if e.Topic == t.topic {
			mine = append(mine, e)
		}
	}
	return mine
}

// check demands that events have arrived as they were, all repeats alike, and
// the first arrivals of each key in order. It returns how often each arrived.
func (t *sinkTest) check(events ...onewrite.Event) map[string]int {
	t.Helper()
	want := make(map[string]int, len(events))
	for i := range events {
		want[events[i].ID] = i
	}
	times := make(map[string]int)
	last := make(map[string]int)
	for _, got := range t.arrived() {
		i, ok := want[got.ID]
		if !ok {
			continue
		}
		if diff := difference(&events[i], &got, t.h.JSONByValue); diff != "" {
			t.Errorf("event %s: %s", got.ID, diff)
		}
		if times[got.ID]++; times[got.ID] > 1 {
			continue
		}
		key := events[i].Key
		if before, ok := last[key]; ok && before > i && key != "" {
			t.Errorf("key %q: event %d arrived after event %d", key, i, before)
		}
		last[key] = i
	}
	for i := range events {
		if times[events[i].ID] == 0 {
			t.Errorf("event %s is said to be durable and is not there", events[i].ID)
		}
	}
	return times
}

// order: everything arrives once, in order, in writes of one and of many.
func (t *sinkTest) order() {
	s := t.open()
	events := t.events(310, "a", "b", "c")
	t.write(s, events[:300]...)
	for _, e := range events[300:] {
		t.write(s, e)
	}
	for id, n := range t.check(events...) {
		if n != 1 {
			t.Errorf("event %s arrived %d times", id, n)
		}
	}
}

// fidelity: every part of an event arrives as it was, and the caller's events
// are left alone.
func (t *sinkTest) fidelity() {
	s := t.open()
	base := t.events(1, "k")[0]
	events, before := difficult(base, t.h.JSONByValue), difficult(base, t.h.JSONByValue)
	for _, e := range events {
		t.write(s, e)
	}
	t.check(events...)
	if !reflect.DeepEqual(events, before) {
		t.Error("Write changed the events of its caller")
	}
	for i := range events {
		events[i].ID += "-again"
	}
	t.write(s, events...)
	t.check(events...)
}

// largest: the largest payload arrives, as text and as bytes.
func (t *sinkTest) largest() {
	s := t.open()
	events := t.events(2, "k")
	events[0].ContentType, events[0].Data = "text/plain; charset=utf-8", bulk(t.h.MaxData, ' ', 95)
	events[1].ContentType, events[1].Data = "application/octet-stream", bulk(t.h.MaxData, 0, 256)
	t.write(s, events...)
	t.check(events...)
}

// repeat: the same event again, from this sink and from the next, does no harm:
// it is not refused, and whatever arrives is the same.
func (t *sinkTest) repeat() {
	events := t.events(5, "a", "b")
	s := t.open()
	t.write(s, events...)
	t.write(s, events...)
	t.write(s, events[3:]...)
	if err := s.Close(); err != nil {
		t.Fatalf("Close: %v", err)
	}
	s = t.open()
	t.write(s, events[4:]...)
	more := t.events(2, "a", "b")
	t.write(s, append(events[3:5:5], more...)...)
	t.check(append(events, more...)...)
}

// nothing: no events, no effect.
func (t *sinkTest) nothing() {
	s := t.open()
	if n, err := s.Write(context.Background(), nil); n != 0 || err != nil {
		t.Errorf("Write of nothing = %d, %v", n, err)
	}
	if got := t.arrived(); len(got) != 0 {
		t.Errorf("%d events arrived", len(got))
	}
}

// concurrent: several goroutines write, each has keys of its own.
func (t *sinkTest) concurrent() {
	s := t.open()
	var all []onewrite.Event
	var wg sync.WaitGroup
	for g := range 8 {
		events := t.events(60, fmt.Sprint("key-", g), fmt.Sprint("other-", g))
		all = append(all, events...)
		wg.Go(func() {
			for len(events) > 0 {
				n := min(len(events), 1+len(events)%4)
				if got, err := s.Write(context.Background(), events[:n]); got != n || err != nil {
					t.Errorf("Write of %d events = %d, %v", n, got, err)
					return
				}
				events = events[n:]
			}
		})
	}
	wg.Wait()
	for id, n := range t.check(all...) {
		if n != 1 {
			t.Errorf("event %s arrived %d times", id, n)
		}
	}
}

// cancelled: a context that has ended ends Write, and harms nothing.
func (t *sinkTest) cancelled() {
	s := t.open()
	events := t.events(3, "k")
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	start := time.Now()
	n, err := t.attempt(ctx, s, events...)
	if took := time.Since(start); took > promptly {
		t.Errorf("Write took %v after the end of its context", took)
	}
	if steers(err) {
		t.Errorf("Write after the end of its context: %v; that is no answer about the event", err)
	}
	t.write(s, events[n:]...)
	t.check(events...)
}

// close: Close may come twice, ends everything, and Write fails after it. Several
// sinks are closed, so that a goroutine left by each stands out from those of
// the tests before that are just ending.
func (t *sinkTest) close() {
	before := goroutines()
	for range 5 {
		t.closeOne()
	}
	if left := waitGoroutines(before); left != "" {
		t.Errorf("goroutines left after Close:\n%s", left)
	}
}

func (t *sinkTest) closeOne() {
	s := t.open()
	events := t.events(2, "k")
	t.write(s, events[0])
	for range 2 {
		if err := s.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	}
	n, err := s.Write(context.Background(), events[1:])
	if n != 0 || err == nil {
		t.Errorf("Write after Close = %d, %v", n, err)
	}
	if steers(err) {
		t.Errorf("Write after Close: %v; that is no answer about the event", err)
	}
}

// refuse: the event that the destination refuses is named, what was before it is
// durable, and what comes behind it in its key did not pass it.
func (t *sinkTest) refuse() {
	s := t.open()
	events := t.events(4, "k")
	t.h.Refuse(t.T, events[2].ID)
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	n, _ := t.attempt(ctx, s, events...)
	if n > 2 {
		t.Errorf("Write = %d of 4, event 2 is refused", n)
	}
	for _, got := range t.arrived() {
		if got.ID == events[2].ID || got.ID == events[3].ID {
			t.Errorf("event %s arrived past a refusal", got.ID)
		}
	}
	for i := n; i < 2; i++ {
		t.write(s, events[i])
	}
	if _, err := t.attempt(ctx, s, events[2]); !errors.Is(err, onewrite.ErrRejected) {
		t.Errorf("Write of the refused event: %v, want one that is ErrRejected", err)
	}
	t.write(s, events[3])
	t.check(events[0], events[1], events[3])
}

// broken: a destination that is away is no answer about the event; when it is
// back, everything arrives.
func (t *sinkTest) broken() {
	events := t.events(6, "a", "b")
	s := t.open()
	t.write(s, events[:2]...)
	mend := t.h.Break(t.T)
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	n, err := t.attempt(ctx, s, events[2:]...)
	mend()
	if steers(err) {
		t.Errorf("Write while the destination is away: %v; that is no answer about the event", err)
	}
	if err := s.Close(); err != nil {
		t.Logf("Close of the broken sink: %v", err)
	}
	s = t.open()
	t.write(s, events[2+n:]...)
	t.check(events...)
}

// stall: the end of the context ends a Write that waits for an answer.
func (t *sinkTest) stall() {
	before := goroutines()
	events := t.events(3, "a")
	s := t.open()
	resume := t.h.Stall(t.T)
	ctx, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
	defer cancel()
	start := time.Now()
	n, err := s.Write(ctx, events)
	took := time.Since(start)
	resume()
	if took > promptly {
		t.Errorf("Write took %v after the end of its context", took)
	}
	if n != 0 || err == nil || steers(err) {
		t.Errorf("Write without an answer = %d, %v; want 0 and an error that steers nothing", n, err)
	}
	t.write(s, events...)
	t.check(events...)
	if err := s.Close(); err != nil {
		t.Errorf("Close: %v", err)
	}
	if left := waitGoroutines(before); left != "" {
		t.Errorf("goroutines left after Close:\n%s", left)
	}
}

// steers reports whether err says more than that something went wrong.
func steers(err error) bool {
	return errors.Is(err, onewrite.ErrRejected) || errors.Is(err, onewrite.ErrGone) || errors.Is(err, onewrite.ErrFenced)
}
