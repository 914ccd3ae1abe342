package sqlsink

import (
	"cmp"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"regexp"
	"strconv"
	"strings"

	"github.com/go-sql-driver/mysql"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/onewrite/onewrite/internal/disk"
)

// untrusted is the cure of a certificate that nobody here knows.
const untrusted = "name the authority that signed the server's certificate: "

// pgUnreached says why there is no connection. The driver tries an address with TLS and
// without, and each address of a name: what the server itself says tells more.
func pgUnreached(err error, c *pgx.ConnConfig) error {
	client := "psql -h " + disk.Quote(c.Host) + " -p " + strconv.Itoa(int(c.Port)) + " -U " + disk.Quote(c.User) + " -d " + disk.Quote(cmp.Or(c.Database, c.User))
	var said *pgconn.PgError
	if !errors.As(err, &said) {
		cure := "pg_isready -h " + disk.Quote(c.Host) + " -p " + strconv.Itoa(int(c.Port))
		text := lines(err.Error())
		switch {
		case strings.Contains(text, "server refused TLS"):
			cure = "take sslmode out of url, or turn TLS on at the server: ALTER SYSTEM SET ssl = on; SELECT pg_reload_conf();"
		case strings.Contains(text, "certificate"):
			cure = untrusted + "add sslrootcert=ca.pem to url"
		}
		return fmt.Errorf("sqlsink: %s; cure: %s", text, cure)
	}
	cure := "try it: " + client
	database := ident(cmp.Or(c.Database, c.User))
	switch {
	case said.Code == "3D000":
		cure = "CREATE DATABASE " + database + ";"
	case said.Code == "28000" && strings.Contains(said.Message, "does not exist"):
		cure = "CREATE ROLE " + ident(c.User) + " LOGIN;"
	case said.Code == "28000" && strings.Contains(said.Message, "not permitted to log in"):
		cure = "ALTER ROLE " + ident(c.User) + " LOGIN;"
	case said.Code == "28000":
		cure = "add to pg_hba.conf: host " + database + " " + ident(c.User) + " samenet scram-sha-256 # or the address of this machine; then: SELECT pg_reload_conf();"
	case said.Code == "28P01":
		cure = "correct user and password in url; try them: " + client
	case said.Code == "42501":
		cure = "GRANT CONNECT ON DATABASE " + database + " TO " + ident(c.User) + ";"
	case said.Code == "53300":
		cure = "free a connection, or raise the limit and restart the server: ALTER SYSTEM SET max_connections = 200;"
	}
	return fmt.Errorf("sqlsink: connect to %s as %s: %w; cure: %s", net.JoinHostPort(c.Host, strconv.Itoa(int(c.Port))), c.User, said, cure)
}

// lines makes one line of several, each once.
func lines(text string) string {
	var out []string
	seen := map[string]bool{}
	for line := range strings.Lines(text) {
		if line = strings.TrimSpace(line); line != "" && !seen[line] {
			seen[line], out = true, append(out, line)
		}
	}
	return strings.ReplaceAll(strings.Join(out, ", "), ":, ", ": ")
}

// mysqlUnreached is the cure of an error of connecting.
func mysqlUnreached(err error, c *mysql.Config) string {
	host, port, _ := net.SplitHostPort(c.Addr)
	at, answers := "-h "+disk.Quote(host)+" -P "+port, "nc -vz "+disk.Quote(host)+" "+port
	if c.Net == "unix" {
		at, answers = "-S "+disk.Quote(c.Addr), "ls -l "+disk.Quote(c.Addr)
	}
	client := "(mysql takes the same words) mariadb " + at + " -u " + disk.Quote(c.User) + " -p " + disk.Quote(c.DBName)
	var authority x509.UnknownAuthorityError
	switch mysqlCode(err) {
	case 0:
		switch {
		case errors.Is(err, mysql.ErrNoTLS):
			return "turn TLS on at the server (ssl_cert and ssl_key in its my.cnf), or take tls=true out of url"
		case errors.As(err, &authority):
			return untrusted + "tls: {ca: ca.pem}"
		}
		return answers
	case 1040, 1203:
		return "free a connection, or raise the limit: SET GLOBAL max_connections = 300;"
	case 1044:
		return grantMySQL(account(err, c.User), c.DBName)
	case 1045:
		return "correct user and password in url; try them: " + client
	case 1049:
		return "CREATE DATABASE " + tick(c.DBName) + ";"
	case 1130:
		return "the server takes no user from this machine: CREATE USER " + quoteMySQL(c.User) + "@'%' IDENTIFIED BY 'the password of url';"
	}
	return "try it: " + client
}

var deniedAccount = regexp.MustCompile(`for user ('[^']*'@'[^']*')`)

// account is the one that the server found the user to be.
func account(err error, user string) string {
	if m := deniedAccount.FindStringSubmatch(err.Error()); m != nil {
		return m[1]
	}
	return quoteMySQL(user) + "@'%'"
}

func quoteMySQL(s string) string { return "'" + strings.ReplaceAll(s, "'", "''") + "'" }

// grantMySQL gives a user what a destination needs in a database.
func grantMySQL(who, database string) string {
	return "GRANT SELECT, INSERT, UPDATE, DELETE, CREATE, ALTER ON " + tick(database) + ".* TO " + who + ";"
}

func (p *pgDB) who() string { return ident(p.conn.Config().User) }

// home makes the schema the user's own: it is to make tables in it.
func (p *pgDB) home(schema string) string {
	return "CREATE SCHEMA IF NOT EXISTS " + ident(schema) + " AUTHORIZATION " + p.who() + ";"
}

var deniedTo = regexp.MustCompile(`^permission denied for (schema|table|relation) (.+)$`)

// around is the cure of an error about the schema of a table, and not the table; "" of
// any other.
func (p *pgDB) around(err error, n name) string {
	var said *pgconn.PgError
	if !errors.As(err, &said) {
		return ""
	}
	m := deniedTo.FindStringSubmatch(said.Message)
	switch {
	case said.Code == "3F000" && n.schema != "":
		return p.home(n.schema)
	case said.Code == "42501" && m != nil && m[1] == "schema":
		return p.allow(m[2])
	}
	return ""
}

func (p *pgDB) allow(schema string) string {
	return "GRANT USAGE, CREATE ON SCHEMA " + ident(schema) + " TO " + p.who() + ";"
}

func (m *mysqlDB) who() string { return m.user }

// home makes the database, and lets the user in.
func (m *mysqlDB) home(schema string) string {
	return "CREATE DATABASE IF NOT EXISTS " + tick(schema) + "; " + m.allow(schema)
}

func (m *mysqlDB) allow(schema string) string { return grantMySQL(m.user, schema) }

func (m *mysqlDB) around(err error, n name) string {
	switch mysqlCode(err) {
	case 1049:
		if n.schema != "" {
			return m.home(n.schema)
		}
	case 1044, 1142, 1143, 1227, 1370:
		if n.schema == "" {
			return m.allow(m.name)
		}
		return m.home(n.schema) // whether it is there, the server does not tell
	}
	return ""
}

func (s *sqliteDB) who() string { return "" }

func (s *sqliteDB) home(string) string { return "" }

func (s *sqliteDB) allow(string) string { return "" }

func (s *sqliteDB) around(error, name) string { return "" }
