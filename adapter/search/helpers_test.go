package search_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/adapter/search"
	"github.com/onewrite/onewrite/internal/servers"
)

// ask calls the server as the administrator.
func ask(t testing.TB, s *servers.ElasticsearchServer, method, path, body string) (int, []byte) {
	t.Helper()
	req, err := http.NewRequestWithContext(context.Background(), method, s.URL("")+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	c := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}} // tests count goroutines
	resp, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, text
}

// must calls the server and demands that it agrees.
func must(t testing.TB, s *servers.ElasticsearchServer, method, path, body string) []byte {
	t.Helper()
	code, text := ask(t, s, method, path, body)
	if code/100 != 2 {
		t.Fatalf("%s %s: %d %s", method, path, code, text)
	}
	return text
}

// found is a document.
type found struct {
	Index   string          `json:"_index"`
	ID      string          `json:"_id"`
	Version int64           `json:"_version"`
	Source  json.RawMessage `json:"_source"`
}

// all returns the documents of an index in the order in which they were written.
func all(t testing.TB, s *servers.ElasticsearchServer, index string) []found {
	t.Helper()
	code, _ := ask(t, s, http.MethodPost, "/"+index+"/_refresh", "")
	if code == http.StatusNotFound {
		return nil
	}
	var got struct {
		Hits struct {
			Hits []found `json:"hits"`
		} `json:"hits"`
	}
	text := must(t, s, http.MethodPost, "/"+index+"/_search?expand_wildcards=all", `{"size":10000,"version":true,"sort":["_index","_seq_no"]}`)
	if err := json.Unmarshal(text, &got); err != nil {
		t.Fatal(err)
	}
	return got.Hits.Hits
}

// texts are the documents of an index by id.
func texts(t testing.TB, s *servers.ElasticsearchServer, index string) map[string]string {
	t.Helper()
	docs := map[string]string{}
	for _, d := range all(t, s, index) {
		docs[d.ID] = string(d.Source)
	}
	return docs
}

// between is a proxy that changes what is sent on to the server, or answers itself.
type between struct {
	url string
	mu  sync.Mutex
	// change, if set, is given a request's path and body.
	change func(path string, body []byte) []byte
	// answer, if set, answers in place of the server where it returns true.
	answer func(w http.ResponseWriter, path string) bool
	// after, if set, may hide the server's answer: true cuts the connection.
	after func(path string) bool
}

func newBetween(t testing.TB, s *servers.ElasticsearchServer) *between {
	to, err := url.Parse(s.URL(""))
	if err != nil {
		t.Fatal(err)
	}
	to.User = nil
	b := &between{}
	proxy := httputil.NewSingleHostReverseProxy(to)
	proxy.Transport = &http.Transport{DisableKeepAlives: true}
	proxy.ErrorHandler = func(http.ResponseWriter, *http.Request, error) { panic(http.ErrAbortHandler) }
	proxy.ModifyResponse = func(r *http.Response) error {
		b.mu.Lock()
		after := b.after
		b.mu.Unlock()
		if after != nil && after(r.Request.URL.Path) {
			return http.ErrAbortHandler
		}
		return nil
	}
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b.mu.Lock()
		change, answer := b.change, b.answer
		b.mu.Unlock()
		if answer != nil && answer(w, r.URL.Path) {
			return
		}
		body, err := io.ReadAll(r.Body)
		if err != nil {
			panic(http.ErrAbortHandler)
		}
		if change != nil {
			body = change(r.URL.Path, body)
		}
		r.Body, r.ContentLength = io.NopCloser(bytes.NewReader(body)), int64(len(body))
		proxy.ServeHTTP(w, r)
	}))
	srv.Config.ErrorLog = nil
	t.Cleanup(srv.Close)
	here, err := url.Parse(srv.URL)
	if err != nil {
		t.Fatal(err)
	}
	there, _ := url.Parse(s.URL(""))
	here.User = there.User
	b.url = here.String()
	return b
}

func (b *between) set(change func(string, []byte) []byte, answer func(http.ResponseWriter, string) bool, after func(string) bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.change, b.answer, b.after = change, answer, after
}

// newSink opens a sink with a name of its own.
func newSink(t testing.TB, c search.Config) *search.Sink {
	t.Helper()
	if c.Destination == "" {
		c.Destination = strings.ReplaceAll(t.Name(), "/", "-")
	}
	s, err := search.New(context.Background(), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// secs is so many seconds.
func secs(n int) time.Duration { return time.Duration(n) * time.Second }

var began = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// outbox is an event of an outbox: the n-th, n seconds after the beginning.
func outbox(topic, key string, n int, data string) onewrite.Event {
	e := onewrite.Event{ID: fmt.Sprintf("%s-%d", topic, n), Source: "shop", Topic: topic, Type: topic, Key: key,
		Time: began.Add(time.Duration(n) * time.Second), Seq: fmt.Sprintf("%020d", n), ContentType: "application/json", Data: []byte(data)}
	if data == "" {
		e.ContentType, e.Data = "", nil
	}
	return e
}

// change is a row change of PostgreSQL: of the n-th transaction, the i-th.
func change(topic, op, key, after string, n, i int, unchanged ...string) onewrite.Event {
	types := map[string]string{"c": "insert", "u": "update", "d": "delete", "t": "truncate", "r": "snapshot"}
	missing := ""
	if len(unchanged) > 0 {
		text, _ := json.Marshal(unchanged)
		missing = `,"unchanged":` + string(text)
	}
	lsn := 0x1600000 + 64*n
	return onewrite.Event{ID: fmt.Sprintf("%s-%d-%d", topic, n, i), Source: "shop", Topic: topic, Type: types[op], Key: key,
		Time: began.Add(time.Duration(n) * time.Second), Seq: fmt.Sprintf("%016x.%08x00", lsn, i), ContentType: "application/json",
		Tx:   onewrite.Tx{ID: fmt.Sprint(n), Index: i},
		Data: fmt.Appendf(nil, `{"before":null,"after":%s,"source":{"version":"1","connector":"postgresql","name":"shop","lsn":%d%s},"op":%q,"ts_ms":1,"transaction":null}`, after, lsn, missing, op)}
}

func write(t testing.TB, s *search.Sink, events ...onewrite.Event) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if n, err := s.Write(ctx, events); n != len(events) || err != nil {
		t.Fatalf("Write of %d events = %d, %v", len(events), n, err)
	}
}
