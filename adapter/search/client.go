package search

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"
)

const (
	maxAnswer = 256 << 20 // bytes read of an answer; stored documents come in some
	maxWords  = 300       // bytes of what a server said that an error shows
)

// client talks to one server at a time. It follows no redirect, asks no proxy, and
// tries nothing twice.
type client struct {
	addresses []address
	at        int // the one that answered
	transport *http.Transport
	timeout   time.Duration
	health    string // the path that says how the server is
}

func newClient(c *Config, addresses []address) *client {
	t := &tls.Config{}
	if c.TLS != nil {
		t = c.TLS.Clone()
	}
	t.MinVersion = max(t.MinVersion, tls.VersionTLS12)
	health := map[bool]string{false: "/_cluster/health", true: "/health"}[c.meili]
	return &client{addresses: addresses, timeout: c.Timeout, health: health, transport: &http.Transport{
		DialContext:            (&net.Dialer{Timeout: c.Timeout, KeepAlive: 15 * time.Second}).DialContext,
		TLSClientConfig:        t,
		TLSHandshakeTimeout:    c.Timeout,
		DisableCompression:     true,
		MaxIdleConnsPerHost:    16,
		IdleConnTimeout:        50 * time.Second, // below the minute after which many proxies hang up
		MaxResponseHeaderBytes: 64 << 10,
	}}
}

func (c *client) close() { c.transport.CloseIdleConnections() }

// host is what of the address may be shown.
func (c *client) host() string { return c.addresses[c.at].url.Host }

// origin is the address for a command that a person copies.
func (c *client) origin() string {
	u := c.addresses[c.at].url
	return u.Scheme + "://" + u.Host + u.Path
}

// answer is what a server said.
type answer struct {
	status int
	header http.Header
	body   []byte
}

func (a *answer) ok() bool { return a.status/100 == 2 }

// call sends a request, whose path is escaped already, and reads the whole answer.
// The error is that there was none.
func (c *client) call(ctx context.Context, method, path string, body []byte) (*answer, error) {
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	a := &c.addresses[c.at]
	req, err := http.NewRequestWithContext(ctx, method, c.origin()+path, bytes.NewReader(body))
	if err != nil {
		return nil, fmt.Errorf("search: %w", err)
	}
	req.Header.Set("User-Agent", "onewrite")
	req.Header.Set("Accept", "application/json")
	if len(body) > 0 {
		req.Header.Set("Content-Type", "application/json") // of several lines too
	}
	if a.auth != "" {
		req.Header.Set("Authorization", a.auth)
	}
	resp, err := c.transport.RoundTrip(req)
	if err != nil {
		return nil, c.silent(ctx, err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	if err != nil {
		return nil, c.silent(ctx, err)
	}
	if len(text) > maxAnswer {
		return nil, fmt.Errorf("search: the answer of %s is larger than 256 MiB", c.host())
	}
	return &answer{resp.StatusCode, resp.Header, text}, nil
}

func (c *client) silent(ctx context.Context, err error) error {
	var record tls.RecordHeaderError
	var cert *tls.CertificateVerificationError
	switch {
	case errors.As(err, &record):
		return fmt.Errorf("search: %s does not speak TLS: %w; write http:// in url, or switch TLS on at the server", c.host(), err)
	case errors.As(err, &cert):
		return fmt.Errorf("search: the certificate of %s is not trusted: %w; name its authority: tls: {ca: http_ca.crt}", c.host(), err)
	case errors.Is(err, context.DeadlineExceeded) && ctx.Err() != nil:
		return fmt.Errorf("search: no answer of %s within %v: %w; look at the server: curl -sS %s%s", c.host(), c.timeout, err, c.origin(), c.health)
	}
	return fmt.Errorf("search: no answer of %s: %w; look at the server: curl -sS %s%s", c.host(), err, c.origin(), c.health)
}

// problem is the error of an answer or of one item of it, as the server tells it.
type problem struct {
	Type   string   `json:"type"`
	Reason string   `json:"reason"`
	Cause  *problem `json:"caused_by"`
}

// String is type and reason, and the type of the innermost cause, in one line. The
// reasons of causes are left out: they repeat the values of documents.
func (p *problem) String() string {
	text := p.Type + ": " + p.Reason
	inner := p
	for range 8 {
		if inner.Cause == nil {
			break
		}
		inner = inner.Cause
	}
	if inner.Type != p.Type {
		text += " (" + inner.Type + ")"
	}
	return words(text)
}

// has reports whether the problem, or a cause of it, is of a type.
func (p *problem) has(kind string) bool {
	for range 8 {
		if p == nil {
			return false
		}
		if p.Type == kind {
			return true
		}
		p = p.Cause
	}
	return false
}

// values are how the server begins to repeat what is in a document.
var values = []string{"Preview of field's value: ", "The prefix of the first immense term is: "}

// words makes a line of what a server said, without the values that it repeats.
func words(text string) string {
	for _, begin := range values {
		if before, after, found := strings.Cut(text, begin); found {
			end := strings.LastIndex(after, "'")
			text = before + begin + "***" + after[end+1:]
		}
	}
	text = strings.Join(strings.Fields(strings.ToValidUTF8(text, "?")), " ")
	if len(text) > maxWords {
		text = strings.ToValidUTF8(text[:maxWords], "") + "…"
	}
	return strings.TrimSuffix(text, ";")
}

// problemOf reads the error of a whole answer.
func problemOf(a *answer) *problem {
	var whole struct {
		Error json.RawMessage `json:"error"`
	}
	p := &problem{}
	if json.Unmarshal(a.body, &whole) == nil && len(whole.Error) > 0 && json.Unmarshal(whole.Error, p) == nil && p.Type != "" {
		return p
	}
	var text string
	if json.Unmarshal(whole.Error, &text) == nil && text != "" {
		return &problem{Type: http.StatusText(a.status), Reason: text}
	}
	return &problem{Type: http.StatusText(a.status), Reason: strconv.Quote(words(string(a.body[:min(len(a.body), maxWords)])))}
}
