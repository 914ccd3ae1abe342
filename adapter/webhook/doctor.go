package webhook

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"time"

	"github.com/onewrite/onewrite/internal/diagnosis"
)

const (
	// soonExpired is how long a certificate has to be good for.
	soonExpired = 14 * 24 * time.Hour
	// maxSkew is how far the receiver's clock may be away: signatures carry a time.
	maxSkew = time.Minute
)

// Examine looks at a receiver and says what it finds; the caller adds the Subject.
// It resolves the name, connects as a delivery does, and sends one HEAD request to
// the path of the URL: without the query, headers, secrets and events.
func Examine(ctx context.Context, c Config) []diagnosis.Finding {
	e := &examiner{List: diagnosis.List{Prefix: "webhook: "}, c: c}
	e.run(ctx)
	return e.Found
}

type examiner struct {
	diagnosis.List
	c     Config
	local bool // every address that may be called is this machine's
}

func (e *examiner) run(ctx context.Context) {
	s, err := New(e.c)
	if err != nil {
		e.Failed("url", err)
		return
	}
	defer func() { _ = s.Close() }()
	if len(e.c.Secrets) == 0 {
		e.Add(diagnosis.Warning, "secret", "(umask 077; openssl rand -hex 32 > webhook.key) # then secret: ${file:webhook.key}, and the receiver gets the same", "there is none: the receiver cannot tell who calls")
	} else {
		e.Add(diagnosis.OK, "secret", "", "requests are signed")
	}
	if !e.addresses(ctx, s) {
		return
	}
	url := *s.url
	url.RawQuery = "" // it may hold a key
	req, err := http.NewRequestWithContext(ctx, http.MethodHead, url.String(), nil)
	if err != nil {
		e.Failed("answer", err)
		return
	}
	req.Header.Set("User-Agent", "onewrite")
	before := s.now()
	resp, err := s.transport.RoundTrip(req)
	after := s.now()
	if err != nil {
		e.unreached(ctx, s, err)
		return
	}
	_ = resp.Body.Close()
	e.encryption(s, resp.TLS)
	e.answer(s, resp, after.Sub(before))
	e.clock(resp, before, after)
}

// addresses resolves the name and asks the guard; false if nobody may be called.
func (e *examiner) addresses(ctx context.Context, s *Sink) bool {
	host := s.url.Hostname()
	ips := []netip.Addr{}
	if ip, err := netip.ParseAddr(host); err == nil {
		ips = append(ips, ip)
	} else {
		r := e.c.resolver
		if r == nil {
			r = net.DefaultResolver
		}
		if ips, err = r.LookupNetIP(ctx, "ip", host); err != nil {
			text := err.Error()
			var dns *net.DNSError
			if errors.As(err, &dns) {
				text = dns.Err
			}
			e.Add(diagnosis.Problem, "name", "getent hosts "+host, "%s cannot be resolved: %s", host, text)
			return false
		}
	}
	e.local = true
	var open, shut []string
	var why error
	for _, ip := range ips {
		if err := check(ip, e.c.AllowPrivate); err != nil {
			shut, why = append(shut, ip.Unmap().String()), err
		} else {
			open = append(open, ip.Unmap().String())
			e.local = e.local && ip.Unmap().IsLoopback()
		}
	}
	cure, reason := "allow_private: true", "which is not called: it is on a private network"
	var blocked *blockedError
	if errors.As(why, &blocked) && blocked.reach == never {
		cure, reason = "set url to the receiver", "which is never called: no receiver can be there"
	}
	switch {
	case len(shut) > 0 && len(open) > 0:
		e.Add(diagnosis.Warning, "address", cure, "%s is also at %s, %s", host, strings.Join(shut, ", "), reason)
	case len(shut) > 0:
		e.Add(diagnosis.Problem, "address", cure, "%s is at %s, %s", host, strings.Join(shut, ", "), reason)
	default:
		e.Add(diagnosis.OK, "address", "", "%s", strings.Join(open, ", "))
	}
	return len(open) > 0
}

// unreached says why no answer came.
func (e *examiner) unreached(ctx context.Context, s *Sink, err error) {
	var cert *tls.CertificateVerificationError
	var unknown x509.UnknownAuthorityError
	var record tls.RecordHeaderError
	switch {
	case ctx.Err() != nil, errors.Is(err, context.DeadlineExceeded):
		e.Add(diagnosis.Problem, "answer", fmt.Sprintf("curl -sS -I -m 60 %s", s.origin()), "%s does not answer in time", s.url.Host)
	case errors.As(err, &cert), errors.As(err, &unknown), errors.As(err, &record):
		e.Failed("tls", s.explain(err, nil, nil, nil))
	default:
		e.Failed("connection", s.explain(err, nil, nil, nil))
		if f := &e.Found[len(e.Found)-1]; strings.HasPrefix(f.Cure, "check that") {
			f.Cure = "curl -sS -I " + s.origin()
		}
	}
}

// origin is what of the URL may be shown.
func (s *Sink) origin() string { return s.url.Scheme + "://" + s.url.Host }

// encryption looks at the certificate of the connection that was made.
func (e *examiner) encryption(s *Sink, state *tls.ConnectionState) {
	if state == nil && e.local {
		e.Add(diagnosis.OK, "tls", "", "none, and none needed: the receiver is on this machine")
		return
	}
	if state == nil {
		e.Add(diagnosis.Warning, "tls", "url: https://"+s.url.Host+"/…", "none: whoever is on the way can read and change events")
		return
	}
	version := tls.VersionName(state.Version)
	if e.c.TLS != nil && e.c.TLS.InsecureSkipVerify {
		e.Add(diagnosis.Warning, "tls", "tls: {ca: ca.pem}", "%s, but any certificate is accepted: whoever is on the way can read and change events", version)
		return
	}
	until := expiry(state)
	if left := until.Sub(s.now()); left < soonExpired {
		e.Add(diagnosis.Warning, "tls", fmt.Sprintf("openssl s_client -connect %s -servername %s </dev/null | openssl x509 -noout -enddate", hostPort(s), s.url.Hostname()),
			"the certificate ends in %d days, on %s; then nothing is delivered: renew it", int(left.Hours()/24), until.UTC().Format(time.DateOnly))
		return
	}
	e.Add(diagnosis.OK, "tls", "", "%s, certificate good until %s", version, until.UTC().Format(time.DateOnly))
}

// expiry is when the last chain of certificates that can be followed ends.
func expiry(state *tls.ConnectionState) (last time.Time) {
	for _, chain := range state.VerifiedChains {
		until := chain[0].NotAfter
		for _, c := range chain {
			if c.NotAfter.Before(until) {
				until = c.NotAfter
			}
		}
		if until.After(last) {
			last = until
		}
	}
	return last
}

func hostPort(s *Sink) string {
	port := s.url.Port()
	if port == "" {
		port = "443"
	}
	return net.JoinHostPort(s.url.Hostname(), port)
}

// answer judges the status. A receiver of POST requests need not know HEAD.
func (e *examiner) answer(s *Sink, resp *http.Response, took time.Duration) {
	status := strings.TrimSpace(fmt.Sprint(resp.StatusCode, " ", http.StatusText(resp.StatusCode)))
	switch code := resp.StatusCode; {
	case code == http.StatusNotFound || code == http.StatusGone:
		e.Add(diagnosis.Warning, "answer", "set url to where the receiver takes POST requests", "%s to a HEAD request: is the path right?", status)
	case code/100 == 3:
		e.Add(diagnosis.Warning, "answer", "set url to the final one: curl -sS -I "+s.origin(), "%s: redirects are not followed", status)
	case code >= 500 && code != http.StatusNotImplemented:
		e.Add(diagnosis.Warning, "answer", "look into the log of the receiver", "%s to a HEAD request", status)
	default:
		e.Add(diagnosis.OK, "answer", "", "%s to a HEAD request, in %v", status, took.Round(time.Millisecond))
	}
}

// clock compares the receiver's clock, which says whole seconds, with this machine's.
func (e *examiner) clock(resp *http.Response, before, after time.Time) {
	its, err := http.ParseTime(resp.Header.Get("Date"))
	if err != nil {
		return // it need not tell
	}
	skew := max(its.Sub(after), before.Sub(its.Add(time.Second)))
	if skew <= maxSkew {
		e.Add(diagnosis.OK, "clock", "", "within a minute of this machine's")
		return
	}
	way := "behind"
	if its.After(after) {
		way = "ahead of"
	}
	e.Add(diagnosis.Warning, "clock", "timedatectl set-ntp true", "the receiver's clock is %v %s this machine's: it may refuse signatures, which carry a time", skew.Round(time.Second), way)
}
