package storm

import (
	"bytes"
	crand "crypto/rand"
	"errors"
	"math/rand/v2"
	"net/url"
	"strconv"
	"strings"
	"sync"

	"github.com/onewrite/onewrite/internal/faultnet"
)

// wires are the ways of one copy of onewrite to all that it talks to, each through
// a proxy that can break it. Without proxies they lead straight there.
type wires struct {
	pairs []pair
	env   []string
}

// pair is the way to one other program.
type pair struct {
	to    string
	proxy *faultnet.Proxy
}

// newWires lays them for copy number n.
func newWires(s *storm, n int) (_ *wires, err error) {
	w := &wires{}
	through := func(to, address string) string {
		if !s.wired() || err != nil {
			return address
		}
		var u *url.URL
		if u, err = url.Parse(address); err != nil {
			return ""
		}
		var p *faultnet.Proxy
		if p, err = faultnet.Listen(u.Host); err != nil {
			return ""
		}
		w.pairs = append(w.pairs, pair{to, p})
		u.Host = p.Addr()
		return u.String()
	}
	set := func(name, value string) { w.env = append(w.env, name+"="+value) }
	set("OW_COPY", strconv.Itoa(n))
	if s.Open {
		set("OW_BUS_PASSWORD", crand.Text())
	}
	if s.db.postgres() {
		set("OW_DB", through("postgres", s.db.url))
	}
	if s.bus != nil {
		var nodes []string
		for _, u := range s.bus.URLs() {
			nodes = append(nodes, through("bus", u))
		}
		set("OW_BUS", strings.Join(nodes, ","))
	}
	for _, k := range s.sinks {
		switch k := k.(type) {
		case *hook:
			set("OW_HOOK", through("hook", "http://"+k.l.Addr().String())+"/"+strconv.Itoa(n))
		case *stream:
			set("OW_STREAM", through("stream", k.server.ClientURL()))
		case *target:
			if k.url != "" {
				set(k.env(), through(k.called, k.url))
			}
		}
	}
	if err != nil {
		return nil, errors.Join(err, w.close())
	}
	w.mend(s)
	return w, nil
}

// mend heals every way; answers of the sinks go on being lost.
func (w *wires) mend(s *storm) {
	for _, p := range w.pairs {
		f := faultnet.Fault{}
		if mark := s.lostMark(p.to); mark != nil && s.Lost > 0 {
			f.Swallow = swallow(s, p.to, mark)
		}
		p.proxy.Set(f)
	}
}

// lostMark is what a request to a sink has in it whose answer may be lost; nil: none may.
func (s *storm) lostMark(name string) []byte {
	if name == "stream" {
		return []byte("HPUB events.")
	}
	for _, k := range s.sinks {
		if t, ok := k.(*target); ok && t.called == name && t.url != "" {
			return t.lost
		}
	}
	return nil
}

// losers are the sinks, beside the webhook, whose answers can be lost.
func (s *storm) losers() (list []string) {
	for _, k := range s.sinks {
		if s.lostMark(k.name()) != nil {
			list = append(list, k.name())
		}
	}
	return list
}

// tally counts by name.
type tally struct {
	mu sync.Mutex
	n  map[string]int
}

// draw counts one more, up to most.
func (t *tally) draw(name string, most int) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.n == nil {
		t.n = map[string]int{}
	}
	if t.n[name] >= most {
		return false
	}
	t.n[name]++
	return true
}

// swallow draws which requests to a server lose their answer, as long as more are
// needed. The proxy calls it under its lock.
func swallow(s *storm, to string, mark []byte) func([]byte) bool {
	return func(piece []byte) bool {
		return bytes.Contains(piece, mark) && rand.IntN(4) == 0 && s.drawn.draw(to, s.Lost+s.Lost/5+20)
	}
}

// to returns the proxies on the way to one of the others.
func (w *wires) to(name string) (list []*faultnet.Proxy) {
	for _, p := range w.pairs {
		if p.to == name {
			list = append(list, p.proxy)
		}
	}
	return list
}

func (w *wires) close() error {
	var errs []error
	for _, p := range w.pairs {
		errs = append(errs, p.proxy.Close())
	}
	return errors.Join(errs...)
}

// answersLost is how many answers of a sink's server were lost.
func (s *storm) answersLost(name string) (n int) {
	if s.Lost == 0 {
		return 0
	}
	for _, c := range s.copies {
		for _, p := range c.wires.to(name) {
			n += p.Counts().Swallowed
		}
	}
	return n
}
