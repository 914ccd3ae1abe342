package bench

import (
	"sync/atomic"
	"testing"
	"time"

	"github.com/onewrite/onewrite/pipeline"
)

// insertAll writes n rows in one transaction and returns when COMMIT returned.
func (l *logBacklog) insertAll(n int) time.Time {
	l.b.Helper()
	tx, err := l.db.BeginTx(l.b.Context(), nil)
	if err != nil {
		l.b.Fatal(err)
	}
	defer func() { _ = tx.Rollback() }()
	if _, err := tx.Exec(`INSERT INTO orders SELECT $1::bigint + j, j, 12.50, now(), repeat('x', 160) FROM generate_series(1, $2::int) j`, l.rows, n); err != nil {
		l.b.Fatal(err)
	}
	if err := tx.Commit(); err != nil {
		l.b.Fatal(err)
	}
	l.rows += n
	return time.Now()
}

// spilled is what the server wrote to its own disk while it decoded, in MB.
func (l *logBacklog) spilled() (mb float64) {
	l.b.Helper()
	if err := l.db.QueryRow(`SELECT spill_bytes / 1e6 FROM pg_stat_replication_slots WHERE slot_name = (SELECT slot FROM onewrite.log)`).Scan(&mb); err != nil {
		l.b.Fatal(err)
	}
	return mb
}

// BenchmarkBigTransaction reads transactions that are larger than any memory.
// memory: one of 5,000,000 rows, by the program: its largest memory. first: one of
// 1,000,000 rows, from the return of its COMMIT until the first and the last row are
// durable on the bus.
func BenchmarkBigTransaction(b *testing.B) {
	b.Run("memory", func(b *testing.B) {
		p := newLogProgram(b, "")
		n := short(5_000_000)
		committed := p.insertAll(n)
		p.arrived(10 * time.Minute)
		report(b, map[string]float64{
			"peak-MB":      procStatus(b, p.cmd.Process.Pid, "VmHWM") / 1000,
			"walsender-MB": procStatus(b, p.walsender(), "VmHWM") / 1000,
			"spilled-MB":   p.spilled(),
			"rows/s":       float64(n) / time.Since(committed).Seconds(),
		})
	})
	b.Run("first", func(b *testing.B) {
		l, bus := newLogTable(b), openBus(b)
		var events, first atomic.Int64
		ingest(b, bus, l.open, pipeline.Observer{Appended: func(_ string, n int, _ time.Duration) {
			first.CompareAndSwap(0, time.Now().UnixNano())
			events.Add(int64(n))
		}})
		await(b, time.Minute, "the log is read", func() bool {
			var active bool
			return l.db.QueryRow(`SELECT bool_or(active) FROM pg_replication_slots`).Scan(&active) == nil && active
		})
		got := samples{}
		for range runs {
			first.Store(0)
			committed := l.insertAll(short(1_000_000))
			await(b, 5*time.Minute, "every row is on the bus", func() bool { return events.Load() == int64(l.rows) })
			got.add("last-row-s", time.Since(committed).Seconds())
			got.add("first-row-ms", max(0, float64(first.Load()-committed.UnixNano())/1e6))
		}
		got.report(b)
	})
}
