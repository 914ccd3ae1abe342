package shop

import (
	"context"
	"crypto/rand"
	"database/sql"
	"encoding/hex"
	"errors"
	"fmt"
	"net/url"
	"path/filepath"
	"strings"
	"time"

	_ "github.com/jackc/pgx/v5/stdlib" // the driver named pgx
	_ "modernc.org/sqlite"             // the driver named sqlite

	"github.com/onewrite/onewrite/outbox"
)

// database names the order service's database: a file, or PostgreSQL's URL.
// Every statement of the service is written to mean the same in both.
type database struct {
	Path string
	URL  string
}

// name is the word that reports use.
func (d database) name() string {
	if d.URL != "" {
		return "postgres"
	}
	return "sqlite"
}

func (d database) open() (*sql.DB, error) {
	if d.URL == "" {
		return openSQLite(d.Path)
	}
	db, err := sql.Open("pgx", d.URL)
	if err != nil {
		return nil, errBadURL
	}
	db.SetMaxOpenConns(workers + 2)
	db.SetMaxIdleConns(workers + 2)
	return db, nil
}

func (d database) dialect() outbox.Dialect {
	if d.URL != "" {
		return outbox.Postgres
	}
	return outbox.SQLite
}

// errBadURL does not quote the URL, for it may hold a password.
var errBadURL = errors.New("shop: the PostgreSQL URL cannot be read; write postgres://user:password@host/database")

// openSQLite opens a store of the shop. One connection is enough, as SQLite has
// one writer. In WAL mode with synchronous NORMAL a commit survives the death of
// the process, which is what this story is about; against a power failure an
// application sets FULL.
func openSQLite(path string) (*sql.DB, error) {
	q := url.Values{
		"_txlock": {"immediate"},
		"_pragma": {"busy_timeout(10000)", "journal_mode(WAL)", "synchronous(NORMAL)"},
	}
	return openFile(path, q)
}

// openReadOnly opens a store for counting; it can change nothing.
func openReadOnly(path string) (*sql.DB, error) {
	return openFile(path, url.Values{"_pragma": {"busy_timeout(10000)", "query_only(1)"}})
}

func openFile(path string, q url.Values) (*sql.DB, error) {
	path = filepath.ToSlash(path)
	if !strings.HasPrefix(path, "/") {
		path = "/" + path // C:/...
	}
	db, err := sql.Open("sqlite", "file://"+(&url.URL{Path: path}).EscapedPath()+"?"+q.Encode())
	if err != nil {
		return nil, fmt.Errorf("shop: open %s: %w", path, err)
	}
	db.SetMaxOpenConns(1)
	return db, nil
}

// scratch makes an empty database of its own beside the one that the URL names,
// so that nothing of anybody's is touched. drop removes it.
func scratch(ctx context.Context, server string) (d database, drop func() error, err error) {
	u, err := url.Parse(server)
	if err != nil || u.Scheme != "postgres" && u.Scheme != "postgresql" {
		return d, nil, errBadURL
	}
	b := make([]byte, 6)
	rand.Read(b)
	name := "onewrite_demo_" + hex.EncodeToString(b)
	if err := onServer(ctx, server, "CREATE DATABASE "+name); err != nil {
		return d, nil, fmt.Errorf("shop: %w (the demo works in a database of its own; let the role make one: ALTER ROLE ... CREATEDB)", err)
	}
	u.Path = "/" + name
	return database{URL: u.String()}, func() error {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 15*time.Second)
		defer cancel()
		if err := onServer(ctx, server, "DROP DATABASE "+name+" WITH (FORCE)"); err != nil {
			return fmt.Errorf("shop: %w (remove it by hand: DROP DATABASE %s)", err, name)
		}
		return nil
	}, nil
}

func onServer(ctx context.Context, server, statement string) error {
	db, err := sql.Open("pgx", server)
	if err != nil {
		return errBadURL
	}
	defer db.Close()
	_, err = db.ExecContext(ctx, statement)
	return err
}

// databaseOf names the database shop on a server, for a user if one is given.
func databaseOf(server, user, password string) (database, error) {
	u, err := url.Parse(server)
	if err != nil {
		return database{}, errBadURL
	}
	u.Path = "/shop"
	if user != "" {
		u.User = url.UserPassword(user, password)
	}
	return database{URL: u.String()}, nil
}

func newPassword() string {
	b := make([]byte, 16)
	rand.Read(b)
	return hex.EncodeToString(b)
}
