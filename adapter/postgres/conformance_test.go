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

func TestConformance(t *testing.T) { testConformance(t, MigrateOptions{}) }

// The same holds where the log tells the outbox.
func TestConformancePushed(t *testing.T) { testConformance(t, pushedCapture) }

func testConformance(t *testing.T, o MigrateOptions) {
	each(t, func(t *testing.T, pg *servers.PG) {
		onewritetest.TestSource(t, func(t *testing.T) onewritetest.SourceHarness {
			url := newOutbox(t, pg, o)
			owner := dial(t, url)
			db, err := database.Open("pgx", url)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = db.Close() })
			return onewritetest.SourceHarness{
				Open: func(ctx context.Context, pos onewrite.Pos) (onewrite.Source, error) {
					return OpenSource(ctx, Config{Name: "shop", URL: url, BusID: "bus1", Pushed: o.Capture.Pushed}, pos)
				},
				Begin: onewritetest.BeginSQL(db, outbox.Postgres),
				Held:  func(t *testing.T) int { return one[int](t, owner, "SELECT count(*) FROM onewrite.outbox") },
				// As if it were carried here from another database.
				Break: func(t *testing.T) { sql(t, owner, "UPDATE onewrite.bus SET database = 1") },
			}
		})
	})
}
