package redis_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/adapter/redis"
	"github.com/onewrite/onewrite/internal/servers"
)

// place takes a destination over and returns its record.
func place(t *testing.T, s onewrite.Placed) string {
	t.Helper()
	record, err := s.Place(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if record == nil {
		return "none"
	}
	return string(record)
}

func writeAt(t *testing.T, s onewrite.Placed, record string, m ...onewrite.Message) {
	t.Helper()
	if bad, err := s.WriteAt(t.Context(), m, []byte(record)); err != nil {
		t.Fatalf("WriteAt: %d, %v", bad, err)
	}
}

func TestPlace(t *testing.T) {
	srv := servers.Redis(t)
	c := plain(t, srv)
	conf := redis.Config{URL: srv.URL(), Destination: unique(t), Stream: unique(t) + "/{topic}"}
	stream := strings.TrimSuffix(conf.Stream, "{topic}") + "t"
	a := openPlaced(t, conf)
	if got := place(t, a); got != "none" {
		t.Fatalf("the record of a new destination is %q", got)
	}
	record := "\x00\xff\r\n{place} 1"
	writeAt(t, a, record, messages(5, events("t", 0, 3)...)...)
	writeAt(t, a, record+"2", messages(8, events("t", 3, 2)...)...)
	b := openPlaced(t, conf) // opened before a's last write
	writeAt(t, a, record+"3", messages(10, events("t", 5, 1)...)...)
	if got := place(t, b); got != record+"3" {
		t.Fatalf("the record is %q", got)
	}
	for range 2 {
		bad, err := a.WriteAt(t.Context(), messages(11, events("t", 6, 1)...), []byte("stale"))
		if bad != 0 || !errors.Is(err, onewrite.ErrFenced) {
			t.Fatalf("the older sink: %d, %v", bad, err)
		}
	}
	writeAt(t, b, "b", messages(11, events("t", 6, 2)...)...)
	got, ids := stored(t, c, stream)
	if len(got) != 8 || !slices.Equal(ids, []string{"5-0", "6-0", "7-0", "8-0", "9-0", "10-0", "11-0", "12-0"}) {
		t.Fatalf("%d entries with the ids %v", len(got), ids)
	}
	if got := place(t, openPlaced(t, conf)); got != "b" {
		t.Fatalf("the record is %q", got)
	}
	writeAt(t, openPlaced(t, redis.Config{URL: srv.URL(), Destination: unique(t)}), "empty")
}

// TestFencedBeforePlace: a sink that never took the destination over is fenced by the
// first one that does, if it was opened before.
func TestFencedBeforePlace(t *testing.T) {
	srv := servers.Redis(t)
	conf := redis.Config{URL: srv.URL(), Destination: unique(t), Stream: unique(t)}
	a, b := openPlaced(t, conf), openPlaced(t, conf)
	place(t, b)
	if _, err := a.WriteAt(t.Context(), messages(1, events("t", 0, 1)...), nil); !errors.Is(err, onewrite.ErrFenced) {
		t.Fatalf("%v", err)
	}
	other := conf
	other.Destination = unique(t)
	place(t, openPlaced(t, other)) // another destination in the same stream fences nobody
	writeAt(t, b, "b", messages(1, events("t", 0, 1)...)...)
}

// TestIDs: ids tell the offset where they can, and only ever grow.
func TestIDs(t *testing.T) {
	srv := servers.Redis(t)
	c := plain(t, srv)
	conf := redis.Config{URL: srv.URL(), Destination: unique(t), Stream: unique(t)}
	s := openPlaced(t, conf)
	place(t, s)
	at := func(offset uint64, source string) onewrite.Message {
		m := messages(offset, events("t", int(offset), 1)...)[0]
		m.Source, m.Log = source, source
		return m
	}
	writeAt(t, s, "1", at(7, "a"), at(2, "b"), at(3, "b"), at(8, "a"), at(9, "b"), at(9, "a"), at(10, "a"))
	writeAt(t, s, "2", at(4, "a")) // driven again
	writeAt(t, s, "3", at(4, "a"), at(11, "a"))
	if n, err := s.Write(t.Context(), events("t", 20, 2)); n != 2 || err != nil { // without a place
		t.Fatalf("%d, %v", n, err)
	}
	if err := c.XDel(t.Context(), conf.Stream, "11-2").Err(); err != nil { // the last id is remembered
		t.Fatal(err)
	}
	writeAt(t, s, "4", at(11, "a"), at(1, "b"), at(12, "a"))
	_, ids := stored(t, c, conf.Stream)
	want := []string{"7-0", "7-1", "7-2", "8-0", "9-0", "9-1", "10-0", "10-1", "10-2", "11-0", "11-1", "11-3", "11-4", "12-0"}
	if !slices.Equal(ids, want) {
		t.Errorf("ids are %v\n    want %v", ids, want)
	}
	if err := c.Do(t.Context(), "XADD", conf.Stream, "7-0", "a", "b").Err(); err == nil || !strings.Contains(err.Error(), "equal or smaller") {
		t.Errorf("the stream takes an old id: %v", err)
	}
	// A stream that others write to by the clock, and one at the end of its numbers.
	other := conf
	other.Stream = unique(t)
	for _, last := range []string{"1700000000000-5", "9007199254740993-0", "18446744073709551615-7"} {
		if err := c.Do(t.Context(), "XADD", other.Stream, last, "a", "b").Err(); err != nil {
			t.Fatal(err)
		}
		s := openPlaced(t, other)
		place(t, s)
		writeAt(t, s, "5", at(100, "a"), at(101, "a"))
		list := entries(t, c, other.Stream)
		ms, seq, _ := strings.Cut(last, "-")
		n, _ := strconv.Atoi(seq)
		if got := []string{list[len(list)-2].id, list[len(list)-1].id}; !slices.Equal(got, []string{fmt.Sprint(ms, "-", n+1), fmt.Sprint(ms, "-", n+2)}) {
			t.Errorf("after %s come %v", last, got)
		}
	}
}

// TestAllOrNothing: whatever is wrong with one event, none is there, and the record
// is as it was.
func TestAllOrNothing(t *testing.T) {
	srv := servers.Redis(t)
	c := plain(t, srv)
	prefix := unique(t)
	conf := redis.Config{URL: srv.URL(), Destination: unique(t), Stream: prefix + "{topic}/{key}"}
	s := openPlaced(t, conf)
	place(t, s)
	writeAt(t, s, "before", messages(1, events("good", 0, 1, "k")...)...)
	if err := c.Set(t.Context(), prefix+"string/k", "x", 0).Err(); err != nil {
		t.Fatal(err)
	}
	if err := c.Do(t.Context(), "XADD", prefix+"full/k", "18446744073709551615-18446744073709551615", "a", "b").Err(); err != nil {
		t.Fatal(err)
	}
	wide := events("good", 9, 1, "k")[0]
	wide.Header = map[string]string{}
	for i := range 2100 {
		wide.Header[fmt.Sprint("h", i)] = "v"
	}
	for name, x := range map[string]struct {
		bad      onewrite.Event
		rejected bool
		text     string
	}{
		"a string": {events("string", 9, 1, "k")[0], true, "holds a string"},
		"no key":   {events("good", 9, 1)[0], true, "no key"},
		"full":     {events("full", 9, 1, "k")[0], false, "exhausted"},
		"too wide": {wide, true, "headers"},
	} {
		list := append(events("good", 1, 3, "k"), x.bad)
		list = append(list, events("good", 10, 1, "k")...)
		bad, err := s.WriteAt(t.Context(), messages(2, list...), []byte("after "+name))
		if bad != 3 || errors.Is(err, onewrite.ErrRejected) != x.rejected || err == nil || !strings.Contains(err.Error(), x.text) {
			t.Errorf("%s: %d, %v", name, bad, err)
		}
		if got, _ := stored(t, c, prefix+"good/k"); len(got) != 1 {
			t.Fatalf("%s: %d entries, want the one of before", name, len(got))
		}
		if n, err := s.Write(t.Context(), list[3:4]); n != 0 || err == nil {
			t.Errorf("%s: Write: %d, %v", name, n, err)
		}
	}
	writeAt(t, s, "after", messages(2, events("good", 1, 3, "k")...)...) // none of it broke the sink
	if got := place(t, openPlaced(t, conf)); got != "after" {
		t.Errorf("the record is %q", got)
	}
	// Write takes what stands before the refused one.
	list := append(events("good", 20, 2, "k"), events("string", 22, 1, "k")...)
	if n, err := s.Write(t.Context(), append(list, events("good", 23, 1, "k")...)); n != 2 || !errors.Is(err, onewrite.ErrRejected) {
		t.Errorf("Write: %d, %v", n, err)
	}
	if got, _ := stored(t, c, prefix+"good/k"); len(got) != 6 {
		t.Errorf("%d entries, want 6", len(got))
	}
}

// TestKills kills the server in the middle of placed writes, again and again. The
// record says after each what is there, and in the end all is there once.
func TestKills(t *testing.T) {
	srv := servers.NewRedis(t)
	conf := redis.Config{URL: srv.URL(), Destination: "kills", Stream: "kills:{topic}"}
	const total, kills = 4000, 12
	next, unknown := 0, 0
	rng := rand.New(rand.NewPCG(1, 2))
	for round := 0; next < total; round++ {
		s := openPlaced(t, conf)
		got := place(t, s)
		if got == "none" {
			got = "0"
		}
		n, err := strconv.Atoi(got)
		if err != nil || n < next || n > next+50 {
			t.Fatalf("round %d: the record is %q, %d were confirmed: %v", round, got, next, err)
		}
		if n > next {
			unknown++
		}
		next = n
		killed := make(chan struct{})
		var once sync.Once
		target := next + rng.IntN(total/kills)
		for next < total {
			count := min(1+rng.IntN(50), total-next)
			list := events("a", next, count)
			for i := range list {
				list[i].Topic = []string{"a", "b", "c"}[(next+i)%3]
			}
			if next >= target && round < kills {
				once.Do(func() {
					go func() {
						defer close(killed)
						srv.Kill(t)
					}()
				})
			}
			if _, err = s.WriteAt(t.Context(), messages(uint64(next+1), list...), []byte(strconv.Itoa(next+count))); err != nil {
				break
			}
			next += count
		}
		if err == nil {
			break
		}
		<-killed
		if errors.Is(err, onewrite.ErrRejected) || errors.Is(err, onewrite.ErrFenced) {
			t.Fatalf("a dead server is told as %v", err)
		}
		if _, again := s.WriteAt(t.Context(), nil, []byte("x")); again == nil {
			t.Fatal("a sink writes on after a write without an answer")
		}
		_ = s.Close()
		srv.Start(t)
	}
	c := plain(t, srv)
	seen := map[string]int{}
	for _, topic := range []string{"a", "b", "c"} {
		list, ids := stored(t, c, "kills:"+topic)
		for i, e := range list {
			seen[e.ID]++
			n, _ := strconv.Atoi(e.ID[1:])
			if want := fmt.Sprint(n+1, "-0"); ids[i] != want {
				t.Fatalf("event %s has the id %s, want %s", e.ID, ids[i], want)
			}
		}
	}
	for i := range total {
		if n := seen[fmt.Sprintf("e%05d", i)]; n != 1 {
			t.Fatalf("event %d is there %d times", i, n)
		}
	}
	t.Logf("%d writes without an answer had become durable", unknown)
}

// TestLateWrite: a write whose caller has gone arrives when it may. If the next sink
// has taken over before, it changes nothing; else its record is what Place returns.
func TestLateWrite(t *testing.T) {
	srv := servers.NewRedis(t)
	c := plain(t, srv)
	conf := redis.Config{URL: srv.URL(), Destination: "late", Stream: "late"}
	next := 0
	for range 5 {
		s := openPlaced(t, conf)
		before := place(t, s)
		if next > 0 && before != strconv.Itoa(next) {
			t.Fatalf("the record is %q, %d are there", before, next)
		}
		srv.Pause(t)
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		_, err := s.WriteAt(ctx, messages(uint64(next+1), events("t", next, 3)...), []byte(strconv.Itoa(next+3)))
		cancel()
		if err == nil || errors.Is(err, onewrite.ErrFenced) || errors.Is(err, onewrite.ErrRejected) {
			t.Fatalf("a frozen server: %v", err)
		}
		srv.Resume(t)
		b := openPlaced(t, conf)
		got := place(t, b)
		list := entries(t, c, "late")
		if want := strconv.Itoa(len(list)); got != want && !(len(list) == 0 && got == "none") {
			t.Fatalf("the record is %q with %s entries", got, want)
		}
		next = len(list)
		writeAt(t, b, strconv.Itoa(next+2), messages(uint64(next+1), events("t", next, 2)...)...)
		next += 2
		if n := len(entries(t, c, "late")); n != next {
			t.Fatalf("%d entries, want %d", n, next)
		}
	}
}

// TestForgot: a server that comes back without what it acknowledged is noticed by the
// first write after it, and the record is that of what it has.
func TestForgot(t *testing.T) {
	srv := servers.NewRedis(t, "appendonly no")
	conf := redis.Config{URL: srv.URL(), Destination: "forgot", Stream: "forgot"}
	s := openPlaced(t, conf)
	place(t, s)
	writeAt(t, s, "10", messages(1, events("t", 0, 10)...)...)
	if err := plain(t, srv).Save(t.Context()).Err(); err != nil {
		t.Fatal(err)
	}
	writeAt(t, s, "20", messages(11, events("t", 10, 10)...)...)
	srv.Restart(t)
	bad, err := s.WriteAt(t.Context(), messages(21, events("t", 20, 1)...), []byte("21"))
	if bad != 0 || err == nil || errors.Is(err, onewrite.ErrFenced) || errors.Is(err, onewrite.ErrRejected) || !strings.Contains(err.Error(), "forgotten") || !strings.Contains(err.Error(), "appendfsync always") {
		t.Fatalf("%d, %v", bad, err)
	}
	c := plain(t, srv)
	if n := len(entries(t, c, "forgot")); n != 10 {
		t.Fatalf("%d entries", n)
	}
	next := openPlaced(t, conf)
	if got := place(t, next); got != "10" {
		t.Fatalf("the record is %q", got)
	}
	writeAt(t, next, "21", messages(11, events("t", 10, 11)...)...)
	if n := len(entries(t, c, "forgot")); n != 21 {
		t.Fatalf("%d entries", n)
	}
}

// TestMaxLen: the guard drops the oldest, about as many as it says, and nothing
// without it.
func TestMaxLen(t *testing.T) {
	srv := servers.Redis(t)
	c := plain(t, srv)
	for _, limit := range []int64{0, 500} {
		conf := redis.Config{URL: srv.URL(), Destination: unique(t), Stream: unique(t), MaxLen: limit}
		s := openPlaced(t, conf)
		place(t, s)
		for i := range 3 {
			writeAt(t, s, "x", messages(uint64(1+i*1000), events("t", i*1000, 1000)...)...)
		}
		n := c.XLen(t.Context(), conf.Stream).Val()
		if limit == 0 && n != 3000 || limit > 0 && (n < limit || n > 2*limit) {
			t.Errorf("max_len %d leaves %d entries", limit, n)
		}
		list, _ := stored(t, c, conf.Stream)
		if last := list[len(list)-1].ID; last != "e02999" {
			t.Errorf("the last entry is %s", last)
		}
	}
}
