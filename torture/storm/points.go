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

// ProofFile is what a program with the tag owbug writes to, in the folder of the
// run: what happened at its fail points.
const ProofFile = "proof.txt"

// sabotage is what the first start of the program has in its environment.
func (s *storm) sabotage() []string {
	if s.Point == "" {
		return nil
	}
	return []string{"OW_POINT=" + s.Point, "OW_PROOF=" + s.path(ProofFile)}
}

// pointed waits until what was to happen at a fail point did, and keeps onewrite
// running after it.
func (s *storm) pointed(ctx context.Context) error {
	if s.Point == "" || s.Point == "count" {
		return nil
	}
	f := &history.Fault{At: s.now(), Kind: "fail point", On: s.Point}
	asked := time.Now()
	if strings.HasPrefix(s.Point, "placed.rew") { // met when a sink has forgotten
		if err := s.older(ctx, &history.Fault{}); err != nil {
			return err
		}
	}
	if strings.HasPrefix(s.Point, "delivery.forg") { // met when parked events are delivered
		if err := s.until(ctx, "events are parked", func() bool { return s.state().parked > 30 }); err != nil {
			return err
		}
		s.labels.hit("parked")
		if err := s.heal(ctx); err != nil {
			s.say("%v", err) // it may have died of it
		}
	}
	if err := s.until(ctx, "the fail point "+s.Point+" was reached", func() bool {
		text, _ := os.ReadFile(s.path(ProofFile))
		f.Proof = strings.TrimSpace(string(text))
		s.supervise()
		if f.Proof == "" && s.outside() && time.Since(asked) > 4*time.Second {
			asked = time.Now()
			s.stopped(s.copies[0])
		}
		return f.Proof != ""
	}); err != nil {
		return err
	}
	// Failing at the start is a reason to end; who runs it starts it again.
	for end := time.Now().Add(time.Second); time.Now().Before(end) && ctx.Err() == nil; time.Sleep(20 * time.Millisecond) {
		s.supervise()
	}
	f.Until = s.now()
	s.faults.Add(f)
	s.say("%s: %s", s.Point, strings.ReplaceAll(f.Proof, "\n", ", "))
	return s.progress(ctx, 0)
}

// outside reports whether the fail point is met on the way out only, or on the way in,
// once there is something to be found: then a restart is due.
func (s *storm) outside() bool {
	if strings.HasPrefix(s.Point, "delivery.drain") {
		return true
	}
	if !strings.HasPrefix(s.Point, "placed.settle") {
		return false
	}
	for _, k := range s.consumers() {
		if k.seen() == 0 {
			return false
		}
	}
	return true
}

// stopped ends a copy and starts it again, as it was as long as nothing has happened
// at the fail point.
func (s *storm) stopped(p *program) {
	if err := p.signal(syscall.SIGTERM, true); err != nil {
		s.say("stop: %v", err)
	}
	s.restarts.Add(1)
	if err := p.start(s.planned()...); err != nil {
		s.say("start: %v", err)
	}
}

// planned is what a later start has in its environment: as the first one, as long as
// nothing has happened at the fail point.
func (s *storm) planned() []string {
	if _, err := os.Stat(s.path(ProofFile)); err == nil && s.Point != "count" {
		return nil
	}
	return s.sabotage()
}

// supervise starts the copies again that have ended by themselves, as whoever runs
// them would. They ended because of the fail point or a damaged folder: in other
// storms it is a failure.
func (s *storm) supervise() {
	if s.Point == "" {
		return
	}
	for _, p := range s.copies {
		if p.ended() {
			s.restarts.Add(1)
			if err := p.start(); err != nil {
				s.say("start: %v", err)
			}
		}
	}
}

// Visits returns how often each fail point was visited in a run with Point "count",
// by powers of two.
func Visits(dir string) (map[string]int, error) {
	text, err := os.ReadFile(dir + "/" + ProofFile)
	if err != nil {
		return nil, err
	}
	visits := map[string]int{}
	for l := range strings.Lines(string(text)) {
		var name, action string
		var n int
		if _, err := fmt.Sscan(l, &name, &action, &n); err != nil {
			return nil, fmt.Errorf("%s: %q: %w", ProofFile, l, err)
		}
		visits[name] = max(visits[name], n)
	}
	return visits, nil
}
