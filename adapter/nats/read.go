package nats

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	natsgo "github.com/nats-io/nats.go"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/internal/places"
	"github.com/onewrite/onewrite/internal/sabotage"
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
	owed bool            // an owner before has begun to read it: all that it has is for the destination
	done []onewrite.Span // confirmed above the floor

	seq      mark               // the message to fetch from, if next is its first
	held     []onewrite.Message // of packs, beyond what one Read returns
	heldUpto uint64             // all up to here was looked at for held
	perMsg   int                // events that a message had, about
	took     int                // events of the newest fetch
	reported uint64             // the offset that the caller knows to be passed
	at       time.Time          // when it was told
	quiet    time.Time          // not looked at before
	pause    time.Duration
	behind   time.Time // since when a replica lags

	mu    sync.Mutex
	tally places.Tally // of a log with packs, whose messages the server cannot count by topic
}

func newLogReader(b *Bus, source string, lc onewrite.LogCursor) *logReader {
	r := &logReader{l: b.logOf(source), done: slices.Clone(lc.Done), reported: lc.Floor, perMsg: 1, tally: places.NewTally(lc.Floor)}
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
	if len(r.held) > 0 {
		return r.unhold(msgs), nil
	}
	next := r.next.Load()
	if more, ok := s.takeRecent(r, next, tail, msgs); ok {
		return more, nil
	}
	packed := s.b.isPacked(r.l)
	q, err := s.ask(ctx, r, next, tail, packed, readCount-len(msgs))
	if err != nil {
		return nil, err
	}
	room, seen, got, full := readCount-len(msgs), next-1, make([]onewrite.Message, 0, r.took), false
	wants := func(offset uint64, topic string) bool {
		wanted := s.filter.Wants(topic)
		if packed && len(s.filter) > 0 {
			r.note(offset, wanted)
		}
		return offset >= next && offset <= tail && wanted && !r.skips(offset)
	}
	f, err := s.b.fetch(ctx, &s.inbox, s.b.stream(r.l.source), q, func(seq uint64, m *natsgo.Msg) error {
		if full = len(got) >= room; full { // the packs were larger than those before: fetched again
			return nil
		}
		first, n, err := place(m.Header, seq)
		if err != nil {
			return fmt.Errorf("message %d of stream %s: %w", seq, s.b.stream(r.l.source), err)
		}
		if q.NextFor == "" && first > seen+1 && seen+1 >= next && s.in.Name != "" {
			s.b.vanished(s.in.Name, r.l.source, seen+1, first-1)
		}
		last := first + uint64(n) - 1
		seen = max(seen, last)
		r.seq, r.perMsg = mark{seq + 1, last + 1}, n
		err = unpack(m.Header, m.Data, first, wants, func(offset uint64, e onewrite.Event) {
			got = append(got, onewrite.Message{Event: e, Log: r.l.source, Offset: offset})
		})
		if err != nil {
			s.b.log.Error("a message on the bus is not an event and is passed over", "stream", s.b.stream(r.l.source), "offset", seq, "error", err)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	r.took = len(got)
	// The embedded server has all up to the tail. A replica of a cluster may lag
	// behind the leader that told the tail, and shows that it does not by giving
	// the tail itself or what is beyond.
	switch {
	case full:
	case seen >= tail, f.exhausted && s.b.emb != nil:
		seen = tail
		r.behind = time.Time{}
	case f.exhausted:
		if err := r.lagging(tail); err != nil {
			return nil, err
		}
	}
	if len(got) == 0 && f.exhausted {
		r.rest(4 * time.Millisecond)
	}
	return r.hold(got, seen, room, msgs), nil
}

// ask says what to fetch for the events from next on. A log with packs is asked for
// messages by their place alone; what is in them is not in their subject.
func (s *subscription) ask(ctx context.Context, r *logReader, next, tail uint64, packed bool, room int) (query, error) {
	q := query{Seq: next, Batch: room}
	switch {
	case packed:
		q.Seq = r.seq.seq
		if r.seq.first != next || q.Seq == 0 {
			var err error
			if q.Seq, err = s.b.seqOf(ctx, &s.inbox, r.l, next); err != nil {
				return q, err
			}
		}
		q.Batch = max(1, min(room/r.perMsg, int(tail-next+1)))
	case s.b.emb != nil && len(s.filter) > 0:
		q.NextFor = subjectFor(s.filter, s.b.subjects(r.l.source))
	default:
		q.Batch = int(min(uint64(q.Batch), tail-next+1))
	}
	return q, nil
}

// hold adds to msgs as much of what was got as there is room for, and keeps the rest; all
// up to seen was looked at.
func (r *logReader) hold(got []onewrite.Message, seen uint64, room int, msgs []onewrite.Message) []onewrite.Message {
	r.held, r.heldUpto = got, seen
	if len(got) > 0 {
		r.pause = 0
	}
	if len(got) > room {
		return r.unhold(msgs)
	}
	r.held = nil
	r.next.Store(seen + 1)
	if len(got) > 0 {
		r.reported = got[len(got)-1].Offset
	}
	if len(msgs) == 0 {
		return got
	}
	return append(msgs, got...)
}

// unhold hands out what is kept, as much as there is room for.
func (r *logReader) unhold(msgs []onewrite.Message) []onewrite.Message {
	n := min(len(r.held), readCount-len(msgs))
	msgs = append(msgs, r.held[:n]...)
	r.reported = r.held[n-1].Offset
	if r.held = r.held[n:]; len(r.held) > 0 {
		r.next.Store(r.held[0].Offset)
	} else {
		r.held = nil
		r.next.Store(r.heldUpto + 1)
	}
	return msgs
}

// takeRecent reads one log from memory; false if what is next is not there.
func (s *subscription) takeRecent(r *logReader, next, tail uint64, msgs []onewrite.Message) ([]onewrite.Message, bool) {
	had, seen, bytes := len(msgs), next-1, 0
	noted := len(s.filter) > 0 && s.b.isPacked(r.l)
	ok := r.l.recent.each(next, tail, func(offset uint64, e *onewrite.Event) bool {
		seen = offset
		wanted := s.filter.Wants(e.Topic)
		if noted {
			r.note(offset, wanted)
		}
		if wanted && !r.skips(offset) {
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
