package webhook

import (
	"context"
	"encoding/base64"
	"encoding/hex"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/onewrite/onewrite"
)

// What the receiver says of an event is of use only with the names of the event:
// they are shown although payload and headers hold them too, and the rest of both
// is not, nor is a secret that looks like one of them.
func TestErrorsNameTheEvent(t *testing.T) {
	answer := ""
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		w.WriteHeader(422)
		_, _ = io.WriteString(w, answer)
	}))
	defer server.Close()
	s := open(t, Config{URL: server.URL, AllowPrivate: true, Headers: map[string]string{"Authorization": "Bearer canary-token", "X-Key": "secret-customer-77"}})
	e := order("019d2a40-3f52-4a4e-8000-0000000000a1")
	e.Topic, e.Type, e.Key = "order.placed.eu", "com.example.order.placed", "customer-4711"
	e.Data = []byte(`{"id":"` + e.ID + `","topic":"order.placed.eu","type":"com.example.order.placed","customer":"customer-4711","card":"canary-4111-1111"}`)
	e.Header = map[string]string{"X-Own": "canary in customer-4711"}
	for _, c := range []struct {
		answer string
		has    []string
	}{
		{`{"error":"no such customer","event":"` + e.ID + `","customer":"customer-4711"}`, []string{`"event":"` + e.ID + `"`, `":"customer-4711"`}},
		{"topic order.placed.eu, type com.example.order.placed: not known", []string{"topic order.placed.eu, type com.example.order.placed: not known"}},
		{"echo " + string(e.Data), []string{e.ID, "customer-4711", "***"}},
		{"own canary in customer-4711", []string{"***", "customer-4711"}},
		{"line one\nhas customer-4711 " + strings.Repeat("long ", 200), []string{`\nhas customer-4711`, `…"`}},
	} {
		answer = c.answer
		_, err := s.Write(context.Background(), []onewrite.Event{e})
		for _, text := range c.has {
			if err == nil || !strings.Contains(err.Error(), text) {
				t.Errorf("%.40s: no %s in %v", c.answer, text, err)
			}
		}
		if err == nil || strings.Contains(err.Error(), "canary") || len(err.Error()) > maxExcerpt+200 {
			t.Errorf("%.40s: %v", c.answer, err)
		}
	}
	e.Key, answer = "secret-customer-77", "key secret-customer-77"
	if _, err := s.Write(context.Background(), []onewrite.Event{e}); err == nil || strings.Contains(err.Error(), "customer-77") {
		t.Errorf("a secret of the configuration: %v", err)
	}
}

// A receiver has the secrets in other forms too, and may repeat any of them.
func TestErrorsKeepFormsOfSecrets(t *testing.T) {
	var answer func(req *http.Request) string
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		w.WriteHeader(422)
		_, _ = io.WriteString(w, "see: "+answer(req)+" :end")
	}))
	defer server.Close()
	key := []byte("canary-key-of-24-bytes!!")
	s := open(t, Config{URL: server.URL + "/webhooks/T0canary/b%2Bcanary?token=q-canary&x&n=1", AllowPrivate: true,
		Secrets: []string{"whsec_" + base64.StdEncoding.EncodeToString(key), "short-k"},
		Headers: map[string]string{"Authorization": "Basic " + base64.StdEncoding.EncodeToString([]byte("shop:pw-canary")), "X-Auth": "Bearer bcanary"}})
	text := func(text string) func(*http.Request) string { return func(*http.Request) string { return text } }
	for name, f := range map[string]func(*http.Request) string{
		"signature":   func(req *http.Request) string { return req.Header.Get("webhook-signature") },
		"one of them": func(req *http.Request) string { return strings.Fields(req.Header.Get("webhook-signature"))[1] },
		"its value":   func(req *http.Request) string { return strings.Fields(req.Header.Get("webhook-signature"))[0][3:] },
		"signature, JSON": func(req *http.Request) string {
			return strings.ReplaceAll(req.Header.Get("webhook-signature"), "/", `\/`)
		},
		"key":                 text(string(key)),
		"key in hex":          text(hex.EncodeToString(key)),
		"key in base64":       text(base64.StdEncoding.EncodeToString(key)),
		"short key":           text("short-k"),
		"user and password":   text("shop:pw-canary"),
		"password":            text("pw-canary"),
		"short token":         text("bcanary"),
		"segment of the path": text("T0canary"),
		"segment as written":  text("b%2Bcanary"),
		"segment decoded":     text("b+canary"),
		"value of the query":  text("q-canary"),
		"all of it":           func(req *http.Request) string { return req.RequestURI },
	} {
		answer = f
		if _, err := s.Write(context.Background(), []onewrite.Event{order("e-1")}); err == nil || !strings.Contains(err.Error(), "see: ") || !strings.Contains(err.Error(), "*** :end") && !strings.Contains(err.Error(), "***end") {
			t.Errorf("%s: %v", name, err)
		} else if _, said, _ := strings.Cut(err.Error(), "see: "); !strings.HasPrefix(said, "***") || strings.Count(said, "***") > 2 {
			t.Errorf("%s: %v", name, err)
		}
	}
	answer = text("events of webhooks come as token=1")
	if _, err := s.Write(context.Background(), []onewrite.Event{order("e-1")}); err == nil || !strings.Contains(err.Error(), "see: events of webhooks come as token=1 :end") {
		t.Errorf("what is plain: %v", err)
	}
}
