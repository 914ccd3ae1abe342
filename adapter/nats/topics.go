package nats

import "strings"

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

// pattern is a NATS pattern by its tokens.
type pattern []string

// matches reports whether topic matches the pattern.
func (p pattern) matches(topic string) bool {
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

// topicFilter is what a destination wants.
type topicFilter []pattern

// newTopicFilter drops patterns that others cover; an empty filter wants all.
func newTopicFilter(topics []string) topicFilter {
	var f topicFilter
	for i, t := range topics {
		covered := false
		for j, o := range topics {
			if i != j && covers(o, t) && !(covers(t, o) && i < j) {
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

// covers reports whether every topic that b matches is matched by a.
func covers(a, b string) bool {
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

// wants is the truth; what the server filters only saves work.
func (f topicFilter) wants(topic string) bool {
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

// subject returns the narrowest single subject below prefix that covers all
// that the filter wants.
func (f topicFilter) subject(prefix string) string {
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

// Wants reports whether a destination with these topics wants a topic.
func Wants(topics []string, topic string) bool { return newTopicFilter(topics).wants(topic) }
