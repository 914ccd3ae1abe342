package dashboard_test

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"reflect"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/dashboard"
	"github.com/onewrite/onewrite/pipeline"
)

// control is an instance that does nothing but remember what it was asked.
type control struct {
	status   dashboard.Status
	notReady []string
	parked   []onewrite.Parked
	err      error               // of all that can fail
	feed     chan onewrite.Event // what Tail shows
	ended    chan error          // how Tail ended

	mu    sync.Mutex
	calls []call
}

// call is what reached the control.
type call struct {
	what, destination string
	n, limit          uint64
	from              onewrite.From
	list              []string
	data              string
}

func (c *control) note(x call) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.calls = append(c.calls, x)
	return c.err
}

// asked returns the calls so far and forgets them.
func (c *control) asked() []call {
	c.mu.Lock()
	defer c.mu.Unlock()
	calls := c.calls
	c.calls = nil
	return calls
}

func (c *control) Status(context.Context) dashboard.Status { return c.status }
func (c *control) NotReady(context.Context) []string       { return c.notReady }

func (c *control) Reload(_ context.Context, forget []string) (dashboard.Reload, error) {
	return dashboard.Reload{Added: []string{"new"}, Restart: []string{"bus.dir"}}, c.note(call{what: "reload", list: forget})
}

func (c *control) Parked(_ context.Context, d string, after uint64, limit int) ([]onewrite.Parked, error) {
	if err := c.note(call{what: "parked", destination: d, n: after, limit: uint64(limit)}); err != nil {
		return nil, err
	}
	var out []onewrite.Parked
	for _, p := range c.parked {
		if p.Ref > after && len(out) < limit {
			out = append(out, p)
		}
	}
	return out, nil
}

func (c *control) Retry(_ context.Context, d string, ref uint64, data []byte) error {
	return c.note(call{what: "retry", destination: d, n: ref, data: string(data)})
}

func (c *control) Skip(_ context.Context, d string, ref uint64) error {
	return c.note(call{what: "skip", destination: d, n: ref})
}

func (c *control) Replay(_ context.Context, d string, from onewrite.From) error {
	return c.note(call{what: "replay", destination: d, from: from})
}

func (c *control) Tail(ctx context.Context, topics []string, from onewrite.From, show func(onewrite.Message) error) error {
	err := c.note(call{what: "tail", list: topics, from: from})
	for err == nil {
		select {
		case e := <-c.feed:
			err = show(onewrite.Message{Event: e})
		case <-ctx.Done():
			err = ctx.Err()
		}
	}
	if c.ended != nil {
		c.ended <- err
	}
	return err
}

// serve starts the HTTP face on a loopback address.
func serve(t *testing.T, c *control, token string) *httptest.Server {
	t.Helper()
	m := dashboard.NewMetrics(func() dashboard.Status { return c.status })
	s := httptest.NewServer(dashboard.Handler(dashboard.Options{Control: c, Metrics: m.Gatherer(), Token: token}))
	t.Cleanup(s.Close)
	return s
}

// ask sends a request, with headers as name, value, and returns the answer.
func ask(t *testing.T, s *httptest.Server, method, path string, header ...string) (*http.Response, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, s.URL+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		if header[i] == "Host" {
			req.Host = header[i+1]
		} else {
			req.Header.Set(header[i], header[i+1])
		}
	}
	resp, err := s.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, string(body)
}

// endpoints are all paths; post needs POST, open needs no token.
var endpoints = []struct {
	path       string
	post, open bool
}{
	{"/healthz", false, true}, {"/readyz", false, true},
	{"/", false, false}, {"/metrics", false, false}, {"/api/status", false, false}, {"/api/parked/audit", false, false},
	{"/api/tail", false, false}, {"/api/reload", true, false}, {"/api/parked/audit/retry?ref=1", true, false},
	{"/api/parked/audit/skip?ref=1", true, false}, {"/api/replay/audit?from=beginning", true, false},
}

func method(post bool) string {
	if post {
		return http.MethodPost
	}
	return http.MethodGet
}

func TestToken(t *testing.T) {
	token := rand.Text()
	c := &control{err: errors.New("reached")} // the error ends tail at once
	s := serve(t, c, token)
	for _, e := range endpoints {
		for auth, want := range map[string]bool{"": false, "Bearer": false, "Bearer ": false, "Bearer " + token[1:]: false, "Bearer " + token + "x": false,
			"Bearer " + rand.Text(): false, "Basic " + token: false, "Bearer " + token: true} {
			c.asked()
			resp, body := ask(t, s, method(e.post), e.path, "Authorization", auth)
			if got := resp.StatusCode != http.StatusUnauthorized; got != (want || e.open) {
				t.Errorf("%s with %q: %s", e.path, auth, resp.Status)
			}
			if resp.StatusCode == http.StatusUnauthorized {
				if resp.Header.Get("WWW-Authenticate") != "Bearer" || !strings.Contains(body, "Authorization: Bearer") {
					t.Errorf("%s: a refusal without a cure: %s", e.path, body)
				}
				if calls := c.asked(); len(calls) > 0 {
					t.Errorf("%s did something without the token: %v", e.path, calls)
				}
			}
			if strings.Contains(body, token) {
				t.Errorf("%s shows the token", e.path)
			}
		}
	}
}

// TestHost: a web page can make its name resolve to a loopback address; the
// requests that its visitors then send here carry that name.
func TestHost(t *testing.T) {
	c := &control{err: errors.New("reached")}
	s := serve(t, c, "")
	_, port, _ := net.SplitHostPort(s.Listener.Addr().String())
	for host, want := range map[string]bool{
		"evil.example": false, "evil.example:" + port: false, "localhost.evil.example": false, "127.0.0.1.evil.example": false, "10.0.0.1": false, "0.0.0.0": false,
		"localhost": true, "localhost:" + port: true, "127.0.0.1:" + port: true, "127.9.9.9": true, "[::1]:" + port: true, "[::1]": true,
	} {
		for _, e := range endpoints {
			c.asked()
			resp, _ := ask(t, s, method(e.post), e.path, "Host", host)
			if got := resp.StatusCode != http.StatusMisdirectedRequest; got != want {
				t.Errorf("%s for host %s: %s", e.path, host, resp.Status)
			}
			if calls := c.asked(); !want && len(calls) > 0 {
				t.Errorf("%s for host %s did something: %v", e.path, host, calls)
			}
		}
	}
	h := dashboard.Handler(dashboard.Options{Control: c, Metrics: dashboard.NewMetrics(func() dashboard.Status { return c.status }).Gatherer()})
	req := httptest.NewRequest(http.MethodGet, "http://onewrite.example/healthz", nil)
	req = req.WithContext(context.WithValue(t.Context(), http.LocalAddrContextKey, &net.TCPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 8484}))
	w := httptest.NewRecorder()
	if h.ServeHTTP(w, req); w.Code != http.StatusOK {
		t.Errorf("an address that is not loopback goes by any name, but answers %d", w.Code)
	}
}

func TestCrossOrigin(t *testing.T) {
	c := &control{}
	s := serve(t, c, "")
	for _, e := range endpoints {
		if !e.post {
			continue
		}
		for _, header := range [][]string{{"Origin", "https://evil.example"}, {"Sec-Fetch-Site", "cross-site"}, {"Sec-Fetch-Site", "same-site"}, {"Origin", "null"}} {
			resp, _ := ask(t, s, http.MethodPost, e.path, header...)
			if calls := c.asked(); resp.StatusCode != http.StatusForbidden || len(calls) > 0 {
				t.Errorf("%s with %v: %s, did %v", e.path, header, resp.Status, calls)
			}
		}
		for _, header := range [][]string{nil, {"Origin", s.URL}, {"Sec-Fetch-Site", "same-origin"}} {
			if resp, body := ask(t, s, http.MethodPost, e.path, header...); resp.StatusCode != http.StatusOK || len(c.asked()) != 1 {
				t.Errorf("%s with %v: %s %s", e.path, header, resp.Status, body)
			}
		}
		// A link or an image makes a GET: that must never change anything.
		if resp, _ := ask(t, s, http.MethodGet, e.path); resp.StatusCode != http.StatusMethodNotAllowed || len(c.asked()) > 0 {
			t.Errorf("GET %s: %s", e.path, resp.Status)
		}
	}
}

func TestHeaders(t *testing.T) {
	s := serve(t, &control{}, "")
	resp, _ := ask(t, s, http.MethodGet, "/")
	for name, want := range map[string]string{"X-Content-Type-Options": "nosniff", "Cache-Control": "no-store"} {
		if got := resp.Header.Get(name); got != want {
			t.Errorf("%s: %q", name, got)
		}
	}
	if !strings.Contains(resp.Header.Get("Content-Security-Policy"), "default-src 'none'") {
		t.Error("a page may load what it likes")
	}
	if resp, _ := ask(t, s, http.MethodGet, "/api/nothing"); resp.StatusCode != http.StatusNotFound {
		t.Errorf("/api/nothing: %s", resp.Status)
	}
}

func TestHealth(t *testing.T) {
	c := &control{}
	s := serve(t, c, "")
	if resp, body := ask(t, s, http.MethodGet, "/readyz"); resp.StatusCode != http.StatusOK || body != "ready\n" {
		t.Errorf("ready: %s %q", resp.Status, body)
	}
	c.notReady = []string{"source shop: gap", "destination audit: stopped"}
	if resp, body := ask(t, s, http.MethodGet, "/readyz"); resp.StatusCode != http.StatusServiceUnavailable || body != "source shop: gap\ndestination audit: stopped\n" {
		t.Errorf("not ready: %s %q", resp.Status, body)
	}
	if resp, body := ask(t, s, http.MethodGet, "/healthz"); resp.StatusCode != http.StatusOK || body != "ok\n" {
		t.Errorf("a process that is not ready is healthy all the same: %s %q", resp.Status, body)
	}
}

// TestStatus holds the names of the contract.
func TestStatus(t *testing.T) {
	gap := "a backup was restored [1 .. 2]"
	c := &control{status: dashboard.Status{
		Version: "1", PID: 2, Started: time.Unix(0, 0).UTC(), Warnings: []string{"<loud> & clear"},
		Sources:      map[string]dashboard.Source{"shop": {State: pipeline.InGap, Position: "5", LagSeconds: 1.5, Events: 9, Gap: &gap}, "ok": {}},
		Destinations: map[string]dashboard.Destination{"audit": {State: pipeline.OK, Delivered: 1, Pending: 2, Parked: 3, Filtered: 4, Skipped: 5, Epoch: 6, LastError: "x"}},
	}}
	resp, body := ask(t, serve(t, c, ""), http.MethodGet, "/api/status")
	if resp.StatusCode != http.StatusOK || resp.Header.Get("Content-Type") != "application/json" || !strings.Contains(body, "<loud> & clear") {
		t.Fatalf("%s %s", resp.Status, body)
	}
	var got struct {
		Sources, Destinations map[string]map[string]any
	}
	if err := json.Unmarshal([]byte(body), &got); err != nil {
		t.Fatal(err)
	}
	want := map[string]any{"state": "gap", "position": "5", "lag_seconds": 1.5, "events": 9.0, "gap": gap, "last_error": ""}
	if !reflect.DeepEqual(got.Sources["shop"], want) {
		t.Errorf("source: %v", got.Sources["shop"])
	}
	if v, ok := got.Sources["ok"]["gap"]; !ok || v != nil {
		t.Errorf("no gap is null, got %v", v)
	}
	want = map[string]any{"state": "ok", "position": "", "epoch": 6.0, "delivered": 1.0, "pending": 2.0, "parked": 3.0, "filtered": 4.0, "skipped": 5.0, "lag_seconds": 0.0, "last_error": "x"}
	if !reflect.DeepEqual(got.Destinations["audit"], want) {
		t.Errorf("destination: %v", got.Destinations["audit"])
	}
}

// TestCommands: what the control is asked for, and both forms of the answer.
func TestCommands(t *testing.T) {
	at := time.Date(2026, 1, 2, 15, 4, 5, 0, time.UTC)
	c := &control{}
	s := serve(t, c, "")
	for _, x := range []struct {
		method, path string
		code         int // of a failure
		want         call
		says         string // in the answer
	}{
		{"POST", "/api/reload", 422, call{what: "reload"}, `"restart_needed": [`},
		{"POST", "/api/reload?forget=a&forget=b", 422, call{what: "reload", list: []string{"a", "b"}}, `"new"`},
		{"GET", "/api/parked/audit", 409, call{what: "parked", destination: "audit", limit: 100}, "[]"},
		{"GET", "/api/parked/audit?after=7&limit=5", 409, call{what: "parked", destination: "audit", n: 7, limit: 5}, "[]"},
		{"GET", "/api/parked/audit?limit=99999999999", 409, call{what: "parked", destination: "audit", limit: 1000}, "[]"},
		{"GET", "/api/parked/audit?limit=0", 409, call{what: "parked", destination: "audit", limit: 1}, "[]"},
		{"GET", "/api/parked/a%2Fb?ref=8", 409, call{what: "parked", destination: "a/b", n: 7, limit: 1}, "[]"},
		{"POST", "/api/parked/audit/retry", 409, call{what: "retry", destination: "audit"}, `"retry": "under way"`},
		{"POST", "/api/parked/audit/retry?ref=8", 409, call{what: "retry", destination: "audit", n: 8}, `"ref": 8`},
		{"POST", "/api/parked/audit/skip?ref=8", 409, call{what: "skip", destination: "audit", n: 8}, `"skip": "under way"`},
		{"POST", "/api/replay/audit?from=beginning", 409, call{what: "replay", destination: "audit"}, `"replay": "under way"`},
		{"POST", "/api/replay/audit?from=2026-01-02T15:04:05Z", 409, call{what: "replay", destination: "audit", from: onewrite.From{Time: at}}, "audit"},
	} {
		c.err = nil
		resp, body := ask(t, s, x.method, x.path)
		if calls := c.asked(); resp.StatusCode != http.StatusOK || !strings.Contains(body, x.says) || len(calls) != 1 || !reflect.DeepEqual(calls[0], x.want) {
			t.Errorf("%s: %s %s asked for %v", x.path, resp.Status, body, calls)
		}
		c.err = errors.New("it cannot be; do that")
		resp, body = ask(t, s, x.method, x.path)
		if got := errorOf(body); resp.StatusCode != x.code || got != c.err.Error() || resp.Header.Get("Content-Type") != "application/json" {
			t.Errorf("%s fails with %s %s", x.path, resp.Status, body)
		}
		c.asked()
	}
}

func errorOf(body string) string {
	var e struct{ Error string }
	if json.Unmarshal([]byte(body), &e) != nil {
		return ""
	}
	return e.Error
}

// TestGarbage: what cannot be understood is refused and does nothing, least of
// all to everything that is parked.
func TestGarbage(t *testing.T) {
	c := &control{}
	s := serve(t, c, "")
	for path, method := range map[string]string{
		"/api/replay/audit?from=now": "POST", "/api/replay/audit": "POST", "/api/replay/audit?from=yesterday": "POST", "/api/replay/audit?from=2026-01-02": "POST",
		"/api/replay/audit?from=" + url.QueryEscape("2026-01-02 15:04:05"): "POST",
		"/api/parked/audit/retry?ref=x":                                    "POST", "/api/parked/audit/retry?ref=-1": "POST", "/api/parked/audit/retry?ref=0": "POST",
		"/api/parked/audit/skip?ref=x": "POST", "/api/parked/audit/skip?ref=1e3": "POST",
		"/api/parked/audit?ref=x": "GET", "/api/tail?from=x": "GET",
	} {
		resp, body := ask(t, s, method, path)
		if calls := c.asked(); resp.StatusCode != http.StatusBadRequest || errorOf(body) == "" || len(calls) > 0 {
			t.Errorf("%s %s: %s %s, did %v", method, path, resp.Status, body, calls)
		}
	}
}

func TestParked(t *testing.T) {
	secret := rand.Text()
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	event := onewrite.Event{ID: "e8", Source: "shop", Topic: "order.placed", Type: "placed", Key: "k", ContentType: "application/json",
		Data: []byte(`{"card":"` + secret + `"}`), Header: map[string]string{"note": secret}}
	c := &control{parked: []onewrite.Parked{
		{Ref: 8, Message: onewrite.Message{Event: event}, Reason: "422", Attempts: 10, Holds: true, At: at},
		{Ref: 11, Message: onewrite.Message{Event: event}, Reason: "waits behind e8"},
	}}
	s := serve(t, c, "")
	_, body := ask(t, s, http.MethodGet, "/api/parked/audit")
	if strings.Contains(body, secret) || strings.Contains(body, `"event"`) {
		t.Errorf("the list shows payloads: %s", body)
	}
	var list []dashboard.Parked
	if err := json.Unmarshal([]byte(body), &list); err != nil {
		t.Fatal(err)
	}
	want := dashboard.Parked{Ref: 8, ID: "e8", Source: "shop", Topic: "order.placed", Type: "placed", Key: "k", Reason: "422", Attempts: 10, Holds: true, At: at}
	if len(list) != 2 || !reflect.DeepEqual(list[0], want) || list[1].Ref != 11 {
		t.Errorf("list: %+v", list)
	}
	_, body = ask(t, s, http.MethodGet, "/api/parked/audit?ref=8")
	var one []struct {
		Ref   uint64
		Event struct {
			ID   string
			Note string
			Data struct{ Card string }
		}
	}
	if err := json.Unmarshal([]byte(body), &one); err != nil {
		t.Fatal(err)
	}
	if len(one) != 1 || one[0].Ref != 8 || one[0].Event.ID != "e8" || one[0].Event.Data.Card != secret || one[0].Event.Note != secret {
		t.Errorf("one event: %s", body)
	}
	if _, body := ask(t, s, http.MethodGet, "/api/parked/audit?ref=9"); strings.TrimSpace(body) != "[]" {
		t.Errorf("there is no event 9, but: %s", body)
	}
}

func TestParseFrom(t *testing.T) {
	for in, want := range map[string]onewrite.From{"": {}, "beginning": {}, "now": {Now: true}, "2026-01-02T15:04:05.5Z": {Time: time.Date(2026, 1, 2, 15, 4, 5, 5e8, time.UTC)}} {
		if got, err := dashboard.ParseFrom(in); err != nil || got != want {
			t.Errorf("%q: %v %v", in, got, err)
		}
	}
	for _, in := range []string{"NOW", "1h", "2026-01-02", " "} {
		if _, err := dashboard.ParseFrom(in); err == nil || !strings.Contains(err.Error(), "beginning") {
			t.Errorf("%q: %v", in, err)
		}
	}
}

func TestRoutesAreAllListed(t *testing.T) {
	_, body := ask(t, serve(t, &control{}, ""), http.MethodGet, "/")
	for _, e := range endpoints {
		path, method := strings.Replace(strings.Split(e.path, "?")[0], "audit", "NAME", 1), http.MethodGet
		if e.post {
			method = http.MethodPost
		}
		if !regexp.MustCompile(`(?m)^` + method + ` +` + regexp.QuoteMeta(path) + `[ ?]`).MatchString(body) {
			t.Errorf("the page does not name %s %s", method, path)
		}
	}
}
