package bench

import (
	"bytes"
	"fmt"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	natsgo "github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// floor is the embedded bus without onewrite: the same server, stream settings
// and messages, atomic batches published by hand, every batch synced.
type floor struct {
	nc *natsgo.Conn
	n  int
}

func newFloor(b *testing.B) *floor {
	b.Helper()
	s, err := server.NewServer(&server.Options{ServerName: "floor", DontListen: true, JetStream: true, StoreDir: filepath.Join(b.TempDir(), "floor"), SyncAlways: true, NoSigs: true, NoLog: true})
	if err != nil {
		b.Fatal(err)
	}
	s.Start()
	if !s.ReadyForConnections(10 * time.Second) {
		b.Fatal("the server is not ready")
	}
	nc, err := natsgo.Connect("", natsgo.InProcessServer(s))
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { nc.Close(); s.Shutdown(); s.WaitForShutdown() })
	js, err := jetstream.New(nc)
	if err != nil {
		b.Fatal(err)
	}
	if _, err := js.CreateStream(b.Context(), jetstream.StreamConfig{Name: "floor", Subjects: []string{"floor.>"}, Storage: jetstream.FileStorage, AllowAtomicPublish: true, AllowDirect: true}); err != nil {
		b.Fatal(err)
	}
	return &floor{nc: nc}
}

// messages returns n messages with the headers that a real event carries.
func (f *floor) messages(n int) []*natsgo.Msg {
	f.n++
	id := "b" + strconv.Itoa(f.n)
	msgs := make([]*natsgo.Msg, n)
	for i := range msgs {
		m := natsgo.NewMsg("floor.order.placed")
		m.Data = []byte(payload)
		m.Header = natsgo.Header{
			"ce-specversion": {"1.0"}, "ce-id": {fmt.Sprintf("0190a0a0-0000-7000-8000-%012d", f.n*1000+i)}, "ce-source": {"/shop"}, "ce-type": {"order.placed"},
			"ce-time": {"2026-01-02T15:04:05.123456Z"}, "ce-datacontenttype": {"application/json"}, "content-type": {"application/json"}, "ce-topic": {"order.placed"},
			"ce-partitionkey": {"k" + strconv.Itoa(i)}, "ce-sequence": {fmt.Sprintf("%020d", f.n*1000+i)},
			"Nats-Batch-Id": {id}, "Nats-Batch-Sequence": {strconv.Itoa(i + 1)},
		}
		msgs[i] = m
	}
	msgs[n-1].Header["Nats-Batch-Commit"] = []string{"1"}
	return msgs
}

// batch publishes one atomic batch and waits until it is synced.
func (f *floor) batch(b *testing.B, msgs []*natsgo.Msg) {
	b.Helper()
	if _, err := f.nc.RequestMsg(msgs[0], 10*time.Second); err != nil {
		b.Fatal(err)
	}
	for _, m := range msgs[1 : len(msgs)-1] {
		if err := f.nc.PublishMsg(m); err != nil {
			b.Fatal(err)
		}
	}
	r, err := f.nc.RequestMsg(msgs[len(msgs)-1], 10*time.Second)
	if err != nil {
		b.Fatal(err)
	}
	if want := fmt.Sprintf(`"count":%d`, len(msgs)); !bytes.Contains(r.Data, []byte(want)) {
		b.Fatalf("batch not stored: %s", r.Data)
	}
}

// rate publishes n messages in batches and returns messages/s. The messages are
// made beforehand: the floor is the bus, not the making of messages.
func (f *floor) rate(b *testing.B, n, size int) float64 {
	b.Helper()
	var took time.Duration
	for done := 0; done < n; done += size {
		msgs := f.messages(size)
		start := time.Now()
		f.batch(b, msgs)
		took += time.Since(start)
	}
	return float64(n) / took.Seconds()
}

// BenchmarkFloor reports the bus's floor at several batch sizes.
func BenchmarkFloor(b *testing.B) {
	for _, size := range []int{100, 500, 1000} {
		b.Run(strconv.Itoa(size), func(b *testing.B) {
			f := newFloor(b)
			for b.Loop() {
				b.ReportMetric(f.rate(b, 100*size, size), "events/s")
			}
		})
	}
}
