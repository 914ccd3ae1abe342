package kafka

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/internal/places"
	"github.com/onewrite/onewrite/internal/topics"
)

const (
	readCount = 1000    // records that are taken at once
	readBytes = 2 << 20 // that an answer may have; an event that waits keeps all of its answer in memory
	// report is how often a reader says that it passed what does not match.
	report = 200 * time.Millisecond
)

// subscription is a destination's view of the bus.
type subscription struct {
	b      *Bus
	in     onewrite.Interest
	filter topics.Filter
	cl     *kgo.Client
	logs   []*logReader
	byName map[string]*logReader // by topic
	gone   chan struct{}
	once   sync.Once

	place *place // nil: an onlooker
	mu    sync.Mutex
	rec   places.Record // as this owner stored it last
}

// logReader is a subscription's place in one log. Read alone uses it, but for what mu
// guards.
type logReader struct {
	l        *busLog
	base     uint64          // the floor at the beginning
	had      uint64          // it may have got all up to here, though the log has not
	next     uint64          // the first offset on the bus not handed out or passed
	done     []onewrite.Span // confirmed above the floor
	whole    unfold
	reported uint64    // the offset that the caller knows to be passed
	at       time.Time // when it was told

	mu    sync.Mutex
	known uint64 // the newest event that it knows of; 0: none
	tally places.Tally
	shift int64 // of the event that it knows last: its offset in the topic less that on the bus, or less than that
}

// owed reports whether all that the log has is for the destination: it has begun to read
// it, or an owner before it had.
func (r *logReader) owed() bool { return r.next > 1 || r.newest() > 0 }

// newest returns the newest event that the destination knows of; 0: none.
func (r *logReader) newest() uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.known
}

// skips reports whether offset was confirmed by an earlier owner. Offsets come in order.
func (r *logReader) skips(offset uint64) bool {
	for len(r.done) > 0 && r.done[0].To < offset {
		r.done = r.done[1:]
	}
	return len(r.done) > 0 && r.done[0].From <= offset
}

// Subscribe opens a destination's view of the bus; see [onewrite.Bus]. A place that
// another copy holds can be had when that copy gave it up, or did not commit for the
// lease: ask again each second.
func (b *Bus) Subscribe(ctx context.Context, in onewrite.Interest) (onewrite.Subscription, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	in.Sources = slices.Clone(in.Sources)
	s := &subscription{b: b, in: in, filter: topics.New(in.Topics), gone: make(chan struct{}), byName: map[string]*logReader{}}
	for _, source := range in.Sources {
		if err := checkSource(source); err != nil {
			return nil, err
		}
		if err := b.ensure(ctx, b.logTopic(source)); err != nil {
			return nil, err
		}
	}
	var err error
	if in.Name == "" {
		s.rec.Cursor.Logs, err = b.floors(ctx, in.Sources, in.From)
	} else {
		s.place, s.rec, err = b.take(ctx, in)
	}
	if err != nil {
		return nil, err
	}
	from := map[string]int64{}
	for _, source := range in.Sources {
		r, offset, err := s.open(ctx, b.logOf(source))
		if err != nil {
			return nil, err
		}
		s.logs, s.byName[r.l.topic], from[r.l.topic] = append(s.logs, r), r, offset
	}
	s.cl, err = b.consumer(from)
	return s, err
}

// open fits a cursor to its log and finds where in the topic it goes on. A cursor that is
// ahead of its log is moved back: the log was made anew or put back, and what it is given
// now must not be skipped. One that is behind its first event is moved up: lost events
// are gone. While the log has no event, it is left where it is: the log may be put back.
func (s *subscription) open(ctx context.Context, l *busLog) (*logReader, int64, error) {
	lc := s.rec.Cursor.Logs[l.source]
	o, err := s.b.origin(ctx, l)
	if err != nil {
		return nil, 0, err
	}
	known := s.rec.Seen(l.source) // 0: nothing that the log had before is for it
	first := o.first
	if !o.there {
		first = known + 1
	}
	if up, lost, moved := places.MoveUp(lc, first); moved && s.in.Name != "" {
		if lost > 0 && known > 0 {
			s.b.vanished(s.in.Name, l.source, lc.Floor+1, up.Floor)
		}
		if o.there {
			lc = up
			if known > 0 {
				s.rec.Cursor.Skipped += lost
			}
		}
	}
	had := places.Seen(lc)
	if had <= o.last {
		had = 0
	} else if o.there {
		s.b.log.Error("a destination's place is ahead of the log, which was put back; it goes on at the log's end", "source", l.source, "place", lc.Floor, "log", o.last)
		lc = onewrite.LogCursor{Floor: min(lc.Floor, o.last)}
	}
	if lc.Floor > 0 || len(lc.Done) > 0 {
		s.rec.Cursor.Logs[l.source] = lc
	}
	from := o.start // where the first event will lie
	if o.there {
		if from, err = s.b.reach(ctx, l, o, lc.Floor+1); err != nil {
			return nil, 0, err
		}
	}
	r := &logReader{l: l, had: had, base: lc.Floor, next: lc.Floor + 1, done: slices.Clone(lc.Done), reported: lc.Floor, known: known}
	r.tally, r.shift = places.NewTally(lc.Floor), from-int64(lc.Floor)-1
	from, err = s.b.aligned(ctx, l.topic, from)
	return r, from, err
}

// reach returns an offset in the topic from which all events from seq on are read. It is
// that of the event itself, or not far before it.
func (b *Bus) reach(ctx context.Context, l *busLog, o origin, seq uint64) (int64, error) {
	low, high := o.start, min(int64(seq)+o.shift, o.lastAt+1)
	for at := high; at > low && seq <= o.last; at = low + (high-low)/2 {
		n := uint64(0)
		err := b.scanEvents(ctx, l.topic, at, func(_ *kgo.Record, m mark) error {
			n = m.seq
			return errEnough
		})
		if err != nil && !errors.Is(err, errEnough) {
			return 0, err
		}
		if n == 0 || n > seq {
			high = at
		} else {
			low = at
		}
	}
	if seq > o.last { // it comes behind the last one
		low = max(low, high)
	}
	return low, nil
}

// aligned returns the offset to begin at to see all that counts from an offset on: that
// one, or before it the first of a run that it would cut. At the end of the topic that is
// the run before, which may go on.
func (b *Bus) aligned(ctx context.Context, topic string, from int64) (int64, error) {
	start, end, err := b.bounds(ctx, topic)
	if err != nil {
		return from, err
	}
	from = max(from, start) // what is not there any more is not waited for
	err = b.scan(ctx, topic, max(start, min(from, end-1)), end, func(r *kgo.Record) error {
		if m, ok := markOf(r); ok && m.at == r.Offset {
			from = max(start, min(from, m.first))
			return errEnough
		}
		return nil
	})
	if errors.Is(err, errEnough) {
		err = nil
	}
	return from, err
}

// scanEvents reads the events of a log that count, from an offset in its topic on.
func (b *Bus) scanEvents(ctx context.Context, topic string, from int64, f func(r *kgo.Record, m mark) error) error {
	start, err := b.aligned(ctx, topic, from)
	if err != nil {
		return err
	}
	_, end, err := b.bounds(ctx, topic)
	if err != nil {
		return err
	}
	var u unfold
	return b.scan(ctx, topic, start, end, func(r *kgo.Record) error {
		whole, _, _ := u.take(r)
		for _, one := range whole {
			if m, _ := markOf(one); one.Offset >= from {
				if err := f(one, m); err != nil {
					return err
				}
			}
		}
		return nil
	})
}

// origin is what is known of the ends of a log.
type origin struct {
	there       bool   // it has an event
	first, last uint64 // offsets on the bus
	start       int64  // of the topic
	lastAt      int64  // where the last event is in the topic
	bytes       int64  // of all events
	// shift is the offset of the first event in the topic less that on the bus. It grows
	// with every record that is void, so that adding it leads to where an event is, or
	// to a place before it; unless the log lost its end once, and its numbers jump.
	shift int64
}

var errEnough = errors.New("enough")

func (b *Bus) origin(ctx context.Context, l *busLog) (o origin, err error) {
	start, end, err := b.bounds(ctx, l.topic)
	if err != nil {
		return o, err
	}
	o.start, o.shift = start, start
	before := uint64(0) // the sum before the first event
	err = b.scanEvents(ctx, l.topic, start, func(r *kgo.Record, m mark) error {
		o.there, o.first, o.lastAt, o.shift = true, m.seq, m.at, m.at-int64(m.seq)
		before = m.sum - min(m.sum, uint64(sizeOf(r)))
		return errEnough
	})
	if err != nil && !errors.Is(err, errEnough) || !o.there {
		return o, err
	}
	n, found, err := b.newest(ctx, l, start, end)
	if err != nil {
		return o, err
	}
	if o.last = o.first; found {
		o.last, o.lastAt, o.bytes = n.seq, n.at, int64(n.sum-min(n.sum, before))
	}
	l.raise(o.last)
	return o, nil
}

// vanished says aloud that events are gone which a destination had not got.
func (b *Bus) vanished(destination, source string, from, to uint64) {
	b.log.Error("events vanished from the bus before a destination had got them: the topic was deleted, emptied or put back from outside",
		"destination", destination, "source", source, "topic", b.logTopic(source), "from", from, "to", to)
	if b.cfg.Vanished != nil {
		b.cfg.Vanished(destination, source, from, to)
	}
}

// floors returns where a destination begins in each log that is there.
func (b *Bus) floors(ctx context.Context, sources []string, from onewrite.From) (map[string]onewrite.LogCursor, error) {
	logs := map[string]onewrite.LogCursor{}
	for _, source := range sources {
		floor, err := b.floor(ctx, b.logOf(source), from)
		if err != nil {
			return nil, err
		}
		if floor > 0 {
			logs[source] = onewrite.LogCursor{Floor: floor}
		}
	}
	return logs, nil
}

// floor returns the offset before the first event to hand out.
func (b *Bus) floor(ctx context.Context, l *busLog, from onewrite.From) (uint64, error) {
	o, err := b.origin(ctx, l)
	switch {
	case err != nil || !o.there:
		return 0, err
	case from.Now:
		return o.last, nil
	case from.Time.IsZero():
		return o.first - 1, nil
	}
	seq, err := b.since(ctx, l, from.Time)
	if err != nil || seq == 0 {
		return o.last, err
	}
	return seq - 1, nil
}

// since returns the offset of the first event that the bus stored at or after t; 0: there
// is none. The bus stores milliseconds.
func (b *Bus) since(ctx context.Context, l *busLog, t time.Time) (seq uint64, err error) {
	at, err := listed(l.topic)(b.adm.ListOffsetsAfterMilli(ctx, t.UnixMilli(), l.topic))
	if err != nil {
		return 0, b.worded(err, "events of source "+l.source+" since "+t.UTC().Format(time.RFC3339), l.topic)
	}
	if at < 0 { // there is none
		return 0, nil
	}
	err = b.scanEvents(ctx, l.topic, at, func(_ *kgo.Record, m mark) error {
		seq = m.seq
		return errEnough
	})
	if errors.Is(err, errEnough) {
		err = nil
	}
	return seq, err
}

// Read returns the next events; see [onewrite.Subscription].
func (s *subscription) Read(ctx context.Context) ([]onewrite.Message, map[string]uint64, error) {
	for {
		if err := ctx.Err(); err != nil {
			return nil, nil, context.Cause(ctx)
		}
		upto, wait := s.passed(false)
		if upto != nil {
			return nil, upto, nil
		}
		msgs, err := s.poll(ctx, wait)
		if err != nil {
			return nil, nil, err
		}
		if len(msgs) > 0 {
			upto, _ = s.passed(true)
			return msgs, upto, nil
		}
	}
}

// poll waits for records and returns the events that are wanted.
func (s *subscription) poll(ctx context.Context, wait time.Duration) ([]onewrite.Message, error) {
	limited, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	fetches := s.cl.PollRecords(limited, readCount)
	select {
	case <-s.gone:
		return nil, errors.New("kafka: the subscription is closed")
	default:
	}
	for _, e := range fetches.Errors() {
		if limited.Err() != nil && (errors.Is(e.Err, context.DeadlineExceeded) || errors.Is(e.Err, context.Canceled)) {
			continue
		}
		s.b.gone(e.Topic, e.Err)
		return nil, s.b.worded(e.Err, "read topic "+e.Topic, e.Topic)
	}
	var msgs []onewrite.Message
	for it := fetches.RecordIter(); !it.Done(); {
		rec := it.Next()
		r := s.byName[rec.Topic]
		whole, _, ours := r.whole.take(rec)
		if !ours {
			s.b.log.Error("a record on the bus is not an event and is passed over", "topic", rec.Topic, "offset", rec.Offset, "cure", "let nobody else write to it: kafka-acls.sh --list --topic "+rec.Topic)
		}
		for _, one := range whole {
			msgs = s.hand(r, one, msgs)
		}
		r.mu.Lock()
		r.known = max(r.known, r.next-1)
		r.mu.Unlock()
	}
	return msgs, nil
}

// hand adds an event of a log to those handed out, if it is wanted.
func (s *subscription) hand(r *logReader, rec *kgo.Record, msgs []onewrite.Message) []onewrite.Message {
	m, _ := markOf(rec)
	if m.seq < r.next {
		return msgs
	}
	if from := max(r.next, r.had+1); m.seq > from && r.owed() && s.in.Name != "" {
		s.b.vanished(s.in.Name, r.l.source, from, m.seq-1)
	}
	r.next = m.seq + 1
	e, err := eventOf(rec)
	if err != nil {
		s.b.log.Error("a record on the bus is not an event and is passed over", "topic", rec.Topic, "offset", rec.Offset, "error", err)
		return msgs
	}
	wanted := s.filter.Wants(e.Topic)
	if len(s.filter) > 0 {
		r.mu.Lock()
		r.note(m.seq, rec.Offset, wanted)
		r.mu.Unlock()
	}
	if !wanted || r.skips(m.seq) {
		return msgs
	}
	r.reported = m.seq
	return append(msgs, onewrite.Message{Event: e, Log: r.l.source, Offset: m.seq})
}

// passed says which offsets were passed without a message, not too often.
func (s *subscription) passed(always bool) (map[string]uint64, time.Duration) {
	wait := time.Second
	var upto map[string]uint64
	for _, r := range s.logs {
		p := r.next - 1
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

// tail returns the offset of the newest event of a log; 0: it has none.
func (b *Bus) tail(ctx context.Context, l *busLog) (uint64, error) {
	l.mu.Lock()
	tail, looked := l.tail, l.looked
	l.mu.Unlock()
	start, end, err := b.bounds(ctx, l.topic)
	switch {
	case err != nil || start == end:
		return 0, err
	case end == looked:
		return tail, nil
	}
	n, _, err := b.newest(ctx, l, start, end)
	if err != nil || end < looked { // it lost its end
		return n.seq, err
	}
	l.raise(n.seq)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.looked = end
	return l.tail, nil
}

// Pending counts events; see [onewrite.Subscription].
func (s *subscription) Pending(ctx context.Context, at map[string]onewrite.LogCursor) (uint64, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	total := uint64(0)
	for _, r := range s.logs {
		n, err := s.pending(ctx, r, at[r.l.source])
		if err != nil {
			return 0, fmt.Errorf("kafka: pending events of source %s: %w", r.l.source, err)
		}
		total += n
	}
	return total, nil
}

func (s *subscription) pending(ctx context.Context, r *logReader, c onewrite.LogCursor) (uint64, error) {
	tail, err := s.b.tail(ctx, r.l)
	if err != nil || tail <= c.Floor {
		return 0, err
	}
	if len(s.filter) > 0 {
		return s.matching(ctx, r, c, tail)
	}
	n := tail - min(tail, max(c.Floor, r.base))
	for _, d := range c.Done {
		if d.From <= tail {
			n -= min(n, min(d.To, tail)-d.From+1)
		}
	}
	return n, nil
}
