package webhook

import (
	"context"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/onewrite/onewrite"
)

const (
	defaultTimeout = 15 * time.Second
	maxHeader      = 64 << 10 // bytes of an answer's header
	maxBody        = 64 << 10 // bytes read of an answer's body
	maxIdle        = 1024     // connections kept for the next requests
	// idleTimeout is below the minute after which many load balancers hang up.
	idleTimeout = 50 * time.Second
	// bodyPatience is the wait for the body of an answer whose status is known.
	bodyPatience = time.Second
)

// Config says whom to call and how.
type Config struct {
	// URL of the receiver: https, or http with AllowPrivate; without user name.
	URL string
	// Secrets sign every request: "whsec_" and base64, or any other text, whose
	// bytes are the key. None: requests are not signed.
	Secrets []string
	// AllowPrivate admits http, loopback and private addresses.
	AllowPrivate bool
	// Timeout bounds a request, from resolving the name to the answer's header;
	// default 15 s.
	Timeout time.Duration
	// Headers are sent with every request.
	Headers map[string]string
	// TLS holds certificates, where the system's do not do; the least version is
	// 1.2 in any case.
	TLS *tls.Config
	// Batch sends all events of a Write in one request.
	Batch bool
	// Logger is told when the receiver asks for no more; nil is silent.
	Logger *slog.Logger

	resolver *net.Resolver    // for tests; nil is the system's
	now      func() time.Time // for tests
}

// Sink posts events to one URL. Its methods may be called by several goroutines
// at once.
type Sink struct {
	url       *url.URL
	header    http.Header // of every request; never changed
	secrets   []string    // texts that no error may repeat
	keys      [][]byte
	timeout   time.Duration
	batch     bool
	log       *slog.Logger
	now       func() time.Time
	transport *http.Transport

	closing context.Context // ends with Close
	end     context.CancelFunc
	mu      sync.Mutex
	closed  bool           // under mu
	writes  sync.WaitGroup // grows under mu while not closed
}

// New makes a sink; it calls nobody yet. The error names what can never work in
// the configuration, and the cure.
func New(c Config) (*Sink, error) {
	u, err := parseURL(c.URL, c.AllowPrivate)
	if err != nil {
		return nil, err
	}
	if c.TLS != nil && u.Scheme == "http" {
		return nil, errors.New("webhook: TLS does not go with an http URL; set url to https://…, or remove tls")
	}
	if c.Timeout < 0 {
		return nil, errors.New("webhook: timeout is negative; remove it for the default of 15s")
	}
	s := &Sink{url: u, timeout: c.Timeout, batch: c.Batch, log: c.Logger, now: c.now}
	if s.timeout == 0 {
		s.timeout = defaultTimeout
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	if s.now == nil {
		s.now = time.Now
	}
	if s.keys, err = parseSecrets(c.Secrets); err != nil {
		return nil, err
	}
	if s.header, err = baseHeader(c.Headers); err != nil {
		return nil, err
	}
	s.secrets = secretTexts(c.Secrets, s.keys, slices.Collect(maps.Values(c.Headers)), u)
	s.closing, s.end = context.WithCancel(context.Background())
	s.transport = s.newTransport(c)
	return s, nil
}

func parseURL(text string, allowPrivate bool) (*url.URL, error) {
	u, err := url.Parse(text)
	switch {
	case err != nil, u.Scheme != "https" && u.Scheme != "http", u.Hostname() == "":
		return nil, errors.New("webhook: url is no http or https URL; set it to https://receiver.example/events")
	case u.User != nil:
		return nil, errors.New("webhook: url holds a user name or password; write it as a header: Authorization")
	case u.Scheme == "http" && !allowPrivate:
		return nil, errors.New("webhook: url is http, which anyone between can read; set https, or allow_private: true on your own network")
	}
	if p := u.Port(); p != "" {
		if n, err := strconv.Atoi(p); err != nil || n < 1 || n > 65535 {
			return nil, fmt.Errorf("webhook: port %s of url is none; set one from 1 to 65535", p)
		}
	}
	if ip, err := netip.ParseAddr(u.Hostname()); err == nil {
		if err := check(ip, allowPrivate); err != nil {
			return nil, fmt.Errorf("webhook: %w", err)
		}
	}
	u.Fragment, u.RawFragment = "", ""
	return u, nil
}

func parseSecrets(texts []string) ([][]byte, error) {
	var keys [][]byte
	for _, text := range texts {
		key := []byte(text)
		if coded, ok := strings.CutPrefix(text, "whsec_"); ok {
			var err error
			if key, err = base64.StdEncoding.DecodeString(coded); err != nil {
				return nil, errors.New("webhook: a secret begins with whsec_, but no base64 follows; make one with: echo whsec_$(openssl rand -base64 32)")
			}
		}
		if len(key) == 0 {
			return nil, errors.New("webhook: a secret is empty; make one with: echo whsec_$(openssl rand -base64 32)")
		}
		keys = append(keys, key)
	}
	return keys, nil
}

// baseHeader checks the headers of the configuration. The names in them are
// canonical, so that an event cannot bring the same header in other letters.
func baseHeader(headers map[string]string) (http.Header, error) {
	h := http.Header{"User-Agent": {"onewrite"}}
	for name, value := range headers {
		key := http.CanonicalHeaderKey(name)
		switch {
		case !isToken(name):
			return nil, fmt.Errorf("webhook: %q is no header name; use letters, digits and -", name)
		case ownHeader(key):
			return nil, fmt.Errorf("webhook: onewrite sets the header %s itself; remove it from headers", key)
		case !isHeaderValue(value):
			return nil, fmt.Errorf("webhook: the value of header %s cannot be sent; write it on one line of plain ASCII", key)
		}
		h[key] = []string{value}
	}
	return h, nil
}

func (s *Sink) newTransport(c Config) *http.Transport {
	d := &net.Dialer{Timeout: s.timeout, KeepAlive: 15 * time.Second, Control: control(c.AllowPrivate), Resolver: c.resolver}
	t := &tls.Config{}
	if c.TLS != nil {
		t = c.TLS.Clone()
	}
	t.MinVersion = max(t.MinVersion, tls.VersionTLS12)
	return &http.Transport{
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			ctx, cancel := context.WithCancel(ctx)
			defer cancel()
			defer context.AfterFunc(s.closing, cancel)()
			return d.DialContext(ctx, network, address)
		},
		Proxy:                  nil, // not even one of the environment
		TLSClientConfig:        t,
		TLSHandshakeTimeout:    s.timeout,
		ForceAttemptHTTP2:      true,
		HTTP2:                  &http.HTTP2Config{SendPingTimeout: s.timeout, PingTimeout: 5 * time.Second},
		DisableCompression:     true, // so nothing is unpacked
		MaxIdleConns:           maxIdle,
		MaxIdleConnsPerHost:    maxIdle,
		IdleConnTimeout:        idleTimeout,
		MaxResponseHeaderBytes: maxHeader,
	}
}

// Write posts the events one after the other, or in one request with Batch, and
// returns how many the receiver has taken. What the errors mean says the table
// of the package. One that asks for a pause has RetryAfter() time.Duration; one
// of a receiver that failed on the event has Answered() bool.
func (s *Sink) Write(ctx context.Context, events []onewrite.Event) (n int, err error) {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return 0, fmt.Errorf("webhook: %w", os.ErrClosed)
	}
	s.writes.Add(1)
	s.mu.Unlock()
	defer s.writes.Done()
	if s.batch && len(events) > 0 {
		if err := s.postBatch(ctx, events); err != nil {
			return 0, err
		}
		return len(events), nil
	}
	for n = range events {
		if err := s.postEvent(ctx, events[n:n+1]); err != nil {
			return n, err
		}
	}
	return len(events), nil
}

// Close ends the requests under way, whose Writes return an error, and closes
// all connections. It may be called again.
func (s *Sink) Close() error {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.end()
	s.writes.Wait()
	s.transport.CloseIdleConnections()
	return nil
}
