package postgres

import (
	"context"
	"slices"
	"sync"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/internal/pgoutput"
)

const (
	// queueEvents and queueBytes bound what was read from the log and not handed over.
	queueEvents = 4 * onewrite.MaxBatch
	queueBytes  = 16 << 20
)

// item is an event with the place just after it.
type item struct {
	event *onewrite.Event // nil until it is made
	row   *change         // of which it is made when it is taken; nil: it is made
	last  bool            // it is the last of its transaction, which the event says when it is taken
	at    logPlace
	xid   uint64 // of a transaction that has written the outbox until here; 0: it has not
	seq   int64  // of an event of the outbox; 0: it is a row change
}

// size is about how many bytes the event has or will have.
func (i *item) size() int {
	if i.row != nil {
		return i.row.size
	}
	return i.event.Size()
}

// logQueue is between the goroutine that receives the log and the one that calls
// Read. A transaction of up to MaxBatch events is handed over whole.
type logQueue struct {
	mu     sync.Mutex
	moved  sync.Cond
	items  []item // a part of buf
	buf    []item
	bytes  int
	failed error
	pushed uint64 // items that were ever put in
	taken  uint64 // and taken out
}

func newLogQueue() *logQueue {
	q := &logQueue{}
	q.moved.L = &q.mu
	return q
}

// put adds events and waits while there are too many. It returns false when the queue
// was closed.
func (q *logQueue) put(run []item) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	for q.failed == nil && len(q.items) > 0 && (len(q.items) >= queueEvents || q.bytes >= queueBytes) {
		q.moved.Wait()
	}
	if q.failed != nil {
		return false
	}
	q.room(len(run))
	for i := range run {
		q.items = append(q.items, run[i])
		q.bytes += run[i].size()
	}
	q.pushed += uint64(len(run))
	q.moved.Broadcast()
	return true
}

// room makes room for n more behind what waits: before it, if much was taken, or elsewhere.
func (q *logQueue) room(n int) {
	wait := len(q.items)
	switch n += wait; {
	case n <= cap(q.items):
	case 2*n <= len(q.buf):
		old := q.items
		q.items = q.buf[:copy(q.buf, old)]
		clear(old[max(0, wait-(len(q.buf)-cap(old))):]) // what was not written over
	default:
		q.buf = make([]item, 3*n)
		q.items = q.buf[:copy(q.buf, q.items)]
	}
}

// fail ends the queue: take returns err once what is in it was taken.
func (q *logQueue) fail(err error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.failed == nil {
		q.failed = err
	}
	q.moved.Broadcast()
}

// take returns the next items, at most MaxBatch and about limit bytes.
func (q *logQueue) take(ctx context.Context, limit int) (items []item, err error) {
	defer context.AfterFunc(ctx, func() {
		q.mu.Lock()
		defer q.mu.Unlock()
		q.moved.Broadcast()
	})()
	q.mu.Lock()
	defer q.mu.Unlock()
	for {
		if n := q.ready(limit); n > 0 {
			items = slices.Clone(q.items[:n])
			clear(q.items[:n]) // what is behind them would keep them
			q.items = q.items[n:]
			q.taken += uint64(n)
			for i := range items {
				q.bytes -= items[i].size()
			}
			q.moved.Broadcast()
			return items, nil
		}
		if q.failed != nil {
			return nil, q.failed
		}
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		q.moved.Wait()
	}
}

// ready counts the items of the next batch. It ends with a transaction, unless one
// alone is too large.
func (q *logQueue) ready(limit int) int {
	n, bytes, end := 0, 0, 0
	for n < len(q.items) && n < onewrite.MaxBatch && (n == 0 || bytes < limit) {
		bytes += q.items[n].size()
		n++
		if q.items[n-1].at.tx == 0 {
			end = n
		}
	}
	if end > 0 {
		return end
	}
	if n == onewrite.MaxBatch || bytes >= limit || len(q.items) >= queueEvents || q.bytes >= queueBytes {
		return n
	}
	return 0
}

// count returns how many items were ever put in.
func (q *logQueue) count() uint64 {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.pushed
}

// idle reports whether all that was ever put in is on the bus.
func (q *logQueue) idle(stored uint64) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return stored == q.pushed
}

// handed remembers which batch ends where, until the bus has it.
type handed struct {
	pos  onewrite.Pos
	done pgoutput.LSN
	n    uint64 // items up to its end
}
