package kafka

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
)

// readWait is how long a broker holds back an empty answer.
const readWait = 500 * time.Millisecond

// sent are records under way. What is answered after everybody has gone is noted
// here and looked at by no one.
type sent struct {
	mu   sync.Mutex
	left int
	errs []error // by record, nil: none yet or stored
	done chan struct{}
}

// result takes the answer to record i.
func (w *sent) result(i int, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.errs[i] = err
	if w.left--; w.left == 0 {
		close(w.done)
	}
}

// start hands records to a client.
func start(cl *kgo.Client, recs []*kgo.Record) *sent {
	w := &sent{left: len(recs), errs: make([]error, len(recs)), done: make(chan struct{})}
	for i, r := range recs {
		cl.Produce(context.Background(), r, func(_ *kgo.Record, err error) { w.result(i, err) })
	}
	return w
}

// wait waits for the answers. An err says that not all came in time: then the records are
// still under way, until the client is told to give them up.
func (w *sent) wait(ctx context.Context) (errs []error, err error) {
	select {
	case <-w.done:
		return w.errs, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// send hands records to a client and waits for the answers, as wait does.
func send(ctx context.Context, cl *kgo.Client, recs []*kgo.Record) (errs []error, err error) {
	if len(recs) == 0 {
		return nil, nil
	}
	w := start(cl, recs)
	if err := cl.Flush(ctx); err != nil {
		return nil, err
	}
	return w.wait(ctx) // the last answer is told a moment after the flush
}

// failed returns the first record with an error that is not just a consequence of
// another's, or -1.
func failed(errs []error) int {
	first := -1
	for i, err := range errs {
		if err == nil {
			continue
		}
		if first < 0 {
			first = i
		}
		if !errors.Is(err, kgo.ErrAborting) && !errors.Is(err, kerr.OperationNotAttempted) {
			return i
		}
	}
	return first
}

// moved returns why the partitioner has refused a record, or nil.
func (s *core) moved(r *kgo.Record) error {
	if r.Key == nil {
		return nil
	}
	_, changed := s.takes(r.Topic)
	return changed
}
