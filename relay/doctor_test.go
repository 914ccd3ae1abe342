package relay_test

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"

	"github.com/onewrite/onewrite/internal/config"
	"github.com/onewrite/onewrite/internal/diagnosis"
	"github.com/onewrite/onewrite/internal/servers"
	"github.com/onewrite/onewrite/pipeline"
	"github.com/onewrite/onewrite/relay"
)

type findings []relay.Finding

func (fs findings) String() string {
	var b strings.Builder
	for _, f := range fs {
		fmt.Fprintf(&b, "\n  %-8s %s: %s: %s | %s", f.Severity, f.Subject, f.Check, f.Text, f.Cure)
	}
	return b.String()
}

func (fs findings) want(t *testing.T, s diagnosis.Severity, subject, check, holds string) {
	t.Helper()
	if !slices.ContainsFunc(fs, func(f relay.Finding) bool {
		return f.Severity == s && f.Subject == subject && f.Check == check && strings.Contains(f.Cure+"\x00"+f.Text, holds)
	}) {
		t.Errorf("no %v of %s, %s with %q in%v", s, subject, check, holds, fs)
	}
}

func (fs findings) problems() (out findings) {
	for _, f := range fs {
		if f.Severity == diagnosis.Problem {
			out = append(out, f)
		}
	}
	return out
}

// subjects are the names in the order in which they come.
func (fs findings) subjects() (names []string) {
	for _, f := range fs {
		if len(names) == 0 || names[len(names)-1] != f.Subject {
			names = append(names, f.Subject)
		}
	}
	return names
}

// doctor examines with the patience of a busy machine.
func doctor(t *testing.T, cfg *relay.Config, file string) findings {
	t.Helper()
	return findings(relay.Doctor(t.Context(), cfg, relay.DoctorOptions{ConfigPath: file, Timeout: soon}))
}

// parsed is a configuration from text, with an SQLite source and a folder of its own.
func parsed(t *testing.T, text string) *relay.Config {
	t.Helper()
	cfg, _, err := config.Parse([]byte(text), "onewrite.yaml", t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if cfg.Bus.URL.Empty() {
		cfg.Bus.Dir = filepath.Join(cfg.Dir, "bus")
	}
	return cfg
}

// TestDoctorBeside examines a running relay: all is well, it is seen everywhere, and
// it goes on.
func TestDoctorBeside(t *testing.T) {
	hook := newWebhook(t)
	g := newRig(t, ", max_size: 16MiB", hook.line("hook"), file("archive", "archive.jsonl"))
	found := doctor(t, g.load(), g.config())
	if bad := found.problems(); len(bad) > 0 {
		t.Errorf("before it runs:%v", bad)
	}
	found.want(t, diagnosis.OK, "bus", "owner", "does not run")
	want := []string{"bus", "source shop", "destination archive", "destination hook", "listen"}
	if got := found.subjects(); !slices.Equal(got, want) {
		t.Errorf("subjects %v, want %v", got, want)
	}
	g.start()
	cfg := g.load()
	cfg.Listen = g.addr
	for i := range 5 {
		g.publish("order.placed", "a", "1", 10)
		found = doctor(t, cfg, g.config())
		if bad := found.problems(); len(bad) > 0 {
			t.Errorf("round %d:%v", i, bad)
		}
	}
	us := fmt.Sprintf("process %d", os.Getpid())
	found.want(t, diagnosis.OK, "bus", "owner", us)
	found.want(t, diagnosis.OK, "source shop", "reader", us)
	found.want(t, diagnosis.OK, "destination archive", "writer", us)
	found.want(t, diagnosis.OK, "listen", "address", "onewrite test runs here: "+us)
	until(t, "all events arrive", func() bool {
		d, _ := g.destination("hook")
		return d.Delivered == 50 && d.Parked == 0
	})
	if got := hook.received(); len(slices.DeleteFunc(got, func(id string) bool { return id != "" })) == 0 {
		t.Error("the webhook was not asked by HEAD")
	}
	other := filepath.Join(t.TempDir(), "other.yaml")
	if err := os.WriteFile(other, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	doctor(t, cfg, other).want(t, diagnosis.Problem, "listen", "address", "listen: 127.0.0.1:")
	link := filepath.Join(t.TempDir(), "link.yaml")
	if err := os.Symlink(g.config(), link); err != nil {
		t.Fatal(err)
	}
	doctor(t, cfg, link).want(t, diagnosis.OK, "listen", "address", us)
}

// TestDoctorWires examines every type of source, bus and destination there is.
func TestDoctorWires(t *testing.T) {
	pg := servers.Postgres(t, 15)
	bus, target := natsServer(t), natsServer(t)
	cfg := parsed(t, fmt.Sprintf(`
sources:
  pg: {type: postgres, url: %q, roles: {app: no-such-role}, import: {legacy: {table: none, columns: {topic: topic}, order: [id]}}}
  lite: {type: sqlite, path: lite.db, tables: [orders]}
destinations:
  stream: {type: nats, url: %q, topics: ["order.>"]}
  bad: {type: nats, url: %q, subject: "onewrite.{topic}"}
  none: {type: webhook, url: "https://127.0.0.1:1/x", allow_private: true}
  streams: {type: redis, url: "redis://127.0.0.1:1"}
bus: {url: %q}
max_event: 2MiB
listen: off
`, pg.NewDatabase(t), target, bus, bus))
	found := doctor(t, cfg, "")
	found.want(t, diagnosis.Problem, "source pg", "outbox", "onewrite migrate")
	found.want(t, diagnosis.Problem, "source pg", "rights of roles.app", `CREATE ROLE "no-such-role"`)
	found.want(t, diagnosis.Problem, "source pg", "import legacy", "import.legacy.table: relation \"none\" does not exist")
	found.want(t, diagnosis.Problem, "source lite", "file", "onewrite migrate")
	found.want(t, diagnosis.OK, "bus", "streams", "4 of 4 are to be made")
	found.want(t, diagnosis.Warning, "bus", "max_payload", "")
	found.want(t, diagnosis.Problem, "destination stream", "streams", "--subjects 'order.>'")
	found.want(t, diagnosis.Problem, "destination bad", "subject", "events.{topic}")
	found.want(t, diagnosis.Problem, "destination none", "connection", "curl -sS -I")
	found.want(t, diagnosis.Problem, "destination streams", "connection", "redis-cli -u redis://127.0.0.1:1 PING")
	found.want(t, diagnosis.OK, "listen", "address", "off")

	cfg.Sources["pg"] = relay.Source{Type: "postgres", URL: cfg.Sources["pg"].URL}
	if err := relay.Migrate(t.Context(), io.Discard, cfg, relay.MigrateOptions{Source: "pg"}); err != nil {
		t.Fatal(err)
	}
	found = doctor(t, cfg, "")
	found.want(t, diagnosis.OK, "source pg", "max_event", "2097152")

	cfg.Bus.TLS = &config.TLS{CA: filepath.Join(cfg.Dir, "gone.pem")}
	cfg.Destinations["stream"] = relay.Destination{Type: "nats", URL: cfg.Destinations["stream"].URL, TLS: cfg.Bus.TLS}
	found = doctor(t, cfg, "")
	found.want(t, diagnosis.Problem, "bus", "tls", "gone.pem")
	found.want(t, diagnosis.Problem, "destination stream", "tls", "gone.pem")
}

func natsServer(t *testing.T) (url string) {
	t.Helper()
	s, err := server.NewServer(&server.Options{Host: "127.0.0.1", Port: server.RANDOM_PORT, NoSigs: true, NoLog: true, JetStream: true, StoreDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	s.Start()
	t.Cleanup(func() { s.Shutdown(); s.WaitForShutdown() })
	if !s.ReadyForConnections(soon) {
		t.Fatal("the NATS server did not start")
	}
	return s.ClientURL()
}

// TestDoctorTellsNoSecret has one word in every place of a secret, and nobody there.
func TestDoctorTellsNoSecret(t *testing.T) {
	const word = "canary-secret-word"
	for _, host := range []string{"127.0.0.1:1", "no-such-host.invalid:1"} {
		text := strings.NewReplacer("WORD", word, "HOST", host).Replace(`
sources:
  a: {type: postgres, url: "postgres://user:WORD@HOST/db?sslmode=require&password=WORD"}
  b: {type: postgres, url: "host=127.0.0.1 port=1 user=WORD password=WORD dbname=WORD"}
destinations:
  hook: {type: webhook, url: "https://HOST/WORD?key=WORD", allow_private: true, secret: WORD, headers: {Authorization: "Bearer WORD"}}
  bad: {type: webhook, url: "https://10.0.0.1/WORD?key=WORD", secret: whsec_WORD00==, allow_private: true, timeout: 1s}
  stream: {type: nats, url: "nats://user:WORD@HOST"}
  token: {type: nats, url: "nats://WORD@HOST"}
  login: {type: nats, url: "nats://HOST", user: user, password: WORD}
  redis: {type: redis, url: "redis://user:WORD@HOST/0"}
  cache: {type: redis, url: "rediss://HOST", password: WORD, commands: ["DEL {key}"]}
bus: {url: "nats://user:WORD@HOST"}
token: WORD
listen: off
`)
		text = strings.Replace(text, "whsec_"+word+"00==", word, 1)
		cfg := parsed(t, text)
		found := findings(relay.Doctor(t.Context(), cfg, relay.DoctorOptions{Timeout: 5 * time.Second}))
		if len(found.problems()) < 7 {
			t.Errorf("only %d problems of servers that are not there:%v", len(found.problems()), found)
		}
		all, err := json.Marshal(found)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(all), word) {
			t.Errorf("a secret is told:%v", found)
		}
		for _, f := range found {
			if f.Severity > diagnosis.OK && f.Cure == "" || f.Subject == "" || strings.Contains(f.Text+f.Cure, "\n") {
				t.Errorf("not a whole finding: %+v", f)
			}
		}
	}
}

// TestDoctorListen is about who is where the API, or the bus, is to be.
func TestDoctorListen(t *testing.T) {
	const head = "sources: {shop: {type: sqlite, path: app.db}}\n"
	at := func(listen, more string) findings {
		t.Helper()
		return doctor(t, parsed(t, head+"listen: \""+listen+"\"\n"+more), "")
	}
	at("127.0.0.1:0", "").want(t, diagnosis.OK, "listen", "address", "a free port")
	at(closed(t), "").want(t, diagnosis.OK, "listen", "address", "is free")
	at("0.0.0.0:"+portOf(closed(t)), "token: x").want(t, diagnosis.OK, "listen", "address", "is free")
	at("203.0.113.7:8484", "token: x").want(t, diagnosis.Problem, "listen", "address", "listen: 127.0.0.1:8484")
	at("no-such-host.invalid:8484", "token: x").want(t, diagnosis.Problem, "listen", "address", "no address of this machine")

	for name, answer := range map[string]http.HandlerFunc{
		"another program": func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "hello") },
		"other JSON":      func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, `{"pid": 7}`) },
		"a refusal":       func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusUnauthorized) },
	} {
		t.Run(name, func(t *testing.T) {
			s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.Header.Get("Authorization") != "" {
					t.Error("a stranger was given the token")
				}
				answer(w, r)
			}))
			defer s.Close()
			at(s.Listener.Addr().String(), "token: x").want(t, diagnosis.Problem, "listen", "address", "ss -ltnp 'sport = :"+portOf(s.Listener.Addr().String())+"'")
		})
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			fmt.Fprintln(c, "SSH-2.0-other")
			c.Close()
		}
	}()
	at(l.Addr().String(), "").want(t, diagnosis.Problem, "listen", "address", "another program has")
	bus := "bus: {listen: \"" + l.Addr().String() + "\", user: u, password: p, max_size: 16MiB}\n"
	at("off", bus).want(t, diagnosis.Problem, "bus", "listen", "ss -ltnp")
	bus = "bus: {listen: \"" + closed(t) + "\", user: u, password: p, max_size: 16MiB}\n"
	at("off", bus).want(t, diagnosis.OK, "bus", "listen", "is free")

	// A program that embeds onewrite need not have a version.
	embedded := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintln(w, `{"pid": 7, "started": "2026-11-29T08:13:53Z"}`)
	}))
	defer embedded.Close()
	at(embedded.Listener.Addr().String(), "").want(t, diagnosis.OK, "listen", "address", "onewrite (embedded) runs here: process 7")

	// A running instance with a token and an open bus.
	g := newRig(t, ", max_size: 16MiB, user: u, password: p, listen: \""+closed(t)+"\"")
	g.head += "token: right\n"
	g.write(file("archive", "archive.jsonl"))
	g.start()
	cfg := g.load()
	cfg.Listen = g.addr
	found := doctor(t, cfg, g.config())
	found.want(t, diagnosis.OK, "listen", "address", "onewrite test runs here")
	found.want(t, diagnosis.OK, "bus", "listen", "the bus onewrite is open")
	cfg.Token = relay.NewSecret("wrong")
	doctor(t, cfg, g.config()).want(t, diagnosis.Warning, "listen", "token", "restart onewrite")
	cfg.Token = relay.Secret{}
	doctor(t, cfg, g.config()).want(t, diagnosis.Warning, "listen", "token", "the file has none")
}

// closed is an address where nobody listens.
func closed(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func portOf(addr string) string {
	_, port, _ := net.SplitHostPort(addr)
	return port
}

// TestDoctorIsBounded: of subjects that keep silent each has its time, and all have
// the same.
func TestDoctorIsBounded(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0") // the system accepts, nobody answers
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	const many = 40
	text := fmt.Sprintf("sources: {a: {type: postgres, url: %q}}\nbus: {url: %q}\nlisten: off\ndestinations:\n", "postgres://u@"+l.Addr().String()+"/d", "nats://"+l.Addr().String())
	for i := range many {
		text += fmt.Sprintf("  hook%02d: {type: webhook, url: \"https://%s/\", allow_private: true, timeout: 10m}\n", i, l.Addr())
	}
	const each = time.Second
	start := time.Now()
	found := findings(relay.Doctor(t.Context(), parsed(t, text), relay.DoctorOptions{Timeout: each}))
	if took := time.Since(start); took > many*each/2 {
		t.Errorf("%d subjects of %v took %v", many, each, took)
	}
	if bad := found.problems(); len(bad) < many+2 {
		t.Errorf("only %d problems:%v", len(bad), bad)
	}
	found.want(t, diagnosis.Problem, "source a", "connection", "does not answer in time")
	found.want(t, diagnosis.Problem, "destination hook39", "answer", "does not answer in time")
}

// TestDoctorManySubjects: more than are examined at once, and in their order.
func TestDoctorManySubjects(t *testing.T) {
	text := "sources: {a: {type: sqlite, path: app.db}}\nbus: {max_size: 16MiB}\nlisten: off\ndestinations:\n"
	for i := range 150 {
		text += fmt.Sprintf("  f%03d: {type: file, path: f%03d.jsonl}\n", i, i)
	}
	got := doctor(t, parsed(t, text), "").subjects()
	if len(got) != 153 || got[0] != "bus" || got[1] != "source a" || got[2] != "destination f000" || got[151] != "destination f149" || got[152] != "listen" {
		t.Errorf("%d subjects: %v", len(got), got)
	}
}

// TestDoctorBesideAGap examines a relay that runs and whose source has stopped: it is not
// said that nobody runs.
func TestDoctorBesideAGap(t *testing.T) {
	url, exec := newPostgres(t)
	exec(`CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE b (id int PRIMARY KEY)`)
	g := newRig(t, "", file("archive", "archive.jsonl"))
	g.text("listen: 127.0.0.1:0\nbus: {dir: bus}\nsources:\n  shop:\n    type: postgres\n    url: " + url + "\n    tables: [a, b]\n    on_gap: stop\ndestinations:\n  archive: {type: file, path: archive.jsonl}\n")
	if err := relay.Migrate(t.Context(), io.Discard, g.load(), relay.MigrateOptions{}); err != nil {
		t.Fatal(err)
	}
	g.start()
	until(t, "the source reads", func() bool { return g.status().Sources["shop"].State == pipeline.OK })
	exec(`ALTER PUBLICATION onewrite_shop DROP TABLE a`)
	until(t, "the source has stopped", func() bool { return g.status().Sources["shop"].State == pipeline.InGap })
	cfg := g.load()
	cfg.Listen = g.addr
	says := func(text, cure string) {
		t.Helper()
		until(t, "the doctor says why", func() bool { // while the source is opened again, a session is there
			for _, f := range doctor(t, cfg, g.config()) {
				if f.Check == "reader" && f.Severity != diagnosis.OK && strings.Contains(f.Text, text) {
					if !strings.Contains(f.Text, "in state gap: ") || !strings.HasSuffix(f.Text, "]") || !strings.HasPrefix(f.Cure, cure) {
						t.Fatalf("%s; %s", f.Text, f.Cure)
					}
					return true
				}
			}
			return false
		})
	}
	says("public.a", "run onewrite migrate")
	exec(`SELECT pg_drop_replication_slot(slot) FROM onewrite.log`)
	if err := relay.Migrate(t.Context(), io.Discard, g.load(), relay.MigrateOptions{}); err != nil {
		t.Fatal(err)
	}
	says("is gone", "rows have to be read again")
}

// TestTableMadeAnew: that a table was dropped is in the status until it is there again.
func TestTableMadeAnew(t *testing.T) {
	url, exec := newPostgres(t)
	exec(`CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE b (id int PRIMARY KEY)`)
	g := newRig(t, "", file("archive", "archive.jsonl"))
	g.text("listen: 127.0.0.1:0\nbus: {dir: bus}\nsources:\n  shop:\n    type: postgres\n    url: " + url + "\n    tables: [a, b]\ndestinations:\n  archive: {type: file, path: archive.jsonl}\n")
	migrate := func() {
		t.Helper()
		if err := relay.Migrate(t.Context(), io.Discard, g.load(), relay.MigrateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	migrate()
	g.start()
	until(t, "the source reads", func() bool { return g.status().Sources["shop"].State == pipeline.OK })
	dropped := func() bool { return strings.Contains(strings.Join(g.status().Warnings, "\n"), "public.b was dropped") }
	for _, noticed := range []bool{true, false} {
		exec(`DROP TABLE b`)
		until(t, "it is said", dropped)
		exec(`CREATE TABLE b (id int PRIMARY KEY)`)
		if noticed {
			until(t, "it is not captured", func() bool { return g.status().Sources["shop"].State == pipeline.InGap })
			if dropped() {
				t.Errorf("the status says beside the gap: %q", g.status().Warnings)
			}
		}
		migrate()
		until(t, "it is said no more", func() bool { s := g.status(); return s.Sources["shop"].State == pipeline.OK && len(s.Warnings) == 0 })
	}
}
