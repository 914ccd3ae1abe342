package redis_test

import (
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	goredis "github.com/redis/go-redis/v9"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/adapter/redis"
	"github.com/onewrite/onewrite/internal/servers"
	"github.com/onewrite/onewrite/onewritetest"
)

// patience bounds every wait.
const patience = 30 * time.Second

var counter atomic.Int64

// unique names a destination of a test, so that tests may share a server.
func unique(tb testing.TB) string {
	return fmt.Sprintf("d%d-%s", counter.Add(1), strings.NewReplacer("/", "-", "{", "", "}", "").Replace(tb.Name()))
}

// plain is a client of the test's own.
func plain(tb testing.TB, s *servers.RedisServer) *goredis.Client {
	tb.Helper()
	o, err := goredis.ParseURL(s.URL())
	if err != nil {
		tb.Fatal(err)
	}
	o.DisableIdentity, o.Protocol, o.ReadTimeout = true, 2, patience
	c := goredis.NewClient(o)
	tb.Cleanup(func() { _ = c.Close() })
	return c
}

func open(tb testing.TB, c redis.Config) onewrite.Sink {
	tb.Helper()
	s, err := redis.Open(tb.Context(), c)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = s.Close() })
	return s
}

func openPlaced(tb testing.TB, c redis.Config) onewrite.Placed {
	tb.Helper()
	return open(tb, c).(onewrite.Placed)
}

// entry is one of a stream, its fields and values in turns.
type entry struct {
	id     string
	fields []string
}

// entries reads a stream as it is on the wire: the map of the client would lose the
// order of fields and repeated ones.
func entries(tb testing.TB, c *goredis.Client, stream string) (list []entry) {
	tb.Helper()
	raw, err := c.Do(tb.Context(), "XRANGE", stream, "-", "+").Slice()
	if err != nil {
		tb.Fatal(err)
	}
	for _, r := range raw {
		pair := r.([]any)
		e := entry{id: pair[0].(string)}
		for _, f := range pair[1].([]any) {
			e.fields = append(e.fields, f.(string))
		}
		list = append(list, e)
	}
	return list
}

// stored reads the events of a stream.
func stored(tb testing.TB, c *goredis.Client, stream string) (events []onewrite.Event, ids []string) {
	tb.Helper()
	for _, x := range entries(tb, c, stream) {
		e, err := redis.Decode(x.fields)
		if err != nil {
			tb.Fatal(err)
		}
		events, ids = append(events, e), append(ids, x.id)
	}
	return events, ids
}

// events makes n events of a topic; keys take turns.
func events(topic string, from, n int, keys ...string) (list []onewrite.Event) {
	for i := from; i < from+n; i++ {
		e := onewrite.Event{ID: fmt.Sprintf("e%05d", i), Source: "shop", Topic: topic, Type: topic, Seq: fmt.Sprintf("%012d", i), Time: time.Unix(int64(i), 0).UTC(),
			ContentType: "application/json", Data: fmt.Appendf(nil, `{"n":%d}`, i)}
		if len(keys) > 0 {
			e.Key = keys[i%len(keys)]
		}
		list = append(list, e)
	}
	return list
}

// messages puts events at offsets from one on.
func messages(offset uint64, events ...onewrite.Event) (list []onewrite.Message) {
	for i, e := range events {
		list = append(list, onewrite.Message{Event: e, Log: e.Source, Offset: offset + uint64(i)})
	}
	return list
}

func TestSink(t *testing.T) {
	srv := servers.NewRedis(t)
	c := plain(t, srv)
	onewritetest.TestSink(t, onewritetest.SinkHarness{
		New: func(t *testing.T) onewrite.Sink {
			s, err := redis.Open(t.Context(), redis.Config{URL: srv.URL(), Destination: "suite", Stream: "all"})
			if err != nil {
				t.Fatal(err)
			}
			return s
		},
		Received: func(t *testing.T) []onewrite.Event {
			list, _ := stored(t, c, "all")
			return list
		},
		MaxData: 4 << 20,
		Break: func(t *testing.T) func() {
			srv.Kill(t)
			return func() { srv.Start(t) }
		},
		Stall: func(t *testing.T) func() {
			srv.Pause(t)
			return func() { srv.Resume(t) }
		},
	})
}
