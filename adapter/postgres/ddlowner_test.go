package postgres

import (
	"testing"

	"github.com/onewrite/onewrite/internal/servers"
)

// The event triggers run as a superuser and read a table that somebody else may own. One
// who puts something else in its place has nothing of theirs run, and no command fails.
func TestDDLReadsNoOtherRegistry(t *testing.T) {
	each(t, func(t *testing.T, pg *servers.PG) {
		r, owner := newDDL(t, pg)
		role := pg.NewRole(t)
		sql(t, r.conn, `ALTER SCHEMA onewrite OWNER TO `+role.Name+`; ALTER TABLE onewrite.captured OWNER TO `+role.Name)
		evil := dial(t, role.URL(r.url))
		sql(t, evil, `CREATE TABLE onewrite.loot (who text, super bool);
			CREATE FUNCTION onewrite.steal() RETURNS text LANGUAGE plpgsql AS $$ BEGIN
				INSERT INTO onewrite.loot SELECT current_user, rolsuper FROM pg_catalog.pg_roles WHERE rolname = current_user; RETURN 'x'; END $$;
			CREATE TYPE onewrite.odd AS (a int);
			CREATE FUNCTION onewrite.odd_json(onewrite.odd) RETURNS json LANGUAGE sql AS $$ SELECT to_json(onewrite.steal()) $$;
			CREATE CAST (onewrite.odd AS json) WITH FUNCTION onewrite.odd_json(onewrite.odd);
			ALTER TABLE onewrite.captured RENAME TO honest`)
		for _, fake := range []string{
			`CREATE VIEW onewrite.captured AS SELECT source, rel, onewrite.steal() AS name FROM onewrite.honest`,
			`CREATE MATERIALIZED VIEW onewrite.captured AS SELECT source, rel, name FROM onewrite.honest`,
			`CREATE TABLE onewrite.captured AS SELECT source, rel, ROW(1)::onewrite.odd AS name FROM onewrite.honest`,
			`CREATE TABLE onewrite.captured AS SELECT source, rel, name FROM onewrite.honest; ALTER TABLE onewrite.captured ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
				CREATE POLICY p ON onewrite.captured USING (onewrite.steal() = 'x')`,
			`CREATE TABLE onewrite.captured (rel oid, name text)`,
		} {
			sql(t, evil, fake)
			sql(t, owner, `ALTER TABLE s.orders ADD c int; ALTER TABLE s.orders DROP c; CREATE TABLE s.more (); DROP TABLE s.more`)
			var loot int
			if err := r.conn.QueryRow(t.Context(), `SELECT count(*) FROM onewrite.loot WHERE super`).Scan(&loot); err != nil || loot > 0 {
				t.Errorf("%d times code of somebody else ran as a superuser, by %s: %v", loot, fake, err)
			}
			sql(t, r.conn, `TRUNCATE onewrite.loot; DROP `+kindOf(t, r)+` onewrite.captured`)
		}
		sql(t, evil, `ALTER TABLE onewrite.honest RENAME TO captured`)
		sql(t, owner, `ALTER TABLE s.orders ADD honest int`)
		if got, want := ddlOf(t, r.events(1)[0]), "s.orders: ALTER TABLE s.orders: ALTER TABLE s.orders ADD honest int"; got != want {
			t.Errorf("came %s, want %s", got, want)
		}
	})
}

// kindOf is what onewrite.captured is.
func kindOf(t *testing.T, r *rig) (kind string) {
	t.Helper()
	if err := r.conn.QueryRow(t.Context(), `SELECT CASE relkind WHEN 'v' THEN 'VIEW' WHEN 'm' THEN 'MATERIALIZED VIEW' ELSE 'TABLE' END FROM pg_class WHERE oid = 'onewrite.captured'::regclass`).Scan(&kind); err != nil {
		t.Fatal(err)
	}
	return kind
}
