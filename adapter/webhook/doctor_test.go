package webhook

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/onewrite/onewrite/internal/diagnosis"
)

// canary is in everything that must not be told or sent.
const canary = "canary-secret-word"

// examined examines a receiver; every finding must be whole and tell no secret.
func examined(t *testing.T, c Config) []diagnosis.Finding {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	found := Examine(ctx, c)
	for _, f := range found {
		if f.Check == "" || f.Text == "" || strings.Contains(f.Text+f.Cure, "\n") || f.Severity > diagnosis.OK && f.Cure == "" {
			t.Errorf("not a whole finding of one line: %+v", f)
		}
	}
	if strings.Contains(fmt.Sprintf("%+v", found), canary) {
		t.Errorf("a secret is told: %+v", found)
	}
	return found
}

func wants(t *testing.T, found []diagnosis.Finding, s diagnosis.Severity, check, holds string) {
	t.Helper()
	var b strings.Builder
	for _, f := range found {
		if f.Severity == s && f.Check == check && strings.Contains(f.Cure+"\x00"+f.Text, holds) {
			return
		}
		fmt.Fprintf(&b, "%-8s %-10s %s | %s\n", f.Severity, f.Check, f.Text, f.Cure)
	}
	t.Errorf("no %v of %q with %q in\n%s", s, check, holds, b.String())
}

// authority is a certificate for 127.0.0.1 that ends after a time, and who trusts it.
func authority(t *testing.T, lasts time.Duration) (tls.Certificate, *tls.Config) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-48 * time.Hour), NotAfter: time.Now().Add(lasts),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(cert)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, &tls.Config{RootCAs: pool}
}

// endpoint answers as it is told, and looks at what it is sent.
func endpoint(t *testing.T, lasts time.Duration, answer http.HandlerFunc) Config {
	t.Helper()
	cert, trust := authority(t, lasts)
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodHead || r.URL.Path != "/hook" || strings.Contains(fmt.Sprintf("%v %v", r.URL, r.Header), canary) || r.Header.Get("Webhook-Signature") != "" {
			t.Errorf("it was sent %s %s %v", r.Method, r.URL, r.Header)
		}
		answer(w, r)
	}))
	s.TLS = &tls.Config{Certificates: []tls.Certificate{cert}}
	s.StartTLS()
	t.Cleanup(s.Close)
	return Config{URL: s.URL + "/hook?key=" + canary, AllowPrivate: true, Secrets: []string{canary}, TLS: trust,
		Headers: map[string]string{"Authorization": "Bearer " + canary}}
}

func status(code int) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(code) }
}

const month = 31 * 24 * time.Hour

func TestExamineAnswers(t *testing.T) {
	warnings := 0
	for code, want := range map[int]diagnosis.Severity{
		200: diagnosis.OK, 202: diagnosis.OK, 204: diagnosis.OK, 400: diagnosis.OK, 401: diagnosis.OK, 403: diagnosis.OK, 405: diagnosis.OK, 415: diagnosis.OK, 429: diagnosis.OK, 501: diagnosis.OK,
		404: diagnosis.Warning, 410: diagnosis.Warning, 301: diagnosis.Warning, 308: diagnosis.Warning, 500: diagnosis.Warning, 502: diagnosis.Warning, 503: diagnosis.Warning,
	} {
		found := examined(t, endpoint(t, month, status(code)))
		wants(t, found, want, "answer", fmt.Sprint(code))
		for _, f := range found {
			if f.Severity > diagnosis.OK && f.Check != "answer" {
				t.Errorf("%d: %+v", code, f)
			}
		}
		if want == diagnosis.Warning {
			warnings++
		}
	}
	if warnings != 7 {
		t.Errorf("%d warnings", warnings)
	}
	found := examined(t, endpoint(t, month, status(200)))
	for check, holds := range map[string]string{"address": "127.0.0.1", "tls": "TLS 1.3, certificate good until ", "secret": "signed", "clock": "within a minute"} {
		wants(t, found, diagnosis.OK, check, holds)
	}
}

// TestExamine breaks one thing after the other and finds it.
func TestExamine(t *testing.T) {
	closed := func(t *testing.T) string {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		return l.Addr().String()
	}
	name := func(texts ...string) *net.Resolver { return nameServer(func(string) []string { return texts }) }
	dated := func(off time.Duration) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Date", time.Now().Add(off).UTC().Format(http.TimeFormat))
		}
	}
	cases := []struct {
		name     string
		config   func(t *testing.T) Config
		severity diagnosis.Severity
		check    string
		holds    string
	}{
		{"no url", func(*testing.T) Config { return Config{URL: "receiver"} }, diagnosis.Problem, "url", "set it to https://receiver.example/events"},
		{"a private address", func(*testing.T) Config { return Config{URL: "https://10.0.0.1/"} }, diagnosis.Problem, "url", "allow_private: true"},
		{"http", func(*testing.T) Config { return Config{URL: "http://receiver.example/"} }, diagnosis.Problem, "url", "set https"},
		{"a name without address", func(*testing.T) Config {
			return Config{URL: "https://receiver.example/", resolver: name()}
		}, diagnosis.Problem, "name", "getent hosts receiver.example"},
		{"a private name", func(*testing.T) Config {
			return Config{URL: "https://receiver.example/", resolver: name("192.168.0.7")}
		}, diagnosis.Problem, "address", "allow_private: true"},
		{"a name of the cloud", func(*testing.T) Config {
			return Config{URL: "https://receiver.example/", AllowPrivate: true, resolver: name("169.254.169.254")}
		}, diagnosis.Problem, "address", "set url to the receiver"},
		{"a half private name", func(t *testing.T) Config {
			return Config{URL: "https://receiver.example:" + port(closed(t)), AllowPrivate: true, resolver: name("127.0.0.1", "169.254.169.254")}
		}, diagnosis.Warning, "address", "receiver.example is also at 169.254.169.254"},
		{"nobody there", func(t *testing.T) Config {
			return Config{URL: "https://" + closed(t) + "/" + canary, AllowPrivate: true}
		}, diagnosis.Problem, "connection", "curl -sS -I https://127.0.0.1"},
		{"no authority", func(t *testing.T) Config {
			c := endpoint(t, month, status(200))
			c.TLS = nil
			return c
		}, diagnosis.Problem, "tls", "tls: {ca: ca.pem}"},
		{"another name", func(t *testing.T) Config {
			c := endpoint(t, month, status(200))
			c.TLS.ServerName = "receiver.example"
			return c
		}, diagnosis.Problem, "tls", "renew or correct the certificate"},
		{"an old certificate", func(t *testing.T) Config { return endpoint(t, -time.Hour, status(200)) }, diagnosis.Problem, "tls", "renew or correct the certificate"},
		{"soon an old certificate", func(t *testing.T) Config { return endpoint(t, 13*24*time.Hour+time.Hour, status(200)) }, diagnosis.Warning, "tls", "ends in 13 days"},
		{"any certificate", func(t *testing.T) Config {
			c := endpoint(t, month, status(200))
			c.TLS = &tls.Config{InsecureSkipVerify: true}
			return c
		}, diagnosis.Warning, "tls", "tls: {ca: ca.pem}"},
		{"no TLS there", func(t *testing.T) Config {
			return Config{URL: "https://" + httptestHTTP(t, status(200)), AllowPrivate: true}
		}, diagnosis.Problem, "tls", "check the scheme and the port"},
		{"plain http", func(t *testing.T) Config {
			return Config{URL: "http://" + httptestHTTP(t, status(200)) + "/hook", AllowPrivate: true}
		}, diagnosis.OK, "tls", "none needed: the receiver is on this machine"},
		{"plain http to another machine", func(t *testing.T) Config {
			return Config{URL: "http://" + httptestAt(t, outside(t), status(200)) + "/hook", AllowPrivate: true}
		}, diagnosis.Warning, "tls", "url: https://"},
		{"no secret", func(t *testing.T) Config {
			c := endpoint(t, month, status(200))
			c.Secrets = nil
			return c
		}, diagnosis.Warning, "secret", "(umask 077; openssl rand -hex 32 > webhook.key)"},
		{"a clock behind", func(t *testing.T) Config { return endpoint(t, month, dated(-2*time.Minute)) }, diagnosis.Warning, "clock", "behind this machine's"},
		{"a clock ahead", func(t *testing.T) Config { return endpoint(t, month, dated(3*time.Minute)) }, diagnosis.Warning, "clock", "ahead of this machine's"},
		{"a clock that is near", func(t *testing.T) Config { return endpoint(t, month, dated(-30*time.Second)) }, diagnosis.OK, "clock", "within a minute"},
	}
	if len(cases) < 19 {
		t.Fatalf("only %d cases", len(cases))
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			wants(t, examined(t, c.config(t)), c.severity, c.check, c.holds)
		})
	}
}

func port(addr string) string {
	_, p, _ := net.SplitHostPort(addr)
	return p
}

// httptestHTTP is a server without TLS.
func httptestHTTP(t *testing.T, answer http.HandlerFunc) string {
	return httptestAt(t, "127.0.0.1", answer)
}

func httptestAt(t *testing.T, host string, answer http.HandlerFunc) string {
	l, err := net.Listen("tcp", net.JoinHostPort(host, "0"))
	if err != nil {
		t.Fatal(err)
	}
	s := &httptest.Server{Listener: l, Config: &http.Server{Handler: answer}}
	s.Start()
	t.Cleanup(s.Close)
	return l.Addr().String()
}

// outside is an address of this machine that is not the loopback.
func outside(t *testing.T) string {
	addresses, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range addresses {
		if n, ok := a.(*net.IPNet); ok && n.IP.To4() != nil && !n.IP.IsLoopback() && !n.IP.IsLinkLocalUnicast() {
			return n.IP.String()
		}
	}
	t.Skip("this machine has no address but the loopback")
	return ""
}

// TestExamineSlow: a receiver that keeps silent does not hold it up.
func TestExamineSlow(t *testing.T) {
	quit := make(chan struct{})
	c := endpoint(t, month, func(_ http.ResponseWriter, r *http.Request) {
		select {
		case <-quit:
		case <-r.Context().Done():
		}
	})
	defer close(quit)
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	wants(t, Examine(ctx, c), diagnosis.Problem, "answer", "curl -sS -I -m 60 https://127.0.0.1")
}
