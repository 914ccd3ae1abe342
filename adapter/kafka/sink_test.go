package kafka_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/adapter/kafka"
	"github.com/onewrite/onewrite/internal/servers"
)

// opened is each kind of sink.
var opened = map[string]func(tb testing.TB, c kafka.Config) onewrite.Sink{
	"transactions": func(tb testing.TB, c kafka.Config) onewrite.Sink { return newSink(tb, c) },
	"idempotent":   func(tb testing.TB, c kafka.Config) onewrite.Sink { return newIdempotent(tb, c) },
}

func each(t *testing.T, f func(t *testing.T, open func(tb testing.TB, c kafka.Config) onewrite.Sink)) {
	for name, open := range opened {
		t.Run(name, func(t *testing.T) { f(t, open) })
	}
}

func write(tb testing.TB, s onewrite.Sink, events ...onewrite.Event) {
	tb.Helper()
	if n, err := s.Write(tb.Context(), events); n != len(events) || err != nil {
		tb.Fatalf("Write of %d events = %d, %v", len(events), n, err)
	}
}

// TestRecord: the record is what the CloudEvents binding says.
func TestRecord(t *testing.T) {
	k := servers.Kafka(t)
	each(t, func(t *testing.T, open func(tb testing.TB, c kafka.Config) onewrite.Sink) {
		name := unique("record")
		s := open(t, kafka.Config{Brokers: []string{k.Addr()}, Destination: unique("record"), Topic: name + ".{source}.{topic}-{type}", Partitions: 1})
		evs := events("order", 3, "k/ü")
		evs[0].Type, evs[1].Type, evs[2].Type = "x", "x", "x"
		evs[1].Key, evs[1].Data, evs[1].ContentType = "", nil, ""
		evs[2].Data = []byte{}
		write(t, s, evs...)
		recs := records(t, k, name+".shop.order-x")
		if len(recs) != 3 {
			t.Fatalf("%d records", len(recs))
		}
		headers := map[string]string{}
		for _, h := range recs[0].Headers {
			headers[h.Key] = string(h.Value)
		}
		for name, want := range map[string]string{"ce_specversion": "1.0", "ce_id": evs[0].ID, "ce_source": "/shop", "ce_type": "x", "ce_time": "2024-02-29T12:30:59Z",
			"ce_topic": "order", "ce_partitionkey": "k/ü", "ce_sequence": evs[0].Seq, "content-type": "application/json"} {
			if headers[name] != want {
				t.Errorf("header %s = %q, want %q", name, headers[name], want)
			}
		}
		if string(recs[0].Key) != "k/ü" || recs[1].Key != nil || recs[1].Value != nil || recs[2].Value == nil || len(recs[2].Value) != 0 || !bytes.Equal(recs[0].Value, evs[0].Data) {
			t.Errorf("keys %q %q, values %q %v %v", recs[0].Key, recs[1].Key, recs[0].Value, recs[1].Value, recs[2].Value)
		}
	})
}

// TestTombstones: behind a delete comes null, in its partition and its transaction.
func TestTombstones(t *testing.T) {
	k := servers.Kafka(t)
	each(t, func(t *testing.T, open func(tb testing.TB, c kafka.Config) onewrite.Sink) {
		for _, on := range []bool{true, false} {
			name := unique("rows")
			s := open(t, kafka.Config{Brokers: []string{k.Addr()}, Destination: unique("rows"), Tombstones: on})
			evs := events(name, 4, `{"id":1}`, `{"id":2}`)
			for i := range evs {
				evs[i].Type, evs[i].Tx = []string{"insert", "delete", "delete", "delete"}[i], onewrite.Tx{ID: "7", Index: i}
			}
			evs[3].Tx = onewrite.Tx{} // an outbox event of that type is no delete of a row
			write(t, s, evs...)
			var got []string
			for _, r := range records(t, k, name) {
				if r.Value == nil && string(r.Key) == `{"id":1}` || r.Value != nil && len(r.Headers) > 0 && string(r.Key) == `{"id":1}` {
					got = append(got, fmt.Sprint(r.Value == nil, len(r.Headers) > 0))
				}
			}
			want := []string{"false true", "false true", "true false"}
			if !on {
				want = want[:2]
			}
			if !slices.Equal(got, want) {
				t.Errorf("tombstones %v: %v, want %v", on, got, want)
			}
		}
	})
}

// TestTopics: what becomes of topics that are missing, impossible or not ours.
func TestTopics(t *testing.T) {
	k := servers.Kafka(t)
	each(t, func(t *testing.T, open func(tb testing.TB, c kafka.Config) onewrite.Sink) {
		name := unique("topics")
		s := open(t, kafka.Config{Brokers: []string{k.Addr()}, Destination: name, NoCreate: true})
		evs := events(name, 4, "k")
		n, err := s.Write(t.Context(), evs)
		var answered interface{ Answered() bool }
		if n != 0 || !errors.As(err, &answered) || !answered.Answered() || errors.Is(err, onewrite.ErrRejected) || !strings.Contains(err.Error(), "kafka-topics.sh --bootstrap-server "+k.Addr()+" --create --topic "+name+" ") {
			t.Errorf("a missing topic: %d, %v", n, err)
		}
		topic(t, k, name, 2)
		evs[3].Topic = name + "-missing"
		for deadline := time.Now().Add(time.Minute); ; { // brokers hear of a new topic one after the other
			n, err = s.Write(t.Context(), evs)
			if n > 0 || time.Now().After(deadline) {
				break
			}
		}
		if n != 3 || !errors.As(err, &answered) {
			t.Errorf("a missing topic behind one that is there: %d, %v", n, err)
		}
		for _, odd := range []string{"public.my table", "ä", "a/b", "", "..", strings.Repeat("x", 250), "__consumer_offsets", "onewrite-places"} {
			evs[1].Topic = odd
			n, err := s.Write(t.Context(), evs[:3])
			if n != 1 || !errors.Is(err, onewrite.ErrRejected) || !strings.Contains(err.Error(), "topic:") {
				t.Errorf("topic %q: %d, %v", odd, n, err)
			}
		}
		if got := decode(t, records(t, k, name)); len(got) < 4 || slices.Contains(ids(got), evs[3].ID) {
			t.Errorf("arrived: %v", ids(got))
		}
		s = open(t, kafka.Config{Brokers: []string{k.Addr()}, Destination: unique(name), Partitions: 7})
		write(t, s, events(name+"-seven", 1, "k")...)
		with(t, k, func(ctx context.Context, adm *kadm.Client) error {
			all, err := adm.ListTopics(ctx, name+"-seven")
			if len(all[name+"-seven"].Partitions) != 7 {
				t.Errorf("%d partitions", len(all[name+"-seven"].Partitions))
			}
			return err
		})
		s = open(t, kafka.Config{Brokers: []string{k.Addr()}, Destination: unique(name), Replication: 3})
		if n, err := s.Write(t.Context(), events(name+"-three", 1, "k")); n != 0 || err == nil || steers(err) || !strings.Contains(err.Error(), "replication:") {
			t.Errorf("more copies than brokers: %d, %v", n, err)
		}
		// Kafka itself does not allow a topic that differs from another by . and _ alone.
		write(t, open(t, kafka.Config{Brokers: []string{k.Addr()}, Destination: unique(name)}), events(name+".a", 1, "k")...)
		s = open(t, kafka.Config{Brokers: []string{k.Addr()}, Destination: unique(name)})
		if n, err := s.Write(t.Context(), events(name+"_a", 1, "k")); n != 0 || !errors.Is(err, onewrite.ErrRejected) {
			t.Errorf("a topic that collides: %d, %v", n, err)
		}
	})
}

// TestRefusedByTheBroker: the broker refuses a whole batch for one record. The right
// one is named, what is before it is there, and nothing of its key behind it.
func TestRefusedByTheBroker(t *testing.T) {
	k := servers.Kafka(t)
	each(t, func(t *testing.T, open func(tb testing.TB, c kafka.Config) onewrite.Sink) {
		for _, bad := range []int{57, 1, 999, 1, 1} { // what is first may have gone before the others are there
			name := unique("refused")
			topic(t, k, name, 2)
			s := open(t, kafka.Config{Brokers: []string{k.Addr()}, Destination: name, Compression: "none"})
			evs := events(name, 1000, "a", "b", "c", "d", "e")
			for range 8 { // so that the sink knows what the topic takes, and the next is news
				write(t, s, evs[0])
			}
			lower(t, k, name, "20000")
			evs[bad].Data = bytes.Repeat([]byte("x"), 30000)
			n, err := s.Write(t.Context(), evs[1:])
			if n == 0 && err != nil && !steers(err) { // what it knows of the topic is not so any more
				s = open(t, kafka.Config{Brokers: []string{k.Addr()}, Destination: name, Compression: "none"})
				n, err = s.Write(t.Context(), evs[1:])
			}
			if n != bad-1 || !errors.Is(err, onewrite.ErrRejected) || !strings.Contains(err.Error(), evs[bad].ID) || !strings.Contains(err.Error(), "max.message.bytes") {
				t.Fatalf("Write = %d, %v; want %d and %s refused", n, err, bad-1, evs[bad].ID)
			}
			got := ids(decode(t, records(t, k, name)))
			for i, e := range evs {
				there := slices.Contains(got, e.ID)
				if i < bad && !there {
					t.Errorf("event %d is not there", i)
				}
				if i >= bad && there && e.Key == evs[bad].Key {
					t.Errorf("event %d passed the refused one of its key", i)
				}
			}
		}
	})
}

// TestOneBatch: a write is in the client's hands as a whole before any of it is sent.
// Else a later record of a key could be in another batch than one that is refused.
func TestOneBatch(t *testing.T) {
	k := servers.Kafka(t)
	if !kafka.HandedOver(newIdempotent(t, kafka.Config{Brokers: []string{k.Addr()}, Destination: unique("whole")})) {
		t.Error("a record is sent before the others are there")
	}
}

// lower sets the largest batch of a topic, and waits until the broker goes by it.
func lower(t *testing.T, k *servers.KafkaServer, topic, limit string) {
	t.Helper()
	with(t, k, func(ctx context.Context, adm *kadm.Client) error {
		_, err := adm.AlterTopicConfigs(ctx, []kadm.AlterConfig{{Op: kadm.SetConfig, Name: "max.message.bytes", Value: &limit}}, topic)
		return err
	})
	cl, err := kgo.NewClient(kgo.SeedBrokers(k.Addr()), kgo.TransactionalID("lower-"+topic), kgo.ProducerBatchCompression(kgo.NoCompression()))
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	for deadline := time.Now().Add(patience); ; {
		if err := cl.BeginTransaction(); err != nil {
			t.Fatal(err)
		}
		err := cl.ProduceSync(t.Context(), &kgo.Record{Topic: topic, Value: make([]byte, 500_000)}).FirstErr()
		if err := cl.EndTransaction(t.Context(), kgo.TryAbort); err != nil {
			t.Fatal(err)
		}
		if errors.Is(err, kerr.MessageTooLarge) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("the topic does not get smaller: %v", err)
		}
	}
}

// TestUntoldLimit: who may not ask what a topic takes blames no event for a batch that
// was too large.
func TestUntoldLimit(t *testing.T) {
	k := servers.Kafka(t)
	name := unique("untold")
	topic(t, k, name, 1, "max.message.bytes", "20000")
	with(t, k, func(ctx context.Context, adm *kadm.Client) error {
		_, err := adm.CreateACLs(ctx, kadm.NewACLs().Topics(name, "onewrite-places").Operations(kadm.OpWrite, kadm.OpRead).Allow("User:"+k.Limited).AllowHosts().ResourcePatternType(kadm.ACLPatternLiteral))
		if err != nil {
			return err
		}
		_, err = adm.CreateACLs(ctx, kadm.NewACLs().TransactionalIDs("onewrite-"+name).Operations(kadm.OpWrite).Allow("User:"+k.Limited).AllowHosts().ResourcePatternType(kadm.ACLPatternLiteral))
		return err
	})
	_ = newSink(t, kafka.Config{Brokers: []string{k.Addr()}, Destination: unique("untold")}).Close() // makes the topic of places
	c := kafka.Config{Brokers: []string{k.SASL()}, Destination: name, Compression: "none", SASL: &kafka.SASL{Mechanism: "plain", User: k.Limited, Password: k.Password}}
	s := newSink(t, c)
	evs := events(name, 200, "a", "b")
	if _, err := s.WriteAt(t.Context(), messages(evs), []byte("x")); err == nil || steers(err) || !strings.Contains(err.Error(), "DescribeConfigs") {
		t.Errorf("a batch that is too large: %v", err)
	}
	evs[7].Data = bytes.Repeat([]byte("x"), 30000)
	if bad, err := s.WriteAt(t.Context(), messages(evs[:20]), []byte("x")); bad != 7 || !errors.Is(err, onewrite.ErrRejected) {
		t.Errorf("an event that is too large: %d, %v", bad, err)
	}
	i := newIdempotent(t, c)
	if n, err := i.Write(t.Context(), evs); n != 7 || !errors.Is(err, onewrite.ErrRejected) {
		t.Errorf("an event that is too large, without transactions: %d, %v", n, err)
	}
	write(t, i, evs[8:]...)
}

// TestBigger: a topic that takes more by now does so after the sink was opened again.
func TestBigger(t *testing.T) {
	k := servers.Kafka(t)
	each(t, func(t *testing.T, open func(tb testing.TB, c kafka.Config) onewrite.Sink) {
		name := unique("bigger")
		c := kafka.Config{Brokers: []string{k.Addr()}, Destination: name}
		s := open(t, c)
		big := events(name, 1, "k")
		big[0].Data = make([]byte, 3<<20)
		if n, err := s.Write(t.Context(), big); n != 0 || !errors.Is(err, onewrite.ErrRejected) {
			t.Fatalf("Write of 3 MiB = %d, %v", n, err)
		}
		limit := "8000000"
		with(t, k, func(ctx context.Context, adm *kadm.Client) error {
			_, err := adm.AlterTopicConfigs(ctx, []kadm.AlterConfig{{Op: kadm.SetConfig, Name: "max.message.bytes", Value: &limit}}, name)
			return err
		})
		for deadline := time.Now().Add(patience); ; { // the broker learns of it a moment later
			n, err := s.Write(t.Context(), big)
			if n != 0 || err == nil || time.Now().After(deadline) {
				t.Fatalf("Write after the limit was raised = %d, %v; want one that lets the sink be opened again", n, err)
			}
			if !steers(err) {
				break
			}
		}
		write(t, open(t, c), big...)
	})
}

// clientTLS is a configuration that trusts the broker, with a certificate of ours or
// without.
func clientTLS(t *testing.T, k *servers.KafkaServer, own bool) *tls.Config {
	t.Helper()
	pem, err := os.ReadFile(k.CA)
	if err != nil {
		t.Fatal(err)
	}
	c := &tls.Config{RootCAs: x509.NewCertPool()}
	c.RootCAs.AppendCertsFromPEM(pem)
	if own {
		pair, err := tls.LoadX509KeyPair(k.ClientCert, k.ClientKey)
		if err != nil {
			t.Fatal(err)
		}
		c.Certificates = []tls.Certificate{pair}
	}
	return c
}

// TestLogin: every way in, with and without TLS, and the wrong ones.
func TestLogin(t *testing.T) {
	k := servers.Kafka(t)
	each(t, func(t *testing.T, open func(tb testing.TB, c kafka.Config) onewrite.Sink) {
		for _, m := range []string{"plain", "scram-sha-256", "scram-sha-512", "oauthbearer"} {
			name := unique("login")
			for i, address := range []string{k.SASL(), k.SASLTLS()} {
				c := kafka.Config{Brokers: []string{address}, Destination: name, SASL: &kafka.SASL{Mechanism: m, User: k.User, Password: k.Password, Token: k.Bearer(k.User)}}
				if i == 1 {
					c.TLS = clientTLS(t, k, false)
				}
				s := open(t, c)
				write(t, s, events(name, 2, "k")...)
				_ = s.Close()
				c.SASL = &kafka.SASL{Mechanism: m, User: k.User, Password: "sesame-wrong", Token: "x." + k.Bearer(k.User)}
				if _, err := kafka.New(t.Context(), c); err == nil || steers(err) || strings.Contains(err.Error(), "sesame") || !strings.Contains(err.Error(), "SASL") && !strings.Contains(strings.ToLower(err.Error()), "auth") {
					t.Errorf("%s with a wrong secret: %v", m, err)
				}
			}
		}
		name := unique("login")
		for _, own := range []bool{false, true} {
			write(t, open(t, kafka.Config{Brokers: []string{k.TLS()}, Destination: name, TLS: clientTLS(t, k, own)}), events(name, 2, "k")...)
		}
	})
	for what, c := range map[string]kafka.Config{
		"an unknown authority": {Brokers: []string{k.TLS()}, TLS: &tls.Config{}},
		"no TLS":               {Brokers: []string{k.TLS()}},
		"no login":             {Brokers: []string{k.SASL()}},
		"nobody there":         {Brokers: []string{"127.0.0.1:1"}},
		"a bad mechanism":      {Brokers: []string{k.SASL()}, SASL: &kafka.SASL{Mechanism: "kerberos"}},
		"a bad compression":    {Brokers: []string{k.Addr()}, Compression: "lzma"},
		"no brokers":           {},
	} {
		c.Destination = "x"
		if s, err := kafka.New(t.Context(), c); err == nil || steers(err) {
			t.Errorf("%s: %v, %v", what, s, err)
		}
	}
}

// TestRights: a user who lacks a right is told which.
func TestRights(t *testing.T) {
	k := servers.Kafka(t)
	name, places := unique("rights"), unique("rights-places")
	topic(t, k, name, 1)
	c := kafka.Config{Brokers: []string{k.SASL()}, Destination: name, Places: places, SASL: &kafka.SASL{Mechanism: "scram-sha-256", User: k.Limited, Password: k.Password}}
	allow := func(b *kadm.ACLBuilder) {
		t.Helper()
		with(t, k, func(ctx context.Context, adm *kadm.Client) error {
			made, err := adm.CreateACLs(ctx, b.Allow("User:"+k.Limited).AllowHosts().ResourcePatternType(kadm.ACLPatternLiteral))
			for _, m := range made {
				err = errors.Join(err, m.Err)
			}
			return err
		})
	}
	lacks := func(what string, texts ...string) {
		t.Helper()
		s, err := kafka.New(t.Context(), c)
		if err == nil {
			_, err = s.WriteAt(t.Context(), messages(events(name, 1, "k")), []byte("x"))
			_ = s.Close()
		}
		for _, text := range append(texts, "User:"+k.Limited) {
			if err == nil || !strings.Contains(err.Error(), text) {
				t.Errorf("%s: no %q in: %v", what, text, err)
			}
		}
		if errors.Is(err, onewrite.ErrRejected) || errors.Is(err, onewrite.ErrFenced) {
			t.Errorf("%s: %v", what, err)
		}
	}
	lacks("no right at all", "kafka-acls.sh", places)
	topic(t, k, places, 1, "cleanup.policy", "compact")
	lacks("the topic is there", "kafka-acls.sh", places)
	allow(kadm.NewACLs().Topics(places).Operations(kadm.OpWrite, kadm.OpRead))
	lacks("no right to transactions", "--transactional-id onewrite-"+name)
	allow(kadm.NewACLs().TransactionalIDs("onewrite-" + name).Operations(kadm.OpWrite))
	lacks("no right to the topic", "--topic "+name)
	allow(kadm.NewACLs().Topics(name).Operations(kadm.OpWrite))
	s := newSink(t, c)
	if p := place(t, s); p != nil {
		t.Fatalf("place %q", p)
	}
	writeAt(t, s, events(name, 1, "k"), "x")
	// An answer about one topic is none about another that is new to the sink.
	s = newSink(t, c)
	bad, err := s.WriteAt(t.Context(), messages(append(events(name, 1, "k"), events(name+"-new", 1, "k")...)), []byte("y"))
	var answered interface{ Answered() bool }
	if bad != 1 || !errors.As(err, &answered) || !strings.Contains(err.Error(), "Create") {
		t.Errorf("no right to create: %d, %v", bad, err)
	}
}

// TestReadable: what is compressed in any way can be read.
func TestReadable(t *testing.T) {
	k := servers.Kafka(t)
	each(t, func(t *testing.T, open func(tb testing.TB, c kafka.Config) onewrite.Sink) {
		for _, codec := range []string{"none", "gzip", "snappy", "lz4", "zstd"} {
			name := unique("codec")
			evs := events(name, 50, "a", "b")
			write(t, open(t, kafka.Config{Brokers: []string{k.Addr()}, Destination: name, Compression: codec}), evs...)
			recs := records(t, k, name)
			if got := decode(t, recs); len(got) != 50 {
				t.Errorf("%s: %d events", codec, len(got))
			}
			for _, r := range recs {
				if r.Attrs.CompressionType() == 0 { // a batch of a few events may be smaller without
					continue
				}
				if is := map[uint8]string{0: "none", 1: "gzip", 2: "snappy", 3: "lz4", 4: "zstd"}[r.Attrs.CompressionType()]; is != codec {
					t.Errorf("%s: a batch is compressed by %s", codec, is)
					break
				}
			}
		}
	})
}

// TestDeletedTopic: a topic that is deleted while the sink is open is created again.
func TestDeletedTopic(t *testing.T) {
	k := servers.Kafka(t)
	each(t, func(t *testing.T, open func(tb testing.TB, c kafka.Config) onewrite.Sink) {
		name := unique("deleted")
		c := kafka.Config{Brokers: []string{k.Addr()}, Destination: name}
		s := open(t, c)
		evs := events(name, 20, "a", "b")
		write(t, s, evs[:10]...)
		with(t, k, func(ctx context.Context, adm *kadm.Client) error {
			_, err := adm.DeleteTopic(ctx, name)
			return err
		})
		for deadline := time.Now().Add(patience); ; {
			n, err := s.Write(t.Context(), evs[10:])
			if err == nil {
				break
			}
			if n != 0 || errors.Is(err, onewrite.ErrRejected) || errors.Is(err, onewrite.ErrFenced) || time.Now().After(deadline) {
				t.Fatalf("Write = %d, %v", n, err)
			}
			var answered interface{ Answered() bool }
			if !errors.As(err, &answered) { // as the pipeline does after what is no answer
				_ = s.Close()
				s = open(t, c)
			}
		}
		got := ids(decode(t, records(t, k, name)))
		for _, e := range evs[10:] {
			if !slices.Contains(got, e.ID) {
				t.Errorf("event %s is missing", e.ID)
			}
		}
	})
}
