package storm

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"

	_ "github.com/jackc/pgx/v5/stdlib" // the driver of PostgreSQL
	_ "modernc.org/sqlite"             // and of SQLite

	"github.com/onewrite/onewrite/internal/servers"
	"github.com/onewrite/onewrite/outbox"
	"github.com/onewrite/onewrite/torture/history"
)

// database is the application's.
type database struct {
	*sql.DB
	dialect outbox.Dialect
	source  string // as flow YAML
	server  *servers.PG
}

func openDatabase(ctx context.Context, source, dir string) (*database, error) {
	if source == "sqlite" {
		path, err := filepath.Abs(filepath.Join(dir, "shop.db"))
		if err != nil {
			return nil, err
		}
		db, err := sql.Open("sqlite", "file:"+filepath.ToSlash(path)+"?_pragma=busy_timeout(20000)&_pragma=journal_mode(wal)&_pragma=synchronous(full)&_txlock=immediate")
		if err != nil {
			return nil, err
		}
		db.SetMaxOpenConns(1)
		return &database{DB: db, dialect: outbox.SQLite, source: fmt.Sprintf("{type: sqlite, path: %q}", path)}, nil
	}
	version, err := strconv.Atoi(strings.TrimPrefix(source, "postgres-"))
	if err != nil {
		return nil, fmt.Errorf("source %q is neither sqlite nor postgres-15, -18", source)
	}
	server, err := servers.Launch(version, servers.Set("max_prepared_transactions", "0"))
	if err != nil {
		return nil, err
	}
	db, err := sql.Open("pgx", server.URL("postgres"))
	if err != nil {
		return nil, errors.Join(err, server.Shutdown())
	}
	db.SetMaxOpenConns(40)
	db.SetMaxIdleConns(40)
	return &database{DB: db, dialect: outbox.Postgres, server: server, source: fmt.Sprintf("{type: postgres, url: %q}", server.URL("postgres"))}, nil
}

func (d *database) postgres() bool { return d.dialect == outbox.Postgres }

func (d *database) close() error {
	err := d.DB.Close()
	if d.server != nil {
		err = errors.Join(err, d.server.Shutdown())
	}
	return err
}

// schema makes the ledger and the oracle. A transaction writes what it publishes
// into oracle_tx too: what is there after all is over is the truth.
func (d *database) schema(ctx context.Context) error {
	for _, q := range []string{
		`CREATE TABLE account (id TEXT PRIMARY KEY, balance BIGINT NOT NULL, n BIGINT NOT NULL)`,
		`CREATE TABLE oracle_tx (tx BIGINT PRIMARY KEY, events TEXT NOT NULL)`,
	} {
		if _, err := d.ExecContext(ctx, q); err != nil {
			return err
		}
	}
	tx, err := d.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback()
	for i := range keys {
		if _, err := tx.ExecContext(ctx, `INSERT INTO account VALUES ($1, 0, 0)`, account(i)); err != nil {
			return err
		}
	}
	return tx.Commit()
}

func account(i int) string { return fmt.Sprintf("a%03d", i) }

// dump writes the truth.
func (d *database) dump(ctx context.Context, dir string) error {
	out, err := history.Create(dir, history.TruthFile, "")
	if err != nil {
		return err
	}
	rows, err := d.QueryContext(ctx, `SELECT events FROM oracle_tx`)
	if err != nil {
		return errors.Join(err, out.Close())
	}
	defer rows.Close()
	for rows.Next() {
		var text string
		if err := rows.Scan(&text); err != nil {
			return errors.Join(err, out.Close())
		}
		var events []history.Event
		if err := json.Unmarshal([]byte(text), &events); err != nil {
			return errors.Join(err, out.Close())
		}
		for i := range events {
			out.Add(&events[i])
		}
	}
	return errors.Join(rows.Err(), out.Close())
}
