package pipeline_test

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/onewrite/onewrite/pipeline"
)

// A batch that is whole does not wait for more: by number, by bytes, or because no more
// events are held in memory.
func TestLingerEnds(t *testing.T) {
	for name, d := range map[string]*pipeline.Delivery{
		"count":        {BatchCount: 50, Linger: time.Hour},
		"bytes":        {BatchCount: 1000, BatchBytes: 2000, Linger: time.Hour},
		"window":       {BatchCount: 1000, Window: 60, Linger: time.Hour},
		"window bytes": {BatchCount: 1000, WindowBytes: 20_000, Linger: time.Hour},
	} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld()
			w.d = d
			w.start()
			for i := range 200 {
				w.source.commit(event(i, fmt.Sprint("k", i)))
			}
			time.Sleep(time.Minute)
			if n := len(w.sink.Received()); n < 100 {
				t.Errorf("%s: %d events of 200 in a minute", name, n)
			}
			time.Sleep(2 * time.Hour)
			if n := len(w.sink.Received()); n != 200 {
				t.Errorf("%s: %d events of 200", name, n)
			}
			w.stop()
		})
	}
}
