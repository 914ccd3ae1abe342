package pipeline_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/pipeline"
)

func TestPlacedStorm(t *testing.T) {
	for seed := range uint64(60) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				rnd := rand.New(rand.NewPCG(seed, 7))
				var mu sync.Mutex
				chance := func(n int) bool {
					mu.Lock()
					defer mu.Unlock()
					return rnd.IntN(n) == 0
				}
				k, calm, mended := &keeper{}, atomic.Bool{}, atomic.Bool{}
				k.fault = func(msgs []onewrite.Message) (bool, int, error) {
					for i := range msgs {
						var n int
						_, _ = fmt.Sscanf(msgs[i].ID, "e%d", &n)
						if n%101 == 50 && !mended.Load() {
							return false, i, onewrite.ErrRejected
						}
					}
					if !calm.Load() && chance(8) {
						return chance(2), 0, errInjected
					}
					return true, 0, nil
				}
				shape := func(e *onewrite.Event) (onewrite.Event, bool, error) {
					var n int
					_, _ = fmt.Sscanf(e.ID, "e%d", &n)
					switch {
					case n%7 == 3:
						return *e, false, nil
					case n%97 == 33 && !mended.Load():
						return *e, true, errors.New("no")
					}
					return *e, true, nil
				}
				w := keeping(k)
				setup := func() {
					w.d.Shape, w.d.Attempts = shape, 1000
					if seed%2 == 0 {
						w.d.OnReject = pipeline.Skip
					}
					w.d.BatchCount = 1 + int(seed%23)
					if seed%3 != 2 { // the poison of F2 is left out by many attempts
						w.d.Attempts = 1000
					}
				}
				setup()
				w.d.Attempts = 3 + int(seed%4)
				w.bus.Fault = func(at string) error {
					if !calm.Load() && chance(60) {
						return errInjected
					}
					return nil
				}
				w.start()
				n := 0
				for round := range 6 {
					for range 150 {
						e := event(n, []string{"", fmt.Sprint("k", n%9)}[n%2])
						if n%60 == 59 {
							e.Type, e.Tx.ID = "truncate", "1"
						}
						w.source.commit(e)
						n++
						time.Sleep(2 * time.Millisecond)
					}
					if round%2 == 1 {
						mended.Store(round == 5)
						_ = w.d.Redrive(t.Context(), 0)
					}
					if round == 3 {
						w.stop()
						w.d = keptBy(k)
						setup()
						w.d.Attempts = 3 + int(seed%4)
						w.start()
					}
				}
				calm.Store(true)
				time.Sleep(10 * time.Minute)
				for range 8 {
					_ = w.d.Redrive(t.Context(), 0)
					time.Sleep(time.Minute)
				}
				s := w.d.Status()
				w.stop()
				times := map[string]int{}
				for _, e := range k.events {
					times[e.ID]++
				}
				twice := 0
				for _, c := range times {
					if c > 1 {
						twice++
					}
				}
				sum := s.Delivered + s.Filtered + s.Parked + s.Pending + s.Skipped
				if sum != uint64(n) || s.Pending != 0 || int(s.Delivered) != len(times) || twice > 0 || s.Parked > 0 {
					t.Errorf("sum %d of %d, %d there, %d twice, %+v", sum, n, len(times), twice, s)
				}
			})
		})
	}
}
