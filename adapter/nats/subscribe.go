package nats

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/internal/places"
	"github.com/onewrite/onewrite/internal/topics"
)

// subscription is one destination's place on the bus, or an onlooker's.
type subscription struct {
	b      *Bus
	in     onewrite.Interest
	filter topics.Filter
	wake   chan struct{}
	gone   chan struct{} // closed by Close
	once   sync.Once

	// Of the goroutine that reads.
	logs  []*logReader
	turn  int
	inbox inbox

	mu     sync.Mutex
	record places.Record
	rev    uint64
	fence  uint64 // see [Bus.fenceOf]
	lost   bool   // another owner was seen
}

// Subscribe opens a destination's view of the bus; see [onewrite.Bus]. On an
// external bus a place that another copy holds can be had when that copy gave
// it up, or did not commit for the lease: ask again each second.
func (b *Bus) Subscribe(ctx context.Context, in onewrite.Interest) (onewrite.Subscription, error) {
	if in.Name != "" && !validName(in.Name) {
		return nil, fmt.Errorf("nats: destination name %q: use letters, digits, _ and - only", in.Name)
	}
	ctx, cancel := bounded(ctx)
	defer cancel()
	in.Sources = slices.Clone(in.Sources)
	s := &subscription{
		b: b, in: in, filter: topics.New(in.Topics), wake: make(chan struct{}, 1), gone: make(chan struct{}),
	}
	var err error
	if in.Name == "" {
		s.record.Cursor.Logs, err = b.floors(ctx, in.Sources, in.From)
	} else {
		s.record, s.rev, s.fence, err = b.take(ctx, in)
	}
	if err != nil {
		return nil, err
	}
	for _, source := range in.Sources {
		if err := b.checkSource(source); err != nil {
			return nil, err
		}
		lc, lost, err := b.clamp(ctx, in.Name, source, &s.record)
		if err != nil {
			return nil, err
		}
		s.record.Cursor.Skipped += lost
		if lc.Floor > 0 || len(lc.Done) > 0 {
			s.record.Cursor.Logs[source] = lc
		}
		r := newLogReader(b, source, lc)
		r.owed = s.record.Seen(source) > 0
		s.logs = append(s.logs, r)
	}
	b.watch(s.wake)
	return s, nil
}

// clamp fits a cursor to its log. One that is ahead of it is moved back: the log
// was restored from an older copy, and what it is given now must not be skipped.
// One that is behind its first event is moved up: lost events are gone. While the log is
// not there, the cursor is left where it is: the log may be put back.
func (b *Bus) clamp(ctx context.Context, destination, source string, rec *places.Record) (fit onewrite.LogCursor, lost uint64, err error) {
	lc := rec.Cursor.Logs[source]
	js, err := b.link.jetStream()
	if err != nil {
		return lc, 0, err
	}
	s, err := js.Stream(ctx, b.stream(source))
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		// When it is made again, it begins behind the cursors.
		if up, n, _ := places.MoveUp(lc, rec.Seen(source)+1); n > 0 && destination != "" {
			b.vanished(destination, source, lc.Floor+1, up.Floor)
		}
		return lc, 0, nil
	}
	if err != nil {
		return lc, 0, fmt.Errorf("nats: stream of source %s: %w", source, err)
	}
	l, state := b.logOf(source), s.CachedInfo().State
	first, err := b.firstOffset(ctx, l, state)
	if err != nil {
		return lc, 0, fmt.Errorf("nats: first event of source %s: %w", source, err)
	}
	if lc.Floor+1 < first && destination != "" {
		up, n, moved := places.MoveUp(lc, first)
		if lost = n; lost > 0 {
			b.vanished(destination, source, lc.Floor+1, up.Floor)
		}
		if moved {
			lc = up
		}
	}
	last, err := b.lastOffset(ctx, l, state)
	if err != nil {
		return lc, 0, err
	}
	if places.Seen(lc) > last {
		b.log.Error("a destination's place is ahead of the log, which was restored from an older copy; it goes on at the log's end", "source", source, "place", lc.Floor, "log", last)
		return onewrite.LogCursor{Floor: min(lc.Floor, last)}, lost, nil
	}
	return lc, lost, nil
}

// vanished says aloud that events are gone which a destination had not got.
func (b *Bus) vanished(destination, source string, from, to uint64) {
	b.log.Error("events vanished from the bus before a destination had got them: the stream was removed, purged or put back from outside",
		"destination", destination, "source", source, "stream", b.stream(source), "from", from, "to", to)
	if b.cfg.Vanished != nil {
		b.cfg.Vanished(destination, source, from, to)
	}
}

// Cursor returns what was stored last and this owner's epoch.
func (s *subscription) Cursor() (onewrite.Cursor, uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return places.Clone(s.record.Cursor), s.record.Epoch
}

var errOnlooker = errors.New("nats: an onlooker has no place on the bus; subscribe with a name")

// Commit stores the cursor if this owner still holds the place.
func (s *subscription) Commit(ctx context.Context, c onewrite.Cursor) error {
	return s.store(ctx, &c, false)
}

// store writes the record; a nil cursor leaves it as it is.
func (s *subscription) store(ctx context.Context, c *onewrite.Cursor, release bool) error {
	if s.in.Name == "" {
		return errOnlooker
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.lost {
		return fmt.Errorf("nats: cursor of destination %s: %w", s.in.Name, onewrite.ErrFenced)
	}
	r := s.record
	if c != nil {
		r.Cursor = *c
	}
	r.Released = release
	for _, log := range s.logs {
		if next := log.next.Load(); next > 1 || log.owed { // it is read: all that comes is for it
			r.Know(log.l.source, max(next-1, s.b.known(log.l)))
		}
	}
	rev, err := s.b.save(ctx, s.in.Name, &r, s.rev)
	switch {
	case err == nil:
		s.record, s.rev = r, rev
	case errors.Is(err, onewrite.ErrFenced):
		// It may be our own write, whose answer was lost.
		now, at, lerr := s.b.load(ctx, s.in.Name)
		if lerr == nil && at > s.rev && now.Owner == r.Owner && now.Epoch == r.Epoch {
			if rev, err = s.b.save(ctx, s.in.Name, &r, at); err == nil {
				s.record, s.rev = r, rev
				return nil
			}
		}
		s.lost = lerr == nil
	}
	return err
}

// Lease is how long another copy waits for a commit of this one.
func (s *subscription) Lease() time.Duration {
	if s.b.emb != nil || s.in.Name == "" {
		return 0
	}
	return s.b.cfg.lease
}

// Close gives up the place. Read returns.
func (s *subscription) Close() error {
	var err error
	s.once.Do(func() {
		close(s.gone)
		s.b.unwatch(s.wake)
		if s.in.Name == "" {
			return
		}
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
		defer cancel()
		if e := s.store(ctx, nil, true); e != nil && !errors.Is(e, onewrite.ErrFenced) {
			err = e
		}
	})
	return err
}
