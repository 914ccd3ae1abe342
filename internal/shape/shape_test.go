package shape

import (
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/onewrite/onewrite"
)

var order = onewrite.Event{
	ID: "0190", Source: "shop", Topic: "order.placed", Type: "order.placed", Key: "alice",
	Time:        time.Date(2024, 2, 29, 12, 0, 0, 123456000, time.UTC),
	ContentType: "application/json", Header: map[string]string{"tenant": "eu"},
	Data: []byte(`{"order":"o-1","total":12.50,"big":9007199254740993,"huge":123456789012345678901234567890,"note":null,"lines":[{"sku":"a","n":2}],"a":{"b":"c<d>&"}}`),
}

var change = onewrite.Event{
	ID: "c1", Source: "shop", Topic: "public.orders", Type: "update", Key: `{"id":7,"Odd.Name":"x"}`, ContentType: "application/json",
	Data: []byte(`{"before":null,"after":{"id":7,"status":"paid","total":"12.50","a.b":1},"op":"u"}`),
}

func apply(t *testing.T, c Config, e onewrite.Event) (onewrite.Event, bool, error) {
	t.Helper()
	s, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	before := e
	out, keep, err := s.Apply(&e)
	if !reflect.DeepEqual(e, before) {
		t.Error("Apply changed the event")
	}
	return out, keep, err
}

func TestNothingIsNothing(t *testing.T) {
	if s, err := New(Config{MaxData: 5}); s != nil || err != nil {
		t.Errorf("%v, %v", s, err)
	}
}

func TestFilter(t *testing.T) {
	binary := order
	binary.ContentType, binary.Data = "application/octet-stream", []byte{1, 2}
	text := order
	text.ContentType, text.Data = "text/plain", []byte("hello")
	none := order
	none.ContentType, none.Data = "", nil
	for _, c := range []struct {
		filter string
		e      onewrite.Event
		want   bool
	}{
		{`data.total > 12.0 && key == "alice"`, order, true},
		{`data.total > 13.0`, order, false},
		{`data.big == 9007199254740993`, order, true},
		{`data.big == 9007199254740992`, order, false},
		{`data.huge > 1e29`, order, true},
		{`topic.startsWith("order.") && type == topic && source == "shop" && id == "0190"`, order, true},
		{`headers.tenant == "eu"`, order, true},
		{`has(headers.other)`, order, false},
		{`has(data.missing) && data.missing > 1`, order, false},
		{`data.note == null`, order, true},
		{`data.lines.exists(l, l.sku == "a" && l.n == 2)`, order, true},
		{`time < timestamp("2024-03-01T00:00:00Z")`, order, true},
		{`data.order.upperAscii() == "O-1"`, order, true},
		{`data.op == "u" && data.after.status == "paid" && data.before == null`, change, true},
		{`data == null`, none, true},
		{`data == "hello"`, text, true},
		{`size(data) == 2 && data == b"\x01\x02"`, binary, true},
		{`data.after.status in ["paid", "sent"]`, change, true},
	} {
		_, keep, err := apply(t, Config{Filter: c.filter}, c.e)
		if err != nil || keep != c.want {
			t.Errorf("%s = %v, %v; want %v", c.filter, keep, err, c.want)
		}
	}
}

func TestTransform(t *testing.T) {
	for _, c := range []struct{ program, want string }{
		{`.`, `{"a":{"b":"c<d>&"},"big":9007199254740993,"huge":123456789012345678901234567890,"lines":[{"n":2,"sku":"a"}],"note":null,"order":"o-1","total":12.5}`},
		{`{id: .order, who: $event.key, t: $event.topic, at: $event.time, tenant: $event.headers.tenant}`, `{"at":"2024-02-29T12:00:00.123456Z","id":"o-1","t":"order.placed","tenant":"eu","who":"alice"}`},
		{`.lines | map(.n) | add`, `2`},
		{`.note`, `null`},
		{`.huge + 1`, `123456789012345678901234567891`},
		{`[.lines[].sku]`, `["a"]`},
	} {
		out, keep, err := apply(t, Config{Transform: c.program}, order)
		if err != nil || !keep || string(out.Data) != c.want || out.ContentType != "application/json" || out.ID != order.ID {
			t.Errorf("%s = %s, %v, %v; want %s", c.program, out.Data, keep, err, c.want)
		}
	}
	if _, keep, err := apply(t, Config{Transform: `select(.order == "other")`}, order); keep || err != nil {
		t.Errorf("nothing = %v, %v", keep, err)
	}
	none := order
	none.ContentType, none.Data = "", nil
	if out, keep, err := apply(t, Config{Transform: `error("no")`}, none); !keep || err != nil || out.Data != nil {
		t.Errorf("an event without data: %v, %v", keep, err)
	}
}

func TestTopicAndKey(t *testing.T) {
	for _, c := range []struct {
		template, want string
		e              onewrite.Event
	}{
		{"shop.{topic}", "shop.order.placed", order},
		{"{data.order}", "o-1", order},
		{"{data.total}/{data.big}", "12.50/9007199254740993", order},
		{"{data.lines}", `[{"n":2,"sku":"a"}]`, order},
		{"{data.a.b} {data.a}", `c<d>& {"b":"c<d>&"}`, order},
		{"{header.tenant}-{source}-{type}-{id}", "eu-shop-order.placed-0190", order},
		{"{{{key}}}", "{alice}", order},
		{"{after.status}:{key.id}:{after.total}:{after.a.b}:{key.Odd.Name}", "paid:7:12.50:1:x", change},
		{"plain", "plain", change},
	} {
		out, _, err := apply(t, Config{Topic: c.template, Key: c.template}, c.e)
		if err != nil || out.Topic != c.want || out.Key != c.want {
			t.Errorf("%s = %q, %q, %v; want %q", c.template, out.Topic, out.Key, err, c.want)
		}
	}
}

// What is wrong with an event is an error that names the field and says why.
func TestRefused(t *testing.T) {
	broken := order
	broken.Data = []byte(`{"order":`)
	text := order
	text.ContentType = "text/plain"
	for _, c := range []struct {
		c    Config
		e    onewrite.Event
		want string
	}{
		{Config{Filter: `data.missing > 1`}, order, "filter: no such key: missing; if it may be missing, ask for it first: has(… .missing) && …"},
		{Config{Filter: `data.order`}, order, "filter: the expression is not true or false for this event, but of type string"},
		{Config{Filter: `data.lines.exists(a, data.lines.exists(b, a.sku < b.n))`}, order, "filter: no such overload; a value is of another type"},
		{Config{Transform: `error("bad order")`}, order, "transform: error: bad order"},
		{Config{Transform: `.order + 1`}, order, "transform: cannot add"},
		{Config{Transform: `1, 2`}, order, "more than one result"},
		{Config{Transform: `halt`}, order, "the program halts"},
		{Config{Transform: `last(repeat(1))`}, order, "took longer"},
		{Config{Transform: `.`}, broken, "transform: the payload (application/json) is not JSON"},
		{Config{Transform: `.`}, text, "transform: the payload (text/plain) is not JSON"},
		{Config{Transform: `.order * 1000`, MaxData: 500}, order, "more than the 500 of max_event"},
		{Config{Key: "{data.missing}"}, order, "key: the event has no {data.missing}"},
		{Config{Key: "{data.note}"}, order, "key: {data.note} is null"},
		{Config{Key: "{data.order.deep}"}, order, "key: the event has no {data.order.deep}"},
		{Config{Key: "{key.id}"}, order, "is no JSON object"},
		{Config{Key: "{header.x}"}, order, "key: the event has no header x"},
		{Config{Topic: "{header.x}"}, order, "topic: the event has no header x"},
		{Config{Topic: "{data.order}"}, text, "topic: {data.order}: the payload"},
	} {
		_, keep, err := apply(t, c.c, c.e)
		if keep || err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: %v, %v; want %q", c.c, keep, err, c.want)
		}
	}
}

// What costs too much is given up.
func TestCostIsBounded(t *testing.T) {
	e := order
	e.Data = []byte(`[` + strings.Repeat("1,", 3000) + `1]`)
	_, keep, err := apply(t, Config{Filter: `data.all(a, data.all(b, a == b))`}, e)
	if keep || err == nil || !strings.Contains(err.Error(), "cost limit exceeded") && !strings.Contains(err.Error(), "took longer") {
		t.Errorf("%v, %v", keep, err)
	}
}

func TestCompileErrors(t *testing.T) {
	for _, c := range []struct {
		c    Config
		want string
	}{
		{Config{Filter: `data.total >`}, "filter: at line 1, character 13: Syntax error"},
		{Config{Filter: `nosuch == 1`}, "undeclared reference to 'nosuch'"},
		{Config{Filter: `key + "x"`}, "filter: the expression is not true or false, but of type string"},
		{Config{Transform: `.a | `}, "transform: unexpected"},
		{Config{Transform: `{a: [.b | if . then (now | floor) else 1 end]}`}, "use $event.time"},
		{Config{Transform: `$nosuch`}, "transform: variable not defined"},
		{Config{Transform: `env.HOME, $ENV.HOME, input`}, "transform: "},
		{Config{Topic: "{nosuch}"}, "topic: {nosuch} is no field"},
		{Config{Key: "{data"}, "is not closed"},
		{Config{Key: "data}"}, "was not opened"},
		{Config{Key: "{topic.x}"}, "{topic.x} is no field"},
		{Config{Key: "{header}"}, "{header} is no field"},
		{Config{Key: "{data.}"}, "{data.} is no field"},
	} {
		if _, err := New(c.c); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: %v; want %q", c.c, err, c.want)
		}
	}
}

func BenchmarkApply(b *testing.B) {
	for name, c := range map[string]Config{
		"filter":    {Filter: `data.total > 12.0 && key == "alice"`},
		"meta":      {Filter: `key == "alice"`},
		"transform": {Transform: `{id: .order, total: .total, who: $event.key}`},
		"key":       {Key: "{data.order}"},
	} {
		b.Run(name, func(b *testing.B) {
			s, err := New(c)
			if err != nil {
				b.Fatal(err)
			}
			for b.Loop() {
				if _, _, err := s.Apply(&order); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
