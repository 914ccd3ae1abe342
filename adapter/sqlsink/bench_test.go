package sqlsink_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/adapter/sqlsink"
)

// rowsOf makes events of new rows, as an order has them.
func rowsOf(from, n int) []onewrite.Event {
	events := make([]onewrite.Event, n)
	for i := range events {
		id := from + i
		events[i] = ev("c", "orders", row{"id": id}, nil, row{"id": id, "customer": fmt.Sprint("customer ", id%1000), "total": "19.99", "placed": "2026-11-29T08:41:05.366723Z", "paid": id%2 == 0, "note": "a note that says something about this order"})
	}
	return events
}

const benchTable = "CREATE TABLE orders (id bigint PRIMARY KEY, customer varchar(100), total decimal(10,2), placed %s, paid boolean, note text)"

// BenchmarkWriteAt writes 1,000 new rows at a time, with their place.
func BenchmarkWriteAt(b *testing.B) {
	for _, kind := range kinds {
		b.Run(kind, func(b *testing.B) {
			x := newTarget(b, kind, false)
			at6 := map[string]string{sqlsink.Postgres: "timestamptz", sqlsink.MySQL: "datetime(6)", sqlsink.SQLite: "text"}[kind]
			if _, err := x.db.Exec(fmt.Sprintf(benchTable, at6)); err != nil {
				b.Fatal(err)
			}
			s := x.sink(b)
			take(b, s)
			n, best := 0, time.Hour
			for b.Loop() {
				b.StopTimer()
				ms := at(rowsOf(n, 1000)...)
				b.StartTimer()
				begin := time.Now()
				if _, err := s.WriteAt(b.Context(), ms, []byte("place")); err != nil {
					b.Fatal(err)
				}
				best = min(best, time.Since(begin))
				n += 1000
			}
			b.ReportMetric(float64(n)/b.Elapsed().Seconds(), "rows/s")
			b.ReportMetric(1000/best.Seconds(), "best-rows/s")
		})
	}
}

// BenchmarkFloor is what the driver alone does: upserts of 1,000 rows as VALUES with
// values that are bound as Go has them, one commit each.
func BenchmarkFloor(b *testing.B) {
	x := newTarget(b, sqlsink.Postgres, false)
	if _, err := x.db.Exec(fmt.Sprintf(benchTable, "timestamptz")); err != nil {
		b.Fatal(err)
	}
	c, err := pgx.Connect(b.Context(), x.cfg.URL)
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close(b.Context())
	var values []string
	for i := range 1000 {
		p := i * 6
		values = append(values, fmt.Sprintf("($%d,$%d,$%d,$%d,$%d,$%d)", p+1, p+2, p+3, p+4, p+5, p+6))
	}
	sql := "INSERT INTO orders VALUES " + strings.Join(values, ",") + " ON CONFLICT (id) DO UPDATE SET customer = EXCLUDED.customer, total = EXCLUDED.total, placed = EXCLUDED.placed, paid = EXCLUDED.paid, note = EXCLUDED.note"
	n, best := 0, time.Hour
	for b.Loop() {
		begin := time.Now()
		var args []any
		for i := range 1000 {
			id := n + i
			args = append(args, int64(id), fmt.Sprint("customer ", id%1000), "19.99", "2026-11-29T08:41:05.366723Z", id%2 == 0, "a note that says something about this order")
		}
		if _, err := c.Exec(b.Context(), sql, args...); err != nil {
			b.Fatal(err)
		}
		best = min(best, time.Since(begin))
		n += 1000
	}
	b.ReportMetric(float64(n)/b.Elapsed().Seconds(), "rows/s")
	b.ReportMetric(1000/best.Seconds(), "best-rows/s")
}
