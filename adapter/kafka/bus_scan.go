package kafka

import (
	"context"
	"errors"
	"slices"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
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
	start, err = listed(topic)(b.adm.ListStartOffsets(ctx, topic))
	if err == nil {
		end, err = listed(topic)(b.adm.ListEndOffsets(ctx, topic))
	}
	if err != nil {
		b.gone(topic, err)
		return 0, 0, b.worded(err, "read topic "+topic, topic)
	}
	return start, end, nil
}

// listed picks the offset of a topic's first partition out of an answer. The others hold
// nothing of ours, and may be without a leader.
func listed(topic string) func(kadm.ListedOffsets, error) (int64, error) {
	return func(all kadm.ListedOffsets, err error) (int64, error) {
		if err != nil {
			return 0, err
		}
		o, there := all.Lookup(topic, 0)
		if !there {
			return 0, kerr.UnknownTopicOrPartition
		}
		return o.Offset, o.Err
	}
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

// Of records that lie less than together apart, several are asked for at once, as many as
// have room in togetherBytes.
const (
	together      = 50
	togetherBytes = 64 << 10
)

// pick reads the records at the offsets given, which ascend; one that is not there is
// left out. A scan begins with several questions, and reads ahead all that an answer
// holds; for a record here and there that is a hundred times the work.
func (b *Bus) pick(ctx context.Context, topic string, at []int64, f func(*kgo.Record) error) error {
	var from *shelf
	for len(at) > 0 {
		most := int32(1) // a broker answers with one whole batch at least
		if len(at) > 1 && at[1]-at[0] < together {
			most = togetherBytes
		}
		var recs []*kgo.Record
		var err error
		next := at[0]
		if from == nil {
			from, err = b.shelfOf(ctx, topic)
		}
		if err == nil {
			recs, next, err = from.read(ctx, at[0], most)
		}
		switch {
		case errors.Is(err, kerr.OffsetOutOfRange): // it was removed just now
			next = at[0] + 1
		case err != nil || next == at[0]: // the leader may be another one: a scan waits for it, and has the words for all else
			from, next = nil, at[0]+1
			err := b.scan(ctx, topic, at[0], next, func(r *kgo.Record) error {
				recs = append(recs, r)
				return nil
			})
			if err != nil {
				return err
			}
		}
		for _, r := range recs {
			if _, wanted := slices.BinarySearch(at, r.Offset); !wanted {
				continue
			}
			if err := f(r); err != nil {
				return err
			}
		}
		for len(at) > 0 && at[0] < next {
			at = at[1:]
		}
	}
	return nil
}

// shelf is where single records of a topic are read: the broker that leads it.
type shelf struct {
	leader *kgo.Broker
	topic  string
	id     [16]byte // of the topic
}

func (b *Bus) shelfOf(ctx context.Context, topic string) (*shelf, error) {
	found, err := details(ctx, b.cl, topic)
	d := found[topic]
	switch {
	case err != nil:
		return nil, err
	case d.err != nil:
		return nil, d.err
	case d.leader < 0:
		return nil, kerr.LeaderNotAvailable
	}
	return &shelf{b.cl.Broker(int(d.leader)), topic, d.id}, nil
}

// read reads records from an offset on, no more bytes than most but one batch at least,
// and returns the offset behind them.
func (s *shelf) read(ctx context.Context, from int64, most int32) ([]*kgo.Record, int64, error) {
	part := kmsg.NewFetchRequestTopicPartition()
	part.FetchOffset, part.PartitionMaxBytes = from, most
	topic := kmsg.NewFetchRequestTopic()
	topic.Topic, topic.TopicID, topic.Partitions = s.topic, s.id, append(topic.Partitions, part)
	req := kmsg.NewPtrFetchRequest()
	req.MinBytes, req.MaxWaitMillis, req.Topics = 1, int32(readWait.Milliseconds()), append(req.Topics, topic)
	resp, err := s.leader.Request(ctx, req)
	if err != nil {
		return nil, from, err
	}
	r, ok := resp.(*kmsg.FetchResponse)
	if ok && r.ErrorCode != 0 {
		return nil, from, kerr.ErrorForCode(r.ErrorCode)
	}
	if !ok || len(r.Topics) != 1 || len(r.Topics[0].Partitions) != 1 {
		return nil, from, errors.New("the answer is about something else")
	}
	got, next := kgo.ProcessFetchPartition(kgo.ProcessFetchPartitionOpts{Offset: from, Topic: s.topic}, &r.Topics[0].Partitions[0], kgo.DefaultDecompressor(), nil)
	return got.Records, next, got.Err
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
