package kafka

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/onewrite/onewrite"
)

// wire is a connection to the broker that leads the topic of a log. What is sent over it
// arrives in that order or not at all. It is given up with the first thing that goes wrong:
// what is under way then is stored or void, which the log tells.
//
// The client's own producer is not used. It begins to send what it is given before it has
// all of it, once something is under way, and makes its batches when they are sent; here
// that was done before.
type wire struct {
	cl     *kgo.Client
	leader *kgo.Broker
	topic  string
	id     [16]byte // of the topic
	wrote  wrote

	newest *flight // nil: none yet; l.writing is held

	mu  sync.Mutex
	err error // what went wrong
}

// flight is an append under way.
type flight struct {
	before *flight       // nil: that one has its answer
	landed chan struct{} // closed when err is known
	err    error
	answer chan error // has err once
}

// wrote hears when a request is written. Then the next one may be sent.
type wrote chan struct{}

// OnBrokerWrite is called by the client for each request.
func (w wrote) OnBrokerWrite(_ kgo.BrokerMetadata, key int16, _ int, _, _ time.Duration, err error) {
	if key != produceKey || err != nil {
		return
	}
	select {
	case w <- struct{}{}:
	default:
	}
}

var produceKey = kmsg.NewPtrProduceRequest().Key()

// failed returns what went wrong.
func (w *wire) failed() error {
	if w == nil {
		return nil
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.err
}

// fail gives the wire up.
func (w *wire) fail(err error) {
	w.mu.Lock()
	first := w.err == nil
	if first {
		w.err = err
	}
	w.mu.Unlock()
	if first {
		w.cl.Close() // answers that are not there yet do not come
	}
}

// idle reports whether nothing is under way.
func (w *wire) idle() bool {
	if w == nil || w.newest == nil {
		return true
	}
	select {
	case <-w.newest.landed:
		return true
	default:
		return false
	}
}

// landed waits until nothing is under way, and returns what went wrong.
func (w *wire) landed(ctx context.Context) error {
	if w == nil || w.newest == nil {
		return nil
	}
	select {
	case <-w.newest.landed:
		return w.newest.err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// drop gives up the wire, when nothing is under way any more. An error is one of ctx.
func (l *busLog) drop(ctx context.Context) error {
	if l.wire == nil {
		return nil
	}
	if err := l.wire.landed(ctx); err != nil && ctx.Err() != nil {
		return err
	}
	l.wire.cl.Close()
	l.wire = nil
	return nil
}

// dial opens a wire.
func (b *Bus) dial(ctx context.Context, topic string) (*wire, error) {
	w := &wire{topic: topic, wrote: make(wrote, 1)}
	var err error
	if w.cl, err = kgo.NewClient(append(slices.Clone(b.opts), kgo.RequiredAcks(kgo.AllISRAcks()), kgo.DisableIdempotentWrite(), kgo.WithHooks(w.wrote))...); err != nil {
		return nil, fmt.Errorf("kafka: %w", err)
	}
	found, err := details(ctx, w.cl, topic)
	d := found[topic]
	switch {
	case err != nil:
	case d.err != nil:
		err = d.err
	case d.leader < 0:
		err = kerr.LeaderNotAvailable
	default:
		w.leader, w.id = w.cl.Broker(int(d.leader)), d.id
		return w, nil
	}
	w.cl.Close()
	return nil, err
}

// put sends the records of a batch; l.writing is held. cancel ends ctx, when the answer is
// there. An error says that nothing was sent.
func (b *Bus) put(ctx context.Context, cancel func(), l *busLog, u *unsent) (*flight, error) {
	if b.closed.Load() {
		return nil, errors.New("kafka: the bus is closed")
	}
	if l.wire == nil {
		w, err := b.dial(ctx, l.topic)
		if err != nil {
			b.gone(l.topic, err)
			return nil, b.worded(err, "append", l.topic)
		}
		l.wire = w
	}
	w := l.wire
	f := &flight{before: w.newest, landed: make(chan struct{}), answer: make(chan error, 1)}
	w.newest = f
	answers := make([]<-chan produced, len(u.cuts))
	for i, c := range u.cuts {
		answers[i] = w.send(ctx, u.buf[u.start(i):c.to])
	}
	at, first, end := u.from.end, u.run.first, u.behind()
	go func() {
		defer cancel()
		var err error
		if f.before != nil {
			<-f.before.landed
			err, f.before = f.before.err, nil
		}
		for i := 0; err == nil && i < len(answers); i++ {
			p := <-answers[i]
			switch {
			case p.err != nil:
				b.gone(l.topic, p.err)
				err = b.worded(p.err, "append", l.topic)
			case p.at != at:
				err = fmt.Errorf("kafka: append for source %s: another copy was faster: %w", l.source, onewrite.ErrFenced)
			case p.start > first:
				err = fmt.Errorf("kafka: append for source %s: topic %s was emptied from outside while it was written", l.source, l.topic)
			}
			at += int64(u.cuts[i].records)
		}
		if err != nil {
			w.fail(err)
		} else {
			l.stored(end, u.packer)
		}
		f.err = err
		f.answer <- err
		close(f.landed)
	}()
	return f, nil
}

// stored notes where a log ends now, and takes back what its records were packed in.
func (l *busLog) stored(end logEnd, p packer) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.tail, l.looked = max(l.tail, end.last), end.end
	if len(l.spare) < spares && cap(p.buf) <= spareBytes {
		l.spare = append(l.spare, p)
	}
}

// spares is how much is kept for the next appends, and spareBytes how large each may be. Most
// are smaller.
const (
	spares     = 4
	spareBytes = 2 << 20
)

// produced is the answer to a batch: the offset of its first record, and of that of the topic.
type produced struct {
	at, start int64
	err       error
}

// send sends a batch, and returns when it is written.
func (w *wire) send(ctx context.Context, batch []byte) <-chan produced {
	part := kmsg.NewProduceRequestTopicPartition()
	part.Records = batch
	topic := kmsg.NewProduceRequestTopic()
	topic.Topic, topic.TopicID, topic.Partitions = w.topic, w.id, append(topic.Partitions, part)
	req := kmsg.NewPtrProduceRequest()
	req.Acks, req.TimeoutMillis, req.Topics = -1, int32(answerTimeout.Milliseconds()), append(req.Topics, topic)
	select {
	case <-w.wrote: // of one that failed
	default:
	}
	answer, over := make(chan produced, 1), make(chan struct{})
	go func() {
		defer close(over)
		resp, err := w.leader.Request(ctx, req)
		answer <- outcome(resp, err)
	}()
	select {
	case <-w.wrote:
	case <-over:
	}
	return answer
}

// outcome reads the answer to a batch.
func outcome(resp kmsg.Response, err error) produced {
	if errors.Is(err, io.EOF) {
		err = fmt.Errorf("the broker closed the connection: %w", err)
	}
	if err != nil {
		return produced{err: err}
	}
	r, ok := resp.(*kmsg.ProduceResponse)
	if !ok || len(r.Topics) != 1 || len(r.Topics[0].Partitions) != 1 {
		return produced{err: errors.New("the answer is about something else")}
	}
	p := r.Topics[0].Partitions[0]
	return produced{p.BaseOffset, p.LogStartOffset, kerr.ErrorForCode(p.ErrorCode)}
}
