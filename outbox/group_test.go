package outbox_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/onewrite/onewrite/outbox"
)

func insertOrder(ctx context.Context, tx *sql.Tx, id int) error {
	if _, err := tx.ExecContext(ctx, "INSERT INTO orders (id) VALUES (?)", id); err != nil {
		return err
	}
	return outbox.New(outbox.SQLite).Publish(ctx, tx, outbox.Event{Topic: "order.placed", Key: fmt.Sprint(id)})
}

// assertOrders expects each of the ids with its event, and no other.
func assertOrders(tb testing.TB, db *sql.DB, want map[int]bool) {
	tb.Helper()
	keys := map[string]bool{}
	for _, e := range stored(tb, db) {
		if keys[e.Key] {
			tb.Errorf("order %s has two events", e.Key)
		}
		keys[e.Key] = true
	}
	var n int
	if err := db.QueryRow("SELECT count(*) FROM orders").Scan(&n); err != nil {
		tb.Fatal(err)
	}
	if n != len(want) || len(keys) != len(want) {
		tb.Errorf("%d orders and %d events are stored, want %d", n, len(keys), len(want))
	}
	for id := range want {
		if !keys[fmt.Sprint(id)] {
			tb.Errorf("order %d is lost", id)
		}
	}
}

func within(tb testing.TB, what string, cond func() bool) {
	tb.Helper()
	for deadline := time.Now().Add(20 * time.Second); !cond(); runtime.Gosched() {
		if time.Now().After(deadline) {
			tb.Fatalf("not within 20 s: %s", what)
		}
	}
}

// together gets fns into one shared transaction: while a first caller holds the
// runner, the others queue up. It returns the outcomes.
func together(tb testing.TB, g *outbox.Group, fns ...func(tx *sql.Tx) error) []error {
	tb.Helper()
	errs := make([]error, len(fns))
	entered, release := make(chan struct{}), make(chan struct{})
	var all sync.WaitGroup
	all.Go(func() {
		_ = g.Do(context.Background(), func(*sql.Tx) error {
			close(entered)
			<-release
			return errors.New("only the door-keeper")
		})
	})
	<-entered
	for i, fn := range fns {
		before := outbox.Waiting(g)
		all.Go(func() { errs[i] = g.Do(context.Background(), fn) })
		within(tb, "a caller joins", func() bool { return outbox.Waiting(g) > before })
	}
	close(release)
	all.Wait()
	return errs
}

func TestGroupKeepsCallersApart(t *testing.T) {
	db := openSQLite(t)
	g := outbox.NewGroup(db)
	defer g.Close()
	want := map[int]bool{}
	var mu sync.Mutex
	var callers sync.WaitGroup
	boom := errors.New("boom")
	for i := range 400 {
		callers.Go(func() {
			ctx := context.Background()
			err := g.Do(ctx, func(tx *sql.Tx) error {
				if err := insertOrder(ctx, tx, i); err != nil {
					return err
				}
				switch i % 4 {
				case 1:
					return boom
				case 2:
					return insertOrder(ctx, tx, i) // the key is there
				}
				return nil
			})
			switch {
			case i%4 == 1 && err != boom, i%4 == 2 && (err == nil || !strings.Contains(err.Error(), "UNIQUE")):
				t.Errorf("caller %d: %v", i, err)
			case i%4 == 0 || i%4 == 3:
				if err != nil {
					t.Errorf("caller %d: %v", i, err)
				}
				mu.Lock()
				want[i] = true
				mu.Unlock()
			}
		})
	}
	callers.Wait()
	assertOrders(t, db, want)
}

func TestGroupAnswersAfterTheCommit(t *testing.T) {
	db := openSQLite(t)
	g := outbox.NewGroup(db)
	defer g.Close()
	var callers sync.WaitGroup
	for i := range 64 {
		callers.Go(func() {
			ctx := context.Background()
			if err := g.Do(ctx, func(tx *sql.Tx) error { return insertOrder(ctx, tx, i) }); err != nil {
				t.Error(err)
			}
			var n int // seen by another connection
			if err := db.QueryRow("SELECT count(*) FROM orders WHERE id = ?", i).Scan(&n); err != nil || n != 1 {
				t.Errorf("order %d was not there when Do returned: %d, %v", i, n, err)
			}
		})
	}
	callers.Wait()
}

func TestGroupSharesACommitAndRingsAfterIt(t *testing.T) {
	db := openSQLite(t)
	g := outbox.NewGroup(db)
	defer g.Close()
	ctx := context.Background()
	var seen [8]int
	var fns []func(tx *sql.Tx) error
	bell := outbox.Bell()
	for i := range seen {
		fns = append(fns, func(tx *sql.Tx) error {
			select {
			case <-bell:
				t.Error("the bell rang before the commit")
			default:
			}
			if err := tx.QueryRow("SELECT count(*) FROM orders").Scan(&seen[i]); err != nil {
				return err
			}
			var n int // another connection sees nothing before the one commit
			if err := db.QueryRow("SELECT count(*) FROM orders").Scan(&n); err != nil || n != 0 {
				t.Errorf("caller %d: %d orders are committed already, %v", i, n, err)
			}
			return insertOrder(ctx, tx, i)
		})
	}
	for _, err := range together(t, g, fns...) {
		if err != nil {
			t.Error(err)
		}
	}
	for i, n := range seen {
		if n != i {
			t.Errorf("caller %d saw %d orders, want %d: not one after the other", i, n, i)
		}
	}
	select {
	case <-bell:
	default:
		t.Error("the bell did not ring")
	}
}

func TestGroupHoldsTheWriteLockFromTheStart(t *testing.T) {
	db := openSQLite(t)
	g := outbox.NewGroup(db)
	defer g.Close()
	other := openSame(t, db)
	err := g.Do(context.Background(), func(tx *sql.Tx) error {
		if _, err := other.Exec("INSERT INTO orders (id) VALUES (1)"); err == nil {
			t.Error("another connection could write in between")
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// openSame opens db's file a second time, without patience.
func openSame(tb testing.TB, db *sql.DB) *sql.DB {
	tb.Helper()
	var n int
	var name, file string
	if err := db.QueryRow("PRAGMA database_list").Scan(&n, &name, &file); err != nil {
		tb.Fatal(err)
	}
	other, err := sql.Open("sqlite", "file:"+file)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = other.Close() })
	return other
}

func TestGroupTellsThatTheDatabaseIsBusy(t *testing.T) {
	db := openSQLite(t)
	other := openSame(t, db)
	conn, err := db.Conn(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := conn.ExecContext(context.Background(), "BEGIN IMMEDIATE"); err != nil {
		t.Fatal(err)
	}
	g := outbox.NewGroup(other)
	defer g.Close()
	err = g.Do(context.Background(), func(*sql.Tx) error {
		t.Error("the function ran without a transaction")
		return nil
	})
	if err == nil || !strings.Contains(err.Error(), "busy_timeout") {
		t.Errorf("%v", err)
	}
	if _, err := conn.ExecContext(context.Background(), "ROLLBACK"); err != nil {
		t.Fatal(err)
	}
	if err := g.Do(context.Background(), func(tx *sql.Tx) error { return insertOrder(context.Background(), tx, 1) }); err != nil {
		t.Errorf("after the other writer had gone: %v", err)
	}
}

func TestGroupHeedsTheCallersContext(t *testing.T) {
	db := openSQLite(t)
	g := outbox.NewGroup(db)
	defer g.Close()
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	if err := g.Do(ended, func(*sql.Tx) error { t.Error("ran"); return nil }); err != context.Canceled {
		t.Errorf("ended before: %v", err)
	}

	// Ended while the function runs: undone.
	ctx, cancel := context.WithCancel(context.Background())
	err := g.Do(ctx, func(tx *sql.Tx) error {
		err := insertOrder(ctx, tx, 1)
		cancel()
		return err
	})
	if err != context.Canceled {
		t.Errorf("ended while running: %v", err)
	}

	// Ended while waiting: Do returns at once, though the runner is held up.
	entered, release := make(chan struct{}), make(chan struct{})
	var first sync.WaitGroup
	first.Go(func() {
		_ = g.Do(context.Background(), func(tx *sql.Tx) error {
			close(entered)
			<-release
			return insertOrder(context.Background(), tx, 2)
		})
	})
	<-entered
	ctx, cancel = context.WithCancel(context.Background())
	waiting := make(chan error)
	go func() {
		waiting <- g.Do(ctx, func(*sql.Tx) error { t.Error("ran after it was withdrawn"); return nil })
	}()
	within(t, "a caller joins", func() bool { return outbox.Waiting(g) == 1 })
	cancel()
	if err := <-waiting; err != context.Canceled {
		t.Errorf("ended while waiting: %v", err)
	}
	close(release)
	first.Wait()
	assertOrders(t, db, map[int]bool{2: true})
}

func TestGroupCloseWaitsForTheQueue(t *testing.T) {
	db := openSQLite(t)
	g := outbox.NewGroup(db)
	ctx := context.Background()
	entered, release := make(chan struct{}), make(chan struct{})
	var released atomic.Bool
	var callers sync.WaitGroup
	want := map[int]bool{}
	for i := range 4 {
		want[i] = true
		callers.Go(func() {
			err := g.Do(ctx, func(tx *sql.Tx) error {
				if i == 0 {
					close(entered)
					<-release
				}
				return insertOrder(ctx, tx, i)
			})
			if err != nil {
				t.Error(err)
			}
		})
		if i == 0 {
			<-entered
		}
	}
	within(t, "the others queue", func() bool { return outbox.Waiting(g) == 3 })
	callers.Go(func() {
		_ = g.Close()
		if !released.Load() {
			t.Error("Close did not wait")
		}
		var n int
		if err := db.QueryRow("SELECT count(*) FROM orders").Scan(&n); err != nil || n != 4 {
			t.Errorf("%d orders are committed when Close returns, %v", n, err)
		}
	})
	within(t, "the group is closed", func() bool {
		ended, cancel := context.WithCancel(ctx)
		time.AfterFunc(time.Millisecond, cancel)
		err := g.Do(ended, func(*sql.Tx) error { return nil })
		return err != nil && strings.Contains(err.Error(), "closed")
	})
	released.Store(true)
	close(release)
	callers.Wait()
	assertOrders(t, db, want)
}

func TestGroupCloseDrainsAndLeavesNothing(t *testing.T) {
	db := openSQLite(t)
	before := runtime.NumGoroutine()
	g := outbox.NewGroup(db)
	ctx := context.Background()
	want := map[int]bool{}
	var mu sync.Mutex
	var callers sync.WaitGroup
	var refused atomic.Int32
	started := make(chan struct{}, 200)
	for i := range 200 {
		callers.Go(func() {
			started <- struct{}{}
			if err := g.Do(ctx, func(tx *sql.Tx) error { return insertOrder(ctx, tx, i) }); err != nil {
				refused.Add(1)
				return
			}
			mu.Lock()
			want[i] = true
			mu.Unlock()
		})
	}
	<-started
	if err := g.Close(); err != nil {
		t.Fatal(err)
	}
	if n := outbox.Waiting(g); n != 0 {
		t.Errorf("%d callers still wait after Close", n)
	}
	callers.Wait()
	if err := g.Do(ctx, func(*sql.Tx) error { return nil }); err == nil || !strings.Contains(err.Error(), "closed") {
		t.Errorf("after Close: %v", err)
	}
	if err := g.Close(); err != nil {
		t.Error(err)
	}
	assertOrders(t, db, want)
	within(t, "no goroutine is left", func() bool { return runtime.NumGoroutine() <= before+1 })
}
