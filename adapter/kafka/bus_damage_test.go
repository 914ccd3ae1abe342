package kafka_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/adapter/kafka"
	"github.com/onewrite/onewrite/internal/retention"
	"github.com/onewrite/onewrite/internal/servers"
)

// intrude writes records to a topic as another program does.
func intrude(t *testing.T, k *servers.KafkaServer, topic string, recs ...*kgo.Record) {
	t.Helper()
	with(t, k, func(ctx context.Context, _ *kadm.Client) error {
		cl, err := kgo.NewClient(kgo.SeedBrokers(k.Addr()), kgo.DefaultProduceTopic(topic), kgo.RecordPartitioner(kgo.ManualPartitioner()))
		if err != nil {
			return err
		}
		defer cl.Close()
		return cl.ProduceSync(ctx, recs...).FirstErr()
	})
}

// torn is record i of an append of n that begins at an offset, and with event seq.
func torn(id string, first int64, n, i int, seq uint64) *kgo.Record {
	return &kgo.Record{Value: []byte("torn"), Headers: []kgo.RecordHeader{
		kafka.Mark(first, n, i, seq, 1), {Key: "ce_specversion", Value: []byte("1.0")}, {Key: "ce_id", Value: []byte(id)},
		{Key: "ce_source", Value: []byte("/shop")}, {Key: "ce_type", Value: []byte("torn")},
	}}
}

// TestBusTorn: what a writer that died left behind does not count when a later batch ends
// where its own was to end.
func TestBusTorn(t *testing.T) {
	k := servers.Kafka(t)
	c := kafka.BusConfig{Brokers: []string{k.Addr()}, Name: unique("torn")}
	b := openBus(t, c)
	defer b.Close()
	if _, err := b.Append(t.Context(), "shop", "", shop(1, 3)); err != nil {
		t.Fatal(err)
	}
	intrude(t, k, c.Name+".log.shop", torn("torn-4", 3, 4, 0, 4), torn("torn-5", 3, 4, 1, 4)) // 5 and 6 never come
	if pos, last, err := b.Position(t.Context(), "shop"); err != nil || pos != "3" || last != 3 {
		t.Fatalf("position %q at %d, %v", pos, last, err)
	}
	if _, err := b.Append(t.Context(), "shop", "3", shop(4, 2)); err != nil { // at 5 and 6
		t.Fatal(err)
	}
	whole(t, readAll(t, b, 5), 5)
}

// TestBusTornForget: half of a Forget takes nothing that is parked.
func TestBusTornForget(t *testing.T) {
	k := servers.Kafka(t)
	c := kafka.BusConfig{Brokers: []string{k.Addr()}, Name: unique("forget")}
	b := openBus(t, c)
	defer b.Close()
	sub := subscribe(t, b, "d")
	if _, err := sub.Park(t.Context(), onewrite.Parked{Message: message(1), At: time.Now()}); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(sub.Commit(t.Context(), floor(1)), sub.Close()); err != nil {
		t.Fatal(err)
	}
	topic := c.Name + ".place.d"
	var end int64
	with(t, k, func(ctx context.Context, adm *kadm.Client) error {
		ends, err := adm.ListEndOffsets(ctx, topic)
		e, _ := ends.Lookup(topic, 0)
		end = e.Offset
		return err
	})
	intrude(t, k, topic, &kgo.Record{Headers: []kgo.RecordHeader{kafka.Mark(end, 2, 0, 0, 1), {Key: "onewrite-cleaned"}}})
	again := openBus(t, c)
	defer again.Close()
	sub = subscribe(t, again, "d")
	list, err := sub.Parked(t.Context(), 0, 9, nil)
	if err != nil || len(list) != 1 {
		t.Fatalf("parked: %d, %v; want the one", len(list), err)
	}
}

// TestBusControl: the end of another program's transaction is no record, and is passed.
func TestBusControl(t *testing.T) {
	k := servers.Kafka(t)
	c := kafka.BusConfig{Brokers: []string{k.Addr()}, Name: unique("control")}
	b := openBus(t, c)
	defer b.Close()
	if _, err := b.Append(t.Context(), "shop", "", shop(1, 3)); err != nil {
		t.Fatal(err)
	}
	with(t, k, func(ctx context.Context, _ *kadm.Client) error {
		cl, err := kgo.NewClient(kgo.SeedBrokers(k.Addr()), kgo.DefaultProduceTopic(c.Name+".log.shop"), kgo.TransactionalID(unique("")))
		if err != nil {
			return err
		}
		defer cl.Close()
		if err := cl.BeginTransaction(); err != nil {
			return err
		}
		if err := cl.ProduceSync(ctx, kgo.StringRecord("x")).FirstErr(); err != nil {
			return err
		}
		return cl.EndTransaction(ctx, kgo.TryCommit)
	})
	if pos, last, err := b.Position(t.Context(), "shop"); err != nil || pos != "3" || last != 3 {
		t.Fatalf("position %q at %d, %v", pos, last, err)
	}
	_, err := b.Append(t.Context(), "shop", "3", shop(4, 2))
	if errors.Is(err, onewrite.ErrFenced) { // the end of the transaction came after the look
		if _, _, err = b.Position(t.Context(), "shop"); err == nil {
			_, err = b.Append(t.Context(), "shop", "3", shop(4, 2))
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	whole(t, readAll(t, b, 5), 5)
}

// TestBusPlaceDeleted: a place whose topic was deleted from outside begins again.
func TestBusPlaceDeleted(t *testing.T) {
	k := servers.Kafka(t)
	c := kafka.BusConfig{Brokers: []string{k.Addr()}, Name: unique("place")}
	b := openBus(t, c)
	defer b.Close()
	if _, err := b.Append(t.Context(), "shop", "", shop(1, 3)); err != nil {
		t.Fatal(err)
	}
	sub := subscribe(t, b, "d")
	if err := sub.Commit(t.Context(), floor(2)); err != nil {
		t.Fatal(err)
	}
	with(t, k, func(ctx context.Context, adm *kadm.Client) error {
		_, err := adm.DeleteTopics(ctx, c.Name+".place.d")
		return err
	})
	t.Logf("commit: %v", sub.Commit(t.Context(), floor(3)))
	_ = sub.Close()
	var err error
	for deadline := time.Now().Add(40 * time.Second); time.Now().Before(deadline); time.Sleep(500 * time.Millisecond) {
		var s onewrite.Subscription
		if s, err = b.Subscribe(t.Context(), onewrite.Interest{Name: "d", Sources: []string{"shop"}}); err == nil {
			if err = s.Commit(t.Context(), floor(1)); err == nil {
				_ = s.Close()
				return
			}
			_ = s.Close()
		}
		t.Log(err)
	}
	t.Fatal(err)
}

// TestBusLogDeleted: a log that is deleted while it is read is read on when it is made anew.
func TestBusLogDeleted(t *testing.T) {
	k := servers.Kafka(t)
	c := kafka.BusConfig{Brokers: []string{k.Addr()}, Name: unique("log"), Vanished: func(d, s string, from, to uint64) { t.Log("vanished", d, s, from, to) }}
	b := openBus(t, c)
	defer b.Close()
	if _, err := b.Append(t.Context(), "shop", "", shop(1, 9)); err != nil {
		t.Fatal(err)
	}
	sub := subscribe(t, b, "d")
	ctx, cancel := context.WithTimeout(t.Context(), 40*time.Second)
	defer cancel()
	read := func(sub onewrite.Subscription, until string) (string, error) {
		for {
			msgs, _, err := sub.Read(ctx)
			if err != nil {
				return "", err
			}
			for _, m := range msgs {
				if m.ID == until {
					return fmt.Sprint(m.Offset), nil
				}
			}
		}
	}
	if _, err := read(sub, "9"); err != nil {
		t.Fatal(err)
	}
	if err := sub.Commit(ctx, floor(9)); err != nil {
		t.Fatal(err)
	}
	with(t, k, func(ctx context.Context, adm *kadm.Client) error {
		_, err := adm.DeleteTopics(ctx, c.Name+".log.shop")
		return err
	})
	pos := onewrite.Pos("9")
	for n := 0; n < 30; {
		batch := shop(10+n, 3)
		if _, err := b.Append(ctx, "shop", pos, batch); err != nil {
			t.Log(err)
			if p, last, err := b.Position(ctx, "shop"); err == nil {
				t.Logf("position %q at %d", p, last)
				pos = p
			} else {
				t.Log(err)
			}
			time.Sleep(200 * time.Millisecond)
			continue
		}
		n, pos = n+3, batch.Pos
	}
	var first []string
	for ctx.Err() == nil {
		msgs, _, err := sub.Read(ctx)
		if err != nil {
			t.Log("read: ", err)
			_ = sub.Close()
			if sub, err = b.Subscribe(t.Context(), onewrite.Interest{Name: "d", Sources: []string{"shop"}}); err != nil {
				t.Fatal(err)
			}
			continue
		}
		for _, m := range msgs {
			first = append(first, m.ID)
		}
		if len(first) >= 30 {
			break
		}
	}
	_ = sub.Close()
	if len(first) < 30 || first[0] != "10" {
		t.Fatalf("read %v", first)
	}
}

// TestBusRepartitioned: topics that were given more partitions are read and written on in
// the first one, by a copy that lives and by one that starts: nothing that is pending or
// parked is lost, and no order.
func TestBusRepartitioned(t *testing.T) {
	k := servers.Kafka(t)
	var said strings.Builder
	c := kafka.BusConfig{Brokers: []string{k.Addr()}, Name: unique("wide"), Logger: slog.New(slog.NewTextHandler(&said, nil))}
	b := openBus(t, c)
	if _, err := b.Append(t.Context(), "shop", "", shop(1, 5)); err != nil {
		t.Fatal(err)
	}
	sub := subscribe(t, b, "d")
	ref, err := sub.Park(t.Context(), onewrite.Parked{Message: message(1), At: time.Now()})
	if err = errors.Join(err, sub.Commit(t.Context(), floor(2))); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{c.Name + ".log.shop", c.Name + ".place.d", c.Name + ".bus"} {
		raise(t, k, name, 3)
	}
	if _, err := b.Append(t.Context(), "shop", "5", shop(6, 5)); err != nil {
		t.Fatalf("while it lives: %v", err)
	}
	id := b.ID()
	if err := errors.Join(sub.Commit(t.Context(), floor(3)), sub.Close(), b.Close()); err != nil {
		t.Fatalf("while it lives: %v", err)
	}
	b = openBus(t, c)
	defer func() { _ = b.Close() }()
	if pos, last, err := b.Position(t.Context(), "shop"); err != nil || pos != "10" || last != 10 || b.ID() != id {
		t.Fatalf("position %q at %d on bus %s, %v; was bus %s", pos, last, b.ID(), err, id)
	}
	if _, err := b.Append(t.Context(), "shop", "10", shop(11, 90)); err != nil {
		t.Fatal(err)
	}
	whole(t, readAll(t, b, 100), 100)
	sub = subscribe(t, b, "d")
	list, err := sub.Parked(t.Context(), 0, 9, nil)
	if err != nil || len(list) != 1 || list[0].Ref != ref {
		t.Fatalf("parked: %+v, %v", list, err)
	}
	if n, err := sub.Pending(t.Context(), floor(3).Logs); err != nil || n != 97 {
		t.Errorf("pending %d, %v", n, err)
	}
	if all, err := readIDs(t, sub, "100"); err != nil || len(all) != 97 || all[0] != "4" {
		t.Errorf("read %v, %v", all, err)
	}
	u, err := b.Retain(t.Context(), "shop", 90, retention.Keep{Size: 1})
	if err != nil || u.First != 11 {
		t.Errorf("%+v, %v", u, err)
	}
	if err := errors.Join(sub.Unpark(t.Context(), ref), sub.Commit(t.Context(), floor(100)), sub.Close()); err != nil {
		t.Fatal(err)
	}
	for _, r := range read(t, k, kgo.ReadUncommitted(), c.Name+".log.shop", c.Name+".place.d", c.Name+".bus") {
		if r.Partition != 0 {
			t.Errorf("record %d of topic %s is in partition %d", r.Offset, r.Topic, r.Partition)
		}
	}
	if !strings.Contains(said.String(), "log.shop has 3 partitions") {
		t.Errorf("it is not said: %s", said.String())
	}
}

// TestBusLeader: topics of the bus are led by who leads the first partition, in whatever
// order the brokers name them, and others may be without a leader.
func TestBusLeader(t *testing.T) {
	part := func(n, leader int32, code int16) kmsg.MetadataResponseTopicPartition {
		return kmsg.MetadataResponseTopicPartition{Partition: n, Leader: leader, ErrorCode: code}
	}
	away := kerr.LeaderNotAvailable.Code
	for _, c := range []struct {
		of   []kmsg.MetadataResponseTopicPartition
		want int32
	}{
		{nil, -1},
		{[]kmsg.MetadataResponseTopicPartition{part(0, 7, 0)}, 7},
		{[]kmsg.MetadataResponseTopicPartition{part(2, 4, 0), part(0, 7, 0), part(1, 5, 0)}, 7},
		{[]kmsg.MetadataResponseTopicPartition{part(0, 7, 0), part(1, -1, away)}, 7},
		{[]kmsg.MetadataResponseTopicPartition{part(0, -1, away), part(1, 5, 0)}, -1},
	} {
		if got := kafka.Leader(kmsg.MetadataResponseTopic{Partitions: c.of}); got != c.want {
			t.Errorf("of %+v: %d, want %d", c.of, got, c.want)
		}
	}
}

// TestBusLogDeletedUndelivered: a destination that has delivered nothing is told at once
// what it misses when the log is deleted, before anything new comes, whether onewrite is
// started again or not; and nothing that comes then is taken for what it has.
func TestBusLogDeletedUndelivered(t *testing.T) {
	k := servers.Kafka(t)
	gone := make(chan string, 100)
	c := kafka.BusConfig{Brokers: []string{k.Addr()}, Name: unique("late"), Vanished: func(d, s string, from, to uint64) { gone <- fmt.Sprint(d, " ", s, " ", from, " ", to) }}
	b := openBus(t, c)
	early := subscribe(t, b, "early") // before the log has anything
	if err := early.Commit(t.Context(), floor(0)); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Append(t.Context(), "shop", "", shop(1, 5)); err != nil {
		t.Fatal(err)
	}
	late := subscribe(t, b, "late")
	for _, sub := range []onewrite.Subscription{early, late} {
		if _, err := readIDs(t, sub, "5"); err != nil {
			t.Fatal(err)
		}
		if err := sub.Commit(t.Context(), floor(0)); err != nil {
			t.Fatal(err)
		}
	}
	if err := late.Close(); err != nil {
		t.Fatal(err)
	}
	with(t, k, func(ctx context.Context, adm *kadm.Client) error {
		_, err := adm.DeleteTopics(ctx, c.Name+".log.shop")
		return err
	})
	if all, err := readIDs(t, early, "6"); err == nil {
		t.Fatalf("read %v of a log that is not there", all)
	}
	if err := errors.Join(early.Close(), b.Close()); err != nil {
		t.Fatal(err)
	}
	b = openBus(t, c)
	defer func() { _ = b.Close() }()
	for _, name := range []string{"early", "late"} {
		sub := subscribe(t, b, name)
		select {
		case got := <-gone:
			if want := name + " shop 1 5"; got != want {
				t.Errorf("said %q, want %q", got, want)
			}
		default:
			t.Errorf("%s is not told before something new comes", name)
		}
		if err := sub.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if _, last, err := b.Position(t.Context(), "shop"); err != nil || last != 5 {
		t.Fatalf("the new log goes on behind %d, %v; want 5", last, err)
	}
	if _, err := b.Append(t.Context(), "shop", "", shop(6, 3)); err != nil {
		t.Fatal(err)
	}
	fresh := subscribe(t, b, "fresh")
	late = subscribe(t, b, "late")
	if cur, _ := late.Cursor(); cur.Skipped != 5 || cur.Logs["shop"].Floor != 5 {
		t.Errorf("the missing do not count: %+v", cur)
	}
	for _, sub := range []onewrite.Subscription{fresh, late} {
		if all, err := readIDs(t, sub, "8"); err != nil || len(all) != 3 {
			t.Errorf("read %v, %v", all, err)
		}
	}
	for len(gone) > 0 {
		if got := <-gone; strings.HasPrefix(got, "fresh") {
			t.Errorf("a destination that was not there before is told %q", got)
		}
	}
}

// data returns the folder that holds a broker's topics.
func data(t *testing.T, k *servers.KafkaServer) string {
	t.Helper()
	line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", k.Pid()))
	if err != nil {
		t.Skip("no /proc")
	}
	args := strings.Split(strings.TrimRight(string(line), "\x00"), "\x00")
	return filepath.Join(filepath.Dir(args[len(args)-1]), "data")
}

// again returns a function that puts topics, or all, of a broker back to how they are now.
func again(t *testing.T, k *servers.KafkaServer, topics ...string) (back func()) {
	t.Helper()
	dir, keep := data(t, k), t.TempDir()
	k.Kill(t)
	names := make([]string, len(topics))
	for i, name := range topics {
		names[i] = name + "-0"
	}
	if len(names) == 0 {
		list, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range list {
			names = append(names, e.Name())
		}
	}
	for _, name := range names {
		if out, err := exec.Command("cp", "-a", filepath.Join(dir, name), keep).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	k.Restart(t)
	return func() {
		k.Kill(t)
		for _, name := range names {
			if err := os.RemoveAll(filepath.Join(dir, name)); err != nil {
				t.Fatal(err)
			}
			if out, err := exec.Command("cp", "-a", filepath.Join(keep, name), dir).CombinedOutput(); err != nil {
				t.Fatalf("%v: %s", err, out)
			}
		}
		k.Restart(t)
	}
}

// others makes events that follow n, with ids of their own.
func others(n, count int) onewrite.Batch {
	b := shop(n+1, count)
	for i := range b.Events {
		b.Events[i].ID = "new-" + b.Events[i].ID
	}
	return b
}

func must[T any](t *testing.T) func(v T, err error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

// readIDs reads until an event comes.
func readIDs(t *testing.T, sub onewrite.Subscription, until string) (all []string, err error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	for {
		msgs, _, err := sub.Read(ctx)
		if err != nil {
			return all, err
		}
		for _, m := range msgs {
			if all = append(all, m.ID); m.ID == until {
				return all, nil
			}
		}
	}
}

// TestBusLostTail: a broker lost the end of a log, and other events came since. A
// destination that had seen the lost ones gets all of the others.
func TestBusLostTail(t *testing.T) {
	k := servers.NewKafka(t)
	c := kafka.BusConfig{Brokers: []string{k.Addr()}, Name: unique("tail"), Vanished: func(d, s string, from, to uint64) { t.Log("vanished", d, s, from, to) }}
	b := openBus(t, c)
	last := must[uint64](t)
	last(b.Append(t.Context(), "shop", "", shop(1, 10)))
	sub := subscribe(t, b, "d")
	if err := errors.Join(sub.Commit(t.Context(), floor(10)), sub.Close(), b.Close()); err != nil {
		t.Fatal(err)
	}
	back := again(t, k, c.Name+".log.shop")
	b = openBus(t, c)
	last(b.Append(t.Context(), "shop", "10", shop(11, 5)))
	sub = subscribe(t, b, "d")
	if err := errors.Join(sub.Commit(t.Context(), floor(15)), sub.Close(), b.Close()); err != nil {
		t.Fatal(err)
	}
	back()
	b = openBus(t, c)
	defer func() { _ = b.Close() }()
	pos, at, err := b.Position(t.Context(), "shop")
	if err != nil || pos != "10" {
		t.Fatalf("position %q at %d, %v", pos, at, err)
	}
	last(b.Append(t.Context(), "shop", "10", others(10, 10)))
	sub = subscribe(t, b, "d")
	n, err := sub.Pending(t.Context(), nil)
	if err != nil || n != 10 {
		t.Errorf("pending %d, %v; want 10", n, err)
	}
	all, err := readIDs(t, sub, "new-20")
	if err != nil || len(all) != 10 || all[0] != "new-11" {
		t.Fatalf("read %v, %v", all, err)
	}
	if u, err := b.Retain(t.Context(), "shop", 18, retention.Keep{Size: 1}); err != nil || u.First != 16 || u.Last != 25 { // an append goes as a whole
		t.Fatalf("%+v, %v", u, err)
	}
	if msgs := readAll(t, b, 10); msgs[0].Offset != 16 || msgs[0].ID != "new-11" { // what is not confirmed is there
		t.Fatalf("an onlooker begins at %d, %s", msgs[0].Offset, msgs[0].ID)
	}
}

// TestBusLostTailLive: the same while the copy lives, and all topics are put back.
func TestBusLostTailLive(t *testing.T) {
	k := servers.NewKafka(t)
	c := kafka.BusConfig{Brokers: []string{k.Addr()}, Name: unique("live"), Vanished: func(d, s string, from, to uint64) { t.Log("vanished", d, s, from, to) }}
	b := openBus(t, c)
	defer func() { _ = b.Close() }()
	last := must[uint64](t)
	last(b.Append(t.Context(), "shop", "", shop(1, 10)))
	sub := subscribe(t, b, "d")
	if err := sub.Commit(t.Context(), floor(10)); err != nil {
		t.Fatal(err)
	}
	back := again(t, k)
	if _, err := b.Append(t.Context(), "shop", "10", shop(11, 5)); err != nil { // the connection ended with the broker
		if pos, _, err := b.Position(t.Context(), "shop"); err != nil || pos != "10" {
			t.Fatal(pos, err)
		}
		last(b.Append(t.Context(), "shop", "10", shop(11, 5)))
	}
	if all, err := readIDs(t, sub, "15"); err != nil {
		t.Fatal(all, err)
	}
	if err := sub.Commit(t.Context(), floor(15)); err != nil {
		t.Fatal(err)
	}
	back()
	if n, err := sub.Pending(t.Context(), map[string]onewrite.LogCursor{"shop": {Floor: 10}}); err != nil || n != 0 {
		t.Errorf("pending %d, %v, and the log has no more", n, err)
	}
	pos := onewrite.Pos("15")
	for n := 0; n < 10; {
		batch := others(10+n, 10)
		if _, err := b.Append(t.Context(), "shop", pos, batch); err != nil {
			t.Log(err)
			p, at, err := b.Position(t.Context(), "shop")
			t.Log(p, at, err)
			pos = p
			continue
		}
		n, pos = n+10, batch.Pos
	}
	var all []string
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); {
		got, err := readIDs(t, sub, "new-20")
		if all = append(all, got...); err == nil {
			break
		}
		t.Log("read: ", err)
		_ = sub.Close()
		if sub, err = b.Subscribe(t.Context(), onewrite.Interest{Name: "d", Sources: []string{"shop"}}); err != nil {
			t.Fatal(err)
		}
		cur, _ := sub.Cursor()
		t.Logf("reopened at %+v", cur)
	}
	seen := map[string]bool{}
	for _, id := range all {
		seen[id] = true
	}
	for i := 11; i <= 20; i++ {
		if !seen[fmt.Sprint("new-", i)] {
			t.Errorf("event new-%d never came; came %v", i, all)
		}
	}
	_ = sub.Close()
}
