package webhook

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/onewrite/onewrite"
)

// BenchmarkConnections delivers an event a request with 16 requests under way, as 16
// writers of a delivery do, each with a key of its own. net/http alone posts the same
// bytes with the same headers to the same server, in turn with it.
func BenchmarkConnections(b *testing.B) {
	const writers, each = 16, 500
	kept := make(chan *http.Request, 1)
	server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, req *http.Request) {
		select {
		case kept <- req:
		default:
		}
		_, _ = io.Copy(io.Discard, req.Body)
	}))
	defer server.Close()
	s, err := New(Config{URL: server.URL, AllowPrivate: true, Secrets: []string{newSecret()}})
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	e := order("1")
	e.Data = bytes.Repeat([]byte("x"), 500)
	if _, err := s.Write(context.Background(), []onewrite.Event{e}); err != nil {
		b.Fatal(err)
	}
	header := (<-kept).Header
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: writers}}
	together := func(one func(i int) error) float64 {
		start := time.Now()
		var wg sync.WaitGroup
		for range writers {
			wg.Go(func() {
				for i := range each {
					if err := one(i); err != nil {
						b.Error(err)
						return
					}
				}
			})
		}
		wg.Wait()
		return writers * each / time.Since(start).Seconds()
	}
	var own, floor []float64
	for b.Loop() {
		own = append(own, together(func(i int) error {
			mine := e
			mine.ID = strconv.Itoa(i)
			_, err := s.Write(context.Background(), []onewrite.Event{mine})
			return err
		}))
		floor = append(floor, together(func(int) error {
			req, err := http.NewRequestWithContext(context.Background(), http.MethodPost, server.URL, bytes.NewReader(e.Data))
			if err != nil {
				return err
			}
			req.Header = header.Clone()
			resp, err := client.Do(req)
			if err != nil {
				return err
			}
			defer func() { _ = resp.Body.Close() }()
			_, err = io.Copy(io.Discard, resp.Body)
			return err
		}))
	}
	slices.Sort(own)
	slices.Sort(floor)
	b.ReportMetric(own[len(own)/2], "events/s")
	b.ReportMetric(floor[len(floor)/2], "floor/s")
	b.ReportMetric(own[len(own)/2]/floor[len(floor)/2], "ratio")
}
