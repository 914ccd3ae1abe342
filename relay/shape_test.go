package relay_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/onewrite/onewrite/internal/cloudevents"
)

// TestShaped: a destination gets what its filter wants, in the form that it asks for;
// what cannot be shaped is parked with the expression's message, and delivered when
// the expression is right.
func TestShaped(t *testing.T) {
	g := newRig(t, "",
		`small: {type: file, path: small.jsonl, filter: 'data.n < 3', transform: '{half: (.n / 2), who: $event.key}', topic: "x.{topic}", key: "{data.n}"}`,
		`all: {type: file, path: all.jsonl}`)
	g.start()
	for _, payload := range []string{`{"n":1}`, `{"n":2}`, `{"n":3}`, `{"m":4}`, `{"n":0}`} {
		g.publish("order.placed", "k", payload, 1)
	}
	g.untilCounts("all", 5, 0, 0)
	g.untilCounts("small", 2, 0, 2)
	if d, _ := g.destination("small"); d.Filtered != 1 {
		t.Errorf("filtered: %d", d.Filtered)
	}
	list, err := g.relay.Parked(t.Context(), "small", 0, 10)
	if err != nil || len(list) != 2 || list[0].Message.ID != g.ids[3] || !strings.Contains(list[0].Reason, "filter: no such key: n") {
		t.Fatalf("%+v, %v", list, err)
	}
	g.write(
		`small: {type: file, path: small.jsonl, filter: 'has(data.n) && data.n < 3', transform: '{half: (.n / 2), who: $event.key}', topic: "x.{topic}", key: "{data.n}"}`,
		`all: {type: file, path: all.jsonl}`)
	if _, err := g.relay.Reload(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	until(t, "the delivery to run again", func() bool {
		d, _ := g.destination("small")
		return d.State == "ok" && d.Parked == 2
	})
	if err := g.relay.Retry(t.Context(), "small", 0, nil); err != nil {
		t.Fatal(err)
	}
	g.untilCounts("small", 3, 0, 0)
	data, err := os.ReadFile(filepath.Join(g.dir, "small.jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for line := range strings.Lines(string(data)) {
		e, err := cloudevents.ParseJSON([]byte(line))
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, e.Topic+" "+e.Key+" "+string(e.Data))
	}
	want := `x.order.placed 1 {"half":0.5,"who":"k"}|x.order.placed 2 {"half":1,"who":"k"}|x.order.placed 0 {"half":0,"who":"k"}`
	if strings.Join(got, "|") != want {
		t.Errorf("the file has\n%s, want\n%s", strings.Join(got, "|"), want)
	}
}
