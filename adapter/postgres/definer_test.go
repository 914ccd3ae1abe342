package postgres

import (
	"strings"
	"testing"

	"github.com/onewrite/onewrite/internal/diagnosis"
	"github.com/onewrite/onewrite/internal/servers"
)

// A function that runs as its owner takes no view of its caller for a catalog.
func TestTemporaryCatalogsGainNothing(t *testing.T) {
	each(t, func(t *testing.T, pg *servers.PG) {
		r, owner := newDDL(t, pg)
		me := one[string](t, owner, `SELECT current_user::text`)
		sql(t, r.conn, `GRANT USAGE ON SCHEMA onewrite TO `+me, `GRANT EXECUTE ON FUNCTION onewrite.summarize() TO `+me)
		for _, catalog := range []string{"pg_am", "pg_namespace"} {
			columns := one[string](t, owner, `SELECT string_agg(quote_ident(attname), ', ') FROM pg_catalog.pg_attribute WHERE attrelid = ('pg_catalog.' || $1)::regclass AND attnum > 0`, catalog)
			sql(t, owner, `CREATE TEMP TABLE IF NOT EXISTS noted (who text); GRANT ALL ON noted TO PUBLIC`,
				`CREATE OR REPLACE FUNCTION pg_temp.note() RETURNS boolean LANGUAGE plpgsql AS $$BEGIN INSERT INTO pg_temp.noted VALUES (current_user); RETURN true; END$$`,
				`CREATE TEMP VIEW `+catalog+` AS SELECT `+columns+` FROM pg_catalog.`+catalog+` WHERE pg_temp.note()`, `GRANT SELECT ON pg_temp.`+catalog+` TO PUBLIC`)
		}
		attack := func() int {
			t.Helper()
			sql(t, owner, `TRUNCATE noted`, `SELECT onewrite.summarize()`, `ALTER TABLE s.orders ADD COLUMN IF NOT EXISTS more int`, `ALTER TABLE s.orders DROP COLUMN more`)
			return one[int](t, owner, `SELECT count(*) FROM noted WHERE who <> current_user`)
		}
		if n := attack(); n != 0 {
			t.Errorf("a temporary view was read %d times by a function that ran as another", n)
		}
		const bad = `SELECT coalesce(string_agg(p.oid::regprocedure::text, ', '), '') FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace
			WHERE n.nspname = 'onewrite' AND p.prosecdef AND NOT EXISTS (SELECT FROM unnest(p.proconfig) c WHERE c LIKE 'search_path=%, pg_temp')`
		if names := one[string](t, r.conn, bad); names != "" {
			t.Errorf("pg_temp is not the last in the search path of %s", names)
		}
		if n := one[int](t, r.conn, `SELECT count(*) FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace WHERE n.nspname = 'onewrite' AND p.prosecdef`); n < 4 {
			t.Errorf("%d functions were looked at", n)
		}
		// As an older onewrite made them: the attack works, the doctor sees it, and migrate mends them.
		old := func() {
			sql(t, r.conn, `ALTER FUNCTION onewrite.summarize() SET search_path = pg_catalog`, `ALTER FUNCTION onewrite.onewrite_ddl() SET search_path = pg_catalog`, `ALTER FUNCTION onewrite.onewrite_drop() SET search_path = pg_catalog`)
		}
		old()
		if attack() == 0 {
			t.Error("the attack proves nothing")
		}
		o := MigrateOptions{Capture: Capture{Source: "shop", Tables: []string{"s.*"}, DDL: true}}
		found := Examine(t.Context(), r.url, o)
		for _, check := range []string{"functions", "ddl"} {
			if f := findingOf(found, check); f.Severity != diagnosis.Problem {
				t.Errorf("the doctor says %s of %s", f.Text, check)
			}
		}
		if got := strings.Join(r.migrate(), "; "); !strings.Contains(got, "onewrite.summarize()") || !strings.Contains(got, "event triggers") {
			t.Errorf("migrate says %q", got)
		}
		if n := attack(); n != 0 || one[string](t, r.conn, bad) != "" {
			t.Errorf("migrate leaves %q, and the attack worked %d times", one[string](t, r.conn, bad), n)
		}
		old()
		script, err := SchemaWithCapture(t.Context(), r.url, o)
		if err != nil {
			t.Fatal(err)
		}
		mustPsql(t, r.url, script)
		if n := attack(); n != 0 || one[string](t, r.conn, bad) != "" {
			t.Errorf("migrate --print leaves %q, and the attack worked %d times", one[string](t, r.conn, bad), n)
		}
	})
}

// findingOf is the first finding of a check that is not in order, or the last that is.
func findingOf(found []diagnosis.Finding, check string) (f diagnosis.Finding) {
	for _, one := range found {
		if one.Check == check && f.Severity == diagnosis.OK {
			f = one
		}
	}
	return f
}
