package kafka

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/onewrite/onewrite"
)

// Open is a sink with an open transaction.
type Open struct{ s *Sink }

// Uncommitted opens a sink and leaves it before its commit, as a kill does.
func Uncommitted(tb testing.TB, c Config, events []onewrite.Event, place []byte) Open {
	tb.Helper()
	s, err := New(tb.Context(), c)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = s.Close() })
	if err := s.prepare(tb.Context()); err != nil {
		tb.Fatal(err)
	}
	recs, of, err := s.records(tb.Context(), &encoder{}, events)
	if err != nil {
		tb.Fatal(err)
	}
	if _, err := s.admit(tb.Context(), recs, events, of); err != nil {
		tb.Fatal(err)
	}
	recs = append(recs, &kgo.Record{Topic: s.c.Places, Key: []byte(s.c.Destination), Value: place})
	if errs, err := s.produce(tb.Context(), recs); err != nil || failed(errs) >= 0 {
		tb.Fatal(errs, err)
	}
	return Open{s}
}

// Commit goes on where it was left.
func (o Open) Commit() error { return o.s.cl.EndTransaction(context.Background(), kgo.TryCommit) }

// LoseCommit lets the next commit arrive or not, and its answer never.
func LoseCommit(s *Sink, arrives bool) {
	s.commitTxn = func(ctx context.Context) error {
		if arrives {
			if err := s.cl.EndTransaction(ctx, kgo.TryCommit); err != nil {
				return err
			}
		}
		return errors.New("the connection was cut")
	}
}

// Refresh lets the clients of a sink ask for the partitions again.
func Refresh(s onewrite.Sink) {
	switch s := s.(type) {
	case *Sink:
		s.cl.ForceMetadataRefresh()
	case *Idempotent:
		for _, p := range s.all {
			p.cl.ForceMetadataRefresh()
		}
	}
}

// HandedOver reports whether the client sends nothing of a write before it has all of
// it.
func HandedOver(s *Idempotent) bool {
	for _, p := range s.all {
		sent := make(chan struct{})
		p.cl.Produce(context.Background(), &kgo.Record{Topic: s.c.Places, Key: []byte(s.c.Destination + ownerKey)}, func(*kgo.Record, error) { close(sent) })
		select {
		case <-sent:
			return false
		case <-time.After(time.Second): // a client that does not wait has sent it long before
		}
		if p.cl.Flush(context.Background()) != nil {
			return false
		}
		<-sent
	}
	return true
}

// Impatient lets another copy take over soon, and a place be tidied up often.
func Impatient(c *BusConfig, lease time.Duration, slack int64) { c.lease, c.slack = lease, slack }

// Mark is the header of record i of an append of n that begins at an offset.
func Mark(first int64, n, i int, seq, nonce uint64) kgo.RecordHeader {
	m := newMark(first, n)
	m.seq, m.nonce = seq, nonce
	return m.header(i)
}

// RunMark is the header of record i of an append of n that begins at an offset, in a run
// that begins at an earlier one.
func RunMark(run, at int64, n, i int, seq, nonce uint64) kgo.RecordHeader {
	m := newMark(at, n)
	m.first, m.seq, m.nonce = run, seq, nonce
	return m.header(i)
}

// Run returns the offset at which the run of a record begins.
func Run(r *kgo.Record) int64 {
	m, _ := markOf(r)
	return m.first
}

// SumAndSize are the sum in the mark of a record, and what the record takes.
func SumAndSize(r *kgo.Record) (sum, size uint64) {
	m, _ := markOf(r)
	return m.sum, uint64(sizeOf(r))
}

// Busy reports whether somebody reads or writes the place of a subscription.
func Busy(s onewrite.Subscription) bool { return len(s.(*subscription).place.busy) > 0 }

// Leader is the broker by which a topic of the bus is written and read; -1: none.
func Leader(t kmsg.MetadataResponseTopic) int32 { return detailOf(t).leader }
