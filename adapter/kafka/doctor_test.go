package kafka_test

import (
	"crypto/tls"
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
		{"a wrong password", kafka.Config{Brokers: []string{k.SASL()}, SASL: &kafka.SASL{Mechanism: "plain", User: "admin", Password: "wrong-one"}}, nil, []string{"problem connect: the brokers do not let the user in", "kafka-configs.sh"}},
		{"a login that nobody asks for", kafka.Config{SASL: &kafka.SASL{Mechanism: "plain", User: "admin", Password: "wrong-one"}}, nil, []string{"problem connect: the brokers were reached", "take sasl: out"}},
		{"no login where one is asked for", kafka.Config{Brokers: []string{k.SASL()}}, nil, []string{"problem connect: ", "sasl: as the listener"}},
		{"no TLS there", kafka.Config{TLS: &tls.Config{}}, nil, []string{"problem connect: ", "tls: and sasl: as the listener"}},
		{"a name that is none", kafka.Config{Brokers: []string{"kafka.invalid:9092"}}, nil, []string{"problem connect: the brokers cannot be reached", "getent hosts kafka.invalid"}},
		{"places that are forgotten", kafka.Config{Places: deletes}, nil, []string{"problem places: the topic of places " + deletes + " has cleanup.policy=delete", "add-config cleanup.policy=compact"}},
		{"a small topic", kafka.Config{}, []string{small}, []string{"warning size: " + small + " takes 2000 bytes", "--entity-type topics --entity-name " + small + " --add-config max.message.bytes=1064960",
			"warning size: a new topic takes", "--entity-type brokers --entity-default --add-config message.max.bytes=1064960"}},
		{"copies out of sync", kafka.Config{}, []string{here}, []string{"problem copies: partition 0 of topic " + here + " has 1 copies in sync and needs 2"}},
		{"a missing topic", kafka.Config{NoCreate: true}, []string{here + "-y"}, []string{"problem topics: create_topics is false, and not there", "--create --topic " + here + "-y"}},
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
			if strings.Contains(f.Cure, ".sh ") && !strings.Contains(f.Cure, ".sh --bootstrap-server "+c.c.Brokers[0]+" ") || strings.Contains(f.Cure, "TOPIC") {
				t.Errorf("%s: not ready to be copied: %s", c.name, f.Cure)
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

// TestCuresOfOutages: each ends with what to do.
func TestCuresOfOutages(t *testing.T) {
	k := servers.Kafka(t)
	for name, c := range map[string]struct {
		c    kafka.Config
		want string
	}{
		"away":     {kafka.Config{Brokers: []string{"127.0.0.1:1"}}, "; compare brokers: with the listeners of the brokers: nc -vz 127.0.0.1 1"},
		"no login": {kafka.Config{Brokers: []string{k.SASL()}}, "; the brokers were reached: write tls: and sasl: as the listener that brokers: names wants them, or take them out"},
		"a login":  {kafka.Config{Brokers: []string{k.Addr()}, SASL: &kafka.SASL{Mechanism: "plain", User: "u", Password: "wrong-one"}}, "; the listener that brokers: names takes no login: take sasl: out, or name one with SASL there"},
		"denied": {kafka.Config{Brokers: []string{k.SASL()}, SASL: &kafka.SASL{Mechanism: "plain", User: k.Limited, Password: k.Password}},
			"kafka-acls.sh --bootstrap-server " + k.SASL() + " --command-config client.properties --add --allow-principal User:limited "},
	} {
		c.c.Destination = unique("outage")
		s, err := kafka.New(t.Context(), c.c)
		if err == nil {
			_ = s.Close()
			t.Errorf("%s: opened", name)
		} else if !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "wrong-one") {
			t.Errorf("%s: no %q in: %v", name, c.want, err)
		}
	}
}
