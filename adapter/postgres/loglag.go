package postgres

import (
	"context"
	"fmt"
	"time"

	"github.com/onewrite/onewrite/internal/pgoutput"
)

// logLag tells how far the bus is behind the log. What the server decodes for us and does
// not send, or decodes long before it sends anything, no batch shows; nor what waits here
// behind a snapshot.
type logLag struct {
	marks []logMark    // where the log ended, in the order of time; all are ahead of at
	at    pgoutput.LSN // up to where the bus has it
	sent  pgoutput.LSN // how far the server is with its log
	moved time.Time    // when it last sent, or had nothing to send, or was not listened to
}

type logMark struct {
	when time.Time
	end  pgoutput.LSN
}

const (
	// lagTold is from when on a lag is one: the log is looked at every watchEvery.
	lagTold = 2 * watchEvery
	// far is a lag at once: what a reader finds that was away.
	far = 32 << 20
	// stuck is how long the server may send nothing of a log that it has before it is said.
	stuck = 10 * time.Second
	// maxMarks bounds what is remembered: beyond an hour it is coarser.
	maxMarks = 1200
)

// note adds where the log ends, and up to where the bus has it.
func (l *logLag) note(now time.Time, end, at pgoutput.LSN) {
	l.at = at
	for len(l.marks) > 0 && l.marks[0].end <= at {
		l.marks = l.marks[1:]
	}
	if end <= at {
		return
	}
	if len(l.marks) >= maxMarks { // the oldest stays
		for i := range maxMarks / 2 {
			l.marks[i] = l.marks[2*i]
		}
		l.marks = l.marks[:maxMarks/2]
	}
	l.marks = append(l.marks, logMark{now, end})
}

// owes is since when the server has log for a reader that waits, and sends nothing of it.
func (l *logLag) owes(now time.Time, end, sent pgoutput.LSN, waits bool) time.Duration {
	if sent != l.sent || sent >= end || !waits {
		l.sent, l.moved = sent, now
	}
	return now.Sub(l.moved)
}

// behind is since when the log has what the bus has not; 0: not for long, and not much.
func (l *logLag) behind(now time.Time) time.Duration {
	if len(l.marks) == 0 {
		return 0
	}
	d := now.Sub(l.marks[0].when)
	if d < lagTold && l.marks[0].end-l.at < far {
		return 0
	}
	return max(d, time.Millisecond)
}

// measure looks where the log ends.
func (r *logReader) measure(ctx context.Context) (says string, err error) {
	var end, sent string
	err = r.host.QueryRow(ctx, `SELECT (`+endOfLog+`)::text, coalesce((SELECT sent_lsn::text FROM pg_stat_replication WHERE pid = $1), '0/0')`, int(r.rep.pid)).Scan(&end, &sent)
	if err != nil {
		return "", explain(err)
	}
	endAt, err := pgoutput.ParseLSN(end)
	if err != nil {
		return "", err
	}
	sentAt, err := pgoutput.ParseLSN(sent)
	if err != nil {
		return "", err
	}
	now := time.Now()
	r.mu.Lock()
	defer r.mu.Unlock()
	waits := r.streams.Load() && r.rep.waiting.Load()
	received := pgoutput.LSN(r.rep.received.Load())
	if waits { // all that was sent is here; not all of it says where it is
		received = max(received, sentAt)
	}
	r.lag.note(now, endAt, r.reached(received))
	if d := r.lag.owes(now, endAt, max(sentAt, received), waits); d >= stuck {
		says = fmt.Sprintf("the server has sent nothing of its log for %v, and has more: it decodes a large transaction, or its sender hangs; look there: SELECT pid, state, sent_lsn, s.wait_event FROM pg_stat_replication r JOIN pg_stat_activity s USING (pid)", d.Round(time.Second))
	}
	return says, nil
}

// reached is up to where the bus has the log, which was received up to a place; r.mu is held.
func (r *logReader) reached(received pgoutput.LSN) pgoutput.LSN {
	at := r.stored.done
	if r.queue.idle(r.stored.n) {
		at = received
	}
	return max(at, r.begin.done)
}

// Lag is how far row changes are behind, as far as no batch shows it; 0: they are not.
func (b *Both) Lag() time.Duration {
	log := b.log.Load()
	if log == nil {
		if d := time.Since(b.from); d >= lagTold && !b.fallsBack() {
			return d // the slot may have to wait for hours
		}
		return 0
	}
	log.mu.Lock()
	defer log.mu.Unlock()
	return log.lag.behind(time.Now())
}
