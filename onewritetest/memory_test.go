package onewritetest_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/onewritetest"
)

// kept is a MemoryBus that outlives the one who closes it.
type kept struct{ *onewritetest.MemoryBus }

func (kept) Close() error { return nil }

func subscribe(t *testing.T, b onewrite.Bus, name string) onewrite.Subscription {
	t.Helper()
	s, err := b.Subscribe(t.Context(), onewrite.Interest{Name: name, Sources: []string{"shop"}})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestMemoryBusLease(t *testing.T) {
	b := &onewritetest.MemoryBus{Lease: time.Hour}
	first := subscribe(t, b, "d")
	in := onewrite.Interest{Name: "d"}
	if _, err := b.Subscribe(t.Context(), in); !errors.Is(err, onewrite.ErrStandby) || first.Lease() != time.Hour {
		t.Errorf("a second one while the first lives: %v", err)
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	second := subscribe(t, b, "d")
	if err := first.Commit(t.Context(), onewrite.Cursor{}); !errors.Is(err, onewrite.ErrFenced) {
		t.Errorf("commit by one who gave his place up: %v", err)
	}
	if _, _, err := first.Read(t.Context()); err == nil {
		t.Error("a closed subscription reads on")
	}
	if err := second.Commit(t.Context(), onewrite.Cursor{Delivered: 7}); err != nil || b.Cursor("d").Delivered != 7 {
		t.Errorf("commit by the owner: %v", err)
	}
}

// Each place where a fault can strike is asked, and the effect is there or not.
func TestMemoryBusFaults(t *testing.T) {
	boom := errors.New("boom")
	var at string
	b := &onewritetest.MemoryBus{Fault: func(where string) error {
		if where == at {
			return boom
		}
		return nil
	}}
	s := subscribe(t, b, "d")
	msg := onewrite.Message{Event: onewrite.Event{ID: "e"}, Log: "shop", Offset: 1}
	ref := uint64(1)
	calls := map[string]func() error{
		"position": func() error { _, _, err := b.Position(t.Context(), "shop"); return err },
		"append": func() error {
			_, err := b.Append(t.Context(), "shop", "", onewrite.Batch{Events: []onewrite.Event{{ID: "e", Source: "shop", Type: "t"}}, Pos: "1"})
			return err
		},
		"subscribe": func() error {
			_, err := b.Subscribe(t.Context(), onewrite.Interest{Name: "other"})
			return err
		},
		"read":   func() error { _, _, err := s.Read(t.Context()); return err },
		"park":   func() error { _, err := s.Park(t.Context(), onewrite.Parked{Message: msg}); return err },
		"unpark": func() error { return s.Unpark(t.Context(), ref) },
		"commit": func() error { return s.Commit(t.Context(), onewrite.Cursor{Delivered: 1}) },
	}
	effects := map[string]func() bool{
		"append": func() bool { return len(b.Events("shop")) == 1 },
		"park":   func() bool { return len(b.Parked("d")) == 1 },
		"unpark": func() bool { return len(b.Parked("d")) == 0 },
		"commit": func() bool { return b.Cursor("d").Delivered == 1 },
	}
	for _, what := range []string{"position", "append", "subscribe", "read", "park", "unpark", "commit"} {
		points := []string{what}
		if effects[what] != nil {
			points = []string{what + ".before", what + ".after"}
		}
		for i, point := range points {
			at = point
			if err := calls[what](); !errors.Is(err, boom) {
				t.Errorf("%s: %v", point, err)
			}
			if there := effects[what]; there != nil && there() != (i == 1) {
				t.Errorf("%s: the effect is there: %v", point, there())
			}
		}
	}
}

func memorySinkHarness(m *onewritetest.MemorySink) onewritetest.SinkHarness {
	return onewritetest.SinkHarness{
		New: func(t *testing.T) onewrite.Sink {
			s, err := m.Open(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			return s
		},
		Received: func(*testing.T) []onewrite.Event { return m.Received() },
		Refuse:   func(_ *testing.T, id string) { m.Answer(id, onewrite.ErrRejected) },
		Break: func(*testing.T) func() {
			m.Answer("", errors.New("down"))
			return func() { m.Answer("", nil) }
		},
		Stall: func(*testing.T) func() {
			m.Answer("", onewritetest.ErrStall)
			return func() { m.Answer("", nil) }
		},
	}
}

func TestMemorySinkHooks(t *testing.T) {
	early, late := errors.New("early"), errors.New("late")
	m := &onewritetest.MemorySink{
		Before: func(_ context.Context, e onewrite.Event) error {
			if e.ID == "early" {
				return early
			}
			return nil
		},
		After: func(_ context.Context, e onewrite.Event) error {
			if e.ID == "late" {
				return late
			}
			return nil
		},
	}
	s, err := m.Open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for id, want := range map[string]error{"early": early, "late": late, "fine": nil} {
		if n, err := s.Write(t.Context(), []onewrite.Event{{ID: id}}); !errors.Is(err, want) || n == 1 != (want == nil) {
			t.Errorf("%s: %d, %v", id, n, err)
		}
	}
	if got, err := m.Wait(t.Context(), 2); err != nil || len(got) != 2 {
		t.Errorf("%d arrived, %v", len(got), err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if got, err := m.Wait(ctx, 3); !errors.Is(err, context.DeadlineExceeded) || len(got) != 2 {
		t.Errorf("waited in vain for a third: %d, %v", len(got), err)
	}
}

// An answer can change while a writer waits for it.
func TestMemorySinkStalls(t *testing.T) {
	m := &onewritetest.MemorySink{}
	m.Answer("e", onewritetest.ErrStall)
	s, err := m.Open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error)
	go func() {
		_, err := s.Write(context.Background(), []onewrite.Event{{ID: "e"}})
		ended <- err
	}()
	m.Answer("other", onewrite.ErrRejected)
	m.Answer("e", onewrite.ErrGone)
	if err := <-ended; !errors.Is(err, onewrite.ErrGone) {
		t.Error(err)
	}
}
