package storm

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

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

func TestShortStorms(t *testing.T) {
	bin := binary(t)
	for name, c := range map[string]Config{
		"sqlite":   {Source: "sqlite", Events: 2000, Kills: 5, Terms: 1, Freezes: 1},
		"postgres": {Source: "postgres-18", Events: 4000, Kills: 5, Terms: 1, Freezes: 1, Crashes: 1},
	} {
		t.Run(name, func(t *testing.T) {
			if name == "postgres" {
				servers.Postgres(t, 18) // skips where it is not installed
			}
			c.Binary, c.Seed = bin, uint64(len(name))
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
