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
	r.lot.add(1, place{"shop", 2}, "parked")
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
	r.lot.add(1, place{"shop", 2}, "parked")
	r.lot.add(2, place{"shop", 9}, "filtered")
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

// TestOwed: what the cursor says of the parking lot never claims an entry that may
// be forgotten already.
func TestOwed(t *testing.T) {
	l := lot{places: map[uint64]place{}, at: map[place]string{}}
	for ref := range uint64(4) {
		l.add(ref+1, place{"shop", ref + 1}, "")
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
