package search_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/adapter/search"
	"github.com/onewrite/onewrite/internal/servers"
)

// kind says in a word what an error is to the pipeline.
func kind(err error) string {
	var a interface{ Answered() bool }
	var r interface{ RetryAfter() time.Duration }
	switch {
	case err == nil:
		return "none"
	case errors.Is(err, onewrite.ErrRejected):
		return "rejected"
	case errors.Is(err, onewrite.ErrGone), errors.Is(err, onewrite.ErrFenced):
		return "steers"
	case errors.As(err, &a) && a.Answered():
		return "answered"
	case errors.As(err, &r):
		return "pause " + r.RetryAfter().String()
	}
	return "outage"
}

func wantError(t *testing.T, s *search.Sink, events []onewrite.Event, n int, what string, texts ...string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	got, err := s.Write(ctx, events)
	if got != n || kind(err) != what {
		t.Errorf("Write = %d, %v (%s); want %d, %s", got, err, kind(err), n, what)
		return
	}
	for _, text := range texts {
		if !strings.Contains(err.Error(), text) {
			t.Errorf("no %q in: %v", text, err)
		}
	}
}

// TestRefused: what the server refuses is told as a refusal, with its reason and
// without the value; what stands behind it in its key does not arrive.
func TestRefused(t *testing.T) {
	srv := servers.Elasticsearch(t)
	must(t, srv, http.MethodPut, "/refused", `{"mappings":{"dynamic":"strict","properties":{"n":{"type":"long"}}}}`)
	s := newSink(t, search.Config{URL: srv.URL("")})
	events := []onewrite.Event{
		outbox("refused", "a", 1, `{"n":1}`), outbox("refused", "b", 2, `{"n":"hush hush"}`), outbox("refused", "c", 3, `{"n":3}`),
		outbox("refused", "b", 4, `{"n":4}`), outbox("refused", "d", 5, `{"n":5}`),
	}
	wantError(t, s, events, 1, "rejected", "failed to parse field [n]", "curl", "refused-2")
	if _, err := s.Write(t.Context(), events[1:2]); err == nil || strings.Contains(err.Error(), "hush") {
		t.Errorf("the value is in %v", err)
	}
	got := texts(t, srv, "refused")
	if _, passed := got["b"]; passed || got["a"] != `{"n":1}` {
		t.Errorf("%v: an event passed the one that its key has to wait for", got)
	}
	wantError(t, s, []onewrite.Event{outbox("refused", "e", 6, `{"n":1,"m":1}`)}, 0, "rejected", "strict_dynamic_mapping", "_mapping")
	for _, e := range []onewrite.Event{
		outbox("refused", "f", 7, `[1]`), outbox("refused", "f", 7, `{"n":`), outbox("refused", "", 7, ""),
		{ID: "x", Topic: "refused", Key: "f", ContentType: "text/plain", Data: []byte("{}")},
		change("refused", "c", "refused", `{"n":1}`, 7, 0), change("refused", "u", `{"id":1}`, `null`, 7, 0),
	} {
		wantError(t, s, []onewrite.Event{e}, 0, "rejected", ";")
	}
	byID := newSink(t, search.Config{URL: srv.URL(""), ID: "{id}"}) // two documents of one key
	wantError(t, byID, []onewrite.Event{outbox("refused", "g", 8, `{"n":"x"}`), outbox("refused", "g", 9, `{"n":9}`)}, 0, "rejected")
	if _, passed := texts(t, srv, "refused")["refused-9"]; passed {
		t.Error("an event passed the one that its key has to wait for")
	}
	constant := newSink(t, search.Config{URL: srv.URL(""), ID: "the-{topic}"}) // one document of two keys
	wantError(t, constant, []onewrite.Event{outbox("refused", "h", 10, `{"n":"x"}`), outbox("refused", "i", 11, `{"n":11}`)}, 0, "rejected")
	if _, passed := texts(t, srv, "refused")["the-refused"]; passed {
		t.Error("an event passed the one that its document has to wait for")
	}
	typed := newSink(t, search.Config{URL: srv.URL(""), Index: "refused-{type}"})
	wantError(t, typed, []onewrite.Event{change("refused", "c", `{"id":1}`, `{"n":1}`, 8, 0)}, 0, "rejected", "{type}")
	write(t, s, events[2:]...)
	wantTexts(t, srv, "refused", map[string]string{"a": `{"n":1}`, "b": `{"n":4}`, "c": `{"n":3}`, "d": `{"n":5}`})
}

// TestReadOnly: a block is an outage that says how it is lifted.
func TestReadOnly(t *testing.T) {
	srv := servers.Elasticsearch(t)
	s := newSink(t, search.Config{URL: srv.URL("")})
	events := []onewrite.Event{outbox("readonly", "a", 1, `{"n":1}`), outbox("readonly", "b", 2, `{"n":2}`)}
	for _, block := range []string{"index.blocks.read_only_allow_delete", "index.blocks.write", "index.blocks.read_only"} {
		must(t, srv, http.MethodPut, "/readonly?wait_for_active_shards=1", `{"settings":{"number_of_replicas":0}}`)
		must(t, srv, http.MethodPut, "/readonly/_settings", `{"`+block+`":true}`)
		wantError(t, s, events, 0, "outage", "_settings", block, "readonly")
		must(t, srv, http.MethodPut, "/readonly/_settings", `{"`+block+`":null}`)
		write(t, s, events...)
		must(t, srv, http.MethodDelete, "/readonly", "")
	}
}

// TestRights: a user that is not known is an outage, an index that is not the user's
// an answer about its events; and no error has a password in it.
func TestRights(t *testing.T) {
	srv := servers.Elasticsearch(t)
	writer := srv.URL(servers.ElasticWriter)
	s := newSink(t, search.Config{URL: writer})
	wantError(t, s, []onewrite.Event{outbox("may-a", "a", 1, `{"n":1}`), outbox("maynot", "b", 2, `{"n":2}`), outbox("may-a", "c", 3, `{"n":3}`)}, 1, "answered", "maynot", "privileges")
	write(t, s, change("may-a", "t", "may-a", `null`, 4, 0))
	for _, c := range []search.Config{
		{URL: "http://admin:hush-hush@" + srv.Addr()}, {URL: "http://" + srv.Addr(), User: "admin", Password: "hush-hush"},
		{URL: "http://" + srv.Addr(), APIKey: "hush:hush-hush"}, {URL: "http://" + srv.Addr()},
	} {
		_, err := search.New(t.Context(), c)
		if kind(err) != "outage" || strings.Contains(err.Error(), "hush") || !strings.Contains(err.Error(), "_authenticate") {
			t.Errorf("%v (%s)", err, kind(err))
		}
	}
	if _, err := search.New(t.Context(), search.Config{URL: "http://127.0.0.1:1"}); kind(err) != "outage" {
		t.Errorf("%v", err)
	}
	if s, err := search.New(t.Context(), search.Config{URL: "http://127.0.0.1:1," + srv.URL("")}); err != nil {
		t.Errorf("the second address was not tried: %v", err)
	} else {
		_ = s.Close()
	}
	must(t, srv, http.MethodPut, "/_cluster/settings", `{"persistent":{"action.auto_create_index":"-absent*,+*"}}`)
	defer must(t, srv, http.MethodPut, "/_cluster/settings", `{"persistent":{"action.auto_create_index":null}}`)
	s = newSink(t, search.Config{URL: srv.URL("")})
	wantError(t, s, []onewrite.Event{outbox("present", "a", 1, `{"n":1}`), outbox("absent", "a", 2, `{"n":2}`)}, 1, "answered", "-X PUT", "/absent")
	write(t, s, outbox("absent", "a", 3, "")) // nothing is there to delete
}

// TestAnswers: what the server may say to a whole request, and to one item.
func TestAnswers(t *testing.T) {
	srv := servers.Elasticsearch(t)
	b := newBetween(t, srv)
	s := newSink(t, search.Config{URL: b.url, Destination: "answers"})
	one := []onewrite.Event{outbox("answers", "a", 1, `{"n":1}`)}
	two := append(one[:1:1], outbox("answers", "b", 2, `{"n":2}`))
	write(t, s, two...)
	item := func(status int, kind string) string {
		return fmt.Sprintf(`{"errors":true,"items":[{"index":{"status":200}},{"index":{"status":%d,"error":{"type":%q,"reason":"so it is"}}}]}`, status, kind)
	}
	for _, c := range []struct {
		status  int
		headers string
		body    string
		events  []onewrite.Event
		n       int
		want    string
	}{
		{429, "7", `{"error":{"type":"es_rejected_execution_exception","reason":"x"},"status":429}`, two, 0, "pause 7s"},
		{429, "", `{"error":{"type":"circuit_breaking_exception","reason":"x"},"status":429}`, two, 0, "outage"},
		{503, "99999", `{"error":{"type":"master_not_discovered_exception","reason":"x"},"status":503}`, one, 0, "pause 1h0m0s"},
		{503, "Fri, 01 Jan 2100 00:00:00 GMT", `<html>`, one, 0, "outage"},
		{502, "", `<html>Bad gateway</html>`, one, 0, "outage"},
		{504, "", ``, one, 0, "outage"},
		{413, "", ``, one, 0, "rejected"},
		{413, "", ``, two, 0, "answered"},
		{400, "", `{"error":{"type":"illegal_argument_exception","reason":"x"},"status":400}`, two, 0, "answered"},
		{500, "", `{"error":"boom"}`, one, 0, "answered"},
		{401, "", `{"error":{"type":"security_exception","reason":"x"},"status":401}`, one, 0, "outage"},
		{403, "", `{"error":{"type":"security_exception","reason":"x"},"status":403}`, one, 0, "outage"},
		{403, "", `{"error":{"type":"cluster_block_exception","reason":"blocked by: [FORBIDDEN/6/cluster read-only (api)];"},"status":403}`, one, 0, "outage"},
		{404, "", `not here`, one, 0, "outage"},
		{301, "", ``, one, 0, "outage"},
		{200, "", `<html>Welcome</html>`, one, 0, "outage"},
		{200, "", `{"errors":false,"items":[]}`, one, 0, "outage"},
		{200, "", `{"errors":false,"items":[{"index":{"status":200}}]}`, two, 0, "outage"},
		{200, "", `{"errors":false,"items":[{},{}]}`, two, 0, "outage"},
		{200, "", item(429, "es_rejected_execution_exception"), two, 1, "outage"},
		{200, "3", item(429, "circuit_breaking_exception"), two, 1, "pause 3s"},
		{200, "", item(503, "unavailable_shards_exception"), two, 1, "outage"},
		{200, "", item(429, "cluster_block_exception"), two, 1, "outage"},
		{200, "", item(400, "document_parsing_exception"), two, 1, "rejected"},
		{200, "", item(404, "index_not_found_exception"), two, 1, "answered"},
		{200, "", item(403, "security_exception"), two, 1, "answered"},
		{200, "", item(400, "index_closed_exception"), two, 1, "answered"},
		{200, "", item(500, "null_pointer_exception"), two, 1, "answered"},
		{200, "", item(409, "version_conflict_engine_exception"), two, 1, "answered"},
		{200, "", item(0, ""), two, 1, "answered"},
	} {
		b.set(nil, func(w http.ResponseWriter, path string) bool {
			if path != "/_bulk" {
				return false
			}
			if c.headers != "" {
				w.Header().Set("Retry-After", c.headers)
			}
			w.WriteHeader(c.status)
			_, _ = io.WriteString(w, c.body)
			return true
		}, nil)
		n, err := s.Write(t.Context(), c.events)
		if n != c.n || kind(err) != c.want {
			t.Errorf("%d %s: %d, %v (%s); want %d, %s", c.status, c.body, n, err, kind(err), c.n, c.want)
		}
	}
	b.set(nil, nil, nil)
	write(t, s, two...)
}

// TestLostAnswer: the documents are there and the answer is not; written again, all is
// as it should be.
func TestLostAnswer(t *testing.T) {
	srv := servers.Elasticsearch(t)
	b := newBetween(t, srv)
	s := newSink(t, search.Config{URL: b.url})
	want := map[string]string{}
	var left atomic.Int32
	b.set(nil, nil, func(path string) bool { return path == "/_bulk" && left.Add(-1) >= 0 })
	for i := range 20 {
		events := []onewrite.Event{outbox("lost", fmt.Sprint(i%5), 3*i, fmt.Sprintf(`{"v":%d}`, i)), outbox("lost", "x", 3*i+1, fmt.Sprintf(`{"v":%d}`, i)), outbox("lost", "x", 3*i+2, "")}
		left.Store(int32(i % 3))
		done := 0
		for tries := 0; done < len(events); tries++ {
			n, err := s.Write(t.Context(), events[done:])
			if done += n; err != nil && kind(err) != "outage" || tries > 10 {
				t.Fatal(n, err)
			}
		}
		want[fmt.Sprint(i%5)] = fmt.Sprintf(`{"v":%d}`, i)
	}
	wantTexts(t, srv, "lost", want)
}

// TestKilled: the server is killed while documents are written; a new sink goes on
// where the answers ended, and nothing is missing.
func TestKilled(t *testing.T) {
	srv := servers.Elasticsearch(t)
	var events []onewrite.Event
	want := map[string]string{}
	for i := range 20000 {
		key, text := fmt.Sprint(i%997), fmt.Sprintf(`{"v":%d}`, i)
		events = append(events, outbox("killed", key, i, text))
		want[key] = text
	}
	s, err := search.New(t.Context(), search.Config{URL: srv.URL(""), Destination: "killed"})
	if err != nil {
		t.Fatal(err)
	}
	var done atomic.Int64
	failed := make(chan error, 1)
	go func() {
		for {
			at := int(done.Load())
			n, err := s.Write(context.Background(), events[at:min(at+50, len(events))])
			done.Add(int64(n))
			if err != nil {
				failed <- err
				return
			}
			if at+n == len(events) {
				failed <- nil
				return
			}
		}
	}()
	for done.Load() < 1000 { // it works
		select {
		case err := <-failed:
			t.Fatal(err)
		case <-time.After(time.Millisecond):
		}
	}
	if err := srv.Kill(); err != nil {
		t.Fatal(err)
	}
	err = <-failed
	if kind(err) != "outage" {
		t.Errorf("after a kill: %v (%s)", err, kind(err))
	}
	t.Logf("killed after %d events: %v", done.Load(), err)
	_ = s.Close()
	if _, err := search.New(t.Context(), search.Config{URL: srv.URL(""), Destination: "killed"}); kind(err) != "outage" {
		t.Errorf("opened on a dead server: %v", err)
	}
	if err := srv.Start(); err != nil {
		t.Fatal(err)
	}
	at := int(done.Load())
	if got := texts(t, srv, "killed"); len(got) < min(at, 997) {
		t.Errorf("%d documents are left of %d events", len(got), at)
	}
	s = newSink(t, search.Config{URL: srv.URL(""), Destination: "killed"})
	for at < len(events) {
		n := min(1000, len(events)-at)
		write(t, s, events[at:at+n]...)
		at += n
	}
	wantTexts(t, srv, "killed", want)
}
