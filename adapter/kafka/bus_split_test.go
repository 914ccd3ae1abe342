package kafka_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/adapter/kafka"
	"github.com/onewrite/onewrite/internal/servers"
)

// TestBusSplit: three copies race with appends that take several batches of records each,
// while a destination reads. Each copy has events of its own.
func TestBusSplit(t *testing.T) {
	k := servers.Kafka(t)
	c := kafka.BusConfig{Brokers: []string{k.Addr()}, Name: unique("split")}
	topic(t, k, c.Name+".log.shop", 1, "max.message.bytes", "1500", "retention.ms", "-1", "retention.bytes", "-1", "cleanup.policy", "delete")
	const goal = 3000
	var wg sync.WaitGroup
	var mu sync.Mutex
	want, fenced := map[uint64]string{}, 0
	for copy := range 3 {
		b := openBus(t, c)
		t.Cleanup(func() { _ = b.Close() })
		wg.Go(func() {
			pause := rand.New(rand.NewPCG(7, uint64(copy)))
			for round := 0; ; {
				pos, last, err := b.Position(t.Context(), "shop")
				if err != nil {
					t.Errorf("position: %v", err)
					return
				}
				for range 1 + pause.IntN(3) {
					if last >= goal {
						return
					}
					round++
					n := 1 + pause.IntN(40)
					batch := shop(int(last)+1, n)
					for i := range batch.Events {
						batch.Events[i].ID = fmt.Sprint(copy, "-", round, "-", i)
					}
					batch.Pos = onewrite.Pos(fmt.Sprint(copy, "-", round))
					got, err := b.Append(t.Context(), "shop", pos, batch)
					if errors.Is(err, onewrite.ErrFenced) {
						mu.Lock()
						fenced++
						mu.Unlock()
						break
					}
					if err != nil || got != last+uint64(n) {
						t.Errorf("append: last %d, %v; want %d", got, err, last+uint64(n))
						return
					}
					mu.Lock()
					for i := range batch.Events {
						at := last + uint64(i) + 1
						if was := want[at]; was != "" {
							t.Errorf("event %d is %s and %s", at, was, batch.Events[i].ID)
						}
						want[at] = batch.Events[i].ID
					}
					mu.Unlock()
					pos, last = batch.Pos, got
				}
			}
		})
	}
	b := openBus(t, c)
	t.Cleanup(func() { _ = b.Close() })
	live := readAll(t, b, goal)
	wg.Wait()
	if t.Failed() {
		return
	}
	for what, msgs := range map[string][]onewrite.Message{"live": live, "later": readAll(t, b, len(want))} {
		for i, m := range msgs {
			if m.Offset != uint64(i)+1 || m.ID != want[m.Offset] {
				t.Fatalf("%s: message %d is %s at %d, want %s", what, i, m.ID, m.Offset, want[m.Offset])
			}
		}
	}
	if fenced == 0 {
		t.Error("nobody was in the way of anybody")
	}
	t.Log(len(want), "events, fenced", fenced)
}

// TestBusFullAgain: a bus that is opened again knows how full it is.
func TestBusFullAgain(t *testing.T) {
	k := servers.Kafka(t)
	c := kafka.BusConfig{Brokers: []string{k.Addr()}, Name: unique("full"), MaxBytes: 40_000}
	b := openBus(t, c)
	pos, n := onewrite.Pos(""), 0
	var err error
	for err == nil && n < 2000 {
		batch := shop(n+1, 20)
		if _, err = b.Append(t.Context(), "shop", pos, batch); err == nil {
			pos, n = batch.Pos, n+20
		}
	}
	if !errors.Is(err, onewrite.ErrFull) {
		t.Fatal(err)
	}
	_ = b.Close()
	b = openBus(t, c)
	defer b.Close()
	if _, err := b.Append(t.Context(), "shop", pos, shop(n+1, 20)); !errors.Is(err, onewrite.ErrFull) {
		t.Fatalf("after a restart: %v", err)
	}
	if _, err := b.Append(t.Context(), "other", "", shop(n+1, 20)); !errors.Is(err, onewrite.ErrFull) {
		t.Fatalf("after a restart, another source: %v", err)
	}
}

// TestBusEmptied: of a topic that an operator has emptied, Pending and Parked say what is so,
// and at once.
func TestBusEmptied(t *testing.T) {
	k := servers.Kafka(t)
	c := kafka.BusConfig{Brokers: []string{k.Addr()}, Name: unique("emptied")}
	b := openBus(t, c)
	defer b.Close()
	if _, err := b.Append(t.Context(), "shop", "", shop(1, 9)); err != nil {
		t.Fatal(err)
	}
	sub, err := b.Subscribe(t.Context(), onewrite.Interest{Name: "d", Sources: []string{"shop"}, Topics: []string{"order.>"}})
	if err != nil {
		t.Fatal(err)
	}
	defer sub.Close()
	if _, err := sub.Park(t.Context(), onewrite.Parked{Message: message(1), At: time.Now()}); err != nil {
		t.Fatal(err)
	}
	with(t, k, func(ctx context.Context, adm *kadm.Client) error {
		ends, err := adm.ListEndOffsets(ctx, c.Name+".log.shop", c.Name+".place.d")
		if err == nil {
			_, err = adm.DeleteRecords(ctx, ends.Offsets())
		}
		return err
	})
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if n, err := sub.Pending(ctx, nil); err != nil || n != 0 {
		t.Errorf("pending %d, %v", n, err)
	}
	ctx, cancel = context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	list, err := sub.Parked(ctx, 0, 9, nil)
	if err == nil || errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("parked %v, %v", list, err)
	}
	t.Log(err)
}
