package kafka_test

import (
	"context"
	"errors"
	"strconv"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/adapter/kafka"
	"github.com/onewrite/onewrite/internal/retention"
	"github.com/onewrite/onewrite/internal/servers"
)

// run appends batches of n events each, as many under way at once as there may be, and waits
// for the answers.
func run(t *testing.T, b *kafka.Bus, from, batches, n int) {
	t.Helper()
	pos := onewrite.Pos("")
	if from > 1 {
		pos = onewrite.Pos(strconv.Itoa(from - 1))
	}
	var begin []func() // what is prepared while nothing is stored is one run
	var answers []<-chan error
	for i := range batches {
		batch := shop(from+i*n, n)
		one := b.Prepare("shop", batch)
		begin = append(begin, func() {
			last, stored, err := one(t.Context(), pos)
			if i%16 == 0 && i > 0 && len(answers[i-1]) == 0 {
				t.Errorf("append %d begins a run, and the one before was under way", i)
			}
			if err != nil || last != uint64(from+(i+1)*n-1) {
				t.Fatalf("append %d: %d, %v", i, last, err)
			}
			pos, answers = batch.Pos, append(answers, stored)
		})
	}
	for _, f := range begin {
		f()
	}
	for i, a := range answers {
		if err := <-a; err != nil {
			t.Fatalf("append %d: %v", i, err)
		}
	}
}

// TestBusRuns: appends that are under way at once come one behind the other, in runs that are
// no longer than others can bear, and who begins in the middle of one gets the rest.
func TestBusRuns(t *testing.T) {
	k := servers.Kafka(t)
	c := kafka.BusConfig{Brokers: []string{k.Addr()}, Name: unique("runs")}
	b := openBus(t, c)
	defer b.Close()
	if _, _, err := b.Position(t.Context(), "shop"); err != nil {
		t.Fatal(err)
	}
	const batches, n = 50, 7
	run(t, b, 1, batches, n)
	whole(t, readAll(t, b, batches*n), batches*n)
	runs, longest, length := map[int64]bool{}, 0, 0
	for _, r := range records(t, k, c.Name+".log.shop") {
		if !runs[kafka.Run(r)] {
			runs[kafka.Run(r)], length = true, 0
		}
		length++
		longest = max(longest, length)
	}
	if len(runs) > batches/8 || longest > 16*n || longest < 8*n {
		t.Fatalf("%d runs, the longest has %d events", len(runs), longest)
	}
	again := openBus(t, c)
	defer again.Close()
	if pos, last, err := again.Position(t.Context(), "shop"); err != nil || last != batches*n || pos != onewrite.Pos(strconv.Itoa(batches*n)) {
		t.Fatalf("position %q at %d, %v", pos, last, err)
	}
	for _, floor := range []uint64{0, 1, n, 3*n + 2, 16 * n, 17*n - 1, batches*n - 1} {
		name := "from" + strconv.FormatUint(floor, 10)
		interest := onewrite.Interest{Name: name, Sources: []string{"shop"}}
		sub, err := again.Subscribe(t.Context(), interest)
		if err != nil {
			t.Fatal(err)
		}
		if err := sub.Commit(t.Context(), onewrite.Cursor{Logs: map[string]onewrite.LogCursor{"shop": {Floor: floor}}}); err != nil {
			t.Fatal(err)
		}
		_ = sub.Close()
		if sub, err = again.Subscribe(t.Context(), interest); err != nil {
			t.Fatal(err)
		}
		for next := floor + 1; next <= batches*n; {
			msgs, _, err := sub.Read(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			for _, m := range msgs {
				if m.Offset != next || m.ID != strconv.FormatUint(next, 10) {
					t.Fatalf("from %d: event %s at %d, want %d", floor, m.ID, m.Offset, next)
				}
				next++
			}
		}
		_ = sub.Close()
	}
	// Room is made up to the beginning of a run, and what is left is whole.
	u, err := again.Retain(t.Context(), "shop", batches*n-1, retention.Keep{Size: 1})
	if err != nil || u.First < 16*n || u.Last != batches*n {
		t.Fatalf("%+v, %v", u, err)
	}
	run(t, again, batches*n+1, 3, n)
	left := readAll(t, b, (batches+3)*n-int(u.First)+1)
	if first := left[0]; first.Offset != u.First || left[len(left)-1].Offset != (batches+3)*n {
		t.Fatalf("%d to %d", first.Offset, left[len(left)-1].Offset)
	}
}

// TestBusRunBroken: nothing of a run counts behind what is missing in it, though it lies where
// it was to lie, as another copy wrote as much in the place of that.
func TestBusRunBroken(t *testing.T) {
	k := servers.Kafka(t)
	c := kafka.BusConfig{Brokers: []string{k.Addr()}, Name: unique("broken")}
	b := openBus(t, c)
	defer b.Close()
	if _, err := b.Append(t.Context(), "shop", "", shop(1, 3)); err != nil { // 0 to 2
		t.Fatal(err)
	}
	topic := c.Name + ".log.shop"
	event := func(id string, mark kgo.RecordHeader, pos ...string) *kgo.Record {
		r := &kgo.Record{Value: []byte(id), Headers: []kgo.RecordHeader{mark}}
		for _, p := range pos {
			r.Headers = append(r.Headers, kgo.RecordHeader{Key: "onewrite-pos", Value: []byte(p)})
		}
		for _, h := range [][2]string{{"ce_specversion", "1.0"}, {"ce_id", id}, {"ce_source", "shop"}, {"ce_type", "t"}, {"ce_topic", "t"}} {
			r.Headers = append(r.Headers, kgo.RecordHeader{Key: h[0], Value: []byte(h[1])})
		}
		return r
	}
	// Offset 3: the run of another copy, one append of one event; what was to lie there was
	// refused. What was sent behind that lies where it was to lie.
	intrude(t, k, topic, event("4", kafka.RunMark(3, 3, 1, 0, 4, 1), "4"))
	intrude(t, k, topic, event("void", kafka.RunMark(3, 4, 1, 0, 5, 2), "void"))
	// Offset 5: a run of three appends, whose second one is torn.
	intrude(t, k, topic, event("5", kafka.RunMark(5, 5, 1, 0, 5, 3), "5"))
	intrude(t, k, topic, event("void", kafka.RunMark(5, 6, 2, 0, 6, 3)))
	intrude(t, k, topic, &kgo.Record{Value: []byte("not ours")}) // instead of its last one
	intrude(t, k, topic, event("void", kafka.RunMark(5, 8, 1, 0, 8, 3), "void"))
	// Offset 9: a run in the midst of which somebody else writes.
	intrude(t, k, topic, event("6", kafka.RunMark(9, 9, 1, 0, 6, 4), "6"))
	intrude(t, k, topic, &kgo.Record{Value: []byte("not ours")})
	intrude(t, k, topic, event("void", kafka.RunMark(9, 11, 1, 0, 7, 4), "void"))
	// Offset 12: a run whose second append was sent twice; the third one is void by that.
	intrude(t, k, topic, event("7", kafka.RunMark(12, 12, 1, 0, 7, 5), "7"))
	intrude(t, k, topic, event("8", kafka.RunMark(12, 13, 1, 0, 8, 5), "8"))
	intrude(t, k, topic, event("8", kafka.RunMark(12, 13, 1, 0, 8, 5), "8"))
	intrude(t, k, topic, event("void", kafka.RunMark(12, 14, 1, 0, 9, 5), "void"))
	if pos, last, err := b.Position(t.Context(), "shop"); err != nil || pos != "8" || last != 8 {
		t.Fatalf("position %q at %d, %v", pos, last, err)
	}
	if _, err := b.Append(t.Context(), "shop", "8", shop(9, 2)); err != nil {
		t.Fatal(err)
	}
	whole(t, readAll(t, b, 10), 10)
}

// TestBusRunRefused: an append that the broker refuses takes those behind it along.
func TestBusRunRefused(t *testing.T) {
	k := servers.Kafka(t)
	c := kafka.BusConfig{Brokers: []string{k.Addr()}, Name: unique("refused")}
	b, other := openBus(t, c), openBus(t, c)
	defer b.Close()
	defer other.Close()
	if _, err := b.Append(t.Context(), "shop", "", shop(1, 3)); err != nil {
		t.Fatal(err)
	}
	if _, err := other.Append(t.Context(), "shop", "3", shop(4, 2)); err != nil {
		t.Fatal(err)
	}
	var answers []<-chan error
	pos := onewrite.Pos("3")
	for i := range 3 { // they lie two further
		batch := shop(4+2*i, 2)
		_, stored, err := b.Prepare("shop", batch)(t.Context(), pos)
		if err != nil {
			break // the answer to the first was there
		}
		answers, pos = append(answers, stored), batch.Pos
	}
	for i, a := range answers {
		if err := <-a; err == nil {
			t.Errorf("append %d of %d was acknowledged", i, len(answers))
		}
	}
	if pos, last, err := b.Position(t.Context(), "shop"); err != nil || pos != "5" || last != 5 || len(answers) == 0 {
		t.Fatalf("position %q at %d, %v; %d under way", pos, last, err, len(answers))
	}
	run(t, b, 6, 5, 3)
	whole(t, readAll(t, other, 20), 20)
}

// begin is the beginning of an append that was prepared.
type begin = func(ctx context.Context, prev onewrite.Pos) (last uint64, stored <-chan error, err error)

// appended begins an append and waits for its answer.
func appended(t *testing.T, f begin, prev string) {
	t.Helper()
	_, stored, err := f(t.Context(), onewrite.Pos(prev))
	if err == nil {
		err = <-stored
	}
	if err != nil {
		t.Fatal(err)
	}
}

// TestBusRunJoined: who begins to read at the end of a run that goes on later gets the rest.
func TestBusRunJoined(t *testing.T) {
	k := servers.Kafka(t)
	c := kafka.BusConfig{Brokers: []string{k.Addr()}, Name: unique("joined")}
	c.Vanished = func(d, s string, from, to uint64) { t.Errorf("vanished: %s %s %d to %d", d, s, from, to) }
	b, other := openBus(t, c), openBus(t, c)
	defer b.Close()
	defer other.Close()
	if _, _, err := b.Position(t.Context(), "shop"); err != nil {
		t.Fatal(err)
	}
	old := subscribe(t, other, "old")
	if err := old.Commit(t.Context(), floor(7)); err != nil {
		t.Fatal(err)
	}
	_ = old.Close()
	one, two := b.Prepare("shop", shop(1, 7)), b.Prepare("shop", shop(8, 5)) // one run
	appended(t, one, "")
	caughtUp := subscribe(t, other, "old") // it has all there is
	defer caughtUp.Close()
	live, err := other.Subscribe(t.Context(), onewrite.Interest{Name: "live", Sources: []string{"shop"}, From: onewrite.From{Now: true}})
	if err != nil {
		t.Fatal(err)
	}
	defer live.Close()
	appended(t, two, "7")
	recs := records(t, k, c.Name+".log.shop")
	if at := kafka.Run(recs[len(recs)-1]); at != 0 {
		t.Fatalf("the second append is in a run that begins at %d", at)
	}
	for name, sub := range map[string]onewrite.Subscription{"caught up": caughtUp, "live": live} {
		for next := uint64(8); next <= 12; {
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			msgs, _, err := sub.Read(ctx)
			cancel()
			if err != nil {
				t.Fatalf("%s: %v; next was to be %d", name, err, next)
			}
			for _, m := range msgs {
				if m.Offset != next || m.ID != strconv.FormatUint(next, 10) {
					t.Fatalf("%s: event %s at %d, want %d", name, m.ID, m.Offset, next)
				}
				next++
			}
		}
	}
}

// TestBusRunFull: a bus whose room is small gets some back when all is confirmed, though
// appends are under way all the time.
func TestBusRunFull(t *testing.T) {
	k := servers.Kafka(t)
	b := openBus(t, kafka.BusConfig{Brokers: []string{k.Addr()}, Name: unique("runfull"), MaxBytes: 60_000})
	defer b.Close()
	if _, _, err := b.Position(t.Context(), "shop"); err != nil {
		t.Fatal(err)
	}
	const n = 16
	var ahead []begin
	var answers []<-chan error
	prepare := func() { ahead = append(ahead, b.Prepare("shop", shop(1+(len(answers)+len(ahead))*n, n))) }
	for range 3 {
		prepare()
	}
	pos := func() onewrite.Pos {
		if len(answers) == 0 {
			return ""
		}
		return onewrite.Pos(strconv.Itoa(len(answers) * n))
	}
	for {
		if done := len(answers); done >= 3 { // as the pipeline has them under way
			if err := <-answers[done-3]; err != nil {
				t.Fatal(err)
			}
		}
		_, stored, err := ahead[0](t.Context(), pos())
		if errors.Is(err, onewrite.ErrFull) {
			break
		}
		if err != nil || len(answers) > 200 {
			t.Fatal(len(answers), err)
		}
		ahead, answers = ahead[1:], append(answers, stored)
		prepare()
	}
	for _, a := range answers[len(answers)-2:] {
		if err := <-a; err != nil {
			t.Fatal(err)
		}
	}
	if _, err := b.Retain(t.Context(), "shop", uint64(len(answers)*n), retention.Keep{Size: 1}); err != nil {
		t.Fatal(err)
	}
	appended(t, ahead[0], string(pos()))
}

// TestBusRunEmptied: what is acknowledged counts, though somebody empties the topic in the midst
// of a run.
func TestBusRunEmptied(t *testing.T) {
	k := servers.Kafka(t)
	c := kafka.BusConfig{Brokers: []string{k.Addr()}, Name: unique("runemptied")}
	b := openBus(t, c)
	defer b.Close()
	if _, _, err := b.Position(t.Context(), "shop"); err != nil {
		t.Fatal(err)
	}
	one, two := b.Prepare("shop", shop(1, 5)), b.Prepare("shop", shop(6, 5))
	appended(t, one, "")
	with(t, k, func(ctx context.Context, adm *kadm.Client) error {
		ends, err := adm.ListEndOffsets(ctx, c.Name+".log.shop")
		if err == nil {
			_, err = adm.DeleteRecords(ctx, ends.Offsets())
		}
		return err
	})
	_, stored, err := two(t.Context(), "5")
	if err == nil {
		err = <-stored
	}
	if err == nil || errors.Is(err, onewrite.ErrFenced) {
		t.Errorf("an append that counts no more: %v", err)
	}
}

// TestBusRunBehindFailed: an append behind one without an answer is not acknowledged.
func TestBusRunBehindFailed(t *testing.T) {
	k := servers.NewKafka(t)
	b := openBus(t, kafka.BusConfig{Brokers: []string{k.Addr()}})
	defer b.Close()
	if _, err := b.Append(t.Context(), "shop", "", shop(1, 1)); err != nil {
		t.Fatal(err)
	}
	thaw := k.Freeze(t)
	var answers []<-chan error
	for i := range 2 {
		_, stored, err := b.Prepare("shop", shop(2+i, 1))(t.Context(), onewrite.Pos(strconv.Itoa(1+i)))
		if err != nil {
			t.Fatal(i, err)
		}
		answers = append(answers, stored)
	}
	for i, a := range answers {
		if <-a == nil {
			t.Errorf("append %d was acknowledged by a frozen broker", i)
		}
	}
	thaw()
	_, stored, err := b.Prepare("shop", shop(4, 1))(t.Context(), "3")
	if err == nil && <-stored == nil { // if both were stored all the same
		whole(t, readAll(t, b, 4), 4)
	}
}

// TestBusRunBytes: a run of large appends is no longer than others can bear.
func TestBusRunBytes(t *testing.T) {
	k := servers.Kafka(t)
	c := kafka.BusConfig{Brokers: []string{k.Addr()}, Name: unique("runbytes")}
	b := openBus(t, c)
	defer b.Close()
	if _, _, err := b.Position(t.Context(), "shop"); err != nil {
		t.Fatal(err)
	}
	const appends, n, size = 12, 10, 150_000
	var ahead []begin
	for i := range appends {
		batch := shop(1+i*n, n)
		for j := range batch.Events {
			batch.Events[j].Data = make([]byte, size)
		}
		ahead = append(ahead, b.Prepare("shop", batch))
	}
	pos := ""
	for i, f := range ahead {
		appended(t, f, pos)
		pos = strconv.Itoa((i + 1) * n)
	}
	runs := map[int64]int{}
	for _, r := range records(t, k, c.Name+".log.shop") {
		runs[kafka.Run(r)] += len(r.Value)
	}
	for first, bytes := range runs {
		if bytes > 8<<20+n*size {
			t.Errorf("the run at %d has %d bytes", first, bytes)
		}
	}
	if len(runs) < 2 || len(runs) > 4 {
		t.Errorf("%d runs", len(runs))
	}
}

// TestBusWaited: records that waited long for their append have the time at which they were sent.
func TestBusWaited(t *testing.T) {
	k := servers.Kafka(t)
	c := kafka.BusConfig{Brokers: []string{k.Addr()}, Name: unique("waited")}
	name := c.Name + ".log.shop"
	topic(t, k, name, 1, "message.timestamp.type", "CreateTime", "retention.ms", "-1", "retention.bytes", "-1", "cleanup.policy", "delete")
	b := openBus(t, c)
	defer b.Close()
	if _, _, err := b.Position(t.Context(), "shop"); err != nil {
		t.Fatal(err)
	}
	f := b.Prepare("shop", shop(1, 3))
	made := time.Now()
	time.Sleep(1200 * time.Millisecond) // the time itself is what is tested
	appended(t, f, "")
	recs := records(t, k, name)
	for _, r := range recs {
		if r.Timestamp.Before(made.Add(time.Second)) {
			t.Errorf("record %d has the time %v, and was made at %v", r.Offset, r.Timestamp, made)
		}
	}
	if len(recs) != 3 {
		t.Errorf("%d records", len(recs))
	}
}
