package customsink_test

import (
	"context"
	"fmt"
	"log"
	"time"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/examples/customsink"
	"github.com/onewrite/onewrite/onewritetest"
	"github.com/onewrite/onewrite/pipeline"
)

// A pipeline delivers what is on the bus to the store. An event that the store
// refuses is parked with its key; all others arrive.
func Example() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	s, err := newStore()
	if err != nil {
		log.Fatal(err)
	}
	defer s.close()
	s.answers["e-2"] = "refused no such customer"

	bus := &onewritetest.MemoryBus{}
	var events []onewrite.Event
	for i, key := range []string{"alice", "bob", "alice", "bob", "carol"} {
		events = append(events, onewrite.Event{ID: fmt.Sprint("e-", i+1), Source: "shop", Topic: "order.placed", Type: "order.placed", Key: key})
	}
	if _, err := bus.Append(ctx, "shop", "", onewrite.Batch{Events: events, Pos: "5"}); err != nil {
		log.Fatal(err)
	}

	delivery := &pipeline.Delivery{
		Interest: onewrite.Interest{Name: "store", Sources: []string{"shop"}},
		Bus:      bus,
		Open:     func(context.Context) (onewrite.Sink, error) { return customsink.New(s.addr()), nil },
		Attempts: 3,
		Retry:    pipeline.Backoff{First: time.Millisecond},
	}
	running, stop := context.WithCancel(ctx)
	done := make(chan error)
	go func() { done <- delivery.Run(running) }()
	for len(bus.Parked("store")) < 2 && ctx.Err() == nil {
		time.Sleep(time.Millisecond)
	}
	stop()
	if err := <-done; err != nil {
		log.Fatal(err)
	}
	for _, e := range s.received() {
		fmt.Println("arrived", e.ID, e.Key)
	}
	for _, p := range bus.Parked("store") {
		fmt.Println("parked ", p.Message.ID, p.Message.Key+":", p.Reason)
	}
	// Output:
	// arrived e-1 alice
	// arrived e-3 alice
	// arrived e-5 carol
	// parked  e-2 bob: customsink: rejected: no such customer
	// parked  e-4 bob: waits behind e-2
}
