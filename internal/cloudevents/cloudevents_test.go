package cloudevents

import (
	"bytes"
	"encoding/json"
	"math/rand/v2"
	"net/http"
	"reflect"
	"strconv"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/cloudevents/sdk-go/v2/event"
	cehttp "github.com/cloudevents/sdk-go/v2/protocol/http"
	"pgregory.net/rapid"

	"github.com/onewrite/onewrite"
)

// kinds are the payloads an event can have.
var kinds = []string{"tombstone", "text", "json", "binary", "broken json"}

// events makes any event that a source can hand over.
func events() *rapid.Generator[onewrite.Event] {
	return rapid.Custom(func(t *rapid.T) onewrite.Event {
		text := rapid.OneOf(rapid.String(), rapid.SampledFrom([]string{"naïve", "a\nb\r\tc", `"\`, "%41", "\x00\x1f\x7f", "\u2028<&>", "\U0001F600"}))
		e := onewrite.Event{
			ID:     "1" + text.Draw(t, "id"),
			Source: rapid.StringMatching(`[a-z][a-z0-9_-]{0,9}`).Draw(t, "source"),
			Topic:  rapid.StringMatching(`[A-Za-z0-9_-]{1,5}(\.[A-Za-z0-9_-]{1,5}){0,2}`).Draw(t, "topic"),
			Type:   "t" + text.Draw(t, "type"),
			Key:    text.Draw(t, "key"),
			Seq:    rapid.StringMatching(`[0-9a-f]{0,16}`).Draw(t, "seq"),
			Header: headers(t, text),
		}
		if us := rapid.Int64Range(0, 4e15).Draw(t, "time"); us > 0 {
			e.Time = time.UnixMicro(us).UTC()
		}
		if rapid.Bool().Draw(t, "change") {
			e.Tx = onewrite.Tx{ID: rapid.StringMatching(`[0-9]{1,9}`).Draw(t, "tx"), Index: rapid.IntRange(0, 1e6).Draw(t, "index"), Last: rapid.Bool().Draw(t, "last")}
		}
		payload(t, &e, text)
		return e
	})
}

// headers are nil or not empty, as Set makes them.
func headers(t *rapid.T, text *rapid.Generator[string]) map[string]string {
	name := rapid.OneOf(rapid.StringMatching(`[a-z0-9]{1,20}`), rapid.StringMatching(`[A-Za-z][A-Za-z_-]{0,30}`),
		rapid.SampledFrom([]string{"traceparent", "X-Shop", "content-type", "a234567890123456789012345"})).
		Filter(func(s string) bool { return !Reserved(s) })
	m := rapid.MapOfN(name, text, 0, 4).Draw(t, "headers")
	if len(m) == 0 {
		return nil
	}
	return m
}

func payload(t *rapid.T, e *onewrite.Event, text *rapid.Generator[string]) {
	switch rapid.SampledFrom(kinds).Draw(t, "kind") {
	case "tombstone":
	case "text":
		e.ContentType = rapid.SampledFrom([]string{"text/plain; charset=utf-8", "text/csv", "TEXT/html"}).Draw(t, "media type")
		e.Data = []byte(text.Draw(t, "data"))
	case "json":
		e.ContentType = rapid.SampledFrom([]string{"application/json", "Application/JSON; charset=utf-8", "application/vnd.shop+json", "text/json"}).Draw(t, "media type")
		e.Data = jsonValue(t, text)
	case "binary":
		e.ContentType = rapid.SampledFrom([]string{"application/octet-stream", "image/png", "text/plain"}).Draw(t, "media type")
		e.Data = rapid.SliceOf(rapid.Byte()).Draw(t, "data")
	case "broken json":
		e.ContentType = "application/json"
		e.Data = []byte(rapid.SampledFrom([]string{"", "{", "nul", "{}{}", "\"\xff\""}).Draw(t, "data"))
	}
}

// jsonValue is a value on one line with nothing around it; see TestJSONOverLines
// for the others.
func jsonValue(t *rapid.T, text *rapid.Generator[string]) []byte {
	quoted, err := json.Marshal(text.Draw(t, "json text"))
	if err != nil {
		t.Fatal(err)
	}
	q := string(quoted)
	return []byte(rapid.SampledFrom([]string{"null", "true", "0", "-0.10e+2", "12345678901234567890.10", "[]", `""`, `"a\/b\u00e9"`, q,
		"[" + q + ", " + q + "]", `{"b" : ` + q + `,"a":  1, "a":2}`}).Draw(t, "data"))
}

func TestRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		e := events().Draw(t, "event")
		before := clone(e)
		prefix := []byte("before")
		line := AppendJSON(prefix, &e)
		if !bytes.HasPrefix(line, prefix) {
			t.Fatal("AppendJSON lost what was there")
		}
		line = line[len(prefix):]
		if bytes.ContainsAny(line, "\r\n") || !json.Valid(line) {
			t.Fatalf("not one line of JSON: %q", line)
		}
		got, err := ParseJSON(line)
		if err != nil {
			t.Fatalf("%v\n%s", err, line)
		}
		if !reflect.DeepEqual(got, e) {
			t.Fatalf("line %s\ngot  %#v\nwant %#v", line, got, e)
		}
		if !reflect.DeepEqual(e, before) {
			t.Fatal("AppendJSON changed the event")
		}
		if again := AppendJSON(nil, &got); !bytes.Equal(again, line) {
			t.Fatalf("equal events, different lines:\n%s\n%s", line, again)
		}
	})
}

func clone(e onewrite.Event) onewrite.Event {
	e.Data = bytes.Clone(e.Data)
	if e.Header != nil {
		m := map[string]string{}
		for k, v := range e.Header {
			m[k] = v
		}
		e.Header = m
	}
	return e
}

// TestAttributesAndBack is the binary mode: attributes and headers as Set takes
// them.
func TestAttributesAndBack(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		e := events().Draw(t, "event")
		got := onewrite.Event{Data: e.Data}
		for _, a := range Headers(Attributes(nil, &e), &e) {
			if err := Set(&got, a.Name, Unescape(Escape(a.Value))); err != nil {
				t.Fatal(err)
			}
		}
		if !reflect.DeepEqual(got, e) {
			t.Fatalf("got  %#v\nwant %#v", got, e)
		}
	})
}

// TestJSONOverLines: a line cannot hold a value over several lines, so only its
// value arrives; spaces inside a value on one line stay.
func TestJSONOverLines(t *testing.T) {
	for in, want := range map[string]string{
		"{\n  \"a\": 1.50,\r\n  \"b\": \"x\\ny  z\"\n}": `{"a":1.50,"b":"x\ny  z"}`,
		`{"a" :  1.50}`:   `{"a" :  1.50}`,
		"\n1\n":           "1",
		`"\u00e9é\/"`:     `"\u00e9é\/"`,
		`{"z":1,"a":1e2}`: `{"z":1,"a":1e2}`,
	} {
		e := least(in, "application/json")
		line := AppendJSON(nil, &e)
		got, err := ParseJSON(line)
		if err != nil || string(got.Data) != want || bytes.ContainsAny(line, "\r\n") {
			t.Errorf("%q became %q, want %q (%v)\n%s", in, got.Data, want, err, line)
		}
	}
}

func least(data, contentType string) onewrite.Event {
	e := onewrite.Event{ID: "1", Source: "shop", Topic: "order.placed", Type: "order.placed", ContentType: contentType}
	if contentType != "" {
		e.Data = []byte(data)
	}
	return e
}

// TestLines holds the letters of the format: consumers that are not ours read it.
func TestLines(t *testing.T) {
	full := onewrite.Event{
		ID: "7", Source: "shop", Topic: "public.orders", Type: "insert", Key: `{"id":1}`, Seq: "0a", ContentType: "application/json",
		Time: time.Date(2024, 2, 29, 23, 59, 59, 120_000_999, time.FixedZone("", 3600)), Data: []byte(`{"op": "c"}`),
		Header: map[string]string{"traceparent": "00-1", "X-Shop": "<é>", "id": "evil", "headers": "evil", "a_b": "2"},
		Tx:     onewrite.Tx{ID: "501", Index: 2, Last: true},
	}
	const start = `{"specversion":"1.0","id":"1","source":"/shop","type":"order.placed",`
	for _, c := range []struct {
		name string
		e    onewrite.Event
		want string
	}{
		{"tombstone", least("", ""), start + `"topic":"order.placed"}`},
		{"text", least("a\"b\n", "text/plain"), start + `"datacontenttype":"text/plain","topic":"order.placed","data":"a\"b\n"}`},
		{"empty text", least("", "text/plain"), start + `"datacontenttype":"text/plain","topic":"order.placed","data":""}`},
		{"json", least(`{"a": 1}`, "application/json"), start + `"datacontenttype":"application/json","topic":"order.placed","data":{"a": 1}}`},
		{"json null", least("null", "application/json"), start + `"datacontenttype":"application/json","topic":"order.placed","data":null}`},
		{"binary", least("\x00\xff", "image/png"), start + `"datacontenttype":"image/png","topic":"order.placed","data_base64":"AP8="}`},
		{"text that is none", least("\xff", "text/plain"), start + `"datacontenttype":"text/plain","topic":"order.placed","data_base64":"/w=="}`},
		{"json that is none", least("{", "application/json"), start + `"datacontenttype":"application/json","topic":"order.placed","data_base64":"ew=="}`},
		{"all", full, `{"specversion":"1.0","id":"7","source":"/shop","type":"insert","time":"2024-02-29T22:59:59.12Z","datacontenttype":"application/json",` +
			`"topic":"public.orders","partitionkey":"{\"id\":1}","sequence":"0a","txid":"501","txindex":2,"txlast":true,"traceparent":"00-1",` +
			`"headers":"{\"X-Shop\":\"\\u003cé\\u003e\",\"a_b\":\"2\"}","data":{"op": "c"}}`},
	} {
		if got := string(AppendJSON(nil, &c.e)); got != c.want {
			t.Errorf("%s:\ngot  %s\nwant %s", c.name, got, c.want)
		}
	}
}

// TestNames: what is an attribute, what is a transport header and what nobody
// but onewrite may set.
func TestNames(t *testing.T) {
	for _, name := range []string{"specversion", "id", "source", "type", "time", "datacontenttype", "data", "data_base64", "topic",
		"partitionkey", "sequence", "txid", "txindex", "txlast", "headers"} {
		if !Reserved(name) {
			t.Errorf("%s is not reserved", name)
		}
		e := least("", "")
		e.Header = map[string]string{name: "evil"}
		for _, a := range Attributes(nil, &e) {
			if a.Value == "evil" {
				t.Errorf("an application's header overwrites the attribute %s", name)
			}
		}
		if got, err := ParseJSON(AppendJSON(nil, &e)); err != nil || got.ID != "1" || got.Source != "shop" || got.Data != nil {
			t.Errorf("a header %s spoils the line: %#v %v", name, got, err)
		}
	}
	for name, want := range map[string]bool{"": false, "traceparent": true, "a": true, "0": true, strings.Repeat("a", 20): true,
		strings.Repeat("a", 21): false, "X": false, "aB": false, "a_b": false, "a-b": false, "é": false, "a.b": false, "a b": false} {
		if IsAttribute(name) != want {
			t.Errorf("IsAttribute(%q) = %v", name, !want)
		}
		if Reserved(name) {
			t.Errorf("%q is reserved", name)
		}
	}
}

func TestFormatTime(t *testing.T) {
	times := []time.Time{{}, time.Unix(0, 0), time.Unix(1, 999_999_999), time.Date(9999, 12, 31, 23, 59, 59, 999_999_000, time.UTC), time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC), time.Date(-1, 1, 1, 0, 0, 0, 0, time.UTC)}
	rnd := rand.New(rand.NewPCG(1, 2))
	for i := range 10_000 {
		fraction := []int64{1, 1000, 10_000, 1_000_000, 100_000_000, 1_000_000_000}[i%6]
		times = append(times, time.Unix(rnd.Int64N(200_000_000_000)-50_000_000_000, rnd.Int64N(1_000_000_000)/fraction*fraction))
	}
	for _, at := range times {
		if got, want := formatTime(at.UTC()), at.UTC().Format(TimeLayout); got != want {
			t.Fatalf("%s, want %s", got, want)
		}
	}
}

// TestAppendString: every byte, wherever it stands, is shown so that a decoder of JSON reads
// it; what needs no escape is as it was.
func TestAppendString(t *testing.T) {
	for length := range 20 {
		for at := range length {
			for c := range 256 {
				text := []byte("abcdefghijklmnopqrst")[:length]
				text[at] = byte(c)
				got := AppendString(nil, text)
				var back string
				if err := json.Unmarshal(got, &back); err != nil || back != strings.ToValidUTF8(string(text), "\ufffd") {
					t.Fatalf("%q became %s: %v", text, got, err)
				}
				if raw := `"` + string(text) + `"`; c >= 0x20 && c < utf8.RuneSelf && c != '"' && c != '\\' && string(got) != raw {
					t.Fatalf("%q became %s", text, got)
				}
				if other := AppendString(nil, string(text)); string(other) != string(got) {
					t.Fatalf("%q became %s, as a string %s", text, got, other)
				}
			}
		}
	}
}

func TestEscape(t *testing.T) {
	for in, want := range map[string]string{"": "", "a-Z~!": "a-Z~!", " ": "%20", `"`: "%22", "%": "%25", "é": "%C3%A9", "\r\n": "%0D%0A", "\x7f\x00": "%7F%00",
		"Euro € 😀": "Euro%20%E2%82%AC%20%F0%9F%98%80"} { // the last one is the HTTP binding's example
		if got := Escape(in); got != want {
			t.Errorf("Escape(%q) = %q, want %q", in, got, want)
		}
	}
	for in, want := range map[string]string{"%": "%", "%4": "%4", "100%": "100%", "%zz": "%zz", "%c3%a9": "é", "%+1": "%+1", "%41%": "A%", "%%41": "%A"} {
		if got := Unescape(in); got != want {
			t.Errorf("Unescape(%q) = %q, want %q", in, got, want)
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		in := string(rapid.SliceOf(rapid.Byte()).Draw(t, "bytes"))
		out := Escape(in)
		for i := 0; i < len(out); i++ {
			if out[i] <= ' ' || out[i] > '~' || out[i] == '"' {
				t.Fatalf("Escape(%q) = %q is not printable ASCII", in, out)
			}
		}
		if back := Unescape(out); back != in {
			t.Fatalf("%q came back as %q", in, back)
		}
	})
}

func TestSetErrors(t *testing.T) {
	for name, value := range map[string]string{"specversion": "0.3", "time": "yesterday", "txindex": "two"} {
		var e onewrite.Event
		if err := Set(&e, name, value); err == nil || !strings.Contains(err.Error(), name) || !strings.Contains(err.Error(), value) {
			t.Errorf("%s=%s: %v", name, value, err)
		}
	}
}

func TestParseErrors(t *testing.T) {
	for line, says := range map[string]string{
		"":                      "not a JSON object",
		"[1]":                   "not a JSON object",
		"null":                  "required",
		`{"id":"1","type":"t"}`: "required",
		`{"id":"1","source":"/s","type":"t","specversion":"2.0"}`: "2.0",
		`{"id":"1","source":"/s","type":"t","time":"now"}`:        "time",
		`{"id":"1","source":"/s","type":"t","headers":"x"}`:       "headers",
		`{"id":"1","source":"/s","type":"t","data_base64":"*"}`:   "data_base64",
		`{"id":"1","source":"/s","type":"t","data_base64":{}}`:    "data_base64",
		`{"id":"1","source":"/s","type":"t","txindex":1.5}`:       "txindex",
		`{"id":null,"source":"/s","type":"t"}`:                    "required",
	} {
		if e, err := ParseJSON([]byte(line)); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%s gave %#v, %v; want an error about %q", line, e, err, says)
		}
	}
}

// TestParseNull: an attribute that is null is unset (JSON format, 2.2).
func TestParseNull(t *testing.T) {
	e, err := ParseJSON([]byte(`{"specversion":"1.0","id":"1","source":"/shop","type":"order.placed","topic":"order.placed","time":null,"partitionkey":null,"shade":null}`))
	if want := least("", ""); err != nil || !reflect.DeepEqual(e, want) {
		t.Errorf("got %#v, %v", e, err)
	}
}

// TestSDKReadsLines: the official library understands what we write. It knows
// media types in lower case only, and not those that end in +json, although the
// specification does: it gets no others.
func TestSDKReadsLines(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		e := events().Draw(t, "event")
		e.ContentType = strings.Replace(strings.ToLower(e.ContentType), "vnd.shop+json", "json", 1)
		line := AppendJSON(nil, &e)
		got := event.New()
		if err := json.Unmarshal(line, &got); err != nil {
			t.Fatalf("%v\n%s", err, line)
		}
		if err := got.Validate(); err != nil {
			t.Fatalf("%v\n%s", err, line)
		}
		sameAsSDK(t, &e, &got, func(s string) string { return s })
		if hs := Headers(nil, &e); len(hs) > 0 {
			m := map[string]string{}
			if err := json.Unmarshal([]byte(text(got.Extensions()[HeadersAttr])), &m); err != nil || len(m) != len(hs) {
				t.Fatalf("headers: %v %v", m, err)
			}
		}
	})
}

// TestSDKReadsBinary: the official library understands the attributes as HTTP
// headers. It leaves the percent-encoding of values to its caller.
func TestSDKReadsBinary(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		e := events().Draw(t, "event")
		req, err := http.NewRequest(http.MethodPost, "http://localhost", bytes.NewReader(e.Data))
		if err != nil {
			t.Fatal(err)
		}
		for _, a := range Attributes(nil, &e) {
			if a.Name == "datacontenttype" { // the one attribute with a header of its own
				req.Header.Set("Content-Type", a.Value)
			} else {
				req.Header.Set("ce-"+a.Name, Escape(a.Value))
			}
		}
		got, err := cehttp.NewEventFromHTTPRequest(req)
		if err != nil {
			t.Fatal(err)
		}
		sameAsSDK(t, &e, got, Unescape)
	})
}

func sameAsSDK(t *rapid.T, e *onewrite.Event, got *event.Event, decode func(string) string) {
	t.Helper()
	check := func(what, got, want string) {
		if got = decode(got); got != want {
			t.Fatalf("%s: the library reads %q, want %q", what, got, want)
		}
	}
	check("id", got.ID(), e.ID)
	check("source", got.Source(), "/"+e.Source)
	check("type", got.Type(), e.Type)
	if got.DataContentType() != e.ContentType {
		t.Fatalf("datacontenttype: the library reads %q, want %q", got.DataContentType(), e.ContentType)
	}
	if !got.Time().Equal(e.Time) {
		t.Fatalf("time: the library reads %v, want %v", got.Time(), e.Time)
	}
	if !bytes.Equal(got.Data(), e.Data) {
		t.Fatalf("data: the library reads %q, want %q", got.Data(), e.Data)
	}
	ext := got.Extensions()
	check("topic", text(ext["topic"]), e.Topic)
	check("partitionkey", text(ext["partitionkey"]), e.Key)
	check("sequence", text(ext["sequence"]), e.Seq)
	if e.Tx.ID != "" {
		check("txid", text(ext["txid"]), e.Tx.ID)
		check("txindex", text(ext["txindex"]), strconv.Itoa(e.Tx.Index))
		check("txlast", text(ext["txlast"]), strconv.FormatBool(e.Tx.Last))
	}
	for k, v := range e.Header {
		if IsAttribute(k) {
			check(k, text(ext[k]), v)
		}
	}
}

// text is an extension's value in its canonical text form.
func text(v any) string {
	switch v := v.(type) {
	case nil:
		return ""
	case string:
		return v
	case bool:
		return strconv.FormatBool(v)
	case int32:
		return strconv.Itoa(int(v))
	}
	return "not of a CloudEvents type"
}

// FuzzParseJSON: no line breaks the parser, and what it takes it can write and
// read again.
func FuzzParseJSON(f *testing.F) {
	for _, e := range []onewrite.Event{least("", ""), least("x", "text/plain"), least(`{"a":1}`, "application/json"), least("\xff", "image/png")} {
		e.Header = map[string]string{"X-Shop": "1", "traceparent": "00"}
		e.Tx = onewrite.Tx{ID: "5", Index: 1, Last: true}
		e.Time = time.UnixMicro(1).UTC()
		f.Add(AppendJSON(nil, &e))
	}
	f.Add([]byte(`{"id":"1","source":"/s","type":"t","headers":"{\"id\":\"2\"}","shade":{"a":[1]},"data":null,"data_base64":null}`))
	f.Fuzz(func(t *testing.T, line []byte) {
		e, err := ParseJSON(line)
		if err != nil {
			return
		}
		if e.ID == "" || e.Source == "" || e.Type == "" {
			t.Fatalf("an event without identity: %#v", e)
		}
		once := AppendJSON(nil, &e)
		if bytes.ContainsAny(once, "\r\n") || !json.Valid(once) || !utf8.Valid(once) && utf8.Valid(line) {
			t.Fatalf("not one line of JSON: %q", once)
		}
		again, err := ParseJSON(once)
		if err != nil {
			t.Fatalf("cannot read what was written: %v\n%q", err, once)
		}
		if twice := AppendJSON(nil, &again); !bytes.Equal(once, twice) {
			t.Fatalf("writing does not settle:\n%q\n%q", once, twice)
		}
	})
}

// A NATS message is in the structured mode where nothing else names an event: what has
// ce-id carries data, of whatever type.
func TestNATSModes(t *testing.T) {
	const inner = `{"specversion":"1.0","id":"x-1","source":"/bank","type":"t"}`
	header := map[string][]string{"content-type": {Structured}}
	if e, err := ParseNATS(header, []byte(inner)); err != nil || e.ID != "x-1" || e.Source != "bank" {
		t.Errorf("structured: %+v, %v", e, err)
	}
	header["ce-id"], header["ce-source"], header["ce-type"], header["ce-datacontenttype"] = []string{"e-1"}, []string{"/shop"}, []string{"t"}, []string{Structured}
	for _, body := range []string{inner, "[" + inner + "]"} {
		if e, err := ParseNATS(header, []byte(body)); err != nil || e.ID != "e-1" || e.Source != "shop" || string(e.Data) != body {
			t.Errorf("binary: %+v, %v", e, err)
		}
	}
}
