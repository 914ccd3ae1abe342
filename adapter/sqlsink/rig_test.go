package sqlsink_test

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/go-sql-driver/mysql"
	_ "github.com/jackc/pgx/v5/stdlib"
	_ "modernc.org/sqlite"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/adapter/sqlsink"
	"github.com/onewrite/onewrite/internal/servers"
)

const patience = 30 * time.Second

// target is a database to write to, and a connection of the test's own to it.
type target struct {
	kind string
	cfg  sqlsink.Config
	db   *sql.DB
	pg   *servers.PG    // of its own, if alone
	my   *servers.Maria // of its own, if alone
}

var kinds = []string{sqlsink.Postgres, sqlsink.MySQL, sqlsink.SQLite}

// each runs a test on all three.
func each(t *testing.T, test func(t *testing.T, x *target)) {
	for _, kind := range kinds {
		t.Run(kind, func(t *testing.T) { test(t, newTarget(t, kind, false)) })
	}
}

// newTarget makes an empty database; alone: on a server of its own.
func newTarget(t testing.TB, kind string, alone bool) *target {
	t.Helper()
	x := &target{kind: kind, cfg: sqlsink.Config{Kind: kind, Destination: "replica"}}
	switch kind {
	case sqlsink.Postgres:
		pg := servers.Postgres(t, 15)
		if alone {
			pg = servers.NewPostgres(t, 15)
			x.pg = pg
		}
		x.cfg.URL = pg.NewDatabase(t)
		x.open(t, "pgx", x.cfg.URL)
	case sqlsink.MySQL:
		my := (*servers.Maria)(nil)
		if alone {
			my = servers.NewMariaDB(t)
			x.my = my
		} else {
			my = servers.MariaDB(t)
		}
		x.cfg.URL = my.NewDatabase(t)
		x.open(t, "mysql", dsn(x.cfg.URL))
	case sqlsink.SQLite:
		x.cfg.Path = filepath.Join(t.TempDir(), "replica.db")
		x.open(t, "sqlite", "file:"+x.cfg.Path+"?_pragma=busy_timeout(5000)")
	}
	return x
}

func dsn(text string) string {
	u, _ := url.Parse(text)
	c := mysql.NewConfig()
	c.User, c.Net, c.Addr, c.DBName, c.Logger = u.User.Username(), "tcp", u.Host, u.Path[1:], &mysql.NopLogger{}
	c.Passwd, _ = u.User.Password()
	return c.FormatDSN()
}

func (x *target) open(t testing.TB, driver, dsn string) {
	db, err := sql.Open(driver, dsn)
	if err != nil {
		t.Fatal(err)
	}
	db.SetMaxIdleConns(0) // the server may have been restarted meanwhile
	x.db = db
	t.Cleanup(func() { db.Close() })
}

// sink opens a sink, closed with the test.
func (x *target) sink(t testing.TB, change ...func(*sqlsink.Config)) *sqlsink.Sink {
	t.Helper()
	c := x.cfg
	for _, f := range change {
		f(&c)
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	s, err := sqlsink.Open(ctx, c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// exec runs statements for the test; the first that fails ends it.
func (x *target) exec(t testing.TB, statements ...string) {
	t.Helper()
	for _, s := range statements {
		if _, err := x.db.ExecContext(t.Context(), s); err != nil {
			t.Fatalf("%s: %v", s, err)
		}
	}
}

// rows returns what a query returns, a text for each row: NULL is ∅.
func (x *target) rows(t testing.TB, query string) []string {
	t.Helper()
	rows, err := x.db.QueryContext(t.Context(), query)
	if err != nil {
		t.Fatalf("%s: %v", query, err)
	}
	defer rows.Close()
	cols, _ := rows.Columns()
	var out []string
	for rows.Next() {
		vals, refs := make([]sql.NullString, len(cols)), make([]any, len(cols))
		for i := range vals {
			refs[i] = &vals[i]
		}
		if err := rows.Scan(refs...); err != nil {
			t.Fatal(err)
		}
		parts := make([]string, len(cols))
		for i, v := range vals {
			if parts[i] = "∅"; v.Valid {
				parts[i] = v.String
			}
		}
		out = append(out, strings.Join(parts, "|"))
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	return out
}

func (x *target) want(t testing.TB, query string, want ...string) {
	t.Helper()
	if got := x.rows(t, query); strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("%s:\n got %q\nwant %q", query, got, want)
	}
}

// row is a row image: the values are as json.Marshal writes them.
type row = map[string]any

var made int

// ev makes the event of a row change as the sources do. key may be nil.
func ev(op, table string, key, before, after row, unchanged ...string) onewrite.Event {
	made++
	types := map[string]string{"c": "insert", "u": "update", "d": "delete", "t": "truncate", "r": "snapshot"}
	source := row{"version": "1", "connector": "postgresql", "name": "shop", "schema": "public", "table": table}
	if len(unchanged) > 0 {
		source["unchanged"] = unchanged
	}
	image := func(r row) any {
		if r == nil {
			return nil
		}
		return r
	}
	data, err := json.Marshal(row{"before": image(before), "after": image(after), "source": source, "op": op, "ts_ms": 1, "transaction": nil})
	if err != nil {
		panic(err)
	}
	e := onewrite.Event{ID: fmt.Sprintf("e-%06d", made), Source: "shop", Topic: "public." + table, Type: types[op], ContentType: "application/json",
		Data: data, Seq: fmt.Sprintf("%012d", made), Key: "public." + table}
	if key != nil {
		k, _ := json.Marshal(key)
		e.Key = string(k)
	}
	return e
}

func at(events ...onewrite.Event) []onewrite.Message {
	ms := make([]onewrite.Message, len(events))
	for i, e := range events {
		ms[i] = onewrite.Message{Event: e, Log: e.Source, Offset: uint64(i + 1)}
	}
	return ms
}

func write(t testing.TB, s *sqlsink.Sink, events ...onewrite.Event) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if n, err := s.Write(ctx, events); n != len(events) || err != nil {
		t.Fatalf("Write of %d events = %d, %v", len(events), n, err)
	}
}

// refused demands that an event is refused, with a cure and the given words.
func refused(t testing.TB, s *sqlsink.Sink, events []onewrite.Event, n int, words ...string) {
	t.Helper()
	got, err := s.Write(t.Context(), events)
	if got != n || !errors.Is(err, onewrite.ErrRejected) {
		t.Fatalf("Write = %d, %v; want %d and a refusal", got, err, n)
	}
	for _, w := range append(words, "cure: ", events[n].ID) {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("no %q in: %v", w, err)
		}
	}
}
