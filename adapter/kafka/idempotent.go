package kafka

import (
	"context"
	"fmt"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/internal/sabotage"
)

// producers is how many writes an [Idempotent] has under way at once; more wait.
const producers = 4

// Idempotent writes without transactions, and waits for all replicas in sync. The
// brokers drop what the client sends again by itself; what a crash leaves
// unconfirmed is written again and is there twice.
type Idempotent struct {
	*core
	all  []*producer
	free chan *producer
}

// producer is a client with one write under way. All records of a write are handed to
// it before it sends the first, so that each partition gets them as one batch.
type producer struct {
	cl    *kgo.Client
	dirty bool // records are under way that nobody waits for
	enc   encoder
}

// NewIdempotent connects, and creates the topic of places, which has the partitions'
// numbers here, if there is none. The error says why it cannot.
func NewIdempotent(ctx context.Context, c Config) (*Idempotent, error) {
	core, err := open(ctx, c)
	if err != nil {
		return nil, err
	}
	s := &Idempotent{core: core, free: make(chan *producer, producers)}
	for range producers { // they connect when they are used
		cl, err := kgo.NewClient(append(core.opts, kgo.ManualFlushing())...)
		if err != nil {
			_ = s.Close()
			return nil, fmt.Errorf("kafka: %w", err)
		}
		p := &producer{cl: cl}
		s.all = append(s.all, p)
		s.free <- p
	}
	return s, nil
}

// Close ends the connections.
func (s *Idempotent) Close() error {
	_ = s.core.Close() // it cannot fail
	for _, p := range s.all {
		p.cl.Close()
	}
	return nil
}

// Write sends events in windows of which each partition gets one batch, so that what
// stands behind a refused record in its key never passes it; see [onewrite.Sink].
func (s *Idempotent) Write(ctx context.Context, events []onewrite.Event) (int, error) {
	if err := s.usable(ctx); err != nil || len(events) == 0 {
		return 0, err
	}
	ctx, cancel := context.WithTimeout(ctx, writeTimeout)
	defer cancel()
	var p *producer
	select {
	case p = <-s.free:
	case <-s.closed:
		return 0, errClosed
	case <-ctx.Done():
		return 0, context.Cause(ctx)
	}
	defer func() { s.free <- p }()
	if err := p.mend(ctx); err != nil {
		return 0, s.worded(err, "give up records without an answer", "")
	}
	enc := p.enc.lend()
	recs, of, unfit := s.records(ctx, &enc, events)
	n, cause := s.enter(ctx, recs, events, of)
	for from := 0; from < n; {
		to := from + s.window(recs[from:n], events, of[from:n])
		sent, err := s.writeWindow(ctx, p, recs[from:to], events, of[from:to])
		if err != nil {
			return sent, err
		}
		from = to
	}
	p.enc.back(enc)
	if n < len(recs) {
		return of[n], cause
	}
	if unfit != nil {
		return whole(of), unfit
	}
	return len(events), nil
}

// mend waits for what an earlier write left under way.
func (p *producer) mend(ctx context.Context) error {
	if !p.dirty {
		return nil
	}
	if err := p.cl.AbortBufferedRecords(ctx); err != nil {
		return err
	}
	p.dirty = false
	return nil
}

// enter admits records, and sees to it that the partitions' numbers are remembered
// before a topic is written to.
func (s *Idempotent) enter(ctx context.Context, recs []*kgo.Record, events []onewrite.Event, of []int) (int, error) {
	if err := s.take(ctx); err != nil {
		return 0, err
	}
	defer func() { <-s.turn }()
	if s.counts == nil {
		if err := s.load(ctx); err != nil {
			return 0, err
		}
	}
	n, cause := s.admit(ctx, recs, events, of)
	if counts := s.remember(false); counts != nil {
		if err := s.put(ctx, counts); err != nil {
			s.forgot()
			return 0, err
		}
	}
	return n, cause
}

// load reads what is remembered.
func (s *Idempotent) load(ctx context.Context) error {
	mark, token := s.mark()
	if err := s.put(ctx, mark); err != nil {
		return err
	}
	m, err := s.recall(ctx, mark, token)
	if err != nil {
		return err
	}
	return s.recollect(m)
}

// put writes one record to the topic of places. What becomes of it after an error
// does no harm: it says nothing that is not so.
func (s *Idempotent) put(ctx context.Context, r *kgo.Record) error {
	errs, err := send(ctx, s.cl, []*kgo.Record{r})
	if err == nil && errs[0] != nil {
		return unsteered{s.worded(errs[0], "the places of "+s.c.Destination, s.c.Places)}
	}
	return s.worded(err, "the places of "+s.c.Destination, s.c.Places)
}

// window returns how many leading records may be under way together: each partition's
// are one batch, and each key's are in one partition.
func (s *Idempotent) window(recs []*kgo.Record, events []onewrite.Event, of []int) int {
	type lane struct{ source, key string }
	sizes, keys := map[string]int{}, make(map[lane]string, len(recs))
	for i, r := range recs {
		size := sizeOf(r)
		limit, _ := s.takes(r.Topic)
		if had := sizes[r.Topic]; had > 0 && had+size+batchOverhead > limit {
			return i
		}
		sizes[r.Topic] += size
		if r.Key == nil {
			continue
		}
		e := &events[of[i]]
		l := lane{e.Source, e.Key}
		if other, has := keys[l]; has && other != r.Topic {
			return i
		}
		keys[l] = r.Topic
	}
	return len(recs)
}

// writeWindow sends a window and waits for the answers. The error is about
// events[bad]. A batch that is refused as a whole is sent again in halves, to find
// the record.
func (s *Idempotent) writeWindow(ctx context.Context, p *producer, recs []*kgo.Record, events []onewrite.Event, of []int) (bad int, err error) {
	if err := sabotage.At("kafka.send"); err != nil {
		return of[0], err
	}
	errs, err := send(ctx, p.cl, recs)
	if err == nil {
		err = sabotage.At("kafka.sent")
	}
	if err != nil {
		p.dirty = true
		return of[0], s.worded(err, "event "+events[of[0]].ID, recs[0].Topic)
	}
	i := first(errs)
	if i < 0 {
		return 0, nil
	}
	s.gone(recs[i].Topic, errs[i])
	if batchwide(errs[i]) {
		var again []*kgo.Record
		var whose []int
		for j, r := range recs {
			if errs[j] != nil {
				again = append(again, &kgo.Record{Topic: r.Topic, Key: r.Key, Value: r.Value, Headers: r.Headers})
				whose = append(whose, of[j])
			}
		}
		if len(again) > 1 {
			return s.halves(ctx, p, again, events, whose)
		}
	}
	r, e := recs[i], &events[of[i]]
	switch {
	case !refusal(errs[i]) && s.moved(r) != nil:
		return of[i], s.moved(r)
	case fenced(errs[i]): // by no twin, since there is no transactional.id
		return of[i], s.worded(unsteered{errs[i]}, "event "+e.ID, r.Topic)
	}
	return of[i], s.worded(errs[i], "event "+e.ID, r.Topic)
}

// first returns the first record with an error, or -1.
func first(errs []error) int {
	for i, err := range errs {
		if err != nil {
			return i
		}
	}
	return -1
}

// halves sends records in two windows.
func (s *Idempotent) halves(ctx context.Context, p *producer, recs []*kgo.Record, events []onewrite.Event, of []int) (int, error) {
	mid := (len(recs) + 1) / 2
	if bad, err := s.writeWindow(ctx, p, recs[:mid], events, of[:mid]); err != nil {
		return bad, err
	}
	return s.writeWindow(ctx, p, recs[mid:], events, of[mid:])
}
