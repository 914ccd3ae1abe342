package onewritetest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"reflect"
	"runtime"
	"time"

	"github.com/onewrite/onewrite"
)

// difficult returns variations of e in all that is hard to carry. JSON that
// cannot be told from its own value is left out for a destination that keeps
// values only.
func difficult(e onewrite.Event, byValue bool) []onewrite.Event {
	var es []onewrite.Event
	add := func(change func(*onewrite.Event)) {
		v := e
		v.ID = fmt.Sprintf("%s-%02d", e.ID, len(es))
		change(&v)
		es = append(es, v)
	}
	data := func(contentType string, texts ...string) {
		for _, text := range texts {
			add(func(v *onewrite.Event) { v.ContentType, v.Data = contentType, []byte(text) })
		}
	}
	data("application/json", `{"a":"b"}`, `{"q":"\"","b":"\\","n":"\n","u":"\u0000","e":"é😀"}`,
		`[1,2.50,1e400,12345678901234567890,-0]`, `null`, `"text"`, `true`, `0`, `{}`, `{"<":"&>"}`, "\"\u2028\"")
	data("application/cloudevents+json", `{"specversion":"1.0"}`)
	data("text/plain; charset=utf-8", "line\nline\r\nlast", `"`, `\`, `back\\slash`, "\x00\x01\x1b\x7f", "Grüße, 世界 🌍",
		" spaces ", "{\"looks\":\"like JSON\"}", "\ufeffbom", "\u2028\u2029", "%41%zz+", "")
	data("text/csv", "a,b\r\n1,2\r\n")
	data("application/octet-stream", "\x00", "\xff\xfe\xfd", "\r\n\r\n", "\xc3\x28", "plain", "")
	data("application/x-protobuf; proto=\"shop.Order\"", "\x08\x96\x01")
	if !byValue {
		data("application/json", ` {"spaced" : 1 } `, "{\n  \"lines\": [\n    1\n  ]\n}\n")
	}
	add(func(v *onewrite.Event) { v.ContentType, v.Data = "", nil })
	add(func(v *onewrite.Event) { v.Key = "" })
	add(func(v *onewrite.Event) { v.Key = `{"id":1,"name":"Zoë \"x\""}` })
	add(func(v *onewrite.Event) { v.Key = " 100% \t\"quoted\" \\ 鍵 " })
	add(func(v *onewrite.Event) { v.Time = time.Date(1999, 12, 31, 23, 59, 59, 1000, time.UTC) })
	add(func(v *onewrite.Event) { v.Time = time.Time{} })
	add(func(v *onewrite.Event) { v.Seq = "" })
	add(func(v *onewrite.Event) { v.Type = "a.type with späces" })
	add(func(v *onewrite.Event) { v.Tx = onewrite.Tx{ID: "0/16B3748", Index: 41} })
	add(func(v *onewrite.Event) { v.Tx = onewrite.Tx{ID: "7", Index: 0, Last: true} })
	add(func(v *onewrite.Event) {
		v.Header = map[string]string{
			"traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
			"tenant":      "Ærø & \"Söhne\", 50 %",
			"spaced":      "  two  ",
		}
	})
	add(func(v *onewrite.Event) {
		v.Header = map[string]string{"X-Request-Id": "a b; c=\"d\"", "tenant": "x"}
	})
	return es
}

// bulk returns n bytes that run through count values from first on.
func bulk(n int, first byte, count int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = first + byte((i+i/count)%count)
	}
	return b
}

// difference says in what got is not want; "" is in nothing.
func difference(want, got *onewrite.Event, byValue bool) string {
	for _, f := range []struct{ name, want, got string }{
		{"id", want.ID, got.ID}, {"source", want.Source, got.Source}, {"topic", want.Topic, got.Topic},
		{"type", want.Type, got.Type}, {"key", want.Key, got.Key}, {"seq", want.Seq, got.Seq},
		{"content type", want.ContentType, got.ContentType},
		{"time", want.Time.UTC().Format(time.RFC3339Nano), got.Time.UTC().Format(time.RFC3339Nano)},
		{"tx", fmt.Sprint(want.Tx), fmt.Sprint(got.Tx)},
	} {
		if f.want != f.got {
			return fmt.Sprintf("%s is %q, want %q", f.name, f.got, f.want)
		}
	}
	if !maps.Equal(want.Header, got.Header) {
		return fmt.Sprintf("headers are %q, want %q", got.Header, want.Header)
	}
	if bytes.Equal(want.Data, got.Data) || byValue && sameJSON(want.Data, got.Data) {
		return ""
	}
	return fmt.Sprintf("data is %s, want %s", excerpt(got.Data), excerpt(want.Data))
}

func excerpt(b []byte) string {
	if len(b) > 200 {
		return fmt.Sprintf("%d bytes %q…", len(b), b[:200])
	}
	return fmt.Sprintf("%q", b)
}

// sameJSON reports whether a and b are one JSON value; numbers by their digits.
func sameJSON(a, b []byte) bool {
	v, ok := jsonValue(a)
	w, too := jsonValue(b)
	return ok && too && reflect.DeepEqual(v, w)
}

// jsonValue returns the value of a JSON text; ok is false if b is none.
func jsonValue(b []byte) (v any, ok bool) {
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	if d.Decode(&v) != nil {
		return nil, false
	}
	_, err := d.Token()
	return v, errors.Is(err, io.EOF)
}

func goroutines() int { return runtime.NumGoroutine() }

// waitGoroutines waits until there are no more goroutines than before; it
// returns the stacks of all if that does not come true.
func waitGoroutines(before int) string {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(promptly); time.Now().Before(end); <-tick.C {
		if goroutines() <= before {
			return ""
		}
	}
	buf := make([]byte, 1<<20)
	return string(buf[:runtime.Stack(buf, true)])
}
