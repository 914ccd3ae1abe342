package kafka_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/adapter/kafka"
	"github.com/onewrite/onewrite/internal/servers"
)

func raise(t *testing.T, k *servers.KafkaServer, topic string, partitions int) {
	t.Helper()
	with(t, k, func(ctx context.Context, adm *kadm.Client) error {
		made, err := adm.UpdatePartitions(ctx, partitions, topic)
		if err == nil {
			err = made[topic].Err
		}
		return err
	})
}

// TestRepartitioned: another number of partitions stops events with a key until a
// person accepts it; once.
func TestRepartitioned(t *testing.T) {
	k := servers.Kafka(t)
	each(t, func(t *testing.T, open func(tb testing.TB, c kafka.Config) onewrite.Sink) {
		name := unique("more")
		topic(t, k, name, 2)
		c := kafka.Config{Brokers: []string{k.Addr()}, Destination: name}
		evs := events(name, 60, keysOf(10)...)
		write(t, open(t, c), evs[:20]...)
		raise(t, k, name, 5)
		s := open(t, c)
		for range 2 {
			n, err := s.Write(t.Context(), evs[20:40])
			if n != 0 || err == nil || steers(err) || !strings.Contains(err.Error(), "repartitioned: accept") || !strings.Contains(err.Error(), "has 5 partitions and had 2") {
				t.Fatalf("Write = %d, %v", n, err)
			}
		}
		free := evs[20]
		free.ID, free.Key = free.ID+"-free", ""
		write(t, s, free)
		accepted := c
		accepted.AcceptRepartitioned = true
		write(t, open(t, accepted), evs[20:40]...)
		write(t, open(t, c), evs[40:]...) // and it is the new number that is remembered
		if got := decode(t, records(t, k, name)); len(got) != 61 {
			t.Errorf("%d events, want 61", len(got))
		}
	})
}

// TestRepartitionedMeanwhile: a sink that is open never lets a key move. It goes on
// with the partitions it knows, and stops when it learns of more.
func TestRepartitionedMeanwhile(t *testing.T) {
	k := servers.Kafka(t)
	each(t, func(t *testing.T, open func(tb testing.TB, c kafka.Config) onewrite.Sink) {
		name := unique("meanwhile")
		topic(t, k, name, 2)
		s := open(t, kafka.Config{Brokers: []string{k.Addr()}, Destination: name})
		evs := events(name, 10, keysOf(10)...)
		write(t, s, evs...)
		raise(t, k, name, 9)
		var err error
		for deadline := time.Now().Add(patience); err == nil; {
			if time.Now().After(deadline) {
				t.Fatal("the sink never learned of the partitions")
			}
			kafka.Refresh(s)
			_, err = s.Write(t.Context(), evs)
		}
		if steers(err) || !strings.Contains(err.Error(), "repartitioned: accept") {
			t.Errorf("Write: %v", err)
		}
		if _, err := s.Write(t.Context(), evs); err == nil || steers(err) {
			t.Errorf("Write after it: %v", err)
		}
		for _, r := range records(t, k, name) {
			if r.Partition >= 2 {
				t.Errorf("key %s moved to partition %d", r.Key, r.Partition)
			}
		}
	})
}
