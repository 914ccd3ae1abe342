package onewritetest

import (
	"context"
	"errors"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/outbox"
)

// order: all that is committed comes once, those of a key in the order of their
// commits, whether it was there before or comes while Read waits.
func (t *sourceTest) order() {
	var all []outbox.Event
	for i := range 12 {
		all = append(all, t.commit(t.events(1+i, "a", "b", "c", "")...)...)
	}
	r := t.open("")
	r.read(len(all))
	kept := make([]onewrite.Event, len(r.events))
	for i, e := range r.events {
		kept[i] = cloneEvent(e)
	}
	for i := range 12 {
		r.during(func() { all = append(all, t.commit(t.events(1+i%3, "a", "b", "c", "")...)...) })
		r.read(len(all))
	}
	for i, e := range kept {
		if !sameEvent(e, r.events[i]) {
			t.Errorf("event %s changed after it was handed over: it is the caller's to keep", e.ID)
		}
	}
	r.done(all)
}

// fidelity: every part of an event arrives as it was written.
func (t *sourceTest) fidelity() {
	es := t.events(10, "k")
	es[0].Payload = []byte(" {\"a\" : \"é\\n\\\"\\\\\"}\n")
	es[1].Payload = []byte("line\r\nline\ttab \\ \"quoted\" '' Grüße 世界 🌍")
	es[2].Payload, es[2].ContentType = []byte{0, 1, 0xff, 0xfe, '\r', '\n'}, "application/octet-stream"
	es[3].Payload = nil
	es[4].Payload = []byte{}
	es[5].Key = "key \"x\" \\ 鍵 100%"
	es[6].Key = ""
	es[7].Type = "com.example.order placed, é"
	es[8].Headers = map[string]string{"tenant": "Ærø & \"Söhne\"", "X-Request-Id": "a; b"}
	es[9].Payload, es[9].ContentType = []byte("looks like text"), "application/x-protobuf"
	t.commit(es...)
	t.open("").done(es)
}

// large: one transaction is more than a batch, and several batches are whole.
func (t *sourceTest) large() {
	large := t.commit(t.events(2*onewrite.MaxBatch+500, "a", "b", "c", "d", "e", "f", "g")...)
	small := t.commit(t.events(7, "a", "h")...)
	t.open("").done(large, small)
}

// uncommitted: nothing is seen before its commit, and nothing that was taken back.
func (t *sourceTest) uncommitted() {
	first := t.commit(t.events(2, "a")...)
	r := t.open("")
	r.read(2)
	t.must(t.begin(t.events(3, "a", "b")...).Rollback(), "rollback")
	kept := t.events(2, "a")
	tx := t.begin(kept[0])
	t.must(tx.Undo(t.ctx, t.events(2, "a", "b")...), "go back to a savepoint")
	t.must(tx.Publish(t.ctx, kept[1]), "publish after a savepoint")
	r.quiet()
	t.end(tx, kept...)
	r = t.open(r.pos)
	r.done(kept)
	r.close()
	// Nor are they found by one who begins anew.
	t.open("").done(first, kept, t.marks())
}

// late: a transaction that took its numbers early and commits late is not passed
// over, and the order of a key is that of the commits.
func (t *sourceTest) late() {
	r := t.open("")
	early := t.events(2, "early")
	tx := t.begin(early...)
	other := t.begin(t.events(1, "never")...)
	first := t.commit(t.events(3, "shared", "b")...)
	r.read(3)
	// tx has waited for the lock of the key until now.
	second := t.events(2, "shared")
	t.must(tx.Publish(t.ctx, second...), "publish")
	third := t.commit(t.events(1, "b")...)
	r.read(4)
	r.close()
	r = t.open(r.pos) // a restart while it is open
	fourth := t.commit(t.events(1, "b")...)
	r.read(1)
	t.end(tx, append(early, second...)...)
	t.must(other.Rollback(), "rollback")
	r.read(5)
	fifth := t.commit(t.events(2, "shared", "early")...)
	r.done(fourth, early, second, fifth)
	r.close()
	all := t.open("")
	all.read(len(t.wrote))
	t.check(all.events, first, third, fourth, early, second, fifth, t.marks())
	t.again(all.events, r.events)
}

// marks are the events that done committed.
func (t *sourceTest) marks() (es []outbox.Event) {
	for _, w := range t.wrote {
		if w.Key == "mark" {
			es = append(es, w.Event)
		}
	}
	return es
}

// resume: a source that is opened at any place that was given out goes on just
// there, with the same events, also in the middle of a batch and when more was
// committed meanwhile.
func (t *sourceTest) resume() {
	for i := range 5 {
		t.commit(t.events(1+i, "a", "b", "")...)
	}
	t.commit(t.events(onewrite.MaxBatch+200, "a", "b", "c", "d")...)
	first := t.open("")
	first.read(len(t.wrote))
	first.close()
	end := len(first.events)
	for _, n := range []int{0, 1, 2, 6, 15, 500, onewrite.MaxBatch, onewrite.MaxBatch + 1, end - 1, end} {
		pos := onewrite.Pos("")
		if n > 0 {
			if pos = first.places[n-1]; pos == "" {
				continue // a whole batch
			}
		}
		t.commit(t.events(2, "a", "late")...)
		r := t.open(pos)
		want := maps.Clone(t.wrote)
		for _, e := range first.events[:n] {
			delete(want, e.ID)
		}
		var rest []outbox.Event
		for _, w := range want {
			rest = append(rest, w.Event)
		}
		r.read(len(rest))
		t.check(r.events, rest)
		t.again(r.events, first.events)
		r.close()
		if t.Failed() {
			t.Fatalf("opened after %d of %d events, at %q", n, end, pos)
		}
	}
}

// close: Close acknowledges nothing, and neither does Read.
func (t *sourceTest) close() {
	all := t.commit(t.events(50, "a", "b")...)
	r := t.open("")
	r.read(50)
	r.close()
	second := t.open("")
	second.read(50)
	t.check(second.events, all)
	t.again(second.events, r.events)
	second.close()
	t.open("").done(all)
}

// ack: what is acknowledged may go and nothing else does. It may come late, twice,
// or be an old one, while Read waits and while an application holds its locks.
func (t *sourceTest) ack() {
	for range 3 {
		t.commit(t.events(10, "a", "b", "")...)
	}
	r := t.open("")
	r.read(30)
	at, old := 9, onewrite.Pos("")
	if r.places[at] == "" { // a whole batch
		at = slices.IndexFunc(r.places, func(p onewrite.Pos) bool { return p != "" })
	} else {
		old = r.places[3]
	}
	late := t.events(1, "a")
	tx := t.begin(late...)
	r.during(func() {
		for _, pos := range []onewrite.Pos{r.places[at], r.places[at], old, r.places[at]} {
			if pos != "" {
				r.ack(pos)
			}
		}
		t.end(tx, late...)
	})
	r.read(31)
	rest := r.events[at+1:]
	if held := r.cleanUp(len(rest), atLeisure); held < len(rest) {
		t.Errorf("%d events are held, and %d are not acknowledged", held, len(rest))
	}
	again := t.open(r.places[at])
	again.read(len(rest))
	t.check(again.events, t.written(rest))
	t.again(again.events, r.events)
	again.ack(again.pos)
	if held := again.cleanUp(0, t.h.Patience); held > 0 {
		t.Errorf("%d events are held that were acknowledged %v ago", held, t.h.Patience)
	}
	more := t.commit(t.events(3, "a", "b")...)
	last := t.open(again.pos)
	last.done(more)
	t.check(append(again.events, last.events...), t.written(rest), more, t.marks()) // the numbers go on
}

// atLeisure is how long a source gets to clean up where it need not: it may do so in
// pieces that hold more than was acknowledged.
const atLeisure = 6 * time.Second

// ack acknowledges, which must not wait for anybody.
func (r *reader) ack(pos onewrite.Pos) {
	r.Helper()
	start := time.Now()
	r.must(r.src.Ack(r.ctx, pos), "ack")
	if took := time.Since(start); took > promptly {
		r.Errorf("Ack took %v; it does not wait for the clean-up", took)
	}
}

// written are the outbox events of those that came.
func (t *sourceTest) written(got []onewrite.Event) (es []outbox.Event) {
	for _, e := range got {
		es = append(es, t.wrote[e.ID].Event)
	}
	return es
}

// cleanUp waits in Read until no more than n events are held, and closes. It
// returns how many are.
func (r *reader) cleanUp(n int, most time.Duration) (held int) {
	r.Helper()
	if r.h.Held == nil {
		r.close()
		return n
	}
	ctx, cancel := context.WithCancel(r.ctx)
	var wg sync.WaitGroup
	wg.Go(func() { _ = r.next(ctx) }) // it ends by ctx
	for end := time.Now().Add(most); ; time.Sleep(10 * time.Millisecond) {
		if held = r.h.Held(r.T); held <= n || time.Now().After(end) {
			break
		}
	}
	cancel()
	wg.Wait()
	r.close()
	return held
}

// cancelled: Read ends with its context, and what a cancelled Read was about to
// hand over is not lost.
func (t *sourceTest) cancelled() {
	r := t.open("")
	ctx, cancel := context.WithCancel(t.ctx)
	time.AfterFunc(20*time.Millisecond, cancel) // so that it waits, most of the time
	start := time.Now()
	err := r.next(ctx)
	if err == nil || errors.Is(err, onewrite.ErrGap) || errors.Is(err, onewrite.ErrFenced) {
		t.Errorf("Read after the end of its context: %v", err)
	}
	if took := time.Since(start); took > promptly {
		t.Errorf("Read took %v to end with its context", took)
	}
	r.close()
	var got []onewrite.Event
	pos := onewrite.Pos("")
	all := t.commit(t.events(300, "a", "b")...)
	for i := range 8 {
		all = append(all, t.commit(t.events(100, "a", "b")...)...)
		r := t.open(pos)
		ctx, cancel := context.WithTimeout(t.ctx, time.Duration(i*i)*300*time.Microsecond)
		for r.next(ctx) == nil && len(got)+len(r.events) < len(all) {
		}
		cancel()
		r.close()
		got, pos = append(got, r.events...), r.pos
	}
	r = t.open(pos)
	r.read(len(all) - len(got))
	t.check(append(got, r.events...), all)
}

// goroutines: Close leaves no goroutine. Several sources are closed, so that one
// left by each stands out.
func (t *sourceTest) goroutines() {
	pos, before := onewrite.Pos(""), 0
	for range 6 {
		t.commit(t.events(5, "a")...)
		r := t.open(pos)
		r.read(5)
		r.ack(r.pos)
		ctx, cancel := context.WithCancel(t.ctx)
		var wg sync.WaitGroup
		wg.Go(func() { _ = r.next(ctx) }) // it ends by ctx
		cancel()
		wg.Wait()
		r.close()
		if pos == "" { // what the application's side keeps is there now
			before = goroutines()
		}
		pos = r.pos
	}
	if left := waitGoroutines(before); left != "" {
		t.Errorf("goroutines left after Close:\n%s", left)
	}
}

// twins: a second source either says that another one reads, and changes nothing,
// or reads all by itself.
func (t *sourceTest) twins() {
	all := t.commit(t.events(3, "a", "b")...)
	r := t.open("")
	src, err := t.h.Open(t.ctx, "")
	switch {
	case err == nil:
		second := &reader{sourceTest: t, src: src}
		second.read(3)
		t.check(second.events, all)
		second.close()
	case errors.Is(err, onewrite.ErrStandby):
		r.read(3)
		all = append(all, t.commit(t.events(2, "a")...)...)
		r.read(5)
		t.check(r.events, all)
	default:
		t.Errorf("a second source: %v, want one that is ErrStandby", err)
	}
	r.close()
	t.open("").done(all)
}

// foreign: a position of something else is refused, or all is read again aloud; it
// is not taken for the beginning.
func (t *sourceTest) foreign() {
	t.commit(t.events(3, "a")...)
	r, err := t.tryOpen(`{"a position": "of another source"}`)
	if err != nil {
		return
	}
	r.mayGap = true
	ctx, cancel := context.WithTimeout(t.ctx, t.h.Patience)
	defer cancel()
	if err := r.next(ctx); err == nil && r.gap == nil {
		t.Error("the position of another source was taken, and nothing was said")
	}
}

// gap: a history that the position does not belong to is said, before any event of
// it. Then an operator has to act, or what is there comes again as it was.
func (t *sourceTest) gap() {
	all := t.commit(t.events(20, "a", "b")...)
	first := t.open("")
	first.read(20)
	first.close()
	t.h.Break(t.T)
	r, err := t.tryOpen(first.pos)
	ctx, cancel := context.WithTimeout(t.ctx, t.h.Patience)
	defer cancel()
	for err == nil && r.gap == nil {
		r.mayGap = true
		if err = r.next(ctx); err == nil && r.gap == nil && len(r.events) > 0 {
			t.Fatal("events of another history came, and nothing was said")
		}
	}
	if err != nil {
		var gap *onewrite.Gap
		if !errors.As(err, &gap) || gap.Reason == "" || gap.Cure == "" {
			t.Fatalf("the history is broken: %v; want a batch with a Gap, or an error that is one, with its cure", err)
		}
		return
	}
	if g := r.gap; g.Reason == "" || g.From == "" || g.To == "" {
		t.Errorf("the gap says not enough: %+v", *g)
	}
	r.read(20)
	t.check(r.events, all)
	t.again(r.events, first.events)
	r.close()
	t.open(r.pos).done() // once said, it is over
}
