package bench

import (
	"context"
	"database/sql"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// BenchmarkIdle measures what the program costs when nothing happens, with one
// destination, over 20 s. The observer's session is in another database, so the
// transactions counted are the program's.
func BenchmarkIdle(b *testing.B) {
	const over = 20 * time.Second
	url, db := database(b)
	cmd, _ := running(b, fmt.Sprintf("{type: postgres, url: %q}", url),
		fmt.Sprintf("destinations:\n  archive: {type: file, path: %q}\n", filepath.Join(b.TempDir(), "events.jsonl")))
	fill(b, db, 1000) // it has worked before it rests
	var name string
	if err := db.QueryRow(`SELECT current_database()`).Scan(&name); err != nil {
		b.Fatal(err)
	}
	await(b, time.Minute, "the outbox is empty", func() bool {
		var rows int
		return db.QueryRow(`SELECT count(*) FROM onewrite.outbox`).Scan(&rows) == nil && rows == 0
	})
	db.Close()
	watch, err := sql.Open("pgx", strings.Replace(url, "/"+name, "/postgres", 1))
	if err != nil {
		b.Fatal(err)
	}
	defer watch.Close()
	commits := func() (n float64) {
		if err := watch.QueryRow(`SELECT xact_commit FROM pg_stat_database WHERE datname = $1`, name).Scan(&n); err != nil {
			b.Fatal(err)
		}
		return n
	}
	<-time.After(12 * time.Second) // a session reports its counters within 10 s
	queries, cpu, start := commits(), cpuSeconds(b, cmd.Process.Pid), time.Now()
	<-time.After(over)
	took := time.Since(start).Seconds()
	report(b, map[string]float64{
		"queries/s": (commits() - queries) / took,
		"%-of-core": (cpuSeconds(b, cmd.Process.Pid) - cpu) / took * 100,
		"RSS-MB":    procStatus(b, cmd.Process.Pid, "VmRSS") / 1000,
	})
}

// BenchmarkHeldSnapshot writes 10,000 events a second while another session
// holds a snapshot open for 55 s, and samples the size of the outbox.
func BenchmarkHeldSnapshot(b *testing.B) {
	const hold, rate, perTx = 55 * time.Second, 10_000, 100
	url, db := database(b)
	_, addr := running(b, fmt.Sprintf("{type: postgres, url: %q}", url), "")
	holder, err := db.BeginTx(b.Context(), &sql.TxOptions{Isolation: sql.LevelRepeatableRead})
	if err != nil {
		b.Fatal(err)
	}
	defer holder.Rollback()
	var n int
	if err := holder.QueryRow(`SELECT count(*) FROM pg_class`).Scan(&n); err != nil { // takes the snapshot, and no lock on a leaf
		b.Fatal(err)
	}
	var peak float64
	ctx, cancel := context.WithCancel(b.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		tick := time.NewTicker(250 * time.Millisecond)
		defer tick.Stop()
		for ctx.Err() == nil {
			peak = max(peak, ringBytes(b, db))
			<-tick.C
		}
	})
	txs := int(hold.Seconds()) * rate / perTx
	start := time.Now()
	paced(b, 2, txs, rate/perTx, func(int) error {
		_, err := db.Exec(`INSERT INTO onewrite.outbox (topic, key, payload) SELECT 'order.placed', 'k' || i, $1 FROM generate_series(1, $2::int) i`, payload, perTx)
		return err
	})
	written := float64(txs*perTx) / time.Since(start).Seconds()
	await(b, 20*time.Second, "every event is on the bus", func() bool {
		s, ok := status(addr)
		return ok && s.Sources["shop"].Events >= uint64(txs*perTx)
	})
	end := time.Now()
	rowsLeft := -1
	await(b, 30*time.Second, "the outbox is empty", func() bool {
		return db.QueryRow(`SELECT count(*) FROM onewrite.outbox`).Scan(&rowsLeft) == nil && rowsLeft == 0
	})
	emptied := time.Since(end).Seconds()
	cancel()
	wg.Wait()
	var dead float64
	if err := db.QueryRow(`SELECT coalesce(sum(n_dead_tup), 0) FROM pg_stat_user_tables WHERE schemaname = 'onewrite' AND relname LIKE 'outbox%'`).Scan(&dead); err != nil {
		b.Fatal(err)
	}
	report(b, map[string]float64{
		"events/s": written, "peak-MB": peak / 1e6, "after-MB": ringBytes(b, db) / 1e6, "empty-after-s": emptied, "dead-tuples": dead,
	})
}

// ringBytes returns the bytes of the outbox with indexes and TOAST.
func ringBytes(b *testing.B, db *sql.DB) (n float64) {
	if err := db.QueryRow(`SELECT sum(pg_total_relation_size(inhrelid)) FROM pg_inherits WHERE inhparent = 'onewrite.outbox'::regclass`).Scan(&n); err != nil {
		b.Error(err)
	}
	return n
}
