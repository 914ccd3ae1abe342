package kafka

import (
	"slices"
	"testing"
)

// Topics are expected by the template: exactly where it can be told, else by a pattern.
func TestExpectedTopics(t *testing.T) {
	for template, want := range map[string]string{"{topic}": "order.placed", "shop.{topic}": "shop.order.placed", "{source}.{data.kind}.x": ""} {
		e := &examiner{s: &core{c: Config{Topic: template}}}
		exact, like := e.expected([]string{"order.placed"})
		if (want != "") != slices.Contains(exact, want) || len(like) != 1 {
			t.Errorf("%s: %q, %v", template, exact, like)
		}
		if want == "" && (!like[0].MatchString("shop.big.x") || like[0].MatchString("shop.big.y")) {
			t.Errorf("%s: %v", template, like[0])
		}
	}
}
