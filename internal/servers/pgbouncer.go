package servers

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"strconv"
	"strings"
	"testing"
	"time"
)

// PgBouncer starts a transaction pooler in front of a server, for this test
// alone, and returns a function that gives the superuser's URL of a database
// through it. Every role logs in with its own password; see [Role.URL].
func PgBouncer(tb testing.TB, pg *PG) func(db string) string {
	tb.Helper()
	bin, err := findProgram("pgbouncer")
	if err != nil {
		missing(tb, "pgbouncer is not installed: %s", installHint)
	}
	proc, err := newProcess("pgbouncer", "pid", "TERM")
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := proc.close(); err != nil {
			tb.Error(err)
		}
	})
	var addr string
	for range 5 { // another process may take the port between the look and the start
		if addr, err = startPgBouncer(proc, bin, pg); err == nil {
			break
		}
	}
	if err != nil {
		tb.Fatal(err)
	}
	return func(db string) string {
		if db == "" {
			db = "postgres"
		}
		u := pg.base
		u.Host, u.Path, u.RawQuery = addr, "/"+db, "sslmode=disable"
		return u.String()
	}
}

func startPgBouncer(proc *process, bin string, pg *PG) (addr string, err error) {
	port, err := freePort()
	if err != nil {
		return "", err
	}
	if err := configurePgBouncer(proc, port, &pg.base); err != nil {
		return "", fmt.Errorf("servers: %w", err)
	}
	if err := proc.start(bin, proc.path("pgbouncer.ini")); err != nil {
		return "", err
	}
	addr = net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		if conn, err := net.DialTimeout("tcp", addr, time.Second); err == nil {
			return addr, conn.Close()
		}
		if !proc.running() {
			return "", fmt.Errorf("servers: pgbouncer ended at its start:\n%s", proc.logTail())
		}
	}
	return "", errors.Join(fmt.Errorf("servers: pgbouncer does not answer:\n%s", proc.logTail()), proc.stop(true))
}

// configurePgBouncer writes its two files. Roles other than the superuser are
// looked up in the server, so that roles made later can log in too.
func configurePgBouncer(proc *process, port int, base *url.URL) error {
	user := base.User.Username()
	password, _ := base.User.Password()
	dbPort := base.Port()
	if dbPort == "" {
		dbPort = "5432"
	}
	quote := func(s string) string { return `"` + strings.ReplaceAll(s, `"`, `""`) + `"` }
	if err := proc.write("users", quote(user)+" "+quote(password)+"\n"); err != nil {
		return err
	}
	return proc.write("pgbouncer.ini", fmt.Sprintf(`[databases]
* = host=%s port=%s auth_user=%s

[pgbouncer]
listen_addr = 127.0.0.1
listen_port = %d
unix_socket_dir =
pidfile = %s
auth_type = scram-sha-256
auth_file = %s
pool_mode = transaction
max_client_conn = 500
default_pool_size = 20
ignore_startup_parameters = extra_float_digits
`, base.Hostname(), dbPort, user, port, proc.path("pid"), proc.path("users")))
}
