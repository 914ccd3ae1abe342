// Package customsink is a sink as somebody outside of this project would write it:
// for a store of events that is spoken to over TCP, and has this protocol.
//
// A request is a batch: a line with the number of events, then each event as a line
// of JSON. The store takes the events in order, up to one that it does not take,
// and answers with a line: how many are on its disk, and why no more are.
//
//	→ 3                                     → 2
//	→ {"ID":"e-1", …}                       → {"ID":"e-4", …}
//	→ {"ID":"e-2", …}                       → {"ID":"e-5", …}
//	→ {"ID":"e-3", …}
//	← 3                                     ← 1 refused no such customer
//
// Instead of "refused", which will never be otherwise, it may say "failed".
//
// That is the contract of [onewrite.Sink], so this sink is small. What is worth a
// look is how it ends: with the context, also while it waits for an answer, and
// without taking a late answer for that of the next request. It does not try again,
// and does not wait before it connects again: package pipeline does both.
//
// The test beside it holds the sink against onewritetest.TestSink; the example runs
// it with a pipeline.
package customsink

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/onewrite/onewrite"
)

// Sink delivers to one store. It has one connection, that the writers share.
type Sink struct {
	addr string
	turn chan struct{} // holds a token; who took it may use what is below
	conn net.Conn      // nil: connect first
	in   *bufio.Reader

	once   sync.Once
	closed chan struct{}
}

// New returns a sink for the store at addr. It connects when there is something to
// write.
func New(addr string) *Sink {
	s := &Sink{addr: addr, turn: make(chan struct{}, 1), closed: make(chan struct{})}
	s.turn <- struct{}{}
	return s
}

var errClosed = errors.New("customsink: the sink is closed")

// failedError is the store's answer that it failed on an event, which may be the
// event's fault or not: the pipeline finds out.
type failedError struct{ reason string }

func (e *failedError) Error() string { return "customsink: the store failed: " + e.reason }

// Answered says that the store was reached; see [onewrite.Sink].
func (e *failedError) Answered() bool { return true }

// Write writes events; see [onewrite.Sink].
func (s *Sink) Write(ctx context.Context, events []onewrite.Event) (int, error) {
	if len(events) == 0 {
		return 0, nil
	}
	select {
	case <-s.turn:
		defer func() { s.turn <- struct{}{} }()
	case <-s.closed:
		return 0, errClosed
	case <-ctx.Done():
		return 0, ctx.Err()
	}
	select {
	case <-s.closed:
		return 0, errClosed
	default:
	}
	answer, err := s.ask(ctx, events)
	if err != nil {
		// Whether the store has the events is unknown, and an answer may yet come: it
		// must find nobody.
		s.hangUp()
		return 0, fmt.Errorf("customsink: %s: %w", s.addr, err)
	}
	n, err := judge(answer, len(events))
	if err != nil && n < 0 {
		s.hangUp()
		return 0, err
	}
	return n, err
}

// ask sends a request and returns the answer to it.
func (s *Sink) ask(ctx context.Context, events []onewrite.Event) (string, error) {
	request := bytes.NewBufferString(strconv.Itoa(len(events)) + "\n")
	lines := json.NewEncoder(request)
	for i := range events {
		if err := lines.Encode(&events[i]); err != nil {
			return "", err
		}
	}
	if s.conn == nil {
		conn, err := new(net.Dialer).DialContext(ctx, "tcp", s.addr)
		if err != nil {
			return "", err
		}
		s.conn, s.in = conn, bufio.NewReader(conn)
	}
	conn := s.conn
	goOn := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	_, err := conn.Write(request.Bytes())
	var answer []byte
	if err == nil {
		answer, err = s.in.ReadSlice('\n') // no longer than its buffer
	}
	if !goOn() && err == nil { // the deadline is set, or about to be: the next request would meet it
		defer s.hangUp()
	}
	if err != nil {
		return "", errors.Join(ctx.Err(), err)
	}
	return string(answer), nil
}

// judge reads an answer to a request of so many events; n < 0 if it is none.
func judge(answer string, events int) (n int, err error) {
	count, why, _ := strings.Cut(strings.TrimSpace(answer), " ")
	verdict, reason, _ := strings.Cut(why, " ")
	n, err = strconv.Atoi(count)
	switch {
	case err == nil && n == events && why == "":
		return n, nil
	case err == nil && n >= 0 && n < events && verdict == "refused":
		return n, fmt.Errorf("customsink: %w: %s", onewrite.ErrRejected, reason)
	case err == nil && n >= 0 && n < events && verdict == "failed":
		return n, &failedError{reason}
	}
	return -1, fmt.Errorf("customsink: %q is no answer to %d events; is this the store?", answer, events)
}

func (s *Sink) hangUp() {
	if s.conn != nil {
		_ = s.conn.Close() // there is nothing left to lose
		s.conn, s.in = nil, nil
	}
}

// Close hangs up, after a Write that is under way. It may be called again.
func (s *Sink) Close() error {
	s.once.Do(func() {
		close(s.closed)
		<-s.turn
		s.hangUp()
		s.turn <- struct{}{}
	})
	return nil
}
