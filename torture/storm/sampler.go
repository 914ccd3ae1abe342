package storm

import (
	"context"
	"sync"
	"time"

	"github.com/onewrite/onewrite/torture/history"
)

// sample records ten times a second what onewrite says of itself.
func (s *storm) sample(ctx context.Context) {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			s.takeSample()
		}
	}
}

func (s *storm) takeSample() {
	out := &history.Sample{Sinks: map[string]history.SinkState{}, RSS: s.program.rss()}
	st, err := s.program.status()
	// Counted after the answer: what onewrite says may not be more.
	out.At = s.now()
	out.Committed = uint64(s.doubtful.Load() + s.committed.Load())
	if err == nil {
		out.Up = true
		for _, src := range st.Sources {
			out.State, out.Events = src.State, src.Events
			if src.Gap != nil {
				out.Gap = *src.Gap
			}
		}
		for _, k := range s.sinks {
			d := st.Destinations[k.name()]
			if d.Epoch == 0 {
				continue // not taken over yet: it has no numbers
			}
			out.Sinks[k.name()] = history.SinkState{
				State: d.State, Epoch: d.Epoch, Position: place(d.Position), Delivered: d.Delivered, Pending: d.Pending,
				Parked: d.Parked, Filtered: d.Filtered, Skipped: d.Skipped, Seen: k.seen(),
			}
		}
	}
	s.samples.Add(out)
	s.pace.note(out.At, s.committed.Load())
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
