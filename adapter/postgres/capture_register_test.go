package postgres

import (
	"fmt"
	"strings"
	"testing"

	"github.com/onewrite/onewrite/internal/servers"
)

// What migrate does to the publication and to the registry it says, and the second time
// there is nothing to do.
func TestMigrateSaysWhatItDid(t *testing.T) {
	each(t, func(t *testing.T, pg *servers.PG) {
		url := pg.NewDatabase(t)
		conn := dial(t, url)
		sql(t, conn, `CREATE TABLE a (id int PRIMARY KEY, code int NOT NULL); CREATE UNIQUE INDEX a_code ON a (code); CREATE TABLE stranger (id int PRIMARY KEY)`)
		o := MigrateOptions{Capture: Capture{Source: "shop", Tables: []string{"a"}}}
		if _, err := Migrate(t.Context(), url, o); err != nil {
			t.Fatal(err)
		}
		pushed := o
		pushed.Capture.Pushed = true
		renamed := o
		renamed.Capture.Tables = []string{"b"}
		for _, c := range []struct {
			ddl  string
			o    MigrateOptions
			want string
		}{
			{`SELECT`, pushed, "put onewrite.outbox into the publication onewrite_shop"},
			{`ALTER PUBLICATION onewrite_shop DROP TABLE onewrite.outbox; ALTER PUBLICATION onewrite_shop ADD TABLE onewrite.outbox (topic)`, pushed, "took onewrite.outbox out of the publication onewrite_shop; put onewrite.outbox into the publication onewrite_shop"},
			{`SELECT`, o, "took onewrite.outbox out of the publication onewrite_shop"},
			{`ALTER PUBLICATION onewrite_shop ADD TABLE stranger`, o, "took public.stranger out of the publication onewrite_shop"},
			{`ALTER TABLE a REPLICA IDENTITY FULL`, o, "took over the replica identity of public.a (full, was default): no change is missing"},
			{`ALTER TABLE a REPLICA IDENTITY USING INDEX a_code`, o, "the key of public.a is another one than before: it gets a new snapshot"},
			{`ALTER TABLE a RENAME TO b`, renamed, "row changes of public.a are captured under its name now: public.b"},
		} {
			sql(t, conn, c.ddl)
			got, err := Migrate(t.Context(), url, c.o)
			if err != nil {
				t.Fatalf("%s: %v", c.ddl, err)
			}
			if said := strings.Join(got, "; "); said != c.want {
				t.Errorf("%s: migrate says %q, want %q", c.ddl, said, c.want)
			}
			if got, err := Migrate(t.Context(), url, c.o); err != nil || len(got) > 0 {
				t.Errorf("%s: migrate once more: %q, %v", c.ddl, got, err)
			}
		}
	})
}

// What was captured is remembered until the slot needs no log of that time any more.
func TestReleasedTablesAreForgotten(t *testing.T) {
	for _, script := range []bool{false, true} {
		each(t, func(t *testing.T, pg *servers.PG) {
			r := newRig(t, pg, `CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE b (id int PRIMARY KEY)`, "public.a", "public.b")
			r.open()
			r.whole()
			_ = r.src.Close()
			r.tables = []string{"public.b"}
			released := func() int {
				t.Helper()
				r.bring(script)
				return one[int](t, r.conn, `SELECT count(*)::int FROM onewrite.released WHERE name = 'public.a' AND key = '1' AND shape <> '[]'`)
			}
			for range 2 {
				if n := released(); n != 1 {
					t.Fatalf("%d tables are remembered while the log has them", n)
				}
			}
			r.src = nil
			r.open()
			n := 0
			eventually(t, "it is forgotten", func() bool {
				n++
				sql(t, r.conn, fmt.Sprintf(`INSERT INTO b VALUES (%d)`, n), `CHECKPOINT`) // it notes which transactions are open
				r.events(1)
				return released() == 0
			})
		})
	}
}
