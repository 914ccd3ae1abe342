package postgres

import (
	"fmt"
	"testing"

	"github.com/onewrite/onewrite/internal/servers"
)

// What a superuser makes by the script, or by migrate, belongs to the owner of the schema,
// whose next migrate goes on.
func TestSuperusersScriptLeavesTheOwnerInPlace(t *testing.T) {
	each(t, func(t *testing.T, pg *servers.PG) {
		for _, script := range []bool{true, false} {
			url, owner := pg.NewDatabase(t), pg.NewRole(t)
			admin := dial(t, url)
			sql(t, admin, fmt.Sprintf(`GRANT CREATE ON DATABASE %s TO %s`, one[string](t, admin, `SELECT quote_ident(current_database())`), owner.Name),
				`GRANT CREATE ON SCHEMA public TO `+owner.Name)
			as := owner.URL(url)
			sql(t, dial(t, as), `CREATE TABLE a (id int PRIMARY KEY)`, `CREATE TABLE b (id int PRIMARY KEY)`)
			o := MigrateOptions{Capture: Capture{Source: "shop"}}
			if _, err := Migrate(t.Context(), as, o); err != nil {
				t.Fatal(err)
			}
			o.Capture.Tables, o.Capture.DDL, o.Capture.Messages = []string{"a"}, true, true
			if script {
				text, err := SchemaWithCapture(t.Context(), url, o)
				if err != nil {
					t.Fatal(err)
				}
				mustPsql(t, url, text)
			} else if _, err := Migrate(t.Context(), url, o); err != nil {
				t.Fatal(err)
			}
			o.Capture.Tables = []string{"a", "b"}
			if got, err := Migrate(t.Context(), as, o); err != nil || len(got) != 1 {
				t.Errorf("script %v: the owner's migrate: %q, %v", script, got, err)
			}
			const others = `SELECT coalesce(string_agg(x, ', '), '') FROM (
				SELECT k.oid::regclass::text FROM pg_class k WHERE k.relnamespace = 'onewrite'::regnamespace AND k.relowner <> $1::regrole
				UNION ALL SELECT p.oid::regprocedure::text FROM pg_proc p WHERE p.pronamespace = 'onewrite'::regnamespace AND p.proowner <> $1::regrole
				UNION ALL SELECT pubname FROM pg_publication WHERE pubowner <> $1::regrole ORDER BY 1) x (x)`
			if got := one[string](t, admin, others, owner.Name); got != "onewrite.onewrite_ddl(), onewrite.onewrite_drop()" {
				t.Errorf("script %v: of others are %s", script, got)
			}
		}
	})
}
