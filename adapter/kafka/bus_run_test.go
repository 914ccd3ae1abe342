package kafka_test

import (
	"strconv"
	"testing"

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
