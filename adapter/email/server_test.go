package email_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"mime"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/adapter/email"
	"github.com/onewrite/onewrite/internal/diagnosis"
	"github.com/onewrite/onewrite/internal/faultnet"
	"github.com/onewrite/onewrite/internal/servers"
)

type mimeDecoder = mime.WordDecoder

// certificate makes one for 127.0.0.1, that is its own authority.
func certificate(t *testing.T) (cert, key string, pool *x509.CertPool) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "mail"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(100 * 24 * time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, c, c, &k.PublicKey, k)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	cert = string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	pool = x509.NewCertPool()
	pool.AppendCertsFromPEM([]byte(cert))
	return cert, string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: raw})), pool
}

func find(found []diagnosis.Finding, check string) diagnosis.Finding {
	i := slices.IndexFunc(found, func(f diagnosis.Finding) bool { return f.Check == check })
	if i < 0 {
		return diagnosis.Finding{}
	}
	return found[i]
}

// A server that wants TLS and a login gets both; each that is missing or wrong is an
// outage with its cure, and the doctor says so beforehand.
func TestLogin(t *testing.T) {
	cert, key, pool := certificate(t)
	password := rand.Text() + "/ü@"
	server := servers.NewMailpit(t, servers.MailLogin("relay", password, cert, key))
	ok := config(server.SMTP())
	ok.URL = fmt.Sprintf("smtp://relay:%s@%s", strings.NewReplacer("/", "%2F", "ü", "%C3%BC", "@", "%40").Replace(password), server.SMTP())
	ok.StartTLS, ok.TLS = "", &tls.Config{RootCAs: pool}
	for name, c := range map[string]struct {
		change func(*email.Config)
		check  string
		has    string // empty: all is well
	}{
		"good":          {func(*email.Config) {}, "sender", ""},
		"optional":      {func(c *email.Config) { c.StartTLS = "optional" }, "login", ""},
		"bad password":  {func(c *email.Config) { c.URL = "smtp://relay:canary@" + server.SMTP() }, "connection", "set user and password"},
		"no user":       {func(c *email.Config) { c.URL = "smtp://" + server.SMTP() }, "sender", "give url a user"},
		"no TLS":        {func(c *email.Config) { c.StartTLS, c.TLS = "off", nil }, "connection", ""},
		"unknown":       {func(c *email.Config) { c.TLS = nil }, "connection", "tls: {ca:"},
		"another name":  {func(c *email.Config) { c.TLS = &tls.Config{RootCAs: pool, ServerName: "other.example"} }, "connection", "server_name"},
		"smtps instead": {func(c *email.Config) { c.URL = "smtps://" + server.SMTP() }, "connection", "set url to smtp://"},
		"nobody there":  {func(c *email.Config) { c.URL = "smtp://127.0.0.1:1" }, "connection", "check that the server runs"},
	} {
		cfg := ok
		c.change(&cfg)
		n, err := open(t, cfg).Write(context.Background(), []onewrite.Event{order("1", good)})
		f := find(email.Examine(t.Context(), cfg), c.check)
		if name == "good" || name == "optional" {
			if n != 1 || err != nil || f.Severity != diagnosis.OK || f.Text == "" {
				t.Errorf("%s: Write = %d, %v; %+v", name, n, err, f)
			}
			continue
		}
		text := fmt.Sprint(err)
		if n != 0 || err == nil || errors.Is(err, onewrite.ErrRejected) || !strings.Contains(text, c.has) || strings.Contains(text, "canary") || strings.Contains(text, password) {
			t.Errorf("%s: Write = %d, %v; want an outage with %q", name, n, err, c.has)
		}
		if f.Severity != diagnosis.Problem || !strings.Contains(text, f.Text) || f.Cure == "" {
			t.Errorf("%s: the doctor says %+v of %v", name, f, err)
		}
	}
}

// Killed in the middle and started again on the same data, the server has every mail
// that was said to be taken, and repeats have the same Message-ID.
func TestKills(t *testing.T) {
	server := servers.NewMailpit(t)
	c := config(server.SMTP())
	sink := open(t, c)
	for round := range 4 {
		events := make([]onewrite.Event, 60)
		for i := range events {
			events[i] = order(fmt.Sprintf("k-%d-%d", round, i), good)
		}
		taken, ended := 0, make(chan error)
		go func() {
			n, err := sink.Write(context.Background(), events)
			taken = n
			ended <- err
		}()
		x := newInbox(server)
		for {
			if list, _ := x.mails(t); len(list) > round*60+5 {
				break
			}
		}
		if err := server.Kill(); err != nil {
			t.Fatal(err)
		}
		err := <-ended
		if errors.Is(err, onewrite.ErrRejected) {
			t.Fatalf("a kill is no refusal: %v", err)
		}
		t.Logf("killed after %d of %d: %v", taken, len(events), err)
		if err := server.Restart(); err != nil {
			t.Fatal(err)
		}
		if n, err := sink.Write(context.Background(), events[taken:]); n != len(events)-taken || err != nil {
			t.Fatalf("after the kill: %d, %v", n, err)
		}
		ids := map[string]int{}
		list, _ := newInbox(server).mails(t)
		for _, m := range list {
			ids[m.Header.Get("Message-Id")]++
		}
		if len(ids) != 60*(round+1) || len(list) > len(ids)+round+1 {
			t.Errorf("round %d: %d mails with %d ids, want %d and one repeat a kill", round, len(list), len(ids), 60*(round+1))
		}
	}
}

// The answer to a mail that was taken is lost: the mail comes again, and is the same.
func TestLostAnswer(t *testing.T) {
	server := servers.NewMailpit(t)
	proxy, err := faultnet.Listen(server.SMTP())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = proxy.Close() })
	sink := open(t, config(proxy.Addr()))
	proxy.Set(faultnet.Fault{Swallow: func(piece []byte) bool { return strings.HasSuffix(string(piece), "\r\n.\r\n") }})
	n, err := sink.Write(context.Background(), []onewrite.Event{order("1", good)})
	if n != 0 || err == nil || errors.Is(err, onewrite.ErrRejected) || proxy.Counts().Swallowed != 1 {
		t.Fatalf("Write = %d, %v, %+v", n, err, proxy.Counts())
	}
	proxy.Set(faultnet.Fault{})
	if n, err := sink.Write(context.Background(), []onewrite.Event{order("1", good)}); n != 1 || err != nil {
		t.Fatal(n, err)
	}
	list, _ := newInbox(server).mails(t)
	if len(list) != 2 || list[0].Header.Get("Message-Id") != list[1].Header.Get("Message-Id") {
		t.Errorf("%d mails", len(list))
	}
}

// The refusals of the real server.
func TestChaos(t *testing.T) {
	server := servers.NewMailpit(t, servers.MailChaos())
	sink := open(t, config(server.SMTP()))
	for _, c := range []struct {
		at                 string
		code               int
		rejected, answered bool
	}{{"Sender", 550, false, false}, {"Sender", 451, false, false}, {"Recipient", 550, true, false}, {"Recipient", 451, false, true}} {
		if err := server.Chaos(c.at, c.code, 100); err != nil {
			t.Fatal(err)
		}
		n, err := sink.Write(context.Background(), []onewrite.Event{order("1", good)})
		var f interface{ Answered() bool }
		if n != 0 || errors.Is(err, onewrite.ErrRejected) != c.rejected || !errors.As(err, &f) || f.Answered() != c.answered {
			t.Errorf("%+v: Write = %d, %v", c, n, err)
		}
		if err := server.Chaos(c.at, c.code, 0); err != nil {
			t.Fatal(err)
		}
		if n, err := sink.Write(context.Background(), []onewrite.Event{order("2", good)}); n != 1 || err != nil {
			t.Errorf("after %+v: %d, %v", c, n, err)
		}
	}
}

// Another family of readers, Python's standard library, sees what was meant.
func TestPythonReads(t *testing.T) {
	python := servers.Python(t, "email")
	server := servers.NewMailpit(t)
	c := config(server.SMTP())
	c.HTML = "<p>{{.Data.name}}</p>"
	c.Subject = "Grüße 世界 {{.Data.name}}"
	name := "Zoë 🌍 " + strings.Repeat("lang, länger = ", 30)
	data, _ := json.Marshal(map[string]any{"email": "zoe@example.com", "name": name, "number": 1})
	if n, err := open(t, c).Write(context.Background(), []onewrite.Event{order("1", string(data))}); n != 1 || err != nil {
		t.Fatal(n, err)
	}
	var page struct {
		Messages []listed `json:"messages"`
	}
	var raw []byte
	if err := errors.Join(server.Get("/api/v1/messages", &page), server.Get("/api/v1/message/"+page.Messages[0].ID+"/raw", &raw)); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "mail.eml")
	if err := os.WriteFile(path, raw, 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(python, "-c", `
import email, email.policy, json, sys
m = email.message_from_binary_file(open(sys.argv[1], "rb"), policy=email.policy.default)
defects = [repr(d) for p in m.walk() for d in p.defects]
print(json.dumps([str(m["subject"]), m["to"].addresses[0].addr_spec, m["message-id"], m.get_body(("plain",)).get_content(), m.get_body(("html",)).get_content(), defects]))
`, path).Output()
	if err != nil {
		t.Fatal(err)
	}
	var got []any
	if err := json.Unmarshal(out, &got); err != nil {
		t.Fatal(err)
	}
	trim := strings.TrimSpace(name)
	if strings.TrimSpace(got[0].(string)) != "Grüße 世界 "+trim || got[1] != "zoe@example.com" || strings.TrimRight(got[3].(string), "\n") != "Thank you, "+name+"." || strings.TrimRight(got[4].(string), "\n") != "<p>"+name+"</p>" || len(got[5].([]any)) != 0 {
		t.Errorf("Python reads %q", got)
	}
}
