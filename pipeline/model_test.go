package pipeline_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/onewrite/onewrite"
)

// errInjected is what a fault returns.
var errInjected = errors.New("injected fault")

// memSource is a model of a database: a list of committed events; its position
// is the number of events before it.
type memSource struct {
	mu      sync.Mutex
	name    string
	changed chan struct{}
	events  []onewrite.Event
	acked   int
	chunk   int
	reader  *memReader // the one that holds the lock
}

func newMemSource(name string) *memSource {
	return &memSource{name: name, changed: make(chan struct{}), chunk: 7}
}

// commit adds events as one transaction.
func (s *memSource) commit(events ...onewrite.Event) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range events {
		e.Source, e.Time = s.name, time.Now()
		e.Seq = fmt.Sprintf("%020d", len(s.events)+1)
		s.events = append(s.events, e)
	}
	close(s.changed)
	s.changed = make(chan struct{})
}

func (s *memSource) open(_ context.Context, pos onewrite.Pos) (onewrite.Source, error) {
	n := 0
	if pos != "" {
		var err error
		if n, err = strconv.Atoi(string(pos)); err != nil {
			return nil, err
		}
	}
	r := &memReader{s: s, next: n}
	s.mu.Lock()
	s.reader = r
	s.mu.Unlock()
	return r, nil
}

type memReader struct {
	s    *memSource
	next int
}

func (r *memReader) Read(ctx context.Context) (onewrite.Batch, error) {
	for {
		r.s.mu.Lock()
		from, to := r.next, min(len(r.s.events), r.next+r.s.chunk)
		events := slices.Clone(r.s.events[from:to])
		changed := r.s.changed
		r.s.mu.Unlock()
		if len(events) > 0 {
			r.next = to
			return onewrite.Batch{Events: events, Pos: onewrite.Pos(strconv.Itoa(to)),
				PosAt: func(i int) onewrite.Pos { return onewrite.Pos(strconv.Itoa(from + i + 1)) }}, nil
		}
		select {
		case <-ctx.Done():
			return onewrite.Batch{}, ctx.Err()
		case <-changed:
		}
	}
}

func (r *memReader) Ack(_ context.Context, pos onewrite.Pos) error {
	n, err := strconv.Atoi(string(pos))
	if err != nil {
		return err
	}
	r.s.mu.Lock()
	r.s.acked = max(r.s.acked, n)
	r.s.mu.Unlock()
	return nil
}

func (r *memReader) Close() error { return nil }
