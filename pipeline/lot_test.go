package pipeline

import (
	"testing"

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
