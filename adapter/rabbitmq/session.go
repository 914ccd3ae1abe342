package rabbitmq

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

// maxInFlight bounds the messages of one Write that wait for their confirmation, and
// so what the broker may return before it is read.
const maxInFlight = 1000

// address is one broker.
type address struct {
	uri      amqp.URI
	external bool // log in by the client's certificate
}

func (a address) host() string { return net.JoinHostPort(a.uri.Host, strconv.Itoa(a.uri.Port)) }

// parse reads the addresses. No error repeats them: they hold passwords.
func parse(urls string) ([]address, error) {
	if strings.TrimSpace(urls) == "" {
		return nil, errors.New("rabbitmq: the destination has no address; set url: amqp://user:password@host:5672/vhost")
	}
	var list []address
	for _, text := range strings.Split(urls, ",") {
		u, err := url.Parse(strings.TrimSpace(text))
		if err != nil {
			return nil, errors.New("rabbitmq: the address is not a URL; write amqp://user:password@host:5672/vhost, and percent-encode what is special in the password")
		}
		uri, err := amqp.ParseURI(u.String())
		if err != nil || u.Hostname() == "" {
			return nil, errors.New("rabbitmq: the address is not one of RabbitMQ; write amqp://user:password@host:5672/vhost, or amqps:// and so on")
		}
		list = append(list, address{uri: uri, external: u.Query().Get("auth_mechanism") == "external"})
	}
	return list, nil
}

// session is a connection with the channel that publishes. One Write has it at a
// time.
type session struct {
	user, vhost, host string

	raw     net.Conn
	conn    *amqp.Connection
	ch      *amqp.Channel
	returns chan amqp.Return
	reason  chan *amqp.Error // why the channel was closed
	watch   sync.WaitGroup

	mu      sync.Mutex
	blocked string        // why the broker takes nothing; "" when it does
	change  chan struct{} // closed at the next change of blocked
}

// open dials the addresses in turn, and makes what is published to ready.
func (s *Sink) open(ctx context.Context) (*session, error) {
	var all error
	for _, a := range s.addrs {
		ses, err := s.dial(ctx, a)
		if err == nil {
			if err = ses.prepare(ctx, s.c); err == nil {
				return ses, nil
			}
			ses.abort()
		}
		if all == nil {
			all = err
		} else {
			all = fmt.Errorf("%w; and then %w", all, err) // on one line
		}
		if ctx.Err() != nil {
			break
		}
	}
	return nil, all
}

// dial connects and logs in.
func (s *Sink) dial(ctx context.Context, a address) (*session, error) {
	var d net.Dialer
	tcp, err := d.DialContext(ctx, "tcp", a.host())
	if err != nil {
		return nil, fmt.Errorf("rabbitmq: %w; check the address, and that the broker runs: rabbitmqctl await_startup", err)
	}
	// Nothing below takes a context: its end closes the connection, which ends all.
	stop := context.AfterFunc(ctx, func() { _ = tcp.Close() })
	defer stop()
	ses := &session{user: a.uri.Username, vhost: a.uri.Vhost, host: a.host(), raw: tcp, change: make(chan struct{}),
		returns: make(chan amqp.Return, maxInFlight+1)}
	var wire net.Conn = tcp
	if a.uri.Scheme == "amqps" {
		t := s.c.TLS.Clone()
		if t == nil {
			t = &tls.Config{MinVersion: tls.VersionTLS12}
		}
		if t.ServerName == "" {
			t.ServerName = a.uri.Host
		}
		secure := tls.Client(tcp, t)
		if err := secure.HandshakeContext(ctx); err != nil {
			_ = tcp.Close()
			return nil, tlsError(a.host(), err)
		}
		wire = secure
	}
	if err := ses.login(wire, a, s.c.Name); err != nil {
		ses.abort()
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return nil, ses.loginError(err)
	}
	return ses, nil
}

func (ses *session) login(wire net.Conn, a address, name string) error {
	properties := amqp.NewConnectionProperties()
	properties.SetClientConnectionName(name)
	c := amqp.Config{Vhost: a.uri.Vhost, Properties: properties, Locale: "en_US", Heartbeat: 10 * time.Second,
		FrameSize: 128 << 10, SASL: []amqp.Authentication{a.uri.PlainAuth()}}
	if a.external {
		c.SASL = []amqp.Authentication{&amqp.ExternalAuth{}}
	}
	conn, err := amqp.Open(wire, c)
	if err != nil {
		return err
	}
	ses.conn = conn
	blocks := conn.NotifyBlocked(make(chan amqp.Blocking, 4))
	ses.watch.Go(func() {
		for b := range blocks { // closed with the connection
			ses.note(b)
		}
	})
	return nil
}

// publisher opens the channel that publishes.
func (ses *session) publisher() error {
	ch, err := ses.conn.Channel()
	if err == nil {
		ses.ch = ch
		ch.NotifyReturn(ses.returns)
		ses.reason = ch.NotifyClose(make(chan *amqp.Error, 1))
		err = ch.Confirm(false)
	}
	return err
}

// note remembers whether the broker takes messages.
func (ses *session) note(b amqp.Blocking) {
	ses.mu.Lock()
	defer ses.mu.Unlock()
	ses.blocked = ""
	if b.Active {
		ses.blocked = "no reason given"
		if b.Reason != "" {
			ses.blocked = b.Reason
		}
	}
	close(ses.change)
	ses.change = make(chan struct{})
}

// block returns why the broker takes nothing, and what is closed when that changes.
func (ses *session) block() (why string, change <-chan struct{}) {
	ses.mu.Lock()
	defer ses.mu.Unlock()
	return ses.blocked, ses.change
}

// alive reports whether the session was not closed from the other side.
func (ses *session) alive() bool { return !ses.conn.IsClosed() && !ses.ch.IsClosed() }

// cut ends the connection under everything that uses it.
func (ses *session) cut() { _ = ses.raw.Close() }

// abort ends the session without a word to the broker.
func (ses *session) abort() {
	ses.cut()
	if ses.conn != nil {
		_ = ses.conn.CloseDeadline(time.Now()) // finds it closed
		ses.watch.Wait()
	}
}

// goodbye is how long a broker has to answer that a session ends.
const goodbye = time.Second

// close ends an idle session.
func (ses *session) close() {
	_ = ses.conn.CloseDeadline(time.Now().Add(goodbye)) // all is confirmed: nothing can be lost
	ses.abort()
}
