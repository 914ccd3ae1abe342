package relay_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/dashboard"
	"github.com/onewrite/onewrite/pipeline"
	"github.com/onewrite/onewrite/relay"
)

// TestParked: an event that is refused while others pass is set aside with what
// waits behind it. Its row stays until it is delivered.
func TestParked(t *testing.T) {
	hook := newWebhook(t)
	g := newRig(t, "", hook.line("hook"))
	g.start()
	g.publish("order.placed", "a", "1", 4)
	g.untilCounts("hook", 4, 0, 0) // rows go by batches as they were read: this is one of its own
	sick := g.nextID()
	hook.refuse(sick, http.StatusUnprocessableEntity)
	g.publish("order.placed", "sick", "{}", 2) // the second waits behind the first
	behind := g.ids[5]
	g.publish("order.placed", "b", "2", 4)
	g.untilCounts("hook", 8, 0, 2)
	until(t, "the rows before the parked event to go", g.rowsAre(g.ids[4:]))
	stays(t, "the rows of the parked events are there", g.rowsAre(g.ids[4:]))
	if got := hook.received(); slices.Contains(got, sick) || slices.Contains(got, behind) {
		t.Errorf("the receiver got %v", got)
	}
	var list []dashboard.Parked
	if code, body := g.api(http.MethodGet, "/api/parked/hook", &list); code != http.StatusOK || len(list) != 2 {
		t.Fatalf("%d %s", code, body)
	}
	if p := list[0]; p.ID != sick || p.Attempts != 3 || !p.Holds || !strings.Contains(p.Reason, "422") {
		t.Errorf("parked: %+v", p)
	}
	if p := list[1]; p.ID != behind || p.Attempts != 0 || !strings.Contains(p.Reason, "waits behind") {
		t.Errorf("parked: %+v", p)
	}

	// Retried while it is still refused, it stays where it is.
	if err := g.relay.Retry(t.Context(), "hook", list[0].Ref, nil); err != nil {
		t.Fatal(err)
	}
	stays(t, "what is refused again is parked", func() bool {
		d, _ := g.destination("hook")
		return d.Delivered == 8 && d.Parked == 2 && d.Pending == 0
	})
	hook.refuse(sick, 0)
	if err := g.relay.Retry(t.Context(), "hook", list[0].Ref, nil); err != nil {
		t.Fatal(err)
	}
	g.untilCounts("hook", 10, 0, 0)
	if got := hook.received(); len(got) != 10 || slices.Index(got, sick) > slices.Index(got, behind) {
		t.Errorf("the receiver got %v", got)
	}
	until(t, "the rows to go", g.rowsAre(nil))
	if err := g.relay.Retry(t.Context(), "hook", list[0].Ref, nil); err == nil || !strings.Contains(err.Error(), "onewrite parked list hook") {
		t.Errorf("retry of what is not parked: %v", err)
	}
}

// TestParkedReasons: what is shown of a parked event is the answer to its newest try, and
// behind what it waits now, after a restart too, and when its destination is out of the file.
func TestParkedReasons(t *testing.T) {
	hook := newWebhook(t)
	g := newRig(t, "", hook.line("hook"))
	g.start()
	g.publish("order.placed", "a", "1", 2)
	g.untilCounts("hook", 2, 0, 0)
	for i := range 2 {
		hook.refuse(fmt.Sprintf("00000000-0000-4000-8000-%012d", len(g.ids)+1+i), http.StatusUnprocessableEntity)
	}
	g.publish("order.placed", "sick", "{}", 3)
	g.publish("order.placed", "b", "2", 2)
	g.untilCounts("hook", 4, 0, 3)
	first, second, third := g.ids[2], g.ids[3], g.ids[4]
	shown := func(n int) (list []dashboard.Parked) {
		t.Helper()
		if code, body := g.api(http.MethodGet, "/api/parked/hook", &list); code != http.StatusOK || len(list) != n {
			t.Fatalf("%d %s", code, body)
		}
		return list
	}
	list := shown(3)
	if p := list[1]; p.ID != second || p.Reason != "waits behind "+first || p.Attempts != 0 || p.RefusedAt != nil {
		t.Errorf("parked behind: %+v", p)
	}
	if err := g.relay.Skip(t.Context(), "hook", list[0].Ref); err != nil {
		t.Fatal(err)
	}
	until(t, "the next one to be refused itself", func() bool { return shown(2)[0].RefusedAt != nil })
	refused := func(attempts int) {
		t.Helper()
		list := shown(2)
		if p := list[0]; p.ID != second || !strings.Contains(p.Reason, "422") || p.Attempts != attempts || p.RefusedAt == nil {
			t.Errorf("refused again: %+v", p)
		}
		if p := list[1]; p.ID != third || p.Reason != "waits behind "+second || p.Attempts != 0 {
			t.Errorf("behind it: %+v", p)
		}
	}
	refused(1)
	if err := g.relay.Retry(t.Context(), "hook", list[1].Ref, nil); err != nil {
		t.Fatal(err)
	}
	until(t, "it to be tried once more", func() bool { return shown(2)[0].Attempts == 2 })
	g.stop()
	g.start()
	refused(2)
	g.stop()
	g.write(file("good", "good.jsonl"))
	g.start()
	if p := shown(2)[0]; !strings.Contains(p.Reason, "422") || p.Attempts != 2 || p.RefusedAt == nil {
		t.Errorf("of a destination that is out of the file: %+v", p)
	}
	g.stop()
	g.write(hook.line("hook"))
	hook.refuse(second, 0)
	g.start()
	if err := g.relay.Retry(t.Context(), "hook", 0, nil); err != nil {
		t.Fatal(err)
	}
	g.untilCounts("hook", 6, 0, 0)
}

// TestRetryWithPayload: a parked event is delivered with another payload, under its id;
// refused again, it is parked as it was.
func TestRetryWithPayload(t *testing.T) {
	hook := newWebhook(t)
	g := newRig(t, "", hook.line("hook"), "all: {type: file, path: all.jsonl}")
	g.start()
	g.publish("order.placed", "k", `{"n":1}`, 1)
	hook.refuse(g.nextID(), http.StatusUnprocessableEntity)
	g.publish("order.placed", "sick", `{"n":"two"}`, 1)
	g.publish("order.placed", "k", `{"n":3}`, 3)
	g.untilCounts("hook", 4, 0, 1)
	sick := g.ids[1]
	list, err := g.relay.Parked(t.Context(), "hook", 0, 10)
	if err != nil || len(list) != 1 {
		t.Fatalf("%v %v", list, err)
	}
	ref := list[0].Ref
	for payload, want := range map[string]string{"no json": "is not JSON", strings.Repeat("1", 2<<20): "more than max_event"} {
		if err := g.relay.Retry(t.Context(), "hook", ref, []byte(payload)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.20s: %v, want %q", payload, err, want)
		}
	}
	if code, body := g.post("/api/parked/hook/retry?ref="+strconv.FormatUint(ref, 10), `{"n":"worse"}`); code != http.StatusOK {
		t.Fatalf("%d %s", code, body)
	}
	until(t, "the refusal", func() bool { return hook.asked(sick) == `{"n":"worse"}` })
	stays(t, "what is refused again is parked", func() bool {
		d, _ := g.destination("hook")
		return d.Delivered == 4 && d.Parked == 1 && d.Pending == 0
	})
	if list, err = g.relay.Parked(t.Context(), "hook", 0, 10); err != nil || len(list) != 1 || string(list[0].Message.Data) != `{"n":"two"}` {
		t.Errorf("parked: %+v, %v", list, err)
	}
	hook.refuse(sick, 0)
	if code, body := g.post("/api/parked/hook/retry", `{"n":2}`); code != http.StatusBadRequest {
		t.Errorf("a payload for all: %d %s", code, body)
	}
	if code, body := g.post("/api/parked/hook/retry?ref="+strconv.FormatUint(ref, 10), `{"n":2}`); code != http.StatusOK {
		t.Fatalf("%d %s", code, body)
	}
	g.untilCounts("hook", 5, 0, 0)
	if got := hook.asked(sick); got != `{"n":2}` {
		t.Errorf("the receiver got %s", got)
	}
	until(t, "the rows to go", g.rowsAre(nil))
}

// TestSkip: a parked event that nobody needs goes, undelivered and counted.
func TestSkip(t *testing.T) {
	hook := newWebhook(t)
	g := newRig(t, "", hook.line("hook"))
	g.publish("order.placed", "", "1", 3)
	hook.refuse(g.ids[1], http.StatusUnprocessableEntity)
	g.start()
	g.untilCounts("hook", 2, 0, 1)
	list, err := g.relay.Parked(t.Context(), "hook", 0, 10)
	if err != nil || len(list) != 1 {
		t.Fatalf("%v %v", list, err)
	}
	if err := g.relay.Skip(t.Context(), "hook", list[0].Ref); err != nil {
		t.Fatal(err)
	}
	g.untilCounts("hook", 2, 0, 0)
	if d, _ := g.destination("hook"); d.Skipped != 1 {
		t.Errorf("%+v", d)
	}
	until(t, "the rows to go", g.rowsAre(nil))
}

// TestReplay delivers again with the same ids, in order, and then goes on.
func TestReplay(t *testing.T) {
	hook := newWebhook(t)
	g := newRig(t, "", hook.line("hook"))
	g.start()
	g.publish("order.placed", "k", "1", 5)
	g.untilCounts("hook", 5, 0, 0)
	if err := g.relay.Replay(t.Context(), "hook", onewrite.From{}); err != nil {
		t.Fatal(err)
	}
	g.untilCounts("hook", 10, 0, 0)
	g.publish("order.placed", "k", "2", 1)
	g.untilCounts("hook", 11, 0, 0)
	if got := hook.received(); !slices.Equal(got, slices.Concat(g.ids[:5], g.ids)) {
		t.Errorf("the receiver got %v", got)
	}
	until(t, "the rows to go", g.rowsAre(nil))
}

// TestUnknownDestination: the errors name those that there are.
func TestUnknownDestination(t *testing.T) {
	g := newRig(t, "", file("one", "one.jsonl"))
	g.start()
	_, parked := g.relay.Parked(t.Context(), "two", 0, 1)
	for what, err := range map[string]error{
		"parked": parked, "retry": g.relay.Retry(t.Context(), "two", 1, nil), "skip": g.relay.Skip(t.Context(), "two", 1), "replay": g.relay.Replay(t.Context(), "two", onewrite.From{}),
	} {
		if err == nil || !strings.Contains(err.Error(), `"two"`) || !strings.Contains(err.Error(), "one") {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// TestCap: a destination that stays dead does not fill the application's
// database for ever; that the bus has the only copy then is said aloud.
func TestCap(t *testing.T) {
	g := newRig(t, ", keep: 1MB", file("good", "good.jsonl"), dead(t, "dead"))
	g.publish("order.placed", "", strings.Repeat("x", 100_000), 5)
	g.start()
	g.untilCounts("good", 5, 0, 0)
	stays(t, "below the cap the rows stay", g.rowsAre(g.ids))
	if w := g.status().Warnings; len(w) != 0 {
		t.Errorf("warnings: %v", w)
	}
	g.publish("order.placed", "", strings.Repeat("x", 100_000), 15)
	until(t, "the outbox to be free", g.rowsAre(nil))
	var w []string
	until(t, "a warning", func() bool { w = g.status().Warnings; return len(w) > 0 })
	if len(w) != 1 || !strings.Contains(w[0], "source shop: 20 events") || !strings.Contains(w[0], "only copy") {
		t.Errorf("warnings: %v", w)
	}
	g.untilCounts("dead", 0, 20, 0) // and nothing is lost
	g.untilCounts("good", 20, 0, 0)
}

// busy runs a relay, and stops it while everything is under way: a stream, a
// destination that does not answer, events that come.
func busy(t *testing.T) {
	hook := newWebhook(t)
	g := newRig(t, "", file("good", "good.jsonl"), dead(t, "dead"), hook.line("hook"))
	g.start()
	g.publish("order.placed", "", "1", 20)
	g.untilCounts("hook", 20, 0, 0)
	ctx, cancel := context.WithTimeout(t.Context(), soon)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+g.addr+"/api/tail?from=beginning", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	lines := bufio.NewScanner(resp.Body)
	for i := range 20 {
		if !lines.Scan() || !strings.Contains(lines.Text(), g.ids[i]) {
			t.Fatalf("tail shows %q (%v), want %s", lines.Text(), lines.Err(), g.ids[i])
		}
	}
	g.publish("order.placed", "", "2", 20)
	g.stop()
	for lines.Scan() { // the server ends it
	}
	if ctx.Err() != nil {
		t.Error("the relay has stopped and its stream goes on")
	}
	g.db.Close()
	hook.Close()
	http.DefaultClient.CloseIdleConnections()
}

// ours are the goroutines that run our code or that of the embedded bus.
func ours() (found []string) {
	stacks := make([]byte, 4<<20)
	stacks = stacks[:runtime.Stack(stacks, true)]
	for _, g := range strings.Split(string(stacks), "\n\n") {
		if !strings.Contains(g, "testing.tRunner") && (strings.Contains(g, "onewrite") || strings.Contains(g, "nats-io")) {
			found = append(found, g)
		}
	}
	return found
}

// TestNothingRemains: Run returns when its context ends, whatever is under way,
// and leaves no goroutine.
func TestNothingRemains(t *testing.T) {
	defer func() {
		if t.Failed() {
			t.Log(strings.Join(ours(), "\n\n"))
		}
	}()
	busy(t) // what libraries start once, stays
	until(t, "our goroutines to end", func() bool { return len(ours()) == 0 })
	before := runtime.NumGoroutine()
	busy(t)
	until(t, "our goroutines to end", func() bool { return len(ours()) == 0 })
	until(t, "all goroutines to end", func() bool { return runtime.NumGoroutine() <= before })
}

// TestStopIsClean: what was delivered is not delivered again.
func TestStopIsClean(t *testing.T) {
	hook := newWebhook(t)
	g := newRig(t, "", file("one", "one.jsonl"), hook.line("hook"))
	for range 3 {
		g.start()
		g.publish("order.placed", "k", "1", 30)
		until(t, "something to be delivered", func() bool { return len(hook.received()) > 0 })
		g.stop()
	}
	g.start()
	until(t, "all to be delivered", g.fileIs("one.jsonl", g.ids))
	until(t, "all to be delivered in order", func() bool { return slices.Equal(hook.received(), g.ids) })
}

// TestCannotStart: the error is of use.
func TestCannotStart(t *testing.T) {
	g := newRig(t, "", file("one", "one.jsonl"))
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	g.head = strings.Replace(g.head, "127.0.0.1:0", l.Addr().String(), 1)
	g.write(file("one", "one.jsonl"))
	err = relay.Run(t.Context(), g.load(), relay.Options{})
	if err == nil || !strings.Contains(err.Error(), "--listen") {
		t.Errorf("the port is taken, but: %v", err)
	}
	r := relay.New(g.load(), relay.Options{})
	if _, err := r.Reload(t.Context(), nil); err == nil || !strings.Contains(err.Error(), "restart") {
		t.Errorf("reload without a file: %v", err)
	}
}

// TestListenOption: the option goes before the file, and two relays on one bus
// folder are refused.
func TestListenOption(t *testing.T) {
	g := newRig(t, "", file("one", "one.jsonl"))
	g.start()
	err := relay.Run(t.Context(), g.load(), relay.Options{})
	if err == nil || errors.Is(err, context.Canceled) {
		t.Errorf("a second one on the same folder: %v", err)
	}
}

// sum is what the numbers of a destination must add up to.
func sum(d dashboard.Destination) uint64 {
	return d.Delivered + d.Pending + d.Parked + d.Filtered + d.Skipped
}

// samples is what sample saw.
type samples struct {
	n, inexact int
	wrong      []string
}

// settle is how long an event may be in no number of a destination: the one that
// does not want it counts it a moment later. In two of them it may never be.
const settle = 5 * time.Second

// sample looks at the status again and again: no event may be there twice, nor
// be missing for longer than settle.
func sample(r *relay.Relay, names []string, committed *atomic.Uint64, end <-chan struct{}) (out samples) {
	off := map[string]time.Time{} // since when a destination's numbers are off
	for ; ; out.n++ {
		select {
		case <-end:
			return out
		default:
		}
		s := r.Status(context.Background())
		most := committed.Load()
		for _, name := range names {
			d, events := s.Destinations[name], s.Sources["shop"].Events
			if sum(d) > most {
				out.wrong = append(out.wrong, fmt.Sprintf("%d committed, but %s adds up to %d: %+v", most, name, sum(d), d))
			}
			if sum(d) >= events {
				delete(off, name)
				continue
			}
			out.inexact++
			if off[name].IsZero() {
				off[name] = time.Now()
			}
			if time.Since(off[name]) > settle {
				out.wrong = append(out.wrong, fmt.Sprintf("%d events taken, %d committed, but %s adds up to %d: %+v", events, most, name, sum(d), d))
			}
		}
	}
}

// TestNumbersAddUp: what was committed is delivered, pending, parked, filtered
// or skipped, for every destination, while load runs and exactly when it is over.
func TestNumbersAddUp(t *testing.T) {
	hook := newWebhook(t)
	g := newRig(t, "", file("all", "all.jsonl"), hook.line("hook"), dead(t, "dead"), `some: {type: file, path: some.jsonl, topics: ["order.>"]}`)
	names := []string{"all", "hook", "dead", "some"}
	g.start()
	const rounds = 300
	var committed atomic.Uint64
	loaded, sampled := make(chan struct{}), make(chan samples)
	go func() { sampled <- sample(g.relay, names, &committed, loaded) }()
	for i := range rounds {
		topic, key := "order.placed", ""
		if i%3 == 0 {
			topic = "stock.moved"
		}
		if i%2 == 0 {
			key = "k"
		}
		if i%10 == 1 { // of no key, so that only this one is parked
			hook.refuse(g.nextID(), http.StatusUnprocessableEntity)
		}
		committed.Add(1) // before: a sample must never see more than this
		g.publish(topic, key, "1", 1)
	}
	close(loaded)
	seen := <-sampled
	t.Logf("%d samples, %d numbers on their way", seen.n, seen.inexact)
	if seen.n < 20 || len(seen.wrong) > 0 {
		t.Errorf("%d samples, %d of them wrong: %.1000q", seen.n, len(seen.wrong), seen.wrong)
	}
	g.untilCounts("all", rounds, 0, 0)
	g.untilCounts("dead", 0, rounds, 0)
	g.untilCounts("hook", rounds-rounds/10, 0, rounds/10)
	g.untilCounts("some", rounds-rounds/3, 0, 0)
	if d, _ := g.destination("some"); d.Filtered != rounds/3 {
		t.Errorf("filtered: %+v", d)
	}
	s := g.status()
	if s.Sources["shop"].Events != rounds || s.Sources["shop"].State != pipeline.OK {
		t.Errorf("source: %+v", s.Sources["shop"])
	}
	for _, name := range names {
		if sum(s.Destinations[name]) != rounds {
			t.Errorf("%s adds up to %d, want %d: %+v", name, sum(s.Destinations[name]), rounds, s.Destinations[name])
		}
	}
}
