package nats

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	natsgo "github.com/nats-io/nats.go"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/internal/cloudevents"
)

// raise moves a log's tail up and wakes the readers.
func (b *Bus) raise(l *logState, offset uint64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	l.looked = time.Now()
	if offset <= l.tail {
		return
	}
	l.tail = offset
	for w := range b.watchers {
		select {
		case w <- struct{}{}:
		default:
		}
	}
}

// known returns the newest event of a log that is known of.
func (b *Bus) known(l *logState) uint64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return l.tail
}

// notePacked notes that the offsets of a log are not sequences; before its tail is raised.
func (b *Bus) notePacked(l *logState) {
	b.mu.Lock()
	l.packed = true
	b.mu.Unlock()
}

// watch registers a channel that is poked when a tail moves.
func (b *Bus) watch(w chan struct{}) {
	b.mu.Lock()
	b.watchers[w] = struct{}{}
	b.mu.Unlock()
}

func (b *Bus) unwatch(w chan struct{}) {
	b.mu.Lock()
	delete(b.watchers, w)
	b.mu.Unlock()
}

// tail returns up to where a log may be read. On an external bus other copies
// write too: they send a wake after each append, and once a second without one
// the leader is asked.
func (b *Bus) tail(ctx context.Context, l *logState) (uint64, error) {
	b.mu.Lock()
	tail, looked := l.tail, l.looked
	b.mu.Unlock()
	if b.emb != nil || time.Since(looked) < time.Second {
		return tail, nil
	}
	return b.learnTail(ctx, l)
}

// learnTail asks the leader for the newest message. One without a position is
// inside a batch that is being stored: the tail is before it.
func (b *Bus) learnTail(ctx context.Context, l *logState) (uint64, error) {
	m, err := b.newest(ctx, l.source)
	if err != nil {
		return 0, err
	}
	last := uint64(0)
	if m != nil && m.whole {
		last = m.last
	}
	b.raise(l, last)
	b.mu.Lock()
	defer b.mu.Unlock()
	return l.tail, nil
}

// newest is the newest message of a log.
type newest struct {
	seq   uint64
	last  uint64 // offset of its last event
	pos   onewrite.Pos
	whole bool // it carries a position; else it is inside a batch, or not ours
	batch bool // it is inside a batch
}

// newest asks the leader; nil means that the log holds nothing.
func (b *Bus) newest(ctx context.Context, source string) (*newest, error) {
	m, err := b.link.get(ctx, b.stream(source), query{LastFor: b.subjects(source) + ">"})
	if err != nil {
		return nil, fmt.Errorf("nats: newest event of source %s: %w", source, err)
	}
	if m == nil {
		return nil, nil
	}
	h, err := m.header()
	if err != nil {
		return nil, fmt.Errorf("nats: newest event of source %s: %w", source, err)
	}
	at, count, err := place(h, m.Seq)
	if err != nil {
		return nil, fmt.Errorf("nats: newest event of source %s: %w", source, err)
	}
	n := &newest{seq: m.Seq, last: at + uint64(count) - 1, batch: first(h, "Nats-Batch-Id") != ""}
	if n.last > n.seq {
		b.notePacked(b.logOf(source))
	}
	if v, ok := h[hdrPos]; ok && len(v) > 0 {
		n.pos, n.whole = onewrite.Pos(cloudevents.Unescape(v[0])), true
	}
	return n, nil
}

// A wake tells other copies how far a log has grown; losing one costs a second.

func (b *Bus) wakeSubject(source string) string { return b.cfg.Name + "-wake." + source }

func (b *Bus) sendWake(nc *natsgo.Conn, source string, seq uint64) {
	if b.emb == nil {
		_ = nc.Publish(b.wakeSubject(source), strconv.AppendUint(nil, seq, 10))
	}
}

// listenForWakes is called with each new connection.
func (b *Bus) listenForWakes(nc *natsgo.Conn) error {
	_, err := nc.Subscribe(b.wakeSubject("*"), func(m *natsgo.Msg) {
		source := m.Subject[strings.LastIndexByte(m.Subject, '.')+1:]
		seq, err := strconv.ParseUint(string(m.Data), 10, 64)
		if err != nil || b.checkSource(source) != nil {
			return
		}
		b.mu.Lock()
		l := b.logs[source]
		b.mu.Unlock()
		if l != nil {
			b.raise(l, seq)
		}
	})
	return err
}

// measure notes how much a log holds.
func (b *Bus) measure(l *logState, bytes uint64) {
	b.mu.Lock()
	l.bytes = int64(bytes)
	b.mu.Unlock()
}

// recentLimit is the share of one log in the memory for recent events.
func (b *Bus) recentLimit() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.cfg.recent / max(1, len(b.logs))
}

// grow adds n bytes to a log if all logs together have the room.
func (b *Bus) grow(l *logState, n int64) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	sum := n
	for _, o := range b.logs {
		sum += o.bytes
	}
	if sum > b.cfg.MaxBytes {
		return false
	}
	l.bytes += n
	return true
}

// remeasure asks how much each log holds now.
func (b *Bus) remeasure(ctx context.Context) error {
	js, err := b.link.jetStream()
	if err != nil {
		return err
	}
	names, err := b.sources(ctx)
	if err != nil {
		return err
	}
	for _, source := range names {
		s, err := js.Stream(ctx, b.stream(source))
		if err != nil {
			return fmt.Errorf("nats: size of source %s: %w", source, err)
		}
		b.measure(b.logOf(source), s.CachedInfo().State.Bytes)
	}
	return nil
}
