package main

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	_ "github.com/jackc/pgx/v5/stdlib"
	_ "modernc.org/sqlite"

	"github.com/onewrite/onewrite/dashboard"
	"github.com/onewrite/onewrite/internal/servers"
	"github.com/onewrite/onewrite/outbox"
)

// kills is how often the program is killed in the middle of the load.
const kills = 20

func TestKillSQLite(t *testing.T) {
	path := filepath.Join(t.TempDir(), "shop.db")
	db, err := sql.Open("sqlite", "file:"+path+"?_pragma=busy_timeout(10000)&_pragma=journal_mode(wal)&_txlock=immediate")
	if err != nil {
		t.Fatal(err)
	}
	db.SetMaxOpenConns(1)
	t.Cleanup(func() { db.Close() })
	r := servers.Redis(t)
	committed := kill(t, db, outbox.SQLite, fmt.Sprintf("{type: sqlite, path: %q}", path),
		fmt.Sprintf(`cache: {type: redis, url: %q, stream: "kills:{topic}", topics: ["order.>"]}`, r.URL()))
	checkStream(t, r, "kills:order.placed", committed)
}

// checkStream counts what is in a stream of Redis, which keeps the place of its
// destination: each event once, each key in order.
func checkStream(t *testing.T, r *servers.RedisServer, stream string, committed int64) {
	t.Helper()
	out, err := r.CLI(t, "--raw", "XRANGE", stream, "-", "+").Output()
	if err != nil {
		t.Fatal(err)
	}
	n, last := int64(0), map[string]int64{}
	for line := range strings.Lines(string(out)) {
		var o struct {
			K string
			N int64
		}
		if !strings.HasPrefix(line, "{") || json.Unmarshal([]byte(line), &o) != nil {
			continue
		}
		n++
		if o.N != last[o.K]+1 {
			t.Errorf("in the stream %s has %d behind %d", o.K, o.N, last[o.K])
		}
		last[o.K] = o.N
	}
	if n != committed {
		t.Errorf("the stream has %d events, %d were committed", n, committed)
	}
}

func TestKillPostgres(t *testing.T) {
	for _, version := range []int{15, 18} {
		t.Run(strconv.Itoa(version), func(t *testing.T) {
			url := servers.Postgres(t, version).NewDatabase(t)
			db, err := sql.Open("pgx", url)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { db.Close() })
			kill(t, db, outbox.Postgres, fmt.Sprintf("{type: postgres, url: %q}", url), "")
		})
	}
}

// kill runs a load, kills the program again and again in its middle, and counts
// what the database committed against what a consumer holds. more
// is another destination. It returns the number.
func kill(t *testing.T, db *sql.DB, dialect outbox.Dialect, source, more string) int64 {
	c := newConsumer(t)
	p := newProgram(t, fmt.Sprintf(`
sources: {shop: %s}
destinations:
  consumer: {type: webhook, url: %q, allow_private: true, secret: for-tests-only, topics: ["order.>"]}
  archive: {type: file, path: events.jsonl}
  %s
`, source, c.server.URL, more))
	p.must("migrate")
	exec1(t, db, `CREATE TABLE truth (k text, n bigint, PRIMARY KEY (k, n))`)
	p.start()
	load := startLoad(t, db, dialect, c)
	for range kills {
		c.waitFor(t, c.count()+int64(20+rand.IntN(80)))
		p.kill()
		p.start()
	}
	committed := load.stop()
	c.waitAll(t, committed)
	checkArrived(t, db, c)
	if c.swallowed.Load() == 0 || c.repeats.Load() == 0 {
		t.Errorf("vacuous: %d answers swallowed, %d repeats", c.swallowed.Load(), c.repeats.Load())
	}
	p.waitIdle(committed)
	checkFile(t, filepath.Join(p.dir, "events.jsonl"), committed)
	p.stop()
	t.Logf("%d kills, %d events, %d raw repeats at the consumer, %d answers swallowed", kills, committed, c.repeats.Load(), c.swallowed.Load())
	return committed
}

func exec1(t *testing.T, db *sql.DB, query string) {
	t.Helper()
	if _, err := db.Exec(query); err != nil {
		t.Fatal(err)
	}
}

// load writes orders: a row of truth and its event in one transaction, some of
// them rolled back. The number in a key says the commit order.
type load struct {
	quit      chan struct{}
	wg        sync.WaitGroup
	committed atomic.Int64
}

const loadKeys = 8

// maxAhead is how far the load may be ahead of the consumer: on a slow machine
// the test must still end.
const maxAhead = 3000

func startLoad(t *testing.T, db *sql.DB, dialect outbox.Dialect, c *consumer) *load {
	l := &load{quit: make(chan struct{})}
	pub := outbox.New(dialect)
	insert := map[bool]string{true: `INSERT INTO truth VALUES ($1, $2)`, false: `INSERT INTO truth VALUES (?, ?)`}[dialect == outbox.Postgres]
	for k := range loadKeys {
		l.wg.Go(func() {
			key := fmt.Sprint("k", k)
			for n := int64(1); ; n++ {
				select {
				case <-l.quit:
					return
				default:
				}
				if l.committed.Load()-c.count() > maxAhead {
					time.Sleep(5 * time.Millisecond)
					n--
					continue
				}
				for abort := rand.IntN(10) == 0; ; abort = false {
					err := order(db, pub, insert, key, n, abort)
					if err == nil {
						break
					} else if err != errAbort {
						t.Errorf("write: %v", err)
						return
					}
				}
				l.committed.Add(1)
			}
		})
	}
	return l
}

var errAbort = fmt.Errorf("rolled back on purpose")

func order(db *sql.DB, pub *outbox.Publisher, insert, key string, n int64, abort bool) error {
	ctx := context.Background()
	return outbox.InTx(ctx, db, func(tx *sql.Tx) error {
		if _, err := tx.Exec(insert, key, n); err != nil {
			return err
		}
		if err := pub.Publish(ctx, tx, outbox.Event{Topic: "order.placed", Key: key, Payload: fmt.Appendf(nil, `{"k":%q,"n":%d,"aborted":%v}`, key, n, abort)}); err != nil {
			return err
		}
		if abort {
			return errAbort
		}
		return nil
	})
}

func (l *load) stop() int64 {
	close(l.quit)
	l.wg.Wait()
	return l.committed.Load()
}

// consumer remembers ids in its own transaction with the effect, and swallows
// some of its answers after the commit.
type consumer struct {
	t         *testing.T
	db        *sql.DB
	server    *httptest.Server
	effects   atomic.Int64
	repeats   atomic.Int64
	swallowed atomic.Int64
	down      atomic.Bool
}

func newConsumer(t *testing.T) *consumer {
	db, err := sql.Open("sqlite", "file:"+filepath.Join(t.TempDir(), "consumer.db")+"?_pragma=journal_mode(wal)&_pragma=synchronous(off)&_txlock=immediate")
	if err != nil {
		t.Fatal(err)
	}
	db.SetMaxOpenConns(1)
	exec1(t, db, `CREATE TABLE inbox (id text PRIMARY KEY)`)
	exec1(t, db, `CREATE TABLE effects (place INTEGER PRIMARY KEY AUTOINCREMENT, k text, n int, aborted int)`)
	c := &consumer{t: t, db: db}
	c.server = httptest.NewServer(c)
	t.Cleanup(func() { c.server.Close(); db.Close() })
	return c
}

func (c *consumer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if c.down.Load() {
		http.Error(w, "down", http.StatusServiceUnavailable)
		return
	}
	var body struct {
		K       string
		N       int64
		Aborted bool
	}
	if err := json.NewDecoder(r.Body).Decode(&body); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	fresh, err := c.apply(r.Header.Get("ce-id"), body.K, body.N, body.Aborted)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	if fresh {
		c.effects.Add(1)
	} else {
		c.repeats.Add(1)
	}
	if rand.IntN(100) < 2 {
		c.swallowed.Add(1)
		if conn, _, err := w.(http.Hijacker).Hijack(); err == nil {
			conn.Close()
		}
	}
}

func (c *consumer) apply(id, k string, n int64, aborted bool) (fresh bool, err error) {
	tx, err := c.db.Begin()
	if err != nil {
		return false, err
	}
	defer tx.Rollback()
	res, err := tx.Exec(`INSERT OR IGNORE INTO inbox VALUES (?)`, id)
	if err != nil {
		return false, err
	}
	if rows, _ := res.RowsAffected(); rows == 0 {
		return false, nil
	}
	if _, err := tx.Exec(`INSERT INTO effects (k, n, aborted) VALUES (?, ?, ?)`, k, n, aborted); err != nil {
		return false, err
	}
	return true, tx.Commit()
}

func (c *consumer) count() int64 { return c.effects.Load() }

// waitFor waits until the consumer has so many effects.
func (c *consumer) waitFor(t *testing.T, n int64) {
	t.Helper()
	wait(t, func() error {
		if got := c.count(); got < n {
			return fmt.Errorf("the consumer has %d effects, waiting for %d", got, n)
		}
		return nil
	})
}

func (c *consumer) waitAll(t *testing.T, committed int64) { c.waitFor(t, committed) }

// wait polls until ok returns nil, for a minute at most.
func wait(t *testing.T, ok func() error) {
	t.Helper()
	deadline := time.Now().Add(time.Minute)
	for {
		err := ok()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// checkArrived compares the database's truth with the consumer's store: nothing
// missing, nothing twice, nothing rolled back, each key in commit order.
func checkArrived(t *testing.T, db *sql.DB, c *consumer) {
	t.Helper()
	var truth, effects, phantoms int64
	scan(t, db, `SELECT count(*) FROM truth`, &truth)
	scan(t, c.db, `SELECT count(*) FROM effects`, &effects)
	scan(t, c.db, `SELECT count(*) FROM effects WHERE aborted`, &phantoms)
	if truth < 1000 {
		t.Errorf("vacuous: only %d orders committed", truth)
	}
	if truth != effects || phantoms != 0 {
		t.Errorf("committed %d, effects %d, of them rolled back %d", truth, effects, phantoms)
	}
	rows, err := c.db.Query(`SELECT k, n FROM effects ORDER BY place`)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	last := map[string]int64{}
	for rows.Next() {
		var k string
		var n int64
		if err := rows.Scan(&k, &n); err != nil {
			t.Fatal(err)
		}
		if n != last[k]+1 {
			t.Fatalf("key %s: %d arrived after %d", k, n, last[k])
		}
		last[k] = n
	}
}

func scan(t *testing.T, db *sql.DB, query string, into any) {
	t.Helper()
	if err := db.QueryRow(query).Scan(into); err != nil {
		t.Fatal(err)
	}
}

// checkFile reads the archive: every committed event once, each key in order.
func checkFile(t *testing.T, path string, committed int64) {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	ids, last := map[string]bool{}, map[string]int64{}
	for line := range strings.Lines(string(text)) {
		var e struct {
			ID           string
			Partitionkey string
			Data         struct{ N int64 }
		}
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			t.Fatalf("%v: %s", err, line)
		}
		if ids[e.ID] {
			continue
		}
		ids[e.ID] = true
		if e.Data.N != last[e.Partitionkey]+1 {
			t.Fatalf("archive: key %s: %d after %d", e.Partitionkey, e.Data.N, last[e.Partitionkey])
		}
		last[e.Partitionkey] = e.Data.N
	}
	if int64(len(ids)) != committed {
		t.Errorf("the archive has %d events, %d were committed", len(ids), committed)
	}
}

// program is onewrite as a process of its own.
type program struct {
	t    *testing.T
	dir  string
	file string
	addr string
	cmd  *exec.Cmd
	log  *os.File
}

func newProgram(t *testing.T, yaml string) *program {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	l.Close()
	p := &program{t: t, dir: t.TempDir(), addr: addr}
	p.file = filepath.Join(p.dir, "onewrite.yaml")
	if err := os.WriteFile(p.file, []byte(yaml+"listen: "+addr+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if p.log, err = os.Create(filepath.Join(p.dir, "log")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if p.cmd != nil {
			p.cmd.Process.Kill()
			p.cmd.Wait()
		}
		p.log.Close()
		if t.Failed() {
			text, _ := os.ReadFile(p.log.Name())
			if len(text) > 8000 {
				text = text[len(text)-8000:]
			}
			t.Logf("the program's log ends:\n%s", text)
		}
	})
	return p
}

func (p *program) command(args ...string) *exec.Cmd {
	cmd := exec.Command(os.Args[0], append(args, "-c", p.file)...)
	cmd.Env = append(os.Environ(), asProgram+"=1")
	cmd.Dir = p.dir
	return cmd
}

func (p *program) must(args ...string) {
	p.t.Helper()
	if out, err := p.command(args...).CombinedOutput(); err != nil {
		p.t.Fatalf("onewrite %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

func (p *program) start() {
	p.t.Helper()
	p.cmd = p.command("run")
	p.cmd.Stdout, p.cmd.Stderr = p.log, p.log
	if err := p.cmd.Start(); err != nil {
		p.t.Fatal(err)
	}
}

// kill sends SIGKILL: nothing is finished, nothing is stored.
func (p *program) kill() {
	p.cmd.Process.Kill()
	p.cmd.Wait()
}

// stop asks for a clean end and expects it.
func (p *program) stop() {
	p.t.Helper()
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		p.t.Fatal(err)
	}
	if err := p.cmd.Wait(); err != nil {
		p.t.Errorf("clean stop: %v", err)
	}
	p.cmd = nil
}

func (p *program) status() (s dashboard.Status, err error) {
	resp, err := http.Get("http://" + p.addr + "/api/status")
	if err != nil {
		return s, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return s, err
	}
	return s, json.Unmarshal(body, &s)
}

// waitIdle waits until nothing is pending and every event is accounted for.
func (p *program) waitIdle(committed int64) {
	p.t.Helper()
	wait(p.t, func() error {
		s, err := p.status()
		if err != nil {
			return err
		}
		if got := s.Sources["shop"].Events; int64(got) < committed {
			return fmt.Errorf("the bus took %d of %d events", got, committed)
		}
		for name, d := range s.Destinations {
			if d.Pending > 0 || d.Parked > 0 || d.State != "ok" {
				return fmt.Errorf("%s: %+v", name, d)
			}
		}
		return nil
	})
}
