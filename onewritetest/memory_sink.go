package onewritetest

import (
	"context"
	"errors"
	"slices"
	"sync"

	"github.com/onewrite/onewrite"
)

// MemorySink is a destination in memory, to watch a pipeline with or to try what
// it does when a destination refuses, fails or hangs. The zero value takes
// everything; set the fields before the first use.
type MemorySink struct {
	// Before, if set, is called before an event is taken: an error says that it was
	// not. It may take its time.
	Before func(ctx context.Context, e onewrite.Event) error
	// After, if set, is called when an event was taken: an error loses the answer.
	After func(ctx context.Context, e onewrite.Event) error

	mu      sync.Mutex
	events  []onewrite.Event
	ids     map[string]bool
	answers map[string]error
	changed chan struct{} // closed when something arrives or is answered otherwise
}

// ErrStall is the answer that does not come; see [MemorySink.Answer].
var ErrStall = errors.New("onewritetest: no answer")

var errSinkClosed = errors.New("onewritetest: the sink is closed")

// Open returns a sink that delivers here; there may be any number of them. It
// never fails, and fits [github.com/onewrite/onewrite/pipeline.Delivery].
func (m *MemorySink) Open(context.Context) (onewrite.Sink, error) {
	return &memoryConnection{sink: m, gone: make(chan struct{})}, nil
}

// Answer sets what is said to the event of an id from now on, and with an empty id
// to all that have no answer of their own: nil takes it, [onewrite.ErrRejected]
// refuses it, any other error fails, and [ErrStall] lets the writer wait until the
// answer is another one.
func (m *MemorySink) Answer(id string, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.prepare()
	if delete(m.answers, id); err != nil {
		m.answers[id] = err
	}
	m.stir()
}

// Received returns what arrived, repeats included, in order.
func (m *MemorySink) Received() []onewrite.Event {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.events)
}

// Wait waits until events of n ids have arrived, and returns what [MemorySink.Received]
// does. The error is that of ctx.
func (m *MemorySink) Wait(ctx context.Context, n int) ([]onewrite.Event, error) {
	for {
		m.mu.Lock()
		m.prepare()
		there, changed, events := len(m.ids), m.changed, slices.Clone(m.events)
		m.mu.Unlock()
		if there >= n {
			return events, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return events, ctx.Err()
		}
	}
}

// prepare makes the maps; m.mu is held.
func (m *MemorySink) prepare() {
	if m.ids == nil {
		m.ids, m.answers, m.changed = map[string]bool{}, map[string]error{}, make(chan struct{})
	}
}

// stir wakes those who wait; m.mu is held.
func (m *MemorySink) stir() {
	close(m.changed)
	m.changed = make(chan struct{})
}

// take takes an event, or says why not. changed is closed when that may be another.
func (m *MemorySink) take(e onewrite.Event) (changed <-chan struct{}, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.prepare()
	err, ok := m.answers[e.ID]
	if !ok {
		err = m.answers[""]
	}
	if err == nil {
		m.events = append(m.events, cloneEvent(e))
		m.ids[e.ID] = true
		m.stir()
	}
	return m.changed, err
}

// memoryConnection is one sink of a [MemorySink].
type memoryConnection struct {
	sink *MemorySink
	once sync.Once
	gone chan struct{} // closed by Close
}

func (c *memoryConnection) Write(ctx context.Context, events []onewrite.Event) (int, error) {
	for i, e := range events {
		if err := c.write(ctx, e); err != nil {
			return i, err
		}
	}
	return len(events), nil
}

func (c *memoryConnection) write(ctx context.Context, e onewrite.Event) error {
	if c.sink.Before != nil {
		if err := c.sink.Before(ctx, e); err != nil {
			return err
		}
	}
	for {
		select {
		case <-c.gone:
			return errSinkClosed
		default:
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		changed, err := c.sink.take(e)
		if err == nil {
			break
		}
		if !errors.Is(err, ErrStall) {
			return err
		}
		select {
		case <-changed:
		case <-c.gone:
		case <-ctx.Done():
		}
	}
	if c.sink.After != nil {
		return c.sink.After(ctx, e)
	}
	return nil
}

func (c *memoryConnection) Close() error {
	c.once.Do(func() { close(c.gone) })
	return nil
}
