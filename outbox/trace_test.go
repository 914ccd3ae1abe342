package outbox

import (
	"context"
	"strings"
	"testing"

	"github.com/onewrite/onewrite/internal/causality"
)

const (
	goodTrace  = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	otherTrace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00"
)

func headersOf(t *testing.T, p *Publisher, ctx context.Context, e Event) string {
	t.Helper()
	st, err := p.Statements(ctx, e)
	if err != nil {
		t.Fatal(err)
	}
	s, _ := st[0].Args[7].(string)
	return s
}

func TestTraceGoesIntoTheHeaders(t *testing.T) {
	ctx := WithTraceparent(context.Background(), goodTrace, "a=b")
	p := New(SQLite)
	mine := map[string]string{"x": "<y>"}
	if got, want := headersOf(t, p, ctx, Event{Topic: "a", Headers: mine}),
		`{"traceparent":"`+goodTrace+`","tracestate":"a=b","x":"<y>"}`; got != want {
		t.Errorf("%s, want %s", got, want)
	}
	if len(mine) != 1 {
		t.Error("the caller's map was changed")
	}
	if got := headersOf(t, p, ctx, Event{Topic: "a", Headers: map[string]string{"traceparent": otherTrace}}); got != `{"traceparent":"`+otherTrace+`"}` {
		t.Errorf("the event's own trace lost: %s", got)
	}
	from := New(SQLite, TraceFrom(func(context.Context) (string, string) { return otherTrace, "" }))
	if got := headersOf(t, from, ctx, Event{Topic: "a"}); got != `{"traceparent":"`+otherTrace+`"}` {
		t.Errorf("TraceFrom: %s", got)
	}
	none := New(SQLite, TraceFrom(func(context.Context) (string, string) { return "", "" }))
	if got := headersOf(t, none, ctx, Event{Topic: "a"}); !strings.Contains(got, goodTrace) {
		t.Errorf("TraceFrom without a trace hides that of ctx: %s", got)
	}
	if got := headersOf(t, p, context.Background(), Event{Topic: "a"}); got != "" {
		t.Errorf("headers without a trace: %s", got)
	}
}

func TestMalformedTracesAreIgnored(t *testing.T) {
	for _, s := range []string{
		"", "x", goodTrace + "-x", goodTrace + "\n", strings.ToUpper(goodTrace),
		"ff" + goodTrace[2:],
		"00-00000000000000000000000000000000-b7ad6b7169203331-01",
		"00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
		"00_0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
		"01" + goodTrace[2:] + "x",
		"01" + goodTrace[2:] + "-\n",
	} {
		if got := headersOf(t, New(SQLite), WithTraceparent(context.Background(), s, "a=b"), Event{Topic: "a"}); got != "" {
			t.Errorf("%q became %s", s, got)
		}
	}
	for _, s := range []string{"x", "a=b\n", "=b", strings.Repeat("a=b,", 200)} {
		if got := headersOf(t, New(SQLite), WithTraceparent(context.Background(), goodTrace, s), Event{Topic: "a"}); got != `{"traceparent":"`+goodTrace+`"}` {
			t.Errorf("tracestate %q became %s", s, got)
		}
	}
	if !causality.IsTraceparent("01" + goodTrace[2:] + "-more") {
		t.Error("a later version with more fields is refused")
	}
}
