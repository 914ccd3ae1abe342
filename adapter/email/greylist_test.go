package email_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/onewritetest"
	"github.com/onewrite/onewrite/pipeline"
)

// A server puts one recipient off, in a real conversation: the mails of other keys go
// on, before that one is asked for again; then it is sent, and so is what is behind it.
func TestGreylisted(t *testing.T) {
	s := newScripted(t, map[string]string{"RCPT TO:<new@": "450 4.2.0 greylisted, come back in 1 s"})
	bus := &onewritetest.MemoryBus{}
	var events []onewrite.Event
	for i, to := range []string{"new", "old", "new", "older", "old"} {
		e := order(fmt.Sprint(i), fmt.Sprintf(`{"email":"%s@example.com","name":"n","number":%d}`, to, i))
		e.Key = to
		events = append(events, e)
	}
	if _, err := bus.Append(t.Context(), "shop", "", onewrite.Batch{Events: events, Pos: "5"}); err != nil {
		t.Fatal(err)
	}
	d := &pipeline.Delivery{
		Interest: onewrite.Interest{Name: "mails", Sources: []string{"shop"}}, Bus: bus, Concurrency: 1, BatchCount: 50,
		Open: func(context.Context) (onewrite.Sink, error) { return open(t, config(s.addr)), nil },
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- d.Run(ctx) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	wait := func(what string, met func(recipients []string) bool) (recipients []string) {
		t.Helper()
		for deadline := time.Now().Add(time.Minute); ; time.Sleep(2 * time.Millisecond) {
			text, _ := s.heard()
			recipients = nil
			for line := range strings.Lines(text) {
				if to, is := strings.CutPrefix(line, "RCPT TO:<"); is {
					recipients = append(recipients, to[:strings.IndexByte(to, '@')])
				}
			}
			if met(recipients) {
				return recipients
			}
			if time.Now().After(deadline) {
				t.Fatalf("%s: %q", what, recipients)
			}
		}
	}
	got := wait("the second try", func(r []string) bool {
		return len(r) > 0 && slices.Contains(r[1:], "new")
	})
	if want := []string{"new", "old", "older", "old", "new"}; !slices.Equal(got[:min(5, len(got))], want) {
		t.Errorf("recipients were %q, want %q first: the others have to pass before the second try", got, want)
	}
	s.set(nil)
	for deadline := time.Now().Add(time.Minute); d.Status().Delivered != 5; time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%+v", d.Status())
		}
	}
}
