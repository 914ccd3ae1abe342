package email

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/mail"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/onewrite/onewrite"
)

const (
	defaultTimeout = 15 * time.Second
	// textPatience is how many times as long the answer to a mail's text may take: the
	// server looks through it, and who does not wait sends it again.
	textPatience = 4
	// mailsAConnection is when a new connection is made: many servers hang up at some
	// number.
	mailsAConnection = 200
)

// Config says which server to send by, and what.
type Config struct {
	// URL is smtp://user:password@host:587 or smtps://user:password@host:465; without
	// a user there is no login. The ports are the defaults.
	URL string
	// StartTLS says whether smtp:// is encrypted: "required", which is the default,
	// "optional" or "off".
	StartTLS string
	// Destination is part of the Message-IDs, so that two destinations send two mails.
	Destination string
	// Sender is the address that mails come from: a@example.com or Shop <a@example.com>.
	Sender string
	// To, CC and ReplyTo are templates of addresses with commas between.
	To, CC, ReplyTo string
	// Subject is a template of one line.
	Subject string
	// Text and HTML are templates of the body; with both, the mail has both as
	// alternatives. HTML is escaped as html/template does it.
	Text, HTML string
	// Headers are more headers of every mail, their values templates.
	Headers map[string]string
	// PerSecond is the most mails a second; 0 is no limit.
	PerSecond int
	// Timeout bounds the time to connect and the wait for each answer; the answer to
	// the text of a mail may take four times as long. Default 15 s.
	Timeout time.Duration
	// TLS holds certificates, where the system's do not do; the least version is 1.2
	// in any case.
	TLS *tls.Config
	// Logger is told of connections; nil is silent.
	Logger *slog.Logger
}

// Sink sends mails over one connection. Its methods may be called by several
// goroutines at once; they take turns.
type Sink struct {
	server
	form    *form
	pace    time.Duration // between two mails; 0: none
	log     *slog.Logger
	closing context.Context // ends with Close
	end     context.CancelFunc

	turn   chan struct{} // holds one token; who has it owns all below
	now    *session      // nil: not connected
	next   time.Time     // when the next mail may go
	closed bool
}

// server is whom to connect to, and how.
type server struct {
	host, addr     string
	direct         bool   // TLS from the first byte
	starttls       string // required, optional, off
	user, password string
	timeout        time.Duration
	tls            *tls.Config
}

// New makes a sink; it connects to nobody yet. The error names what can never work
// in the configuration, a template for instance, and the cure.
func New(c Config) (*Sink, error) {
	srv, err := newServer(c)
	if err != nil {
		return nil, err
	}
	f, err := newForm(c)
	if err != nil {
		return nil, err
	}
	if c.PerSecond < 0 {
		return nil, errors.New("email: per_second is negative; set 0 for no limit")
	}
	s := &Sink{server: *srv, form: f, log: c.Logger, turn: make(chan struct{}, 1)}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	if c.PerSecond > 0 {
		s.pace = time.Second / time.Duration(c.PerSecond)
	}
	s.closing, s.end = context.WithCancel(context.Background())
	s.turn <- struct{}{}
	return s, nil
}

// newServer reads the address. Nothing of it is shown: it may hold a password.
func newServer(c Config) (*server, error) {
	u, err := url.Parse(c.URL)
	if err != nil || u.Scheme != "smtp" && u.Scheme != "smtps" || u.Hostname() == "" || strings.Trim(u.Path, "/") != "" || u.RawQuery != "" {
		return nil, errors.New("email: url is no address of a mail server; set it to smtp://user:password@host:587 or smtps://user:password@host:465, with what is special in the password percent-encoded")
	}
	s := &server{host: u.Hostname(), direct: u.Scheme == "smtps", starttls: c.StartTLS, timeout: c.Timeout}
	port := u.Port()
	if port == "" {
		port = map[bool]string{false: "587", true: "465"}[s.direct]
	}
	if n, err := strconv.Atoi(port); err != nil || n < 1 || n > 65535 {
		return nil, errors.New("email: the port of url is none; set one from 1 to 65535")
	}
	s.addr = net.JoinHostPort(s.host, port)
	s.user = u.User.Username()
	s.password, _ = u.User.Password()
	if s.user == "" && s.password != "" || s.user != "" && s.password == "" {
		return nil, errors.New("email: url has only one of user and password; write smtp://user:password@host:587, or neither")
	}
	switch s.starttls {
	case "":
		s.starttls = "required"
	case "required", "optional", "off":
	default:
		return nil, fmt.Errorf("email: starttls %q is none of required, optional, off; remove it for required", s.starttls)
	}
	if s.direct && c.StartTLS != "" && c.StartTLS != "required" {
		return nil, errors.New("email: starttls does not go with smtps://, which is encrypted from its begin; remove it")
	}
	if !s.direct && s.starttls == "off" && c.TLS != nil {
		return nil, errors.New("email: tls does not go with starttls: off; remove one of them")
	}
	if s.timeout < 0 {
		return nil, errors.New("email: timeout is negative; remove it for the default of 15s")
	}
	if s.timeout == 0 {
		s.timeout = defaultTimeout
	}
	s.tls = &tls.Config{}
	if c.TLS != nil {
		s.tls = c.TLS.Clone()
	}
	s.tls.MinVersion = max(s.tls.MinVersion, tls.VersionTLS12)
	if s.tls.ServerName == "" {
		s.tls.ServerName = s.host
	}
	return s, nil
}

// Write sends a mail for each event, one after the other, and returns how many the
// server has taken. What the errors mean says the table of the package.
func (s *Sink) Write(ctx context.Context, events []onewrite.Event) (n int, err error) {
	ctx, leave, err := s.enter(ctx)
	if err != nil {
		return 0, err
	}
	defer leave()
	for n = range events {
		m, err := s.form.compose(&events[n])
		if err != nil {
			return n, err
		}
		if err := s.wait(ctx); err != nil {
			return n, err
		}
		if err := s.connected(ctx, n == 0); err != nil {
			return n, err
		}
		err = s.now.send(ctx, m)
		if s.now.broken {
			s.drop()
		}
		if err != nil {
			return n, fmt.Errorf("email: event %s: %w", events[n].ID, err)
		}
	}
	return len(events), nil
}

// enter waits for the turn. The context that it returns ends with Close too.
func (s *Sink) enter(ctx context.Context) (context.Context, func(), error) {
	if err := ctx.Err(); err != nil {
		return nil, nil, fmt.Errorf("email: %w", context.Cause(ctx))
	}
	select {
	case <-s.turn:
	case <-ctx.Done():
		return nil, nil, fmt.Errorf("email: %w", context.Cause(ctx))
	case <-s.closing.Done():
		return nil, nil, fmt.Errorf("email: %w", os.ErrClosed)
	}
	if s.closed {
		s.turn <- struct{}{}
		return nil, nil, fmt.Errorf("email: %w", os.ErrClosed)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(s.closing, func() { cancel(os.ErrClosed) })
	return ctx, func() {
		stop()
		cancel(nil)
		s.turn <- struct{}{}
	}, nil
}

// wait keeps to the most mails a second.
func (s *Sink) wait(ctx context.Context) error {
	if s.pace == 0 {
		return nil
	}
	now := time.Now()
	if pause := s.next.Sub(now); pause > 0 {
		t := time.NewTimer(pause)
		defer t.Stop()
		select {
		case <-t.C:
		case <-ctx.Done():
			return fmt.Errorf("email: %w", context.Cause(ctx))
		}
		now = s.next
	}
	s.next = now.Add(s.pace)
	return nil
}

// connected makes sure of a connection. One from an earlier Write is asked whether it
// still lives, as a server hangs up on those that are silent.
func (s *Sink) connected(ctx context.Context, first bool) error {
	if s.now != nil && (s.now.sent >= mailsAConnection || first && s.now.reset(ctx) != nil) {
		s.drop()
	}
	if s.now != nil {
		return nil
	}
	now, err := s.dial(ctx)
	if err != nil {
		return fmt.Errorf("email: %w", err)
	}
	s.log.Debug("connected to the mail server", "host", s.host)
	s.now = now
	return nil
}

// drop ends the connection, politely where it still works.
func (s *Sink) drop() {
	if s.now != nil {
		s.now.quit()
		s.now = nil
	}
}

// Close ends the Write under way, which returns an error, and the connection. It may
// be called again.
func (s *Sink) Close() error {
	s.end()
	<-s.turn
	s.closed = true
	s.drop()
	s.turn <- struct{}{}
	return nil
}

// parseSender reads the address that mails come from.
func parseSender(text string) (*mail.Address, error) {
	a, err := mail.ParseAddress(text)
	if err != nil || !plainAddress(a.Address) {
		return nil, errors.New("email: sender is no address; set it to shop@example.com, or Shop <shop@example.com>")
	}
	return a, nil
}

var _ onewrite.Sink = (*Sink)(nil)
