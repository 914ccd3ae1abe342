package email_test

import (
	"bytes"
	"fmt"
	"io"
	"mime"
	"mime/multipart"
	"mime/quotedprintable"
	"net/mail"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/adapter/email"
	"github.com/onewrite/onewrite/internal/cloudevents"
	"github.com/onewrite/onewrite/internal/faultnet"
	"github.com/onewrite/onewrite/internal/servers"
	"github.com/onewrite/onewrite/onewritetest"
)

// inbox reads what a mail server has got, each mail once.
type inbox struct {
	m  *servers.MailServer
	mu sync.Mutex
	by map[string]*mail.Message
	// bodies are those of the mails, read.
	bodies map[string][]byte
}

func newInbox(m *servers.MailServer) *inbox {
	return &inbox{m: m, by: map[string]*mail.Message{}, bodies: map[string][]byte{}}
}

type listed struct{ ID, Created string }

// mails returns the mails in the order in which they came, and their bodies.
func (x *inbox) mails(t *testing.T) (list []*mail.Message, bodies [][]byte) {
	t.Helper()
	x.mu.Lock()
	defer x.mu.Unlock()
	var all []listed
	for start := 0; ; {
		var page struct {
			Messages []listed `json:"messages"`
			Total    int      `json:"total"`
		}
		if err := x.m.Get(fmt.Sprintf("/api/v1/messages?limit=1000&start=%d", start), &page); err != nil {
			t.Fatal(err)
		}
		all = append(all, page.Messages...)
		if start += len(page.Messages); start >= page.Total || len(page.Messages) == 0 {
			break
		}
	}
	slices.Reverse(all) // the newest is first
	for _, one := range all {
		if x.by[one.ID] == nil {
			var raw []byte
			if err := x.m.Get("/api/v1/message/"+one.ID+"/raw", &raw); err != nil {
				t.Fatal(err)
			}
			m, err := mail.ReadMessage(bytes.NewReader(raw))
			if err != nil {
				t.Fatalf("%v in\n%s", err, raw)
			}
			x.by[one.ID], x.bodies[one.ID] = m, body(t, m)
		}
		list, bodies = append(list, x.by[one.ID]), append(bodies, x.bodies[one.ID])
	}
	return list, bodies
}

// body returns the text of a mail, or all parts of one with several.
func body(t *testing.T, m *mail.Message) []byte {
	t.Helper()
	kind, params, err := mime.ParseMediaType(m.Header.Get("Content-Type"))
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(kind, "multipart/") {
		text, err := io.ReadAll(quotedprintable.NewReader(m.Body))
		if err != nil {
			t.Fatal(err)
		}
		return bytes.TrimSuffix(text, []byte("\r\n"))
	}
	var all []byte
	for r := multipart.NewReader(m.Body, params["boundary"]); ; {
		p, err := r.NextPart()
		if err == io.EOF {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(p)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, "["+p.Header.Get("Content-Type")+"]"+string(text)...)
	}
}

// complement is a pattern of all texts but one.
func complement(text string) string {
	var alternatives []string
	for i := range len(text) {
		alternatives = append(alternatives, "^"+regexp.QuoteMeta(text[:i])+"[^"+text[i:i+1]+"]")
	}
	return strings.Join(alternatives, "|")
}

func TestSink(t *testing.T) {
	server := servers.NewMailpit(t)
	proxy, err := faultnet.Listen(server.SMTP())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = proxy.Close() })
	x := newInbox(server)
	onewritetest.TestSink(t, onewritetest.SinkHarness{
		New: func(t *testing.T) onewrite.Sink {
			s, err := email.New(email.Config{URL: "smtp://" + proxy.Addr(), StartTLS: "off", Destination: "d", Sender: "shop@example.com",
				To: "{{.ID}}@example.com", Subject: "{{.Topic}}", Text: "{{.JSON}}"})
			if err != nil {
				t.Fatal(err)
			}
			return s
		},
		Received: func(t *testing.T) (events []onewrite.Event) {
			_, bodies := x.mails(t)
			for _, text := range bodies {
				e, err := cloudevents.ParseJSON(text)
				if err != nil {
					t.Fatalf("%v in %.300s", err, text)
				}
				events = append(events, e)
			}
			return events
		},
		JSONByValue: true,
		Refuse: func(t *testing.T, id string) {
			if err := server.Kill(); err != nil {
				t.Fatal(err)
			}
			if err := server.Restart("--smtp-allowed-recipients", complement(id+"@example.com")); err != nil {
				t.Fatal(err)
			}
		},
		Break: func(t *testing.T) func() {
			if err := server.Kill(); err != nil {
				t.Fatal(err)
			}
			return func() {
				if err := server.Restart(); err != nil {
					t.Fatal(err)
				}
			}
		},
		Stall: func(*testing.T) func() {
			proxy.Set(faultnet.Fault{Down: faultnet.Stream{Hold: true}})
			return func() { proxy.Set(faultnet.Fault{}) }
		},
	})
}
