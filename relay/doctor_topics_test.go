package relay

import (
	"fmt"
	"testing"
)

func TestShapedTopics(t *testing.T) {
	for _, c := range []struct {
		template string
		topics   []string
		want     string
	}{
		{"", []string{"a.*"}, "[a.*]"}, {"", nil, "[]"}, {"x.{topic}", nil, "[x.>]"}, {"x.{topic}.y", []string{"a", "b.*"}, "[x.a.y x.b.*.y]"},
		{"x-{topic}", []string{"a.>"}, "[x-a.>]"}, {"x-{topic}", []string{"*.a"}, "[>]"}, {"x.{key}.{topic}", []string{"a", "b"}, "[x.>]"}, {"all", []string{"a", "b"}, "[all]"},
	} {
		if got := fmt.Sprint(shapedTopics(c.template, c.topics)); got != c.want {
			t.Errorf("%q of %v: %s, want %s", c.template, c.topics, got, c.want)
		}
	}
}
