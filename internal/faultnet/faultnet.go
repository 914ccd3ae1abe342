// Package faultnet is a TCP proxy on the loopback that breaks connections in the
// ways that networks and servers break them, and counts what it broke: a test
// that injects a fault has to show that it took effect.
package faultnet

import (
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"
)

// Fault is what a [Proxy] does to its connections, those that are open too. The
// zero Fault passes everything on.
type Fault struct {
	Up   Stream // from the client to the server
	Down Stream // from the server to the client
	// Refuse ends new connections with a reset, as a server does that is not there.
	Refuse bool
	// Swallow looks at each piece of the stream to the server. Where it says true,
	// the piece goes on, what the server answers is dropped and the connection is
	// reset: the server did what it was asked, and nobody was told. It is called by
	// many goroutines at once.
	Swallow func(piece []byte) bool
}

// Stream is what happens to one direction.
type Stream struct {
	// CutAt ends a connection when so many bytes of it went by, in the middle of
	// a message if need be; 0 never does.
	CutAt int64
	// Reset cuts with RST instead of FIN.
	Reset bool
	// Hold lets nothing pass while it is set: both ends stay connected and hear
	// nothing. What was sent meanwhile arrives when it is lifted.
	Hold bool
	// Rate is the most bytes that pass in a second; 0 is no limit.
	Rate int
}

// Counts says what a Proxy did since it was made.
type Counts struct {
	Accepted  int   // connections that were passed on
	Refused   int   // by Refuse, or because the server did not answer
	Cut       int   // by CutAt or Proxy.Cut
	Swallowed int   // answers
	Held      int   // times that a Hold stopped bytes which were there to pass
	Bytes     int64 // passed on, in both directions
}

// Proxy passes the connections to its address on to a server.
type Proxy struct {
	target string
	l      net.Listener
	work   sync.WaitGroup

	mu      sync.Mutex
	fault   Fault
	changed chan struct{} // closed by the next Set
	links   map[*link]struct{}
	counts  Counts
	closed  bool
}

// link is one connection: both halves, and whether the next answer is swallowed.
type link struct {
	client, server net.Conn
	once           sync.Once
	gone           chan struct{}
	swallow        bool // guarded by the proxy's mu
}

// Listen starts a proxy to target, a host:port on the loopback, on a free port
// of 127.0.0.1.
func Listen(target string) (*Proxy, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("faultnet: %w", err)
	}
	p := &Proxy{target: target, l: l, changed: make(chan struct{}), links: map[*link]struct{}{}}
	p.work.Go(p.accept)
	return p, nil
}

// Addr returns the host:port to connect to.
func (p *Proxy) Addr() string { return p.l.Addr().String() }

// Set changes the fault from now on; the zero Fault heals the network.
func (p *Proxy) Set(f Fault) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.fault = f
	close(p.changed)
	p.changed = make(chan struct{})
}

// Cut ends all open connections, with RST if reset is set, and returns how many.
func (p *Proxy) Cut(reset bool) int {
	p.mu.Lock()
	var open []*link
	for k := range p.links {
		open = append(open, k)
	}
	p.counts.Cut += len(open)
	p.mu.Unlock()
	for _, k := range open {
		k.end(reset)
	}
	return len(open)
}

// Counts returns what happened so far.
func (p *Proxy) Counts() Counts {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.counts
}

// Close ends the proxy and its connections.
func (p *Proxy) Close() error {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	err := p.l.Close()
	p.mu.Lock()
	for k := range p.links {
		go k.end(false)
	}
	p.mu.Unlock()
	p.work.Wait()
	return err
}

func (p *Proxy) accept() {
	for {
		c, err := p.l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err == nil {
			p.work.Go(func() { p.connect(c) })
		}
	}
}

// connect joins a client to the server.
func (p *Proxy) connect(c net.Conn) {
	p.mu.Lock()
	refuse := p.fault.Refuse
	p.mu.Unlock()
	var s net.Conn
	if !refuse {
		s, _ = net.DialTimeout("tcp", p.target, 5*time.Second)
	}
	k := &link{client: c, server: s, gone: make(chan struct{})}
	p.mu.Lock()
	if s == nil || p.closed {
		p.counts.Refused++
		p.mu.Unlock()
		k.end(true)
		return
	}
	p.counts.Accepted++
	p.links[k] = struct{}{}
	p.mu.Unlock()
	var both sync.WaitGroup
	both.Go(func() { p.carry(k, s, c, true) })
	both.Go(func() { p.carry(k, c, s, false) })
	both.Wait()
	k.end(false)
	p.mu.Lock()
	delete(p.links, k)
	p.mu.Unlock()
}

// end closes both halves.
func (k *link) end(reset bool) {
	k.once.Do(func() {
		close(k.gone)
		for _, c := range []net.Conn{k.client, k.server} {
			if c == nil {
				continue
			}
			if t, ok := c.(*net.TCPConn); ok && reset {
				_ = t.SetLinger(0)
			}
			_ = c.Close()
		}
	})
}

// carry passes one direction on until it ends. An orderly end is passed on too,
// so that the other direction can finish.
func (p *Proxy) carry(k *link, dst, src net.Conn, up bool) {
	buf := make([]byte, 32<<10)
	passed := int64(0)
	for {
		n, err := src.Read(buf)
		if n > 0 && !p.pass(k, dst, buf[:n], &passed, up) {
			return
		}
		if err == nil {
			continue
		}
		if t, ok := dst.(*net.TCPConn); ok && errors.Is(err, io.EOF) {
			_ = t.CloseWrite()
		} else {
			k.end(true)
		}
		return
	}
}

// pass sends one piece as the fault of the moment says, and reports whether the
// connection goes on.
func (p *Proxy) pass(k *link, dst net.Conn, piece []byte, passed *int64, up bool) bool {
	f, ok := p.admit(k, piece, up)
	if !ok {
		k.end(true)
		return false
	}
	cut := f.CutAt > 0 && *passed+int64(len(piece)) >= f.CutAt
	if cut {
		piece = piece[:max(0, f.CutAt-*passed)]
	}
	for len(piece) > 0 {
		n := len(piece)
		if f.Rate > 0 {
			n = min(n, max(1, f.Rate/50))
			select {
			case <-time.After(time.Duration(n) * time.Second / time.Duration(f.Rate)):
			case <-k.gone:
				return false
			}
		}
		if _, err := dst.Write(piece[:n]); err != nil {
			k.end(true)
			return false
		}
		piece = piece[n:]
		*passed += int64(n)
		p.count(func(c *Counts) { c.Bytes += int64(n) })
	}
	if cut {
		p.count(func(c *Counts) { c.Cut++ })
		k.end(f.Reset)
	}
	return !cut
}

// admit waits while the direction is held, and returns what to do with a piece.
// It reports false where the piece is an answer that is swallowed.
func (p *Proxy) admit(k *link, piece []byte, up bool) (Stream, bool) {
	for held := false; ; held = true {
		p.mu.Lock()
		f, changed := p.fault, p.changed
		way := f.Down
		if up {
			way = f.Up
		}
		if way.Hold && !held {
			p.counts.Held++
		}
		if !way.Hold {
			ok := p.answerable(k, f, piece, up)
			p.mu.Unlock()
			return way, ok
		}
		p.mu.Unlock()
		select {
		case <-changed:
		case <-k.gone:
			return way, false
		}
	}
}

// answerable notes a request whose answer is to be swallowed, and reports false
// for the answer. The caller holds mu.
func (p *Proxy) answerable(k *link, f Fault, piece []byte, up bool) bool {
	if up {
		k.swallow = k.swallow || f.Swallow != nil && f.Swallow(piece)
		return true
	}
	if k.swallow {
		p.counts.Swallowed++
	}
	return !k.swallow
}

func (p *Proxy) count(change func(*Counts)) {
	p.mu.Lock()
	change(&p.counts)
	p.mu.Unlock()
}
