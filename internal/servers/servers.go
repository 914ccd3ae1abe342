// Package servers starts real servers for tests: PostgreSQL, PgBouncer, NATS and
// Elasticsearch. No test of this project talks to a mock.
//
// A server lives in a temporary folder, listens on 127.0.0.1 only, and has
// passwords made at run time. It ends with the test process, however that
// ends: a small watcher holds the other end of a pipe, and when the pipe closes
// (exit, panic, SIGKILL) it stops the server and removes its folder.
//
// Where a server is found: the environment (ONEWRITE_TEST_POSTGRES_15=URL names
// a running one), then the cache folder, then the system. What is missing skips
// the test and says how to get it; with CI=true or ONEWRITE_REQUIRE_SERVERS=1 it
// fails the test, so that nothing passes because nothing ran.
package servers

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	mathrand "math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
)

const installHint = "run `make servers` (on Debian as root it installs them; elsewhere it lists what is missing)"

// errMissing: there is no such server here, and the message says how to get it.
var errMissing = errors.New("not installed")

// Required reports whether a missing server fails a test (true) or skips it.
func Required() bool {
	return os.Getenv("CI") == "true" || os.Getenv("ONEWRITE_REQUIRE_SERVERS") == "1"
}

// missing ends the test: skipped on a developer's machine, failed where servers
// are required.
func missing(tb testing.TB, format string, args ...any) {
	tb.Helper()
	msg := fmt.Sprintf(format, args...)
	if Required() {
		tb.Fatal(msg)
	}
	tb.Skip(msg)
}

// Bin returns the path of a program that a test runs, "psql" or "sqlite3" for
// instance: from the newest PostgreSQL found when it is one of PostgreSQL's,
// else from PATH. A missing program ends the test as a missing server does.
func Bin(tb testing.TB, name string) string {
	tb.Helper()
	path, err := Tool(name)
	if err != nil {
		missing(tb, "%v", err)
	}
	return path
}

// Tool is [Bin] for a program that is no test.
func Tool(name string) (string, error) {
	for _, version := range []int{18, 17, 16, 15} {
		for _, dir := range postgresDirs(version) {
			if path := filepath.Join(dir, name); isProgram(path) {
				return path, nil
			}
		}
	}
	path, err := findProgram(name)
	if err != nil {
		return "", fmt.Errorf("%s is %w: %s", name, errMissing, installHint)
	}
	return path, nil
}

// findProgram looks in PATH, and in the folder for daemons that PATH of a plain
// user leaves out.
func findProgram(name string) (string, error) {
	path, err := exec.LookPath(name)
	if err == nil {
		return path, nil
	}
	if path = filepath.Join("/usr/sbin", name); isProgram(path) {
		return path, nil
	}
	return "", err
}

func isProgram(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.Mode().IsRegular()
}

// cacheDir is where scripts/install-servers.sh puts servers; both must agree.
// Root's home may be closed to the user that the server runs as, so root uses a
// folder of the system.
func cacheDir() string {
	if dir := os.Getenv("ONEWRITE_CACHE"); dir != "" {
		return filepath.Join(dir, "servers")
	}
	if os.Geteuid() == 0 {
		return "/var/cache/onewrite/servers"
	}
	if dir := os.Getenv("XDG_CACHE_HOME"); dir != "" {
		return filepath.Join(dir, "onewrite", "servers")
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return filepath.Join(os.TempDir(), "onewrite", "servers")
	}
	return filepath.Join(home, ".cache", "onewrite", "servers")
}

// freePort finds a port that nobody listens on, below the range that systems
// give to outgoing connections: a stopped server must find its port free again.
func freePort() (int, error) {
	for range 200 {
		port := 15000 + mathrand.IntN(16000)
		l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
		if err == nil {
			return port, l.Close()
		}
	}
	return 0, errors.New("servers: no free port between 15000 and 31000 on 127.0.0.1")
}

// randomName returns n random bytes in hex.
func randomName(n int) string {
	b := make([]byte, n)
	rand.Read(b) // never fails, by its contract
	return hex.EncodeToString(b)
}
