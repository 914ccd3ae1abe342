package servers

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// RedisServer is a Redis on 127.0.0.1 that syncs its append only file before it
// answers (appendfsync always), with a password made at run time.
type RedisServer struct {
	port     int
	password string
	bin      string
	proc     *process
	conf     []string // lines of its configuration
	alone    bool     // made by NewRedis: one test may do to it what it likes
}

var sharedRedis struct {
	sync.Mutex
	server *RedisServer
	err    error
}

// Redis returns the test process's own Redis, started by the first call; it is there
// until the process ends. Tests that stop or configure one take [NewRedis]. One that
// is not installed ends the test; see the package's comment.
func Redis(tb testing.TB) *RedisServer {
	tb.Helper()
	sharedRedis.Lock()
	defer sharedRedis.Unlock()
	if sharedRedis.server == nil && sharedRedis.err == nil {
		sharedRedis.server, sharedRedis.err = startRedis()
	}
	if errors.Is(sharedRedis.err, errMissing) {
		missing(tb, "%v", sharedRedis.err)
	}
	if sharedRedis.err != nil {
		tb.Fatal(sharedRedis.err)
	}
	return sharedRedis.server
}

// NewRedis starts a Redis for this test alone and ends it with the test. Lines are
// added to its configuration file: "maxmemory 8mb".
func NewRedis(tb testing.TB, lines ...string) *RedisServer {
	tb.Helper()
	r, err := startRedis(lines...)
	if errors.Is(err, errMissing) {
		missing(tb, "%v", err)
	}
	if err != nil {
		tb.Fatal(err)
	}
	r.alone = true
	tb.Cleanup(func() {
		if err := r.proc.close(); err != nil {
			tb.Error(err)
		}
	})
	return r
}

func startRedis(lines ...string) (*RedisServer, error) {
	bin, err := findProgram("redis-server")
	if err != nil {
		return nil, fmt.Errorf("redis-server is %w: %s", errMissing, installHint)
	}
	proc, err := newProcess("redis", "pid", "KILL")
	if err != nil {
		return nil, err
	}
	r := &RedisServer{bin: bin, proc: proc, password: randomName(16), conf: lines}
	for range 5 { // another process may take the port between the look and the start
		if r.port, err = freePort(); err != nil {
			break
		}
		if err = r.start(); err == nil {
			return r, nil
		}
	}
	return nil, errors.Join(err, proc.close())
}

// start writes the configuration and starts the server. Its title stays as it was
// started, for the watcher knows it by the folder.
func (r *RedisServer) start() error {
	lines := append([]string{"bind 127.0.0.1", "port " + strconv.Itoa(r.port), "dir " + r.proc.dir, "pidfile " + r.proc.path("pid"), "set-proc-title no",
		"requirepass " + r.password, "masterauth " + r.password, `save ""`, "appendonly yes", "appendfsync always", "maxmemory-policy noeviction"}, r.conf...)
	if err := r.proc.write("redis.conf", strings.Join(lines, "\n")+"\n"); err != nil {
		return fmt.Errorf("servers: %w", err)
	}
	if err := r.proc.start(r.bin, r.proc.path("redis.conf")); err != nil {
		return err
	}
	var err error
	for deadline := time.Now().Add(60 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		if err = r.ping(); err == nil {
			return nil
		}
		if !r.proc.running() {
			return fmt.Errorf("servers: redis-server ended at its start:\n%s", r.proc.logTail())
		}
	}
	return fmt.Errorf("servers: redis-server does not answer: %w\n%s", err, r.proc.logTail())
}

// ping logs in as a client does, which a stranger on the port does not understand.
func (r *RedisServer) ping() error {
	conn, err := net.DialTimeout("tcp", r.Addr(), time.Second)
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		return err
	}
	if _, err := fmt.Fprintf(conn, "AUTH %s\r\nPING\r\n", r.password); err != nil {
		return err
	}
	in := bufio.NewReader(conn)
	for _, want := range []string{"+OK", "+PONG"} {
		line, err := in.ReadString('\n')
		if err != nil {
			return err
		}
		if got := strings.TrimSpace(line); got != want {
			return errors.New(got)
		}
	}
	return nil
}

// Addr returns host:port.
func (r *RedisServer) Addr() string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(r.port)) }

// Password returns the password of the default user.
func (r *RedisServer) Password() string { return r.password }

// URL returns the URL of the default user on database 0.
func (r *RedisServer) URL() string {
	u := url.URL{Scheme: "redis", User: url.UserPassword("default", r.password), Host: r.Addr(), Path: "/0"}
	return u.String()
}

// CLI returns redis-cli with arguments, logged in. One that is missing ends the test.
func (r *RedisServer) CLI(tb testing.TB, args ...string) *exec.Cmd {
	tb.Helper()
	cmd := exec.Command(Bin(tb, "redis-cli"), append([]string{"-h", "127.0.0.1", "-p", strconv.Itoa(r.port)}, args...)...)
	cmd.Env = append(cmd.Environ(), "REDISCLI_AUTH="+r.password)
	return cmd
}

// own ends the test when others use the server too.
func (r *RedisServer) own(tb testing.TB) {
	tb.Helper()
	if !r.alone {
		tb.Fatal("servers: other tests share this server; take servers.NewRedis")
	}
}

// Kill ends the server by SIGKILL and waits for its end; its data stays.
func (r *RedisServer) Kill(tb testing.TB) {
	tb.Helper()
	r.own(tb)
	if err := r.proc.kill(); err != nil {
		tb.Fatal(err)
	}
}

// Start starts a killed server on the same port and data, with more lines of
// configuration, and waits until it answers.
func (r *RedisServer) Start(tb testing.TB, lines ...string) {
	tb.Helper()
	r.own(tb)
	r.conf = append(r.conf, lines...)
	if err := r.start(); err != nil {
		tb.Fatal(err)
	}
}

// Restart is Kill and Start.
func (r *RedisServer) Restart(tb testing.TB, lines ...string) {
	tb.Helper()
	r.Kill(tb)
	r.Start(tb, lines...)
}

// Pause freezes the server: connections stay open and nothing answers.
func (r *RedisServer) Pause(tb testing.TB) {
	tb.Helper()
	r.own(tb)
	if err := r.proc.freeze(); err != nil {
		tb.Fatal(err)
	}
}

// Resume lets a paused server go on.
func (r *RedisServer) Resume(tb testing.TB) {
	tb.Helper()
	r.own(tb)
	r.proc.thaw()
}

// Data returns the folder that holds all of the server.
func (r *RedisServer) Data() string { return r.proc.dir }
