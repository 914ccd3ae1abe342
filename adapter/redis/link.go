package redis

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	goredis "github.com/redis/go-redis/v9"
)

// link is one connection to one server. A connection that failed is given up; the
// next call makes another. There is no loop in it.
type link struct {
	set  *settings
	addr string

	// check, if set, looks whether the server may be written to: of each connection,
	// and again after a while. Its error ends the call before anything is sent.
	check func(ctx context.Context, c *goredis.Client) error

	mu  sync.Mutex // one call at a time
	now *session   // nil: not connected

	end  context.Context // ends with close
	stop context.CancelFunc
}

// session is a client of exactly one connection: a pool that makes others would
// hide that one was lost, and dials in goroutines of its own.
type session struct {
	client  *goredis.Client
	raw     net.Conn
	checked time.Time

	mu    sync.Mutex
	taken bool
	lost  bool // the pool wanted another connection: this one ended unused
}

// checkEvery is how long a server is trusted not to have changed its settings.
const checkEvery = time.Minute

// unsent is an error that came before anything was sent.
type unsent struct{ error }

// Unwrap returns what is below.
func (u unsent) Unwrap() error { return u.error }

var (
	errClosed = errors.New("redis: the sink is closed")
	errLost   = errors.New("the connection was lost")
)

func newLink(set *settings, addr string) *link {
	l := &link{set: set, addr: addr}
	l.end, l.stop = context.WithCancel(context.Background())
	return l
}

// do runs f with the connection. Whatever waits ends with ctx. An error that is no
// answer of the server ends the connection, for a late answer must not be taken for
// the next one.
func (l *link) do(ctx context.Context, f func(ctx context.Context, c *goredis.Client) error) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, longestWait)
	defer cancel()
	defer context.AfterFunc(l.end, cancel)()
	for fresh := false; ; fresh = true {
		if l.end.Err() != nil {
			return unsent{errClosed}
		}
		if ctx.Err() != nil {
			return unsent{fmt.Errorf("redis: %w", context.Cause(ctx))}
		}
		if l.now == nil {
			s, err := l.connect(ctx)
			if err != nil {
				return unsent{fmt.Errorf("redis: cannot connect to %s: %w; check url and that the server runs: redis-cli -u %s PING", l.addr, err, l.shown())}
			}
			l.now, fresh = s, true
		}
		s := l.now
		release := context.AfterFunc(ctx, func() { _ = s.raw.Close() })
		err := l.checkOnce(ctx, s)
		if err == nil {
			err = f(ctx, s.client)
		}
		if release() && (err == nil || isAnswer(err)) {
			return err
		}
		l.drop()
		var before unsent
		if errors.As(err, &before) && ctx.Err() == nil && !s.wasLost() {
			return err
		}
		if s.wasLost() && !fresh { // by the server, while nothing was under way
			continue
		}
		if err != nil && ctx.Err() != nil {
			err = fmt.Errorf("%w (%w)", context.Cause(ctx), err)
		}
		if err != nil {
			return fmt.Errorf("redis: %s gave no answer: %w; check that the server runs: redis-cli -u %s PING", l.addr, err, l.shown())
		}
		return nil // it was done before ctx ended
	}
}

// checkOnce runs the check when it is due.
func (l *link) checkOnce(ctx context.Context, s *session) error {
	if l.check == nil || time.Since(s.checked) < checkEvery {
		return nil
	}
	if err := l.check(ctx, s.client); err != nil {
		return unsent{err}
	}
	s.checked = time.Now()
	return nil
}

// shown is the address for a command.
func (l *link) shown() string {
	if l.set.tls != nil {
		return "rediss://" + l.addr
	}
	return "redis://" + l.addr
}

// isAnswer reports whether the server said it.
func isAnswer(err error) bool {
	var e goredis.Error
	return errors.As(err, &e) || errors.Is(err, goredis.Nil)
}

func (l *link) connect(ctx context.Context) (*session, error) {
	ctx, cancel := context.WithTimeout(ctx, dialWait)
	defer cancel()
	raw, err := (&net.Dialer{KeepAlive: 15 * time.Second}).DialContext(ctx, "tcp", l.addr)
	if err != nil {
		return nil, err
	}
	if l.set.tls != nil {
		conf := l.set.tls.Clone()
		if conf.ServerName == "" {
			conf.ServerName, _, _ = net.SplitHostPort(l.addr)
		}
		secure := tls.Client(raw, conf)
		if err := secure.HandshakeContext(ctx); err != nil {
			return nil, errors.Join(err, raw.Close())
		}
		raw = secure
	}
	s := &session{raw: raw}
	s.client = goredis.NewClient(&goredis.Options{
		Addr: l.addr, Dialer: s.dial, Username: l.set.user, Password: l.set.password, DB: l.set.db, ClientName: clientName,
		Protocol: 2, DisableIdentity: true, MaxRetries: -1, DialerRetries: 1, PipelinePoolSize: -1, PoolSize: 4, // only one is ever used at a time
		ContextTimeoutEnabled: true, ReadTimeout: longestWait, WriteTimeout: longestWait, ConnMaxIdleTime: -1,
		ReadBufferSize: 64 << 10, WriteBufferSize: 256 << 10,
	})
	return s, nil
}

// dial gives the pool its connection, once. A second one is dead from the start: an
// error would make the pool log, and dial until it succeeds.
func (s *session) dial(context.Context, string, string) (net.Conn, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.taken {
		s.taken = true
		return s.raw, nil
	}
	s.lost = true
	return deadConn{s.raw}, nil
}

func (s *session) wasLost() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.lost
}

// deadConn is a connection that has ended.
type deadConn struct{ net.Conn }

// Read fails.
func (deadConn) Read([]byte) (int, error) { return 0, errLost }

// Write fails.
func (deadConn) Write([]byte) (int, error) { return 0, errLost }

// Close does nothing.
func (deadConn) Close() error { return nil }

func (l *link) drop() {
	if l.now != nil {
		_ = l.now.raw.Close()
		_ = l.now.client.Close() // says nothing that is not known
		l.now = nil
	}
}

// close ends what is under way, and the connection. It may come twice.
func (l *link) close() {
	l.stop()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.drop()
}
