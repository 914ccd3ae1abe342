package email_test

import (
	"context"
	"errors"
	"fmt"
	"net/mail"
	"strings"
	"testing"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/adapter/email"
	"github.com/onewrite/onewrite/internal/servers"
)

func TestNewSaysTheCure(t *testing.T) {
	ok := config("mail.example:587")
	ok.StartTLS = ""
	if _, err := email.New(ok); err != nil {
		t.Fatal(err)
	}
	for has, change := range map[string]func(*email.Config){
		"no address of a mail": func(c *email.Config) { c.URL = "http://user:canary@host" },
		"percent-encoded":      func(c *email.Config) { c.URL = "smtp://user:can%ary@host" },
		"port of url":          func(c *email.Config) { c.URL = "smtp://host:99999" },
		"only one of":          func(c *email.Config) { c.URL = "smtp://canary@host" },
		"none of required":     func(c *email.Config) { c.StartTLS = "maybe" },
		"go with smtps":        func(c *email.Config) { c.URL, c.StartTLS = "smtps://host", "off" },
		"timeout is negative":  func(c *email.Config) { c.Timeout = -1 },
		"sender is no address": func(c *email.Config) { c.Sender = "shop" },
		"to is missing":        func(c *email.Config) { c.To = "" },
		"subject is missing":   func(c *email.Config) { c.Subject = " " },
		"there is no body":     func(c *email.Config) { c.Text = "" },
		"subject is no templ":  func(c *email.Config) { c.Subject = "{{.Data.x" },
		"text is no template":  func(c *email.Config) { c.Text = "{{nope .Data}}" },
		"html is no template":  func(c *email.Config) { c.HTML = "<a href='{{if .Key}}'>{{end}}" },
		"sets the header":      func(c *email.Config) { c.Headers = map[string]string{"message-id": "x"} },
		"Content-Type itself":  func(c *email.Config) { c.Headers = map[string]string{"content-type": "x"} },
		"is no header name":    func(c *email.Config) { c.Headers = map[string]string{"A b": "x"} },
		"X-A is no template":   func(c *email.Config) { c.Headers = map[string]string{"X-A": "{{"} },
		"per_second":           func(c *email.Config) { c.PerSecond = -1 },
	} {
		c := ok
		change(&c)
		if _, err := email.New(c); err == nil || !strings.Contains(err.Error(), has) || strings.Contains(err.Error(), "canary") {
			t.Errorf("want %q, got %v", has, err)
		}
	}
}

// What cannot be made of an event is a refusal that names template and field, and no
// event can add a header or a recipient.
func TestPoison(t *testing.T) {
	s := newScripted(t, nil)
	c := config(s.addr)
	c.CC, c.ReplyTo = "{{with index .Data \"cc\"}}{{.}}{{end}}", "{{with index .Data \"reply\"}}{{.}}{{end}}"
	c.Headers = map[string]string{"X-Order": "{{.Key}}"}
	c.HTML = "<p>{{.Data.name}}</p>"
	sink := open(t, c)
	for data, has := range map[string]string{
		`{"name":"x","number":1}`:                                                               "to failed",
		`{"email":"a@example.com","number":1}`:                                                  `no entry for key "name"`,
		`{"email":"a@example.com","name":null,"number":1}`:                                      "{{.Data.name}}: the value is null",
		`{"email":null,"name":"x","number":1}`:                                                  "is null",
		`{"email":"","name":"x","number":1}`:                                                    "to is empty",
		`{"email":"nobody","name":"x","number":1}`:                                              "no list of addresses",
		`{"email":"a@example.com, b@example.com","name":"x","number":1}`:                        "is not one address",
		`{"email":"a@example.com;b@example.com","name":"x","number":1}`:                         "is not one address",
		`{"email":"g: a@example.com, b@example.com;","name":"x","number":1}`:                    "is not one address",
		`{"email":"a@example.com\r\nBcc: b@example.com","name":"x","number":1}`:                 "is not one address",
		`{"email":"\"a> RCPT TO:<b\"@example.com","name":"x","number":1}`:                       "read as another",
		`{"email":"a@example.com","name":"x","number":"1\nBcc: b@example.com"}`:                 "begin another header",
		`{"email":"a@example.com","name":"x","number":"1\rBcc: b@example.com"}`:                 "begin another header",
		`{"email":"a@example.com","name":"x","number":"1\u2028"}`:                               "begin another header",
		`{"email":"a@example.com","name":"x","number":1,"cc":"b@example.com\r\n\r\nbody"}`:      "cc failed",
		`{"email":"a@example.com","name":"x","number":1,"reply":"b@example.com,c@example.com"}`: "reply_to failed",
		`{"email":"a@example.com","name":"x","number":1`:                                        "application/json and is none",
		`"text"`: "to failed",
		`null`:   "to failed",
		`{"email":"a@example.com","name":"x","number":"` + strings.Repeat("x", 1000) + `"}`: "more than 900",
	} {
		n, err := sink.Write(context.Background(), []onewrite.Event{order("e-1", data)})
		if n != 0 || !errors.Is(err, onewrite.ErrRejected) || !strings.Contains(err.Error(), has) || !strings.Contains(err.Error(), "e-1") || strings.Contains(err.Error(), "_out") {
			t.Errorf("%.60s: Write = %d, %v; want %q", data, n, err, has)
		}
	}
	e := order("e-2", good)
	e.Key = "42\r\nBcc: b@example.com"
	if n, err := sink.Write(context.Background(), []onewrite.Event{e}); n != 0 || !errors.Is(err, onewrite.ErrRejected) || !strings.Contains(err.Error(), "headers.X-Order") {
		t.Errorf("a key of two lines: %d, %v", n, err)
	}
	if lines, conns := s.heard(); conns != 0 {
		t.Errorf("something was sent:\n%s", lines)
	}
}

// The whole of a mail, as a real server has got it; a repeat is the same mail.
func TestMail(t *testing.T) {
	server := servers.Mailpit(t)
	x := newInbox(server)
	c := config(server.SMTP())
	c.To, c.CC, c.ReplyTo = "{{address .Data.name .Data.email}}", "Büro <buero@example.com>, jane@example.com", "help@example.com"
	c.Subject = "Bestellung {{.Data.number}} für {{.Data.name}} über {{printf \"%.2f\" .Data.total}} €, und noch so viele Worte, dass die Zeile gefaltet wird"
	c.Text, c.HTML = "Grüße, {{.Data.name}}.\n.\nTotal {{.Data.total}}{{if gt (float .Data.total) 19.0}}!{{end}}\n{{json .Data.lines}}\n", "<p title=\"{{.Data.name}}\">{{.Data.name}} {{.Data.total}}</p>"
	c.Headers = map[string]string{"List-Unsubscribe": "<https://shop.example/{{.Key}}>", "x-topic": "{{.Topic}}"}
	sink := open(t, c)
	e := order("019d2a40-3f52-4a4e-8000-0000000000a1", `{"email":"jane@example.com","name":"Jane \"<b>\" Doe, Ärztin","number":12345678901234567890,"total":19.90,"lines":[{"sku":"a<b"},2.50]}`)
	for range 2 {
		if n, err := sink.Write(context.Background(), []onewrite.Event{e}); n != 1 || err != nil {
			t.Fatal(n, err)
		}
	}
	list, bodies := x.mails(t)
	if len(list) != 2 {
		t.Fatalf("%d mails", len(list))
	}
	h := list[0].Header
	dec := func(name string) string { text, _ := new(mimeDecoder).DecodeHeader(h.Get(name)); return text }
	for name, want := range map[string]string{
		"Date": "Fri, 02 Jan 2026 03:04:05 +0000", "From": `"Shop" <shop@example.com>`, "Reply-To": "<help@example.com>",
		"Subject":          "Bestellung 12345678901234567890 für Jane \"<b>\" Doe, Ärztin über 19.90 €, und noch so viele Worte, dass die Zeile gefaltet wird",
		"List-Unsubscribe": "<https://shop.example/42>", "X-Topic": "order.placed", "Auto-Submitted": "auto-generated", "Mime-Version": "1.0",
	} {
		if got := dec(name); got != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
	if id := h.Get("Message-Id"); !strings.HasPrefix(id, "<"+e.ID+".") || !strings.HasSuffix(id, "@example.com>") {
		t.Errorf("Message-ID %s", id)
	}
	to, err := h.AddressList("To")
	if err != nil || len(to) != 1 || *to[0] != (mail.Address{Name: `Jane "<b>" Doe, Ärztin`, Address: "jane@example.com"}) {
		t.Errorf("To: %v, %v", to, err)
	}
	want := "[text/plain; charset=utf-8]Grüße, Jane \"<b>\" Doe, Ärztin.\r\n.\r\nTotal 19.90!\r\n[{\"sku\":\"a<b\"},2.50]\r\n" +
		"[text/html; charset=utf-8]<p title=\"Jane &#34;&lt;b&gt;&#34; Doe, Ärztin\">Jane &#34;&lt;b&gt;&#34; Doe, Ärztin 19.90</p>"
	if string(bodies[0]) != want {
		t.Errorf("the body is\n%q, want\n%q", bodies[0], want)
	}
	delete(list[0].Header, "Received")
	delete(list[1].Header, "Received")
	if fmt.Sprint(list[0].Header, string(bodies[0])) != fmt.Sprint(list[1].Header, string(bodies[1])) {
		t.Errorf("a repeat is another mail:\n%v\n%v", list[0].Header, list[1].Header)
	}
}

// Message-IDs are those of event, source and destination.
func TestMessageID(t *testing.T) {
	seen := map[string]string{}
	server := servers.NewMailpit(t)
	x := newInbox(server)
	var want []string
	for _, destination := range []string{"a", "b"} {
		c := config(server.SMTP())
		c.Destination = destination
		sink := open(t, c)
		for _, source := range []string{"shop", "shop2"} {
			for _, id := range []string{"1", "2", "a b <x>@\r\n", "1.2", strings.Repeat("x", 300)} {
				e := order(id, good)
				e.Source = source
				if n, err := sink.Write(context.Background(), []onewrite.Event{e}); n != 1 || err != nil {
					t.Fatal(n, err)
				}
				want = append(want, destination+source+id)
			}
		}
	}
	list, _ := x.mails(t)
	for i, m := range list {
		id := m.Header.Get("Message-Id")
		if first, twice := seen[id]; twice || len(id) > 150 || strings.ContainsAny(id, " \r\n") {
			t.Errorf("%s of %q; also of %q", id, want[i], first)
		}
		seen[id] = want[i]
	}
	if len(seen) != 20 {
		t.Errorf("%d ids", len(seen))
	}
}
