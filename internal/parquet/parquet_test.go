package parquet_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/internal/cloudevents"
	"github.com/onewrite/onewrite/internal/parquet"
	"github.com/onewrite/onewrite/internal/servers"
)

// made is a file of the lines of events, as the destinations make it.
func made(t interface{ Fatal(...any) }, events []onewrite.Event, compression string) (file []byte, want []onewrite.Event) {
	var out bytes.Buffer
	w := parquet.NewWriter(&out, compression)
	for i := range events {
		e, err := cloudevents.ParseJSON(cloudevents.AppendJSON(nil, &events[i]))
		if err == nil {
			err = w.Write(&e, cloudevents.Textual(&e))
		}
		if err != nil {
			t.Fatal(err)
		}
		want = append(want, e)
	}
	if err := w.Close(); err != nil || w.Rows() != int64(len(events)) {
		t.Fatal(w.Rows(), err)
	}
	return out.Bytes(), want
}

// examples are events of every kind that a file can hold.
func examples() []onewrite.Event {
	at := time.Date(2026, 2, 3, 4, 5, 6, 789012000, time.UTC)
	base := onewrite.Event{Source: "shop", Type: "order.placed", Topic: "order.placed", Key: "k", Seq: "0001", Time: at}
	with := func(id string, change func(*onewrite.Event)) onewrite.Event {
		e := base
		e.ID = id
		change(&e)
		return e
	}
	return []onewrite.Event{
		with("json", func(e *onewrite.Event) {
			e.ContentType, e.Data = "application/json", []byte(`{"n":9007199254740993,"t":"é\n\"data_base64\":","s":[]}`)
		}),
		with("text", func(e *onewrite.Event) {
			e.ContentType, e.Data = "text/plain", []byte("naïve \"data_base64\": \u2028")
		}),
		with("string", func(e *onewrite.Event) { e.ContentType, e.Data = "application/json", []byte(`"data_base64"`) }),
		with("binary", func(e *onewrite.Event) {
			e.ContentType, e.Data = "application/octet-stream", []byte{0, 255, 10, 13}
		}),
		with("ascii", func(e *onewrite.Event) { e.ContentType, e.Data = "application/octet-stream", []byte("plain") }),
		with("no bytes", func(e *onewrite.Event) { e.ContentType, e.Data = "application/octet-stream", []byte{} }),
		with("no text", func(e *onewrite.Event) { e.ContentType, e.Data = "text/plain", []byte{} }),
		with("nothing", func(e *onewrite.Event) { e.Key, e.Seq, e.Time = "", "", time.Time{} }),
		with("headers", func(e *onewrite.Event) {
			e.Header = map[string]string{"tenant": "ä\"b", "X-Request-Id": "r 1", "empty": ""}
		}),
		with("change", func(e *onewrite.Event) {
			e.Type, e.Tx = "update", onewrite.Tx{ID: "7", Index: 0, Last: true}
			e.ContentType, e.Data = "application/json", []byte(`{"op":"u"}`)
		}),
		with("old", func(e *onewrite.Event) { e.Time = time.Date(1, 1, 1, 0, 0, 1, 0, time.UTC) }),
		with("late", func(e *onewrite.Event) { e.Time = time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC) }),
	}
}

// What goes in comes out, with each compression.
func TestRoundTrip(t *testing.T) {
	for _, compression := range []string{"", "none", "gzip", "zstd", "snappy", "lz4"} {
		if !parquet.Compression(compression) {
			t.Fatalf("there is no %s", compression)
		}
		want := examples()
		file, _ := made(t, want, compression)
		got, err := parquet.Events(bytes.NewReader(file), int64(len(file)))
		if err != nil {
			t.Fatal(err)
		}
		for i := range want {
			if i >= len(got) || !reflect.DeepEqual(got[i], want[i]) {
				t.Fatalf("%s: %+v became %+v", compression, want[i], got[min(i, len(got)-1)])
			}
		}
		n, err := parquet.Rows(bytes.NewReader(file), int64(len(file)))
		if err != nil || n != int64(len(want)) {
			t.Errorf("%d rows, %v", n, err)
		}
		names, err := parquet.Names(bytes.NewReader(file), int64(len(file)), 2)
		if err != nil || len(names) != 2 || names[0].ID != "old" || names[1].ID != "late" || names[0].Source != "shop" {
			t.Errorf("the names are %v, %v", names, err)
		}
	}
	if parquet.Compression("brotli") {
		t.Error("brotli was taken")
	}
}

// Any event that a line can hold.
func TestAnyEvent(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var events []onewrite.Event
		for i := range rapid.IntRange(1, 20).Draw(t, "n") {
			text := rapid.String()
			e := onewrite.Event{ID: fmt.Sprint(i), Source: "s", Type: "t", Topic: "t", Key: text.Draw(t, "key"), ContentType: rapid.SampledFrom([]string{"text/plain", "application/json", "a/b"}).Draw(t, "type")}
			e.Data = []byte(rapid.OneOf(text, rapid.SampledFrom([]string{`{"a":1}`, `"x"`, "null"}), rapid.StringOf(rapid.Rune())).Draw(t, "data"))
			if rapid.Bool().Draw(t, "headers") {
				e.Header = map[string]string{"h": text.Draw(t, "header")}
			}
			events = append(events, e)
		}
		file, want := made(t, events, "")
		got, err := parquet.Events(bytes.NewReader(file), int64(len(file)))
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Fatalf("%v\n%+v became\n%+v", err, want, got)
		}
	})
}

// A file that is not whole is an error.
func TestDamage(t *testing.T) {
	file, _ := made(t, examples(), "")
	for size := range len(file) {
		if _, err := parquet.Rows(bytes.NewReader(file[:size]), int64(size)); err == nil {
			t.Errorf("the first %d of %d bytes are taken for whole", size, len(file))
		}
		if _, err := parquet.Events(bytes.NewReader(file[:size]), int64(size)); err == nil {
			t.Errorf("the first %d of %d bytes can be read", size, len(file))
		}
	}
}

// A large file has several row groups, so that neither side needs it whole in memory.
func TestRowGroups(t *testing.T) {
	var out bytes.Buffer
	w := parquet.NewWriter(&out, "none")
	data := bytes.Repeat([]byte("x"), 1<<20)
	for i := range 70 {
		if err := w.Write(&onewrite.Event{ID: fmt.Sprint(i), Source: "s", Type: "t", Topic: "t", ContentType: "text/plain", Data: data}, true); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	file := out.Bytes()
	path := filepath.Join(t.TempDir(), "events.parquet")
	if err := os.WriteFile(path, file, 0o600); err != nil {
		t.Fatal(err)
	}
	if got := duckdb(t, path, "SELECT count(DISTINCT row_group_id) FROM parquet_metadata(getvariable('path'))"); got[0] != "[(3,)]" {
		t.Errorf("row groups: %s", got[0])
	}
	names, err := parquet.Names(bytes.NewReader(file), int64(len(file)), 50)
	if err != nil || len(names) != 50 || names[0].ID != "20" || names[49].ID != "69" {
		t.Errorf("%d names, %v", len(names), err)
	}
}

// asked are queries of examples, and told what they are answered with.
var asked, told = []string{
	"SELECT string_agg(column_name || ' ' || column_type, ', ') FROM (DESCRIBE SELECT * FROM read_parquet(getvariable('path'))) ",
	"SELECT string_agg(id, ',') FROM read_parquet(getvariable('path'))",
	"SELECT id, data IS NULL, data_binary FROM read_parquet(getvariable('path')) WHERE id IN ('binary', 'ascii', 'no bytes', 'nothing')",
	"SELECT epoch_us(time), source, partitionkey, sequence, datacontenttype, data->>'n', txid FROM read_parquet(getvariable('path')) WHERE id = 'json'",
	"SELECT headers['tenant'], headers['X-Request-Id'], headers['empty'] FROM read_parquet(getvariable('path')) WHERE id = 'headers'",
	"SELECT txid, txindex, txlast, type FROM read_parquet(getvariable('path')) WHERE id = 'change'",
	"SELECT time, partitionkey, sequence, datacontenttype, data, cardinality(headers) FROM read_parquet(getvariable('path')) WHERE id = 'nothing'",
	"SELECT data, (SELECT data FROM read_parquet(getvariable('path')) WHERE id = 'text') LIKE '%\u2028' FROM read_parquet(getvariable('path')) WHERE id IN ('string', 'no text')",
}, []string{
	"[('id VARCHAR, source VARCHAR, type VARCHAR, time TIMESTAMP WITH TIME ZONE, datacontenttype VARCHAR, topic VARCHAR, partitionkey VARCHAR, sequence VARCHAR, txid VARCHAR, txindex BIGINT, txlast BOOLEAN, headers MAP(VARCHAR, VARCHAR), data VARCHAR, data_binary BLOB',)]",
	"[('json,text,string,binary,ascii,no bytes,no text,nothing,headers,change',)]",
	"[('binary', True, b'\\x00\\xff\\n\\r'), ('ascii', True, b'plain'), ('no bytes', True, b''), ('nothing', True, None)]",
	"[(1770091506789012, '/shop', 'k', '0001', 'application/json', '9007199254740993', None)]",
	"[('ä\"b', 'r 1', '')]",
	"[('7', 0, True, 'update')]",
	"[(None, None, None, None, None, 0)]",
	"[('\"data_base64\"', True), ('', True)]",
}

// DuckDB reads the columns with the types that they have to have.
func TestDuckDBReads(t *testing.T) {
	events := examples()
	for _, compression := range []string{"none", "gzip", "zstd", "snappy", "lz4"} {
		file, _ := made(t, events[:len(events)-2], compression) // Python has no such years in all zones
		path := filepath.Join(t.TempDir(), "events.parquet")
		if err := os.WriteFile(path, file, 0o600); err != nil {
			t.Fatal(err)
		}
		for i, got := range duckdb(t, path, asked...) {
			if got != told[i] {
				t.Errorf("%s: %s:\n%s\nwant\n%s", compression, asked[i], got, told[i])
			}
		}
	}
}

// duckdb answers queries, by another family of readers than ours. The variable path in
// them is the file.
func duckdb(t *testing.T, path string, queries ...string) []string {
	t.Helper()
	const program = `
import duckdb, json, sys
duckdb.execute("SET VARIABLE path = ?", [sys.argv[1]])
print(json.dumps([repr(duckdb.execute(q).fetchall()) for q in sys.argv[2:]]))`
	out, err := servers.DuckDB(t).Command("-c", append([]string{program, path}, queries...)...).CombinedOutput()
	var answers []string
	if err == nil {
		err = json.Unmarshal(out, &answers)
	}
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return answers
}
