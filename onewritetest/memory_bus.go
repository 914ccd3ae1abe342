package onewritetest

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/onewrite/onewrite"
)

// MemoryBus is a bus in memory. It keeps the contract of [onewrite.Bus] but for
// one thing: what it holds ends with the process, and it forgets nothing before.
// It is for fast tests, of sinks and of programs that embed the pipeline. The zero
// value is an empty bus; set the fields before the first use.
type MemoryBus struct {
	// Lease is how long a subscription that does not commit keeps its destination
	// from others; 0: whoever comes takes over at once.
	Lease time.Duration
	// Fault, if set, is asked before and after each effect, and an error makes the
	// call fail there: append, commit, park and unpark with ".before" or ".after"
	// behind them, and position, subscribe and read.
	Fault func(where string) error

	mu           sync.Mutex
	changed      chan struct{} // closed by the next append
	logs         map[string]*memoryLog
	destinations map[string]*memoryDestination
}

// memoryLog only grows: what was handed out once stays as it is.
type memoryLog struct {
	pos    onewrite.Pos
	events []onewrite.Event // the first has offset 1
	at     []time.Time      // when each was appended
}

// memoryDestination is what the bus remembers under a name.
type memoryDestination struct {
	cursor  onewrite.Cursor
	epoch   uint64
	owner   *memorySubscription // nil: nobody, or one who gave it up
	renewed time.Time
	parked  []onewrite.Parked
	ref     uint64
}

func (b *MemoryBus) fault(where string) error {
	if b.Fault == nil {
		return nil
	}
	return b.Fault(where)
}

// log returns a log; b.mu is held.
func (b *MemoryBus) log(source string) *memoryLog {
	if b.logs == nil {
		b.logs, b.destinations, b.changed = map[string]*memoryLog{}, map[string]*memoryDestination{}, make(chan struct{})
	}
	l := b.logs[source]
	if l == nil {
		l = &memoryLog{}
		b.logs[source] = l
	}
	return l
}

// destination returns what is remembered under a name; b.mu is held.
func (b *MemoryBus) destination(name string) *memoryDestination {
	b.log("")
	d := b.destinations[name]
	if d == nil {
		d = &memoryDestination{cursor: onewrite.Cursor{Logs: map[string]onewrite.LogCursor{}}}
		b.destinations[name] = d
	}
	return d
}

// Events returns the events of a log, the first of which has offset 1. They are
// the bus's own: leave them as they are.
func (b *MemoryBus) Events(source string) []onewrite.Event {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clip(b.log(source).events)
}

// Cursor returns what a destination committed last.
func (b *MemoryBus) Cursor(destination string) onewrite.Cursor {
	b.mu.Lock()
	defer b.mu.Unlock()
	return cloneCursor(b.destination(destination).cursor)
}

// Parked returns what is parked for a destination, oldest first.
func (b *MemoryBus) Parked(destination string) []onewrite.Parked {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.destination(destination).parked)
}

// Position implements [onewrite.Bus].
func (b *MemoryBus) Position(_ context.Context, source string) (onewrite.Pos, uint64, error) {
	if err := b.fault("position"); err != nil {
		return "", 0, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	l := b.log(source)
	return l.pos, uint64(len(l.events)), nil
}

// Append implements [onewrite.Bus].
func (b *MemoryBus) Append(_ context.Context, source string, prev onewrite.Pos, batch onewrite.Batch) (last uint64, err error) {
	if err := b.fault("append.before"); err != nil {
		return 0, err
	}
	if len(batch.Events) > onewrite.MaxBatch {
		return 0, fmt.Errorf("onewritetest: a batch of %d events, %d are allowed: %w", len(batch.Events), onewrite.MaxBatch, onewrite.ErrRejected)
	}
	for i := range batch.Events {
		if e := &batch.Events[i]; e.ID == "" || e.Source == "" || e.Type == "" {
			return 0, fmt.Errorf("onewritetest: event %d of the batch (id %q, source %q, type %q): CloudEvents needs all three: %w", i, e.ID, e.Source, e.Type, onewrite.ErrRejected)
		}
	}
	if last, err = b.append(source, prev, batch); err != nil {
		return 0, err
	}
	return last, b.fault("append.after")
}

func (b *MemoryBus) append(source string, prev onewrite.Pos, batch onewrite.Batch) (last uint64, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	l := b.log(source)
	if l.pos != prev {
		return 0, fmt.Errorf("onewritetest: source %s is at %q, not at %q: %w", source, l.pos, prev, onewrite.ErrFenced)
	}
	now := time.Now()
	for _, e := range batch.Events {
		l.events, l.at = append(l.events, cloneEvent(e)), append(l.at, now)
	}
	l.pos = batch.Pos
	close(b.changed)
	b.changed = make(chan struct{})
	return uint64(len(l.events)), nil
}

// Subscribe implements [onewrite.Bus].
func (b *MemoryBus) Subscribe(_ context.Context, in onewrite.Interest) (onewrite.Subscription, error) {
	if err := b.fault("subscribe"); err != nil {
		return nil, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	in.Sources, in.Topics = slices.Clone(in.Sources), slices.Clone(in.Topics)
	s := &memorySubscription{bus: b, in: in, next: map[string]uint64{}, told: map[string]uint64{}, gone: make(chan struct{})}
	if in.Name == "" {
		s.cursor.Logs = b.floors(in)
	} else if err := b.take(s); err != nil {
		return nil, err
	}
	for _, name := range in.Sources {
		s.next[name] = s.cursor.Logs[name].Floor + 1
		s.told[name] = s.cursor.Logs[name].Floor
	}
	return s, nil
}

// take makes s the owner of its destination; b.mu is held.
func (b *MemoryBus) take(s *memorySubscription) error {
	d := b.destination(s.in.Name)
	if b.Lease > 0 && d.owner != nil && time.Since(d.renewed) < b.Lease {
		return fmt.Errorf("onewritetest: destination %s: %w", s.in.Name, onewrite.ErrStandby)
	}
	if d.epoch == 0 {
		d.cursor.Logs = b.floors(s.in)
	}
	d.epoch++
	d.owner, d.renewed = s, time.Now()
	s.cursor, s.epoch = cloneCursor(d.cursor), d.epoch
	return nil
}

// floors is where a name never seen before begins; b.mu is held.
func (b *MemoryBus) floors(in onewrite.Interest) map[string]onewrite.LogCursor {
	floors := map[string]onewrite.LogCursor{}
	for _, name := range in.Sources {
		l := b.log(name)
		n := 0
		switch {
		case in.From.Now:
			n = len(l.events)
		case !in.From.Time.IsZero():
			n, _ = slices.BinarySearchFunc(l.at, in.From.Time, time.Time.Compare)
		}
		if n > 0 {
			floors[name] = onewrite.LogCursor{Floor: uint64(n)}
		}
	}
	return floors
}

// memorySubscription is one destination's place on a [MemoryBus].
type memorySubscription struct {
	bus    *MemoryBus
	in     onewrite.Interest
	cursor onewrite.Cursor // as it was found
	epoch  uint64
	next   map[string]uint64 // of the goroutine that reads: the offset to look at next
	told   map[string]uint64 // what Read reported as passed

	once sync.Once
	gone chan struct{} // closed by Close
}

// atOnce bounds what one Read hands out.
const atOnce = 256

var (
	errSubscriptionClosed = errors.New("onewritetest: the subscription is closed")
	errOnlooker           = errors.New("onewritetest: an onlooker has no place on the bus; subscribe with a name")
)

func (s *memorySubscription) Cursor() (onewrite.Cursor, uint64) {
	return cloneCursor(s.cursor), s.epoch
}

func (s *memorySubscription) Lease() time.Duration {
	if s.in.Name == "" {
		return 0
	}
	return s.bus.Lease
}

func (s *memorySubscription) wants(e *onewrite.Event) bool {
	return len(s.in.Topics) == 0 || slices.ContainsFunc(s.in.Topics, func(p string) bool { return matches(p, e.Topic) })
}

func (s *memorySubscription) Read(ctx context.Context) ([]onewrite.Message, map[string]uint64, error) {
	for {
		if err := errors.Join(ctx.Err(), s.bus.fault("read")); err != nil {
			return nil, nil, err
		}
		msgs, upto, changed := s.take()
		if len(msgs) > 0 || len(upto) > 0 {
			return msgs, upto, nil
		}
		select {
		case <-ctx.Done():
		case <-s.gone:
			return nil, nil, errSubscriptionClosed
		case <-changed:
		}
	}
}

// take hands out what is there. changed is closed when there is more.
func (s *memorySubscription) take() (msgs []onewrite.Message, upto map[string]uint64, changed <-chan struct{}) {
	s.bus.mu.Lock()
	defer s.bus.mu.Unlock()
	upto = map[string]uint64{}
	for _, name := range s.in.Sources {
		events := s.bus.log(name).events
		for ; s.next[name] <= uint64(len(events)) && len(msgs) < atOnce; s.next[name]++ {
			o := s.next[name]
			if e := &events[o-1]; s.wants(e) && !isDone(s.cursor.Logs[name], o) {
				msgs = append(msgs, onewrite.Message{Event: cloneEvent(*e), Log: name, Offset: o})
			}
		}
		if passed := s.next[name] - 1; passed > s.told[name] {
			s.told[name], upto[name] = passed, passed
		}
	}
	return msgs, upto, s.bus.changed
}

func (s *memorySubscription) Pending(_ context.Context, at map[string]onewrite.LogCursor) (n uint64, err error) {
	s.bus.mu.Lock()
	defer s.bus.mu.Unlock()
	for _, name := range s.in.Sources {
		events := s.bus.log(name).events
		for o := at[name].Floor + 1; o <= uint64(len(events)); o++ {
			if s.wants(&events[o-1]) && !isDone(at[name], o) {
				n++
			}
		}
	}
	return n, nil
}

// change makes an effect on what is remembered of the destination, for its owner.
func (s *memorySubscription) change(what string, effect func(*memoryDestination)) error {
	if s.in.Name == "" {
		return errOnlooker
	}
	if err := s.bus.fault(what + ".before"); err != nil {
		return err
	}
	s.bus.mu.Lock()
	d, err := s.bus.destination(s.in.Name), error(nil)
	if d.owner == s {
		effect(d)
	} else {
		err = fmt.Errorf("onewritetest: destination %s: %w", s.in.Name, onewrite.ErrFenced)
	}
	s.bus.mu.Unlock()
	if err != nil {
		return err
	}
	return s.bus.fault(what + ".after")
}

func (s *memorySubscription) Commit(_ context.Context, c onewrite.Cursor) error {
	return s.change("commit", func(d *memoryDestination) { d.cursor, d.renewed = cloneCursor(c), time.Now() })
}

func (s *memorySubscription) Park(_ context.Context, p onewrite.Parked) (ref uint64, err error) {
	err = s.change("park", func(d *memoryDestination) {
		for _, q := range d.parked {
			if q.Message.Log == p.Message.Log && q.Message.Offset == p.Message.Offset {
				ref = q.Ref
				return
			}
		}
		d.ref++
		ref, p.Ref, p.Message.Event = d.ref, d.ref, cloneEvent(p.Message.Event)
		d.parked = append(d.parked, p)
	})
	if err != nil {
		return 0, err
	}
	return ref, nil
}

func (s *memorySubscription) Parked(_ context.Context, after uint64, limit int, lane *onewrite.Lane) (list []onewrite.Parked, err error) {
	if s.in.Name == "" {
		return nil, errOnlooker
	}
	s.bus.mu.Lock()
	defer s.bus.mu.Unlock()
	for _, p := range s.bus.destination(s.in.Name).parked {
		here := onewrite.Lane{Log: p.Message.Log, Key: p.Message.Key}
		if p.Ref > after && len(list) < limit && (lane == nil || here.Key != "" && here == *lane) {
			p.Message.Event = cloneEvent(p.Message.Event)
			list = append(list, p)
		}
	}
	return list, nil
}

func (s *memorySubscription) Unpark(_ context.Context, refs ...uint64) error {
	return s.change("unpark", func(d *memoryDestination) {
		d.parked = slices.DeleteFunc(d.parked, func(p onewrite.Parked) bool { return slices.Contains(refs, p.Ref) })
	})
}

func (s *memorySubscription) Close() error {
	s.once.Do(func() {
		close(s.gone)
		s.bus.mu.Lock()
		defer s.bus.mu.Unlock()
		if d := s.bus.destination(s.in.Name); d.owner == s {
			d.owner = nil
		}
	})
	return nil
}

// matches reports whether a topic matches a NATS pattern.
func matches(pattern, topic string) bool {
	words := strings.Split(topic, ".")
	for i, p := range strings.Split(pattern, ".") {
		switch {
		case i == len(words):
			return false
		case p == ">":
			return true
		case p != "*" && p != words[i]:
			return false
		}
	}
	return strings.Count(pattern, ".") == len(words)-1
}

func isDone(c onewrite.LogCursor, offset uint64) bool {
	return slices.ContainsFunc(c.Done, func(s onewrite.Span) bool { return s.From <= offset && offset <= s.To })
}

func cloneCursor(c onewrite.Cursor) onewrite.Cursor {
	logs := make(map[string]onewrite.LogCursor, len(c.Logs))
	for name, lc := range c.Logs {
		lc.Done = slices.Clone(lc.Done)
		logs[name] = lc
	}
	c.Logs, c.Settled, c.Ahead = logs, slices.Clone(c.Settled), slices.Clone(c.Ahead)
	return c
}

func cloneEvent(e onewrite.Event) onewrite.Event {
	e.Data, e.Header = slices.Clone(e.Data), maps.Clone(e.Header)
	return e
}
