package search_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os/exec"
	"strings"
	"testing"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/adapter/search"
	"github.com/onewrite/onewrite/internal/servers"
)

func wantTexts(t *testing.T, srv *servers.ElasticsearchServer, index string, want map[string]string) {
	t.Helper()
	got := texts(t, srv, index)
	if len(got) != len(want) {
		t.Errorf("%s has %d documents, want %d: %v", index, len(got), len(want), got)
	}
	for id, text := range want {
		if got[id] != text {
			t.Errorf("document %s of %s is %s, want %s", id, index, got[id], text)
		}
	}
}

// TestRows: rows become documents under their keys; what is older than what is there
// changes nothing, however it comes.
func TestRows(t *testing.T) {
	srv := servers.Elasticsearch(t)
	s := newSink(t, search.Config{URL: srv.URL("")})
	const topic = "Rows.Orders"
	first := []onewrite.Event{
		change(topic, "r", `{"id":1}`, `{"id":1,"n":"one"}`, 1, 0),
		change(topic, "r", `{"id":2}`, `{"id":2,"n":"two"}`, 1, 1),
		change(topic, "c", `{"id":12345678901234567}`, `{"id":12345678901234567,"n":"Zoë \"x\" 鍵\n🌍"}`, 2, 0),
		change(topic, "u", `{"id":1}`, `{"id":1,"n":"uno"}`, 3, 0),
		change(topic, "u", `{"id":1}`, `{"id":1,"n":"ein<s>"}`, 3, 1),
		change(topic, "d", `{"id":2}`, `null`, 4, 0),
		change(topic, "c", `{"a":1,"b":"x/y"}`, `{"a":1,"b":"x/y"}`, 5, 0),
		change(topic, "c", `{"id":"`+strings.Repeat("k", 600)+`"}`, `{"long":true}`, 6, 0),
		outbox(topic, "plain", 7, "{\n \"spaced\" : 1\r\n}"),
		outbox(topic, "", 8, `{"key":"none"}`),
		outbox(topic, "gone", 9, `{"a":1}`),
		outbox(topic, "gone", 10, ""),
	}
	write(t, s, first...)
	docs := all(t, srv, "rows.orders")
	long := ""
	for _, d := range docs {
		if strings.HasPrefix(d.ID, "sha256-") {
			long = d.ID
		}
	}
	want := map[string]string{
		"1": `{"id":1,"n":"ein<s>"}`, "12345678901234567": `{"id":12345678901234567,"n":"Zoë \"x\" 鍵\n🌍"}`,
		`{"a":1,"b":"x/y"}`: `{"a":1,"b":"x/y"}`, long: `{"long":true}`, "plain": `{"spaced":1}`, first[9].ID: `{"key":"none"}`,
	}
	wantTexts(t, srv, "rows.orders", want)
	for _, e := range first { // late, alone, and by another copy
		write(t, newSink(t, search.Config{URL: srv.URL("")}), e)
		wantTexts(t, srv, "rows.orders", want)
	}
	write(t, s, first...) // all over again, as from a bus that was made anew
	wantTexts(t, srv, "rows.orders", want)
}

// TestEventDocuments: with document: event nothing is deleted.
func TestEventDocuments(t *testing.T) {
	srv := servers.Elasticsearch(t)
	s := newSink(t, search.Config{URL: srv.URL(""), Index: "events-{source}", ID: "{topic}/{key}", Document: search.Event})
	write(t, s, change("t", "c", `{"id":1}`, `{"id":1}`, 1, 0), change("t", "d", `{"id":1}`, `null`, 2, 0), change("t", "t", "t", `null`, 3, 0))
	docs := texts(t, srv, "events-shop")
	var e struct{ Type, PartitionKey, Sequence string }
	if err := json.Unmarshal([]byte(docs[`t/{"id":1}`]), &e); err != nil || e.Type != "delete" || e.PartitionKey != `{"id":1}` || len(docs) != 2 {
		t.Errorf("%v, %+v, %v", err, e, docs)
	}
}

// TestUnchanged: a large value that an update did not touch stays.
func TestUnchanged(t *testing.T) {
	srv := servers.Elasticsearch(t)
	s := newSink(t, search.Config{URL: srv.URL("")})
	const topic = "unchanged"
	big := strings.Repeat("big <&> ", 1000)
	write(t, s,
		change(topic, "c", `{"id":1}`, `{"id":1,"n":1,"big":"`+big+`","zero":null}`, 1, 0),
		change(topic, "u", `{"id":1}`, `{"id":1,"n":2}`, 2, 0, "big", "zero"),
		change(topic, "u", `{"id":1}`, `{"id":1,"n":3,"big":"__debezium_unavailable_value","zero":null}`, 3, 0, "big"),
	)
	var got struct {
		N   int
		Big string
	}
	text := texts(t, srv, topic)["1"]
	if err := json.Unmarshal([]byte(text), &got); err != nil || got.N != 3 || got.Big != big || !strings.Contains(text, `"zero":null`) {
		t.Errorf("%v: n is %d, %d bytes, %.100s", err, got.N, len(got.Big), text)
	}
	// There is nothing to complete it from.
	events := []onewrite.Event{change(topic, "u", `{"id":8}`, `{"id":8}`, 4, 0), change(topic, "u", `{"id":9}`, `{"id":9,"n":1}`, 4, 1, "big"), change(topic, "c", `{"id":10}`, `{"id":10}`, 4, 2)}
	if n, err := s.Write(t.Context(), events); n != 1 || !errors.Is(err, onewrite.ErrRejected) || !strings.Contains(err.Error(), "REPLICA IDENTITY FULL") {
		t.Errorf("%d, %v", n, err)
	}
	lacking := change(topic, "u", `{"id":8}`, `{"id":8,"n":1}`, 5, 0, "big")
	if n, err := s.Write(t.Context(), []onewrite.Event{lacking}); n != 0 || !errors.Is(err, onewrite.ErrRejected) {
		t.Errorf("%d, %v", n, err)
	}
	if _, ok := texts(t, srv, topic)["9"]; ok {
		t.Error("a part of a row is there")
	}
	// A repeat, of before a later change and of before its delete.
	write(t, s, change(topic, "u", `{"id":1}`, `{"id":1,"n":2}`, 2, 0, "big", "zero"))
	write(t, s, change(topic, "d", `{"id":1}`, `null`, 6, 0))
	write(t, s, change(topic, "u", `{"id":1}`, `{"id":1,"n":2}`, 2, 0, "big", "zero"))
	if text, ok := texts(t, srv, topic)["1"]; ok {
		t.Errorf("a deleted row is back: %.100s", text)
	}
}

// TestTruncate: what is older goes, what is newer stays, more than one page of it.
func TestTruncate(t *testing.T) {
	srv := servers.Elasticsearch(t)
	s := newSink(t, search.Config{URL: srv.URL("")})
	const topic = "truncated"
	write(t, s, change(topic, "t", topic, `null`, 1, 0)) // nothing is there
	var rows []onewrite.Event
	for i := range 1500 {
		rows = append(rows, change(topic, "c", fmt.Sprintf(`{"id":%d}`, i), fmt.Sprintf(`{"id":%d}`, i), 2, i))
	}
	write(t, s, rows...)
	write(t, s, change("truncated2", "c", `{"id":1}`, `{"id":1}`, 3, 0))
	newer := change(topic, "c", `{"id":7000}`, `{"id":7000}`, 5, 0)
	truncate := change(topic, "t", topic, `null`, 4, 0)
	write(t, s, newer, truncate, change(topic, "c", `{"id":7}`, `{"id":7,"again":true}`, 6, 0))
	want := map[string]string{"7000": `{"id":7000}`, "7": `{"id":7,"again":true}`}
	wantTexts(t, srv, topic, want)
	write(t, s, truncate)
	write(t, s, rows[:10]...)
	wantTexts(t, srv, topic, want)
	wantTexts(t, srv, "truncated2", map[string]string{"1": `{"id":1}`})
	for _, c := range []search.Config{{Index: "all"}, {Sources: 2}} {
		c.URL = srv.URL("")
		if n, err := newSink(t, c).Write(t.Context(), []onewrite.Event{truncate}); n != 0 || !errors.Is(err, onewrite.ErrRejected) || !strings.Contains(err.Error(), "_delete_by_query") {
			t.Errorf("%d, %v", n, err)
		}
	}
}

// TestRestored: a database that counts from below again, while its time goes on, is
// not taken for repeats; and repeats of before it are not taken for new.
func TestRestored(t *testing.T) {
	srv := servers.Elasticsearch(t)
	open := func() *search.Sink { return newSink(t, search.Config{URL: srv.URL("")}) }
	const topic = "restored"
	at := func(key string, n, seconds int, data string) onewrite.Event {
		e := outbox(topic, key, n, data)
		e.Time = began.Add(secs(seconds))
		return e
	}
	s := open()
	old := []onewrite.Event{at("a", 100, 1, `{"v":1}`), at("b", 101, 2, `{"v":1}`), at("a", 5000, 3, `{"v":2}`)}
	write(t, s, old...)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open()
	write(t, s, at("a", 102, 60, `{"v":3}`), at("a", 103, 61, `{"v":4}`))
	wantTexts(t, srv, topic, map[string]string{"a": `{"v":4}`, "b": `{"v":1}`})
	write(t, s, old...) // a replay
	write(t, s, at("a", 102, 60, `{"v":3}`))
	wantTexts(t, srv, topic, map[string]string{"a": `{"v":4}`, "b": `{"v":1}`})
	s = open() // without Close, as after a kill
	write(t, s, old...)
	write(t, s, at("b", 50, 120, `{"v":5}`))
	wantTexts(t, srv, topic, map[string]string{"a": `{"v":4}`, "b": `{"v":5}`})
	// What was known is lost: the documents' versions are then nobody's, and that is
	// said, where counting them as delivered would lose the event.
	must(t, srv, http.MethodDelete, "/onewrite-state", "")
	n, err := open().Write(context.Background(), []onewrite.Event{at("b", 51, 130, `{"v":6}`)})
	var a interface{ Answered() bool }
	if n != 0 || !errors.As(err, &a) || !a.Answered() || errors.Is(err, onewrite.ErrRejected) || !strings.Contains(err.Error(), "curl -sS -X DELETE") {
		t.Errorf("%d, %v", n, err)
	}
}

// TestTwins: a copy that is ahead, or began an era, is not taken for somebody else.
func TestTwins(t *testing.T) {
	srv := servers.Elasticsearch(t)
	open := func() *search.Sink { return newSink(t, search.Config{URL: srv.URL("")}) }
	const topic = "twins"
	a, b := open(), open()
	write(t, a, outbox(topic, "k", 1, `{"v":1}`))
	far := outbox(topic, "k", 50_000_000, `{"v":2}`)
	far.Time = began.Add(secs(2))
	write(t, b, far)
	write(t, a, outbox(topic, "k", 1, `{"v":1}`)) // late
	again := outbox(topic, "k", 2, `{"v":3}`)
	again.Time = began.Add(secs(60))
	write(t, b, again)
	write(t, a, outbox(topic, "k", 1, `{"v":1}`))
	write(t, a, again)
	wantTexts(t, srv, topic, map[string]string{"k": `{"v":3}`})
	if v := all(t, srv, topic)[0].Version; v < 50_000_000 {
		t.Errorf("version %d", v)
	}
}

// TestNoPlace: events whose source has another Seq are written in the order in which
// they come.
func TestNoPlace(t *testing.T) {
	srv := servers.Elasticsearch(t)
	s := newSink(t, search.Config{URL: srv.URL("")})
	for i, seq := range []string{"b", "a", ""} {
		e := outbox("noplace", "k", 1, fmt.Sprintf(`{"v":%d}`, i))
		e.Seq = seq
		write(t, s, e)
	}
	wantTexts(t, srv, "noplace", map[string]string{"k": `{"v":2}`})
	gone := outbox("noplace", "k", 1, "")
	gone.Seq = ""
	write(t, s, gone, gone)
	wantTexts(t, srv, "noplace", map[string]string{})
}

// TestCurl: a client of another family finds the documents.
func TestCurl(t *testing.T) {
	srv := servers.Elasticsearch(t)
	curl := servers.Bin(t, "curl")
	write(t, newSink(t, search.Config{URL: srv.URL("")}), change("curl", "c", `{"id":1}`, `{"id":1,"name":"Zoë"}`, 1, 0))
	cmd := exec.Command(curl, "-sS", "-K", "-")
	cmd.Stdin = strings.NewReader(fmt.Sprintf("url = \"%s/curl/_doc/1\"\n", srv.URL("")))
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), `"_source":{"id":1,"name":"Zoë"}`) {
		t.Errorf("%v: %s", err, out)
	}
	must(t, srv, http.MethodPost, "/curl/_refresh", "")
	cmd = exec.Command(curl, "-sS", "-K", "-")
	cmd.Stdin = strings.NewReader(fmt.Sprintf("url = \"%s/curl/_search?q=name:zo%%C3%%AB\"\n", srv.URL("")))
	if out, err = cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), `"_id":"1"`) {
		t.Errorf("%v: %s", err, out)
	}
}
