package kafka_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/adapter/kafka"
	"github.com/onewrite/onewrite/internal/servers"
)

func place(t *testing.T, s *kafka.Sink) []byte {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	p, err := s.Place(ctx)
	if err != nil {
		t.Fatalf("Place: %v", err)
	}
	return p
}

func writeAt(t *testing.T, s *kafka.Sink, events []onewrite.Event, place string) {
	t.Helper()
	if _, err := s.WriteAt(t.Context(), messages(events), []byte(place)); err != nil {
		t.Fatalf("WriteAt: %v", err)
	}
}

// TestPlace: the newest committed place is found, by every new sink, near and far.
func TestPlace(t *testing.T) {
	k := servers.Kafka(t)
	name := unique("place")
	c := kafka.Config{Brokers: []string{k.Addr()}, Destination: name}
	s := newSink(t, c)
	if p := place(t, s); p != nil {
		t.Fatalf("a new destination has the place %q", p)
	}
	evs := events(name, 300, "a", "b", "c")
	binary := string([]byte{0, 255, 1, '"', 0})
	writeAt(t, s, evs[:100], "one")
	if p := place(t, s); string(p) != "one" { // of the same sink
		t.Fatalf("place %q", p)
	}
	writeAt(t, s, evs[100:200], binary)
	writeAt(t, s, nil, binary+"!") // a place alone
	s = newSink(t, c)
	if p := place(t, s); string(p) != binary+"!" {
		t.Fatalf("place %q", p)
	}
	writeAt(t, s, evs[200:], "")
	s = newSink(t, c)
	if p := place(t, s); p == nil || len(p) != 0 {
		t.Fatalf("an empty place came back as %v", p)
	}
	if got := decode(t, records(t, k, name)); len(got) != len(evs) {
		t.Fatalf("%d events, want %d", len(got), len(evs))
	}
	writeAt(t, s, nil, "far back")
	other := newSink(t, kafka.Config{Brokers: []string{k.Addr()}, Destination: unique("other")})
	for i := range 400 { // two offsets each
		writeAt(t, other, nil, fmt.Sprint("other ", i))
	}
	if p := place(t, newSink(t, c)); string(p) != "far back" {
		t.Fatalf("place %q behind those of another destination", p)
	}
}

// TestAllOrNothing: what is refused takes all with it, and the place.
func TestAllOrNothing(t *testing.T) {
	k := servers.Kafka(t)
	name := unique("all")
	topic(t, k, name, 1, "cleanup.policy", "compact")
	c := kafka.Config{Brokers: []string{k.Addr()}, Destination: name}
	s := newSink(t, c)
	evs := events(name, 50, "a", "b")
	writeAt(t, s, evs[:10], "ten")
	evs[33].Key = "" // that a compacted topic refuses, and with it the whole batch
	evs[40].Key = ""
	bad, err := s.WriteAt(t.Context(), messages(evs[10:]), []byte("fifty"))
	if bad != 23 || !errors.Is(err, onewrite.ErrRejected) {
		t.Fatalf("WriteAt = %d, %v; want 23 and ErrRejected", bad, err)
	}
	large := evs[20]
	large.Data = make([]byte, 2<<20)
	if bad, err := s.WriteAt(t.Context(), messages([]onewrite.Event{evs[10], large}), []byte("x")); bad != 1 || !errors.Is(err, onewrite.ErrRejected) {
		t.Fatalf("WriteAt = %d, %v; want 1 and ErrRejected", bad, err)
	}
	if got := decode(t, records(t, k, name)); len(got) != 10 {
		t.Fatalf("%d events, want 10", len(got))
	}
	good := slices.DeleteFunc(slices.Clone(evs[10:]), func(e onewrite.Event) bool { return e.Key == "" })
	writeAt(t, s, good, "fifty") // the sink works on
	if got := decode(t, records(t, k, name)); len(got) != 48 {
		t.Fatalf("%d events, want 48", len(got))
	}
	if p := place(t, newSink(t, c)); string(p) != "fifty" {
		t.Fatalf("place %q", p)
	}
}

// TestFencing: the newest sink owns the destination, whatever the older ones try, and
// they never get it back.
func TestFencing(t *testing.T) {
	k := servers.Kafka(t)
	name := unique("fence")
	c := kafka.Config{Brokers: []string{k.Addr()}, Destination: name}
	idle, old := newSink(t, c), newSink(t, c) // idle never did a thing
	evs := events(name, 30, "a")
	writeAt(t, old, evs[:10], "old")
	fresh := newSink(t, c)
	if p := place(t, fresh); string(p) != "old" {
		t.Fatalf("place %q", p)
	}
	for range 2 {
		for what, s := range map[string]*kafka.Sink{"idle": idle, "old": old} {
			if _, err := s.WriteAt(t.Context(), messages(evs[10:20]), []byte("stolen")); !errors.Is(err, onewrite.ErrFenced) {
				t.Errorf("WriteAt of the %s sink: %v, want ErrFenced", what, err)
			}
			if _, err := s.Write(t.Context(), evs[10:20]); !errors.Is(err, onewrite.ErrFenced) {
				t.Errorf("Write of the %s sink: %v, want ErrFenced", what, err)
			}
			if _, err := s.Place(t.Context()); !errors.Is(err, onewrite.ErrFenced) {
				t.Errorf("Place of the %s sink: %v, want ErrFenced", what, err)
			}
		}
		writeAt(t, fresh, evs[20:], "new")
		evs = append(evs, events(name+"x", 10, "a")...)[:30]
	}
	for _, e := range decode(t, records(t, k, name)) {
		if i := slices.Index(ids(evs), e.ID); i >= 10 && i < 20 {
			t.Errorf("event %s of a fenced sink is there", e.ID)
		}
	}
	if p := place(t, newSink(t, c)); string(p) != "new" {
		t.Fatalf("place %q", p)
	}
}

// TestCrash leaves a transaction open as a killed process does: the next sink ends it
// and its readers see nothing of it.
func TestCrash(t *testing.T) {
	k := servers.Kafka(t)
	name := unique("crash")
	c := kafka.Config{Brokers: []string{k.Addr()}, Destination: name}
	evs := events(name, 20, "a", "b")
	s := newSink(t, c)
	writeAt(t, s, evs[:10], "ten")
	crashed := kafka.Uncommitted(t, c, evs[10:], []byte("twenty"))
	s = newSink(t, c)
	if p := place(t, s); string(p) != "ten" {
		t.Fatalf("place %q, of a transaction that was not committed", p)
	}
	if err := crashed.Commit(); err == nil {
		t.Fatal("the crashed one could still commit")
	}
	writeAt(t, s, evs[10:], "twenty")
	got := decode(t, records(t, k, name))
	if len(got) != 20 || len(read(t, k, kgo.ReadUncommitted(), name)) != 30 {
		t.Fatalf("%d events committed, want 20; %d with the others, want 30", len(got), len(read(t, k, kgo.ReadUncommitted(), name)))
	}
}

// TestUnknownOutcome loses the answer to a commit. The sink says so and writes no
// more; the next one's place tells which it was.
func TestUnknownOutcome(t *testing.T) {
	k := servers.Kafka(t)
	for _, arrives := range []bool{true, false} {
		name := unique("unknown")
		c := kafka.Config{Brokers: []string{k.Addr()}, Destination: name}
		evs := events(name, 20, "a", "b")
		s := newSink(t, c)
		writeAt(t, s, evs[:10], "ten")
		kafka.LoseCommit(s, arrives)
		_, err := s.WriteAt(t.Context(), messages(evs[10:]), []byte("twenty"))
		if err == nil || steers(err) {
			t.Fatalf("WriteAt without an answer: %v", err)
		}
		if _, err := s.WriteAt(t.Context(), messages(evs[10:]), []byte("twenty")); err == nil || steers(err) {
			t.Fatalf("WriteAt after one without an answer: %v", err)
		}
		want, count := "ten", 10
		if arrives {
			want, count = "twenty", 20
		}
		if p := place(t, newSink(t, c)); string(p) != want {
			t.Errorf("place %q, want %q", p, want)
		}
		if got := decode(t, records(t, k, name)); len(got) != count {
			t.Errorf("%d events, want %d", len(got), count)
		}
	}
}

func steers(err error) bool {
	var answered interface{ Answered() bool }
	return errors.Is(err, onewrite.ErrRejected) || errors.Is(err, onewrite.ErrGone) || errors.Is(err, onewrite.ErrFenced) || errors.As(err, &answered)
}

// TestPlaceWaits: while the transaction of another destination is open in the topic
// of places, what is behind it cannot be read; Place waits, and does not take an older
// place for the newest.
func TestPlaceWaits(t *testing.T) {
	k := servers.Kafka(t)
	name := unique("waits")
	c := kafka.Config{Brokers: []string{k.Addr()}, Destination: name}
	s := newSink(t, c)
	writeAt(t, s, events(name, 5, "a"), "before")
	open := kafka.Uncommitted(t, kafka.Config{Brokers: []string{k.Addr()}, Destination: unique("other")}, nil, []byte("x"))
	writeAt(t, s, events(name+"x", 5, "a"), "behind")
	next := newSink(t, c)
	type answer struct {
		place []byte
		err   error
	}
	got := make(chan answer, 1)
	go func() {
		p, err := next.Place(context.Background())
		got <- answer{p, err}
	}()
	// The mark of next is in the topic, so it reads by now.
	deadline := time.Now().Add(patience)
	for marks := 0; marks < 2; {
		if time.Now().After(deadline) {
			t.Fatal("no mark of the sink that takes over")
		}
		marks = 0
		for _, r := range read(t, k, kgo.ReadUncommitted(), "onewrite-places") {
			if bytes.Equal(r.Key, []byte(name+"/owner")) {
				marks++
			}
		}
	}
	select {
	case a := <-got:
		t.Fatalf("Place = %q, %v while it cannot know", a.place, a.err)
	default:
	}
	if err := open.Commit(); err != nil {
		t.Fatal(err)
	}
	if a := <-got; a.err != nil || string(a.place) != "behind" {
		t.Fatalf("Place = %q, %v", a.place, a.err)
	}
}

// TestPlacesTopic: one that would lose places is refused, with the cure.
func TestPlacesTopic(t *testing.T) {
	k := servers.Kafka(t)
	deletes, many := unique("deletes"), unique("many")
	topic(t, k, deletes, 1)
	topic(t, k, many, 3, "cleanup.policy", "compact")
	for _, places := range []string{deletes, many, "no topic!"} {
		_, err := kafka.New(t.Context(), kafka.Config{Brokers: []string{k.Addr()}, Destination: "x", Places: places})
		if err == nil || steers(err) {
			t.Errorf("places in %s: %v", places, err)
		}
	}
	s := newSink(t, kafka.Config{Brokers: []string{k.Addr()}, Destination: unique("own"), Places: "own-places"})
	writeAt(t, s, nil, "x")
	var policy string
	with(t, k, func(ctx context.Context, adm *kadm.Client) error {
		configs, err := adm.DescribeTopicConfigs(ctx, "own-places")
		for _, c := range configs[0].Configs {
			if c.Key == "cleanup.policy" {
				policy = c.MaybeValue()
			}
		}
		return err
	})
	if policy != "compact" {
		t.Errorf("the topic of places has cleanup.policy=%s", policy)
	}
}
