package main

import (
	"context"
	"math"
	"runtime/debug"
	"testing"
)

// The collector has room above what is in use, however much that is, and the limit is
// in force while the program runs.
func TestMemoryLimit(t *testing.T) {
	for _, live := range []uint64{0, 10 << 20, 60 << 20, 100 << 20, 4 << 30} {
		if limit := memoryLimit(live); limit < memoryGoal || float64(limit) < 1.3*float64(live) {
			t.Errorf("%d bytes in use, the limit is %d", live, limit)
		}
	}
	was := debug.SetMemoryLimit(-1)
	defer debug.SetMemoryLimit(was)
	t.Setenv("GOGC", "")
	t.Setenv("GOMEMLIMIT", "")
	ctx, stop := context.WithCancel(t.Context())
	stop()
	frugal(ctx)
	if got := debug.SetMemoryLimit(-1); got < memoryGoal || got == math.MaxInt64 {
		t.Errorf("the limit is %d", got)
	}
	debug.SetMemoryLimit(math.MaxInt64)
	t.Setenv("GOGC", "100")
	frugal(ctx)
	if got := debug.SetMemoryLimit(-1); got != math.MaxInt64 {
		t.Errorf("the environment says how, and the limit is %d", got)
	}
}
