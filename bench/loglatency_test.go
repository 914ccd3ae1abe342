package bench

import (
	"context"
	"database/sql"
	"fmt"
	"net/url"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
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
func BenchmarkRowToBus(b *testing.B) { rowToBus(b, "on", 0) }

// BenchmarkRowToBusAsync is the same where writers do not wait for the disk, without and
// with flush_within.
func BenchmarkRowToBusAsync(b *testing.B) {
	for _, within := range []time.Duration{0, 10 * time.Millisecond} {
		b.Run(within.String(), func(b *testing.B) { rowToBus(b, "off", within) })
	}
}

func rowToBus(b *testing.B, commit string, within time.Duration) {
	url, db := captured(b)
	bus := openBus(b)
	at := &atomic.Pointer[trip]{}
	ingest(b, rowsOf{watched{Bus: bus, trip: at}}, logSource(url, bus.ID(), within), pipeline.Observer{})
	awaitLog(b, db)
	latency(b, at, latencyWriter, latencyRate, latencyEvents, upsert(b, url, commit))
}

func logSource(url, bus string, within time.Duration) func(ctx context.Context, pos onewrite.Pos) (onewrite.Source, error) {
	return func(ctx context.Context, pos onewrite.Pos) (onewrite.Source, error) {
		return postgres.OpenSource(ctx, postgres.Config{Name: "shop", URL: url, BusID: bus, Tables: []string{"orders"}, FlushWithin: within}, pos)
	}
}

// awaitLog waits until the log is read: what is committed before is not in it. A slot that
// is being made has no place yet, and counts as active.
func awaitLog(b *testing.B, db *sql.DB) {
	b.Helper()
	await(b, time.Minute, "the log is read", func() bool {
		var active bool
		return db.QueryRow(`SELECT bool_or(active AND confirmed_flush_lsn IS NOT NULL) FROM pg_replication_slots`).Scan(&active) == nil && active
	})
}

// upsert writes a row in a transaction of its own, with synchronous_commit on or off.
func upsert(b *testing.B, url, commit string) committer {
	b.Helper()
	db, err := sql.Open("pgx", url+"&synchronous_commit="+commit)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { db.Close() })
	db.SetMaxOpenConns(latencyWriter)
	db.SetMaxIdleConns(latencyWriter)
	insert, err := db.Prepare(`INSERT INTO orders VALUES ($1, $2) ON CONFLICT (id) DO UPDATE SET note = excluded.note`)
	if err != nil {
		b.Fatal(err)
	}
	return func(key string) error {
		id, err := strconv.Atoi(key)
		if err == nil {
			_, err = insert.Exec(id, payload)
		}
		return err
	}
}

// BenchmarkFlushWithinCost measures what flush_within takes from writers that do not wait
// for the disk and write as fast as they can: pairs of runs alternate.
func BenchmarkFlushWithinCost(b *testing.B) {
	const n, pairs = 60_000, 6
	url, db := captured(b)
	write := upsert(b, url, "off")
	bus := openBus(b)
	got := samples{}
	rate := func(within time.Duration) float64 {
		in := &pipeline.Ingest{Name: "shop", Bus: bus, Open: logSource(url, bus.ID(), within), AckDurable: true}
		ctx, cancel := context.WithCancel(b.Context())
		var wg sync.WaitGroup
		wg.Go(func() { _ = in.Run(ctx) })
		defer wg.Wait()
		defer cancel()
		awaitLog(b, db)
		start := time.Now()
		paced(b, latencyWriter, n, 1_000_000, func(i int) error { return write(strconv.Itoa(i)) })
		took := time.Since(start).Seconds()
		var pid int
		if within > 0 && db.QueryRow(`SELECT pid FROM pg_stat_activity WHERE application_name = 'onewrite flush'`).Scan(&pid) == nil {
			got.add("session-%-of-core", cpuSeconds(b, pid)/took*100)
		}
		return n / took
	}
	rate(0) // the rows are there, and the caches warm
	var ratios []float64
	for i := range pairs {
		with, without := 0.0, 0.0
		if i%2 == 0 {
			without, with = rate(0), rate(10*time.Millisecond)
		} else {
			with, without = rate(10*time.Millisecond), rate(0)
		}
		ratios = append(ratios, with/without)
		got.add("tx/s", with)
		got.add("without/s", without)
		got.add("of-without", with/without)
	}
	b.Logf("ratios: %.3f", ratios)
	got.report(b)
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
