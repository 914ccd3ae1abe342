package servers_test

import (
	"testing"

	"github.com/onewrite/onewrite/internal/servers"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

// TestKafkaKeepsItsData kills the broker and starts it again.
func TestKafkaKeepsItsData(t *testing.T) {
	k := servers.NewKafka(t)
	cl, err := kgo.NewClient(kgo.SeedBrokers(k.Addr()))
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	adm := kadm.NewClient(cl)
	if _, err := adm.CreateTopic(t.Context(), -1, -1, nil, "kept"); err != nil {
		t.Fatal(err)
	}
	if err := cl.ProduceSync(t.Context(), &kgo.Record{Topic: "kept", Value: []byte("x")}).FirstErr(); err != nil {
		t.Fatal(err)
	}
	k.Kill(t)
	if pid := k.Pid(); pid != 0 {
		t.Fatalf("pid %d runs after Kill", pid)
	}
	k.Restart(t)
	ends, err := adm.ListEndOffsets(t.Context(), "kept")
	if err != nil {
		t.Fatal(err)
	}
	sum := int64(0)
	ends.Each(func(o kadm.ListedOffset) { sum += o.Offset })
	if sum != 1 || len(ends["kept"]) != 3 {
		t.Errorf("%d records in %d partitions after the restart", sum, len(ends["kept"]))
	}
}
