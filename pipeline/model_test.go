package pipeline_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/onewrite/onewrite"
)

// errInjected is what a fault returns.
var errInjected = errors.New("injected fault")

// fault is asked before and after each effect of the model world; a non-nil
// error makes the call fail there.
type fault func(where string) error

func (f fault) at(where string) error {
	if f == nil {
		return nil
	}
	return f(where)
}

// memBus is a model of a bus: it keeps every law of onewrite.Bus in memory, and
// its state survives the processes that use it.
type memBus struct {
	mu      sync.Mutex
	changed chan struct{}
	fault   fault
	lease   time.Duration
	logs    map[string]*memLog
	cursors map[string]*memCursor
	parked  map[string][]onewrite.Parked
	ref     uint64
}

type memLog struct {
	pos    onewrite.Pos
	events []onewrite.Event // offset i+1
}

type memCursor struct {
	cursor   onewrite.Cursor
	epoch    uint64
	owner    *memSub
	renewed  time.Time
	released bool
}

func newMemBus() *memBus {
	return &memBus{changed: make(chan struct{}), logs: map[string]*memLog{}, cursors: map[string]*memCursor{}, parked: map[string][]onewrite.Parked{}}
}

func (b *memBus) log(name string) *memLog {
	if b.logs[name] == nil {
		b.logs[name] = &memLog{}
	}
	return b.logs[name]
}

func (b *memBus) Position(_ context.Context, source string) (onewrite.Pos, uint64, error) {
	if err := b.fault.at("position"); err != nil {
		return "", 0, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	l := b.log(source)
	return l.pos, uint64(len(l.events)), nil
}

func (b *memBus) Append(_ context.Context, source string, prev onewrite.Pos, batch onewrite.Batch) (uint64, error) {
	if err := b.fault.at("append.before"); err != nil {
		return 0, err
	}
	b.mu.Lock()
	l := b.log(source)
	if l.pos != prev {
		b.mu.Unlock()
		return 0, onewrite.ErrFenced
	}
	l.events = append(l.events, batch.Events...)
	l.pos = batch.Pos
	last := uint64(len(l.events))
	close(b.changed)
	b.changed = make(chan struct{})
	b.mu.Unlock()
	return last, b.fault.at("append.after")
}

func (b *memBus) Subscribe(_ context.Context, in onewrite.Interest) (onewrite.Subscription, error) {
	if err := b.fault.at("subscribe"); err != nil {
		return nil, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	c := b.cursors[in.Name]
	if c == nil {
		c = &memCursor{cursor: onewrite.Cursor{Logs: map[string]onewrite.LogCursor{}}, released: true}
		b.cursors[in.Name] = c
	}
	if b.lease > 0 && !c.released && time.Since(c.renewed) < b.lease {
		return nil, onewrite.ErrStandby
	}
	s := &memSub{b: b, in: in, next: map[string]uint64{}, upto: map[string]uint64{}}
	c.epoch++
	c.owner, c.renewed, c.released = s, time.Now(), false
	s.cursor, s.epoch = c.cursor, c.epoch
	for name, lc := range c.cursor.Logs {
		s.next[name] = lc.Floor + 1
	}
	return s, nil
}

type memSub struct {
	b      *memBus
	in     onewrite.Interest
	cursor onewrite.Cursor
	epoch  uint64
	next   map[string]uint64
	upto   map[string]uint64
}

func (s *memSub) Cursor() (onewrite.Cursor, uint64) { return s.cursor, s.epoch }
func (s *memSub) Lease() time.Duration              { return s.b.lease }

func (s *memSub) wants(topic string) bool {
	return len(s.in.Topics) == 0 || slices.Contains(s.in.Topics, topic)
}

func (s *memSub) Read(ctx context.Context) ([]onewrite.Message, map[string]uint64, error) {
	for {
		if err := s.b.fault.at("read"); err != nil {
			return nil, nil, err
		}
		s.b.mu.Lock()
		var msgs []onewrite.Message
		upto := map[string]uint64{}
		for _, name := range s.in.Sources {
			l := s.b.log(name)
			done := s.cursor.Logs[name].Done
			for o := max(s.next[name], 1); o <= uint64(len(l.events)) && len(msgs) < 100; o++ {
				s.next[name] = o + 1
				inDone := slices.ContainsFunc(done, func(sp onewrite.Span) bool { return sp.From <= o && o <= sp.To })
				if e := l.events[o-1]; s.wants(e.Topic) && !inDone {
					msgs = append(msgs, onewrite.Message{Event: e, Log: name, Offset: o})
				}
			}
			if u := s.next[name]; u > 1 && s.upto[name] != u-1 {
				s.upto[name], upto[name] = u-1, u-1
			}
		}
		changed := s.b.changed
		s.b.mu.Unlock()
		if len(msgs) > 0 || len(upto) > 0 {
			return msgs, upto, nil
		}
		select {
		case <-ctx.Done():
			return nil, nil, ctx.Err()
		case <-changed:
		}
	}
}

func (s *memSub) Pending(_ context.Context, at map[string]onewrite.LogCursor) (uint64, error) {
	s.b.mu.Lock()
	defer s.b.mu.Unlock()
	var n uint64
	for _, name := range s.in.Sources {
		l, c := s.b.log(name), at[name]
		for o := c.Floor + 1; o <= uint64(len(l.events)); o++ {
			inDone := slices.ContainsFunc(c.Done, func(sp onewrite.Span) bool { return sp.From <= o && o <= sp.To })
			if s.wants(l.events[o-1].Topic) && !inDone {
				n++
			}
		}
	}
	return n, nil
}

func (s *memSub) Commit(_ context.Context, c onewrite.Cursor) error {
	if err := s.b.fault.at("commit.before"); err != nil {
		return err
	}
	s.b.mu.Lock()
	own := s.b.cursors[s.in.Name]
	if own.owner != s {
		s.b.mu.Unlock()
		return onewrite.ErrFenced
	}
	own.cursor, own.renewed = c, time.Now()
	s.b.mu.Unlock()
	return s.b.fault.at("commit.after")
}

func (s *memSub) Park(_ context.Context, p onewrite.Parked) (uint64, error) {
	if err := s.b.fault.at("park.before"); err != nil {
		return 0, err
	}
	s.b.mu.Lock()
	for _, q := range s.b.parked[s.in.Name] {
		if q.Message.Log == p.Message.Log && q.Message.Offset == p.Message.Offset {
			s.b.mu.Unlock()
			return q.Ref, nil
		}
	}
	s.b.ref++
	p.Ref = s.b.ref
	s.b.parked[s.in.Name] = append(s.b.parked[s.in.Name], p)
	s.b.mu.Unlock()
	return p.Ref, s.b.fault.at("park.after")
}

// parkedNow is how many events of a destination are parked.
func (b *memBus) parkedNow(name string) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.parked[name])
}

func (s *memSub) Parked(_ context.Context, after uint64, limit int, lane *onewrite.Lane) ([]onewrite.Parked, error) {
	s.b.mu.Lock()
	defer s.b.mu.Unlock()
	var out []onewrite.Parked
	for _, p := range s.b.parked[s.in.Name] {
		if p.Ref > after && (lane == nil || *lane == onewrite.Lane{Log: p.Message.Log, Key: p.Message.Key}) && len(out) < limit {
			out = append(out, p)
		}
	}
	return out, nil
}

func (s *memSub) Unpark(_ context.Context, refs ...uint64) error {
	if err := s.b.fault.at("unpark.before"); err != nil {
		return err
	}
	s.b.mu.Lock()
	s.b.parked[s.in.Name] = slices.DeleteFunc(s.b.parked[s.in.Name], func(p onewrite.Parked) bool { return slices.Contains(refs, p.Ref) })
	s.b.mu.Unlock()
	return s.b.fault.at("unpark.after")
}

func (s *memSub) Close() error {
	s.b.mu.Lock()
	defer s.b.mu.Unlock()
	if c := s.b.cursors[s.in.Name]; c.owner == s {
		c.released = true
	}
	return nil
}

// memSource is a model of a database: a list of committed events; its position
// is the number of events before it.
type memSource struct {
	mu      sync.Mutex
	name    string
	changed chan struct{}
	fault   fault
	events  []onewrite.Event
	acked   int
	chunk   int
	reader  *memReader // the one that holds the lock
}

func newMemSource(name string) *memSource {
	return &memSource{name: name, changed: make(chan struct{}), chunk: 7}
}

// commit adds events as one transaction.
func (s *memSource) commit(events ...onewrite.Event) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range events {
		e.Source, e.Time = s.name, time.Now()
		e.Seq = fmt.Sprintf("%020d", len(s.events)+1)
		s.events = append(s.events, e)
	}
	close(s.changed)
	s.changed = make(chan struct{})
}

func (s *memSource) open(_ context.Context, pos onewrite.Pos) (onewrite.Source, error) {
	if err := s.fault.at("open"); err != nil {
		return nil, err
	}
	n := 0
	if pos != "" {
		var err error
		if n, err = strconv.Atoi(string(pos)); err != nil {
			return nil, err
		}
	}
	r := &memReader{s: s, next: n}
	s.mu.Lock()
	s.reader = r
	s.mu.Unlock()
	return r, nil
}

type memReader struct {
	s    *memSource
	next int
}

func (r *memReader) Read(ctx context.Context) (onewrite.Batch, error) {
	for {
		if err := r.s.fault.at("source.read"); err != nil {
			return onewrite.Batch{}, err
		}
		r.s.mu.Lock()
		from, to := r.next, min(len(r.s.events), r.next+r.s.chunk)
		events := slices.Clone(r.s.events[from:to])
		changed := r.s.changed
		r.s.mu.Unlock()
		if len(events) > 0 {
			r.next = to
			return onewrite.Batch{Events: events, Pos: onewrite.Pos(strconv.Itoa(to)),
				PosAt: func(i int) onewrite.Pos { return onewrite.Pos(strconv.Itoa(from + i + 1)) }}, nil
		}
		select {
		case <-ctx.Done():
			return onewrite.Batch{}, ctx.Err()
		case <-changed:
		}
	}
}

func (r *memReader) Ack(_ context.Context, pos onewrite.Pos) error {
	n, err := strconv.Atoi(string(pos))
	if err != nil {
		return err
	}
	r.s.mu.Lock()
	r.s.acked = max(r.s.acked, n)
	r.s.mu.Unlock()
	return r.s.fault.at("ack")
}

func (r *memReader) Close() error { return nil }

// memSink is a model of a destination: it keeps what arrived, in order.
type memSink struct {
	mu      sync.Mutex
	arrived []onewrite.Event
	ids     map[string]bool
	before  func(e onewrite.Event) error // refuses before the effect
	after   func(e onewrite.Event) error // loses the answer after it
	delay   func() time.Duration
}

func (s *memSink) open(context.Context) (onewrite.Sink, error) { return s, nil }

func (s *memSink) Write(ctx context.Context, events []onewrite.Event) (int, error) {
	for i, e := range events {
		if s.delay != nil {
			select {
			case <-ctx.Done():
				return i, ctx.Err()
			case <-time.After(s.delay()):
			}
		}
		if s.before != nil {
			if err := s.before(e); err != nil {
				return i, err
			}
		}
		s.mu.Lock()
		s.arrived = append(s.arrived, e)
		if s.ids == nil {
			s.ids = map[string]bool{}
		}
		s.ids[e.ID] = true
		s.mu.Unlock()
		if s.after != nil {
			if err := s.after(e); err != nil {
				return i, err
			}
		}
	}
	return len(events), nil
}

func (s *memSink) Close() error { return nil }

func (s *memSink) seen() []onewrite.Event {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.arrived)
}

func (s *memSink) has(id string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ids[id]
}
