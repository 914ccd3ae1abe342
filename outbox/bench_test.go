package outbox_test

import (
	"context"
	"database/sql"
	"sync/atomic"
	"testing"

	"github.com/onewrite/onewrite/outbox"
)

// The two benchmarks run 32 callers at full durability; their ratio is what a
// Group is for.

func BenchmarkSQLiteOneByOne(b *testing.B) {
	db := openSQLite(b)
	db.SetMaxOpenConns(1) // without it the callers also fight for the lock
	benchmarkCallers(b, func(ctx context.Context, fn func(tx *sql.Tx) error) error {
		return outbox.InTx(ctx, db, fn)
	})
}

func BenchmarkSQLiteGroup(b *testing.B) {
	g := outbox.NewGroup(openSQLite(b))
	defer g.Close()
	benchmarkCallers(b, g.Do)
}

func benchmarkCallers(b *testing.B, do func(context.Context, func(tx *sql.Tx) error) error) {
	var id atomic.Int64
	ctx := context.Background()
	b.SetParallelism(16)
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			n := int(id.Add(1))
			if err := do(ctx, func(tx *sql.Tx) error { return insertOrder(ctx, tx, n) }); err != nil {
				b.Error(err)
				return
			}
		}
	})
}

func BenchmarkPublish(b *testing.B) {
	p := outbox.New(outbox.Postgres)
	e := outbox.Event{Topic: "order.placed", Key: "42", Payload: []byte(`{"id":42,"total":"12.50"}`), Headers: map[string]string{"tenant": "a"}}
	ctx := context.Background()
	b.ReportAllocs()
	for b.Loop() {
		if _, err := p.Statements(ctx, e); err != nil {
			b.Fatal(err)
		}
	}
}
