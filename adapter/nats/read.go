package nats

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	natsgo "github.com/nats-io/nats.go"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/internal/sabotage"
	"github.com/onewrite/onewrite/internal/topics"
)

const (
	readCount = 1000    // messages that Read returns at most
	readBytes = 8 << 20 // where it stops collecting
	// report is how often a reader says that it passed what does not match.
	report = 200 * time.Millisecond
	// lag is how long a replica of an external log may take to show what its
	// leader has.
	lag = 15 * time.Second
)

// logReader is a subscription's place in one log.
type logReader struct {
	l    *logState
	next atomic.Uint64   // the first offset not looked at
	done []onewrite.Span // confirmed above the floor

	reported uint64    // the offset that the caller knows to be passed
	at       time.Time // when it was told
	quiet    time.Time // not looked at before
	pause    time.Duration
	behind   time.Time // since when a replica lags
}

func newLogReader(b *Bus, source string, lc onewrite.LogCursor) *logReader {
	r := &logReader{l: b.logOf(source), done: slices.Clone(lc.Done), reported: lc.Floor}
	r.next.Store(lc.Floor + 1)
	return r
}

// skips reports whether offset was confirmed by an earlier owner. Offsets come
// in order.
func (r *logReader) skips(offset uint64) bool {
	for len(r.done) > 0 && r.done[0].To < offset {
		r.done = r.done[1:]
	}
	return len(r.done) > 0 && r.done[0].From <= offset
}

// rest lets a log that had nothing for us be, a little longer each time: on a
// busy bus a destination that wants little would ask at every append.
func (r *logReader) rest(limit time.Duration) {
	r.pause = min(max(2*r.pause, time.Millisecond), limit)
	r.quiet = time.Now().Add(r.pause)
}

// Read returns the next events; see [onewrite.Subscription]. Their Data and
// Header may be shared with other subscriptions: they are to be read only.
func (s *subscription) Read(ctx context.Context) ([]onewrite.Message, map[string]uint64, error) {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		if err := ctx.Err(); err != nil {
			return nil, nil, context.Cause(ctx)
		}
		msgs, wait, err := s.collect(ctx)
		if err != nil {
			s.inbox.close()
			s.inbox = inbox{}
			return nil, nil, err
		}
		upto, wait := s.passed(len(msgs) > 0, wait)
		if len(msgs) > 0 || upto != nil {
			return msgs, upto, nil
		}
		timer.Reset(wait)
		select {
		case <-ctx.Done():
		case <-s.gone:
			s.inbox.close()
			return nil, nil, errors.New("nats: the subscription is closed")
		case <-s.wake:
		case <-timer.C:
		}
	}
}

// collect goes once through the logs, beginning with another one each time, and
// takes what is there. wait says when to look again at the latest.
func (s *subscription) collect(ctx context.Context) (msgs []onewrite.Message, wait time.Duration, err error) {
	wait = time.Second
	s.turn++
	bytes := 0
	for i := range s.logs {
		r := s.logs[(s.turn+i)%len(s.logs)]
		tail, err := s.b.tail(ctx, r.l)
		if err != nil {
			return nil, 0, err
		}
		if r.next.Load() > tail {
			continue
		}
		if d := time.Until(r.quiet); d > 0 {
			wait = min(wait, d)
			continue
		}
		if len(msgs) >= readCount || bytes >= readBytes {
			return msgs, 0, nil
		}
		had := len(msgs)
		if msgs, err = s.take(ctx, r, tail, msgs); err != nil {
			return nil, 0, fmt.Errorf("nats: read source %s: %w", r.l.source, err)
		}
		for j := had; j < len(msgs); j++ {
			bytes += msgs[j].Size()
		}
		if r.next.Load() <= tail {
			wait = min(wait, max(0, time.Until(r.quiet)))
		}
	}
	return msgs, wait, nil
}

// take reads one log from where it was left, up to tail.
func (s *subscription) take(ctx context.Context, r *logReader, tail uint64, msgs []onewrite.Message) ([]onewrite.Message, error) {
	if err := sabotage.At("bus.read"); err != nil {
		return nil, err
	}
	next := r.next.Load()
	if more, ok := s.takeRecent(r, next, tail, msgs); ok {
		return more, nil
	}
	q := query{Seq: next, Batch: readCount - len(msgs)}
	if s.b.emb != nil && len(s.filter) > 0 {
		q.NextFor = subjectFor(s.filter, s.b.subjects(r.l.source))
	} else {
		q.Batch = int(min(uint64(q.Batch), tail-next+1))
	}
	had, seen := len(msgs), next-1
	f, err := s.b.fetch(ctx, &s.inbox, s.b.stream(r.l.source), q, func(seq uint64, m *natsgo.Msg) error {
		if q.NextFor == "" && seq > seen+1 && seen+1 >= next && s.in.Name != "" {
			s.b.vanished(s.in.Name, r.l.source, seen+1, seq-1)
		}
		seen = max(seen, seq)
		if seq < next || seq > tail || r.skips(seq) {
			return nil
		}
		e, err := decode(m.Header, m.Data)
		if err != nil {
			s.b.log.Error("a message on the bus is not an event and is passed over", "stream", s.b.stream(r.l.source), "offset", seq, "error", err)
			return nil
		}
		if s.filter.Wants(e.Topic) {
			msgs = append(msgs, onewrite.Message{Event: e, Log: r.l.source, Offset: seq})
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	// The embedded server has all up to the tail. A replica of a cluster may lag
	// behind the leader that told the tail, and shows that it does not by giving
	// the tail itself or what is beyond.
	switch {
	case seen >= tail, f.exhausted && s.b.emb != nil:
		seen = tail
		r.behind = time.Time{}
	case f.exhausted:
		if err := r.lagging(tail); err != nil {
			return nil, err
		}
	}
	r.next.Store(seen + 1)
	if len(msgs) > had {
		r.pause = 0
		r.reported = msgs[len(msgs)-1].Offset
	} else if f.exhausted {
		r.rest(4 * time.Millisecond)
	}
	return msgs, nil
}

// takeRecent reads one log from memory; false if what is next is not there.
func (s *subscription) takeRecent(r *logReader, next, tail uint64, msgs []onewrite.Message) ([]onewrite.Message, bool) {
	had, seen, bytes := len(msgs), next-1, 0
	ok := r.l.recent.each(next, tail, func(offset uint64, e *onewrite.Event) bool {
		seen = offset
		if !r.skips(offset) && s.filter.Wants(e.Topic) {
			msgs = append(msgs, onewrite.Message{Event: *e, Log: r.l.source, Offset: offset})
			bytes += e.Size()
		}
		return len(msgs) < readCount && bytes < fetchBytes
	})
	if !ok {
		return msgs, false
	}
	r.next.Store(seen + 1)
	r.pause, r.behind = 0, time.Time{}
	if len(msgs) > had {
		r.reported = msgs[len(msgs)-1].Offset
	}
	return msgs, true
}

func (r *logReader) lagging(tail uint64) error {
	if r.behind.IsZero() {
		r.behind = time.Now()
	}
	r.rest(100 * time.Millisecond)
	if time.Since(r.behind) > lag {
		return fmt.Errorf("its stream does not show message %d that it had; is a replica down, or was the stream purged from outside? See nats stream info", tail)
	}
	return nil
}

// passed says which offsets were passed without a message, not too often.
func (s *subscription) passed(always bool, wait time.Duration) (map[string]uint64, time.Duration) {
	var upto map[string]uint64
	for _, r := range s.logs {
		p := r.next.Load() - 1
		if p <= r.reported {
			continue
		}
		if d := report - time.Since(r.at); !always && d > 0 {
			wait = min(wait, d)
			continue
		}
		if upto == nil {
			upto = make(map[string]uint64, len(s.logs))
		}
		upto[r.l.source] = p
		r.reported, r.at = p, time.Now()
	}
	return upto, wait
}

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
		n, err := s.count(ctx, &in, r.l.source, c.Floor+1)
		for i := 0; i < len(c.Done) && err == nil; i++ {
			var done uint64
			done, err = s.countIn(ctx, &in, r.l.source, c.Done[i])
			n -= min(n, done)
		}
		if err != nil {
			return 0, fmt.Errorf("nats: pending events of source %s: %w", r.l.source, err)
		}
		total += n
	}
	return total, nil
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
