package webhook

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/onewrite/onewrite"
)

// maxRetryAfter bounds the pause that a receiver can ask for.
const maxRetryAfter = time.Hour

// failure is an error with what the pipeline asks errors for.
type failure struct {
	text     string
	cause    error // a sentinel, what went wrong below, or nil
	answered bool
	after    time.Duration
}

func (f *failure) Error() string             { return f.text }
func (f *failure) Unwrap() error             { return f.cause }
func (f *failure) Answered() bool            { return f.answered }
func (f *failure) RetryAfter() time.Duration { return f.after }

// refused makes the error of an answer that is not 2xx. h, body and events are what
// was sent.
func (s *Sink) refused(resp *http.Response, cancel context.CancelFunc, h http.Header, body []byte, events []onewrite.Event) error {
	said := readBody(resp, cancel, make([]byte, 512))
	f, cure := verdict(resp.StatusCode)
	if len(events) > 1 && errors.Is(f.cause, onewrite.ErrRejected) {
		f.cause, f.answered = nil, true
	}
	switch resp.StatusCode {
	case http.StatusTooManyRequests, http.StatusServiceUnavailable:
		f.after = retryAfter(resp.Header.Get("Retry-After"), s.now())
	case http.StatusGone:
		s.log.Warn("the receiver asked for no more events", "host", s.url.Host)
	}
	status := strings.TrimSpace(fmt.Sprint(resp.StatusCode, " ", http.StatusText(resp.StatusCode)))
	if resp.StatusCode/100 == 3 {
		if to, err := resp.Location(); err == nil {
			status += " to " + (&url.URL{Scheme: to.Scheme, Host: to.Host}).String()
		}
	}
	f.text = "webhook: " + s.url.Host + " answered " + status
	if line := s.excerpt(said, h, body, events); line != "" {
		f.text += ": " + line
	}
	f.text += "; " + cure
	return &f
}

// verdict is the table of the package.
func verdict(status int) (f failure, cure string) {
	switch status {
	case http.StatusGone:
		f.cause = onewrite.ErrGone
		return f, "remove the destination, or set its url to the new receiver"
	case http.StatusUnauthorized, http.StatusForbidden, http.StatusProxyAuthRequired:
		return f, "give the receiver the same secret, or set the headers it asks for"
	case http.StatusNotFound, http.StatusMethodNotAllowed:
		return f, "set url to where the receiver takes POST requests"
	case http.StatusRequestTimeout, http.StatusTooEarly, http.StatusTooManyRequests,
		http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return f, "see why the receiver has no time; the event is sent again"
	}
	switch {
	case status >= 300 && status < 400:
		return f, "redirects are not followed: set url to the final one"
	case status >= 400 && status < 500:
		f.cause = onewrite.ErrRejected
		return f, "look into the log of the receiver for why it refuses the event"
	case status >= 500 && status < 600:
		f.answered = true
		return f, "look into the log of the receiver"
	}
	return f, "that is no answer to a POST; set url to a webhook receiver"
}

// retryAfter reads seconds or a date; what is neither is no wish.
func retryAfter(text string, now time.Time) time.Duration {
	if n, err := strconv.ParseUint(text, 10, 64); err == nil {
		return time.Duration(min(n, uint64(maxRetryAfter/time.Second))) * time.Second
	} else if errors.Is(err, strconv.ErrRange) {
		return maxRetryAfter
	}
	t, err := http.ParseTime(text)
	if err != nil {
		return 0
	}
	return min(max(t.Sub(now), 0), maxRetryAfter)
}

// explain makes the error of a request without an answer.
func (s *Sink) explain(err error, h http.Header, body []byte, events []onewrite.Event) error {
	cure := "check that the receiver runs and can be reached from here"
	text := ""
	var (
		blocked *blockedError
		dns     *net.DNSError
		cert    *tls.CertificateVerificationError
		record  tls.RecordHeaderError
		unknown x509.UnknownAuthorityError
	)
	switch {
	case errors.As(err, &blocked):
		return &failure{cause: err, text: "webhook: " + s.url.Host + ": " + blocked.Error()}
	case errors.As(err, &dns):
		text, cure = "the name cannot be resolved: "+dns.Err, "check the host in url, and the name server"
	case errors.As(err, &unknown):
		cure = "name the authority that signed the receiver's certificate: tls: {ca: ca.pem}"
	case errors.As(err, &cert):
		cure = "renew or correct the certificate of the receiver"
	case errors.As(err, &record):
		text, cure = "the receiver does not speak TLS", "check the scheme and the port in url"
	}
	if text == "" {
		// Such an error can repeat what the server sent.
		if text = s.excerpt([]byte(err.Error()), h, body, events); text != "" {
			text = text[1 : len(text)-1] // without the quotes
		}
	}
	return &failure{cause: err, text: "webhook: " + s.url.Host + ": " + text + "; " + cure}
}

// maxExcerpt bounds what an error repeats of an answer, in bytes; a run of
// maskRun bytes that was in the payload or in a header is masked.
const (
	maxExcerpt = 300
	maskRun    = 12
)

// excerpt returns the begin of an answer as one quoted line, without what it
// repeats of the request's payload, headers and secrets. What names the event is
// shown, as it is wherever else onewrite speaks of it: whoever reads a parked
// event's reason looks for it.
func (s *Sink) excerpt(said []byte, h http.Header, body []byte, events []onewrite.Event) string {
	said = bytes.TrimSpace(said[:min(len(said), maxExcerpt+maskRun)])
	if len(said) == 0 {
		return ""
	}
	hide := make([]bool, len(said))
	cover(hide, said, body)
	for i := range events {
		for _, v := range events[i].Header {
			cover(hide, said, []byte(v))
		}
	}
	for i := range events {
		e := &events[i]
		for _, name := range []string{e.ID, e.Topic, e.Type, e.Key} {
			show(hide, said, []byte(name))
		}
	}
	for _, secret := range slices.Concat(s.secrets, strings.Fields(h.Get("Webhook-Signature"))) {
		cover(hide, said, []byte(secret))
		cover(hide, said, []byte(strings.ReplaceAll(secret, "/", `\/`))) // as some write it in JSON
	}
	var b []byte
	for i := range said[:min(len(said), maxExcerpt)] {
		if !hide[i] {
			b = append(b, said[i])
		} else if i == 0 || !hide[i-1] {
			b = append(b, "***"...)
		}
	}
	line := strings.ToValidUTF8(string(b), "?")
	if strings.Contains(line, `"`) && !strings.ContainsFunc(line, func(r rune) bool { return r == '`' || !strconv.IsPrint(r) }) {
		line = "`" + line + "`" // JSON, mostly: escaped, it is hard to read
	} else {
		line = strconv.Quote(line)
	}
	if len(line) > maxExcerpt {
		end := line[:1]
		line = strings.ToValidUTF8(line[:maxExcerpt-4], "") + "…" + end
	}
	return line
}

// show takes out of hide where said has name as a word of its own, with the
// punctuation around it.
func show(hide []bool, said, name []byte) {
	if len(name) == 0 {
		return
	}
	for from := 0; ; {
		i := bytes.Index(said[from:], name)
		if i < 0 {
			return
		}
		i += from
		from = i + 1
		if end := i + len(name); (i == 0 || !inWord(said[i-1])) && (end == len(said) || !inWord(said[end])) {
			for ; i > 0 && !inWord(said[i-1]); i-- { // a run that is hidden ends where the name's quotes begin
			}
			for ; end < len(said) && !inWord(said[end]); end++ {
			}
			clear(hide[i:end])
		}
	}
}

func inWord(c byte) bool {
	return c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= 0x80
}

// cover marks in hide what said shares with k: runs of maskRun bytes, or all of
// a shorter k that is long enough to tell something.
func cover(hide []bool, said, k []byte) {
	run := min(maskRun, len(k))
	if run < 4 {
		return
	}
	for i := 0; i+run <= len(said); i++ {
		if bytes.Contains(k, said[i:i+run]) {
			for j := i; j < i+run; j++ {
				hide[j] = true
			}
		}
	}
}
