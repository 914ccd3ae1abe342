package inbox_test

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"database/sql"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/inbox"
	"github.com/onewrite/onewrite/internal/cloudevents"
)

// secret makes one up.
func secret(t testing.TB) string {
	t.Helper()
	key := make([]byte, 32)
	if _, err := rand.Read(key); err != nil {
		t.Fatal(err)
	}
	return "whsec_" + base64.StdEncoding.EncodeToString(key)
}

// post is a request as onewrite sends it; change breaks it.
type post struct {
	secret string
	id     string
	at     time.Time
	header map[string]string
	body   string
	spoil  func(*http.Request)
}

func sign(secret, id, stamp, body string) string {
	key, _ := base64.StdEncoding.DecodeString(strings.TrimPrefix(secret, "whsec_"))
	mac := hmac.New(sha256.New, key)
	fmt.Fprintf(mac, "%s.%s.%s", id, stamp, body)
	return "v1," + base64.StdEncoding.EncodeToString(mac.Sum(nil))
}

func (p post) send(t testing.TB, h http.Handler) (status int, text string) {
	t.Helper()
	r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/events", strings.NewReader(p.body))
	for k, v := range map[string]string{"ce-specversion": "1.0", "ce-id": p.id, "ce-source": "/shop", "ce-type": "order.placed",
		"ce-topic": "order.placed", "ce-partitionkey": "a%20b", "ce-sequence": "00000000000000000001", "Content-Type": "application/json"} {
		r.Header.Set(k, v)
	}
	for k, v := range p.header {
		r.Header.Set(k, v)
	}
	if p.secret != "" {
		at := p.at
		if at.IsZero() {
			at = time.Now()
		}
		stamp := strconv.FormatInt(at.Unix(), 10)
		r.Header.Set("webhook-id", p.id)
		r.Header.Set("webhook-timestamp", stamp)
		r.Header.Set("webhook-signature", sign(p.secret, p.id, stamp, p.body))
	}
	if p.spoil != nil {
		p.spoil(r)
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w.Code, strings.TrimSpace(w.Body.String())
}

// desk is a handler over a database, and what its effects saw.
type desk struct {
	rig
	http.Handler
	got []onewrite.Event
	log bytes.Buffer
	err error
}

func newDesk(t *testing.T, opts ...inbox.HTTPOption) *desk {
	d := &desk{rig: newSQLite(t)}
	receive := inbox.New(d.dialect, "desk").Receiver(d.db, func(ctx context.Context, tx *sql.Tx, e onewrite.Event) error {
		if d.err != nil {
			return d.err
		}
		d.got = append(d.got, e)
		return d.effect(ctx, tx, e)
	})
	h, err := inbox.HTTP(receive, append(opts, inbox.Log(slog.New(slog.NewTextHandler(&d.log, nil))))...)
	if err != nil {
		t.Fatal(err)
	}
	d.Handler = h
	return d
}

// inBody makes a request one whose body holds the events and their attributes.
func inBody(form string) func(*http.Request) {
	return func(r *http.Request) {
		for name := range r.Header {
			if strings.HasPrefix(name, "Ce-") {
				r.Header.Del(name)
			}
		}
		r.Header.Set("Content-Type", form)
	}
}

func (d *desk) effects(t *testing.T) int { return d.count(t, `SELECT count(*) FROM effect`) }

func TestWebhook(t *testing.T) {
	s := secret(t)
	d := newDesk(t, inbox.Secret(s))
	p := post{secret: s, id: "e-1", body: `{"n":1}`, header: map[string]string{
		"ce-traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "traceparent": "of the request", "X-Region": "west"}}
	for range 2 {
		if status, text := p.send(t, d); status != http.StatusNoContent {
			t.Fatalf("%d %s", status, text)
		}
	}
	if len(d.got) != 1 || d.effects(t) != 1 {
		t.Fatalf("%d effects of one event sent twice", len(d.got))
	}
	e := d.got[0]
	if e.ID != "e-1" || e.Source != "shop" || e.Topic != "order.placed" || e.Key != "a b" || e.Seq == "" || string(e.Data) != `{"n":1}` ||
		e.ContentType != "application/json" || e.Header["x-region"] != "west" || !strings.HasPrefix(e.Header["traceparent"], "00-") || len(e.Header) != 2 {
		t.Errorf("%+v", e)
	}
	// A tombstone has no data, an empty body with a type has.
	post{secret: s, id: "e-2", spoil: func(r *http.Request) { r.Header.Del("Content-Type") }}.send(t, d)
	post{secret: s, id: "e-3"}.send(t, d)
	if len(d.got) != 3 || d.got[1].Data != nil || d.got[2].Data == nil {
		t.Errorf("%+v", d.got[1:])
	}
}

func TestRefused(t *testing.T) {
	s, old := secret(t), secret(t)
	d := newDesk(t, inbox.Secret(s, old), inbox.MaxBytes(1000), inbox.From("shop"))
	good := post{secret: s, id: "e-1", body: `{"n":1}`}
	with := func(change func(*post)) post { p := good; change(&p); return p }
	breaks := func(f func(*http.Request)) post { return with(func(p *post) { p.spoil = f }) }
	for name, c := range map[string]struct {
		post
		status int
	}{
		"wrong secret":         {with(func(p *post) { p.secret = secret(t) }), 401},
		"unsigned":             {with(func(p *post) { p.secret = "" }), 401},
		"no signature":         {breaks(func(r *http.Request) { r.Header.Del("webhook-signature") }), 401},
		"other version":        {breaks(func(r *http.Request) { r.Header.Set("webhook-signature", "v2"+r.Header.Get("webhook-signature")[2:]) }), 401},
		"stale":                {with(func(p *post) { p.at = time.Now().Add(-6 * time.Minute) }), 401},
		"from the future":      {with(func(p *post) { p.at = time.Now().Add(6 * time.Minute) }), 401},
		"no time":              {breaks(func(r *http.Request) { r.Header.Set("webhook-timestamp", "now") }), 401},
		"time changed":         {breaks(func(r *http.Request) { r.Header.Set("webhook-timestamp", strconv.FormatInt(time.Now().Unix()-1, 10)) }), 401},
		"truncated":            {breaks(func(r *http.Request) { r.Body = io.NopCloser(strings.NewReader(`{"n":`)) }), 401},
		"extended":             {breaks(func(r *http.Request) { r.Body = io.NopCloser(strings.NewReader(`{"n":1} `)) }), 401},
		"broken off":           {breaks(func(r *http.Request) { r.Body = io.NopCloser(io.MultiReader(strings.NewReader(`{`), broken{})) }), 503},
		"other id":             {breaks(func(r *http.Request) { r.Header.Set("webhook-id", "e-2") }), 401},
		"other event":          {breaks(func(r *http.Request) { r.Header.Set("ce-id", "e-2") }), 400},
		"other source":         {breaks(func(r *http.Request) { r.Header.Set("ce-source", "/bank") }), 403},
		"no event":             {breaks(func(r *http.Request) { r.Header.Del("ce-specversion") }), 400},
		"twice an attribute":   {breaks(func(r *http.Request) { r.Header.Add("ce-source", "/bank") }), 400},
		"no type":              {breaks(func(r *http.Request) { r.Header.Del("ce-type") }), 400},
		"too large":            {with(func(p *post) { p.body = strings.Repeat("x", 1001) }), 413},
		"GET":                  {breaks(func(r *http.Request) { r.Method = http.MethodGet }), 405},
		"compressed":           {breaks(func(r *http.Request) { r.Header.Set("Content-Encoding", "gzip") }), 415},
		"unknown form":         {breaks(inBody("application/cloudevents+xml")), 415},
		"batch that is none":   {breaks(inBody("application/cloudevents-batch+json")), 400},
		"structured, no event": {breaks(inBody("application/cloudevents+json")), 400},
		"id with a dot":        {with(func(p *post) { p.id = "e.1" }), 401},
		"no specversion, batch": {with(func(p *post) {
			p.body, p.header, p.spoil = "[]", map[string]string{"Content-Type": "application/cloudevents-batch+json"}, func(r *http.Request) { r.Header.Del("ce-specversion") }
		}), 400},
		"seventeen signatures": {breaks(func(r *http.Request) {
			r.Header.Set("webhook-signature", strings.Repeat(r.Header.Get("webhook-signature")+" ", 17))
		}), 401},
		"signature of the body": {breaks(func(r *http.Request) { r.Header.Set("webhook-signature", sign(s, "", "", `{"n":1}`)) }), 401},
	} {
		if status, text := c.send(t, d); status != c.status {
			t.Errorf("%s: %d %s, want %d", name, status, text, c.status)
		}
	}
	if len(d.got) != 0 || d.effects(t) != 0 {
		t.Fatalf("%d effects of what was refused", len(d.got))
	}
	if strings.Contains(d.log.String(), s) || strings.Contains(d.log.String(), `"n"`) {
		t.Errorf("the log tells a secret or a payload: %s", d.log.String())
	}
	// While secrets are rotated both are good, and one of several signatures is enough.
	for i, p := range []post{
		with(func(p *post) { p.secret = old }),
		with(func(p *post) {
			p.id = "e-2"
			p.spoil = func(r *http.Request) {
				r.Header.Set("webhook-signature", "v1,AAAA v1a,xyz "+r.Header.Get("webhook-signature"))
			}
		}),
		with(func(p *post) { p.id, p.at = "e-3", time.Now().Add(-4*time.Minute) }),
	} {
		if status, text := p.send(t, d); status != http.StatusNoContent || len(d.got) != i+1 {
			t.Errorf("good request %d: %d %s", i, status, text)
		}
	}
}

type broken struct{}

func (broken) Read([]byte) (int, error) { return 0, io.ErrUnexpectedEOF }

func TestWhatAnEffectSays(t *testing.T) {
	d := newDesk(t, inbox.Unsigned())
	for _, c := range []struct {
		err    error
		status int
		text   string
	}{
		{errors.New("secret detail"), 500, "the handler failed"},
		{fmt.Errorf("no such account: %w", onewrite.ErrRejected), 422, "no such account"},
	} {
		d.err = c.err
		status, text := post{id: "e-1"}.send(t, d)
		if status != c.status || !strings.Contains(text, c.text) || strings.Contains(text, "secret detail") {
			t.Errorf("%v: %d %s", c.err, status, text)
		}
	}
	d.err = nil
	_ = d.db.Close()
	if status, _ := (post{id: "e-1"}).send(t, d); status != http.StatusServiceUnavailable {
		t.Errorf("without a database: %d", status)
	}
	for _, r := range []inbox.Receiver{
		func(context.Context, []inbox.Message) ([]inbox.Outcome, error) { panic("boom") },
	} {
		h, _ := inbox.HTTP(r, inbox.Unsigned())
		if status, text := (post{id: "e-1"}).send(t, h); status != 500 || strings.Contains(text, "boom") {
			t.Errorf("panic: %d %s", status, text)
		}
	}
	h, _ := inbox.HTTP(func(context.Context, []inbox.Message) ([]inbox.Outcome, error) { return nil, &inbox.GapError{} }, inbox.Unsigned())
	if status, _ := (post{id: "e-1"}).send(t, h); status != http.StatusServiceUnavailable {
		t.Errorf("gap: %d", status)
	}
}

func TestBatchRequest(t *testing.T) {
	s := secret(t)
	d := newDesk(t, inbox.Secret(s))
	one := func(id string) string {
		return `{"specversion":"1.0","id":"` + id + `","source":"/shop","type":"t","topic":"t","datacontenttype":"application/json","data":{"n":1}}`
	}
	const many, structured = "application/cloudevents-batch+json", "application/cloudevents+json"
	named := func(ids ...string) string {
		var events []onewrite.Event
		for _, id := range ids {
			events = append(events, onewrite.Event{ID: id, Source: "shop"})
		}
		return cloudevents.BatchID(events)
	}
	batch := func(id string, events ...string) int {
		status, _ := post{secret: s, id: id, body: "[" + strings.Join(events, ",") + "]", spoil: inBody(many)}.send(t, d)
		return status
	}
	if status := batch(named("a", "b"), one("a"), one("b")); status != 204 || len(d.got) != 2 {
		t.Fatalf("%d, %d effects", status, len(d.got))
	}
	// A repeat is cut otherwise.
	if status := batch(named("b", "c"), one("b"), one("c")); status != 204 || len(d.got) != 3 {
		t.Fatalf("%d, %d effects", status, len(d.got))
	}
	if status := batch("batch-3"); status != 204 {
		t.Error(status)
	}
	if status := batch(named("d"), one("d"), "{}"); status != 400 || len(d.got) != 3 {
		t.Errorf("%d, %d effects", status, len(d.got))
	}
	// A payload that somebody signed as the data of event x is no batch, nor an event.
	for _, body := range []string{"[" + one("e") + "]", "[" + one("e") + "," + one("f") + "]"} {
		if status, _ := (post{secret: s, id: "x", body: body, spoil: inBody(many)}).send(t, d); status != 400 || len(d.got) != 3 {
			t.Errorf("a payload was taken for a batch: %d", status)
		}
	}
	if status, _ := (post{secret: s, id: "x", body: one("e"), spoil: inBody(structured)}).send(t, d); status != 400 || len(d.got) != 3 {
		t.Errorf("a payload was taken for an event: %d", status)
	}
	status, text := post{secret: s, id: "e", body: one("e"), spoil: inBody(structured + "; charset=utf-8")}.send(t, d)
	if status != 204 || len(d.got) != 4 || d.got[3].ID != "e" {
		t.Errorf("structured: %d %s", status, text)
	}
}

// The data of an event may itself be an event, or many: what has ce-id is an event in
// the binary mode, and its body is data.
func TestEventsAsData(t *testing.T) {
	s := secret(t)
	d := newDesk(t, inbox.Secret(s), inbox.From("shop"))
	const inner = `{"specversion":"1.0","id":"x-1","source":"/bank","type":"t"}`
	for form, body := range map[string]string{
		"application/cloudevents+json": inner, "application/cloudevents-batch+json": "[" + inner + "]", "application/cloudevents+xml": "<event/>",
	} {
		d.got = nil
		status, text := post{secret: s, id: "e-" + form[len(form)-7:], body: body, header: map[string]string{"Content-Type": form}}.send(t, d)
		if status != 204 || len(d.got) != 1 || d.got[0].Source != "shop" || string(d.got[0].Data) != body || d.got[0].ContentType != form {
			t.Errorf("%s: %d %s, %+v", form, status, text, d.got)
		}
	}
}

func TestHTTPUse(t *testing.T) {
	for name, opts := range map[string][]inbox.HTTPOption{
		"no secret":    nil,
		"empty secret": {inbox.Secret("")},
		"no base64":    {inbox.Secret("whsec_%%")},
		"empty key":    {inbox.Secret("whsec_")},
	} {
		if _, err := inbox.HTTP(nil, opts...); err == nil {
			t.Errorf("%s is taken", name)
		}
	}
}
