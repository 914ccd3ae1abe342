package bench

import (
	"context"
	"fmt"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/adapter/postgres"
	"github.com/onewrite/onewrite/internal/servers"
)

// snapshotRows is the number of rows that the benchmarks of a snapshot read.
const snapshotRows = 5_000_000

// snapshotTables are tables whose rows are read while others are written.
type snapshotTables struct {
	b      *testing.B
	url    string
	conn   *pgx.Conn
	tables []string
	pos    onewrite.Pos
	live   atomic.Int64 // changes that came
}

// newSnapshotTables makes n tables, which together have the rows of about 200 bytes, and
// a small one that somebody writes until the benchmark ends.
func newSnapshotTables(b *testing.B, n int) *snapshotTables {
	b.Helper()
	pg := servers.NewPostgres(b, 15, servers.Set("max_wal_size", "8GB"), servers.Set("checkpoint_timeout", "1h"), servers.Set("shared_buffers", "2GB"), servers.Set("autovacuum", "off"))
	s := &snapshotTables{b: b, url: pg.NewDatabase(b)}
	var err error
	if s.conn, err = pgx.Connect(b.Context(), s.url); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = s.conn.Close(context.Background()) })
	s.exec(`CREATE TABLE ticks (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, at timestamptz NOT NULL)`)
	for i := range n {
		t := fmt.Sprintf("public.orders%d", i)
		s.tables = append(s.tables, t)
		s.exec(fmt.Sprintf(`CREATE TABLE %s (id bigint, customer int NOT NULL, total numeric(12,2) NOT NULL, placed timestamptz NOT NULL, note text NOT NULL)`, t))
		s.exec(fmt.Sprintf(`INSERT INTO %s SELECT i, i %% 100000, 12.50, now(), repeat('x', 160) FROM generate_series(1, %d) i`, t, snapshotRows/n))
		s.exec(fmt.Sprintf(`ALTER TABLE %s ADD PRIMARY KEY (id)`, t))
		s.exec("VACUUM ANALYZE " + t)
	}
	s.exec(`CHECKPOINT`)
	s.migrate(nil)
	return s
}

func (s *snapshotTables) exec(query string) {
	s.b.Helper()
	if _, err := s.conn.Exec(s.b.Context(), query); err != nil {
		s.b.Fatalf("%.100s: %v", query, err)
	}
}

// migrate captures the tables, and asks for snapshots of some.
func (s *snapshotTables) migrate(again []string) {
	s.b.Helper()
	o := postgres.MigrateOptions{Capture: postgres.Capture{Source: "shop", Tables: append([]string{"public.ticks"}, s.tables...), Again: again}}
	if _, err := postgres.Migrate(s.b.Context(), s.url, o); err != nil {
		s.b.Fatal(err)
	}
}

// write commits a row every few milliseconds until stop is called.
func (s *snapshotTables) write() (stop func()) {
	ctx, cancel := context.WithCancel(s.b.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		conn, err := pgx.Connect(ctx, s.url)
		if err != nil {
			s.b.Error(err)
			return
		}
		defer func() { _ = conn.Close(context.Background()) }()
		tick := time.NewTicker(5 * time.Millisecond)
		defer tick.Stop()
		for ctx.Err() == nil {
			if _, err := conn.Exec(ctx, `INSERT INTO ticks (at) VALUES (clock_timestamp())`); err != nil && ctx.Err() == nil {
				s.b.Error(err)
				return
			}
			select {
			case <-ctx.Done():
			case <-tick.C:
			}
		}
	})
	return func() { cancel(); wg.Wait() }
}

func (s *snapshotTables) open(ctx context.Context, pos onewrite.Pos) (onewrite.Source, error) {
	return postgres.OpenSource(ctx, postgres.Config{Name: "shop", URL: s.url, BusID: "bench", Tables: s.tables}, pos)
}

// read reads the snapshots into nothing, as a bus that stores at once, and returns
// rows/s.
func (s *snapshotTables) read() float64 {
	s.b.Helper()
	src, err := s.open(s.b.Context(), s.pos)
	if err != nil {
		s.b.Fatal(err)
	}
	defer func() { _ = src.Close() }()
	s.migrate(s.tables)
	ctx, cancel := context.WithTimeout(s.b.Context(), 5*time.Minute)
	defer cancel()
	var start time.Time
	for rows := 0; rows < snapshotRows; {
		b, err := src.Read(ctx)
		if err != nil {
			s.b.Fatal(err)
		}
		for i := range b.Events {
			if b.Events[i].Type != "snapshot" {
				s.live.Add(1)
			} else if rows++; rows == 1 {
				start = time.Now()
			}
		}
		if len(b.Events) > 0 {
			s.pos = b.Pos
			src.(interface{ Stored(onewrite.Pos) }).Stored(b.Pos)
		}
	}
	return snapshotRows / time.Since(start).Seconds()
}

// BenchmarkSnapshot reads five million rows into nothing, of one table and of four,
// while 200 transactions/s are written.
func BenchmarkSnapshot(b *testing.B) {
	for _, n := range []int{1, 4} {
		b.Run(fmt.Sprintf("tables=%d", n), func(b *testing.B) {
			s := newSnapshotTables(b, n)
			defer s.write()()
			got := samples{}
			for range runs {
				was, start := s.live.Load(), time.Now()
				got.add("rows/s", s.read())
				got.add("changes/s", float64(s.live.Load()-was)/time.Since(start).Seconds())
			}
			got.report(b)
		})
	}
}

// BenchmarkSnapshotToBus has the program read them into its bus, and looks at the memory
// that it had at most.
func BenchmarkSnapshotToBus(b *testing.B) {
	s := newSnapshotTables(b, 1)
	s.migrate(s.tables)
	dir := b.TempDir()
	cmd, _ := program(b, fmt.Sprintf("sources: {shop: {type: postgres, url: %q, tables: [public.ticks, %s]}}\nbus: {dir: %q, max_size: 20GB}", s.url, s.tables[0], filepath.Join(dir, "bus")))
	start := time.Now() // it is built by now
	defer s.write()()
	await(b, 20*time.Minute, "the snapshot is on the bus", func() bool {
		var done bool
		err := s.conn.QueryRow(b.Context(), `SELECT bool_and(finished = wanted) FROM onewrite.captured`).Scan(&done)
		return err == nil && done
	})
	report(b, map[string]float64{"rows/s": snapshotRows / time.Since(start).Seconds(), "peak-MB": procStatus(b, cmd.Process.Pid, "VmHWM") / 1000})
}
