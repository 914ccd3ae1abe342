package bench

import (
	"context"
	"database/sql"
	"fmt"
	"os"
	"os/exec"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/adapter/postgres"
	"github.com/onewrite/onewrite/internal/servers"
	"github.com/onewrite/onewrite/pipeline"
)

// logRows is the number of rows in the benchmarks of a backlog in the log.
const logRows = 1_000_000

// logBacklog is a database whose log holds rows that nobody has read.
type logBacklog struct {
	b    *testing.B
	url  string
	db   *sql.DB
	rows int // that the table has
	slot string
	end  string // the place behind the last row

	stream bool // the backlog is not read in slices
}

// newLogTable makes a database of which one table is captured, still empty.
func newLogTable(b *testing.B) *logBacklog {
	b.Helper()
	pg := servers.NewPostgres(b, 15, servers.Set("max_wal_size", "8GB"), servers.Set("checkpoint_timeout", "1h"), servers.Set("shared_buffers", "1GB"), servers.Set("autovacuum", "off"), servers.Set("max_prepared_transactions", "0"))
	url := pg.NewDatabase(b)
	db, err := sql.Open("pgx", url)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = db.Close() })
	l := &logBacklog{b: b, url: url, db: db}
	l.exec(`CREATE TABLE orders (id bigint PRIMARY KEY, customer int NOT NULL, total numeric(12,2) NOT NULL, placed timestamptz NOT NULL, note text NOT NULL)`)
	l.exec(`CREATE PROCEDURE load(first bigint, n int, per int) LANGUAGE plpgsql AS $$BEGIN
		FOR i IN 0 .. n / per - 1 LOOP
			INSERT INTO orders SELECT first + i * per + j, j, 12.50, now(), repeat('x', 160) FROM generate_series(1, per) j;
			COMMIT;
		END LOOP; END$$`)
	o := postgres.MigrateOptions{Capture: postgres.Capture{Source: "shop", Tables: []string{"public.orders"}}}
	if _, err := postgres.Migrate(b.Context(), url, o); err != nil {
		b.Fatal(err)
	}
	return l
}

// load writes n rows of about 200 bytes in transactions of perTx.
func (l *logBacklog) load(n, perTx int) {
	l.b.Helper()
	l.exec(`ALTER ROLE CURRENT_USER SET synchronous_commit = off`)
	conn, err := pgx.Connect(l.b.Context(), l.url)
	if err != nil {
		l.b.Fatal(err)
	}
	if _, err := conn.Exec(l.b.Context(), fmt.Sprintf(`CALL load(%d, %d, %d)`, l.rows, n, perTx)); err != nil {
		l.b.Fatal(err)
	}
	_ = conn.Close(l.b.Context())
	l.rows += n
	l.exec(`ALTER ROLE CURRENT_USER RESET synchronous_commit`)
	l.exec(`CHECKPOINT`)
	if err := l.db.QueryRow(`SELECT pg_current_wal_flush_lsn()`).Scan(&l.end); err != nil {
		l.b.Fatal(err)
	}
}

// newLogBacklog writes n rows in transactions of perTx, behind the place where a
// slot named base stands.
func newLogBacklog(b *testing.B, n, perTx int) *logBacklog {
	b.Helper()
	l := newLogTable(b)
	src, err := l.open(b.Context(), "")
	if err != nil {
		b.Fatal(err)
	}
	if err := src.Close(); err != nil {
		b.Fatal(err)
	}
	if err := l.db.QueryRow(`SELECT slot FROM onewrite.log`).Scan(&l.slot); err != nil {
		b.Fatal(err)
	}
	l.exec(`SELECT pg_copy_logical_replication_slot($1, 'base')`, l.slot)
	l.load(n, perTx)
	return l
}

func (l *logBacklog) exec(query string, args ...any) {
	l.b.Helper()
	if _, err := l.db.Exec(query, args...); err != nil {
		l.b.Fatalf("%.100s: %v", query, err)
	}
}

// free waits until nobody reads a slot.
func (l *logBacklog) free(slot string) {
	l.b.Helper()
	await(l.b, time.Minute, "the slot is free", func() bool {
		var busy bool
		err := l.db.QueryRow(`SELECT coalesce(bool_or(active), false) FROM pg_replication_slots WHERE slot_name = $1`, slot).Scan(&busy)
		return err == nil && !busy
	})
}

// renew makes a slot stand where the rows begin.
func (l *logBacklog) renew(slot string) {
	l.b.Helper()
	l.free(slot)
	l.exec(`SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = $1`, slot)
	l.exec(`SELECT pg_copy_logical_replication_slot('base', $1)`, slot)
}

func (l *logBacklog) open(ctx context.Context, pos onewrite.Pos) (onewrite.Source, error) {
	return postgres.OpenSource(ctx, postgres.Config{Name: "shop", URL: l.url, BusID: "bench", Tables: []string{"public.orders"}, Stream: l.stream}, pos)
}

// floor reads the rows with pg_recvlogical into nothing and returns rows/s.
func (l *logBacklog) floor() float64 {
	l.b.Helper()
	l.renew("floor")
	cmd := exec.Command(servers.Bin(l.b, "pg_recvlogical"), "-d", l.url, "--slot=floor", "--start", "-o", "proto_version=1", "-o", "publication_names=onewrite_shop", "-f", "/dev/null", "--endpos="+l.end, "--no-loop")
	start := time.Now()
	if out, err := cmd.CombinedOutput(); err != nil {
		l.b.Fatalf("pg_recvlogical: %v\n%s", err, out)
	}
	return logRows / time.Since(start).Seconds()
}

// BenchmarkLogDrain reads a million rows from the log into nothing, by streaming alone.
// The yardstick, pg_recvlogical, writes the same messages to /dev/null.
func BenchmarkLogDrain(b *testing.B) { benchmarkDrain(b, true) }

// BenchmarkLogSlices reads the same rows in slices.
func BenchmarkLogSlices(b *testing.B) { benchmarkDrain(b, false) }

func benchmarkDrain(b *testing.B, stream bool) {
	for _, perTx := range []int{1, 1000} {
		b.Run(fmt.Sprint(perTx), func(b *testing.B) {
			l := newLogBacklog(b, logRows, perTx)
			l.stream = stream
			got := samples{}
			for range runs {
				l.renew(l.slot)
				src, err := l.open(b.Context(), "")
				if err != nil {
					b.Fatal(err)
				}
				rate := logRows / drain(b, src, logRows, nil).Seconds()
				if err := src.Close(); err != nil {
					b.Fatal(err)
				}
				floor := l.floor()
				got.add("rows/s", rate)
				got.add("floor/s", floor)
				got.add("of-floor", rate/floor)
			}
			got.report(b)
		})
	}
}

// BenchmarkLogToBus carries the same rows into the bus as the relay does, in this
// process.
func BenchmarkLogToBus(b *testing.B) {
	for _, perTx := range []int{1, 1000} {
		b.Run(fmt.Sprint(perTx), func(b *testing.B) {
			l := newLogBacklog(b, logRows, perTx)
			got := samples{}
			for range runs {
				l.renew(l.slot)
				bus, cpu := openBus(b), cpuSeconds(b, os.Getpid())
				rate := l.toBus(bus)
				got.add("cpu-s/M", (cpuSeconds(b, os.Getpid())-cpu)*1e6/logRows)
				floor := l.floor()
				got.add("rows/s", rate)
				got.add("floor/s", floor)
				got.add("of-floor", rate/floor)
			}
			got.report(b)
		})
	}
}

func (l *logBacklog) toBus(bus onewrite.Bus) float64 {
	l.b.Helper()
	var events atomic.Int64
	done := make(chan struct{})
	observe := pipeline.Observer{Appended: func(_ string, n int, _ time.Duration) {
		if events.Add(int64(n)) == logRows {
			close(done)
		}
	}}
	start := time.Now()
	in := &pipeline.Ingest{Name: "shop", Bus: bus, Open: l.open, AckDurable: true, Observe: observe}
	ctx, cancel := context.WithCancel(l.b.Context())
	var wg sync.WaitGroup
	wg.Go(func() { _ = in.Run(ctx) })
	select {
	case <-done:
	case <-time.After(2 * time.Minute):
		l.b.Errorf("%d of %d rows are on the bus: %s", events.Load(), logRows, in.Status().LastError)
	}
	rate := logRows / time.Since(start).Seconds()
	cancel()
	wg.Wait()
	if l.b.Failed() {
		l.b.FailNow()
	}
	return rate
}
