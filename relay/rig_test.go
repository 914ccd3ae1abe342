package relay_test

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	_ "modernc.org/sqlite"

	"github.com/jackc/pgx/v5"

	"github.com/onewrite/onewrite/dashboard"
	"github.com/onewrite/onewrite/internal/cloudevents"
	"github.com/onewrite/onewrite/internal/config"
	"github.com/onewrite/onewrite/internal/servers"
	"github.com/onewrite/onewrite/pipeline"
	"github.com/onewrite/onewrite/relay"
)

// soon bounds every wait; a busy machine stands still for seconds.
const soon = 60 * time.Second

// until waits for a condition; what says which.
func until(t *testing.T, what string, is func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(soon); !is(); <-tick.C {
		if time.Now().After(deadline) {
			t.Fatalf("waited %v in vain for: %s", soon, what)
		}
	}
}

// stays watches that a condition holds for some rounds of the housekeeping.
func stays(t *testing.T, what string, is func() bool) {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(1300 * time.Millisecond); time.Now().Before(end); <-tick.C {
		if !is() {
			t.Fatalf("does not hold any more: %s", what)
		}
	}
}

// rig is a relay in a folder of its own, with the database of an application.
type rig struct {
	t    *testing.T
	dir  string
	head string // of the configuration, before the destinations
	db   *sql.DB
	ids  []string // published, in order

	relay *relay.Relay
	addr  string
	stop  func()
}

// newRig makes the folder, the configuration and the outbox. The lines of the
// destinations are YAML, one a line.
func newRig(t *testing.T, bus string, destinations ...string) *rig {
	t.Helper()
	g := &rig{t: t, dir: t.TempDir(), head: "sources:\n  shop: {type: sqlite, path: app.db}\nbus: {dir: bus" + bus + "}\nlisten: 127.0.0.1:0\n"}
	dsn := "file:" + filepath.ToSlash(filepath.Join(g.dir, "app.db")) + "?" + url.Values{"_pragma": {"busy_timeout(10000)", "journal_mode(wal)", "synchronous(normal)"}}.Encode()
	db, err := sql.Open("sqlite", dsn)
	if err != nil {
		t.Fatal(err)
	}
	db.SetMaxOpenConns(1)
	t.Cleanup(func() { db.Close() })
	if err := db.Ping(); err != nil {
		t.Fatal(err)
	}
	g.db = db
	g.write(destinations...)
	if err := relay.Migrate(t.Context(), io.Discard, g.load(), relay.MigrateOptions{}); err != nil {
		t.Fatal(err)
	}
	return g
}

func (g *rig) config() string { return filepath.Join(g.dir, "onewrite.yaml") }

// write replaces the configuration.
func (g *rig) write(destinations ...string) {
	g.t.Helper()
	text := g.head
	if len(destinations) > 0 {
		text += "destinations:\n  " + strings.Join(destinations, "\n  ") + "\n"
	}
	g.text(text)
}

func (g *rig) text(text string) {
	g.t.Helper()
	if err := os.WriteFile(g.config(), []byte(text), 0o600); err != nil {
		g.t.Fatal(err)
	}
}

func (g *rig) load() *relay.Config {
	g.t.Helper()
	cfg, _, err := config.Load(g.config())
	if err != nil {
		g.t.Fatal(err)
	}
	return cfg
}

// start runs the relay until stop is called or the test ends, and waits until
// everything runs.
func (g *rig) start() {
	g.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	listening, done := make(chan string, 1), make(chan error, 1)
	g.relay = relay.New(g.load(), relay.Options{ConfigPath: g.config(), Version: "test", Listening: func(addr string) { listening <- addr }})
	go func() { done <- g.relay.Run(ctx) }()
	g.stop = sync.OnceFunc(func() {
		g.t.Helper()
		cancel()
		select {
		case err := <-done:
			if err != nil {
				g.t.Errorf("a stop is no failure, but Run says: %v", err)
			}
		case <-time.After(soon):
			g.t.Error("Run does not return")
		}
	})
	g.t.Cleanup(g.stop)
	select {
	case g.addr = <-listening:
	case err := <-done:
		done <- err
		g.t.Fatalf("Run: %v", err)
	case <-time.After(soon):
		g.t.Fatal("the relay does not listen")
	}
	want := g.load().Destinations
	until(g.t, "all destinations to run", func() bool {
		s := g.status()
		for name := range want {
			if s.Destinations[name].Epoch == 0 {
				return false
			}
		}
		return len(s.Sources) == 1 && s.Sources["shop"].State != pipeline.Waiting
	})
}

// publish commits n events of a topic and key in one transaction.
func (g *rig) publish(topic, key, payload string, n int) {
	g.t.Helper()
	tx, err := g.db.BeginTx(g.t.Context(), nil)
	if err != nil {
		g.t.Fatal(err)
	}
	defer tx.Rollback()
	for range n {
		id := g.nextID()
		if _, err := tx.Exec("INSERT INTO onewrite_outbox (id, topic, key, payload) VALUES (?, ?, ?, ?)", id, topic, sql.NullString{String: key, Valid: key != ""}, payload); err != nil {
			g.t.Fatal(err)
		}
		g.ids = append(g.ids, id)
	}
	if err := tx.Commit(); err != nil {
		g.t.Fatal(err)
	}
}

// nextID is the id of the event that publish makes next.
func (g *rig) nextID() string { return fmt.Sprintf("00000000-0000-4000-8000-%012d", len(g.ids)+1) }

// rows are the ids that are still in the outbox.
func (g *rig) rows() (ids []string) {
	g.t.Helper()
	rows, err := g.db.Query("SELECT id FROM onewrite_outbox ORDER BY seq")
	if err != nil {
		g.t.Fatal(err)
	}
	defer rows.Close()
	for rows.Next() {
		var id string
		if err := rows.Scan(&id); err != nil {
			g.t.Fatal(err)
		}
		ids = append(ids, id)
	}
	if err := rows.Err(); err != nil {
		g.t.Fatal(err)
	}
	return ids
}

func (g *rig) rowsAre(want []string) func() bool {
	return func() bool { return slices.Equal(g.rows(), want) }
}

func (g *rig) status() dashboard.Status { return g.relay.Status(g.t.Context()) }

func (g *rig) destination(name string) (dashboard.Destination, bool) {
	d, ok := g.status().Destinations[name]
	return d, ok
}

// untilCounts waits until a destination has delivered, pending and parked
// exactly so many.
func (g *rig) untilCounts(name string, delivered, pending, parked int) {
	g.t.Helper()
	var d dashboard.Destination
	defer func() {
		if g.t.Failed() {
			g.t.Logf("%s is %+v", name, d)
		}
	}()
	until(g.t, fmt.Sprintf("%s: %d delivered, %d pending, %d parked", name, delivered, pending, parked), func() bool {
		d, _ = g.destination(name)
		return int(d.Delivered) == delivered && int(d.Pending) == pending && int(d.Parked) == parked
	})
}

// reload must do what want says.
func (g *rig) reload(want dashboard.Reload, forget ...string) {
	g.t.Helper()
	got, err := g.relay.Reload(g.t.Context(), forget)
	if err != nil {
		g.t.Fatal(err)
	}
	if !slices.Equal(got.Added, want.Added) || !slices.Equal(got.Removed, want.Removed) || !slices.Equal(got.Changed, want.Changed) || !slices.Equal(got.Restart, want.Restart) {
		g.t.Fatalf("reload did %+v, want %+v", got, want)
	}
}

// file returns the ids of the events that a file destination wrote.
func (g *rig) file(name string) (ids []string) {
	g.t.Helper()
	data, err := os.ReadFile(filepath.Join(g.dir, name))
	if err != nil && !os.IsNotExist(err) {
		g.t.Fatal(err)
	}
	for line := range bytes.Lines(data) {
		if !bytes.HasSuffix(line, []byte("\n")) {
			break // it is being written
		}
		e, err := cloudevents.ParseJSON(line)
		if err != nil {
			g.t.Fatal(err)
		}
		ids = append(ids, e.ID)
	}
	return ids
}

func (g *rig) fileIs(name string, want []string) func() bool {
	return func() bool { return slices.Equal(g.file(name), want) }
}

// api calls the HTTP face and returns the status and the body.
func (g *rig) api(method, path string, out any) (int, string) {
	g.t.Helper()
	return g.ask(method, path, "", out)
}

// post posts a body.
func (g *rig) post(path, body string) (int, string) {
	g.t.Helper()
	return g.ask(http.MethodPost, path, body, nil)
}

func (g *rig) ask(method, path, text string, out any) (int, string) {
	g.t.Helper()
	req, err := http.NewRequestWithContext(g.t.Context(), method, "http://"+g.addr+path, strings.NewReader(text))
	if err != nil {
		g.t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		g.t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		g.t.Fatal(err)
	}
	if out != nil && resp.StatusCode == http.StatusOK {
		if err := json.Unmarshal(body, out); err != nil {
			g.t.Fatalf("%s: %v\n%s", path, err, body)
		}
	}
	return resp.StatusCode, string(body)
}

// webhook is a receiver that keeps ids and refuses some.
type webhook struct {
	*httptest.Server
	mu      sync.Mutex
	got     []string
	refused map[string]int // id to the status it is answered with
	bodies  map[string]string
}

func newWebhook(t *testing.T) *webhook {
	w := &webhook{refused: map[string]int{}, bodies: map[string]string{}}
	w.Server = httptest.NewServer(w)
	t.Cleanup(w.Close)
	return w
}

func (w *webhook) ServeHTTP(resp http.ResponseWriter, req *http.Request) {
	id := req.Header.Get("ce-id")
	body, _ := io.ReadAll(req.Body)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.bodies[id] = string(body)
	if code := w.refused[id]; code != 0 {
		resp.WriteHeader(code)
		return
	}
	w.got = append(w.got, id)
}

func (w *webhook) refuse(id string, code int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.refused[id] = code
}

// asked is the newest payload that came with an id, taken or refused.
func (w *webhook) asked(id string) string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.bodies[id]
}

func (w *webhook) received() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.got)
}

// line is the destination as YAML.
func (w *webhook) line(name string) string {
	return name + ": {type: webhook, url: \"" + w.URL + "\", allow_private: true, retry: {attempts: 3, first: 1ms, max: 5ms}}"
}

// dead is a destination where nobody answers.
func dead(t *testing.T, name string) string {
	w := newWebhook(t)
	w.Close()
	return w.line(name)
}

// file is the line of a file destination.
func file(name, path string) string { return name + ": {type: file, path: " + path + "}" }

// newPostgres makes a database and returns its address and what runs statements in it.
func newPostgres(t *testing.T) (url string, exec func(sql string)) {
	t.Helper()
	url = servers.Postgres(t, 18).NewDatabase(t)
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(context.Background()) })
	return url, func(sql string) {
		t.Helper()
		if _, err := conn.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
}
