package sqlite

import (
	"context"
	"sync"
	"testing"
	"time"
)

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
