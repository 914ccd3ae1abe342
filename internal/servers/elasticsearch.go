package servers

import (
	"crypto/sha1"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// ElasticsearchVersion is the one that scripts/install-servers.sh fetches.
const ElasticsearchVersion = "8.19.0"

const elasticPatience = 3 * time.Minute

// ElasticsearchServer is one node of Elasticsearch in a process of its own, with
// plain HTTP on the loopback and a log in by password. It has half a gigabyte of
// heap, no ingest, script or reindex modules, and an fsync before each answer.
type ElasticsearchServer struct {
	dir, java       string // of the programs
	port, transport int
	passwords       map[string]string
	proc            *process
}

// Users of an [ElasticsearchServer]: one that may do all, and one that may write
// the indices may-* and onewrite-state alone.
const (
	ElasticAdmin  = "admin"
	ElasticWriter = "writer"
)

var sharedElastic = sync.OnceValues(startElasticsearch)

// Elasticsearch returns the test process's own server, started by the first call;
// it is there until the process ends. Its start takes some ten seconds, so tests
// share it: one that kills it starts it again. A server that is not installed
// ends the test.
func Elasticsearch(tb testing.TB) *ElasticsearchServer {
	tb.Helper()
	s, err := sharedElastic()
	if errors.Is(err, errMissing) {
		missing(tb, "%v", err)
	} else if err != nil {
		tb.Fatal(err)
	}
	return s
}

// findElasticsearch returns the server's folder and that of the Java it runs on.
func findElasticsearch() (dir, java string, err error) {
	dir = filepath.Join(cacheDir(), "elasticsearch-"+ElasticsearchVersion)
	if !isProgram(filepath.Join(dir, "bin", "elasticsearch")) {
		return "", "", fmt.Errorf("Elasticsearch %s is %w: %s", ElasticsearchVersion, errMissing, installHint)
	}
	path, err := exec.LookPath("java")
	if err == nil {
		path, err = filepath.EvalSymlinks(path)
	}
	if err != nil {
		return "", "", fmt.Errorf("java, which Elasticsearch runs on, is %w: %s", errMissing, installHint)
	}
	return dir, filepath.Dir(filepath.Dir(path)), nil
}

func startElasticsearch() (*ElasticsearchServer, error) {
	dir, java, err := findElasticsearch()
	if err != nil {
		return nil, err
	}
	proc, err := newProcess("elasticsearch", "pid", "KILL")
	if err != nil {
		return nil, err
	}
	s := &ElasticsearchServer{dir: dir, java: java, proc: proc, passwords: map[string]string{ElasticAdmin: randomName(12), ElasticWriter: randomName(12)}}
	for range 5 { // another process may take a port between the look and the start
		var ports []int
		if ports, err = freePorts(2); err != nil {
			break
		}
		s.port, s.transport = ports[0], ports[1]
		if err = s.configure(); err != nil {
			break
		}
		if err = s.Start(); err == nil {
			return s, nil
		}
	}
	return nil, errors.Join(err, proc.close())
}

// configure writes the folder of the configuration and the script that starts.
func (s *ElasticsearchServer) configure() error {
	for _, name := range []string{"config", "config/jvm.options.d", "data", "logs", "tmp"} {
		if err := os.MkdirAll(s.proc.path(name), 0o700); err != nil {
			return fmt.Errorf("servers: %w", err)
		}
		if err := s.proc.give(s.proc.path(name)); err != nil {
			return fmt.Errorf("servers: %w", err)
		}
	}
	var users, roles strings.Builder
	for name, password := range s.passwords {
		sum := sha1.Sum([]byte(password)) // a form that the server reads; the password is random
		fmt.Fprintf(&users, "%s:{SHA}%s\n", name, base64.StdEncoding.EncodeToString(sum[:]))
	}
	fmt.Fprintf(&roles, "superuser:%s\nmay:%s\n", ElasticAdmin, ElasticWriter)
	log4j, err := os.ReadFile(filepath.Join(s.dir, "config", "log4j2.properties"))
	if err != nil {
		return fmt.Errorf("servers: %w", err)
	}
	for name, text := range map[string]string{
		"config/elasticsearch.yml": fmt.Sprintf(`cluster.name: onewrite-%s
node.name: one
path.data: %q
path.logs: %q
http.host: 127.0.0.1
http.port: %d
transport.host: 127.0.0.1
transport.port: %d
discovery.type: single-node
xpack.security.enabled: true
xpack.security.http.ssl.enabled: false
xpack.security.transport.ssl.enabled: false
xpack.security.enrollment.enabled: false
cluster.routing.allocation.disk.threshold_enabled: false
`, randomName(4), s.proc.path("data"), s.proc.path("logs"), s.port, s.transport),
		"config/jvm.options":       "-Xms512m\n-Xmx512m\n-XX:+UseSerialGC\n-XX:TieredStopAtLevel=1\n-Djava.io.tmpdir=" + s.proc.path("tmp") + "\n",
		"config/log4j2.properties": string(log4j),
		"config/users":             users.String(),
		"config/users_roles":       roles.String(),
		"config/roles.yml":         "may:\n  cluster: [monitor]\n  indices:\n    - names: ['may-*', 'onewrite-state']\n      privileges: [auto_configure, create_index, index, delete, read, monitor, view_index_metadata, maintenance]\n",
		"start": fmt.Sprintf("export ES_JAVA_HOME='%s' ES_PATH_CONF='%s' ES_TMPDIR='%s' CLI_JAVA_OPTS='-Xmx64m -XX:+UseSerialGC'\nunset ES_JAVA_OPTS JAVA_TOOL_OPTIONS\nexec '%s' -p '%s'\n",
			s.java, s.proc.path("config"), s.proc.path("tmp"), filepath.Join(s.dir, "bin", "elasticsearch"), s.proc.path("pid")),
	} {
		if err := s.proc.write(name, text); err != nil {
			return fmt.Errorf("servers: %w", err)
		}
	}
	return nil
}

// Addr returns host:port, for proxies in between.
func (s *ElasticsearchServer) Addr() string { return loopback(s.port) }

// URL returns the server's URL with name and password of a user; an empty name
// is [ElasticAdmin].
func (s *ElasticsearchServer) URL(user string) string {
	if user == "" {
		user = ElasticAdmin
	}
	u := url.URL{Scheme: "http", Host: s.Addr(), User: url.UserPassword(user, s.passwords[user])}
	return u.String()
}

// Kill ends the server as SIGKILL does and waits until it is gone. Its data stays.
func (s *ElasticsearchServer) Kill() error {
	text, err := os.ReadFile(s.proc.path("pid"))
	if err != nil {
		return fmt.Errorf("servers: %w", err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		return fmt.Errorf("servers: %w", err)
	}
	p, err := os.FindProcess(pid)
	if err == nil {
		err = p.Kill()
	}
	if err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("servers: %w", err)
	}
	// The launcher, which is the process we started, ends with it.
	for deadline := time.Now().Add(time.Minute); s.proc.running(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			return fmt.Errorf("servers: Elasticsearch's launcher, pid %d, did not end", s.proc.pid())
		}
	}
	return nil
}

// Start starts the server, again on its port and its data, and returns when it
// answers and all primary shards are there. A running server is left alone.
func (s *ElasticsearchServer) Start() error {
	if s.proc.running() {
		return nil
	}
	if err := s.proc.start("/bin/sh", s.proc.path("start")); err != nil {
		return err
	}
	// Until the server writes its own: the watcher must know whom to stop.
	if err := s.proc.write("pid", strconv.Itoa(s.proc.pid())+"\n"); err != nil {
		return fmt.Errorf("servers: %w", err)
	}
	var err error
	for deadline := time.Now().Add(elasticPatience); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		if err = s.healthy(); err == nil {
			return nil
		}
		if !s.proc.running() {
			return fmt.Errorf("servers: Elasticsearch ended at its start:\n%s", s.proc.logTail())
		}
	}
	return fmt.Errorf("servers: Elasticsearch does not answer: %w\n%s", err, s.proc.logTail())
}

// Freeze stops the server as SIGSTOP does: connections stay open and nothing
// answers.
func (s *ElasticsearchServer) Freeze() error { return s.proc.freeze() }

// Thaw lets a frozen server go on.
func (s *ElasticsearchServer) Thaw() { s.proc.thaw() }

func (s *ElasticsearchServer) healthy() error {
	if conn, err := net.DialTimeout("tcp", s.Addr(), time.Second); err != nil {
		return err
	} else if err := conn.Close(); err != nil {
		return err
	}
	// A client of its own: an idle connection is a goroutine, and tests count them.
	c := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 30 * time.Second}
	resp, err := c.Get(s.URL("") + "/_cluster/health?wait_for_status=yellow&timeout=20s")
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return errors.New(resp.Status)
	}
	return nil
}
