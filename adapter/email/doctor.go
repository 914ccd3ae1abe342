package email

import (
	"context"
	"net/mail"
	"strings"
	"time"

	"github.com/onewrite/onewrite/internal/diagnosis"
)

// soonExpired is how long a certificate has to be good for.
const soonExpired = 14 * 24 * time.Hour

// Examine looks at a mail server and says what it finds; the caller adds the Subject.
// It connects and logs in as a delivery does, and begins a mail of the sender that it
// takes back. Nothing is sent.
func Examine(ctx context.Context, c Config) []diagnosis.Finding {
	e := &examiner{List: diagnosis.List{Prefix: "email: "}, c: c}
	e.run(ctx)
	return e.Found
}

type examiner struct {
	diagnosis.List
	c Config
}

func (e *examiner) run(ctx context.Context) {
	s, err := New(e.c)
	if err != nil {
		e.Failed("settings", err)
		return
	}
	x, err := s.dial(ctx)
	if err != nil {
		e.Failed("connection", err)
		return
	}
	defer x.quit()
	e.Add(diagnosis.OK, "connection", "", "%s answers as a mail server", s.addr)
	e.encryption(s, x)
	if s.user != "" {
		e.Add(diagnosis.OK, "login", "", "the server knows the user")
	} else {
		e.Add(diagnosis.OK, "login", "", "none, as configured")
	}
	if x.size > 0 {
		e.Add(diagnosis.OK, "size", "", "mails of up to %d bytes are taken", x.size)
	}
	e.mail(ctx, s, x)
}

// encryption looks at the certificate of the connection that was made.
func (e *examiner) encryption(s *Sink, x *session) {
	state, encrypted := x.c.TLSConnectionState()
	switch {
	case !encrypted && loopback(s.host):
		e.Add(diagnosis.OK, "tls", "", "none, and none needed: the server is on this machine")
	case !encrypted:
		e.Add(diagnosis.Warning, "tls", "starttls: required", "none: whoever is on the way can read mails and password")
	case s.tls.InsecureSkipVerify:
		e.Add(diagnosis.Warning, "tls", "tls: {ca: ca.pem}", "any certificate is accepted: whoever is on the way can read mails and password")
	default:
		until := state.PeerCertificates[0].NotAfter
		if left := time.Until(until); left < soonExpired {
			e.Add(diagnosis.Warning, "tls", "renew the certificate of "+s.host, "the certificate ends in %d days, on %s; then nothing is sent", int(left.Hours()/24), until.UTC().Format(time.DateOnly))
			return
		}
		e.Add(diagnosis.OK, "tls", "", "certificate good until %s", until.UTC().Format(time.DateOnly))
	}
}

// mail begins a mail and takes it back. Recipients are asked for only where they are
// the same for every event.
func (e *examiner) mail(ctx context.Context, s *Sink, x *session) {
	from := s.form.sender.Address
	err := x.guarded(ctx, func() error {
		if err := x.command(250, "MAIL FROM:<%s>", from); err != nil {
			return verdict(atSender, from, err)
		}
		return nil
	})
	if err != nil {
		e.Failed("sender", err)
		return
	}
	e.Add(diagnosis.OK, "sender", "", "the server takes mails of %s", from)
	for _, text := range []string{e.c.To, e.c.CC} {
		list, err := mail.ParseAddressList(text)
		if err != nil || strings.Contains(text, "{{") {
			continue
		}
		for _, to := range list {
			err := x.guarded(ctx, func() error {
				if err := x.command(25, "RCPT TO:<%s>", to.Address); err != nil {
					return verdict(atRecipient, to.Address, err)
				}
				return nil
			})
			if err != nil {
				e.Failed("recipient", err)
			} else {
				e.Add(diagnosis.OK, "recipient", "", "the server takes mails to %s", to.Address)
			}
			if x.broken {
				return
			}
		}
	}
	if x.reset(ctx) != nil {
		x.broken = true
	}
}
