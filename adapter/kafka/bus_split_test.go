package kafka_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/adapter/kafka"
	"github.com/onewrite/onewrite/internal/servers"
)

// TestBusSplit: three copies race with appends that take several batches of records each, and
// of which several are under way, while a destination reads. Each copy has events of its own.
func TestBusSplit(t *testing.T) {
	k := servers.Kafka(t)
	c := kafka.BusConfig{Brokers: []string{k.Addr()}, Name: unique("split")}
	topic(t, k, c.Name+".log.shop", 1, "max.message.bytes", "1500", "retention.ms", "-1", "retention.bytes", "-1", "cleanup.policy", "delete")
	const goal = 1500
	var wg sync.WaitGroup
	var mu sync.Mutex
	want, fenced, most := map[uint64]string{}, 0, 0
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
				if last >= goal {
					return
				}
				type flight struct {
					batch  onewrite.Batch
					last   uint64
					stored <-chan error
				}
				var begun []flight
				for range 1 + pause.IntN(4) { // that are under way at once
					round++
					n := 1 + pause.IntN(40)
					batch := shop(int(last)+1, n)
					for i := range batch.Events {
						batch.Events[i].ID = fmt.Sprint(copy, "-", round, "-", i)
					}
					batch.Pos = onewrite.Pos(fmt.Sprint(copy, "-", round))
					got, stored, err := b.Prepare("shop", batch)(t.Context(), pos)
					if errors.Is(err, onewrite.ErrFenced) {
						break
					}
					if err != nil || got != last+uint64(n) {
						t.Errorf("append: last %d, %v; want %d", got, err, last+uint64(n))
						return
					}
					begun = append(begun, flight{batch, got, stored})
					pos, last = batch.Pos, got
				}
				mu.Lock()
				most = max(most, len(begun))
				mu.Unlock()
				for _, f := range begun {
					err := <-f.stored
					mu.Lock()
					for i, n := 0, len(f.batch.Events); err == nil && i < n; i++ {
						at := f.last - uint64(n) + uint64(i) + 1
						if was := want[at]; was != "" {
							t.Errorf("event %d is %s and %s", at, was, f.batch.Events[i].ID)
						}
						want[at] = f.batch.Events[i].ID
					}
					if errors.Is(err, onewrite.ErrFenced) {
						fenced++
					} else if err != nil {
						t.Errorf("append: %v", err)
					}
					mu.Unlock()
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
	if fenced == 0 || most < 3 {
		t.Errorf("fenced %d times, %d under way at once", fenced, most)
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

// TestBusLargeParked: an event that a log took and a place does not take has a cure, that
// works without a restart.
func TestBusLargeParked(t *testing.T) {
	k := servers.Kafka(t)
	c := kafka.BusConfig{Brokers: []string{k.Addr()}, Name: unique("large")}
	topic(t, k, c.Name+".log.shop", 1, "max.message.bytes", "20000000", "retention.ms", "-1", "retention.bytes", "-1", "cleanup.policy", "delete")
	b := openBus(t, c)
	defer b.Close()
	batch := shop(1, 1)
	batch.Events[0].Data = make([]byte, 10<<20)
	if _, err := b.Append(t.Context(), "shop", "", batch); err != nil {
		t.Fatal(err)
	}
	sub := subscribe(t, b, "d")
	msgs, _, err := sub.Read(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	_, err = sub.Park(t.Context(), onewrite.Parked{Message: msgs[0], At: time.Now()})
	if err == nil || !strings.Contains(err.Error(), "--entity-name "+c.Name+".place.d --add-config max.message.bytes=") {
		t.Fatalf("no cure: %v", err)
	}
	with(t, k, func(ctx context.Context, adm *kadm.Client) error {
		_, err := adm.AlterTopicConfigs(ctx, []kadm.AlterConfig{{Name: "max.message.bytes", Value: kadm.StringPtr("20000000")}}, c.Name+".place.d")
		return err
	})
	for range 3 { // as the pipeline tries again
		_ = sub.Close()
		sub = subscribe(t, b, "d")
		if _, err = sub.Park(t.Context(), onewrite.Parked{Message: msgs[0], At: time.Now()}); err == nil {
			return
		}
	}
	t.Fatal(err)
}

// TestBusClosed: a bus that is closed under an append leaves nothing behind.
func TestBusClosed(t *testing.T) {
	k := servers.Kafka(t)
	b := openBus(t, kafka.BusConfig{Brokers: []string{k.Addr()}, Name: unique("closed")})
	if _, err := b.Append(t.Context(), "shop", "", shop(1, 1)); err != nil {
		t.Fatal(err)
	}
	before := runtime.NumGoroutine()
	done, started, first := make(chan error, 1), make(chan struct{}), sync.Once{}
	go func() {
		pos, n := onewrite.Pos("1"), 2
		for {
			batch := shop(n, 20)
			if _, err := b.Append(context.Background(), "shop", pos, batch); err != nil {
				done <- err
				return
			}
			first.Do(func() { close(started) })
			pos, n = batch.Pos, n+20
		}
	}()
	<-started
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-done:
		t.Log(err)
	case <-time.After(10 * time.Second):
		t.Error("appends go on on a bus that is closed")
		_ = b.Close()
		t.Log(<-done)
	}
	for deadline := time.Now().Add(patience); runtime.NumGoroutine() > before; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Errorf("%d goroutines before, %d after", before, runtime.NumGoroutine())
			break
		}
	}
	_, err := b.Append(context.Background(), "shop", "x", shop(1, 1))
	t.Log(err)
}

// TestBusPlaceKilled: commits and parked events through the deaths of the broker.
func TestBusPlaceKilled(t *testing.T) {
	k := servers.NewKafka(t)
	c := kafka.BusConfig{Brokers: []string{k.Addr()}}
	kafka.Impatient(&c, time.Hour, 200)
	b := openBus(t, c)
	defer func() { _ = b.Close() }()
	sub := subscribe(t, b, "d")
	ctx, stop := context.WithCancel(t.Context())
	var acked, failures atomic.Int64
	refs := map[uint64]int{}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for n := 1; ctx.Err() == nil; n++ {
			for {
				if err := sub.Commit(ctx, floor(uint64(n))); err == nil {
					break
				} else if errors.Is(err, onewrite.ErrFenced) {
					t.Errorf("nobody else is there: %v", err)
					return
				}
				if failures.Add(1); ctx.Err() != nil {
					return
				}
			}
			if n%10 == 0 {
				for {
					ref, err := sub.Park(ctx, onewrite.Parked{Message: message(n), At: time.Now()})
					if err == nil {
						refs[ref] = n
						break
					}
					if failures.Add(1); ctx.Err() != nil {
						return
					}
				}
			}
			acked.Store(int64(n))
		}
	}()
	more := func() {
		for until, deadline := acked.Load()+100, time.Now().Add(patience); acked.Load() < until; time.Sleep(10 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatal("no commit goes through any more")
			}
		}
	}
	more()
	k.Kill(t)
	k.Restart(t)
	more()
	was, thaw := failures.Load(), k.Freeze(t)
	for deadline := time.Now().Add(patience); failures.Load() == was; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("a broker that is frozen is not noticed")
		}
	}
	thaw()
	more()
	stop()
	<-done
	again := openBus(t, c)
	defer again.Close()
	floors, err := again.Floors(t.Context(), "shop")
	if err != nil || int64(floors["d"]) < acked.Load() || int64(floors["d"]) > acked.Load()+1 {
		t.Errorf("floors %v, %v; acknowledged %d", floors, err, acked.Load())
	}
	list, err := sub.Parked(t.Context(), 0, 10_000, nil)
	if err != nil || len(list) < len(refs) || len(list) > len(refs)+1 {
		t.Errorf("%d parked, %v; acknowledged %d", len(list), err, len(refs))
	}
	seen := map[uint64]bool{}
	for _, p := range list {
		if seen[p.Message.Offset] {
			t.Errorf("event %d is parked twice", p.Message.Offset)
		}
		seen[p.Message.Offset] = true
	}
	t.Logf("%d commits, %d parked, %d failures", acked.Load(), len(refs), failures.Load())

	// Who waits has a context, or a bound of his own.
	thaw = k.Freeze(t)
	defer thaw()
	hold := make(chan struct{})
	go func() {
		defer close(hold)
		at := time.Now()
		_, err := sub.Parked(t.Context(), 0, 10, nil)
		t.Logf("parked after %v: %v", time.Since(at), err)
	}()
	for !kafka.Busy(sub) {
		runtime.Gosched()
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if err := sub.Commit(ctx, floor(1<<40)); err == nil {
		t.Error("a broker that is frozen took a commit")
	}
	select {
	case <-hold:
		t.Error("the commit waited for the one before it, longer than its context")
	default:
	}
	for what, f := range map[string]func() error{
		"floors":   func() error { _, err := b.Floors(ctx, "shop"); return err },
		"pending":  func() error { _, err := sub.Pending(ctx, nil); return err },
		"position": func() error { _, _, err := b.Position(ctx, "shop"); return err },
		"read":     func() error { _, _, err := sub.Read(ctx); return err },
	} {
		if err := f(); err == nil {
			t.Errorf("%s: a broker that is frozen answered", what)
		}
	}
	thaw()
	<-hold
}

// TestBusPendingLost: what a log has lost is not pending.
func TestBusPendingLost(t *testing.T) {
	k := servers.Kafka(t)
	c := kafka.BusConfig{Brokers: []string{k.Addr()}, Name: unique("pending")}
	b := openBus(t, c)
	defer b.Close()
	if _, err := b.Append(t.Context(), "shop", "", shop(1, 9)); err != nil {
		t.Fatal(err)
	}
	sub := subscribe(t, b, "d")
	if n, err := sub.Pending(t.Context(), nil); err != nil || n != 9 {
		t.Fatalf("pending %d, %v", n, err)
	}
	with(t, k, func(ctx context.Context, adm *kadm.Client) error {
		ends, err := adm.ListEndOffsets(ctx, c.Name+".log.shop")
		if err == nil {
			_, err = adm.DeleteRecords(ctx, ends.Offsets())
		}
		return err
	})
	if n, err := sub.Pending(t.Context(), nil); err != nil || n != 0 {
		t.Errorf("pending %d, %v, and the log is empty", n, err)
	}
}

// TestBusStaleLists: a copy that read a place before the owner tidied it up lists what is
// parked, though the record by which it would have learned what is not is gone.
func TestBusStaleLists(t *testing.T) {
	k := servers.Kafka(t)
	c := kafka.BusConfig{Brokers: []string{k.Addr()}, Name: unique("stale")}
	kafka.Impatient(&c, time.Hour, 30)
	b, other := openBus(t, c), openBus(t, c)
	t.Cleanup(func() { _ = errors.Join(b.Close(), other.Close()) })
	sub := subscribe(t, b, "d")
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for n := 1; ; n++ {
			select {
			case <-stop:
				return
			default:
			}
			ref, err := sub.Park(t.Context(), onewrite.Parked{Message: message(n), At: time.Now()})
			if err == nil {
				err = sub.Commit(t.Context(), floor(uint64(n)))
			}
			if err == nil {
				err = sub.Unpark(t.Context(), ref)
			}
			for range 40 {
				if err == nil {
					err = sub.Commit(t.Context(), floor(uint64(n)))
				}
			}
			if err != nil {
				t.Error(err)
				return
			}
		}
	})
	high := uint64(0)
	for looks := 0; looks < 500 && !t.Failed(); looks++ {
		n, err := other.Unparked(t.Context(), "d", "shop", 1<<40)
		if err != nil {
			t.Error(err)
		}
		if n < 1<<40 {
			if n < high {
				t.Errorf("an event at %d is parked, and one at %d was", n+1, high+1)
			}
			high = max(high, n)
		}
	}
	close(stop)
	wg.Wait()
	if n, err := other.Unparked(t.Context(), "d", "shop", 1<<40); err != nil || n < 1<<40 {
		t.Errorf("nothing is parked, and %d is said, %v", n, err)
	}
}

// TestBusPlaceBack: the log of a place was put back and has grown since by another copy's
// commits. What is parked is what the topic says.
func TestBusPlaceBack(t *testing.T) {
	k := servers.NewKafka(t)
	c := kafka.BusConfig{Brokers: []string{k.Addr()}, Name: unique("back")}
	kafka.Impatient(&c, 100*time.Millisecond, 0)
	b := openBus(t, c)
	defer func() { _ = b.Close() }()
	sub := subscribe(t, b, "d")
	if err := sub.Commit(t.Context(), floor(1)); err != nil {
		t.Fatal(err)
	}
	back := again(t, k, c.Name+".place.d")
	for n := 1; n <= 5; n++ {
		if _, err := sub.Park(t.Context(), onewrite.Parked{Message: message(n), At: time.Now()}); err != nil {
			t.Fatal(err)
		}
	}
	back() // nothing is parked any more
	other := openBus(t, c)
	defer other.Close()
	var young onewrite.Subscription
	for deadline := time.Now().Add(patience); young == nil && time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		young, _ = other.Subscribe(t.Context(), onewrite.Interest{Name: "d", Sources: []string{"shop"}})
	}
	if young == nil {
		t.Fatal("no subscription")
	}
	for n := uint64(1); n <= 10; n++ {
		if err := young.Commit(t.Context(), floor(n)); err != nil {
			t.Fatal(err)
		}
	}
	if err := sub.Commit(t.Context(), floor(99)); !errors.Is(err, onewrite.ErrFenced) {
		t.Errorf("the old owner: %v", err)
	}
	if err := young.Close(); err != nil {
		t.Fatal(err)
	}
	sub = subscribe(t, b, "d")
	if list, err := sub.Parked(t.Context(), 0, 10, nil); err != nil || len(list) != 0 {
		t.Errorf("parked: %d, %v; the topic has none", len(list), err)
	}
}

// TestBusFresh: a place that another copy has just made is known to all.
func TestBusFresh(t *testing.T) {
	k := servers.Kafka(t)
	c := kafka.BusConfig{Brokers: []string{k.Addr()}, Name: unique("fresh")}
	b, other := openBus(t, c), openBus(t, c)
	t.Cleanup(func() { _ = errors.Join(b.Close(), other.Close()) })
	for i := range 5 {
		if _, err := other.Destinations(t.Context()); err != nil {
			t.Fatal(err)
		}
		subscribe(t, b, fmt.Sprint("d", i))
		if names, err := other.Destinations(t.Context()); err != nil || len(names) != i+1 {
			t.Errorf("%d places are there: %v, %v", i+1, names, err)
		}
	}
}
