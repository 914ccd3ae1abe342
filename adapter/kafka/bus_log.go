package kafka

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/internal/places"
)

// busLog is what the bus knows of one source's log.
type busLog struct {
	source, topic string

	// writing is held by the one append at a time. It guards the fields below.
	writing gate
	known   bool         // end, last and pos are what the log holds
	end     int64        // of the topic, where the next append is to lie
	last    uint64       // offset on the bus of the newest event
	sum     uint64       // of its mark
	pos     onewrite.Pos // that it carries
	cl      *kgo.Client  // nil: none, or one that gave up
	enc     encoder

	mu     sync.Mutex
	tail   uint64 // the newest event known to be durable
	looked int64  // the end of the topic when the tail was learned
	bytes  int64  // of the events that the log holds, by the last look and what was added since
}

// checkSource refuses names that no log can have.
func checkSource(source string) error {
	if !validName(source) {
		return fmt.Errorf("kafka: source name %q: use letters, digits, _ and - only", source)
	}
	return nil
}

// logOf returns the state of a source's log, made when first asked for.
func (b *Bus) logOf(source string) *busLog {
	b.mu.Lock()
	defer b.mu.Unlock()
	l := b.logs[source]
	if l == nil {
		l = &busLog{writing: make(gate, 1), source: source, topic: b.logTopic(source)}
		b.logs[source] = l
	}
	return l
}

// drop ends the client that appends.
func (l *busLog) drop() {
	if l.cl != nil {
		l.cl.Close()
		l.cl = nil
	}
}

// raise notes what is durable, and how much was added.
func (l *busLog) raise(last uint64, bytes int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.tail = max(l.tail, last)
	l.bytes += bytes
}

// Position returns where source is on the bus and the offset of its newest event.
func (b *Bus) Position(ctx context.Context, source string) (onewrite.Pos, uint64, error) {
	if err := checkSource(source); err != nil {
		return "", 0, err
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	l := b.logOf(source)
	if err := l.writing.enter(ctx); err != nil {
		return "", 0, b.worded(err, "position of source "+source, l.topic)
	}
	defer l.writing.leave()
	if err := b.locate(ctx, l); err != nil {
		return "", 0, err
	}
	return l.pos, l.last, nil
}

// tailReaches are how many records before the end are read to find the newest event: a
// batch of its own first, what stale writers may have left behind it then.
var tailReaches = []int64{onewrite.MaxBatch + 50, 10 * onewrite.MaxBatch}

// locate reads end, last and pos from the topic, which is made if it is missing;
// l.writing is held.
func (b *Bus) locate(ctx context.Context, l *busLog) error {
	l.known = false
	if err := b.ensure(ctx, l.topic); err != nil {
		return err
	}
	seen, unseen := b.seen(ctx, l.source) // before the log: what was seen is there
	start, end, err := b.bounds(ctx, l.topic)
	if err != nil {
		return err
	}
	newest, found, err := b.newest(ctx, l, start, end)
	if err != nil {
		return err
	}
	if unseen != nil {
		if !found {
			return unseen
		}
		b.log.Warn("it is not known what destinations have seen; the source goes on behind the newest event", "source", l.source, "error", unseen)
	}
	l.end, l.last, l.pos, l.sum = end, newest.seq, newest.pos, newest.sum
	if !found && start > 0 {
		return fmt.Errorf("kafka: topic %s was emptied from outside, the position of source %s is gone with its newest event; to read the source again from where its outbox begins: kafka-topics.sh --delete --topic %s", l.topic, l.source, l.topic)
	}
	l.raise(l.last, 0)
	// A log that was lost, or its end, goes on behind every offset that a destination has
	// seen, so that its place skips nothing.
	if found && seen > l.last {
		b.log.Error("the log of a source has lost its end, which was acknowledged", "source", l.source, "topic", l.topic, "from", l.last+1, "to", seen,
			"cure", "let nobody lead who has not got all: unclean.leader.election.enable=false, min.insync.replicas=2")
	}
	l.last, l.known = max(l.last, seen), true
	return nil
}

// newestEvent is the last event of a log that counts.
type newestEvent struct {
	seq uint64
	at  int64  // its offset in the topic
	sum uint64 // of its mark
	pos onewrite.Pos
}

func (b *Bus) newest(ctx context.Context, l *busLog, start, end int64) (n newestEvent, found bool, err error) {
	for _, reach := range append(tailReaches, end-start) {
		from := max(start, end-reach)
		var u unfold // an append that it cuts is not the newest, or read whole the next time
		err = b.scan(ctx, l.topic, from, end, func(r *kgo.Record) error {
			whole, m, _ := u.take(r)
			for _, r := range whole {
				if pos, has := posOf(r); has {
					n, found = newestEvent{m.seq, m.at, m.sum, pos}, true
				}
			}
			return nil
		})
		if err != nil {
			return n, false, err
		}
		if found || from == start {
			return n, found, nil
		}
	}
	return n, found, nil
}

// seen returns the greatest offset of a log that a destination knows of.
func (b *Bus) seen(ctx context.Context, source string) (uint64, error) {
	all, err := b.records(ctx)
	if err != nil {
		return 0, err
	}
	l := b.logOf(source)
	l.mu.Lock()
	seen := l.tail
	l.mu.Unlock()
	for _, r := range all {
		seen = max(seen, places.Seen(r.Cursor.Logs[source]))
	}
	return seen, nil
}

// Append stores a batch behind prev; see [onewrite.Bus].
func (b *Bus) Append(ctx context.Context, source string, prev onewrite.Pos, batch onewrite.Batch) (uint64, error) {
	if err := checkSource(source); err != nil {
		return 0, err
	}
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	l := b.logOf(source)
	if err := l.writing.enter(ctx); err != nil {
		return 0, b.worded(err, "append for source "+source, l.topic)
	}
	defer l.writing.leave()
	if !l.known {
		if err := b.locate(ctx, l); err != nil {
			return 0, err
		}
	}
	if l.pos != prev {
		l.known = false // another copy may have written: look again next time
		return 0, fmt.Errorf("kafka: append for source %s: its position on the bus is another one: %w", source, onewrite.ErrFenced)
	}
	if len(batch.Events) == 0 {
		return l.last, nil
	}
	enc := l.enc.lend()
	recs, bytes, err := b.prepare(l, &enc, &batch)
	if err != nil {
		return 0, err
	}
	if err := b.room(ctx, bytes); err != nil {
		return 0, err
	}
	if err := b.put(ctx, l, recs); err != nil {
		return 0, err
	}
	l.enc.back(enc)
	l.end += int64(len(recs))
	l.last += uint64(len(recs))
	l.sum += uint64(bytes)
	l.pos, l.known = batch.Pos, true
	l.raise(l.last, bytes)
	l.mu.Lock()
	l.looked = l.end
	l.mu.Unlock()
	return l.last, nil
}

// prepare makes the records of a batch and refuses what cannot be stored.
func (b *Bus) prepare(l *busLog, enc *encoder, batch *onewrite.Batch) (recs []*kgo.Record, bytes int64, err error) {
	n := len(batch.Events)
	if n > onewrite.MaxBatch {
		return nil, 0, fmt.Errorf("kafka: a batch of %d events, the bus takes %d: %w", n, onewrite.MaxBatch, onewrite.ErrRejected)
	}
	limit := int(b.limit(l.topic))
	recs = make([]*kgo.Record, n)
	m := newMark(l.end, n)
	m.seq = l.last + 1
	for i := range batch.Events {
		e := &batch.Events[i]
		if e.ID == "" || e.Source == "" || e.Type == "" { // no reader could make an event of it again
			return nil, 0, fmt.Errorf("kafka: event %d of the batch (id %q, source %q, type %q): CloudEvents needs all three: %w", i, e.ID, e.Source, e.Type, onewrite.ErrRejected)
		}
		pos := &batch.Pos
		if i < n-1 {
			pos = nil
		}
		var value [maxMark]byte
		recs[i] = eventRecord(enc, l.topic, e, kgo.RecordHeader{Key: markHeader}, pos)
		size := sizeOf(recs[i]) + len(m.append(value[:0], i))
		if size+batchOverhead > limit {
			return nil, 0, fmt.Errorf("kafka: event %s of topic %s needs %d bytes, the bus takes %d: %w; raise it: kafka-configs.sh --alter --entity-type topics --entity-name %s --add-config max.message.bytes=%d, and restart",
				e.ID, e.Topic, size, limit, onewrite.ErrRejected, l.topic, size+1<<20)
		}
		bytes += int64(size)
		m.sum = l.sum + uint64(bytes)
		recs[i].Headers[0].Value = copied(enc, m.append(value[:0], i))
	}
	return recs, bytes, nil
}

// put sends records and sees whether they lie where they were to lie; l.writing is held.
func (b *Bus) put(ctx context.Context, l *busLog, recs []*kgo.Record) error {
	l.known = false // until the answer is there
	if b.closed.Load() {
		return errors.New("kafka: the bus is closed")
	}
	if l.cl == nil {
		cl, err := b.producer(true)
		if err != nil {
			return err
		}
		l.cl = cl
	}
	errs, err := send(ctx, l.cl, recs)
	if i := failed(errs); err == nil && i >= 0 {
		err = errs[i]
	}
	if err != nil { // what is under way may be stored yet; a new client sends nothing of it
		b.gone(l.topic, err)
		l.drop()
		return b.worded(b.heard.with(err), "append", l.topic)
	}
	for i, r := range recs {
		if r.Offset != l.end+int64(i) {
			return fmt.Errorf("kafka: append for source %s: another copy was faster: %w", l.source, onewrite.ErrFenced)
		}
	}
	return nil
}

// room refuses what would not fit.
func (b *Bus) room(ctx context.Context, more int64) error {
	if b.used()+more <= b.cfg.MaxBytes {
		return nil
	}
	if err := b.measure(ctx); err != nil {
		return err
	}
	if b.used()+more <= b.cfg.MaxBytes {
		return nil
	}
	return fmt.Errorf("kafka: the room of %d bytes is used up: %w; raise bus.max_size, or look at the slowest destination: onewrite status", b.cfg.MaxBytes, onewrite.ErrFull)
}

func (b *Bus) used() (sum int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, l := range b.logs {
		l.mu.Lock()
		sum += l.bytes
		l.mu.Unlock()
	}
	return sum
}

// measure looks at how much all logs hold.
func (b *Bus) measure(ctx context.Context) error {
	sources, err := b.names(ctx, b.logTopic(""))
	if err != nil {
		return err
	}
	var errs []error
	for _, source := range sources {
		l := b.logOf(source)
		o, err := b.origin(ctx, l)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		l.holds(o.bytes)
	}
	return errors.Join(errs...)
}

// holds corrects the measure of a log.
func (l *busLog) holds(bytes int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.bytes = bytes
}
