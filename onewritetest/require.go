package onewritetest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/onewrite/onewrite/outbox"
)

// RequireEvents ends the test unless got are just the events that are wanted, in
// this order. Of a wanted event Topic is required, and what else is set has to be
// there:
//
//   - Payload as an equal JSON value if both are JSON, numbers by their digits; else
//     byte for byte
//   - Headers among the others: a trace is not in the way
//   - DeliverAt to the millisecond, as it is stored.
//
// A field that is not set may be anything. What that cannot say, an event without
// data for instance, is for the test to say about the events themselves.
func RequireEvents(tb testing.TB, got []outbox.Event, want ...outbox.Event) {
	tb.Helper()
	require(tb, "there are", "", got, want)
}

// require compares; ifMore is said beside events that are not wanted.
func require(tb testing.TB, what, ifMore string, got, want []outbox.Event) {
	tb.Helper()
	for i := range want {
		if want[i].Topic == "" {
			tb.Fatalf("onewritetest: wanted event %d has no topic; name one", i)
		}
	}
	same := len(got) == len(want)
	for i := 0; same && i < len(got); i++ {
		same = len(differences(&want[i], &got[i])) == 0
	}
	if same {
		return
	}
	wanted := "want " + events(len(want))
	if len(got) == len(want) {
		wanted = "not those that are wanted"
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s, %s (- missing, + not wanted, ! differs):\n", what, events(len(got)), wanted)
	pairs := align(want, got)
	more, fine := false, 0
	for i, p := range pairs {
		more = more || p.want == nil
		if !p.fine() {
			fine = 0
		} else if fine++; fine > 2 && i+1 < len(pairs) && pairs[i+1].fine() {
			continue // what is as it should be is there to find one's way
		} else if fine > 3 {
			fmt.Fprintf(&b, "    … %s as wanted\n", events(fine-3))
		}
		p.print(&b)
	}
	if cut := max(len(want), len(got)) - mostAligned; cut > 0 {
		fmt.Fprintf(&b, "  … %s at the end were not compared\n", events(cut))
	}
	if more {
		b.WriteString(ifMore)
	}
	tb.Fatal(strings.TrimRight(b.String(), "\n"))
}

func events(n int) string {
	switch n {
	case 0:
		return "no events"
	case 1:
		return "1 event"
	}
	return fmt.Sprint(n, " events")
}

// differences says in what got is not as it is wanted.
func differences(want, got *outbox.Event) (diffs []string) {
	add := func(field, got, want string) {
		diffs = append(diffs, fmt.Sprintf("%s is %s, want %s", field, got, want))
	}
	for _, f := range []struct{ name, want, got string }{
		{"topic", want.Topic, got.Topic}, {"id", strings.ToLower(want.ID), got.ID}, {"key", want.Key, got.Key},
		{"type", want.Type, got.Type}, {"content type", want.ContentType, got.ContentType},
	} {
		if f.want != "" && f.want != f.got {
			add(f.name, fmt.Sprintf("%q", f.got), fmt.Sprintf("%q", f.want))
		}
	}
	if want.Payload != nil {
		diffs = append(diffs, payloadDifference(want.Payload, got.Payload)...)
	}
	for _, name := range slices.Sorted(maps.Keys(want.Headers)) {
		switch value, ok := got.Headers[name]; {
		case !ok:
			add("header "+name, "missing", fmt.Sprintf("%q", want.Headers[name]))
		case value != want.Headers[name]:
			add("header "+name, fmt.Sprintf("%q", value), fmt.Sprintf("%q", want.Headers[name]))
		}
	}
	if !want.DeliverAt.IsZero() {
		// As package outbox rounds it.
		if at := want.DeliverAt.Add(time.Millisecond - 1).UTC().Truncate(time.Millisecond); !at.Equal(got.DeliverAt.Truncate(time.Millisecond)) {
			add("deliver at", moment(got.DeliverAt), moment(at))
		}
	}
	return diffs
}

func moment(t time.Time) string {
	if t.IsZero() {
		return "not set"
	}
	return t.UTC().Format(time.RFC3339Nano)
}

func payloadDifference(want, got []byte) []string {
	v, isJSON := jsonValue(want)
	w, isToo := jsonValue(got)
	switch {
	case isJSON && isToo:
		if where := jsonDifference("payload", v, w); where != "" {
			return []string{where, "wanted payload: " + shown(want)}
		}
	case got == nil:
		return []string{"payload is missing, want " + shown(want)}
	case !bytes.Equal(want, got):
		return []string{"payload is " + shown(got) + ", want " + shown(want)}
	}
	return nil
}

// shown is a payload as a person reads it.
func shown(payload []byte) string {
	var b bytes.Buffer
	if json.Compact(&b, payload) != nil {
		return excerpt(payload)
	}
	return clipped(b.String())
}

// clipped is the beginning of a long text.
func clipped(text string) string {
	const most = 400
	if len(text) <= most {
		return text
	}
	return strings.ToValidUTF8(text[:most], "") + "…"
}

// jsonDifference says where got is not want; "" is nowhere.
func jsonDifference(path string, want, got any) string {
	switch w := want.(type) {
	case map[string]any:
		g, ok := got.(map[string]any)
		if !ok {
			break
		}
		for _, name := range slices.Sorted(maps.Keys(w)) {
			there, ok := g[name]
			if !ok {
				return path + " has no " + name
			}
			if d := jsonDifference(path+"."+name, w[name], there); d != "" {
				return d
			}
		}
		for _, name := range slices.Sorted(maps.Keys(g)) {
			if _, ok := w[name]; !ok {
				return path + " has " + name + ", which is not wanted"
			}
		}
		return ""
	case []any:
		g, ok := got.([]any)
		if !ok {
			break
		}
		for i := range min(len(w), len(g)) {
			if d := jsonDifference(fmt.Sprintf("%s[%d]", path, i), w[i], g[i]); d != "" {
				return d
			}
		}
		if len(w) != len(g) {
			return fmt.Sprintf("%s has %d elements, want %d", path, len(g), len(w))
		}
		return ""
	default:
		if want == got {
			return ""
		}
	}
	g, _ := json.Marshal(got) // it was JSON
	w, _ := json.Marshal(want)
	return fmt.Sprintf("%s is %s, want %s", path, clipped(string(g)), clipped(string(w)))
}

// pair is a wanted event and the one that is there in its place; one of them may be
// missing.
type pair struct{ want, got *outbox.Event }

func (p pair) fine() bool {
	return p.want != nil && p.got != nil && len(differences(p.want, p.got)) == 0
}

func (p pair) print(b *strings.Builder) {
	switch {
	case p.got == nil:
		b.WriteString("  - " + describe(p.want) + "\n")
	case p.want == nil:
		b.WriteString("  + " + describe(p.got) + "\n")
	default:
		diffs := differences(p.want, p.got)
		if len(diffs) == 0 {
			b.WriteString("    " + describe(p.got) + "\n")
			return
		}
		b.WriteString("  ! " + describe(p.got) + "\n")
		for _, d := range diffs {
			b.WriteString("        " + d + "\n")
		}
	}
}

// describe is an event in one line.
func describe(e *outbox.Event) string {
	s := e.Topic
	if e.Key != "" {
		s += fmt.Sprintf(" key %q", e.Key)
	}
	if e.Type != "" && e.Type != e.Topic {
		s += fmt.Sprintf(" type %q", e.Type)
	}
	if e.Payload != nil {
		s += " payload " + shown(e.Payload)
	}
	if len(e.Headers) > 0 {
		s += fmt.Sprintf(" headers %q", e.Headers)
	}
	if !e.DeliverAt.IsZero() {
		s += " waits until " + moment(e.DeliverAt)
	}
	return s
}

// mostAligned bounds the work of a failure, whose first lines are what is read.
const mostAligned = 200

// align lays what is wanted beside what is there with the fewest differences: one
// within a topic counts as much as one that is missing or too much.
func align(want, got []outbox.Event) (pairs []pair) {
	want, got = want[:min(len(want), mostAligned)], got[:min(len(got), mostAligned)]
	// cost[i][j] is that of want[i:] beside got[j:].
	cost := make([][]int, len(want)+1)
	for i := range cost {
		cost[i] = make([]int, len(got)+1)
	}
	beside := func(i, j int) int {
		switch {
		case len(differences(&want[i], &got[j])) == 0:
			return cost[i+1][j+1]
		case want[i].Topic == got[j].Topic:
			return cost[i+1][j+1] + 1
		}
		return cost[i+1][j+1] + 3
	}
	for i := len(want); i >= 0; i-- {
		for j := len(got); j >= 0; j-- {
			switch {
			case i == len(want):
				cost[i][j] = len(got) - j
			case j == len(got):
				cost[i][j] = len(want) - i
			default:
				cost[i][j] = min(beside(i, j), cost[i+1][j]+1, cost[i][j+1]+1)
			}
		}
	}
	for i, j := 0, 0; i < len(want) || j < len(got); {
		switch {
		case i < len(want) && j < len(got) && cost[i][j] == beside(i, j):
			pairs = append(pairs, pair{&want[i], &got[j]})
			i, j = i+1, j+1
		case i < len(want) && cost[i][j] == cost[i+1][j]+1:
			pairs = append(pairs, pair{want: &want[i]})
			i++
		default:
			pairs = append(pairs, pair{got: &got[j]})
			j++
		}
	}
	return pairs
}
