package search_test

import (
	"bytes"
	"net/http"
	"testing"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/adapter/search"
	"github.com/onewrite/onewrite/internal/cloudevents"
	"github.com/onewrite/onewrite/internal/servers"
	"github.com/onewrite/onewrite/onewritetest"
)

func TestSink(t *testing.T) {
	srv := servers.Elasticsearch(t)
	b := newBetween(t, srv)
	must(t, srv, http.MethodPut, "/_index_template/conformance", `{"index_patterns":["conformance.*"],"template":{"settings":{"number_of_shards":1,"number_of_replicas":0},"mappings":{"dynamic":false}}}`)
	onewritetest.TestSink(t, onewritetest.SinkHarness{
		New: func(t *testing.T) onewrite.Sink {
			s, err := search.New(t.Context(), search.Config{URL: b.url, Document: search.Event, ID: "{id}", Destination: "conformance"})
			if err != nil {
				t.Fatal(err)
			}
			return s
		},
		Received: func(t *testing.T) (events []onewrite.Event) {
			for _, d := range all(t, srv, "conformance.*") {
				e, err := cloudevents.ParseJSON(d.Source)
				if err != nil {
					t.Fatal(err)
				}
				events = append(events, e)
			}
			return events
		},
		JSONByValue: true,
		Refuse: func(t *testing.T, id string) {
			// The server itself refuses what the proxy makes of the document.
			b.set(func(path string, body []byte) []byte {
				lines := bytes.SplitAfter(body, []byte("\n"))
				for i := range lines {
					if i%2 == 1 && bytes.Contains(lines[i], []byte(`"id":"`+id+`"`)) {
						lines[i] = []byte(`{"a":}` + "\n")
					}
				}
				return bytes.Join(lines, nil)
			}, nil, nil)
			t.Cleanup(func() { b.set(nil, nil, nil) })
		},
		Break: func(t *testing.T) func() {
			if err := srv.Kill(); err != nil {
				t.Fatal(err)
			}
			return func() {
				if err := srv.Start(); err != nil {
					t.Fatal(err)
				}
			}
		},
		Stall: func(t *testing.T) func() {
			if err := srv.Freeze(); err != nil {
				t.Fatal(err)
			}
			return srv.Thaw
		},
	})
}
