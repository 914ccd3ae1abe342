package pipeline_test

import (
	"context"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/onewrite/onewrite/onewritetest"
	"github.com/onewrite/onewrite/pipeline"
)

// One write at a time keeps the order of the bus, whatever the keys are that wait together.
func TestBusOrder(t *testing.T) {
	for _, batch := range []int{1, 3, 100} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld()
			w.d = &pipeline.Delivery{Concurrency: 1, BatchCount: batch}
			w.sink.Answer("", onewritetest.ErrStall)
			w.start()
			const n = 500
			for i := range n {
				key := fmt.Sprint("k", i*i%7)
				if i%5 == 0 {
					key = ""
				}
				w.source.commit(event(i, key))
			}
			synctest.Wait() // they wait together
			w.sink.Answer("", nil)
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			got, err := w.sink.Wait(ctx, n)
			if err != nil || len(got) != n {
				t.Fatalf("%d events of %d: %v", len(got), n, err)
			}
			for i := range got {
				if want := fmt.Sprintf("e%04d", i); got[i].ID != want {
					t.Fatalf("batch %d: event %d is %s, want %s", batch, i, got[i].ID, want)
				}
			}
			w.stop()
		})
	}
}
