package search_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"testing"
	"time"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/adapter/search"
	"github.com/onewrite/onewrite/internal/servers"
)

// BenchmarkWrite writes rows in batches of a thousand, and beside it, taking turns,
// sends the same documents in plain bulk requests; ratio is how much of the latter's
// pace the sink has.
func BenchmarkWrite(b *testing.B) {
	srv := servers.Elasticsearch(b)
	s := newSink(b, search.Config{URL: srv.URL(""), Destination: "bench", Index: "bench-{topic}"})
	const size, warm = 1000, 20 // the first requests make the indices and warm the server up
	batch := func(n int) []onewrite.Event {
		events := make([]onewrite.Event, size)
		for i := range events {
			id := n*size + i
			events[i] = change("rows", "c", fmt.Sprintf(`{"id":%d}`, id), fmt.Sprintf(`{"id":%d,"customer":"c%d","total":"19.90","note":"leave it at the door","paid":true}`, id, id%100), n, i)
		}
		return events
	}
	var ours, raw time.Duration
	n := 0
	for b.Loop() {
		events := batch(n)
		var body bytes.Buffer
		for i := range events {
			id := n*size + i
			fmt.Fprintf(&body, "{\"index\":{\"_index\":\"bench-raw\",\"_id\":\"%d\"}}\n{\"id\":%[1]d,\"customer\":\"c%d\",\"total\":\"19.90\",\"note\":\"leave it at the door\",\"paid\":true}\n", id, id%100)
		}
		n++
		sink := func() {
			start := time.Now()
			if got, err := s.Write(context.Background(), events); got != size || err != nil {
				b.Fatal(got, err)
			}
			ours += time.Since(start)
		}
		plain := func() {
			start := time.Now()
			resp, err := http.Post(srv.URL("")+"/_bulk?filter_path=errors", "application/json", &body)
			if err != nil {
				b.Fatal(err)
			}
			text, err := io.ReadAll(resp.Body)
			if _ = resp.Body.Close(); err != nil || !bytes.Contains(text, []byte(`"errors":false`)) {
				b.Fatal(err, string(text))
			}
			raw += time.Since(start)
		}
		first, second := sink, plain
		if n%2 == 0 {
			first, second = plain, sink
		}
		first()
		second()
		if n == warm {
			ours, raw = 0, 0
		}
	}
	n -= min(n-1, warm)
	b.ReportMetric(float64(n*size)/ours.Seconds(), "events/s")
	b.ReportMetric(float64(n*size)/raw.Seconds(), "raw-docs/s")
	b.ReportMetric(raw.Seconds()/ours.Seconds(), "ratio")
}
