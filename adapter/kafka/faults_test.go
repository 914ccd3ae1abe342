package kafka_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/adapter/kafka"
	"github.com/onewrite/onewrite/internal/servers"
)

// reopen opens a sink, however long the broker is away; every failure has to be an
// outage.
func reopen(t *testing.T, f func(ctx context.Context) error) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for {
		err := f(t.Context())
		if err == nil {
			return
		}
		if steers(err) {
			t.Fatalf("open: %v", err)
		}
		if time.Now().After(deadline) {
			t.Fatalf("the broker does not come back: %v", err)
		}
		time.Sleep(20 * time.Millisecond) // what the pipeline waits at least
	}
}

// storm kills the broker and starts it again, rounds times, each when so many more
// events were written, until stop is called.
func storm(t *testing.T, k *servers.KafkaServer, written *atomic.Int64, rounds int) (done <-chan struct{}) {
	t.Helper()
	over := make(chan struct{})
	go func() {
		defer close(over)
		for i := range rounds {
			next := written.Load() + 2000
			for deadline := time.Now().Add(patience); written.Load() < next; time.Sleep(time.Millisecond) {
				if time.Now().After(deadline) {
					t.Errorf("round %d: nothing is written any more", i)
					return
				}
			}
			k.Kill(t)
			k.Restart(t)
		}
	}()
	return over
}

// TestFaults does to one broker what brokers suffer.
func TestFaults(t *testing.T) {
	k := servers.NewKafka(t)
	for _, f := range []struct {
		name string
		test func(t *testing.T, k *servers.KafkaServer)
	}{{"killed", killed}, {"killed, idempotent", killedIdempotent}, {"frozen", frozen}, {"away", away}} {
		t.Run(f.name, func(t *testing.T) { f.test(t, k) })
	}
}

// killed kills the broker while a writer is at work, and cuts the writer short as well: calls end at any moment. Who reads committed records gets every
// event once, in order.
func killed(t *testing.T, k *servers.KafkaServer) {
	c := kafka.Config{Brokers: []string{k.Addr()}, Destination: "killed", Partitions: 2}
	var s *kafka.Sink
	var at int // the next event, as the place says
	takeOver := func() {
		if s != nil {
			_ = s.Close()
		}
		reopen(t, func(ctx context.Context) (err error) {
			if s, err = kafka.New(ctx, c); err != nil {
				return err
			}
			p, err := s.Place(ctx)
			if err != nil {
				_ = s.Close()
				return err
			}
			at = 0
			if p != nil {
				at, err = strconv.Atoi(string(p))
			}
			return err
		})
	}
	takeOver()
	rng := rand.New(rand.NewPCG(3, 4))
	evs := events("killed", 60_000, keysOf(30)...)
	var written atomic.Int64
	over := storm(t, k, &written, 2)
	unknown, cut := 0, 0
	for running := true; running && at < len(evs); {
		select {
		case <-over:
			running = false
		default:
		}
		n := min(1+rng.IntN(200), len(evs)-at)
		ctx, cancel := context.WithCancel(t.Context())
		if rng.IntN(20) == 0 {
			cut++
			ctx, cancel = context.WithTimeout(t.Context(), time.Duration(rng.IntN(8))*time.Millisecond)
		}
		_, err := s.WriteAt(ctx, messages(evs[at:at+n]), []byte(strconv.Itoa(at+n)))
		cancel()
		switch {
		case err == nil:
			at += n
			written.Add(int64(n))
		case steers(err):
			t.Fatalf("WriteAt: %v", err)
		default:
			unknown++
			takeOver()
		}
	}
	<-over
	_ = s.Close()
	takeOver()
	_ = s.Close()
	t.Logf("%d events, %d calls without an answer, %d cut short", at, unknown, cut)
	if unknown < 2 || at < 4000 {
		t.Errorf("%d events and %d calls without an answer: nothing was tried", at, unknown)
	}
	got := decode(t, records(t, k, "killed"))
	if len(got) != at {
		t.Errorf("%d events are there, the place says %d", len(got), at)
	}
	inOrder(t, got, evs[:at], true)
}

// inOrder demands that all events arrived, first arrivals in the order of their key,
// and each once if so.
func inOrder(t *testing.T, got, want []onewrite.Event, once bool) {
	t.Helper()
	times, last := map[string]int{}, map[string]string{}
	for _, e := range got {
		if times[e.ID]++; times[e.ID] > 1 {
			if once {
				t.Errorf("event %s came %d times", e.ID, times[e.ID])
			}
			continue
		}
		if last[e.Key] > e.Seq {
			t.Errorf("key %s: %s came first after %s", e.Key, e.Seq, last[e.Key])
		}
		last[e.Key] = e.Seq
	}
	for _, e := range want {
		if times[e.ID] == 0 {
			t.Errorf("event %s is missing", e.ID)
		}
	}
}

// killedIdempotent: without transactions nothing is missing, and first
// arrivals are in order.
func killedIdempotent(t *testing.T, k *servers.KafkaServer) {
	c := kafka.Config{Brokers: []string{k.Addr()}, Destination: "killed-idempotent", Partitions: 2, Idempotent: true}
	var s *kafka.Idempotent
	again := func() {
		if s != nil {
			_ = s.Close()
		}
		reopen(t, func(ctx context.Context) (err error) { s, err = kafka.NewIdempotent(ctx, c); return err })
	}
	again()
	rng := rand.New(rand.NewPCG(5, 6))
	evs := events("killed-idempotent", 60_000, keysOf(30)...)
	var written atomic.Int64
	over := storm(t, k, &written, 2)
	at, failures := 0, 0
	for running := true; running && at < len(evs); {
		select {
		case <-over:
			running = false
		default:
		}
		n, err := s.Write(t.Context(), evs[at:min(at+1+rng.IntN(200), len(evs))])
		at += n
		written.Add(int64(n))
		if err != nil {
			if steers(err) {
				t.Fatalf("Write: %v", err)
			}
			failures++
			again()
		}
	}
	<-over
	_ = s.Close()
	t.Logf("%d events, %d failed writes", at, failures) // what is short, the client itself tries again
	if at < 4000 {
		t.Error("nothing was tried")
	}
	inOrder(t, decode(t, records(t, k, "killed-idempotent")), evs[:at], false)
}

// frozen: a sink that got no answer in time does not commit half of it later, and
// goes on.
func frozen(t *testing.T, k *servers.KafkaServer) {
	c := kafka.Config{Brokers: []string{k.Addr()}, Destination: "frozen"}
	evs := events("frozen", 20, "a")
	s := newSink(t, c)
	writeAt(t, s, evs[:10], "ten")
	thaw := k.Freeze(t)
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	_, err := s.WriteAt(ctx, messages(evs[10:]), []byte("twenty"))
	thaw()
	if err == nil || steers(err) || !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("WriteAt to a frozen broker: %v", err)
	}
	if _, err := s.WriteAt(t.Context(), messages(evs[10:]), []byte("twenty")); err != nil {
		t.Fatalf("WriteAt after it: %v", err) // nothing was committed, and the sink knows it
	}
	if got := decode(t, records(t, k, "frozen")); len(got) != 20 {
		t.Errorf("%d events, want 20", len(got))
	}
	if p := place(t, newSink(t, c)); string(p) != "twenty" {
		t.Errorf("place %q", p)
	}
}

// away: while nobody answers, calls end by themselves and say what the matter is.
func away(t *testing.T, k *servers.KafkaServer) {
	each(t, func(t *testing.T, open func(tb testing.TB, c kafka.Config) onewrite.Sink) {
		c := kafka.Config{Brokers: []string{k.Addr()}, Destination: unique("away")}
		s := open(t, c)
		evs := events("away", 5, "a")
		write(t, s, evs...)
		k.Kill(t)
		n, err := s.Write(context.WithoutCancel(t.Context()), evs)
		if n != 0 || err == nil || steers(err) {
			t.Errorf("Write = %d, %v", n, err)
		}
		t.Log(err)
		if _, err := kafka.New(context.WithoutCancel(t.Context()), c); err == nil || steers(err) {
			t.Errorf("New: %v", err)
		} else {
			t.Log(err)
		}
		k.Restart(t)
		write(t, open(t, c), evs...)
	})
}
