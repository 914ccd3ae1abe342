package postgres

import (
	"context"
	database "database/sql"
	"testing"

	_ "github.com/jackc/pgx/v5/stdlib"

	"github.com/onewrite/onewrite"
	"github.com/onewrite/onewrite/internal/servers"
	"github.com/onewrite/onewrite/onewritetest"
	"github.com/onewrite/onewrite/outbox"
)

func TestConformance(t *testing.T) {
	each(t, func(t *testing.T, pg *servers.PG) {
		onewritetest.TestSource(t, func(t *testing.T) onewritetest.SourceHarness {
			url := newOutbox(t, pg, MigrateOptions{})
			owner := dial(t, url)
			db, err := database.Open("pgx", url)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = db.Close() })
			return onewritetest.SourceHarness{
				Open: func(ctx context.Context, pos onewrite.Pos) (onewrite.Source, error) {
					s, err := Open(ctx, Config{Name: "shop", URL: url, BusID: "bus1"}, pos)
					if err != nil {
						return nil, err
					}
					return s, nil
				},
				Begin: onewritetest.BeginSQL(db, outbox.Postgres),
				Held:  func(t *testing.T) int { return one[int](t, owner, "SELECT count(*) FROM onewrite.outbox") },
				// As if it were carried here from another database.
				Break: func(t *testing.T) { sql(t, owner, "UPDATE onewrite.bus SET database = 1") },
			}
		})
	})
}
