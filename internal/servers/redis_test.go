package servers_test

import (
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/onewrite/onewrite/internal/servers"
)

func redisCLI(t *testing.T, r *servers.RedisServer, args ...string) string {
	t.Helper()
	out, err := r.CLI(t, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("redis-cli %v: %v\n%s", args, err, out)
	}
	return strings.TrimSpace(string(out))
}

func TestRedis(t *testing.T) {
	shared := servers.Redis(t)
	if servers.Redis(t) != shared {
		t.Fatal("a second server was started")
	}
	r := servers.NewRedis(t, "maxclients 77")
	for name, want := range map[string]string{"appendonly": "yes", "appendfsync": "always", "maxmemory-policy": "noeviction", "maxclients": "77", "bind": "127.0.0.1"} {
		if got := redisCLI(t, r, "CONFIG", "GET", name); !strings.HasSuffix(got, want) {
			t.Errorf("%s is %q, want %s", name, got, want)
		}
	}
	open := r.CLI(t, "PING")
	open.Env = os.Environ()
	if out, _ := open.CombinedOutput(); !strings.Contains(string(out), "NOAUTH") {
		t.Errorf("without a password: %s", out)
	}
	for i := range 3 {
		redisCLI(t, r, "RPUSH", "list", strconv.Itoa(i))
		r.Restart(t)
		if got := redisCLI(t, r, "LLEN", "list"); got != strconv.Itoa(i+1) {
			t.Fatalf("%s entries after a kill, want %d", got, i+1)
		}
	}
	r.Pause(t)
	done := make(chan string, 1)
	go func() { done <- redisCLI(t, r, "PING") }()
	select {
	case got := <-done:
		t.Errorf("a paused server says %s", got)
	case <-time.After(200 * time.Millisecond):
	}
	r.Resume(t)
	if got := <-done; got != "PONG" {
		t.Errorf("a server that goes on says %s", got)
	}
}

// TestRedisGoesWithTheTest: the server ends and its folder goes.
func TestRedisGoesWithTheTest(t *testing.T) {
	var dir string
	t.Run("start one", func(t *testing.T) { dir = servers.NewRedis(t).Data() })
	if _, err := os.Stat(dir); err == nil {
		t.Errorf("%s is still there", dir)
	}
	if out, _ := exec.Command("ps", "-A", "-o", "args=").Output(); strings.Contains(string(out), dir) {
		t.Errorf("a server still runs on %s", dir)
	}
}
