package pipeline

import (
	"testing"
	"time"

	"github.com/onewrite/onewrite"
)

// TestPlaceOfParked: an event that stands where a parked one stood, in a log that
// was made anew, is not taken for it.
func TestPlaceOfParked(t *testing.T) {
	r := &deliverer{
		d: &Delivery{}, lanes: newLanes(), tracks: map[string]*track{},
		lot: lot{places: map[uint64]place{}, at: map[place]string{}},
	}
	r.lot.add(1, &onewrite.Message{Log: "shop", Offset: 2, Event: onewrite.Event{ID: "parked"}})
	msgs := []onewrite.Message{
		{Event: onewrite.Event{ID: "a"}, Log: "shop", Offset: 1},
		{Event: onewrite.Event{ID: "b"}, Log: "shop", Offset: 2},
	}
	if err := r.accept(feed{msgs: msgs}); err != nil || r.lanes.count != 2 {
		t.Errorf("%d events are delivered, %v; want 2", r.lanes.count, err)
	}
}

// TestParkedAhead: an event that was parked by an owner who died before it moved the
// cursor is on the bus behind the cursor too. It is parked, and not pending as well.
func TestParkedAhead(t *testing.T) {
	r := &deliverer{
		d: &Delivery{}, lanes: newLanes(), tracks: map[string]*track{}, unread: 3,
		lot: lot{places: map[uint64]place{}, at: map[place]string{}, ahead: map[place]struct{}{{"shop", 2}: {}, {"shop", 9}: {}}},
	}
	r.lot.add(1, &onewrite.Message{Log: "shop", Offset: 2, Event: onewrite.Event{ID: "parked"}})
	r.lot.add(2, &onewrite.Message{Log: "shop", Offset: 9, Event: onewrite.Event{ID: "filtered"}})
	want := func(pending, parked uint64) {
		t.Helper()
		if s := r.publish(time.Now()); s.Pending != pending || s.Parked != parked {
			t.Errorf("%d pending and %d parked, want %d and %d", s.Pending, s.Parked, pending, parked)
		}
	}
	want(1, 2)
	if err := r.accept(feed{msgs: []onewrite.Message{{Event: onewrite.Event{ID: "parked"}, Log: "shop", Offset: 2}}}); err != nil {
		t.Fatal(err)
	}
	want(1, 2)
	if err := r.accept(feed{upto: map[string]uint64{"shop": 10}}); err != nil {
		t.Fatal(err)
	}
	want(2, 2)
}

// TestSettledAhead: what was settled before its turn is known by its id when that comes,
// and forgotten then. Only so many are named.
func TestSettledAhead(t *testing.T) {
	r := &deliverer{
		d: &Delivery{}, lanes: newLanes(), tracks: map[string]*track{},
		lot: lot{places: map[uint64]place{}, at: map[place]string{}, ahead: map[place]struct{}{}},
	}
	settle := func(offset uint64, id string) {
		r.lot.ahead[place{"shop", offset}] = struct{}{}
		r.settledAhead(place{"shop", offset}, hashOf(id))
	}
	settle(2, "settled")
	settle(3, "another")
	settle(5, "vanished")
	r.settledAhead(place{"shop", 4}, hashOf("met")) // the cursor is past it
	if len(r.cursor.Ahead) != 3 {
		t.Errorf("%+v", r.cursor.Ahead)
	}
	var msgs []onewrite.Message
	for i, id := range []string{"a", "settled", "of a log that was made anew", "met"} {
		msgs = append(msgs, onewrite.Message{Event: onewrite.Event{ID: id}, Log: "shop", Offset: uint64(i + 1)})
	}
	if err := r.accept(feed{msgs: msgs, upto: map[string]uint64{"shop": 6}}); err != nil || r.lanes.count != 3 {
		t.Errorf("%d events are delivered, %v; want all but the settled one", r.lanes.count, err)
	}
	if len(r.cursor.Ahead)+len(r.lot.ahead) != 0 {
		t.Errorf("%+v and %v are left", r.cursor.Ahead, r.lot.ahead)
	}
	for i := range uint64(maxAhead + 9) {
		settle(100+i, "x")
	}
	if n := len(r.cursor.Ahead); n != maxAhead || r.cursor.Ahead[0].Offset != 109 {
		t.Errorf("%d are named, from %d on", n, r.cursor.Ahead[0].Offset)
	}
}

// TestOwed: what the cursor says of the parking lot never claims an entry that may
// be forgotten already.
func TestOwed(t *testing.T) {
	l := lot{places: map[uint64]place{}, at: map[place]string{}}
	for ref := range uint64(4) {
		l.add(ref+1, &onewrite.Message{Log: "shop", Offset: ref + 1})
	}
	want := func(n, last uint64, settled ...uint64) {
		t.Helper()
		if gotN, gotLast := l.owed(settled); gotN != n || gotLast != last {
			t.Errorf("owed %d up to %d, want %d up to %d", gotN, gotLast, n, last)
		}
	}
	want(4, 4)
	want(2, 3, 4, 1)
	l.drop(4)
	want(3, 3, 4)
	for ref := range uint64(3) {
		l.drop(ref + 1)
	}
	want(0, 0)
}
