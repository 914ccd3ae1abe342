package kafka

import (
	"context"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/onewrite/onewrite"
)

// tallyTime is how long a count may read on; a backlog takes several.
const tallyTime = time.Second

// matching counts the pending events of a log that a destination wants. What nobody has
// looked at yet is read for it, once; until that is done, it counts as wanted.
func (s *subscription) matching(ctx context.Context, r *logReader, c onewrite.LogCursor, tail uint64) (uint64, error) {
	r.mu.Lock()
	upto, from := r.tally.Upto(), int64(r.tally.Upto())+1+r.shift
	r.mu.Unlock()
	if upto < tail {
		limited, cancel := context.WithTimeout(ctx, tallyTime)
		defer cancel()
		err := s.b.scanEvents(limited, r.l.topic, max(0, from), func(rec *kgo.Record, m mark) error {
			e, err := eventOf(rec)
			r.mu.Lock()
			defer r.mu.Unlock()
			r.note(m.seq, rec.Offset, err == nil && s.filter.Wants(e.Topic))
			return nil
		})
		if err != nil && (limited.Err() == nil || ctx.Err() != nil) {
			return 0, err
		}
		if err == nil { // what is not there by now will not come
			r.mu.Lock()
			r.tally.Pass(tail)
			r.mu.Unlock()
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.tally.Pending(c, tail), nil
}

// note takes the next event into account, and how far its offset in the topic is from
// that on the bus; r.mu is held.
func (r *logReader) note(seq uint64, offset int64, wanted bool) {
	if r.tally.Note(seq, wanted) {
		r.shift = offset - int64(seq)
	}
}
