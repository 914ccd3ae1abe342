package nats_test

import (
	"errors"
	"testing"
	"time"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/adapter/nats"
)

// TestView: what a destination holds that nobody delivers to is counted by the topics that
// it had, and changes nothing.
func TestView(t *testing.T) {
	for name, config := range map[string]nats.Config{
		"embedded": {Dir: t.TempDir()},
		"external": {URL: natsServer(t, t.TempDir(), nil).ClientURL()},
	} {
		t.Run(name, func(t *testing.T) { viewed(t, open(t, config)) })
	}
}

func viewed(t *testing.T, b *nats.Bus) {
	v := b.View("d", []string{"shop", "stock"})
	if h, err := v.Held(t.Context()); err != nil || h.Epoch != 0 {
		t.Fatalf("before it has a place: %+v, %v", h, err)
	}
	events := batch(1, 10)
	for i := range events.Events {
		if i%2 == 1 {
			events.Events[i].Topic = "other"
		}
	}
	appendAll(t, b, "", events)
	sub := subscribe(t, b, onewrite.Interest{Name: "d", Topics: []string{"order.>"}})
	if _, err := sub.Park(t.Context(), onewrite.Parked{Message: read(t, sub, 1)[0], Reason: "no", At: time.Now()}); err != nil {
		t.Fatal(err)
	}
	place := onewrite.Cursor{Delivered: 2, Logs: map[string]onewrite.LogCursor{"shop": {Floor: 3}}}
	if err := errors.Join(sub.Commit(t.Context(), place), sub.Close()); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		h, err := v.Held(t.Context())
		if err != nil || h.Cursor.Delivered != 2 || h.Pending != 3 || h.Parked != 1 || h.Epoch != 1 { // 5, 7 and 9
			t.Fatalf("it holds %+v, %v", h, err)
		}
	}
	list, err := v.Parked(t.Context(), 0, 9)
	if err != nil || len(list) != 1 || list[0].Reason != "no" {
		t.Fatalf("parked %+v, %v", list, err)
	}
	if err := b.Forget(t.Context(), "d"); err != nil {
		t.Fatal(err)
	}
	if h, err := v.Held(t.Context()); err != nil || h.Epoch != 0 || h.Parked != 0 {
		t.Fatalf("when it is forgotten: %+v, %v", h, err)
	}
}
