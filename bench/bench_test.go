package bench

import (
	"bytes"
	"context"
	"database/sql"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	_ "github.com/jackc/pgx/v5/stdlib"
	_ "modernc.org/sqlite"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/adapter/nats"
	"github.com/onewrite/onewrite/adapter/postgres"
	"github.com/onewrite/onewrite/adapter/sqlite"
	"github.com/onewrite/onewrite/internal/servers"
	"github.com/onewrite/onewrite/pipeline"
)

// short is a part of a number in a benchmark of minutes, for a look at whether it
// runs: with -short, a fiftieth.
func short(n int) int {
	if testing.Short() {
		return n / 50
	}
	return n
}

// payload is the 200 B of the figures.
var payload = `{"pad":"` + strings.Repeat("x", 190) + `"}`

func median(v []float64) float64 {
	s := slices.Clone(v)
	slices.Sort(s)
	return s[len(s)/2]
}

func percentile(d []time.Duration, p float64) float64 {
	s := slices.Clone(d)
	slices.Sort(s)
	return s[min(len(s)-1, int(float64(len(s))*p))].Seconds() * 1000
}

// database makes an outbox in a server of its own. As PostgreSQL is set unless
// somebody changes it, two-phase commit is off, so an idle relay is woken by
// NOTIFY; the servers that the tests share have it on.
func database(b *testing.B) (url string, db *sql.DB) {
	b.Helper()
	url = servers.NewPostgres(b, 15, servers.Set("max_prepared_transactions", "0")).NewDatabase(b)
	if _, err := postgres.Migrate(b.Context(), url, postgres.MigrateOptions{}); err != nil {
		b.Fatal(err)
	}
	db, err := sql.Open("pgx", url)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { db.Close() })
	return url, db
}

// fill inserts n events in transactions of 1,000.
func fill(b *testing.B, db *sql.DB, n int) {
	b.Helper()
	for done := 0; done < n; done += 1000 {
		if _, err := db.Exec(`INSERT INTO onewrite.outbox (topic, key, payload) SELECT 'order.placed', 'k' || i % 1000, $1 FROM generate_series(1, $2::int) i`, payload, min(1000, n-done)); err != nil {
			b.Fatal(err)
		}
	}
}

// liteDatabase makes an outbox in a fresh SQLite file.
func liteDatabase(b *testing.B) (path string, db *sql.DB) {
	b.Helper()
	path = filepath.Join(b.TempDir(), "shop.db")
	if _, err := sqlite.Migrate(b.Context(), path, sqlite.MigrateOptions{}); err != nil {
		b.Fatal(err)
	}
	db, err := sql.Open("sqlite", "file:"+path+"?_pragma=busy_timeout(10000)&_pragma=journal_mode(wal)&_pragma=synchronous(full)&_txlock=immediate")
	if err != nil {
		b.Fatal(err)
	}
	db.SetMaxOpenConns(1)
	b.Cleanup(func() { db.Close() })
	return path, db
}

// openBus opens an embedded bus in a fresh folder.
func openBus(b *testing.B) *nats.Bus {
	b.Helper()
	bus, err := nats.Open(b.Context(), nats.Config{Dir: filepath.Join(b.TempDir(), "bus"), MaxBytes: 20 << 30})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { bus.Close() })
	return bus
}

// drain reads n events from a source into do.
func drain(b *testing.B, src onewrite.Source, n int, do func(onewrite.Batch) error) time.Duration {
	b.Helper()
	start := time.Now()
	batches := make(chan onewrite.Batch, 1)
	ctx, cancel := context.WithTimeout(b.Context(), 5*time.Minute)
	defer cancel()
	var wg sync.WaitGroup
	wg.Go(func() {
		defer close(batches)
		for got := 0; got < n; {
			batch, err := src.Read(ctx)
			if err != nil {
				b.Errorf("read: %v", err)
				return
			}
			got += len(batch.Events)
			batches <- batch
		}
	})
	for batch := range batches {
		if len(batch.Events) == 0 || do == nil {
			continue
		}
		if err := do(batch); err != nil {
			b.Error(err)
			break
		}
	}
	took := time.Since(start)
	cancel()
	for range batches {
	}
	wg.Wait()
	if b.Failed() {
		b.FailNow()
	}
	return took
}

// ingest starts source -> bus as the relay does, until the benchmark ends.
func ingest(b *testing.B, bus onewrite.Bus, open func(ctx context.Context, pos onewrite.Pos) (onewrite.Source, error), observe pipeline.Observer) *pipeline.Ingest {
	b.Helper()
	in := &pipeline.Ingest{Name: "shop", Bus: bus, Open: open, AckDurable: true, Observe: observe}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); _ = in.Run(ctx) }()
	b.Cleanup(func() { cancel(); <-done })
	return in
}

// program builds the real program and starts it on a configuration.
func program(b *testing.B, yaml string) (cmd *exec.Cmd, addr string) {
	b.Helper()
	dir := b.TempDir()
	bin := filepath.Join(dir, "onewrite")
	if runtime.GOOS == "windows" {
		bin += ".exe"
	}
	build := exec.Command("go", "build", "-trimpath", "-o", bin, "github.com/onewrite/onewrite/cmd/onewrite")
	if out, err := build.CombinedOutput(); err != nil {
		b.Fatalf("%v\n%s", err, out)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	addr = l.Addr().String()
	l.Close()
	file := filepath.Join(dir, "onewrite.yaml")
	if err := os.WriteFile(file, []byte(yaml+"\nlisten: "+addr+"\n"), 0o600); err != nil {
		b.Fatal(err)
	}
	return launch(b, bin, "run", "-c", file), addr
}

// launch starts the program and ends it with the benchmark.
func launch(b *testing.B, bin string, args ...string) *exec.Cmd {
	b.Helper()
	cmd := exec.Command(bin, args...)
	var log bytes.Buffer
	cmd.Stderr = &log
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		end(cmd, os.Interrupt)
		if b.Failed() {
			b.Log(log.String())
		}
	})
	return cmd
}

// again starts the program as it was started before.
func again(b *testing.B, cmd *exec.Cmd) *exec.Cmd {
	b.Helper()
	return launch(b, cmd.Path, cmd.Args[1:]...)
}

// end sends a signal and waits until the process is gone, which it may be.
func end(cmd *exec.Cmd, signal os.Signal) {
	_ = cmd.Process.Signal(signal)
	_ = cmd.Wait()
}

// procStatus reads a number of kB from /proc/PID/status.
func procStatus(b *testing.B, pid int, key string) float64 {
	b.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		b.Skipf("needs Linux: %v", err)
	}
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, key+":"); ok {
			n, _ := strconv.ParseFloat(strings.Fields(rest)[0], 64)
			return n
		}
	}
	b.Fatalf("/proc/%d/status has no %s", pid, key)
	return 0
}

// cpuSeconds reads the CPU time a process has used.
func cpuSeconds(b *testing.B, pid int) float64 {
	b.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		b.Skipf("needs Linux: %v", err)
	}
	f := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:]))
	user, _ := strconv.ParseFloat(f[11], 64)
	system, _ := strconv.ParseFloat(f[12], 64)
	return (user + system) / 100
}
