package email

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"maps"
	"mime"
	"mime/quotedprintable"
	"net/mail"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/onewrite/onewrite"
)

const (
	softLine = 76  // where headers are folded
	hardLine = 900 // what no server has to take more of in a line is 998
)

// message is a mail as it goes out.
type message struct {
	sender     string
	recipients []string // each once
	utf8       bool     // an address has other characters than ASCII
	text       []byte
}

// own are the headers that the adapter makes itself; Content-* too.
var own = []string{"From", "To", "Cc", "Bcc", "Subject", "Date", "Message-Id", "Sender", "Reply-To", "Mime-Version", "Return-Path", "Received", "Dkim-Signature"}

// plainAddr are the addresses that can stand between < and > of SMTP as they are.
// net/mail takes the quotes off others, and then they say something else.
var plainAddr = regexp.MustCompile(`^[^\x00-\x20\x7f<>()\[\]\\,;:"@]+@[^\x00-\x20\x7f<>()\[\]\\,;:"@]+$`)

func plainAddress(a string) bool { return len(a) <= 254 && plainAddr.MatchString(a) }

// compose makes the mail of an event. Every error is one that is ErrRejected.
func (f *form) compose(e *onewrite.Event) (*message, error) {
	v, err := viewOf(e)
	if err != nil {
		return nil, refused(e, err)
	}
	m, err := f.write(e, v)
	if err != nil {
		return nil, refused(e, err)
	}
	return m, nil
}

func refused(e *onewrite.Event, err error) error {
	return fmt.Errorf("email: event %s: %w", e.ID, rejected(err.Error(), "correct the template, or what publishes the event"))
}

func (f *form) write(e *onewrite.Event, v *view) (*message, error) {
	m := &message{sender: f.sender.Address}
	id := f.messageID(e)
	var b bytes.Buffer
	if !e.Time.IsZero() {
		header(&b, "Date", e.Time.UTC().Format(time.RFC1123Z))
	}
	header(&b, "From", f.sender.String())
	for _, part := range []struct {
		name string
		t    *field
		to   bool // it receives the mail
	}{{"To", f.to, true}, {"Cc", f.cc, true}, {"Reply-To", f.replyTo, false}} {
		if part.t == nil {
			continue
		}
		list, err := part.t.addresses(v)
		if err != nil {
			return nil, err
		}
		if len(list) == 0 {
			continue
		}
		var texts []string
		for _, a := range list {
			texts = append(texts, a.String())
			m.utf8 = m.utf8 || strings.ContainsFunc(a.Address, func(r rune) bool { return r >= 0x80 })
			if part.to && !slices.Contains(m.recipients, a.Address) {
				m.recipients = append(m.recipients, a.Address)
			}
		}
		header(&b, part.name, strings.Join(texts, ", "))
	}
	if len(m.recipients) == 0 {
		return nil, fmt.Errorf("to is empty: nobody would get the mail")
	}
	header(&b, "Message-ID", id)
	subject, err := f.subject.line(v)
	if err != nil {
		return nil, err
	}
	header(&b, "Subject", mime.QEncoding.Encode("utf-8", subject))
	for _, name := range slices.Sorted(maps.Keys(f.headers)) {
		value, err := f.headers[name].line(v)
		if err != nil {
			return nil, err
		}
		header(&b, name, mime.QEncoding.Encode("utf-8", value))
	}
	if _, set := f.headers["Auto-Submitted"]; !set {
		header(&b, "Auto-Submitted", "auto-generated") // so that no absence note answers
	}
	header(&b, "MIME-Version", "1.0")
	if err := f.body(&b, v, id); err != nil {
		return nil, err
	}
	m.text = b.Bytes()
	for line := range bytes.Lines(m.text) {
		if len(line) > hardLine {
			return nil, fmt.Errorf("the header that begins with %.40q has a word of more than %d bytes", line, hardLine)
		}
	}
	return m, nil
}

// messageID is the same for the same event and destination, and no other's.
func (f *form) messageID(e *onewrite.Event) string {
	sum := sha256.New()
	for _, part := range []string{f.destination, e.Source, e.ID} {
		_, _ = io.WriteString(sum, strconv.Itoa(len(part))+":"+part) // a hash cannot fail
	}
	id := hex.EncodeToString(sum.Sum(nil)[:16])
	if len(e.ID) <= 64 && shown.MatchString(e.ID) { // it helps whoever reads a mail server's log
		id = e.ID + "." + id
	}
	return "<" + id + "@" + f.domain + ">"
}

var shown = regexp.MustCompile(`^[A-Za-z0-9_-]+$`)

// body writes the headers of the content, and the content.
func (f *form) body(b *bytes.Buffer, v *view, id string) error {
	boundary := "=_" + strings.Trim(strings.SplitN(id, "@", 2)[0], "<") // no encoded line has =_
	boundary = boundary[:2] + boundary[max(2, len(boundary)-32):]
	both := f.text != nil && f.html != nil
	if both {
		header(b, "Content-Type", `multipart/alternative; boundary="`+boundary+`"`)
		b.WriteString("\r\n")
	}
	for _, part := range []struct {
		t    *field
		kind string
	}{{f.text, "text/plain"}, {f.html, "text/html"}} {
		if part.t == nil {
			continue
		}
		text, err := part.t.render(v)
		if err != nil {
			return err
		}
		if both {
			b.WriteString("--" + boundary + "\r\n")
		}
		header(b, "Content-Type", part.kind+"; charset=utf-8")
		header(b, "Content-Transfer-Encoding", "quoted-printable")
		b.WriteString("\r\n")
		w := quotedprintable.NewWriter(b)
		_, _ = io.WriteString(w, strings.ToValidUTF8(text, "\ufffd")) // into memory
		_ = w.Close()
		b.WriteString("\r\n")
	}
	if both {
		b.WriteString("--" + boundary + "--\r\n")
	}
	return nil
}

// header writes a header, folded at spaces. The value has no line ends.
func header(b *bytes.Buffer, name, value string) {
	b.WriteString(name + ":")
	at := len(name) + 1
	for i, word := range strings.Fields(value) {
		if i > 0 && at+1+len(word) > softLine {
			b.WriteString("\r\n")
			at = 0
		}
		b.WriteString(" " + word)
		at += 1 + len(word)
	}
	b.WriteString("\r\n")
}

// addresses renders a list of addresses with commas between.
func (t *field) addresses(v *view) ([]*mail.Address, error) {
	text, err := t.line(v)
	if err != nil {
		return nil, err
	}
	if text = strings.Trim(text, ", \t"); text == "" {
		return nil, nil
	}
	list, err := mail.ParseAddressList(text)
	if err != nil {
		return nil, fmt.Errorf("%s is no list of addresses: %s: %q", t.name, strings.TrimPrefix(err.Error(), "mail: "), short(text, 80))
	}
	for _, a := range list {
		if !plainAddress(a.Address) {
			return nil, fmt.Errorf("%s has an address that a mail server would read as another: %q", t.name, short(a.Address, 80))
		}
	}
	return list, nil
}

// short returns at most n bytes of a text.
func short(text string, n int) string {
	if len(text) > n {
		return strings.ToValidUTF8(text[:n], "") + "…"
	}
	return text
}
