package bench

import (
	"context"
	"database/sql"
	"fmt"
	"net/url"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/adapter/postgres"
	"github.com/onewrite/onewrite/internal/servers"
	"github.com/onewrite/onewrite/pipeline"
)

// captured makes a database of which one empty table is captured.
func captured(b *testing.B) (url string, db *sql.DB) {
	b.Helper()
	url = servers.NewPostgres(b, 15, servers.Set("max_prepared_transactions", "0")).NewDatabase(b)
	db, err := sql.Open("pgx", url)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { db.Close() })
	db.SetMaxOpenConns(latencyWriter)
	db.SetMaxIdleConns(latencyWriter)
	if _, err := db.Exec(`CREATE TABLE orders (id bigint PRIMARY KEY, note text)`); err != nil {
		b.Fatal(err)
	}
	if _, err := postgres.Migrate(b.Context(), url, postgres.MigrateOptions{Capture: postgres.Capture{Source: "shop", Tables: []string{"orders"}}}); err != nil {
		b.Fatal(err)
	}
	return url, db
}

// rowNumber takes the number of a row out of its key, which headers have escaped.
func rowNumber(key string) string {
	if plain, err := url.PathUnescape(key); err == nil {
		key = plain
	}
	return strings.TrimSuffix(strings.TrimPrefix(key, `{"id":`), "}")
}

// rowsOf notes the rows of a trip: the number is in the key.
type rowsOf struct{ watched }

func (w rowsOf) Append(ctx context.Context, source string, prev onewrite.Pos, batch onewrite.Batch) (uint64, error) {
	last, err := w.Bus.Append(ctx, source, prev, batch)
	if t := w.trip.Load(); err == nil && t != nil {
		for i := range batch.Events {
			t.arrive(rowNumber(batch.Events[i].Key))
		}
	}
	return last, err
}

// BenchmarkRowToBus is BenchmarkCommitToBus for row changes read from the log: one
// INSERT a transaction, without a word to the relay.
func BenchmarkRowToBus(b *testing.B) {
	url, db := captured(b)
	bus := openBus(b)
	at := &atomic.Pointer[trip]{}
	ingest(b, rowsOf{watched{Bus: bus, trip: at}}, func(ctx context.Context, pos onewrite.Pos) (onewrite.Source, error) {
		return postgres.OpenSource(ctx, postgres.Config{Name: "shop", URL: url, BusID: bus.ID(), Tables: []string{"orders"}}, pos)
	}, pipeline.Observer{})
	await(b, time.Minute, "the log is read", func() bool { // what is committed before is not in it
		var active bool
		return db.QueryRow(`SELECT bool_or(active) FROM pg_replication_slots`).Scan(&active) == nil && active
	})
	insert, err := db.Prepare(`INSERT INTO orders VALUES ($1, $2) ON CONFLICT (id) DO UPDATE SET note = excluded.note`)
	if err != nil {
		b.Fatal(err)
	}
	latency(b, at, latencyWriter, latencyRate, latencyEvents, func(key string) error {
		id, err := strconv.Atoi(key)
		if err == nil {
			_, err = insert.Exec(id, payload)
		}
		return err
	})
}

// BenchmarkIdleLog measures what the program costs while it reads a log in which
// nothing happens, over 20 s.
func BenchmarkIdleLog(b *testing.B) {
	const over = 20 * time.Second
	url, db := captured(b)
	cmd, addr := running(b, fmt.Sprintf("{type: postgres, url: %q, tables: [orders]}", url),
		fmt.Sprintf("destinations:\n  archive: {type: file, path: %q}\n", filepath.Join(b.TempDir(), "events.jsonl")))
	if _, err := db.Exec(`INSERT INTO orders SELECT i, 'x' FROM generate_series(1, 1000) i`); err != nil {
		b.Fatal(err)
	}
	await(b, time.Minute, "every row is on the bus", func() bool {
		s, ok := status(addr)
		return ok && s.Sources["shop"].Events >= 1000
	})
	var walsender int
	if err := db.QueryRow(`SELECT active_pid FROM pg_replication_slots WHERE active`).Scan(&walsender); err != nil {
		b.Fatal(err)
	}
	cpu, server, start := cpuSeconds(b, cmd.Process.Pid), cpuSeconds(b, walsender), time.Now()
	<-time.After(over)
	took := time.Since(start).Seconds()
	report(b, map[string]float64{
		"%-of-core":           (cpuSeconds(b, cmd.Process.Pid) - cpu) / took * 100,
		"walsender-%-of-core": (cpuSeconds(b, walsender) - server) / took * 100,
		"RSS-MB":              procStatus(b, cmd.Process.Pid, "VmRSS") / 1000,
	})
}
