package sqlite

import (
	"context"
	"database/sql"
	"net/url"
	"testing"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/onewritetest"
	"github.com/onewrite/onewrite/outbox"
)

func TestConformance(t *testing.T) {
	onewritetest.TestSource(t, func(t *testing.T) onewritetest.SourceHarness {
		path := migrated(t, "", MigrateOptions{})
		dsn := url.Values{"_pragma": {"busy_timeout(60000)"}, "_txlock": {"immediate"}}
		db, err := sql.Open("sqlite", "file:"+path+"?"+dsn.Encode())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { db.Close() })
		return onewritetest.SourceHarness{
			Open: func(ctx context.Context, pos onewrite.Pos) (onewrite.Source, error) {
				s, err := Open(ctx, Config{Name: "shop", Path: path, BusID: "bus-1"}, pos)
				if err != nil {
					return nil, err
				}
				return s, nil
			},
			Begin:     onewritetest.BeginSQL(db, outbox.SQLite),
			OneWriter: true,
			Held:      func(t *testing.T) int { return value[int](t, db, "SELECT count(*) FROM onewrite_outbox") },
			Break: func(t *testing.T) {
				exec1(t, db, "UPDATE onewrite_meta SET file = lower(hex(randomblob(16)))")
			},
		}
	})
}
