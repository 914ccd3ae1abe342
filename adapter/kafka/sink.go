package kafka

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/internal/sabotage"
)

// chunk bounds one transaction of Write; WriteAt is told what is to be in one.
const (
	chunk      = onewrite.MaxBatch
	chunkBytes = 32 << 20
)

// recountAfter is after how many places the partitions' numbers are written again, so
// that both are found near the end of the topic.
const recountAfter = 200

// Sink writes in transactions, each with the place of the destination if it is given
// one. The newest sink of a destination owns it: one that was opened before gets
// ErrFenced.
type Sink struct {
	*core

	// The rest is whose turn it is.
	dead   error // nothing is written any more, for this reason
	dirty  bool  // a transaction has to be aborted first
	placed int   // places since the partitions' numbers were written
	enc    encoder
	ended  time.Time     // the end of the last transaction was said
	usual  time.Duration // from there until it was written out, of late

	commitTxn func(ctx context.Context) error // tests lose its answer
}

// New connects, creates the topic of places if there is none, and takes the
// destination over: a transaction that an older sink has open is aborted, or its end
// waited for. The error says why it cannot.
func New(ctx context.Context, c Config) (*Sink, error) {
	if c.Destination == "" {
		return nil, errors.New("kafka: the destination has no name")
	}
	s, err := open(ctx, c, kgo.TransactionalID(c.transactionalID()), kgo.TransactionTimeout(txnTimeout))
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, openTimeout)
	defer cancel()
	if _, _, err := s.cl.ProducerID(ctx); err != nil {
		_ = s.Close()
		return nil, s.worded(err, "take over "+c.transactionalID(), "")
	}
	return &Sink{core: s, commitTxn: func(ctx context.Context) error { return s.cl.EndTransaction(ctx, kgo.TryCommit) }}, nil
}

// Place returns the record of the last WriteAt of this destination that was
// committed, nil if there is none; see [onewrite.Placed]. It waits until every
// transaction that was open in the topic of places is decided.
func (s *Sink) Place(ctx context.Context) ([]byte, error) {
	ctx, end, err := s.begin(ctx, placeTimeout)
	if err != nil {
		return nil, err
	}
	defer end()
	if err := s.mend(ctx); err != nil {
		return nil, err
	}
	m, err := s.load(ctx)
	if err != nil || m.place == nil {
		return nil, err
	}
	return m.place.Value, nil
}

// load writes a mark and reads what is before it. That the mark can be committed
// shows that no newer sink is there.
func (s *Sink) load(ctx context.Context) (memory, error) {
	mark, token := s.mark()
	if _, err := s.transact(ctx, []*kgo.Record{mark}); err != nil {
		return memory{}, s.told(err, "take over the place of "+s.c.Destination, s.c.Places)
	}
	m, err := s.recall(ctx, mark, token)
	if err != nil {
		return m, err
	}
	return m, s.recollect(m)
}

// told words an error that is about no event.
func (s *Sink) told(err error, about, topic string) error {
	if refusal(err) {
		return unsteered{s.worded(err, about, topic)}
	}
	return s.worded(err, about, topic)
}

// WriteAt commits all messages and the place, or nothing; see [onewrite.Placed].
func (s *Sink) WriteAt(ctx context.Context, messages []onewrite.Message, place []byte) (int, error) {
	events := make([]onewrite.Event, len(messages))
	for i := range messages {
		events[i] = messages[i].Event
	}
	ctx, end, err := s.begin(ctx, writeTimeout)
	if err != nil {
		return 0, err
	}
	defer end()
	if err := s.prepare(ctx); err != nil {
		return 0, err
	}
	enc := s.enc.lend()
	recs, of, unfit := s.records(ctx, &enc, events)
	if n, err := s.admit(ctx, recs, events, of); err != nil {
		return of[n], err
	}
	if unfit != nil {
		return whole(of), unfit
	}
	if place == nil {
		place = []byte{} // a place, though an empty one
	}
	bad, err := s.commit(ctx, recs, events, of, &kgo.Record{Topic: s.c.Places, Key: []byte(s.c.Destination), Value: place})
	if err == nil {
		s.enc.back(enc)
	}
	return bad, err
}

// Write commits events without a place, up to 1,000 of them in one transaction; see
// [onewrite.Sink]. Writes take turns.
func (s *Sink) Write(ctx context.Context, events []onewrite.Event) (int, error) {
	if len(events) == 0 {
		return 0, nil
	}
	ctx, end, err := s.begin(ctx, writeTimeout)
	if err != nil {
		return 0, err
	}
	defer end()
	if err := s.prepare(ctx); err != nil {
		return 0, err
	}
	done := 0
	for done < len(events) {
		n, err := s.writeChunk(ctx, events[done:done+leading(events[done:])])
		if done += n; err != nil {
			return done, err
		}
	}
	return done, nil
}

// writeChunk commits events in one transaction, or, where one is refused, those
// before it.
func (s *Sink) writeChunk(ctx context.Context, events []onewrite.Event) (int, error) {
	enc := s.enc.lend()
	recs, of, cause := s.records(ctx, &enc, events)
	n, err := s.admit(ctx, recs, events, of)
	if err != nil {
		cause = err
	}
	for n > 0 {
		bad, err := s.commit(ctx, recs[:n], events, of[:n], nil)
		if err == nil {
			s.enc.back(enc)
			return of[n-1] + 1, cause
		}
		if bad == 0 {
			return 0, err
		}
		// Nothing is there: what is before it goes alone.
		if n, cause = slices.Index(of, bad), err; !errors.Is(err, onewrite.ErrRejected) && !isAnswer(err) {
			return 0, unsteered{err}
		}
		enc = encoder{}
		if recs, of, err = s.records(ctx, &enc, events[:bad]); err != nil {
			return 0, unsteered{err}
		}
	}
	return 0, cause
}

// leading is how many events go into one transaction.
func leading(events []onewrite.Event) int {
	size := 0
	for i := range events {
		if size += events[i].Size(); i > 0 && (i == chunk || size > chunkBytes) {
			return i
		}
	}
	return len(events)
}

// prepare sees to it that a transaction can begin, and knows what was remembered.
func (s *Sink) prepare(ctx context.Context) error {
	if err := s.mend(ctx); err != nil {
		return err
	}
	if s.counts != nil {
		return nil
	}
	_, err := s.load(ctx)
	return err
}

// commit writes the records of events, and a place if it is not nil, in one
// transaction. bad is the event that the error is about.
func (s *Sink) commit(ctx context.Context, recs []*kgo.Record, events []onewrite.Event, of []int, place *kgo.Record) (bad int, err error) {
	recs = slices.Clip(recs)
	counts := s.remember(place != nil && s.placed >= recountAfter)
	if counts != nil {
		recs = append(recs, counts)
	}
	if place != nil && sabotage.Bug == "place-later" {
		defer func() {
			if err == nil {
				_, err = s.transact(ctx, []*kgo.Record{place})
			}
		}()
	} else if place != nil {
		recs = append(recs, place)
	}
	i, err := s.transact(ctx, recs)
	if err == nil {
		if s.placed++; counts != nil {
			s.placed = 0
		}
		return 0, nil
	}
	if counts != nil {
		s.forgot()
	}
	if i >= len(of) {
		return 0, s.told(err, "the place of "+s.c.Destination, s.c.Places)
	}
	if r := recs[i]; !refusal(err) && s.moved(r) != nil {
		return of[i], s.moved(r)
	}
	s.gone(recs[i].Topic, err)
	return of[i], s.worded(err, "event "+events[of[i]].ID, recs[i].Topic)
}

// transact writes records in one transaction. After an error nothing of it is to be
// seen by readers of committed records, unless the sink is dead by it: then it is not
// known. i is the record that the error is about.
func (s *Sink) transact(ctx context.Context, recs []*kgo.Record) (i int, err error) {
	if err := sabotage.At("kafka.produce"); err != nil {
		return 0, err
	}
	errs, err := s.produce(ctx, recs)
	if err != nil {
		return 0, err
	}
	if err := sabotage.At("kafka.produced"); err != nil {
		_ = s.abort(ctx) // else the next one's to abort
		return 0, err
	}
	if i = failed(errs); i >= 0 {
		err := errs[i]
		if abort := s.abort(ctx); abort != nil {
			return i, s.fence(err)
		}
		switch {
		case oversize(err):
			return s.largest(ctx, recs, errs, i)
		case batchwide(err):
			return s.culprit(ctx, recs, errs, i)
		}
		return i, s.fence(err)
	}
	if err = s.commitTxn(ctx); err == nil {
		err = sabotage.At("kafka.committed")
	}
	if s.ended = time.Now(); err == nil {
		return 0, nil
	}
	if errors.Is(err, kerr.OperationNotAttempted) || errors.Is(err, kerr.TransactionAbortable) {
		if s.abort(ctx) == nil {
			return 0, fmt.Errorf("the transaction could not be committed: %w", err)
		}
	}
	if err = s.fence(err); s.dead == nil {
		s.dead = fmt.Errorf("kafka: it is not known whether the last transaction was committed: a new sink has to be opened: %w", unsteered{err})
	}
	return 0, err
}

// produce begins a transaction and sends records in it.
func (s *Sink) produce(ctx context.Context, recs []*kgo.Record) ([]error, error) {
	s.settle(ctx)
	if err := s.cl.BeginTransaction(); err != nil {
		return nil, s.fence(err)
	}
	s.dirty = true
	errs, err := send(ctx, s.cl, recs)
	if err != nil {
		return nil, err
	}
	s.dirty = false
	return errs, nil
}

// settle waits until the transaction before is written out everywhere. Were the next
// one to begin sooner, a broker would hold its records back for 20 ms at least; a
// transaction is written out in two or three. It is a matter of time alone: whoever
// may not ask goes on. The first question comes when most of the usual time is over, as
// each costs the broker, and us, what a few records do.
func (s *Sink) settle(ctx context.Context) {
	const (
		within = 50 * time.Millisecond
		early  = 10 * time.Millisecond // more is not saved by asking less
	)
	sleep := func(d time.Duration) {
		select {
		case <-time.After(d):
		case <-ctx.Done():
		}
	}
	if d := min(s.usual*3/4, early) - time.Since(s.ended); d > 0 {
		sleep(d)
	}
	waits := 0
	for time.Since(s.ended) < within && ctx.Err() == nil {
		req := kmsg.NewPtrDescribeTransactionsRequest()
		req.TransactionalIDs = []string{s.c.transactionalID()}
		resp, err := req.RequestWith(ctx, s.cl)
		if err != nil || len(resp.TransactionStates) != 1 || !strings.HasPrefix(resp.TransactionStates[0].State, "Prepare") {
			break
		}
		sleep(200 * time.Microsecond)
		waits++
	}
	if took := time.Since(s.ended); waits > 0 || took < s.usual { // else nobody knows when it was
		s.usual += (min(took, within) - s.usual) / 4
	}
}

// batch returns the records that were refused together with the first one.
func batch(recs []*kgo.Record, errs []error, first int) (with []int) {
	for i := range recs {
		if errs[i] != nil && recs[i].Topic == recs[first].Topic && recs[i].Partition == recs[first].Partition {
			with = append(with, i)
		}
	}
	return with
}

// probe sends records in a transaction that is aborted, so that nobody sees them, and
// returns what was said of them.
func (s *Sink) probe(ctx context.Context, recs []*kgo.Record, which ...int) (answer, err error) {
	again := make([]*kgo.Record, 0, len(which))
	for _, i := range which {
		r := recs[i]
		again = append(again, &kgo.Record{Topic: r.Topic, Key: r.Key, Value: r.Value, Headers: r.Headers})
	}
	answers, err := s.produce(ctx, again)
	if err != nil {
		return nil, err
	}
	if err := s.abort(ctx); err != nil {
		return nil, err
	}
	if i := failed(answers); i >= 0 {
		return answers[i], nil
	}
	return nil, nil
}

// culprit finds the first of the records that a broker refuses, where it has refused
// a batch.
func (s *Sink) culprit(ctx context.Context, recs []*kgo.Record, errs []error, first int) (int, error) {
	with := batch(recs, errs, first)
	low, high := 0, len(with)-1 // with[:high+1] is refused
	for low < high {
		mid := (low + high) / 2
		answer, err := s.probe(ctx, recs, with[:mid+1]...)
		switch {
		case err != nil:
			return 0, err
		case answer == nil:
			low = mid + 1
		case batchwide(answer):
			high = mid
		default:
			return with[0], s.fence(answer)
		}
	}
	return with[low], errs[first]
}

// largest tells whether a batch was refused for one of its records, or for all of them
// together: then no record is to blame.
func (s *Sink) largest(ctx context.Context, recs []*kgo.Record, errs []error, first int) (int, error) {
	with := batch(recs, errs, first)
	if len(with) == 1 {
		return first, errs[first]
	}
	name := recs[first].Topic
	if before, _ := s.takes(name); s.limits(ctx, name)[name] < before {
		s.forget(name)
		return with[0], fmt.Errorf("topic %s takes less by now; the sink has to be opened again: %w", name, unsteered{errs[first]})
	}
	most := slices.MaxFunc(with, func(a, b int) int { return sizeOf(recs[a]) - sizeOf(recs[b]) })
	answer, err := s.probe(ctx, recs, most)
	switch {
	case err != nil:
		return 0, err
	case answer == nil:
		return with[0], fmt.Errorf("topic %s takes less than %d bytes, and does not tell how much: %w; allow it: kafka-acls.sh --add --allow-principal User:%s --operation DescribeConfigs --topic %s",
			name, defaultLimit, unsteered{errs[first]}, s.user(), name)
	}
	return most, s.fence(answer)
}

// abort ends a transaction without effect. What cannot be aborted now is the next
// one's to abort.
func (s *Sink) abort(ctx context.Context) error {
	s.dirty = true
	if err := s.cl.AbortBufferedRecords(ctx); err != nil {
		return err
	}
	err := s.cl.EndTransaction(ctx, kgo.TryAbort)
	if s.ended = time.Now(); err != nil {
		return s.fence(err)
	}
	s.dirty = false
	return nil
}

// mend aborts what an earlier call left open, and says whether the sink is dead.
func (s *Sink) mend(ctx context.Context) error {
	if s.dead != nil {
		return s.dead
	}
	if !s.dirty {
		return nil
	}
	if err := s.abort(ctx); err != nil {
		return s.told(err, "abort a transaction", "")
	}
	return nil
}

// fence ends the sink for good if a newer one has taken over: were it to go on, the
// two would fence each other in turn.
func (s *Sink) fence(err error) error {
	if err != nil && fenced(err) && s.dead == nil {
		s.dead = s.worded(err, "write", "")
	}
	return err
}
