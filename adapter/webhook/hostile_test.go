package webhook

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/onewrite/onewrite"
)

// hostile is a server of bytes: answer is called with each connection after a
// whole request was read from it, unless eager says to read nothing first.
type hostile struct {
	net.Listener
	wg     sync.WaitGroup
	eager  bool
	answer func(net.Conn)
	mu     sync.Mutex
	open   map[net.Conn]bool
}

func newHostile(t *testing.T, eager bool, answer func(net.Conn)) *hostile {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	h := &hostile{Listener: l, eager: eager, answer: answer, open: map[net.Conn]bool{}}
	h.wg.Go(h.serve)
	t.Cleanup(func() {
		_ = l.Close()
		h.mu.Lock()
		for c := range h.open {
			_ = c.Close()
		}
		h.mu.Unlock()
		h.wg.Wait()
	})
	return h
}

func (h *hostile) serve() {
	for {
		c, err := h.Accept()
		if err != nil {
			return
		}
		h.mu.Lock()
		h.open[c] = true
		h.mu.Unlock()
		h.wg.Go(func() {
			defer func() {
				_ = c.Close()
				h.mu.Lock()
				delete(h.open, c)
				h.mu.Unlock()
			}()
			if !h.eager {
				req, err := http.ReadRequest(bufio.NewReader(c))
				if err != nil {
					return
				}
				_, _ = io.Copy(io.Discard, req.Body)
			}
			h.answer(c)
		})
	}
}

func say(text string) func(net.Conn) {
	return func(c net.Conn) { _, _ = io.WriteString(c, text) }
}

// forever writes text until the client hangs up.
func forever(head, text string, pause time.Duration) func(net.Conn) {
	return func(c net.Conn) {
		_, err := io.WriteString(c, head)
		for ; err == nil; time.Sleep(pause) { // a slow server, not a wait for something
			_, err = io.WriteString(c, text)
		}
	}
}

// untilGone says text and then nothing, until the client hangs up.
func untilGone(text string) func(net.Conn) {
	return func(c net.Conn) {
		_, _ = io.WriteString(c, text)
		_, _ = io.Copy(io.Discard, c)
	}
}

func bomb() string {
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	_, _ = z.Write(make([]byte, 32<<20))
	_ = z.Close()
	return fmt.Sprintf("HTTP/1.1 400 No\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n%s", b.Len(), b.String())
}

// What Write has to make of a server.
const ok, rejected, unknown = "ok", "rejected", "unknown"
const chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"

type hostileMode struct {
	want   string
	eager  bool
	answer func(net.Conn)
}

var hostileModes = map[string]hostileMode{
	"closes at once":              {unknown, true, func(net.Conn) {}},
	"closes after the request":    {unknown, false, func(net.Conn) {}},
	"says nothing":                {unknown, true, untilGone("")},
	"says nothing after it":       {unknown, false, untilGone("")},
	"resets":                      {unknown, false, func(c net.Conn) { _ = c.(*net.TCPConn).SetLinger(0) }},
	"is no HTTP":                  {unknown, true, untilGone("SSH-2.0-OpenSSH_9.9\r\n")},
	"sends rubbish":               {unknown, false, say("\x00\xff\x00garbage\r\n\r\n\x1b[31m")},
	"rubbish without end":         {unknown, false, forever("", strings.Repeat("x", 4096), 0)},
	"status line only":            {unknown, false, say("HTTP/1.1 200 OK\r\n")},
	"bad status":                  {unknown, false, say("HTTP/1.1 abc OK\r\n\r\n")},
	"bad content length":          {unknown, false, say("HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n")},
	"two content lengths":         {unknown, false, say("HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nx")},
	"slow header":                 {unknown, false, forever("HTTP/1.1 200 OK\r\n", "X-A: b\r\n", 50*time.Millisecond)},
	"endless header":              {unknown, false, forever("HTTP/1.1 200 OK\r\n", "X-A: "+strings.Repeat("b", 1000)+"\r\n", 0)},
	"a header of 300 KB":          {unknown, false, say("HTTP/1.1 200 OK\r\n" + strings.Repeat("X-A: "+strings.Repeat("b", 1000)+"\r\n", 300) + "\r\n")},
	"one endless header line":     {unknown, false, forever("HTTP/1.1 200 OK\r\nX-A: ", strings.Repeat("b", 4096), 0)},
	"endless 100 Continue":        {unknown, false, forever("", "HTTP/1.1 100 Continue\r\n\r\n", 0)},
	"switches protocols":          {unknown, false, untilGone("HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n")},
	"redirects to metadata":       {unknown, false, say("HTTP/1.1 302 Found\r\nLocation: http://169.254.169.254/latest\r\nContent-Length: 0\r\n\r\n")},
	"redirects to a file":         {unknown, false, say("HTTP/1.1 307 Go\r\nLocation: file:///etc/passwd\r\nContent-Length: 0\r\n\r\n")},
	"redirects to rubbish":        {unknown, false, say("HTTP/1.1 308 Go\r\nLocation: ://%zz\r\nContent-Length: 0\r\n\r\n")},
	"500 with an endless body":    {unknown, false, forever("HTTP/1.1 500 No\r\n\r\n", strings.Repeat("e", 4096), 0)},
	"500 with a slow body":        {unknown, false, forever("HTTP/1.1 500 No\r\n\r\n", "e", 50*time.Millisecond)},
	"400 with a gzip bomb":        {rejected, false, say(bomb())},
	"400 with control characters": {rejected, false, say("HTTP/1.1 400 No\r\nConnection: close\r\n\r\n\x1b[2J\r\nlevel=ERROR msg=\"forged\"\u202e\x00")},
	"400 with binary":             {rejected, false, say("HTTP/1.1 400 No\r\nConnection: close\r\n\r\n" + strings.Repeat("\xff\xfe", 5000))},
	"400 before the body is read": {rejected, true, untilGone("HTTP/1.1 400 No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")},
	"422 that breaks off":         {rejected, false, say("HTTP/1.1 422 No\r\nContent-Length: 100\r\n\r\nhalf")},
	"200 that breaks off":         {ok, false, say("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")},
	"200 with an endless body":    {ok, false, forever("HTTP/1.1 200 OK\r\n\r\n", strings.Repeat("o", 4096), 0)},
	"200 with a slow body":        {ok, false, forever("HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n", "o", 50*time.Millisecond)},
	"200 with a silent body":      {ok, false, untilGone("HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n")},
	"200 with bad chunks":         {ok, false, say(chunked + "zz\r\n")},
	"200 with a giant chunk":      {ok, false, untilGone(chunked + "7fffffffffffffff\r\nx")},
	"200 twice":                   {ok, false, say(strings.Repeat("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", 2))},
	"204 with a body":             {ok, false, say("HTTP/1.1 204 No Content\r\nConnection: close\r\nContent-Length: 5\r\n\r\nhello")},
	"HTTP/1.0":                    {ok, false, say("HTTP/1.0 200 OK\r\n\r\nbye")},
}

// Whatever a server does, Write ends in time, says whether the event was taken,
// and its error is one short line.
func TestHostileServers(t *testing.T) {
	for name, mode := range hostileModes {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newHostile(t, mode.eager, mode.answer)
			s := open(t, Config{URL: "http://" + h.Addr().String(), AllowPrivate: true, Timeout: 2 * time.Second})
			for range 2 { // the second may find a connection that the first left
				start := time.Now()
				n, err := s.Write(context.Background(), []onewrite.Event{order("1")})
				if took := time.Since(start); took > 30*time.Second {
					t.Errorf("Write took %v", took)
				}
				got := ok
				if errors.Is(err, onewrite.ErrRejected) {
					got = rejected
				} else if err != nil {
					got = unknown
				}
				if got == unknown && strings.Contains(err.Error(), "readLoopPeekFailLocked") {
					continue // the answer came before the question: net/http gave the connection up
				}
				if got != mode.want || (n == 1) != (err == nil) || errors.Is(err, onewrite.ErrGone) {
					t.Errorf("Write = %d, %v; want %s", n, err, mode.want)
				}
				if err == nil {
					continue
				}
				for _, r := range err.Error() {
					if r < 0x20 || r == 0x7f || r == 0x202e || r == 0xfffd {
						t.Errorf("%q is in the error", r)
					}
				}
				if len(err.Error()) > 500 {
					t.Errorf("the error has %d bytes: %v", len(err.Error()), err)
				}
			}
		})
	}
}

// A large body that a server refuses before it has read it is refused, not lost
// in a broken pipe.
func TestEarlyRefusalOfALargeBody(t *testing.T) {
	h := newHostile(t, true, func(c net.Conn) {
		_, _ = bufio.NewReader(c).ReadString('\n')
		_, _ = io.WriteString(c, "HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
		_, _ = io.Copy(io.Discard, c)
	})
	s := open(t, Config{URL: "http://" + h.Addr().String(), AllowPrivate: true, Timeout: 10 * time.Second})
	e := order("1")
	e.Data = bytes.Repeat([]byte("x"), 4<<20)
	if _, err := s.Write(context.Background(), []onewrite.Event{e}); !errors.Is(err, onewrite.ErrRejected) {
		t.Errorf("Write = %v", err)
	}
}

// What comes after a status that is known is not waited for.
func TestSilentBodyIsNotWaitedFor(t *testing.T) {
	for head, want := range map[string]error{
		"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n": nil,
		"HTTP/1.1 422 No\r\nContent-Length: 9\r\n\r\n": onewrite.ErrRejected,
	} {
		h := newHostile(t, false, untilGone(head))
		s := open(t, Config{URL: "http://" + h.Addr().String(), AllowPrivate: true, Timeout: time.Minute})
		start := time.Now()
		if _, err := s.Write(context.Background(), []onewrite.Event{order("1")}); !errors.Is(err, want) {
			t.Errorf("Write = %v, want %v", err, want)
		}
		if took := time.Since(start); took > 60*time.Second {
			t.Errorf("Write took %v", took)
		}
	}
}

// Close leaves nothing behind of a connection that is being made or was given up.
func TestCloseDuringTheHandshake(t *testing.T) {
	for name, cut := range map[string]func(*Sink, context.CancelFunc){
		"Close":  func(s *Sink, _ context.CancelFunc) { _ = s.Close() },
		"cancel": func(_ *Sink, cancel context.CancelFunc) { cancel() },
	} {
		t.Run(name, func(t *testing.T) {
			reached := make(chan struct{}, 1)
			h := newHostile(t, true, func(c net.Conn) {
				_, _ = c.Read(make([]byte, 1)) // the client's hello
				reached <- struct{}{}
				_, _ = io.Copy(io.Discard, c)
			})
			s := open(t, Config{URL: "https://" + h.Addr().String(), AllowPrivate: true, Timeout: time.Minute})
			ctx, cancel := context.WithCancel(context.Background())
			defer cancel()
			done := make(chan error, 1)
			go func() {
				_, err := s.Write(ctx, []onewrite.Event{order("1")})
				done <- err
			}()
			<-reached
			cut(s, cancel)
			if err := <-done; err == nil {
				t.Error("Write without an answer succeeded")
			}
			if err := s.Close(); err != nil {
				t.Error(err)
			}
			h.wait(t)
		})
	}
}

// wait waits until the client has hung up all its connections.
func (h *hostile) wait(t *testing.T) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); <-tick.C {
		h.mu.Lock()
		n := len(h.open)
		h.mu.Unlock()
		if n == 0 {
			return
		}
	}
	t.Error("a connection is still open after Close")
}
