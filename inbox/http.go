package inbox

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"mime"
	"net/http"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/internal/cloudevents"
)

// endpoint is what [HTTP] returns.
type endpoint struct {
	receive   Receiver
	secrets   []string
	keys      [][]byte
	unsigned  bool
	sources   []string
	tolerance time.Duration
	maxBytes  int64
	log       *slog.Logger
	now       func() time.Time
}

// HTTPOption changes a setting of [HTTP].
type HTTPOption func(*endpoint)

// Secret names the secret that onewrite signs with, `secret` of the destination.
// Several are several that are good: give old and new while you rotate. A secret
// `whsec_…` is a key in base64, any other one its bytes.
func Secret(secrets ...string) HTTPOption {
	return func(h *endpoint) { h.secrets = append(h.secrets, secrets...) }
}

// Unsigned takes requests without a signature: whoever reaches the handler can send
// events. It is for those who keep others away by other means, mutual TLS for
// instance.
func Unsigned() HTTPOption { return func(h *endpoint) { h.unsigned = true } }

// From takes events of these sources only; the names are those in onewrite's
// configuration. The signature covers the body and the id, not the other headers: where
// a request could be overheard and sent again within the tolerance with another source
// in it, From keeps it out. An [Ordered] inbox also goes by ce-partitionkey and
// ce-sequence, which are not signed either: use it only where requests cannot be
// overheard.
func From(sources ...string) HTTPOption {
	return func(h *endpoint) { h.sources = append(h.sources, sources...) }
}

// Tolerance sets how far the sender's clock may be off; the default is 5 minutes.
func Tolerance(d time.Duration) HTTPOption { return func(h *endpoint) { h.tolerance = d } }

// MaxBytes sets the largest body; the default is 16 MiB, which holds onewrite's
// batches.
func MaxBytes(n int64) HTTPOption { return func(h *endpoint) { h.maxBytes = n } }

// Log gets what went wrong, with ids and without payloads; the default is silent.
func Log(log *slog.Logger) HTTPOption { return func(h *endpoint) { h.log = log } }

// HTTP returns a handler for the webhooks of onewrite, and of other senders of
// CloudEvents: an event a request in the binary or the structured mode, or a batch. A
// request with ce-id is one in the binary mode, of whatever type its data is.
// The signature is that of Standard Webhooks, compared in constant time.
//
//	204  handled, or handled before: receive has committed
//	400  no CloudEvents event; 413 too large; 415 of an unknown form
//	401  the signature is missing or wrong, or its time is off by more than the tolerance
//	403  the event is of a source that From does not name
//	405  no POST
//	422  the effect says that the event will never do: [onewrite.ErrRejected]
//	500  the effect failed or panicked
//	503  the database failed, or events are missing before this one
//
// The sender tries again what is not 2xx; onewrite parks events that are refused
// with 400, 413, 415, 422 or, while others pass, 500, with the text of the answer as
// the reason. The text of an effect's error is told to the sender for 422 only.
//
// The error says that a secret cannot be used, or that neither Secret nor Unsigned
// is given.
func HTTP(receive Receiver, opts ...HTTPOption) (http.Handler, error) {
	h := &endpoint{receive: receive, tolerance: 5 * time.Minute, maxBytes: 16 << 20, log: slog.New(slog.DiscardHandler), now: time.Now}
	for _, o := range opts {
		o(h)
	}
	for i, secret := range h.secrets {
		key, err := signingKey(secret)
		if err != nil {
			return nil, fmt.Errorf("inbox: secret %d: %w", i+1, err)
		}
		h.keys = append(h.keys, key)
	}
	if len(h.keys) == 0 && !h.unsigned {
		return nil, errors.New("inbox: no secret; give inbox.HTTP the secret of the destination with inbox.Secret, or inbox.Unsigned if others cannot reach the handler")
	}
	return h, nil
}

// answer is a status with the text for the sender, and the error for the log.
type answer struct {
	status int
	text   string
	err    error
}

// ServeHTTP handles one request.
func (h *endpoint) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	a := h.handle(w, r)
	if a.status == http.StatusNoContent {
		w.WriteHeader(a.status)
		return
	}
	if a.err != nil {
		h.log.Error("webhook", "id", r.Header.Get("webhook-id"), "status", a.status, "error", a.err)
	} else {
		h.log.Warn("webhook", "id", r.Header.Get("webhook-id"), "status", a.status, "reason", a.text)
	}
	if a.status == http.StatusServiceUnavailable {
		w.Header().Set("Retry-After", "1")
	}
	http.Error(w, a.text, a.status)
}

func (h *endpoint) handle(w http.ResponseWriter, r *http.Request) answer {
	if r.Method != http.MethodPost {
		w.Header().Set("Allow", http.MethodPost)
		return answer{status: http.StatusMethodNotAllowed, text: "events come by POST"}
	}
	if coding := r.Header.Get("Content-Encoding"); coding != "" && coding != "identity" {
		return answer{status: http.StatusUnsupportedMediaType, text: "send the body without Content-Encoding"}
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, h.maxBytes))
	var large *http.MaxBytesError
	switch {
	case errors.As(err, &large):
		return answer{status: http.StatusRequestEntityTooLarge, text: fmt.Sprintf("the body has more than %d bytes", h.maxBytes)}
	case err != nil: // it broke off; nobody may be left to read the answer
		return answer{status: http.StatusServiceUnavailable, text: "the body broke off", err: err}
	}
	if len(h.keys) > 0 {
		if err := h.verify(r.Header, body); err != nil {
			return answer{status: http.StatusUnauthorized, text: err.Error()}
		}
	}
	events, a := parse(r.Header, body)
	if a != nil {
		return *a
	}
	messages := make([]Message, len(events))
	for i := range events {
		if len(h.sources) > 0 && !slices.Contains(h.sources, events[i].Source) {
			return answer{status: http.StatusForbidden, text: "events of this source are not taken here"}
		}
		messages[i].Event = events[i]
	}
	if len(messages) == 0 {
		return answer{status: http.StatusNoContent}
	}
	return h.take(r.Context(), messages)
}

// take hands the messages over and makes the answer of what comes back.
func (h *endpoint) take(ctx context.Context, messages []Message) (a answer) {
	defer func() {
		if v := recover(); v != nil {
			a = answer{http.StatusInternalServerError, "the handler failed", fmt.Errorf("panic: %v\n%s", v, debug.Stack())}
		}
	}()
	_, err := h.receive(ctx, messages)
	var effect *EffectError
	switch {
	case err == nil:
		return answer{status: http.StatusNoContent}
	case errors.Is(err, onewrite.ErrRejected):
		if errors.As(err, &effect) { // the sender knows the id
			return answer{http.StatusUnprocessableEntity, effect.Err.Error(), err}
		}
		return answer{http.StatusUnprocessableEntity, err.Error(), err}
	case errors.Is(err, onewrite.ErrGap):
		return answer{http.StatusServiceUnavailable, "events are missing before this one", err}
	case errors.As(err, &effect):
		return answer{http.StatusInternalServerError, "the handler failed", err}
	}
	return answer{http.StatusServiceUnavailable, "not now", err}
}

// parse reads the events of a request. What is signed is the body and webhook-id:
// so an event in the binary mode has to carry that id.
func parse(header http.Header, body []byte) (events []onewrite.Event, refused *answer) {
	bad := func(status int, format string, args ...any) *answer {
		return &answer{status: status, text: fmt.Sprintf(format, args...)}
	}
	media, _, err := mime.ParseMediaType(header.Get("Content-Type"))
	if err != nil && header.Get("Content-Type") != "" {
		media = ""
	}
	switch {
	case header.Get("ce-id") != "" || header.Get("ce-specversion") != "":
		// The binary mode: the body is data, even if it is data of the types below.
	case media == "application/cloudevents-batch+json":
		var raw []json.RawMessage
		if err := json.Unmarshal(body, &raw); err != nil {
			return nil, bad(http.StatusBadRequest, "the batch is no JSON array")
		}
		for i, one := range raw {
			e, err := cloudevents.ParseJSON(one)
			if err != nil {
				return nil, bad(http.StatusBadRequest, "event %d of the batch: %v", i, err)
			}
			events = append(events, e)
		}
		return own(header, events)
	case media == "application/cloudevents+json":
		e, err := cloudevents.ParseJSON(body)
		if err != nil {
			return nil, bad(http.StatusBadRequest, "%v", err)
		}
		return own(header, []onewrite.Event{e})
	case strings.HasPrefix(media, "application/cloudevents"):
		return nil, bad(http.StatusUnsupportedMediaType, "the form %s is not known here; send JSON or the binary mode", media)
	}
	e, err := binary(header, body)
	if err != nil {
		return nil, bad(http.StatusBadRequest, "%v", err)
	}
	return own(header, []onewrite.Event{e})
}

// own refuses an event that does not have the signed id, and a batch that does not
// have that of its events: a captured request could be sent again as another event, or
// its payload as an event or as many.
func own(header http.Header, events []onewrite.Event) ([]onewrite.Event, *answer) {
	id := header.Get("webhook-id")
	switch {
	case id == "" || len(events) == 0 || cloudevents.Unescape(id) == cloudevents.BatchID(events):
		return events, nil
	case len(events) > 1:
		return nil, &answer{status: http.StatusBadRequest, text: "webhook-id is not the one that onewrite makes of the batch's events"}
	}
	return nil, &answer{status: http.StatusBadRequest, text: "webhook-id and the event's id differ"}
}

// binary reads an event in the binary mode. Headers that are neither attributes nor
// HTTP's own are the event's, by their names in lower case.
func binary(header http.Header, body []byte) (e onewrite.Event, err error) {
	for name, values := range header {
		lower := strings.ToLower(name)
		if !ofHTTP(lower) && !strings.HasPrefix(lower, "ce-") {
			if e.Header == nil {
				e.Header = map[string]string{}
			}
			e.Header[lower] = values[0]
		}
	}
	for name, values := range header { // after the others: traceparent may be both
		attr, ok := strings.CutPrefix(strings.ToLower(name), "ce-")
		if !ok {
			continue
		}
		if len(values) != 1 {
			return e, fmt.Errorf("header %s comes more than once", name)
		}
		if err := cloudevents.Set(&e, attr, cloudevents.Unescape(values[0])); err != nil {
			return e, err
		}
	}
	if header.Get("ce-specversion") == "" {
		return e, errors.New("no CloudEvents event: header ce-specversion is missing")
	}
	if e.ID == "" || e.Source == "" || e.Type == "" {
		return e, errors.New("ce-id, ce-source and ce-type are required")
	}
	e.ContentType = header.Get("Content-Type")
	if len(body) > 0 || e.ContentType != "" {
		e.Data = bytes.Clone(body)
		if e.Data == nil {
			e.Data = []byte{}
		}
	}
	return e, nil
}

// ofHTTP reports whether the header of this name belongs to the request, the
// sender or the signature, and not to the event.
func ofHTTP(lower string) bool {
	switch lower {
	case "host", "user-agent", "authorization", "cookie", "connection", "keep-alive", "te", "trailer", "upgrade", "expect",
		"date", "via", "forwarded", "origin", "referer", "idempotency-key", "transfer-encoding":
		return true
	}
	for _, p := range []string{"content-", "accept", "webhook-", "proxy-", "x-forwarded-", "x-real-", "sec-", "if-", "cache-"} {
		if strings.HasPrefix(lower, p) {
			return true
		}
	}
	return false
}
