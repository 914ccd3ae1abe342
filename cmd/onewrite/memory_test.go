package main

import (
	"context"
	"math"
	"runtime/debug"
	"testing"
)

// The collector has room above what is in use, however much that is; more where it takes
// most of the time; and the limit is in force while the program runs.
func TestMemoryLimit(t *testing.T) {
	for _, live := range []uint64{0, 10 << 20, 60 << 20, 100 << 20, 4 << 30} {
		m := memory{most: memoryLeast}
		if limit := m.limit(live, 1, 0); limit < memoryLeast || float64(limit) < 1.3*float64(live) {
			t.Errorf("%d bytes in use, the limit is %d", live, limit)
		}
	}
	m := memory{most: memoryMost}
	var busy, collecting float64
	seconds := func(n int, share float64) (limit int64) {
		for range n {
			busy, collecting = busy+2, collecting+2*share
			limit = m.limit(60<<20, busy, collecting)
		}
		return limit
	}
	for _, c := range []struct {
		seconds int
		share   float64
		want    int64
	}{{5, 0.2, memoryLeast}, {1, 0.5, memoryLeast * 6 / 5}, {3, 0.2, memoryLeast * 6 / 5}, {10, 0.8, memoryMost}, {3, 0.2, memoryMost}, {20, 0.05, memoryLeast}} {
		if got := seconds(c.seconds, c.share); got != c.want {
			t.Errorf("after %d s of which %.0f %% were for the collector the limit is %d MB, want %d", c.seconds, 100*c.share, got>>20, c.want>>20)
		}
	}
	was := debug.SetMemoryLimit(-1)
	defer debug.SetMemoryLimit(was)
	t.Setenv("GOGC", "")
	t.Setenv("GOMEMLIMIT", "")
	ctx, stop := context.WithCancel(t.Context())
	stop()
	frugal(ctx, true)
	if got := debug.SetMemoryLimit(-1); got < memoryLeast || got == math.MaxInt64 {
		t.Errorf("the limit is %d", got)
	}
	debug.SetMemoryLimit(math.MaxInt64)
	t.Setenv("GOGC", "100")
	frugal(ctx, true)
	if got := debug.SetMemoryLimit(-1); got != math.MaxInt64 {
		t.Errorf("the environment says how, and the limit is %d", got)
	}
}
