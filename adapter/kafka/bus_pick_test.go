package kafka_test

import (
	"context"
	"fmt"
	"runtime"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/adapter/kafka"
	"github.com/onewrite/onewrite/internal/servers"
)

// TestBusParkedApart: what is parked of one key lies here and there among what else the
// log of a place has. To read it is to read little more, also when the broker was gone and
// came back.
func TestBusParkedApart(t *testing.T) {
	k := servers.NewKafka(t)
	c := kafka.BusConfig{Brokers: []string{k.Addr()}, Name: unique("apart")}
	b := openBus(t, c)
	defer func() { _ = b.Close() }()
	sub := subscribe(t, b, "d")
	const all, between = 20, 300
	rest := make([]*kgo.Record, between)
	for n := 1; n <= all; n++ {
		m := message(n)
		m.Key = "k"
		if _, err := sub.Park(t.Context(), onewrite.Parked{Message: m, Reason: fmt.Sprint(n), Holds: true, At: time.Now()}); err != nil {
			t.Fatal(err)
		}
		for i := range rest {
			rest[i] = &kgo.Record{Topic: c.Name + ".place.d", Value: make([]byte, 4000)}
		}
		with(t, k, func(ctx context.Context, _ *kadm.Client) error {
			cl, err := kgo.NewClient(kgo.SeedBrokers(k.Addr()))
			if err != nil {
				return err
			}
			defer cl.Close()
			return cl.ProduceSync(ctx, rest...).FirstErr()
		})
	}
	check := func(lane *onewrite.Lane) (allocated uint64) {
		t.Helper()
		var was, now runtime.MemStats
		runtime.ReadMemStats(&was)
		list, err := sub.Parked(t.Context(), 0, 100, lane)
		runtime.ReadMemStats(&now)
		if err != nil || len(list) != all {
			t.Fatalf("%d parked, %v; want %d", len(list), err, all)
		}
		for i, p := range list {
			want := message(i + 1)
			if p.Message.ID != want.ID || string(p.Message.Data) != string(want.Data) || p.Reason != fmt.Sprint(i+1) {
				t.Fatalf("entry %d is %+v", i, p)
			}
		}
		return now.TotalAlloc - was.TotalAlloc
	}
	lane := onewrite.Lane{Log: "shop", Key: "k"}
	check(&lane) // what was written last is read
	if n := check(&lane); n > 4<<20 {
		t.Errorf("%d bytes were allocated to read %d small events", n, all)
	}
	k.Kill(t)
	k.Restart(t)
	check(&lane)
	if n := check(nil); n > 4<<20 {
		t.Errorf("after a restart %d bytes were allocated to read %d small events", n, all)
	}
}
