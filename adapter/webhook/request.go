package webhook

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/internal/cloudevents"
	"github.com/onewrite/onewrite/internal/sabotage"
)

// postEvent sends the one event of events in the binary mode.
func (s *Sink) postEvent(ctx context.Context, events []onewrite.Event) error {
	e := &events[0]
	h := maps.Clone(s.header)
	for _, t := range cloudevents.Headers(nil, e) {
		key := http.CanonicalHeaderKey(t.Name)
		if _, taken := h[key]; taken || !isToken(t.Name) || ownHeader(key) || senderHeader(key) {
			continue
		}
		h[key] = []string{headerValue(t.Value)}
	}
	var room [16]cloudevents.Attr
	for _, a := range cloudevents.Attributes(room[:0], e) {
		if a.Name == "datacontenttype" {
			h["Content-Type"] = []string{headerValue(a.Value)}
			continue
		}
		h["ce-"+a.Name] = []string{cloudevents.Escape(a.Value)}
	}
	s.sign(h, cloudevents.Escape(e.ID), e.Data)
	return s.post(ctx, h, e.Data, events)
}

// postBatch sends all events in one request.
func (s *Sink) postBatch(ctx context.Context, events []onewrite.Event) error {
	size := 2
	for i := range events {
		size += events[i].Size() + len(events[i].Data)/3
	}
	body := make([]byte, 1, size)
	body[0] = '['
	for i := range events {
		if i > 0 {
			body = append(body, ',')
		}
		body = cloudevents.AppendJSON(body, &events[i])
	}
	body = append(body, ']')
	h := maps.Clone(s.header)
	h["Content-Type"] = []string{"application/cloudevents-batch+json"}
	s.sign(h, cloudevents.Escape(cloudevents.BatchID(events)), body)
	return s.post(ctx, h, body, events)
}

// sign adds the headers of Standard Webhooks.
func (s *Sink) sign(h http.Header, id string, body []byte) {
	if len(s.keys) == 0 {
		return
	}
	seconds := strconv.FormatInt(s.now().Unix(), 10)
	var list []byte
	for i, key := range s.keys {
		mac := hmac.New(sha256.New, key)
		_, _ = io.WriteString(mac, id+"."+seconds+".")
		_, _ = mac.Write(body)
		if i > 0 {
			list = append(list, ' ')
		}
		list = append(list, "v1,"...)
		list = base64.StdEncoding.AppendEncode(list, mac.Sum(nil))
	}
	h["Webhook-Id"] = []string{id}
	h["Webhook-Timestamp"] = []string{seconds}
	h["Webhook-Signature"] = []string{string(list)}
}

// post sends one request, which holds events, and reads the answer.
func (s *Sink) post(parent context.Context, h http.Header, body []byte, events []onewrite.Event) error {
	// To the transport this key, which sends nothing, says that a request may be
	// sent again if a connection that was idle turns out to be gone: events carry
	// their id. Load balancers hang up like that all the time.
	if _, ok := h["Idempotency-Key"]; !ok {
		h["Idempotency-Key"] = nil
	}
	ctx, cancel := context.WithTimeout(parent, s.timeout)
	defer cancel()
	defer context.AfterFunc(s.closing, cancel)()
	req := (&http.Request{
		Method: http.MethodPost, URL: s.url, Host: s.url.Host, Header: h,
		Body: http.NoBody, GetBody: func() (io.ReadCloser, error) { return http.NoBody, nil },
	}).WithContext(ctx)
	if len(body) > 0 {
		req.ContentLength = int64(len(body))
		req.GetBody = func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(body)), nil }
		req.Body, _ = req.GetBody()
	}
	if err := sabotage.At("webhook.send"); err != nil {
		return err
	}
	resp, err := s.transport.RoundTrip(req)
	if err != nil {
		switch {
		case parent.Err() != nil:
			return fmt.Errorf("webhook: %s: %w", s.url.Host, parent.Err())
		case s.closing.Err() != nil:
			return fmt.Errorf("webhook: %s: %w", s.url.Host, os.ErrClosed)
		case errors.Is(err, context.DeadlineExceeded), errors.Is(ctx.Err(), context.DeadlineExceeded):
			return &failure{cause: err, text: fmt.Sprintf("webhook: %s: no answer within %v; set a longer timeout, or make the receiver answer before it works", s.url.Host, s.timeout)}
		}
		return s.explain(err, h, body, events)
	}
	if resp.StatusCode >= 200 && resp.StatusCode < 300 || sabotage.Bug == "any-answer" {
		readBody(resp, cancel, nil)
		return sabotage.At("webhook.answered")
	}
	return s.refused(resp, cancel, h, body, events)
}

// readBody fills buf from the body, drops what follows, so that the connection
// can be used again, and closes it. It returns what it could read; on a body that
// is long or slow it gives up.
func readBody(resp *http.Response, cancel context.CancelFunc, buf []byte) []byte {
	if resp.Body == http.NoBody {
		return nil
	}
	defer resp.Body.Close() //nolint:errcheck // the status has told all
	if resp.StatusCode == http.StatusSwitchingProtocols {
		return nil // what follows is no body
	}
	slow := time.AfterFunc(bodyPatience, cancel)
	defer slow.Stop()
	n, err := io.ReadFull(resp.Body, buf)
	if err == nil {
		_, _ = io.CopyN(io.Discard, resp.Body, int64(maxBody-n))
	}
	return buf[:n]
}

// isToken reports whether name can be the name of a header.
func isToken(name string) bool {
	for i := range len(name) {
		c := name[i]
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && strings.IndexByte("!#$%&'*+-.^_`|~", c) < 0 {
			return false
		}
	}
	return name != ""
}

// isHeaderValue reports whether value arrives as it is in every server.
func isHeaderValue(value string) bool {
	for i := range len(value) {
		if c := value[i]; c < 0x20 || c > 0x7e {
			return false
		}
	}
	return strings.TrimSpace(value) == value
}

func headerValue(value string) string {
	if isHeaderValue(value) {
		return value
	}
	return cloudevents.Escape(value)
}

// ownHeader reports whether the header of this canonical name is ours to set.
func ownHeader(key string) bool {
	switch key {
	case "Host", "Content-Type", "Content-Length", "Content-Encoding", "Connection", "Keep-Alive",
		"Te", "Trailer", "Transfer-Encoding", "Upgrade", "Expect",
		"Webhook-Id", "Webhook-Timestamp", "Webhook-Signature":
		return true
	}
	return strings.HasPrefix(key, "Ce-") || strings.HasPrefix(key, "Proxy-")
}

// senderHeader reports whether the header of this canonical name says who sends:
// the configuration may set it, an event may not.
func senderHeader(key string) bool {
	return key == "Authorization" || key == "Cookie" || strings.HasPrefix(key, "Webhook-")
}
