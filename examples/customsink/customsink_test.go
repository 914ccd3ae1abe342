package customsink_test

import (
	"bufio"
	"context"
	"errors"
	"net"
	"testing"
	"time"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/examples/customsink"
	"github.com/onewrite/onewrite/onewritetest"
)

func started(t *testing.T) *store {
	t.Helper()
	s, err := newStore()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.close)
	return s
}

func TestConformance(t *testing.T) {
	s := started(t)
	onewritetest.TestSink(t, onewritetest.SinkHarness{
		New:      func(*testing.T) onewrite.Sink { return customsink.New(s.addr()) },
		Received: func(*testing.T) []onewrite.Event { return s.received() },
		Refuse:   func(_ *testing.T, id string) { s.set(func() { s.answers[id] = "refused no such customer" }) },
		Break: func(*testing.T) func() {
			s.goDown()
			return func() { s.set(func() { s.down = false }) }
		},
		Stall: func(*testing.T) func() {
			hold := make(chan struct{})
			s.set(func() { s.hold = hold })
			return func() {
				close(hold)
				s.set(func() { s.hold = nil })
			}
		},
	})
}

// What the store says of an event tells the pipeline what to do with it.
func TestAnswers(t *testing.T) {
	s := started(t)
	sink := customsink.New(s.addr())
	defer sink.Close()
	events := []onewrite.Event{{ID: "e-1"}, {ID: "e-2"}, {ID: "e-3"}}
	for answer, want := range map[string]struct{ rejected, answered bool }{
		"refused no such customer": {true, false},
		"failed no disk":           {false, true},
	} {
		s.set(func() { s.answers["e-2"] = answer })
		n, err := sink.Write(t.Context(), events)
		var failed interface{ Answered() bool }
		if n != 1 || errors.Is(err, onewrite.ErrRejected) != want.rejected || errors.As(err, &failed) != want.answered {
			t.Errorf("%s: %d, %v", answer, n, err)
		}
	}
}

// Another server at the address is not taken for the store.
func TestNonsense(t *testing.T) {
	for _, answer := range []string{"220 smtp.example ready\n", "3 refused\n", "-1 refused x\n", "4\n", "2\n", string(make([]byte, 10_000))} {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = bufio.NewReader(conn).ReadString('\n')
			_, _ = conn.Write([]byte(answer))
			_ = conn.Close()
		}()
		sink := customsink.New(l.Addr().String())
		n, err := sink.Write(t.Context(), []onewrite.Event{{ID: "e-1"}, {ID: "e-2"}, {ID: "e-3"}})
		if n != 0 || err == nil || errors.Is(err, onewrite.ErrRejected) {
			t.Errorf("%.20q: %d, %v", answer, n, err)
		}
		_ = sink.Close()
		_ = l.Close()
	}
}

// One who waits for his turn goes when his context ends, or the sink.
func TestTurns(t *testing.T) {
	s := started(t)
	hold := make(chan struct{})
	s.set(func() { s.hold = hold })
	sink := customsink.New(s.addr())
	first := make(chan error)
	go func() {
		_, err := sink.Write(context.Background(), []onewrite.Event{{ID: "e-1"}})
		first <- err
	}()
	for len(s.received()) == 0 {
		time.Sleep(time.Millisecond)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := sink.Write(ctx, []onewrite.Event{{ID: "e-2"}}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a second Write: %v", err)
	}
	closed := make(chan error)
	go func() { closed <- sink.Close() }()
	for {
		_, err := sink.Write(ctx, []onewrite.Event{{ID: "e-3"}})
		if !errors.Is(err, context.DeadlineExceeded) {
			break // it is closing
		}
	}
	close(hold)
	if err := <-first; err != nil {
		t.Errorf("the Write that was under way: %v", err)
	}
	if err := <-closed; err != nil {
		t.Error(err)
	}
}
