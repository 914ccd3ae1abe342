package kafka_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/adapter/kafka"
	"github.com/onewrite/onewrite/internal/servers"
)

func subscribe(t *testing.T, b *kafka.Bus, name string) onewrite.Subscription {
	t.Helper()
	sub, err := b.Subscribe(t.Context(), onewrite.Interest{Name: name, Sources: []string{"shop"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = sub.Close() })
	return sub
}

func floor(n uint64) onewrite.Cursor {
	return onewrite.Cursor{Delivered: n, Logs: map[string]onewrite.LogCursor{"shop": {Floor: n}}}
}

func message(n int) onewrite.Message {
	return onewrite.Message{Event: shop(n, 1).Events[0], Log: "shop", Offset: uint64(n)}
}

// TestBusLease: another copy stands by while the owner commits, takes over when it does
// not, and from then on the owner changes nothing; what it gives up can be had at once.
func TestBusLease(t *testing.T) {
	k := servers.Kafka(t)
	c := kafka.BusConfig{Brokers: []string{k.Addr()}, Name: unique("lease")}
	kafka.Impatient(&c, time.Second, 0)
	a, b := openBus(t, c), openBus(t, c)
	t.Cleanup(func() { _ = errors.Join(a.Close(), b.Close()) })
	if a.ID() != b.ID() || a.ID() == "" {
		t.Fatalf("two copies on one bus call it %q and %q", a.ID(), b.ID())
	}
	old := subscribe(t, a, "d")
	in := onewrite.Interest{Name: "d", Sources: []string{"shop"}}
	for i, end := uint64(0), time.Now().Add(2*time.Second); i < 9 || time.Now().Before(end); { // longer than a lease
		i = min(i+1, 9)
		if err := old.Commit(t.Context(), floor(i)); err != nil {
			t.Fatal(err)
		}
		if _, err := b.Subscribe(t.Context(), in); !errors.Is(err, onewrite.ErrStandby) {
			t.Fatalf("beside an owner that commits: %v", err)
		}
	}
	if err := b.Rewind(t.Context(), "d", onewrite.From{}); !errors.Is(err, onewrite.ErrStandby) {
		t.Fatalf("rewind beside an owner: %v", err)
	}
	var young onewrite.Subscription
	for deadline := time.Now().Add(patience); young == nil; time.Sleep(50 * time.Millisecond) {
		var err error
		if young, err = b.Subscribe(t.Context(), in); err != nil && (!errors.Is(err, onewrite.ErrStandby) || time.Now().After(deadline)) {
			t.Fatalf("beside an owner that has died: %v", err)
		}
	}
	if got, _ := young.Cursor(); got.Delivered != 9 {
		t.Fatalf("the cursor is %+v", got)
	}
	ref, err := young.Park(t.Context(), onewrite.Parked{Message: message(1), At: time.Now()})
	if err != nil {
		t.Fatal(err)
	}
	for what, err := range map[string]error{
		"commit": old.Commit(t.Context(), floor(99)), "unpark": old.Unpark(t.Context(), ref),
		"park": func() error {
			_, err := old.Park(t.Context(), onewrite.Parked{Message: message(2), At: time.Now()})
			return err
		}(),
	} {
		if !errors.Is(err, onewrite.ErrFenced) {
			t.Errorf("%s by the old owner: %v", what, err)
		}
	}
	if list, err := young.Parked(t.Context(), 0, 9, nil); err != nil || len(list) != 1 || list[0].Ref != ref {
		t.Fatalf("parked: %v, %v", list, err)
	}
	if err := errors.Join(old.Close(), young.Close()); err != nil {
		t.Fatal(err)
	}
	again := subscribe(t, a, "d")
	if got, _ := again.Cursor(); got.Delivered != 9 {
		t.Fatalf("the cursor is %+v", got)
	}
	if err := b.Forget(t.Context(), "d"); err != nil {
		t.Fatal(err)
	}
	if err := again.Commit(t.Context(), floor(3)); !errors.Is(err, onewrite.ErrFenced) {
		t.Errorf("commit to a place that is forgotten: %v", err)
	}
	if names, err := a.Destinations(t.Context()); err != nil || len(names) != 0 {
		t.Errorf("places: %v, %v", names, err)
	}
	fresh := subscribe(t, b, "d")
	if list, err := fresh.Parked(t.Context(), 0, 9, nil); err != nil || len(list) != 0 {
		t.Errorf("parked at a place that was forgotten: %v, %v", list, err)
	}
}

// TestBusTidy: the log of a place stays short, and loses nothing that counts, whoever
// reads it and when.
func TestBusTidy(t *testing.T) {
	k := servers.Kafka(t)
	c := kafka.BusConfig{Brokers: []string{k.Addr()}, Name: unique("tidy")}
	kafka.Impatient(&c, time.Hour, 60)
	b, follower := openBus(t, c), openBus(t, c)
	t.Cleanup(func() { _ = errors.Join(b.Close(), follower.Close()) })
	sub := subscribe(t, b, "d")
	var refs []uint64
	check := func(sub onewrite.Subscription, committed uint64) {
		t.Helper()
		list, err := sub.Parked(t.Context(), 0, 1000, nil)
		if err != nil {
			t.Fatal(err)
		}
		var got []uint64
		oldest := uint64(1 << 40)
		for _, p := range list {
			oldest = min(oldest, p.Message.Offset)
			if got = append(got, p.Ref); p.Message.ID != fmt.Sprint(p.Message.Offset) {
				t.Fatalf("entry %d is event %s", p.Ref, p.Message.ID)
			}
		}
		if !slices.Equal(got, refs) {
			t.Fatalf("parked %v, want %v", got, refs)
		}
		floors, err := follower.Floors(t.Context(), "shop")
		if err != nil || floors["d"] != committed {
			t.Fatalf("the other copy sees %v, %v; want %d", floors, err, committed)
		}
		if free, err := follower.Unparked(t.Context(), "d", "shop", 1<<40-1); err != nil || free != oldest-1 {
			t.Fatalf("the other copy sees nothing parked up to %d, %v; want %d", free, err, oldest-1)
		}
	}
	for i := uint64(1); i <= 400; i++ {
		if i%20 == 0 {
			ref, err := sub.Park(t.Context(), onewrite.Parked{Message: message(int(i)), At: time.Now()})
			if err != nil || len(refs) > 0 && ref <= refs[len(refs)-1] {
				t.Fatalf("ref %d, %v", ref, err)
			}
			refs = append(refs, ref)
		}
		if i%50 == 0 {
			if err := sub.Unpark(t.Context(), refs[1]); err != nil {
				t.Fatal(err)
			}
			refs = slices.Delete(refs, 1, 2)
		}
		if err := sub.Commit(t.Context(), floor(i)); err != nil {
			t.Fatal(err)
		}
		if i%200 == 0 { // by then what the other copy would read next is removed
			check(sub, i)
		}
	}
	check(sub, 400)
	var held int64
	with(t, k, func(ctx context.Context, adm *kadm.Client) error {
		start, err := adm.ListStartOffsets(ctx, c.Name+".place.d")
		if err != nil {
			return err
		}
		end, err := adm.ListEndOffsets(ctx, c.Name+".place.d")
		s, _ := start.Lookup(c.Name+".place.d", 0)
		e, _ := end.Lookup(c.Name+".place.d", 0)
		held = e.Offset - s.Offset
		return err
	})
	if held > 60+3*int64(len(refs)) {
		t.Errorf("the log of the place holds %d records for %d parked events", held, len(refs))
	}
	if err := errors.Join(sub.Close(), b.Close()); err != nil {
		t.Fatal(err)
	}
	b = openBus(t, c)
	sub = subscribe(t, b, "d")
	check(sub, 400)
	ref, err := sub.Park(t.Context(), onewrite.Parked{Message: message(500), At: time.Now()})
	if err != nil || ref <= refs[len(refs)-1] {
		t.Fatalf("after a restart: ref %d, %v", ref, err)
	}
	// Where nothing is parked the cursor alone is what counts.
	if err := sub.Unpark(t.Context(), append(refs, ref)...); err != nil {
		t.Fatal(err)
	}
	refs = nil
	for i := uint64(401); i <= 500; i++ { // it is there at every moment
		if err := sub.Commit(t.Context(), floor(i)); err != nil {
			t.Fatal(err)
		}
		floors, err := follower.Floors(t.Context(), "shop")
		if err != nil || floors["d"] != i {
			t.Fatalf("the other copy sees %v, %v; want %d", floors, err, i)
		}
	}
	last, err := kafka.OpenBus(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	defer last.Close()
	if floors, err := last.Floors(t.Context(), "shop"); err != nil || floors["d"] != 500 {
		t.Fatalf("a new copy sees %v, %v; want 500", floors, err)
	}
}

// TestBusRewind: a replay hands out again what is on the bus, never less than was due.
func TestBusRewind(t *testing.T) {
	k := servers.Kafka(t)
	b := openBus(t, kafka.BusConfig{Brokers: []string{k.Addr()}, Name: unique("rewind")})
	t.Cleanup(func() { _ = b.Close() })
	if err := b.Rewind(t.Context(), "d", onewrite.From{}); err == nil {
		t.Error("a place that is not there was moved")
	}
	if _, err := b.Append(t.Context(), "shop", "", shop(1, 10)); err != nil {
		t.Fatal(err)
	}
	sub := subscribe(t, b, "d")
	c := floor(6)
	c.Placed = "pair/3/x"
	if err := errors.Join(sub.Commit(t.Context(), c), sub.Close()); err != nil {
		t.Fatal(err)
	}
	for _, from := range []onewrite.From{{Now: true}, {}} {
		if err := b.Rewind(t.Context(), "d", from); err != nil {
			t.Fatal(err)
		}
		want := uint64(6)
		if !from.Now {
			want = 0
		}
		sub := subscribe(t, b, "d")
		got, _ := sub.Cursor()
		if got.Logs["shop"].Floor != want || got.Delivered != 6 || got.Placed != onewrite.PlacedVoid+"pair/3/x" {
			t.Fatalf("rewound to %+v: %+v", from, got)
		}
		msgs, _, err := sub.Read(t.Context())
		if err != nil || msgs[0].Offset != want+1 {
			t.Fatalf("%+v, %v", msgs, err)
		}
		if err := sub.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// TestBusView: what a destination holds that nobody delivers to is counted by the topics
// that it had, and changes nothing.
func TestBusView(t *testing.T) {
	k := servers.Kafka(t)
	b := openBus(t, kafka.BusConfig{Brokers: []string{k.Addr()}, Name: unique("view")})
	defer b.Close()
	v := b.View("d", []string{"shop", "stock"})
	if h, err := v.Held(t.Context()); err != nil || h.Epoch != 0 {
		t.Fatalf("before it has a place: %+v, %v", h, err)
	}
	batch := shop(1, 10)
	for i := range batch.Events {
		if i%2 == 1 {
			batch.Events[i].Topic = "other"
		}
	}
	if _, err := b.Append(t.Context(), "shop", "", batch); err != nil {
		t.Fatal(err)
	}
	sub, err := b.Subscribe(t.Context(), onewrite.Interest{Name: "d", Sources: []string{"shop"}, Topics: []string{"order.>"}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := sub.Park(t.Context(), onewrite.Parked{Message: message(1), Reason: "no", At: time.Now()}); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(sub.Commit(t.Context(), floor(3)), sub.Close()); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		h, err := v.Held(t.Context())
		if err != nil || h.Cursor.Delivered != 3 || h.Pending != 3 || h.Parked != 1 || h.Epoch != 1 { // 5, 7 and 9
			t.Fatalf("it holds %+v, %v", h, err)
		}
	}
	list, err := v.Parked(t.Context(), 0, 9)
	if err != nil || len(list) != 1 || list[0].Reason != "no" {
		t.Fatalf("parked %+v, %v", list, err)
	}
	sub = subscribe(t, b, "d") // without topics
	if err := errors.Join(sub.Commit(t.Context(), floor(3)), sub.Close()); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Append(t.Context(), "shop", "10", shop(11, 1)); err != nil {
		t.Fatal(err)
	}
	if h, err := b.View("d", []string{"shop"}).Held(t.Context()); err != nil || h.Pending != 8 {
		t.Fatalf("it holds %+v, %v", h, err)
	}
	if err := b.Forget(t.Context(), "d"); err != nil {
		t.Fatal(err)
	}
	if h, err := v.Held(t.Context()); err != nil || h.Epoch != 0 || h.Parked != 0 {
		t.Fatalf("when it is forgotten: %+v, %v", h, err)
	}
}
