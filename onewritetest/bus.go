package onewritetest

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"runtime"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/onewrite/onewrite"
)

// Bus is what [TestBus] tests: a bus that can be closed and opened again.
type Bus interface {
	onewrite.Bus
	// Close gives up everything, so that the same state can be opened again.
	Close() error
}

// busWait bounds every wait of the suite.
const busWait = 20 * time.Second

// TestBus tests a bus against the contract of [onewrite.Bus]. open opens the bus
// that keeps its state under dir: the same dir is the same bus, another dir is
// another one. The suite closes what it opens and opens a dir again after that.
func TestBus(t *testing.T, open func(t *testing.T, dir string) Bus) {
	for _, c := range []struct {
		name string
		test func(*busTest)
	}{
		{"a new bus is empty", (*busTest).empty},
		{"events come back as they were", (*busTest).faithful},
		{"positions survive a restart", (*busTest).restart},
		{"a stale position is fenced and leaves no trace", (*busTest).fenced},
		{"large batches are whole", (*busTest).large},
		{"several logs come each in its order", (*busTest).severalLogs},
		{"what is done is not handed out again", (*busTest).done},
		{"topics select, and what does not match is reported as passed", (*busTest).topics},
		{"a new name begins where it asks to", (*busTest).from},
		{"a log may appear later", (*busTest).lateLog},
		{"cursors move by compare and swap", (*busTest).cursor},
		{"a name has one owner, the newest", (*busTest).owner},
		{"parking is idempotent and keeps the order", (*busTest).parking},
		{"an onlooker owns nothing", (*busTest).onlooker},
		{"pending counts what was not handed out", (*busTest).pending},
		{"Read ends with its context", (*busTest).readEnds},
		{"batches of every size are read whole while they are written", (*busTest).concurrent},
	} {
		t.Run(c.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 3*busWait)
			defer cancel()
			b := &busTest{T: t, ctx: ctx, open: open, dir: t.TempDir(), upto: map[onewrite.Subscription]map[string]uint64{}}
			b.reopen()
			c.test(b)
			b.close()
		})
	}
}

type busTest struct {
	*testing.T
	ctx  context.Context
	open func(t *testing.T, dir string) Bus
	dir  string
	bus  Bus
	n    int // events made
	upto map[onewrite.Subscription]map[string]uint64
}

func (t *busTest) reopen() {
	t.Helper()
	t.close()
	t.bus = t.open(t.T, t.dir)
}

func (t *busTest) close() {
	t.Helper()
	if t.bus == nil {
		return
	}
	if err := t.bus.Close(); err != nil {
		t.Fatalf("close the bus: %v", err)
	}
	t.bus = nil
}

// batch makes n events of a source that follow one another from position
// "<source>-<first>"; every third key repeats.
func (t *busTest) batch(source, topic string, n int) onewrite.Batch {
	var b onewrite.Batch
	first := t.n
	for range n {
		t.n++
		b.Events = append(b.Events, onewrite.Event{
			ID: "id-" + strconv.Itoa(t.n), Source: source, Topic: topic, Type: topic,
			Key: "k" + strconv.Itoa(t.n%3), Seq: fmt.Sprintf("%08d", t.n),
			Time:        time.Date(2024, 2, 3, 4, 5, 6, 789000, time.UTC),
			ContentType: "application/json", Data: []byte(`{"n":` + strconv.Itoa(t.n) + `}`),
		})
	}
	b.PosAt = func(i int) onewrite.Pos { return onewrite.Pos(source + "-" + strconv.Itoa(first+i+1)) }
	b.Pos = b.PosAt(n - 1)
	return b
}

func (t *busTest) append(source string, prev onewrite.Pos, b onewrite.Batch) (onewrite.Pos, uint64) {
	t.Helper()
	last, err := t.bus.Append(t.ctx, source, prev, b)
	if err != nil {
		t.Fatalf("append %d events: %v", len(b.Events), err)
	}
	return b.Pos, last
}

func (t *busTest) position(source string, want onewrite.Pos, wantLast uint64) {
	t.Helper()
	pos, last, err := t.bus.Position(t.ctx, source)
	if err != nil {
		t.Fatalf("position: %v", err)
	}
	if pos != want || last != wantLast {
		t.Fatalf("position of %s = %q at %d, want %q at %d", source, pos, last, want, wantLast)
	}
}

func (t *busTest) subscribe(in onewrite.Interest) onewrite.Subscription {
	t.Helper()
	sub, err := t.bus.Subscribe(t.ctx, in)
	if err != nil {
		t.Fatalf("subscribe %q: %v", in.Name, err)
	}
	return sub
}

func (t *busTest) closeSub(sub onewrite.Subscription) {
	t.Helper()
	if err := sub.Close(); err != nil {
		t.Fatalf("close the subscription: %v", err)
	}
}

// note remembers what a read reported as passed.
func (t *busTest) note(sub onewrite.Subscription, upto map[string]uint64) {
	if t.upto[sub] == nil {
		t.upto[sub] = map[string]uint64{}
	}
	for log, offset := range upto {
		if offset < t.upto[sub][log] {
			t.Errorf("%s was passed up to %d, and now up to %d", log, t.upto[sub][log], offset)
		}
		t.upto[sub][log] = offset
	}
}

// read reads until n messages have come.
func (t *busTest) read(sub onewrite.Subscription, n int) []onewrite.Message {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.ctx, busWait)
	defer cancel()
	var all []onewrite.Message
	for len(all) < n {
		msgs, upto, err := sub.Read(ctx)
		if err != nil {
			t.Fatalf("read after %d of %d messages: %v", len(all), n, err)
		}
		t.note(sub, upto)
		all = append(all, msgs...)
	}
	if len(all) > n {
		t.Fatalf("read %d messages, want %d; the first too many is %s", len(all), n, all[n].ID)
	}
	return all
}

// passes reads until the log is passed up to offset; no message may come.
func (t *busTest) passes(sub onewrite.Subscription, log string, offset uint64) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.ctx, busWait)
	defer cancel()
	for t.upto[sub][log] < offset {
		msgs, upto, err := sub.Read(ctx)
		if err != nil {
			t.Fatalf("read until %s is passed up to %d: %v", log, offset, err)
		}
		if len(msgs) > 0 {
			t.Fatalf("a message came that should not: %s at %d", msgs[0].ID, msgs[0].Offset)
		}
		t.note(sub, upto)
	}
	if t.upto[sub][log] > offset {
		t.Fatalf("%s is passed up to %d, beyond its end %d", log, t.upto[sub][log], offset)
	}
}

// nothing checks that no message comes for a while.
func (t *busTest) nothing(sub onewrite.Subscription) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.ctx, 400*time.Millisecond)
	defer cancel()
	for {
		msgs, upto, err := sub.Read(ctx)
		t.note(sub, upto)
		if err != nil {
			if ctx.Err() == nil {
				t.Fatalf("read: %v", err)
			}
			return
		}
		if len(msgs) > 0 {
			t.Fatalf("a message came that should not: %s at %d", msgs[0].ID, msgs[0].Offset)
		}
	}
}

func ids(msgs []onewrite.Message) []string {
	var s []string
	for _, m := range msgs {
		s = append(s, m.ID)
	}
	return s
}

func eventIDs(events []onewrite.Event) []string {
	var s []string
	for _, e := range events {
		s = append(s, e.ID)
	}
	return s
}

func (t *busTest) same(got []onewrite.Message, want []onewrite.Event) {
	t.Helper()
	if g, w := ids(got), eventIDs(want); !slices.Equal(g, w) {
		t.Fatalf("got events %v\nwant       %v", g, w)
	}
}

func (t *busTest) is(err, want error, what string) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Fatalf("%s: error %v, want one that is %v", what, err, want)
	}
}

func (t *busTest) empty() {
	t.position("shop", "", 0)
	sub := t.subscribe(onewrite.Interest{Name: "d", Sources: []string{"shop"}})
	c, epoch := sub.Cursor()
	if len(c.Logs) != 0 || epoch == 0 {
		t.Fatalf("cursor of a new name = %+v, epoch %d; want an empty one and an epoch", c, epoch)
	}
	t.nothing(sub)
	t.closeSub(sub)
}

func (t *busTest) faithful() {
	events := []onewrite.Event{
		{ID: "plain", Topic: "order.placed", Type: "order.placed", Key: "a", Seq: "0001", ContentType: "application/json", Data: []byte(`{"a": "b"}`), Time: time.Date(2024, 1, 2, 3, 4, 5, 678900000, time.UTC)},
		{ID: "odd", Topic: "order.placed", Type: "Ünïcode type", Key: "key \"x\"\r\n\t%41 ✓", ContentType: "text/plain; charset=utf-8", Data: []byte("line\r\nline ✓"), Time: time.Unix(1, 0).UTC(),
			Header: map[string]string{"traceparent": "00-1-2-01", "X-Request-Id": "r 1", "x-odd": " padded ", "x-break": "a\r\nNats-Rollup: all", "Nats-Rollup": "all", "x-ünï": "✓", "x-uni": "✓", "empty": ""}},
		{ID: "tombstone", Topic: "order.placed", Type: "order.placed", Key: "a"},
		{ID: "no-bytes", Topic: "order.placed", Type: "order.placed", ContentType: "application/octet-stream", Data: []byte{}},
		{ID: "binary", Topic: "public.My Table.*", Type: "insert", Key: `{"id":1}`, Tx: onewrite.Tx{ID: "77", Index: 3, Last: true}, ContentType: "application/octet-stream", Data: []byte{0, 1, 0xff, '\r', '\n'}},
		{ID: "wide", Topic: "order.placed", Type: "order.placed", Key: "w", ContentType: "text/plain", Data: []byte("x"), Header: map[string]string{"x-wide": string(make([]byte, 70000))}},
	}
	want := make([]onewrite.Event, len(events)) // the bus has no hand on these
	for i := range events {
		events[i].Source = "shop"
		want[i] = cloneEvent(events[i])
	}
	// One by one, a few at once, and as a batch.
	prev, _ := t.append("shop", "", onewrite.Batch{Events: events[:1], Pos: `{"p": "1 %✓"}`})
	few := onewrite.Batch{Events: events[1:4], Pos: "4", PosAt: func(i int) onewrite.Pos { return onewrite.Pos(strconv.Itoa(i + 2)) }}
	prev, _ = t.append("shop", prev, few)
	_, last := t.append("shop", prev, onewrite.Batch{Events: events[4:], Pos: "6"})
	for _, name := range []string{"live", "restarted"} {
		sub := t.subscribe(onewrite.Interest{Name: name, Sources: []string{"shop"}})
		t.asWere(t.read(sub, len(events)), want, last)
		t.closeSub(sub)
		t.reopen()
	}
	t.position("shop", "6", last)
	if !reflect.DeepEqual(events, want) {
		t.Error("Append changed the events of its caller")
	}
}

func (t *busTest) asWere(got []onewrite.Message, events []onewrite.Event, last uint64) {
	t.Helper()
	for i, m := range got {
		if m.Log != "shop" || m.Offset != last-uint64(len(events)-1-i) {
			t.Errorf("message %d is in log %q at %d", i, m.Log, m.Offset)
		}
		if !m.Time.Equal(events[i].Time) {
			t.Errorf("event %s: time %v, want %v", m.ID, m.Time, events[i].Time)
		}
		e := m.Event
		e.Time = events[i].Time
		if !reflect.DeepEqual(e, events[i]) {
			t.Errorf("event %s came back as\n%+v\nwant\n%+v", m.ID, e, events[i])
		}
	}
}

func (t *busTest) restart() {
	one := t.batch("shop", "a.b", 3)
	pos, last := t.append("shop", "", one)
	other, otherLast := t.append("stock", "", t.batch("stock", "a.b", 1))
	two := t.batch("shop", "a.b", 40)
	t.reopen()
	t.position("shop", pos, last)
	t.position("stock", other, otherLast)
	pos, last = t.append("shop", pos, two)
	t.reopen()
	t.position("shop", pos, last)
	sub := t.subscribe(onewrite.Interest{Name: "d", Sources: []string{"shop"}})
	t.same(t.read(sub, 43), append(one.Events, two.Events...))
	t.closeSub(sub)
}

func (t *busTest) fenced() {
	pos, last := t.append("shop", "", t.batch("shop", "a", 2))
	for _, n := range []int{1, 2, 40} {
		for _, stale := range []onewrite.Pos{"", "elsewhere"} {
			_, err := t.bus.Append(t.ctx, "shop", stale, t.batch("shop", "a", n))
			t.is(err, onewrite.ErrFenced, fmt.Sprintf("append %d events behind %q", n, stale))
		}
	}
	t.position("shop", pos, last)
	next := t.batch("shop", "a", 1)
	pos, last = t.append("shop", pos, next)
	t.position("shop", pos, last)
	sub := t.subscribe(onewrite.Interest{Name: "d", Sources: []string{"shop"}})
	if got := t.read(sub, 3); got[2].ID != next.Events[0].ID {
		t.Fatalf("after the fence came %s", got[2].ID)
	}
	t.closeSub(sub)
}

func (t *busTest) large() {
	var all []onewrite.Event
	pos := onewrite.Pos("")
	for _, n := range []int{1, 12, 13, 100, onewrite.MaxBatch} {
		for _, whole := range []bool{false, true} {
			b := t.batch("shop", "a", n)
			if whole {
				b.PosAt = nil
			}
			var last uint64
			pos, last = t.append("shop", pos, b)
			all = append(all, b.Events...)
			if last != uint64(len(all)) {
				t.Fatalf("after %d events the last offset is %d", len(all), last)
			}
			t.position("shop", pos, last)
		}
	}
	_, err := t.bus.Append(t.ctx, "shop", pos, t.batch("shop", "a", onewrite.MaxBatch+1))
	t.is(err, onewrite.ErrRejected, "append too many events")
	nameless := t.batch("shop", "a", 3)
	nameless.Events[1].Type = ""
	_, err = t.bus.Append(t.ctx, "shop", pos, nameless)
	t.is(err, onewrite.ErrRejected, "append an event without a type, which no reader can make an event of again")
	t.position("shop", pos, uint64(len(all)))
	for _, name := range []string{"live", "restarted"} {
		sub := t.subscribe(onewrite.Interest{Name: name, Sources: []string{"shop"}})
		t.same(t.read(sub, len(all)), all)
		t.closeSub(sub)
		t.reopen()
	}
}

func (t *busTest) severalLogs() {
	want := map[string][]onewrite.Event{}
	pos := map[string]onewrite.Pos{}
	for i := range 20 {
		for _, source := range []string{"shop", "stock", "other"} {
			b := t.batch(source, "a", 1+i%4)
			pos[source], _ = t.append(source, pos[source], b)
			want[source] = append(want[source], b.Events...)
		}
	}
	sub := t.subscribe(onewrite.Interest{Name: "d", Sources: []string{"shop", "stock"}})
	got := map[string][]onewrite.Message{}
	for _, m := range t.read(sub, len(want["shop"])+len(want["stock"])) {
		got[m.Log] = append(got[m.Log], m)
	}
	t.same(got["shop"], want["shop"])
	t.same(got["stock"], want["stock"])
	t.nothing(sub)
	t.closeSub(sub)
}

func (t *busTest) done() {
	b := t.batch("shop", "a", 30)
	t.append("shop", "", b)
	in := onewrite.Interest{Name: "d", Sources: []string{"shop"}}
	sub := t.subscribe(in)
	t.read(sub, 30)
	c := onewrite.Cursor{Delivered: 20, Filtered: 1, Skipped: 2, Logs: map[string]onewrite.LogCursor{
		"shop": {Floor: 10, Done: []onewrite.Span{{From: 12, To: 14}, {From: 20, To: 20}, {From: 28, To: 30}}},
	}}
	if err := sub.Commit(t.ctx, c); err != nil {
		t.Fatalf("commit: %v", err)
	}
	t.closeSub(sub)
	t.reopen()
	sub = t.subscribe(in)
	if got, _ := sub.Cursor(); !reflect.DeepEqual(got, c) {
		t.Fatalf("the cursor came back as %+v, want %+v", got, c)
	}
	want := slices.Concat(b.Events[10:11], b.Events[14:19], b.Events[20:27])
	t.same(t.read(sub, len(want)), want)
	t.passes(sub, "shop", 30)
	t.closeSub(sub)
}

func (t *busTest) topics() {
	pos := onewrite.Pos("")
	var want []onewrite.Event
	for _, topic := range []string{"order.placed", "order", "order.eu.placed", "payment.made", "x", "order.placed"} {
		b := t.batch("shop", topic, 1)
		pos, _ = t.append("shop", pos, b)
		if topic == "order.placed" || topic == "payment.made" {
			want = append(want, b.Events...)
		}
	}
	some := t.subscribe(onewrite.Interest{Name: "some", Sources: []string{"shop"}, Topics: []string{"order.*", "payment.>", "order.placed"}})
	t.same(t.read(some, len(want)), want)
	eu := t.subscribe(onewrite.Interest{Name: "eu", Sources: []string{"shop"}, Topics: []string{"*.eu.>"}})
	if got := t.read(eu, 1); got[0].Topic != "order.eu.placed" || got[0].Offset != 3 {
		t.Fatalf("got %s at %d", got[0].Topic, got[0].Offset)
	}
	t.passes(eu, "shop", 6)
	none := t.subscribe(onewrite.Interest{Name: "none", Sources: []string{"shop"}, Topics: []string{"never.>", "nor.this"}})
	t.passes(none, "shop", 6)
	_, last := t.append("shop", pos, t.batch("shop", "x", 50))
	t.passes(none, "shop", last)
	t.passes(eu, "shop", last)
	t.passes(some, "shop", last)
	for _, sub := range []onewrite.Subscription{some, eu, none} {
		t.closeSub(sub)
	}
}

func (t *busTest) from() {
	old := t.batch("shop", "a", 2)
	pos, last := t.append("shop", "", old)
	for ms := time.Now().UnixMilli(); time.Now().UnixMilli() == ms; { // a bus may store no more than that
		runtime.Gosched()
	}
	mark := time.Now()
	recent := t.batch("shop", "a", 3)
	pos, _ = t.append("shop", pos, recent)
	now := t.subscribe(onewrite.Interest{Name: "now", Sources: []string{"shop", "stock"}, From: onewrite.From{Now: true}})
	since := t.subscribe(onewrite.Interest{Name: "since", Sources: []string{"shop"}, From: onewrite.From{Time: mark}})
	if c, _ := since.Cursor(); c.Logs["shop"].Floor != last {
		t.Fatalf("a subscription from a time begins behind %d, want %d", c.Logs["shop"].Floor, last)
	}
	t.same(t.read(since, 3), recent.Events)
	t.closeSub(since)
	// Where a name begins is stored when it is first seen, not when it commits.
	t.closeSub(now)
	news := t.batch("shop", "a", 1)
	t.append("shop", pos, news)
	t.append("stock", "", t.batch("stock", "a", 1))
	t.reopen()
	now = t.subscribe(onewrite.Interest{Name: "now", Sources: []string{"shop", "stock"}, From: onewrite.From{Now: true}})
	for _, m := range t.read(now, 2) {
		if m.Log == "shop" && m.ID != news.Events[0].ID {
			t.Fatalf("from now came %s", m.ID)
		}
	}
	t.closeSub(now)
	later := t.subscribe(onewrite.Interest{Name: "later", Sources: []string{"shop"}, From: onewrite.From{Time: time.Now().Add(time.Hour)}})
	t.nothing(later)
	t.closeSub(later)
}

func (t *busTest) lateLog() {
	sub := t.subscribe(onewrite.Interest{Name: "d", Sources: []string{"shop", "stock"}})
	t.nothing(sub)
	b := t.batch("stock", "a", 2)
	t.append("stock", "", b)
	t.same(t.read(sub, 2), b.Events)
	t.closeSub(sub)
}
