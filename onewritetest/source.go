package onewritetest

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"testing"
	"time"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/outbox"
)

// while is how long the suite watches that nothing comes.
const while = 300 * time.Millisecond

// SourceHarness tells [TestSource] how to read one outbox and how to write it.
type SourceHarness struct {
	// Open opens the source at a position, as the pipeline does: while the reader
	// before it is going, it may answer ErrStandby. The suite closes what it opens.
	Open func(ctx context.Context, pos onewrite.Pos) (onewrite.Source, error)
	// Begin begins a transaction of an application; [BeginSQL] makes one. Several
	// goroutines call it at once, and it may wait for the others' transactions.
	Begin func(ctx context.Context) (SourceTx, error)
	// OneWriter is set where a second transaction cannot publish while a first one is
	// open.
	OneWriter bool
	// Held, if set, returns how many events are in the outbox still, read or not:
	// what is acknowledged has to go, at the latest when all of it is.
	Held func(t *testing.T) int
	// Break, if set, breaks the history without losing an event: the positions given
	// out so far are those of another one, as if a copy of the database were put in
	// its place.
	Break func(t *testing.T)
	// Patience bounds every wait for what has to come; 0 means a minute.
	Patience time.Duration
}

// SourceTx is a transaction of an application.
type SourceTx interface {
	// Publish publishes events.
	Publish(ctx context.Context, events ...outbox.Event) error
	// Undo publishes events and goes back to a savepoint before them; where there
	// are no savepoints it does nothing.
	Undo(ctx context.Context, events ...outbox.Event) error
	// Commit ends the transaction.
	Commit() error
	// Rollback ends the transaction as if it had not been.
	Rollback() error
}

// BeginSQL returns the Begin of a [SourceHarness] for a database that is reached
// through database/sql.
func BeginSQL(db *sql.DB, d outbox.Dialect) func(ctx context.Context) (SourceTx, error) {
	return func(ctx context.Context) (SourceTx, error) {
		tx, err := db.BeginTx(ctx, nil)
		if err != nil {
			return nil, err
		}
		return sqlTx{tx, outbox.New(d)}, nil
	}
}

type sqlTx struct {
	*sql.Tx
	events *outbox.Publisher
}

func (tx sqlTx) Publish(ctx context.Context, events ...outbox.Event) error {
	return tx.events.Publish(ctx, tx.Tx, events...)
}

func (tx sqlTx) Undo(ctx context.Context, events ...outbox.Event) error {
	if _, err := tx.ExecContext(ctx, "SAVEPOINT onewritetest"); err != nil {
		return err
	}
	if err := tx.Publish(ctx, events...); err != nil {
		return err
	}
	_, err := tx.ExecContext(ctx, "ROLLBACK TO SAVEPOINT onewritetest")
	return err
}

// TestSource checks that a source keeps the contract of [onewrite.Source]. harness
// makes an empty outbox that is gone with the test, for each check another one.
// What a harness has no means for is skipped.
func TestSource(t *testing.T, harness func(t *testing.T) SourceHarness) {
	always := func(*SourceHarness) bool { return true }
	for _, c := range []struct {
		name string
		can  func(*SourceHarness) bool
		test func(*sourceTest)
	}{
		{"order", always, (*sourceTest).order},
		{"fidelity", always, (*sourceTest).fidelity},
		{"large", always, (*sourceTest).large},
		{"uncommitted", always, (*sourceTest).uncommitted},
		{"late commits", func(h *SourceHarness) bool { return !h.OneWriter }, (*sourceTest).late},
		{"resume", always, (*sourceTest).resume},
		{"close", always, (*sourceTest).close},
		{"ack", always, (*sourceTest).ack},
		{"cancelled", always, (*sourceTest).cancelled},
		{"goroutines", always, (*sourceTest).goroutines},
		{"twins", always, (*sourceTest).twins},
		{"foreign position", always, (*sourceTest).foreign},
		{"gap", func(h *SourceHarness) bool { return h.Break != nil }, (*sourceTest).gap},
		{"storm", always, (*sourceTest).storm},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := harness(t)
			if !c.can(&h) {
				t.Skip("the harness has no means for it")
			}
			if h.Patience <= 0 {
				h.Patience = time.Minute
			}
			ctx, cancel := context.WithTimeout(t.Context(), 4*h.Patience)
			defer cancel()
			c.test(&sourceTest{T: t, h: h, ctx: ctx, began: time.Now(), wrote: map[string]written{}})
		})
	}
}

// sourceTest is one check.
type sourceTest struct {
	*testing.T
	h     SourceHarness
	ctx   context.Context
	began time.Time
	made  int
	wrote map[string]written // what was committed, by id
}

// written is an event that was committed, and the how manieth.
type written struct {
	outbox.Event
	n int
}

// events makes n events whose keys take turns.
func (t *sourceTest) events(n int, keys ...string) []outbox.Event {
	es := make([]outbox.Event, n)
	for i := range es {
		t.made++
		es[i] = outbox.Event{
			ID: outbox.NewID(), Topic: "conformance.source", Key: keys[i%len(keys)], Payload: fmt.Appendf(nil, `{"number":%d}`, t.made),
		}
	}
	return es
}

func (t *sourceTest) must(err error, what string) {
	t.Helper()
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
}

func (t *sourceTest) begin(events ...outbox.Event) SourceTx {
	t.Helper()
	tx, err := t.h.Begin(t.ctx)
	t.must(err, "begin")
	t.must(tx.Publish(t.ctx, events...), "publish")
	return tx
}

// end commits what events were published with.
func (t *sourceTest) end(tx SourceTx, events ...outbox.Event) {
	t.Helper()
	t.must(tx.Commit(), "commit")
	for _, e := range events {
		t.wrote[e.ID] = written{e, len(t.wrote)}
	}
}

// commit publishes events in a transaction.
func (t *sourceTest) commit(events ...outbox.Event) []outbox.Event {
	t.Helper()
	t.end(t.begin(events...), events...)
	return events
}

// tryOpen opens the source, and waits while another reader is going.
func (t *sourceTest) tryOpen(pos onewrite.Pos) (*reader, error) {
	t.Helper()
	for end := time.Now().Add(t.h.Patience); ; time.Sleep(10 * time.Millisecond) {
		src, err := t.h.Open(t.ctx, pos)
		if err == nil {
			r := &reader{sourceTest: t, src: src, pos: pos}
			t.Cleanup(r.close)
			return r, nil
		}
		if !errors.Is(err, onewrite.ErrStandby) || time.Now().After(end) {
			return nil, err
		}
	}
}

func (t *sourceTest) open(pos onewrite.Pos) *reader {
	t.Helper()
	r, err := t.tryOpen(pos)
	if err != nil {
		t.Fatalf("open at %q: %v", pos, err)
	}
	return r
}

// check demands that got are just the wanted events, each once, as they were
// written, and those of a key in the order of their commits.
func (t *sourceTest) check(got []onewrite.Event, want ...[]outbox.Event) {
	t.Helper()
	missing := map[string]bool{}
	for _, es := range want {
		for _, e := range es {
			missing[e.ID] = true
		}
	}
	last := map[string]*onewrite.Event{}
	for i := range got {
		e := &got[i]
		w, ok := t.wrote[e.ID]
		switch {
		case !ok:
			t.Errorf("event %s was never committed: %s", e.ID, excerpt(e.Data))
			continue
		case !missing[e.ID]:
			t.Errorf("event %s came twice, or from before the position: %s", e.ID, excerpt(e.Data))
			continue
		}
		delete(missing, e.ID)
		t.faithful(&w.Event, e)
		if e.Key == "" {
			continue
		}
		if before := last[e.Key]; before != nil {
			if n := t.wrote[before.ID].n; n > w.n {
				t.Errorf("key %q: the event committed as number %d came before that of number %d", e.Key, n, w.n)
			}
			if e.Seq <= before.Seq {
				t.Errorf("key %q: Seq %q came after %q; it has to grow, as text", e.Key, e.Seq, before.Seq)
			}
		}
		last[e.Key] = e
	}
	if len(missing) > 0 && !t.Failed() {
		t.Errorf("%d of the committed events never came", len(missing))
	}
}

// faithful demands that an event arrived as it was written.
func (t *sourceTest) faithful(w *outbox.Event, got *onewrite.Event) {
	t.Helper()
	want := onewrite.Event{
		ID: w.ID, Source: got.Source, Topic: w.Topic, Type: w.Type, Key: w.Key, Time: got.Time, Seq: got.Seq,
		ContentType: w.ContentType, Header: w.Headers, Data: w.Payload,
	}
	if want.Type == "" {
		want.Type = w.Topic
	}
	if want.ContentType == "" {
		want.ContentType = outbox.DefaultContentType(w.Payload, false)
	}
	if diff := difference(&want, got, false); diff != "" {
		t.Errorf("event %s: %s", got.ID, diff)
	}
	if (got.Data == nil) != (w.Payload == nil) {
		t.Errorf("event %s: no data and data of no bytes are not the same", got.ID)
	}
	if got.Source == "" || got.Seq == "" {
		t.Errorf("event %s has Source %q and Seq %q", got.ID, got.Source, got.Seq)
	}
	if got.Time.Before(t.began.Add(-time.Minute)) || got.Time.After(time.Now().Add(time.Minute)) {
		t.Errorf("event %s is of %v", got.ID, got.Time)
	}
}

// again demands that events came a second time as they came the first time.
func (t *sourceTest) again(got, first []onewrite.Event) {
	t.Helper()
	by := map[string]onewrite.Event{}
	for _, e := range first {
		by[e.ID] = e
	}
	for _, e := range got {
		if f, ok := by[e.ID]; ok && !sameEvent(e, f) {
			t.Errorf("event %s came again as\n%+v\nand was\n%+v", e.ID, e, f)
		}
	}
}

func sameEvent(a, b onewrite.Event) bool {
	ok := a.Time.Equal(b.Time) && maps.Equal(a.Header, b.Header)
	a.Time, a.Header, b.Time, b.Header = time.Time{}, nil, time.Time{}, nil
	return ok && reflect.DeepEqual(a, b)
}

// reader is an open source and what came from it.
type reader struct {
	*sourceTest
	src    onewrite.Source
	closed bool
	events []onewrite.Event
	places []onewrite.Pos // after each event; empty where the batch is whole
	pos    onewrite.Pos   // after the last batch
	gap    *onewrite.Gap
	mayGap bool
}

func (r *reader) close() {
	r.Helper()
	if r.closed {
		return
	}
	r.closed = true
	if err := r.src.Close(); err != nil {
		r.Errorf("close: %v", err)
	}
}

// wait is Read, but gives up on one that does not end with its context.
func (r *reader) wait(ctx context.Context) (onewrite.Batch, error) {
	type answer struct {
		onewrite.Batch
		err error
	}
	ended := make(chan answer, 1)
	go func() {
		b, err := r.src.Read(ctx)
		ended <- answer{b, err}
	}()
	select {
	case a := <-ended:
		return a.Batch, a.err
	case <-ctx.Done():
	}
	select {
	case a := <-ended:
		return a.Batch, a.err
	case <-time.After(promptly):
		return onewrite.Batch{}, fmt.Errorf("the source reads on %v after the end of its context", promptly)
	}
}

// next reads a batch and holds it against the contract.
func (r *reader) next(ctx context.Context) error {
	r.Helper()
	b, err := r.wait(ctx)
	if err != nil {
		return err
	}
	n := len(b.Events)
	if n > onewrite.MaxBatch {
		r.Errorf("a batch of %d events; %d are allowed", n, onewrite.MaxBatch)
	}
	if b.Gap != nil {
		if r.gap = b.Gap; !r.mayGap {
			r.Errorf("a gap in a sound history: %v", b.Gap)
		}
	}
	if n == 0 {
		if b.Gap == nil && b.Pos == r.pos {
			r.Error("a batch that says nothing")
		}
		r.pos = b.Pos
		return nil
	}
	if b.Pos == "" || b.Pos == r.pos {
		r.Errorf("the position after %d events is %q, and was %q before", n, b.Pos, r.pos)
	}
	places := make([]onewrite.Pos, n)
	if b.PosAt != nil {
		for i := range places {
			places[i] = b.PosAt(i)
		}
	}
	if b.PosAt != nil && places[n-1] != b.Pos {
		r.Errorf("the position after the last event is %q by PosAt, and %q by Pos", places[n-1], b.Pos)
	}
	places[n-1], r.pos = b.Pos, b.Pos
	r.events, r.places = append(r.events, b.Events...), append(r.places, places...)
	return nil
}

// read reads until n events came.
func (r *reader) read(n int) {
	r.Helper()
	ctx, cancel := context.WithTimeout(r.ctx, r.h.Patience)
	defer cancel()
	for len(r.events) < n {
		if err := r.next(ctx); err != nil {
			r.Fatalf("read after %d of %d events: %v", len(r.events), n, err)
		}
	}
}

// during lets f happen while Read waits, which has to end by it.
func (r *reader) during(f func()) {
	r.Helper()
	ctx, cancel := context.WithTimeout(r.ctx, r.h.Patience)
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- r.next(ctx) }()
	time.Sleep(20 * time.Millisecond) // so that it waits, most of the time
	f()
	r.must(<-ended, "Read, that waited while an event was committed")
}

// done reads what has to come and shows that it is all: the next one is an event
// that is committed now.
func (r *reader) done(want ...[]outbox.Event) {
	r.Helper()
	n := 0
	for _, es := range want {
		n += len(es)
	}
	r.read(n)
	mark := r.commit(r.sourceTest.events(1, "mark")...)
	r.read(n + 1)
	r.check(r.events, append(want, mark)...)
}

// quiet demands that nothing comes for a while. The source is of no use after it.
func (r *reader) quiet() {
	r.Helper()
	ctx, cancel := context.WithTimeout(r.ctx, while)
	defer cancel()
	n := len(r.events)
	for ctx.Err() == nil {
		if err := r.next(ctx); err != nil && ctx.Err() == nil {
			r.Fatalf("read: %v", err)
		}
		if len(r.events) > n {
			r.Fatalf("an event came that should not: %s", excerpt(r.events[n].Data))
		}
	}
	r.close()
}
