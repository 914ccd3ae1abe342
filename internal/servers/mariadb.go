package servers

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/go-sql-driver/mysql"
)

// Maria is a MariaDB server, which speaks MySQL's protocol. It logs in by password on
// 127.0.0.1, and syncs its log at each commit.
type Maria struct {
	base  url.URL // of a user who may do all, without a database
	port  int
	proc  *process // nil for a server that is not ours
	flags []string
	alone bool // made by NewMariaDB: one test may do to it what it likes
}

// sharedMaria is the server of this test process.
var sharedMaria struct {
	sync.Mutex
	server *Maria
	err    error
}

// MariaDB returns the test process's own server, started by the first call; it is
// there until the process ends. Tests that stop, kill or pause a server take
// [NewMariaDB]. ONEWRITE_TEST_MARIADB=mysql://user:password@host:3306/ names a running
// one.
func MariaDB(tb testing.TB) *Maria {
	tb.Helper()
	s := &sharedMaria
	s.Lock()
	defer s.Unlock()
	if s.server == nil && s.err == nil {
		s.server, s.err = openSharedMaria()
	}
	if errors.Is(s.err, errMissing) {
		missing(tb, "%v", s.err)
	} else if s.err != nil {
		tb.Fatal(s.err)
	}
	return s.server
}

func openSharedMaria() (*Maria, error) {
	text := os.Getenv("ONEWRITE_TEST_MARIADB")
	if text == "" {
		return startMaria()
	}
	u, err := url.Parse(text)
	if err != nil || u.Scheme != "mysql" || u.Hostname() == "" {
		return nil, errors.New("servers: ONEWRITE_TEST_MARIADB is not a URL; cure: export ONEWRITE_TEST_MARIADB=mysql://user:password@host:3306/")
	}
	m := &Maria{base: *u}
	return m, m.ping()
}

// NewMariaDB starts a server for this test alone and ends it with the test. Each flag
// is one of mariadbd: --max-connections=5.
func NewMariaDB(tb testing.TB, flags ...string) *Maria {
	tb.Helper()
	m, err := startMaria(flags...)
	if errors.Is(err, errMissing) {
		missing(tb, "%v", err)
	}
	if err != nil {
		tb.Fatal(err)
	}
	m.alone = true
	tb.Cleanup(func() {
		if err := m.proc.close(); err != nil {
			tb.Error(err)
		}
	})
	return m
}

func startMaria(flags ...string) (*Maria, error) {
	server, err := findProgram("mariadbd")
	if err != nil {
		return nil, fmt.Errorf("MariaDB is %w: %s, or name a running one: export ONEWRITE_TEST_MARIADB=mysql://user:password@host:3306/", errMissing, installHint)
	}
	install, err := findProgram("mariadb-install-db")
	if err != nil {
		return nil, fmt.Errorf("mariadb-install-db is %w: %s", errMissing, installHint)
	}
	proc, err := newProcess("mariadb", filepath.Join("data", "pid"), "TERM")
	if err != nil {
		return nil, err
	}
	m := &Maria{proc: proc, flags: flags}
	if err := m.init(install, server); err != nil {
		return nil, errors.Join(err, proc.close())
	}
	return m, nil
}

// init makes the data and starts the server on a free port.
func (m *Maria) init(install, server string) error {
	password := randomName(16)
	users := "ALTER USER root@localhost IDENTIFIED BY '" + password + "';\n" +
		"CREATE OR REPLACE USER onewrite@'127.0.0.1' IDENTIFIED BY '" + password + "';\n" +
		"GRANT ALL ON *.* TO onewrite@'127.0.0.1' WITH GRANT OPTION;\n"
	if err := m.proc.write("users.sql", users); err != nil {
		return fmt.Errorf("servers: %w", err)
	}
	err := m.proc.run(install, "--no-defaults", "--datadir="+m.proc.path("data"), "--auth-root-authentication-method=normal", "--skip-test-db")
	if err != nil {
		return err
	}
	for range 5 { // another process may take the port between the look and the start
		if m.port, err = freePort(); err != nil {
			return err
		}
		m.base = url.URL{Scheme: "mysql", User: url.UserPassword("onewrite", password), Host: net.JoinHostPort("127.0.0.1", strconv.Itoa(m.port))}
		if err = m.start(server); err == nil {
			return nil
		}
	}
	return err
}

func (m *Maria) start(server string) error {
	data := m.proc.path("data")
	args := []string{"--no-defaults", "--datadir=" + data, "--socket=" + filepath.Join(data, "s"), "--pid-file=" + filepath.Join(data, "pid"),
		"--port=" + strconv.Itoa(m.port), "--bind-address=127.0.0.1", "--skip-name-resolve", "--init-file=" + m.proc.path("users.sql"),
		"--server-id=1", "--log-bin=" + filepath.Join(data, "binlog"), "--binlog-format=ROW", "--binlog-row-image=FULL", "--binlog-row-metadata=FULL",
		"--sync-binlog=1", "--innodb-flush-log-at-trx-commit=1", "--innodb-buffer-pool-size=64M", "--performance-schema=OFF",
		"--character-set-server=utf8mb4", "--default-time-zone=+00:00"}
	if err := m.proc.start(server, append(args, m.flags...)...); err != nil {
		return err
	}
	return m.ping()
}

// ping waits until the server answers.
func (m *Maria) ping() error {
	var err error
	for deadline := time.Now().Add(60 * time.Second); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		if err = m.exec("SELECT 1"); err == nil {
			return nil
		}
		if m.proc != nil && !m.proc.running() {
			return fmt.Errorf("servers: MariaDB ended at its start:\n%s", m.proc.logTail())
		}
	}
	return fmt.Errorf("servers: MariaDB does not answer: %w", err)
}

// exec runs statements one by one over a connection of its own.
func (m *Maria) exec(statements ...string) error {
	cfg := mysql.NewConfig()
	cfg.Net, cfg.Addr, cfg.User, cfg.Logger = "tcp", m.base.Host, m.base.User.Username(), &mysql.NopLogger{}
	cfg.Passwd, _ = m.base.User.Password()
	connector, err := mysql.NewConnector(cfg)
	if err != nil {
		return err
	}
	db := sql.OpenDB(connector)
	defer db.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	for _, s := range statements {
		if _, err := db.ExecContext(ctx, s); err != nil {
			return err
		}
	}
	return nil
}

// URL returns the URL of a database for a user who may do all.
func (m *Maria) URL(db string) string {
	u := m.base
	u.Path = "/" + db
	return u.String()
}

// Addr returns host:port of the server, for proxies in between.
func (m *Maria) Addr() string { return m.base.Host }

// NewDatabase makes an empty database, dropped when the test ends, and returns its URL.
func (m *Maria) NewDatabase(tb testing.TB) string {
	tb.Helper()
	name := "onewrite_" + randomName(6)
	if err := m.exec("CREATE DATABASE " + name + " CHARACTER SET utf8mb4"); err != nil {
		tb.Fatalf("servers: create a database: %v", err)
	}
	tb.Cleanup(func() {
		if m.alone {
			m.proc.thaw()
			if !m.proc.running() {
				return
			}
		}
		if err := m.exec("DROP DATABASE " + name); err != nil {
			tb.Errorf("servers: drop %s: %v", name, err)
		}
	})
	return m.URL(name)
}

// NewUser makes a user with the given rights on a database of [Maria.NewDatabase]
// ("SELECT, INSERT"), and returns the database's URL with its login.
func (m *Maria) NewUser(tb testing.TB, database, rights string) string {
	tb.Helper()
	u, err := url.Parse(database)
	if err != nil {
		tb.Fatal(err)
	}
	name, password := "user_"+randomName(6), randomName(16)
	who := name + "@'127.0.0.1'"
	if err := m.exec("CREATE USER "+who+" IDENTIFIED BY '"+password+"'", "GRANT "+rights+" ON "+u.Path[1:]+".* TO "+who); err != nil {
		tb.Fatalf("servers: create a user: %v", err)
	}
	tb.Cleanup(func() {
		if m.alone && !m.proc.running() {
			return
		}
		if err := m.exec("DROP USER " + who); err != nil {
			tb.Errorf("servers: drop %s: %v", name, err)
		}
	})
	u.User = url.UserPassword(name, password)
	return u.String()
}

func (m *Maria) own(tb testing.TB) {
	tb.Helper()
	if !m.alone {
		tb.Fatal("servers: other tests share this server; take servers.NewMariaDB")
	}
}

// Kill ends the server by SIGKILL; the next start recovers from its log.
func (m *Maria) Kill(tb testing.TB) {
	tb.Helper()
	m.own(tb)
	if err := m.proc.kill(); err != nil {
		tb.Fatal(err)
	}
}

// Stop stops the server in order and waits for its end.
func (m *Maria) Stop(tb testing.TB) {
	tb.Helper()
	m.own(tb)
	if err := m.proc.stop(true); err != nil { // SIGQUIT is in order here; it ignores SIGINT
		tb.Fatal(err)
	}
}

// Start starts a server that is down, on the same port and data.
func (m *Maria) Start(tb testing.TB) {
	tb.Helper()
	m.own(tb)
	if m.proc.running() {
		return
	}
	server, err := findProgram("mariadbd")
	if err == nil {
		err = m.start(server)
	}
	if err != nil {
		tb.Fatal(err)
	}
}

// Restart is Kill and Start.
func (m *Maria) Restart(tb testing.TB) {
	tb.Helper()
	m.Kill(tb)
	m.Start(tb)
}

// Pause freezes the server: connections stay open and nothing answers. Resume, Stop or
// the end of the test thaw it.
func (m *Maria) Pause(tb testing.TB) {
	tb.Helper()
	m.own(tb)
	if err := m.proc.freeze(); err != nil {
		tb.Fatal(err)
	}
}

// Resume lets a paused server go on.
func (m *Maria) Resume(tb testing.TB) {
	tb.Helper()
	m.own(tb)
	m.proc.thaw()
}
