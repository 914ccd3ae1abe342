package shop

import (
	"context"
	"database/sql"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"testing"

	"github.com/onewrite/onewrite/internal/servers"
)

// program builds onewrite, once, and TestMain removes it.
var program = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "onewrite-program-")
	if err != nil {
		return "", err
	}
	programDir = dir
	path := filepath.Join(dir, "onewrite")
	if runtime.GOOS == "windows" {
		path += ".exe"
	}
	out, err := exec.Command("go", "build", "-o", path, "../../cmd/onewrite").CombinedOutput()
	os.Stderr.Write(out)
	return path, err
})

var programDir string

func realProgram(t *testing.T) string {
	t.Helper()
	path, err := program()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

func ordersFor() int {
	if testing.Short() {
		return 300
	}
	return 1500
}

// TestOnewrite is the story as users see it.
func TestOnewrite(t *testing.T) {
	r, out := runDemo(t, Options{Orders: ordersFor(), Self: realProgram(t)})
	t.Log(out)
	if err := r.Verdict(); err != nil {
		t.Error(err)
	}
}

// TestOnewriteOnPostgres: the same on PostgreSQL, of which nothing is left.
func TestOnewriteOnPostgres(t *testing.T) {
	server := servers.Postgres(t, 15).NewDatabase(t)
	r, out := runDemo(t, Options{Orders: ordersFor(), Postgres: server, Self: realProgram(t)})
	t.Log(out)
	if err := r.Verdict(); err != nil {
		t.Error(err)
	}
	if r.Database != "postgres" {
		t.Errorf("it ran on %s", r.Database)
	}
	db, err := sql.Open("pgx", server)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	n, err := number(context.Background(), db, `SELECT count(*) FROM pg_database WHERE datname LIKE 'onewrite_demo_%'`)
	if err != nil || n != 0 {
		t.Errorf("%d databases are left: %v", n, err)
	}
}

// TestNaiveOnPostgres is the first act alone.
func TestNaiveOnPostgres(t *testing.T) {
	ctx := context.Background()
	s := &story{Options: Options{Postgres: servers.Postgres(t, 15).NewDatabase(t), Self: testBinary(t), Orders: 300, Seed: 4},
		plan: newPlan(4, 300), show: newScreen(nil, true)}
	st, err := s.stage(ctx, t.TempDir(), true)
	defer func() {
		if err := st.end(false); err != nil {
			t.Error(err)
		}
	}()
	if err != nil {
		t.Fatal(err)
	}
	a, err := st.play(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if sum := a.sum(); a.Committed != 301 || a.Consoles != 1 || sum.Missing == 0 || sum.Phantom > 0 {
		t.Errorf("%+v", a)
	}
}
