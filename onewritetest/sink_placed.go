package onewritetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	"github.com/onewrite/onewrite"
)

// openPlaced opens a sink that keeps its place, if it does; the test is skipped if
// not.
func (t *sinkTest) openPlaced() onewrite.Placed {
	t.Helper()
	p, ok := t.open().(onewrite.Placed)
	if !ok {
		t.Skip("the sink keeps no place")
	}
	return p
}

// place asks a sink for its place, which takes the destination over.
func (t *sinkTest) place(p onewrite.Placed) []byte {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	record, err := p.Place(ctx)
	if err != nil {
		t.Fatalf("Place: %v", err)
	}
	return record
}

// messages puts events at places on a bus.
func (t *sinkTest) messages(events []onewrite.Event) []onewrite.Message {
	msgs := make([]onewrite.Message, len(events))
	for i, e := range events {
		t.offset++
		msgs[i] = onewrite.Message{Event: e, Log: e.Source, Offset: t.offset}
	}
	return msgs
}

// writeAt writes events and a record that have to arrive.
func (t *sinkTest) writeAt(p onewrite.Placed, record []byte, events ...onewrite.Event) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if bad, err := p.WriteAt(ctx, t.messages(events), record); err != nil {
		t.Fatalf("WriteAt of %d events = %d, %v", len(events), bad, err)
	}
}

// placed: events and record are there together, for the next sink too, and every
// event once; a sink that was opened before the last Place changes nothing.
func (t *sinkTest) placed() {
	first := t.openPlaced()
	t.place(first)
	events := t.events(1010, "a", "b", "c")
	for i, part := range [][]onewrite.Event{events[:1], events[1:1000], events[1000:]} {
		t.writeAt(first, fmt.Appendf(nil, "record %d", i), part...)
	}
	large := bytes.Repeat([]byte(`{"place": "\u0000'"}`), 10_000)
	events = append(events, t.events(1, "a")...)
	t.writeAt(first, large, events[1010])
	second := t.openPlaced()
	if got := t.place(second); !bytes.Equal(got, large) {
		t.Errorf("the record of %d bytes came back as %d bytes", len(large), len(got))
	}
	t.once(events...)
	late := t.events(2, "a", "b")
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if _, err := first.WriteAt(ctx, t.messages(late), []byte("stale")); !errors.Is(err, onewrite.ErrFenced) {
		t.Errorf("WriteAt of a sink whose place was taken over: %v, want one that is ErrFenced", err)
	}
	for _, got := range t.arrived() {
		if got.ID == late[0].ID || got.ID == late[1].ID {
			t.Errorf("event %s arrived by a sink whose place was taken over", got.ID)
		}
	}
	t.writeAt(second, []byte("new"), late...)
	t.once(append(events, late...)...)
	if got := t.place(t.openPlaced()); string(got) != "new" {
		t.Errorf("the record is %.40q, want the newest", got)
	}
}

// once demands that events have arrived, each once.
func (t *sinkTest) once(events ...onewrite.Event) {
	t.Helper()
	for id, n := range t.check(events...) {
		if n > 1 {
			t.Errorf("event %s arrived %d times", id, n)
		}
	}
}

// placedRefuse: a write with a refused event names it and leaves nothing, neither the
// others nor the record.
func (t *sinkTest) placedRefuse() {
	p := t.openPlaced()
	t.place(p)
	events := t.events(5, "a", "b")
	t.writeAt(p, []byte("before"), events[0])
	t.h.Refuse(t.T, events[3].ID)
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	bad, err := p.WriteAt(ctx, t.messages(events[1:]), []byte("refused"))
	if bad != 2 || !errors.Is(err, onewrite.ErrRejected) {
		t.Errorf("WriteAt = %d, %v; want 2 and one that is ErrRejected", bad, err)
	}
	for _, got := range t.arrived() {
		if got.ID != events[0].ID {
			t.Errorf("event %s arrived with a refused one", got.ID)
		}
	}
	t.writeAt(p, []byte("after"), events[1])
	p = t.openPlaced()
	if got := t.place(p); string(got) != "after" {
		t.Errorf("the record is %.40q, want the one of the last write", got)
	}
	if bad, err := p.WriteAt(ctx, t.messages(events[2:]), []byte("refused")); bad != 1 || !errors.Is(err, onewrite.ErrRejected) {
		t.Errorf("WriteAt = %d, %v; want 1 and one that is ErrRejected", bad, err)
	}
	p = t.openPlaced()
	if got := t.place(p); string(got) != "after" {
		t.Errorf("the record of a refused write is %.40q", got)
	}
	t.writeAt(p, []byte("end"), events[2], events[4])
	t.once(events[0], events[1], events[2], events[4])
}

// placedBroken: after a write that failed because the destination is away, the record
// tells whether it is there.
func (t *sinkTest) placedBroken() {
	p := t.openPlaced()
	t.place(p)
	events := t.events(6, "a", "b")
	t.writeAt(p, []byte("before"), events[:2]...)
	mend := t.h.Break(t.T)
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	_, err := p.WriteAt(ctx, t.messages(events[2:]), []byte("while"))
	mend()
	if steers(err) {
		t.Errorf("WriteAt while the destination is away: %v; that is no answer about an event", err)
	}
	if cerr := p.Close(); cerr != nil {
		t.Logf("Close of the broken sink: %v", cerr)
	}
	p = t.openPlaced()
	switch got := string(t.place(p)); {
	case got == "before" && err != nil:
		t.writeAt(p, []byte("again"), events[2:]...)
	case got != "while":
		t.Errorf("WriteAt said %v, and the record is %.40q", err, got)
	}
	t.once(events...)
}
