package nats_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/adapter/nats"
)

// BenchmarkAppend shows the floor of the embedded bus, each append synced.
func BenchmarkAppend(b *testing.B) {
	for _, n := range []int{1, 10, 100, 500, 1000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			bus := open(b, nats.Config{Dir: b.TempDir(), MaxBytes: 1 << 40})
			x := batch(1, n)
			for i := range x.Events {
				x.Events[i].Data = make([]byte, 200)
			}
			prev := onewrite.Pos("")
			b.ReportAllocs()
			for b.Loop() {
				if _, err := bus.Append(context.Background(), "shop", prev, x); err != nil {
					b.Fatal(err)
				}
				prev = x.Pos
			}
			b.ReportMetric(float64(n)*float64(b.N)/b.Elapsed().Seconds(), "events/s")
		})
	}
}

// BenchmarkRead drains a log.
func BenchmarkRead(b *testing.B) {
	bus := open(b, nats.Config{Dir: b.TempDir(), MaxBytes: 1 << 40})
	prev, n := onewrite.Pos(""), 0
	for range 100 {
		x := batch(n+1, 1000)
		appendAll(b, bus, prev, x)
		prev, n = x.Pos, n+1000
	}
	b.ReportAllocs()
	for b.Loop() {
		sub := subscribe(b, bus, onewrite.Interest{})
		read(b, sub, n)
		_ = sub.Close()
	}
	b.ReportMetric(float64(n)*float64(b.N)/b.Elapsed().Seconds(), "events/s")
}

// BenchmarkDelivery is the time from the call of Append to the event in hand.
func BenchmarkDelivery(b *testing.B) {
	bus := open(b, nats.Config{Dir: b.TempDir(), MaxBytes: 1 << 40})
	sub := subscribe(b, bus, onewrite.Interest{Name: "d"})
	defer sub.Close()
	got := make(chan struct{})
	ctx, cancel := context.WithCancel(b.Context())
	defer cancel()
	go func() {
		for {
			msgs, _, err := sub.Read(ctx)
			if err != nil {
				return
			}
			for range msgs {
				got <- struct{}{}
			}
		}
	}()
	prev, n := onewrite.Pos(""), 1
	for b.Loop() {
		x := batch(n, 1)
		appendAll(b, bus, prev, x)
		prev, n = x.Pos, n+1
		select {
		case <-got:
		case <-time.After(patience):
			b.Fatal("nothing came")
		}
	}
}
