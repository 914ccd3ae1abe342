package onewritetest_test

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/onewritetest"
)

// faultySink is a right sink with one fault. It has calls of its own, so that only
// what it does to its events shows at the destination.
type faultySink struct {
	fault  string
	m      *onewritetest.MemorySink
	inner  onewrite.Sink
	closed bool
	calls  atomic.Int32
}

func (s *faultySink) Close() error {
	switch {
	case s.fault == "close twice" && s.closed:
		return errors.New("closed already")
	case s.fault == "leak" && !s.closed:
		go func() { select {} }()
	}
	s.closed = true
	if s.fault == "write after close" {
		return nil
	}
	return s.inner.Close()
}

func (s *faultySink) Write(ctx context.Context, events []onewrite.Event) (int, error) {
	switch s.fault {
	case "ignores ctx":
		if ctx.Err() == nil {
			ctx = context.WithoutCancel(ctx)
			limited, cancel := context.WithTimeout(ctx, 6*time.Second)
			defer cancel()
			ctx = limited
		}
	case "short without error":
		if len(events) > 3 {
			n, _ := s.inner.Write(ctx, events[:3])
			return n, nil
		}
	case "scribbles":
		for _, e := range events {
			if len(e.Data) > 0 {
				e.Data[0]++
			}
		}
	}
	sent := s.spoil(events)
	n, err := s.inner.Write(ctx, sent)
	return s.answer(ctx, events, sent, n, err)
}

// spoil returns the events as the fault has them.
func (s *faultySink) spoil(events []onewrite.Event) []onewrite.Event {
	sent := slices.Clone(events)
	call := s.calls.Add(1)
	for i := range sent {
		e := &sent[i]
		switch {
		case s.fault == "trims":
			e.Data = []byte(strings.TrimSpace(string(e.Data)))
		case s.fault == "headers":
			e.Header = nil
		case s.fault == "truncates" && len(e.Data) > 1<<19:
			e.Data = e.Data[:1<<19]
		case s.fault == "no tombstone" && e.Data == nil:
			e.ContentType = "text/plain"
		case s.fault == "new id on repeat" && call > 1 && s.has(e.ID):
			e.Seq += "'"
		}
	}
	switch {
	case s.fault == "reversed":
		slices.Reverse(sent)
	case s.fault == "loses" && len(sent) > 7:
		sent = slices.Delete(sent, 7, 8)
	case s.fault == "twice" && len(sent) > 7:
		sent = slices.Insert(sent, 7, sent[7])
	}
	return sent
}

// answer returns what the fault makes of a true answer.
func (s *faultySink) answer(ctx context.Context, events, sent []onewrite.Event, n int, err error) (int, error) {
	if err == nil {
		if s.fault == "error with all" {
			return len(events), errors.New("hm")
		}
		return len(events), nil
	}
	refused := errors.Is(err, onewrite.ErrRejected)
	switch {
	case s.fault == "cancel rejects" && ctx.Err() != nil, s.fault == "outage rejects" && !refused:
		return n, onewrite.ErrRejected
	case !refused:
	case s.fault == "passes a refusal":
		_, _ = s.inner.Write(ctx, sent[n+1:])
	case s.fault == "swallows a refusal":
		return len(events), nil
	case s.fault == "vague refusal":
		return n, errors.New("no")
	case s.fault == "counts a refusal":
		return n + 1, err
	}
	return n, err
}

func (s *faultySink) has(id string) bool {
	return slices.ContainsFunc(s.m.Received(), func(e onewrite.Event) bool { return e.ID == id })
}

// faultVariable names the fault of the test program that another one started.
const faultVariable = "ONEWRITETEST_FAULT"

// TestMemorySink runs the suite on a right sink, or on a wrong one when
// TestSinkSuiteSees has started it.
func TestMemorySink(t *testing.T) {
	m := &onewritetest.MemorySink{}
	h := memorySinkHarness(m)
	if fault := os.Getenv(faultVariable); fault != "" {
		right := h.New
		h.New = func(t *testing.T) onewrite.Sink { return &faultySink{fault: fault, m: m, inner: right(t)} }
	}
	onewritetest.TestSink(t, h)
}

// TestSinkSuiteSees proves that the suite can fail: each fault has to be found by
// the check that is there for it.
func TestSinkSuiteSees(t *testing.T) {
	suiteSees(t, "TestMemorySink", map[string]string{
		"reversed": "order", "loses": "order", "twice": "order", "trims": "fidelity", "headers": "fidelity",
		"no tombstone": "fidelity", "scribbles": "fidelity", "truncates": "largest", "new id on repeat": "repeat",
		"short without error": "order", "error with all": "order", "passes a refusal": "refuse", "swallows a refusal": "refuse",
		"vague refusal": "refuse", "counts a refusal": "refuse", "outage rejects": "break", "cancel rejects": "cancelled",
		"ignores ctx": "stall", "write after close": "close", "close twice": "close", "leak": "close",
	})
}

// suiteSees runs a suite, by the name of its test, on an adapter with each of the
// faults, and demands that the check which is named beside the fault fails.
func suiteSees(t *testing.T, suite string, faults map[string]string) {
	if os.Getenv(faultVariable) != "" {
		t.Skip("started by itself")
	}
	for fault, check := range faults {
		t.Run(fault, func(t *testing.T) {
			t.Parallel()
			name := strings.ReplaceAll(check, " ", "_")
			cmd := exec.Command(os.Args[0], "-test.run=^"+suite+"$/^"+name+"$", "-test.timeout=3m")
			cmd.Env = append(os.Environ(), faultVariable+"="+fault)
			out, err := cmd.CombinedOutput()
			if err == nil {
				t.Fatalf("the check %q passed what %s", check, fault)
			}
			if !strings.Contains(string(out), "FAIL: "+suite+"/"+name+" ") || strings.Contains(string(out), "panic:") {
				t.Errorf("not found by the check %q:\n%s", check, out)
			}
		})
	}
}
