package pipeline_test

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/pipeline"
)

// slowSink takes its time for each write.
type slowSink struct {
	takes time.Duration

	mu       sync.Mutex
	writes   int
	events   int
	underWay int
	most     int // under way at once
}

func (s *slowSink) Write(ctx context.Context, events []onewrite.Event) (int, error) {
	s.mu.Lock()
	s.writes++
	s.underWay++
	s.most = max(s.most, s.underWay)
	s.mu.Unlock()
	select {
	case <-time.After(s.takes):
	case <-ctx.Done():
		return 0, ctx.Err()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.underWay--
	s.events += len(events)
	return len(events), nil
}

func (s *slowSink) Close() error { return nil }

// While a write is under way events gather for the next; but not for long, and not what
// is a whole write. A linger says itself how long.
func TestGather(t *testing.T) {
	largest := event(999, "k999")
	size := largest.Size() + 30 // it gets a source and a place
	for name, c := range map[string]struct {
		takes, every, lasts time.Duration
		events, batch       int
		bytes, window       int
		linger              time.Duration
		writes, most        [2]int // at least and at most
	}{
		"quick writes":    {takes: 3 * time.Millisecond, every: time.Millisecond, lasts: 1100 * time.Millisecond, events: 1000, batch: 100, writes: [2]int{250, 400}, most: [2]int{1, 1}},
		"half a batch":    {takes: 4 * time.Millisecond, every: time.Millisecond, lasts: 1100 * time.Millisecond, events: 1000, batch: 7, writes: [2]int{200, 300}, most: [2]int{1, 1}},
		"half in bytes":   {takes: 4 * time.Millisecond, every: time.Millisecond, lasts: 1100 * time.Millisecond, events: 1000, batch: 100, bytes: 7 * size, writes: [2]int{200, 300}, most: [2]int{1, 1}},
		"two in bytes":    {takes: 3 * time.Millisecond, every: time.Millisecond, lasts: 1100 * time.Millisecond, events: 1000, batch: 10_000, bytes: 2 * size, writes: [2]int{450, 650}, most: [2]int{2, 2}},
		"a short linger":  {takes: 7 * time.Millisecond, every: time.Millisecond, lasts: 1100 * time.Millisecond, events: 1000, batch: 100, linger: 2 * time.Millisecond, writes: [2]int{300, 600}, most: [2]int{3, 4}},
		"a long linger":   {takes: 3 * time.Millisecond, every: time.Millisecond, lasts: 1100 * time.Millisecond, events: 1000, batch: 100, linger: 20 * time.Millisecond, writes: [2]int{40, 60}, most: [2]int{1, 1}},
		"slow writes":     {takes: 18 * time.Millisecond, every: time.Millisecond, lasts: 1100 * time.Millisecond, events: 1000, batch: 100, writes: [2]int{150, 250}, most: [2]int{4, 4}},
		"one at a time":   {takes: 3 * time.Millisecond, every: time.Millisecond, lasts: 1100 * time.Millisecond, events: 1000, batch: 1, writes: [2]int{1000, 1000}, most: [2]int{3, 4}},
		"a whole batch":   {takes: time.Second, lasts: time.Millisecond, events: 100, batch: 10, writes: [2]int{4, 4}, most: [2]int{4, 4}},
		"whole in bytes":  {takes: time.Second, lasts: time.Millisecond, events: 100, batch: 1000, bytes: 2 * size, writes: [2]int{4, 4}, most: [2]int{4, 4}},
		"a full window":   {takes: time.Second, lasts: time.Millisecond, events: 100, batch: 1000, window: 20, writes: [2]int{2, 2}, most: [2]int{2, 2}},
		"what is too few": {takes: time.Second, lasts: time.Millisecond, events: 100, batch: 1000, writes: [2]int{1, 1}, most: [2]int{1, 1}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w, s := newWorld(), &slowSink{takes: c.takes}
				w.d = &pipeline.Delivery{Concurrency: 4, BatchCount: c.batch, BatchBytes: c.bytes, Window: c.window, Linger: c.linger, Open: func(context.Context) (onewrite.Sink, error) { return s, nil }}
				w.start()
				synctest.Wait()
				begin := time.Now()
				for i := range c.events {
					w.source.commit(event(i, fmt.Sprint("k", i)))
					if time.Sleep(c.every); i == 0 {
						synctest.Wait() // one write is under way before the others come
					}
				}
				time.Sleep(time.Until(begin.Add(c.lasts)))
				s.mu.Lock()
				if s.writes < c.writes[0] || s.writes > c.writes[1] || s.most < c.most[0] || s.most > c.most[1] {
					t.Errorf("%d writes, %d at once, want %v and %v", s.writes, s.most, c.writes, c.most)
				}
				s.mu.Unlock()
				time.Sleep(time.Minute)
				s.mu.Lock()
				if s.events != c.events {
					t.Errorf("%d events of %d", s.events, c.events)
				}
				s.mu.Unlock()
				w.stop()
			})
		})
	}
}
