package webhook

import (
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/internal/cloudevents"
	"github.com/onewrite/onewrite/onewritetest"
)

// receiver is an endpoint that keeps what it is sent.
type receiver struct {
	*httptest.Server
	t *testing.T

	mu       sync.Mutex
	events   []onewrite.Event
	requests []*http.Request
	refused  map[string]bool
	away     bool
	stalled  chan struct{}
}

func newReceiver(t *testing.T) *receiver {
	r := &receiver{t: t, refused: map[string]bool{}}
	r.Server = httptest.NewServer(r)
	t.Cleanup(r.Close)
	return r
}

func (r *receiver) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	body, err := io.ReadAll(req.Body)
	if err != nil {
		return // the sender gave up
	}
	events := []onewrite.Event{}
	if req.Header.Get("Content-Type") == "application/cloudevents-batch+json" {
		events, err = fromBatch(body)
	} else {
		var e onewrite.Event
		e, err = fromBinary(req, body)
		events = append(events, e)
	}
	if err != nil {
		r.t.Error(err)
	}
	r.mu.Lock()
	stalled := r.stalled
	r.mu.Unlock()
	if stalled != nil {
		select {
		case <-stalled:
		case <-req.Context().Done():
			return
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.away {
		w.WriteHeader(http.StatusServiceUnavailable)
		return
	}
	if slices.ContainsFunc(events, func(e onewrite.Event) bool { return r.refused[e.ID] }) {
		w.WriteHeader(http.StatusUnprocessableEntity)
		return
	}
	req.Body = io.NopCloser(strings.NewReader(string(body)))
	r.requests = append(r.requests, req)
	r.events = append(r.events, events...)
	w.WriteHeader(http.StatusAccepted)
}

// fromBinary reads the binary mode from the wire, as the HTTP binding tells.
func fromBinary(req *http.Request, body []byte) (onewrite.Event, error) {
	var e onewrite.Event
	for name, values := range req.Header {
		attr, isAttr := strings.CutPrefix(strings.ToLower(name), "ce-")
		var err error
		switch {
		case len(values) != 1:
			err = fmt.Errorf("header %s comes %d times", name, len(values))
		case isAttr:
			err = cloudevents.Set(&e, attr, cloudevents.Unescape(values[0]))
		case name == "Content-Type":
			e.ContentType, e.Data = values[0], body
		case strings.HasPrefix(name, "Webhook-"), name == "Content-Length", name == "User-Agent", name == "Accept-Encoding":
		default:
			err = cloudevents.Set(&e, name, values[0])
		}
		if err != nil {
			return e, err
		}
	}
	if e.ContentType == "" && len(body) > 0 {
		return e, fmt.Errorf("a body of %d bytes without content type", len(body))
	}
	return e, nil
}

func fromBatch(body []byte) ([]onewrite.Event, error) {
	var raw []json.RawMessage
	if err := json.Unmarshal(body, &raw); err != nil {
		return nil, err
	}
	var events []onewrite.Event
	for _, one := range raw {
		e, err := cloudevents.ParseJSON(one)
		if err != nil {
			return nil, err
		}
		events = append(events, e)
	}
	return events, nil
}

// last returns the newest request.
func (r *receiver) last() *http.Request {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.requests[len(r.requests)-1]
}

func (r *receiver) set(f func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	f()
}

// open makes a sink that is closed with the test.
func open(t *testing.T, c Config) *Sink {
	t.Helper()
	s, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return s
}

// newSecret makes a secret of Standard Webhooks.
func newSecret() string {
	key := make([]byte, 24)
	_, _ = rand.Read(key) // never fails
	return "whsec_" + base64.StdEncoding.EncodeToString(key)
}

func TestConformance(t *testing.T) {
	for name, batch := range map[string]bool{"binary": false, "batch": true} {
		t.Run(name, func(t *testing.T) {
			r := newReceiver(t)
			secrets := []string{newSecret(), newSecret()}
			onewritetest.TestSink(t, onewritetest.SinkHarness{
				New: func(t *testing.T) onewrite.Sink {
					s, err := New(Config{URL: r.URL + "/hook", AllowPrivate: true, Batch: batch, Secrets: secrets})
					if err != nil {
						t.Fatal(err)
					}
					return s
				},
				Received: func(*testing.T) []onewrite.Event {
					r.mu.Lock()
					defer r.mu.Unlock()
					return slices.Clone(r.events)
				},
				JSONByValue: batch,
				Refuse:      func(_ *testing.T, id string) { r.set(func() { r.refused[id] = true }) },
				Break: func(*testing.T) func() {
					r.set(func() { r.away = true })
					return func() { r.set(func() { r.away = false }) }
				},
				Stall: func(*testing.T) func() {
					r.set(func() { r.stalled = make(chan struct{}) })
					return func() { r.set(func() { close(r.stalled); r.stalled = nil }) }
				},
			})
		})
	}
}
