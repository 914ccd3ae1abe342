package pipeline

import (
	"errors"
	"time"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/internal/sabotage"
)

// trial is what an event remembers of its failures.
type trial struct {
	tries    int    // writes that failed
	waits    int    // those since the destination last came back, for the pause
	attempts int    // failures held against the event
	sentGen  uint64 // successes of the destination before the first try was sent
	firstGen uint64 // before the first failure
	lastGen  uint64 // and before the last one
	failing  bool
	solo     bool // must travel alone

	notBefore time.Time // until when it was asked to wait, it and its key alone
}

// recent is how long a success vouches that the destination is up.
const recent = time.Minute

// outageAt is how many different events must fail without proof before the
// destination is spared all but one probe at a time.
const outageAt = 3

// health tells an outage from a poison event.
//
// An outage is a destination that refuses everything: it costs no attempt. A
// poison event is one that fails while the destination takes others. A failure
// is held against the event when
//   - the destination took another event since the event's failure before, or
//   - it answered about this event, and took another within the last minute and
//     since this one was first sent, or
//   - it rejects this very event, and took another within the last minute;
//
// the last two only while fewer than outageAt events fail that have seen no
// success since their first failure. A destination that does not answer at all
// proves nothing.
type health struct {
	gen         uint64 // successes so far
	failing     int    // events that failed and are not done
	unproven    int    // those with no success since their first failure
	lastSuccess time.Time
	failures    int       // failed writes since the last success
	hold        time.Time // not before: the destination asked for a pause
	probe       time.Time // not before: the next probe in an outage
	fresh       bool      // the last probe was an event that had not failed yet
}

func (h *health) outage() bool { return h.unproven >= outageAt }

// down reports whether the last that was heard of the destination was a failure
// that may be its own.
func (h *health) down() bool { return h.failures > 0 && h.unproven > 0 }

// success notes that the destination took events.
func (h *health) success(now time.Time) {
	h.gen++
	h.lastSuccess, h.failures, h.unproven = now, 0, 0
	h.hold, h.probe = time.Time{}, time.Time{}
}

// settled forgets an event that is delivered or parked.
func (h *health) settled(e *entry) {
	if !e.failing {
		return
	}
	e.failing = false
	h.failing--
	if e.firstGen == h.gen {
		h.unproven--
	}
}

// failed notes a failed write of e and holds it against the event if it must.
func (h *health) failed(e *entry, err error, now time.Time) {
	h.failures++
	e.tries++
	e.waits++
	before := e.lastGen
	e.lastGen = h.gen
	if !e.failing {
		e.failing, e.firstGen = true, h.gen
		h.failing++
		h.unproven++
		return
	}
	up := !h.lastSuccess.IsZero() && now.Sub(h.lastSuccess) < recent
	few := h.unproven < outageAt
	if h.gen > before ||
		up && few && h.gen > e.sentGen && answered(err) ||
		up && few && errors.Is(err, onewrite.ErrRejected) ||
		sabotage.Bug == "count-outage" {
		e.attempts = max(e.attempts, 1) + 1 // the first failure counts now too
	}
}

// answered reports whether the destination was reached and spoke about the event.
func answered(err error) bool {
	var a interface{ Answered() bool }
	return errors.As(err, &a) && a.Answered()
}

// askedPause is the pause that an error asks for; 0 if it asks for none.
func askedPause(err error) time.Duration {
	var asked interface{ RetryAfter() time.Duration }
	if errors.As(err, &asked) {
		return max(0, asked.RetryAfter())
	}
	return 0
}
