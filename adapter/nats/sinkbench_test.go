package nats_test

import (
	"fmt"
	"testing"
	"time"

	natsgo "github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/sync/errgroup"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/adapter/nats"
	"github.com/onewrite/onewrite/internal/servers"
)

// BenchmarkSink publishes batches of 256 events of 500 bytes to a stream as a delivery
// does, one or several at once, each with keys of its own. Then the client alone publishes
// the same messages to the same server, up to 4,000 ahead of the answers.
func BenchmarkSink(b *testing.B) {
	const batch, keys = 256, 100
	for _, writers := range []int{1, 4} {
		b.Run(fmt.Sprintf("writers=%d", writers), func(b *testing.B) {
			srv, err := servers.LaunchNATS(1)
			if err != nil {
				b.Fatal(err)
			}
			b.Cleanup(func() {
				if err := srv.Shutdown(); err != nil {
					b.Error(err)
				}
			})
			url := srv.URL()
			nc := connect(b, url)
			js, err := jetstream.New(nc, jetstream.WithPublishAsyncMaxPending(4000), jetstream.WithDefaultTimeout(time.Minute))
			if err != nil {
				b.Fatal(err)
			}
			name := fmt.Sprintf("bench-%d", time.Now().UnixNano())
			if _, err := js.CreateStream(b.Context(), jetstream.StreamConfig{Name: name, Subjects: []string{name + ".>"}}); err != nil {
				b.Fatal(err)
			}
			sink, err := nats.NewSink(b.Context(), nats.SinkConfig{URL: url, Subject: name + ".{topic}", Destination: "bench"})
			if err != nil {
				b.Fatal(err)
			}
			defer sink.Close()
			rounds := 0
			round := func(n int) {
				var group errgroup.Group
				group.SetLimit(writers)
				for i := range n {
					number := rounds + i
					group.Go(func() error {
						events := make([]onewrite.Event, batch)
						for j := range events {
							events[j] = onewrite.Event{
								ID: fmt.Sprint(number, "-", j), Source: "shop", Topic: "order.placed", Type: "order.placed", Key: fmt.Sprint(number, "-", j%keys),
								Time: time.Unix(1, 0), ContentType: "text/plain", Data: make([]byte, 500),
							}
						}
						_, err := sink.Write(b.Context(), events)
						return err
					})
				}
				if err := group.Wait(); err != nil {
					b.Fatal(err)
				}
				rounds += n
			}
			round(writers)
			b.ResetTimer()
			round(b.N)
			b.StopTimer()
			rate := float64(batch*b.N) / b.Elapsed().Seconds()
			floor := published(b, js, name, batch*b.N)
			b.ReportMetric(rate, "events/s")
			b.ReportMetric(rate/floor, "of-floor")
			b.ReportMetric(floor, "floor-events/s")
		})
	}
}

// published publishes what the stream has as its newest message, n times with new ids,
// with the client alone, and returns how many a second.
func published(b *testing.B, js jetstream.JetStream, name string, n int) float64 {
	b.Helper()
	stream, err := js.Stream(b.Context(), name)
	if err != nil {
		b.Fatal(err)
	}
	raw, err := stream.GetMsg(b.Context(), stream.CachedInfo().State.LastSeq)
	if err != nil {
		b.Fatal(err)
	}
	start := time.Now()
	for i := range n {
		m := natsgo.NewMsg(raw.Subject)
		for k, v := range raw.Header {
			m.Header[k] = v
		}
		m.Header.Set(natsgo.MsgIdHdr, fmt.Sprint("floor-", i))
		m.Data = raw.Data
		if _, err := js.PublishMsgAsync(m, jetstream.WithStallWait(time.Minute)); err != nil {
			b.Fatal(err)
		}
	}
	select {
	case <-js.PublishAsyncComplete():
	case <-time.After(time.Minute):
		b.Fatal("no answers")
	}
	return float64(n) / time.Since(start).Seconds()
}
