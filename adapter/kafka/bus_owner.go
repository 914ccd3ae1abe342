package kafka

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/internal/places"
)

var errOnlooker = errors.New("kafka: an onlooker has no place on the bus; subscribe with a name")

// Cursor returns what was stored last and this owner's epoch.
func (s *subscription) Cursor() (onewrite.Cursor, uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return places.Clone(s.rec.Cursor), s.rec.Epoch
}

// own calls f with the place locked and read to a state in which this owner still holds
// it. f is called again if somebody else wrote in between.
func (s *subscription) own(ctx context.Context, about string, f func(ctx context.Context, p *place) error) error {
	if s.place == nil {
		return errOnlooker
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	p := s.place
	if err := p.enter(ctx); err != nil {
		return err
	}
	defer p.busy.leave()
	for {
		s.mu.Lock()
		epoch := s.rec.Epoch
		s.mu.Unlock()
		if p.rec.Epoch != epoch || p.rec.Owner != s.b.owner || p.rec.Forgotten {
			return fmt.Errorf("kafka: %s of destination %s: %w", about, s.in.Name, onewrite.ErrFenced)
		}
		err := f(ctx, p)
		if errors.Is(err, errMoved) && ctx.Err() == nil {
			continue
		}
		return err
	}
}

// Commit stores the cursor if this owner still holds the place.
func (s *subscription) Commit(ctx context.Context, c onewrite.Cursor) error {
	return s.store(ctx, &c, false)
}

// store writes the record; a nil cursor leaves it as it is.
func (s *subscription) store(ctx context.Context, c *onewrite.Cursor, release bool) error {
	return s.own(ctx, "cursor", func(ctx context.Context, p *place) error {
		s.mu.Lock()
		next := s.rec
		s.mu.Unlock()
		if c != nil {
			next.Cursor = places.Clone(*c)
		}
		next.Released = release
		for _, r := range s.logs {
			if known := r.newest(); known > 0 { // it is read: all that comes is for it
				next.Know(r.l.source, max(known, r.l.durable()))
			}
		}
		r, err := cursorRecord(&next)
		if err == nil {
			err = p.write(ctx, r)
		}
		if err != nil {
			return err
		}
		s.mu.Lock()
		s.rec = next
		s.mu.Unlock()
		if err := p.tidy(ctx); err != nil && !errors.Is(err, errMoved) {
			s.b.log.Warn("the log of a destination's place is not tidied up; it is tried again", "topic", p.topic, "error", err)
		}
		return nil
	})
}

// Lease is how long another copy waits for a commit of this one.
func (s *subscription) Lease() time.Duration {
	if s.place == nil {
		return 0
	}
	return s.b.cfg.lease
}

// Close gives up the place. Read returns.
func (s *subscription) Close() error {
	var err error
	s.once.Do(func() {
		close(s.gone)
		s.cl.Close()
		if s.place == nil {
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

// Park keeps a refused event; see [onewrite.Subscription].
func (s *subscription) Park(ctx context.Context, parked onewrite.Parked) (ref uint64, err error) {
	m := &parked.Message
	err = s.own(ctx, "parked events", func(ctx context.Context, p *place) error {
		// An answer that was lost may have been to this very event.
		if err := p.refresh(ctx); err != nil {
			return err
		}
		s.mu.Lock()
		epoch := s.rec.Epoch
		s.mu.Unlock()
		if p.rec.Epoch != epoch {
			return errMoved
		}
		for _, e := range p.parked {
			if e.Offset == m.Offset && e.Log == m.Log && e.ID == m.ID {
				ref = e.Ref
				return nil
			}
		}
		e := parkedMark{
			Ref: uint64(p.end) + 1, Log: m.Log, Offset: m.Offset, ID: m.ID, Key: m.Key,
			Reason: places.Shorten(parked.Reason, places.MaxReason), Attempts: parked.Attempts, Holds: parked.Holds, At: parked.At.UTC(),
		}
		text, err := json.Marshal(e)
		if err != nil {
			return fmt.Errorf("kafka: park an event of destination %s: %w", s.in.Name, err)
		}
		var enc encoder
		r := enc.record(p.topic, &m.Event, kind(parkedHeader, text)...)
		if err := p.write(ctx, r); err != nil {
			return err
		}
		ref = e.Ref
		return nil
	})
	return ref, err
}

// Parked lists parked events; see [onewrite.Subscription].
func (s *subscription) Parked(ctx context.Context, after uint64, limit int, key *onewrite.Lane) ([]onewrite.Parked, error) {
	if s.place == nil {
		return nil, errOnlooker
	}
	if limit <= 0 || key != nil && key.Key == "" {
		return nil, nil
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	p := s.place
	if err := p.hold(ctx); err != nil {
		return nil, err
	}
	defer p.busy.leave()
	var want []entry
	for _, e := range p.parked {
		if e.Ref > after && len(want) < limit && (key == nil || e.Log == key.Log && e.Key == key.Key) {
			want = append(want, e)
		}
	}
	return p.fetch(ctx, want)
}

// fetch reads parked events.
func (p *place) fetch(ctx context.Context, want []entry) ([]onewrite.Parked, error) {
	events := make(map[int64]onewrite.Event, len(want))
	err := p.pick(ctx, want, func(r *kgo.Record) error {
		e, err := eventOf(r)
		if err != nil {
			return fmt.Errorf("kafka: parked event at offset %d of topic %s: %w", r.Offset, p.topic, err)
		}
		e.Data = bytes.Clone(e.Data) // it may wait for long, and what it was read with would wait with it
		events[r.Offset] = e
		return nil
	})
	if err != nil {
		return nil, err
	}
	list := make([]onewrite.Parked, 0, len(want))
	for _, e := range want {
		event, there := events[e.at]
		if !there {
			return nil, fmt.Errorf("kafka: parked event %d is gone from topic %s: it was emptied from outside; restore it, or take the destination out of the file and give up all that is pending and parked for it: onewrite reload --forget %s", e.Ref, p.topic, p.dest)
		}
		list = append(list, onewrite.Parked{
			Ref: e.Ref, Message: onewrite.Message{Event: event, Log: e.Log, Offset: e.Offset},
			Reason: e.Reason, Attempts: e.Attempts, Holds: e.Holds, At: e.At,
		})
	}
	return list, nil
}

// Unpark forgets entries; one that is gone already is no error.
func (s *subscription) Unpark(ctx context.Context, refs ...uint64) error {
	return s.own(ctx, "parked events", func(ctx context.Context, p *place) error {
		var there []uint64
		for _, ref := range refs {
			if _, ok := p.find(ref); ok {
				there = append(there, ref)
			}
		}
		if len(there) == 0 {
			return nil
		}
		text, err := json.Marshal(there)
		if err != nil {
			return fmt.Errorf("kafka: forget parked events: %w", err)
		}
		return p.write(ctx, &kgo.Record{Value: text, Headers: kind(unparkHeader, nil)})
	})
}

// Unparked returns the greatest offset of a log, up to floor, that has no parked event
// of a destination at or before it. It asks for a destination that nobody delivers to.
func (b *Bus) Unparked(ctx context.Context, name, log string, floor uint64) (uint64, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	p, err := b.placeOf(ctx, name, false)
	if err != nil || p == nil {
		return floor, err
	}
	if err := p.hold(ctx); err != nil {
		return 0, err
	}
	defer p.busy.leave()
	for _, e := range p.parked {
		if e.Log == log && e.Offset <= floor {
			floor = e.Offset - 1
		}
	}
	return floor, nil
}
