package customsink_test

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/onewrite/onewrite"
)

// store is the other system. It can be told to behave badly.
type store struct {
	listener net.Listener
	serving  sync.WaitGroup

	mu      sync.Mutex
	events  []onewrite.Event
	answers map[string]string // what is said to the event of an id instead of taking it
	down    bool
	hold    chan struct{} // not nil: answers are held back until it is closed
	conns   map[net.Conn]bool
}

func newStore() (*store, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	s := &store{listener: l, answers: map[string]string{}, conns: map[net.Conn]bool{}}
	s.serving.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			s.serving.Go(func() { s.serve(conn) })
		}
	})
	return s, nil
}

func (s *store) addr() string { return s.listener.Addr().String() }

func (s *store) close() {
	_ = s.listener.Close()
	s.goDown()
	s.serving.Wait()
}

func (s *store) set(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f()
}

// goDown hangs up, and on whoever comes.
func (s *store) goDown() {
	s.set(func() {
		s.down = true
		for conn := range s.conns {
			_ = conn.Close()
		}
	})
}

func (s *store) received() []onewrite.Event {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.events)
}

func (s *store) serve(conn net.Conn) {
	defer conn.Close()
	s.mu.Lock()
	down := s.down
	s.conns[conn] = true
	s.mu.Unlock()
	in := bufio.NewReader(conn)
	for !down {
		events, err := receive(in)
		if err != nil {
			break
		}
		answer, hold := s.take(events)
		if hold != nil {
			<-hold
		}
		if _, err := fmt.Fprintln(conn, answer); err != nil {
			break
		}
	}
	s.set(func() { delete(s.conns, conn) })
}

func receive(in *bufio.Reader) (events []onewrite.Event, err error) {
	head, err := in.ReadString('\n')
	if err != nil {
		return nil, err
	}
	n, err := strconv.Atoi(strings.TrimSpace(head))
	if err != nil || n < 1 {
		return nil, errors.New("no batch")
	}
	for range n {
		line, err := in.ReadBytes('\n')
		if err != nil {
			return nil, err
		}
		var e onewrite.Event
		if err := json.Unmarshal(line, &e); err != nil {
			return nil, err
		}
		events = append(events, e)
	}
	return events, nil
}

func (s *store) take(events []onewrite.Event) (answer string, hold chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, e := range events {
		if why := s.answers[e.ID]; why != "" {
			return fmt.Sprint(i, " ", why), s.hold
		}
		s.events = append(s.events, e)
	}
	return fmt.Sprint(len(events)), s.hold
}
