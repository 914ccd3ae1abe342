package pipeline

import (
	"slices"
	"time"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/internal/sabotage"
)

// track follows one bus log for one destination: which offsets were handed
// over, which of them are still open, and so up to where all is done.
//
// Offsets that were passed over between two messages were filtered out by the
// destination's topics, or done before a restart; they count as done.
type track struct {
	handed uint64          // everything up to here was handed over or passed over
	open   []openMark      // handed over, in the order of offsets; done ones are removed from the front
	undone int             // open marks that are not done
	prior  []onewrite.Span // done before this owner took over, above handed
}

type openMark struct {
	offset uint64
	at     time.Time // the event's own time
	done   bool
}

func newTrack(c onewrite.LogCursor) *track {
	return &track{handed: c.Floor, prior: slices.Clone(c.Done)}
}

// hand notes that the message at offset was handed over and returns how many
// offsets were filtered out on the way to it. It reports false for a message
// that was there before.
func (t *track) hand(offset uint64, at time.Time) (filtered uint64, fresh bool) {
	if offset <= t.handed {
		return 0, false
	}
	filtered = t.pass(offset - 1)
	t.handed = offset
	t.open = append(t.open, openMark{offset: offset, at: at})
	t.undone++
	return filtered, true
}

// pass notes that everything up to offset was handed over or filtered out, and
// returns how many were filtered out.
func (t *track) pass(offset uint64) (filtered uint64) {
	if offset <= t.handed {
		return 0
	}
	filtered = offset - t.handed
	for len(t.prior) > 0 && t.prior[0].From <= offset {
		to := min(t.prior[0].To, offset)
		filtered -= to - max(t.prior[0].From, t.handed+1) + 1
		if t.prior[0].To > offset {
			t.prior[0].From = offset + 1
			break
		}
		t.prior = t.prior[1:]
	}
	t.handed = offset
	return filtered
}

// finish notes that the message at offset is delivered or parked.
func (t *track) finish(offset uint64) {
	i, ok := slices.BinarySearchFunc(t.open, offset, func(m openMark, o uint64) int {
		switch {
		case m.offset < o:
			return -1
		case m.offset > o:
			return 1
		}
		return 0
	})
	if !ok || t.open[i].done {
		return
	}
	t.open[i].done = true
	t.undone--
	n := 0
	for n < len(t.open) && t.open[n].done {
		n++
	}
	t.open = t.open[n:]
}

// covers reports whether a place has an offset done.
func covers(c onewrite.LogCursor, offset uint64) bool {
	return offset <= c.Floor || slices.ContainsFunc(c.Done, func(s onewrite.Span) bool { return s.From <= offset && offset <= s.To })
}

// cursor returns the place to store.
func (t *track) cursor() onewrite.LogCursor {
	if len(t.open) == 0 || sabotage.Bug == "max-floor" {
		return onewrite.LogCursor{Floor: t.handed, Done: slices.Clone(t.prior)}
	}
	c := onewrite.LogCursor{Floor: t.open[0].offset - 1}
	last := t.open[0].offset // the undone mark before the span that grows
	for _, m := range t.open[1:] {
		if m.done {
			continue
		}
		if m.offset > last+1 {
			c.Done = append(c.Done, onewrite.Span{From: last + 1, To: m.offset - 1})
		}
		last = m.offset
	}
	if t.handed > last {
		c.Done = append(c.Done, onewrite.Span{From: last + 1, To: t.handed})
	}
	c.Done = append(c.Done, t.prior...)
	return c
}
