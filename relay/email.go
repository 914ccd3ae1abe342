package relay

import (
	"crypto/tls"
	"fmt"
	"log/slog"
	"os"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/adapter/email"
	"github.com/onewrite/onewrite/internal/config"
)

// mailsAWrite bounds the mails of one write, so that a position is stored now and then.
const mailsAWrite = 50

// mailBatch is how many mails one write may have: those of a second, where there is a
// limit.
func mailBatch(c config.Destination) int {
	if c.PerSecond > 0 {
		return min(c.PerSecond, mailsAWrite)
	}
	return mailsAWrite
}

func openEmail(name string, c config.Destination, log *slog.Logger) (onewrite.Sink, error) {
	t, err := c.TLS.Build()
	if err != nil {
		return nil, err
	}
	m, err := emailConfig(name, c, t, log)
	if err != nil {
		return nil, err
	}
	return openedSink(email.New(m))
}

// emailConfig reads the files of templates.
func emailConfig(name string, c config.Destination, t *tls.Config, log *slog.Logger) (email.Config, error) {
	m := email.Config{
		URL: c.URL.Reveal(), StartTLS: c.StartTLS, Destination: name, Sender: c.Sender, To: c.To, CC: c.CC, ReplyTo: c.ReplyTo, Subject: c.Subject,
		Text: c.Text, HTML: c.HTML, PerSecond: c.PerSecond, Timeout: c.Timeout, TLS: t, Logger: log, Headers: map[string]string{},
	}
	for key, value := range c.Headers {
		m.Headers[key] = value.Reveal()
	}
	for _, f := range []struct {
		key, path string
		to        *string
	}{{"text_file", c.TextFile, &m.Text}, {"html_file", c.HTMLFile, &m.HTML}} {
		if f.path == "" {
			continue
		}
		text, err := os.ReadFile(f.path)
		if err != nil {
			return m, fmt.Errorf("email: %s: %w; write the path of a file with the template", f.key, err)
		}
		*f.to = string(text)
	}
	return m, nil
}
