package kafka_test

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/adapter/kafka"
	"github.com/onewrite/onewrite/internal/retention"
	"github.com/onewrite/onewrite/internal/servers"
)

// shop makes the events of source shop from first on; the position behind event i is i.
func shop(first, n int) onewrite.Batch {
	b := onewrite.Batch{Pos: onewrite.Pos(strconv.Itoa(first + n - 1))}
	for i := first; i < first+n; i++ {
		b.Events = append(b.Events, onewrite.Event{
			ID: strconv.Itoa(i), Source: "shop", Topic: "order.placed", Type: "order.placed", Key: "k" + strconv.Itoa(i%3),
			Time: time.Unix(int64(i), 0).UTC(), ContentType: "text/plain", Data: []byte(strconv.Itoa(i)),
		})
	}
	return b
}

// readAll reads the whole log of shop as an onlooker does.
func readAll(t *testing.T, b *kafka.Bus, n int) []onewrite.Message {
	t.Helper()
	sub, err := b.Subscribe(t.Context(), onewrite.Interest{Sources: []string{"shop"}})
	if err != nil {
		t.Fatal(err)
	}
	defer sub.Close()
	var all []onewrite.Message
	for len(all) < n {
		ctx, cancel := context.WithTimeout(t.Context(), patience) // for each: writers may be slow, not stuck
		msgs, _, err := sub.Read(ctx)
		cancel()
		if err != nil {
			t.Fatalf("after %d of %d: %v", len(all), n, err)
		}
		all = append(all, msgs...)
	}
	return all
}

// whole checks that a log has exactly the events 1 to n.
func whole(t *testing.T, msgs []onewrite.Message, n int) {
	t.Helper()
	for i, m := range msgs {
		if m.ID != strconv.Itoa(i+1) || m.Offset != uint64(i+1) {
			t.Fatalf("message %d is event %s at offset %d", i, m.ID, m.Offset)
		}
	}
	if len(msgs) != n {
		t.Fatalf("%d events, want %d", len(msgs), n)
	}
}

// TestBusPrepares: records that were prepared lie where the log ends when they are appended,
// whatever became of what was prepared before, and nothing of an append is in the next one.
func TestBusPrepares(t *testing.T) {
	k, name := servers.Kafka(t), unique("prepares")
	b := openBus(t, kafka.BusConfig{Brokers: []string{k.Addr()}, Name: name})
	defer func() { _ = b.Close() }()
	ctx, at := t.Context(), 0
	if _, _, err := b.Position(ctx, "shop"); err != nil {
		t.Fatal(err)
	}
	pos := func() onewrite.Pos {
		if at == 0 {
			return ""
		}
		return onewrite.Pos(strconv.Itoa(at))
	}
	type prepared struct {
		n     int
		begin func(context.Context, onewrite.Pos) (uint64, <-chan error, error)
	}
	prepare := func(first, n int) prepared { return prepared{n, b.Prepare("shop", shop(first, n))} }
	stored := func(p prepared) {
		t.Helper()
		last, answer, err := p.begin(ctx, pos())
		if err == nil {
			err = <-answer
		}
		if err != nil || last != uint64(at+p.n) {
			t.Fatalf("at %d: %d, %v", at, last, err)
		}
		at += p.n
	}
	one, two, three := prepare(1, 10), prepare(11, 20), prepare(31, 5)
	stored(one)
	if _, _, err := two.begin(ctx, "elsewhere"); !errors.Is(err, onewrite.ErrFenced) {
		t.Fatalf("behind another position: %v", err)
	}
	stored(two)
	stored(three)
	if _, _, err := three.begin(ctx, "30"); !errors.Is(err, onewrite.ErrFenced) {
		t.Fatalf("appended once more: %v", err)
	}
	_, four := prepare(900, 100), prepare(36, 5) // the former is never appended
	stored(four)
	later := make(chan prepared, 1)
	go func() {
		defer close(later)
		for i, first := 0, 41; i < 40; i++ {
			n := 1 + i*i%97
			later <- prepare(first, n)
			first += n
		}
	}()
	for p := range later {
		stored(p)
	}
	if at < 1000 {
		t.Fatalf("only %d events", at)
	}
	whole(t, readAll(t, b, at), at)
	before := uint64(0)
	for _, r := range records(t, k, name+".log.shop") { // a sum grows by what a record takes, but for its own digits
		if sum, size := kafka.SumAndSize(r); sum+20 < before+size || sum > before+size {
			t.Fatalf("offset %d of %d bytes: the sum is %d, before it %d", r.Offset, size, sum, before)
		} else {
			before = sum
		}
	}
}

// TestBusKilled: the broker is killed again and again while events are appended, three appends
// at once.
func TestBusKilled(t *testing.T) {
	k := servers.NewKafka(t)
	c := kafka.BusConfig{Brokers: []string{k.Addr()}}
	b := openBus(t, c)
	defer func() { _ = b.Close() }()
	ctx, stop := context.WithTimeout(t.Context(), 3*patience)
	defer stop()
	const kills = 3
	done := make(chan struct{})
	acked, lost := 0, 0
	var batches atomic.Int64
	reached := make(chan int64)
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			pos, last, err := b.Position(ctx, "shop")
			if err != nil {
				time.Sleep(20 * time.Millisecond) // the pipeline's backoff
				continue
			}
			if int(last) < acked {
				t.Errorf("the bus has %d events, %d were acknowledged", last, acked)
				return
			}
			type flight struct {
				last   uint64
				stored <-chan error
			}
			var begun []flight
			for err == nil {
				for err == nil && len(begun) < 3 {
					var stored <-chan error
					batch := shop(int(last)+1, 25)
					if last, stored, err = b.Prepare("shop", batch)(ctx, pos); err == nil {
						begun, pos = append(begun, flight{last, stored}), batch.Pos
					}
				}
				if len(begun) == 0 {
					break
				}
				if err := <-begun[0].stored; err != nil {
					break
				}
				acked, begun = int(begun[0].last), begun[1:]
				n := batches.Add(1)
				select {
				case reached <- n:
				default:
				}
			}
			lost++
			for i := 1; i < len(begun); i++ {
				if <-begun[i].stored == nil {
					t.Error("an append behind one that failed was acknowledged")
				}
			}
		}
	}()
	more := func() { // some appends go through
		for until := batches.Load() + 20; ; {
			select {
			case n := <-reached:
				if n >= until {
					return
				}
			case <-ctx.Done():
				t.Error("no append goes through any more")
				return
			}
		}
	}
	for range kills {
		more()
		k.Kill(t)
		k.Restart(t)
	}
	more()
	stop()
	<-done
	again := openBus(t, c)
	defer again.Close()
	_, last, err := again.Position(t.Context(), "shop")
	if err != nil || int(last) < acked || acked < 100 || lost == 0 { // the client itself gets over a short one
		t.Fatalf("%d acknowledged, %d failures, the bus has %d, %v", acked, lost, last, err)
	}
	whole(t, readAll(t, again, int(last)), int(last))
}

// TestBusVoid: what lies elsewhere than it was to lie, what is torn and what others write
// does not count, for those who read and for those who append.
func TestBusVoid(t *testing.T) {
	k := servers.Kafka(t)
	c := kafka.BusConfig{Brokers: []string{k.Addr()}, Name: unique("void")}
	b := openBus(t, c)
	defer b.Close()
	stale := openBus(t, c)
	defer stale.Close()
	topic := c.Name + ".log.shop"
	write := func(recs ...*kgo.Record) {
		t.Helper()
		with(t, k, func(ctx context.Context, _ *kadm.Client) error {
			cl, err := kgo.NewClient(kgo.SeedBrokers(k.Addr()), kgo.DefaultProduceTopic(topic))
			if err != nil {
				return err
			}
			defer cl.Close()
			return cl.ProduceSync(ctx, recs...).FirstErr()
		})
	}
	event := func(first int64, n, i int, nonce uint64) *kgo.Record {
		return &kgo.Record{Value: []byte("x"), Headers: []kgo.RecordHeader{
			kafka.Mark(first, n, i, 7, nonce), {Key: "ce_id", Value: []byte("void")}, {Key: "ce_source", Value: []byte("/shop")}, {Key: "ce_type", Value: []byte("void")},
		}}
	}
	must := func(b *kafka.Bus, prev onewrite.Pos, batch onewrite.Batch) {
		t.Helper()
		if _, err := b.Append(t.Context(), "shop", prev, batch); err != nil {
			t.Fatal(err)
		}
	}
	must(b, "", shop(1, 3)) // 0 to 2
	if _, _, err := stale.Position(t.Context(), "shop"); err != nil {
		t.Fatal(err)
	}
	must(b, "3", shop(4, 2)) // 3, 4
	if _, err := stale.Append(t.Context(), "shop", "3", shop(4, 5)); !errors.Is(err, onewrite.ErrFenced) {
		t.Fatalf("the stale copy: %v", err) // 5 to 9 are void
	}
	if _, err := b.Append(t.Context(), "shop", "5", shop(6, 1)); !errors.Is(err, onewrite.ErrFenced) {
		t.Fatalf("behind what the stale copy left: %v", err) // 10 is void
	}
	locate := func(want onewrite.Pos, wantLast uint64) {
		t.Helper()
		if pos, last, err := b.Position(t.Context(), "shop"); err != nil || pos != want || last != wantLast {
			t.Fatalf("position %q at %d, %v; want %q at %d", pos, last, err, want, wantLast)
		}
	}
	locate("5", 5)
	must(b, "5", shop(6, 1))                      // 11
	write(event(12, 3, 0, 1), event(12, 3, 1, 1)) // torn: its third never comes
	write(&kgo.Record{Value: []byte("not ours")}) // 14
	write(event(15, 5, 0, 2), event(15, 5, 1, 2)) // torn after 16
	write(event(13, 5, 4, 3))                     // 17, the end of one whose beginning was lost
	write(event(15, 5, 3, 4), event(15, 5, 4, 4)) // 18 and 19, as if they went on with 15 and 16
	write(event(20, 3, 0, 5), event(20, 3, 1, 5)) // torn after 21
	write(event(22, 2, 0, 6))                     // ends where the one before was to end, torn too
	locate("6", 6)
	if _, _, err := stale.Position(t.Context(), "shop"); err != nil {
		t.Fatal(err)
	}
	must(stale, "6", shop(7, 40))
	whole(t, readAll(t, b, 46), 46)
	locate("46", 46)
}

// TestBusRetain: what is confirmed goes beyond keep, what is not stays, and so does the
// newest event with the position.
func TestBusRetain(t *testing.T) {
	k := servers.Kafka(t)
	b := openBus(t, kafka.BusConfig{Brokers: []string{k.Addr()}, Name: unique("retain")})
	defer b.Close()
	if u, err := b.Retain(t.Context(), "shop", 5, retention.Keep{Size: 1}); err != nil || u != (retention.Usage{}) {
		t.Fatalf("of a log that is not there: %+v, %v", u, err)
	}
	retain := func(confirmed uint64, keep retention.Keep) retention.Usage {
		t.Helper()
		u, err := b.Retain(t.Context(), "shop", confirmed, keep)
		if err != nil {
			t.Fatal(err)
		}
		if u.Last != 200 || u.Messages != u.Last-u.First+1 || u.Oldest.IsZero() {
			t.Fatalf("%+v", u)
		}
		return u
	}
	pos := onewrite.Pos("")
	tens := func(from, to int) { // an append is removed as a whole
		t.Helper()
		for i := from; i < to; i += 10 {
			batch := shop(i, 10)
			if _, err := b.Append(t.Context(), "shop", pos, batch); err != nil {
				t.Fatal(err)
			}
			pos = batch.Pos
		}
	}
	tens(1, 101)
	mark := time.Now()
	time.Sleep(3 * time.Second) // keep is an age: what is called later looks at a later time
	tens(101, 201)
	all := retain(200, retention.Keep{Size: 1 << 30, Age: time.Hour})
	if all.First != 1 || all.Bytes < 200*100 {
		t.Fatalf("%+v", all)
	}
	if u := retain(45, retention.Keep{Size: 1 << 30}); u.First != 1 {
		t.Fatalf("what is to be kept went: %+v", u)
	}
	if u := retain(0, retention.Keep{Size: 1, Age: time.Nanosecond}); u.First != 1 {
		t.Fatalf("unconfirmed events went: %+v", u)
	}
	if u := retain(45, retention.Keep{Size: 1, Age: time.Nanosecond}); u.First != 41 {
		t.Fatalf("%+v", u)
	}
	if u := retain(200, retention.Keep{Age: time.Since(mark)}); u.First != 101 {
		t.Fatalf("%+v", u)
	}
	if u := retain(200, retention.Keep{Size: all.Bytes / 4}); u.First < 140 || u.First > 155 {
		t.Fatalf("%+v", u)
	}
	if u := retain(1<<40, retention.Keep{Size: 1, Age: time.Nanosecond}); u.First != 191 || u.Messages != 10 {
		t.Fatalf("%+v", u)
	}
	if pos, last, err := b.Position(t.Context(), "shop"); err != nil || pos != "200" || last != 200 {
		t.Fatalf("position %q at %d, %v", pos, last, err)
	}
	if msgs := readAll(t, b, 1); msgs[0].Offset != 191 {
		t.Fatalf("an onlooker begins at %d", msgs[0].Offset)
	}
	if _, err := b.Append(t.Context(), "shop", "200", shop(201, 1)); err != nil {
		t.Fatal(err)
	}
}

// TestBusFull: what would not fit is refused, and fits when there is room again.
func TestBusFull(t *testing.T) {
	k := servers.Kafka(t)
	b := openBus(t, kafka.BusConfig{Brokers: []string{k.Addr()}, Name: unique("full"), MaxBytes: 40_000})
	defer b.Close()
	pos, n := onewrite.Pos(""), 0
	var err error
	for err == nil && n < 2000 {
		batch := shop(n+1, 20)
		if _, err = b.Append(t.Context(), "shop", pos, batch); err == nil {
			pos, n = batch.Pos, n+20
		}
	}
	if !errors.Is(err, onewrite.ErrFull) || n < 40 {
		t.Fatalf("after %d events: %v", n, err)
	}
	if _, err := b.Retain(t.Context(), "shop", uint64(n), retention.Keep{Size: 1}); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Append(t.Context(), "shop", pos, shop(n+1, 20)); err != nil {
		t.Fatal(err)
	}
}

// TestBusLost: a log that was deleted from outside begins behind what destinations have
// seen, and they are told.
func TestBusLost(t *testing.T) {
	k := servers.Kafka(t)
	told := make(chan string, 10)
	c := kafka.BusConfig{Brokers: []string{k.Addr()}, Name: unique("lost"), Vanished: func(destination, source string, from, to uint64) {
		told <- fmt.Sprint(destination, " ", source, " ", from, " ", to)
	}}
	b := openBus(t, c)
	if _, err := b.Append(t.Context(), "shop", "", shop(1, 9)); err != nil {
		t.Fatal(err)
	}
	in := onewrite.Interest{Name: "d", Sources: []string{"shop"}}
	sub, err := b.Subscribe(t.Context(), in)
	if err != nil {
		t.Fatal(err)
	}
	if err := sub.Commit(t.Context(), onewrite.Cursor{Delivered: 4, Logs: map[string]onewrite.LogCursor{"shop": {Floor: 3, Done: []onewrite.Span{{From: 6, To: 6}}}}}); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(sub.Close(), b.Close()); err != nil {
		t.Fatal(err)
	}
	with(t, k, func(ctx context.Context, adm *kadm.Client) error {
		_, err := adm.DeleteTopics(ctx, c.Name+".log.shop")
		return err
	})
	b = openBus(t, c)
	defer b.Close()
	if pos, last, err := b.Position(t.Context(), "shop"); err != nil || pos != "" || last != 6 {
		t.Fatalf("position %q at %d, %v; want the beginning, at 6", pos, last, err)
	}
	if _, err := b.Append(t.Context(), "shop", "", shop(1, 2)); err != nil {
		t.Fatal(err)
	}
	if sub, err = b.Subscribe(t.Context(), in); err != nil {
		t.Fatal(err)
	}
	defer sub.Close()
	if got := <-told; got != "d shop 4 6" {
		t.Errorf("told of %s", got)
	}
	msgs, _, err := sub.Read(t.Context())
	if err != nil || msgs[0].ID != "1" || msgs[0].Offset != 7 {
		t.Fatalf("%+v, %v", msgs, err)
	}
	if got, _ := sub.Cursor(); got.Skipped != 2 {
		t.Errorf("%d events count as skipped, want 2", got.Skipped)
	}
}

// TestBusSizes: large events behind many small ones are no reason to call the bus full.
func TestBusSizes(t *testing.T) {
	k := servers.Kafka(t)
	b := openBus(t, kafka.BusConfig{Brokers: []string{k.Addr()}, Name: unique("sizes"), MaxBytes: 50 << 20})
	defer b.Close()
	pos, n, bytes := onewrite.Pos(""), 0, 0
	add := func(size int) error {
		batch := shop(n+1, 500)
		for i := range batch.Events {
			batch.Events[i].Data = make([]byte, size)
			bytes += batch.Events[i].Size()
		}
		_, err := b.Append(t.Context(), "shop", pos, batch)
		pos, n = batch.Pos, n+500
		return err
	}
	for range 40 {
		if err := add(10); err != nil {
			t.Fatal(err)
		}
	}
	for range 4 {
		if err := add(5000); err != nil {
			t.Fatal(err)
		}
	}
	u, err := b.Retain(t.Context(), "shop", 0, retention.Keep{Size: 1 << 40})
	t.Logf("%d events of %d bytes in all are taken for %d", n, bytes, u.Bytes)
	if err != nil || u.Bytes > 3*int64(bytes) || u.Bytes < int64(bytes)/3 {
		t.Errorf("%+v, %v", u, err)
	}
	if err := add(10); err != nil {
		t.Errorf("%d bytes in all: %v", bytes, err)
	}
}
