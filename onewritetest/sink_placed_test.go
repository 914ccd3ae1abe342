package onewritetest_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"sync"
	"testing"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/onewritetest"
)

// placedStore is a system in memory that keeps a place, with a fault or none. What an
// event's fate is, its probe says: the answer of a MemorySink that holds nothing.
type placedStore struct {
	fault string
	all   *onewritetest.MemorySink
	probe *onewritetest.MemorySink

	mu    sync.Mutex
	place []byte
	owner int
}

type placedSink struct {
	onewrite.Sink
	s     *placedStore
	owner int
}

func (p *placedSink) Place(context.Context) ([]byte, error) {
	p.s.mu.Lock()
	defer p.s.mu.Unlock()
	if p.s.fault != "takes nothing over" || p.s.owner == 0 {
		p.s.owner++
	}
	p.owner = p.s.owner
	if p.s.fault == "cuts the record" && len(p.s.place) > 1<<16 {
		return p.s.place[:1<<16], nil
	}
	return bytes.Clone(p.s.place), nil
}

func (p *placedSink) WriteAt(ctx context.Context, msgs []onewrite.Message, place []byte) (int, error) {
	s := p.s
	s.mu.Lock()
	defer s.mu.Unlock()
	if p.owner != s.owner {
		return 0, onewrite.ErrFenced
	}
	trial, err := s.probe.Open(ctx)
	if err != nil {
		return 0, err
	}
	for i, m := range msgs {
		if _, err := trial.Write(ctx, []onewrite.Event{m.Event}); err != nil {
			if s.fault == "leaves the record" {
				s.place = bytes.Clone(place)
			}
			if s.fault == "names the first" {
				i = 0
			}
			return i, err
		}
		if s.fault == "leaves the others" {
			_, err = p.Write(ctx, []onewrite.Event{m.Event})
		}
		if err != nil {
			return i, err
		}
	}
	if s.fault != "keeps no record" {
		s.place = bytes.Clone(place)
	}
	if s.fault == "writes the record alone" {
		return 0, nil
	}
	events := make([]onewrite.Event, len(msgs))
	for i, m := range msgs {
		events[i] = m.Event
	}
	if s.fault == "writes twice" {
		events = append(events, events[0])
	}
	_, err = p.Write(ctx, events)
	return 0, err
}

// TestPlacedSink runs the suite on a right sink that keeps its place, or on a wrong one
// when TestPlacedSuiteSees has started it.
func TestPlacedSink(t *testing.T) {
	s := &placedStore{all: &onewritetest.MemorySink{}, probe: &onewritetest.MemorySink{}, fault: os.Getenv(faultVariable)}
	h := memorySinkHarness(s.all)
	right := h.New
	h.New = func(t *testing.T) onewrite.Sink { return &placedSink{Sink: right(t), s: s} }
	h.Refuse = func(_ *testing.T, id string) {
		s.all.Answer(id, onewrite.ErrRejected)
		s.probe.Answer(id, onewrite.ErrRejected)
	}
	h.Break = func(*testing.T) func() {
		down := errors.New("down")
		if s.fault == "an outage is a refusal" {
			down = onewrite.ErrRejected
		}
		s.all.Answer("", down)
		s.probe.Answer("", down)
		return func() {
			s.all.Answer("", nil)
			s.probe.Answer("", nil)
		}
	}
	onewritetest.TestSink(t, h)
}

func TestPlacedSuiteSees(t *testing.T) {
	suiteSees(t, "TestPlacedSink", map[string]string{
		"takes nothing over": "placed", "cuts the record": "placed", "keeps no record": "placed", "writes the record alone": "placed", "writes twice": "placed",
		"leaves the record": "placed-refuse", "names the first": "placed-refuse", "leaves the others": "placed-refuse", "an outage is a refusal": "placed-break",
	})
}
