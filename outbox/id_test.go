package outbox

import (
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

func TestNewIDIsUUIDv7(t *testing.T) {
	before := time.Now().UnixMilli()
	id := NewID()
	after := time.Now().UnixMilli()
	if !isUUID(id) || id[14] != '7' || !strings.ContainsRune("89ab", rune(id[19])) {
		t.Fatalf("%s is no UUIDv7", id)
	}
	ms, err := strconv.ParseInt(id[:8]+id[9:13], 16, 64)
	// A burst of ids may have pushed the clock a little ahead.
	if err != nil || ms < before || ms > after+1000 {
		t.Fatalf("%s is of ms %d, want %d to %d", id, ms, before, after)
	}
}

func TestNewIDGrowsInEachGoroutineAndIsUnique(t *testing.T) {
	var mu sync.Mutex
	var all []string
	var g sync.WaitGroup
	for range 8 {
		g.Go(func() {
			ids := make([]string, 5000)
			for i := range ids {
				ids[i] = NewID()
			}
			if !slices.IsSorted(ids) {
				t.Error("ids of one goroutine are not in order")
			}
			mu.Lock()
			all = append(all, ids...)
			mu.Unlock()
		})
	}
	g.Wait()
	slices.Sort(all)
	if n := len(slices.Compact(all)); n != 8*5000 {
		t.Fatalf("%d of %d ids are unique", n, 8*5000)
	}
}

func TestNewIDSurvivesAClockSetBack(t *testing.T) {
	ahead := uint64(time.Now().Add(time.Hour).UnixMilli()) << 12
	old := lastTick.Swap(ahead) // as if the clock had been an hour ahead
	defer lastTick.Store(old)
	first := NewID()
	for range 5000 { // more than the 12 bits of one millisecond
		next := NewID()
		if next <= first {
			t.Fatalf("%s follows %s", next, first)
		}
		first = next
	}
}
