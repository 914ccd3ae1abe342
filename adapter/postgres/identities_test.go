package postgres

import (
	"strings"
	"testing"

	"github.com/onewrite/onewrite/internal/servers"
)

// Inside a statement two rows may share a deferrable key. Told by that key, the new row
// of one would be deleted as the old row of the other: such a table is one lane, with
// whole rows, also after somebody else set its identity.
func TestDeferrableKey(t *testing.T) {
	each(t, func(t *testing.T, pg *servers.PG) {
		r := newRig(t, pg, `CREATE TABLE d (id int PRIMARY KEY DEFERRABLE, v text); INSERT INTO d SELECT i, 'v' || i FROM generate_series(1, 2) i;
			CREATE TABLE u (id int PRIMARY KEY DEFERRABLE, v text, code int NOT NULL UNIQUE); CREATE UNIQUE INDEX u_id ON u (id); ALTER TABLE u REPLICA IDENTITY USING INDEX u_id; INSERT INTO u VALUES (1, 'v', 1)`)
		r.tables = []string{"public.d", "public.u"}
		if said := strings.Join(r.migrate(), "\n"); !strings.Contains(said, "public.d to full") || !strings.Contains(said, "primary key is deferrable") || strings.Contains(said, "public.u to") {
			t.Error(said)
		}
		r.cfg.Tables, r.cfg.readers = r.tables, 1
		r.open()
		r.expect(`d snapshot d null {"id":1,"v":"v1"}`, `d snapshot d null {"id":2,"v":"v2"}`, `u snapshot {"id":1} null {"id":1,"v":"v","code":1}`)
		sql(t, r.conn, `UPDATE d SET id = id + 1`, `DELETE FROM d WHERE id = 2`, `UPDATE u SET v = 'w'`)
		r.expect(`d update d {"id":1,"v":"v1"} {"id":2,"v":"v1"}`, `d update d {"id":2,"v":"v2"} {"id":3,"v":"v2"}`, `d delete d {"id":2,"v":"v1"} null`, `u update {"id":1} null {"id":1,"v":"w","code":1}`)
	})
}
