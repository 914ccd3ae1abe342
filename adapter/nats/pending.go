package nats

import (
	"context"
	"fmt"
	"time"

	natsgo "github.com/nats-io/nats.go"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/internal/places"
	"github.com/onewrite/onewrite/internal/topics"
)

// Pending counts events; see [onewrite.Subscription]. With several patterns that
// overlap in part it may count an event twice, until none is left.
func (s *subscription) Pending(ctx context.Context, at map[string]onewrite.LogCursor) (uint64, error) {
	ctx, cancel := bounded(ctx)
	defer cancel()
	var in inbox
	defer in.close()
	total := uint64(0)
	for _, r := range s.logs {
		tail, err := s.b.tail(ctx, r.l)
		if err != nil {
			return 0, err
		}
		c := at[r.l.source]
		if c.Floor >= tail {
			continue
		}
		n, err := uint64(0), error(nil)
		if s.b.isPacked(r.l) {
			n, err = s.countPacked(ctx, &in, r, c, tail)
		} else {
			n, err = s.countAt(ctx, &in, r.l.source, c)
		}
		if err != nil {
			return 0, fmt.Errorf("nats: pending events of source %s: %w", r.l.source, err)
		}
		total += n
	}
	return total, nil
}

// countAt counts the matching events behind a place.
func (s *subscription) countAt(ctx context.Context, in *inbox, source string, c onewrite.LogCursor) (uint64, error) {
	n, err := s.count(ctx, in, source, c.Floor+1)
	for i := 0; i < len(c.Done) && err == nil; i++ {
		var done uint64
		done, err = s.countIn(ctx, in, source, c.Done[i])
		n -= min(n, done)
	}
	return n, err
}

// countPacked counts the matching events behind a place in a log with packs. What nobody
// has looked at yet is read for it, once; until that is done, it counts as matching.
func (s *subscription) countPacked(ctx context.Context, in *inbox, r *logReader, c onewrite.LogCursor, tail uint64) (uint64, error) {
	if len(s.filter) == 0 {
		state, err := s.b.stateOf(ctx, r.l)
		if err != nil {
			return 0, err
		}
		first, err := s.b.firstOffset(ctx, r.l, state)
		if err != nil {
			return 0, err
		}
		up, _, _ := places.MoveUp(c, first)
		n := tail - min(tail, up.Floor)
		for _, d := range up.Done {
			n -= min(n, d.To-d.From+1)
		}
		return n, nil
	}
	if err := s.tallyUp(ctx, in, r, tail); err != nil {
		return 0, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.tally.Pending(c, tail), nil
}

// tallyTime is how long a count may read on; a backlog takes several.
const tallyTime = time.Second

// tallyUp lets a reader's tally know of all up to tail, or as far as the time allows.
func (s *subscription) tallyUp(ctx context.Context, in *inbox, r *logReader, tail uint64) error {
	next := func() uint64 {
		r.mu.Lock()
		defer r.mu.Unlock()
		return r.tally.Upto() + 1
	}
	note := func(offset uint64, topic string) bool {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.tally.Note(offset, s.filter.Wants(topic))
		return false
	}
	from := mark{}
	for end := time.Now().Add(tallyTime); next() <= tail && time.Now().Before(end); {
		at := next()
		if r.l.recent.each(at, tail, func(offset uint64, e *onewrite.Event) bool {
			note(offset, e.Topic)
			return true
		}) {
			continue
		}
		if from.first != at {
			seq, err := s.b.seqOf(ctx, in, r.l, at)
			if err != nil {
				return err
			}
			from = mark{seq, at}
		}
		f, err := s.b.fetch(ctx, in, s.b.stream(r.l.source), query{Seq: from.seq, Batch: readCount}, func(seq uint64, m *natsgo.Msg) error {
			first, n, err := place(m.Header, seq)
			if err != nil {
				return fmt.Errorf("message %d of stream %s: %w", seq, s.b.stream(r.l.source), err)
			}
			from = mark{seq + 1, first + uint64(n)}
			_ = unpack(m.Header, m.Data, first, note, nil) // the reader says what is wrong with it
			r.mu.Lock()
			r.tally.Pass(from.first - 1)
			r.mu.Unlock()
			return nil
		})
		if err != nil {
			return err
		}
		if f.exhausted { // what is not there by now will not come
			r.mu.Lock()
			r.tally.Pass(tail)
			r.mu.Unlock()
		}
	}
	return nil
}

// note takes an event that comes next into account.
func (r *logReader) note(offset uint64, wanted bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if offset == r.tally.Upto()+1 {
		r.tally.Note(offset, wanted)
	}
}

// countIn counts the matching events of a span.
func (s *subscription) countIn(ctx context.Context, in *inbox, source string, span onewrite.Span) (uint64, error) {
	if len(s.filter) == 0 {
		return span.To - span.From + 1, nil
	}
	n, err := s.count(ctx, in, source, span.From)
	if err != nil || n == 0 {
		return 0, err
	}
	beyond, err := s.count(ctx, in, source, span.To+1)
	return n - min(n, beyond), err
}

// countOf counts the messages of a subject in a stream.
func (s *subscription) countOf(ctx context.Context, stream, subject string) (uint64, error) {
	var in inbox
	defer in.close()
	f, err := s.b.fetch(ctx, &in, stream, query{Seq: 1, NextFor: subject, Batch: 1}, func(uint64, *natsgo.Msg) error { return nil })
	if err != nil || f.count == 0 {
		return 0, err
	}
	return f.pending + 1, nil
}

// count counts the matching events from an offset on.
func (s *subscription) count(ctx context.Context, in *inbox, source string, from uint64) (n uint64, err error) {
	filters := []topics.Filter{nil}
	if len(s.filter) > 0 {
		filters = filters[:0]
		for _, p := range s.filter {
			filters = append(filters, topics.Filter{p})
		}
	}
	for _, one := range filters {
		q := query{Seq: from, NextFor: subjectFor(one, s.b.subjects(source)), Batch: 1}
		f, err := s.b.fetch(ctx, in, s.b.stream(source), q, func(uint64, *natsgo.Msg) error { return nil })
		if err != nil {
			return 0, err
		}
		if f.count > 0 {
			n += f.pending + 1
		}
	}
	return n, nil
}
