package inbox_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/inbox"
)

func TestRepeatsHaveNoEffect(t *testing.T) {
	each(t, func(t *testing.T, r rig) {
		for name, in := range map[string]*inbox.Inbox{
			"ids":     inbox.New(r.dialect, "ids"),
			"ordered": inbox.New(r.dialect, "ordered", inbox.Ordered()),
		} {
			r.exec(t, `DELETE FROM effect`)
			for n := 1; n <= 3; n++ {
				r.apply(t, in, message(n, "a"), inbox.Applied)
				r.apply(t, in, message(n, "a"), inbox.Duplicate)
			}
			r.apply(t, in, message(1, "a"), inbox.Duplicate)
			r.apply(t, in, message(4, "b"), inbox.Applied)
			r.apply(t, in, message(5, ""), inbox.Applied) // no key, no order
			r.apply(t, in, message(2, "a"), inbox.Duplicate)
			r.apply(t, in, message(5, ""), inbox.Duplicate)
			other := message(1, "a")
			other.Source = "bank"
			r.apply(t, in, other, inbox.Applied)
			if n := r.count(t, `SELECT count(*) FROM effect`); n != 6 {
				t.Errorf("%s: %d effects, want 6", name, n)
			}
		}
		// Consumers do not know each other.
		r.apply(t, inbox.New(r.dialect, "third"), message(1, "a"), inbox.Applied)
	})
}

func TestOrderedKeepsOnePlaceAKey(t *testing.T) {
	each(t, func(t *testing.T, r rig) {
		in := inbox.New(r.dialect, "c", inbox.Ordered())
		for n := range 50 {
			r.apply(t, in, message(n+1, []string{"a", "b", "ä\x01"}[n%3]), inbox.Applied)
		}
		if r.dialect == inbox.Postgres {
			if n := r.count(t, `SELECT count(*) FROM onewrite_inbox.watermark`); n != 3 {
				t.Errorf("%d places for 3 keys", n)
			}
			if n := r.count(t, `SELECT count(*) FROM onewrite_inbox.seen`); n != 0 {
				t.Errorf("%d ids are kept of ordered events", n)
			}
		}
		late := message(1, "a")
		late.ID, late.Unordered = "skipped-once", true
		r.apply(t, in, late, inbox.Applied)
		r.apply(t, in, late, inbox.Duplicate)
	})
}

func TestGap(t *testing.T) {
	each(t, func(t *testing.T, r rig) {
		in := inbox.New(r.dialect, "c", inbox.Ordered())
		at := func(n, after int) inbox.Message {
			m := message(n, "k")
			m.Lane, m.Place, m.After = "stream", fmt.Sprintf("%05d", n), fmt.Sprintf("%05d", after)
			return m
		}
		r.apply(t, in, at(7, 6), inbox.Applied) // a lane begins where it begins
		r.apply(t, in, at(8, 7), inbox.Applied)
		r.apply(t, in, at(10, 9), inbox.Gap)
		r.apply(t, in, at(10, 9), inbox.Gap) // nothing was changed by it
		outcomes, err := in.ApplyAll(t.Context(), r.db, []inbox.Message{at(8, 7), at(9, 8), at(11, 10), at(12, 11)}, r.effect)
		if want := []inbox.Outcome{inbox.Duplicate, inbox.Applied, inbox.Gap, 0}; !slices.Equal(outcomes, want) || !errors.Is(err, onewrite.ErrGap) {
			t.Fatalf("%v (%v), want %v", outcomes, err, want)
		}
		var gap *inbox.GapError
		if !errors.As(err, &gap) || gap.Last != "00009" || gap.After != "00010" || gap.Lane != "stream" {
			t.Errorf("the gap tells %+v", gap)
		}
		r.apply(t, in, at(9, 8), inbox.Applied)
		r.apply(t, in, at(10, 9), inbox.Applied)
		if n := r.count(t, `SELECT count(*) FROM effect`); n != 4 {
			t.Errorf("%d effects, want 4", n)
		}
		if err := in.Forget(t.Context(), r.db, "shop", "stream"); err != nil {
			t.Fatal(err)
		}
		r.apply(t, in, at(20, 19), inbox.Applied)
	})
}

func TestForgetASource(t *testing.T) {
	each(t, func(t *testing.T, r rig) {
		for _, opts := range [][]inbox.Option{nil, {inbox.Ordered()}} {
			in := inbox.New(r.dialect, fmt.Sprint("c", len(opts)), opts...)
			bank := message(1, "a")
			bank.Source = "bank"
			r.apply(t, in, message(1, "a"), inbox.Applied)
			r.apply(t, in, bank, inbox.Applied)
			if err := in.Forget(t.Context(), r.db, "shop", ""); err != nil {
				t.Fatal(err)
			}
			r.apply(t, in, message(1, "a"), inbox.Applied)
			r.apply(t, in, bank, inbox.Duplicate)
		}
	})
}

func TestNothingStaysOfWhatFailed(t *testing.T) {
	each(t, func(t *testing.T, r rig) {
		for _, opts := range [][]inbox.Option{nil, {inbox.Ordered()}} {
			in := inbox.New(r.dialect, fmt.Sprint("c", len(opts)), opts...)
			boom := errors.New("boom")
			got, err := in.Apply(t.Context(), r.db, message(1, "a"), func(ctx context.Context, tx *sql.Tx) error {
				if err := r.effect(ctx, tx, event(1, "a")); err != nil {
					return err
				}
				return boom
			})
			var effect *inbox.EffectError
			if got != 0 || !errors.Is(err, boom) || !errors.As(err, &effect) || effect.ID != "id-000001" {
				t.Fatalf("%v, %v", got, err)
			}
			func() {
				defer func() { _ = recover() }()
				_, _ = in.Apply(t.Context(), r.db, message(1, "a"), func(context.Context, *sql.Tx) error { panic("boom") })
			}()
			_, err = in.ApplyAll(t.Context(), r.db, []inbox.Message{message(1, "a"), message(2, "b")}, func(ctx context.Context, tx *sql.Tx, e onewrite.Event) error {
				if e.Key == "b" {
					return boom
				}
				return r.effect(ctx, tx, e)
			})
			if !errors.Is(err, boom) {
				t.Fatal(err)
			}
			r.apply(t, in, message(1, "a"), inbox.Applied)
			r.apply(t, in, message(2, "b"), inbox.Applied)
		}
		if n := r.count(t, `SELECT count(*) FROM effect`); n != 4 {
			t.Errorf("%d effects, want 4", n)
		}
	})
}

func TestBatches(t *testing.T) {
	each(t, func(t *testing.T, r rig) {
		for _, opts := range [][]inbox.Option{nil, {inbox.Ordered()}} {
			in := inbox.New(r.dialect, fmt.Sprint("c", len(opts)), opts...)
			r.apply(t, in, message(2, "a"), inbox.Applied)
			batch := []inbox.Message{message(2, "a"), message(3, "a"), message(3, "a"), message(4, "b"), message(5, ""), message(5, ""), message(6, "a")}
			outcomes, err := in.ApplyAll(t.Context(), r.db, batch, r.effect)
			want := []inbox.Outcome{inbox.Duplicate, inbox.Applied, inbox.Duplicate, inbox.Applied, inbox.Applied, inbox.Duplicate, inbox.Applied}
			if err != nil || !slices.Equal(outcomes, want) {
				t.Fatalf("%v (%v), want %v", outcomes, err, want)
			}
			outcomes, err = in.ApplyAll(t.Context(), r.db, batch, r.effect)
			if err != nil || slices.ContainsFunc(outcomes, func(o inbox.Outcome) bool { return o != inbox.Duplicate }) {
				t.Fatalf("the repeat: %v (%v)", outcomes, err)
			}
		}
		// More than one statement holds.
		in := inbox.New(r.dialect, "large")
		batch := make([]inbox.Message, 20_000)
		for i := range batch {
			batch[i] = message(i, "a")
		}
		effects := 0
		_, err := in.ApplyAll(t.Context(), r.db, batch, func(context.Context, *sql.Tx, onewrite.Event) error { effects++; return nil })
		if err != nil || effects != len(batch) {
			t.Fatalf("%d effects of %d: %v", effects, len(batch), err)
		}
	})
}

// Ten thousand deliveries of a few events at once: each has its effect once.
func TestConcurrentDuplicates(t *testing.T) {
	const events = 100
	each(t, func(t *testing.T, r rig) {
		for _, opts := range [][]inbox.Option{nil, {inbox.Ordered()}} {
			r.exec(t, `DELETE FROM effect`)
			in := inbox.New(r.dialect, fmt.Sprint("c", len(opts)), opts...)
			deliveries := 10_000
			if len(opts) > 0 || strings.HasSuffix(t.Name(), "postgres=15") || testing.Short() {
				deliveries = 1500
			}
			order := make([]int, deliveries)
			for i := range order {
				order[i] = i % events
			}
			if len(opts) == 0 {
				rand.Shuffle(len(order), func(i, j int) { order[i], order[j] = order[j], order[i] })
			}
			var applied, failed atomic.Int64
			var wg sync.WaitGroup
			feed := make(chan int)
			for range 64 {
				wg.Go(func() {
					for n := range feed {
						m := message(n+1, fmt.Sprint("key-", n)) // a key each: their order is not at stake
						o, err := in.Apply(context.Background(), r.db, m, func(ctx context.Context, tx *sql.Tx) error { return r.effect(ctx, tx, m.Event) })
						if err != nil {
							failed.Add(1)
							t.Error(err)
						} else if o == inbox.Applied {
							applied.Add(1)
						}
					}
				})
			}
			for _, n := range order {
				feed <- n
			}
			close(feed)
			wg.Wait()
			if applied.Load() != events || failed.Load() != 0 {
				t.Errorf("%d applied, %d failed; want %d and 0", applied.Load(), failed.Load(), events)
			}
			if n, ids := r.count(t, `SELECT count(*) FROM effect`), r.count(t, `SELECT count(DISTINCT id) FROM effect`); n != events || ids != events {
				t.Errorf("%d effects of %d events, want %d", n, ids, events)
			}
		}
	})
}

// Batches that overlap in another order must not wait for each other for ever.
func TestConcurrentBatches(t *testing.T) {
	each(t, func(t *testing.T, r rig) {
		for _, opts := range [][]inbox.Option{nil, {inbox.Ordered()}} {
			r.exec(t, `DELETE FROM effect`)
			in := inbox.New(r.dialect, fmt.Sprint("c", len(opts)), opts...)
			var wg sync.WaitGroup
			for range 8 {
				wg.Go(func() {
					for n := range 30 {
						batch := make([]inbox.Message, 20)
						for i, k := range rand.Perm(20) {
							batch[i] = message(n+1, fmt.Sprint("key-", k))
							batch[i].ID = fmt.Sprint(n, "-", k)
						}
						if _, err := in.ApplyAll(context.Background(), r.db, batch, r.effect); err != nil {
							t.Error(err)
							return
						}
					}
				})
			}
			wg.Wait()
			if n := r.count(t, `SELECT count(*) FROM effect`); n != 600 {
				t.Errorf("%d effects, want 600", n)
			}
		}
	})
}

// What is remembered is bounded, and the last ids are in it.
func TestIDsAreBounded(t *testing.T) {
	each(t, func(t *testing.T, r rig) {
		table := map[inbox.Dialect]string{inbox.Postgres: "onewrite_inbox.seen", inbox.SQLite: "onewrite_inbox_seen"}[r.dialect]
		in := inbox.New(r.dialect, "c", inbox.Keep(80))
		other := inbox.New(r.dialect, "other")
		for n := range 50 {
			r.apply(t, other, message(n, "a"), inbox.Applied)
		}
		most := 0
		for n := range 1000 {
			r.apply(t, in, message(n, "a"), inbox.Applied)
			for back := range 3 {
				r.apply(t, in, message(max(n-back*30, 0), "a"), inbox.Duplicate)
			}
			if n%50 == 0 {
				most = max(most, r.count(t, `SELECT count(*) FROM `+table+` WHERE consumer = 'c'`))
			}
		}
		if most > 90 || most < 80 {
			t.Errorf("%d ids are kept of 80", most)
		}
		if n := r.count(t, `SELECT count(*) FROM `+table+` WHERE consumer = 'other'`); n != 50 {
			t.Errorf("another consumer has %d of its 50 ids", n)
		}
	})
}

// The watermark takes constant space, and one round trip.
func TestWatermarkIsConstant(t *testing.T) {
	r := newPostgres(t, 18)
	in := inbox.New(r.dialect, "c", inbox.Ordered())
	const perBatch = 1000
	total := 1_000_000
	if testing.Short() {
		total = 50_000
	}
	nothing := func(context.Context, *sql.Tx, onewrite.Event) error { return nil }
	var after10 int
	batch := make([]inbox.Message, perBatch)
	for n := 0; n < total; n += perBatch {
		for i := range batch {
			batch[i] = message(n+i+1, fmt.Sprint("key-", (n+i)%100))
		}
		if _, err := in.ApplyAll(t.Context(), r.db, batch, nothing); err != nil {
			t.Fatal(err)
		}
		if n == total/10 {
			after10 = r.count(t, `SELECT pg_total_relation_size('onewrite_inbox.watermark')`)
		}
	}
	if n := r.count(t, `SELECT count(*) FROM onewrite_inbox.watermark`); n != 100 {
		t.Errorf("%d places for 100 keys", n)
	}
	// Old versions of the rows are reused by the updates after them.
	if size := r.count(t, `SELECT pg_total_relation_size('onewrite_inbox.watermark')`); after10 == 0 || size > 2*after10 || size > 1<<20 {
		t.Errorf("%d bytes after %d events, %d after a tenth of them", size, total, after10)
	}
}

func TestUse(t *testing.T) {
	r := newSQLite(t)
	if _, err := inbox.New(0, "c").Apply(t.Context(), r.db, message(1, "a"), nil); err == nil || !strings.Contains(err.Error(), "dialect") {
		t.Error(err)
	}
	if err := inbox.New(0, "c").Migrate(t.Context(), r.db); err == nil {
		t.Error("an unknown dialect has tables")
	}
	if _, err := inbox.New(r.dialect, "").Apply(t.Context(), r.db, message(1, "a"), nil); err == nil || !strings.Contains(err.Error(), "name") {
		t.Error(err)
	}
	if _, err := inbox.New(r.dialect, "c").Apply(t.Context(), r.db, inbox.Message{}, nil); !errors.Is(err, onewrite.ErrRejected) {
		t.Error(err)
	}
	r.exec(t, `DROP TABLE onewrite_inbox_seen`)
	if _, err := inbox.New(r.dialect, "c").Apply(t.Context(), r.db, message(1, "a"), nil); err == nil || !strings.Contains(err.Error(), "onewrite migrate --inbox") {
		t.Errorf("the error has no cure: %v", err)
	}
}
