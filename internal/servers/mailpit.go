package servers

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// MailServer is Mailpit: it takes mails by SMTP and shows them over HTTP. Its database
// is a file, and what it has taken outlives a kill.
type MailServer struct {
	bin        string
	smtp, http int // ports
	proc       *process
	flags      []string
	mu         sync.Mutex
}

// MailOption changes how [NewMailpit] starts its server.
type MailOption func(*MailServer) error

// MailLogin asks for a login, over TLS that STARTTLS has to begin; certificate and key
// are PEM.
func MailLogin(user, password, certificate, key string) MailOption {
	return func(m *MailServer) error {
		m.flags = append(m.flags, "--smtp-auth-file", m.proc.path("users"), "--smtp-tls-cert", m.proc.path("cert.pem"), "--smtp-tls-key", m.proc.path("key.pem"), "--smtp-require-starttls")
		return errors.Join(m.proc.write("users", user+":"+password+"\n"), m.proc.write("cert.pem", certificate), m.proc.write("key.pem", key))
	}
}

// MailChaos lets [MailServer.Chaos] make the server refuse.
func MailChaos() MailOption {
	return func(m *MailServer) error {
		m.flags = append(m.flags, "--enable-chaos")
		return nil
	}
}

// sharedMailpit is the server of this test process.
var sharedMailpit = sync.OnceValues(func() (*MailServer, error) { return launchMailpit() })

// Mailpit returns the test process's own mail server, started by the first call. Tests
// that stop or configure it take [NewMailpit].
func Mailpit(tb testing.TB) *MailServer {
	tb.Helper()
	m, err := sharedMailpit()
	if errors.Is(err, errMissing) {
		missing(tb, "%v", err)
	}
	if err != nil {
		tb.Fatal(err)
	}
	return m
}

// NewMailpit starts a mail server for this test alone and ends it with the test.
func NewMailpit(tb testing.TB, options ...MailOption) *MailServer {
	tb.Helper()
	m, err := launchMailpit(options...)
	if errors.Is(err, errMissing) {
		missing(tb, "%v", err)
	}
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := m.proc.close(); err != nil {
			tb.Error(err)
		}
	})
	return m
}

func launchMailpit(options ...MailOption) (*MailServer, error) {
	bin := filepath.Join(cacheDir(), "mailpit")
	if !isProgram(bin) {
		return nil, fmt.Errorf("mailpit is %w: %s", errMissing, installHint)
	}
	var err error
	for range 5 { // another process may take a port between the look and the start
		var m *MailServer
		if m, err = startMailpit(bin, options); err == nil {
			return m, nil
		}
	}
	return nil, err
}

func startMailpit(bin string, options []MailOption) (*MailServer, error) {
	ports, err := freePorts(2)
	if err != nil {
		return nil, err
	}
	proc, err := newProcess("mailpit", "pid", "KILL")
	if err != nil {
		return nil, err
	}
	m := &MailServer{bin: bin, smtp: ports[0], http: ports[1], proc: proc}
	for _, option := range options {
		err = errors.Join(err, option(m))
	}
	if err == nil {
		err = m.Restart()
	}
	if err != nil {
		return nil, errors.Join(err, proc.close())
	}
	return m, nil
}

// SMTP returns host:port of the mail server.
func (m *MailServer) SMTP() string { return loopback(m.smtp) }

// Pid returns the process, or 0 if it does not run.
func (m *MailServer) Pid() int { return m.proc.pid() }

// Kill ends the server as SIGKILL does and waits until it is gone. Its database stays.
func (m *MailServer) Kill() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.proc.kill()
}

// Restart starts the server on its ports and its database, and returns when it takes
// mails. The flags are for this run alone.
func (m *MailServer) Restart(flags ...string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.proc.running() {
		return nil
	}
	args := append([]string{"--listen", loopback(m.http), "--smtp", loopback(m.smtp), "--database", m.proc.path("mail.db"), "--disable-version-check", "--max", "0"}, slices.Concat(m.flags, flags)...)
	if err := m.proc.start(m.bin, args...); err != nil {
		return err
	}
	if err := m.proc.write("pid", strconv.Itoa(m.proc.pid())+"\n"); err != nil {
		return err
	}
	var err error
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		var conn net.Conn
		if conn, err = net.DialTimeout("tcp", m.SMTP(), time.Second); err == nil {
			_ = conn.Close()
			if err = m.Get("/api/v1/info", nil); err == nil {
				return nil
			}
		}
		if !m.proc.running() {
			return fmt.Errorf("servers: mailpit ended at its start:\n%s", m.proc.logTail())
		}
	}
	return fmt.Errorf("servers: mailpit does not answer: %w\n%s", err, m.proc.logTail())
}

// Get asks the server's HTTP API; answer is what JSON is read into, or a *[]byte.
func (m *MailServer) Get(path string, answer any) error {
	return m.ask(http.MethodGet, path, "", answer)
}

// Chaos makes the server refuse with a code at "Sender", "Recipient" or
// "Authentication", so many times in 100; see [MailChaos].
func (m *MailServer) Chaos(at string, code, percent int) error {
	return m.ask(http.MethodPut, "/api/v1/chaos", fmt.Sprintf(`{%q:{"ErrorCode":%d,"Probability":%d}}`, at, code, percent), nil)
}

func (m *MailServer) ask(method, path, body string, answer any) error {
	req, err := http.NewRequest(method, "http://"+loopback(m.http)+path, strings.NewReader(body))
	if err != nil {
		return fmt.Errorf("servers: %w", err)
	}
	resp, err := natsMonitor.Do(req) // a client that keeps no connection
	if err != nil {
		return fmt.Errorf("servers: mailpit: %w", err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode/100 != 2 {
		err = errors.New(resp.Status)
	}
	if raw, is := answer.(*[]byte); is {
		*raw = text
	} else if err == nil && answer != nil {
		err = json.Unmarshal(text, answer)
	}
	if err != nil {
		return fmt.Errorf("servers: mailpit: %s: %w: %.200s", path, err, text)
	}
	return nil
}
