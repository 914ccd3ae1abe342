package kafka_test

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/adapter/kafka"
	"github.com/onewrite/onewrite/internal/diagnosis"
	"github.com/onewrite/onewrite/internal/schemas"
	"github.com/onewrite/onewrite/internal/servers"
)

// front puts a log in and an encrypted connection before a registry, and answers in its
// place while fails is set.
func front(t *testing.T, root, password string, fails *atomic.Int64) *httptest.Server {
	t.Helper()
	to, err := url.Parse(strings.TrimSuffix(root, "/apis/ccompat/v7"))
	if err != nil {
		t.Fatal(err)
	}
	proxy := httputil.NewSingleHostReverseProxy(to)
	s := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		user, given, _ := r.BasicAuth()
		switch {
		case fails.Load() != 0:
			http.Error(w, "no "+r.URL.Path, int(fails.Load()))
		case user != "onewrite" || given != password:
			http.Error(w, `{"error_code":401,"message":"Unauthorized"}`, http.StatusUnauthorized)
		default:
			proxy.ServeHTTP(w, r)
		}
	}))
	t.Cleanup(s.Close)
	return s
}

// TestRegistryAnswers: what the registry says decides what becomes of the event, and
// nothing that is said has the password in it.
func TestRegistryAnswers(t *testing.T) {
	k := servers.Kafka(t)
	a, _ := registry(t)
	var fails atomic.Int64
	f := front(t, a.URL(), "right-one", &fails)
	authority := x509.NewCertPool()
	authority.AddCert(f.Certificate())
	topic := unique("answers")
	config := func(password string, ca *x509.CertPool) kafka.Config {
		return kafka.Config{Brokers: []string{k.Addr()}, Destination: topic, Schemas: &schemas.Config{
			Format: "avro", URLs: []string{f.URL + "/apis/ccompat/v7"}, User: "onewrite", Password: password, TLS: &tls.Config{RootCAs: ca, MinVersion: tls.VersionTLS12},
		}}
	}
	fail := func(c kafka.Config, rejected, asks bool, words ...string) {
		t.Helper()
		s := newIdempotent(t, c)
		n, err := s.Write(t.Context(), []onewrite.Event{insert(topic, "1", `{"id":1}`, `{"id":1}`)})
		var answered interface{ Answered() bool }
		if n != 0 || err == nil || errors.Is(err, onewrite.ErrRejected) != rejected || errors.As(err, &answered) != asks || strings.Contains(err.Error(), "-one") {
			t.Errorf("%d, %v", n, err)
			return
		}
		for _, word := range words {
			if !strings.Contains(err.Error(), word) {
				t.Errorf("no %q in: %v", word, err)
			}
		}
	}
	good := config("right-one", authority)
	fail(config("wrong-one", authority), false, false, "401", "user and password")
	fail(config("right-one", x509.NewCertPool()), false, false, "certificate", "events wait")
	for status, kind := range map[int64]string{404: "wait", 409: "reject", 422: "reject", 403: "answer", 429: "wait", 500: "wait", 503: "wait", 400: "answer"} {
		fails.Store(status)
		fail(good, kind == "reject", kind == "answer", fmt.Sprint(status))
	}
	fails.Store(0)
	mustWrite(t, newIdempotent(t, good), insert(topic, "1", `{"id":1}`, `{"id":1}`))

	examine := func(c kafka.Config, want ...string) {
		t.Helper()
		text := ""
		for _, f := range kafka.Examine(t.Context(), c, []string{topic}) {
			text += fmt.Sprintf("%v %s: %s; %s\n", f.Severity, f.Check, f.Text, f.Cure)
			if f.Severity != diagnosis.OK && f.Cure == "" {
				t.Errorf("no cure for: %s", f.Text)
			}
		}
		for _, want := range want {
			if !strings.Contains(text, want) {
				t.Errorf("no %q in:\n%s", want, text)
			}
		}
		if strings.Contains(text, "-one") {
			t.Errorf("a password is shown:\n%s", text)
		}
	}
	examine(good, "ok registry: the schema registry answers, ", "the level of compatibility is BACKWARD", "does not tell its mode")
	examine(config("wrong-one", authority), "problem registry: 401", "compare registry: user and password")
	away := config("right-one", authority)
	away.Schemas.URLs = []string{"https://127.0.0.1:1"}
	examine(away, "problem registry: ", "curl https://127.0.0.1:1/subjects")
	other := good
	other.Schemas = &schemas.Config{Format: "json-schema", URLs: good.Schemas.URLs, User: "onewrite", Password: "right-one", TLS: good.Schemas.TLS, NoRegister: true}
	examine(other, "problem registry: subject "+topic+"-value has schemas of AVRO", "register: false")
	other.Topic = "none.{topic}"
	examine(other, "warning registry: without a schema: none."+topic+"-value", "-d @schema.json")
}
