package faultnet

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"net"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// shout answers each line in capitals, and counts those it got.
func shout(t *testing.T) (addr string, got *atomic.Int64) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	got = &atomic.Int64{}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				r := bufio.NewReader(c)
				for {
					line, err := r.ReadString('\n')
					if err != nil {
						return
					}
					got.Add(1)
					_, _ = io.WriteString(c, strings.ToUpper(line))
				}
			}()
		}
	}()
	return l.Addr().String(), got
}

func proxy(t *testing.T) (*Proxy, *atomic.Int64) {
	t.Helper()
	addr, got := shout(t)
	p, err := Listen(addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
	return p, got
}

type client struct {
	*testing.T
	net.Conn
	r *bufio.Reader
}

func dial(t *testing.T, p *Proxy) *client {
	t.Helper()
	c, err := net.Dial("tcp", p.Addr())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return &client{t, c, bufio.NewReader(c)}
}

// say sends a line and returns the answer, or what came instead within the time.
func (c *client) say(line string, within time.Duration) (string, error) {
	c.Helper()
	if _, err := io.WriteString(c, line+"\n"); err != nil {
		return "", err
	}
	_ = c.SetReadDeadline(time.Now().Add(within))
	answer, err := c.r.ReadString('\n')
	return strings.TrimSuffix(answer, "\n"), err
}

// refused reports whether a new connection comes to nothing: at once, or when it
// is used.
func refused(p *Proxy) bool {
	c, err := net.Dial("tcp", p.Addr())
	if err != nil {
		return true
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(time.Minute))
	_, _ = io.WriteString(c, "x\n")
	_, err = c.Read(make([]byte, 1))
	return err != nil
}

func (c *client) hears(line string) {
	c.Helper()
	if answer, err := c.say(line, time.Minute); err != nil || answer != strings.ToUpper(line) {
		c.Fatalf("%q is answered %q, %v", line, answer, err)
	}
}

func until(t *testing.T, what string, is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !is(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("waited in vain for ", what)
		}
	}
}

func TestPassesOn(t *testing.T) {
	p, _ := proxy(t)
	a, b := dial(t, p), dial(t, p)
	a.hears("one")
	b.hears("two")
	long := strings.Repeat("long", 100_000)
	a.hears(long)
	if c := p.Counts(); c != (Counts{Accepted: 2, Bytes: int64(2 * (len("one\ntwo\n") + len(long) + 1))}) {
		t.Errorf("%+v", c)
	}
}

func TestRefuse(t *testing.T) {
	p, _ := proxy(t)
	open := dial(t, p)
	open.hears("before")
	p.Set(Fault{Refuse: true})
	if !refused(p) {
		t.Error("a refused connection answers")
	}
	open.hears("those that are open stay")
	p.Set(Fault{})
	dial(t, p).hears("healed")
	if c := p.Counts(); c.Refused != 1 || c.Accepted != 2 {
		t.Errorf("%+v", c)
	}
}

func TestNoServer(t *testing.T) {
	p, err := Listen("127.0.0.1:1")
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if !refused(p) {
		t.Error("nobody is there, and answers")
	}
	if c := p.Counts(); c.Refused != 1 {
		t.Errorf("%+v", c)
	}
}

func TestCutAt(t *testing.T) {
	for _, reset := range []bool{false, true} {
		p, got := proxy(t)
		p.Set(Fault{Down: Stream{CutAt: 6, Reset: reset}})
		c := dial(t, p)
		c.hears("abc") // 4 bytes
		answer, err := c.say("def", time.Minute)
		if reset && !errors.Is(err, syscall.ECONNRESET) || !reset && (err != io.EOF || answer != "DE") {
			t.Errorf("reset=%v: %q, %v", reset, answer, err)
		}
		if got.Load() != 2 || p.Counts().Cut != 1 {
			t.Errorf("%d lines, %+v", got.Load(), p.Counts())
		}
	}
	p, got := proxy(t)
	p.Set(Fault{Up: Stream{CutAt: 6}})
	c := dial(t, p)
	c.hears("abc")
	if answer, err := c.say("def", time.Minute); err == nil || got.Load() != 1 {
		t.Errorf("%q, %v, %d lines", answer, err, got.Load())
	}
}

func TestCut(t *testing.T) {
	p, _ := proxy(t)
	a, b := dial(t, p), dial(t, p)
	a.hears("x")
	b.hears("y")
	if n := p.Cut(true); n != 2 {
		t.Errorf("%d were open", n)
	}
	for _, c := range []*client{a, b} {
		if _, err := c.say("z", time.Minute); err == nil {
			t.Error("it is still there")
		}
	}
	dial(t, p).hears("again")
}

func TestHold(t *testing.T) {
	for way, f := range map[string]Fault{"up": {Up: Stream{Hold: true}}, "down": {Down: Stream{Hold: true}}} {
		t.Run(way, func(t *testing.T) {
			p, got := proxy(t)
			c := dial(t, p)
			c.hears("before")
			p.Set(f)
			if answer, err := c.say("held", 100*time.Millisecond); err == nil {
				t.Errorf("%q came through", answer)
			}
			until(t, "the effect", func() bool { return p.Counts().Held == 1 })
			if n := got.Load(); way == "up" && n != 1 || way == "down" && n != 2 {
				t.Errorf("the server got %d lines", n)
			}
			p.Set(Fault{})
			_ = c.SetReadDeadline(time.Now().Add(time.Minute))
			if answer, err := c.r.ReadString('\n'); answer != "HELD\n" {
				t.Errorf("after it: %q, %v", answer, err)
			}
			c.hears("after")
			p.Set(f) // and a proxy that is closed while it holds
			_, _ = io.WriteString(c, "lost\n")
			until(t, "the effect", func() bool { return p.Counts().Held == 2 })
		})
	}
}

func TestSwallow(t *testing.T) {
	p, got := proxy(t)
	p.Set(Fault{Swallow: func(piece []byte) bool { return bytes.Contains(piece, []byte("commit")) }})
	c := dial(t, p)
	c.hears("insert")
	if answer, err := c.say("commit", time.Minute); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("%q, %v", answer, err)
	}
	if got.Load() != 2 {
		t.Errorf("the server got %d lines, want both", got.Load())
	}
	if n := p.Counts().Swallowed; n != 1 {
		t.Errorf("swallowed %d", n)
	}
	c = dial(t, p)
	c.hears("insert")
}

func TestRate(t *testing.T) {
	p, _ := proxy(t)
	p.Set(Fault{Down: Stream{Rate: 1000}})
	c := dial(t, p)
	start := time.Now()
	c.hears(strings.Repeat("x", 199))
	if took := time.Since(start); took < 190*time.Millisecond {
		t.Errorf("200 bytes at 1000 a second took %v", took)
	}
}
