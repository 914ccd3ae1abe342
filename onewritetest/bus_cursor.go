package onewritetest

import (
	"context"
	"reflect"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/onewrite/onewrite"
)

func (t *busTest) cursor() {
	t.append("shop", "", t.batch("shop", "a", 5))
	in := onewrite.Interest{Name: "d", Sources: []string{"shop"}}
	sub := t.subscribe(in)
	_, epoch := sub.Cursor()
	ahead := []onewrite.Ahead{{Log: "shop", Offset: 7, ID: ^uint64(0)}, {Log: "shop", Offset: 9, ID: 1}}
	for i := range 5 {
		c := onewrite.Cursor{Delivered: uint64(i + 1), Logs: map[string]onewrite.LogCursor{"shop": {Floor: uint64(i + 1)}}, Ahead: ahead}
		if err := sub.Commit(t.ctx, c); err != nil {
			t.Fatalf("commit %d: %v", i, err)
		}
	}
	t.closeSub(sub)
	t.reopen()
	sub = t.subscribe(in)
	c, next := sub.Cursor()
	if c.Delivered != 5 || c.Logs["shop"].Floor != 5 || !slices.Equal(c.Ahead, ahead) {
		t.Fatalf("the cursor came back as %+v", c)
	}
	if next <= epoch {
		t.Fatalf("epoch %d after %d", next, epoch)
	}
	t.nothing(sub)
	t.closeSub(sub)
}

func (t *busTest) owner() {
	in := onewrite.Interest{Name: "d", Sources: []string{"shop"}}
	t.append("shop", "", t.batch("shop", "a", 2))
	old := t.subscribe(in)
	_, epoch := old.Cursor()
	msgs := t.read(old, 2)
	ref, err := old.Park(t.ctx, onewrite.Parked{Message: msgs[0], At: time.Now()})
	if err != nil {
		t.Fatalf("park: %v", err)
	}
	c := onewrite.Cursor{Delivered: 1, Logs: map[string]onewrite.LogCursor{}}
	if err := old.Commit(t.ctx, c); err != nil {
		t.Fatalf("commit: %v", err)
	}
	young := t.subscribe(in)
	if _, e := young.Cursor(); e <= epoch {
		t.Fatalf("epoch %d after %d", e, epoch)
	}
	c.Delivered = 2
	if err := young.Commit(t.ctx, c); err != nil {
		t.Fatalf("commit by the new owner: %v", err)
	}
	for range 2 {
		t.is(old.Commit(t.ctx, onewrite.Cursor{Delivered: 99}), onewrite.ErrFenced, "commit by the old owner")
		_, err := old.Park(t.ctx, onewrite.Parked{Message: msgs[1], At: time.Now()})
		t.is(err, onewrite.ErrFenced, "park by the old owner")
		t.is(old.Unpark(t.ctx, ref), onewrite.ErrFenced, "unpark by the old owner")
	}
	if list, err := young.Parked(t.ctx, 0, 9, nil); err != nil || len(list) != 1 || list[0].Ref != ref {
		t.Fatalf("after what the old owner tried the new one finds %d parked events, %v; want 1, ref %d", len(list), err, ref)
	}
	if again, err := young.Park(t.ctx, onewrite.Parked{Message: msgs[0], At: time.Now()}); err != nil || again != ref {
		t.Fatalf("park again by the new owner: ref %d, %v; want %d", again, err, ref)
	}
	t.closeSub(old)
	c.Delivered = 3
	if err := young.Commit(t.ctx, c); err != nil {
		t.Fatalf("commit by the new owner after the old one closed: %v", err)
	}
	t.closeSub(young)
	again := t.subscribe(in)
	if got, _ := again.Cursor(); got.Delivered != 3 {
		t.Fatalf("the cursor came back with %d delivered, want 3", got.Delivered)
	}
	t.closeSub(again)
}

func (t *busTest) parking() {
	in := onewrite.Interest{Name: "d", Sources: []string{"shop"}}
	b := t.batch("shop", "a", 9)
	b.Events[8].Key = ""
	t.append("shop", "", b)
	sub := t.subscribe(in)
	msgs := t.read(sub, 9)
	at := time.Now().UTC().Truncate(time.Millisecond)
	var want []onewrite.Parked
	for i, m := range msgs {
		p := onewrite.Parked{Message: m, Reason: "422: \"no\"\r\nline ✓ " + strconv.Itoa(i), Attempts: i, Holds: i%2 == 0, At: at}
		ref, err := sub.Park(t.ctx, p)
		if err != nil {
			t.Fatalf("park: %v", err)
		}
		p.Ref = ref
		if i > 0 && ref <= want[i-1].Ref {
			t.Fatalf("ref %d after %d", ref, want[i-1].Ref)
		}
		want = append(want, p)
	}
	for i, p := range want {
		p.Reason, p.Attempts = "another", 99
		ref, err := sub.Park(t.ctx, p)
		if err != nil || ref != want[i].Ref {
			t.Fatalf("park again: ref %d, %v; want %d", ref, err, want[i].Ref)
		}
	}
	t.closeSub(sub)
	t.reopen()
	sub = t.subscribe(in)
	t.parked(sub, 0, 100, nil, want)
	t.parked(sub, 0, 4, nil, want[:4])
	t.parked(sub, want[3].Ref, 3, nil, want[4:7])
	t.parked(sub, want[8].Ref, 3, nil, nil)
	t.parked(sub, ^uint64(0), 3, nil, nil)
	lane := onewrite.Lane{Log: "shop", Key: want[1].Message.Key}
	t.parked(sub, 0, 100, &lane, []onewrite.Parked{want[1], want[4], want[7]})
	t.parked(sub, want[1].Ref, 1, &lane, want[4:5])
	t.parked(sub, 0, 100, &onewrite.Lane{Log: "shop"}, nil)
	t.parked(sub, 0, 100, &onewrite.Lane{Log: "stock", Key: lane.Key}, nil)
	other := t.subscribe(onewrite.Interest{Name: "other", Sources: []string{"shop"}})
	t.parked(other, 0, 100, nil, nil)
	if err := sub.Unpark(t.ctx, want[1].Ref, want[3].Ref); err != nil {
		t.Fatalf("unpark: %v", err)
	}
	if err := sub.Unpark(t.ctx, want[1].Ref); err != nil {
		t.Fatalf("unpark again: %v", err)
	}
	t.parked(sub, 0, 100, nil, slices.Concat(want[:1], want[2:3], want[4:]))
	t.parked(sub, 0, 100, &lane, []onewrite.Parked{want[4], want[7]})
	t.closeSub(other)
	t.closeSub(sub)
}

func (t *busTest) parked(sub onewrite.Subscription, after uint64, limit int, lane *onewrite.Lane, want []onewrite.Parked) {
	t.Helper()
	got, err := sub.Parked(t.ctx, after, limit, lane)
	if err != nil {
		t.Fatalf("parked after %d: %v", after, err)
	}
	if len(got) != len(want) {
		t.Fatalf("parked after %d of %v: %d entries, want %d", after, lane, len(got), len(want))
	}
	for i := range got {
		if !got[i].At.Equal(want[i].At) {
			t.Errorf("parked at %v, want %v", got[i].At, want[i].At)
		}
		got[i].At = want[i].At
		if !reflect.DeepEqual(got[i], want[i]) {
			t.Fatalf("parked entry came back as\n%+v\nwant\n%+v", got[i], want[i])
		}
	}
}

func (t *busTest) onlooker() {
	b := t.batch("shop", "a", 2)
	pos, _ := t.append("shop", "", b)
	all := t.subscribe(onewrite.Interest{Sources: []string{"shop"}})
	late := t.subscribe(onewrite.Interest{Sources: []string{"shop"}, From: onewrite.From{Now: true}})
	t.same(t.read(all, 2), b.Events)
	b = t.batch("shop", "a", 1)
	t.append("shop", pos, b)
	t.same(t.read(late, 1), b.Events)
	if err := all.Commit(t.ctx, onewrite.Cursor{}); err == nil {
		t.Fatal("an onlooker could commit")
	}
	t.closeSub(all)
	t.closeSub(late)
}

func (t *busTest) pending() {
	sub := t.subscribe(onewrite.Interest{Name: "d", Sources: []string{"shop", "stock"}, Topics: []string{"want.>", "this"}})
	at := map[string]onewrite.LogCursor{}
	t.pendingIs(sub, at, 0)
	pos, _ := t.append("shop", "", t.batch("shop", "want.a", 5))
	pos, _ = t.append("shop", pos, t.batch("shop", "no", 4))
	t.append("shop", pos, t.batch("shop", "this", 3))
	t.append("stock", "", t.batch("stock", "this", 2))
	t.pendingIs(sub, at, 10)
	t.read(sub, 10)
	t.pendingIs(sub, at, 10) // it is no matter of what Read handed out
	at["shop"] = onewrite.LogCursor{Floor: 1}
	t.pendingIs(sub, at, 9)
	at["shop"] = onewrite.LogCursor{Floor: 1, Done: []onewrite.Span{{From: 3, To: 4}, {From: 8, To: 10}}}
	t.pendingIs(sub, at, 6)
	at["stock"] = onewrite.LogCursor{Floor: 2}
	t.pendingIs(sub, at, 4)
	at["shop"] = onewrite.LogCursor{Floor: 12}
	t.pendingIs(sub, at, 0)
	t.closeSub(sub)
}

func (t *busTest) pendingIs(sub onewrite.Subscription, at map[string]onewrite.LogCursor, want uint64) {
	t.Helper()
	n, err := sub.Pending(t.ctx, at)
	if err != nil {
		t.Fatalf("pending: %v", err)
	}
	if n != want {
		t.Fatalf("pending = %d, want %d", n, want)
	}
}

func (t *busTest) readEnds() {
	sub := t.subscribe(onewrite.Interest{Name: "d", Sources: []string{"shop"}})
	ctx, cancel := context.WithCancel(t.ctx)
	ended := make(chan error, 1)
	go func() {
		_, _, err := sub.Read(ctx)
		ended <- err
	}()
	cancel()
	select {
	case err := <-ended:
		t.is(err, context.Canceled, "read")
	case <-time.After(busWait):
		t.Fatal("Read did not end with its context")
	}
	t.closeSub(sub)
}

// concurrent reads while batches of every size are appended: nothing is missed,
// doubled or out of order, and what was read is really there.
func (t *busTest) concurrent() {
	const rounds = 60
	total := 0
	for i := range rounds {
		total += size(i)
	}
	var wg sync.WaitGroup
	for _, source := range []string{"shop", "stock"} {
		batches := make([]onewrite.Batch, rounds)
		for i := range batches {
			batches[i] = t.batch(source, "a", size(i))
		}
		wg.Go(func() {
			pos := onewrite.Pos("")
			for _, b := range batches {
				if _, err := t.bus.Append(t.ctx, source, pos, b); err != nil {
					t.Errorf("append: %v", err)
					return
				}
				pos = b.Pos
			}
		})
	}
	sub := t.subscribe(onewrite.Interest{Name: "d", Sources: []string{"shop", "stock"}})
	last, seq := map[string]uint64{}, map[string]string{}
	for _, m := range t.read(sub, 2*total) {
		if m.Offset != last[m.Log]+1 || m.Seq <= seq[m.Log] {
			t.Fatalf("in log %s event %s at offset %d came after offset %d", m.Log, m.ID, m.Offset, last[m.Log])
		}
		last[m.Log], seq[m.Log] = m.Offset, m.Seq
	}
	wg.Wait()
	t.closeSub(sub)
}

func size(i int) int { return []int{1, 3, 12, 13, 64, 200}[i%6] }
