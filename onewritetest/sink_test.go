package onewritetest_test

import (
	"context"
	"errors"
	"maps"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/onewritetest"
)

// memory is a destination in memory whose sinks can be made to err.
type memory struct {
	fault string

	mu      sync.Mutex
	events  []onewrite.Event
	refused map[string]bool
	down    bool
	stalled chan struct{} // not nil while it stalls
}

type memorySink struct {
	m      *memory
	closed chan struct{}
	once   sync.Once
	calls  int
}

func (s *memorySink) Close() error {
	if s.m.fault == "close twice" {
		select {
		case <-s.closed:
			return errors.New("closed already")
		default:
		}
	}
	s.once.Do(func() {
		if s.m.fault != "write after close" {
			close(s.closed)
		}
		if s.m.fault == "leak" {
			go func() { select {} }()
		}
	})
	return nil
}

func (s *memorySink) Write(ctx context.Context, events []onewrite.Event) (int, error) {
	m := s.m
	m.mu.Lock()
	stalled := m.stalled
	m.mu.Unlock()
	if stalled != nil {
		if m.fault == "ignores ctx" {
			<-time.After(6 * time.Second)
		}
		select {
		case <-stalled:
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
	select {
	case <-s.closed:
		return 0, errors.New("closed")
	default:
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if ctx.Err() != nil {
		if m.fault == "cancel rejects" {
			return 0, onewrite.ErrRejected
		}
		return 0, ctx.Err()
	}
	if m.down {
		if m.fault == "outage rejects" {
			return 0, onewrite.ErrRejected
		}
		return 0, errors.New("down")
	}
	s.calls++
	return m.take(events, s.calls)
}

// take stores events as the fault has it.
func (m *memory) take(events []onewrite.Event, call int) (int, error) {
	if m.fault == "reversed" {
		events = slices.Clone(events)
		slices.Reverse(events)
	}
	for i, e := range events {
		e.Data, e.Header = slices.Clone(e.Data), maps.Clone(e.Header)
		if m.refused[e.ID] {
			switch m.fault {
			case "passes a refusal":
				m.events = append(m.events, events[i+1:]...)
			case "swallows a refusal":
				return len(events), nil
			case "vague refusal":
				return i, errors.New("no")
			case "counts a refusal":
				return i + 1, onewrite.ErrRejected
			}
			return i, onewrite.ErrRejected
		}
		switch {
		case m.fault == "loses" && i == 7:
			continue
		case m.fault == "twice" && i == 7:
			m.events = append(m.events, e)
		case m.fault == "trims":
			e.Data = []byte(strings.TrimSpace(string(e.Data)))
		case m.fault == "headers":
			e.Header = nil
		case m.fault == "truncates" && len(e.Data) > 1<<19:
			e.Data = e.Data[:1<<19]
		case m.fault == "no tombstone" && e.Data == nil:
			e.ContentType = "text/plain"
		case m.fault == "scribbles" && len(e.Data) > 0:
			events[i].Data[0]++
		case m.fault == "new id on repeat" && call > 1 && len(m.events) > 0 && m.has(e.ID):
			e.Seq += "'"
		}
		m.events = append(m.events, e)
	}
	if m.fault == "short without error" && len(events) > 3 {
		return 3, nil
	}
	if m.fault == "error with all" {
		return len(events), errors.New("hm")
	}
	return len(events), nil
}

func (m *memory) has(id string) bool {
	return slices.ContainsFunc(m.events, func(e onewrite.Event) bool { return e.ID == id })
}

func (m *memory) harness() onewritetest.SinkHarness {
	return onewritetest.SinkHarness{
		New: func(*testing.T) onewrite.Sink { return &memorySink{m: m, closed: make(chan struct{})} },
		Received: func(*testing.T) []onewrite.Event {
			m.mu.Lock()
			defer m.mu.Unlock()
			return slices.Clone(m.events)
		},
		Refuse: func(_ *testing.T, id string) {
			m.mu.Lock()
			defer m.mu.Unlock()
			m.refused[id] = true
		},
		Break: func(*testing.T) func() {
			m.set(func() { m.down = true })
			return func() { m.set(func() { m.down = false }) }
		},
		Stall: func(*testing.T) func() {
			m.set(func() { m.stalled = make(chan struct{}) })
			return func() { m.set(func() { close(m.stalled); m.stalled = nil }) }
		},
	}
}

func (m *memory) set(f func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	f()
}

const faultVariable = "ONEWRITETEST_FAULT"

// TestMemorySink runs the suite on a right sink, or on a wrong one when
// TestTheSuiteSees has started it.
func TestMemorySink(t *testing.T) {
	m := &memory{fault: os.Getenv(faultVariable), refused: map[string]bool{}}
	onewritetest.TestSink(t, m.harness())
}

// TestTheSuiteSees proves that the suite can fail: each fault has to be found by
// the check that is there for it.
func TestTheSuiteSees(t *testing.T) {
	if os.Getenv(faultVariable) != "" {
		t.Skip("started by itself")
	}
	for fault, check := range map[string]string{
		"reversed": "order", "loses": "order", "twice": "order", "trims": "fidelity", "headers": "fidelity",
		"no tombstone": "fidelity", "scribbles": "fidelity", "truncates": "largest", "new id on repeat": "repeat",
		"short without error": "order", "error with all": "order", "passes a refusal": "refuse", "swallows a refusal": "refuse",
		"vague refusal": "refuse", "counts a refusal": "refuse", "outage rejects": "break", "cancel rejects": "cancelled",
		"ignores ctx": "stall", "write after close": "close", "close twice": "close", "leak": "close",
	} {
		t.Run(fault, func(t *testing.T) {
			t.Parallel()
			cmd := exec.Command(os.Args[0], "-test.run=^TestMemorySink$", "-test.timeout=1m")
			cmd.Env = append(os.Environ(), faultVariable+"="+fault)
			out, err := cmd.CombinedOutput()
			if err == nil {
				t.Fatalf("the suite passed a sink that %s", fault)
			}
			if !strings.Contains(string(out), "FAIL: TestMemorySink/"+check+" ") {
				t.Errorf("not found by the check %s:\n%s", check, out)
			}
		})
	}
}
