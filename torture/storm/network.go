package storm

import (
	"cmp"
	"context"
	"fmt"
	"time"

	"github.com/onewrite/onewrite/internal/faultnet"
	"github.com/onewrite/onewrite/torture/history"
)

// broken breaks one way of one copy for a while, in one of the ways that networks
// break.
func (s *storm) broken(ctx context.Context, f *history.Fault) error {
	p := s.any()
	way := p.wires.pairs[s.rng.IntN(len(p.wires.pairs))]
	stream := func(change faultnet.Stream) faultnet.Fault {
		if s.rng.IntN(2) == 0 {
			return faultnet.Fault{Up: change}
		}
		return faultnet.Fault{Down: change}
	}
	cut := int64(50 + s.rng.IntN(20_000)) // where in a connection, in the middle of a message
	kinds := []struct {
		name  string
		fault faultnet.Fault
	}{
		{"cut in the middle", stream(faultnet.Stream{CutAt: cut})},
		{"cut by RST", stream(faultnet.Stream{CutAt: cut, Reset: true})},
		{"answers swallowed", faultnet.Fault{Swallow: func([]byte) bool { return true }}},
		{"half open", stream(faultnet.Stream{Hold: true})},
		{"blackhole", faultnet.Fault{Up: faultnet.Stream{Hold: true}, Down: faultnet.Stream{Hold: true}}},
		{"slow", faultnet.Fault{Up: faultnet.Stream{Rate: 20 << 10}, Down: faultnet.Stream{Rate: 20 << 10}}},
		{"refused", faultnet.Fault{Refuse: true}},
	}
	kind := kinds[s.rng.IntN(len(kinds))]
	f.On = fmt.Sprintf("copy %d to %s, %s", p.n, way.to, kind.name)
	before := way.proxy.Counts()
	way.proxy.Set(kind.fault)
	if kind.name == "refused" {
		way.proxy.Cut(true)
	}
	// Until it shows, and some time more. What is not asked for is not broken.
	for end := time.Now().Add(8 * time.Second); f.Proof == "" && time.Now().Before(end) && ctx.Err() == nil; time.Sleep(5 * time.Millisecond) {
		f.Proof = effect(kind.name, before, way.proxy.Counts())
	}
	pause(ctx, time.Duration(200+s.rng.IntN(2500))*time.Millisecond)
	p.wires.mend(s)
	if f.Proof == "" {
		way.proxy.Cut(true)
		f.Proof = fmt.Sprintf("nothing passed; cut %d connections instead", way.proxy.Counts().Cut-before.Cut)
	}
	s.labels.hit("network: " + kind.name)
	return nil
}

// outage keeps onewrite from the webhook for longer than it may keep silent about it.
func (s *storm) outage(ctx context.Context, f *history.Fault) error {
	p := s.any()
	way := p.wires.to("hook")[0]
	before := way.Counts()
	way.Set(faultnet.Fault{Refuse: true})
	way.Cut(true)
	f.On, f.Says, f.Until = "the webhook", "trouble", s.now()
	pause(ctx, 13*time.Second)
	p.wires.mend(s)
	f.Proof = effect("refused", before, way.Counts())
	return nil
}

// effect words what a proxy did since before; empty if it did nothing.
func effect(kind string, before, after faultnet.Counts) string {
	for _, c := range []struct {
		what string
		n    int
	}{
		{"connections cut", after.Cut - before.Cut}, {"answers swallowed", after.Swallowed - before.Swallowed},
		{"streams held", after.Held - before.Held}, {"connections refused", after.Refused - before.Refused},
	} {
		if c.n > 0 {
			return fmt.Sprintf("%s: %d %s", kind, c.n, c.what)
		}
	}
	if n := after.Bytes - before.Bytes; kind == "slow" && n > 0 {
		return fmt.Sprintf("%s: %d bytes passed at 20 KiB a second", kind, n)
	}
	return ""
}

// round takes away a copy that works, and waits until another has taken over.
func (s *storm) round(ctx context.Context, f *history.Fault) error {
	role, at := "", s.sinks[0] // the source
	if s.rng.IntN(2) == 0 {
		list := s.consumers()
		at = list[s.rng.IntN(len(list))]
		role = at.name()
	}
	var victim *program
	if err := s.until(ctx, "a copy works", func() bool {
		n := s.state().owner[role]
		if n > 0 {
			victim = s.copies[n-1]
		}
		return n > 0
	}); err != nil {
		return err
	}
	what := []string{"frozen", "cut off from bus", "cut off from all"}
	if role == "" {
		what = append(what, "cut off from postgres")
	}
	how := what[s.rng.IntN(len(what))]
	f.On = fmt.Sprintf("copy %d, which has %s, %s", victim.n, cmp.Or(role, "the source"), how)
	start := s.now()
	var err error
	switch how {
	case "frozen":
		f.Proof, err = victim.freeze()
	default:
		f.Proof = s.cutOff(victim, how)
	}
	if err != nil {
		return err
	}
	w := s.writer(100 + int(s.rounds.Add(1)))
	id, err := w.probe(ctx)
	if err == nil {
		err = s.until(ctx, "an event of after the fault arrived at "+at.name(), func() bool { return at.has(id) })
	}
	f.Takeover = s.now() - start
	s.restarts.Add(1)
	pause(ctx, time.Duration(s.rng.IntN(1500))*time.Millisecond) // while another works
	victim.wires.mend(s)
	if how == "frozen" {
		if cont := victim.signal(sigCont, false); err == nil {
			err = cont
		}
	}
	if err != nil {
		return fmt.Errorf("%s: %w", f.On, err)
	}
	// The next round finds a copy that can take over.
	return s.until(ctx, "the copy answers again", func() bool { _, err := victim.status(); return err == nil })
}

// cutOff lets nothing pass any more on some of the ways of a copy.
func (s *storm) cutOff(p *program, how string) (proof string) {
	hold := faultnet.Fault{Up: faultnet.Stream{Hold: true}, Down: faultnet.Stream{Hold: true}}
	n := 0
	for _, w := range p.wires.pairs {
		if how == "cut off from all" || how == "cut off from "+w.to {
			w.proxy.Set(hold)
			n++
		}
	}
	if n == 0 {
		return ""
	}
	return fmt.Sprintf("copy %d: %s, %d ways held", p.n, how, n)
}
