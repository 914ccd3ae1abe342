package redis_test

import (
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/adapter/redis"
	"github.com/onewrite/onewrite/internal/servers"
)

// TestFields: no data is not data of no bytes, and no header is taken for another
// field of the entry.
func TestFields(t *testing.T) {
	srv := servers.Redis(t)
	c := plain(t, srv)
	name := unique(t)
	s := open(t, redis.Config{URL: srv.URL(), Destination: name, Stream: name})
	list := events("t", 0, 3, "k")
	list[0].Data, list[0].ContentType = nil, ""
	list[1].Data, list[1].ContentType = []byte{}, "text/plain"
	list[2].Header = map[string]string{"content-type": "evil/a", "Content-Type": "evil/b", "ce_id": "evil", "ce_x": "1", "x-Plain": "2", "": "nameless", "tenant": "t1"}
	if n, err := s.Write(t.Context(), list); n != 3 || err != nil {
		t.Fatalf("%d, %v", n, err)
	}
	got := entries(t, c, name)
	value := func(e entry, field string) (values []string) {
		for i := 0; i < len(e.fields); i += 2 {
			if e.fields[i] == field {
				values = append(values, e.fields[i+1])
			}
		}
		return values
	}
	for _, x := range []struct {
		entry int
		field string
		want  []string
	}{
		{0, "data", nil}, {0, "content-type", nil}, {0, "ce_datacontenttype", nil}, {0, "ce_id", []string{"e00000"}},
		{1, "data", []string{""}}, {1, "content-type", []string{"text/plain"}}, {1, "ce_datacontenttype", []string{"text/plain"}},
		{2, "content-type", []string{"application/json"}}, {2, "ce_id", []string{"e00002"}}, {2, "x-Plain", []string{"2"}}, {2, "ce_tenant", []string{"t1"}}, {2, "Content-Type", nil},
	} {
		if v := value(got[x.entry], x.field); !slices.Equal(v, x.want) {
			t.Errorf("entry %d: %s is %q, want %q", x.entry, x.field, v, x.want)
		}
	}
	for i, x := range got {
		e, err := redis.Decode(x.fields)
		if err != nil || (e.Data == nil) != (list[i].Data == nil) {
			t.Errorf("entry %d: %v, data is nil: %v", i, err, e.Data == nil)
		}
		for k, v := range list[i].Header {
			if e.Header[k] != v {
				t.Errorf("header %q is %q, want %q", k, e.Header[k], v)
			}
		}
	}
	for _, bad := range [][]string{{"ce_id"}, {"a", "b"}, {"ce_id", "1", "ce_source", "/s", "ce_type", "t", "ce_time", "x"}, {"ce_headers", "{"}} {
		if _, err := redis.Decode(bad); err == nil || !strings.HasPrefix(err.Error(), "redis: ") {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

// TestForms: entries of more forms than have values of their own, into several streams in
// turns, are those of their events, field by field and in their order.
func TestForms(t *testing.T) {
	srv := servers.Redis(t)
	c := plain(t, srv)
	name := unique(t)
	for _, types := range []int{3, 100} {
		stream := fmt.Sprintf("%s-%d:", name, types)
		s := openPlaced(t, redis.Config{URL: srv.URL(), Destination: fmt.Sprint(name, types), Stream: stream + "{topic}"})
		if _, err := s.Place(t.Context()); err != nil {
			t.Fatal(err)
		}
		list := events("t", 0, 400, "a", "b", "c")
		want := map[string][]onewrite.Event{}
		for i := range list {
			e := &list[i]
			e.Topic, e.Type, e.Source = fmt.Sprint("t", i%5), fmt.Sprint("type", i%types), fmt.Sprint("shop", i%7/6)
			switch i % 11 {
			case 1:
				e.Header = map[string]string{"tenant": fmt.Sprint(i)}
			case 2:
				e.ContentType, e.Data = "", nil
			case 3:
				e.Key, e.Data = "", []byte{}
			case 4:
				e.Header = map[string]string{"x-Trace": fmt.Sprint(i), "ce_odd": ""}
			}
			want[e.Topic] = append(want[e.Topic], *e)
		}
		if bad, err := s.WriteAt(t.Context(), messages(1, list...), []byte("here")); err != nil {
			t.Fatal(bad, err)
		}
		for topic, events := range want {
			got := entries(t, c, stream+topic)
			if len(got) != len(events) {
				t.Fatalf("%s has %d entries, want %d", topic, len(got), len(events))
			}
			for i := range got {
				e, err := redis.Decode(got[i].fields)
				if err != nil || !reflect.DeepEqual(e, events[i]) {
					t.Fatalf("%s, entry %d: %+v, %v, want %+v", topic, i, e, err, events[i])
				}
			}
		}
	}
}
