package servers

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// PG is a PostgreSQL server. It logs in by password on 127.0.0.1, has
// wal_level=logical, 200 connections, 20 slots and 20 prepared transactions.
type PG struct {
	// Version is the major version, 15 for instance.
	Version int

	base  url.URL // of the superuser, without a database
	bin   string  // folder of initdb and postgres; "" for a server that is not ours
	port  int
	proc  *process // nil for a server that is not ours
	flags []string
	alone bool // made by NewPostgres: one test may do to it what it likes

	mu    sync.Mutex
	roles []string // to be dropped once nothing depends on them
}

// Option changes how [NewPostgres] starts its server.
type Option func(*PG)

// Set sets a server parameter, as -c name=value does.
func Set(name, value string) Option {
	return func(p *PG) { p.flags = append(p.flags, "-c", name+"="+value) }
}

// NoSync turns fsync off: faster, and no test of crashes of a machine.
func NoSync() Option { return Set("fsync", "off") }

// shared are the servers of this test process, by major version.
var shared struct {
	sync.Mutex
	pg  map[int]*PG
	err map[int]error
}

// Postgres returns the test process's own server of a major version, started by
// the first call; it is there until the process ends. Tests that stop, pause or
// configure a server take [NewPostgres]. A server that is not installed ends
// the test; see the package's comment.
func Postgres(tb testing.TB, version int) *PG {
	tb.Helper()
	shared.Lock()
	defer shared.Unlock()
	if shared.pg == nil {
		shared.pg, shared.err = make(map[int]*PG), make(map[int]error)
	}
	if shared.pg[version] == nil && shared.err[version] == nil {
		shared.pg[version], shared.err[version] = openShared(version)
	}
	if err := shared.err[version]; errors.Is(err, errMissing) {
		missing(tb, "%v", err)
	} else if err != nil {
		tb.Fatal(err)
	}
	return shared.pg[version]
}

func openShared(version int) (*PG, error) {
	name := "ONEWRITE_TEST_POSTGRES_" + strconv.Itoa(version)
	if text := os.Getenv(name); text != "" {
		u, err := url.Parse(text)
		if err != nil || u.Hostname() == "" {
			return nil, fmt.Errorf("servers: %s is not a URL; cure: export %[1]s=postgres://user:password@host:5432/", name)
		}
		u.Path = ""
		p := &PG{Version: version, base: *u}
		return p, p.ping()
	}
	return startPostgres(version)
}

// Versions are the major versions on which tests of all versions run: the oldest and the
// newest that are supported. ONEWRITE_TEST_POSTGRES_VERSIONS=16,17 names others.
func Versions() []int {
	var list []int
	for name := range strings.SplitSeq(os.Getenv("ONEWRITE_TEST_POSTGRES_VERSIONS"), ",") {
		if v, err := strconv.Atoi(strings.TrimSpace(name)); err == nil {
			list = append(list, v)
		}
	}
	if len(list) == 0 {
		list = []int{15, 18}
	}
	return list
}

// NewPostgres starts a server for this test alone and ends it with the test.
// It is for tests that stop it, freeze it or need a parameter.
func NewPostgres(tb testing.TB, version int, options ...Option) *PG {
	tb.Helper()
	p, err := Launch(version, options...)
	if errors.Is(err, errMissing) {
		missing(tb, "%v", err)
	}
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := p.Shutdown(); err != nil {
			tb.Error(err)
		}
	})
	return p
}

// postgresDirs are the folders where a major version's programs may be.
func postgresDirs(version int) []string {
	v := strconv.Itoa(version)
	return []string{
		filepath.Join(cacheDir(), "postgres-"+v, "bin"),
		"/usr/lib/postgresql/" + v + "/bin",
		"/usr/pgsql-" + v + "/bin",
		"/opt/homebrew/opt/postgresql@" + v + "/bin",
		"/usr/local/opt/postgresql@" + v + "/bin",
	}
}

// findPostgres returns the folder of a major version's initdb and postgres.
func findPostgres(version int) (string, error) {
	for _, dir := range postgresDirs(version) {
		if isProgram(filepath.Join(dir, "postgres")) && isProgram(filepath.Join(dir, "initdb")) {
			return dir, nil
		}
	}
	if path, err := exec.LookPath("postgres"); err == nil {
		out, err := exec.Command(path, "--version").Output()
		if err == nil && strings.Contains(string(out), fmt.Sprintf(") %d.", version)) {
			return filepath.Dir(path), nil
		}
	}
	return "", fmt.Errorf("PostgreSQL %d is %w: %s, or name a running one: export ONEWRITE_TEST_POSTGRES_%[1]d=postgres://user:password@host:5432/",
		version, errMissing, installHint)
}

func startPostgres(version int, options ...Option) (*PG, error) {
	bin, err := findPostgres(version)
	if err != nil {
		return nil, err
	}
	proc, err := newProcess("postgres", filepath.Join("data", "postmaster.pid"), "QUIT")
	if err != nil {
		return nil, err
	}
	p := &PG{Version: version, bin: bin, proc: proc}
	for _, o := range options {
		o(p)
	}
	if err := p.init(); err != nil {
		return nil, errors.Join(err, proc.close())
	}
	return p, nil
}

// init makes the cluster and starts it on a free port. Another process may take
// the port between the look and the start; then the next one is tried.
func (p *PG) init() error {
	password := randomName(16)
	if err := p.proc.write("password", password+"\n"); err != nil {
		return fmt.Errorf("servers: %w", err)
	}
	err := p.proc.run(filepath.Join(p.bin, "initdb"), "-D", p.proc.path("data"), "-U", "postgres", "-E", "UTF8",
		"--locale=C", "-N", "-A", "scram-sha-256", "--pwfile", p.proc.path("password"))
	if err != nil {
		return err
	}
	for range 5 {
		if p.port, err = freePort(); err != nil {
			return err
		}
		p.base = url.URL{Scheme: "postgres", User: url.UserPassword("postgres", password),
			Host: net.JoinHostPort("127.0.0.1", strconv.Itoa(p.port)), RawQuery: "sslmode=disable"}
		if err = p.start(); err == nil {
			return nil
		}
	}
	return err
}

func (p *PG) start() error {
	args := []string{"-D", p.proc.path("data"), "-p", strconv.Itoa(p.port)}
	for _, c := range []string{"listen_addresses=127.0.0.1", "unix_socket_directories=", "wal_level=logical",
		"max_connections=200", "max_wal_senders=20", "max_replication_slots=20", "max_prepared_transactions=20",
		"shared_buffers=64MB", "timezone=UTC", "log_timezone=UTC"} {
		args = append(args, "-c", c)
	}
	if err := p.proc.start(filepath.Join(p.bin, "postgres"), append(args, p.flags...)...); err != nil {
		return err
	}
	return p.ping()
}

// ping waits until the server answers.
func (p *PG) ping() error {
	var err error
	for deadline := time.Now().Add(60 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		if err = p.exec("postgres", "SELECT 1"); err == nil {
			return nil
		}
		if p.proc != nil && !p.proc.running() {
			return fmt.Errorf("servers: PostgreSQL %d ended at its start:\n%s", p.Version, p.proc.logTail())
		}
	}
	return fmt.Errorf("servers: PostgreSQL %d does not answer: %w", p.Version, err)
}

// exec runs statements one by one over a connection of its own.
func (p *PG) exec(db string, statements ...string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	conn, err := pgx.Connect(ctx, p.URL(db))
	if err != nil {
		return err
	}
	defer conn.Close(ctx)
	for _, s := range statements {
		if _, err := conn.Exec(ctx, s); err != nil {
			return err
		}
	}
	return nil
}

// URL returns the superuser's URL of a database; an empty name is "postgres".
func (p *PG) URL(db string) string {
	if db == "" {
		db = "postgres"
	}
	u := p.base
	u.Path = "/" + db
	return u.String()
}

// Bin returns the folder of the server's programs: initdb and postgres, and
// with a packaged server psql, pg_dump and the others; it is "" for a server
// named in the environment. The function [Bin] finds one program anywhere.
func (p *PG) Bin() string { return p.bin }

// Addr returns host:port of the server, for proxies in between.
func (p *PG) Addr() string { return p.base.Host }
