package nats

import (
	"fmt"
	"testing"

	"github.com/onewrite/onewrite"
)

// TestRecent: the newest events are there, at their offsets, however often they moved in
// their room, and the room stays small.
func TestRecent(t *testing.T) {
	var r recent
	const limit = 100_000
	next, moved := uint64(1), 0
	for n := range 2000 {
		var events []onewrite.Event
		for i := range n%37 + 1 {
			events = append(events, onewrite.Event{ID: fmt.Sprint(next + uint64(i)), Source: "shop", Topic: "t", Type: "t", Data: make([]byte, n%211)})
		}
		was := cap(r.events)
		r.add(next, events, limit)
		if cap(r.events) > was && was > 0 {
			moved++
		}
		next += uint64(len(events))
		at := r.first
		ok := r.each(r.first, next, func(offset uint64, e *onewrite.Event) bool {
			if offset != at || e.ID != fmt.Sprint(offset) {
				t.Fatalf("at %d is %d, event %s", at, offset, e.ID)
			}
			at++
			return true
		})
		if !ok || at != next {
			t.Fatalf("the events end at %d, want %d", at, next)
		}
	}
	kept := int(next - r.first)
	if r.bytes > limit || kept < 200 || moved < 20 {
		t.Errorf("vacuous: %d events of %d bytes, moved %d times", kept, r.bytes, moved)
	}
	if cap(r.room) > 4*1000 {
		t.Errorf("room for %d events, there are %d", cap(r.room), kept)
	}
	whole := r.room[:cap(r.room)]
	for i := range whole { // what was dropped, or moved away, is not kept
		if whole[i].ID != "" {
			kept--
		}
	}
	if kept != 0 {
		t.Errorf("the room holds %d other events", -kept)
	}
}
