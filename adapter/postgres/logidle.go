package postgres

import (
	"time"

	"github.com/onewrite/onewrite/internal/pgoutput"
)

const (
	// idleStep is how much log an idle slot keeps at most: moving it is written down
	// first, which is itself log. What was an event counts too: a server lets go of the log
	// before a place where it noted what is running, once the slot is past that, and after
	// the last event of a backlog there may be none for hours.
	idleStep = 4 << 20
	// idleAgain is when the slot moves once more after a step: servers make that note
	// every 15 s.
	idleAgain = 20 * time.Second
)

// keepalive lets an idle slot move: when all that was received is on the bus, what
// the server has decoded beyond it holds nothing for us.
func (r *logReader) keepalive(k pgoutput.Keepalive) {
	r.rep.received.Store(max(r.rep.received.Load(), uint64(k.WALEnd)))
	r.mu.Lock()
	switch idle := !r.tx.open && len(r.run) == 0 && r.queue.idle(r.stored.n); {
	case !idle:
	case k.WALEnd <= r.noted:
		r.rep.confirm(k.WALEnd)
	case uint64(k.WALEnd) > r.rep.confirmed.Load() && r.stepDue(k.WALEnd):
		r.wanted = k.WALEnd
		r.wake()
	}
	r.mu.Unlock()
	if k.ReplyRequested {
		r.rep.reply()
	}
}

// stepDue reports whether an idle slot is to move to a place; r.mu is held.
func (r *logReader) stepDue(to pgoutput.LSN) bool {
	from := max(r.noted, r.wanted)
	switch now := time.Now(); {
	case to > from+idleStep:
		r.again = now.Add(idleAgain)
	case to > from && !r.again.IsZero() && now.After(r.again):
		r.again = time.Time{}
	default:
		return false
	}
	return true
}
