package sqlite

import (
	"slices"
	"testing"
	"time"

	"github.com/onewrite/onewrite/outbox"
)

// BenchmarkDrain reads a backlog of rows with 256 bytes of payload.
func BenchmarkDrain(b *testing.B) {
	path := migrated(b, "", MigrateOptions{})
	const rows = 100_000
	exec1(b, app(b, path), "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 100000) INSERT INTO onewrite_outbox (topic, key, payload) SELECT 'order.placed', i, printf('{\"n\":%0250d}', i) FROM n")
	b.ReportAllocs()
	for b.Loop() {
		s, err := Open(b.Context(), Config{Name: "shop", Path: path}, "")
		if err != nil {
			b.Fatal(err)
		}
		read(b, s, rows)
		if err := s.Close(); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(rows*float64(b.N)/b.Elapsed().Seconds(), "rows/s")
}

// BenchmarkReclaim reads and deletes a backlog.
func BenchmarkReclaim(b *testing.B) {
	const rows = 100_000
	var spent time.Duration
	for b.Loop() {
		b.StopTimer()
		path := migrated(b, "", MigrateOptions{})
		db := app(b, path)
		exec1(b, db, "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 100000) INSERT INTO onewrite_outbox (topic, key, payload) SELECT 'order.placed', i, printf('{\"n\":%0250d}', i) FROM n")
		s := opened(b, path, "")
		b.StartTimer()
		start := time.Now()
		_, pos, _ := read(b, s, rows)
		if err := s.Ack(b.Context(), pos); err != nil {
			b.Fatal(err)
		}
		until(b, "rows deleted", func() bool { return value[int](b, db, "SELECT EXISTS (SELECT 1 FROM onewrite_outbox)") == 0 })
		spent += time.Since(start)
		b.ReportMetric(float64(s.longest.Load())/1e6, "ms-longest-tx")
		_ = s.Close()
	}
	b.ReportMetric(rows*float64(b.N)/spent.Seconds(), "rows/s")
}

// BenchmarkLatency is the time from the return of COMMIT to the return of Read,
// with the bell and without.
func BenchmarkLatency(b *testing.B) {
	for _, bell := range []bool{true, false} {
		b.Run(map[bool]string{true: "bell", false: "poll"}[bell], func(b *testing.B) {
			path := migrated(b, "", MigrateOptions{})
			s, db := opened(b, path, ""), app(b, path)
			got := make(chan time.Time)
			go func() {
				defer close(got)
				for {
					batch, err := s.Read(b.Context())
					if err != nil {
						return
					}
					for range batch.Events {
						got <- time.Now()
					}
				}
			}()
			var took []time.Duration
			for b.Loop() {
				exec1(b, db, "INSERT INTO onewrite_outbox (topic, payload) VALUES ('a', 'x')")
				start := time.Now()
				if bell {
					outbox.Ring()
				}
				took = append(took, max(0, (<-got).Sub(start)))
			}
			slices.Sort(took)
			b.ReportMetric(float64(took[len(took)/2].Microseconds()), "us-p50")
			b.ReportMetric(float64(took[len(took)*99/100].Microseconds()), "us-p99")
		})
	}
}

// BenchmarkCapture is the cost of the triggers for the application.
func BenchmarkCapture(b *testing.B) {
	for _, tables := range [][]string{nil, {"o"}} {
		b.Run(map[bool]string{true: "with", false: "without"}[tables != nil], func(b *testing.B) {
			path := migrated(b, "CREATE TABLE o (id INTEGER PRIMARY KEY, a TEXT, b INT, c REAL, d TEXT)", MigrateOptions{Tables: tables})
			db := app(b, path, "synchronous(1)")
			st, err := db.Prepare("INSERT INTO o (a, b, c, d) VALUES (?, 1, 2.5, 'some longer text of a typical row')")
			if err != nil {
				b.Fatal(err)
			}
			for b.Loop() {
				if _, err := st.Exec("x"); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkIdle is read by the CPU time of the test program.
func BenchmarkIdle(b *testing.B) {
	path := migrated(b, "", MigrateOptions{})
	s := opened(b, path, "")
	for b.Loop() {
		quiet(b, s)
	}
}
