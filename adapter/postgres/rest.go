package postgres

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/onewrite/onewrite/internal/sabotage"
)

// nap decides how long the reader may rest when it found nothing, and whether
// writers have to wake it.
//
// A writer takes its numbers first and looks at the register asleep after, in a
// statement trigger; the reader sets the register first and looks for rows
// after. Whichever comes second sees the other, but for a writer that looked
// before the register was set and commits later: it is in progress in the
// snapshot that is taken after, and the reader keeps looking until all of those
// have ended.
type nap struct {
	asleep bool            // the register says 2
	open   []uint64        // in progress when the register was set, not seen to end
	since  time.Time       // when rows were found last
	finds  int             // finds in a row while asleep
	tick   time.Duration   // the pause before the next look
	bell   <-chan struct{} // taken before the last look
	looked snapshot

	// polls: the server knows two-phase commit, so writers are never asked for a
	// NOTIFY, and the reader looks at the last number given out.
	polls bool
	high  int64 // the last number, taken before the last look
	renew bool  // what is open at the next look is to be waited for

	belt time.Duration // the longest rest, should a wake-up ever be lost
}

// awakeFor is how long the reader looks by itself after it found rows. Events
// that come more seldom than that are worth a NOTIFY each.
const awakeFor = 20 * time.Millisecond

// saw notes the snapshot of a look.
func (n *nap) saw(s snapshot) {
	n.looked = s
	if n.renew {
		n.open, n.renew, n.tick = slices.Clone(s.xip), false, time.Millisecond
		return
	}
	n.open = slices.DeleteFunc(n.open, func(x uint64) bool {
		_, running := slices.BinarySearch(s.xip, x)
		return !running
	})
}

// busy notes that rows were found.
func (n *nap) busy() {
	now := time.Now()
	if now.Sub(n.since) < awakeFor {
		n.finds++
	} else {
		n.finds = 1
	}
	n.since, n.tick = now, time.Millisecond
}

// rest waits until it is worth looking again.
func (s *Source) rest(ctx context.Context) error {
	n := &s.nap
	bell := n.bell
	if n.polls {
		return s.doze(ctx, bell)
	}
	if time.Since(n.since) < awakeFor && (!n.asleep || n.finds > 3) {
		if n.asleep {
			// Events come thick: spare the writers the NOTIFY.
			if err := s.register(ctx, 1); err != nil {
				return err
			}
		}
		return s.wait(ctx, bell, time.Millisecond)
	}
	if !n.asleep {
		if err := s.register(ctx, 2); err != nil {
			return err
		}
		if err := sabotage.At("postgres.rest"); err != nil {
			return err
		}
		res, err := s.current(ctx)
		if err != nil {
			return err
		}
		n.open, n.tick = slices.Clone(res.xip), time.Millisecond
		return nil // look once more, now that writers see the register
	}
	pause := s.schedule.rest(n.belt)
	if len(n.open) > 0 {
		// Somebody may still commit without a NOTIFY; look less and less often.
		pause = min(pause, n.slower())
	}
	return s.wait(ctx, bell, pause)
}

// slower returns the pause before the next look, and makes the one after longer.
func (n *nap) slower() time.Duration {
	pause := n.tick
	if n.tick < 20*time.Millisecond || time.Since(n.since) > 10*time.Second {
		n.tick = min(n.tick*5/4, 250*time.Millisecond)
	}
	return pause
}

// dozeFor returns how long to wait before the last number is asked for again:
// short while events come, and after ten quiet seconds so that it costs less than
// a hundredth of a core.
func (n *nap) dozeFor() time.Duration {
	switch quiet := time.Since(n.since); {
	case quiet < time.Second:
		return 5 * time.Millisecond
	case quiet < 10*time.Second:
		return 20 * time.Millisecond
	}
	return 50 * time.Millisecond
}

// mark ends a transaction of the reader's own: a snapshot lists as in progress only
// transactions that are older than the last one that has ended.
const mark = `BEGIN; SET LOCAL synchronous_commit = off; SELECT setval('onewrite.asleep', 1); COMMIT`

// doze is rest without NOTIFY: it waits until numbers are given out. They are
// taken before the commit, so it keeps looking until the transactions that are
// open then have ended.
func (s *Source) doze(ctx context.Context, bell <-chan struct{}) error {
	n := &s.nap
	if time.Since(n.since) < awakeFor {
		_, err := s.pause(ctx, bell, time.Millisecond)
		return err
	}
	belt := s.schedule.rest(n.belt)
	if len(n.open) > 0 {
		belt = min(belt, n.slower())
	}
	for start := time.Now(); time.Since(start) < belt; {
		var high int64
		if err := s.conn.QueryRow(ctx, `SELECT last_value + is_called::int FROM onewrite.seq`).Scan(&high); err != nil {
			return explain(err)
		}
		if high != n.high {
			n.high, n.renew = high, true
			s.schedule.poke()
			_, err := s.conn.Exec(ctx, mark, pgx.QueryExecModeSimpleProtocol)
			return explain(err)
		}
		if woken, err := s.pause(ctx, bell, min(n.dozeFor(), belt)); woken || err != nil {
			return err
		}
	}
	return nil
}

// pause ends with the bell, an acknowledgement or the time.
func (s *Source) pause(ctx context.Context, bell <-chan struct{}, d time.Duration) (woken bool, err error) {
	s.wire.rest(true)
	defer s.wire.rest(false)
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-bell:
		return true, nil
	case <-s.acks:
		s.ring.poke()
		return true, nil
	case <-timer.C:
		return false, nil
	case <-ctx.Done():
		return false, ctx.Err()
	}
}

// register moves the register asleep: 1 awake, 2 asleep.
func (s *Source) register(ctx context.Context, v int) error {
	_, err := s.conn.Exec(ctx, `SELECT setval('onewrite.asleep', $1)`, v)
	s.nap.asleep = v == 2
	return explain(err)
}

func (s *Source) current(ctx context.Context) (snapshot, error) { return takeSnapshot(ctx, s.conn) }

func takeSnapshot(ctx context.Context, conn *pgx.Conn) (snapshot, error) {
	var text string
	if err := conn.QueryRow(ctx, `SELECT pg_current_snapshot()::text`).Scan(&text); err != nil {
		return snapshot{}, explain(err)
	}
	return parseSnapshot(text)
}

// wait ends with a notification, the bell, an acknowledgement or the pause.
func (s *Source) wait(ctx context.Context, bell <-chan struct{}, pause time.Duration) error {
	wctx, cancel := context.WithTimeout(ctx, pause)
	stopped := make(chan struct{})
	rung := false
	go func() {
		defer close(stopped)
		select {
		case <-bell:
			rung = true
		case <-s.acks:
			s.ring.poke()
		case <-wctx.Done():
		}
		cancel()
	}()
	s.wire.rest(true)
	_, err := s.conn.WaitForNotification(wctx)
	s.wire.rest(false)
	cancel()
	<-stopped
	if rung || err == nil {
		s.schedule.poke()
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err != nil && wctx.Err() == nil {
		return fmt.Errorf("postgres: the session broke: %w", rootCause(err))
	}
	if s.conn.IsClosed() {
		return fmt.Errorf("postgres: the session was ended by the server; %w", pgx.ErrTxClosed)
	}
	return nil
}
