package storm

import (
	"context"
	"sync"
	"time"

	"github.com/onewrite/onewrite/torture/history"
)

// sample records ten times a second what one copy says of itself.
func (s *storm) sample(ctx context.Context, p *program) {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			s.takeSample(p)
		}
	}
}

func (s *storm) takeSample(p *program) {
	out := &history.Sample{Sinks: map[string]history.SinkState{}, RSS: p.rss(), Retained: s.retained()}
	if s.Copies > 1 {
		out.Copy = p.n
	}
	age := s.age.Load()
	st, err := p.status()
	// Counted after the answer: what onewrite says may not be more.
	out.At, out.Age = s.now(), int(age)
	out.Committed = uint64(s.doubtful.Load() + s.committed.Load())
	if err == nil && age == s.age.Load() {
		one := &state{destinations: map[string]destination{}, owner: map[string]int{}}
		one.add(p.n, st)
		out.Up = true
		out.Age += s.wentBack(one)
		s.fill(out, one)
	}
	s.samples.Add(out)
	s.pace.note(out.At, s.committed.Load())
}

// wentBack counts the times that the position of a sink went back because an older copy
// was put in its place: once for each.
func (s *storm) wentBack(st *state) int {
	d, there := st.destinations["sqlite"]
	if s.Olders == 0 || !there {
		return 0
	}
	at := int64(place(d.Position))
	if was := s.reached.Swap(at); at < was && s.forgot.Add(-1) >= 0 {
		s.age.Add(1)
		return 1
	}
	return 0
}

// lastSample records what all copies say at the end, together.
func (s *storm) lastSample() {
	st := s.state()
	out := &history.Sample{At: s.now(), Age: int(s.age.Load()), Sinks: map[string]history.SinkState{}, Up: st.source != ""}
	out.Committed = uint64(s.doubtful.Load() + s.committed.Load())
	s.fill(out, st)
	s.samples.Add(out)
}

func (s *storm) fill(out *history.Sample, st *state) {
	out.State, out.Events, out.Gap, out.Warnings = st.source, st.events, st.gap, st.warnings
	for _, k := range s.sinks {
		d, ok := st.destinations[k.name()]
		if !ok {
			continue // not taken over: it has no numbers
		}
		seen := k.seen()
		if t, is := k.(*target); is {
			seen = t.caught(d.Delivered)
		}
		out.Sinks[k.name()] = history.SinkState{
			State: d.State, Epoch: d.Epoch, Position: place(d.Position), Delivered: d.Delivered, Pending: d.Pending,
			Parked: d.Parked, Filtered: d.Filtered, Skipped: d.Skipped, Seen: seen,
		}
	}
}

// pace remembers how much was committed in the last two seconds: after a crash
// of the database onewrite reads the last moment again.
type pace struct {
	mu    sync.Mutex
	at    []int64
	count []int64
}

func (p *pace) note(at, count int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.at, p.count = append(p.at, at), append(p.count, count)
	for len(p.at) > 1 && at-p.at[1] > int64(2*time.Second) {
		p.at, p.count = p.at[1:], p.count[1:]
	}
}

// recent returns how many of count are of the last two seconds.
func (p *pace) recent(count int64) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.count) == 0 {
		return int(count)
	}
	return int(count - p.count[0])
}
