package nats_test

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	natsgo "github.com/nats-io/nats.go"
	"pgregory.net/rapid"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/adapter/nats"
	"github.com/onewrite/onewrite/internal/retention"
)

// TestPackForm: what comes out of a pack is what went in, whatever its neighbours are and
// whichever of them are wanted.
func TestPackForm(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		events := make([]onewrite.Event, rapid.IntRange(2, 6).Draw(t, "n"))
		for i := range events {
			if events[i] = drawEvent(t); i > 0 && rapid.Bool().Draw(t, "alike") {
				p := &events[i-1]
				events[i].Topic, events[i].Type, events[i].Time, events[i].Tx = p.Topic, p.Type, p.Time, p.Tx
			}
		}
		first := rapid.Uint64Range(1, 1<<60).Draw(t, "first")
		m, n := nats.Pack(events, first)
		if n != len(events) {
			t.Fatalf("%d of %d events in the pack", n, len(events))
		}
		wanted := map[uint64]bool{}
		got, err := nats.Unpack(overWire(t, m), bytes.Clone(m.Data), first, func(offset uint64, topic string) bool {
			if want := events[offset-first].Topic; topic != want {
				t.Fatalf("topic %q at %d, want %q", topic, offset, want)
			}
			wanted[offset] = rapid.Bool().Draw(t, "wanted")
			return wanted[offset]
		})
		if err != nil || len(wanted) != len(events) {
			t.Fatalf("asked for %d of %d events: %v", len(wanted), len(events), err)
		}
		for i := range events {
			e, there := got[first+uint64(i)]
			if there != wanted[first+uint64(i)] {
				t.Fatalf("event %d: there %v", i, there)
			}
			if there {
				sameForm(t, e, nats.Canonical(&events[i]))
			}
		}
	})
}

// FuzzUnpack: whatever is in a pack, reading it ends.
func FuzzUnpack(f *testing.F) {
	b := batch(1, 5)
	b.Events[3].Header = map[string]string{"tenant": "a"}
	m, _ := nats.Pack(b.Events, 1)
	f.Add(bytes.Clone(m.Data))
	f.Add([]byte("\x05\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"))
	f.Fuzz(func(t *testing.T, data []byte) {
		h := natsgo.Header{"Onewrite-Pack": {"1 5"}}
		all, err := nats.Unpack(h, data, 1, func(uint64, string) bool { return true })
		if len(all) > len(data) {
			t.Fatalf("%d events of %d bytes, %v", len(all), len(data), err)
		}
	})
}

// logModel is what a log has to hold.
type logModel struct {
	topics []string // of the event at offset i+1
	pos    onewrite.Pos
	kept   uint64 // the first offset that has to be there
}

// grow appends a batch of n events, of two topics in runs, the last of them large at times.
func (m *logModel) grow(t *testing.T, b *nats.Bus, rng *rand.Rand, n int) {
	t.Helper()
	x := batch(len(m.topics)+1, n)
	for i := range x.Events {
		topic := "order.placed"
		if rng.IntN(4) == 0 {
			topic = "stock.moved"
		}
		x.Events[i].Topic = topic
		m.topics = append(m.topics, topic)
	}
	if rng.IntN(4) == 0 {
		x.Events[n-1].Data = bytes.Repeat([]byte("x"), nats.PackBytes/2+rng.IntN(nats.PackBytes/3))
	}
	if last := appendAll(t, b, m.pos, x); last != uint64(len(m.topics)) {
		t.Fatalf("appended up to %d, the bus says %d", len(m.topics), last)
	}
	m.pos = x.Pos
}

// check reads what is behind a place and compares it, and what is pending before.
func (m *logModel) check(t *testing.T, b *nats.Bus, name string, at onewrite.LogCursor, topics ...string) {
	t.Helper()
	var want []uint64
	for i, topic := range m.topics {
		offset := uint64(i) + 1
		done := offset <= at.Floor || slices.ContainsFunc(at.Done, func(s onewrite.Span) bool { return s.From <= offset && offset <= s.To })
		if !done && offset >= m.kept && (len(topics) == 0 || slices.Contains(topics, topic)) {
			want = append(want, offset)
		}
	}
	sub := subscribe(t, b, onewrite.Interest{Name: name, Topics: topics})
	if err := sub.Commit(t.Context(), onewrite.Cursor{Logs: map[string]onewrite.LogCursor{"shop": at}}); err != nil {
		t.Fatal(err)
	}
	if err := sub.Close(); err != nil {
		t.Fatal(err)
	}
	sub = subscribe(t, b, onewrite.Interest{Name: name, Topics: topics})
	defer sub.Close()
	if n, err := sub.Pending(t.Context(), map[string]onewrite.LogCursor{"shop": at}); err != nil || n != uint64(len(want)) {
		t.Fatalf("behind %+v of topics %v: %d pending, %v; want %d of %d", at, topics, n, err, len(want), len(m.topics))
	}
	for i, msg := range read(t, sub, len(want)) {
		if i >= len(want) || msg.Offset != want[i] || msg.Topic != m.topics[msg.Offset-1] || msg.Seq != fmt.Sprint(msg.Offset) {
			t.Fatalf("behind %+v of topics %v: message %d is event %s at %d", at, topics, i, msg.Seq, msg.Offset)
		}
	}
	if n, err := sub.Pending(t.Context(), map[string]onewrite.LogCursor{"shop": {Floor: uint64(len(m.topics))}}); err != nil || n != 0 {
		t.Fatalf("nothing is pending, and it says %d, %v", n, err)
	}
}

// TestOffsets: offsets count events, however these came into messages, and places, counts
// and retention go by them; in a log that was packed at times too.
func TestOffsets(t *testing.T) {
	t.Parallel()
	for seed := range uint64(4) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			rng := rand.New(rand.NewPCG(seed, 7))
			dir, m := t.TempDir(), logModel{kept: 1}
			for round := range 5 {
				c := nats.Config{Dir: dir}
				if rng.IntN(3) > 0 {
					nats.StoreOnly(&c)
				}
				if (uint64(round)+seed)%3 == 0 { // each event for itself
					c.Listen, c.User, c.Password = "127.0.0.1:0", "reader", fmt.Sprint(rng.Uint64())
				}
				b := open(t, c)
				if pos, last, err := b.Position(t.Context(), "shop"); err != nil || pos != m.pos || last != uint64(len(m.topics)) {
					t.Fatalf("opened again at %q, %d, %v; want %q, %d", pos, last, err, m.pos, len(m.topics))
				}
				for range 4 {
					m.grow(t, b, rng, 1+rng.IntN([]int{1, 12, 200, 1000}[rng.IntN(4)]))
				}
				last := uint64(len(m.topics))
				for i, topics := range [][]string{nil, {"stock.moved"}} {
					at := onewrite.LogCursor{Floor: m.kept - 1 + rng.Uint64N(last-m.kept+1)}
					if from := at.Floor + 2 + rng.Uint64N(20); from < last {
						at.Done = []onewrite.Span{{From: from, To: from + rng.Uint64N(last-from)}}
					}
					m.check(t, b, fmt.Sprintf("d%d-%d", round, i), at, topics...)
				}
				confirmed := m.kept - 1 + rng.Uint64N(last-m.kept+1)
				u, err := b.Retain(t.Context(), "shop", confirmed, retention.Keep{Size: 1})
				if err != nil || u.Last != last || u.First > confirmed+1 || confirmed < last && u.First+onewrite.MaxBatch <= confirmed || u.Messages != last-u.First+1 {
					t.Fatalf("of %d events %d are confirmed: %+v, %v", last, confirmed, u, err)
				}
				m.kept = u.First
				for _, name := range []string{fmt.Sprintf("d%d-0", round), fmt.Sprintf("d%d-1", round)} {
					if err := b.Forget(t.Context(), name); err != nil {
						t.Fatal(err)
					}
				}
				if err := b.Close(); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}

// TestReadOfPacks: what Read returns is bounded in a log of packs too, and memory does not
// keep the packs of a few events.
func TestReadOfPacks(t *testing.T) {
	c := nats.Config{Dir: t.TempDir()}
	nats.StoreOnly(&c)
	b := open(t, c)
	prev := onewrite.Pos("")
	for i := range 12 {
		x := batch(i*700+1, 700)
		appendAll(t, b, prev, x)
		prev = x.Pos
	}
	sub := subscribe(t, b, onewrite.Interest{})
	defer sub.Close()
	ctx, all := t.Context(), 0
	for all < 12*700 {
		msgs, upto, err := sub.Read(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if len(msgs) > 1000 {
			t.Fatalf("%d messages at once", len(msgs))
		}
		for i := range msgs {
			if all++; msgs[i].Offset != uint64(all) {
				t.Fatalf("event %d is at %d", all, msgs[i].Offset)
			}
		}
		if at := upto["shop"]; at > uint64(all) {
			t.Fatalf("passed up to %d after %d", at, all)
		}
	}
}

// TestPackIsOneMessage: an append to a bus that nobody else reads is one message, and to
// one that listens each event is one.
func TestPackIsOneMessage(t *testing.T) {
	c := nats.Config{Dir: t.TempDir()}
	b := open(t, c)
	appendAll(t, b, "", batch(1, 400))
	packed, err := b.Retain(t.Context(), "shop", 400, retention.Keep{Size: 1, Age: time.Nanosecond})
	if err != nil || packed.First != 1 || packed.Messages != 400 || packed.Through != 400 {
		t.Fatalf("the newest message has all 400 events: %+v, %v", packed, err)
	}
	if !packed.Outlived(200, time.Nanosecond) || packed.Outlived(200, time.Hour) || packed.Outlived(400, time.Nanosecond) {
		t.Fatalf("a destination that waits in the middle of a message waits since it was stored: %+v", packed)
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	c.Listen, c.User, c.Password = "127.0.0.1:0", "reader", strings.Repeat("p", 20)
	b = open(t, c)
	appendAll(t, b, "400", batch(401, 400))
	single, err := b.Retain(t.Context(), "shop", 800, retention.Keep{Size: 1, Age: time.Nanosecond})
	if err != nil || single.First != 800 || single.Messages != 1 || single.Through != 800 {
		t.Fatalf("the newest message has one event: %+v, %v", single, err)
	}
}

// TestFirstPack: what a reader has passed before the first pack came is counted too.
func TestFirstPack(t *testing.T) {
	b := open(t, nats.Config{Dir: t.TempDir()})
	sub := subscribe(t, b, onewrite.Interest{Name: "d", Topics: []string{"order.>"}})
	defer sub.Close()
	prev := onewrite.Pos("")
	for i := range 10 {
		x := batch(i+1, 1)
		appendAll(t, b, prev, x)
		prev = x.Pos
	}
	read(t, sub, 10)
	appendAll(t, b, prev, batch(11, 5))
	read(t, sub, 5)
	for floor, want := range []uint64{0: 15, 4: 11, 12: 3} {
		if want == 0 {
			continue
		}
		if n, err := sub.Pending(t.Context(), map[string]onewrite.LogCursor{"shop": {Floor: uint64(floor)}}); err != nil || n != want {
			t.Fatalf("behind %d: %d pending, %v; want %d", floor, n, err, want)
		}
	}
}

// TestPacksOfSmallEvents: a bus that takes small events only takes a full batch of them.
func TestPacksOfSmallEvents(t *testing.T) {
	for _, most := range []int{1 << 10, 64 << 10} {
		b := open(t, nats.Config{Dir: t.TempDir(), MaxEvent: most})
		x := batch(1, 1000)
		for i := range x.Events {
			x.Events[i].Data = bytes.Repeat([]byte("x"), 1000)
		}
		if last := appendAll(t, b, "", x); last != 1000 {
			t.Fatalf("max_event %d: appended up to %d", most, last)
		}
		sub := subscribe(t, b, onewrite.Interest{})
		if got := read(t, sub, 1000); len(got) != 1000 || got[999].Offset != 1000 {
			t.Fatalf("max_event %d: read %d", most, len(got))
		}
		_ = sub.Close()
	}
}

// TestHeld: a reader keeps no more than about a pack, though small events fit by the ten
// thousand into what is fetched at once.
func TestHeld(t *testing.T) {
	c := nats.Config{Dir: t.TempDir()}
	nats.StoreOnly(&c)
	b := open(t, c)
	prev, all := onewrite.Pos(""), 0
	for _, n := range []int{1000, 1000, 1000, 1000, 1000, 1, 1, 1, 1000, 1000, 1000, 1000, 1000} {
		x := batch(all+1, n)
		appendAll(t, b, prev, x)
		prev, all = x.Pos, all+n
	}
	sub := subscribe(t, b, onewrite.Interest{})
	defer sub.Close()
	for at := 0; at < all; {
		for _, m := range read(t, sub, 1) {
			if at++; m.Offset != uint64(at) {
				t.Fatalf("event %d is at %d", at, m.Offset)
			}
		}
		if n := nats.Held(sub); n > onewrite.MaxBatch {
			t.Fatalf("after %d it holds %d events", at, n)
		}
	}
}
