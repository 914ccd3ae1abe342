// Package dashboard is the HTTP face of a running instance: /healthz, /readyz,
// /metrics and /api. It shows and steers through a [Control] and knows nothing
// of databases or brokers.
//
// It refuses requests for a foreign Host on a loopback address (DNS rebinding)
// and cross-origin writes; with a token set, every request but /healthz and
// /readyz needs it.
package dashboard

import (
	"context"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/internal/cloudevents"
)

// Options are what a [Handler] needs.
type Options struct {
	// Control is the running instance.
	Control Control
	// Metrics gathers for /metrics.
	Metrics prometheus.Gatherer
	// Token, if set, must come as "Authorization: Bearer TOKEN".
	Token string
	// Log gets the changes that were asked for; nil is silent.
	Log *slog.Logger
}

// Handler returns the HTTP face.
func Handler(o Options) http.Handler {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	a := &api{o}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("GET /readyz", a.ready)
	mux.Handle("GET /{$}", a.private(a.index))
	mux.Handle("GET /metrics", a.private(promhttp.HandlerFor(o.Metrics, promhttp.HandlerOpts{}).ServeHTTP))
	mux.Handle("GET /api/status", a.private(a.status))
	mux.Handle("POST /api/reload", a.private(a.reload))
	mux.Handle("GET /api/parked/{destination}", a.private(a.parked))
	mux.Handle("POST /api/parked/{destination}/retry", a.private(a.retry))
	mux.Handle("POST /api/parked/{destination}/skip", a.private(a.skip))
	mux.Handle("POST /api/replay/{destination}", a.private(a.replay))
	mux.Handle("GET /api/tail", a.private(a.tail))
	return hostGuard(http.NewCrossOriginProtection().Handler(mux))
}

// hostGuard refuses names that a browser was tricked into resolving to us.
func hostGuard(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		local, _ := r.Context().Value(http.LocalAddrContextKey).(net.Addr)
		if tcp, ok := local.(*net.TCPAddr); ok && tcp.IP.IsLoopback() && !loopbackHost(r.Host) {
			http.Error(w, "this address answers to localhost only", http.StatusMisdirectedRequest)
			return
		}
		w.Header().Set("X-Content-Type-Options", "nosniff")
		w.Header().Set("Content-Security-Policy", "default-src 'none'; style-src 'self'; frame-ancestors 'none'")
		w.Header().Set("Cache-Control", "no-store")
		next.ServeHTTP(w, r)
	})
}

func loopbackHost(hostport string) bool {
	host := hostport
	if h, _, err := net.SplitHostPort(hostport); err == nil {
		host = h
	}
	host = strings.Trim(host, "[]")
	if host == "localhost" {
		return true
	}
	ip := net.ParseIP(host)
	return ip != nil && ip.IsLoopback()
}

type api struct{ Options }

// private asks for the token.
func (a *api) private(next http.HandlerFunc) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if a.Token != "" {
			got, _ := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
			if subtle.ConstantTimeCompare([]byte(got), []byte(a.Token)) != 1 {
				w.Header().Set("WWW-Authenticate", "Bearer")
				fail(w, http.StatusUnauthorized, errors.New("the configured token is needed: Authorization: Bearer TOKEN"))
				return
			}
		}
		next(w, r)
	})
}

func (a *api) index(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	fmt.Fprint(w, `onewrite

GET   /healthz                               the process answers
GET   /readyz                                what is not ready
GET   /metrics                               for Prometheus
GET   /api/status                            sources, destinations, bus, warnings
GET   /api/tail?topic=order.>                events as they pass, a JSON line each
GET   /api/parked/NAME                       the events of a destination that were set aside
POST  /api/parked/NAME/retry?ref=REF         deliver one again, or without ref all; a body is its new payload
POST  /api/parked/NAME/skip?ref=REF          give one up
POST  /api/replay/NAME?from=beginning        deliver again what the bus still keeps
POST  /api/reload                            read the configuration again
GET   /                                      this list
`)
}

func (a *api) ready(w http.ResponseWriter, r *http.Request) {
	missing := a.Control.NotReady(r.Context())
	if len(missing) == 0 {
		fmt.Fprintln(w, "ready")
		return
	}
	w.WriteHeader(http.StatusServiceUnavailable)
	for _, m := range missing {
		fmt.Fprintln(w, m)
	}
}

func (a *api) status(w http.ResponseWriter, r *http.Request) {
	answer(w, a.Control.Status(r.Context()))
}

func (a *api) reload(w http.ResponseWriter, r *http.Request) {
	a.Log.Info("reload asked for", "from", r.RemoteAddr)
	report, err := a.Control.Reload(r.Context(), r.URL.Query()["forget"])
	if err != nil {
		fail(w, http.StatusUnprocessableEntity, err)
		return
	}
	answer(w, report)
}

func (a *api) parked(w http.ResponseWriter, r *http.Request) {
	after, limit := number(r, "after", 0), number(r, "limit", 100)
	ref, err := refOf(r)
	if err != nil {
		fail(w, http.StatusBadRequest, err)
		return
	}
	if ref > 0 {
		after, limit = ref-1, 1
	}
	list, err := a.Control.Parked(r.Context(), r.PathValue("destination"), after, int(min(max(limit, 1), 1000)))
	if err != nil {
		fail(w, http.StatusConflict, err)
		return
	}
	shown := make([]Parked, 0, len(list))
	for i := range list {
		p := &list[i]
		if ref > 0 && p.Ref != ref {
			continue
		}
		s := Parked{Ref: p.Ref, ID: p.Message.ID, Source: p.Message.Source, Topic: p.Message.Topic, Type: p.Message.Type,
			Key: p.Message.Key, Reason: p.Reason, Attempts: p.Attempts, Holds: p.Holds, At: p.At}
		if !p.RefusedAt.IsZero() {
			s.RefusedAt = &p.RefusedAt
		}
		if ref > 0 {
			s.Event, s.Payload = cloudevents.AppendJSON(nil, &p.Message.Event), p.Message.Data
		}
		shown = append(shown, s)
	}
	answer(w, shown)
}

// maxPayload bounds the body of a retry.
const maxPayload = 64 << 20

// retry takes the payload that the event is to get from the body, if there is one.
func (a *api) retry(w http.ResponseWriter, r *http.Request) {
	data, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxPayload))
	if err == nil && len(data) > 0 && r.URL.Query().Get("ref") == "" {
		err = errors.New("a payload is for one event: name it, as in /retry?ref=1")
	}
	if err != nil {
		fail(w, http.StatusBadRequest, err)
		return
	}
	if len(data) == 0 {
		data = nil
	}
	a.act(w, r, "retry", func(ctx context.Context, destination string, ref uint64) error {
		return a.Control.Retry(ctx, destination, ref, data)
	})
}

func (a *api) skip(w http.ResponseWriter, r *http.Request) { a.act(w, r, "skip", a.Control.Skip) }

func (a *api) act(w http.ResponseWriter, r *http.Request, what string, do func(ctx context.Context, destination string, ref uint64) error) {
	destination := r.PathValue("destination")
	ref, err := refOf(r)
	if err != nil {
		fail(w, http.StatusBadRequest, err)
		return
	}
	a.Log.Info(what+" of parked events asked for", "destination", destination, "ref", ref, "from", r.RemoteAddr)
	if err := do(r.Context(), destination, ref); err != nil {
		fail(w, http.StatusConflict, err)
		return
	}
	answer(w, map[string]any{"destination": destination, "ref": ref, what: "under way"})
}

func (a *api) replay(w http.ResponseWriter, r *http.Request) {
	since := r.URL.Query().Get("from")
	from, err := ParseFrom(since)
	if err == nil && (since == "" || from.Now) {
		err = errors.New("a replay goes back: from must be beginning or a time like 2006-01-02T15:04:05Z")
	}
	if err != nil {
		fail(w, http.StatusBadRequest, err)
		return
	}
	destination := r.PathValue("destination")
	a.Log.Warn("replay asked for", "destination", destination, "since", since, "from", r.RemoteAddr)
	if err := a.Control.Replay(r.Context(), destination, from); err != nil {
		fail(w, http.StatusConflict, err)
		return
	}
	answer(w, map[string]string{"destination": destination, "replay": "under way"})
}

// tail streams events until the client goes.
func (a *api) tail(w http.ResponseWriter, r *http.Request) {
	from := onewrite.From{Now: true}
	if s := r.URL.Query().Get("from"); s != "" {
		var err error
		if from, err = ParseFrom(s); err != nil {
			fail(w, http.StatusBadRequest, err)
			return
		}
	}
	w.Header().Set("Content-Type", "application/x-ndjson")
	flush := http.NewResponseController(w)
	_ = flush.SetWriteDeadline(time.Time{}) // a tail may last
	w.WriteHeader(http.StatusOK)
	_ = flush.Flush()
	var line []byte
	err := a.Control.Tail(r.Context(), r.URL.Query()["topic"], from, func(m onewrite.Message) error {
		line = append(cloudevents.AppendJSON(line[:0], &m.Event), '\n')
		if _, err := w.Write(line); err != nil {
			return err
		}
		return flush.Flush()
	})
	if err != nil && r.Context().Err() == nil {
		a.Log.Warn("tail ended", "error", err)
	}
}

// ParseFrom reads "beginning", "now" or an RFC 3339 time.
func ParseFrom(s string) (onewrite.From, error) {
	switch s {
	case "", "beginning":
		return onewrite.From{}, nil
	case "now":
		return onewrite.From{Now: true}, nil
	}
	t, err := time.Parse(time.RFC3339, s)
	if err != nil {
		return onewrite.From{}, fmt.Errorf("%q is neither beginning, now nor a time like 2006-01-02T15:04:05Z", s)
	}
	return onewrite.From{Time: t}, nil
}

// refOf reads the ref of a parked event; 0 means that none was named. A ref that
// is none is refused: taken for none, it would mean all of them.
func refOf(r *http.Request) (uint64, error) {
	s := r.URL.Query().Get("ref")
	if s == "" {
		return 0, nil
	}
	n, err := strconv.ParseUint(s, 10, 64)
	if err != nil || n == 0 {
		return 0, fmt.Errorf("ref %q is not the number of a parked event; list them with onewrite parked list %s", s, r.PathValue("destination"))
	}
	return n, nil
}

func number(r *http.Request, name string, def uint64) uint64 {
	n, err := strconv.ParseUint(r.URL.Query().Get(name), 10, 64)
	if err != nil {
		return def
	}
	return n
}

func answer(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	_ = e.Encode(v)
}

func fail(w http.ResponseWriter, code int, err error) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(map[string]string{"error": err.Error()})
}
