package kafka

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"time"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/internal/cloudevents"
)

// Append stores a batch behind prev; see [onewrite.Bus].
func (b *Bus) Append(ctx context.Context, source string, prev onewrite.Pos, batch onewrite.Batch) (uint64, error) {
	last, stored, err := b.Prepare(source, batch)(ctx, prev)
	if err != nil {
		return 0, err
	}
	if err := <-stored; err != nil {
		return 0, err
	}
	return last, nil
}

// Prepare does of an [Bus.Append] what needs nothing of the one before: it makes the records,
// marked as if all that was prepared before were stored, since [Bus.Position] was asked for.
// What it returns begins that Append, with its arguments; several may be under way. It returns
// the offset of the newest event, and whether that is stored: one answer, which comes
// after those of all that are under way before it, and is an error if one of those is. An err
// says that nothing was sent, and that it may be called again.
func (b *Bus) Prepare(source string, batch onewrite.Batch) func(ctx context.Context, prev onewrite.Pos) (last uint64, stored <-chan error, err error) {
	if err := checkSource(source); err != nil {
		return func(context.Context, onewrite.Pos) (uint64, <-chan error, error) { return 0, nil, err }
	}
	l := b.logOf(source)
	u := l.prepare(&batch, int(b.limit(l.topic)))
	return func(ctx context.Context, prev onewrite.Pos) (uint64, <-chan error, error) {
		if u == nil {
			u = l.prepare(&batch, int(b.limit(l.topic)))
		}
		last, stored, err := b.begin(ctx, l, prev, u)
		if err == nil { // what it is packed in is another one's when it is stored
			u = nil
		}
		return last, stored, err
	}
}

// staleAfter is how long records may wait with the time at which they were made.
const staleAfter = time.Second

// unsent are the records of a batch.
type unsent struct {
	batch   *onewrite.Batch
	packer  // what they are packed in
	made    time.Time
	from    logEnd // behind which they are marked to lie
	run     run    // theirs
	bytes   int64  // that they take
	largest int    // the record that takes most
	most    int    // bytes of that one
	limit   int    // of a batch
	err     error  // why there are none
}

// prepare makes the records of a batch, and refuses what no log can have.
func (l *busLog) prepare(batch *onewrite.Batch, limit int) *unsent {
	u := &unsent{batch: batch}
	if n := len(batch.Events); n > onewrite.MaxBatch {
		u.err = fmt.Errorf("kafka: a batch of %d events, the bus takes %d: %w", n, onewrite.MaxBatch, onewrite.ErrRejected)
		return u
	}
	for i := range batch.Events {
		e := &batch.Events[i]
		if e.ID == "" || e.Source == "" || e.Type == "" { // no reader could make an event of it again
			u.err = fmt.Errorf("kafka: event %d of the batch (id %q, source %q, type %q): CloudEvents needs all three: %w", i, e.ID, e.Source, e.Type, onewrite.ErrRejected)
			return u
		}
	}
	if len(batch.Events) == 0 || sizeOfAll(batch) > spareBytes { // packed when it is sent: it would be there twice until then
		return u
	}
	l.mu.Lock()
	from, alone := l.ahead, l.looked == l.ahead.end
	if free := len(l.spare); free > 0 {
		u.packer, l.spare = l.spare[free-1], l.spare[:free-1]
	}
	l.mu.Unlock()
	u.mark(from, alone, limit, l.runBytes)
	l.expect(u.behind())
	return u
}

// sizeOfAll is what the events of a batch take.
func sizeOfAll(batch *onewrite.Batch) (n int) {
	for i := range batch.Events {
		n += batch.Events[i].Size()
	}
	return n
}

// mark makes the records, which are to lie behind an end. alone: what lies before is stored.
func (u *unsent) mark(from logEnd, alone bool, limit int, most int64) {
	u.from, u.run, u.limit, u.made = from, from.run, limit, time.Now()
	u.bytes, u.largest, u.most = 0, 0, 0
	if alone || u.run.appends == 0 || u.run.appends >= runAppends || u.run.bytes >= most {
		u.run = run{first: from.end, nonce: rand.Uint64() >> 1}
	}
	u.reset(u.made)
	n := len(u.batch.Events)
	u.buf = slices.Grow(u.buf, sizeOfAll(u.batch)+n*2*maxMark+batchOverhead)
	m := mark{at: from.end, first: u.run.first, last: from.end + int64(n) - 1, seq: from.last + 1, nonce: u.run.nonce, sum: from.sum}
	var value [maxMark]byte
	for i := range u.batch.Events {
		e := &u.batch.Events[i]
		u.attrs = cloudevents.KafkaHeaders(u.attrs[:0], e)
		r := packed{attrs: u.attrs, key: e.Key, data: e.Data}
		if i == n-1 {
			r.pos = []byte(u.batch.Pos)
		}
		head := m.appendHead(value[:0], i)
		size := r.size() + len(strconv.AppendUint(head, m.sum, 10))
		if size > u.most {
			u.largest, u.most = i, size
		}
		u.bytes += int64(size)
		m.sum += uint64(size)
		r.mark = strconv.AppendUint(head, m.sum, 10)
		u.add(&r, size+1, limit) // the sum may have one digit more
	}
	u.close()
	u.run.appends++
	u.run.bytes += u.bytes
}

// behind is where the log ends when they are stored.
func (u *unsent) behind() logEnd {
	n := len(u.batch.Events)
	return logEnd{end: u.from.end + int64(n), last: u.from.last + uint64(n), sum: u.from.sum + uint64(u.bytes), run: u.run}
}

// begins reports whether they begin a run, so that nothing may be under way before them.
func (u *unsent) begins() bool { return u.run.first == u.from.end }

// begin sends the records of a batch, to be stored behind prev.
func (b *Bus) begin(ctx context.Context, l *busLog, prev onewrite.Pos, u *unsent) (last uint64, stored <-chan error, err error) {
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer func() {
		if err != nil {
			cancel()
		}
	}()
	if err := l.writing.enter(ctx); err != nil {
		return 0, nil, b.worded(err, "append for source "+l.source, l.topic)
	}
	defer l.writing.leave()
	if !l.known || l.wire.failed() != nil {
		if err := b.locate(ctx, l); err != nil {
			return 0, nil, err
		}
	}
	if l.pos != prev {
		l.known = false // another copy may have written: look again next time
		return 0, nil, fmt.Errorf("kafka: append for source %s: its position on the bus is another one: %w", l.source, onewrite.ErrFenced)
	}
	switch {
	case len(u.batch.Events) == 0:
		done := make(chan error, 1)
		done <- nil
		cancel()
		return l.last, done, nil
	case u.err != nil:
		return 0, nil, u.err
	}
	limit := int(b.limit(l.topic))
	// What was to lie before them was not stored, or they have waited for long.
	if u.from != l.logEnd || u.limit != limit || time.Since(u.made) > staleAfter {
		u.mark(l.logEnd, l.wire.idle(), limit, l.runBytes)
		l.expect(u.behind())
	}
	if u.most+batchOverhead > limit {
		e := &u.batch.Events[u.largest]
		return 0, nil, fmt.Errorf("kafka: event %s of topic %s needs %d bytes, the bus takes %d: %w; raise it: kafka-configs.sh --alter --entity-type topics --entity-name %s --add-config max.message.bytes=%d, and restart",
			e.ID, e.Topic, u.most, limit, onewrite.ErrRejected, l.topic, u.most+1<<20)
	}
	if err := b.room(ctx, u.bytes); err != nil {
		return 0, nil, err
	}
	if u.begins() {
		if err := l.wire.landed(ctx); err != nil {
			return 0, nil, err
		}
	}
	f, err := b.put(ctx, cancel, l, u)
	if err != nil {
		return 0, nil, err
	}
	l.logEnd, l.pos = u.behind(), u.batch.Pos
	l.mu.Lock()
	l.bytes += u.bytes
	l.mu.Unlock()
	return l.last, f.answer, nil
}
