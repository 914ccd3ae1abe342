package storm

import (
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/onewrite/onewrite/internal/servers"
	"github.com/onewrite/onewrite/torture/history"
)

// binary builds the program once for all tests.
func binary(t *testing.T) string {
	t.Helper()
	bin := filepath.Join(t.TempDir(), "onewrite")
	if out, err := exec.Command("go", "build", "-o", bin, "github.com/onewrite/onewrite/cmd/onewrite").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return bin
}

// run runs a short storm; what it recorded is kept when a law was broken.
func run(t *testing.T, c Config) *history.Report {
	t.Helper()
	dir, err := os.MkdirTemp("", "onewrite-storm")
	if err != nil {
		t.Fatal(err)
	}
	c.Dir = dir
	r, err := Run(t.Context(), c)
	servers.Needs(t, err)
	if err != nil {
		t.Fatal(err)
	}
	if !r.OK() {
		t.Logf("seed %d, recorded in %s", c.Seed, dir)
		return r
	}
	if err := os.RemoveAll(dir); err != nil {
		t.Error(err)
	}
	t.Logf("seed %d:\n%v", c.Seed, r)
	return r
}

// Each kind of storm in small; the large ones are targets of their own.
func TestShortStorms(t *testing.T) {
	bin := binary(t)
	for name, c := range map[string]Config{
		"sqlite":   {Source: "sqlite", Events: 1000, Kills: 3, Terms: 1, Freezes: 1, Refuse: true},
		"postgres": {Source: "postgres-18", Events: 2500, Kills: 4, Terms: 1, Freezes: 1, Crashes: 1},
		"pushed":   {Source: "postgres-18", Events: 2500, Kills: 4, Terms: 1, Freezes: 1, Crashes: 1, Pushed: true},
		"network":  {Source: "sqlite", Events: 800, Nets: 3, Lost: 10},
		"copies":   {Source: "postgres-18", Events: 1000, Rate: 200, Nodes: 1, Copies: 3, Rounds: 1},
		"cluster":  {Source: "sqlite", Events: 800, Rate: 150, Nodes: 3, Deaths: 1},
		"traps":    {Source: "sqlite", Events: 1200, Loses: 1, Returns: 1, Flips: 1},
		"rows":     {Source: "postgres-18", Events: 300, Rate: 60, Rows: "W5 W6", Kills: 2, Traps: []string{"slot dropped"}},
		"sinks":    {Source: "sqlite", Events: 1200, Sinks: []string{"kafka", "kafka-plain", "redis", "rabbitmq", "postgres", "mysql"}, Kills: 2, Strikes: 5},
		"kafka":    {Source: "postgres-18", Events: 1500, Kafka: true, Sinks: []string{"kafka", "sqlite"}, Kills: 3, Strikes: 2},
		"standby":  {Source: "postgres-18", Events: 800, Rate: 200, Sinks: []string{"redis", "postgres"}, Nodes: 1, Copies: 2, Rounds: 1, Strikes: 1},
		"disk":     {Source: "sqlite", Events: 800, Fills: 1},
	} {
		t.Run(name, func(t *testing.T) {
			if c.Source != "sqlite" || len(c.Sinks) > 0 {
				servers.Postgres(t, 18) // skips where it is not installed
			}
			if c.Fills > 0 && runtime.GOOS != "linux" {
				t.Skip("a full disk needs Linux")
			}
			c.Binary, c.Seed, c.Wait = bin, uint64(len(name)), 2*time.Minute
			if r := run(t, c); !r.OK() {
				t.Error(r)
			}
		})
	}
}

// A run without onewrite has to fail, and by the law that says so.
func TestWithoutOnewrite(t *testing.T) {
	r := run(t, Config{Source: "sqlite", Events: 500, Idle: true, Binary: binary(t), Seed: 1})
	if r.Laws["I1"] < 3*500 || r.Laws["I6"] < 500 || r.Laws["I11"] == 0 {
		t.Errorf("%v", r)
	}
}
