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

// deed is something that the nemesis does; it returns the proof of its effect.
type deed struct {
	kind string
	do   func(context.Context) (proof string, err error)
}

// torment does all that the storm has to do to onewrite, in a drawn order, while
// the writers write. Between two deeds onewrite gets somewhere: it has delivered
// something, and some time more.
func (s *storm) torment(ctx context.Context, written <-chan error) error {
	deeds := s.deeds()
	s.rng.Shuffle(len(deeds), func(i, j int) { deeds[i], deeds[j] = deeds[j], deeds[i] })
	share := max(1, s.Events/(len(deeds)+1)) // spread over the run
	for i, d := range deeds {
		if err := s.progress(ctx, uint64(i*share)); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(time.Duration(s.rng.IntN(400)) * time.Millisecond): // where in the work it strikes
		}
		at, again := s.now(), s.pace.recent(s.committed.Load()+s.doubtful.Load())
		proof, err := d.do(ctx)
		if err != nil {
			return fmt.Errorf("%s: %w", d.kind, err)
		}
		f := &history.Fault{At: at, Until: s.now(), Kind: d.kind, On: "onewrite", Proof: proof}
		if d.kind == "crash" {
			f.On, f.Again = "postgres", again
		}
		s.faults.Add(f)
		s.say("%3d of %d  %-8s %s; %d events committed", i+1, len(deeds), d.kind, proof, s.committed.Load())
	}
	s.labels.hit("tormented")
	return nil
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
	} {
		for range k.n {
			list = append(list, k.d)
		}
	}
	return list
}

// progress waits until the webhook got something new, and at least so many.
func (s *storm) progress(ctx context.Context, least uint64) error {
	h := s.sinks[0]
	before := h.seen()
	deadline := time.Now().Add(s.Wait)
	for h.seen() <= before || h.seen() < least {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("onewrite delivered nothing for %v: %d events arrived, %d are committed; see %s", s.Wait, h.seen(), s.committed.Load(), s.path("onewrite.log"))
		}
		if h.seen() > before {
			before, deadline = h.seen()-1, time.Now().Add(s.Wait)
		}
		time.Sleep(2 * time.Millisecond)
	}
	return nil
}

// killed ends the process by a signal and starts it again.
func (s *storm) killed(sig syscall.Signal) func(context.Context) (string, error) {
	return func(context.Context) (string, error) {
		old := s.program.pid()
		if err := s.program.signal(sig, true); err != nil {
			return "", err
		}
		s.restarts.Add(1)
		if err := s.program.start(); err != nil {
			return "", err
		}
		if now := s.program.pid(); now != old {
			return fmt.Sprintf("pid %d is %d", old, now), nil
		}
		return "", nil
	}
}

// frozen stops the process for a while.
func (s *storm) frozen(ctx context.Context) (string, error) {
	if err := s.program.signal(sigStop, false); err != nil {
		return "", err
	}
	proof := ""
	for end := time.Now().Add(5 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", s.program.pid()))
		if _, rest, ok := strings.Cut(string(text), ") "); err == nil && ok && strings.HasPrefix(rest, "T") {
			proof = "the process is in state T"
			break
		}
	}
	select {
	case <-ctx.Done():
	case <-time.After(time.Duration(500+s.rng.IntN(2000)) * time.Millisecond): // how long it is frozen
	}
	return proof, s.program.signal(sigCont, false)
}

// crashed restarts PostgreSQL without a checkpoint.
func (s *storm) crashed(ctx context.Context) (string, error) {
	var before, after time.Time
	const started = `SELECT pg_postmaster_start_time()`
	if err := s.db.QueryRowContext(ctx, started).Scan(&before); err != nil {
		return "", err
	}
	if err := s.db.server.Bounce(true); err != nil {
		return "", err
	}
	for end := time.Now().Add(s.Wait); ; time.Sleep(20 * time.Millisecond) {
		err := s.db.QueryRowContext(ctx, started).Scan(&after)
		if err == nil && after.After(before) {
			return "the server started at " + after.UTC().Format("15:04:05.000"), nil
		}
		if time.Now().After(end) {
			return "", err
		}
	}
}
