package email_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/adapter/email"
)

// scripted is a mail server that answers what a test wants, where no real one can be
// made to.
type scripted struct {
	addr  string
	l     net.Listener
	work  sync.WaitGroup
	mu    sync.Mutex
	says  map[string]string // by the begin of a command, "TEXT" for a mail's end
	lines []string          // heard
	conns int
}

func newScripted(t *testing.T, says map[string]string) *scripted {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &scripted{addr: l.Addr().String(), l: l, says: says}
	s.work.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			s.work.Go(func() { s.serve(c) })
		}
	})
	t.Cleanup(func() { _ = l.Close(); s.work.Wait() })
	return s
}

func (s *scripted) say(line, otherwise string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lines = append(s.lines, line)
	for begin, answer := range s.says {
		if strings.HasPrefix(line, begin) {
			return answer
		}
	}
	return otherwise
}

func (s *scripted) serve(c net.Conn) {
	defer func() { _ = c.Close() }()
	s.mu.Lock()
	s.conns++
	s.mu.Unlock()
	r := bufio.NewReader(c)
	answer := s.say("GREETING", "220 ready")
	for {
		if answer == "" { // hang up
			return
		}
		if _, err := fmt.Fprint(c, strings.ReplaceAll(answer, "\n", "\r\n")+"\r\n"); err != nil || strings.HasPrefix(answer, "421") {
			return
		}
		line, err := r.ReadString('\n')
		if err != nil {
			return
		}
		switch line = strings.TrimSpace(line); {
		case strings.HasPrefix(line, "EHLO"):
			answer = s.say(line, "250-scripted\n250 8BITMIME")
		case line == "DATA":
			if answer = s.say(line, "354 go on"); !strings.HasPrefix(answer, "354") {
				continue
			}
			if _, err := fmt.Fprint(c, answer+"\r\n"); err != nil {
				return
			}
			for line != ".\r\n" {
				if line, err = r.ReadString('\n'); err != nil {
					return
				}
			}
			answer = s.say("TEXT", "250 taken")
		case line == "QUIT":
			_, _ = fmt.Fprint(c, "221 bye\r\n")
			return
		default:
			answer = s.say(line, "250 ok")
		}
	}
}

func (s *scripted) heard() (string, int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return strings.Join(s.lines, "\n"), s.conns
}

func (s *scripted) set(says map[string]string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.says = says
}

// config is a good one to a server without TLS.
func config(addr string) email.Config {
	return email.Config{URL: "smtp://" + addr, StartTLS: "off", Destination: "mails", Sender: "Shop <shop@example.com>",
		To: "{{.Data.email}}", Subject: "Order {{.Data.number}}", Text: "Thank you, {{.Data.name}}.", Timeout: 20 * time.Second}
}

func open(t *testing.T, c email.Config) *email.Sink {
	t.Helper()
	s, err := email.New(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return s
}

func order(id, data string) onewrite.Event {
	return onewrite.Event{ID: id, Source: "shop", Topic: "order.placed", Type: "order.placed", Key: "42", ContentType: "application/json",
		Time: time.Date(2026, 1, 2, 3, 4, 5, 678900000, time.UTC), Data: []byte(data)}
}

const good = `{"email":"jane@example.com","name":"Jane","number":17}`

// The table of the package, row by row. After each the sink goes on without a new
// one, and nobody has got the mail.
func TestAnswers(t *testing.T) {
	type want struct {
		rejected, answered bool
		after              time.Duration
		has                string
	}
	s := newScripted(t, nil)
	sink := open(t, config(s.addr))
	for _, c := range []struct {
		at, answer string
		want       want
	}{
		{"RCPT", "550 5.1.1 no such user", want{rejected: true, has: "jane@example.com"}},
		{"RCPT", "553 bad mailbox", want{rejected: true}},
		{"RCPT", "554 5.7.1 relay access denied", want{rejected: true}},
		{"RCPT", "552 5.2.2 mailbox full", want{rejected: true}},
		{"RCPT", "450 4.2.0 greylisted, try again in 300 seconds", want{answered: true, after: 5 * time.Minute, has: "attempts"}},
		{"RCPT", "451 4.7.1 greylisted", want{answered: true, after: 3 * time.Minute}},
		{"RCPT", "452 4.3.1 no space, come back in 5 minutes", want{after: 5 * time.Minute}},
		{"RCPT", "451 4.3.0 queue is down", want{}},
		{"RCPT", "421 4.3.2 shutting down", want{}},
		{"RCPT", "530 5.7.0 authentication required", want{has: "user and a password"}},
		{"RCPT", "503 bad sequence", want{has: "how SMTP goes"}},
		{"RCPT", "252 cannot verify", want{}}, // taken, see below
		{"RCPT", "", want{has: "closed the connection"}},
		{"MAIL", "553 5.7.1 not owned by user", want{has: "set sender"}},
		{"MAIL", "550 no", want{has: "set sender"}},
		{"MAIL", "450 4.7.0 slow down: 90 s", want{after: 90 * time.Second}},
		{"MAIL", "552 5.3.4 too large", want{rejected: true, has: "templates"}},
		{"MAIL", "421 too many mails on this connection", want{}},
		{"DATA", "554 5.5.1 no valid recipients", want{rejected: true}},
		{"DATA", "451 4.3.0 queue is down", want{}},
		{"TEXT", "554 5.7.1 looks like spam", want{rejected: true}},
		{"TEXT", "550 no", want{rejected: true}},
		{"TEXT", "552 5.3.4 too large", want{rejected: true, has: "raise the limit"}},
		{"TEXT", "451 4.7.1 later", want{answered: true, after: 3 * time.Minute}},
		{"TEXT", "", want{has: "closed the connection"}},
		{"TEXT", "220 what", want{has: "how SMTP goes"}},
	} {
		name := c.at + " " + c.answer
		s.set(map[string]string{c.at: c.answer})
		n, err := sink.Write(context.Background(), []onewrite.Event{order("1", good)})
		if c.answer == "252 cannot verify" {
			if n != 1 || err != nil {
				t.Errorf("%s: Write = %d, %v", name, n, err)
			}
			continue
		}
		var f interface {
			Answered() bool
			RetryAfter() time.Duration
		}
		if n != 0 || !errors.As(err, &f) {
			t.Errorf("%s: Write = %d, %v", name, n, err)
			continue
		}
		if got := (want{errors.Is(err, onewrite.ErrRejected), f.Answered(), f.RetryAfter(), c.want.has}); got != c.want {
			t.Errorf("%s: %+v, want %+v", name, got, c.want)
		}
		if !strings.Contains(err.Error(), c.want.has) || !strings.Contains(err.Error(), "; ") || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v", name, err)
		}
		s.set(nil)
		if n, err := sink.Write(context.Background(), []onewrite.Event{order("2", good)}); n != 1 || err != nil {
			t.Errorf("after %s: Write = %d, %v", name, n, err)
		}
	}
}

// A mail goes to all or to nobody, and what stands behind a refused one is not sent.
func TestAllRecipientsOrNone(t *testing.T) {
	s := newScripted(t, map[string]string{"RCPT TO:<b@": "550 no such user"})
	c := config(s.addr)
	c.To, c.CC = "{{range .Data.to}}{{.}},{{end}}", "c@example.com"
	sink := open(t, c)
	mail := func(id, to string) onewrite.Event {
		return order(id, `{"name":"x","number":1,"to":[`+to+`]}`)
	}
	n, err := sink.Write(context.Background(), []onewrite.Event{mail("1", `"a@example.com"`), mail("2", `"a@example.com","b@example.com"`), mail("3", `"a@example.com"`)})
	lines, conns := s.heard()
	if n != 1 || !errors.Is(err, onewrite.ErrRejected) || !strings.Contains(err.Error(), "<b@example.com>") || strings.Count(lines, "DATA") != 1 || conns != 1 {
		t.Errorf("Write = %d, %v\n%s", n, err, lines)
	}
	if !strings.HasSuffix(lines, "RCPT TO:<b@example.com>\nRSET") {
		t.Errorf("the begun mail was not taken back:\n%s", lines)
	}
}

// One connection serves many mails of many Writes; one that died meanwhile costs no
// failure.
func TestOneConnection(t *testing.T) {
	s := newScripted(t, nil)
	sink := open(t, config(s.addr))
	for i := range 5 {
		if n, err := sink.Write(context.Background(), []onewrite.Event{order(fmt.Sprint(i), good), order(fmt.Sprint(i, "b"), good)}); n != 2 || err != nil {
			t.Fatal(n, err)
		}
	}
	if lines, conns := s.heard(); conns != 1 || strings.Count(lines, "TEXT") != 10 {
		t.Errorf("%d connections for\n%s", conns, lines)
	}
	s.set(map[string]string{"RSET": ""})
	if n, err := sink.Write(context.Background(), []onewrite.Event{order("x", good)}); n != 1 || err != nil {
		t.Errorf("after the server hung up: %d, %v", n, err)
	}
	s.set(nil)
	many := make([]onewrite.Event, 450)
	for i := range many {
		many[i] = order(fmt.Sprint("m", i), good)
	}
	if n, err := sink.Write(context.Background(), many); n != len(many) || err != nil {
		t.Fatal(n, err)
	}
	if _, conns := s.heard(); conns != 4 {
		t.Errorf("%d connections for 200 mails each", conns)
	}
}

// What is wrong before any mail is an outage, and says what to do.
func TestConnectionsThatFail(t *testing.T) {
	login := func(addr string) email.Config {
		c := config(addr)
		c.URL = "smtp://relay:canary-word@" + addr
		return c
	}
	ehlo := func(words string) map[string]string {
		return map[string]string{"EHLO": "250-scripted\n250 " + words}
	}
	with := func(m map[string]string, k, v string) map[string]string { m[k] = v; return m }
	for name, c := range map[string]struct {
		says  map[string]string
		start string
		has   string
		after time.Duration
	}{
		"greeting 554":      {says: map[string]string{"GREETING": "554 go away"}, start: "off", has: "see its log"},
		"greeting 421":      {says: map[string]string{"GREETING": "421 4.7.0 try again in 60 seconds"}, start: "off", has: "greeting", after: time.Minute},
		"greeting nothing":  {says: map[string]string{"GREETING": ""}, start: "off", has: "check that the server runs"},
		"endless greeting":  {says: map[string]string{"GREETING": strings.Repeat("220-more\n", 20_000) + "220 end"}, start: "off", has: "does not end"},
		"endless EHLO":      {says: map[string]string{"EHLO": strings.Repeat("250-more\n", 20_000) + "250 end"}, start: "off", has: "does not end"},
		"no STARTTLS":       {says: ehlo("AUTH PLAIN"), has: "smtps://"},
		"STARTTLS refused":  {says: with(ehlo("STARTTLS"), "STARTTLS", "454 not now"), has: "STARTTLS"},
		"no AUTH":           {says: ehlo("8BITMIME"), start: "off", has: "remove user"},
		"other AUTH":        {says: ehlo("AUTH GSSAPI"), start: "off", has: "GSSAPI"},
		"AUTH PLAIN 535":    {says: with(ehlo("AUTH LOGIN PLAIN"), "AUTH", "535 5.7.8 no: AHJlbGF5AGNhbmFyeS13b3Jk canary-word"), start: "off", has: "set user and password"},
		"AUTH PLAIN 454":    {says: with(ehlo("AUTH PLAIN"), "AUTH", "454 4.7.0 no directory"), start: "off", has: "see the log"},
		"AUTH LOGIN":        {says: with(ehlo("AUTH LOGIN"), "AUTH", "334 VXNlcm5hbWU6"), start: "off", has: "login"},
		"AUTH CRAM-MD5 535": {says: with(with(ehlo("AUTH CRAM-MD5"), "AUTH", "334 PDE+"), "cmVsYXk", "535 no"), start: "off", has: "set user and password"},
	} {
		s := newScripted(t, c.says)
		cfg := login(s.addr)
		if cfg.StartTLS = c.start; strings.HasPrefix(name, "greeting") || strings.HasPrefix(name, "endless") {
			cfg = config(s.addr)
		}
		n, err := open(t, cfg).Write(context.Background(), []onewrite.Event{order("1", good)})
		var f interface {
			Answered() bool
			RetryAfter() time.Duration
		}
		switch {
		case n != 0 || err == nil || errors.Is(err, onewrite.ErrRejected) || !errors.As(err, &f) || f.Answered():
			t.Errorf("%s: Write = %d, %v; want an outage", name, n, err)
		case !strings.Contains(err.Error(), c.has) || strings.Contains(err.Error(), "canary") || strings.Contains(err.Error(), "AHJl"):
			t.Errorf("%s: %v, want %q", name, err, c.has)
		case f.RetryAfter() != c.after:
			t.Errorf("%s: RetryAfter is %v", name, f.RetryAfter())
		}
	}
}

// Without the server's word, nothing is sent that it does not take.
func TestWhatTheServerOffers(t *testing.T) {
	s := newScripted(t, map[string]string{"EHLO": "250-scripted\n250 SIZE 700"})
	sink := open(t, config(s.addr))
	if n, err := sink.Write(context.Background(), []onewrite.Event{order("1", good)}); n != 1 || err != nil {
		t.Fatal(n, err)
	}
	if lines, _ := s.heard(); !strings.Contains(lines, " SIZE=") || strings.Contains(lines, "8BITMIME") {
		t.Errorf("heard\n%s", lines)
	}
	large := order("2", `{"email":"jane@example.com","number":1,"name":"`+strings.Repeat("x", 1000)+`"}`)
	if n, err := sink.Write(context.Background(), []onewrite.Event{large}); n != 0 || !errors.Is(err, onewrite.ErrRejected) || !strings.Contains(err.Error(), "700 at most") {
		t.Errorf("a large one: %d, %v", n, err)
	}
	unicode := order("3", `{"email":"jürgen@example.com","number":1,"name":"x"}`)
	if n, err := sink.Write(context.Background(), []onewrite.Event{unicode}); n != 0 || !errors.Is(err, onewrite.ErrRejected) || !strings.Contains(err.Error(), "SMTPUTF8") {
		t.Errorf("an address of other characters: %d, %v", n, err)
	}
}

// A rate is kept: so many mails take so long at least.
func TestPerSecond(t *testing.T) {
	s := newScripted(t, nil)
	c := config(s.addr)
	c.PerSecond = 50
	sink := open(t, c)
	start := time.Now()
	var events []onewrite.Event
	for i := range 11 {
		events = append(events, order(fmt.Sprint(i), good))
	}
	if n, err := sink.Write(context.Background(), events); n != 11 || err != nil {
		t.Fatal(n, err)
	}
	if took := time.Since(start); took < 200*time.Millisecond { // no less can be: 10 pauses of 20 ms
		t.Errorf("11 mails of 50 a second within %v", took)
	}
	ctx, cancel := context.WithCancel(context.Background())
	c.PerSecond = 1
	sink = open(t, c)
	done := make(chan error)
	go func() {
		_, err := sink.Write(ctx, events[:2])
		done <- err
	}()
	for {
		if lines, _ := s.heard(); strings.Count(lines, "TEXT") == 12 {
			break
		}
		time.Sleep(time.Millisecond)
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("the end of the context within a pause: %v", err)
	}
}
