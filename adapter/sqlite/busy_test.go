package sqlite

import (
	"context"
	"strings"
	"sync"
	"testing"
	"time"
)

// A file that another program holds is named, with how to find the program, and the
// source opens when it is free.
func TestOpenOfAHeldFile(t *testing.T) {
	for _, mode := range []string{"NORMAL", "EXCLUSIVE"} { // held against writers, and against all
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			path := migrated(t, "", MigrateOptions{})
			db := app(t, path, "locking_mode("+mode+")")
			exec1(t, db, "BEGIN EXCLUSIVE")
			s, err := Open(t.Context(), Config{Name: "app", Path: path, BusID: "bus"}, "")
			if err == nil {
				_ = s.Close()
				t.Fatal("opened a file that another program holds")
			}
			for _, text := range []string{"another program has held " + path + " locked for 5s", "fuser -v " + path, "end its transaction"} {
				if !strings.Contains(err.Error(), text) {
					t.Errorf("no %q in: %v", text, err)
				}
			}
			if err := db.Close(); err != nil {
				t.Fatal(err)
			}
			_ = opened(t, path, "").Close()
		})
	}
}

// An application that commits without a pause does not keep the source from the
// one small write that it begins with.
func TestOpenBesideABusyWriter(t *testing.T) {
	path := migrated(t, "CREATE TABLE x (a)", MigrateOptions{})
	db := app(t, path)
	ctx, stop := context.WithCancel(t.Context())
	var busy sync.WaitGroup
	busy.Go(func() {
		for ctx.Err() == nil {
			if _, err := db.Exec("INSERT INTO x VALUES (zeroblob(20000))"); err != nil {
				t.Error(err)
				return
			}
		}
	})
	worst := time.Duration(0)
	for range 20 {
		start := time.Now()
		s := opened(t, path, "")
		worst = max(worst, time.Since(start))
		_ = s.Close()
	}
	stop()
	busy.Wait()
	t.Logf("the longest took %v", worst)
}
