package dashboard_test

import (
	"bufio"
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strconv"
	"testing"
	"time"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/dashboard"
	"github.com/onewrite/onewrite/internal/cloudevents"
)

const soon = 5 * time.Second

// tail opens a stream; stop is what a client does that goes away.
func tail(t *testing.T, s *httptest.Server, query string) (lines *bufio.Scanner, stop func()) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), soon) // so that a stream that says nothing fails
	t.Cleanup(cancel)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.URL+"/api/tail"+query, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := s.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { resp.Body.Close() })
	if resp.StatusCode != http.StatusOK || resp.Header.Get("Content-Type") != "application/x-ndjson" {
		t.Fatalf("%s %s", resp.Status, resp.Header.Get("Content-Type"))
	}
	return bufio.NewScanner(resp.Body), cancel
}

func numbered(i int) onewrite.Event {
	return onewrite.Event{ID: strconv.Itoa(i), Source: "shop", Topic: "order.placed", Type: "order.placed", Data: []byte("line\nbreak"), ContentType: "text/plain"}
}

// TestTail: each event comes as it passes, not when a buffer is full, and the
// end of the client ends the stream.
func TestTail(t *testing.T) {
	c := &control{feed: make(chan onewrite.Event), ended: make(chan error, 1)}
	lines, stop := tail(t, serve(t, c, ""), "?topic=order.%3E&topic=a.b")
	for i := range 3 {
		select {
		case c.feed <- numbered(i):
		case <-time.After(soon):
			t.Fatal("nobody shows events")
		}
		if !lines.Scan() { // the next event is not sent before this one is here
			t.Fatalf("the stream ended: %v", lines.Err())
		}
		if e, err := cloudevents.ParseJSON(lines.Bytes()); err != nil || !reflect.DeepEqual(e, numbered(i)) {
			t.Errorf("got %s, %v", lines.Text(), err)
		}
	}
	stop()
	select {
	case err := <-c.ended:
		if !errors.Is(err, context.Canceled) {
			t.Errorf("ended with %v", err)
		}
	case <-time.After(soon):
		t.Fatal("the client has gone and the stream goes on")
	}
	want := call{what: "tail", list: []string{"order.>", "a.b"}, from: onewrite.From{Now: true}}
	if calls := c.asked(); len(calls) != 1 || !reflect.DeepEqual(calls[0], want) {
		t.Errorf("asked for %v", calls)
	}
}

// TestTailFrom: without from only what comes is shown, with it what was.
func TestTailFrom(t *testing.T) {
	at := time.Date(2026, 1, 2, 15, 4, 5, 0, time.UTC)
	for query, want := range map[string]onewrite.From{"": {Now: true}, "?from=now": {Now: true}, "?from=beginning": {}, "?from=2026-01-02T15:04:05Z": {Time: at}} {
		c := &control{err: errors.New("the bus is gone")}
		lines, _ := tail(t, serve(t, c, ""), query)
		if lines.Scan() {
			t.Errorf("a tail that fails shows %q", lines.Text())
		}
		if calls := c.asked(); len(calls) != 1 || calls[0].from != want {
			t.Errorf("%q asked for %v", query, calls)
		}
	}
}

// TestTailLasts: the time that a server gives to other answers is not for this.
func TestTailLasts(t *testing.T) {
	c := &control{feed: make(chan onewrite.Event), ended: make(chan error, 1)}
	m := dashboard.NewMetrics(func() dashboard.Status { return c.status })
	s := httptest.NewUnstartedServer(dashboard.Handler(dashboard.Options{Control: c, Metrics: m.Gatherer()}))
	s.Config.WriteTimeout = 20 * time.Millisecond
	s.Start()
	t.Cleanup(s.Close)
	lines, stop := tail(t, s, "")
	for start, i := time.Now(), 0; time.Since(start) < 10*s.Config.WriteTimeout; i++ {
		select {
		case c.feed <- numbered(i):
		case err := <-c.ended:
			t.Fatalf("ended after %v: %v", time.Since(start), err)
		}
		if !lines.Scan() {
			t.Fatalf("ended after %v: %v", time.Since(start), lines.Err())
		}
	}
	stop()
}
