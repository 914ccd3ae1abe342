package rabbitmq

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"os/exec"
	"reflect"
	"strings"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/internal/servers"
)

// seen is what consume.py prints of a message.
type seen struct {
	RoutingKey   string         `json:"routing_key"`
	MessageID    *string        `json:"message_id"`
	Type         *string        `json:"type"`
	ContentType  *string        `json:"content_type"`
	AppID        string         `json:"app_id"`
	Timestamp    *int64         `json:"timestamp"`
	DeliveryMode int            `json:"delivery_mode"`
	Headers      map[string]any `json:"headers"`
	Body         string         `json:"body"`
}

// pika takes messages by the client of another family.
func pika(t *testing.T, url, queue, count string, more ...string) (list []seen) {
	t.Helper()
	cmd := exec.Command(servers.Python(t, "pika"), append([]string{"testdata/consume.py", url, queue, count}, more...)...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	in := bufio.NewScanner(bytes.NewReader(out))
	in.Buffer(nil, 16<<20)
	for in.Scan() {
		var m seen
		if err := json.Unmarshal(in.Bytes(), &m); err != nil {
			t.Fatalf("%v: %s", err, in.Text())
		}
		list = append(list, m)
	}
	return list
}

// TestPika: another client sees what the documentation says.
func TestPika(t *testing.T) {
	r := sharedBroker(t)
	name := target(t, r.URL(), "#", nil)
	s := open(t, Config{URL: r.URL(), Exchange: name, RoutingKey: "{source}.{topic}.{key}"})
	events := some(1, 6, "order.placed", "Zoë", "b")
	events[1].Data, events[1].ContentType = []byte("Grüße, 世界 🌍\x00"), "text/plain; charset=utf-8"
	events[2].Data, events[2].ContentType = []byte{0, 0xff, 0xfe}, "application/octet-stream"
	events[3].Data, events[3].ContentType = []byte{}, "text/plain"
	events[4].Data, events[4].ContentType, events[4].Key = nil, "", ""
	events[5].Data = bytes.Repeat([]byte("x"), 1<<20)
	events[5].Header = map[string]string{"traceparent": "00-1", "X-Shop": "Ærø", "CC": "evil", "x-death": "evil", strings.Repeat("n", 300): "long name"}
	events[5].Tx = onewrite.Tx{ID: "501", Index: 2, Last: true}
	put(t, s, events...)
	text := func(s *string) string {
		if s == nil {
			return "none"
		}
		return *s
	}
	for i, m := range pika(t, r.URL(), name, "6") {
		e := &events[i]
		body, err := base64.StdEncoding.DecodeString(m.Body)
		want := map[string]any{"cloudEvents_specversion": "1.0", "cloudEvents_id": e.ID, "cloudEvents_source": "/shop", "cloudEvents_type": e.Type,
			"cloudEvents_time": "2024-02-29T12:30:59.123456Z", "cloudEvents_topic": e.Topic, "cloudEvents_sequence": e.Seq}
		if e.Key != "" {
			want["cloudEvents_partitionkey"] = e.Key
		}
		if i == 5 {
			maps.Copy(want, map[string]any{"cloudEvents_traceparent": "00-1", "X-Shop": "Ærø", "cloudEvents_txid": "501", "cloudEvents_txindex": "2", "cloudEvents_txlast": "true",
				"Onewrite-Headers": `{"CC":"evil","` + strings.Repeat("n", 300) + `":"long name","x-death":"evil"}`})
		}
		contentType := e.ContentType
		if contentType == "" {
			contentType = "none"
		}
		if err != nil || !bytes.Equal(body, e.Data) || m.RoutingKey != "shop.order.placed."+e.Key || text(m.MessageID) != e.ID || text(m.Type) != e.Type ||
			text(m.ContentType) != contentType || m.AppID != "onewrite" || m.Timestamp == nil || *m.Timestamp != e.Time.Unix() || m.DeliveryMode != 2 || !reflect.DeepEqual(m.Headers, want) {
			m.Body = ""
			t.Errorf("event %d came as %+v\nheaders, want %v", i, m, want)
		}
	}
}

// TestPikaStream reads a stream, which keeps what was read, and goes on at an offset that
// the consumer keeps.
func TestPikaStream(t *testing.T) {
	r := sharedBroker(t)
	name := target(t, r.URL(), "#", amqp.Table{"x-queue-type": "stream"})
	events := some(1, 4, "order.placed", "a")
	s := open(t, Config{URL: r.URL(), Exchange: name})
	put(t, s, events...)
	next := ""
	for range 2 { // it stays there
		for i, m := range pika(t, r.URL(), name, "4", "first") {
			if *m.MessageID != events[i].ID {
				t.Errorf("message %d is %s", i, *m.MessageID)
			}
			if i == 1 {
				next = fmt.Sprint(m.Headers["x-stream-offset"].(float64) + 1)
			}
		}
	}
	events = append(events, some(5, 6, "order.placed", "a")...)
	put(t, s, events[4:]...)
	for i, m := range pika(t, r.URL(), name, "4", next) {
		if *m.MessageID != events[i+2].ID {
			t.Errorf("from offset %s, message %d is %s, want %s", next, i, *m.MessageID, events[i+2].ID)
		}
	}
}

// TestLong: what AMQP has no room for arrives all the same, and what it cannot route
// by is refused without harm to the connection.
func TestLong(t *testing.T) {
	r := sharedBroker(t)
	name := target(t, r.URL(), "#", nil)
	s := open(t, Config{URL: r.URL(), Exchange: name})
	long := strings.Repeat("ü", 300)
	events := some(1, 6, "order.placed", "a")
	events[0].ID, events[0].Type, events[0].ContentType = long, long, "text/plain; "+long
	events[1].Header = map[string]string{"note": strings.Repeat("n", 200<<10)} // more than a frame
	events[2].Header, events[2].Data = map[string]string{"X-Big": strings.Repeat("n", 130<<10)}, []byte{0xff, 0}
	events[3].Header, events[3].Data, events[3].ContentType = map[string]string{"X-Big": strings.Repeat("n", 130<<10)}, nil, ""
	events[4].Header = map[string]string{"note": strings.Repeat("n", 100<<10)} // as much as fits
	events[5].Time = time.Date(1815, 12, 10, 0, 0, 0, 0, time.UTC)
	put(t, s, events...)
	got := drain(t, r.URL(), name)
	if len(got) != len(events) {
		t.Fatalf("%d arrived", len(got))
	}
	for i := range got {
		if e := decode(t, &got[i]); !reflect.DeepEqual(e, events[i]) {
			t.Errorf("event %d came as %.300v", i, e)
		}
	}
	byKey := open(t, Config{URL: r.URL(), Exchange: name, RoutingKey: "by.{key}"})
	events = some(10, 2, "order.placed", "short", long)
	for range 2 {
		n, err := byKey.Write(t.Context(), events)
		if n != 1 {
			t.Errorf("%d, %v", n, err)
		}
		says(t, err, r.URL(), "rejected", "shorten routing_key")
	}
	put(t, byKey, events[0])
	if len(byKey.idle) != 1 {
		t.Errorf("%d connections, want the one", len(byKey.idle))
	}
}
