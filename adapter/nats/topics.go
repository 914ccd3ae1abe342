package nats

import (
	"strings"

	"github.com/onewrite/onewrite/internal/topics"
)

// subjectOf makes a subject of a topic. The topics of outbox events are subjects
// already; a table's name may hold what a subject cannot. Then it is not unique,
// so a reader checks the topic in the header.
func subjectOf(topic string) string {
	ok := topic != "" && topic[0] != '.' && topic[len(topic)-1] != '.'
	for i := 0; ok && i < len(topic); i++ {
		c := topic[i]
		ok = c > ' ' && c < 0x7f && c != '*' && c != '>' && (c != '.' || topic[i+1] != '.')
	}
	if ok {
		return topic
	}
	tokens := strings.Split(topic, ".")
	for i, t := range tokens {
		tokens[i] = tokenOf(t)
	}
	return strings.Join(tokens, ".")
}

// tokenOf replaces what a token of a subject cannot hold.
func tokenOf(t string) string {
	if t == "" {
		return "_"
	}
	return strings.Map(func(r rune) rune {
		if r <= ' ' || r >= 0x7f || r == '*' || r == '>' {
			return '_'
		}
		return r
	}, t)
}

// subjectFor returns the narrowest single subject below prefix that covers all
// that the filter wants.
func subjectFor(f topics.Filter, prefix string) string {
	if len(f) == 0 {
		return prefix + ">"
	}
	common := f[0]
	for _, p := range f[1:] {
		n := 0
		for n < len(common) && n < len(p) && common[n] == p[n] {
			n++
		}
		switch {
		case n == len(common) && n == len(p):
		case n == len(common), n == len(p): // > stands for one word or more
			common = append(common[:n-1:n-1], ">")
		default:
			common = append(common[:n:n], ">")
		}
	}
	tokens := make([]string, len(common))
	for i, t := range common {
		tokens[i] = t
		if t != "*" && (t != ">" || i < len(common)-1) {
			tokens[i] = tokenOf(t)
		}
	}
	return prefix + strings.Join(tokens, ".")
}
