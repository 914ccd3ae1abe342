package search

import (
	"context"
	"sync"
)

// life lets writes in until it ends, and ends those that are under way.
type life struct {
	closing context.Context // ends with the life
	cancel  context.CancelFunc

	gate   sync.Mutex
	closed bool           // under gate
	writes sync.WaitGroup // grows under gate while not closed
}

func (l *life) begin() { l.closing, l.cancel = context.WithCancel(context.Background()) }

// enter lets a write in. Its context ends with the life as well; leave is to be called
// when the write is done.
func (l *life) enter(ctx context.Context) (bounded context.Context, leave func(), err error) {
	l.gate.Lock()
	defer l.gate.Unlock()
	if l.closed {
		return nil, nil, errClosed
	}
	l.writes.Add(1)
	bounded, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(l.closing, cancel)
	return bounded, func() { stop(); cancel(); l.writes.Done() }, nil
}

// end ends the writes under way and waits for them. again: it had ended before.
func (l *life) end() (again bool) {
	l.gate.Lock()
	again, l.closed = l.closed, true
	l.gate.Unlock()
	l.cancel()
	l.writes.Wait()
	return again
}
