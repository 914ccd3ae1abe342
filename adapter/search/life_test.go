package search

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
)

// The end of a life ends the writes that are under way, waits for them, and lets none in.
func TestLife(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var l life
		l.begin()
		ctx, leave, err := l.enter(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		ended := make(chan bool, 1)
		go func() { ended <- l.end() }()
		synctest.Wait()
		if !errors.Is(ctx.Err(), context.Canceled) {
			t.Error("a write goes on")
		}
		select {
		case <-ended:
			t.Error("it ended before the write was done")
		default:
		}
		if _, _, err := l.enter(t.Context()); !errors.Is(err, errClosed) {
			t.Errorf("a write came in at the end: %v", err)
		}
		leave()
		if <-ended || !l.end() {
			t.Error("it does not tell the first end from the others")
		}
	})
}
