package cloudevents

import (
	"reflect"
	"testing"
	"time"

	"github.com/onewrite/onewrite"
)

func TestKafka(t *testing.T) {
	base := onewrite.Event{ID: "1", Source: "shop", Topic: "order.placed", Type: "order.placed", Time: time.Date(2024, 2, 29, 1, 2, 3, 4000, time.UTC)}
	for name, change := range map[string]func(e *onewrite.Event){
		"bare":       func(*onewrite.Event) {},
		"empty":      func(e *onewrite.Event) { e.Data, e.ContentType = []byte{}, "text/plain" },
		"all":        func(e *onewrite.Event) { e.Key, e.Seq, e.Data, e.ContentType = "k/ü", "007", []byte{0, 255}, "a/b" },
		"nested":     func(e *onewrite.Event) { e.Data, e.ContentType = []byte("{}"), Structured },
		"change":     func(e *onewrite.Event) { e.Tx = onewrite.Tx{ID: "7", Index: 3, Last: true} },
		"attributes": func(e *onewrite.Event) { e.Header = map[string]string{"tenant": "ä ö", "traceparent": "00-1-2-01"} },
		"transport":  func(e *onewrite.Event) { e.Header = map[string]string{"X-Odd Name": "\n\x00"} },
		"in the way": func(e *onewrite.Event) {
			e.Header = map[string]string{"ce_id": "other", "Content-Type": "other", "content-type": "x", "CE_TYPE": "y"}
		},
	} {
		want := base
		change(&want)
		got, err := ParseKafka(KafkaHeaders(nil, &want), want.Data)
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %v\ngot  %+v\nwant %+v", name, err, got, want)
		}
	}
	if _, err := ParseKafka(nil, nil); err == nil {
		t.Error("a tombstone was taken for an event")
	}
	got, err := ParseKafka([]Attr{{"content-type", Structured + "; charset=utf-8"}}, AppendJSON(nil, &base))
	if err != nil || got.ID != "1" {
		t.Errorf("structured: %+v, %v", got, err)
	}
}
