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
	"time"

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
	own     bool   // the server ends with the storm
	url     string // of PostgreSQL
}

func openDatabase(ctx context.Context, source, dir string, server *servers.PG, prepared string) (*database, error) {
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
	d := &database{dialect: outbox.Postgres, source: `{type: postgres, url: "${env:OW_DB}"}`, server: server, own: server == nil}
	if d.own {
		version, err := strconv.Atoi(strings.TrimPrefix(source, "postgres-"))
		if err != nil {
			return nil, fmt.Errorf("source %q is neither sqlite nor postgres-15, -18", source)
		}
		if d.server, err = servers.Launch(version, servers.Set("max_prepared_transactions", prepared)); err != nil {
			return nil, err
		}
	}
	name := fmt.Sprintf("storm_%d", time.Now().UnixNano())
	if err := d.make(ctx, name); err != nil {
		return nil, errors.Join(err, d.end())
	}
	d.url = d.server.URL(name)
	var err error
	if d.DB, err = openAt(d.url); err != nil {
		return nil, errors.Join(err, d.end())
	}
	d.SetMaxOpenConns(40)
	d.SetMaxIdleConns(40)
	return d, nil
}

func openAt(url string) (*sql.DB, error) { return sql.Open("pgx", url) }

// make makes the database of this storm.
func (d *database) make(ctx context.Context, name string) error {
	db, err := sql.Open("pgx", d.server.URL("postgres"))
	if err != nil {
		return err
	}
	_, err = db.ExecContext(ctx, "CREATE DATABASE "+name)
	return errors.Join(err, db.Close())
}

func (d *database) postgres() bool { return d.dialect == outbox.Postgres }

func (d *database) close() error { return errors.Join(d.DB.Close(), d.end()) }

func (d *database) end() error {
	if !d.own {
		return nil
	}
	return d.server.Shutdown()
}

// schema makes the ledger, the stock and the oracle. A transaction writes what it publishes
// into oracle_tx too: what is there after all is over is the truth.
func (d *database) schema(ctx context.Context) error {
	for _, q := range []string{
		`CREATE TABLE stock (item TEXT PRIMARY KEY, available BIGINT NOT NULL CHECK (available >= 0))`,
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

// dump writes the truth, and refuses one in which stock was sold twice or not at
// all.
func (d *database) dump(ctx context.Context, dir string) error {
	out, err := history.Create(dir, history.TruthFile, "")
	if err != nil {
		return err
	}
	orders, err := d.truth(ctx, out)
	if err = errors.Join(err, out.Close()); err != nil {
		return err
	}
	var sold int
	if err := d.QueryRowContext(ctx, `SELECT count(*) FROM stock WHERE available = 0`).Scan(&sold); err != nil {
		return err
	}
	if sold != orders {
		return fmt.Errorf("the database has %d orders, and %d items were sold: the workload is wrong", orders, sold)
	}
	return nil
}

func (d *database) truth(ctx context.Context, out *history.Log) (orders int, err error) {
	rows, err := d.QueryContext(ctx, `SELECT events FROM oracle_tx`)
	if err != nil {
		return 0, err
	}
	defer rows.Close()
	for rows.Next() {
		var text string
		if err := rows.Scan(&text); err != nil {
			return 0, err
		}
		var events []history.Event
		if err := json.Unmarshal([]byte(text), &events); err != nil {
			return 0, err
		}
		for i := range events {
			if strings.HasPrefix(events[i].Key, "item") {
				orders++
			}
			out.Add(&events[i])
		}
	}
	return orders, rows.Err()
}

// freed returns up to which number rows may be gone from the outbox, and the last
// number that was given out.
func (d *database) freed(ctx context.Context) (freed, given int64, err error) {
	q := `SELECT freed, (SELECT seq FROM sqlite_sequence WHERE name = 'onewrite_outbox') FROM onewrite_meta`
	if d.postgres() {
		q = `SELECT (SELECT last_value FROM onewrite.freed), (SELECT last_value FROM onewrite.seq)`
	}
	err = d.QueryRowContext(ctx, q).Scan(&freed, &given)
	return freed, given, err
}
