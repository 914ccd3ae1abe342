package outbox

import (
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

func TestRingWakesEveryListener(t *testing.T) {
	a, b := Bell(), Bell()
	select {
	case <-a:
		t.Fatal("the bell rang before Ring")
	default:
	}
	Ring()
	for _, c := range []<-chan struct{}{a, b} {
		select {
		case <-c:
		default:
			t.Fatal("a listener slept through Ring")
		}
	}
	select {
	case <-Bell():
		t.Fatal("an old Ring woke a new listener")
	default:
	}
}

func TestRingAllocatesNothingWithoutListeners(t *testing.T) {
	Ring()
	if n := testing.AllocsPerRun(100, Ring); n != 0 {
		t.Fatalf("Ring allocates %v times", n)
	}
}

// TestNoWakeUpIsLost plays the documented protocol: listeners take the bell,
// look, then wait. A listener that waits after the last number was written
// would never end.
func TestNoWakeUpIsLost(t *testing.T) {
	const last = 20000
	var table atomic.Int64
	var listeners sync.WaitGroup
	for range 4 {
		listeners.Go(func() {
			for {
				bell := Bell()
				if table.Load() == last {
					return
				}
				<-bell
			}
		})
	}
	for range last {
		table.Add(1)
		Ring()
	}
	done := make(chan struct{})
	go func() { listeners.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(20 * time.Second):
		t.Fatal("a listener waits for a Ring that has been")
	}
}
