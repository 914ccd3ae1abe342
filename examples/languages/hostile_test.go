package languages

import (
	"bufio"
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/onewrite/onewrite/internal/faultnet"
)

// request is one that onewrite would send; tests change it.
type request struct {
	header map[string]string
	body   string
}

var client = &http.Client{Timeout: soon}

// genuine makes the request of a new event about an order of the same name,
// signed at a time.
func (g *rig) genuine(order string, at time.Time) request {
	id := fmt.Sprintf("00000000-0000-4000-8000-%x", sha256.Sum256([]byte(order)))[:36]
	r := request{body: `{"order":"` + order + `","customer":"carol"}`, header: map[string]string{
		"content-type": "application/json", "ce-specversion": "1.0", "ce-id": id, "ce-source": "/shop",
		"ce-type": "order.placed", "ce-topic": "order.placed", "ce-partitionkey": "carol", "webhook-id": id,
	}}
	r.sign(strconv.FormatInt(at.Unix(), 10), g.key)
	return r
}

// sign signs the request as it is now.
func (r request) sign(timestamp string, key []byte) {
	mac := hmac.New(sha256.New, key)
	_, _ = io.WriteString(mac, r.header["webhook-id"]+"."+timestamp+"."+r.body)
	r.header["webhook-timestamp"] = timestamp
	r.header["webhook-signature"] = "v1," + base64.StdEncoding.EncodeToString(mac.Sum(nil))
}

// post sends a request and returns the status of the answer, 0 without one.
func (g *rig) post(t *testing.T, r request) int {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+g.addr+"/events", strings.NewReader(r.body))
	if err != nil {
		t.Fatal(err)
	}
	for name, value := range r.header {
		req.Header.Set(name, value)
	}
	req.Header["Idempotency-Key"] = nil // as onewrite: sent again if an idle connection turns out to be gone
	resp, err := client.Do(req)
	if err != nil {
		return 0
	}
	defer resp.Body.Close()
	_, _ = io.Copy(io.Discard, resp.Body)
	return resp.StatusCode
}

// check posts a request about an order and wants a status, and the effect so
// many times by then.
func (g *rig) check(t *testing.T, what, order string, r request, status, effects int) {
	t.Helper()
	if got := g.post(t, r); got != status {
		t.Errorf("%s: answered %d, want %d", what, got, status)
	}
	if n := g.shipped(t)[order]; n != effects {
		t.Errorf("%s: shipped %d times, want %d", what, n, effects)
	}
}

// forged requests are answered 401 and have no effect. The first words of a line
// name the order.
func (g *rig) forged(t *testing.T) {
	other := bytes.Repeat([]byte("x"), len(g.key))
	for what, change := range map[string]func(r request){
		"no signature":         func(r request) { delete(r.header, "webhook-signature") },
		"empty signature":      func(r request) { r.header["webhook-signature"] = "" },
		"no timestamp":         func(r request) { delete(r.header, "webhook-timestamp") },
		"no webhook-id":        func(r request) { delete(r.header, "webhook-id") },
		"another key":          func(r request) { r.sign(r.header["webhook-timestamp"], other) },
		"no key":               func(r request) { r.sign(r.header["webhook-timestamp"], nil) },
		"the key as it stands": func(r request) { r.sign(r.header["webhook-timestamp"], []byte(g.secret)) },
		"half a signature":     func(r request) { r.header["webhook-signature"] = r.header["webhook-signature"][:20] },
		"another version":      func(r request) { r.header["webhook-signature"] = "v2" + r.header["webhook-signature"][2:] },
		"no ASCII":             func(r request) { r.header["webhook-signature"] = "v1,\xe9\xff" + strings.Repeat("\xe9", 42) },
		"another id":           func(r request) { r.header["webhook-id"], r.header["ce-id"] = "x", "x" },
		"another timestamp": func(r request) {
			r.header["webhook-timestamp"] = strconv.FormatInt(time.Now().Unix()-1, 10)
		},
	} {
		r := g.genuine(what, time.Now())
		change(r)
		g.check(t, what, what, r, http.StatusUnauthorized, 0)
	}
	r := g.genuine("another body", time.Now())
	r.body = strings.Replace(r.body, "carol", "mallory", 1)
	g.check(t, "another body", "another body", r, http.StatusUnauthorized, 0)

	r = g.genuine("one of several", time.Now())
	r.header["webhook-signature"] = "v1,bm9uZQ== v1a,b3RoZXI= " + r.header["webhook-signature"] + " v1,bm9uZQ=="
	g.check(t, "one of several signatures", "one of several", r, http.StatusNoContent, 1)
}

// stale: signed right, but not about now.
func (g *rig) stale(t *testing.T) {
	for what, at := range map[string]time.Duration{"6 minutes old": -6 * time.Minute, "6 minutes early": 6 * time.Minute, "a year old": -8760 * time.Hour} {
		g.check(t, what, what, g.genuine(what, time.Now().Add(at)), http.StatusUnauthorized, 0)
	}
	for what, at := range map[string]time.Duration{"4 minutes old": -4 * time.Minute, "4 minutes early": 4 * time.Minute} {
		g.check(t, what, what, g.genuine(what, time.Now().Add(at)), http.StatusNoContent, 1)
	}
	for _, timestamp := range []string{"", "NaN", "now", "1e99", "-1", "0", strings.Repeat("9", 400), time.Now().UTC().Format(time.RFC3339)} {
		what := "at " + timestamp
		r := g.genuine(what, time.Now())
		r.sign(timestamp, g.key)
		if status := g.post(t, r); status/100 == 2 || g.shipped(t)[what] != 0 {
			t.Errorf("signed %s: answered %d, shipped %d times", what, status, g.shipped(t)[what])
		}
	}
}

// cutOff: a body that is not whole has no effect, and the consumer goes on.
func (g *rig) cutOff(t *testing.T) {
	r := g.genuine("a short body", time.Now())
	r.body = r.body[:len(r.body)-1]
	g.check(t, "a short body", "a short body", r, http.StatusUnauthorized, 0)

	r = g.genuine("cut off", time.Now())
	for _, sent := range []int{0, len(r.body) / 2, len(r.body) - 1} {
		if answer := g.send(t, r, len(r.body), r.body[:sent]); strings.HasPrefix(answer, "HTTP/1.1 2") {
			t.Errorf("%d bytes of %d are answered %q", sent, len(r.body), answer)
		}
	}
	if answer := g.send(t, r, 3<<20, ""); strings.HasPrefix(answer, "HTTP/1.1 2") {
		t.Errorf("a body of 3 MiB that does not come is answered %q", answer)
	}
	if answer := g.send(t, r, -1, r.body); strings.HasPrefix(answer, "HTTP/1.1 2") {
		t.Errorf("a length of -1 is answered %q", answer)
	}
	r = g.genuine("too long", time.Now())
	r.body += strings.Repeat(" ", 3<<20)
	r.sign(r.header["webhook-timestamp"], g.key)
	if status := g.post(t, r); status != http.StatusRequestEntityTooLarge && status != 0 { // it may hang up on the sender
		t.Errorf("3 MiB are answered %d", status)
	}
	if s := g.shipped(t); s["cut off"]+s["too long"] != 0 {
		t.Errorf("shipped: %v", s)
	}
	g.check(t, "after all this", "whole", g.genuine("whole", time.Now()), http.StatusNoContent, 1)
}

// send writes a request that says its length and holds a part of it, closes its
// side and returns what is answered.
func (g *rig) send(t *testing.T, r request, length int, body string) string {
	t.Helper()
	conn, err := net.Dial("tcp", g.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(soon))
	text := "POST /events HTTP/1.1\r\nhost: " + g.addr + "\r\ncontent-length: " + strconv.Itoa(length) + "\r\n"
	for name, value := range r.header {
		text += name + ": " + value + "\r\n"
	}
	if _, err := io.WriteString(conn, text+"\r\n"+body); err != nil {
		t.Fatal(err)
	}
	if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	answer, _ := io.ReadAll(conn) // a reset is as good
	return string(answer)
}

// repeated: a repeat is answered as the first was and has no effect, under
// another name it is refused.
func (g *rig) repeated(t *testing.T) {
	r := g.genuine("repeated", time.Now())
	for range 3 {
		g.check(t, "repeated", "repeated", r, http.StatusNoContent, 1)
	}
	// onewrite signs a repeat anew.
	g.check(t, "signed anew", "repeated", g.genuine("repeated", time.Now().Add(-time.Minute)), http.StatusNoContent, 1)
	for name, value := range map[string]string{"ce-id": "11111111-1111-4111-8111-111111111111", "ce-source": "/else"} {
		before := r.header[name]
		r.header[name] = value
		g.check(t, "replayed with another "+name, "repeated", r, http.StatusUnauthorized, 1)
		r.header[name] = before
	}

	// Several at once: one is first, and none is answered before it has committed.
	r = g.genuine("at once", time.Now())
	statuses := make(chan int)
	for range 8 {
		go func() { statuses <- g.post(t, r) }()
	}
	for range 8 {
		if status := <-statuses; status != http.StatusNoContent {
			t.Errorf("one of several at once is answered %d", status)
		}
	}
	if n := g.shipped(t)["at once"]; n != 1 {
		t.Errorf("sent 8 times at once, shipped %d times", n)
	}
}

// atFault: an event that can never be taken is refused for itself, not as an
// outage, and leaves no mark.
func (g *rig) atFault(t *testing.T) {
	for what, body := range map[string]string{"no JSON": "{", "nothing": "", "null": "null", "a list": "[]", "a text": `"x"`,
		"no order": `{"customer":"carol"}`, "a NUL": `{"order":"a\u0000b","customer":"carol"}`, "no text": "\xff\xfe"} {
		r := g.genuine(what, time.Now())
		r.body = body
		r.sign(r.header["webhook-timestamp"], g.key)
		if status := g.post(t, r); status != http.StatusUnprocessableEntity {
			t.Errorf("%s is answered %d, want 422", what, status)
		}
		var n int
		if err := g.warehouse.QueryRow(t.Context(), "SELECT count(*) FROM seen WHERE id = $1", r.header["ce-id"]).Scan(&n); err != nil || n != 0 {
			t.Errorf("%s: %d marks are left: %v", what, n, err)
		}
	}
}

// withoutDatabase: 503 while the database is away, whether it was so before or
// goes in the middle of a transaction; then the event is taken.
func (g *rig) withoutDatabase(t *testing.T) {
	r := g.genuine("away", time.Now())
	g.network.Set(faultnet.Fault{Refuse: true})
	g.network.Cut(true)
	for range 3 {
		g.check(t, "without database", "away", r, http.StatusServiceUnavailable, 0)
	}
	g.network.Set(faultnet.Fault{})
	g.check(t, "with the database again", "away", r, http.StatusNoContent, 1)

	// A lock holds the effect up, after the mark.
	r = g.genuine("in the middle", time.Now())
	free := g.lockShipments(t)
	status := make(chan int, 1)
	go func() { status <- g.post(t, r) }()
	until(t, "the consumer to wait for the lock", func() bool {
		var n int
		err := g.warehouse.QueryRow(t.Context(), "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'shipments'::regclass").Scan(&n)
		return err == nil && n == 1
	})
	if n := g.network.Cut(true); n == 0 {
		t.Error("vacuous: no connection was cut")
	}
	if got := <-status; got != http.StatusServiceUnavailable {
		t.Errorf("cut off in the middle of a transaction: answered %d", got)
	}
	free()
	g.check(t, "sent again", "in the middle", r, http.StatusNoContent, 1)
	select {
	case <-g.ended:
		t.Error("the consumer has ended")
	default:
	}
}

// lockShipments holds up all writers of shipments until its function is called.
func (g *rig) lockShipments(t *testing.T) (free func()) {
	t.Helper()
	tx, err := connect(t, g.warehouse.Config().ConnString()).Begin(t.Context())
	if err == nil {
		_, err = tx.Exec(t.Context(), "LOCK TABLE shipments IN SHARE MODE")
	}
	if err != nil {
		t.Fatal(err)
	}
	return func() { _ = tx.Rollback(context.Background()) } // it changed nothing
}

// withoutSecret: a consumer that could tell nobody from anybody does not start.
func (g *rig) withoutSecret(t *testing.T) {
	secrets := []string{"whsec_", "", "not after Standard Webhooks"}
	if testing.Short() {
		secrets = secrets[:1]
	}
	for _, secret := range secrets {
		cmd := g.command(g.lang.consumer, "DATABASE_URL="+g.lang.url(t, g.appURL), "PORT=0", "WEBHOOK_SECRET="+secret)
		stdout, err := cmd.StdoutPipe()
		if err == nil {
			err = cmd.Start()
		}
		if err != nil {
			t.Fatal(err)
		}
		late := time.AfterFunc(soon, func() { _ = cmd.Process.Kill() })
		said, _ := bufio.NewReader(stdout).ReadString('\n') // nothing, at its end
		if said != "" || !late.Stop() {
			t.Errorf("with the secret %q it goes on and says %q", secret, said)
			_ = cmd.Process.Kill()
		}
		if cmd.Wait() == nil {
			t.Errorf("with the secret %q it ends well", secret)
		}
	}
}
