package kafka_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/sr"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/adapter/kafka"
	"github.com/onewrite/onewrite/internal/schemas"
	"github.com/onewrite/onewrite/internal/servers"
)

var backward sync.Once

// registry returns the shared registry, which takes versions that are compatible
// backward, and a client of it.
func registry(t *testing.T) (*servers.ApicurioServer, *sr.Client) {
	t.Helper()
	a := servers.Apicurio(t)
	cl := client(t, a.URL())
	backward.Do(func() { setBackward(t, cl) })
	return a, cl
}

func client(t *testing.T, url string) *sr.Client {
	t.Helper()
	cl, err := sr.NewClient(sr.URLs(url))
	if err != nil {
		t.Fatal(err)
	}
	return cl
}

func setBackward(t *testing.T, cl *sr.Client) {
	t.Helper()
	for _, r := range cl.SetCompatibility(t.Context(), sr.SetCompatibility{Level: sr.CompatBackward}) {
		if r.Err != nil {
			t.Fatal(r.Err)
		}
	}
}

// rowChange makes the event of a row change of a table that is a topic of its own.
func rowChange(topic, id, typ, key, before, after, source string) onewrite.Event {
	op := map[string]string{"insert": "c", "update": "u", "delete": "d", "truncate": "t", "snapshot": "r"}[typ]
	return onewrite.Event{
		ID: id, Source: "shop", Topic: topic, Type: typ, Key: key, Time: time.Date(2024, 2, 29, 12, 30, 59, 0, time.UTC), Seq: id,
		ContentType: "application/json", Tx: onewrite.Tx{ID: "737"},
		Data: fmt.Appendf(nil, `{"before":%s,"after":%s,"source":{"version":"1","connector":"postgresql","name":"shop","ts_ms":1795941665366,"snapshot":"false","db":"shop","schema":"public","table":%q,"txId":737,"lsn":22869648%s},"op":%q,"ts_ms":1795941665366,"transaction":{"id":"737","total_order":1,"data_collection_order":1}}`,
			before, after, topic, source, op),
	}
}

func insert(topic, id, key, after string) onewrite.Event {
	return rowChange(topic, id, "insert", key, "null", after, "")
}

// read is a record as a reader of Confluent's makes it.
type readRecord struct {
	ID, Content, Key string
	Schema           int
	Value            map[string]any
}

// confluent reads a topic; numbers are json.Number.
func confluent(t *testing.T, k *servers.KafkaServer, topic, registry, format string) (recs []readRecord) {
	t.Helper()
	cmd := servers.ConfluentSchemas(t).Command(filepath.Join("testdata", "schemas.py"), k.Addr(), topic, registry, format)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("schemas.py: %v\n%s", err, stderr.String())
	}
	for line := range strings.Lines(string(out)) {
		var r readRecord
		dec := json.NewDecoder(strings.NewReader(line))
		dec.UseNumber()
		if err := dec.Decode(&r); err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		recs = append(recs, r)
	}
	return recs
}

// in returns a member of a record's value.
func (r readRecord) in(path string) any {
	var v any = map[string]any(r.Value)
	for _, name := range strings.Split(path, ".") {
		o, ok := v.(map[string]any)
		if !ok {
			return nil
		}
		v = o[name]
	}
	return v
}

// persist writes events, again where a busy registry did not answer in time.
func persist(t *testing.T, s onewrite.Sink, events ...onewrite.Event) (done int, err error) {
	t.Helper()
	for deadline := time.Now().Add(patience); ; {
		n, err := s.Write(t.Context(), events[done:])
		var answered interface{ Answered() bool }
		if done += n; err == nil || errors.Is(err, onewrite.ErrRejected) || errors.As(err, &answered) || time.Now().After(deadline) {
			return done, err
		}
	}
}

// mustWrite writes events.
func mustWrite(t *testing.T, s onewrite.Sink, events ...onewrite.Event) {
	t.Helper()
	if n, err := persist(t, s, events...); n != len(events) || err != nil {
		t.Fatalf("%d of %d are written: %v", n, len(events), err)
	}
}

// mustRefuse writes an event that is refused, with an error that has all the words.
func mustRefuse(t *testing.T, s onewrite.Sink, e onewrite.Event, words ...string) {
	t.Helper()
	n, err := persist(t, s, e)
	if n != 0 || !errors.Is(err, onewrite.ErrRejected) {
		t.Fatalf("%d is written, %v", n, err)
	}
	for _, word := range words {
		if !strings.Contains(err.Error(), word) {
			t.Errorf("no %q in: %v", word, err)
		}
	}
}

// versions counts those of a subject.
func versions(t *testing.T, cl *sr.Client, subject string) int {
	t.Helper()
	v, err := cl.SubjectVersions(t.Context(), subject)
	if err != nil {
		t.Fatal(err)
	}
	return len(v)
}

// TestAvroFollowsTheTable: a table gets a column, loses one, and changes the type of
// one so that readers could not follow: that event is refused, others go on.
func TestAvroFollowsTheTable(t *testing.T) {
	k := servers.Kafka(t)
	a, cl := registry(t)
	for name, idempotent := range map[string]bool{"transactions": false, "idempotent": true} {
		t.Run(name, func(t *testing.T) {
			topic := unique("avro")
			subject := topic + "-value"
			c := kafka.Config{Brokers: []string{k.Addr()}, Destination: topic, Schemas: &schemas.Config{Format: "avro", URLs: []string{a.URL()}}}
			open := func() onewrite.Sink {
				if idempotent {
					return newIdempotent(t, c)
				}
				return newSink(t, c)
			}
			s := open()
			mustWrite(t, s,
				insert(topic, "1", `{"id":1}`, `{"id":9007199254740993,"total":"12345678901234567890.10","note":null,"tags":["ä",null]}`),
				insert(topic, "2", `{"id":2}`, `{"id":-9223372036854775808,"total":"NaN","note":null,"tags":null}`))
			if n := versions(t, cl, subject); n != 1 {
				t.Fatalf("%d versions", n)
			}
			mustWrite(t, s, insert(topic, "3", `{"id":3}`, `{"id":3,"total":"1.00","note":"new","tags":[],"weight":1}`)) // a column more, and a text for note
			mustWrite(t, s, insert(topic, "3b", `{"id":4}`, `{"id":4,"note":"x","tags":[],"weight":2}`))                 // total is dropped
			if n := versions(t, cl, subject); n != 3 {
				t.Fatalf("%d versions", n)
			}
			mustWrite(t, s, insert(topic, "4", `{"id":4}`, `{"id":4,"note":"x","tags":[],"weight":0.1}`)) // weight is a float
			evs := []onewrite.Event{
				insert(topic, "5", `{"id":5}`, `{"id":5,"note":"y","tags":[],"weight":2}`),
				insert(topic, "6", `{"id":6}`, `{"id":"six","note":"y","tags":[],"weight":2}`),
				insert(topic, "7", `{"id":7}`, `{"id":7,"note":"z","tags":[],"weight":2}`),
			}
			n, err := persist(t, s, evs...)
			if n != 1 || !errors.Is(err, onewrite.ErrRejected) || !strings.Contains(err.Error(), "event 6") || !strings.Contains(err.Error(), "409") || !strings.Contains(err.Error(), "/config/"+subject) {
				t.Fatalf("%d are written: %v", n, err)
			}
			mustWrite(t, s, evs[2])
			s = open() // one that remembers nothing
			mustWrite(t, s,
				rowChange(topic, "8", "update", `{"id":7}`, `{"id":7}`, `{"id":7,"tags":["b"],"weight":null}`, `,"unchanged":["note"]`),
				rowChange(topic, "9", "delete", `{"id":7}`, `{"id":7}`, `null`, ""),
				rowChange(topic, "10", "truncate", topic, `null`, `null`, ""),
				insert(topic, "11", `{"id":1}`, `{"id":1,"total":"2","note":null,"tags":null}`)) // comes again, from before the change
			if n := versions(t, cl, subject); n != 5 {
				t.Errorf("%d versions", n)
			}

			got := map[string]readRecord{}
			for _, r := range confluent(t, k, topic, a.URL(), "avro") {
				got[r.ID] = r
				if r.Content != "application/avro" {
					t.Errorf("content-type %q", r.Content)
				}
			}
			if len(got) != 11 {
				t.Fatalf("%d records", len(got))
			}
			for _, want := range []struct{ id, path, value string }{
				{"1", "after.id", "9007199254740993"}, {"1", "after.total", "12345678901234567890.10"}, {"1", "after.tags", "[ä <nil>]"}, {"1", "after.note", "<nil>"},
				{"2", "after.id", "-9223372036854775808"}, {"2", "after.total", "NaN"},
				{"3", "after.note", "new"}, {"3", "after.weight", "1"}, {"3b", "after.weight", "2"}, {"4", "after.weight", "0.1"}, {"5", "after.weight", "2.0"},
				{"1", "source.table", topic}, {"1", "source.lsn", "22869648"}, {"1", "op", "c"}, {"1", "transaction.id", "737"}, {"1", "absent", "<nil>"},
				{"8", "after.note", "<nil>"}, {"8", "after.weight", "<nil>"}, {"8", "source.unchanged", "[note]"}, {"8", "absent", "[before.note before.tags before.weight after.note]"},
				{"9", "before.id", "7"}, {"9", "after", "<nil>"}, {"10", "op", "t"},
			} {
				if v := fmt.Sprint(got[want.id].in(want.path)); v != want.value {
					t.Errorf("event %s: %s is %s, want %s", want.id, want.path, v, want.value)
				}
			}
			if _, has := got["4"].Value["after"].(map[string]any)["total"]; has {
				t.Error("the dropped column is in the schema still")
			}
		})
	}
}

// TestRegistryAway: while the registry does not answer, events wait, whatever it did
// before: nothing is refused.
func TestRegistryAway(t *testing.T) {
	k := servers.Kafka(t)
	a := servers.NewApicurio(t)
	topic := unique("away")
	s := newSink(t, kafka.Config{Brokers: []string{k.Addr()}, Destination: topic, Schemas: &schemas.Config{Format: "avro", URLs: []string{a.URL()}}})
	mustWrite(t, s, insert(topic, "1", `{"id":1}`, `{"id":1}`))
	waits := func(how string) {
		t.Helper()
		evs := []onewrite.Event{insert(topic, "known-"+how, `{"id":2}`, `{"id":2}`), insert(topic, "new-"+how, `{"id":3}`, `{"id":3,"more":1}`)}
		n, err := s.Write(t.Context(), evs)
		var answered interface{ Answered() bool }
		if n != 1 || err == nil || errors.Is(err, onewrite.ErrRejected) || errors.As(err, &answered) {
			t.Errorf("%s: %d are written, %v", how, n, err)
		}
		if err != nil && !strings.Contains(err.Error(), "curl "+a.URL()) {
			t.Errorf("no cure in: %v", err)
		}
	}
	thaw := a.Freeze(t)
	waits("frozen")
	thaw()
	a.Kill(t)
	waits("killed")
	a.Restart(t)
	mustWrite(t, s, insert(topic, "2", `{"id":3}`, `{"id":3,"more":1}`))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.Write(ctx, []onewrite.Event{insert(topic, "3", "", `{"id":4,"other":1}`)}); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// register has somebody register a schema.
func register(t *testing.T, cl *sr.Client, subject string, typ sr.SchemaType, text string) int {
	t.Helper()
	id, err := cl.RegisterSchema(t.Context(), subject, sr.Schema{Schema: text, Type: typ}, -1, -1)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// order makes an event that is no row change.
func order(topic, id, key, data string) onewrite.Event {
	return onewrite.Event{ID: id, Source: "shop", Topic: topic, Type: "order.placed", Key: key, Seq: id, Time: time.Date(2024, 2, 29, 12, 30, 59, 0, time.UTC), ContentType: "application/json", Data: []byte(data)}
}

const orderV1 = `{"type":"record","name":"Order","fields":[{"name":"number","type":"long"},{"name":"price","type":{"type":"bytes","logicalType":"decimal","precision":10,"scale":2}}]}`
const orderV2 = `{"type":"record","name":"Order","fields":[{"name":"number","type":"long"},{"name":"price","type":{"type":"bytes","logicalType":"decimal","precision":10,"scale":2}},{"name":"note","type":["null","string"],"default":null}]}`

// TestAvroOfPayloads: an event that is no row change is written by the schema that
// somebody has registered, and by the next version as soon as it needs that. Nobody's
// schema but onewrite's is evolved.
func TestAvroOfPayloads(t *testing.T) {
	k := servers.Kafka(t)
	a, cl := registry(t)
	topic := unique("payload")
	subject := topic + "-value"
	s := newSink(t, kafka.Config{Brokers: []string{k.Addr()}, Destination: topic, Schemas: &schemas.Config{Format: "avro", URLs: []string{a.URL()}}})
	var answered interface{ Answered() bool }
	n, err := persist(t, s, order(topic, "0", "a", `{"number":1}`))
	if n != 0 || errors.Is(err, onewrite.ErrRejected) || !errors.As(err, &answered) || !strings.Contains(err.Error(), "/subjects/"+subject+"/versions") {
		t.Fatalf("without a schema: %d, %v", n, err)
	}
	v1 := register(t, cl, subject, sr.TypeAvro, orderV1)
	gone := order(topic, "2", "a", "")
	gone.Data, gone.ContentType = nil, ""
	mustWrite(t, s, order(topic, "1", "a", `{"number":9007199254740993,"price":"12345678.90"}`), gone)
	mustRefuse(t, s, order(topic, "3", "a", `{"number":1,"price":0.5,"note":"x"}`), "event 3 to "+topic, "field note is not in the schema", "subject "+subject)
	mustRefuse(t, s, order(topic, "3", "a", `{"number":"1","price":0.5}`), "field number is a string, the schema has long")
	text := order(topic, "3", "a", "hello")
	text.ContentType = "text/plain"
	mustRefuse(t, s, text, "text/plain")
	v2 := register(t, cl, subject, sr.TypeAvro, orderV2)
	mustWrite(t, s, order(topic, "4", "a", `{"number":2,"price":0.5,"note":"x"}`))
	mustRefuse(t, s, insert(topic, "5", "a", `{"id":1}`), "field before is not in the schema")
	if n := versions(t, cl, subject); n != 2 {
		t.Errorf("%d versions: a schema of somebody else's was evolved", n)
	}
	got := confluent(t, k, topic, a.URL(), "avro")
	if len(got) != 3 {
		t.Fatalf("%+v", got)
	}
	for i, want := range []struct {
		id     string
		schema int
		number string
	}{{"1", v1, "9007199254740993"}, {"2", 0, "<nil>"}, {"4", v2, "2"}} {
		if r := got[i]; r.ID != want.id || r.Schema != want.schema || fmt.Sprint(r.in("number")) != want.number {
			t.Errorf("%+v, want %+v", r, want)
		}
	}
	if p := fmt.Sprint(got[0].in("price")); p != "12345678.90" {
		t.Errorf("the price is %s", p)
	}
}

// TestSubjects: what names a subject, and what becomes of two tables that share one.
func TestSubjects(t *testing.T) {
	k := servers.Kafka(t)
	a, cl := registry(t)
	one := unique("subjects")
	open := func(by string, register bool) onewrite.Sink {
		return newIdempotent(t, kafka.Config{Brokers: []string{k.Addr()}, Destination: unique(one), Topic: one, Tombstones: true,
			Schemas: &schemas.Config{Format: "avro", URLs: []string{a.URL()}, Subject: by, NoRegister: !register}})
	}
	first, second := one+"_a", one+"_b"
	name := func(table string) string {
		return "onewrite.shop.public." + strings.ReplaceAll(table, "-", "_x2d_") + ".Envelope"
	}
	mustWrite(t, open("topic-record", true), insert(first, "1", "", `{"id":1}`), insert(second, "2", "", `{"name":"x"}`))
	versions(t, cl, one+"-"+name(first))
	versions(t, cl, one+"-"+name(second))
	mustWrite(t, open("record", true), insert(first, "3", "", `{"id":1}`))
	versions(t, cl, name(first))
	register(t, cl, "order.placed", sr.TypeAvro, orderV2)
	mustWrite(t, open("record", true), order("x", "4", "", `{"number":1,"price":"1"}`))
	shared := open("topic", true)
	mustWrite(t, shared, insert(first, "5", "", `{"id":1}`))
	n, err := persist(t, shared, rowChange(first, "5b", "delete", "k", `{"id":1}`, "null", ""), insert(second, "6", "", `{"name":"x"}`))
	if n != 1 || !errors.Is(err, onewrite.ErrRejected) || !strings.Contains(err.Error(), "event 6 ") {
		t.Errorf("%d are written, %v", n, err) // the delete is two records
	}
	mustRefuse(t, shared, insert(second, "6", "", `{"name":"x"}`), "has the rows of", "topic-record")
	closed := open("topic", false)
	mustWrite(t, closed, insert(first, "7", "", `{"id":2}`), insert(first, "7b", "", `{}`)) // the column is dropped
	mustRefuse(t, closed, insert(first, "8", "", `{"id":2,"more":1}`), "field after.more is not in the schema")
	if n := versions(t, cl, one+"-value"); n != 1 {
		t.Errorf("%d versions", n)
	}
	other := newIdempotent(t, kafka.Config{Brokers: []string{k.Addr()}, Destination: unique(one), Topic: one, Schemas: &schemas.Config{Format: "json-schema", URLs: []string{a.URL()}}})
	mustRefuse(t, other, insert(first, "9", "", `{"id":2}`), "has schemas of AVRO")
}

// TestJSONSchema: payloads stay as they are behind the header, if they are valid; the
// schema of a table is never less than it was.
func TestJSONSchema(t *testing.T) {
	k := servers.Kafka(t)
	a, cl := registry(t)
	rows, orders := unique("rows"), unique("orders")
	s := newSink(t, kafka.Config{Brokers: []string{k.Addr()}, Destination: rows, Schemas: &schemas.Config{Format: "json-schema", URLs: []string{a.URL()}}})
	mustWrite(t, s,
		insert(rows, "1", `{"id":1}`, `{"id":9007199254740993,"note":null,"size":1,"tags":[1]}`),
		insert(rows, "2", `{"id":2}`, `{"id":2,"note":"x","size":1.5,"tags":null,"more":true}`),
		insert(rows, "3", `{"id":3}`, `{"id":3,"size":"NaN","tags":[null],"more":false}`), // note is dropped
		rowChange(rows, "4", "update", `{"id":3}`, `{"id":3}`, `{"id":3,"size":1,"more":null}`, `,"unchanged":["tags"]`))
	if n := versions(t, cl, rows+"-value"); n != 2 {
		t.Errorf("%d versions", n)
	}
	mustRefuse(t, s, insert(rows, "5", `{"id":5}`, `{"id":"five","size":1,"tags":null,"more":null}`), "409", "column id was long and is string")
	mustWrite(t, s, insert(rows, "6", `{"id":6}`, `{"id":6,"size":1,"tags":[],"more":null}`))

	register(t, cl, orders+"-value", sr.TypeJSON, `{"$schema":"https://json-schema.org/draft/2020-12/schema","type":"object","properties":{"number":{"type":"integer","minimum":1}},"required":["number"]}`)
	mustWrite(t, s, order(orders, "7", "a", `{"number": 9007199254740993, "ü":"😀"}`))
	mustRefuse(t, s, order(orders, "8", "a", `{"number":0}`), "field number does not fit")
	mustRefuse(t, s, order(orders, "8", "a", `{}`), "number")

	got := confluent(t, k, rows, a.URL(), "json-schema")
	if len(got) != 5 || fmt.Sprint(got[0].in("after.id")) != "9007199254740993" && got[0].ID == "1" {
		t.Errorf("%+v", got)
	}
	got = confluent(t, k, orders, a.URL(), "json-schema")
	if len(got) != 1 || fmt.Sprint(got[0].in("number")) != "9007199254740993" || got[0].in("ü") != "😀" {
		t.Errorf("%+v", got)
	}
	if r := records(t, k, orders); string(r[0].Value[5:]) != `{"number": 9007199254740993, "ü":"😀"}` || r[0].Value[0] != 0 {
		t.Errorf("%q", r[0].Value)
	}
}
