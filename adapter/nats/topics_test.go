package nats_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/nats-io/nats-server/v2/server"
	"pgregory.net/rapid"

	"github.com/onewrite/onewrite/adapter/nats"
)

// TestFilter holds the filter against the server's own matching.
func TestFilter(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		word := rapid.SampledFrom([]string{"a", "b", "c"})
		topic := strings.Join(rapid.SliceOfN(word, 1, 4).Draw(t, "topic"), ".")
		one := rapid.Custom(func(t *rapid.T) string {
			tokens := rapid.SliceOfN(rapid.SampledFrom([]string{"a", "b", "*"}), 0, 3).Draw(t, "tokens")
			if len(tokens) == 0 || rapid.Bool().Draw(t, "open") {
				tokens = append(tokens, ">")
			}
			return strings.Join(tokens, ".")
		})
		patterns := rapid.SliceOfN(one, 0, 4).Draw(t, "patterns")
		want := len(patterns) == 0 || slices.ContainsFunc(patterns, func(p string) bool { return server.SubjectsCollide(topic, p) })
		wants, subject := nats.Filter(patterns)
		if wants(topic) != want {
			t.Fatalf("patterns %q want %q: %v, the server says %v", patterns, topic, wants(topic), want)
		}
		if want && !server.SubjectsCollide(topic, subject) {
			t.Fatalf("the subject %q of patterns %q leaves out %q", subject, patterns, topic)
		}
	})
}

// TestOddTopics: what no subject can hold still has a valid one, and a filter on
// it finds it.
func TestOddTopics(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		topic := rapid.StringOf(rapid.SampledFrom([]rune("a.*> \t✓ü\x00"))).Draw(t, "topic")
		s := nats.SubjectOf(topic)
		if !server.IsValidLiteralSubject(s) || strings.ContainsAny(s, " \t\r\n\x00") {
			t.Fatalf("subject %q of topic %q", s, topic)
		}
		if strings.ContainsAny(topic, "*>") {
			return // in a pattern they mean something else
		}
		wants, subject := nats.Filter([]string{topic})
		if topic != "" && (!wants(topic) || !server.SubjectsCollide(s, subject)) {
			t.Fatalf("topic %q is not found by itself: subject %q, filter %q", topic, s, subject)
		}
	})
}
