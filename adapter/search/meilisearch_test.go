package search_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/adapter/search"
	"github.com/onewrite/onewrite/internal/cloudevents"
	"github.com/onewrite/onewrite/internal/diagnosis"
	"github.com/onewrite/onewrite/onewritetest"
)

// meili stands in for a Meilisearch, of which no build can be had here: its documented
// routes for documents and tasks, a queue that is worked off in order and a task at a
// time, a task that fails as a whole, and its rules for ids and names of indexes.
type meili struct {
	*httptest.Server
	t *testing.T

	mu     sync.Mutex
	tasks  []map[string]any
	todo   []func() map[string]any // of the tasks that are enqueued
	docs   map[string]map[string]json.RawMessage
	primes map[string]string                                 // the primary keys of indexes
	order  []json.RawMessage                                 // documents as they arrived
	hold   bool                                              // tasks wait
	refuse map[string]bool                                   // by a part of the document
	answer func(w http.ResponseWriter, r *http.Request) bool // true: it has answered
	asked  []string
}

func newMeili(t *testing.T) *meili {
	m := &meili{t: t, docs: map[string]map[string]json.RawMessage{}, primes: map[string]string{}, refuse: map[string]bool{}}
	m.Server = httptest.NewServer(http.HandlerFunc(m.serve))
	t.Cleanup(func() { m.CloseClientConnections(); m.Close() })
	return m
}

func (m *meili) set(f func(w http.ResponseWriter, r *http.Request) bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.answer = f
}

func problemAs(w http.ResponseWriter, status int, code, kind string) {
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string]string{"message": "told by " + code, "code": code, "type": kind, "link": ""})
}

var (
	meiliRoute = regexp.MustCompile(`^/indexes/([A-Za-z0-9_-]{1,400})/documents(/delete-batch)?$`)
	taskRoute  = regexp.MustCompile(`^/tasks/(\d+)$`)
	idRule     = regexp.MustCompile(`^[A-Za-z0-9_-]{1,511}$`)
)

func (m *meili) serve(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	m.mu.Lock()
	m.asked = append(m.asked, r.Method+" "+r.URL.Path)
	f := m.answer
	m.mu.Unlock()
	if f != nil && f(w, r) {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	var number int
	switch route := meiliRoute.FindStringSubmatch(r.URL.Path); {
	case r.Header.Get("Authorization") != "Bearer canary-key" && r.URL.Path != "/health":
		problemAs(w, http.StatusForbidden, "invalid_api_key", "auth")
	case r.URL.Path == "/health":
		_, _ = io.WriteString(w, `{"status":"available"}`)
	case r.URL.Path == "/tasks":
		_, _ = io.WriteString(w, `{"results":[],"total":0}`)
	case taskRoute.MatchString(r.URL.Path):
		_, _ = fmt.Sscanf(r.URL.Path, "/tasks/%d", &number)
		if number >= len(m.tasks) {
			problemAs(w, http.StatusNotFound, "task_not_found", "invalid_request")
			return
		}
		m.work()
		_ = json.NewEncoder(w).Encode(m.tasks[number])
	case route == nil:
		problemAs(w, http.StatusNotFound, "not_found", "invalid_request")
	default:
		if r.Method != http.MethodDelete && (r.Header.Get("Content-Type") != "application/json" || !json.Valid(body)) {
			problemAs(w, http.StatusBadRequest, "malformed_payload", "invalid_request")
			return
		}
		m.enqueue(w, r, route[1], route[2] != "", body)
	}
}

// enqueue makes a task of a request.
func (m *meili) enqueue(w http.ResponseWriter, r *http.Request, index string, batch bool, body []byte) {
	number := len(m.tasks)
	m.tasks = append(m.tasks, map[string]any{"uid": number, "indexUid": index, "status": "enqueued", "error": nil})
	method, prime := r.Method, r.URL.Query().Get("primaryKey")
	m.todo = append(m.todo, func() map[string]any {
		switch {
		case method == http.MethodDelete || batch:
			return m.remove(index, method == http.MethodDelete, body)
		default:
			return m.add(index, prime, method == http.MethodPut, body)
		}
	})
	w.WriteHeader(http.StatusAccepted)
	_ = json.NewEncoder(w).Encode(map[string]any{"taskUid": number, "indexUid": index, "status": "enqueued"})
}

// work works the first task off that waits; the second look finds it done.
func (m *meili) work() {
	if m.hold || len(m.todo) == 0 {
		return
	}
	task := m.tasks[len(m.tasks)-len(m.todo)]
	if task["status"] == "enqueued" {
		task["status"] = "processing"
		return
	}
	task["status"] = "succeeded"
	if failed := m.todo[0](); failed != nil {
		task["status"], task["error"] = "failed", failed
	}
	m.todo = m.todo[1:]
}

func failure(code, kind string) map[string]any {
	return map[string]any{"message": "told by " + code, "code": code, "type": kind, "link": ""}
}

func (m *meili) remove(index string, all bool, body []byte) map[string]any {
	docs, known := m.docs[index]
	var ids []string
	switch {
	case !known:
		return failure("index_not_found", "invalid_request")
	case all:
		clear(docs)
	case json.Unmarshal(body, &ids) != nil:
		return failure("invalid_document_id", "invalid_request")
	}
	for _, id := range ids {
		delete(docs, id)
	}
	return nil
}

func (m *meili) add(index, prime string, merge bool, body []byte) map[string]any {
	var list []json.RawMessage
	if json.Unmarshal(body, &list) != nil {
		return failure("malformed_payload", "invalid_request")
	}
	if was := m.primes[index]; was != "" && was != prime {
		return failure("index_primary_key_already_exists", "invalid_request")
	}
	ids := make([]string, len(list))
	for i, doc := range list { // all of them before any
		var fields map[string]json.RawMessage
		if json.Unmarshal(doc, &fields) != nil || json.Unmarshal(fields[prime], &ids[i]) != nil || !idRule.MatchString(ids[i]) {
			return failure("invalid_document_id", "invalid_request")
		}
		for part := range m.refuse {
			if bytes.Contains(doc, []byte(part)) {
				return failure("invalid_document_geo_field", "invalid_request")
			}
		}
	}
	m.primes[index] = prime
	if m.docs[index] == nil {
		m.docs[index] = map[string]json.RawMessage{}
	}
	for i, doc := range list {
		if old := m.docs[index][ids[i]]; merge && old != nil {
			var a, b map[string]json.RawMessage
			if json.Unmarshal(old, &a) != nil || json.Unmarshal(doc, &b) != nil {
				m.t.Error("a document that is none")
			}
			maps.Copy(a, b)
			doc, _ = json.Marshal(a)
		}
		if m.docs[index][ids[i]] == nil {
			m.order = append(m.order, doc)
		}
		m.docs[index][ids[i]] = doc
	}
	return nil
}

func (m *meili) config() search.Config {
	return search.Config{URL: m.URL, APIKey: "canary-key", Destination: "search"}
}

func (m *meili) open(t *testing.T, c search.Config) *search.Meilisearch {
	t.Helper()
	s, err := search.NewMeilisearch(t.Context(), c)
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

// has demands the documents of an index, as id=attribute n.
func (m *meili) has(index string, want ...string) {
	m.t.Helper()
	m.mu.Lock()
	defer m.mu.Unlock()
	var got []string
	for id, doc := range m.docs[index] {
		var d struct{ N json.RawMessage }
		if err := json.Unmarshal(doc, &d); err != nil {
			m.t.Fatal(err)
		}
		got = append(got, id+"="+string(d.N))
	}
	slices.Sort(got)
	if !slices.Equal(got, want) {
		m.t.Errorf("index %s has %q, want %q", index, got, want)
	}
}

func TestMeilisearchSink(t *testing.T) {
	m := newMeili(t)
	onewritetest.TestSink(t, onewritetest.SinkHarness{
		New: func(t *testing.T) onewrite.Sink {
			c := m.config()
			c.Document, c.ID = search.Event, "{id}"
			s, err := search.NewMeilisearch(t.Context(), c)
			if err != nil {
				t.Fatal(err)
			}
			return s
		},
		Received: func(t *testing.T) (events []onewrite.Event) {
			m.mu.Lock()
			defer m.mu.Unlock()
			for _, doc := range m.order {
				e, err := cloudevents.ParseJSON(doc)
				if err != nil {
					t.Fatal(err)
				}
				if delete(e.Header, search.MeilisearchID); len(e.Header) == 0 {
					e.Header = nil
				}
				events = append(events, e)
			}
			return events
		},
		JSONByValue: true,
		Refuse: func(t *testing.T, id string) {
			m.mu.Lock()
			defer m.mu.Unlock()
			m.refuse[`"id":"`+id+`"`] = true
		},
		Break: func(*testing.T) func() {
			m.set(func(w http.ResponseWriter, _ *http.Request) bool {
				if c, _, err := w.(http.Hijacker).Hijack(); err == nil {
					_ = c.Close()
				}
				return true
			})
			return func() { m.set(nil) }
		},
		Stall: func(*testing.T) func() { // it takes documents, and no task ends
			m.mu.Lock()
			defer m.mu.Unlock()
			m.hold = true
			return func() {
				m.mu.Lock()
				defer m.mu.Unlock()
				m.hold = false
			}
		},
	})
}

// rowChange is a row change as the sources make it.
func rowChange(kind, op, key, after string, unchanged ...string) onewrite.Event {
	list, _ := json.Marshal(unchanged)
	return onewrite.Event{ID: kind + key + after, Source: "shop", Topic: "public.Orders", Type: kind, Key: key, ContentType: "application/json", Tx: onewrite.Tx{ID: "1"},
		Data: fmt.Appendf(nil, `{"op":%q,"after":%s,"source":{"connector":"postgresql","unchanged":%s}}`, op, after, list)}
}

// Rows become documents: replaced, removed, merged where the log does not carry a column,
// emptied by TRUNCATE; what is done twice in one order ends the same.
func TestMeilisearchRows(t *testing.T) {
	m := newMeili(t)
	s := m.open(t, m.config())
	events := []onewrite.Event{
		rowChange("delete", "d", `{"id":0}`, "null"), // of an index that is not there
		rowChange("insert", "c", `{"id":1}`, `{"id":1,"n":1,"big":"b"}`),
		rowChange("insert", "c", `{"id":2}`, `{"id":2,"n":1}`),
		rowChange("insert", "c", `{"id":"a/ü"}`, `{"n":1}`), // an id that it would not take
		rowChange("update", "u", `{"id":1}`, `{"id":1,"n":2}`, "big"),
		rowChange("delete", "d", `{"id":2}`, "null"),
		rowChange("insert", "c", `{"id":3}`, `{"id":3,"n":7,"onewrite_id":"4"}`),
	}
	other := m.open(t, m.config()) // as after a crash: the same again, over what is there
	for range 2 {
		for _, s := range []*search.Meilisearch{s, other} {
			if n, err := s.Write(t.Context(), events); n != len(events) || err != nil {
				t.Fatalf("Write = %d, %v", n, err)
			}
			m.has("public-orders", "1=2", "3=7", fmt.Sprintf("sha256-%x=1", sha256.Sum256([]byte("a/ü"))))
		}
	}
	if doc := string(m.docs["public-orders"]["1"]); !strings.Contains(doc, `"big":"b"`) {
		t.Errorf("the column that was not carried is gone: %s", doc)
	}
	truncate := rowChange("truncate", "t", "", "null")
	if n, err := s.Write(t.Context(), []onewrite.Event{events[2], truncate, events[1]}); n != 3 || err != nil {
		t.Fatalf("Write = %d, %v", n, err)
	}
	m.has("public-orders", "1=1")
}

// A task that waits is not durable; the writes of one sink are in the order of the calls.
func TestMeilisearchWaits(t *testing.T) {
	m := newMeili(t)
	s := m.open(t, m.config())
	m.hold = true
	done := make(chan error, 1)
	go func() {
		_, err := s.Write(t.Context(), []onewrite.Event{rowChange("insert", "c", `{"id":1}`, `{"n":1}`)})
		done <- err
	}()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
		m.mu.Lock()
		looks := 0
		for _, a := range m.asked {
			if strings.HasPrefix(a, "GET /tasks/") {
				looks++
			}
		}
		m.mu.Unlock()
		select {
		case err := <-done:
			t.Fatalf("Write returned before its task had ended: %v", err)
		default:
		}
		if looks >= 3 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("nobody looks at the task")
		}
	}
	m.mu.Lock()
	m.hold = false
	m.mu.Unlock()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	m.has("public-orders", "1=1")
}

// Each class of error, and none of them shows the key.
func TestMeilisearchErrors(t *testing.T) {
	one := []onewrite.Event{rowChange("insert", "c", `{"id":1}`, `{"n":1}`)}
	two := append(one, rowChange("insert", "c", `{"id":2}`, `{"n":1}`))
	posted := func(status int, code, kind string) func(http.ResponseWriter, *http.Request) bool {
		return func(w http.ResponseWriter, r *http.Request) bool {
			if r.Method == http.MethodPost {
				w.Header().Set("Retry-After", "7")
				problemAs(w, status, code, kind)
			}
			return r.Method == http.MethodPost
		}
	}
	told := func(status string, problem any) func(http.ResponseWriter, *http.Request) bool {
		return func(w http.ResponseWriter, r *http.Request) bool {
			if strings.HasPrefix(r.URL.Path, "/tasks/") {
				_ = json.NewEncoder(w).Encode(map[string]any{"status": status, "error": problem})
				return true
			}
			return false
		}
	}
	for _, c := range []struct {
		name     string
		answer   func(http.ResponseWriter, *http.Request) bool
		events   []onewrite.Event
		rejected bool
		answered bool
		after    time.Duration
		has      string
	}{
		{"key", posted(403, "invalid_api_key", "auth"), one, false, false, 0, "api_key"},
		{"too large", posted(413, "payload_too_large", "invalid_request"), one, true, false, 0, "http-payload-size-limit"},
		{"too large of two", posted(413, "payload_too_large", "invalid_request"), two, false, true, 0, "payload_too_large"},
		{"busy", posted(503, "maintenance", "internal"), two, false, false, 7 * time.Second, "busy"},
		{"disk", posted(500, "no_space_left_on_device", "system"), two, false, false, 0, "disk"},
		{"proxy", posted(404, "not_found", "invalid_request"), one, false, false, 0, "set url"},
		{"task refused", told("failed", failure("invalid_document_id", "invalid_request")), one, true, false, 0, "/tasks/"},
		{"task of two refused", told("failed", failure("invalid_document_id", "invalid_request")), two, false, true, 0, "/tasks/"},
		{"task without room", told("failed", failure("no_space_left_on_device", "system")), one, false, false, 0, "free space"},
		{"task broken", told("failed", failure("internal", "internal")), one, false, true, 0, "/tasks/"},
		{"task cancelled", told("canceled", nil), one, false, true, 0, "canceled"},
		{"other primary key", told("failed", failure("index_primary_key_already_exists", "invalid_request")), one, false, true, 0, "another index"},
		{"unknown state", told("paused", nil), one, false, false, 0, "newer"},
	} {
		m := newMeili(t)
		s := m.open(t, m.config())
		m.set(c.answer)
		n, err := s.Write(t.Context(), c.events)
		var a interface{ Answered() bool }
		var p interface{ RetryAfter() time.Duration }
		if n != 0 || err == nil || errors.Is(err, onewrite.ErrRejected) != c.rejected || errors.As(err, &a) != c.answered || !strings.Contains(err.Error(), c.has) || strings.Contains(err.Error(), "canary") {
			t.Errorf("%s: %d, %v", c.name, n, err)
		}
		if errors.As(err, &p) != (c.after > 0) || c.after > 0 && p.RetryAfter() != c.after {
			t.Errorf("%s: a pause of %v, want %v", c.name, p, c.after)
		}
	}
}

func TestMeilisearchDoctor(t *testing.T) {
	m := newMeili(t)
	if found := search.ExamineMeilisearch(t.Context(), m.config()); len(found) != 1 || found[0].Severity != diagnosis.OK {
		t.Errorf("of a good one: %+v", found)
	}
	c := m.config()
	c.APIKey = "canary-other"
	if found := search.ExamineMeilisearch(t.Context(), c); len(found) != 1 || found[0].Severity == diagnosis.OK || strings.Contains(fmt.Sprint(found), "canary") {
		t.Errorf("of a wrong key: %+v", found)
	}
}
