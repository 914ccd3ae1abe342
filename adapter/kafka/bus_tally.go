package kafka

import (
	"context"
	"math/bits"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/onewrite/onewrite"
)

// tally remembers of a log which events a destination wants, a bit each, so that what is
// pending can be counted without reading it again.
type tally struct {
	base  uint64 // a multiple of 64: event base+1 is the first bit
	upto  uint64 // known up to here
	shift int64  // of the event upto: its offset in the topic less that on the bus, or less than that
	bits  []uint64
}

// note takes the next event into account; one that is known already, or not the next,
// changes nothing.
func (t *tally) note(seq uint64, offset int64, wanted bool) {
	if seq <= t.upto {
		return
	}
	t.upto, t.shift = seq, offset-int64(seq)
	if i := seq - 1 - t.base; wanted {
		for uint64(len(t.bits)) <= i/64 {
			t.bits = append(t.bits, 0)
		}
		t.bits[i/64] |= 1 << (i % 64)
	}
}

// count counts the wanted events behind from, up to and with to.
func (t *tally) count(from, to uint64) (n uint64) {
	from, to = max(from, t.base), min(to, t.upto)
	if from >= to {
		return 0
	}
	below := func(x uint64) (n uint64) { // of the first x bits
		for i, w := range t.bits {
			if left := x - min(x, uint64(i)*64); left == 0 {
				break
			} else if left < 64 {
				w &= 1<<left - 1
			}
			n += uint64(bits.OnesCount64(w))
		}
		return n
	}
	return below(to-t.base) - below(from-t.base)
}

// trim forgets what is confirmed.
func (t *tally) trim(floor uint64) {
	words := (floor - min(floor, t.base)) / 64
	if words < 1024 || words > uint64(len(t.bits)) {
		return
	}
	t.bits = append([]uint64(nil), t.bits[words:]...)
	t.base += 64 * words
}

// tallyTime is how long a count may read on; a backlog takes several.
const tallyTime = time.Second

// matching counts the pending events of a log that a destination wants. What nobody has
// looked at yet is read for it, once; until that is done, it counts as wanted.
func (s *subscription) matching(ctx context.Context, r *logReader, c onewrite.LogCursor, tail uint64) (uint64, error) {
	r.mu.Lock()
	upto, from := r.tally.upto, int64(r.tally.upto)+1+r.tally.shift
	r.mu.Unlock()
	if upto < tail {
		limited, cancel := context.WithTimeout(ctx, tallyTime)
		defer cancel()
		err := s.b.scanEvents(limited, r.l.topic, max(0, from), func(rec *kgo.Record, m mark) error {
			e, err := eventOf(rec)
			r.mu.Lock()
			defer r.mu.Unlock()
			r.tally.note(m.seq, rec.Offset, err == nil && s.filter.Wants(e.Topic))
			return nil
		})
		if err != nil && (limited.Err() == nil || ctx.Err() != nil) {
			return 0, err
		}
		if err == nil { // what is not there by now will not come
			r.mu.Lock()
			r.tally.upto = max(r.tally.upto, tail)
			r.mu.Unlock()
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.tally.trim(c.Floor)
	n := r.tally.count(max(c.Floor, r.base), tail)
	if from := max(c.Floor, r.tally.upto); from < tail {
		n += tail - from
	}
	for _, d := range c.Done {
		n -= min(n, r.tally.count(d.From-1, d.To))
	}
	return n, nil
}
