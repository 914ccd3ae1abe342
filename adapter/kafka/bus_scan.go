package kafka

import (
	"context"
	"errors"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
)

// gate lets in one at a time. Who waits for it waits no longer than his context: the one
// inside may wait for a broker that does not answer.
type gate chan struct{}

func (g gate) enter(ctx context.Context) error {
	select {
	case g <- struct{}{}:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (g gate) leave() { <-g }

// bounds returns the first offset of a topic and the one behind its last record.
func (b *Bus) bounds(ctx context.Context, topic string) (start, end int64, err error) {
	starts, err := b.adm.ListStartOffsets(ctx, topic)
	if err == nil {
		err = starts.Error()
	}
	var ends kadm.ListedOffsets
	if err == nil {
		if ends, err = b.adm.ListEndOffsets(ctx, topic); err == nil {
			err = ends.Error()
		}
	}
	if err != nil {
		b.gone(topic, err)
		return 0, 0, b.worded(err, "read topic "+topic, topic)
	}
	s, _ := starts.Lookup(topic, 0)
	e, _ := ends.Lookup(topic, 0)
	return s.Offset, e.Offset, nil
}

// gone forgets a topic that is not there any more.
func (b *Bus) gone(topic string, err error) {
	if errors.Is(err, kerr.UnknownTopicOrPartition) || errors.Is(err, kerr.UnknownTopicID) || errors.Is(err, kerr.InconsistentTopicID) || oversize(err) {
		b.forget(topic)
	}
}

// scan reads the records from an offset up to, and without, another one. f ends it with
// an error.
func (b *Bus) scan(ctx context.Context, topic string, from, to int64, f func(*kgo.Record) error) error {
	if from >= to {
		return nil
	}
	if err := b.scanning.enter(ctx); err != nil {
		return b.worded(err, "read topic "+topic, topic)
	}
	defer b.scanning.leave()
	b.scanner.AddConsumePartitions(map[string]map[int32]kgo.Offset{topic: {0: kgo.NewOffset().At(from)}})
	defer b.scanner.PurgeTopicsFromConsuming(topic)
	for next := from; next < to; {
		fetches := b.scanner.PollRecords(ctx, readCount)
		for _, e := range fetches.Errors() {
			if ctx.Err() != nil {
				return b.worded(b.heard.with(context.Cause(ctx)), "read topic "+topic, topic)
			}
			b.gone(topic, e.Err)
			return b.worded(e.Err, "read topic "+topic, topic)
		}
		for it := fetches.RecordIter(); !it.Done(); {
			r := it.Next()
			if next = r.Offset + 1; r.Offset < from || r.Offset >= to || r.Attrs.IsControl() {
				continue
			}
			if err := f(r); err != nil {
				return err
			}
		}
	}
	return nil
}

// store writes records to a topic and waits for the answers, no longer than ctx: a broker
// that is frozen would be waited for without end. What comes after that is void, or there
// when the log is read the next time.
func (b *Bus) store(ctx context.Context, recs []*kgo.Record) error {
	errs, err := start(b.cl, recs).wait(ctx)
	if i := failed(errs); err == nil && i >= 0 {
		err = errs[i]
	}
	return err
}
