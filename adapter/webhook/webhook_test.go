package webhook

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cloudevents/sdk-go/v2/event"
	cehttp "github.com/cloudevents/sdk-go/v2/protocol/http"
	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"

	"github.com/onewrite/onewrite"
)

// order makes an event with all that an event can have.
func order(id string) onewrite.Event {
	return onewrite.Event{
		ID: id, Source: "shop", Topic: "order.placed", Type: "order.placed", Key: "Zoë 7",
		Time: time.Date(2026, 5, 4, 3, 2, 1, 0, time.UTC), Seq: "0042",
		ContentType: "application/json", Data: []byte(`{"total":"12.50"}`),
		Header: map[string]string{"tenant": "a b", "X-Trace": "t 1"},
	}
}

func write(t *testing.T, s *Sink, events ...onewrite.Event) {
	t.Helper()
	if n, err := s.Write(context.Background(), events); n != len(events) || err != nil {
		t.Fatalf("Write = %d, %v", n, err)
	}
}

// The official library accepts every signature, of each secret in rotation, of
// a batch and of an event without data, and refuses what was changed.
func TestSignatures(t *testing.T) {
	raw := "a plain text secret"
	secrets := []string{newSecret(), newSecret(), raw}
	tombstone := order("3")
	tombstone.ContentType, tombstone.Data = "", nil
	odd := order("id with spaces, ä and .dots")
	for _, batch := range []bool{false, true} {
		r := newReceiver(t)
		s := open(t, Config{URL: r.URL, AllowPrivate: true, Secrets: secrets, Batch: batch})
		write(t, s, order("1"))
		write(t, s, order("1"), order("2"))
		write(t, s, tombstone)
		write(t, s, odd)
		for i, req := range r.requests {
			body, _ := io.ReadAll(req.Body)
			var hooks []*standardwebhooks.Webhook
			for _, secret := range secrets {
				wh, err := standardwebhooks.NewWebhook(secret)
				if secret == raw {
					wh, err = standardwebhooks.NewWebhookRaw([]byte(secret))
				}
				if err != nil {
					t.Fatal(err)
				}
				hooks = append(hooks, wh)
			}
			for k, wh := range hooks {
				if err := wh.Verify(body, req.Header); err != nil {
					t.Errorf("batch %v, request %d, secret %d: %v", batch, i, k, err)
				}
				if err := wh.Verify(append(body, 'x'), req.Header); err == nil {
					t.Errorf("batch %v, request %d: a changed body passes", batch, i)
				}
			}
			if got := len(strings.Fields(req.Header.Get("Webhook-Signature"))); got != len(secrets) {
				t.Errorf("%d signatures for %d secrets", got, len(secrets))
			}
			if wh, _ := standardwebhooks.NewWebhook(newSecret()); wh.Verify(body, req.Header) == nil {
				t.Errorf("batch %v, request %d: a foreign secret verifies", batch, i)
			}
		}
	}
}

// webhook-id is the event's id. Of a batch it depends on every event, and on
// nothing else.
func TestWebhookID(t *testing.T) {
	r := newReceiver(t)
	secret := []string{newSecret()}
	s := open(t, Config{URL: r.URL, AllowPrivate: true, Secrets: secret})
	write(t, s, order("e-1"))
	if got := r.last().Header.Get("webhook-id"); got != "e-1" {
		t.Errorf("webhook-id of an event: %q", got)
	}
	s = open(t, Config{URL: r.URL, AllowPrivate: true, Secrets: secret, Batch: true})
	seen := map[string]string{}
	for _, ids := range []string{"a", "a b", "a b c", "a x c", "b", "ab c", "a bc"} {
		var events []onewrite.Event
		for _, id := range strings.Fields(ids) {
			events = append(events, order(id))
		}
		write(t, s, events...)
		first := r.last().Header.Get("webhook-id")
		write(t, s, events...)
		if again := r.last().Header.Get("webhook-id"); again != first {
			t.Errorf("%q: the repeat has another webhook-id", ids)
		}
		if other, ok := seen[first]; ok {
			t.Errorf("%q and %q have one webhook-id", ids, other)
		}
		seen[first] = ids
	}
}

// The official CloudEvents library reads both modes.
func TestCloudEvents(t *testing.T) {
	for _, batch := range []bool{false, true} {
		r := newReceiver(t)
		s := open(t, Config{URL: r.URL, AllowPrivate: true, Batch: batch})
		write(t, s, order("1"))
		req := r.last()
		if batch != cehttp.IsHTTPBatch(req.Header) {
			t.Fatalf("batch %v: content type %q", batch, req.Header.Get("Content-Type"))
		}
		var e *event.Event
		var err error
		if batch {
			es, err := cehttp.NewEventsFromHTTPRequest(req)
			if err != nil || len(es) != 1 {
				t.Fatal(len(es), err)
			}
			e = &es[0]
		} else if e, err = cehttp.NewEventFromHTTPRequest(req); err != nil {
			t.Fatal(err)
		}
		if err := e.Validate(); err != nil {
			t.Error(err)
		}
		want := order("1")
		if e.ID() != "1" || e.Source() != "/shop" || e.Type() != want.Type || !e.Time().Equal(want.Time) ||
			e.DataContentType() != want.ContentType || !bytes.Equal(e.Data(), want.Data) {
			t.Errorf("batch %v: %v", batch, e)
		}
		for name, value := range map[string]any{"topic": want.Topic, "sequence": "0042", "partitionkey": want.Key, "tenant": "a b"} {
			if batch || value == "0042" || value == want.Topic { // the library does not unescape header values
				if got := e.Extensions()[name]; got != value {
					t.Errorf("batch %v: %s is %v, want %v", batch, name, got, value)
				}
			}
		}
	}
}

// An event brings its own headers, and none that belong to the sender or the
// connection, in whatever letters.
func TestHeadersOfEvents(t *testing.T) {
	r := newReceiver(t)
	s := open(t, Config{URL: r.URL, AllowPrivate: true, Secrets: []string{newSecret()},
		Headers: map[string]string{"authorization": "Bearer right", "X-Fixed": "right"}})
	e := order("1")
	e.Header = map[string]string{
		"Authorization": "Bearer wrong", "AUTHORIZATION": "wrong", "Host": "wrong.example", "Content-Length": "1", "content-type": "wrong/type",
		"Transfer-Encoding": "chunked", "Connection": "close", "Keep-Alive": "1", "Te": "gzip", "Trailer": "x", "Upgrade": "h2c",
		"Proxy-Authorization": "wrong", "Proxy-Connection": "x", "Expect": "100-continue", "Content-Encoding": "gzip", "Cookie": "wrong=1",
		"Webhook-Id": "wrong", "webhook-signature": "v1,wrong", "Ce-Id": "wrong", "CE-TYPE": "wrong", "x-fixed": "wrong",
		"Bad Name": "x", "Bäd": "x", "User-Agent": "wrong",
		"X-Line": "a\r\nX-Injected: 1", "X-Good": "plain; text=\"1\"", "X-Unicode": "ä", "X-Idempotency": "k",
	}
	// The receiver checks that each header comes once and that the body is whole.
	write(t, s, e)
	req := r.last()
	for name, want := range map[string]string{
		"Authorization": "Bearer right", "X-Fixed": "right", "Content-Type": "application/json", "Webhook-Id": "1",
		"Ce-Id": "1", "Ce-Type": "order.placed", "User-Agent": "onewrite",
		"X-Good": "plain; text=\"1\"", "X-Line": "a%0D%0AX-Injected:%201", "X-Unicode": "%C3%A4", "X-Idempotency": "k",
		"X-Injected": "", "Cookie": "", "Expect": "", "Upgrade": "", "Te": "", "Content-Encoding": "", "Proxy-Authorization": "",
		"Proxy-Connection": "", "Keep-Alive": "", "Idempotency-Key": "", "Accept-Encoding": "",
	} {
		if got := req.Header.Get(name); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
	if req.Host != strings.TrimPrefix(r.URL, "http://") || req.ContentLength != int64(len(e.Data)) || len(req.TransferEncoding) != 0 {
		t.Errorf("host %q, length %d, encoding %q", req.Host, req.ContentLength, req.TransferEncoding)
	}
}

func TestNewSaysTheCure(t *testing.T) {
	ok := Config{URL: "https://receiver.example/hook?token=canary", Secrets: []string{newSecret()}}
	if _, err := New(ok); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*Config){
		"set it to https":        func(c *Config) { c.URL = "" },
		"no http or https URL":   func(c *Config) { c.URL = "ftp://canary.example" },
		"is no http":             func(c *Config) { c.URL = "https://" },
		"url is no http":         func(c *Config) { c.URL = "https://a b/%zzcanary" },
		"write it as a header":   func(c *Config) { c.URL = "https://u:canary@receiver.example" },
		"from 1 to 65535":        func(c *Config) { c.URL = "https://receiver.example:99999" },
		"allow_private: true on": func(c *Config) { c.URL = "http://receiver.example" },
		"allow_private: true if": func(c *Config) { c.URL = "https://10.0.0.1" },
		"never called":           func(c *Config) { c.URL, c.AllowPrivate = "http://169.254.169.254/latest", true },
		"openssl rand":           func(c *Config) { c.Secrets = []string{"whsec_canary!"} },
		"a secret is empty":      func(c *Config) { c.Secrets = []string{""} },
		"sets the header":        func(c *Config) { c.Headers = map[string]string{"ce-id": "canary"} },
		"Content-Length itself":  func(c *Config) { c.Headers = map[string]string{"content-length": "canary"} },
		"is no header name":      func(c *Config) { c.Headers = map[string]string{"a b": "canary"} },
		"on one line":            func(c *Config) { c.Headers = map[string]string{"X-A": "canary\r\nX-B: 1"} },
		"timeout is negative":    func(c *Config) { c.Timeout = -1 },
		"remove tls": func(c *Config) {
			c.URL, c.AllowPrivate, c.TLS = "http://receiver.example", true, &tls.Config{MinVersion: tls.VersionTLS12}
		},
	} {
		c := ok
		change(&c)
		_, err := New(c)
		if err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("want %q, got %v", name, err)
		} else if strings.Contains(err.Error(), "canary") {
			t.Errorf("a secret is in: %v", err)
		}
	}
}

// The table of the package, row by row.
func TestAnswers(t *testing.T) {
	type want struct {
		is       error
		answered bool
	}
	table := map[int]want{410: {is: onewrite.ErrGone}}
	for _, status := range []int{300, 301, 302, 303, 304, 307, 308, 401, 403, 404, 405, 407, 408, 425, 429, 502, 503, 504, 600, 999} {
		table[status] = want{}
	}
	for _, status := range []int{400, 402, 406, 409, 411, 412, 413, 414, 415, 416, 417, 418, 422, 423, 424, 426, 428, 431, 451, 499} {
		table[status] = want{is: onewrite.ErrRejected}
	}
	for _, status := range []int{500, 501, 505, 507, 508, 511, 520, 599} {
		table[status] = want{answered: true}
	}
	var status, served atomic.Int64
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if served.Add(1) == 2 {
			w.Header().Set("Location", "https://elsewhere.example/path?token=canary")
			w.WriteHeader(int(status.Load()))
			_, _ = io.WriteString(w, "because\nof <this>")
		}
	}))
	defer server.Close()
	for _, batch := range []bool{false, true} {
		s := open(t, Config{URL: server.URL, AllowPrivate: true, Batch: batch})
		for code, want := range table {
			status.Store(int64(code))
			served.Store(0)
			if batch {
				served.Store(1)
			}
			n, err := s.Write(context.Background(), []onewrite.Event{order("1"), order("2"), order("3")})
			if batch && errors.Is(want.is, onewrite.ErrRejected) {
				want.is, want.answered = nil, true // it may be any of the three
			}
			if wantN := map[bool]int{false: 1, true: 0}[batch]; n != wantN || err == nil || served.Load() != 2 {
				t.Errorf("%d: Write = %d, %v after %d requests", code, n, err, served.Load())
				continue
			}
			for _, sentinel := range []error{onewrite.ErrGone, onewrite.ErrRejected, onewrite.ErrFenced} {
				if errors.Is(err, sentinel) != (sentinel == want.is) {
					t.Errorf("%d: Is(%v) is %v", code, sentinel, !(sentinel == want.is))
				}
			}
			var f interface{ Answered() bool }
			if !errors.As(err, &f) || f.Answered() != want.answered {
				t.Errorf("%d: Answered is not %v", code, want.answered)
			}
			if code != 304 && !strings.Contains(err.Error(), `"because\nof <this>"; `) || strings.Contains(err.Error(), "canary") {
				t.Errorf("%d: %v", code, err)
			}
		}
	}
	s := open(t, Config{URL: server.URL, AllowPrivate: true, Batch: true})
	status.Store(422)
	served.Store(1)
	if _, err := s.Write(context.Background(), []onewrite.Event{order("1")}); !errors.Is(err, onewrite.ErrRejected) {
		t.Errorf("a refused batch of one: %v", err)
	}
}

func TestRetryAfter(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for text, want := range map[string]time.Duration{
		"":                               0,
		"0":                              0,
		"7":                              7 * time.Second,
		"3600":                           time.Hour,
		"3601":                           time.Hour,
		"99999999999999999999":           time.Hour,
		"18446744073709551615":           time.Hour,
		"-5":                             0,
		"1.5":                            0,
		"soon":                           0,
		"Fri, 02 Jan 2026 03:05:05 GMT":  time.Minute,
		"Friday, 02-Jan-26 03:05:05 GMT": time.Minute,
		"Fri, 02 Jan 2026 03:00:00 GMT":  0,
		"Sat, 03 Jan 2026 03:04:05 GMT":  time.Hour,
	} {
		if got := retryAfter(text, now); got != want {
			t.Errorf("%q: %v, want %v", text, got, want)
		}
	}
	for status, want := range map[int]time.Duration{429: 7 * time.Second, 503: 7 * time.Second, 500: 0, 422: 0} {
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Retry-After", "7")
			w.WriteHeader(status)
		}))
		_, err := open(t, Config{URL: server.URL, AllowPrivate: true}).Write(context.Background(), []onewrite.Event{order("1")})
		var f interface{ RetryAfter() time.Duration }
		if !errors.As(err, &f) || f.RetryAfter() != want {
			t.Errorf("%d: %v, want %v", status, err, want)
		}
		server.Close()
	}
}

// A receiver that repeats all it was sent puts none of it into the error.
func TestErrorsKeepSecrets(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		body, _ := io.ReadAll(req.Body)
		w.WriteHeader(422)
		switch req.Header.Get("X-Part") {
		case "body":
			_, _ = w.Write(body)
		case "some":
			_, _ = fmt.Fprintf(w, "field card: %s is no number", body[9:25])
		case "url":
			_, _ = io.WriteString(w, "cannot POST "+req.RequestURI)
		case "head":
			_, _ = fmt.Fprint(w, req.Header)
		default:
			_, _ = io.WriteString(w, req.Header.Get(req.Header.Get("X-Part")))
		}
	}))
	defer server.Close()
	s := open(t, Config{URL: server.URL + "/hook/canary-path?token=canary-query", AllowPrivate: true,
		Headers: map[string]string{"Authorization": "Bearer canary-token", "X-Short": "canary"}, Secrets: []string{newSecret()}})
	for _, part := range []string{"body", "some", "url", "head", "Authorization", "X-Short", "X-Own"} {
		e := order("1")
		e.Data = []byte(`{"card":"canary-4111-1111"}`)
		e.Header = map[string]string{"X-Part": part, "X-Own": "canary-header"}
		_, err := s.Write(context.Background(), []onewrite.Event{e})
		if !errors.Is(err, onewrite.ErrRejected) || !strings.Contains(err.Error(), "***") && part != "head" || strings.Contains(err.Error(), "canary") {
			t.Errorf("%s: %v", part, err)
		}
	}
	server.Close()
	if _, err := s.Write(context.Background(), []onewrite.Event{order("1")}); err == nil || strings.Contains(err.Error(), "canary") {
		t.Errorf("of a server that is down: %v", err)
	}
}

// Connections are kept, also when answers have a body, and one that the receiver
// has closed meanwhile costs no failure.
func TestConnectionsAreKept(t *testing.T) {
	var conns atomic.Int64
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write(make([]byte, 30<<10))
	}))
	server.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		if state == http.StateNew {
			conns.Add(1)
		}
	}
	server.Start()
	defer server.Close()
	s := open(t, Config{URL: server.URL, AllowPrivate: true})
	for range 20 {
		write(t, s, order("1"))
	}
	if n := conns.Load(); n != 1 {
		t.Errorf("%d connections for 20 requests", n)
	}
	for range 20 {
		server.CloseClientConnections()
		write(t, s, order("1"))
	}
}

// TLS is verified, and at least 1.2; HTTP/2 is used where it is offered.
func TestTLS(t *testing.T) {
	var proto atomic.Value
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(_ http.ResponseWriter, req *http.Request) { proto.Store(req.Proto) }))
	server.EnableHTTP2 = true
	server.Config.ErrorLog = log.New(io.Discard, "", 0)
	server.StartTLS()
	defer server.Close()
	pool := x509.NewCertPool()
	pool.AddCert(server.Certificate())

	s := open(t, Config{URL: server.URL, AllowPrivate: true, TLS: &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS10}})
	for range 3 {
		write(t, s, order("1"))
	}
	if proto.Load() != "HTTP/2.0" {
		t.Errorf("protocol %v", proto.Load())
	}
	_, err := open(t, Config{URL: server.URL, AllowPrivate: true}).Write(context.Background(), []onewrite.Event{order("1")})
	if err == nil || !strings.Contains(err.Error(), "tls: {ca:") {
		t.Errorf("of an unknown authority: %v", err)
	}
	elsewhere := strings.Replace(server.URL, "127.0.0.1", "localhost", 1)
	_, err = open(t, Config{URL: elsewhere, AllowPrivate: true, TLS: &tls.Config{RootCAs: pool}}).Write(context.Background(), []onewrite.Event{order("1")})
	if err == nil || !strings.Contains(err.Error(), "certificate of the receiver") {
		t.Errorf("of another name: %v", err)
	}
	plain := httptest.NewServer(http.NotFoundHandler())
	defer plain.Close()
	_, err = open(t, Config{URL: strings.Replace(plain.URL, "http:", "https:", 1), AllowPrivate: true}).Write(context.Background(), []onewrite.Event{order("1")})
	if err == nil || !strings.Contains(err.Error(), "check the scheme") {
		t.Errorf("of a server without TLS: %v", err)
	}
	old := httptest.NewUnstartedServer(http.NotFoundHandler())
	old.Config.ErrorLog = server.Config.ErrorLog
	old.TLS = &tls.Config{MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11}
	old.StartTLS()
	defer old.Close()
	_, err = open(t, Config{URL: old.URL, AllowPrivate: true, TLS: &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS10}}).Write(context.Background(), []onewrite.Event{order("1")})
	if err == nil || !strings.Contains(err.Error(), "protocol version") {
		t.Errorf("of a server with TLS 1.1: %v", err)
	}
}

// Close ends a Write that waits, and leaves no goroutine behind; see also the
// conformance suite.
func TestCloseEndsWrites(t *testing.T) {
	arrived, done := make(chan struct{}), make(chan error)
	server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, req *http.Request) {
		_, _ = io.ReadAll(req.Body)
		close(arrived)
		<-req.Context().Done()
	}))
	defer server.Close()
	s := open(t, Config{URL: server.URL, AllowPrivate: true})
	go func() {
		_, err := s.Write(context.Background(), []onewrite.Event{order("1")})
		done <- err
	}()
	<-arrived
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if err := <-done; err == nil || errors.Is(err, onewrite.ErrRejected) {
		t.Errorf("Write ended by Close: %v", err)
	}
}

// The same event is the same request, but for the time and the signature.
func TestRepeatIsTheSame(t *testing.T) {
	r := newReceiver(t)
	s := open(t, Config{URL: r.URL, AllowPrivate: true, Secrets: []string{newSecret()}})
	var texts []string
	for range 2 {
		write(t, s, order("1"))
		h := r.last().Header.Clone()
		h.Del("Webhook-Timestamp")
		h.Del("Webhook-Signature")
		body, _ := io.ReadAll(r.last().Body)
		texts = append(texts, fmt.Sprint(h, string(body)))
	}
	if texts[0] != texts[1] {
		t.Errorf("first %s\nthen %s", texts[0], texts[1])
	}
}

func BenchmarkWrite(b *testing.B) {
	server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, req *http.Request) { _, _ = io.Copy(io.Discard, req.Body) }))
	defer server.Close()
	s, err := New(Config{URL: server.URL, AllowPrivate: true, Secrets: []string{newSecret()}})
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close() //nolint:errcheck // it returns nil
	events := []onewrite.Event{order("1")}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := s.Write(context.Background(), events); err != nil {
			b.Fatal(err)
		}
	}
}
