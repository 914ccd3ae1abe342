package postgres

import (
	"fmt"
	"runtime"
	"testing"
	"time"

	"github.com/onewrite/onewrite/internal/servers"
)

// BenchmarkDrain reads a backlog of a million events of 200 bytes into nothing.
func BenchmarkDrain(b *testing.B) {
	for _, version := range servers.Versions() {
		b.Run(fmt.Sprintf("postgres=%d", version), func(b *testing.B) {
			const n = 1_000_000
			url := newOutbox(b, servers.Postgres(b, version), MigrateOptions{})
			conn := dial(b, url)
			fill(b, conn, n, 200)
			sql(b, conn, `CHECKPOINT`)
			b.ReportAllocs()
			b.ResetTimer()
			for range b.N {
				s := open(b, url, "")
				var m runtime.MemStats
				most := uint64(0)
				start := time.Now()
				for seen, batches := 0, 0; seen < n; batches++ {
					seen += len(read(b, s).Events)
					if batches%100 == 0 {
						runtime.ReadMemStats(&m)
						most = max(most, m.HeapAlloc)
					}
				}
				b.ReportMetric(n/time.Since(start).Seconds(), "events/s")
				b.ReportMetric(float64(most>>20), "MB-heap")
				_ = s.Close()
			}
		})
	}
}
