package main

import (
	"context"
	"os"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

// memoryGoal is the memory of the program, its code aside, above which the collector
// works harder; by itself it lets the heap grow to twice what is in use, which in a flood
// of events is mostly buffers that are free again.
const memoryGoal = 85 << 20

// memoryLimit is the limit for a heap of which so many bytes are in use. A quarter of it
// is left free: with less, little but collecting would be done.
func memoryLimit(live uint64) int64 { return max(memoryGoal, int64(live+live/3)) }

// frugal keeps the memory of a long run near memoryGoal, unless the environment says how
// (GOMEMLIMIT, GOGC).
func frugal(ctx context.Context) {
	if os.Getenv("GOMEMLIMIT") != "" || os.Getenv("GOGC") != "" {
		return
	}
	sample := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		metrics.Read(sample)
		debug.SetMemoryLimit(memoryLimit(sample[0].Value.Uint64()))
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}
