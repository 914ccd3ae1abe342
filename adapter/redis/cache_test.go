package redis_test

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"

	goredis "github.com/redis/go-redis/v9"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/adapter/redis"
	"github.com/onewrite/onewrite/internal/cloudevents"
	"github.com/onewrite/onewrite/internal/servers"
	"github.com/onewrite/onewrite/onewritetest"
)

// told makes row changes of events that carry a whole event, so that what is
// published can be held against it. Those that are to be refused lack the column.
type told struct {
	onewrite.Sink
	mu     *sync.Mutex
	refuse map[string]bool
}

func (s told) Write(ctx context.Context, events []onewrite.Event) (int, error) {
	list := slices.Clone(events)
	for i := range list {
		bare := list[i]
		bare.Data, bare.ContentType = nil, ""
		row := map[string]any{"meta": string(cloudevents.AppendJSON(nil, &bare)), "type": list[i].ContentType, "data": list[i].Data}
		whole, err := json.Marshal(row)
		if err != nil {
			return 0, err
		}
		after := map[string]string{"whole": string(whole)}
		s.mu.Lock()
		if s.refuse[list[i].ID] {
			after = map[string]string{}
		}
		s.mu.Unlock()
		if list[i].Data, err = json.Marshal(map[string]any{"after": after}); err != nil {
			return 0, err
		}
	}
	return s.Sink.Write(ctx, list)
}

// listener hears what is published, in its order.
type listener struct {
	client *goredis.Client
	sub    *goredis.PubSub
	heard  []onewrite.Event
}

func (l *listener) subscribe(t *testing.T) {
	t.Helper()
	l.sub = l.client.Subscribe(t.Context(), "told", "end")
	for range 2 {
		if _, err := l.sub.Receive(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}

// all returns all that was heard until now.
func (l *listener) all(t *testing.T) []onewrite.Event {
	t.Helper()
	if err := l.client.Publish(t.Context(), "end", "").Err(); err != nil {
		t.Fatal(err)
	}
	for {
		m, err := l.sub.ReceiveTimeout(t.Context(), patience)
		if err != nil {
			t.Fatal(err)
		}
		msg, ok := m.(*goredis.Message)
		if !ok {
			continue
		}
		if msg.Channel == "end" {
			return l.heard
		}
		var row struct {
			Meta, Type string
			Data       []byte
		}
		if err := json.Unmarshal([]byte(msg.Payload), &row); err != nil {
			t.Fatal(err)
		}
		e, err := cloudevents.ParseJSON([]byte(row.Meta))
		if err != nil {
			t.Fatal(err)
		}
		e.ContentType, e.Data = row.Type, row.Data
		l.heard = append(l.heard, e)
	}
}

func TestCacheSuite(t *testing.T) {
	srv := servers.NewRedis(t)
	l := &listener{client: plain(t, srv)}
	l.subscribe(t)
	w := told{mu: &sync.Mutex{}, refuse: map[string]bool{}}
	onewritetest.TestSink(t, onewritetest.SinkHarness{
		New: func(t *testing.T) onewrite.Sink {
			s, err := redis.Open(t.Context(), redis.Config{URL: srv.URL(), Commands: []string{"DEL x:{id}", "PUBLISH told {after.whole}"}})
			if err != nil {
				t.Fatal(err)
			}
			return told{s, w.mu, w.refuse}
		},
		Received: l.all,
		Refuse: func(_ *testing.T, id string) {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.refuse[id] = true
		},
		Break: func(t *testing.T) func() {
			l.all(t)
			_ = l.sub.Close()
			srv.Kill(t)
			return func() { srv.Start(t); l.subscribe(t) }
		},
		Stall: func(t *testing.T) func() {
			srv.Pause(t)
			return func() { srv.Resume(t) }
		},
	})
}

// TestCacheData: data with everything that could be taken for more than data.
func TestCacheData(t *testing.T) {
	srv := servers.Redis(t)
	c := plain(t, srv)
	name := unique(t)
	s := open(t, redis.Config{URL: srv.URL(), Commands: []string{"SET " + name + ":{key} {data}", "HSET " + name + ":h:{key} data {data} fixed 'two words'", "PUBLISH none {type}"}})
	if err := c.Set(t.Context(), name+":canary", "alive", 0).Err(); err != nil {
		t.Fatal(err)
	}
	for i, text := range []string{"a b  c", `"quoted" 'and' \"back\`, "line\r\nFLUSHALL\r\n", "\x00nul\x00", "{key} {{after.x}} {data}", "*1\r\n$8\r\nFLUSHALL\r\n", "", "Grüße 世界", "\xff\xfe", strings.Repeat("x", 4<<20),
		`" ` + "\r\nDEL " + name + ":canary\r\n"} {
		e := events("t", i, 1)[0]
		e.Key, e.Data = "k "+text[:min(len(text), 40)]+"\n{id}", []byte(text)
		if n, err := s.Write(t.Context(), []onewrite.Event{e}); n != 1 || err != nil {
			t.Fatalf("%q: %d, %v", text[:min(len(text), 40)], n, err)
		}
		if got, err := c.Get(t.Context(), name+":"+e.Key).Result(); got != text || err != nil {
			t.Errorf("SET: %.40q, %v, want %.40q", got, err, text)
		}
		if got, err := c.HGetAll(t.Context(), name+":h:"+e.Key).Result(); got["data"] != text || got["fixed"] != "two words" || len(got) != 2 || err != nil {
			t.Errorf("HSET: %.60q, %v", got, err)
		}
	}
	if got := c.Get(t.Context(), name+":canary").Val(); got != "alive" {
		t.Error("an event ran a command")
	}
}

// TestCacheRows: row changes keep a hash for each row, and a delete takes it away.
func TestCacheRows(t *testing.T) {
	srv := servers.Redis(t)
	c := plain(t, srv)
	name := unique(t)
	s := open(t, redis.Config{URL: srv.URL(), Commands: []string{
		"insert,update,snapshot: HSET " + name + ":{key.id} name {after.name} total {after.total}", "delete: UNLINK " + name + ":{key.id}"}})
	change := func(kind, id, data string) onewrite.Event {
		return onewrite.Event{ID: kind + id, Source: "shop", Topic: "public.orders", Type: kind, Key: `{"id":` + id + `}`, Data: []byte(data), ContentType: "application/json"}
	}
	list := []onewrite.Event{
		change("insert", "1", `{"before":null,"after":{"id":1,"name":"Zoë \"x\"","total":"9.00"}}`),
		change("insert", "2", `{"before":null,"after":{"id":2,"name":null,"total":12345678901234567890}}`),
		change("update", "1", `{"before":null,"after":{"id":1,"name":"b c","total":"10.00"}}`),
		change("delete", "2", `{"before":{"id":2},"after":null}`),
		change("truncate", "", `{}`), // no command is for it
		change("update", "3", `{"before":null,"after":{"id":3,"name":"no total"}}`),
		change("insert", "4", `{"before":null,"after":{"id":4,"name":"d","total":"1"}}`),
	}
	n, err := s.Write(t.Context(), list)
	if n != 5 || !errors.Is(err, onewrite.ErrRejected) || !strings.Contains(err.Error(), "{after.total}") {
		t.Fatalf("a missing column: %d, %v", n, err)
	}
	if got := c.HGetAll(t.Context(), name+":1").Val(); got["name"] != "b c" || got["total"] != "10.00" {
		t.Errorf("row 1 is %q", got)
	}
	if got := c.Exists(t.Context(), name+":2", name+":3", name+":4").Val(); got != 0 {
		t.Errorf("%d of a deleted row, a refused one and the one behind it are there", got)
	}
	if n, err := s.Write(t.Context(), list[6:]); n != 1 || err != nil {
		t.Fatalf("%d, %v", n, err)
	}
	if n, err := s.Write(t.Context(), list[1:2]); n != 1 || err != nil {
		t.Fatalf("%d, %v", n, err)
	}
	if got := c.HGetAll(t.Context(), name+":2").Val(); got["total"] != "12345678901234567890" || got["name"] != "" || len(got) != 2 {
		t.Errorf("a number and a NULL are %q", got)
	}
}

// TestCacheOrder: what stands behind a refused event of its key does not pass it;
// the commands of one event are a step.
func TestCacheOrder(t *testing.T) {
	srv := servers.Redis(t)
	c := plain(t, srv)
	name := unique(t)
	s := open(t, redis.Config{URL: srv.URL(), Commands: []string{"HSET " + name + ":{key} id {id}", "SET " + name + ":last:{key} {id}"}})
	if err := c.Set(t.Context(), name+":a", "a string", 0).Err(); err != nil {
		t.Fatal(err)
	}
	list := events("t", 0, 6, "b", "a", "c") // 1 and 4 have the key a
	n, err := s.Write(t.Context(), list)
	if n != 1 || !errors.Is(err, onewrite.ErrRejected) || !strings.Contains(err.Error(), "WRONGTYPE") || !strings.Contains(err.Error(), " TYPE ") {
		t.Fatalf("%d, %v", n, err)
	}
	if got := c.Get(t.Context(), name+":last:a").Val(); got == list[4].ID {
		t.Error("an event passed the refused one of its key")
	}
	if err := c.Del(t.Context(), name+":a").Err(); err != nil {
		t.Fatal(err)
	}
	if n, err := s.Write(t.Context(), list[1:]); n != 5 || err != nil {
		t.Fatalf("%d, %v", n, err)
	}
	if got := c.Get(t.Context(), name+":last:a").Val(); got != list[4].ID {
		t.Errorf("the last of a is %q", got)
	}
}

// TestCacheStep: the commands of one event are one step. Where one of them may not be
// run, none is.
func TestCacheStep(t *testing.T) {
	srv := servers.NewRedis(t)
	c := plain(t, srv)
	do(t, c, "ACL", "SETUSER", "half", "on", ">half", "~*", "+@connection", "+info", "+set", "+multi", "+exec")
	s := open(t, redis.Config{URL: "redis://half:half@" + srv.Addr(), Commands: []string{"SET a:{key} {id}", "HSET b:{key} id {id}"}})
	n, err := s.Write(t.Context(), events("t", 0, 1, "k"))
	if n != 0 {
		t.Errorf("%d", n)
	}
	wants(t, srv, err, "answered", "NOPERM", "hset", "ACL SETUSER")
	if c.Exists(t.Context(), "a:k").Val() != 0 {
		t.Error("one command was run without the other")
	}
	do(t, c, "ACL", "SETUSER", "half", "+hset")
	if n, err := s.Write(t.Context(), events("t", 0, 1, "k")); n != 1 || err != nil {
		t.Errorf("%d, %v", n, err)
	}
}
