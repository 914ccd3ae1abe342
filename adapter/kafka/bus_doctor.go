package kafka

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/onewrite/onewrite/internal/diagnosis"
)

// ExamineBus looks at the cluster that is the bus, and says what it finds; the caller
// adds the Subject. It creates and writes nothing. sources are the names of those that
// have a log there, or will have one.
func ExamineBus(ctx context.Context, b BusConfig, sources []string) []diagnosis.Finding {
	err := b.complete()
	e := newExaminer(Config{Brokers: b.Brokers, SASL: b.SASL, TLS: b.TLS, Replication: b.Replicas, Idempotent: true, MaxEvent: b.MaxEvent}, err)
	if e.s.cl == nil {
		return e.Found
	}
	defer e.s.cl.Close()
	if !e.connect(ctx) {
		return e.Found
	}
	if e.brokers < 3 {
		e.Add(diagnosis.Warning, "copies", "run three brokers or more", "the cluster has %d broker(s): what is acknowledged is in the memory of one machine before it is on a disk, and lost with it", e.brokers)
	}
	e.busTopics(ctx, b, sources)
	return e.Found
}

// busTopics looks at the topics that are there, and whether the others can be made.
func (e *examiner) busTopics(ctx context.Context, b BusConfig, sources []string) {
	all, err := e.ask(ctx)
	if err != nil {
		e.Add(diagnosis.Problem, "topics", "", "the topics cannot be listed: %v", err)
		return
	}
	missing := map[string]bool{b.Name + ".bus": true}
	for _, s := range sources {
		missing[b.Name+".log."+s] = true
	}
	seen := 0
	for _, name := range slices.Sorted(maps.Keys(all)) {
		if name != b.Name+".bus" && !strings.HasPrefix(name, b.Name+".log.") && !strings.HasPrefix(name, b.Name+".place.") {
			continue
		}
		t := all[name]
		seen++
		delete(missing, name)
		for _, op := range []kadm.ACLOperation{kadm.OpWrite, kadm.OpRead, kadm.OpDelete} {
			if !may(t, op) {
				e.Add(diagnosis.Problem, "topics", e.allow(name, op.String()), "the user %s has no right to %s topic %s", e.s.user(), op, name)
			}
		}
		if n := len(t.Partitions); n > 1 {
			e.Add(diagnosis.Warning, "topics", "", "%s", firstOnly(name, n))
			t.Partitions = slices.DeleteFunc(t.Partitions, func(p kmsg.MetadataResponseTopicPartition) bool { return p.Partition != 0 })
		}
		e.keepsAll(ctx, name)
		if s := e.examined(ctx, t); s.limit > 0 && strings.HasPrefix(name, b.Name+".log.") {
			e.size("topic "+name, s.limit)
		}
	}
	switch {
	case len(missing) == 0:
		e.OK("topics", "%d topic(s) of this bus are there", seen)
	case e.mayCreate(ctx):
		e.OK("topics", "%d topic(s) of this bus are there; others are created", seen)
	default:
		first := slices.Sorted(maps.Keys(missing))[0]
		e.Add(diagnosis.Problem, "topics", fmt.Sprintf("kafka-acls.sh --add --allow-principal User:%s --operation All --topic %s. --resource-pattern-type prefixed", e.s.user(), b.Name),
			"topic %s is not there, and the user %s may not create topics in the whole cluster, unless by their names", first, e.s.user())
	}
}

// keepsAll looks at the settings by which a topic would lose events.
func (e *examiner) keepsAll(ctx context.Context, name string) {
	c := topicSettings(ctx, e.s.cl, name)[name]
	alter := func(key, value string) string {
		return fmt.Sprintf("kafka-configs.sh --alter --entity-type topics --entity-name %s --add-config %s=%s", name, key, value)
	}
	for _, key := range kept {
		want := *topicConfig(0)[key]
		if is, told := c[key]; told && is != want {
			e.Add(diagnosis.Problem, "retention", alter(key, want), "topic %s has %s=%s and would lose events", name, key, is)
		}
	}
	if c["unclean.leader.election.enable"] == "true" {
		e.Add(diagnosis.Problem, "copies", alter("unclean.leader.election.enable", "false"), "topic %s lets a broker lead that has not got all: events that were acknowledged could go", name)
	}
}
