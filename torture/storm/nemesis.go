package storm

import (
	"context"
	"fmt"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/onewrite/onewrite/torture/history"
)

// deed is something that the nemesis does. It fills in the proof of its effect.
type deed struct {
	kind string
	do   func(context.Context, *history.Fault) error
}

// torment does all that the storm has to do to onewrite, in a drawn order, while
// the writers write. Between two deeds onewrite gets somewhere: it has delivered
// something, and some time more.
func (s *storm) torment(ctx context.Context) error {
	if err := s.pointed(ctx); err != nil {
		return err
	}
	deeds := s.deeds()
	s.rng.Shuffle(len(deeds), func(i, j int) { deeds[i], deeds[j] = deeds[j], deeds[i] })
	next := 0
	for i := range deeds { // traps in their order
		if _, is := traps[deeds[i].kind]; is {
			deeds[i] = deed{s.Traps[next], s.trapped(s.Traps[next])}
			next++
		}
	}
	share := max(1, s.Events/(len(deeds)+1)) // spread over the run
	for i, d := range deeds {
		if err := s.progress(ctx, uint64(i*share)); err != nil {
			return err
		}
		if s.has("W8") { // in the middle of its transactions
			if err := s.moves(ctx, s.rowFile(), uint64((i+1)*s.Large/(len(deeds)+1))); err != nil {
				return err
			}
		}
		pause(ctx, time.Duration(s.rng.IntN(400))*time.Millisecond) // where in the work it strikes
		if err := ctx.Err(); err != nil {
			return err
		}
		f := &history.Fault{At: s.now(), Kind: d.kind, On: "onewrite"}
		if err := d.do(ctx, f); err != nil {
			return fmt.Errorf("%s: %w", d.kind, err)
		}
		if f.Until == 0 {
			f.Until = s.now()
		}
		s.faults.Add(f)
		s.say("%3d of %d  %-8s %s; %d events committed", i+1, len(deeds), d.kind, f.Proof, s.committed.Load())
	}
	if err := s.progress(ctx, uint64(s.Events/2)); err != nil {
		return err
	}
	if s.Refuse {
		if err := s.until(ctx, "some events were refused", func() bool { return s.labels.of("refused") > 0 }); err != nil {
			return err
		}
		for end := time.Now().Add(5 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
			if s.state().parked > 0 {
				s.labels.hit("parked")
				break
			}
		}
	}
	if s.Lost > 0 {
		if err := s.until(ctx, "enough answers were lost", func() bool {
			enough := s.sinks[0].(*hook).lost.Load() >= int64(s.Lost)
			for _, name := range s.losers() {
				enough = enough && s.answersLost(name) >= s.Lost
			}
			return enough
		}); err != nil {
			return err
		}
		for _, name := range s.losers() {
			s.labels.hits("answer lost by "+name, s.answersLost(name))
		}
	}
	s.labels.hit("tormented")
	return nil
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// deeds lists what this storm does.
func (s *storm) deeds() []deed {
	var list []deed
	for _, k := range []struct {
		n int
		d deed
	}{
		{s.Kills, deed{"SIGKILL", s.killed(syscall.SIGKILL)}},
		{s.Terms, deed{"SIGTERM", s.killed(syscall.SIGTERM)}},
		{s.Freezes, deed{"SIGSTOP", s.frozen}},
		{s.Crashes, deed{"crash", s.crashed}},
		{s.Nets, deed{"network", s.broken}},
		{s.Outages, deed{"outage", s.outage}},
		{s.Deaths, deed{"death", s.died}},
		{s.Rounds, deed{"takeover", s.round}},
		{s.Strikes, deed{"strike", s.struck}},
		{s.Olders, deed{"older sink", s.older}},
		{s.Loses, deed{"lost bus", s.loses}},
		{s.Returns, deed{"older bus", s.returns}},
		{s.Flips, deed{"changed bytes", s.flips}},
		{s.Fills, deed{"full disk", s.fills}},
		{s.idleRows(), deed{"idle row", s.idleRow}},
	} {
		for range k.n {
			list = append(list, k.d)
		}
	}
	for _, name := range s.Traps {
		list = append(list, deed{name, s.trapped(name)})
	}
	return list
}

// progress waits until the webhook got something new, and at least so many, and every
// sink on a server of its own something new.
func (s *storm) progress(ctx context.Context, least uint64) error {
	for _, k := range s.consumers() {
		if err := s.moves(ctx, k, least); err != nil {
			return err
		}
		least = 0
	}
	return nil
}

// moves waits until one sink got something new.
func (s *storm) moves(ctx context.Context, h sink, least uint64) error {
	before := h.seen()
	deadline := time.Now().Add(s.Wait)
	for h.seen() <= before || h.seen() < least {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("onewrite delivered nothing to %s for %v: %d events arrived, %d are committed; see %s", h.name(), s.Wait, h.seen(), s.committed.Load(), s.path("onewrite-1.log"))
		}
		if h.seen() > before {
			before, deadline = h.seen()-1, time.Now().Add(s.Wait)
		}
		time.Sleep(2 * time.Millisecond)
	}
	return nil
}

// any draws a copy.
func (s *storm) any() *program { return s.copies[s.rng.IntN(len(s.copies))] }

// killed ends a process by a signal and starts it again.
func (s *storm) killed(sig syscall.Signal) func(context.Context, *history.Fault) error {
	return func(_ context.Context, f *history.Fault) error {
		p := s.any()
		old := p.pid()
		if err := p.signal(sig, true); err != nil {
			return err
		}
		s.restarts.Add(1)
		if err := p.start(); err != nil {
			return err
		}
		if now := p.pid(); now != old {
			f.Proof = fmt.Sprintf("pid %d is %d", old, now)
		}
		if sig == syscall.SIGTERM {
			f.Most = -1 // a clean stop repeats nothing
		}
		return nil
	}
}

// frozen stops a process for a while.
func (s *storm) frozen(ctx context.Context, f *history.Fault) (err error) {
	p := s.any()
	if f.Proof, err = p.freeze(); err != nil {
		return err
	}
	pause(ctx, time.Duration(500+s.rng.IntN(2000))*time.Millisecond) // how long it is frozen
	return p.signal(sigCont, false)
}

// freeze stops the process until it gets SIGCONT.
func (p *program) freeze() (proof string, err error) {
	if err := p.signal(sigStop, false); err != nil {
		return "", err
	}
	for end := time.Now().Add(5 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.pid()))
		if _, rest, ok := strings.Cut(string(text), ") "); err == nil && ok && strings.HasPrefix(rest, "T") {
			return fmt.Sprintf("copy %d is in state T", p.n), nil
		}
	}
	return "", nil
}

// crashed restarts PostgreSQL without a checkpoint.
func (s *storm) crashed(ctx context.Context, f *history.Fault) error {
	f.On, f.Again = "postgres", s.pace.recent(s.committed.Load()+s.doubtful.Load())
	var before, after time.Time
	const started = `SELECT pg_postmaster_start_time()`
	if err := s.db.QueryRowContext(ctx, started).Scan(&before); err != nil {
		return err
	}
	if err := s.db.server.Bounce(true); err != nil {
		return err
	}
	for end := time.Now().Add(s.Wait); ; time.Sleep(20 * time.Millisecond) {
		err := s.db.QueryRowContext(ctx, started).Scan(&after)
		if err == nil && after.After(before) {
			f.Proof = "the server started at " + after.UTC().Format("15:04:05.000")
			return nil
		}
		if time.Now().After(end) {
			return err
		}
	}
}

// died kills a server of the bus, each in turn, and starts it again.
func (s *storm) died(ctx context.Context, f *history.Fault) error {
	i := int(s.deaths.Add(1)) % s.Nodes
	f.On = fmt.Sprintf("server %d of the bus", i+1)
	old := s.bus.Pid(i)
	if err := s.bus.Kill(i); err != nil {
		return err
	}
	pause(ctx, time.Duration(200+s.rng.IntN(1500))*time.Millisecond) // how long it is dead
	if err := s.bus.Start(i); err != nil {
		return err
	}
	if now := s.bus.Pid(i); now != old {
		f.Proof = fmt.Sprintf("pid %d is %d", old, now)
	}
	ctx, cancel := context.WithTimeout(ctx, s.Wait)
	defer cancel()
	return s.bus.Healthy(ctx) // the next one dies when all are well again
}
