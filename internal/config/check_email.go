package config

import (
	"net/mail"
	"net/url"
	"os"
	"regexp"
	"strings"
	"text/template"
)

// mailFunctions are those that templates of mails have besides text/template's own;
// a test of relay holds them against the adapter's.
var mailFunctions = template.FuncMap{"json": stub, "int": stub, "float": stub, "address": stub}

var mailReserved = regexp.MustCompile(`(?i)^(from|to|cc|bcc|subject|date|message-id|sender|reply-to|mime-version|return-path|received|dkim-signature|content-.*)$`)

func stub(...any) string { return "" }

func (c *checker) email(path string, d Destination) {
	c.mailURL(path, d)
	if at := path + ".sender"; d.Sender != "" && !c.broken(at) {
		if _, err := mail.ParseAddress(d.Sender); err != nil {
			c.bad(at, c.show(at, d.Sender)+" is no address", "write sender: shop@example.com, or Shop <shop@example.com>")
		}
	}
	for key, text := range map[string]string{"to": d.To, "cc": d.CC, "reply_to": d.ReplyTo, "subject": d.Subject, "text": d.Text, "html": d.HTML} {
		c.mailTemplate(path+"."+key, text)
	}
	for _, name := range sorted(d.Headers) {
		at := path + ".headers." + name
		switch {
		case !headerName.MatchString(name):
			c.bad(at, "is not a header name", "use letters, digits and -")
		case mailReserved.MatchString(name):
			c.bad(at, "is a header that onewrite sets itself", "remove it")
		}
		c.mailTemplate(at, d.Headers[name].Reveal())
	}
	for key, pair := range map[string][2]string{"text": {d.Text, d.TextFile}, "html": {d.HTML, d.HTMLFile}} {
		at := path + "." + key + "_file"
		if pair[0] != "" && pair[1] != "" {
			c.bad(at, "does not go with "+key+": both are the same body", "keep one of the two")
		}
		if pair[1] == "" || c.broken(at) {
			continue
		}
		text, err := os.ReadFile(pair[1])
		if err != nil {
			c.bad(at, "cannot be read: "+plainError(err), "write the path of a file with the template")
			continue
		}
		c.mailTemplate(at, string(text))
	}
	written := d.Text + d.HTML + d.TextFile + d.HTMLFile
	for _, key := range []string{"text", "html", "text_file", "html_file"} {
		if c.broken(path + "." + key) {
			return
		}
	}
	if written == "" {
		c.bad(path+".text", "is missing: the mail would be empty", "write text: or html:, or both, or text_file: and html_file:")
	}
}

func (c *checker) mailTemplate(at, text string) {
	if c.broken(at) {
		return
	}
	if _, err := template.New("it").Funcs(mailFunctions).Parse(text); err != nil {
		c.bad(at, "is no template: "+strings.TrimPrefix(err.Error(), "template: it:"), `write Go's templates over the event: {{.Key}}, {{.Data.name}}, {{if …}} … {{end}}`)
	}
}

// mailURL checks the address of a mail server. Nothing of it is shown.
func (c *checker) mailURL(path string, d Destination) {
	at := path + ".url"
	if d.URL.Empty() || c.broken(at) {
		return
	}
	u, err := url.Parse(d.URL.Reveal())
	if err != nil || u.Scheme != "smtp" && u.Scheme != "smtps" || u.Hostname() == "" || u.Port() != "" && !goodPort(u.Port(), 1) || strings.Trim(u.Path, "/") != "" || u.RawQuery != "" {
		c.bad(at, "is not the address of a mail server", "write url: smtp://user:password@host:587, or smtps://user:password@host:465; percent-encode what is special in the password")
		return
	}
	if password, has := u.User.Password(); (u.User.Username() == "") != (!has || password == "") {
		c.bad(at, "has only one of user and password", "write both, or neither")
	}
	off := d.StartTLS == "off"
	switch {
	case u.Scheme == "smtps" && d.StartTLS != "" && d.StartTLS != "required":
		c.bad(path+".starttls", "does not go with smtps://, which is encrypted from its begin", "remove it")
	case off && u.Scheme == "smtp" && d.TLS != nil:
		c.bad(path+".tls", "does not go with starttls: off", "remove one of the two")
	case u.Scheme == "smtp" && d.StartTLS != "" && d.StartTLS != "required" && !loopback(u.Hostname()):
		c.warn(path+".starttls", "mails, and with off the password too, may go to another machine in clear text", "remove it: required is the default")
	}
}
