package email

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/textproto"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/onewrite/onewrite"
)

const (
	// maxPause bounds the pause that a server can ask for.
	maxPause = time.Hour
	// greyPause is how long a mail waits that is to come later, if the server does not
	// say when. Servers that put off whom they do not know take a mail after one to
	// five minutes, some after fifteen; ten attempts are 27.
	greyPause = 3 * time.Minute
)

// failure is an error with what the pipeline asks errors for.
type failure struct {
	text     string
	cause    error // a sentinel, what went wrong below, or nil
	answered bool
	after    time.Duration
	code     int // of the server's answer; 0: there was none
}

func (f *failure) Error() string             { return f.text }
func (f *failure) Unwrap() error             { return f.cause }
func (f *failure) Answered() bool            { return f.answered }
func (f *failure) RetryAfter() time.Duration { return f.after }

func rejected(text, cure string) *failure {
	return &failure{cause: onewrite.ErrRejected, text: text + "; " + cure}
}

func tooLarge(text string) *failure {
	return rejected(text, "send less (the templates), or raise the limit of the server")
}

// stage is what an answer is to.
type stage int

const (
	atSender stage = iota
	atRecipient
	atText
)

func (s stage) String() string {
	return [...]string{"the sender", "the recipient", "the mail"}[s]
}

// about names the step that failed while a connection is made.
func about(step string, err error) error {
	var said *textproto.Error
	if errors.As(err, &said) {
		return &failure{cause: err, after: pauseOf(said), text: fmt.Sprintf("the server answered %s to %s; see its log", line(said), step)}
	}
	return err
}

// line is a server's answer, fit to be shown.
func line(said *textproto.Error) string {
	text := strings.Join(strings.Fields(strings.ToValidUTF8(said.Msg, "?")), " ")
	if len(text) > 200 {
		text = strings.ToValidUTF8(text[:200], "") + "…"
	}
	return strings.TrimSpace(fmt.Sprintf("%d %s", said.Code, strconv.Quote(text)))
}

var (
	enhanced = regexp.MustCompile(`^[245]\.(\d{1,3})\.(\d{1,3})\b`)
	pause    = regexp.MustCompile(`(?i)\b(\d{1,5})\s*(s|secs?|seconds?|m|mins?|minutes?)\b`)
)

// pauseOf reads the pause that an answer names; 0 if it names none.
func pauseOf(said *textproto.Error) time.Duration {
	m := pause.FindStringSubmatch(said.Msg)
	if m == nil || said.Code/100 != 4 {
		return 0
	}
	n, _ := strconv.Atoi(m[1]) // five digits at most
	unit := time.Second
	if m[2][0] == 'm' || m[2][0] == 'M' {
		unit = time.Minute
	}
	return min(time.Duration(n)*unit, maxPause)
}

// verdict is the table of the package.
func verdict(at stage, what string, err error) error {
	var said *textproto.Error
	if !errors.As(err, &said) {
		return cutOff(err)
	}
	if what != "" {
		what = " <" + what + ">"
	}
	f := judge(at, said, fmt.Sprintf("the server answered %s to %s%s", line(said), at, what))
	f.code = said.Code
	return f
}

func judge(at stage, said *textproto.Error, text string) *failure {
	system, large := false, said.Code == 552 && at != atRecipient
	if m := enhanced.FindStringSubmatch(said.Msg); m != nil {
		system = m[1] == "3" && m[2] != "4"
		large = m[1] == "3" && m[2] == "4" // 5.3.4: too large, whatever the code before it
	}
	switch code := said.Code; {
	case code == 421:
		return &failure{cause: said, after: pauseOf(said), text: text + ", and closed the connection; see why it has no time: the mail is sent again"}
	case code/100 == 4 && (system || at == atSender):
		return &failure{cause: said, after: pauseOf(said), text: text + "; see why the server has no room or no time: the mail is sent again"}
	case code/100 == 4:
		after := pauseOf(said)
		if after == 0 {
			after = greyPause
		}
		return &failure{cause: said, answered: true, after: after, text: text + "; the mail is sent again in " + after.String() + ", others meanwhile. A server that wants more time before it knows the sender: retry: {attempts: 40}"}
	case code/100 == 5 && large:
		return tooLarge(text)
	case code == 530 || code == 535:
		return &failure{cause: said, text: text + "; give url a user and a password: smtp://user:password@host:587"}
	case code == 503 || code/100 != 5:
		return &failure{cause: said, text: text + "; that is not how SMTP goes on: see the log of the server"}
	case at == atSender:
		return &failure{cause: said, text: text + "; set sender to an address that this user may send from"}
	case at == atRecipient:
		return rejected(text, "correct the address, or allow the server to send there")
	}
	return rejected(text, "see why the server refuses the mail")
}

// refusedLogin is about the answer to a login.
func (s *server) refusedLogin(said *textproto.Error) error {
	text := line(said)
	for _, secret := range s.secrets() {
		text = strings.ReplaceAll(text, secret, "***")
	}
	cure := "set user and password in url; what is special in them is percent-encoded"
	if said.Code/100 == 4 {
		cure = "see the log of the server: it cannot tell who we are for now"
	}
	return &failure{cause: said, after: pauseOf(said), text: fmt.Sprintf("the server answered %s to the login of %q; %s", text, s.user, cure)}
}

// unreached makes the error of a connection that could not be made.
func (s *server) unreached(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil && !errors.Is(cause, context.DeadlineExceeded) {
		return cause
	}
	var (
		known   *failure
		dns     *net.DNSError
		cert    *tls.CertificateVerificationError
		record  tls.RecordHeaderError
		unknown x509.UnknownAuthorityError
	)
	text, cure := err.Error(), "check that the server runs and can be reached from here"
	switch {
	case errors.As(err, &known):
		text, cure = known.text, ""
	case ctx.Err() != nil:
		text, cure = "no connection within "+s.timeout.String(), "check that the server runs and can be reached from here, or raise timeout"
	case errors.As(err, &dns):
		text, cure = "the name cannot be resolved: "+dns.Err, "check the host in url, and the name server"
	case errors.As(err, &unknown):
		cure = "name the authority that signed the server's certificate: tls: {ca: ca.pem}"
	case errors.As(err, &cert):
		cure = "renew or correct the certificate of the server, or set tls: {server_name: NAME} to the name it has"
	case errors.As(err, &record):
		text, cure = "the server does not speak TLS from the begin", "set url to smtp:// and port 587, or to the port for smtps://"
	}
	if cure != "" {
		text += "; " + cure
	}
	f := &failure{cause: err, text: s.addr + ": " + text}
	if known != nil {
		f.after = known.after
	}
	return f
}
