package postgres

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/internal/servers"
)

func TestSecondReaderStandsBy(t *testing.T) {
	each(t, func(t *testing.T, pg *servers.PG) {
		super, app, relay := poor(t, pg)
		mustPsql(t, app, `SELECT onewrite.publish('a', 'k', '1')`)
		s := open(t, relay, "")
		_, pos := readN(t, s, 1)
		// Nobody calls Read now, as when the bus is full; the reader lives all the same.
		for end := time.Now().Add(frozenAfter + 2*time.Second); time.Now().Before(end); time.Sleep(250 * time.Millisecond) {
			if _, err := tryOpen(t, Config{URL: relay}, pos); !errors.Is(err, onewrite.ErrStandby) {
				t.Fatalf("a second reader: %v", err)
			}
		}
		// Another database of the cluster has an outbox of its own.
		open(t, newOutbox(t, pg, MigrateOptions{}), "")
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		nothing(t, open(t, relay, pos), dial(t, super))
	})
}

func TestFrozenReaderIsEvicted(t *testing.T) {
	each(t, func(t *testing.T, pg *servers.PG) {
		_, app, relay := poor(t, pg)
		mustPsql(t, app, `SELECT onewrite.publish('a', 'k', '1')`)
		s := open(t, relay, "")
		// A frozen process: it holds the session and says nothing any more.
		s.session.Lock()
		frozen := time.Now()
		var log logs
		var next *Source
		for next == nil {
			var err error
			if next, err = tryOpen(t, Config{URL: relay, Logger: log.logger()}, ""); err != nil && !errors.Is(err, onewrite.ErrStandby) {
				t.Fatal(err)
			}
			if time.Since(frozen) > patience {
				t.Fatal("nobody took over")
			}
			time.Sleep(100 * time.Millisecond)
		}
		if took := time.Since(frozen); took < frozenAfter-2*time.Second {
			t.Errorf("taken over after %v, while the holder might live", took)
		}
		if !strings.Contains(log.String(), "frozen") {
			t.Errorf("the eviction was not logged: %s", log.String())
		}
		readN(t, next, 1)
		// It thaws: its session is gone, and it says so.
		s.session.Unlock()
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		var err error
		for err == nil {
			_, err = s.Read(ctx)
		}
		if ctx.Err() != nil {
			t.Errorf("the evicted reader does not notice: %v", err)
		}
	})
}

// A reader that waits for a long query of its own is not frozen.
func TestBusyReaderIsNotEvicted(t *testing.T) {
	each(t, func(t *testing.T, pg *servers.PG) {
		url := newOutbox(t, pg, MigrateOptions{})
		busy := dial(t, url)
		sql(t, busy, `SET application_name = 'busy'`)
		if _, err := busy.Exec(t.Context(), `SELECT pg_advisory_lock($1, 1)`, lockClass); err != nil {
			t.Fatal(err)
		}
		done := make(chan error, 1)
		go func() {
			_, err := busy.Exec(t.Context(), `SELECT pg_sleep(9)`, pgx.QueryExecModeSimpleProtocol)
			done <- err
		}()
		for {
			select {
			case err := <-done:
				if err != nil {
					t.Fatalf("the long query: %v", err)
				}
				return
			default:
			}
			if s, err := tryOpen(t, Config{URL: url}, ""); err == nil {
				_ = s.Close()
				t.Fatal("the busy reader was evicted")
			}
			time.Sleep(200 * time.Millisecond)
		}
	})
}

func TestOpenRefuses(t *testing.T) {
	each(t, func(t *testing.T, pg *servers.PG) {
		url := newOutbox(t, pg, MigrateOptions{})
		secret := strings.NewReplacer("postgres://", "postgres://nobody:hidden-word@").Replace("postgres://127.0.0.1:1/x?sslmode=disable")
		for what, c := range map[string]struct {
			cfg  Config
			pos  onewrite.Pos
			want string
		}{
			"no outbox":        {Config{URL: pg.NewDatabase(t)}, "", "onewrite migrate"},
			"a poor role":      {Config{URL: pg.NewRole(t).URL(url)}, "", "onewrite migrate --print"},
			"no server":        {Config{URL: secret}, "", "check that the server runs"},
			"no url":           {Config{URL: "postgres://a:hidden-word@[x"}, "", "not understood"},
			"nonsense":         {Config{URL: url}, "nonsense", "not a position"},
			"another's":        {Config{URL: url}, "pg1/1/1/1/1/bus1/1", "not a position"},
			"half a position":  {Config{URL: url}, "pg1/1/1/1/1/bus1/1/1:1:/1:1:", "not a position"},
			"a broken one":     {Config{URL: url}, "pg1/1/1/1/1/bus1/1/1:x:", "not a position"},
			"another version":  {Config{URL: url}, "pg9/1/1/1/1/bus1/1/1:1:", "not a position"},
			"a wrong password": {Config{URL: servers.Role{Name: "postgres", Password: "hidden-word"}.URL(url)}, "", "check the user and password"},
		} {
			_, err := tryOpen(t, c.cfg, c.pos)
			if err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "hidden-word") {
				t.Errorf("%s: %v\n\twant %q", what, err, c.want)
			}
		}
	})
}
