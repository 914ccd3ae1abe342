package main

import (
	"context"
	"os"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

// The memory of the program, its code aside, above which the collector works harder; by
// itself it lets the heap grow to twice what is in use, which in a flood of events is
// mostly buffers that are free again. It begins with the least, and, if there are
// destinations, which hold events too, takes more where collecting is much of what is done.
const (
	memoryLeast = 85 << 20
	memoryMost  = 150 << 20
)

// memory decides how much the program may take.
type memory struct {
	goal, most       int64
	busy, collecting float64 // CPU seconds until now
}

// limit is what the program may take from now on, of which live bytes are in use. busy
// and collecting are the seconds of CPU time that it and the collector have taken. A
// quarter of the limit is left free: with less, little but collecting would be done.
func (m *memory) limit(live uint64, busy, collecting float64) int64 {
	all, share := busy-m.busy, 0.0
	if all > 0 {
		share = (collecting - m.collecting) / all
	}
	m.busy, m.collecting = busy, collecting
	switch {
	case share > 0.25:
		m.goal = min(m.goal+m.goal/5, m.most)
	case share < 0.08:
		m.goal -= m.goal / 20
	}
	m.goal = max(m.goal, memoryLeast)
	return max(m.goal, int64(live+live/3))
}

// frugal keeps the memory of a long run small, that of one that delivers not quite as
// small, unless the environment says how (GOMEMLIMIT, GOGC).
func frugal(ctx context.Context, delivers bool) {
	if os.Getenv("GOMEMLIMIT") != "" || os.Getenv("GOGC") != "" {
		return
	}
	s := []metrics.Sample{
		{Name: "/gc/heap/live:bytes"}, {Name: "/cpu/classes/user:cpu-seconds"},
		{Name: "/cpu/classes/gc/total:cpu-seconds"}, {Name: "/cpu/classes/gc/mark/idle:cpu-seconds"},
	}
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	m := memory{most: memoryLeast}
	if delivers {
		m.most = memoryMost
	}
	for {
		metrics.Read(s)
		collecting := s[2].Value.Float64() - s[3].Value.Float64() // what would have been idle is no loss
		debug.SetMemoryLimit(m.limit(s[0].Value.Uint64(), s[1].Value.Float64()+collecting, collecting))
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}
