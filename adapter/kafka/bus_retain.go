package kafka

import (
	"context"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/onewrite/onewrite/internal/retention"
)

// Retain removes from a log what is confirmed by everyone, that is up to the offset
// confirmed, and beyond keep. The newest event stays: it carries the position of the
// source. It returns what the log holds after that; a log that is not there holds
// nothing. The brokers free the room a segment at a time.
func (b *Bus) Retain(ctx context.Context, log string, confirmed uint64, keep retention.Keep) (retention.Usage, error) {
	if err := checkSource(log); err != nil {
		return retention.Usage{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	l := b.logOf(log)
	if there, err := b.exists(ctx, l.topic); err != nil || !there {
		return retention.Usage{}, err
	}
	o, err := b.origin(ctx, l)
	if err != nil || !o.there {
		return retention.Usage{}, err
	}
	first, err := b.firstKept(ctx, l, o, confirmed, keep)
	if err != nil {
		return retention.Usage{}, err
	}
	if first > o.first {
		// No append is cut, and where void records lie between, this is a little before.
		at, err := b.reach(ctx, l, o, first)
		if err == nil {
			at, err = b.aligned(ctx, l.topic, at)
		}
		if err == nil && at > o.start {
			if err = b.discard(ctx, l.topic, at); err == nil {
				o, err = b.origin(ctx, l)
			}
		}
		if err != nil {
			return retention.Usage{}, err
		}
	}
	u := retention.Usage{First: o.first, Last: o.last, Messages: o.last - o.first + 1, Bytes: o.bytes, Through: o.first}
	l.holds(o.bytes)
	u.Oldest, err = b.stored(ctx, l, o)
	return u, err
}

// firstKept returns the offset of the first event that stays.
func (b *Bus) firstKept(ctx context.Context, l *busLog, o origin, confirmed uint64, keep retention.Keep) (uint64, error) {
	limit := min(confirmed+1, o.last) // the newest stays
	if limit <= o.first {
		return 0, nil
	}
	first := o.first
	if keep.Size > 0 {
		// Within the log events may be of any size: take the average. It is called again
		// and again, so the error evens out.
		size := max(o.bytes/int64(o.last-o.first+1), 1)
		if n := int64(limit - o.first); n*size > keep.Size {
			first = limit - uint64(keep.Size/size)
		}
	}
	if keep.Age > 0 {
		seq, err := b.since(ctx, l, time.Now().Add(-keep.Age))
		if err != nil {
			return 0, err
		}
		if seq == 0 {
			first = limit
		} else {
			first = max(first, seq)
		}
	}
	return min(first, limit), nil
}

// stored returns when the oldest event of a log was stored.
func (b *Bus) stored(ctx context.Context, l *busLog, o origin) (t time.Time, err error) {
	at := int64(o.first) + o.shift
	err = b.scan(ctx, l.topic, at, at+1, func(r *kgo.Record) error {
		t = r.Timestamp
		return nil
	})
	return t, err
}

// moveBytes bounds what is moved at once: to read one of those again is to read all, as
// they lie in one batch.
const moveBytes = 1 << 20

// tidy removes what counts no more from the log of a place; what is parked since long is
// moved to its end, some at a time. p.busy is held, and this copy is the owner.
func (p *place) tidy(ctx context.Context) error {
	if p.end-p.start < p.b.cfg.slack+2*int64(len(p.parked)) || p.rev < 0 {
		return nil
	}
	half := p.start + (p.end-p.start)/2
	var old []entry
	size := 0
	for _, e := range p.parked {
		if e.at < half && len(old) < 100 && (len(old) == 0 || size+e.size <= moveBytes) {
			old, size = append(old, e), size+e.size
		}
	}
	var recs []*kgo.Record
	err := p.pick(ctx, old, func(r *kgo.Record) error {
		recs = append(recs, &kgo.Record{Key: r.Key, Value: r.Value, Headers: r.Headers[1:]})
		return nil
	})
	if err != nil {
		return err
	}
	if len(recs) > 0 {
		if err := p.write(ctx, recs...); err != nil {
			return err
		}
	}
	first := p.first // an append is not cut
	for _, e := range p.parked {
		first = min(first, e.first)
	}
	if first <= p.start {
		return nil
	}
	if err := p.b.discard(ctx, p.topic, first); err != nil {
		return err
	}
	p.start = first
	return nil
}

// discard removes the records before an offset.
func (b *Bus) discard(ctx context.Context, topic string, first int64) error {
	var upto kadm.Offsets
	upto.Add(kadm.Offset{Topic: topic, Partition: 0, At: first})
	done, err := b.adm.DeleteRecords(ctx, upto)
	if err == nil {
		err = done.Error()
	}
	return b.worded(err, "remove old records of topic "+topic, topic)
}
