// Package topics matches topics with the patterns that destinations subscribe with:
// those of NATS, where * stands for one word and > for one or more at the end.
package topics

import "strings"

// Pattern is a pattern by its words.
type Pattern []string

// matches reports whether topic matches the pattern.
func (p Pattern) matches(topic string) bool {
	for i, want := range p {
		if want == ">" && i == len(p)-1 {
			return topic != "" || i == 0
		}
		got, rest, more := strings.Cut(topic, ".")
		if want != "*" && want != got {
			return false
		}
		if last := i == len(p)-1; last {
			return !more
		}
		if !more {
			return false
		}
		topic = rest
	}
	return false
}

// Filter is what a destination wants; an empty one wants all.
type Filter []Pattern

// New makes a filter of patterns. It drops those that others cover.
func New(patterns []string) Filter {
	var f Filter
	for i, t := range patterns {
		covered := false
		for j, o := range patterns {
			if i != j && Covers(o, t) && !(Covers(t, o) && i < j) {
				covered = true
			}
		}
		if t == ">" {
			return nil
		}
		if !covered {
			f = append(f, strings.Split(t, "."))
		}
	}
	return f
}

// Covers reports whether every topic that b matches is matched by a.
func Covers(a, b string) bool {
	as, bs := strings.Split(a, "."), strings.Split(b, ".")
	for i, t := range as {
		if t == ">" && i == len(as)-1 {
			return len(bs) > i
		}
		if i >= len(bs) || bs[i] == ">" || t != "*" && t != bs[i] {
			return false
		}
	}
	return len(as) == len(bs)
}

// Wants reports whether the filter lets a topic through.
func (f Filter) Wants(topic string) bool {
	if len(f) == 0 {
		return true
	}
	for _, p := range f {
		if p.matches(topic) {
			return true
		}
	}
	return false
}
