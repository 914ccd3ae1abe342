package languages

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"io"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/onewrite/onewrite/internal/config"
	"github.com/onewrite/onewrite/internal/faultnet"
	"github.com/onewrite/onewrite/internal/servers"
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

// language is an example's folder and what is in it.
type language struct {
	name, producer, consumer string
	url                      func(t *testing.T, postgres string) string // as its driver wants it
}

var languages = []language{
	{"python", "producer.py", "consumer.py", plainURL},
	{"node", "producer.js", "consumer.js", plainURL},
	{"java", "Producer.java", "Consumer.java", jdbcURL},
}

func plainURL(_ *testing.T, postgres string) string { return postgres }

func jdbcURL(t *testing.T, postgres string) string {
	u := parse(t, postgres)
	q := u.Query()
	q.Set("user", u.User.Username())
	password, _ := u.User.Password()
	q.Set("password", password)
	u.User, u.RawQuery = nil, q.Encode()
	return "jdbc:postgresql:" + strings.TrimPrefix(u.String(), u.Scheme+":")
}

func parse(t *testing.T, text string) *url.URL {
	t.Helper()
	u, err := url.Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

// rig is one language's consumer, with the databases of both sides.
type rig struct {
	t    *testing.T
	lang language
	run  servers.Runtime

	shopURL   string    // of the owner, for the relay
	appURL    string    // of the application's role
	shop      *pgx.Conn // as the owner, who may look
	warehouse *pgx.Conn // as the owner, who may look
	role      string    // the application's

	network *faultnet.Proxy // between the consumer and its database
	secret  string
	key     []byte
	addr    string // of the consumer
	ended   <-chan struct{}
}

// newRig makes the databases from the files of this folder and starts the
// consumer.
func newRig(t *testing.T, lang language) *rig {
	t.Helper()
	g := &rig{t: t, lang: lang, run: servers.Language(t, lang.name), key: make([]byte, 32)}
	_, _ = rand.Read(g.key) // never fails
	g.secret = "whsec_" + base64.StdEncoding.EncodeToString(g.key)

	pg := servers.Postgres(t, 15)
	g.shopURL = pg.NewDatabase(t)
	warehouseURL := pg.NewDatabase(t)
	app, clerk := pg.NewRole(t), pg.NewRole(t)
	g.role, g.appURL = app.Name, app.URL(g.shopURL)
	g.shop, g.warehouse = connect(t, g.shopURL), connect(t, warehouseURL)
	g.tables(g.shop, "shop.sql", "shop_app", app.Name)
	g.tables(g.warehouse, "warehouse.sql", "warehouse_app", clerk.Name)

	u := parse(t, clerk.URL(warehouseURL))
	network, err := faultnet.Listen(u.Host)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { network.Close() })
	g.network, u.Host = network, network.Addr()
	g.startConsumer(u.String())
	return g
}

func connect(t *testing.T, url string) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close(context.Background()) })
	return conn
}

// tables runs a file of this folder, with a role of this test in the place of
// the one that it names.
func (g *rig) tables(db *pgx.Conn, file, role, ours string) {
	g.t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		g.t.Fatal(err)
	}
	if _, err := db.Exec(g.t.Context(), strings.ReplaceAll(string(text), role, ours)); err != nil {
		g.t.Fatalf("%s: %v", file, err)
	}
}

// command runs a program of the language's folder.
func (g *rig) command(file string, env ...string) *exec.Cmd {
	cmd := g.run.Command(file)
	cmd.Dir = filepath.Join("..", g.lang.name)
	cmd.Env = append(cmd.Env, env...)
	return cmd
}

// leash runs a program and ends it when the standard input does, which only the
// test holds: so the program goes with the test, however that ends.
const leash = `
exec 3<&0
"$@" </dev/null 3<&- & pid=$!
{ while read -r line; do :; done <&3; kill -s KILL $pid; } >/dev/null 2>&1 & watcher=$!
exec >/dev/null 3<&-
wait $pid
kill $watcher`

// startConsumer runs the consumer until the test ends.
func (g *rig) startConsumer(database string) {
	t := g.t
	t.Helper()
	cmd := g.command(g.lang.consumer, "DATABASE_URL="+g.lang.url(t, database), "PORT=0", "WEBHOOK_SECRET="+g.secret)
	cmd.Path, cmd.Args = servers.Bin(t, "sh"), append([]string{"sh", "-c", leash, "sh", cmd.Path}, cmd.Args[1:]...)
	stderr := &lockedBuffer{}
	cmd.Stderr = stderr
	hand, err1 := cmd.StdinPipe()
	stdout, err2 := cmd.StdoutPipe()
	if err := errors.Join(err1, err2, cmd.Start()); err != nil {
		t.Fatal(err)
	}
	said, ended := make(chan string, 1), make(chan struct{})
	g.ended = ended
	go func() {
		defer close(ended)
		first, _ := bufio.NewReader(stdout).ReadString('\n')
		said <- strings.TrimSpace(first)
		_, _ = io.Copy(io.Discard, stdout)
		_ = cmd.Wait() // it is killed
	}()
	t.Cleanup(func() {
		hand.Close()
		select {
		case <-ended:
		case <-time.After(soon):
			t.Error("the consumer does not end")
		}
		if t.Failed() {
			t.Logf("the consumer says: %s", stderr.String())
		}
	})
	select {
	case line := <-said:
		addr, ok := strings.CutPrefix(line, "listening on ")
		if !ok {
			t.Fatalf("the consumer says %q", line)
		}
		g.addr = addr
	case <-time.After(soon):
		t.Fatal("the consumer does not listen")
	}
}

// lockedBuffer is written by a child and read by the test.
type lockedBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	text := b.buf.String()
	return text[max(0, len(text)-8000):]
}

// migrateAndRelay makes the outbox and runs the relay of onewrite.yaml until the
// test ends. It delivers to a port, which it is given as users give it.
func (g *rig) migrateAndRelay(t *testing.T, port string) *relay.Relay {
	t.Helper()
	t.Setenv("SHOP_DATABASE_URL", g.shopURL)
	t.Setenv("WEBHOOK_SECRET", g.secret)
	t.Setenv("PORT", port)
	text, err := os.ReadFile("onewrite.yaml")
	if err != nil {
		t.Fatal(err)
	}
	text = bytes.ReplaceAll(text, []byte("shop_app"), []byte(g.role))
	cfg, _, err := config.Parse(text, "onewrite.yaml", t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	cfg.Listen = "off"
	if err := relay.Migrate(t.Context(), io.Discard, cfg, relay.MigrateOptions{}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	r := relay.New(cfg, relay.Options{Version: "test"})
	go func() { done <- r.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("the relay: %v", err)
			}
		case <-time.After(soon):
			t.Error("the relay does not stop")
		}
	})
	return r
}
