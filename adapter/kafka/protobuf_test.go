package kafka_test

import (
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/twmb/franz-go/pkg/sr"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/adapter/kafka"
	"github.com/onewrite/onewrite/internal/schemas"
	"github.com/onewrite/onewrite/internal/servers"
)

// TestProtobufFollowsTheTable: a table gets columns, loses one that comes back, has its
// first fraction, and changes a type so that readers could not follow. A reader that was
// built by the newest version gets all of it, whatever version it was written by.
func TestProtobufFollowsTheTable(t *testing.T) {
	k := servers.Kafka(t)
	a, cl := registry(t)
	topic := unique("protobuf")
	subject := topic + "-value"
	c := kafka.Config{Brokers: []string{k.Addr()}, Destination: topic, Schemas: &schemas.Config{Format: "protobuf", URLs: []string{a.URL()}}}
	s := newSink(t, c)
	first := insert(topic, "1", `{"id":1}`, `{"id":9007199254740993,"total":"1.10","note":null,"weight":1,"tags":["ä",null,[0.5,true]]}`)
	want := 0
	has := func(more int) {
		t.Helper()
		if want += more; versions(t, cl, subject) != want {
			t.Fatalf("%d versions, want %d", versions(t, cl, subject), want)
		}
	}
	mustWrite(t, s, first, insert(topic, "2", `{"id":2}`, `{"id":-9223372036854775808,"total":"NaN","note":null,"weight":null,"tags":[]}`))
	has(1)
	mustWrite(t, s, insert(topic, "3", `{"id":3}`, `{"id":3,"total":"","note":"new","weight":2,"tags":null,"größe":true}`)) // a column more, and a text for note
	has(1)
	mustWrite(t, s, insert(topic, "4", `{"id":4}`, `{"id":4,"note":"x","weight":3,"tags":[1],"größe":false}`)) // total is dropped
	has(1)
	mustWrite(t, s, insert(topic, "5", `{"id":5}`, `{"id":5,"note":"x","weight":0.5,"tags":["x"],"größe":null}`)) // weight is a float
	has(1)
	mustRefuse(t, s, insert(topic, "6", `{"id":6}`, `{"id":"six","note":"y","weight":2,"tags":[],"größe":null}`), "event 6", "409", "column id was long and is string", "/config/"+subject)
	mustRefuse(t, s, insert(topic, "6", `{"id":6}`, `{"id":6,"note":"y","weight":2,"weight.double":0.5,"tags":[],"größe":null}`), "no schema follows from it")
	mustWrite(t, s, insert(topic, "7", `{"id":7}`, `{"id":7,"note":"z","weight":"NaN","tags":[],"größe":null}`))
	has(0)
	s = newSink(t, c) // one that remembers nothing
	again := first
	again.ID = "again"
	mustWrite(t, s,
		rowChange(topic, "8", "update", `{"id":7}`, `{"id":7}`, `{"id":7,"weight":null,"tags":["b"],"größe":true}`, `,"unchanged":["note"]`),
		rowChange(topic, "9", "delete", `{"id":7}`, `{"id":7}`, `null`, ""),
		rowChange(topic, "10", "truncate", topic, `null`, `null`, ""),
		again, // from before the change
		insert(topic, "11", `{"id":8}`, `{"id":8,"userId":1,"user_id":2,"\"\\ \t":3,"note":null}`))
	latest, err := cl.SchemaByVersion(t.Context(), subject, -1)
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{
		"int64 id = 1;", `string total = 2 [deprecated = true];`, "int64 weight = 3 [deprecated = true];", "Array tags = 4 [deprecated = true];", "string note = 5;",
		`bool gr_xc3__xb6__xc3__x9f_e = 6 [json_name = "größe", deprecated = true];`, `double weight_double = 7 [json_name = "weight.double", deprecated = true];`,
		"int64 userId = 8;", `int64 user_id_9 = 9 [json_name = "user_id"];`, `int64 _x22__x5c__x20__x09_ = 10 [json_name = "\042\134 \011"];`,
	} {
		if !strings.Contains(latest.Schema.Schema, line) {
			t.Errorf("no %s in:\n%s", line, latest.Schema.Schema)
		}
	}

	got := map[string]readRecord{}
	for _, r := range confluent(t, k, topic, a.URL(), "protobuf") {
		got[r.ID] = r
		if r.Content != "application/protobuf" {
			t.Errorf("content-type %q", r.Content)
		}
	}
	if len(got) != 11 {
		t.Fatalf("%d records", len(got))
	}
	for _, want := range []struct{ id, path, value string }{
		{"1", "after.id", "9007199254740993"}, {"1", "after.total", "1.10"}, {"1", "after.weight", "1"}, {"1", "after.note", "<nil>"}, {"1", "nulls", "[after.note]"},
		{"1", "after.tags.items", "[map[text:ä] map[] map[array:map[items:[map[number:0.5] map[boolean:true]]]]]"},
		{"again", "after.total", "1.10"}, {"again", "after.weight", "1"}, {"again", "after.note", "<nil>"}, {"again", "nulls", "[after.note]"},
		{"2", "after.id", "-9223372036854775808"}, {"2", "after.total", "NaN"}, {"2", "after.tags", "map[]"}, {"2", "nulls", "[after.note after.weight]"},
		{"3", "after.note", "new"}, {"3", "after.total", ""}, {"3", "after.größe", "true"}, {"3", "nulls", "[after.tags]"},
		{"4", "after.größe", "false"}, {"4", "after.total", "<nil>"}, {"4", "nulls", "<nil>"}, {"4", "after.tags.items", "[map[integer:1]]"},
		{"5", "after.weight", "<nil>"}, {"5", "after.weight.double", "0.5"}, {"7", "after.weight.double", "NaN"},
		{"1", "source.table", topic}, {"1", "source.lsn", "22869648"}, {"1", "source.txId", "737"}, {"1", "op", "c"}, {"1", "ts_ms", "1795941665366"}, {"1", "transaction.id", "737"}, {"1", "transaction.total_order", "1"},
		{"8", "after.note", "<nil>"}, {"8", "source.unchanged", "[note]"}, {"8", "nulls", "[after.weight]"},
		{"9", "before.id", "7"}, {"9", "after", "<nil>"}, {"9", "nulls", "<nil>"}, {"10", "op", "t"},
		{"11", "after.userId", "1"}, {"11", "after.user_id", "2"}, {"11", "after.\"\\ \t", "3"},
	} {
		v := got[want.id].in(want.path)
		if row, ok := got[want.id].in("after").(map[string]any); ok && want.path == "after.weight.double" {
			v = row["weight.double"]
		}
		if fmt.Sprint(v) != want.value {
			t.Errorf("event %s: %s is %v, want %s", want.id, want.path, v, want.value)
		}
	}
	var bodies []string
	for _, r := range records(t, k, topic) {
		if string(r.Key) == first.Key {
			bodies = append(bodies, string(r.Value[5:]))
		}
	}
	if len(bodies) != 2 || bodies[0] != bodies[1] || bodies[0][0] != 0 {
		t.Errorf("a repeat has other bytes: %q", bodies)
	}
}

// TestProtobufNumbersAtOnce: while a destination is about to register a column another
// one gives its number away. The registry refuses the second, and the next try counts on
// from there.
func TestProtobufNumbersAtOnce(t *testing.T) {
	k := servers.Kafka(t)
	a, cl := registry(t)
	topic := unique("at-once")
	open := func(url string) onewrite.Sink {
		return newIdempotent(t, kafka.Config{Brokers: []string{k.Addr()}, Destination: unique(topic), Topic: topic, Schemas: &schemas.Config{Format: "protobuf", URLs: []string{url}}})
	}
	root, err := url.Parse(strings.TrimSuffix(a.URL(), "/apis/ccompat/v7"))
	if err != nil {
		t.Fatal(err)
	}
	var between func()
	proxy := httputil.NewSingleHostReverseProxy(root)
	front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if f := between; r.Method == http.MethodPost && f != nil {
			between = nil
			f()
		}
		proxy.ServeHTTP(w, r)
	}))
	defer front.Close()
	slow, quick := open(front.URL+"/apis/ccompat/v7"), open(a.URL())
	mustWrite(t, slow, insert(topic, "1", "", `{"id":1}`))
	between = func() {
		if _, err := persist(t, quick, insert(topic, "2", "", `{"id":2,"total":"1"}`)); err != nil {
			t.Error(err)
		}
	}
	late := insert(topic, "3", "", `{"id":3,"note":"x"}`)
	mustRefuse(t, slow, late, "409")
	mustWrite(t, slow, late)
	latest, err := cl.SchemaByVersion(t.Context(), topic+"-value", -1)
	if err != nil {
		t.Fatal(err)
	}
	if text := latest.Schema.Schema; !strings.Contains(text, "string total = 2 [deprecated = true];") || !strings.Contains(text, "string note = 3;") {
		t.Error(text)
	}
}

const orderProto = `syntax = "proto3";
package shop;
import "google/protobuf/timestamp.proto";
message Order {
  int64 number = 1;
  optional string note = 2;
  google.protobuf.Timestamp at = 3;
  message Line { string sku = 1; }
}
message Returned {
  message Reason { string text = 1; }
  message Parcel { int32 weight = 1; }
}
`

// TestProtobufOfPayloads: an event that is no row change is written by the schema that
// somebody has registered: by the message that is called as its type is, or the first.
func TestProtobufOfPayloads(t *testing.T) {
	k := servers.Kafka(t)
	a, cl := registry(t)
	topic := unique("payload")
	subject := topic + "-value"
	s := newSink(t, kafka.Config{Brokers: []string{k.Addr()}, Destination: topic, Schemas: &schemas.Config{Format: "protobuf", URLs: []string{a.URL()}}})
	var answered interface{ Answered() bool }
	n, err := persist(t, s, order(topic, "0", "a", `{"number":1}`))
	if n != 0 || errors.Is(err, onewrite.ErrRejected) || !errors.As(err, &answered) || !strings.Contains(err.Error(), "/subjects/"+subject+"/versions") {
		t.Fatalf("without a schema: %d, %v", n, err)
	}
	v1 := register(t, cl, subject, sr.TypeProtobuf, orderProto)
	typed := order(topic, "2", "b", `{"weight":7}`)
	typed.Type = "shop.Returned.Parcel"
	mustWrite(t, s, order(topic, "1", "a", `{"number":9007199254740993,"note":"","at":"2024-02-29T12:30:59Z"}`), typed)
	mustRefuse(t, s, order(topic, "3", "a", `{"number":1,"more":"x"}`), "event 3 to "+topic, `unknown field "more"`, "message shop.Order", "subject "+subject)
	mustRefuse(t, s, order(topic, "3", "a", `{"number":null}`), "field number is null")
	v2 := register(t, cl, subject, sr.TypeProtobuf, strings.Replace(orderProto, "  message Line", "  string more = 4;\n  message Line", 1))
	mustWrite(t, s, order(topic, "4", "a", `{"number":"2","more":"x"}`))
	mustRefuse(t, s, insert(topic, "5", "a", `{"id":1}`), `unknown field "before"`)
	if n := versions(t, cl, subject); n != 2 {
		t.Errorf("%d versions: a schema of somebody else's was evolved", n)
	}
	for _, r := range records(t, k, topic) {
		var h sr.ConfluentHeader
		id, rest, err := h.DecodeID(r.Value)
		if err != nil {
			t.Fatal(err)
		}
		index, rest, err := h.DecodeIndex(rest, 9)
		if err != nil {
			t.Fatal(err)
		}
		if string(r.Key) == "b" && (id != v1 || !slices.Equal(index, []int{1, 1}) || string(rest) != "\x08\x07") || string(r.Key) == "a" && !slices.Equal(index, []int{0}) {
			t.Errorf("%s: schema %d, message %v, %q", r.Key, id, index, rest)
		}
	}
	got := map[string]readRecord{}
	for _, r := range confluent(t, k, topic, a.URL(), "protobuf") {
		got[r.ID] = r
	}
	if len(got) != 3 || got["1"].Schema != v1 || got["4"].Schema != v2 {
		t.Fatalf("%+v", got)
	}
	if text := fmt.Sprint(got["1"].Value, got["2"].Value, got["4"].Value); text != "map[at:2024-02-29T12:30:59Z note: number:9007199254740993] map[number:7] map[more:x number:2]" {
		t.Error(text)
	}
}
