package kafka

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/internal/places"
)

// busLog is what the bus knows of one source's log.
type busLog struct {
	source, topic string

	// writing is held by the one append at a time. It guards the fields below.
	writing gate
	known   bool // logEnd and pos are what the log holds
	logEnd
	pos onewrite.Pos // that its newest event carries
	cl  *kgo.Client  // nil: none, or one that gave up

	mu     sync.Mutex
	ahead  logEnd    // where the log will end, if all that is prepared is stored
	spare  []encoder // of appends that are done
	tail   uint64    // the newest event known to be durable
	looked int64     // the end of the topic when the tail was learned
	bytes  int64     // of the events that the log holds, by the last look and what was added since
}

// logEnd is where a log ends.
type logEnd struct {
	end  int64  // of the topic, where the next append is to lie
	last uint64 // offset on the bus of the newest event
	sum  uint64 // of its mark
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

// expect says behind what the next records are to lie.
func (l *busLog) expect(end logEnd) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ahead = end
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
	l.expect(l.logEnd)
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
	return b.Prepare(source, batch)(ctx, prev)
}

// Prepare does of an [Bus.Append] what needs no answer to the one before: it makes the
// records, and marks them as if all that was prepared before were stored, since [Bus.Position]
// was asked for. What it returns is the rest of that Append, with its arguments and its errors.
// It may be called again after an error.
func (b *Bus) Prepare(source string, batch onewrite.Batch) func(ctx context.Context, prev onewrite.Pos) (uint64, error) {
	if err := checkSource(source); err != nil {
		return func(context.Context, onewrite.Pos) (uint64, error) { return 0, err }
	}
	l := b.logOf(source)
	ready := l.prepare(&batch)
	return func(ctx context.Context, prev onewrite.Pos) (uint64, error) {
		if ready == nil {
			ready = l.prepare(&batch)
		}
		last, sent, err := b.append(ctx, l, prev, &batch, ready)
		if sent { // somebody else has it, or what made it has it back
			ready = nil
		}
		return last, err
	}
}

// unsent are the records of a batch.
type unsent struct {
	enc     encoder // which has made them
	recs    []*kgo.Record
	from    logEnd // behind which they are marked to lie
	bytes   int64  // that they take
	largest int    // the record that takes most
	most    int    // bytes of that one
	err     error  // why there are none
}

// prepare makes the records of a batch, and refuses what no log can have.
func (l *busLog) prepare(batch *onewrite.Batch) *unsent {
	u, n := &unsent{}, len(batch.Events)
	if n > onewrite.MaxBatch {
		u.err = fmt.Errorf("kafka: a batch of %d events, the bus takes %d: %w", n, onewrite.MaxBatch, onewrite.ErrRejected)
		return u
	}
	l.mu.Lock()
	from := l.ahead
	if free := len(l.spare); free > 0 {
		u.enc, l.spare = l.spare[free-1], l.spare[:free-1]
	}
	l.mu.Unlock()
	u.recs = make([]*kgo.Record, n)
	for i := range batch.Events {
		e := &batch.Events[i]
		if e.ID == "" || e.Source == "" || e.Type == "" { // no reader could make an event of it again
			u.err = fmt.Errorf("kafka: event %d of the batch (id %q, source %q, type %q): CloudEvents needs all three: %w", i, e.ID, e.Source, e.Type, onewrite.ErrRejected)
			return u
		}
		pos := &batch.Pos
		if i < n-1 {
			pos = nil
		}
		u.recs[i] = eventRecord(&u.enc, l.topic, e, kgo.RecordHeader{Key: markHeader}, pos)
	}
	u.mark(from)
	l.expect(u.behind())
	return u
}

// mark says in the records that they are to lie behind an end.
func (u *unsent) mark(from logEnd) {
	u.from, u.bytes, u.largest, u.most = from, 0, 0, 0
	m := newMark(from.end, len(u.recs))
	m.seq, m.sum = from.last+1, from.sum
	var value [maxMark]byte
	for i, r := range u.recs {
		r.Headers[0].Value = nil // of another end
		head := m.appendHead(value[:0], i)
		size := sizeOf(r) + len(strconv.AppendUint(head, m.sum, 10))
		if size > u.most {
			u.largest, u.most = i, size
		}
		u.bytes += int64(size)
		m.sum += uint64(size)
		r.Headers[0].Value = copied(&u.enc, strconv.AppendUint(head, m.sum, 10))
	}
}

// behind is where the log ends when they are stored.
func (u *unsent) behind() logEnd {
	n := len(u.recs)
	return logEnd{end: u.from.end + int64(n), last: u.from.last + uint64(n), sum: u.from.sum + uint64(u.bytes)}
}

// append stores the records of a batch behind prev. sent: they were given away, and are
// made over if that went well.
func (b *Bus) append(ctx context.Context, l *busLog, prev onewrite.Pos, batch *onewrite.Batch, u *unsent) (last uint64, sent bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	if err := l.writing.enter(ctx); err != nil {
		return 0, false, b.worded(err, "append for source "+l.source, l.topic)
	}
	defer l.writing.leave()
	if !l.known {
		if err := b.locate(ctx, l); err != nil {
			return 0, false, err
		}
	}
	if l.pos != prev {
		l.known = false // another copy may have written: look again next time
		return 0, false, fmt.Errorf("kafka: append for source %s: its position on the bus is another one: %w", l.source, onewrite.ErrFenced)
	}
	switch {
	case len(batch.Events) == 0:
		return l.last, false, nil
	case u.err != nil:
		return 0, false, u.err
	case u.from != l.logEnd: // what was to lie before them was not stored
		u.mark(l.logEnd)
		l.expect(u.behind())
	}
	if limit := int(b.limit(l.topic)); u.most+batchOverhead > limit {
		e := &batch.Events[u.largest]
		return 0, false, fmt.Errorf("kafka: event %s of topic %s needs %d bytes, the bus takes %d: %w; raise it: kafka-configs.sh --alter --entity-type topics --entity-name %s --add-config max.message.bytes=%d, and restart",
			e.ID, e.Topic, u.most, limit, onewrite.ErrRejected, l.topic, u.most+1<<20)
	}
	if err := b.room(ctx, u.bytes); err != nil {
		return 0, false, err
	}
	now := time.Now() // else the client asks the clock for each
	for _, r := range u.recs {
		r.Timestamp = now
	}
	if err := b.put(ctx, l, u.recs); err != nil {
		return 0, true, err
	}
	l.logEnd, l.pos, l.known = u.behind(), batch.Pos, true
	l.raise(l.last, u.bytes)
	var done encoder
	done.back(u.enc)
	l.mu.Lock()
	l.looked, l.spare = l.end, append(l.spare, done)
	l.mu.Unlock()
	return l.last, true, nil
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
