package bench

import (
	"context"
	"database/sql"
	"fmt"
	"testing"
	"time"

	_ "github.com/jackc/pgx/v5/stdlib"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/inbox"
	"github.com/onewrite/onewrite/internal/servers"
)

// BenchmarkInbox compares a consumer's transaction, an UPDATE of one row and its
// commit, with the same transaction and the mark: one event, and batches of a
// hundred. The turns alternate; the ratio is of their medians. trips is what the mark
// adds, counted in round trips of an empty statement.
func BenchmarkInbox(b *testing.B) {
	pg := servers.Postgres(b, 15)
	db, err := sql.Open("pgx", pg.NewDatabase(b))
	if err != nil {
		b.Fatal(err)
	}
	defer db.Close()
	db.SetMaxOpenConns(1)
	if err := inbox.New(inbox.Postgres, "any").Migrate(b.Context(), db); err != nil {
		b.Fatal(err)
	}
	if _, err := db.Exec(`CREATE TABLE account (id int PRIMARY KEY, n int NOT NULL); INSERT INTO account SELECT i, 0 FROM generate_series(0, 99) i`); err != nil {
		b.Fatal(err)
	}
	effect := func(ctx context.Context, tx *sql.Tx, e onewrite.Event) error {
		_, err := tx.ExecContext(ctx, `UPDATE account SET n = n + 1 WHERE id = $1`, len(e.Key))
		return err
	}
	next := 0
	messages := func(n int) []inbox.Message {
		out := make([]inbox.Message, n)
		for i := range out {
			next++
			out[i].Event = onewrite.Event{ID: fmt.Sprintf("00000000-0000-4000-8000-%012d", next), Source: "shop", Key: fmt.Sprint("k", next%100), Seq: fmt.Sprintf("%020d", next)}
		}
		return out
	}
	bare := func(ms []inbox.Message) error {
		tx, err := db.BeginTx(b.Context(), nil)
		if err != nil {
			return err
		}
		for _, m := range ms {
			if err := effect(b.Context(), tx, m.Event); err != nil {
				return err
			}
		}
		return tx.Commit()
	}
	for _, batch := range []int{1, 100} {
		for name, in := range map[string]*inbox.Inbox{"ids": inbox.New(inbox.Postgres, "ids"), "ordered": inbox.New(inbox.Postgres, "ordered", inbox.Ordered())} {
			b.Run(fmt.Sprintf("%s/%d", name, batch), func(b *testing.B) {
				marked := func(ms []inbox.Message) error {
					_, err := in.ApplyAll(b.Context(), db, ms, effect)
					return err
				}
				var without, with, trip []float64
				for b.Loop() {
					for range 200 {
						without = append(without, took(b, func() error { return bare(messages(batch)) }))
						with = append(with, took(b, func() error { return marked(messages(batch)) }))
						trip = append(trip, took(b, func() error { _, err := db.ExecContext(b.Context(), `SELECT $1::int`, 1); return err }))
					}
				}
				w, o, t := median(with), median(without), median(trip)
				b.ReportMetric(o, "ms-without")
				b.ReportMetric(w, "ms-with")
				b.ReportMetric(w/o, "ratio")
				b.ReportMetric((w-o)/t, "trips")
				b.ReportMetric(0, "ns/op")
			})
		}
	}
}

// took is how many milliseconds f takes.
func took(b *testing.B, f func() error) float64 {
	start := time.Now()
	if err := f(); err != nil {
		b.Fatal(err)
	}
	return time.Since(start).Seconds() * 1000
}
