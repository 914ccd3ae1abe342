package kafka_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/onewrite/onewrite/adapter/kafka"
	"github.com/onewrite/onewrite/internal/diagnosis"
	"github.com/onewrite/onewrite/internal/servers"
)

// TestExamine: what is wrong is found, with its cure, and nothing is created.
func TestExamine(t *testing.T) {
	k := servers.Kafka(t)
	deletes, small, here := unique("deletes"), unique("small"), unique("here")
	topic(t, k, deletes, 1)
	topic(t, k, small, 1, "max.message.bytes", "2000")
	topic(t, k, here, 1, "min.insync.replicas", "2", "max.message.bytes", "9000000")
	limited := &kafka.SASL{Mechanism: "plain", User: k.Limited, Password: k.Password}
	fresh := unique("examined")
	for _, c := range []struct {
		name   string
		c      kafka.Config
		topics []string
		want   []string // severity check: text ... cure
	}{
		{"all is well", kafka.Config{Places: fresh}, []string{here + "x"}, []string{"ok connect: 1 broker(s), Kafka v4", "ok transactions: transactional.id onewrite-", "ok places: the topic " + fresh, "ok topics: 0 topic(s) match; others are created"}},
		{"away", kafka.Config{Brokers: []string{"127.0.0.1:1"}}, nil, []string{"problem connect: the brokers cannot be reached", "nc -vz 127.0.0.1 1"}},
		{"a wrong password", kafka.Config{Brokers: []string{k.SASL()}, SASL: &kafka.SASL{Mechanism: "plain", User: "admin", Password: "wrong-one"}}, nil, []string{"problem connect", "kafka-configs.sh"}},
		{"places that are forgotten", kafka.Config{Places: deletes}, nil, []string{"problem places: the topic of places " + deletes + " has cleanup.policy=delete", "add-config cleanup.policy=compact"}},
		{"a small topic", kafka.Config{}, []string{small}, []string{"warning size: " + small + " takes 2000 bytes", "max.message.bytes=1064960"}},
		{"copies out of sync", kafka.Config{}, []string{here}, []string{"problem copies: partition 0 of topic " + here + " has 1 copies in sync and needs 2"}},
		{"a missing topic", kafka.Config{NoCreate: true}, []string{here + "-y"}, []string{"problem topics: create_topics is false, and not there", "kafka-topics.sh --create --topic " + here + "-y"}},
		{"no rights", kafka.Config{Brokers: []string{k.SASL()}, SASL: limited}, nil, []string{"problem transactions", "--transactional-id onewrite-", "problem places", "kafka-acls.sh", "User:limited", "warning topics"}},
		{"an impossible name", kafka.Config{Places: "a b"}, nil, []string{"problem configuration"}},
	} {
		if c.c.Brokers == nil {
			c.c.Brokers = []string{k.Addr()}
		}
		c.c.Destination = unique("doctor")
		text := ""
		for _, f := range kafka.Examine(t.Context(), c.c, c.topics) {
			text += fmt.Sprintf("%v %s: %s; %s\n", f.Severity, f.Check, f.Text, f.Cure)
			if f.Severity != diagnosis.OK && f.Cure == "" && f.Check != "configuration" {
				t.Errorf("%s: no cure for: %s", c.name, f.Text)
			}
		}
		for _, want := range c.want {
			if !strings.Contains(text, want) {
				t.Errorf("%s: no %q in:\n%s", c.name, want, text)
			}
		}
		if strings.Contains(text, "wrong-one") || strings.Contains(text, k.Password) {
			t.Errorf("%s: a password is shown:\n%s", c.name, text)
		}
	}
	all, err := admin(t, k).ListTopics(t.Context())
	if err != nil || all.Has(fresh) {
		t.Errorf("the examination has created the topic of places, or: %v", err)
	}
}
