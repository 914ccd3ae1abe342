package servers_test

import (
	"bufio"
	"context"
	"errors"
	"net/url"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/onewrite/onewrite/internal/servers"
)

func connect(tb testing.TB, url string) *pgx.Conn {
	tb.Helper()
	conn, err := pgx.Connect(tb.Context(), url)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { conn.Close(context.Background()) })
	return conn
}

func ask[T any](tb testing.TB, conn *pgx.Conn, sql string) T {
	tb.Helper()
	var v T
	if err := conn.QueryRow(tb.Context(), sql).Scan(&v); err != nil {
		tb.Fatalf("%s: %v", sql, err)
	}
	return v
}

func must(tb testing.TB, conn *pgx.Conn, sql string) {
	tb.Helper()
	if _, err := conn.Exec(tb.Context(), sql); err != nil {
		tb.Fatalf("%s: %v", sql, err)
	}
}

func eachVersion(t *testing.T, test func(t *testing.T, version int)) {
	for _, v := range []int{15, 18} {
		t.Run(map[int]string{15: "15", 18: "18"}[v], func(t *testing.T) { test(t, v) })
	}
}

func TestPostgresIsShared(t *testing.T) {
	eachVersion(t, func(t *testing.T, version int) {
		pg := servers.Postgres(t, version)
		if servers.Postgres(t, version) != pg {
			t.Fatal("a second server was started")
		}
		conn := connect(t, pg.URL(""))
		if got := ask[int](t, conn, "SELECT current_setting('server_version_num')::int / 10000"); got != version {
			t.Fatalf("asked for version %d, got %d", version, got)
		}
		for name, want := range map[string]string{"wal_level": "logical", "fsync": "on", "max_connections": "200", "max_prepared_transactions": "20"} {
			if got := ask[string](t, conn, "SHOW "+name); got != want {
				t.Errorf("%s is %s, want %s", name, got, want)
			}
		}
	})
}

// A database goes with its test even if the test left a prepared transaction, a
// slot in use and an open session in it.
func TestDatabaseGoesWithTheTest(t *testing.T) {
	pg := servers.Postgres(t, 15)
	var name string
	t.Run("leave a mess", func(t *testing.T) {
		base := pg.NewDatabase(t)
		u, _ := url.Parse(base)
		name = strings.TrimPrefix(u.Path, "/")
		ctx := context.Background()
		a, err := pgx.Connect(ctx, base) // deliberately never closed
		if err != nil {
			t.Fatal(err)
		}
		must(t, a, "CREATE TABLE t(i int)")
		must(t, a, "SELECT pg_create_logical_replication_slot('left_behind', 'pgoutput')")
		must(t, a, "BEGIN")
		must(t, a, "INSERT INTO t VALUES (1)")
		must(t, a, "PREPARE TRANSACTION 'left behind'")
	})
	conn := connect(t, pg.URL(""))
	if ask[bool](t, conn, "SELECT exists(SELECT FROM pg_database WHERE datname = '"+name+"')") {
		t.Errorf("database %s is still there", name)
	}
	if n := ask[int](t, conn, "SELECT count(*) FROM pg_replication_slots"); n != 0 {
		t.Errorf("%d slots are still there", n)
	}
}

// The order of the calls decides which cleanup runs first; both orders must
// leave nothing.
func TestRoleGoesWithTheTest(t *testing.T) {
	pg := servers.Postgres(t, 15)
	for _, roleFirst := range []bool{true, false} {
		t.Run("", func(t *testing.T) {
			var role servers.Role
			if roleFirst {
				role = pg.NewRole(t)
			}
			base := pg.NewDatabase(t)
			if !roleFirst {
				role = pg.NewRole(t)
			}
			admin := connect(t, base)
			must(t, admin, "CREATE TABLE secret(i int)")
			must(t, admin, "CREATE TABLE open(i int)")
			must(t, admin, "GRANT SELECT ON open TO "+role.Name)
			app := connect(t, role.URL(base))
			ask[int](t, app, "SELECT count(*) FROM open")
			if _, err := app.Exec(t.Context(), "SELECT FROM secret"); err == nil {
				t.Error("the role reads what it was not given")
			}
			wrong := role
			wrong.Password += "x"
			if c, err := pgx.Connect(t.Context(), wrong.URL(base)); err == nil {
				c.Close(t.Context())
				t.Error("a wrong password logs in")
			}
		})
	}
	conn := connect(t, pg.URL(""))
	if n := ask[int](t, conn, `SELECT count(*) FROM pg_roles WHERE rolname LIKE 'role\_%'`); n != 0 {
		t.Errorf("%d roles are still there", n)
	}
}

func TestFaults(t *testing.T) {
	eachVersion(t, func(t *testing.T, version int) {
		pg := servers.NewPostgres(t, version, servers.NoSync(), servers.Set("max_wal_senders", "7"))
		base := pg.NewDatabase(t)
		conn := connect(t, base)
		if got := ask[string](t, conn, "SHOW max_wal_senders") + ask[string](t, conn, "SHOW fsync"); got != "7off" {
			t.Fatalf("options: %s", got)
		}
		must(t, conn, "CREATE TABLE t AS SELECT 41 AS i")
		for _, crash := range []bool{false, true} {
			must(t, connect(t, base), "UPDATE t SET i = i + 1")
			pg.Restart(t, crash)
		}
		conn = connect(t, base)
		if got := ask[int](t, conn, "SELECT i FROM t"); got != 43 {
			t.Fatalf("after two restarts i is %d, want 43", got)
		}

		pg.Pause(t)
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		defer cancel()
		if err := conn.Ping(ctx); err == nil {
			t.Error("a paused server answers")
		}
		pg.Resume(t)
		ask[int](t, connect(t, base), "SELECT i FROM t")

		pg.Stop(t)
		if c, err := pgx.Connect(t.Context(), base); err == nil {
			c.Close(t.Context())
			t.Error("a stopped server answers")
		}
		pg.Start(t)
		ask[int](t, connect(t, base), "SELECT i FROM t")
		pg.Pause(t) // and let the cleanup end it while it is frozen
	})
}

func TestPgBouncer(t *testing.T) {
	pg := servers.Postgres(t, 15)
	base := pg.NewDatabase(t)
	role := pg.NewRole(t)
	through := servers.PgBouncer(t, pg)
	u, _ := url.Parse(base)
	pooled := through(strings.TrimPrefix(u.Path, "/"))

	config, err := pgx.ParseConfig(role.URL(pooled))
	if err != nil {
		t.Fatal(err)
	}
	config.DefaultQueryExecMode = pgx.QueryExecModeExec // a transaction pooler keeps no prepared statements
	conn, err := pgx.ConnectConfig(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close(context.Background()) })
	if got := ask[string](t, conn, "SELECT current_user::text"); got != role.Name {
		t.Errorf("logged in as %s, want %s", got, role.Name)
	}
	// Two sessions share one server session: that is what a pooler is for.
	other, err := pgx.ConnectConfig(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { other.Close(context.Background()) })
	if a, b := ask[int](t, conn, "SELECT pg_backend_pid()"), ask[int](t, other, "SELECT pg_backend_pid()"); a != b {
		t.Errorf("idle clients hold two server sessions, %d and %d", a, b)
	}
}

func TestBin(t *testing.T) {
	for _, name := range []string{"psql", "sqlite3"} {
		if err := exec.Command(servers.Bin(t, name), "--version").Run(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A server must end with its test process even when that is killed. The test
// runs itself as the process to kill.
func TestNothingSurvivesAKill(t *testing.T) {
	if os.Getenv("ONEWRITE_TEST_VICTIM") == "1" {
		pg := servers.Postgres(t, 15)
		servers.PgBouncer(t, pg)
		os.Stdout.WriteString("\nready " + pg.URL("") + "\n")
		<-t.Context().Done() // until killed
		return
	}
	servers.Postgres(t, 15) // skips here if there is none
	temp := openTempDir(t)
	cmd := exec.Command(os.Args[0], "-test.run=^TestNothingSurvivesAKill$", "-test.timeout=60s")
	cmd.Env = append(os.Environ(), "ONEWRITE_TEST_VICTIM=1", "ONEWRITE_TEST_POSTGRES_15=", "TMPDIR="+temp)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var base string
	for lines := bufio.NewScanner(out); base == "" && lines.Scan(); {
		base, _ = strings.CutPrefix(lines.Text(), "ready ")
		if base == lines.Text() {
			base = ""
		}
	}
	if base == "" {
		t.Fatal("the victim did not start its server")
	}
	connect(t, base)
	if entries, _ := os.ReadDir(temp); len(entries) != 2 {
		t.Errorf("%d folders while two servers run", len(entries))
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	var exit *exec.ExitError
	if err := cmd.Wait(); !errors.As(err, &exit) {
		t.Fatalf("the victim ended with %v", err)
	}
	for deadline := time.Now().Add(15 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		entries, err := os.ReadDir(temp)
		if err == nil && len(entries) == 0 && len(processesWith(t, temp)) == 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("left behind: folders %v, processes %q", entries, processesWith(t, temp))
		}
	}
}

// openTempDir is a folder that the server's user can enter; t.TempDir is not.
func openTempDir(t *testing.T) string {
	dir, err := os.MkdirTemp("", "victim-")
	if err == nil {
		err = os.Chmod(dir, 0o777)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func processesWith(t *testing.T, dir string) []string {
	out, err := exec.Command("ps", "-A", "-o", "args=").Output()
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for line := range strings.Lines(string(out)) {
		if strings.Contains(line, dir) {
			found = append(found, line)
		}
	}
	return found
}

func TestNoGoroutineStays(t *testing.T) {
	before := runtime.NumGoroutine()
	t.Run("start", func(t *testing.T) {
		servers.NewPostgres(t, 15, servers.NoSync()).NewDatabase(t)
	})
	for deadline := time.Now().Add(5 * time.Second); runtime.NumGoroutine() > before; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			buf := make([]byte, 1<<16)
			t.Fatalf("%d goroutines, %d before:\n%s", runtime.NumGoroutine(), before, buf[:runtime.Stack(buf, true)])
		}
	}
}
