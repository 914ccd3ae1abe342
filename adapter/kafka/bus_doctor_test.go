package kafka_test

import (
	"context"
	"slices"
	"strings"
	"testing"

	"github.com/twmb/franz-go/pkg/kadm"

	"github.com/onewrite/onewrite/adapter/kafka"
	"github.com/onewrite/onewrite/internal/diagnosis"
	"github.com/onewrite/onewrite/internal/servers"
)

// TestExamineBus: what would lose events is a problem with its cure, and a bus refuses to
// work with it.
func TestExamineBus(t *testing.T) {
	k := servers.Kafka(t)
	c := kafka.BusConfig{Brokers: []string{k.Addr()}, Name: unique("examined")}
	find := func(c kafka.BusConfig, check, text string) diagnosis.Finding {
		t.Helper()
		found := kafka.ExamineBus(t.Context(), c, []string{"shop"})
		i := slices.IndexFunc(found, func(f diagnosis.Finding) bool { return f.Check == check && strings.Contains(f.Text, text) })
		if i < 0 {
			t.Fatalf("no finding %s with %q in %+v", check, text, found)
		}
		return found[i]
	}
	if f := find(c, "topics", "0 topic(s)"); f.Severity != diagnosis.OK {
		t.Errorf("before the first start: %+v", f)
	}
	if f := find(c, "copies", "1 broker"); f.Severity != diagnosis.Warning {
		t.Errorf("one broker: %+v", f)
	}
	b := openBus(t, c)
	if _, err := b.Append(t.Context(), "shop", "", shop(1, 1)); err != nil {
		t.Fatal(err)
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	if f := find(c, "topics", "2 topic(s)"); f.Severity != diagnosis.OK {
		t.Errorf("after it: %+v", f)
	}
	log := c.Name + ".log.shop"
	with(t, k, func(ctx context.Context, adm *kadm.Client) error {
		_, err := adm.AlterTopicConfigs(ctx, []kadm.AlterConfig{{Op: kadm.SetConfig, Name: "retention.ms", Value: kadm.StringPtr("1000")}}, log)
		return err
	})
	f := find(c, "retention", log)
	if f.Severity != diagnosis.Problem || !strings.Contains(f.Cure, "retention.ms=-1") {
		t.Errorf("a topic that forgets: %+v", f)
	}
	b = openBus(t, c)
	defer b.Close()
	if _, _, err := b.Position(t.Context(), "shop"); err == nil || !strings.Contains(err.Error(), "retention.ms=-1") {
		t.Errorf("a bus on a topic that forgets: %v", err)
	}
	topic(t, k, c.Name+".place.d", 3)
	if f := find(c, "topics", "place.d has 3 partitions"); f.Severity != diagnosis.Warning || f.Cure != "" {
		t.Errorf("a place with three partitions: %+v", f)
	}
	if f := find(kafka.BusConfig{Brokers: []string{"127.0.0.1:1"}}, "connect", "127.0.0.1:1"); f.Severity != diagnosis.Problem || !strings.Contains(f.Cure, "nc -vz") {
		t.Errorf("nobody there: %+v", f)
	}
	if f := find(kafka.BusConfig{}, "configuration", "no broker"); f.Severity != diagnosis.Problem {
		t.Errorf("no brokers: %+v", f)
	}
}
