package kafka

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/onewrite/onewrite"
)

// busLog is what the bus knows of one source's log.
type busLog struct {
	source, topic string
	runBytes      int64 // of a run

	// writing is held while an append is given to the brokers, one at a time. It guards the
	// fields below.
	writing gate
	known   bool // logEnd and pos are what the log holds, or will when all that is under way is stored
	logEnd
	pos  onewrite.Pos // that its newest event carries
	wire *wire        // nil: none

	mu     sync.Mutex
	ahead  logEnd   // where the log will end, if all that is prepared is stored
	spare  []packer // of appends that are done
	tail   uint64   // the newest event known to be durable
	looked int64    // the end of the topic when the tail was learned
	bytes  int64    // of the events that the log holds, by the last look and what was added since
}

// logEnd is where a log ends.
type logEnd struct {
	end  int64  // of the topic, where the next append is to lie
	last uint64 // offset on the bus of the newest event
	sum  uint64 // of its mark
	run  run    // that the next append belongs to, if it has room for it
}

// run is a run of appends, of which each may be sent before those before it are stored.
type run struct {
	first   int64 // the offset in the topic at which it begins
	nonce   uint64
	appends int
	bytes   int64
}

// A run is read from its beginning, and removed as a whole.
const (
	runAppends = 16
	runBytes   = 8 << 20
)

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
		l = &busLog{writing: make(gate, 1), source: source, topic: b.logTopic(source), runBytes: min(runBytes, b.cfg.MaxBytes/16)}
		b.logs[source] = l
	}
	return l
}

// raise notes what is durable.
func (l *busLog) raise(last uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.tail = max(l.tail, last)
}

// durable returns the newest event that is known to be.
func (l *busLog) durable() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.tail
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

// tailReaches are how many records before the end are read to find the newest event: an
// append first, then what stale writers may have left behind it, and the run before that.
var tailReaches = []int64{onewrite.MaxBatch + 50, 10 * onewrite.MaxBatch}

// locate reads end, last and pos from the topic, which is made if it is missing;
// l.writing is held.
func (b *Bus) locate(ctx context.Context, l *busLog) error {
	l.known = false
	if err := l.drop(ctx); err != nil {
		return b.worded(err, "wait for what is under way for source "+l.source, l.topic)
	}
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
	l.logEnd, l.pos = logEnd{end: end, last: newest.seq, sum: newest.sum}, newest.pos
	if !found && start > 0 {
		return fmt.Errorf("kafka: topic %s was emptied from outside, the position of source %s is gone with its newest event, and so is what was pending; no event is left on it, so to read the source again from where its outbox begins: kafka-topics.sh --delete --topic %s", l.topic, l.source, l.topic)
	}
	l.raise(l.last)
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
		if reach > tailReaches[0] {
			if from, err = b.aligned(ctx, l.topic, from); err != nil {
				return n, false, err
			}
		}
		var u unfold // a run that it cuts is not the newest, or read whole the next time
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
	seen := b.logOf(source).durable()
	for _, r := range all {
		seen = max(seen, r.Seen(source))
	}
	return seen, nil
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
