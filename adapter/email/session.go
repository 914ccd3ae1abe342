package email

import (
	"context"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/smtp"
	"net/textproto"
	"os"
	"strconv"
	"strings"
	"time"
)

// maxAnswer bounds what is read of one answer, in bytes.
const maxAnswer = 64 << 10

// session is one connection, logged in.
type session struct {
	conn    net.Conn
	c       *smtp.Client
	timeout time.Duration
	size    int64 // the largest mail that the server takes; 0: it does not say
	utf8    bool  // the server takes addresses beyond ASCII
	eight   bool  // the server takes 8BITMIME
	sent    int   // mails
	broken  bool  // of no more use
	fed     bool  // a mail was begun
	encoded bool  // by TLS
}

// bounded ends a connection whose answers do not end.
type bounded struct {
	net.Conn
	left int // bytes until the next Write
	over error
}

var errEndless = errors.New("the server's answer does not end")

func (b *bounded) Read(p []byte) (int, error) {
	if b.left <= 0 {
		b.over = errEndless // for good: what follows would be taken for another answer
		return 0, b.over
	}
	n, err := b.Conn.Read(p[:min(len(p), b.left)])
	b.left -= n
	return n, err
}

func (b *bounded) Write(p []byte) (int, error) {
	if b.over != nil {
		return 0, b.over
	}
	b.left = maxAnswer
	return b.Conn.Write(p)
}

// dial connects, encrypts and logs in.
func (s *server) dial(ctx context.Context) (*session, error) {
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	d := net.Dialer{KeepAlive: 15 * time.Second}
	raw, err := d.DialContext(ctx, "tcp", s.addr)
	if err != nil {
		return nil, s.unreached(ctx, err)
	}
	stop := context.AfterFunc(ctx, func() { _ = raw.Close() }) // ends whatever waits
	x, err := s.greet(ctx, raw)
	if err == nil && !stop() {
		err = context.Cause(ctx)
	}
	if err != nil {
		stop()
		_ = raw.Close()
		return nil, s.unreached(ctx, err)
	}
	return x, nil
}

func (s *server) greet(ctx context.Context, raw net.Conn) (*session, error) {
	x := &session{conn: raw, timeout: s.timeout}
	var conn net.Conn = &bounded{Conn: raw, left: maxAnswer}
	if s.direct {
		t := tls.Client(conn, s.tls)
		if err := t.HandshakeContext(ctx); err != nil {
			return nil, err
		}
		conn, x.encoded = t, true
	}
	var err error
	if x.c, err = smtp.NewClient(conn, s.host); err != nil {
		return nil, about("greeting", err)
	}
	name, err := os.Hostname()
	if err != nil || strings.ContainsFunc(name, func(r rune) bool { return r <= ' ' || r > '~' }) || name == "" {
		name = "localhost"
	}
	if err := x.c.Hello(name); err != nil {
		return nil, about("EHLO", err)
	}
	if err := s.encrypt(x); err != nil {
		return nil, err
	}
	if err := s.login(x); err != nil {
		return nil, err
	}
	_, text := x.c.Extension("SIZE")
	x.size, _ = strconv.ParseInt(text, 10, 64) // 0 also where it says nothing
	x.utf8, _ = x.c.Extension("SMTPUTF8")
	x.eight, _ = x.c.Extension("8BITMIME")
	return x, nil
}

// encrypt goes over to TLS, where the connection is not encrypted yet.
func (s *server) encrypt(x *session) error {
	if s.direct || s.starttls == "off" {
		return nil
	}
	if offered, _ := x.c.Extension("STARTTLS"); !offered {
		if s.starttls == "optional" {
			return nil
		}
		return &failure{text: "the server does not offer STARTTLS, so mails and password would go in clear text; set url to smtps:// and its port if it has one, or starttls: off on your own network"}
	}
	if err := x.c.StartTLS(s.tls); err != nil {
		return about("STARTTLS", err)
	}
	x.encoded = true
	return nil
}

// login says who we are, if there is a user.
func (s *server) login(x *session) error {
	if s.user == "" {
		return nil
	}
	if !x.encoded && s.starttls != "off" && !loopback(s.host) {
		return &failure{text: "the server did not offer STARTTLS this time, and a password is not sent in clear text; set starttls: required, or off on your own network"}
	}
	offered, list := x.c.Extension("AUTH")
	if !offered {
		return &failure{text: "the server offers no login, and url has a user; remove user and password from url, or take the port for submission: 587"}
	}
	err := x.c.Auth(&auth{list: strings.Fields(strings.ToUpper(list)), user: s.user, password: s.password})
	var said *textproto.Error
	if errors.As(err, &said) {
		return s.refusedLogin(said)
	}
	if err != nil {
		return fmt.Errorf("login: %w", err)
	}
	return nil
}

func loopback(host string) bool {
	ip := net.ParseIP(host)
	return strings.EqualFold(host, "localhost") || ip != nil && ip.IsLoopback()
}

// auth takes the first way that both know. The standard library's own refuse more
// than we do: that TLS is there was looked at already.
type auth struct {
	list           []string
	user, password string
	cram           smtp.Auth
	asked          int
	way            string
}

// Start implements smtp.Auth.
func (a *auth) Start(info *smtp.ServerInfo) (string, []byte, error) {
	for _, way := range []string{"PLAIN", "LOGIN", "CRAM-MD5"} {
		for _, has := range a.list {
			if has == way && a.way == "" {
				a.way = way
			}
		}
	}
	switch a.way {
	case "PLAIN":
		return a.way, []byte("\x00" + a.user + "\x00" + a.password), nil
	case "LOGIN":
		return a.way, nil, nil
	case "CRAM-MD5":
		a.cram = smtp.CRAMMD5Auth(a.user, a.password)
		return a.cram.Start(info)
	}
	return "", nil, &failure{text: fmt.Sprintf("the server offers the logins %s, and onewrite knows PLAIN, LOGIN and CRAM-MD5; allow one of them there", strings.Join(a.list, ", "))}
}

// Next implements smtp.Auth.
func (a *auth) Next(said []byte, more bool) ([]byte, error) {
	switch {
	case !more:
		return nil, nil
	case a.cram != nil:
		return a.cram.Next(said, more)
	case a.way == "LOGIN" && a.asked == 0:
		a.asked++
		return []byte(a.user), nil
	case a.way == "LOGIN" && a.asked == 1:
		a.asked++
		return []byte(a.password), nil
	}
	return nil, errors.New("the server asks for more than was agreed")
}

// secrets are what no error may repeat.
func (s *server) secrets() []string {
	if s.password == "" {
		return nil
	}
	return []string{
		base64.StdEncoding.EncodeToString([]byte("\x00" + s.user + "\x00" + s.password)),
		base64.StdEncoding.EncodeToString([]byte(s.password)), s.password,
	}
}

// command sends a line and wants an answer of a code, or of a class of codes.
func (x *session) command(expect int, format string, args ...any) error {
	if err := x.conn.SetDeadline(time.Now().Add(x.timeout)); err != nil {
		return err
	}
	id, err := x.c.Text.Cmd(format, args...)
	if err != nil {
		return err
	}
	x.c.Text.StartResponse(id)
	defer x.c.Text.EndResponse(id)
	_, _, err = x.c.Text.ReadResponse(expect)
	return err
}

// guarded runs f and closes the connection when ctx ends meanwhile. An error that is
// not an answer makes the session useless.
func (x *session) guarded(ctx context.Context, f func() error) error {
	stop := context.AfterFunc(ctx, func() { _ = x.conn.Close() })
	err := f()
	if !stop() {
		x.broken = true
		if err != nil {
			return context.Cause(ctx)
		}
	}
	if code := codeOf(err); err != nil && (code == 0 || code == 421) {
		x.broken = true
	}
	return err
}

// codeOf is the code of the answer that an error is about; 0 if there was none.
func codeOf(err error) int {
	var f *failure
	var said *textproto.Error
	switch {
	case errors.As(err, &f):
		return f.code
	case errors.As(err, &said):
		return said.Code
	}
	return 0
}

// reset forgets a mail that was begun, and tells whether the connection lives.
func (x *session) reset(ctx context.Context) error {
	return x.guarded(ctx, func() error { return x.command(250, "RSET") })
}

// send sends one mail; see the table of the package.
func (x *session) send(ctx context.Context, m *message) error {
	if x.size > 0 && int64(len(m.text)) > x.size {
		return tooLarge(fmt.Sprintf("the mail has %d bytes, and the server takes %d at most", len(m.text), x.size))
	}
	if m.utf8 && !x.utf8 {
		return rejected("an address has other characters than ASCII, and the server takes none (it does not offer SMTPUTF8)", "use an address of ASCII, or another server")
	}
	err := x.guarded(ctx, func() error { return x.transfer(m) })
	if err == nil {
		x.sent++
		return nil
	}
	if !x.broken && x.fed && x.reset(ctx) != nil {
		x.broken = true
	}
	return err
}

func (x *session) transfer(m *message) error {
	options := ""
	if x.eight {
		options += " BODY=8BITMIME"
	}
	if m.utf8 {
		options += " SMTPUTF8"
	}
	if x.size > 0 {
		options += fmt.Sprintf(" SIZE=%d", len(m.text))
	}
	x.fed = true
	if err := x.command(250, "MAIL FROM:<%s>%s", m.sender, options); err != nil {
		return verdict(atSender, m.sender, err)
	}
	for _, to := range m.recipients {
		if err := x.command(25, "RCPT TO:<%s>", to); err != nil {
			return verdict(atRecipient, to, err)
		}
	}
	if err := x.command(354, "DATA"); err != nil {
		return verdict(atText, "", err)
	}
	if err := x.conn.SetDeadline(time.Now().Add(textPatience * x.timeout)); err != nil {
		return err
	}
	w := x.c.Text.DotWriter()
	_, err := w.Write(m.text)
	if err = errors.Join(err, w.Close()); err != nil {
		return cutOff(err)
	}
	if _, _, err = x.c.Text.ReadResponse(250); err != nil {
		return verdict(atText, "", err)
	}
	x.fed = false
	return nil
}

// quit ends the connection; a server that does not answer is not waited for long.
func (x *session) quit() {
	if !x.broken {
		x.timeout = min(x.timeout, time.Second)
		_ = x.command(221, "QUIT") // it is given up in any case
	}
	_ = x.conn.Close()
}

// cutOff tells that the connection ended, without what net says of addresses.
func cutOff(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return &failure{cause: err, text: "the server closed the connection; see its log. The mail is sent again"}
	}
	return &failure{cause: err, text: err.Error() + "; check that the server can be reached. The mail is sent again"}
}
