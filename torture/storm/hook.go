package storm

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"

	"github.com/onewrite/onewrite/torture/history"
)

// hook is a webhook. After some of the commits of its consumer it loses its
// answer, and it may refuse some of the events.
type hook struct {
	*consumer
	l      net.Listener
	server *http.Server
	again  atomic.Int64
	lost   atomic.Int64
}

func newHook(s *storm) (*hook, error) {
	c, err := newConsumer(s, "hook")
	if err != nil {
		return nil, err
	}
	h := &hook{consumer: c}
	if h.l, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
		return nil, errors.Join(err, c.close())
	}
	h.server = &http.Server{Handler: h}
	go func() { _ = h.server.Serve(h.l) }()
	return h, nil
}

func (h *hook) name() string       { return "hook" }
func (h *hook) kind() history.Kind { return history.Kind{Once: true, Ledger: true} }
func (h *hook) yaml() string {
	attempts := 10 // more than a fault of the network can take from one event while others pass
	if h.s.Refuse {
		attempts = 3
	}
	return fmt.Sprintf(`{type: webhook, url: "${env:OW_HOOK}", allow_private: true, secret: of-this-run-only, timeout: 3s, retry: {attempts: %d, first: 20ms, max: 1s}}`, attempts)
}

// ServeHTTP takes one event from the copy of onewrite that the path names.
func (h *hook) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		http.Error(w, err.Error(), http.StatusServiceUnavailable) // the network's fault, not the event's
		return
	}
	from, _ := strconv.Atoi(strings.Trim(r.URL.Path, "/"))
	a, err := h.s.arrival(from, r.Header.Get("webhook-id"), body)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	rare := uint64(200)
	if h.s.Flips > 0 { // each time all that waits behind them is parked again
		rare = 2000
	}
	if h.s.Refuse && !h.s.healed.Load() && digest([]byte(a.ID))%rare == 0 {
		h.s.labels.hit("refused")
		http.Error(w, "refused until the end of the storm", http.StatusUnprocessableEntity)
		return
	}
	fresh, err := h.take(a)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	if fresh == 0 {
		h.again.Add(1)
	}
	if h.loses() {
		if conn, _, err := w.(http.Hijacker).Hijack(); err == nil {
			h.lost.Add(1)
			h.s.labels.hit("answer lost by hook")
			_ = conn.Close()
		}
	}
}

// loses draws whether an answer is lost.
func (h *hook) loses() bool {
	h.turn.Lock()
	defer h.turn.Unlock()
	if need := int64(h.s.Lost); need > 0 { // spread over the first half
		return h.lost.Load() < need+20 && h.rng.IntN(max(1, h.s.Events/(2*h.s.Lost))) == 0
	}
	return h.s.Kills > 0 && h.rng.IntN(500) == 0
}

func (h *hook) settle(dir string) error {
	if n := int(h.lost.Load()); n > 0 {
		h.s.faults.Add(&history.Fault{
			At: 1, Until: h.s.now(), Kind: "answer lost", Times: n, On: h.name(),
			Proof: fmt.Sprintf("%d connections were closed after the consumer's COMMIT", n), Most: n,
		})
	}
	return errors.Join(h.server.Close(), h.consumer.settle(dir))
}

func (h *hook) close() error { return errors.Join(h.server.Close(), h.consumer.close()) }
