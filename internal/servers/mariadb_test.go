package servers_test

import (
	"bufio"
	"context"
	"database/sql"
	"errors"
	"net/url"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/go-sql-driver/mysql"

	"github.com/onewrite/onewrite/internal/servers"
)

func openMaria(tb testing.TB, text string) *sql.DB {
	tb.Helper()
	u, err := url.Parse(text)
	if err != nil {
		tb.Fatal(err)
	}
	c := mysql.NewConfig()
	c.Net, c.Addr, c.User, c.DBName, c.Logger = "tcp", u.Host, u.User.Username(), u.Path[1:], &mysql.NopLogger{}
	c.Passwd, _ = u.User.Password()
	connector, err := mysql.NewConnector(c)
	if err != nil {
		tb.Fatal(err)
	}
	db := sql.OpenDB(connector)
	db.SetMaxIdleConns(0) // a server that was restarted has no use for them
	tb.Cleanup(func() { db.Close() })
	return db
}

func TestMariaDB(t *testing.T) {
	shared := servers.MariaDB(t)
	if servers.MariaDB(t) != shared {
		t.Error("a second server was started")
	}
	m := servers.NewMariaDB(t)
	text := m.NewDatabase(t)
	db := openMaria(t, text)
	if _, err := db.ExecContext(t.Context(), "CREATE TABLE t AS SELECT 41 AS i"); err != nil {
		t.Fatal(err)
	}
	for _, again := range []func(){func() { m.Restart(t) }, func() { m.Stop(t); m.Start(t) }} {
		if _, err := db.ExecContext(t.Context(), "UPDATE t SET i = i + 1"); err != nil {
			t.Fatal(err)
		}
		again()
	}
	var i int
	if err := db.QueryRowContext(t.Context(), "SELECT i FROM t").Scan(&i); err != nil || i != 43 {
		t.Fatalf("after two restarts i is %d, want 43: %v", i, err)
	}
	m.Pause(t)
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if err := db.PingContext(ctx); err == nil {
		t.Error("a paused server answers")
	}
	m.Resume(t)
	if err := db.PingContext(t.Context()); err != nil {
		t.Error(err)
	}
	user := openMaria(t, m.NewUser(t, text, "SELECT"))
	if err := user.QueryRowContext(t.Context(), "SELECT i FROM t").Scan(&i); err != nil {
		t.Error(err)
	}
	if _, err := user.ExecContext(t.Context(), "DELETE FROM t"); err == nil {
		t.Error("a user may do what it was not granted")
	}
	m.Stop(t)
	if err := db.PingContext(t.Context()); err == nil {
		t.Error("a stopped server answers")
	}
}

func TestMariaDBDoesNotSurviveAKill(t *testing.T) {
	if os.Getenv("ONEWRITE_TEST_VICTIM") == "mariadb" {
		os.Stdout.WriteString("\nready " + servers.MariaDB(t).URL("") + "\n")
		<-t.Context().Done() // until killed
		return
	}
	servers.MariaDB(t) // skips here if there is none
	temp := openTempDir(t)
	cmd := exec.Command(os.Args[0], "-test.run=^TestMariaDBDoesNotSurviveAKill$", "-test.timeout=60s")
	cmd.Env = append(os.Environ(), "ONEWRITE_TEST_VICTIM=mariadb", "ONEWRITE_TEST_MARIADB=", "TMPDIR="+temp)
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	ready := false
	for lines := bufio.NewScanner(out); !ready && lines.Scan(); {
		ready = strings.HasPrefix(lines.Text(), "ready ")
	}
	if !ready {
		t.Fatal("the victim did not start its server")
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	var exit *exec.ExitError
	if err := cmd.Wait(); !errors.As(err, &exit) {
		t.Fatalf("the victim ended with %v", err)
	}
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		entries, err := os.ReadDir(temp)
		if err == nil && len(entries) == 0 && len(processesWith(t, temp)) == 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("left behind: folders %v, processes %q", entries, processesWith(t, temp))
		}
	}
}
