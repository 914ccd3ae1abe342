package nats_test

import (
	"context"
	"strconv"
	"testing"
	"time"

	natsgo "github.com/nats-io/nats.go"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/adapter/nats"
)

const patience = 60 * time.Second

// until waits for a condition.
func until(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !ok(); {
		if time.Now().After(end) {
			t.Fatalf("waited in vain for: %s", what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// batch makes n events from number first on; its position is the last number.
func batch(first, n int) onewrite.Batch {
	b := onewrite.Batch{
		Events: make([]onewrite.Event, n),
		PosAt:  func(i int) onewrite.Pos { return onewrite.Pos(strconv.Itoa(first + i)) },
	}
	for i := range b.Events {
		id := strconv.Itoa(first + i)
		b.Events[i] = onewrite.Event{
			ID: "6e9c2a40-0000-4000-8000-" + id, Source: "shop", Topic: "order.placed", Type: "order.placed", Key: "customer-" + id, Seq: id,
			Time: time.Date(2024, 5, 6, 7, 8, 9, 0, time.UTC), ContentType: "application/json", Data: []byte(`{"order":` + id + `}`),
		}
	}
	b.Pos = b.PosAt(n - 1)
	return b
}

func appendAll(t testing.TB, b *nats.Bus, prev onewrite.Pos, batches ...onewrite.Batch) uint64 {
	t.Helper()
	var last uint64
	for _, x := range batches {
		var err error
		if last, err = b.Append(t.Context(), "shop", prev, x); err != nil {
			t.Fatal(err)
		}
		prev = x.Pos
	}
	return last
}

func subscribe(t testing.TB, b *nats.Bus, in onewrite.Interest) onewrite.Subscription {
	t.Helper()
	if in.Sources == nil {
		in.Sources = []string{"shop"}
	}
	sub, err := b.Subscribe(t.Context(), in)
	if err != nil {
		t.Fatal(err)
	}
	return sub
}

// read reads n messages.
func read(t testing.TB, sub onewrite.Subscription, n int) []onewrite.Message {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	var all []onewrite.Message
	for len(all) < n {
		msgs, _, err := sub.Read(ctx)
		if err != nil {
			t.Fatalf("read after %d of %d: %v", len(all), n, err)
		}
		all = append(all, msgs...)
	}
	return all
}

func connect(t testing.TB, url string, opts ...natsgo.Option) *natsgo.Conn {
	t.Helper()
	nc, err := natsgo.Connect(url, opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	return nc
}
