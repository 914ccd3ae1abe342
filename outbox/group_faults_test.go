package outbox_test

import (
	"context"
	"database/sql"
	"errors"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/onewrite/onewrite/outbox"
)

func TestGroupSurvivesPanicAndGoexit(t *testing.T) {
	db := openSQLite(t)
	g := outbox.NewGroup(db)
	defer g.Close()
	ctx := context.Background()
	var recovered any
	var gone sync.WaitGroup
	errs := together(t, g,
		func(tx *sql.Tx) error { return insertOrder(ctx, tx, 1) },
		func(tx *sql.Tx) error { return insertOrder(ctx, tx, 2) },
	)
	gone.Go(func() {
		defer func() { recovered = recover() }()
		_ = g.Do(ctx, func(tx *sql.Tx) error {
			_ = insertOrder(ctx, tx, 3)
			panic("boom")
		})
	})
	gone.Go(func() {
		_ = g.Do(ctx, func(tx *sql.Tx) error {
			_ = insertOrder(ctx, tx, 4)
			runtime.Goexit()
			return nil
		})
	})
	gone.Wait()
	if recovered != "boom" {
		t.Errorf("the panic became %v", recovered)
	}
	errs = append(errs, g.Do(ctx, func(tx *sql.Tx) error { return insertOrder(ctx, tx, 5) }))
	if err := errors.Join(errs...); err != nil {
		t.Error(err)
	}
	assertOrders(t, db, map[int]bool{1: true, 2: true, 5: true})
}

// TestGroupRepeatsWhatALostTransactionTook lets one function make SQLite roll
// back everything, which an interrupted write or a full disk does.
func TestGroupRepeatsWhatALostTransactionTook(t *testing.T) {
	db := openSQLite(t)
	g := outbox.NewGroup(db)
	defer g.Close()
	ctx := context.Background()
	var runs atomic.Int32
	good := func(id int) func(*sql.Tx) error {
		return func(tx *sql.Tx) error {
			runs.Add(1)
			return insertOrder(ctx, tx, id)
		}
	}
	errs := together(t, g,
		good(1), good(2),
		func(tx *sql.Tx) error {
			_, err := tx.Exec("INSERT OR ROLLBACK INTO orders (id) VALUES (1)")
			return err
		},
		good(4),
		func(tx *sql.Tx) error { // and one that hides it
			_, _ = tx.Exec("INSERT OR ROLLBACK INTO orders (id) VALUES (4)")
			return nil
		},
	)
	if errs[0] != nil || errs[1] != nil || errs[3] != nil {
		t.Errorf("innocent callers got %v", errs)
	}
	if errs[2] == nil || !strings.Contains(errs[2].Error(), "UNIQUE") || errs[4] == nil {
		t.Errorf("the culprits got %v and %v", errs[2], errs[4])
	}
	if runs.Load() <= 3 {
		t.Error("the transaction was not lost; the test tests nothing")
	}
	assertOrders(t, db, map[int]bool{1: true, 2: true, 4: true})
}

func TestGroupIsolatesAFailedCommit(t *testing.T) {
	db := openSQLite(t)
	g := outbox.NewGroup(db)
	defer g.Close()
	ctx := context.Background()
	errs := together(t, g,
		func(tx *sql.Tx) error { return insertOrder(ctx, tx, 1) },
		func(tx *sql.Tx) error {
			_, err := tx.Exec("INSERT INTO orders VALUES (2, 99)") // refused at COMMIT
			return err
		},
		func(tx *sql.Tx) error { return insertOrder(ctx, tx, 3) },
	)
	if errs[0] != nil || errs[2] != nil {
		t.Errorf("innocent callers got %v", errs)
	}
	if errs[1] == nil || !strings.Contains(errs[1].Error(), "FOREIGN KEY") {
		t.Errorf("the culprit got %v", errs[1])
	}
	assertOrders(t, db, map[int]bool{1: true, 3: true})
}

func TestGroupTellsWhoEndedTheTransaction(t *testing.T) {
	db := openSQLite(t)
	g := outbox.NewGroup(db)
	defer g.Close()
	ctx := context.Background()
	errs := together(t, g,
		func(tx *sql.Tx) error { return insertOrder(ctx, tx, 1) },
		func(tx *sql.Tx) error { return tx.Commit() },
		func(tx *sql.Tx) error { return insertOrder(ctx, tx, 3) },
	)
	if errs[0] == nil || errs[1] == nil || !strings.Contains(errs[0].Error(), "ended the shared transaction") {
		t.Errorf("%v", errs)
	}
	if errs[2] != nil {
		t.Errorf("the next transaction: %v", errs[2])
	}
	assertOrders(t, db, map[int]bool{1: true, 3: true}) // committed by him, with an unknown outcome told
}

// TestGroupInterruptedWrite cancels statements while they run; SQLite may roll
// back the whole transaction then.
func TestGroupInterruptedWrite(t *testing.T) {
	db := openSQLite(t)
	g := outbox.NewGroup(db)
	defer g.Close()
	want := map[int]bool{}
	var callers sync.WaitGroup
	for i := range 40 {
		if i%4 != 3 {
			want[i] = true
		}
		callers.Go(func() {
			ctx, cancel := context.WithCancel(context.Background())
			defer cancel()
			err := g.Do(ctx, func(tx *sql.Tx) error {
				if i%4 != 3 {
					return insertOrder(ctx, tx, i)
				}
				stop := time.AfterFunc(time.Millisecond, cancel)
				defer stop.Stop()
				_, err := tx.ExecContext(ctx, `WITH RECURSIVE n(x) AS (SELECT 1000 UNION ALL SELECT x + 1 FROM n WHERE x < 100000000)
					INSERT INTO orders (id) SELECT x FROM n`)
				return err
			})
			if (err == nil) != (i%4 != 3) {
				t.Errorf("caller %d: %v", i, err)
			}
		})
	}
	callers.Wait()
	assertOrders(t, db, want)
}
